"""What encodes pictures or sounds for a model: a file of its own, which the engine's record of the model leaves out.

Its weights are exact; its buffers are those that the engine makes ready at its start. It makes larger ones later for a
picture that is larger than that.
"""

import math
from collections.abc import Mapping

from gpud.core.estimate.compute import FACTORS, FLOAT_BYTES
from gpud.core.estimate.weights import GPU_ALIGNMENT, HOST_ALIGNMENT, padded
from gpud.core.modelfile import ModelFile

SOUND_TOKENS = 1500
"""Half a minute, the longest piece that the usual encoders take at once."""

ROWS = 3.0
"""As wide as the encoder, beside its feed-forward network. Fitted to what llama-server 0.5.0-dev (0c1e570) says of an
encoder for gemma3, to the MiB; one for qwen2vl needs 22 of 1,579 MiB less than computed."""

PREPARED: Mapping[str, tuple[int, int]] = {
    # projector: pieces that the model sees of a square picture on each side, patches that are merged into one
    "qwen2vl_merger": (46, 2),
    "qwen2.5vl_merger": (46, 2),
    "qwen3vl_merger": (46, 2),
    "mimovl": (46, 2),
    "pixtral": (16, 1),
    "lightonocr": (16, 1),
    "kimivl": (16, 2),
    "gemma4v": (16, 3),
}
"""For encoders that take pictures of any size; the others have one size, which their file names."""


def projector_bytes(file: ModelFile, *, on_gpu: bool) -> tuple[int, int]:
    """The weights of an encoder, and its buffers."""
    alignment = GPU_ALIGNMENT if on_gpu else HOST_ALIGNMENT
    weights = sum(padded(tensor.bytes, alignment) for tensor in file.tensors)
    return weights, _buffers(file, "vision", _patches(file)) + _buffers(file, "audio", SOUND_TOKENS)


def _number(file: ModelFile, key: str) -> int:
    value = file.values.get(key, 0)
    return int(value) if isinstance(value, int | float) else 0


def _patches(file: ModelFile) -> int:
    patch = _number(file, "clip.vision.patch_size")
    if not patch:
        return 0
    name = file.values.get("clip.vision.projector_type", file.values.get("clip.projector_type"))
    if isinstance(name, str) and name in PREPARED:
        side, merged = PREPARED[name]
        given = (_number(file, f"clip.vision.{key}") for key in ("spatial_merge_size", "projector.scale_factor"))
        return int(math.pow(side * (max(given) or merged), 2))
    return (_number(file, "clip.vision.image_size") // patch) ** 2


def _buffers(file: ModelFile, kind: str, tokens: int) -> int:
    width = _number(file, f"clip.{kind}.embedding_length")
    inner = _number(file, f"clip.{kind}.feed_forward_length")
    letter = "v" if kind == "vision" else "a"
    gated = any(tensor.name.startswith(f"{letter}.blk.0.ffn_gate") for tensor in file.tensors)
    return int(((FACTORS.gated if gated else FACTORS.plain) * inner + ROWS * width) * tokens * FLOAT_BYTES)
