"""Reads llama-server's command line as far as it decides about memory. Starts nothing, touches no file.

What it does not know it passes over: an engine complains of its flags itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gpud.core.counts import plural
from gpud.core.errors import InvalidArguments
from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.record import replace

AUTO_PARALLEL = 4
"""llama-server's own number of slots, over one unified cache."""

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
SPLIT_MODES = ("none", "layer", "row", "tensor")

_TRUE = frozenset({"on", "1", "true", "enabled"})
_FALSE = frozenset({"off", "0", "false", "disabled"})

_WHOLE = re.compile(r"[+-]?\d{1,18}")

_FEED_FORWARD = r"blk\.({layers})\.ffn_(up|down|gate)\."
"""What --n-cpu-ffn keeps off the GPU."""

MOST_LAYERS = 4096
"""No model has more; a pattern names each of them."""


class _Unreadable(ValueError):
    """``str()`` says what a value should have been."""


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text.strip()) or int(text) < least:
            raise _Unreadable(f"is not a whole number of {least} or more")
        return int(text)

    return read


def _parallel(text: str) -> int | None:
    number = _whole(-1)(text)
    if number == 0:
        raise _Unreadable("is not a number of slots; give 1 or more, or -1 for the server's own choice")
    return None if number < 0 else number


def _layers(text: str) -> int:
    if text in ("auto", "all"):
        return ALL_LAYERS
    if not _WHOLE.fullmatch(text.strip()):
        raise _Unreadable("is not a number of layers, auto or all")
    return ALL_LAYERS if int(text) < 0 else min(int(text), ALL_LAYERS)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise _Unreadable(f"is none of {', '.join(words)}")
        return text

    return read


def _attention(text: str) -> str:
    if text in _TRUE:
        return "on"
    if text in _FALSE:
        return "off"
    if text in ("auto", "-1"):
        return "auto"
    raise _Unreadable("is none of on, off, auto")


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in re.split(r"[,/]", text))
    except ValueError:
        raise _Unreadable("is not a list of numbers such as 3,1") from None
    if not all(0 <= share < float("inf") for share in shares):
        raise _Unreadable("is not a list of numbers of 0 or more")
    return shares


