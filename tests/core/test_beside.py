"""What a draft model, an encoder and adapters take beside a model, where it is asked what still fits."""

import pytest

from core.model_headers import ENCODERS, HEADERS
from gpud.core.estimate import context_that_fits, estimate, gpu_bytes, layers_that_fit
from gpud.core.estimate.projector import FACTORS, PREPARED, ROWS, SOUND_TOKENS, projector_bytes
from gpud.core.estimate.weights import HOST_ALIGNMENT, padded
from gpud.core.modelfile import ModelFile, Tensor, Value
from gpud.core.plan import Plan
from gpud.core.record import replace

GIB = 1 << 30
MODEL, DRAFT = (HEADERS[name].file() for name in ("Qwen3-8B", "Qwen3-0.6B"))
ENCODER = next(iter(ENCODERS.values()))[0].file()
PLAN = Plan(context=8192, parallel=2, gpus=1)
BESIDE: dict[str, dict[str, object]] = {
    "nothing": {},
    "a draft model": {"draft": DRAFT},
    "an encoder": {"mmproj": ENCODER},
    "adapters": {"adapter_bytes": GIB},
    "all of it": {"draft": DRAFT, "mmproj": ENCODER, "adapter_bytes": GIB},
}


def taken(plan: Plan, beside: dict[str, object]) -> int:
    return gpu_bytes(estimate(MODEL, plan, **beside).parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, draft=Plan(layers=7), layers=33)], ids=["plain", "drafted"])
def test_so_many_layers_fit_and_not_one_more(what: str, plan: Plan) -> None:
    """With what is beside them."""
    beside = BESIDE[what]
    plan = plan if "draft" in beside else replace(plan, draft=None)
    for layers in (5, 20, 32):
        budget = taken(replace(plan, layers=layers), beside)
        assert layers_that_fit(MODEL, plan, budget, **beside) == layers  # type: ignore[arg-type]
        assert layers_that_fit(MODEL, plan, budget - 1, **beside) == layers - 1  # type: ignore[arg-type]
    assert layers_that_fit(MODEL, plan, 400 * GIB, **beside) == min(plan.layers, 37)  # type: ignore[arg-type]
    assert layers_that_fit(MODEL, plan, 0, **beside) == 0  # type: ignore[arg-type]
    assert layers_that_fit(MODEL, replace(plan, layers=0), 400 * GIB, **beside) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("what", BESIDE)
def test_the_context_is_halved_until_it_fits(what: str) -> None:
    """A whole number of tokens, down to the floor and not below it."""
    beside = BESIDE[what]
    plan = replace(PLAN, context=10_240)
    for context in (10_240, 5_120, 2_560, 1_280):
        budget = taken(replace(plan, context=context), beside)
        found = context_that_fits(MODEL, plan, budget, 256, **beside)  # type: ignore[arg-type]
        assert (found, type(found)) == (context, int)
        assert context_that_fits(MODEL, plan, budget - 1, 256, **beside) == context // 2  # type: ignore[arg-type]
    floor = taken(replace(plan, context=3_000), beside)
    assert context_that_fits(MODEL, plan, floor, 3_000, **beside) == 3_000  # type: ignore[arg-type]
    assert context_that_fits(MODEL, plan, floor - 1, 3_000, **beside) == 0  # type: ignore[arg-type]


def encoder(*names: str, **values: Value) -> ModelFile:
    tensors = tuple(Tensor(name, (4,), "F32", 100) for name in names)
    return ModelFile("clip", {f"clip.{key.replace('__', '.')}": value for key, value in values.items()}, tensors, 0, 0)


SEES = {"vision__patch_size": 14, "vision__embedding_length": 32, "vision__feed_forward_length": 64}
HEARS = {"audio__embedding_length": 16, "audio__feed_forward_length": 48}


def buffers(tokens: int, width: int, inner: int, factor: float = FACTORS.plain) -> int:
    return int((factor * inner + ROWS * width) * tokens * 4)


def test_an_encoder_of_one_size_of_picture_takes_its_patches() -> None:
    """As many as fit on each side, in whole."""
    file = encoder("v.patch_embd.weight", **SEES, vision__image_size=335)
    assert projector_bytes(file, on_gpu=True) == (128, buffers(23 * 23, 32, 64))
    assert projector_bytes(file, on_gpu=False)[0] == padded(100, HOST_ALIGNMENT)


@pytest.mark.parametrize("key", ["vision__projector_type", "projector_type"])
@pytest.mark.parametrize("name", PREPARED)
def test_an_encoder_of_any_size_takes_what_it_is_prepared_for(key: str, name: str) -> None:
    """So many pieces, each of patches that are merged: as its file says, or as is usual."""
    side, merged = PREPARED[name]
    usual = encoder(**SEES, **{key: name})
    assert projector_bytes(usual, on_gpu=True)[1] == buffers((side * merged) ** 2, 32, 64)
    for said in ("vision__spatial_merge_size", "vision__projector__scale_factor"):
        own = encoder(**SEES, **{key: name, said: 5})
        assert projector_bytes(own, on_gpu=True)[1] == buffers((side * 5) ** 2, 32, 64)


def test_one_that_sees_and_hears_takes_both() -> None:
    """Each by its own width, and by whether its own layers have gates."""
    both = encoder("v.blk.0.ffn_gate.weight", **SEES, **HEARS, vision__image_size=140)
    sees = buffers(100, 32, 64, FACTORS.gated)
    assert projector_bytes(both, on_gpu=True)[1] == sees + buffers(SOUND_TOKENS, 16, 48)
    deaf = encoder("a.blk.0.ffn_gate.weight", **HEARS)
    assert projector_bytes(deaf, on_gpu=True)[1] == buffers(SOUND_TOKENS, 16, 48, FACTORS.gated)
