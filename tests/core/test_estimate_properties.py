"""What is true of every estimate, whatever the model and however it is placed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.model_headers import HEADERS
from gpud.core.errors import GpudError
from gpud.core.estimate import Shape, estimate
from gpud.core.estimate.architectures import ARCHITECTURES
from gpud.core.modelfile import ModelFile, Tensor, Value
from gpud.core.plan import Plan
from gpud.core.quote import Estimate
from gpud.core.record import replace

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


KEYS = [
    "block_count",
    "nextn_predict_layers",
    "embedding_length",
    "context_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_mla",
    "attention.sliding_window",
    "attention.value_length_mla",
    "attention.sliding_window_pattern",
    "attention.shared_kv_layers",
    "attention.recurrent_layers",
    "full_attention_interval",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.time_step_rank",
    "wkv.head_size",
    "token_shift_count",
    "kda.head_dim",
    "shortconv.l_cache",
    "expert_used_count",
    "expert_feed_forward_length",
    "attention.causal",
]

numbers = st.integers(-2, 600) | st.integers(-(1 << 40), 1 << 70) | st.floats() | st.booleans() | st.text(max_size=3)
values = numbers | st.lists(st.integers(-1, 64) | st.floats() | st.booleans(), max_size=8).map(tuple)
names = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "blk.0.", "blk.7.", "blk.999999999999.", "blk.-1.", "v."]),
    st.sampled_from(
        ["token_embd", "output", "ffn_up", "ffn_up_shexp", "ffn_gate_exps", "rope_freqs", "nextn.x", "", "é"]
    ),
    st.sampled_from([".weight", ".bias", ""]),
)
tensors = st.builds(
    lambda name, shape, kind, size: Tensor(name, tuple(shape), kind, size),
    names,
    st.lists(st.integers(0, 1 << 40), max_size=4),
    st.sampled_from(["F32", "Q4_K", "Q9_9"]),
    st.integers(0, 1 << 50),
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.dictionaries(st.sampled_from(KEYS), values),
    st.integers(1, 8),
    st.lists(tensors, max_size=6),
    plans,
)
def test_whatever_a_file_says_ends_in_an_estimate_or_a_clear_error(
    architecture: str, said: dict[str, Value], count: int, infos: list[Tensor], plan: Plan
) -> None:
    """Metadata are somebody else's: no combination of them breaks the formula, and none makes it negative."""
    own = {f"{architecture}.{key}": value for key, value in {"block_count": count, **said}.items()}
    file = ModelFile(architecture, own, tuple(infos))
    try:
        made = estimate(file, plan)
    except GpudError as error:
        assert str(error).startswith("cannot ")
        assert error.hint
    else:
        assert all(part.total_bytes >= 0 for part in made.parts)
