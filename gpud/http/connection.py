"""One end of a byte stream, for serving and for reaching engines: reading into a shared buffer, and being made to wait.

It knows nothing of HTTP. Its owner reads by callback; there is no task of its own and no timer.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from gpud.http.limits import BUFFER_BYTES, READ_BYTES


class ClientGone(Exception):
    """The client has left; nothing that is written reaches anybody."""


class PeerGone(Exception):
    """The other end of a :class:`Duplex` has left before everything was said."""


def read_buffer() -> memoryview:
    """What the connections of one loop read into; what was read is taken out before the next one reads."""
    return memoryview(bytearray(READ_BYTES))


class Connection(asyncio.BufferedProtocol):
    """What a transport talks to. ``full`` while the other end takes nothing more."""

    transport: asyncio.Transport

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._room: asyncio.Future[None] | None = None
        self._reading_stopped = False
        self.read_ended = False
        self.full = False
        self.lost = False
        self.duplex: Duplex | None = None
        self.on_full: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES, low=BUFFER_BYTES // 4)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received(bytes(self._buffer[:nbytes]))

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def pause_writing(self) -> None:
        self.full = True
        if self.on_full is not None:
            self.on_full()

    def resume_writing(self) -> None:
        self.full = False
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        if self.on_room is not None:
            self.on_room()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.lost = True
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    async def room(self) -> None:
        """Wait until more can be written, or the connection is lost: the caller looks which."""
        while self.full and not self.lost:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            # Several may wait for one future: none of them may take it down with itself.
            await asyncio.shield(self._room)

    def stop_reading(self) -> None:
        if not self._reading_stopped and not self.read_ended and not self.lost:
            self._reading_stopped = True
            self.transport.pause_reading()

    @property
    def is_held(self) -> bool:
        """True while nothing is read because nobody takes it."""
        return self._reading_stopped

    def go_on_reading(self) -> None:
        if self._reading_stopped and not self.lost:
            self._reading_stopped = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; what is unsent is thrown away."""
        if not self.lost:
            self.transport.abort()


class Duplex:
    """A raw stream in both directions, after an upgrade. One reader, one writer."""

    def __init__(self, connection: Connection, early: bytes = b"") -> None:
        self.connection = connection
        self._waiting = bytearray(early)
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], None] | None = None
        connection.duplex = self

    async def read(self) -> bytes:
        """What has come, at least one byte; empty at the end. Raises PeerGone when the connection broke."""
        while not self._waiting:
            if self._ended:
                return b""
            if self.connection.lost:
                raise PeerGone("the connection was closed")
            self.connection.go_on_reading()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = bytes(self._waiting)
        self._waiting.clear()
        self.connection.go_on_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send; waits while the other end takes nothing. Raises PeerGone."""
        if self.connection.lost:
            raise PeerGone("the connection was closed")
        self.connection.transport.write(data)
        if self.connection.full:
            await self.connection.room()
            if self.connection.lost:
                raise PeerGone("the connection was closed")

    def end(self) -> None:
        """Say that nothing more is sent; the other direction goes on."""
        if not self.connection.lost and self.connection.transport.can_write_eof():
            with contextlib.suppress(OSError):
                self.connection.transport.write_eof()

    def close(self) -> None:
        """Close both directions, after what was written is sent."""
        if not self.connection.lost:
            self.connection.transport.close()

    # What the connection tells.

    def received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink(data)
            return
        self._waiting += data
        if len(self._waiting) >= BUFFER_BYTES:
            self.connection.stop_reading()
        self._wake()

    def ended(self) -> None:
        self._ended = True
        self._wake()

    def broken(self) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


async def tunnel(one: Duplex, other: Duplex) -> None:
    """Pass bytes in both directions until both have ended or either has broken; closes both."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass(one, other))
            group.create_task(_pass(other, one))
    except* PeerGone:
        one.connection.abort()
        other.connection.abort()
    finally:
        one.close()
        other.close()


async def _pass(source: Duplex, sink: Duplex) -> None:
    while data := await source.read():
        await sink.write(data)
    sink.end()
