"""What is true of every estimate, whatever the model and however it is placed."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from core.model_headers import HEADERS
from gpud.core.estimate import Shape, estimate, gpu_bytes, layers_that_fit
from gpud.core.plan import Plan
from gpud.core.quote import Estimate

SHAPES = {name: Shape.of(header.file()) for name, header in HEADERS.items()}

models = st.sampled_from(sorted(SHAPES))
contexts = st.integers(1, 1 << 18)
plans = st.builds(
    Plan,
    context=contexts,
    parallel=st.none() | st.integers(1, 8),
    unified=st.none() | st.booleans(),
    batch=st.sampled_from([512, 2048]),
    micro_batch=st.sampled_from([64, 512, 1024]),
    type_k=st.sampled_from(["f16", "q8_0", "q4_0"]),
    type_v=st.sampled_from(["f16", "q8_0", "q4_0"]),
    flash_attention=st.sampled_from(["auto", "on", "off"]),
    layers=st.integers(0, 120),
    kv_on_gpu=st.booleans(),
    full_swa=st.booleans(),
    cpu_moe=st.integers(0, 60),
    split_mode=st.sampled_from(["layer", "none", "row"]),
    tensor_split=st.lists(st.floats(0, 10), max_size=4).map(tuple),
    main_gpu=st.integers(0, 3),
    gpus=st.integers(0, 4),
)


def weights(made: Estimate) -> int:
    return sum(part.weights_bytes for part in made.parts)


def kept(made: Estimate) -> tuple[int, int]:
    return sum(part.kv_bytes for part in made.parts), sum(part.state_bytes for part in made.parts)


@settings(max_examples=150, deadline=None)
@given(models, plans)
def test_no_part_is_negative_and_the_parts_are_the_total(model: str, plan: Plan) -> None:
    """One part for each GPU and one for the host; their sums are the whole."""
    made = estimate(SHAPES[model], plan)

    assert len(made.parts) == plan.gpus + 1
    for part in made.parts:
        assert min(part.weights_bytes, part.kv_bytes, part.state_bytes, part.compute_bytes) >= 0
    assert made.total_bytes == sum(part.total_bytes for part in made.parts)
    assert made.context % 256 == 0


@settings(max_examples=100, deadline=None)
@given(models, plans, contexts)
def test_more_context_never_needs_less(model: str, plan: Plan, other: int) -> None:
    """Of two contexts the larger one needs at least as much, on every device."""
    low, high = sorted((plan.context, other))
    small, large = (estimate(SHAPES[model], replace(plan, context=context)) for context in (low, high))

    for before, after in zip(small.parts, large.parts, strict=True):
        assert before.total_bytes <= after.total_bytes


@settings(max_examples=100, deadline=None)
@given(models, plans, st.integers(0, 120))
def test_layers_move_and_are_not_lost(model: str, plan: Plan, other: int) -> None:
    """Keys, values and states are the same in sum wherever they are. Weights differ by no more than what tied
    embeddings and padding take: a layer that leaves the host comes to a GPU."""
    plan = replace(plan, gpus=max(plan.gpus, 1))
    here, there = (estimate(SHAPES[model], replace(plan, layers=layers)) for layers in (plan.layers, other))
    embeddings = SHAPES[model].weights().tied.gpu

    assert kept(here) == kept(there)
    assert abs(weights(here) - weights(there)) <= embeddings + (4 << 20)


@settings(max_examples=100, deadline=None)
@given(models, plans)
def test_more_layers_never_take_weights_off_the_gpus(model: str, plan: Plan) -> None:
    """With one layer more, the GPUs hold at least as many weights, keys and states, and the host no more."""
    fewer = estimate(SHAPES[model], plan)
    more = estimate(SHAPES[model], replace(plan, layers=plan.layers + 1))

    def on_gpus(made: Estimate) -> int:
        return sum(part.weights_bytes + part.kv_bytes + part.state_bytes for part in made.parts[:-1])

    assert on_gpus(fewer) <= on_gpus(more)
    assert fewer.parts[-1].weights_bytes >= more.parts[-1].weights_bytes


@settings(max_examples=100, deadline=None)
@given(models, plans)
def test_quantized_keys_and_values_are_smaller(model: str, plan: Plan) -> None:
    """Each step of the ladder f16, q8_0, q4_0 is smaller where there is anything to keep at all."""
    full, half, quarter = (
        kept(estimate(SHAPES[model], replace(plan, type_k=kind, type_v=kind)))[0] for kind in ("f16", "q8_0", "q4_0")
    )

    assert full == 0 or full > half > quarter


@settings(max_examples=50, deadline=None)
@given(models, plans, st.integers(0, 80 << 30))
def test_what_is_said_to_fit_fits(model: str, plan: Plan, budget: int) -> None:
    """Never more layers than were asked for, and no more bytes than there are unless it says none."""
    plan = replace(plan, gpus=max(plan.gpus, 1))
    fit = layers_that_fit(SHAPES[model], plan, budget)

    assert 0 <= fit <= plan.layers
    if fit:
        assert gpu_bytes(estimate(SHAPES[model], replace(plan, layers=fit)).parts) <= budget
