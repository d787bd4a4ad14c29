"""The connection itself, against the other end of a socket pair: what a bus, or a peer through it, might do to it."""

import array
import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gpud.dbus import connection as limits
from gpud.dbus.bus import load_library
from gpud.dbus.connection import Connection, ConnectionGone, ReplyError
from gpud.dbus.frame import sizes
from gpud.dbus.wire import Kind, Message, Variant

LIBRARY = load_library()


def call(number: int, signature: str = "", body: list[Any] | None = None, **fields: Any) -> Message:
    return Message(
        Kind.CALL,
        serial=number,
        path="/a",
        interface="a.b",
        member="M",
        destination=":1.1",
        signature=signature,
        body=body or [],
        **fields,
    )


def with_field(data: bytes, field: bytes) -> bytes:
    """The same message with one more header field (its bytes, from its code on)."""
    (size,) = struct.unpack_from("<I", data, 12)
    header, body = data[: 16 + size], data[16 + size + (-size & 7) :]
    longer = header + b"\0" * (-len(header) & 7) + field
    return longer[:12] + struct.pack("<I", len(longer) - 16) + longer[16:] + b"\0" * (-len(longer) & 7) + body


def sender(name: str) -> bytes:
    """The header field that only the bus adds."""
    return b"\x07\x01s\0" + struct.pack("<I", len(name)) + name.encode() + b"\0"


