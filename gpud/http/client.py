"""Asks engines over HTTP/1.1 and hands their answers on as they come. It keeps connections, and never reuses one whose
last answer did not end cleanly.

It never interprets an answer: a 500 is an answer like any other. Only one that is none raises UpstreamFailed.
"""

import asyncio
import errno
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from gpud.core.facts import Endpoint
from gpud.http.connection import Duplex, read_buffer
from gpud.http.fields import AUTHORIZATION, HOST, UPGRADE, FieldItems, Fields, HeadStart, start_head
from gpud.http.limits import ClientLimits
from gpud.http.upstream import BODY, DUPLEX, ClientConnection, Stage, Trouble, UpstreamFailed, describe
from gpud.http.wire import ResponseHead
from gpud.http.work import in_task

__all__ = ["Exchange", "Pool", "Response", "Stage", "Trouble", "UpstreamFailed", "describe"]

_TARGET = re.compile(r"[!-~]+")

Body = bytes | bytearray | memoryview | AsyncIterator[bytes] | None

SLICE_BYTES = 256 << 10
"""A large body is handed to the kernel in pieces of this size, so that it is not copied as a whole."""

CROWDED_WAIT_S = 0.01
"""How long to wait before knocking again at a Unix socket whose queue is full: no event tells when it is not."""

