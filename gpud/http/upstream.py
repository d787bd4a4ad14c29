"""One connection to an engine: takes one answer after another off it, and says how it failed.

It belongs to a pool, which decides whether it is kept; it never sends anything of its own.
"""

import asyncio
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from gpud.core.counts import plural
from gpud.core.facts import Endpoint
from gpud.http.bodies import AnswerChunks, BodyReader, EndlessReader, LengthReader
from gpud.http.connection import Connection, Duplex
from gpud.http.limits import HELD_BYTES, ClientLimits
from gpud.http.memory import HeadMemory
from gpud.http.wire import (
    Malformed,
    ResponseHead,
    is_hopeless,
    read_response_head,
)
from gpud.http.work import Turn, waiter

if TYPE_CHECKING:
    from gpud.http.client import Engine, Pool


class Stage(StrEnum):
    """How far a request had come when it failed."""

    CONNECT = "connect"
    HEADER = "header"
    BODY = "body"


class Trouble(StrEnum):
    """What went wrong."""

    REFUSED = "refused"
    CLOSED = "closed"
    GARBAGE = "garbage"
    TIMED_OUT = "timed-out"
    TOO_LARGE = "too-large"


class UpstreamFailed(Exception):
    """An engine gave no answer, or not all of it. ``str()`` is a sentence that names the endpoint, never its key.

    Up to Stage.HEADER nothing of an answer has been seen. ``sent`` says whether the engine may have begun to work.
    """

    def __init__(self, message: str, stage: Stage, trouble: Trouble, *, sent: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.trouble = trouble
        self.sent = sent


def describe(endpoint: Endpoint) -> str:
    """Where an engine answers, for a message; never its key."""
    if endpoint.socket:
        return endpoint.socket
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"


FRESH_S = 0.2
"""No engine closes a connection for idleness so soon after an answer; later it is looked at before it is used again."""

IDLE, HEAD, BODY, END, DUPLEX = range(5)
"""Where a connection stands."""


class ClientConnection(Connection):
    """One connection to an engine."""

    def __init__(self, pool: "Pool", engine: "Engine", sock: socket.socket) -> None:
        super().__init__(pool.buffer)
        self.pool = pool
        self.engine = engine
        self.where = engine.where
        self.idle_since = 0.0
        self.at = IDLE
        self.head: ResponseHead | None = None
        self.problem: UpstreamFailed | None = None
        self.reader: BodyReader = LengthReader(0)
        self.sink: Callable[[bytes], None] | None = None
        self.reset = False
        self.was_kept = False
        self.broken_by: Exception | None = None
        self.heard = 0.0
        self._socket = sock
        self._pending = bytearray()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._waiter: asyncio.Future[None] | Turn | None = None
        self._method = ""
        self._upgrades = False
        self._is_last = False
        self._largest = pool.limits.head
        self._memory: HeadMemory[ResponseHead] = HeadMemory()

    # The transport's callbacks ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pool.joined(self)

    def received(self, data: bytes) -> None:
        if self.at == BODY:
            self.heard = self.pool.clock()
            if self.sink is not None:
                self.sink(data)
            else:
                self._body_came(data)
        elif self.at == HEAD:
            self._head_came(data)
        elif self.at == DUPLEX:
            assert self.duplex is not None
            self.duplex.received(data)
        else:
            # More than was asked for: whatever it is, the next answer must not be mistaken for it.
            self.abort()

    def eof_received(self) -> bool:
        if self.at == DUPLEX:
            assert self.duplex is not None
            self.read_ended = True
            self.duplex.ended()
            return True
        self._ended_by_peer("closed the connection")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pool.parted(self)
        self.reset = isinstance(exc, ConnectionResetError | BrokenPipeError)
        self._ended_by_peer("broke the connection" if exc is not None else "closed the connection")
        if self.duplex is not None:
            self.duplex.broken()

    # One exchange -----------------------------------------------------------------------------------------------------

    def is_usable(self) -> bool:
        """True while a kept connection stands: nothing has come on it, not even its end."""
        if self.lost or self.transport.is_closing() or self.at != IDLE:
            return False
        if self.pool.clock() - self.idle_since < FRESH_S:
            return True
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def start(self, method: str, upgrades: bool, limits: ClientLimits) -> None:
        """An answer is expected from now on."""
        self.at = HEAD
        self.head = None
        self._method = method
        self._upgrades = upgrades
        self._largest = limits.head
        self.heard = self.pool.clock()

    async def answer_head(self) -> ResponseHead:
        """Wait for the head of the answer. Raises UpstreamFailed."""
        while self.head is None:
            if self.problem is not None:
                raise self.problem
            self._waiter = waiter()
            await self._waiter
        return self.head

    def take(self) -> bytes:
        """What has come of the body."""
        if not self._body_bytes:
            return b""
        pieces, self._body = self._body, []
        self._body_bytes = 0
        if self.at == BODY:
            self.go_on_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def more(self) -> None:
        """Wait until more of the body has come, or it has ended. Raises UpstreamFailed."""
        if self.problem is not None:
            raise self.problem
        if self.at == BODY:
            self.go_on_reading()
            await self._wait()

    @property
    def is_complete(self) -> bool:
        """True once the answer was received to its end."""
        return self.at == END

    def release(self) -> None:
        """The exchange is over: keep the connection if it is clean, else close it."""
        head = self.head
        is_clean = self.at == END and head is not None and head.keep_alive and not self._is_last
        is_clean = is_clean and self.problem is None
        if not is_clean or self.full or self.lost or self.transport.is_closing():
            self.abort()
            return
        self.at = IDLE
        self._body = []
        self._body_bytes = 0
        self.go_on_reading()
        self.pool.keep(self)

    def become_duplex(self) -> Duplex:
        self.at = DUPLEX
        early, self._pending = bytes(self._pending), bytearray()
        return Duplex(self, early)

    def fail(self, what: str, trouble: Trouble) -> None:
        """The answer will not come, or not the rest of it."""
        if self.problem is None and self.at in (HEAD, BODY):
            stage = Stage.HEADER if self.at == HEAD else Stage.BODY
            self.problem = UpstreamFailed(f"the engine at {self.where} {what}", stage, trouble)
        self.abort()
        self._wake()

    def read_all(self) -> None:
        """The body has ended."""
        self.at = END
        self._wake()

    async def _wait(self) -> None:
        self._waiter = waiter()
        await self._waiter

    def _wake(self) -> None:
        waiting = self._waiter
        if waiting is not None:
            self._waiter = None
            if waiting.done():
                return
            if self.problem is not None and isinstance(waiting, Turn):
                waiting.hand_over()
            else:
                waiting.set_result(None)

    def _head_came(self, data: bytes) -> None:
        largest = self._largest.header_bytes
        if self._pending:
            data = bytes(self._pending) + data
            self._pending.clear()
        while True:
            end = data.find(b"\r\n\r\n")
            if end > largest or (end < 0 and len(data) > largest):
                self.fail(f"sent a header of more than {largest >> 10} KiB", Trouble.TOO_LARGE)
                return
            if end < 0:
                self._pending += data
                if data and (problem := is_hopeless(data)):
                    self.fail(f"sent what is not HTTP: {problem}", Trouble.GARBAGE)
                return
            try:
                text = data[:end]
                head = self._memory.find(text) if self._method != "HEAD" else None
                if head is None:
                    head = read_response_head(text, self._method, self._largest)
                    if head.is_plain and self._method != "HEAD":
                        self._memory.keep(text, head)
            except Malformed as problem:
                self.fail(f"sent what is not HTTP: {problem}", Trouble.GARBAGE)
                return
            data = data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                if self._upgrades:
                    self.head = head
                    self._pending += data
                    self.stop_reading()
                    self._wake()
                else:
                    self.fail("changed the protocol without being asked to", Trouble.GARBAGE)
                return
        if head.body_length is not None and len(data) == head.body_length:
            # As good as always for a plain answer: all of it is here.
            self.head = head
            if data:
                self._body.append(data)
                self._body_bytes = len(data)
            self.at = END
            self._wake()
            return
        if head.chunked:
            self.reader = AnswerChunks()
        elif head.body_length is not None:
            self.reader = LengthReader(head.body_length)
        else:
            self.reader = EndlessReader()
            self._is_last = True
        self.at = BODY
        self.heard = self.pool.clock()
        if data or self.reader.ended:
            self._body_came(data)
        # Only now: whoever waits for it goes on within the call.
        self.head = head
        self._wake()

    def _body_came(self, data: bytes) -> None:
        before = len(self._body)
        self.feed(data, self._body)
        self._body_bytes += sum(map(len, self._body[before:]))
        if self._body_bytes > HELD_BYTES and self.at == BODY:
            self.stop_reading()
        self._wake()

    def feed(self, data: bytes, found: list[bytes]) -> bool:
        """Read more of the body. False when it cannot be read; then all is told already."""
        try:
            used = self.reader.feed(data, found)
        except Malformed as problem:
            self.fail(f"sent a body that cannot be read: {problem}", Trouble.GARBAGE)
            return False
        if self.reader.ended:
            if used < len(data):
                # Nothing was asked for that it could be an answer to.
                self._is_last = True
            self.read_all()
        return True

    def _ended_by_peer(self, what: str) -> None:
        if self.at == BODY and isinstance(self.reader, EndlessReader) and not self.lost:
            self.reader.ended = True
            self.read_all()
            if self.sink is not None:
                self.sink(b"")
            return
        if self.at == HEAD:
            self.fail(f"{what} without an answer", Trouble.CLOSED)
        elif self.at == BODY:
            missing = (
                f"; {plural(self.reader.left, 'byte is', 'bytes are')} missing"
                if isinstance(self.reader, LengthReader)
                else ""
            )
            self.fail(f"{what} before its answer was complete{missing}", Trouble.CLOSED)
            if self.sink is not None:
                self.sink(b"")
