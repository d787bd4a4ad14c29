"""What gpud's configuration means in Ollama's words: names, addresses, options, environment, and whether its store has
the model. Asks no server anything.

Ollama loads a model anew when a request comes with other options than those it was loaded with, and a request without
options has the server's defaults. So whatever can be is set for the whole server: then a client that says nothing
changes nothing.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gpud.backends.ollama_store import BadManifest, BadName, Manifest, Name, Store, parse_name
from gpud.backends.options import EngineOptions
from gpud.core.counts import plural
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Model
from gpud.core.vendors import VENDORS, VISIBLE, VULKAN_VISIBLE

log = logging.getLogger(__name__)

DEFAULT_PORT = 11434
ALL_LAYERS = 999
"""Ollama has no word for "all": a number that no model reaches means it."""

NO_DEVICE = "-1"
"""As a list of visible devices: none."""

_SERVICE_STORE = "/usr/share/ollama/.ollama/models"
"""Where Ollama's own installer lets its service keep the models."""

_RESERVED = frozenset({"OLLAMA_HOST", *VISIBLE})
"""gpud decides where a server listens and which devices it sees."""

_BREAKS_OLLAMA = frozenset({"LLAMA_API_KEY", "LLAMA_ARG_LOG_JSONL", "LLAMA_SERVER_ROUTER_PORT"})
"""Its runners would read these, and it would no longer understand them."""

_OPENS_DOORS = ("LLAMA_ARG_TOOLS", "LLAMA_ARG_AGENT", "LLAMA_ARG_MCP")
"""These let whoever may ask a model also run programs as gpud's user."""


def name_of(model: Model) -> Name:
    try:
        return parse_name(model.settings.ollama_name or model.name)
    except BadName as problem:
        raise BackendFailed(
            f'cannot load "{model.name}": {problem}',
            hint='names look like "llama3.2", "llama3.2:3b" or "hf.co/user/repository:Q4_K_M"',
            kind="bad-name",
            preflight=True,
        ) from None


def endpoint_of(url: str) -> Endpoint:
    """``http://HOST[:PORT][/PATH]``, or the same without its scheme."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "http" or not parts.hostname or port == -1:
        raise BackendFailed(
            f'cannot use the Ollama at "{url}": its address must be http://HOST:PORT',
            hint=f"Ollama itself listens on http://127.0.0.1:{DEFAULT_PORT}; it speaks no HTTPS",
            kind="bad-address",
            preflight=True,
        )
    return Endpoint(host=parts.hostname, port=port or DEFAULT_PORT, base_path=parts.path.rstrip("/"))


def load_options(model: Model, *, attached: bool) -> dict[str, object]:
    """What is said with a load.

    Layers may be left out of later requests without harm. The context and, for an attached server, the threads may
    not: where :func:`server_environment` cannot say them, clients must repeat them. The batch is left to Ollama for
    that reason.
    """
    settings = model.settings
    options: dict[str, object] = {}
    if settings.context is not None:
        options["num_ctx"] = settings.context
    if settings.threads is not None and attached:
        options["num_thread"] = settings.threads
    if settings.layers == "all":
        options["num_gpu"] = ALL_LAYERS
    elif settings.layers is not None and settings.layers.isdecimal():
        options["num_gpu"] = int(settings.layers)
    return options


def server_environment(model: Model) -> tuple[tuple[str, str], ...]:
    """The settings that a server has for all its models, in a fixed order."""
    settings = model.settings
    environment = {}
    if settings.context is not None:
        environment["OLLAMA_CONTEXT_LENGTH"] = str(settings.context)
    if settings.threads is not None:
        # Ollama itself has no such variable; its runners inherit this one.
        environment["LLAMA_ARG_THREADS"] = str(settings.threads)
    if settings.parallel is not None:
        environment["OLLAMA_NUM_PARALLEL"] = str(settings.parallel)
    if settings.cache_type_k is not None:
        environment["OLLAMA_KV_CACHE_TYPE"] = settings.cache_type_k
    if settings.flash_attention in ("on", "off"):
        environment["OLLAMA_FLASH_ATTENTION"] = "1" if settings.flash_attention == "on" else "0"
    return tuple(sorted(environment.items()))


def server_base(home: str, store: Store | None) -> dict[str, str]:
    """What every server of gpud's is started with, whatever its models are."""
    return {
        # Ollama writes an identity key there, and ends at once without a home.
        "HOME": home or tempfile.gettempdir(),
        "OLLAMA_KEEP_ALIVE": "-1",
        # Without it, every start deletes from the store what no manifest names: another program's download.
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        # gpud decides how many models there are.
        "OLLAMA_MAX_LOADED_MODELS": "1000",
        # A crashing runner would start a debugger on itself.
        "GGML_NO_BACKTRACE": "1",
        # A proxy for plain HTTP comes between Ollama and its own runners.
        "HTTP_PROXY": "",
        "http_proxy": "",
        **({"OLLAMA_MODELS": str(store.folder)} if store is not None else {}),
    }


