"""What Ollama's variables are here: of its service, of a container, of an option set."""

import re
from collections.abc import Callable, Iterable

from gpud.config.source import Where
from gpud.importing.report import Draft, Path, shown
from gpud.importing.values import (
    UNRELATED,
    VISIBLE,
    go_seconds,
    path_of,
    put_environment,
    put_gpu,
    put_host,
    put_origins,
    put_port,
    whole_seconds,
    words,
)

PORT = 11434

_OWN = words(
    "OLLAMA_NOPRUNE OLLAMA_NO_CLOUD OLLAMA_NOHISTORY OLLAMA_DEBUG OLLAMA_DEBUG_LOG_REQUESTS OLLAMA_RUNNERS_DIR "
    "OLLAMA_TMPDIR OLLAMA_EDITOR OLLAMA_REMOTES OLLAMA_AGENT_DISABLE_WEBSEARCH OLLAMA_MULTIUSER_CACHE"
)
_GPUS = ("HSA_", "GGML_", "LLAMA_ARG_", "OLLAMA_", "CUDA_", "HIP_", "ROCM_", "ROCR_", "AMD_", "OMP_", "VK_")
"""What variables begin with that engines read."""

Variables = Iterable[tuple[Where, str, str]]
_On = frozenset({"1", "true", "t", "yes", "on"})


def put(draft: Draft, variables: Variables, setting: str, engine: str = "ollama") -> None:
    """Put what the variables say. ``engine`` is the one that will serve the models: its defaults get what is theirs."""
    defaults: Path = ("engines", engine, "defaults")
    others: list[tuple[Where, str, str]] = []
    for where, name, value in variables:
        said = f"{setting} {name}".strip()
        text = value.strip()
        handle = _HANDLERS.get(name)
        if handle is not None:
            if text:
                handle(draft, text, where, said, defaults)
        elif name in VISIBLE:
            put_gpu(draft, (*defaults, "gpu"), text, where, said)
        elif name in UNRELATED:
            continue
        elif name in _OWN:
            draft.spare(where, said, "gpud sets it for the Ollama that it starts, or needs no such thing")
        elif name.startswith(_GPUS) and (engine == "ollama" or not name.startswith("OLLAMA_")):
            others.append((where, name, value))
        elif name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            why = "gpud's service reaches no network beyond this machine"
            draft.leave(where, said, why, "gpudctl pull takes the proxy of whoever runs it")
        else:
            draft.leave(where, said, "no variable of Ollama's, and of no engine's that gpud knows")
    put_environment(draft, ("engines", engine, "environment"), others, setting)


def _host(draft: Draft, text: str, where: Where, said: str, _: Path) -> None:
    """Where clients reach Ollama is where they reach gpud's door for them."""
    rest = text.split("://", 1)[-1].split("/", 1)[0]
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]*)\](?::([0-9]{1,5}))?|([^:]*)(?::([0-9]{1,5}))?", rest)
    if match is None:
        draft.leave(where, f"{said} {shown(text)}", "it is no address", "set http.ollama.host and http.ollama.port")
        return
    host, port = (match[1] or match[3] or "").strip(), match[2] or match[4]
    if host:
        put_host(draft, "ollama", host, where, said)
    if port and int(port) != PORT:
        put_port(draft, "ollama", int(port), where, said)