class Wire:
    """A connection, the other end of its socket, and what came out of it."""

    def __init__(self, library: str) -> None:
        ours, self.far = socket.socketpair()
        ours.setblocking(False)
        self.far.setblocking(False)
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.look: Callable[[Message], object] = lambda _message: None
        self.refused: list[Message] = []
        self.refuse = False
        self.connection = Connection(load_library(library), ours, self._take, self._admit)
        self.answer_bytes = 0

    def _take(self, message: Message) -> None:
        self.look(message)
        self.received.put_nowait(message)
        if self.answer_bytes:
            self.connection.send(
                Message(
                    Kind.RETURN,
                    reply_serial=message.serial,
                    destination=":1.2",
                    signature="s",
                    body=["x" * self.answer_bytes],
                )
            )

    def _admit(self, head: Message) -> bool:
        if self.refuse:
            self.refused.append(head)
        return not self.refuse

    async def put(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def get(self) -> Message:
        return await asyncio.wait_for(self.received.get(), 50)


@contextlib.asynccontextmanager
async def wire(library: str = "dbus_next") -> AsyncIterator[Wire]:
    made = Wire(library)
    try:
        yield made
    finally:
        made.connection.close()
        made.far.close()


def test_messages_arrive_whole_however_they_are_cut(run: Any, library: str) -> None:
    """A message may come byte by byte, or many in one piece; either way each comes once and in order."""

    async def scenario() -> None:
        async with wire(library) as it:
            options = {"a": Variant("t", 1 << 40), "b": Variant("as", ["x"]), "c": Variant("d", 0.5)}
            data = LIBRARY.encode(call(1, "sa{sv}", ["tiny", options]))
            for byte in data:
                await it.put(bytes([byte]))
                await asyncio.sleep(0)
            assert (await it.get()).body == ["tiny", options]
            await it.put(b"".join(LIBRARY.encode(call(number)) for number in range(2, 202)))
            assert [(await it.get()).serial for _ in range(200)] == list(range(2, 202))

    run(scenario())


def test_big_endian_messages_are_understood(run: Any, library: str) -> None:
    """The bus passes messages on in their sender's byte order."""

    async def scenario() -> None:
        async with wire(library) as it:
            fields = b"\x01\x01o\0\0\0\0\x02/a\0" + b"\0" * 5 + b"\x03\x01s\0\0\0\0\x01M\0" + b"\0" * 6
            fields += b"\x08\x01g\0\x01u\0"
            data = b"B\x01\0\x01" + struct.pack(">III", 4, 9, len(fields)) + fields
            await it.put(data + b"\0" * (-len(data) & 7) + struct.pack(">I", 77))
            message = await it.get()
            assert (message.serial, message.path, message.member, message.body) == (9, "/a", "M", [77])

    run(scenario())


@pytest.mark.parametrize(
    "field",
    [
        b"\xc8\x01s\0\x02\0\0\0hi\0",
        b"\xc8\x01u\0\x07\0\0\0",
        b"\xc8\x02as\0\0\0\0\x06\0\0\0\x01\0\0\0a\0",
        b"\xc8\x01v\0\x01y\0\x09",
        b"\xc8\x04(ys)\0\0\x05\0\0\0\x01\0\0\0b\0",
        b"\x02\x01u\0\x07\0\0\0",
    ],
    ids=["string", "number", "array", "variant", "struct", "wrong type"],
)
def test_a_header_field_that_is_not_known_is_passed_over(run: Any, library: str, field: bytes) -> None:
    """A bus that hands a future client's fields on does not cost the daemon its connection: they are to be ignored."""

    async def scenario() -> None:
        async with wire(library) as it:
            await it.put(with_field(LIBRARY.encode(call(1, "s", ["tiny"])), field) + LIBRARY.encode(call(2)))
            first, second = await it.get(), await it.get()
            assert (first.serial, first.member, first.body, second.serial) == (1, "M", ["tiny"], 2)

    run(scenario())


def test_a_kind_of_message_that_is_not_known_is_passed_over(run: Any, library: str) -> None:
    """So is a message type that is not invented yet."""

    async def scenario() -> None:
        async with wire(library) as it:
            data = bytearray(LIBRARY.encode(call(1)))
            data[1] = 9
            await it.put(bytes(data) + LIBRARY.encode(call(2)))
            assert (await it.get()).serial == 2

    run(scenario())


def test_a_body_that_cannot_be_read_is_marked_and_costs_nothing_else(run: Any, library: str) -> None:
    """The call is still handed on, so that it can be answered with an error."""

    async def scenario() -> None:
        async with wire(library) as it:
            data = bytearray(LIBRARY.encode(call(1, "s", ["tiny"])))
            data[-9:-5] = struct.pack("<I", 4000)
            await it.put(bytes(data) + LIBRARY.encode(call(2)))
            first, second = await it.get(), await it.get()
            assert (first.serial, first.damaged, first.body) == (1, True, [])
            assert (second.serial, second.damaged) == (2, False)

    run(scenario())


def test_a_body_that_is_too_large_is_passed_over_without_being_kept(run: Any, library: str) -> None:
    """The caller can be told before they have come; the bytes go by."""

    async def scenario() -> None:
        async with wire(library) as it:
            large = LIBRARY.encode(call(1, "s", ["x" * (limits.MAX_BODY_BYTES * 20)]))
            await it.put(large[:4096])
            first = await it.get()
            assert (first.serial, first.body) == (1, [])
            assert (
                first.oversize
                == f"its arguments have {20 * limits.MAX_BODY_BYTES + 5} bytes, the limit is {limits.MAX_BODY_BYTES}"
            )
            await it.put(large[4096:] + LIBRARY.encode(call(2)))
            second = await it.get()
            assert (second.serial, second.oversize) == (2, "")

    run(scenario())


@pytest.mark.parametrize("body", [0, 300_000], ids=["small body", "large body"])
def test_the_caller_behind_a_header_that_is_too_large_is_known(run: Any, library: str, body: int) -> None:
    """What it called passes by unread; who it was stands at the end, where the bus put it, and so it can be told."""

    async def scenario() -> None:
        async with wire(library) as it:
            long = call(7, "s", ["x" * body])
            # A header that only looks as if somebody else had sent it, within a field that nobody knows.
            forged = sender(":1.66") + b"\0\0\0"
            field = b"\xc8\x02ay\0\0\0\0" + struct.pack("<I", len(forged)) + forged
            long.path = "/a" * limits.MAX_HEADER_BYTES
            await it.put(with_field(with_field(LIBRARY.encode(long), field), sender(":1.7")))
            await it.put(LIBRARY.encode(call(8)))
            first, second = await it.get(), await it.get()
            assert (first.kind, first.serial, first.sender, first.body) == (Kind.CALL, 7, ":1.7", [])
            assert re.fullmatch(r"its header has 131\d{3} bytes, the limit is 65536", first.oversize)
            assert (second.serial, second.oversize) == (8, "")

    run(scenario())


def test_a_call_that_is_not_admitted_is_seen_without_its_body_and_leaves_nothing(run: Any, library: str) -> None:
    """Its descriptors are closed, its body is not read, and the next call is whole."""

    async def scenario() -> None:
        async with wire(library) as it:
            it.refuse = True
            fd = os.open("/dev/null", os.O_RDONLY)
            data = bytearray(LIBRARY.encode(call(1, "sh", ["tiny", 0], fds=[fd])))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            it.far.sendmsg([data], rights)
            os.close(fd)
            await it.put(LIBRARY.encode(Message(Kind.RETURN, serial=2, reply_serial=99)))
            while not it.refused:
                await asyncio.sleep(0)
            it.refuse = False
            await it.put(LIBRARY.encode(call(3, "s", ["big"])))
            assert [(head.serial, head.signature, head.body, head.fds) for head in it.refused] == [(1, "sh", [], [])]
            assert (await it.get()).body == ["big"]

    run(scenario())


def test_a_header_that_is_too_large_is_passed_over_with_its_descriptors(run: Any) -> None:
    """A path may be megabytes long: the bus lets it through, and it must neither fill our memory nor end us."""

    async def scenario() -> None:
        async with wire() as it:
            fd = os.open("/dev/null", os.O_RDONLY)
            asked = asyncio.create_task(it.connection.call(call(0)))
            await asyncio.sleep(0)
            long = call(1, "h", [0], fds=[fd])
            long.path = "/a" * limits.MAX_HEADER_BYTES
            data = LIBRARY.encode(long)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            sent = it.far.sendmsg([data[:1000]], rights)
            await it.put(data[sent:])
            os.close(fd)
            own = os.open("/dev/zero", os.O_RDONLY)
            reply = LIBRARY.encode(Message(Kind.RETURN, serial=9, reply_serial=1, signature="h", body=[0], fds=[own]))
            it.far.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [own]))])
            os.close(own)
            answer = await asyncio.wait_for(asked, 50)
            assert os.readlink(f"/proc/self/fd/{answer.fds[0]}") == "/dev/zero"
            os.close(answer.fds[0])
            assert it.received.empty()

    run(scenario())


