"""Where each tensor of a file goes when llama.cpp loads it, and what it takes there.

Layers are counted as llama.cpp does: the repeating ones from 0, and the output as one more after them. What belongs to
the input never leaves the machine's own memory; tables of more than 4 GiB of it, which llama.cpp may read from disk
piece by piece, count in full, as they do in its own record.
"""

import math
import re
from collections.abc import Iterable, Sequence

from gpud.core.errors import GpudError
from gpud.core.modelfile import ModelFile, Tensor
from gpud.core.record import Record, Struct, field

INPUT = -1
HOST_ALIGNMENT = 32
"""Of every tensor in the machine's own memory."""

GPU_ALIGNMENT = 128
"""Of every tensor on an NVIDIA GPU."""

GPU_ROW_PADDING = 512
"""The last row of a quantized tensor is filled up to so many elements on an NVIDIA GPU, which may read past its end."""

REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""Types whose matrices the engine keeps rearranged when an x86 CPU with AVX2 multiplies them.

Nothing grows by that, but embeddings that serve as the output too are then in memory twice, once as each.
``--no-repack`` keeps them once.
"""

_UNQUANTIZED = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_INPUTS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_FIRST_LAYER = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.")
_EVERYWHERE = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")


class OverrideInvalid(GpudError):
    """A pattern for tensors that is none."""

    code = "invalid-option"

    def __init__(self, pattern: str, why: str) -> None:
        super().__init__(
            f'cannot place tensors by the pattern "{pattern}": {why}',
            hint="correct the override; it is a regular expression that is searched for in names of tensors",
        )


class Sizes(Record):
    """The same tensors in the machine's own memory and on a GPU; ``largest`` is the largest matrix among them."""

    host: int = 0
    gpu: int = 0
    largest: int = 0


class Place(Record):
    """A layer's tensors: what moves with the layer, its experts apart, and what an override pins to a device."""

    movable: Sizes = Sizes()
    experts: Sizes = Sizes()
    pinned: tuple[tuple[str, Sizes], ...] = ()


class Weights(Record):
    """All tensors of a file: ``places`` has one entry for each layer and the output at the end.

    ``everywhere`` is what each device with a layer gets a copy of. ``tied`` are the embeddings again, as the output;
    they count apart where the output is elsewhere, where it is loaded before them (``output_first``), and where the CPU
    keeps it ``rearranged``.
    """

    inputs: Place
    places: tuple[Place, ...]
    everywhere: Sizes
    tied: Sizes
    output_first: bool
    rearranged: bool


def sizes(tensor: Tensor) -> Sizes:
    """What one tensor takes, with the padding that each kind of memory wants."""
    on_gpu = tensor.bytes
    missing = -row(tensor) % GPU_ROW_PADDING
    if missing and tensor.kind not in _UNQUANTIZED:
        # Whole blocks are missing, and a block takes the same wherever it is.
        on_gpu += tensor.bytes * missing // max(math.prod(tensor.shape), 1)
    matrix = tensor.bytes if len(tensor.shape) > 1 and not tensor.name.startswith(_INPUTS) else 0
    return Sizes(padded(tensor.bytes, HOST_ALIGNMENT), padded(on_gpu, GPU_ALIGNMENT), matrix)


def row(tensor: Tensor) -> int:
    """Elements that lie beside each other."""
    return tensor.shape[0] if tensor.shape else 1


def rows(tensor: Tensor) -> int:
    return tensor.shape[1] if len(tensor.shape) > 1 else 1


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class _Sum(Struct):
    movable: list[Sizes] = field(default_factory=list)
    experts: list[Sizes] = field(default_factory=list)
    pinned: dict[str, list[Sizes]] = field(default_factory=dict)

    def place(self) -> Place:
        pinned = tuple((buffer, _add(found)) for buffer, found in self.pinned.items())
        return Place(_add(self.movable), _add(self.experts), pinned)


def _add(found: Iterable[Sizes]) -> Sizes:
    host = gpu = largest = 0
    for one in found:
        host += one.host
        gpu += one.gpu
        largest = max(largest, one.largest)
    return Sizes(host, gpu, largest)


def weigh(
    file: ModelFile,
    layers: int,
    predicting: int,
    overrides: Sequence[tuple[str, str]],
    *,
    ties_output: bool,
    output_first: bool,
) -> Weights:
    """Sort the tensors of a file. The last ``predicting`` of its layers are for drafts, and are not loaded."""
    patterns = [(_compiled(pattern), buffer) for pattern, buffer in overrides]
    inputs, everywhere = _Sum(), []
    places = [_Sum() for _ in range(layers + 1)]
    embeddings: Tensor | None = None
    has_output = False
    # LFM2 calls the norm of its output one of its embeddings.
    norm_of_output = not any(tensor.name.startswith("output_norm.") for tensor in file.tensors)
    for tensor in file.tensors:
        name = tensor.name
        if name == "token_embd.weight":
            embeddings = tensor
        has_output = has_output or name == "output.weight"
        number = _layer(name, layers, norm_of_output)
        if number is None or layers - predicting <= number < layers:
            continue
        found = sizes(tensor)
        if name.startswith(_EVERYWHERE):
            everywhere.append(found)
            continue
        target = inputs if number == INPUT else places[number]
        buffer = next((buffer for pattern, buffer in patterns if pattern.search(name)), None)
        if buffer is not None:
            target.pinned.setdefault(buffer, []).append(found)
        elif _EXPERTS.search(name):
            target.experts.append(found)
        else:
            target.movable.append(found)
    tied = Sizes()
    rearranged = False
    if ties_output and embeddings is not None and not has_output:
        once = sizes(embeddings)
        tied = Sizes(once.host, once.gpu, embeddings.bytes)
        rearranged = embeddings.kind in REPACKED and rows(embeddings) % 8 == 0
    return Weights(
        inputs.place(), tuple(one.place() for one in places), _add(everywhere), tied, output_first, rearranged
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OverrideInvalid(pattern, str(error)) from error


def _layer(name: str, layers: int, norm_of_output: bool) -> int | None:
    """The layer that a tensor belongs to, None for one that is not loaded."""
    block = _BLOCK.match(name)
    if block:
        number = int(block[1])
        return number if number < layers and ".nextn." not in name else None
    if name.startswith(_INPUTS):
        return INPUT
    if name.startswith("token_embd_norm.") and norm_of_output:
        return layers
    if name.startswith(_FIRST_LAYER):
        return 0
    return layers
