"""What the head of a GGUF file says, for a list of models: no tensor is read, and no vocabulary that was seen before.

The content is not trusted: whatever is in the file, the result is a :class:`Glance` or a ``BadModelFile``, in bounded
time and memory.

What is wanted lies on both sides of the vocabulary, which has up to 15 MB and has to be walked string by string: 20 to
50 ms; and whether the file is whole says the last line of the table of tensors, which has to be walked as well. Models
of one family have the same vocabulary and tables as long, so each is walked once: :class:`Stretches` remembers how long
it was and what followed. Where the next file begins its own in the same way, and has the same bytes at its end, it is
the same, or differs in nothing that is wanted here.
"""

import math
import re
import struct
from collections.abc import Collection, Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import TypeVar
from zlib import crc32

from gpud.catalog import gguf
from gpud.catalog.kinds import FILE_TYPES, GUESSED, KINDS
from gpud.catalog.stream import INCOMPLETE, SUSPECT, Allowance, Stream, opened
from gpud.core.catalogue import Purpose
from gpud.core.counts import plural
from gpud.core.record import Record

WINDOW_BYTES = 32 * 1024
"""What is read at once: what comes before the vocabulary fits, and most of what comes after it."""

HEAD_BYTES = 8 * 1024
"""So much of the beginning tells most files of one size from each other: the model's own name is there."""

TEXT_KEPT_BYTES = 1024
"""Longer texts are templates and licenses."""

TEMPLATE_LIMIT_BYTES = 1024 * 1024
"""What is looked through of a template; real ones have up to 20 KB."""

WALKED_AT_LEAST = 1000
"""Shorter arrays of strings are walked each time: that is faster than to look whether they were seen."""

BEGINNING_BYTES = 1024
FOLLOWING_BYTES = 32
LINE_BYTES = 8 + 63 + 4 + 8 * 4
KIND_AND_OFFSET_BYTES = 4 + 8
STRETCHES_KEPT = 512
VARIANTS_KEPT = 8

EMBEDDING_ARCHITECTURES = frozenset(
    (
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "llama-embed",
        "t5encoder",
    )
)
"""These answer with vectors, whatever they are asked."""

POOLING_NONE, POOLING_RANK = 0, 4
CLASSIFIERS = frozenset((b"cls.weight", b"cls.output.weight"))
"""An encoder that has one of these tensors says how well two texts belong together."""

_TOOLS = re.compile(rb"\btools\b")

_LENGTH = struct.Struct("<Q")
_KIND = struct.Struct("<I")


class Role(StrEnum):
    """What a file is among the others. ``ASIDE`` is a GGUF file that is no model and belongs to none."""

    MODEL = "model"
    PROJECTOR = "projector"
    ASIDE = "aside"


class Glance(Record):
    """What one file says of itself. ``part`` is its number among the ``parts`` of a model, from 0. ``head`` is a
    checksum of its beginning: files of one size with different ones are different models."""

    role: Role = Role.MODEL
    architecture: str = ""
    quantization: str = ""
    parameters: str = ""
    trained_context: int | None = None
    purpose: Purpose = Purpose.COMPLETION
    template: bool = False
    tools: bool = False
    part: int = 0
    parts: int = 1
    head: int = 0


