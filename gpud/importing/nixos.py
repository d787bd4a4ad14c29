"""NixOS's options for llama.cpp, Ollama and those that managed them, given as JSON: nested, dotted, or as evaluated."""

import re
from collections.abc import Callable, Mapping

from gpud.config.source import Entry, Node, Table, Where
from gpud.core.record import Record
from gpud.importing import llama_swap, nixos_offload, ollama_variables
from gpud.importing.fields import Fields
from gpud.importing.llama_flags import Part, mention_context, translate
from gpud.importing.reading import read_json, top, unreadable
from gpud.importing.report import Draft, Given
from gpud.importing.values import put_host, put_path, put_port, stem

KIND = "nixos"

_HOW = (
    'make it with nix eval --json ".#nixosConfigurations.HOST.config.services.llamacpp", and --prefix services.llamacpp'
)


def draft(text: str, given: Given, prefix: str = "") -> Draft:
    """A draft of what the options say. ``prefix`` is where they stand, if the JSON is a part. Raises ConfigInvalid."""
    made = Draft(KIND, given)
    node = top(read_json(text, given.file), given.file, f"options are an object; {_HOW}")
    for part in reversed(_parts(prefix)):
        node = Table(node.where, {part: Entry(node.where, node)}, node.weight + 1)
    nested = _nested(node, ())
    found = 0
    for path, handle in SETS.items():
        inner = _at(nested, path)
        if isinstance(inner, Table):
            found += 1
            fields = Fields(made, inner, ".".join(path))
            handle(made, fields)
            fields.drop_left("gpud does not know this option")
    if not found:
        known = ", ".join(".".join(path) for path in SETS if len(path) < 4)
        raise unreadable(Where(given.file, 0), f"has none of the options that gpud knows ({known}); {_HOW}")
    return made


# The shape of the JSON ------------------------------------------------------------------------------------------------

_FREE = {
    ("services", "ollama", "environmentVariables"),
    ("services", "llama-swap", "settings"),
    ("kernelcore", "llama-swap", "profiles"),
    ("kernelcore", "ml", "mcp", "agents"),
}
"""Where names are the user's own: a dot in one divides nothing."""


def _parts(path: str) -> list[str]:
    """``a.b."c.d"`` in its parts."""
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."]+)', path)]


def _nested(table: Table, path: tuple[str, ...]) -> Table:
    """The same with dotted names as maps in maps. Raises ConfigInvalid for an option that is given twice."""
    entries: dict[str, Entry] = {}
    for key, entry in table.entries.items():
        parts = [key] if path in _FREE else _parts(key) or [key]
        if not path and parts[0] in ("config", "options"):
            parts = parts[1:]
        node = _unwrapped(entry.node)
        if isinstance(node, Table):
            node = _nested(node, (*path, *parts))
        if not parts:
            inner = node.entries if isinstance(node, Table) else {}
            for name, one in inner.items():
                _add(entries, [name], one.where, one.node, path)
            continue
        _add(entries, parts, entry.where, node, path)
    return Table(table.where, entries, table.weight)


def _add(entries: dict[str, Entry], parts: list[str], where: Where, node: Node, path: tuple[str, ...]) -> None:
    first, *rest = parts
    for part in reversed(rest):
        node = Table(where, {part: Entry(where, node)}, node.weight + 1)
    known = entries.get(first)
    if known is None:
        entries[first] = Entry(where, node)
    elif isinstance(known.node, Table) and isinstance(node, Table):
        merged = dict(known.node.entries)
        for name, one in node.entries.items():
            _add(merged, [name], one.where, one.node, (*path, first))
        entries[first] = Entry(known.where, Table(known.node.where, merged, known.node.weight + node.weight))
    else:
        said = ".".join((*path, first))
        raise unreadable(where, f"{said}: given twice, first in line {known.where.line}; keep one of them")


_OF_OPTIONS = {"type", "default", "description", "declarations", "definedIn", "definitions", "example", "isDefined"}


