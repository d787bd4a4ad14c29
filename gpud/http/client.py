"""Asks engines over HTTP/1.1 and hands their answers on as they come. It keeps connections, and never reuses one whose
last answer did not end cleanly.

It never interprets an answer: a 500 is an answer like any other. Only one that is none raises UpstreamFailed.
"""

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from enum import Enum, StrEnum, auto
from types import TracebackType

from gpud.core.facts import Endpoint
from gpud.http.connection import Connection, Duplex, read_buffer
from gpud.http.limits import BUFFER_BYTES, ClientLimits
from gpud.http.wire import (
    BodyReader,
    ChunkedReader,
    EndlessReader,
    FieldItems,
    Fields,
    LengthReader,
    Malformed,
    ResponseHead,
    is_hopeless,
    read_response_head,
    write_head,
)

Body = bytes | bytearray | memoryview | AsyncIterator[bytes] | None

SLICE_BYTES = 256 << 10
"""A large body is handed to the kernel in pieces of this size, so that it is not copied as a whole."""

CROWDED_WAIT_S = 0.01
"""How long to wait before knocking again at a Unix socket whose queue is full: no event tells when it is not."""

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that may be asked twice."""


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


class Pool:
    """The connections to all engines. To be used in one loop; :meth:`close` leaves none behind."""

    def __init__(self, limits: ClientLimits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or ClientLimits()
        self.clock = clock
        self.buffer = read_buffer()
        self._idle: dict[Endpoint, list[ClientConnection]] = {}
        self._all: set[ClientConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        *,
        headers: FieldItems = (),
        body: Body = None,
        length: int | None = None,
        limits: ClientLimits | None = None,
        repeatable: bool = False,
    ) -> "Exchange":
        """To be entered: ``async with pool.request(…) as response``. Leaving closes the connection at once unless the
        answer was read to its end.

        ``target`` is a path with its query, as it goes out behind the endpoint's base path. ``Host``,
        ``Content-Length``, ``Connection`` and the engine's key are added here, and replace what the headers say of
        ``Host`` and, where there is a key, ``Authorization``. A streamed body is sent chunked unless its ``length`` is
        given. ``repeatable`` says that the request may be sent twice although its method is not safe.
        """
        return Exchange(self, endpoint, method, target, headers, body, length, limits or self.limits, repeatable)

    def drop(self, endpoint: Endpoint) -> None:
        """Close the idle connections to an endpoint, before its engine is stopped."""
        for connection in self._idle.pop(endpoint, []):
            connection.abort()

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    @property
    def connections(self) -> int:
        return len(self._all)

    async def close(self) -> None:
        """Close everything, also what is in use."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        if self._all:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty

    # What exchanges and connections use -------------------------------------------------------------------------------

    def take_idle(self, endpoint: Endpoint) -> "ClientConnection | None":
        """A kept connection that still stands: the one that was used last."""
        kept = self._idle.get(endpoint)
        while kept:
            connection = kept.pop()
            if not kept:
                del self._idle[endpoint]
            if connection.is_usable():
                return connection
            connection.abort()
        return None

    async def connect(self, endpoint: Endpoint, limits: ClientLimits) -> "ClientConnection":
        loop = asyncio.get_running_loop()
        where = describe(endpoint)
        try:
            async with asyncio.timeout(limits.connect_s):
                sock = await _connected_socket(loop, endpoint)
                try:
                    connection = ClientConnection(self, endpoint, where, sock)
                    await loop.create_connection(lambda: connection, sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise UpstreamFailed(
                f"cannot connect to {where}: no answer within {limits.connect_s:g} s",
                Stage.CONNECT,
                Trouble.TIMED_OUT,
                sent=False,
            ) from None
        except OSError as problem:
            raise UpstreamFailed(
                f"cannot connect to {where}: {problem.strerror or problem}", Stage.CONNECT, Trouble.REFUSED, sent=False
            ) from None
        return connection

    def joined(self, connection: "ClientConnection") -> None:
        self._all.add(connection)

    def parted(self, connection: "ClientConnection") -> None:
        self._all.discard(connection)
        kept = self._idle.get(connection.endpoint)
        if kept is not None and connection in kept:
            kept.remove(connection)
            if not kept:
                del self._idle[connection.endpoint]
        if not self._all and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def keep(self, connection: "ClientConnection") -> None:
        """Have the connection ready for a next request."""
        kept = self._idle.setdefault(connection.endpoint, [])
        kept.append(connection)
        connection.idle_since = self.clock()
        if len(kept) > self.limits.idle:
            kept.pop(0).abort()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.idle_s, self._close_old)

    def _close_old(self) -> None:
        self._timer = None
        now = self.clock()
        next_s = None
        for endpoint, kept in list(self._idle.items()):
            while kept and kept[0].idle_since + self.limits.idle_s <= now + 0.001:
                kept.pop(0).abort()
            if not kept:
                del self._idle[endpoint]
            else:
                due = kept[0].idle_since + self.limits.idle_s
                next_s = due if next_s is None else min(next_s, due)
        if next_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(next_s - now, 0.05), self._close_old)


