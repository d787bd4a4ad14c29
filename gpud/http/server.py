"""Serves HTTP/1.1: strict about what it reads, bounded in what it keeps, patient only within its limits.

One handler is asked one request after another of each connection, in a task for each request unless it wants none. It
never decides what is served to whom: that is the handler's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from gpud.core.counts import plural
from gpud.http.accepting import Listener
from gpud.http.connection import read_buffer
from gpud.http.departures import Departures
from gpud.http.limits import ServerLimits
from gpud.http.listening import BACKLOG, Address, Listening, PassedSocket, Tls, network_of, open_sockets
from gpud.http.message import Peer, Reply, Request
from gpud.http.serving import LAST_MOMENT_S, NEVER, ServerConnection

Handler = Callable[[Request, Reply], Awaitable[None]]
"""Answers one request. What it raises becomes an answer, if none was begun: Refused its own, anything else a 500."""

Words = Callable[[int, str], tuple[str, bytes]]
"""Makes the answer to what the layer itself refuses: from status and sentence, content type and body."""

SHORTEST_SWEEP_S = 0.05
"""Deadlines that lie closer together than this are looked at together."""


def plain_words(_status: int, message: str) -> tuple[str, bytes]:
    """One line of text."""
    return "text/plain; charset=utf-8", f"{message}\n".encode()


class Server:
    """Listens on any number of addresses, each a door with a name, and asks one handler.

    ``at_once``: the handler is called as soon as a head is there, without a task (see :mod:`gpud.http.work`). It asks
    for one, by ``in_task``, before it uses what needs one.
    """

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        *,
        words: Words = plain_words,
        clock: Callable[[], float] = time.monotonic,
        at_once: bool = False,
    ) -> None:
        self.handler = handler
        self.at_once = at_once
        self.limits = limits or ServerLimits()
        self.words = words
        self.clock = clock
        self.closing = False
        self.departures = Departures()
        self.buffer = read_buffer()
        self._listening: list[Listening] = []
        self._listeners: list[Listener] = []
        self._connections: set[ServerConnection] = set()
        self._per_peer: dict[str, int] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self.sweep_at = NEVER
        self._empty: asyncio.Future[None] | None = None
        self._date = b""
        self._date_s = 0

    # Listening --------------------------------------------------------------------------------------------------------

    async def listen(self, address: Address, *, door: str, tls: Tls | None = None) -> Listening:
        """Listen on one more address. Raises OSError that says what stands in the way."""
        loop = asyncio.get_running_loop()
        context = await loop.run_in_executor(None, tls.context) if tls is not None else None
        sockets = await loop.run_in_executor(None, open_sockets, address)
        listeners = [
            Listener(
                each,
                lambda: ServerConnection(self, door),
                kept=isinstance(address, PassedSocket),
                context=context,
                handshake_s=self.limits.header_s,
                at_once=self.limits.handshakes if context is not None else BACKLOG,
            )
            for each in sockets
        ]
        self._listeners += listeners
        listening = Listening(address, door, listeners, sockets)
        self._listening.append(listening)
        return listening

    @property
    def listening(self) -> tuple[Listening, ...]:
        return tuple(self._listening)

    def stop_listening(self, listening: Listening) -> None:
        """Accept nobody else there; whom it has may go on."""
        listening.close()
        if listening in self._listening:
            self._listening.remove(listening)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def retire(self) -> None:
        """Stop listening and close what is idle; running requests go on, each the last of its connection, and who has
        just come has its moment to ask.
        """
        self.closing = True
        for listening in list(self._listening):
            self.stop_listening(listening)
        for connection in list(self._connections):
            connection.leave_when_idle()

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop listening, close what is idle, let running requests end for up to ``drain_s``, then cut the others.

        When it returns no connection and no handler is left.
        """
        self.retire()
        if drain_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await asyncio.gather(*(listener.settle(LAST_MOMENT_S) for listener in self._listeners))
                    await self._emptied()
        await asyncio.gather(*(listener.ended() for listener in self._listeners))
        self._listeners.clear()
        tasks = []
        for connection in list(self._connections):
            work = connection.work
            connection.cut()
            if work is not None and work.task is not None:
                tasks.append(work.task)
        if tasks:
            await asyncio.wait(tasks)
        await self._emptied()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    async def _emptied(self) -> None:
        """Wait until no connection is left."""
        if not self._connections:
            return
        self._empty = asyncio.get_running_loop().create_future()
        try:
            await self._empty
        finally:
            self._empty = None

    # What connections tell --------------------------------------------------------------------------------------------

    def joined(self, connection: ServerConnection, peer: Peer) -> str:
        """Count one more. Why it cannot stay; empty when it may."""
        self._connections.add(connection)
        key = self._key(peer)
        if key:
            count = self._per_peer[key] = self._per_peer.get(key, 0) + 1
            if count > self.limits.per_peer:
                who = peer.describe() if peer.uid is not None else key
                return f"{who} has {plural(count, 'connection')}, the limit is {self.limits.per_peer}"
        if len(self._connections) > self.limits.connections:
            idle = [each for each in self._connections if each.is_idle and each is not connection]
            if not idle:
                return f"there are {self.limits.connections} connections, and no more are allowed; try again later"
            min(idle, key=lambda each: each.deadline).cut()
        return ""

    def parted(self, connection: ServerConnection, peer: Peer) -> None:
        self._connections.discard(connection)
        key = self._key(peer)
        if key:
            count = self._per_peer.get(key, 0) - 1
            if count > 0:
                self._per_peer[key] = count
            else:
                self._per_peer.pop(key, None)
        if not self._connections:
            if self._sweep is not None:
                self._sweep.cancel()
                self._sweep = None
                self.sweep_at = NEVER
            if self._empty is not None and not self._empty.done():
                self._empty.set_result(None)

    @staticmethod
    def _key(peer: Peer) -> str:
        if peer.uid is not None:
            return f"uid {peer.uid}" if peer.uid else ""
        return "" if peer.is_loopback else network_of(peer.address)

    def expect(self, deadline: float) -> None:
        """A connection has a deadline: be there in time. One timer serves all of them."""
        if deadline < self.sweep_at:
            if self._sweep is not None:
                self._sweep.cancel()
            self.sweep_at = deadline
            wait_s = max(deadline - self.clock(), SHORTEST_SWEEP_S)
            self._sweep = asyncio.get_running_loop().call_later(wait_s, self._on_timer)

    def _on_timer(self) -> None:
        self._sweep = None
        self.sweep_at = NEVER
        self.sweep(self.clock())

    def sweep(self, now_s: float) -> None:
        """End what has passed its deadline, and look again when the next one is due."""
        earliest = NEVER
        for connection in list(self._connections):
            if connection.deadline <= now_s:
                connection.overdue(now_s)
            earliest = min(earliest, connection.deadline)
        if earliest < NEVER:
            self.expect(max(earliest, now_s + SHORTEST_SWEEP_S))

    def date(self) -> bytes:
        """The Date line, made anew once a second at most."""
        now = int(time.time())
        if now != self._date_s:
            self._date_s = now
            # In English: gpud sets no locale.
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
            self._date = b"Date: %b\r\n" % date.encode()
        return self._date