def _models(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
    place = path_of(draft, text)
    if defaults[1] != "ollama":
        draft.spare(where, said, "the models' files are named one by one")
        return
    draft.put(("engines", "ollama", "models_dir"), place.path, where, said, why=place.why, changed=place.is_guess)


def _keep_alive(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
    seconds = go_seconds(text)
    if seconds is None:
        draft.leave(where, f"{said} {shown(text)}", "it is no duration", "write idle_timeout: and a time, like 5m")
    elif seconds < 0:
        draft.put((*defaults, "idle_timeout"), "never", where, said, why=f"{text} means never")
    elif seconds < 1:
        why = f"{text} unloads a model after each request; gpud's shortest time for that is 1 s"
        draft.put((*defaults, "idle_timeout"), 1, where, said, why=why, changed=True)
    else:
        draft.put((*defaults, "idle_timeout"), whole_seconds(min(seconds, 365 * 86400.0)), where, said)


def _load_timeout(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
    seconds = go_seconds(text)
    if seconds is None:
        draft.leave(where, f"{said} {shown(text)}", "it is no duration", "write load_timeout: and a time, like 5m")
    elif seconds <= 0:
        why = f"{text} means for ever; gpud gives up after a day"
        draft.put((*defaults, "load_timeout"), "1d", where, said, why=why, changed=True)
    else:
        draft.put((*defaults, "load_timeout"), max(1, whole_seconds(seconds)), where, said)


def _number(key: str) -> Callable[[Draft, str, Where, str, Path], None]:
    def put(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
        if not text.isdecimal() or len(text) > 12:
            draft.leave(where, f"{said} {shown(text)}", "it is not a whole number", f"write {key}: and a number")
        elif int(text) == 0:
            draft.spare(where, said, "0 leaves it to Ollama, as gpud does")
        else:
            draft.put((*defaults, key), int(text), where, said)

    return put


def _overhead(draft: Draft, text: str, where: Where, said: str, _: Path) -> None:
    if not text.isdecimal() or len(text) > 15:
        draft.leave(where, f"{said} {shown(text)}", "it is not a number of bytes", "write gpu.reserve: and a size")
    elif int(text) == 0:
        draft.spare(where, said, "it leaves nothing free; gpud leaves 256 MiB unless it is told otherwise")
    else:
        size = int(text)
        value: object = f"{size >> 20}MiB" if size % (1 << 20) == 0 else size
        draft.put(("gpu", "reserve"), value, where, said)


def _flash(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
    draft.put((*defaults, "flash_attention"), "on" if text.lower() in _On else "off", where, said)


def _cache_type(draft: Draft, text: str, where: Where, said: str, defaults: Path) -> None:
    draft.put((*defaults, "cache_type_k"), text.lower(), where, said)
    if defaults[1] != "ollama":
        draft.put((*defaults, "cache_type_v"), text.lower(), where, said)


def _origins(draft: Draft, text: str, where: Where, said: str, _: Path) -> None:
    put_origins(draft, [(where, one) for one in text.split(",") if one.strip()], said)


def _dropped(why: str, instead: str = "") -> Callable[[Draft, str, Where, str, Path], None]:
    def leave(draft: Draft, _text: str, where: Where, said: str, _: Path) -> None:
        draft.leave(where, said, why, instead)

    return leave


_HANDLERS: dict[str, Callable[[Draft, str, Where, str, Path], None]] = {
    "OLLAMA_HOST": _host,
    "OLLAMA_MODELS": _models,
    "OLLAMA_KEEP_ALIVE": _keep_alive,
    "OLLAMA_LOAD_TIMEOUT": _load_timeout,
    "OLLAMA_CONTEXT_LENGTH": _number("context"),
    "OLLAMA_NUM_PARALLEL": _number("parallel"),
    "OLLAMA_FLASH_ATTENTION": _flash,
    "OLLAMA_KV_CACHE_TYPE": _cache_type,
    "OLLAMA_GPU_OVERHEAD": _overhead,
    "OLLAMA_ORIGINS": _origins,
    "OLLAMA_MAX_LOADED_MODELS": _dropped(
        "gpud keeps as many models as its budget holds", "gpu.budget says how much memory that is"
    ),
    "OLLAMA_MAX_QUEUE": _dropped(
        "requests wait without a limit of their own; queue.size is about loads that wait for memory", "queue: {size: N}"
    ),
    "OLLAMA_SCHED_SPREAD": _dropped("gpud spreads a model over several GPUs where one is too small"),
}
