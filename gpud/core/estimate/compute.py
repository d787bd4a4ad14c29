"""How much memory a computation needs besides weights and caches.

This is the one part of an estimate that has no exact rule: the engine plans the buffers of each build, device and
architecture anew, and reuses what is no longer needed. What is written here is the shape that its plans have, the
largest of a few phases, with factors that were fitted to the record of a llama-server for the CPU, over micro-batches
of 128 to 2048, contexts of 2,048 to 65,536, with and without flash attention, one to eight slots.
``.venv/bin/python -m bench.estimate --measure`` measures them again and prints the error of every model. On a CPU they
are therefore regression values; a GPU's own plans differ (other fusions, other scratch), and the engine's dry run says
what they are.
"""

from gpud.core.estimate.architectures import Cache
from gpud.core.estimate.cache import Cells
from gpud.core.estimate.shape import Shape, Work
from gpud.core.plan import Plan
from gpud.core.record import Record

FLOAT_BYTES = 4


class Factors(Record):
    """Numbers of floats for each token, in units of a width of the model.

    Fitted to llama-server 0.5.0-dev (0c1e570), CPU, 30 models × 15 argument sets. ``gated``: of a feed-forward network
    its two inner halves and their product, ``plain`` of one without a gate; beside it ``Rules.widths`` rows as wide as
    the model (4 in most architectures). ``chosen``: experts write a row each, and once more weighted, beside
    ``chosen_widths`` rows. ``shared_widths``: rows beside an expert that all tokens use. ``attending``: rows beside the
    scores without flash attention, ``heads`` rows as wide as all heads. ``mixed``: of the inner width of a state-space
    layer, one width of the model beside it; ``projected``: of what enters one with groups, and of what it convolves.
    """

    gated: float = 3.0
    plain: float = 1.0
    chosen: float = 2.0
    chosen_widths: float = 6.0
    shared_widths: float = 5.0
    attending: float = 3.5
    heads: float = 2.0
    mixed: float = 6.0
    projected: float = 2.0


FACTORS = Factors()


class Buffers(Record):
    """``all`` is what one device needs that computes whole layers and the output.

    In it are ``inputs``, which each device gets copies of: masks and embedded tokens. ``hidden`` is what a layer hands
    to the next, ``looked_up`` what else is looked up for the tokens; the machine's own memory holds both, whatever
    computes. ``inner`` is as wide as the inside of a layer with a state, ``states`` what such a layer needs where its
    state is.
    """

    all: int
    inputs: int
    hidden: int
    looked_up: int
    inner: int
    states: int


def buffers(shape: Shape, plan: Plan, cells: Cells, factors: Factors = FACTORS) -> Buffers:
    work = shape.work
    flash = uses_flash_attention(shape, plan)
    # Without a cache the tokens of a batch see each other, and nothing else.
    encodes = shape.rules.cache is Cache.NONE
    seen = cells.tokens if encodes else cells.full
    attending = encodes or any(layer.key for layer in shape.layers)
    masks = _masks(shape, cells, seen, 2 if flash else FLOAT_BYTES) if attending else 0
    tokens = cells.tokens
    floats = _feed_forward(work, shape.rules.widths, factors) * tokens
    states = _state_space(shape, factors, cells)
    floats = max(floats, states)
    if attending and not flash:
        rows = factors.attending * work.width + factors.heads * work.heads * work.head
        floats = max(floats, (work.heads * seen + rows) * tokens)
    outputs = tokens if plan.embeddings else min(cells.sequences, tokens)
    if shape.rules.ties_output and not (plan.embeddings and shape.rules.embeds_apart):
        floats = max(floats, outputs * (work.vocabulary + work.width))
    row = tokens * FLOAT_BYTES
    return Buffers(
        all=masks + int(floats * FLOAT_BYTES),
        inputs=masks + row * work.width,
        hidden=row * work.width,
        looked_up=row * work.per_layer,
        inner=row * work.state_inner if shape.rules.hands_on_inner else 0,
        states=int(states * FLOAT_BYTES),
    )


def uses_flash_attention(shape: Shape, plan: Plan) -> bool:
    """What ``auto`` comes to: the engine drops it when it would run elsewhere than on the device of a layer, as it does
    in hybrids whose cache is kept off the GPU."""
    if not shape.rules.flash_attention or plan.flash_attention == "off":
        return False
    apart = bool(plan.gpus) and not plan.kv_on_gpu and shape.rules.cache is Cache.HYBRID
    return plan.flash_attention == "on" or not apart


def _masks(shape: Shape, cells: Cells, seen: int, element: int) -> int:
    """Which token may see which cell, for each kind of cache."""
    size = cells.tokens * seen * element
    if any(layer.windowed for layer in shape.layers):
        size += cells.tokens * min(seen, cells.windowed) * element
    return size


def _feed_forward(work: Work, widths: float, factors: Factors) -> float:
    """Floats for each token in the widest phase of a layer after its attention."""
    beside = widths * work.width
    inner = factors.gated if work.gated else factors.plain
    phases = [inner * work.feed_forward + beside + work.per_layer]
    if work.experts_used:
        phases.append(inner * work.experts_used * work.expert_feed_forward + beside)
        phases.append((factors.chosen * work.experts_used + factors.chosen_widths) * work.width)
    if work.shared_feed_forward:
        phases.append(inner * work.shared_feed_forward + factors.shared_widths * work.width)
    return max(phases)


def _state_space(shape: Shape, factors: Factors, cells: Cells) -> float:
    """Floats of a layer with a state, for all tokens and sequences."""
    work = shape.work
    state = max((layer.state + layer.convolution for layer in shape.layers), default=0)
    if not work.state_inner:
        return state * cells.sequences
    if work.state_groups:
        convolved = work.state_inner + 2 * work.state_groups * work.state_size
        projected = work.state_inner + convolved + work.state_heads
        return factors.projected * (projected + convolved) * cells.tokens + state * cells.sequences
    return (factors.mixed * work.state_inner + work.width) * cells.tokens + state * cells.sequences
