"""Models as folders of SafeTensors, described by ``config.json``: what vLLM and TGI take.

Reads small files of JSON, never a weight; what they say is not trusted.
"""

import json
from collections.abc import Mapping
from typing import Any

from gpud.catalog.content import Content
from gpud.catalog.glance import Glance
from gpud.catalog.names import parameters as parameters_of_name
from gpud.catalog.stream import visible
from gpud.catalog.walk import File, Item, Walk, small_file
from gpud.core.catalogue import Format, Place, Purpose, Source
from gpud.core.counts import plural

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
PIPELINE = "model_index.json"
"""What describes a pipeline for images: its folders are no models by themselves."""

JSON_LIMIT_BYTES = 64 << 20
"""The index of a model with a hundred thousand tensors has some ten MB."""

_TYPES = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "half": ("F16", 2),
    "float32": ("F32", 4),
    "float": ("F32", 4),
    "float8_e4m3fn": ("FP8", 1),
}
"""How numbers are written: the name, and the bytes of each."""

_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_INNER = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a model with eyes or ears says what its language model is."""


def look(walk: Walk, folder: str, content: Content, source: Source, name: str) -> bool:
    """Add the model that the folder is. True: it is one, and what lies deeper belongs to it."""
    if PIPELINE in content.described:
        return True
    if not content.weights:
        return False
    if CONFIG not in content.described and ADAPTER not in content.described:
        count = len(content.weights)
        walk.trouble(
            folder,
            f"it has {plural(count, 'file')} of SafeTensors and no config.json that says what they "
            "are: it was left alone; put the model's config.json beside them",
        )
        return False
    # Some publish the same weights a second time, for their own programs.
    own = {key: file for key, file in content.weights.items() if not key.startswith("consolidated")} or content.weights
    if any(key in content.partial for key in _expected(own)):
        return True
    walk.items.append(
        Item(
            (Place(folder, source, name),),
            tuple(own[key] for key in sorted(own)),
            Format.SAFETENSORS,
            described=tuple(content.described[key] for key in sorted(content.described)),
        )
    )
    return True


def _expected(weights: Mapping[str, File]) -> list[str]:
    """Names of all parts, as far as the names of those that are there tell."""
    found = []
    for name in weights:
        stem, _, ending = name.removesuffix(".safetensors").rpartition("-of-")
        if stem and ending.isdigit() and len(ending) <= 5:
            prefix = stem.rpartition("-")[0]
            found += [
                f"{prefix}-{number:05}-of-{ending}.safetensors" for number in range(1, min(int(ending), 1000) + 1)
            ]
            break
    return found


def glance(item: Item) -> tuple[Glance, str]:
    """What the model says of itself, and what is wrong with it, else nothing."""
    files = {file.path.rpartition("/")[2]: file for file in (*item.described, *item.files)}
    try:
        if ADAPTER in files and CONFIG not in files:
            return _adapter(_json(files[ADAPTER])), ""
        config = _json(files[CONFIG])
        index = _json(files[INDEX]) if INDEX in files else {}
        template, tools = _template(files)
    except _BadFile as problem:
        return Glance(parameters=parameters_of_name(item.places[0].name)), str(problem)
    text: Mapping[str, Any] = next((config[key] for key in _INNER if isinstance(config.get(key), dict)), {})
    kinds = config.get("architectures")
    kind = _word(kinds[0]) if isinstance(kinds, list) and kinds else ""
    quantization, number_bytes = _quantization(config, text)
    metadata = index.get("metadata")
    total = _whole(metadata, "total_size") if isinstance(metadata, dict) else None
    count = _whole(metadata, "total_parameters") if isinstance(metadata, dict) else None
    if count is None and number_bytes:
        count = (total or item.size_bytes) // number_bytes
    told = Glance(
        architecture=_word(config.get("model_type")) or kind,
        quantization=quantization,
        parameters=parameters_of_name(item.places[0].name) or _rounded(count),
        trained_context=_context(config) or _context(text),
        purpose=_purpose(kind, "modules.json" in files),
        template=template,
        tools=tools,
    )
    return told, _missing(index, files)


class _BadFile(ValueError):
    pass


def _json(file: File) -> Mapping[str, Any]:
    name = visible(file.path.rpartition("/")[2])
    try:
        told = json.loads(small_file(file.path, JSON_LIMIT_BYTES))
    except OSError as problem:
        raise _BadFile(f"its {name} cannot be read: {problem.strerror} (errno {problem.errno})") from None
    except (ValueError, RecursionError) as problem:
        raise _BadFile(f"its {name} is no JSON ({visible(str(problem))[:100]}); download it again") from None
    if not isinstance(told, dict):
        raise _BadFile(f"its {name} is no map in JSON; download it again")
    return told


def _adapter(config: Mapping[str, Any]) -> Glance:
    return Glance(architecture=_word(config.get("peft_type")).lower(), purpose=Purpose.ADAPTER)


def _missing(index: Mapping[str, Any], files: Mapping[str, File]) -> str:
    """Which files the index names and the folder lacks."""
    listed = index.get("weight_map", {})
    wanted = sorted({name for name in listed.values() if isinstance(name, str)}) if isinstance(listed, dict) else []
    missing = [name for name in wanted if name not in files]
    if not missing:
        return ""
    shown = visible(missing[0][:100])
    if "/" in missing[0]:
        return f'its {INDEX} names "{shown}", which does not lie in its folder; download the model again'
    lacking = f"{len(missing)} of its {plural(len(wanted), 'file')} {'is' if len(missing) == 1 else 'are'}"
    return f'{lacking} missing, the first is "{shown}"; download them into its folder'


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, int | None]:
    """How it is quantized; and the bytes of a number, where all of them have as many."""
    how = config.get("quantization_config") or text.get("quantization_config")
    if isinstance(how, dict):
        method = _word(how.get("quant_method")).upper()
        bits = _whole(how, "bits", "w_bit", "weight_bits")
        if method == "BITSANDBYTES" and bits is None:
            bits = 4 if how.get("load_in_4bit") is True else 8
        return (f"{method}-{bits}" if bits and method else method or (f"INT{bits}" if bits else "")), None
    for values in (config, text):
        kind = _TYPES.get(_word(values.get("torch_dtype") or values.get("dtype")))
        if kind is not None:
            return kind
    return "", None


def _context(values: Mapping[str, Any]) -> int | None:
    return _whole(values, *_CONTEXTS)


def _purpose(kind: str, sentences: bool) -> Purpose:
    """By the name of the class that Hugging Face's library makes of it."""
    if kind.endswith("ForSequenceClassification"):
        return Purpose.RERANKING
    if sentences or kind.endswith(("ForMaskedLM", "EncoderModel")):
        return Purpose.EMBEDDING
    if kind.endswith("Model") and not kind.endswith("LMHeadModel"):
        return Purpose.EMBEDDING
    return Purpose.COMPLETION


def _template(files: Mapping[str, File]) -> tuple[bool, bool]:
    """Whether there is a chat template, and whether it knows tools."""
    if "chat_template.jinja" in files:
        try:
            text = small_file(files["chat_template.jinja"].path, JSON_LIMIT_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError):
            return False, False
        return True, "tools" in text
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name in files:
            told = _json(files[name]).get("chat_template")
            if told:
                return True, "tools" in str(told)
    return False, False


def _rounded(count: int | None) -> str:
    """As people write it: ``8B``, ``1.5B``, ``494M``."""
    if not count:
        return ""
    if count >= 10**9:
        billions = count / 10**9
        return f"{billions:.0f}B" if billions >= 10 else f"{billions:.1f}".removesuffix(".0") + "B"
    return f"{count // 10**6}M" if count >= 10**6 else ""


def _whole(values: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 50:
            return value
    return None


def _word(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 64 and value.isprintable() else ""
