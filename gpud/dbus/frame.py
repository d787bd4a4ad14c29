"""The frame around a message: its header is taken apart and put together here, in place of the libraries' own ways.

A header says how long a message is, how many descriptors are its own and who sent it before anything is made of its
body, so that refusing a call costs a few microseconds. What is not known in it is passed over, as the specification
demands (dbus-next would end the connection over a field from the future).
"""

import contextlib
import functools
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpud.dbus.wire import Flag, Kind, Message

FIXED_HEADER_BYTES = 16


class MalformedMessage(ValueError):
    """A header that breaks the specification; the bus should never have passed it on."""


# Reading -------------------------------------------------------------------------------------------------------------

_LITTLE, _BIG = 0x6C, 0x42
_PROTOCOL = 1
_FIXED = {_LITTLE: struct.Struct("<xBBxIII"), _BIG: struct.Struct(">xBBxIII")}
_LENGTHS = {_LITTLE: struct.Struct("<I4xI"), _BIG: struct.Struct(">I4xI")}
_NUMBER = {_LITTLE: struct.Struct("<I"), _BIG: struct.Struct(">I")}
_KINDS = tuple(Kind)
_FLAGS = tuple(Flag(number) for number in range(8))


class Sizes(NamedTuple):
    """What the first 16 bytes of a message say about its length."""

    little_endian: bool
    header_bytes: int
    body_bytes: int


def sizes(data: bytes | bytearray | memoryview, position: int = 0) -> Sizes:
    """How long the message is whose first 16 bytes stand there. Raises MalformedMessage where they make no sense."""
    mark = data[position]
    if mark not in _LENGTHS:
        raise MalformedMessage(f"a message begins with byte {mark:#x}, which names no byte order")
    if data[position + 3] != _PROTOCOL:
        raise MalformedMessage(f"a message of protocol version {data[position + 3]}, known is {_PROTOCOL}")
    body_bytes, fields_bytes = _LENGTHS[mark].unpack_from(data, position + 4)
    header_bytes = FIXED_HEADER_BYTES + fields_bytes
    return Sizes(mark == _LITTLE, header_bytes + (-header_bytes & 7), body_bytes)


# The header fields by their first bytes, their number and the one type that each may have: what a Message calls them.
_TEXT_FIELDS = {
    b"\x01\x01o\0": "path",
    b"\x02\x01s\0": "interface",
    b"\x03\x01s\0": "member",
    b"\x04\x01s\0": "error_name",
    b"\x06\x01s\0": "destination",
    b"\x07\x01s\0": "sender",
}
_REPLY_SERIAL_FIELD = b"\x05\x01u\0"
_FD_COUNT_FIELD = b"\x09\x01u\0"
_SIGNATURE_FIELD = b"\x08\x01g\0"
_SENDER_FIELD = b"\x07\x01s\0"
_FIXED_TYPES = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4}
_REQUIRED = {
    Kind.CALL: ("path", "member"),
    Kind.RETURN: ("reply_serial",),
    Kind.ERROR: ("reply_serial", "error_name"),
    Kind.SIGNAL: ("path", "interface", "member"),
}


def parse_header(data: bytes) -> tuple[Message, int]:
    """The message without its body, and how many file descriptors came with it.

    Fields that are not known are passed over. Raises MalformedMessage.
    """
    mark = data[0]
    raw_kind, raw_flags, _, serial, fields_bytes = _FIXED[mark].unpack_from(data)
    read = _remembered_fields if fields_bytes <= _REMEMBERED_BYTES else _fields
    try:
        found, fd_count = read(data[FIXED_HEADER_BYTES : FIXED_HEADER_BYTES + fields_bytes], mark)
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError) as problem:
        raise MalformedMessage(f"a message header cannot be read: {problem}") from None
    kind = _KINDS[raw_kind] if raw_kind <= Kind.SIGNAL else Kind.OTHER
    if kind and not serial:
        raise MalformedMessage("a message with the serial 0")
    for name in _REQUIRED.get(kind, ()):
        if not found.get(name):
            raise MalformedMessage(f"a {kind.name.lower()} without {name}")
    return Message(kind, serial, _FLAGS[raw_flags & 7], **found), fd_count


def parse_long_header(start: bytes, tail: bytes) -> Message:
    """What the first 16 bytes of a header and its last ones (a multiple of eight) tell: enough to refuse the message.

    The sender is found where the bus puts it, in the last field; it is empty where it is not there.
    """
    mark = start[0]
    raw_kind, raw_flags, _, serial, fields_bytes = _FIXED[mark].unpack_from(start)
    kind = _KINDS[raw_kind] if raw_kind <= Kind.SIGNAL else Kind.OTHER
    tail = tail[: len(tail) - (-fields_bytes & 7)]
    sender = ""
    position = tail.find(_SENDER_FIELD)
    while position >= 0 and not sender:
        # Whatever looks like it earlier on is part of another field: from there the fields do not come out even.
        with contextlib.suppress(ValueError, IndexError, struct.error, RecursionError):
            sender = "" if position & 7 else _fields(tail[position:], mark)[0]["sender"]
        position = tail.find(_SENDER_FIELD, position + 1)
    return Message(kind, serial, _FLAGS[raw_flags & 7], sender=sender)