class Stretches:
    """How long stretches were that began alike, and what stood at their ends. For one thread."""

    def __init__(self) -> None:
        self._strings: dict[bytes, tuple[tuple[int, bytes], ...]] = {}
        self._tables: dict[bytes, tuple[tuple[int, bytes, frozenset[bytes]], ...]] = {}

    def strings(self, stream: Stream, count: int) -> None:
        """Go on after an array of so many strings."""
        begin = stream.at
        mark = blake2b(_LENGTH.pack(count) + stream.peek(BEGINNING_BYTES), digest_size=12).digest()
        known = self._strings.get(mark, ())
        for length, following in known:
            if length + len(following) <= stream.left_bytes:
                stream.skip(length)
                if stream.peek(len(following)) == following:
                    return
                stream.back_to(begin)
        stream.skip_strings(count)
        following = stream.peek(FOLLOWING_BYTES)
        if len(following) == FOLLOWING_BYTES:
            _keep(self._strings, mark, (stream.at - begin, following))

    def tensors(self, stream: Stream, count: int, wanted: Collection[bytes]) -> tuple[bytes, frozenset[bytes]]:
        """Go on after a table of so many tensors: its last line, and which of the ``wanted`` names there are. Kinds and
        offsets may be others than they were: names and shapes are what makes a line as long as it is.
        """
        begin = stream.at
        mark = _LENGTH.pack(count) + _fixed(stream.peek(LINE_BYTES))
        for distance, fixed, found in self._tables.get(mark, ()):
            if distance + len(fixed) + KIND_AND_OFFSET_BYTES <= stream.left_bytes:
                stream.skip(distance)
                if stream.peek(len(fixed)) == fixed:
                    return stream.take(len(fixed) + KIND_AND_OFFSET_BYTES), found
                stream.back_to(begin)
        last_at, last, found = stream.last_tensor(count, wanted)
        if last:
            _keep(self._tables, mark, (last_at - begin, last[:-KIND_AND_OFFSET_BYTES], found))
        return last, found


def _fixed(line: bytes) -> bytes:
    """The beginning of a line of the table of tensors, without its kind and its offset."""
    if len(line) < LINE_BYTES:
        return line
    length = min(_LENGTH.unpack_from(line)[0], 63)
    dimensions = min(_KIND.unpack_from(line, 8 + length)[0], 4)
    return line[: 12 + length + 8 * dimensions]


_End = TypeVar("_End")


def _keep(ends: dict[bytes, tuple[_End, ...]], mark: bytes, end: _End) -> None:
    """Of variants that differ further on (renamed special tokens, other layers) the latest few are tried."""
    if len(ends) >= STRETCHES_KEPT:
        ends.clear()
    ends[mark] = (end, *ends.get(mark, ()))[:VARIANTS_KEPT]


def glance(path: str, stretches: Stretches) -> Glance:
    """What the file says of itself. Raises BadModelFile, which says what is wrong with it."""
    with opened(path, Allowance(), WINDOW_BYTES) as stream:
        head = crc32(stream.peek(HEAD_BYTES))
        tensors, pairs = gguf.start(stream)
        values: dict[str, int | float | bool | str] = {}
        marks: set[str] = set()
        for _ in range(pairs):
            _pair(stream, values, marks, stretches)
        architecture = _text(values, "general.architecture")
        wanted = CLASSIFIERS if architecture in EMBEDDING_ARCHITECTURES else frozenset[bytes]()
        stream.doing = f"the table of {plural(tensors, 'tensor', grouped=True)}"
        last, classifiers = stretches.tensors(stream, tensors, wanted)
        part, parts = _whole(values, "split.no") or 0, _whole(values, "split.count") or 1
        role = _role(values, architecture, tensors)
        if role is Role.MODEL and part == 0:
            if not architecture:
                raise stream.bad('it has no "general.architecture": no engine knows how to read it', SUSPECT)
            if not tensors and parts == 1:
                raise stream.bad("it has no tensors, only a vocabulary", "get the model itself")
        if last:
            _must_be_whole(stream, last, _whole(values, "general.alignment") or 32)
        return Glance(
            role,
            architecture,
            _quantization(values),
            _text(values, "general.size_label"),
            _whole(values, f"{architecture}.context_length"),
            _purpose(values, marks, architecture, bool(classifiers)),
            any(mark.startswith("tokenizer.chat_template") for mark in marks),
            "tools" in marks,
            part,
            parts,
            head,
        )


