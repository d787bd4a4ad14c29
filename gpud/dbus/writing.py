"""Bodies as bytes, for those that hold many records: the libraries take tens of microseconds for each entry of one, and
there may be thousands of models with thirty entries each. What the libraries write is what is written here.
"""

import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gpud.dbus.wire import Variant

_PADDING = tuple(b"\0" * number for number in range(8))
_SIZE = struct.Struct("<I")
_FIXED = {
    "y": (1, struct.Struct("<B")),
    "b": (4, struct.Struct("<I")),
    "n": (2, struct.Struct("<h")),
    "q": (2, struct.Struct("<H")),
    "i": (4, struct.Struct("<i")),
    "u": (4, struct.Struct("<I")),
    "x": (8, struct.Struct("<q")),
    "t": (8, struct.Struct("<Q")),
    "d": (8, struct.Struct("<d")),
    "h": (4, struct.Struct("<I")),
}
_EIGHT = frozenset("xtd({")

ENTRIES_KEPT = 4096
"""Most entries of most records say the same: of so many it is remembered what their bytes are."""

SIGNATURES = frozenset(("aa{sv}", "a{sv}", "sa{sv}as", "v"))
"""The bodies that are written here."""


class Encoded:
    """Records of a list, which knows their bytes: those of each without its length."""

    def contents(self) -> Iterable[bytes]:
        raise NotImplementedError


def write(signature: str, values: Collection[Any], clean: Callable[[str], str]) -> bytes:
    """The bytes of these values. ``clean`` makes of a text one that the bus accepts. Raises ValueError, TypeError,
    AttributeError or struct.error for what does not fit the signature.
    """
    types = list(_types(signature))
    if len(types) != len(values):
        raise ValueError(f'{len(values)} values do not fit "{signature}"')
    writer = Writer(clean)
    out = bytearray()
    for type_, value in zip(types, values, strict=True):
        writer.put(out, type_, value)
    return bytes(out)


def _types(signature: str) -> Iterable[str]:
    position = 0
    while position < len(signature):
        end = _end(signature, position)
        yield signature[position:end]
        position = end


def _end(signature: str, position: int) -> int:
    """Where the complete type ends that begins here."""
    code = signature[position]
    if code == "a":
        return _end(signature, position + 1)
    if code in "({":
        position += 1
        while signature[position] not in ")}":
            position = _end(signature, position)
    return position + 1


class Writer:
    """Writes values one behind the other. What it writes into begins at a multiple of eight."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._entries: dict[tuple[str, Variant], bytes] = {}

    def put(self, out: bytearray, type_: str, value: Any) -> None:
        code = type_[0]
        if code in _FIXED:
            width, packer = _FIXED[code]
            out += _PADDING[-len(out) & (width - 1)]
            out += packer.pack(value)
        elif code in "so":
            self._text(out, value)
        elif code == "g":
            out += bytes((len(value),)) + value.encode("ascii") + b"\0"
        elif code == "v":
            signature, inner = value
            out += bytes((len(signature),)) + signature.encode("ascii") + b"\0"
            self.put(out, signature, inner)
        elif code == "a":
            self._array(out, type_[1:], value)
        elif code == "(":
            out += _PADDING[-len(out) & 7]
            for inner_type, inner in zip(_types(type_[1:-1]), value, strict=True):
                self.put(out, inner_type, inner)
        else:
            raise ValueError(f'"{type_}" is not written here')

    def _text(self, out: bytearray, value: str) -> None:
        raw = self._clean(value).encode()
        out += _PADDING[-len(out) & 3] + _SIZE.pack(len(raw)) + raw + b"\0"

    def _array(self, out: bytearray, inner: str, value: Any) -> None:
        out += _PADDING[-len(out) & 3]
        where = len(out)
        out += b"\0\0\0\0"
        if inner[0] in _EIGHT:
            out += _PADDING[-len(out) & 7]
        start = len(out)
        if inner == "{sv}":
            out += self.record(value)
        elif inner[0] == "{":
            key_type, value_type = _types(inner[1:-1])
            for key, item in value.items():
                out += _PADDING[-len(out) & 7]
                self.put(out, key_type, key)
                self.put(out, value_type, item)
        elif inner == "a{sv}":
            for content in value.contents() if isinstance(value, Encoded) else map(self.record, value):
                out += _PADDING[-len(out) & 3] + _SIZE.pack(len(content))
                out += _PADDING[-len(out) & 7]
                out += content
        else:
            for item in value:
                self.put(out, inner, item)
        _SIZE.pack_into(out, where, len(out) - start)

    def record(self, record: Mapping[str, Variant]) -> bytes:
        """The entries alone, without the length in front."""
        out = bytearray()
        for key, variant in record.items():
            out += _PADDING[-len(out) & 7]
            out += self.entry(key, variant)
        return bytes(out)

    def entry(self, key: str, variant: Variant) -> bytes:
        if isinstance(variant.value, list | dict | Encoded):
            return self._made(key, variant)
        known = self._entries.get((key, variant))
        if known is None:
            known = self._made(key, variant)
            if len(known) <= 64:
                if len(self._entries) >= ENTRIES_KEPT:
                    self._entries.clear()
                self._entries[key, variant] = known
        return known

    def _made(self, key: str, variant: Variant) -> bytes:
        out = bytearray()
        self._text(out, key)
        self.put(out, "v", variant)
        return bytes(out)
