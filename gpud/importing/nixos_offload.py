"""The option sets below ``kernelcore``, and the services around them: what managed models before gpud did."""

import re
from collections.abc import Callable

from gpud.importing.fields import Fields
from gpud.importing.report import Draft, shown
from gpud.importing.values import put_host, put_level, put_origins, put_path, put_port

USUAL_ORIGIN = "http://localhost:3000"
USUAL_VLLM = "http://127.0.0.1:8000"
"""What the modules take where nothing is said."""

_ONE_DAEMON = "there is one daemon, and this is always a part of it"


def _storage(made: Draft, fields: Fields) -> None:
    fields.spare("enable", _ONE_DAEMON)
    base = fields.text("baseDirectory")
    if base:
        put_path(made, ("storage", "base_directory"), base, fields.at("baseDirectory"), fields.name("baseDirectory"))


def _offload(made: Draft, fields: Fields) -> None:
    fields.spare("enable", _ONE_DAEMON)
    models = fields.text("modelsPath")
    if models and made.get(("storage", "base_directory")) is None:
        put_path(made, ("storage", "base_directory"), models, fields.at("modelsPath"), fields.name("modelsPath"))
    elif models:
        made.spare(fields.at("modelsPath"), fields.name("modelsPath"), "storage.base_directory says it already")
    if fields.text("dataDir"):
        why = "gpud's state is where systemd puts it, /var/lib/gpud"
        made.leave(fields.at("dataDir"), fields.name("dataDir"), why, "StateDirectory= of gpud.service says where")
    for name in ("api", "vramIntelligence", "modelRegistry", "backends"):
        fields.node(name)  # They are sets of their own.


def _api(made: Draft, fields: Fields) -> None:
    if fields.flag("enable") is False:
        made.put(("http", "management", "enable"), False, fields.at("enable"), fields.name("enable"))
    host, port = fields.text("host"), fields.whole("port")
    if host:
        put_host(made, "management", host, fields.at("host"), fields.name("host"))
    if port is not None:
        put_port(made, "management", port, fields.at("port"), fields.name("port"))
    level = fields.text("logLevel")
    if level:
        put_level(made, level, fields.at("logLevel"), fields.name("logLevel"))
    origins = fields.texts("corsOrigins")
    if fields.flag("corsEnabled"):
        if not fields.has("corsOrigins"):
            origins = [(fields.at("corsEnabled"), USUAL_ORIGIN)]
        put_origins(made, origins, fields.name("corsOrigins" if fields.has("corsOrigins") else "corsEnabled"))
    elif origins:
        made.spare(fields.at("corsOrigins"), fields.name("corsOrigins"), "corsEnabled is false")
    fields.spare("workers", "gpud is one process, and serves all clients at once")
    limits = fields.table("rateLimiting")
    if limits is not None:
        _rate(made, limits, "requestsPerMinute", on=limits.flag("enable") is not False)
        limits.drop_left("gpud does not know this option")


def _rate(made: Draft, fields: Fields, key: str, *, on: bool = True) -> None:
    number = fields.whole(key)
    if number is None:
        return
    where, setting = fields.at(key), fields.name(key)
    if not on or number <= 0:
        made.spare(where, setting, "it is off")
        return
    why = "nothing ever held clients to it; gpud does"
    for place in ("rate", "rate_without_key"):
        made.put(("http", place), f"{number}/min", where, setting, why=why, changed=True)


def _vram(made: Draft, fields: Fields) -> None:
    fields.spare("enable", "gpud always knows what is used and what a load needs")
    every = fields.whole("monitoringInterval")
    if every is not None:
        made.put(("gpu", "watch"), every, fields.at("monitoringInterval"), fields.name("monitoringInterval"))
    scaling = fields.table("autoScaling")
    if scaling is not None:
        _scaling(made, scaling)
    planner = fields.table("budgetPlanner")
    if planner is not None:
        planner.spare("enable", "every load is planned")
        why = "gpud learns the margin, from what loads were measured to take beyond their estimate"
        planner.drop("safetyMargin", why, "gpu.reserve is what is left free for others")
        planner.drop_left("gpud does not know this option")
    alerts = fields.table("alerts")
    if alerts is not None:
        _alerts(made, alerts)
    scheduler = fields.table("scheduler")
    if scheduler is not None:
        scheduler.spare("enable", "there is one, always")
        for key, place in (("maxQueueSize", "size"), ("timeoutSeconds", "timeout")):
            number = scheduler.whole(key)
            if number is not None:
                made.put(("queue", place), number, scheduler.at(key), scheduler.name(key))
        scheduler.drop_left("gpud does not know this option")