def _unwrapped(node: Node) -> Node:
    """The value of an option that is described with it."""
    if isinstance(node, Table) and "value" in node.entries and node.entries.keys() & _OF_OPTIONS:
        return node.entries["value"].node
    return node


def _at(table: Table, path: tuple[str, ...]) -> Node | None:
    node: Node | None = table
    for key in path:
        entry = node.entries.get(key) if isinstance(node, Table) else None
        node = entry.node if entry else None
    return node


# llama.cpp ------------------------------------------------------------------------------------------------------------


class _Options(Record):
    """How a module calls the settings of llama-server, as flags; and what it takes where nothing is said."""

    flags: Mapping[str, str]
    defaults: Mapping[str, object]
    switches: Mapping[str, tuple[str, str]] | None = None


_LLAMACPP = _Options(
    {
        "n_threads": "--threads",
        "n_gpu_layers": "--gpu-layers",
        "n_parallel": "--parallel",
        "n_ctx": "--ctx-size",
        "n_batch": "--batch-size",
    },
    {"threads": 6, "layers": 22, "parallel": 1, "context": 4096, "batch": 2048},
)
_TURBO = _Options(
    {
        **_LLAMACPP.flags,
        "n_threads_batch": "--threads-batch",
        "n_ubatch": "--ubatch-size",
        "mainGpu": "--main-gpu",
        "chatTemplate": "--chat-template",
    },
    {"threads": 12, "layers": 30, "parallel": 4, "context": 8192, "batch": 2048, "micro_batch": 512},
    {
        "flashAttention": ("--flash-attn=on", "--flash-attn=off"),
        "continuousBatching": ("--cont-batching", "--no-cont-batching"),
        "mmap": ("", "--no-mmap"),
        "mlock": ("--mlock", ""),
        "noKvOffload": ("--no-kv-offload", ""),
    },
)
_PROFILE = _Options(
    {
        "threads": "--threads",
        "threadsBatch": "--threads-batch",
        "gpuLayers": "--gpu-layers",
        "contextSize": "--ctx-size",
        "batchSize": "--batch-size",
        "ubatchSize": "--ubatch-size",
        "parallel": "--parallel",
    },
    {},
    {"noKvOffload": ("--no-kv-offload", ""), "mlock": ("--mlock", "")},
)
_DRAFTED = {
    "draftModel": "--model-draft",
    "draftGpuLayers": "--gpu-layers-draft",
    "draftMax": "--spec-draft-n-max",
    "draftMin": "--spec-draft-n-min",
    "draftPMin": "--spec-draft-p-min",
}


def _is_off(made: Draft, fields: Fields) -> bool:
    if fields.flag("enable") is not False:
        return False
    made.spare(fields.at("enable"), fields.path, "it is not enabled, and nothing of it is carried over")
    for key in fields.names():
        fields.node(key)
    return True


def _llama(options: _Options) -> Callable[[Draft, Fields], None]:
    def handle(made: Draft, fields: Fields) -> None:
        if _is_off(made, fields):
            return
        _server(made, fields)
        file = fields.text("model")
        if not file:
            text = "it names no model"
            made.leave(fields.where, fields.name("model"), text, "write a model with engine: llama_server and a file")
        elif file.endswith("/current-model") and made.get(("models",)):
            text = "it is a link to one of the profiles, which all have names here"
            made.spare(fields.at("model"), fields.name("model"), text)
        else:
            _one_model(made, fields, options, stem(file), "model")
        for key in options.flags:
            fields.node(key)

    return handle