def _overrides(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for one in text.split(","):
        pattern, equals, buffer = one.partition("=")
        if not equals or not pattern or not buffer:
            raise _Unreadable("is not a list of PATTERN=BUFFER")
        try:
            re.compile(pattern)
        except re.error as problem:
            raise _Unreadable(f"has a pattern that cannot be used: {problem}") from None
        pairs.append((pattern, buffer))
    return tuple(pairs)


def _feed_forward(text: str) -> tuple[tuple[str, str], ...]:
    count = min(_whole(0)(text), MOST_LAYERS)
    # One pattern for all: every tensor is held against every pattern.
    return ((_FEED_FORWARD.format(layers="|".join(map(str, range(count)))), "CPU"),) if count else ()


def _paths(text: str) -> tuple[str, ...]:
    return tuple(path for path in text.split(",") if path)


def _scaled_paths(text: str) -> tuple[str, ...]:
    return tuple(path.rpartition(":")[0] or path for path in text.split(",") if path)


def _devices(text: str) -> tuple[str, ...]:
    """The devices by name; a single empty name for none."""
    return ("",) if text == "none" else tuple(name for name in text.split(",") if name)


class _Value(NamedTuple):
    """A flag with a value; ``adds`` says that giving it again adds to what was given before."""

    field: str
    read: Callable[[str], Any]
    adds: bool = False


class _Switch(NamedTuple):
    field: str
    on: Any
    off: Any


def _named(table: Mapping[str, _Value]) -> dict[str, _Value]:
    return {name: value for names, value in table.items() for name in names.split()}


_VALUES = _named(
    {
        "-m --model LLAMA_ARG_MODEL": _Value("file", str),
        "-c --ctx-size LLAMA_ARG_CTX_SIZE": _Value("context", _whole(0)),
        "--kv-unified-per-slot LLAMA_ARG_KV_UNIFIED_PER_SLOT": _Value("per_slot", _whole(0)),
        "-np --parallel LLAMA_ARG_N_PARALLEL": _Value("parallel", _parallel),
        "-b --batch-size LLAMA_ARG_BATCH": _Value("batch", _whole(1)),
        "-ub --ubatch-size LLAMA_ARG_UBATCH": _Value("micro_batch", _whole(1)),
        "-ctk --cache-type-k LLAMA_ARG_CACHE_TYPE_K": _Value("type_k", _one_of(*CACHE_TYPES)),
        "-ctv --cache-type-v LLAMA_ARG_CACHE_TYPE_V": _Value("type_v", _one_of(*CACHE_TYPES)),
        "-fa --flash-attn LLAMA_ARG_FLASH_ATTN": _Value("flash_attention", _attention),
        "-ngl --gpu-layers --n-gpu-layers LLAMA_ARG_N_GPU_LAYERS": _Value("layers", _layers),
        "-ncmoe --n-cpu-moe LLAMA_ARG_N_CPU_MOE": _Value("cpu_moe", _whole(0)),
        "-ncffn --n-cpu-ffn LLAMA_ARG_N_CPU_FFN": _Value("override_tensors", _feed_forward, adds=True),
        "-ot --override-tensor LLAMA_ARG_OVERRIDE_TENSOR": _Value("override_tensors", _overrides, adds=True),
        "-sm --split-mode LLAMA_ARG_SPLIT_MODE": _Value("split_mode", _one_of(*SPLIT_MODES)),
        "-ts --tensor-split LLAMA_ARG_TENSOR_SPLIT": _Value("tensor_split", _shares),
        "-mg --main-gpu LLAMA_ARG_MAIN_GPU": _Value("main_gpu", _whole(-1)),
        "-dev --device LLAMA_ARG_DEVICE": _Value("devices", _devices),
        "-mm --mmproj LLAMA_ARG_MMPROJ": _Value("mmproj", str),
        "--lora": _Value("adapters", _paths, adds=True),
        "--lora-scaled": _Value("adapters", _scaled_paths, adds=True),
        "--control-vector": _Value("adapters", _paths, adds=True),
        "--control-vector-scaled": _Value("adapters", _scaled_paths, adds=True),
        "-md --model-draft --spec-draft-model LLAMA_ARG_SPEC_DRAFT_MODEL LLAMA_ARG_MODEL_DRAFT": _Value(
            "draft_file", str
        ),
        "-cd --ctx-size-draft LLAMA_ARG_CTX_SIZE_DRAFT": _Value("draft_context", _whole(0)),
        "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl LLAMA_ARG_N_GPU_LAYERS_DRAFT": _Value(
            "draft_layers", _layers
        ),
        "-ctkd --cache-type-k-draft --spec-draft-type-k LLAMA_ARG_CACHE_TYPE_K_DRAFT "
        "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K": _Value("draft_type_k", _one_of(*CACHE_TYPES)),
        "-ctvd --cache-type-v-draft --spec-draft-type-v LLAMA_ARG_CACHE_TYPE_V_DRAFT "
        "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V": _Value("draft_type_v", _one_of(*CACHE_TYPES)),
        "-devd --device-draft --spec-draft-device": _Value("draft_devices", _devices),
        "-otd --override-tensor-draft --spec-draft-override-tensor": _Value("draft_overrides", _overrides, adds=True),
        "-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE": _Value(
            "draft_cpu_moe", _whole(0)
        ),
    }
)

_SWITCHES: dict[str, _Switch] = {
    name: switch
    for names, switch in {
        "-kvu --kv-unified LLAMA_ARG_KV_UNIFIED": _Switch("unified", True, False),
        "-no-kvu --no-kv-unified LLAMA_ARG_NO_KV_UNIFIED": _Switch("unified", False, True),
        "-kvo --kv-offload LLAMA_ARG_KV_OFFLOAD": _Switch("kv_on_gpu", True, False),
        "-nkvo --no-kv-offload LLAMA_ARG_NO_KV_OFFLOAD": _Switch("kv_on_gpu", False, True),
        "--swa-full LLAMA_ARG_SWA_FULL": _Switch("full_swa", True, False),
        "-cmoe --cpu-moe LLAMA_ARG_CPU_MOE": _Switch("cpu_moe", ALL_LAYERS, 0),
        "-cmoed --cpu-moe-draft --spec-draft-cpu-moe LLAMA_ARG_SPEC_DRAFT_CPU_MOE": _Switch(
            "draft_cpu_moe", ALL_LAYERS, 0
        ),
        "--embeddings --embedding LLAMA_ARG_EMBEDDINGS": _Switch("embeddings", True, False),
        "--rerank --reranking LLAMA_ARG_RERANKING": _Switch("embeddings", True, False),
        "--no-mmproj --no-mmproj-auto": _Switch("no_mmproj", True, False),
    }.items()
    for name in names.split()
}

_ATTENTION = frozenset({"-fa", "--flash-attn"})


def plan_of(argv: Sequence[str], gpus: int, environment: Mapping[str, str] | None = None) -> Plan:
    """How an engine with this command line, which sees so many GPUs, places its model.

    ``environment`` is what the engine is started with; its LLAMA_ARG_* count where the command line says nothing.
    Raises InvalidArguments for a value that cannot be read.
    """
    found = _Found()
    for name, value in (environment or {}).items():
        found.variable(name, value)
    found.command_line(argv)
    return _make_plan(found.values, gpus)


class _Found:
    """Collects what was said, the last word of each last."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def variable(self, name: str, value: str) -> None:
        if name in _VALUES:
            known = _VALUES[name]
            self._set(known._replace(adds=False), name, value)
        elif name in _SWITCHES:
            self._switch(name, value)

    def command_line(self, argv: Sequence[str]) -> None:
        position = 0
        added: set[str] = set()
        while position < len(argv):
            word = argv[position]
            position += 1
            name, equals, value = word.partition("=") if word.startswith("-") else (word, "", "")
            if name.startswith("--"):
                name = name.replace("_", "-")
            if name in _SWITCHES and not name.startswith("LLAMA"):
                self._switch(name, value if equals else "on")
            elif name in _VALUES and not name.startswith("LLAMA"):
                following = argv[position] if position < len(argv) else None
                if not equals and name in _ATTENTION and (following is None or _is_flag(following)):
                    # Old builds have a bare switch.
                    value = "on"
                elif not equals:
                    if following is None:
                        raise InvalidArguments(f"{name} needs a value", hint="give it one, or leave it out")
                    value = following
                    position += 1
                known = _VALUES[name]
                # The first of several on the command line replaces what a variable says.
                self._set(known._replace(adds=known.adds and known.field in added), name, value)
                added.add(known.field)

    def _set(self, known: _Value, name: str, text: str) -> None:
        try:
            value = known.read(text)
        except _Unreadable as problem:
            raise InvalidArguments(f'cannot read {name}: "{text}" {problem}', hint=f"correct {name}") from None
        self.values[known.field] = (*self.values[known.field], *value) if known.adds else value

    def _switch(self, name: str, text: str) -> None:
        known = _SWITCHES[name]
        # A variable that negates does so whatever it says.
        if name.startswith("LLAMA_ARG_NO_") or text in _TRUE:
            self.values[known.field] = known.on
        elif text in _FALSE:
            self.values[known.field] = known.off
        else:
            raise InvalidArguments(f'cannot read {name}: "{text}" is neither on nor off', hint=f"correct {name}")


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not _WHOLE.fullmatch(word)


def _make_plan(found: dict[str, Any], gpus: int) -> Plan:
    default = Plan()
    parallel: int | None = found.get("parallel")
    context: int = found.get("context", 0)
    if context == 0 and found.get("per_slot"):
        context = found["per_slot"] * (parallel or AUTO_PARALLEL)
    embeddings: bool = found.get("embeddings", False)
    batch: int = found.get("batch", default.batch)
    micro_batch: int = min(found.get("micro_batch", default.micro_batch), batch)
    plan = Plan(
        context=context,
        parallel=parallel,
        # Of its own number of slots the server says itself that they share one cache.
        unified=None if parallel is None else found.get("unified"),
        # A text is embedded in one physical batch.
        batch=micro_batch if embeddings else batch,
        micro_batch=micro_batch,
        type_k=found.get("type_k", default.type_k),
        type_v=found.get("type_v", default.type_v),
        flash_attention=found.get("flash_attention", default.flash_attention),
        layers=found.get("layers", default.layers),
        kv_on_gpu=found.get("kv_on_gpu", default.kv_on_gpu),
        full_swa=found.get("full_swa", default.full_swa),
        cpu_moe=found.get("cpu_moe", 0),
        override_tensors=found.get("override_tensors", ()),
        split_mode=found.get("split_mode", default.split_mode),
        tensor_split=found.get("tensor_split", ()),
        main_gpu=found.get("main_gpu", 0),
        gpus=_seen(found.get("devices", ()), gpus),
        embeddings=embeddings,
        file=found.get("file", ""),
        mmproj="" if found.get("no_mmproj") else found.get("mmproj", ""),
        draft=_draft(found, context, parallel, gpus) if found.get("draft_file") else None,
        adapters=found.get("adapters", ()),
    )
    if plan.split_mode != "none" or not plan.gpus:
        return plan
    if plan.main_gpu < 0:
        return replace(plan, gpus=0, main_gpu=0)
    if plan.main_gpu >= plan.gpus:
        raise InvalidArguments(
            f"cannot use --main-gpu {plan.main_gpu}: the engine sees {plural(plan.gpus, 'GPU')}, numbered from 0",
            hint="correct --main-gpu",
        )
    return plan


def _draft(found: dict[str, Any], context: int, parallel: int | None, gpus: int) -> Plan:
    """A draft model follows the main one in all that it has no flag of its own for."""
    default = Plan()
    batch = found.get("batch", default.batch)
    return Plan(
        context=found.get("draft_context") or context,
        parallel=parallel,
        unified=None if parallel is None else found.get("unified"),
        batch=batch,
        micro_batch=min(found.get("micro_batch", default.micro_batch), batch),
        type_k=found.get("draft_type_k", default.type_k),
        type_v=found.get("draft_type_v", default.type_v),
        flash_attention=found.get("flash_attention", default.flash_attention),
        layers=found.get("draft_layers", default.layers),
        kv_on_gpu=found.get("kv_on_gpu", default.kv_on_gpu),
        full_swa=found.get("full_swa", default.full_swa),
        cpu_moe=found.get("draft_cpu_moe", 0),
        override_tensors=found.get("draft_overrides", ()),
        split_mode=found.get("split_mode", default.split_mode),
        tensor_split=found.get("tensor_split", ()),
        main_gpu=found.get("main_gpu", 0),
        gpus=_seen(found.get("draft_devices", found.get("devices", ())), gpus),
        file=found["draft_file"],
    )


def _seen(devices: Sequence[str], gpus: int) -> int:
    if tuple(devices) == ("",):
        return 0
    return min(gpus, len(devices)) if devices else gpus
