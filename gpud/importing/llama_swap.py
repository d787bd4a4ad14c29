"""llama-swap's YAML: its models, and what gpud does in place of its groups, its matrix and its timers."""

from gpud.config.source import Items, Node, Scalar, Table
from gpud.importing.fields import Fields
from gpud.importing.llama_swap_models import Models
from gpud.importing.macros import Macros, read_macros
from gpud.importing.reading import read_yaml, top
from gpud.importing.report import Draft, Given
from gpud.importing.values import put_level

KIND = "llama-swap"

_BUDGET = (
    "gpud keeps as many models as its budget holds, by what each was measured to take, and lets idle ones go first"
)
_BODIES = "gpud relays requests as they are, and changes nothing in them"
_NO_BODIES = "gpud never keeps requests or answers"


def draft(text: str, given: Given) -> Draft:
    """A draft of what the file says. Raises ConfigInvalid for a file that llama-swap would not take either."""
    made = Draft(KIND, given)
    node = top(read_yaml(text, given.file), given.file, "llama-swap's configuration is a map with models in it")
    add(made, node)
    return made


def add(made: Draft, node: Table, path: str = "") -> None:
    """Add what a configuration of llama-swap says; ``path`` is where it stands, if it is a part of something."""
    fields = Fields(made, node, path)
    macros = Macros(made, read_macros(fields.node("macros"), fields.name("macros")))
    global_ttl = fields.whole("globalTTL")
    if global_ttl:
        made.put(("idle", "timeout"), global_ttl, fields.at("globalTTL"), fields.name("globalTTL"))
    else:
        why = (
            "llama-swap unloads nothing for idleness unless it is told to; gpud does after 300 s, where this is removed"
        )
        made.put(("idle", "timeout"), "never", fields.at("globalTTL"), fields.name("globalTTL"), why=why, changed=True)
    timeout = fields.whole("healthCheckTimeout")
    if timeout is not None:
        why = "llama-swap waits 15 s at least" if timeout < 15 else ""
        where = fields.at("healthCheckTimeout")
        made.put(("defaults", "load_timeout"), max(15, timeout), where, fields.name("healthCheckTimeout"), why=why)
    grace = fields.whole("unloadTimeout")
    if grace:
        made.put(("stop", "term"), grace, fields.at("unloadTimeout"), fields.name("unloadTimeout"))
    level = fields.text("logLevel")
    if level is not None:
        put_level(made, level, fields.at("logLevel"), fields.name("logLevel"))
    models = Models(made, macros)
    for name, inner in fields.tables("models"):
        models.add(name, inner)
    models.finish()
    _routing(made, fields)
    _hooks(made, fields)
    _others(made, fields)


# What may be loaded together ------------------------------------------------------------------------------------------


def _routing(made: Draft, fields: Fields) -> None:
    routing = fields.table("routing")
    _groups(made, fields)
    _matrix(made, fields)
    if routing is None:
        return
    router = routing.table("router")
    if router is not None:
        router.spare("use", _BUDGET)
        settings = router.table("settings")
        if settings is not None:
            _groups(made, settings)
            _matrix(made, settings)
            settings.drop_left("gpud has no such router")
        router.drop_left("gpud has no such setting")
    scheduler = routing.table("scheduler")
    if scheduler is not None:
        scheduler.spare("use", "gpud has one queue, fair to everybody in it")
        settings = scheduler.table("settings")
        fifo = settings.table("fifo") if settings is not None else None
        if fifo is not None:
            _priorities(made, fifo)
            fifo.drop_left("gpud has no such setting")
        if settings is not None:
            settings.drop_left("gpud has no such scheduler")
        scheduler.drop_left("gpud has no such setting")
    routing.drop_left("gpud has no such setting")


def _groups(made: Draft, fields: Fields) -> None:
    for _, group in fields.tables("groups"):
        members = group.texts("members")
        persistent = group.flag("persistent")
        for key in ("swap", "exclusive"):
            group.spare(key, _BUDGET)
        for where, name in members:
            path = made.model_called(name)
            if path is None:
                made.leave(where, f"{group.name('members')} {name}", "there is no model of this name")
            elif persistent:
                why = "once it is loaded, nothing makes it go"
                made.put((*path, "pinned"), True, group.at("persistent"), group.name("persistent"), why=why)
        if members and not persistent:
            made.spare(group.at("members"), group.name("members"), _BUDGET)
        group.drop_left("gpud has no such setting of a group")


