"""What an encoder takes beside a model."""

import pytest

from gpud.core.estimate.projector import FACTORS, PREPARED, ROWS, SOUND_TOKENS, projector_bytes
from gpud.core.estimate.weights import HOST_ALIGNMENT, padded
from gpud.core.modelfile import ModelFile, Tensor, Value


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