async def _connected_socket(loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> socket.socket:
    if endpoint.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        where: str | tuple[object, ...] = endpoint.socket
    else:
        # Engines are reached by address; a name would be looked up in a thread.
        found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        if not endpoint.socket:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, where)
            return sock
        while True:
            try:
                sock.connect(where)
            except OSError as problem:
                if problem.errno != errno.EAGAIN:
                    raise
                await asyncio.sleep(CROWDED_WAIT_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


class _At(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    END = auto()
    DUPLEX = auto()


class ClientConnection(Connection):
    """One connection to an engine."""

    def __init__(self, pool: Pool, endpoint: Endpoint, where: str, sock: socket.socket) -> None:
        super().__init__(pool.buffer)
        self.pool = pool
        self.endpoint = endpoint
        self.where = where
        self.idle_since = 0.0
        self.at = _At.IDLE
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
        self._waiter: asyncio.Future[None] | None = None
        self._method = ""
        self._upgrades = False
        self._largest = pool.limits.head

    # The transport's callbacks ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.pool.joined(self)

    def received(self, data: bytes) -> None:
        if self.at is _At.BODY:
            self.heard = self.pool.clock()
            if self.sink is not None:
                self.sink(data)
            else:
                self._body_came(data)
        elif self.at is _At.HEAD:
            self._head_came(data)
        elif self.at is _At.DUPLEX:
            assert self.duplex is not None
            self.duplex.received(data)
        else:
            # More than was asked for: whatever it is, the next answer must not be mistaken for it.
            self.abort()

    def eof_received(self) -> bool:
        if self.at is _At.DUPLEX:
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
        if self.lost or self.transport.is_closing() or self.at is not _At.IDLE:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def start(self, method: str, upgrades: bool, limits: ClientLimits) -> None:
        """An answer is expected from now on."""
        self.at = _At.HEAD
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
            await self._wait()
        return self.head

    def take(self) -> bytes:
        """What has come of the body."""
        if not self._body_bytes:
            return b""
        pieces, self._body = self._body, []
        self._body_bytes = 0
        if self.at is _At.BODY:
            self.go_on_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def more(self) -> None:
        """Wait until more of the body has come, or it has ended. Raises UpstreamFailed."""
        if self.problem is not None:
            raise self.problem
        if self.at is _At.BODY:
            self.go_on_reading()
            await self._wait()

    @property
    def is_complete(self) -> bool:
        """True once the answer was received to its end."""
        return self.at is _At.END

    def release(self) -> None:
        """The exchange is over: keep the connection if it is clean, else close it."""
        head = self.head
        is_clean = self.at is _At.END and head is not None and head.keep_alive and self.problem is None
        if not is_clean or self.full or self.lost or self.transport.is_closing():
            self.abort()
            return
        self.at = _At.IDLE
        self._body = []
        self._body_bytes = 0
        self.go_on_reading()
        self.pool.keep(self)

    def become_duplex(self) -> Duplex:
        self.at = _At.DUPLEX
        early, self._pending = bytes(self._pending), bytearray()
        return Duplex(self, early)

    def fail(self, what: str, trouble: Trouble) -> None:
        """The answer will not come, or not the rest of it."""
        if self.problem is None and self.at in (_At.HEAD, _At.BODY):
            stage = Stage.HEADER if self.at is _At.HEAD else Stage.BODY
            self.problem = UpstreamFailed(f"the engine at {self.where} {what}", stage, trouble)
        self.abort()
        self._wake()

    def read_all(self) -> None:
        """The body has ended."""
        self.at = _At.END
        self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _head_came(self, data: bytes) -> None:
        pending = self._pending
        pending += data
        while True:
            end = pending.find(b"\r\n\r\n")
            if end > self._largest.header_bytes or (end < 0 and len(pending) > self._largest.header_bytes):
                self.fail(f"sent a header of more than {self._largest.header_bytes >> 10} KiB", Trouble.TOO_LARGE)
                return
            if end < 0:
                if problem := is_hopeless(pending):
                    self.fail(f"sent what is not HTTP: {problem}", Trouble.GARBAGE)
                return
            try:
                head = read_response_head(bytes(pending[:end]), self._method, self._largest)
            except Malformed as problem:
                self.fail(f"sent what is not HTTP: {problem}", Trouble.GARBAGE)
                return
            del pending[: end + 4]
            if head.status >= 200:
                break
            if head.status == 101:
                if self._upgrades:
                    self.head = head
                    self.stop_reading()
                    self._wake()
                else:
                    self.fail("changed the protocol without being asked to", Trouble.GARBAGE)
                return
        rest = bytes(pending)
        pending.clear()
        self.head = head
        if head.chunked:
            self.reader = ChunkedReader()
        elif head.body_length is not None:
            self.reader = LengthReader(head.body_length)
        else:
            self.reader = EndlessReader()
            head.keep_alive = False
        self.at = _At.BODY
        self.heard = self.pool.clock()
        if rest or self.reader.ended:
            self._body_came(rest)
        self._wake()

    def _body_came(self, data: bytes) -> None:
        before = len(self._body)
        if not self.feed(data, self._body):
            return
        self._body_bytes += sum(map(len, self._body[before:]))
        if self._body_bytes > BUFFER_BYTES and self.at is _At.BODY:
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
                assert self.head is not None
                self.head.keep_alive = False
            self.read_all()
        return True

    def _ended_by_peer(self, what: str) -> None:
        if self.at is _At.BODY and isinstance(self.reader, EndlessReader) and not self.lost:
            self.reader.ended = True
            self.read_all()
            if self.sink is not None:
                self.sink(b"")
            return
        if self.at is _At.HEAD:
            self.fail(f"{what} without an answer", Trouble.CLOSED)
        elif self.at is _At.BODY:
            missing = f"; {self.reader.left} bytes are missing" if isinstance(self.reader, LengthReader) else ""
            self.fail(f"{what} before its answer was complete{missing}", Trouble.CLOSED)
            if self.sink is not None:
                self.sink(b"")


class Response:
    """An engine's answer. Its head is here; the body comes when it is asked for, and the engine waits meanwhile.

    ``length`` is what ``Content-Length`` says, None without it.
    """

    __slots__ = ("_duplex", "connection", "headers", "http_version", "length", "reason", "status")

    def __init__(self, connection: ClientConnection, head: ResponseHead) -> None:
        self.connection = connection
        self.status: int = head.status
        self.reason: str = head.reason
        self.headers: Fields = head.fields
        self.length: int | None = head.length
        self.http_version: str = "1.1" if head.version else "1.0"
        self._duplex: Duplex | None = None

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamFailed, also when it is larger than the limit."""
        pieces, total = [], 0
        async for piece in self.chunks():
            pieces.append(piece)
            total += len(piece)
            if total > limit_bytes:
                self.connection.abort()
                raise UpstreamFailed(
                    f"the engine at {self.connection.where} sent more than {limit_bytes} bytes",
                    Stage.BODY,
                    Trouble.TOO_LARGE,
                )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises UpstreamFailed."""
        connection = self.connection
        while True:
            if piece := connection.take():
                yield piece
            elif connection.is_complete:
                return
            else:
                await connection.more()

    @property
    def ended(self) -> bool:
        """True once the whole answer was received (not: read)."""
        return self.connection.is_complete

    def upgrade(self) -> Duplex:
        """The raw stream behind a 101."""
        if self.status != 101:
            raise RuntimeError(f"cannot change the protocol: the answer is {self.status}, not 101")
        if self._duplex is None:
            self._duplex = self.connection.become_duplex()
        return self._duplex

    def abort(self) -> None:
        """Close the connection at once: the engine shall stop."""
        self.connection.abort()


class Exchange:
    """One request and its answer, as an asynchronous context manager."""

    def __init__(
        self,
        pool: Pool,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: FieldItems,
        body: Body,
        length: int | None,
        limits: ClientLimits,
        repeatable: bool,
    ) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self._method = method
        self._body = body
        self._limits = limits
        self._repeatable = repeatable or method in SAFE
        self._length = length
        self._connection: ClientConnection | None = None
        self._sender: asyncio.Task[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._head, self._upgrades = self._make_head(target, headers)

    def _make_head(self, target: str, headers: FieldItems) -> tuple[bytes, bool]:
        endpoint = self._endpoint
        whole = endpoint.base_path.rstrip("/") + target
        if not whole.isascii() or not whole.isprintable() or " " in whole:
            raise ValueError(f"cannot ask for {whole!r}: it contains a space, a control or a non-ASCII character")
        host = "localhost" if endpoint.socket else describe(endpoint)
        fields: list[tuple[str | bytes, str | bytes]] = [("Host", host)]
        upgrades = False
        for name, value in headers:
            key = (name if isinstance(name, str) else name.decode("latin-1")).lower()
            if key == "host" or (key == "authorization" and endpoint.key):
                continue
            upgrades = upgrades or key == "upgrade"
            fields.append((name, value))
        if endpoint.key:
            fields.append(("Authorization", f"Bearer {endpoint.key}"))
        body = self._body
        if isinstance(body, bytes | bytearray | memoryview):
            self._length = len(body)
            framing = b"Content-Length: %d\r\n" % len(body)
        elif body is None:
            framing = b"" if self._method in SAFE else b"Content-Length: 0\r\n"
        elif self._length is not None:
            framing = b"Content-Length: %d\r\n" % self._length
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
        if upgrades:
            framing += b"Connection: Upgrade\r\n"
        return write_head(f"{self._method} {whole} HTTP/1.1\r\n".encode("ascii"), fields, framing), upgrades

    async def __aenter__(self) -> Response:
        try:
            try:
                return await self._ask(self._pool.take_idle(self._endpoint))
            except UpstreamFailed as problem:
                if not self._may_repeat(problem):
                    raise
                self._let_go()
                return await self._ask(None)
        except BaseException:
            self._let_go()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._sender is None or self._sender.done():
            self._stop_timer()
            self._sender = None
            self._connection = None
            if connection.at is _At.DUPLEX:
                connection.transport.close()
            else:
                connection.release()
            return
        self._let_go()

    def _may_repeat(self, problem: UpstreamFailed) -> bool:
        """True when a kept connection had been closed by the engine before it can have read the request.

        A reset says that it did not read it. After a mere end of the connection it may have, and died of it.
        """
        connection = self._connection
        if connection is None or problem.stage is not Stage.HEADER or problem.trouble is not Trouble.CLOSED:
            return False
        if not connection.was_kept or not (
            self._body is None or isinstance(self._body, bytes | bytearray | memoryview)
        ):
            return False
        return connection.reset or self._repeatable

    def _let_go(self) -> None:
        self._stop_timer()
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _ask(self, connection: ClientConnection | None) -> Response:
        if connection is None:
            connection = await self._pool.connect(self._endpoint, self._limits)
        else:
            connection.was_kept = True
        self._connection = connection
        connection.start(self._method, self._upgrades, self._limits)
        body = self._body
        if body is None:
            connection.transport.write(self._head)
        elif isinstance(body, bytes) and len(body) <= BUFFER_BYTES:
            connection.transport.write(self._head + body)
        else:
            connection.transport.write(self._head)
            self._sender = asyncio.get_running_loop().create_task(self._send(connection, body))
        if self._limits.stall_s is not None:
            self._watch(self._limits.stall_s)
        if self._limits.header_s is None:
            head = await connection.answer_head()
        else:
            try:
                async with asyncio.timeout(self._limits.header_s):
                    head = await connection.answer_head()
            except TimeoutError:
                raise UpstreamFailed(
                    f"the engine at {connection.where} did not answer within {self._limits.header_s:g} s",
                    Stage.HEADER,
                    Trouble.TIMED_OUT,
                ) from None
        return Response(connection, head)

    async def _send(self, connection: ClientConnection, body: Body) -> None:
        """The body, at the speed at which it is taken. Whoever reads the answer learns if that fails."""
        assert body is not None
        if isinstance(body, bytes | bytearray | memoryview):
            view = memoryview(body)
            for start in range(0, len(view), SLICE_BYTES):
                if connection.lost:
                    return
                connection.transport.write(view[start : start + SLICE_BYTES])
                await connection.room()
            return
        sent = 0
        try:
            async for piece in body:
                if not piece:
                    continue
                if connection.lost:
                    return
                sent += len(piece)
                if self._length is None:
                    connection.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                elif sent > self._length:
                    raise ValueError(f"the body is longer than the {self._length} bytes that were promised")
                else:
                    connection.transport.write(piece)
                await connection.room()
            if self._length is None:
                connection.transport.write(b"0\r\n\r\n")
            elif sent < self._length:
                raise ValueError(f"the body is {self._length - sent} bytes shorter than was promised")
        except Exception as problem:
            connection.broken_by = problem
            connection.fail("was not sent the whole request", Trouble.CLOSED)

    def _watch(self, stall_s: float) -> None:
        connection = self._connection
        assert connection is not None
        now = self._pool.clock()
        due = connection.heard + stall_s
        if connection.at is _At.BODY and due <= now and not connection.is_held:
            connection.fail(f"sent nothing for {stall_s:g} s in the middle of its answer", Trouble.TIMED_OUT)
            if connection.sink is not None:
                connection.sink(b"")
            return
        wait_s = max(due - now, 0.05) if connection.at is _At.BODY else stall_s
        self._stall_timer = asyncio.get_running_loop().call_later(wait_s, self._watch, stall_s)

    def _stop_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