HYSTERESIS = 5
"""Unloading stops so many points below where it began; the old one stopped below 80."""


def _scaling(made: Draft, fields: Fields) -> None:
    threshold = fields.whole("threshold")
    where, setting = fields.at("threshold"), fields.name("threshold")
    if fields.flag("enable") is False:
        made.put(("eviction", "above"), "never", fields.at("enable"), fields.name("enable"))
        if threshold is not None:
            made.spare(where, setting, "it is off")
    elif threshold is not None:
        made.put(("eviction", "above"), f"{threshold}%", where, setting)
        below = min(80, threshold - HYSTERESIS)
        if below != 80 and below > 0:
            made.put(("eviction", "below"), f"{below}%", where, setting, why="it has to be less than above")
    policy = fields.text("evictionPolicy")
    if policy:
        made.put(("eviction", "policy"), policy, fields.at("evictionPolicy"), fields.name("evictionPolicy"))
    fields.drop_left("gpud does not know this option")


def _alerts(made: Draft, fields: Fields) -> None:
    threshold = fields.whole("highUsageThreshold")
    where, setting = fields.at("highUsageThreshold"), fields.name("highUsageThreshold")
    if fields.flag("enable") is False:
        made.put(("gpu", "alert_percent"), "never", fields.at("enable"), fields.name("enable"))
        if threshold is not None:
            made.spare(where, setting, "it is off")
    elif threshold is not None:
        made.put(("gpu", "alert_percent"), f"{threshold}%", where, setting)
    fields.spare("notificationMethod", "the journal and D-Bus are always told, and a webhook where there is one")
    address = fields.text("webhookUrl")
    if address:
        made.secrets.hide(address)
        why = "such an address is a secret, and secrets are never copied"
        instead = "write it as alerts.webhook, into a file of mode 0600 in gpud.d"
        made.leave(fields.at("webhookUrl"), fields.name("webhookUrl"), why, instead)
    fields.drop_left("gpud does not know this option")


_SPANS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600}
_SPANS |= {"d": 86400, "day": 86400, "w": 604800, "week": 604800}


def seconds_of(span: str) -> int | None:
    """Seconds, as systemd reads a span of time: ``1h``, ``90min``, ``1h 30min``, ``3600``. None: it is none."""
    text = span.strip()
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if not re.fullmatch(r"(?:[0-9]{1,9} ?[a-z]+ ?)+", text):
        return None
    total = 0
    for number, unit in re.findall(r"([0-9]+) ?([a-z]+)", text):
        one = _SPANS.get(unit) or _SPANS.get(unit.removesuffix("s"))
        if one is None:
            return None
        total += int(number) * one
    return total


def _registry(made: Draft, fields: Fields) -> None:
    if fields.flag("enable") is False:
        made.put(("registry", "enable"), False, fields.at("enable"), fields.name("enable"))
    every = fields.text("autoScanInterval")
    if fields.has("autoScanInterval") and every is not None:
        where, setting = fields.at("autoScanInterval"), fields.name("autoScanInterval")
        seconds = seconds_of(every) if every.strip() else 0
        if seconds is None:
            made.leave(where, f"{setting} {shown(every)}", "it is no span of time", "set registry.scan_interval")
        else:
            value: object = seconds or "never"
            why = "folders of this machine are watched, and need no scan"
            made.put(("registry", "scan_interval"), value, where, setting, why=why)
    on_start = fields.flag("scanOnBoot")
    if on_start is not None:
        made.put(("registry", "scan_on_start"), on_start, fields.at("scanOnBoot"), fields.name("scanOnBoot"))
    paths = [text for _, text in fields.texts("includedPaths")]
    if paths:
        made.put(("registry", "paths"), paths, fields.at("includedPaths"), fields.name("includedPaths"))
    patterns = [text for _, text in fields.texts("excludedPatterns")]
    if patterns:
        made.put(("registry", "exclude"), patterns, fields.at("excludedPatterns"), fields.name("excludedPatterns"))


