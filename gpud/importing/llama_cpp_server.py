"""The JSON of llama-cpp-server: one folder of models, and one set of settings for all of them."""

from gpud.importing.fields import Fields
from gpud.importing.llama_flags import ALL_LAYERS
from gpud.importing.reading import read_json, top
from gpud.importing.report import Draft, Given, Path
from gpud.importing.values import path_of, put_host, put_level, put_origins, put_path, put_port, stem

KIND = "llama-cpp-server"

DEFAULT_CONTEXT = 16384
DEFAULT_THREADS = 8
"""What that server takes where its configuration says nothing; it puts all layers on the GPU then."""

_SETTINGS = {
    "n_ctx": "context",
    "n_threads": "threads",
    "n_batch": "batch",
    "n_ubatch": "micro_batch",
    "parallel": "parallel",
    "n_parallel": "parallel",
    "n_cpu_moe": "cpu_moe",
    "override_tensor": "override_tensor",
    "cache_type_k": "cache_type_k",
    "cache_type_v": "cache_type_v",
}
_NUMBERS = frozenset({"n_ctx", "n_threads", "n_batch", "n_ubatch", "parallel", "n_parallel", "n_cpu_moe"})


def draft(text: str, given: Given) -> Draft:
    """A draft of what the file says. Raises ConfigInvalid for what is no JSON, by line and column."""
    made = Draft(KIND, given)
    node = top(read_json(text, given.file), given.file, "a configuration of llama-cpp-server is an object")
    fields = Fields(made, node)
    made.put(("defaults", "engine"), "llama_server", node.where, "llama-cpp-server", why="what it starts itself")
    server = fields.table("server")
    if server is not None:
        _server(made, server)
    manager = fields.table("model_manager")
    if manager is not None:
        _manager(made, manager)
    _defaults(made)
    fields.drop_left("gpud does not know this key of llama-cpp-server's")
    return made


def _server(made: Draft, server: Fields) -> None:
    host, port = server.text("host"), server.whole("port")
    if host:
        put_host(made, "front", host, server.at("host"), server.name("host"))
    if port is not None:
        put_port(made, "front", port, server.at("port"), server.name("port"))
    put_origins(made, server.texts("cors_origins"), server.name("cors_origins"))
    level = server.text("log_level")
    if level is not None:
        put_level(made, level, server.at("log_level"), server.name("log_level"))
    server.spare("debug", "gpud has no such mode; logging.level: debug says more")
    server.spare("threaded", "gpud serves all clients at once")
    server.drop_left("gpud does not know this key of llama-cpp-server's")


def _manager(made: Draft, manager: Fields) -> None:
    directory = ""
    folder = manager.text("models_directory")
    if folder is not None:
        where, setting = manager.at("models_directory"), manager.name("models_directory")
        place = path_of(made, folder)
        directory = place.path
        made.put(("registry", "paths"), [directory], where, setting, why=place.why, changed=place.is_guess)
    idle = manager.number("idle_timeout")
    if idle is not None:
        where, setting = manager.at("idle_timeout"), manager.name("idle_timeout")
        made.put(("idle", "timeout"), "never" if idle <= 0 else _plain(idle), where, setting)
    manager.spare("check_interval", "gpud unloads a model when its time is over; nothing looks at it meanwhile")
    _settings(made, manager, ("defaults",))
    named = manager.text("default_model")
    if named:
        _default_model(made, manager, named, directory)
    for name, settings in manager.tables("model_settings"):
        _model(made, name, settings, directory)
    manager.drop_left("gpud does not know this key of llama-cpp-server's")


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _settings(made: Draft, fields: Fields, path: Path) -> None:
    for old, new in _SETTINGS.items():
        if not fields.has(old):
            continue
        value = fields.whole(old) if old in _NUMBERS else fields.text(old)
        if value is not None:
            made.put((*path, new), value, fields.at(old), fields.name(old))
    layers = fields.whole("n_gpu_layers")
    if layers is not None:
        where, setting = fields.at("n_gpu_layers"), fields.name("n_gpu_layers")
        every = layers < 0 or layers >= ALL_LAYERS
        made.put(
            (*path, "layers"), "all" if every else layers, where, setting, why=f"{layers} means all" if every else ""
        )
    flash = fields.flag("flash_attn")
    if flash is not None:
        made.put(
            (*path, "flash_attention"), "on" if flash else "off", fields.at("flash_attn"), fields.name("flash_attn")
        )
    offload = fields.flag("offload_kqv")
    if offload is False:
        place = (*path, "extra_flags")
        made.put(place, ["--no-kv-offload"], fields.at("offload_kqv"), fields.name("offload_kqv"))
    elif offload:
        made.spare(fields.at("offload_kqv"), fields.name("offload_kqv"), "it is so unless it is told otherwise")
    fields.spare("fit", "gpud does the fitting, with layers: auto and least_context")
    fields.spare("verbose", "gpud reads the engine's log, and logs no prompts")


def _default_model(made: Draft, manager: Fields, named: str, directory: str) -> None:
    where, setting = manager.at("default_model"), manager.name("default_model")
    path = made.model(stem(named), where, setting)
    file = named if named.lower().endswith(".gguf") else f"{named}.gguf"
    put_path(made, (*path, "file"), f"{directory}/{file}" if directory and "/" not in file else file, where, setting)
    made.put(("http", "default_model"), path[1], where, setting)


def _model(made: Draft, name: str, settings: Fields, directory: str) -> None:
    path = made.model_called(stem(name)) or made.model(stem(name), settings.where, settings.path)
    file = settings.text("file") or (name if name.lower().endswith(".gguf") else f"{name}.gguf")
    where = settings.at("file") if settings.has("file") else settings.where
    place = f"{directory}/{file}" if directory and not file.startswith(("/", "~")) else file
    setting = settings.name("file") if settings.has("file") else settings.path
    put_path(made, (*path, "file"), place, where, setting)
    _settings(made, settings, path)
    for at, alias in settings.texts("aliases"):
        made.alias(path, alias, at, settings.name("aliases"))
    settings.drop_left("gpud does not know this key of llama-cpp-server's")


def _defaults(made: Draft) -> None:
    """What that server did without being told is said here, for gpud's own defaults are others."""
    why = "what llama-cpp-server takes where nothing is said"
    made.assume(("defaults", "context"), DEFAULT_CONTEXT, why)
    made.assume(("defaults", "layers"), "all", why)
    made.assume(("defaults", "threads"), DEFAULT_THREADS, why)
