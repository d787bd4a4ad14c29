"""What a model file says about itself, as far as memory is concerned. Read elsewhere; here are only the records."""

from collections.abc import Mapping

from gpud.core.record import Record

Value = int | float | bool | str | tuple[int | float | bool, ...]
"""One entry of a file's metadata. Of an array of strings (a vocabulary) only the length is kept, as an ``int``."""


class Tensor(Record):
    """``shape`` has the fastest dimension first; ``kind`` is its type's name (``Q4_K``); ``bytes`` what it takes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    bytes: int


class ModelFile(Record):
    """One GGUF model, all of its parts together.

    ``values`` has the metadata under its own keys (``llama.block_count``). ``vocabulary`` is the number of tokens, 0
    where the file has none. ``size_bytes`` is what its parts take on disk.
    """

    architecture: str
    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    vocabulary: int = 0
    size_bytes: int = 0
    parts: int = 1