def _server(made: Draft, fields: Fields) -> None:
    """What is about the program, and where it listens."""
    package = fields.text("package")
    if package and package.startswith("/"):
        place = ("engines", "llama_server", "binary")
        made.put(place, f"{package.rstrip('/')}/bin/llama-server", fields.at("package"), fields.name("package"))
    host = fields.text("host")
    if host:
        put_host(made, "front", host, fields.at("host"), fields.name("host"))
    port = fields.whole("port")
    if port is not None:
        put_port(made, "front", port, fields.at("port"), fields.name("port"))
    if fields.flag("openFirewall"):
        text = "gpud does not touch the firewall"
        instead = "networking.firewall.allowedTCPPorts, once http.front asks its clients for keys"
        made.leave(fields.at("openFirewall"), fields.name("openFirewall"), text, instead)
    if fields.node("apiKey") is not None:
        made.secrets.hide(fields.text("apiKey") or "")
        text = "a secret, and secrets are never copied"
        made.leave(fields.at("apiKey"), fields.name("apiKey"), text, "gpudctl key add NAME makes one")
    fields.spare("metricsEndpoint", "gpud has metrics of its own, and those of the engine")
    fields.spare("cudaGraphs", "the engine uses them where it can")
    for key in ("memoryHigh", "memoryMax", "memoryLow", "memoryEquilibrium"):
        instead = "gpu.host_budget; and MemoryMax= in a drop-in of gpud.service for all together"
        fields.drop(key, "gpud counts host memory, too, before it loads a model", instead)


def _one_model(made: Draft, fields: Fields, options: _Options, name: str, file_key: str) -> None:
    where = fields.at(file_key)
    path = made.model(name, where, fields.path)
    made.put((*path, "engine"), "llama_server", where, fields.path)
    put_path(made, (*path, "file"), fields.text(file_key) or "", where, fields.name(file_key))
    parts = []
    for key, flag in options.flags.items():
        text = fields.text(key)
        if text is not None:
            parts.append(Part(fields.at(key), fields.name(key), [flag, text], single=True))
    for key, (on, off) in (options.switches or {}).items():
        given = fields.flag(key)
        chosen = {True: on, False: off, None: ""}[given]
        if chosen:
            parts.append(Part(fields.at(key), fields.name(key), [chosen], single=True))
        elif given is not None:
            made.spare(fields.at(key), fields.name(key), "the engine does so unless it is told otherwise")
    drafted = fields.table("speculativeDecoding")
    if drafted is not None:
        parts += _drafted(made, drafted)
    extra = [text for _, text in fields.texts("extraFlags")]
    if extra:
        parts.append(Part(fields.at("extraFlags"), fields.name("extraFlags"), extra))
    translate(made, path, parts)
    if not options.defaults:
        mention_context(made, path, where, fields.path)
    for key, value in options.defaults.items():
        made.assume((*path, key), value, f"the default of {fields.path}")


def _drafted(made: Draft, drafted: Fields) -> list[Part]:
    parts = []
    on = drafted.text("draftModel") and drafted.flag("enable") is not False
    for key, flag in _DRAFTED.items():
        text = drafted.text(key)
        if text is not None and on:
            parts.append(Part(drafted.at(key), drafted.name(key), [flag, text], single=True))
        elif text is not None:
            made.spare(drafted.at(key), drafted.name(key), "there is no draft model")
    drafted.drop_left("gpud does not know this option")
    return parts


def _profiles(made: Draft, fields: Fields) -> None:
    for name, profile in fields.tables("profiles"):
        if not profile.text("modelPath"):
            made.leave(profile.where, profile.path, "it names no model", "write a file below its name")
            continue
        _one_model(made, profile, _PROFILE, name, "modelPath")
        profile.drop("displayName", "gpud keeps no words about a model; its name is what clients ask for")
        profile.drop_left("gpud does not know this option")
    fields.spare("enable", "profiles are models here, and a request names the one it wants")


def _llama_swap(made: Draft, fields: Fields) -> None:
    """nixpkgs' module has llama-swap's own configuration in it."""
    if _is_off(made, fields):
        return
    settings = fields.node("settings")
    if isinstance(settings, Table):
        llama_swap.add(made, settings, fields.name("settings"))
    port = fields.whole("port")
    if port is not None:
        put_port(made, "front", port, fields.at("port"), fields.name("port"))
    address = fields.text("listenAddress")
    if address:
        put_host(made, "front", address, fields.at("listenAddress"), fields.name("listenAddress"))
    fields.spare("package", "gpud takes its place")
    fields.drop("tls", "where gpud's certificates are is in http.tls", "http.tls: {certificate: FILE, key: FILE}")
    fields.drop("openFirewall", "gpud does not touch the firewall", "networking.firewall.allowedTCPPorts")


