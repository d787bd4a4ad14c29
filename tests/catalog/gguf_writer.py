"""Writes GGUF files that claim gigabytes and take kilobytes: a true header, and a hole where the weights would be.

    from catalog import gguf_writer
    gguf_writer.write(path, {"general.architecture": "llama", ...}, [("output.weight", (4096, 32000), "Q6_K"), ...],
                      vocabulary=32000)

Engines load their headers as they load any other (``llama-server`` prints what it would allocate for them).
It knows nothing of gpud's reader, so that each can be tested with the other.
"""

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIGNMENT = 32

KINDS: dict[str, tuple[int, int, int]] = {
    # name: number in the file, elements in a block, bytes of a block
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 36),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
FORMATS = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}

Info = tuple[str, Sequence[int], str]
"""A tensor: its name, its shape with the fastest dimension first, the name of its type."""


@dataclass(frozen=True)
class As:
    """A value, or the elements of an array, of a type that is chosen: ``As(UINT16, 3)``, ``As(INT64, [1, 2])``."""

    kind: int
    value: Any


def write(
    path: str | Path,
    values: Mapping[str, Any],
    tensors: Sequence[Info],
    vocabulary: int | None = None,
    *,
    version: int = 3,
) -> Path:
    """Write a file whose tensors have their true sizes and no content.

    Of ``values`` integers become UINT32 (INT32 when negative, 64 bits wide when they must be), fractions FLOAT32, lists
    and tuples arrays of what is in them; :class:`As` chooses otherwise. ``vocabulary`` adds a tokenizer of so many
    tokens that names none of them; a file with real ones has ``tokenizer.ggml.tokens`` among its values.
    """
    target = Path(path)
    everything = dict(values)
    if vocabulary is not None:
        everything.setdefault("tokenizer.ggml.model", "none")
        everything.setdefault(f"{values['general.architecture']}.vocab_size", vocabulary)
    alignment = everything.get("general.alignment", ALIGNMENT)
    start = header(everything, tensors, version=version, alignment=alignment)
    target.write_bytes(start)
    os.truncate(target, len(start) + sum(padded(tensor_bytes(info), alignment) for info in tensors))
    return target


def write_parts(
    folder: str | Path,
    stem: str,
    values: Mapping[str, Any],
    tensors: Sequence[Sequence[Info]],
    vocabulary: int | None = None,
) -> list[Path]:
    """Write a model in parts, one for each sequence of tensors, named and numbered as engines expect them.

    As llama-gguf-split leaves it: the first part has all the values, the others only what makes them parts.
    """
    count, total = len(tensors), sum(map(len, tensors))
    paths = []
    for number, infos in enumerate(tensors):
        split = {
            "split.no": As(UINT16, number),
            "split.count": As(UINT16, count),
            "split.tensors.count": As(INT32, total),
        }
        own = {**values, **split} if number == 0 else split
        path = Path(folder) / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write(path, own, infos, vocabulary if number == 0 else None))
    return paths


def header(
    values: Mapping[str, Any], tensors: Sequence[Info], *, version: int = 3, alignment: int = ALIGNMENT
) -> bytes:
    """All that comes before the weights, with the padding after it."""
    start = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)))
    for key, content in values.items():
        start += pair(key, content)
    offset = 0
    for info in tensors:
        name, shape, kind = info
        start += tensor_info(name, shape, KINDS[kind][0], offset)
        offset += padded(tensor_bytes(info), alignment)
    return bytes(start + bytes(padded(len(start), alignment) - len(start)))


def tensor_bytes(info: Info) -> int:
    """What a tensor takes in the file, without the padding after it."""
    name, shape, kind = info
    _, block, size = KINDS[kind]
    assert shape[0] % block == 0, f"{name}: a row of {shape[0]} does not consist of whole {kind} blocks of {block}"
    return math.prod(shape) // block * size


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def tensor_info(name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """One line of the tensor table, whatever its numbers are."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def pair(key: str | bytes, content: Any) -> bytes:
    """A key with its type and its value."""
    kind, value = _typed(content)
    if isinstance(value, list | tuple):
        return string(key) + struct.pack("<I", ARRAY) + array(kind, value)
    return string(key) + struct.pack("<I", kind) + scalar(kind, value)


def array(kind: int, items: Sequence[Any]) -> bytes:
    """The type of the elements, their number and they themselves."""
    start = struct.pack("<IQ", kind, len(items))
    if kind == STRING:
        return start + b"".join(map(string, items))
    return start + struct.pack(f"<{len(items)}{FORMATS[kind]}", *items)


def scalar(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + FORMATS[kind], value)


def _typed(content: Any) -> tuple[int, Any]:
    if isinstance(content, As):
        return content.kind, content.value
    if not isinstance(content, list | tuple):
        return _kind([content]), content
    return _kind(content), content


def _kind(items: Sequence[Any]) -> int:
    if any(isinstance(item, str | bytes) for item in items):
        return STRING
    if items and all(isinstance(item, bool) for item in items):
        return BOOL
    if any(isinstance(item, float) for item in items):
        return FLOAT32
    low, high = min(items, default=0), max(items, default=0)
    if low < 0:
        return INT32 if low >= -(2**31) and high < 2**31 else INT64
    return UINT32 if high < 2**32 else UINT64