def store_of(options: EngineOptions, extra: Mapping[str, str], home: str) -> Store | None:
    """The store that the server uses too; an attached server's can only be guessed."""
    configured = options.models_dir or extra.get("OLLAMA_MODELS", "")
    if configured:
        return Store(Path(configured).expanduser())
    if options.url:
        store = Store(Path(_SERVICE_STORE))
        return store if store.readable() else None
    if os.environ.get("OLLAMA_MODELS"):
        return Store(Path(os.environ["OLLAMA_MODELS"]))
    return Store(Path(home) / ".ollama" / "models") if home else None


def visible(devices: tuple[str, ...], vendor: str) -> Mapping[str, str]:
    """Let a server see these devices alone. Each vendor's have to be hidden by name, but for what the chosen one obeys:
    a list for CUDA would confuse ROCm, which reads it too.
    """
    hidden = dict.fromkeys((*(one.visible for one in VENDORS), VULKAN_VISIBLE), NO_DEVICE)
    if not devices:
        return hidden
    for one in VENDORS:
        if one.name == vendor:
            shown = {name: value for name, value in hidden.items() if name not in one.obeys}
            return {**shown, one.visible: ",".join(devices)}
    return {}


def allowed(environment: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The configured environment without what must not be in it."""
    allowed = {}
    for key, value in environment:
        if key in _RESERVED:
            log.warning("%s in the environment of engine ollama is ignored: gpud sets it itself", key)
        elif key in _BREAKS_OLLAMA:
            log.warning("%s in the environment of engine ollama is ignored: Ollama cannot work with it", key)
        elif key.startswith(_OPENS_DOORS):
            log.warning("%s in the environment of engine ollama is ignored: it opens the machine to clients", key)
        else:
            allowed[key] = value
    return allowed


def check_in_store(model: Model, name: Name, store: Store) -> None:
    """Raises BackendFailed(preflight) when the store cannot give the model to a runner."""
    manifest = _manifest(model, name, store)
    pull = f"ollama pull {name}"
    if manifest is None:
        nearest = ", ".join(f'"{other}"' for other in store.nearest(name))
        meant = f"; the nearest names there are {nearest}" if nearest else ""
        raise BackendFailed(
            f'cannot load "{model.name}": Ollama\'s store {store.folder} has no "{name}"{meant}',
            hint=f"get it with: {pull}",
            kind="model-missing",
            preflight=True,
        )
    if not manifest.has_weights:
        raise BackendFailed(
            f'cannot load "{model.name}": "{name}" has no weights in {store.folder}: it runs in Ollama\'s cloud',
            hint="choose a model that runs on this machine",
            kind="model-missing",
            preflight=True,
        )
    if manifest.missing:
        raise BackendFailed(
            f'cannot load "{model.name}": {plural(len(manifest.missing), "file")} of "{name}" cannot be found in '
            f"{store.folder}/blobs, the first is sha256-{manifest.missing[0]}",
            hint=f"complete it with: {pull}",
            kind="model-missing",
            preflight=True,
        )


def _manifest(model: Model, name: Name, store: Store) -> Manifest | None:
    try:
        return store.find(name)
    except BadManifest as problem:
        raise BackendFailed(
            f'cannot load "{model.name}": {problem}',
            hint=f"get it anew with: ollama pull {name}",
            kind="model-missing",
            preflight=True,
        ) from None