# Ollama ---------------------------------------------------------------------------------------------------------------


def _ollama(made: Draft, fields: Fields) -> None:
    if _is_off(made, fields):
        return
    host, port = fields.text("host"), fields.whole("port")
    if host:
        put_host(made, "ollama", host, fields.at("host"), fields.name("host"))
    if port is not None and port != ollama_variables.PORT:
        put_port(made, "ollama", port, fields.at("port"), fields.name("port"))
    models = fields.text("models")
    if models:
        put_path(made, ("engines", "ollama", "models_dir"), models, fields.at("models"), fields.name("models"))
    package = fields.text("package")
    if package and package.startswith("/"):
        place = ("engines", "ollama", "binary")
        made.put(place, f"{package.rstrip('/')}/bin/ollama", fields.at("package"), fields.name("package"))
    rocm = fields.text("rocmOverrideGfx")
    if rocm:
        variable = ("engines", "ollama", "environment", "HSA_OVERRIDE_GFX_VERSION")
        made.put(variable, rocm, fields.at("rocmOverrideGfx"), fields.name("rocmOverrideGfx"))
    variables = fields.table("environmentVariables")
    if variables is not None:
        found = [(variables.at(key), key, variables.text(key) or "") for key in variables.names()]
        ollama_variables.put(made, found, variables.path)
    for where, name in fields.texts("loadModels"):
        path = made.model(name, where, f"{fields.name('loadModels')} {name}")
        made.put((*path, "engine"), "ollama", where, f"{fields.name('loadModels')} {name}")
        if path[1] != name:
            made.put((*path, "model"), name, where, f"{fields.name('loadModels')} {name}")
    if fields.flag("openFirewall"):
        text = "gpud does not touch the firewall"
        made.leave(fields.at("openFirewall"), fields.name("openFirewall"), text, "networking.firewall.allowedTCPPorts")
    fields.spare("acceleration", "gpud finds the GPUs itself")
    for key in ("home", "user", "group", "sandbox", "writablePaths", "syncModels"):
        fields.spare(key, "gpud starts its Ollama as its own user, in its own unit")


def _idle_manager(made: Draft, fields: Fields) -> None:
    if fields.flag("enable") is False:
        place = ("engines", "ollama", "defaults", "idle_timeout")
        why = "nothing unloaded Ollama's models then"
        made.put(place, "never", fields.at("enable"), fields.name("enable"), why=why)
        for key in fields.names():
            fields.node(key)
        return
    idle = fields.whole("idleTimeout")
    if idle is not None:
        value: object = "never" if idle <= 0 else idle
        made.put(("idle", "timeout"), value, fields.at("idleTimeout"), fields.name("idleTimeout"))
    fields.spare("monitoringInterval", "gpud unloads a model when its time is over; nothing looks at it meanwhile")
    unload = fields.flag("unloadOnShellExit")
    if unload is not None:
        where = fields.at("unloadOnShellExit")
        made.put(("sessions", "unload_on_exit"), unload, where, fields.name("unloadOnShellExit"))


SETS: dict[tuple[str, ...], Callable[[Draft, Fields], None]] = {
    ("kernelcore", "llama-swap"): _profiles,
    ("services", "llamacpp"): _llama(_LLAMACPP),
    ("services", "llama-cpp"): _llama(_Options({}, {})),
    ("services", "llamacpp-turbo"): _llama(_TURBO),
    ("services", "llamacpp-swap"): _llama(_Options(_TURBO.flags, {}, _TURBO.switches)),
    ("services", "llama-swap"): _llama_swap,
    ("services", "ollama"): _ollama,
    ("services", "ollama-gpu-manager"): _idle_manager,
    **nixos_offload.SETS,
}
"""The option sets, in the order in which they are read."""