ENGINES_KEPT = 64
"""Endpoints change with every start of an engine; of so many the unused ones are forgotten."""

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that may be asked twice."""


class Engine:
    """What is the same for all requests to one endpoint, and the connections that are kept for them."""

    __slots__ = ("base", "endpoint", "idle", "is_dropped", "lines", "where", "without")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.where = describe(endpoint)
        self.base = endpoint.base_path.rstrip("/")
        self.idle: list[ClientConnection] = []
        self.is_dropped = False
        own: list[tuple[str | bytes, str | bytes]] = [("Host", "localhost" if endpoint.socket else self.where)]
        if endpoint.key:
            own.append(("Authorization", f"Bearer {endpoint.key}"))
        self.lines = start_head(b"", own).text
        self.without = frozenset((HOST, AUTHORIZATION) if endpoint.key else (HOST,))


class Question:
    """A request but for its body, made ready once for any number of bodies."""

    __slots__ = ("engine", "head", "method", "target", "upgrades")

    def __init__(self, engine: Engine, method: str, target: str, head: HeadStart, upgrades: bool) -> None:
        self.engine = engine
        self.method = method
        self.target = target
        self.head = head
        self.upgrades = upgrades

    def is_for(self, endpoint: Endpoint, target: str) -> bool:
        """Whether it asks this, and still may."""
        engine = self.engine
        if engine.is_dropped or target != self.target:
            return False
        return engine.endpoint is endpoint or engine.endpoint == endpoint


class Pool:
    """The connections to all engines. To be used in one loop; :meth:`close` leaves none behind."""

    def __init__(self, limits: ClientLimits | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or ClientLimits()
        self.clock = clock
        self.buffer = read_buffer()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engines: dict[Endpoint, Engine] = {}
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
        given; what it raises comes out of the entering. ``repeatable`` says that the request may be sent twice although
        its method is not safe. With an ``Upgrade`` among the headers the engine may answer 101.
        """
        question = self.question(endpoint, method, target, headers)
        return self.ask(question, body=body, length=length, limits=limits, repeatable=repeatable)

    def question(self, endpoint: Endpoint, method: str, target: str, headers: FieldItems) -> Question:
        """What :meth:`request` makes of these, to be handed to :meth:`ask`."""
        engine = self._engines.get(endpoint) or self._engine(endpoint)
        whole = engine.base + target
        if _TARGET.fullmatch(whole) is None:
            raise ValueError(f"cannot ask for {whole!r}: it contains a space, a control or a non-ASCII character")
        first = b"%b %b HTTP/1.1\r\n%b" % (method.encode("ascii"), whole.encode("ascii"), engine.lines)
        head = start_head(first, headers, engine.without)
        return Question(engine, method, target, head, b"\r\n" + UPGRADE in head.text)

    def ask(
        self,
        question: Question,
        *,
        body: Body = None,
        length: int | None = None,
        limits: ClientLimits | None = None,
        repeatable: bool = False,
    ) -> "Exchange":
        """As :meth:`request`."""
        if isinstance(body, bytes | bytearray | memoryview):
            length = len(body)
            framing = b"Content-Length: %d\r\n" % length
        elif body is None:
            framing = b"" if question.method in SAFE else b"Content-Length: 0\r\n"
        elif length is not None:
            framing = b"Content-Length: %d\r\n" % length
        else:
            framing = b"Transfer-Encoding: chunked\r\n"
        if question.upgrades:
            framing += b"Connection: Upgrade\r\n"
        return Exchange(
            self, question, question.head.finished(framing), body, length, limits or self.limits, repeatable
        )

    def drop(self, endpoint: Endpoint) -> None:
        """Close the idle connections to an endpoint, before its engine is stopped."""
        engine = self._engines.pop(endpoint, None)
        if engine is not None:
            engine.is_dropped = True
            while engine.idle:
                engine.idle.pop().abort()

    @property
    def idle_connections(self) -> int:
        return sum(len(engine.idle) for engine in self._engines.values())

    @property
    def connections(self) -> int:
        return len(self._all)

    async def close(self) -> None:
        """Close everything, also what is in use."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for endpoint in list(self._engines):
            self.drop(endpoint)
        for connection in list(self._all):
            connection.abort()
        if self._all:
            self._empty = asyncio.get_running_loop().create_future()
            await self._empty

    # What exchanges and connections use -------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The one loop in which the pool is used."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _engine(self, endpoint: Endpoint) -> Engine:
        """A new one. Those of engines that are long gone are forgotten."""
        if len(self._engines) >= ENGINES_KEPT:
            for unused in [engine for engine in self._engines.values() if not engine.idle]:
                # What is in use there is not kept: nothing would close it.
                self.drop(unused.endpoint)
        engine = self._engines[endpoint] = Engine(endpoint)
        return engine

    async def connect(self, engine: Engine, limits: ClientLimits) -> "ClientConnection":
        await in_task()
        loop = asyncio.get_running_loop()
        where = engine.where
        try:
            async with asyncio.timeout(limits.connect_s):
                sock = await _connected_socket(loop, engine.endpoint)
                try:
                    connection = ClientConnection(self, engine, sock)
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
        idle = connection.engine.idle
        if connection in idle:
            idle.remove(connection)
        if not self._all and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def keep(self, connection: "ClientConnection") -> None:
        """Have the connection ready for a next request."""
        engine = connection.engine
        if engine.is_dropped:
            # On its way out.
            connection.abort()
            return
        idle = engine.idle
        idle.append(connection)
        connection.idle_since = self.clock()
        if len(idle) > self.limits.idle:
            idle.pop(0).abort()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limits.idle_s, self._close_old)

    def _close_old(self) -> None:
        self._timer = None
        now = self.clock()
        next_s = None
        for engine in self._engines.values():
            while engine.idle and engine.idle[0].idle_since + self.limits.idle_s <= now + 0.001:
                engine.idle.pop(0).abort()
            if engine.idle:
                due = engine.idle[0].idle_since + self.limits.idle_s
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


class Response:
    """An engine's answer. Its head is here; the body comes when it is asked for, and the engine waits meanwhile.

    ``length`` is what ``Content-Length`` says, None without it. ``kept`` is what was left there with an answer of the
    same head, but for its length, that came on this connection before.
    """

    __slots__ = ("_duplex", "connection", "headers", "http_version", "kept", "length", "reason", "status")

    def __init__(self, connection: ClientConnection, head: ResponseHead) -> None:
        self.connection = connection
        self.status: int = head.status
        self.reason: str = head.reason
        self.headers: Fields = head.fields
        self.length: int | None = head.length
        self.kept: dict[str, Any] = head.kept
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

    __slots__ = (
        "_body",
        "_connection",
        "_engine",
        "_head",
        "_length",
        "_limits",
        "_pool",
        "_question",
        "_repeatable",
        "_sender",
        "_stall_timer",
    )

    def __init__(
        self,
        pool: Pool,
        question: Question,
        head: bytes,
        body: Body,
        length: int | None,
        limits: ClientLimits,
        repeatable: bool,
    ) -> None:
        self._pool = pool
        self._question = question
        self._engine = question.engine
        self._head = head
        self._body = body
        self._length = length
        self._limits = limits
        self._repeatable = repeatable
        self._connection: ClientConnection | None = None
        self._sender: asyncio.Task[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Response:
        try:
            idle = self._engine.idle
            connection = None
            while idle and connection is None:
                # The one that was used last.
                connection = idle.pop()
                if not connection.is_usable():
                    connection.abort()
                    connection = None
            if connection is None:
                return await self._ask(await self._pool.connect(self._engine, self._limits))
            connection.was_kept = True
            try:
                return await self._ask(connection)
            except UpstreamFailed as problem:
                if not self._may_repeat(problem):
                    raise
            self._let_go()
            return await self._ask(await self._pool.connect(self._engine, self._limits))
        except UpstreamFailed as problem:
            broken_by = self._connection.broken_by if self._connection is not None else None
            self._let_go()
            if broken_by is not None:
                raise broken_by from problem
            raise
        except BaseException:
            self._let_go()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if connection is None or (self._sender is not None and not self._sender.done()):
            self._let_go()
            return
        if self._stall_timer is not None:
            self._stop_timer()
        self._sender = self._connection = None
        if connection.at == DUPLEX:
            connection.transport.close()
        else:
            connection.release()

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
        return connection.reset or self._repeatable or self._question.method in SAFE

    def _let_go(self) -> None:
        self._stop_timer()
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _ask(self, connection: ClientConnection) -> Response:
        self._connection = connection
        connection.start(self._question.method, self._question.upgrades, self._limits)
        body = self._body
        if body is None:
            connection.transport.write(self._head)
        elif isinstance(body, bytes) and len(body) <= SLICE_BYTES:
            connection.transport.write(self._head + body)
        else:
            connection.transport.write(self._head)
            self._sender = asyncio.get_running_loop().create_task(self._send(connection, body))
        limits = self._limits
        head = await (
            connection.answer_head() if limits.header_s is None else self._bounded_head(connection, limits.header_s)
        )
        # A plain answer that came with its head needs no watch, as most do not.
        if connection.at == BODY and limits.stall_s is not None:
            self._watch(limits.stall_s)
        return Response(connection, head)

    async def _bounded_head(self, connection: ClientConnection, within_s: float) -> ResponseHead:
        await in_task()
        try:
            async with asyncio.timeout(within_s):
                return await connection.answer_head()
        except TimeoutError:
            raise UpstreamFailed(
                f"the engine at {connection.where} did not answer within {within_s:g} s",
                Stage.HEADER,
                Trouble.TIMED_OUT,
            ) from None

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
        """While a body comes: fail when nothing of it has come for so long, unless nobody takes it."""
        connection = self._connection
        assert connection is not None
        self._stall_timer = None
        if connection.at != BODY:
            return
        now = self._pool.clock()
        if connection.is_held:
            # The engine is not heard because its client is slow; when it is heard again its time begins anew.
            connection.heard = now
        wait_s = connection.heard + stall_s - now
        if wait_s <= 0:
            connection.fail(f"sent nothing for {stall_s:g} s in the middle of its answer", Trouble.TIMED_OUT)
            if connection.sink is not None:
                connection.sink(b"")
            return
        self._stall_timer = asyncio.get_running_loop().call_later(wait_s, self._watch, stall_s)

    def _stop_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