def _backends(made: Draft, fields: Fields) -> None:
    fields.spare("enable", _ONE_DAEMON)
    fields.spare("availableBackends", "gpud looks which engines are installed")
    vllm = fields.table("vllm")
    if vllm is None or vllm.flag("enable") is False:
        return
    key = "endpoint" if vllm.has("endpoint") else "enable"
    endpoint = vllm.text("endpoint") or (USUAL_VLLM if vllm.flag("enable") else "")
    if endpoint:
        why = "a model with engine: vllm needs a size then"
        made.put(("engines", "vllm", "url"), endpoint, vllm.at(key), vllm.name(key), why=why)
    timeout = vllm.whole("loadTimeout")
    if timeout:
        place = ("engines", "vllm", "defaults", "load_timeout")
        made.put(place, timeout, vllm.at("loadTimeout"), vllm.name("loadTimeout"))
    vllm.spare("healthCheckInterval", "gpud asks an engine when it has to know")
    vllm.spare("capabilities", "gpud asks the engine what it can do")
    vllm.drop_left("gpud does not know this option")


def _users(_: Draft, fields: Fields) -> None:
    fields.spare("enable", "gpud's package makes its user, in the groups that may use GPUs")


def _mcp(made: Draft, fields: Fields) -> None:
    for key in fields.names():
        fields.node(key)
    made.leave(fields.where, fields.path, "a program of its own, with a configuration of its own; gpud.yaml has none")


def _ops_api(made: Draft, fields: Fields) -> None:
    port = fields.whole("port")
    if port is not None:
        put_port(made, "management", port, fields.at("port"), fields.name("port"))
    _rate(made, fields, "rateLimitRpm")
    for key in ("llamacppUrl", "vllmUrl"):
        fields.spare(key, "gpud starts the engines, and knows where they are")
    why = "keys are never copied: gpud keeps only their hashes"
    fields.drop("apiKeysSecretFile", why, "gpudctl key add NAME, once for each client")
    fields.drop("orchestrator", "gpud has one queue, for loads that wait for memory", "queue: {size: N, timeout: N}")
    fields.drop("natsUrl", "gpud tells its events on D-Bus and by HTTP, at /events")
    fields.spare("enable", _ONE_DAEMON)


def _orchestration(made: Draft, fields: Fields) -> None:
    mode = fields.text("defaultMode")
    if mode:
        why = "gpud has the GPUs until somebody asks it to give them away"
        where, setting = fields.at("defaultMode"), fields.name("defaultMode")
        made.leave(where, f"{setting} {shown(mode)}", why, "gpudctl yield, and gpudctl resume afterwards")
    fields.spare("enable", _ONE_DAEMON)


SETS: dict[tuple[str, ...], Callable[[Draft, Fields], None]] = {
    ("kernelcore", "ml", "models-storage"): _storage,
    ("kernelcore", "ml", "offload"): _offload,
    ("kernelcore", "ml", "offload", "api"): _api,
    ("kernelcore", "ml", "offload", "vramIntelligence"): _vram,
    ("kernelcore", "ml", "offload", "modelRegistry"): _registry,
    ("kernelcore", "ml", "offload", "backends"): _backends,
    ("kernelcore", "ml", "mcp"): _mcp,
    ("kernelcore", "system", "ml-gpu-users"): _users,
    ("kernelcore", "services", "gpu-orchestration"): _orchestration,
    ("services", "ml-ops-api"): _ops_api,
}
"""The option sets, in the order in which they are read."""
