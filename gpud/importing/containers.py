"""The environment of a container with llama.cpp: a list of variables, or the services of a compose file."""

import re
from collections.abc import Mapping, Sequence

from gpud.config.source import Items, Node, Scalar, Table, Where
from gpud.core.record import replace
from gpud.importing import llama_flags, llama_variables, ollama_variables
from gpud.importing.commands import split
from gpud.importing.fields import Fields
from gpud.importing.reading import looks_like_variables, read_variables, read_yaml, top, unreadable
from gpud.importing.report import Draft, Given, Path, shown
from gpud.importing.values import (
    UNRELATED,
    VISIBLE,
    path_of,
    put_environment,
    put_gpu,
    put_host,
    put_path,
    put_port,
    stem,
)

KIND = "docker-env"

IMAGE_CONTEXT = 8192
IMAGE_FILE = (
    "/data/.huggingface/hub/models--Qwen--Qwen3-VL-30B-A3B-Instruct-GGUF/snapshots/latest/"
    "qwen3-vl-30b-a3b-instruct-q4_k_m.gguf"
)
"""What the image takes where its variables say nothing; it puts all layers on the GPU then."""

_OF_THE_IMAGE = ("MODEL_PATH", "CONTEXT_SIZE", "N_GPU_LAYERS")
_CACHES = ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE")
_ENGINES = ("GGML_", "CUDA_", "LLAMA_", "HF_", "OMP_", "NCCL_", "HSA_", "HIP_", "ROCR_", "VK_", "TRANSFORMERS_")
"""What variables begin with that engines read."""

Variables = Sequence[tuple[Where, str, str]]


def draft(text: str, given: Given, name: str = "") -> Draft:
    """A draft of what the file says. ``name`` is what its model is to be called. Raises ConfigInvalid."""
    made = Draft(KIND, given)
    if not looks_like_variables(text):
        _compose(made, read_yaml(text, given.file), name)
        return made
    variables, aside = read_variables(text, given.file)
    for where, said in aside:
        made.leave(where, said, "only this file was read", "import that one too")
    good = []
    for one in variables:
        if one.value is None:
            made.leave(one.where, one.name, "it has no value here: it was to come from whoever starts the container")
        else:
            good.append((one.where, one.name, one.value))
    _service(made, good, (), Where(given.file, 0), "", name)
    if not made.get(("models",)) and not made.notes:
        raise unreadable(Where(given.file, 0), "sets no variable")
    return made


# One service ----------------------------------------------------------------------------------------------------------


def _service(
    made: Draft, variables: Variables, arguments: Sequence[str], where: Where, prefix: str, name: str
) -> Path | None:
    """Add what one container does; gives back its model, if it has one."""
    named = {one[1]: one for one in variables}
    if any(one.startswith("OLLAMA_") for one in named):
        ollama_variables.put(made, variables, prefix)
        return None
    parts: list[llama_flags.Part] = [
        llama_flags.Part(at, _said(prefix, key), flags, single=True)
        for at, key, value in variables
        if (flags := llama_variables.as_flags(key, value)) is not None
    ]
    if arguments:
        parts.append(llama_flags.Part(where, _said(prefix, "command"), arguments))
    every = [word for part in parts for word in part.arguments]
    of_the_image = any(key in named for key in _OF_THE_IMAGE)
    path: Path | None = None
    called = llama_flags.name_in(every)
    if of_the_image and not called:
        called = stem(named["MODEL_PATH"][2] if "MODEL_PATH" in named else IMAGE_FILE)
    if called:
        first = named.get("MODEL_PATH") or next((one for one in variables if one[1] == "LLAMA_ARG_MODEL"), None)
        at = first[0] if first else where
        path = made.model(name or called, at, first[1] if first and not prefix else prefix or "the model")
        made.put((*path, "engine"), "llama_server", at, prefix or "the container", why="llama.cpp serves it")
        hub = _hub(made, named)
        llama_flags.translate(made, path, parts, contained=True, hub=hub)
        if of_the_image:
            _model_of_the_image(made, path, named, where, prefix)
        if "-c" not in every and "--ctx-size" not in every:
            llama_flags.mention_context(made, path, where, prefix or "the container")
        if not made.get((*path, "file")):
            made.leave(where, prefix or "the container", "it names no model", "write a file below its name")
            made.discard(path)
            path = None
    _others(made, named, path, prefix)
    return path