def test_a_descriptor_among_the_credentials_is_closed(run: Any) -> None:
    """Newer buses answer GetConnectionCredentials with one; the test would find it."""

    async def scenario() -> None:
        async with wire() as it:
            asked = asyncio.create_task(it.connection.call_bus("GetConnectionCredentials", "s", [":1.5"]))
            await asyncio.sleep(0)
            fd = os.open("/dev/null", os.O_RDONLY)
            reply = LIBRARY.encode(
                Message(
                    Kind.RETURN,
                    serial=9,
                    reply_serial=1,
                    signature="a{sv}",
                    body=[{"UnixUserID": Variant("u", 7), "ProcessFD": Variant("h", 0)}],
                    fds=[fd],
                )
            )
            data = with_field(reply, sender("org.freedesktop.DBus"))
            it.far.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            os.close(fd)
            assert (await asyncio.wait_for(asked, 50))["UnixUserID"] == Variant("u", 7)

    run(scenario())


def test_what_is_no_message_at_all_ends_the_connection_with_a_reason(run: Any) -> None:
    """Only a broken bus sends that; there is no next message to find."""

    async def scenario() -> None:
        async with wire() as it:
            await it.put(b"GET / HTTP/1.1\r\n\r\n")
            assert "names no byte order" in await asyncio.wait_for(asyncio.shield(it.connection.closed), 50)

    run(scenario())


def test_a_full_buffer_is_waited_for_and_answers_are_bounded(run: Any, library: str) -> None:
    """A peer that asks and does not read: nothing more is read of it; when it reads, every answer comes."""

    async def scenario() -> None:
        async with wire(library) as it:
            it.answer_bytes = 20_000
            asked = 2000
            flood = asyncio.create_task(it.put(b"".join(LIBRARY.encode(call(n)) for n in range(1, asked + 1))))
            quiet = 0
            while quiet < 50:
                before = it.received.qsize()
                await asyncio.sleep(0)
                quiet = quiet + 1 if it.received.qsize() == before else 0
            assert it.received.qsize() < asked / 4
            assert it.connection.unsent_bytes < limits.OUT_PAUSE_BYTES + limits.TURN_MESSAGES * 21_000
            data = bytearray()
            answers = 0
            while answers < asked:
                data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(it.far, 1 << 20), 50)
                while len(data) >= 16 and len(data) >= sum(sizes(data)[1:]):
                    del data[: sum(sizes(data)[1:])]
                    answers += 1
            await flood
            assert it.connection.unsent_bytes == 0 and not it.connection.closed.done()

    run(scenario())


def test_timers_get_their_turn_during_a_flood(run: Any, library: str) -> None:
    """Between any two turns of reading the loop serves others."""

    async def scenario() -> None:
        async with wire(library) as it:
            flood = asyncio.create_task(it.put(b"".join(LIBRARY.encode(call(n)) for n in range(1, 5001))))
            turns = 0
            while it.received.qsize() < 5000:
                before = it.received.qsize()
                await asyncio.sleep(0)
                assert it.received.qsize() - before <= 2 * limits.TURN_MESSAGES
                turns += 1
            assert turns >= 5000 / limits.TURN_MESSAGES / 2
            await flood

    run(scenario())


