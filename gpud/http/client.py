"""The connections to engines: made when they are needed, kept for the next request, closed when nobody needs them.

What a request needs besides is made ready here too; how it then goes on is the business of asking.py.
"""

import asyncio
import errno
import re
import socket
import time
from collections.abc import Callable

from gpud.core.facts import Endpoint
from gpud.http.asking import SAFE, Body, Exchange, Response
from gpud.http.connection import read_buffer
from gpud.http.fields import AUTHORIZATION, HOST, UPGRADE, FieldItems, HeadStart, start_head
from gpud.http.limits import ClientLimits
from gpud.http.upstream import ClientConnection, Stage, Trouble, UpstreamFailed, describe
from gpud.http.work import in_task

__all__ = ["Exchange", "Pool", "Response", "Stage", "Trouble", "UpstreamFailed", "describe"]

_TARGET = re.compile(r"[!-~]+")

CROWDED_WAIT_S = 0.01
"""How long to wait before knocking again at a Unix socket whose queue is full: no event tells when it is not."""

ENGINES_KEPT = 64
"""Endpoints change with every start of an engine; of so many the unused ones are forgotten."""


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
    ) -> Exchange:
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
    ) -> Exchange:
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
        if self._timer is not None and not any(engine.idle for engine in self._engines.values()):
            # Its engine has gone: nobody is woken for what is no longer there.
            self._timer.cancel()
            self._timer = None
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
