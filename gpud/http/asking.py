"""One request to an engine and its answer, which is handed on as it comes. A connection whose last answer did not end
cleanly is never left to a next request.

It never interprets an answer: a 500 is an answer like any other. Only one that is none raises UpstreamFailed.
"""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpud.core.counts import plural
from gpud.http.connection import Duplex
from gpud.http.fields import Fields
from gpud.http.limits import ClientLimits
from gpud.http.upstream import BODY, DUPLEX, ClientConnection, Stage, Trouble, UpstreamFailed
from gpud.http.wire import ResponseHead
from gpud.http.work import in_task

if TYPE_CHECKING:
    from gpud.http.client import Pool, Question

Body = bytes | bytearray | memoryview | AsyncIterator[bytes] | None

SLICE_BYTES = 256 << 10
"""A large body is handed to the kernel in pieces of this size, so that it is not copied as a whole."""

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that may be asked twice."""


class Response:
    """An engine's answer. Its head is here; the body comes when it is asked for, and the engine waits meanwhile.

    ``length`` is what ``Content-Length`` says, None without it. ``kept`` is what was left there with an answer of the
    same head, but for its length, that came on this connection before.
    """

    __slots__ = ("_duplex", "connection", "headers", "kept", "length", "reason", "status")

    def __init__(self, connection: ClientConnection, head: ResponseHead) -> None:
        self.connection = connection
        self.status: int = head.status
        self.reason: str = head.reason
        self.headers: Fields = head.fields
        self.length: int | None = head.length
        self.kept: dict[str, Any] = head.kept
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

    def upgrade(self) -> Duplex:
        """The raw stream behind a 101."""
        if self.status != 101:
            raise RuntimeError(f"cannot change the protocol: the answer is {self.status}, not 101")
        if self._duplex is None:
            self._duplex = self.connection.become_duplex()
        return self._duplex


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
        pool: "Pool",
        question: "Question",
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
                raise ValueError(f"the body is {plural(self._length - sent, 'byte')} shorter than was promised")
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