def _matrix(made: Draft, fields: Fields) -> None:
    matrix = fields.table("matrix")
    if matrix is None:
        return
    matrix.spare("vars", "they are names for the sets, of which gpud needs none")
    matrix.spare("sets", _BUDGET)
    if matrix.node("evict_costs") is not None:
        why = "gpud measures what a load costs, and lets the model go with which the least is lost"
        instead = "priority: high, or pinned: true, for a model that is to stay"
        made.leave(matrix.at("evict_costs"), matrix.name("evict_costs"), why, instead)
    matrix.drop_left("gpud has no such setting")


def _priorities(made: Draft, fifo: Fields) -> None:
    priorities = fifo.table("priority")
    for name in priorities.names() if priorities is not None else []:
        assert priorities is not None
        number = priorities.whole(name)
        path = made.model_called(name)
        setting = priorities.name(name)
        if number is None:
            continue
        if path is None:
            made.leave(priorities.at(name), setting, "there is no model of this name")
        elif number == 0:
            made.spare(priorities.at(name), setting, "0 is what every model has")
        else:
            word = "high" if number > 0 else "low"
            why = f"gpud has four: low, normal, high, critical; {number} is {word} here"
            made.put((*path, "priority"), word, priorities.at(name), setting, why=why, changed=True)


def _hooks(made: Draft, fields: Fields) -> None:
    hooks = fields.table("hooks")
    if hooks is None:
        return
    startup = hooks.table("on_startup")
    if startup is not None:
        for where, name in startup.texts("preload"):
            path = made.model_called(name)
            setting = startup.name("preload")
            if path is None:
                made.leave(where, f"{setting} {name}", "there is no model of this name")
            elif made.get((*path, "preload")):
                made.spare(where, f"{setting} {name}", "it is named twice")
            else:
                made.put((*path, "preload"), True, where, setting)
        startup.drop_left("gpud does nothing else when it starts")
    hooks.drop_left("gpud has no other hooks")


# All else -------------------------------------------------------------------------------------------------------------


def _count(node: Node | None) -> int:
    if isinstance(node, Items):
        return len(node.nodes)
    return len(node.entries) if isinstance(node, Table) else 0


def _others(made: Draft, fields: Fields) -> None:
    keys = fields.node("apiKeys")
    if keys is not None:
        _keys_are_not_copied(made, fields, keys)
    for name, peer in fields.tables("peers"):
        instead = ""
        proxy = peer.text("proxy")
        if proxy is not None and proxy.startswith("http://"):
            instead = f'a model with engine: custom, url: "{proxy}" and size: 0 reaches it'
        made.leave(
            peer.where, f"{fields.name('peers')}.{name}", "gpud owns this machine's GPUs, and no others", instead
        )
    if fields.node("profiles") is not None:
        why = "names that lead now to this model and now to that one are none of gpud's"
        made.leave(fields.at("profiles"), fields.name("profiles"), why, "aliases name a model once and for all")
    if fields.node("selectors") is not None:
        why = "gpud has no names that stand for several models"
        instead = "engine: [a, b] lets several engines serve one model"
        made.leave(fields.at("selectors"), fields.name("selectors"), why, instead)
    fields.spare("startPort", "gpud listens for engines on private sockets, or takes a free port")
    fields.spare("logToStdout", "gpud logs to the journal, engines under names of their own")
    fields.spare("logTimeFormat", "the journal has the time of each line")
    fields.spare("includeAliasesInList", "gpud lists a model once, with its aliases")
    fields.drop("sendLoadingState", f"{_BODIES}; a stream is kept alive while a model loads (http.heartbeat)")
    fields.drop("captureBuffer", _NO_BODIES)
    fields.drop("metricsMaxInMemory", "gpud counts for Prometheus, at /metrics, and keeps no rows")
    fields.drop("store", _NO_BODIES)
    fields.drop("performance", "gpud looks at the GPUs when something happens, and every gpu.watch besides")
    fields.drop("ui", "gpud has gpudctl top, and pages for machines")
    fields.drop("upstream", "gpud loads a model for those requests only that are meant for it")
    for name, where, _ in fields.left():
        made.leave(where, name, "gpud does not know this key of llama-swap's")


def _keys_are_not_copied(made: Draft, fields: Fields, keys: Node) -> None:
    for node in keys.nodes if isinstance(keys, Items) else (keys,):
        if isinstance(node, Scalar) and "${" not in node.text:
            made.secrets.hide(node.text)
    count = max(1, _count(keys))
    made.leave(
        fields.at("apiKeys"),
        f"{fields.name('apiKeys')} ({count} of them)",
        "keys are never copied: gpud keeps only their hashes, each with a name, rights and limits",
        "gpudctl key add NAME, once for each client, and set http.api_keys_file",
    )
