"""GET /ws of the management API: what happens, one JSON object a message, and a client may say what it wishes.

Server's side of RFC 6455, without extensions. What a client says beyond its wishes is passed over.
"""

import asyncio
import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from enum import IntEnum

import msgspec

from gpud.http.connection import Duplex, PeerGone
from gpud.http.exchange import Exchange
from gpud.http.feed_shapes import WISHED, management, management_kinds, wishes_of
from gpud.http.own import Parts, whole
from gpud.http.routing import Route
from gpud.http.shapes import Api, HttpError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

MESSAGE_BYTES = 64 << 10
"""The longest message of a client that is read; a wish has a hundred bytes."""


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Status(IntEnum):
    """Why a connection is closed."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    TOO_BIG = 1009


class Closed(Exception):
    """Nothing more comes: the client has closed it (``status`` is echoed), or must be told why it is closed."""

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Live:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> tuple[Route, ...]:
        summary = "What happens, over a WebSocket"
        return (Route("GET", "/ws", self._live, Api.MANAGEMENT, summary=summary, tag="watching"),)

    async def _live(self, exchange: Exchange) -> None:
        whole(exchange, "the events")
        headers = handshake(exchange)
        duplex = await exchange.reply.upgrade([*headers, *exchange.headers])
        try:
            await self._serve(duplex)
        except PeerGone:
            return
        finally:
            duplex.close()

    async def _serve(self, duplex: Duplex) -> None:
        reader = Reader(duplex)
        coming: asyncio.Future[bytes] = asyncio.ensure_future(reader.message())
        try:
            wishes: frozenset[str] | None = WISHED
            while wishes is not None:
                wishes, coming = await self._pour(duplex, reader, wishes, coming)
            await duplex.write(frame(Opcode.CLOSE, struct.pack(">H", Status.GOING_AWAY) + b"gpud ends"))
        except Closed as closed:
            await duplex.write(frame(Opcode.CLOSE, struct.pack(">H", closed.status) + closed.reason.encode()))
        finally:
            coming.cancel()

    async def _pour(
        self, duplex: Duplex, reader: "Reader", wishes: frozenset[str], coming: "asyncio.Future[bytes]"
    ) -> tuple[frozenset[str] | None, "asyncio.Future[bytes]"]:
        """Tell what happens until the client has other wishes, which are returned; None: nothing happens any more."""
        feed, beat_s = self._parts.feed, self._parts.settings.heartbeat_s or None
        with feed.subscribe(kinds=management_kinds(wishes), shape=management(wishes)) as subscription:
            following = asyncio.ensure_future(subscription.next())
            try:
                while True:
                    done, _ = await asyncio.wait((coming, following), timeout=beat_s, return_when="FIRST_COMPLETED")
                    if not done:
                        await duplex.write(frame(Opcode.PING))
                    if following.done():
                        message = following.result()
                        if not message:
                            return None, coming
                        await duplex.write(frame(Opcode.TEXT, message))
                        following = asyncio.ensure_future(subscription.next())
                    if coming.done():
                        said = coming.result()
                        coming = asyncio.ensure_future(reader.message())
                        wanted = _wishes(said, wishes)
                        if wanted != wishes:
                            return wanted, coming
            finally:
                following.cancel()


def _wishes(said: bytes, before: frozenset[str]) -> frozenset[str]:
    try:
        value = msgspec.json.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return before
    return wishes_of(value) if isinstance(value, Mapping) else before


def handshake(exchange: Exchange) -> list[tuple[str, str]]:
    """The header of the answer. Raises HttpError for what is no WebSocket's beginning."""
    request = exchange.request
    if request.upgrade.lower() != "websocket":
        raise HttpError(
            426,
            "upgrade_required",
            "/ws is a WebSocket",
            hint="use a WebSocket's client, or GET /events",
            headers={"Upgrade": "websocket"},
        )
    version, key = request.headers.get("sec-websocket-version"), request.headers.get("sec-websocket-key")
    if version != "13":
        raise HttpError(
            426,
            "upgrade_required",
            f"the WebSocket has version {version[:16]!a}",
            hint="13 is spoken here",
            headers={"Sec-WebSocket-Version": "13"},
        )
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise HttpError(400, "invalid_request", "Sec-WebSocket-Key is not 16 bytes in base64")
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    return [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept)]


def frame(opcode: Opcode, data: bytes = b"") -> bytes:
    """One whole frame as a server sends it."""
    size = len(data)
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
    return head + data


class Reader:
    """Takes a client's frames apart, and answers its pings."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._pending = bytearray()

    async def message(self) -> bytes:
        """The next message, text or not. Raises Closed when there will be none."""
        pieces = bytearray()
        begun = False
        while True:
            opcode, is_last, data = await self._frame()
            if opcode == Opcode.CLOSE:
                raise Closed(_echoed(data))
            if opcode == Opcode.PING:
                await self._duplex.write(frame(Opcode.PONG, data))
                continue
            if opcode == Opcode.PONG:
                continue
            if begun is not (opcode == Opcode.CONTINUATION):
                raise Closed(Status.PROTOCOL_ERROR, "a message within a message, or none that goes on")
            begun = True
            pieces += data
            if len(pieces) > MESSAGE_BYTES:
                raise Closed(Status.TOO_BIG, f"a message has {MESSAGE_BYTES} bytes at most")
            if is_last:
                return bytes(pieces)

    async def _frame(self) -> tuple[int, bool, bytes]:
        first, second = await self._take(2)
        opcode, size = first & 0x0F, second & 0x7F
        if first & 0x70 or opcode not in Opcode.__members__.values() or not second & 0x80:
            raise Closed(Status.PROTOCOL_ERROR, "not a frame of a client without extensions")
        if opcode >= Opcode.CLOSE and (size > 125 or not first & 0x80):
            raise Closed(Status.PROTOCOL_ERROR, "a control frame is whole and short")
        if size == 126:
            (size,) = struct.unpack(">H", await self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self._take(8))
        if size > MESSAGE_BYTES:
            raise Closed(Status.TOO_BIG, f"a message has {MESSAGE_BYTES} bytes at most")
        mask = await self._take(4)
        data = await self._take(size)
        return opcode, bool(first & 0x80), bytes(byte ^ mask[index & 3] for index, byte in enumerate(data))

    async def _take(self, size: int) -> bytes:
        while len(self._pending) < size:
            more = await self._duplex.read()
            if not more:
                raise PeerGone("the client has left")
            self._pending += more
        data = bytes(self._pending[:size])
        del self._pending[:size]
        return data


def _echoed(data: bytes) -> int:
    """The status that a client gave with its close."""
    status = struct.unpack(">H", data[:2])[0] if len(data) >= 2 else Status.NORMAL
    return status if 1000 <= status < 5000 and status not in (1005, 1006) else int(Status.PROTOCOL_ERROR)
