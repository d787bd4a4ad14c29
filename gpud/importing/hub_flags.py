"""What the flags of vLLM, text-generation-inference and llama-cpp-python are here; the rest is passed on."""

import re
from collections.abc import Callable, Mapping, Sequence

from gpud.config.forbidden import check_flag
from gpud.config.kinds import Wrong
from gpud.config.source import Where
from gpud.importing.commands import is_value
from gpud.importing.report import Draft, Path, shown
from gpud.importing.secrets import names_secret
from gpud.importing.values import put_path

Put = Callable[[Draft, Path, str, Where, str], None]


def _model(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
    """A folder, or a name at Hugging Face."""
    if value.startswith(("/", "./", "../", "~")):
        put_path(draft, (*path, "file"), value, where, setting)
    else:
        draft.put((*path, "model"), value, where, setting)


def _file(key: str) -> Put:
    def put(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
        put_path(draft, (*path, key), value, where, setting)

    return put


def _whole(key: str, most: int = 0) -> Put:
    """A whole number; from ``most`` on, and below zero, it means all."""

    def put(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
        if not re.fullmatch(r"-?[0-9]{1,15}", value):
            draft.leave(where, f"{setting} {shown(value)}", "it is not a whole number", f"write {key}: and a number")
        elif most and not 0 <= int(value) < most:
            draft.put((*path, key), "all", where, setting, why=f"{value} means all")
        else:
            draft.put((*path, key), int(value), where, setting)

    return put


def _text(key: str) -> Put:
    def put(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
        draft.put((*path, key), value, where, setting)

    return put


def _flag(key: str) -> Put:
    def put(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
        on = value.lower() not in ("false", "0", "off")
        draft.put((*path, key), ("on" if on else "off") if key == "flash_attention" else on, where, setting)

    return put


_TYPES = {"0": "f32", "1": "f16", "2": "q4_0", "3": "q4_1", "6": "q5_0", "7": "q5_1", "8": "q8_0", "30": "bf16"}
"""The numbers of types in GGML, which llama-cpp-python takes."""


def _cache_type(key: str) -> Put:
    def put(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
        draft.put((*path, key), _TYPES.get(value, value), where, setting)

    return put


def _alias(draft: Draft, path: Path, value: str, where: Where, setting: str) -> None:
    draft.alias(path, value, where, setting)


def _needless(why: str) -> Put:
    def put(draft: Draft, _path: Path, _value: str, where: Where, setting: str) -> None:
        draft.spare(where, setting, why)

    return put


def _dropped(why: str, instead: str) -> Put:
    def put(draft: Draft, _path: Path, _value: str, where: Where, setting: str) -> None:
        draft.leave(where, setting, why, instead)

    return put


_PRIVATE = _needless("gpud listens for the engine on a private address")
_SIZE = _dropped(
    "gpud decides beforehand how much one start may take, and tells the engine",
    "size: 20GiB, for example, is all that it takes",
)


def _key(draft: Draft, _path: Path, value: str, where: Where, setting: str) -> None:
    draft.secrets.hide(value)
    draft.leave(where, setting, "gpud makes a key for every start", "gpudctl key add NAME makes one for clients")


VLLM: Mapping[str, Put] = {
    "--model": _model,
    "--max-model-len": _whole("context"),
    "--max-num-seqs": _whole("parallel"),
    "--chat-template": _text("chat_template"),
    "--served-model-name": _alias,
    "--gpu-memory-utilization": _SIZE,
    "--kv-cache-memory-bytes": _SIZE,
    "--host": _PRIVATE,
    "--port": _PRIVATE,
    "--uds": _PRIVATE,
    "--api-key": _key,
    "--tensor-parallel-size": _dropped("each model has one GPU here", "run it yourself, and give gpud its url"),
    "-tp": _dropped("each model has one GPU here", "run it yourself, and give gpud its url"),
}
TGI: Mapping[str, Put] = {
    "--model-id": _model,
    "--max-total-tokens": _whole("context"),
    "--max-batch-size": _whole("parallel"),
    "--cuda-memory-fraction": _SIZE,
    "--hostname": _PRIVATE,
    "--port": _PRIVATE,
    "-p": _PRIVATE,
    "--api-key": _key,
    "--num-shard": _dropped("each model has one GPU here", "run it yourself, and give gpud its url"),
}
LLAMA_CPP_PYTHON: Mapping[str, Put] = {
    "--model": _file("file"),
    "--n-ctx": _whole("context"),
    "--n-gpu-layers": _whole("layers", 99),
    "--n-threads": _whole("threads"),
    "--n-batch": _whole("batch"),
    "--n-ubatch": _whole("micro_batch"),
    "--type-k": _cache_type("cache_type_k"),
    "--type-v": _cache_type("cache_type_v"),
    "--flash-attn": _flag("flash_attention"),
    "--chat-format": _text("chat_template"),
    "--clip-model-path": _file("mmproj"),
    "--embedding": _flag("embeddings"),
    "--model-alias": _alias,
    "--host": _PRIVATE,
    "--port": _PRIVATE,
    "--api-key": _key,
}


def translate(
    draft: Draft, path: Path, arguments: Sequence[str], where: Where, setting: str, known: Mapping[str, Put]
) -> None:
    """Put what the arguments say below ``path``. vLLM's model may also be the first word."""
    given = list(arguments)
    if known is VLLM and given and not given[0].startswith("-"):
        _model(draft, path, given.pop(0), where, f"{setting} model")
    extra: list[str] = []
    index = 0
    while index < len(given):
        word = given[index]
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        takes_next = not equals and index + 1 < len(given) and is_value(given[index + 1])
        value = given[index + 1] if takes_next else value
        index += 2 if takes_next else 1
        if flag in known:
            known[flag](draft, path, value, where, f"{setting} {flag}")
            continue
        try:
            check_flag(flag)
            if names_secret(flag):
                draft.secrets.hide(value)
                raise Wrong("is a secret by its name, and secrets are never copied")
        except Wrong as wrong:
            draft.leave(where, f"{setting} {flag}", f"it {wrong}")
            continue
        extra += [word, value] if takes_next else [word]
    if extra:
        flags = " ".join(word for word in extra if not is_value(word))
        draft.put((*path, "extra_flags"), extra, where, f"{setting} {flags}")
