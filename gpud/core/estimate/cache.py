"""Keys, values and states: how many cells llama.cpp makes for a context, and what each layer keeps in them."""

from collections.abc import Iterator

from gpud.core.errors import GpudError
from gpud.core.estimate.architectures import Cache
from gpud.core.estimate.shape import Shape
from gpud.core.estimate.weights import HOST_ALIGNMENT, padded
from gpud.core.plan import Plan
from gpud.core.record import Record

CELLS = 256
"""Cells come in multiples of so many."""

SLOTS = 4
"""Conversations that llama-server serves at once when it may choose; they then share one cache."""

STATE_BYTES = 4
"""States are always kept in full."""

TYPES: dict[str, tuple[int, int]] = {
    # name: elements of a block, bytes of a block
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}


class UnknownCacheType(GpudError):
    code = "invalid-option"

    def __init__(self, name: str) -> None:
        super().__init__(
            f'cannot compute the size of a cache of type "{name}": no such type',
            hint=f"use one of {', '.join(TYPES)}",
        )


class Cells(Record):
    """``context`` is what the engine reports; each of ``streams`` caches has ``full`` cells, ``windowed`` in layers
    that look back only so far. ``sequences`` is the number of states, ``tokens`` what is computed at once."""

    context: int
    streams: int
    full: int
    windowed: int
    sequences: int
    tokens: int


def cells(shape: Shape, plan: Plan) -> Cells:
    """Resolve the context as llama-server does."""
    sequences = SLOTS if plan.parallel is None else max(plan.parallel, 1)
    # Whoever leaves the number of slots to the server gets a shared cache, whatever else was said.
    unified = True if plan.parallel is None else bool(plan.unified)
    wanted = plan.context or shape.trained or CELLS
    batch = min(plan.batch, plan.micro_batch) if plan.embeddings else plan.batch
    batch = min(wanted, batch) if shape.causal else batch
    tokens = max(min(plan.micro_batch or batch, batch), 1)
    context = padded(wanted, CELLS)
    streams = 1
    full = context
    if not unified:
        streams = sequences
        full = padded(context // sequences, CELLS) or CELLS
        context = full * sequences
    reach = shape.window * (sequences if unified else 1) + tokens
    windowed = full if plan.full_swa else padded(min(full, reach), CELLS)
    return Cells(context, streams, full, windowed, sequences, min(tokens, context))


def by_layer(shape: Shape, plan: Plan, sizes: Cells) -> Iterator[tuple[int, int]]:
    """Bytes of keys and values, and of states, of each loaded layer."""
    key_block, key_bytes = _type(plan.type_k)
    value_block, value_bytes = _type(plan.type_v)
    # Without flash attention values lie transposed, and all layers get as much as the widest.
    transposed = plan.flash_attention == "off" or not shape.rules.flash_attention
    keeps = shape.rules.cache is not Cache.NONE
    for layer in shape.layers:
        kv = state = 0
        if keeps and layer.key:
            rows = (sizes.windowed if layer.windowed else sizes.full) * sizes.streams
            value = shape.widest_value if transposed and layer.value else layer.value
            kv = padded(-(-layer.key // key_block) * key_bytes * rows, HOST_ALIGNMENT)
            kv += padded(-(-value // value_block) * value_bytes * rows, HOST_ALIGNMENT)
        if layer.state or layer.convolution:
            state = padded(layer.convolution * STATE_BYTES * sizes.sequences, HOST_ALIGNMENT)
            state += padded(layer.state * STATE_BYTES * sizes.sequences, HOST_ALIGNMENT)
        yield kv, state


def _type(name: str) -> tuple[int, int]:
    found = TYPES.get(name.lower())
    if found is None:
        raise UnknownCacheType(name)
    return found
