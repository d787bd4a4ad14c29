"""Reads GGUF model files: metadata and the table of tensors, of all parts of a model; never a weight.

The content is not trusted: whatever is in the file, the result is a :class:`ModelFile` or a ``BackendFailed`` that says
what is wrong with it, in bounded time and memory.
"""

import math
import re
import struct
from pathlib import Path
from types import MappingProxyType

from gpud.catalog.kinds import KINDS, REMOVED
from gpud.catalog.stream import (
    DIMENSIONS_LIMIT,
    INCOMPLETE,
    NAME_LIMIT_BYTES,
    PAIRS_LIMIT,
    SUSPECT,
    TENSORS_LIMIT,
    Allowance,
    Identity,
    Stream,
    bad_file,
    opened,
    quoted,
    visible,
)
from gpud.core.counts import plural
from gpud.core.errors import BackendFailed
from gpud.core.modelfile import ModelFile, Tensor, Value
from gpud.core.record import Record, Struct, field

PARTS_LIMIT = 1000
"""How many parts a model may have."""

ARRAY_KEPT = 4096
"""Longer arrays of numbers belong to the vocabulary: they are left out. Those by layer are never so long."""

TEXT_KEPT_BYTES = 64 * 1024
"""Longer texts are left out; a chat template has up to 20 KB."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
STRING = 8
ARRAY = 9

_NUMBER_COST_BYTES = 40
"""What one number of an array takes in memory."""

_SHAPES = tuple(struct.Struct(f"<{count}QIQ") for count in range(DIMENSIONS_LIMIT + 1))
"""Dimensions, type and offset of a tensor, by the number of its dimensions."""

PAIRS = ("entry of metadata", "entries of metadata")

_PAIR_LEAST_BYTES = 8 + 4 + 1
_TENSOR_LEAST_BYTES = 8 + 4 + 4 + 8

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def read(path: str | Path) -> ModelFile:
    """The model that this file is, or is a part of.

    Raises BackendFailed(preflight) that names the file, what is wrong with it, the number and its limit.
    """
    return read_parts(str(path))[0]


def read_parts(path: str) -> tuple[ModelFile, tuple[Identity, ...]]:
    """As :func:`read`, and which files it was read from, each in the state in which it was when it was opened."""
    allowance = Allowance()
    given = _read_part(path, allowance)
    count = _integer(given, "split.count", 1)
    if count <= 1:
        return _model((given,))
    stem = _stem(given, count)
    number = _integer(given, "split.no", 0)
    return _model(
        tuple(given if index == number else _other_part(path, stem, index, count, allowance) for index in range(count))
    )


# Parts ---------------------------------------------------------------------------------------------------------------


class _Part(Struct):
    """One file. ``keys`` are all that it has, ``lengths`` those of its arrays of strings."""

    identity: Identity
    keys: set[str] = field(default_factory=set)
    values: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()

    def bad(self, what: str, hint: str = SUSPECT) -> BackendFailed:
        return bad_file(self.identity.path, what, hint)


def _integer(part: _Part, key: str, default: int) -> int:
    value = part.values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or key in part.lengths:
        raise part.bad(f'its "{key}" is no whole number')
    return value


def _stem(part: _Part, count: int) -> str:
    """What the names of all parts begin with, by the name of this one; insists that it agrees with its content."""
    number = _integer(part, "split.no", 0)
    if count > PARTS_LIMIT:
        raise part.bad(f"it says that it is one of {count:,} parts; a model may have {PARTS_LIMIT:,}")
    if not 0 <= number < count:
        raise part.bad(f"it says that it is part {number + 1:,} of {count}")
    name = Path(part.identity.path).name
    ending = f"-{number + 1:05}-of-{count:05}.gguf"
    found = PART.fullmatch(name)
    if not found or not name.endswith(ending):
        raise part.bad(
            f'it says that it is part {number + 1} of {count}, but its name does not end in "{ending}": the other '
            "parts cannot be found",
            "give all parts the names back that they had when they were published",
        )
    return found["stem"]


def _other_part(path: str, stem: str, index: int, count: int, allowance: Allowance) -> _Part:
    """Read it beside the name that was given, not beside what that leads to: stores keep content under its hash."""
    name = f"{stem}-{index + 1:05}-of-{count:05}.gguf"
    try:
        part = _read_part(str(Path(path).with_name(name)), allowance)
    except BackendFailed as problem:
        if not isinstance(problem.__cause__, FileNotFoundError):
            raise
        raise bad_file(
            path,
            f'its part {index + 1} of {count} is missing: there is no "{visible(name)}" beside it',
            "download the missing part into the same folder",
        ) from problem
    _must_belong(part, index, count)
    return part


def _must_belong(part: _Part, index: int, count: int) -> None:
    number, own_count = _integer(part, "split.no", 0), _integer(part, "split.count", 1)
    if (number, own_count) != (index, count):
        raise part.bad(
            f"by its name it is part {index + 1} of {count}, by its content part {number + 1:,} of {own_count:,}",
            "parts of different models, or of different versions, were mixed: download all of them again",
        )


def _model(parts: tuple[_Part, ...]) -> tuple[ModelFile, tuple[Identity, ...]]:
    first = parts[0]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    if len(parts) > 1:
        _must_be_whole(first, parts, tensors)
    architecture = first.values.get("general.architecture", "")
    if not isinstance(architecture, str):
        raise first.bad('its "general.architecture" is no text')
    model = ModelFile(
        architecture=architecture,
        values=MappingProxyType(first.values),
        tensors=tensors,
        vocabulary=_vocabulary(first, architecture),
        size_bytes=sum(part.identity.size_bytes for part in parts),
        parts=len(parts),
    )
    return model, tuple(part.identity for part in parts)


def _must_be_whole(first: _Part, parts: tuple[_Part, ...], tensors: tuple[Tensor, ...]) -> None:
    names: dict[str, str] = {}
    for part in parts:
        for tensor in part.tensors:
            other = names.setdefault(tensor.name, part.identity.path)
            if other != part.identity.path:
                raise part.bad(f'its tensor {quoted(tensor.name)} is also in "{visible(Path(other).name)}"')
    expected = _integer(first, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise first.bad(
            f"it says that its {plural(len(parts), 'part has', 'parts have')} "
            f"{plural(expected, 'tensor', grouped=True)}, and there are {len(tensors):,}",
            "parts of different models, or of different versions, were mixed: download all of them again",
        )


def _vocabulary(part: _Part, architecture: str) -> int:
    tokens = part.lengths.get("tokenizer.ggml.tokens")
    if tokens is not None:
        return tokens
    stated = part.values.get(f"{architecture}.vocab_size", 0)
    return max(stated, 0) if isinstance(stated, int) and not isinstance(stated, bool) else 0


# One file ------------------------------------------------------------------------------------------------------------


def _read_part(path: str, allowance: Allowance) -> _Part:
    with opened(path, allowance) as stream:
        part = _Part(stream.identity)
        tensors, pairs = start(stream)
        for number in range(pairs):
            stream.doing = f"entry {number + 1:,} of {pairs:,} of its metadata"
            _pair(stream, part)
        table = [_tensor(stream, f"tensor {number + 1:,} of {tensors:,}") for number in range(tensors)]
        part.tensors = _placed(stream, table, _alignment(part))
        return part


def start(stream: Stream) -> tuple[int, int]:
    """The number of tensors and of entries of metadata."""
    if stream.size_bytes < 4:
        raise stream.bad(f"it has {plural(stream.size_bytes, 'byte')}, and no GGUF file is so short", INCOMPLETE)
    magic = stream.take(4)
    if magic == bytes(4):
        raise stream.bad("it begins with zeros: its place was made, and what belongs there was not written", INCOMPLETE)
    if magic == b"vers":
        raise stream.bad("it is a pointer of Git LFS, not the file itself", "get what it points to: git lfs pull")
    if magic != b"GGUF":
        raise stream.bad(
            f'it begins with {quoted(magic)} where a GGUF file begins with "GGUF"',
            "models in other formats can be converted with llama.cpp's convert_hf_to_gguf.py",
        )
    version = stream.integer(_U32)
    if version & 0xFFFF == 0 and version:
        raise stream.bad(
            "it is big-endian", "get the little-endian file, or turn it with llama.cpp's gguf_convert_endian"
        )
    if version not in (2, 3):
        raise stream.bad(
            f"it has version {version:,} of the format; 2 and 3 are known",
            "convert it again" if version < 2 else "upgrade gpud, if its engine can read it",
        )
    tensors, pairs = stream.integer(_U64), stream.integer(_U64)
    stream.allowance.tensors -= tensors
    stream.allowance.pairs -= pairs
    for number, left, limit, what in (
        (tensors, stream.allowance.tensors, TENSORS_LIMIT, ("tensor", "tensors")),
        (pairs, stream.allowance.pairs, PAIRS_LIMIT, PAIRS),
    ):
        if left < 0:
            many = plural(number, *what, grouped=True)
            raise stream.bad(f"it says that it has {many}; a model may have {limit:,}, all parts together")
    least = pairs * _PAIR_LEAST_BYTES + tensors * _TENSOR_LEAST_BYTES
    if least > stream.left_bytes:
        entries = plural(pairs, *PAIRS, grouped=True)
        stream.doing = f"the table of {entries} and {plural(tensors, 'tensor', grouped=True)}"
        raise stream.ends(least)
    return tensors, pairs


def _pair(stream: Stream, part: _Part) -> None:
    key = name_of(stream, "key")
    if key in part.keys:
        raise stream.bad(f"the key {quoted(key)} is there twice")
    part.keys.add(key)
    stream.doing = f"the value of {quoted(key)}"
    kind = stream.integer(_U32)
    value: Value | None
    if kind == ARRAY:
        value = _array(stream, part, key)
    elif kind == STRING:
        value = _text(stream)
    elif kind in SCALARS:
        (value,) = stream.unpack(SCALARS[kind])
    else:
        raise stream.bad(f"{stream.doing} has the unknown type {kind:,}; 0 to 12 are known")
    if value is not None:
        part.values[key] = value


def _array(stream: Stream, part: _Part, key: str) -> Value | None:
    kind, count = stream.integer(_U32), stream.integer(_U64)
    if kind == STRING:
        stream.skip_strings(count)
        part.lengths[key] = count
        return count
    if kind not in SCALARS:
        what = "arrays" if kind == ARRAY else f"the unknown type {kind:,}"
        raise stream.bad(f"{stream.doing} is an array of {what}, which no engine reads")
    size = SCALARS[kind].size
    if count > ARRAY_KEPT:
        stream.skip(count * size)
        return None
    stream.keep(count * _NUMBER_COST_BYTES)
    return struct.unpack(f"<{count}{SCALARS[kind].format[-1]}", stream.take(count * size))


def _text(stream: Stream) -> str | None:
    length = stream.integer(_U64)
    if length > TEXT_KEPT_BYTES:
        stream.skip(length)
        return None
    stream.keep(length)
    return stream.take(length).decode("utf-8", "replace")


def name_of(stream: Stream, what: str) -> str:
    length = stream.integer(_U64)
    if length > stream.left_bytes:
        raise stream.ends(length)
    if length > NAME_LIMIT_BYTES:
        raise stream.bad(f"{stream.doing} has a {what} of {length:,} bytes; {NAME_LIMIT_BYTES:,} are allowed")
    stream.keep(length + _NUMBER_COST_BYTES)
    raw = stream.take(length)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise stream.bad(f"{stream.doing} has the {what} {quoted(raw)}, which is not UTF-8") from None


class _Entry(Record):
    """A tensor and where its data begins, counted from the first data of the file."""

    tensor: Tensor
    offset_bytes: int


def _tensor(stream: Stream, doing: str) -> _Entry:
    stream.doing = doing
    name = name_of(stream, "name")
    dimensions = stream.integer(_U32)
    if dimensions > DIMENSIONS_LIMIT:
        raise stream.bad(f"tensor {quoted(name)} has {dimensions:,} dimensions; {DIMENSIONS_LIMIT} are allowed")
    *numbers, kind_number, offset = map(int, stream.unpack(_SHAPES[dimensions]))
    shape = tuple(numbers)
    if 0 in shape:
        raise stream.bad(f"tensor {quoted(name)} has a dimension of 0: its shape is {_shown(shape)}")
    kind = KINDS.get(kind_number)
    if kind is None:
        raise _unknown_kind(stream, name, kind_number)
    row = shape[0] if shape else 1
    if row % kind.block:
        raise stream.bad(
            f"tensor {quoted(name)} has rows of {row:,} elements, and {kind.name} has blocks of {kind.block}"
        )
    size = math.prod(shape) // kind.block * kind.bytes
    return _Entry(Tensor(name, shape, kind.name, size), offset)


def _unknown_kind(stream: Stream, name: str, number: int) -> BackendFailed:
    if number in REMOVED:
        return stream.bad(
            f"tensor {quoted(name)} has type {number} ({REMOVED[number]}), which engines read no longer",
            "get the model in another quantization",
        )
    return stream.bad(
        f"tensor {quoted(name)} has type {number:,}, which is not known; 0 to {max(KINDS)} are",
        "upgrade gpud, if the engine can read this file; otherwise get it anew",
    )


def _alignment(part: _Part) -> int:
    alignment = part.values.get("general.alignment", 32)
    if isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0:
        return alignment
    raise part.bad(f'its "general.alignment" is {str(alignment)[:40]}, and has to be a power of two')


def _placed(stream: Stream, table: list[_Entry], alignment: int) -> tuple[Tensor, ...]:
    """The tensors, when each lies inside the file and apart from the others."""
    start = -(-stream.at // alignment) * alignment
    names: set[str] = set()
    for entry in table:
        tensor = entry.tensor
        if tensor.name in names:
            raise stream.bad(f"the tensor {quoted(tensor.name)} is there twice")
        names.add(tensor.name)
        end = start + entry.offset_bytes + tensor.bytes
        if end > stream.size_bytes:
            raise stream.bad(
                f"tensor {quoted(tensor.name)} reaches to byte {end:,}, and the file has {stream.size_bytes:,}",
                INCOMPLETE,
            )
    before = None
    for entry in sorted(table, key=lambda entry: entry.offset_bytes):
        if before and before.offset_bytes + before.tensor.bytes > entry.offset_bytes:
            raise stream.bad(
                f"the tensors {quoted(before.tensor.name)} and {quoted(entry.tensor.name)} lie over each other: "
                f"{before.tensor.bytes:,} bytes at {before.offset_bytes:,}, and more at {entry.offset_bytes:,}"
            )
        before = entry
    return tuple(entry.tensor for entry in table)


def _shown(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{size:,}" for size in shape)
