"""Models as Hugging Face lays them out: where one lies, what its weights take, and what a token of context takes.

Reads small files of JSON, the first bytes of the weights and sizes. Downloads nothing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpud.backends import files
from gpud.core.counts import plural
from gpud.core.engines import Family, of_family
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.record import Record

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

LARGEST_JSON_BYTES = 64 << 20
"""The index of a model with a hundred thousand tensors has some ten MB."""

NUMBER_BYTES = 2
"""Keys and values are kept in float16 or bfloat16 by default, also by engines that are given a model in float32."""

HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class HubModel(Record):
    """A model on this machine. ``token_bytes`` are the keys and values of one token, None where they are not such."""

    folder: Path
    weights_bytes: int
    token_bytes: int | None


def folder_of(model: Model, environment: Mapping[str, str]) -> Path | None:
    """Where a located model lies: its folder, or that of its latest snapshot in the cache that an engine with this
    environment would use. None: it is not there, and the engine would download it. Raises BackendFailed(preflight).
    """
    settings = model.settings
    if settings.file:
        return _given(model, Path(settings.file))
    name = settings.hub_name
    if not HUB_NAME.fullmatch(name):
        what = f'"{name}" is no name at Hugging Face' if name else "it has neither a file nor a model"
        raise _unfit(model, what, 'set file to its folder, or model to its name, like "Qwen/Qwen3-8B"', "bad-setting")
    repository = cache_of(environment) / f"models--{name.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = repository / "snapshots" / revision
    return folder if revision and (folder / CONFIG).exists() else None


def cache_of(environment: Mapping[str, str]) -> Path:
    """The cache of Hugging Face's library, by the rules of that library."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]).expanduser() / "hub"
    home = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '~')}/.cache"
    return Path(home).expanduser() / "huggingface" / "hub"


def _given(model: Model, path: Path) -> Path:
    if path.suffix.lower() == ".gguf":
        raise _unfit(
            model,
            f"{path} is a GGUF file, and {model.engine} reads folders with SafeTensors",
            f"give it to one of {', '.join(of_family(Family.LLAMA_CPP, Family.OLLAMA))}",
            "not-a-model",
        )
    if path.suffix.lower() == ".safetensors" or path.name == INDEX:
        # One of the files is named for all of them.
        path = path.parent
    if not path.is_dir():
        what = "is no folder" if path.exists() else "is not there"
        hint = "name the folder that has the model's config.json and its .safetensors files"
        raise _unfit(model, f"{path} {what}", hint, "file-missing")
    return path


def read(model: Model, folder: Path) -> HubModel:
    """What is known of the model in a folder. Raises BackendFailed(preflight) for one that no engine could load."""
    config = _json(model, folder / CONFIG)
    return HubModel(folder, _weights(model, folder), token_bytes(config))


def _weights(model: Model, folder: Path) -> int:
    index = folder / INDEX
    if index.exists():
        shards = _json(model, index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise _unfit(model, f"{index} names no files", "download the model again", "truncated")
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            files = f"{len(missing)} of its {plural(len(names), 'file')} {'is' if len(missing) == 1 else 'are'}"
            what = f"{files} not in {folder}, the first is {missing[0]}"
            raise _unfit(model, what, "download the rest of the model", "file-missing")
        paths = [folder / name for name in names]
    else:
        found = sorted(folder.glob("*.safetensors"))
        # Some publish the same weights a second time, for their own programs.
        paths = [path for path in found if not path.name.startswith("consolidated")] or found
    if not paths:
        other = sorted(folder.glob("pytorch_model*.bin"))
        if not other:
            raise _unfit(
                model,
                f"{folder} has no .safetensors file",
                "name the folder that has the model's weights beside its config.json",
                "file-missing",
            )
        return sum(path.stat().st_size for path in other)
    return sum(_checked_size(model, path) for path in paths)


def _checked_size(model: Model, path: Path) -> int:
    """The size of a file whose first bytes are those of SafeTensors: the length of a header of JSON, and the header."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
    except OSError as problem:
        raise files.unreadable(model.name, path, "model file", problem) from None
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") + 8 <= size:
        return size
    hint = "download it again; a file of a few hundred bytes may be a pointer of Git LFS: run git lfs pull"
    raise _unfit(model, f"{path} is not a file in SafeTensors, or was cut short ({size} bytes)", hint, "truncated")


def token_bytes(config: Mapping[str, Any]) -> int | None:
    """The keys and values of one token in all layers; None for models that do not keep just these.

    A model whose layers look back only so far is given the whole: engines keep less for it, never more.
    """
    inner = config.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, dict) else config
    layers = _whole(text, "num_hidden_layers", "n_layer")
    heads = _whole(text, "num_attention_heads", "n_head")
    hidden = _whole(text, "hidden_size", "n_embd")
    kinds = text.get("layer_types") or ()
    states = ("ssm_", "mamba_", "linear_attn", "linear_num", "attn_layer_period", "rwkv")
    if any(name.startswith(states) for name in text) or any("linear" in str(kind) for kind in kinds):
        return None
    if layers is None:
        return None
    latent = _whole(text, "kv_lora_rank")
    if latent is not None:
        return layers * (latent + (_whole(text, "qk_rope_head_dim") or 0)) * NUMBER_BYTES
    if heads is None or not (hidden or _whole(text, "head_dim")):
        return None
    width = _whole(text, "head_dim") or (hidden or 0) // heads
    pairs = _whole(text, "num_key_value_heads") or heads
    return layers * 2 * pairs * width * NUMBER_BYTES


def _whole(values: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _json(model: Model, path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_JSON_BYTES + 1)
    except OSError as problem:
        raise files.unreadable(model.name, path, "model's description", problem) from None
    try:
        told = json.loads(content) if len(content) <= LARGEST_JSON_BYTES else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise _unfit(model, f"{path} is no map in JSON", "download the model again", "truncated")
    return told


def _unfit(model: Model, what: str, hint: str, kind: str) -> BackendFailed:
    return BackendFailed(f'cannot load "{model.name}": {what}', hint=hint, kind=kind, preflight=True)
