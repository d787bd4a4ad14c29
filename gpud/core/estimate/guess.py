"""What a model will need before it has ever run here. A declared or measured size always wins over this."""

from gpud.core.budget import MIB

# Weights are mapped as they are on disk; buffers and alignment add a little.
WEIGHTS_OVERHEAD = 1.05
# A CUDA context, compute buffers and the engine's own memory, whatever the model.
FIXED_BYTES = 384 * MIB
# Keys and values of one token of an 8-billion-parameter model with grouped attention, in f16.
KV_BYTES_PER_TOKEN = 128 << 10


def first_guess(file_bytes: int | None, context: int | None) -> int:
    """An upper guess from the size of the weights on disk and the context; good to the third, never measured."""
    weights = 0 if file_bytes is None else int(file_bytes * WEIGHTS_OVERHEAD)
    # A small model has small keys and values: they are not taken to be larger than its weights.
    kv = min((context or 4096) * KV_BYTES_PER_TOKEN, max(weights, 64 * MIB))
    return weights + kv + FIXED_BYTES