def _said(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _hub(made: Draft, named: Mapping[str, tuple[Where, str, str]]) -> str:
    """Into which cache its engine downloaded; empty: nobody said."""
    for key in ("HF_HUB_CACHE", "LLAMA_CACHE", "HF_HOME"):
        if key in named and named[key][2].startswith("/"):
            full = path_of(made, named[key][2]).path
            return f"{full}/hub" if key == "HF_HOME" else full
    return ""


def _model_of_the_image(
    made: Draft, path: Path, named: Mapping[str, tuple[Where, str, str]], nowhere: Where, prefix: str
) -> None:
    """MODEL_PATH, CONTEXT_SIZE and N_GPU_LAYERS, and what the image takes without them."""
    where, _, file = named.get("MODEL_PATH", (nowhere, "", ""))
    if file:
        put_path(made, (*path, "file"), file, where, _said(prefix, "MODEL_PATH"), contained=True)
    elif not made.get((*path, "file")):
        said = _said(prefix, "MODEL_PATH is not set: the image's own")
        put_path(made, (*path, "file"), IMAGE_FILE, nowhere, said, contained=True)
    for key, flag in (("CONTEXT_SIZE", "--ctx-size"), ("N_GPU_LAYERS", "--gpu-layers")):
        if key in named:
            part = llama_flags.Part(named[key][0], _said(prefix, key), [flag, named[key][2]], single=True)
            llama_flags.translate(made, path, [part])
    why = "what the image takes where nothing is said"
    made.assume((*path, "context"), IMAGE_CONTEXT, why)
    made.assume((*path, "layers"), "all", why)


def _others(made: Draft, named: Mapping[str, tuple[Where, str, str]], path: Path | None, prefix: str) -> None:
    environment: list[tuple[Where, str, str]] = []
    for key, (where, _, value) in named.items():
        said = _said(prefix, key)
        if key in _OF_THE_IMAGE or key in UNRELATED or llama_variables.as_flags(key, value) is not None:
            continue
        if key == "HOST":
            put_host(made, "front", value, where, said)
        elif key == "PORT":
            if value.isdecimal() and len(value) < 6:
                put_port(made, "front", int(value), where, said)
            else:
                made.leave(where, f"{said} {shown(value)}", "it is no port", "set http.front.port")
        elif key in VISIBLE:
            place = (*path, "gpu") if path else ("defaults", "gpu")
            put_gpu(made, place, value, where, said)
        elif key in _CACHES:
            put_path(made, ("engines", "llama_server", "environment", key), value, where, said, contained=True)
        elif key.startswith(_ENGINES):
            environment.append((where, key, value))
        else:
            made.leave(where, said, "no engine reads it, as far as gpud knows")
    place = (*path, "environment") if path else ("engines", "llama_server", "environment")
    put_environment(made, place, environment, prefix)


# Compose --------------------------------------------------------------------------------------------------------------

_IMAGES = re.compile(r"llama[._-]?cpp|llama-server|ollama", re.IGNORECASE)


def _compose(made: Draft, node: Node, name: str) -> None:
    whole = top(node, made.given.file, "a list of variables is NAME=value in each line, and a compose file a map")
    if "services" in whole.entries:
        services = Fields(made, whole).tables("services")
    elif "environment" in whole.entries:
        services = [("", Fields(made, whole))]
    else:
        raise unreadable(
            whole.where, "has no services and no environment, as a compose file has, and sets no variables"
        )
    ours = [(one, fields) for one, fields in services if _is_ours(fields)]
    names = {one for one, _ in ours}
    for one, fields in services:
        if one not in names:
            made.leave(fields.where, fields.path, "nothing in it speaks of llama.cpp or Ollama")
    for _, fields in ours:
        _compose_service(made, fields, name if len(ours) == 1 else "")


def _is_ours(fields: Fields) -> bool:
    image = fields.text("image") or ""
    names = [key for _, key, _ in _environment(fields)]
    known = (*_OF_THE_IMAGE, "OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_KEEP_ALIVE")
    return bool(_IMAGES.search(image)) or any(key in known or key.startswith("LLAMA_ARG_") for key in names)


def _environment(fields: Fields) -> list[tuple[Where, str, str]]:
    """A map, or a list of NAME=value; without a value it comes from whoever starts the container."""
    node = fields.node("environment")
    found: list[tuple[Where, str, str]] = []
    if isinstance(node, Table):
        for key, entry in node.entries.items():
            if isinstance(entry.node, Scalar) and not entry.node.is_null:
                found.append((entry.where, key, _filled(fields.draft, entry.node, f"{fields.path}.{key}")))
    elif isinstance(node, Items):
        for one in node.nodes:
            if isinstance(one, Scalar) and "=" in one.text:
                key, _, _ = one.text.partition("=")
                found.append((one.where, key, _filled(fields.draft, one, f"{fields.path}.{key}").partition("=")[2]))
    return found


_INTERPOLATED = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^}]*))?\})")


def _filled(made: Draft, node: Scalar, setting: str) -> str:
    """The text with compose's ``${NAME:-default}`` filled in from what is known. Raises ConfigInvalid."""

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, kind, word = match[1] or match[2], match[3] or "", match[4] or ""
        value = made.given.variables.get(name)
        there = bool(value) if ":" in kind else value is not None
        if kind.endswith("+"):
            return word if there else ""
        if there and value is not None:
            return value
        if kind.endswith("-"):
            return word
        hint = "give its variables with --environment FILE, or set it where gpudctl is run"
        raise unreadable(node.where, f"{setting}: the variable {name} is not set here; {hint}")

    return _INTERPOLATED.sub(fill, node.text)