def test_received_descriptors_are_not_inherited_and_are_closed(run: Any) -> None:
    """No method takes one: what a stranger sends is closed at once, and no child could have got it meanwhile."""

    async def scenario() -> None:
        async with wire() as it:
            reading, writing = os.pipe()
            data = LIBRARY.encode(call(1, "h", [0], fds=[writing]))
            seen: list[bool] = []

            it.look = lambda message: seen.extend(os.get_inheritable(fd) for fd in message.fds)
            rights = array.array("i", [writing])
            it.far.sendmsg([data + LIBRARY.encode(call(2))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(writing)
            first = await it.get()
            assert seen == [False] and first.fds == []
            with open(reading, "rb") as pipe:
                assert await asyncio.to_thread(pipe.read) == b"", "the last copy is closed"

    run(scenario())


def test_descriptors_go_with_their_own_message(run: Any) -> None:
    """Two messages in one piece, one descriptor each: each reply has its own, in order."""

    async def scenario() -> None:
        async with wire() as it:
            calls = [asyncio.create_task(it.connection.call(call(0))) for _ in range(2)]
            await asyncio.sleep(0)
            for serial in (1, 2):
                fd = os.open("/dev/null", os.O_RDONLY)
                reply = Message(Kind.RETURN, serial=9, reply_serial=serial, signature="h", body=[0], fds=[fd])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                it.far.sendmsg([LIBRARY.encode(reply)], rights)
                os.close(fd)
            for answer in await asyncio.gather(*calls):
                assert len(answer.fds) == 1 and os.readlink(f"/proc/self/fd/{answer.fds[0]}") == "/dev/null"
                os.close(answer.fds[0])

    run(scenario())


def test_sent_descriptors_are_closed_once_they_are_sent_or_cannot_be(run: Any) -> None:
    """The test would find one that stays open."""

    async def scenario() -> None:
        async with wire() as it:
            reply = {"reply_serial": 1, "destination": ":1.2", "signature": "h", "body": [0]}
            it.connection.send(Message(Kind.RETURN, fds=[os.open("/dev/null", os.O_RDONLY)], **reply))
            _, ancillary, _, _ = it.far.recvmsg(4096, 100)
            (got,) = array.array("i", ancillary[0][2])
            os.close(got)
            it.connection.close()
            it.connection.send(Message(Kind.RETURN, fds=[os.open("/dev/null", os.O_RDONLY)], **reply))

    run(scenario())


def test_calls_time_out_and_late_replies_are_dropped(run: Any, library: str) -> None:
    """Nobody waits for ever, and nothing is kept for who no longer waits."""

    async def scenario() -> None:
        async with wire(library) as it:
            with pytest.raises(TimeoutError):
                await it.connection.call(call(0), 0.01)
            assert it.connection.open_calls == 0
            late = Message(Kind.RETURN, serial=5, reply_serial=1)
            await it.put(LIBRARY.encode(late) + LIBRARY.encode(call(2)))
            assert (await it.get()).serial == 2

    run(scenario())


def test_an_error_reply_is_raised_with_its_name(run: Any) -> None:
    """And a connection that ends fails every call that waits."""

    async def scenario() -> None:
        async with wire() as it:
            first, second = (asyncio.create_task(it.connection.call(call(0))) for _ in range(2))
            await asyncio.sleep(0)
            refusal = Message(Kind.ERROR, serial=5, reply_serial=1, error_name="a.b.Bad", signature="s", body=["no"])
            await it.put(LIBRARY.encode(refusal))
            with pytest.raises(ReplyError, match=r"a\.b\.Bad: no"):
                await first
            it.far.close()
            with pytest.raises(ConnectionGone, match=r":1\.1 did not answer"):
                await second
            with pytest.raises(ConnectionGone):
                await it.connection.call(call(0))

    run(scenario())


def test_a_reply_in_the_name_of_the_bus_is_believed_only_from_the_bus(run: Any) -> None:
    """Where a bus lets peers answer calls that they were not sent, they cannot answer for it."""

    async def scenario() -> None:
        async with wire() as it:
            asked = asyncio.create_task(it.connection.call_bus("NameHasOwner", "s", [":1.5"]))
            await asyncio.sleep(0)
            forged = LIBRARY.encode(Message(Kind.RETURN, serial=5, reply_serial=1, signature="b", body=[True]))
            true = LIBRARY.encode(Message(Kind.RETURN, serial=6, reply_serial=1, signature="b", body=[False]))
            await it.put(with_field(forged, sender(":1.9")) + with_field(true, sender("org.freedesktop.DBus")))
            assert await asyncio.wait_for(asked, 50) is False

    run(scenario())
