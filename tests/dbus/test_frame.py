"""Headers, against the ones that the libraries write and read."""

import importlib
import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from gpud.core.record import replace
from gpud.dbus.bus import LIBRARIES, load_library
from gpud.dbus.frame import MalformedMessage, frame, parse_header, sizes
from gpud.dbus.wire import Flag, Kind, Message

from .test_connection import sender as sender_field
from .test_connection import with_field

_WORD = some.text("abcXYZ_", min_size=1, max_size=20)
_NAME = some.lists(_WORD, min_size=2, max_size=5).map(".".join)
_PATH = some.lists(_WORD, max_size=5).map(lambda words: "/" + "/".join(words))
_UNIQUE = some.integers(0, 1 << 31).map(":1.{}".format)
_SERIAL = some.integers(1, 0xFFFFFFFF)
_FLAGS = some.integers(0, 7).map(Flag)
_SIGNATURE = some.sampled_from(["", "s", "sss", "sa{sv}", "(sa{sv})sa{ss}us", "aa{sv}", "y", "h"])


@some.composite
def messages(draw: some.DrawFn) -> Message:
    """Any message that has what its kind must have."""
    kind = draw(some.sampled_from([Kind.CALL, Kind.RETURN, Kind.ERROR, Kind.SIGNAL]))
    named = kind in (Kind.CALL, Kind.SIGNAL)
    optional = some.one_of(some.just(""), _NAME)
    return Message(
        kind,
        serial=draw(_SERIAL),
        flags=draw(_FLAGS),
        destination=draw(some.one_of(some.just(""), _UNIQUE, _NAME)),
        path=draw(_PATH) if named else "",
        interface=draw(_NAME if kind is Kind.SIGNAL else optional) if named else "",
        member=draw(_WORD) if named else "",
        error_name=draw(_NAME) if kind is Kind.ERROR else "",
        reply_serial=0 if named else draw(_SERIAL),
    )


def written_by(library: str, message: Message) -> bytes:
    """The same message as the library writes it."""
    package = importlib.import_module(library)
    made = package.Message(
        message_type=package.MessageType(message.kind.value),
        serial=message.serial,
        flags=package.MessageFlag(message.flags.value),
        destination=message.destination or None,
        path=message.path or None,
        interface=message.interface or None,
        member=message.member or None,
        error_name=message.error_name or None,
        reply_serial=message.reply_serial or None,
        signature=message.signature,
        body=message.body,
    )
    return bytes(made._marshall(False) if library == "dbus_fast" else made._marshall())


@pytest.mark.parametrize("library", LIBRARIES)
@given(message=messages(), sender=_UNIQUE, text=some.text(some.characters(codec="utf-8", exclude_characters="\0")))
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_header_that_the_library_wrote_is_read(library: str, message: Message, sender: str, text: str) -> None:
    """Every field that a library writes and the sender that the bus adds are found; the body begins where it says."""
    for whole in (message, replace(message, signature="s", body=[text])):
        data = with_field(written_by(library, whole), sender_field(sender))
        size = sizes(data)
        assert size.header_bytes + size.body_bytes == len(data)
        found, fd_count = parse_header(data)
        assert fd_count == 0
        written = replace(whole, sender=sender, body=[])
        assert found == written
        body = load_library(library).decode_body(data[size.header_bytes :], whole.signature, little_endian=True)
        assert body == whole.body


@pytest.mark.parametrize("library", LIBRARIES)
@given(message=messages(), signature=_SIGNATURE, fds=some.integers(0, 3))
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_header_that_is_written_is_read_by_the_library(
    library: str, message: Message, signature: str, fds: int
) -> None:
    """A strict reader finds each field as it was meant."""
    bodies: dict[str, list[Any]] = {
        "": [],
        "s": ["x"],
        "sss": ["x", "", "yz"],
        "sa{sv}": ["x", {}],
        "(sa{sv})sa{ss}us": [["x", {}], "y", {"a": "b"}, 7, "z"],
        "aa{sv}": [[]],
        "y": [9],
        "h": [0],
    }
    whole = replace(message, signature=signature, body=bodies[signature], fds=[7] * fds)
    data = load_library(library).encode(whole)
    unmarshaller = importlib.import_module(f"{library}._private.unmarshaller").Unmarshaller
    found = unmarshaller(io.BytesIO(data)).unmarshall()
    assert found is not None
    for name in ("serial", "destination", "path", "interface", "member", "error_name", "reply_serial", "signature"):
        assert (getattr(found, name) or "") == (getattr(whole, name) or ""), name
    assert (found.message_type.value, found.flags.value) == (whole.kind.value, whole.flags.value)
    assert (
        load_library(library).decode_body(data[sizes(data).header_bytes :], signature, little_endian=True) == whole.body
    )
    read, fd_count = parse_header(data)
    assert (read, fd_count) == (replace(whole, body=[], fds=[]), fds)


CALL = Message(Kind.CALL, serial=7, path="/a", interface="a.b", member="Member", destination=":1.1", signature="s")


@given(where=some.integers(0, 2000), byte=some.integers(0, 255), cut=some.integers(0, 2000))
@settings(max_examples=300, deadline=None)
def test_a_damaged_header_is_read_or_refused(where: int, byte: int, cut: int) -> None:
    """Nothing that could come makes it fail in another way, or read past the header's end."""
    data = bytearray(frame(CALL, b"\x01\0\0\0x\0"))
    data[where % len(data)] = byte
    del data[max(16, cut) :]
    try:
        size = sizes(data)
        message, fd_count = parse_header(bytes(data[: size.header_bytes]))
    except MalformedMessage:
        return
    assert isinstance(message, Message) and fd_count >= 0


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"a.b\0", b"a.bx", "the interface in a message header does not end where it says"),
        (b"a.b\0", b"a\0b\0", "the interface in a message header does not end where it says"),
        (b"Member", b"Memb\xff\xff", "cannot be read"),
        (b"\x01s\0", b"\x01sx", "a signature in a message header does not end where it says"),
        (b"\x03\x01s\0", b"\x0b\x01s\0", "a call without member"),
        (b"\x07\0\0\0", b"\0\0\0\0", "a message with the serial 0"),
    ],
)
def test_a_header_that_breaks_the_specification_is_refused(old: bytes, new: bytes, complaint: str) -> None:
    """The bus never passes one on: who sends it is no bus, and the connection ends."""
    data = frame(CALL, b"")
    assert old in data
    with pytest.raises(MalformedMessage, match=complaint):
        parse_header(data.replace(old, new, 1))


def test_another_version_of_the_protocol_is_refused() -> None:
    """Nothing is known about what its header looks like."""
    with pytest.raises(MalformedMessage, match="protocol version 2, known is 1"):
        sizes(b"l\x01\0\x02" + bytes(12))
