"""Messages as gpud sees them, and the frame around them; owns no socket and knows no D-Bus library.

The header is taken apart here, in place of the libraries' own readers: it says how long a message is and how many
descriptors are its own before anything is made of it, and what it does not know it passes over, as the specification
demands (dbus-next would end the connection over a field from the future).
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

BUS_NAME = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"

FIXED_HEADER_BYTES = 16


class Kind(IntEnum):
    """The type of a message; ``OTHER`` stands for those that are not invented yet, which are passed over."""

    OTHER = 0
    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(IntFlag):
    """The flags of a message header."""

    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


class Variant(NamedTuple):
    """A value together with its signature. Compares like any tuple, and belongs to no library."""

    signature: str
    value: Any


@dataclass(slots=True)
class Message:
    """One message, in or out. ``oversize`` and ``damaged`` mark a call whose body was not read."""

    kind: Kind
    serial: int = 0
    flags: Flag = Flag.NONE
    sender: str = ""
    destination: str = ""
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    signature: str = ""
    body: list[Any] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    oversize: bool = False
    damaged: bool = False

    @property
    def wants_reply(self) -> bool:
        return self.kind is Kind.CALL and not self.flags & Flag.NO_REPLY_EXPECTED


def is_unique_name(owner: str) -> bool:
    """Whether a hold's owner is a connection of the bus (an inhibitor's is written with a slash)."""
    return owner.startswith(":") and "/" not in owner


class MalformedMessage(ValueError):
    """A header that breaks the specification; the bus should never have passed it on."""


class Sizes(NamedTuple):
    """What the first 16 bytes of a message say about its length."""

    little_endian: bool
    header_bytes: int
    body_bytes: int


def sizes(start: bytes | bytearray | memoryview) -> Sizes:
    """How long the message is that begins with these 16 bytes. Raises MalformedMessage where nothing can be trusted."""
    mark = start[0]
    if mark not in (0x6C, 0x42):
        raise MalformedMessage(f"a message begins with byte {mark:#x}, which names no byte order")
    little = mark == 0x6C
    body_bytes, fields_bytes = struct.unpack_from("<I4xI" if little else ">I4xI", start, 4)
    header_bytes = FIXED_HEADER_BYTES + fields_bytes
    return Sizes(little, header_bytes + (-header_bytes & 7), body_bytes)


# The header fields by their number: what a Message calls them, and the one type that each may have.
_FIELDS = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_serial", "u"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    8: ("signature", "g"),
    9: ("fd_count", "u"),
}
_FIXED_TYPES = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4}


def parse_header(data: bytes | bytearray | memoryview) -> tuple[Message, int]:
    """The message without its body, and how many file descriptors came with it.

    Fields that are not known are passed over. Raises MalformedMessage.
    """
    order = "<" if data[0] == 0x6C else ">"
    raw_kind, raw_flags = data[1], data[2]
    serial, fields_bytes = struct.unpack_from(f"{order}II", data, 8)
    end = FIXED_HEADER_BYTES + fields_bytes
    found: dict[str, Any] = {}
    position = FIXED_HEADER_BYTES
    try:
        while position < end:
            position += -position & 7
            code = data[position]
            signature, position = _signature(data, position + 1)
            name, wanted = _FIELDS.get(code, ("", ""))
            if name and signature == wanted:
                found[name], position = _value(data, position, signature, order)
            else:
                position, _ = _skip(data, position, signature, 0, order)
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError) as problem:
        raise MalformedMessage(f"a message header cannot be read: {problem}") from None
    fd_count = found.pop("fd_count", 0)
    kind = Kind(raw_kind) if raw_kind <= Kind.SIGNAL else Kind.OTHER
    return Message(kind=kind, serial=serial, flags=Flag(raw_flags & 7), **found), fd_count


def _signature(data: bytes | bytearray | memoryview, position: int) -> tuple[str, int]:
    size = data[position]
    return bytes(data[position + 1 : position + 1 + size]).decode("ascii"), position + size + 2


def _value(data: bytes | bytearray | memoryview, position: int, signature: str, order: str) -> tuple[Any, int]:
    if signature == "g":
        return _signature(data, position)
    position += -position & 3
    (number,) = struct.unpack_from(f"{order}I", data, position)
    if signature == "u":
        return number, position + 4
    return bytes(data[position + 4 : position + 4 + number]).decode(), position + number + 5


def _skip(
    data: bytes | bytearray | memoryview, position: int, signature: str, index: int, order: str
) -> tuple[int, int]:
    """Pass over the value of one complete type: where the next value begins, and the next type in the signature."""
    code = signature[index]
    if code in _FIXED_TYPES:
        width = _FIXED_TYPES[code]
        return position + (-position & (width - 1)) + width, index + 1
    if code in "so":
        return _value(data, position, "s", order)[1], index + 1
    if code == "g":
        return _signature(data, position)[1], index + 1
    if code == "v":
        inner, position = _signature(data, position)
        return _skip(data, position, inner, 0, order)[0], index + 1
    if code == "a":
        position += -position & 3
        (size,) = struct.unpack_from(f"{order}I", data, position)
        position += 4
        if signature[index + 1] in "xtd({":
            position += -position & 7
        return position + size, _type_end(signature, index + 1)
    position += -position & 7
    index += 1
    while signature[index] not in ")}":
        position, index = _skip(data, position, signature, index, order)
    return position, index + 1


def _type_end(signature: str, index: int) -> int:
    while signature[index] == "a":
        index += 1
    depth = 0
    while True:
        depth += (signature[index] in "({") - (signature[index] in ")}")
        index += 1
        if depth == 0:
            return index


def enclose_body(body: bytes, signature: str, *, little_endian: bool) -> bytes:
    """The smallest whole message with this body, for a library that reads only whole messages."""
    order = "<" if little_endian else ">"
    text = signature.encode("ascii")
    fields = b"\x05\x01u\x00" + struct.pack(f"{order}I", 1) + b"\x08\x01g\x00" + bytes([len(text)]) + text + b"\x00"
    head = (b"l" if little_endian else b"B") + bytes([Kind.RETURN, 1, 1])
    head += struct.pack(f"{order}III", len(body), 1, len(fields)) + fields
    return head + b"\x00" * (-len(head) & 7) + body
