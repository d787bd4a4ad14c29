"""Ollama: the variables of its service, and the models of its store with the parameters of their Modelfiles."""

import re
from collections.abc import Mapping, Sequence

from gpud.config.source import Items, Node, Scalar, Table, Where
from gpud.core.errors import ConfigInvalid
from gpud.core.record import Record, field
from gpud.importing import llama_flags, ollama_variables
from gpud.importing.reading import Variable, read_json, top, unreadable
from gpud.importing.report import Draft, Given, Path

KIND = "ollama"

_LAYER = "application/vnd.ollama.image."
KINDS = ("model", "projector", "adapter", "params", "template", "system", "messages")
"""The layers of a manifest that an import looks at."""


class Stored(Record):
    """One model of a store. ``layers`` has the digests in hex, by kind; ``parameters`` is the JSON of its Modelfile's
    parameters, and ``problem`` what was wrong with what could not be read."""

    name: str
    manifest: str
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parameters: str = ""
    problem: str = ""


def layers_of(text: str, file: str) -> dict[str, list[str]]:
    """The digests of a manifest's layers, in hex, by kind. Raises ConfigInvalid for what is no manifest."""
    manifest = top(read_json(text, file), file, "a manifest of Ollama's is an object")
    entry = manifest.entries.get("layers")
    if entry is None or not isinstance(entry.node, Items):
        raise unreadable(manifest.where, "has no layers, as Ollama's manifests have")
    found: dict[str, list[str]] = {}
    for node in entry.node.nodes:
        kind, digest = _text(node, "mediaType"), _text(node, "digest")
        match = re.fullmatch(r"sha256[:-]([0-9a-f]{64})", digest.lower())
        if match is None:
            raise unreadable(node.where, "a layer has no digest, as Ollama writes it")
        short = kind.removeprefix(_LAYER)
        if kind.startswith(_LAYER) and short in KINDS:
            found.setdefault(short, []).append(match[1])
    return found


def _text(node: Node, key: str) -> str:
    entry = node.entries.get(key) if isinstance(node, Table) else None
    return entry.node.text if entry is not None and isinstance(entry.node, Scalar) else ""


def name_of(host: str, namespace: str, model: str, tag: str) -> str:
    """What Ollama calls a model whose manifest is below these folders."""
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def draft(
    variables: Sequence[Variable],
    aside: Sequence[tuple[Where, str]],
    stored: Sequence[Stored],
    given: Given,
    *,
    store: str = "",
    engine: str = "ollama",
) -> Draft:
    """A draft of the service's variables and of the models in its store, to be served by ``engine``."""
    made = Draft(KIND, given)
    said = [(one.where, one.name, one.value) for one in variables if one.value is not None]
    for variable in variables:
        if variable.value is None:
            made.leave(variable.where, variable.name, "it has no value here: it was to come from whoever starts Ollama")
    for where, text in aside:
        made.leave(where, text, "only this file was read", "give that one with --environment, too")
    ollama_variables.put(made, said, "", engine)
    if engine == "ollama" and store:
        nowhere = Where(store, 0)
        if made.get(("engines", "ollama", "models_dir")) is None:
            made.put(("engines", "ollama", "models_dir"), store, nowhere, "the store")
    for one in stored:
        _model(made, one, store, engine)
    if engine != "ollama":
        _share_contexts(made, engine)
    return made


def _share_contexts(made: Draft, engine: str) -> None:
    """Ollama gives each parallel request a context of its own; here they share what is said."""
    defaults: Path = ("engines", engine, "defaults")
    parallel = made.get((*defaults, "parallel"))
    places = [defaults, *(("models", name) for name in made.get(("models",)) or {})]
    for place in places if parallel else ():
        path = (*place, "context")
        context = made.get(path)
        if context is None:
            continue
        where, setting = made.origin(path)
        made.discard(path)
        why = f"{parallel} parallel requests share it, and Ollama gave each of them {context}"
        made.put(path, context * parallel, where, setting, why=why)