def _compose_service(made: Draft, fields: Fields, name: str) -> None:
    variables = _environment(fields)
    given = made.given
    made.given = replace(given, maps=_sorted((*given.maps, *_mounts(fields))))
    arguments = _arguments(fields, "command")
    where = fields.at("command") if arguments else fields.where
    path = _service(made, variables, arguments, where, fields.path, name)
    made.given = given
    for where, text in _published(fields):
        outside, inside = text
        setting = f"{fields.name('ports')} {outside}:{inside}"
        door = "ollama" if inside == "11434" else "front"
        usual = {"ollama": 11434, "front": 8080}[door]
        made.config.get("http", {}).get(door, {}).pop("port", None)
        made.comments.pop(("http", door, "port"), None)
        if int(outside) == usual:
            made.spare(where, setting, "gpud listens there by itself")
        else:
            put_port(made, door, int(outside), where, setting)
    _devices(made, fields, path)
    if fields.node("env_file") is not None:
        made.leave(fields.at("env_file"), fields.name("env_file"), "only this file was read", "import that one too")
    for key in ("image", "build", "container_name", "restart", "runtime", "ipc", "shm_size", "entrypoint", "networks"):
        fields.spare(key, "gpud starts the engine itself, and no container")
    for key in ("healthcheck", "depends_on", "logging", "labels", "profiles", "ulimits", "gpus", "deploy"):
        fields.spare(key, "gpud sees to it by itself")
    fields.node("volumes"), fields.node("ports"), fields.node("environment"), fields.node("command")
    fields.drop_left("gpud starts no container")


def _sorted(maps: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(dict(maps).items(), key=lambda pair: -len(pair[0])))


def _mounts(fields: Fields) -> list[tuple[str, str]]:
    """Folders of this machine that are in the container; what was given with --map goes before them."""
    found: list[tuple[str, str]] = []
    node = fields.node("volumes")
    for one in node.nodes if isinstance(node, Items) else ():
        outside = inside = ""
        if isinstance(one, Scalar):
            outside, _, rest = _filled(fields.draft, one, fields.name("volumes")).partition(":")
            inside = rest.partition(":")[0]
        elif isinstance(one, Table):
            volume = Fields(fields.draft, one, fields.name("volumes"))
            outside, inside = volume.text("source") or "", volume.text("target") or ""
        if inside.startswith("/") and outside.startswith(("/", "./", "../", "~/")):
            given = replace(fields.draft.given, maps=())
            full = path_of(Draft(KIND, given), outside).path
            if not any(inside == known for known, _ in fields.draft.given.maps):
                found.append((inside.rstrip("/") or "/", full))
        elif inside and not any(inside == known for known, _ in fields.draft.given.maps):
            text = "it is kept by the container's program, and gpud does not know where"
            hint = f"--map {inside}=DIR says where its files are"
            fields.draft.leave(one.where, f"{fields.name('volumes')} {shown(outside)}", text, hint)
    return found


def _arguments(fields: Fields, key: str) -> list[str]:
    node = fields.node(key)
    setting = fields.name(key)
    if isinstance(node, Scalar):
        return split(_filled(fields.draft, node, setting), node.where, setting)
    if isinstance(node, Items):
        return [_filled(fields.draft, one, setting) for one in node.nodes if isinstance(one, Scalar)]
    return []


def _published(fields: Fields) -> list[tuple[Where, tuple[str, str]]]:
    """The ports of this machine, and those of the container behind them."""
    found: list[tuple[Where, tuple[str, str]]] = []
    node = fields.node("ports")
    for one in node.nodes if isinstance(node, Items) else ():
        if isinstance(one, Scalar):
            text = _filled(fields.draft, one, fields.name("ports"))
            match = re.fullmatch(r"(?:(.*):)?([0-9]{1,5}):([0-9]{1,5})(?:/tcp)?", text)
            if match:
                found.append((one.where, (match[2], match[3])))
                if match[1] not in ("127.0.0.1", "[::1]", "localhost"):
                    why = "it reached others than this machine; gpud listens on 127.0.0.1 unless clients have keys"
                    instead = "gpudctl key add NAME, then set http.api_keys_file and http.front.host"
                    fields.draft.leave(one.where, f"{fields.name('ports')} {shown(text)}", why, instead)
            else:
                fields.draft.leave(one.where, f"{fields.name('ports')} {shown(text)}", "it publishes no single port")
    return found[:1]


def _devices(made: Draft, fields: Fields, path: Path | None) -> None:
    """``deploy.resources.reservations.devices[].device_ids``."""
    node: Node | None = fields.node("deploy")
    for key in ("resources", "reservations", "devices"):
        entry = node.entries.get(key) if isinstance(node, Table) else None
        node = entry.node if entry else None
    for one in node.nodes if isinstance(node, Items) else ():
        entry = one.entries.get("device_ids") if isinstance(one, Table) else None
        if entry is not None and isinstance(entry.node, Items):
            ids = [item.text for item in entry.node.nodes if isinstance(item, Scalar)]
            place = (*path, "gpu") if path else ("defaults", "gpu")
            put_gpu(made, place, ",".join(ids), entry.where, f"{fields.path}.deploy device_ids")