def _fields(data: bytes, mark: int) -> tuple[Mapping[str, Any], int]:
    """The known fields by what a Message calls them, and the number of descriptors. They begin at a multiple of eight
    bytes in the message, so that they align by themselves."""
    number = _NUMBER[mark].unpack_from
    found: dict[str, Any] = {}
    fd_count = 0
    position, end = 0, len(data)
    while position < end:
        position += -position & 7
        first = data[position : position + 4]
        if name := _TEXT_FIELDS.get(first):
            start = position + 8
            position = start + number(data, position + 4)[0]
            if data.find(0, start) != position:
                raise MalformedMessage(f"the {name} in a message header does not end where it says")
            found[name] = data[start:position].decode()
            position += 1
        elif first == _REPLY_SERIAL_FIELD:
            found["reply_serial"] = number(data, position + 4)[0]
            position += 8
        elif first == _FD_COUNT_FIELD:
            fd_count = number(data, position + 4)[0]
            position += 8
        elif first == _SIGNATURE_FIELD:
            found["signature"], position = _signature(data, position + 4)
        else:
            signature, position = _signature(data, position + 1)
            position, used = _skip(data, position, signature, 0, mark)
            if used != len(signature):
                raise MalformedMessage(f'a field of a message header has the type "{signature}", which is not one type')
    if position != end:
        raise MalformedMessage("the fields of a message header do not end where it says")
    return found, fd_count


# A program that calls the same method over and over sends the same fields each time: only the serial differs, which is
# not among them. Of so many, each of this size at most, it is remembered what they say.
_REMEMBERED_BYTES = 512
_remembered_fields = functools.lru_cache(maxsize=128)(_fields)


def _signature(data: bytes, position: int) -> tuple[str, int]:
    start = position + 1
    position = start + data[position]
    if data[position]:
        raise MalformedMessage("a signature in a message header does not end where it says")
    return data[start:position].decode("ascii"), position + 1


def _skip(data: bytes, position: int, signature: str, index: int, mark: int) -> tuple[int, int]:
    """Pass over the value of one complete type: where the next value begins, and the next type in the signature."""
    code = signature[index]
    if code in _FIXED_TYPES:
        width = _FIXED_TYPES[code]
        return position + (-position & (width - 1)) + width, index + 1
    if code in "so":
        position += -position & 3
        return position + _NUMBER[mark].unpack_from(data, position)[0] + 5, index + 1
    if code == "g":
        return _signature(data, position)[1], index + 1
    if code == "v":
        inner, position = _signature(data, position)
        return _skip(data, position, inner, 0, mark)[0], index + 1
    if code == "a":
        position += -position & 3
        (size,) = _NUMBER[mark].unpack_from(data, position)
        position += 4
        if signature[index + 1] in "xtd({":
            position += -position & 7
        return position + size, _type_end(signature, index + 1)
    if code not in "({":
        raise MalformedMessage(f'a field of a message header has the type "{signature}", which is none')
    position += -position & 7
    index += 1
    while signature[index] not in ")}":
        position, index = _skip(data, position, signature, index, mark)
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


# Writing -------------------------------------------------------------------------------------------------------------

_PADDING = tuple(b"\0" * number for number in range(8))
_OUT_FIXED = struct.Struct("<BBBBIII")
_OUT_NUMBER = struct.Struct("<I")
_OUT_NUMBER_FIELD = struct.Struct("<4sI")


def frame(message: Message, body: bytes | bytearray) -> bytes:
    """The bytes of the whole message around a body in little-endian order."""
    fields = bytearray()
    if message.reply_serial:
        fields += _OUT_NUMBER_FIELD.pack(_REPLY_SERIAL_FIELD, message.reply_serial)
    for first, value in (
        (b"\x01\x01o\0", message.path),
        (b"\x02\x01s\0", message.interface),
        (b"\x03\x01s\0", message.member),
        (b"\x04\x01s\0", message.error_name),
        (b"\x06\x01s\0", message.destination),
    ):
        if value:
            raw = value.encode()
            fields += _PADDING[-len(fields) & 7] + first + _OUT_NUMBER.pack(len(raw)) + raw + b"\0"
    if message.signature:
        fields += _PADDING[-len(fields) & 7] + _SIGNATURE_FIELD + _signature_bytes(message.signature)
    if message.fds:
        fields += _PADDING[-len(fields) & 7] + _OUT_NUMBER_FIELD.pack(_FD_COUNT_FIELD, len(message.fds))
    fixed = _OUT_FIXED.pack(_LITTLE, message.kind, message.flags, _PROTOCOL, len(body), message.serial, len(fields))
    return b"".join((fixed, fields, _PADDING[-len(fields) & 7], body))


def _signature_bytes(signature: str) -> bytes:
    raw = signature.encode("ascii")
    return bytes((len(raw),)) + raw + b"\0"


def enclose_body(body: bytes, signature: str, *, little_endian: bool) -> bytes:
    """The smallest whole message with this body, for a library that reads only whole messages."""
    order = "<" if little_endian else ">"
    fields = b"\x05\x01u\0" + struct.pack(f"{order}I", 1) + _SIGNATURE_FIELD + _signature_bytes(signature)
    head = bytes((_LITTLE if little_endian else _BIG, Kind.RETURN, Flag.NO_REPLY_EXPECTED, _PROTOCOL))
    head += struct.pack(f"{order}III", len(body), 1, len(fields)) + fields
    return head + _PADDING[-len(head) & 7] + body