def _pair(stream: Stream, values: dict[str, int | float | bool | str], marks: set[str], stretches: Stretches) -> None:
    """Go on after one entry of the metadata; what may be wanted of it is kept."""
    stream.doing = "a key of its metadata"
    key = gguf.name_of(stream, "key")
    stream.doing = key
    kind = stream.integer(_KIND)
    if kind in gguf.SCALARS:
        (values[key],) = stream.unpack(gguf.SCALARS[kind])
    elif kind == gguf.STRING:
        length = stream.integer(_LENGTH)
        if key.startswith("tokenizer.chat_template"):
            marks.add(key)
            if "tool" in key.rpartition(".")[2] or _TOOLS.search(stream.peek(min(length, TEMPLATE_LIMIT_BYTES))):
                marks.add("tools")
            stream.skip(length)
        elif length > TEXT_KEPT_BYTES:
            stream.skip(length)
        else:
            stream.keep(length)
            values[key] = stream.take(length).decode("utf-8", "replace")
    elif kind == gguf.ARRAY:
        marks.add(key)
        _array(stream, key, stretches)
    else:
        raise stream.bad(f'the value of "{key[:80]}" has the unknown type {kind:,}; 0 to 12 are known')


def _array(stream: Stream, key: str, stretches: Stretches) -> None:
    kind, count = stream.integer(_KIND), stream.integer(_LENGTH)
    if kind in gguf.SCALARS:
        stream.skip(count * gguf.SCALARS[kind].size)
    elif kind != gguf.STRING:
        raise stream.bad(f'the value of "{key[:80]}" is an array of what no engine reads (type {kind:,})')
    elif count < WALKED_AT_LEAST:
        stream.skip_strings(count)
    else:
        stretches.strings(stream, count)


def _must_be_whole(stream: Stream, line: bytes, alignment: int) -> None:
    """Insist that the tensor whose data begins last ends inside of the file."""
    if alignment <= 0 or alignment & (alignment - 1):
        raise stream.bad(f'its "general.alignment" is {alignment}, and has to be a power of two')
    (length,) = _LENGTH.unpack_from(line)
    numbers = line[12 + length :]
    shape = struct.unpack_from(f"<{(len(numbers) - 12) // 8}Q", numbers)
    kind_number, offset = struct.unpack_from("<IQ", numbers, len(numbers) - 12)
    kind = KINDS.get(kind_number)
    size_bytes = math.prod(shape) // kind.block * kind.bytes if kind else 1
    end = -(-stream.at // alignment) * alignment + offset + size_bytes
    if end > stream.size_bytes:
        raise stream.bad(f"its weights reach to byte {end:,}, and the file has {stream.size_bytes:,}", INCOMPLETE)


# What it means -------------------------------------------------------------------------------------------------------

_Values = Mapping[str, int | float | bool | str]


def _text(values: _Values, key: str) -> str:
    """A short text, without anything that a terminal would obey."""
    value = values.get(key, "")
    return value if isinstance(value, str) and len(value) <= 64 and value.isprintable() else ""


def _whole(values: _Values, key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _role(values: _Values, architecture: str, tensors: int) -> Role:
    kind = _text(values, "general.type")
    if kind == "mmproj" or architecture == "clip":
        return Role.PROJECTOR
    if kind in ("imatrix", "vocab") or architecture == "imatrix" or (not tensors and kind == "vocab"):
        return Role.ASIDE
    return Role.MODEL


def _quantization(values: _Values) -> str:
    recipe = values.get("general.file_type")
    return FILE_TYPES.get(recipe & ~GUESSED, "") if isinstance(recipe, int) and not isinstance(recipe, bool) else ""


def _purpose(values: _Values, marks: set[str], architecture: str, classifier: bool) -> Purpose:
    if _text(values, "general.type") == "adapter" or "adapter.type" in values or architecture == "controlvector":
        return Purpose.ADAPTER
    pooling = values.get(f"{architecture}.pooling_type")
    if pooling == POOLING_RANK or classifier or f"{architecture}.classifier.output_labels" in marks:
        return Purpose.RERANKING
    if architecture in EMBEDDING_ARCHITECTURES or (isinstance(pooling, int) and pooling > POOLING_NONE):
        return Purpose.EMBEDDING
    return Purpose.COMPLETION