def _model(made: Draft, one: Stored, store: str, engine: str) -> None:
    where = Where(one.manifest, 0)
    if one.problem:
        made.leave(where, one.name, one.problem, f"ollama pull {one.name}")
        return
    weights = one.layers.get("model", ())
    if not weights:
        text = "it has no weights here: it runs in Ollama's cloud, or is made of many files"
        made.leave(where, one.name, text)
        return
    path = made.model(one.name.removesuffix(":latest"), where, one.name)
    made.put((*path, "engine"), engine, where, one.name)
    if engine == "ollama":
        if path[1] != one.name:
            made.put((*path, "model"), one.name, where, f"{one.name} name")
    else:
        blobs = f"{store}/blobs/sha256-"
        made.put((*path, "file"), f"{blobs}{weights[0]}", where, f"{one.name} weights")
        for key, kind in (("mmproj", "projector"),):
            for digest in one.layers.get(kind, ())[:1]:
                made.put((*path, key), f"{blobs}{digest}", where, f"{one.name} {kind}")
        _texts(made, one, where)
    parts = _parameters(made, path, one, engine)
    if engine != "ollama":
        adapters = [f"{store}/blobs/sha256-{digest}" for digest in one.layers.get("adapter", ())]
        parts += [llama_flags.Part(where, f"{one.name} adapter", ["--lora", file], single=True) for file in adapters]
        llama_flags.translate(made, path, parts)


def _texts(made: Draft, one: Stored, where: Where) -> None:
    """What Ollama puts around a prompt."""
    if one.layers.get("template"):
        text = "it is written for Ollama; the engine uses the template that is in the model's file"
        made.leave(where, f"{one.name} template", text, "chat_template: and a path, where the file has none")
    for kind in ("system", "messages"):
        if one.layers.get(kind):
            text = "gpud puts nothing before what a client says"
            made.leave(where, f"{one.name} {kind}", text, "have the client say it; or keep engine: ollama")


_KEYS = {"num_ctx": "context", "num_thread": "threads"}
_FLAGS = {
    "num_ctx": "--ctx-size",
    "num_thread": "--threads",
    "num_gpu": "--gpu-layers",
    "num_batch": "--batch-size",
    "main_gpu": "--main-gpu",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
    "mirostat": "--mirostat",
    "mirostat_tau": "--mirostat-ent",
    "mirostat_eta": "--mirostat-lr",
    "num_predict": "--predict",
    "num_keep": "--keep",
}


def _parameters(made: Draft, path: Path, one: Stored, engine: str) -> list[llama_flags.Part]:
    """The parameters of a Modelfile: those that decide what a model takes are gpud's, the others stay in Ollama."""
    if not one.parameters:
        return []
    try:
        node = top(read_json(one.parameters, one.manifest), one.manifest, "parameters are an object")
    except ConfigInvalid:
        made.leave(Where(one.manifest, 0), f"{one.name} parameters", "they are no JSON, as Ollama writes them")
        return []
    parts: list[llama_flags.Part] = []
    where = Where(one.manifest, 0)
    for name, entry in node.entries.items():
        said = f"{one.name} PARAMETER {name}"
        value = entry.node.text if isinstance(entry.node, Scalar) else ""
        if engine == "ollama":
            _parameter_of_ollama(made, path, name, value, where, said)
        elif name == "num_gpu" and value.startswith("-"):
            made.spare(where, said, "it leaves it to Ollama, as gpud does with layers: auto")
        elif name in _FLAGS and value:
            parts.append(llama_flags.Part(where, said, [_FLAGS[name], value], single=True))
        elif name == "use_mmap" and value == "false":
            parts.append(llama_flags.Part(where, said, ["--no-mmap"], single=True))
        elif name == "use_mlock" and value == "true":
            parts.append(llama_flags.Part(where, said, ["--mlock"], single=True))
        elif name == "stop":
            text = "the engine stops where the model's own template says; more is for clients to ask"
            made.leave(where, said, text, 'clients send "stop"; or keep engine: ollama')
        else:
            made.leave(where, said, "the engine has no such parameter")
    return parts


def _parameter_of_ollama(made: Draft, path: Path, name: str, value: str, where: Where, said: str) -> None:
    if name in _KEYS and value.isdecimal() and len(value) < 10:
        if int(value) > 0:
            made.put((*path, _KEYS[name]), int(value), where, said)
    elif name == "num_gpu" and re.fullmatch(r"-?[0-9]{1,6}", value):
        layers = int(value)
        if layers < 0:
            made.spare(where, said, "it leaves it to Ollama, as gpud does")
        else:
            every = layers >= llama_flags.ALL_LAYERS
            made.put(
                (*path, "layers"), "all" if every else layers, where, said, why="as many as any has" if every else ""
            )
    else:
        made.spare(where, said, "it is the model's own in Ollama, which goes on using it")
