"""Serves HTTP/1.1: strict about what it reads, bounded in what it keeps, patient only within its limits.

One handler is asked one request after another of each connection, in a task for each request. It never decides what is
served to whom: that is the handler's.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from enum import IntEnum

from gpud.http.connection import ClientGone, Connection, Duplex, read_buffer
from gpud.http.departures import Departures
from gpud.http.limits import BUFFER_BYTES, ServerLimits
from gpud.http.listening import Address, Listening, Tls, identify, open_sockets
from gpud.http.message import Peer, Reply, Request
from gpud.http.wire import (
    BodyReader,
    ChunkedReader,
    LengthReader,
    Malformed,
    Refused,
    is_hopeless,
    read_request_head,
    status_line,
    write_head,
)

log = logging.getLogger(__name__)

Handler = Callable[[Request, Reply], Awaitable[None]]
"""Answers one request. What it raises becomes an answer, if none was begun: Refused its own, anything else a 500."""

Words = Callable[[int, str], tuple[str, bytes]]
"""Makes the answer to what the layer itself refuses: from status and sentence, content type and body."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

SHORTEST_SWEEP_S = 0.05
"""Deadlines that lie closer together than this are looked at together."""

NEVER = float("inf")


def plain_words(_status: int, message: str) -> tuple[str, bytes]:
    """One line of text."""
    return "text/plain; charset=utf-8", f"{message}\n".encode()


class Server:
    """Listens on any number of addresses, each a door with a name, and asks one handler."""

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        *,
        words: Words = plain_words,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handler = handler
        self.limits = limits or ServerLimits()
        self.words = words
        self.clock = clock
        self.closing = False
        self.departures = Departures()
        self.buffer = read_buffer()
        self._listening: list[Listening] = []
        self._connections: set[ServerConnection] = set()
        self._per_peer: dict[str, int] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = NEVER
        self._empty: asyncio.Future[None] | None = None
        self._date = b""
        self._date_s = 0

    # Listening --------------------------------------------------------------------------------------------------------

    async def listen(self, address: Address, *, door: str, tls: Tls | None = None) -> Listening:
        """Listen on one more address. Raises OSError that says what stands in the way."""
        loop = asyncio.get_running_loop()
        context = await loop.run_in_executor(None, tls.context) if tls is not None else None
        sockets = await loop.run_in_executor(None, open_sockets, address)
        servers: list[asyncio.Server] = []
        handshake_s = self.limits.header_s if context is not None else None
        try:
            for each in sockets:
                make = lambda: ServerConnection(self, door)  # noqa: E731
                if each.family == socket.AF_UNIX:
                    servers.append(
                        await loop.create_unix_server(make, sock=each, ssl=context, ssl_handshake_timeout=handshake_s)
                    )
                else:
                    servers.append(
                        await loop.create_server(make, sock=each, ssl=context, ssl_handshake_timeout=handshake_s)
                    )
        except BaseException:
            for server in servers:
                server.close()
            for each in sockets:
                each.close()
            raise
        listening = Listening(address, door, servers, sockets)
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

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop listening, close what is idle, let running requests end for up to ``drain_s``, then cut the others.

        When it returns no connection and no handler is left.
        """
        self.closing = True
        for listening in list(self._listening):
            self.stop_listening(listening)
        for connection in list(self._connections):
            connection.leave_when_idle()
        if drain_s > 0:
            await self._emptied(drain_s)
        tasks = []
        for connection in list(self._connections):
            if connection.task is not None:
                tasks.append(connection.task)
            connection.cut()
        if tasks:
            await asyncio.wait(tasks)
        await self._emptied(None)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    async def _emptied(self, within_s: float | None) -> None:
        if not self._connections:
            return
        self._empty = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._empty
        self._empty = None

    # What connections tell --------------------------------------------------------------------------------------------

    def joined(self, connection: "ServerConnection", peer: Peer) -> str:
        """Count one more. Why it cannot stay; empty when it may."""
        self._connections.add(connection)
        key = self._key(peer)
        if key:
            count = self._per_peer[key] = self._per_peer.get(key, 0) + 1
            if count > self.limits.per_peer:
                return f"{peer.describe()} has {count} connections; {self.limits.per_peer} are allowed"
        if len(self._connections) > self.limits.connections:
            idle = [each for each in self._connections if each.is_idle and each is not connection]
            if not idle:
                return f"there are {self.limits.connections} connections, and no more are allowed; try again later"
            min(idle, key=lambda each: each.deadline).cut()
        return ""

    def parted(self, connection: "ServerConnection", peer: Peer) -> None:
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
                self._sweep_at = NEVER
            if self._empty is not None and not self._empty.done():
                self._empty.set_result(None)

    @staticmethod
    def _key(peer: Peer) -> str:
        if peer.uid is not None:
            return f"uid {peer.uid}" if peer.uid else ""
        return "" if peer.is_loopback else peer.address

    def expect(self, deadline: float) -> None:
        """A connection has a deadline: be there in time. One timer serves all of them."""
        if deadline < self._sweep_at:
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep_at = deadline
            wait_s = max(deadline - self.clock(), SHORTEST_SWEEP_S)
            self._sweep = asyncio.get_running_loop().call_later(wait_s, self._on_timer)

    def _on_timer(self) -> None:
        self._sweep = None
        self._sweep_at = NEVER
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
            self._date = b"Date: %b\r\n" % formatdate(now, usegmt=True).encode()
        return self._date


class At(IntEnum):
    """Where a connection stands."""

    HEAD = 0  # between requests, or within a head
    BODY = 1  # a request is being served whose body has not come completely
    BUSY = 2  # a request is being served whose body is here
    DUPLEX = 3  # upgraded
    LINGER = 4  # refused: what still comes is thrown away
    FLUSH = 5  # the last reply is being sent


class ServerConnection(Connection):
    """One client."""

    def __init__(self, server: Server, door: str) -> None:
        super().__init__(server.buffer)
        self.server = server
        self.door = door
        self.peer = Peer(door)
        self.at = At.HEAD
        self.gone = False
        self.half_closed = False
        self.keep_alive = True
        self.speaks_1_1 = True
        self.task: asyncio.Task[None] | None = None
        self.deadline = NEVER
        self.body_ended = True
        self.body_problem: Exception | None = None
        self._reply: Reply | None = None
        self._pending = bytearray()
        self._left: asyncio.Event | None = None
        self._reader: BodyReader = LengthReader(0)
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_waiter: asyncio.Future[None] | None = None
        self._owes_continue = False
        self._progress = 0
        self._stalled_from = 0
        self._stall_deadline = NEVER
        self._read_deadline = NEVER

    # The transport's callbacks ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = identify(transport, self.door)
        problem = self.server.joined(self, self.peer)
        if problem:
            self._refuse(Refused(503, problem), ("Retry-After", "5"))
        elif self.server.closing:
            self.transport.abort()
        else:
            self._set_read_deadline(self.server.clock() + self.server.limits.header_s)

    def received(self, data: bytes) -> None:
        if self.at is At.HEAD:
            self._head_came(data)
        elif self.at is At.BODY:
            self._body_came(data)
        elif self.at is At.DUPLEX:
            assert self.duplex is not None
            self.duplex.received(data)
        elif self.at is At.BUSY:
            self._pending += data
            if len(self._pending) > BUFFER_BYTES:
                self.stop_reading()

    def eof_received(self) -> bool:
        """The client sends nothing more. That alone does not mean that it has left: it may still read."""
        if self.at is At.DUPLEX:
            assert self.duplex is not None
            self.read_ended = not self.peer.is_encrypted
            self.duplex.ended()
            return self.read_ended
        if self.at is not At.BUSY or self.peer.is_encrypted:
            if self.at is not At.FLUSH:
                self._is_gone()
            return self.at is At.FLUSH and not self.peer.is_encrypted
        self.half_closed = self.read_ended = True
        self.server.departures.watch(self.transport.get_extra_info("socket").fileno(), self.abort)
        if self.peer.uid is None:
            self._ask_whether_it_lives()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_gone()
        self.deadline = NEVER
        self.server.parted(self, self.peer)
        if self.duplex is not None:
            self.duplex.broken()

    def abort(self) -> None:
        self._forget_departure()
        super().abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_from = self.transport.get_write_buffer_size()
        self._set_stall_deadline(self.server.clock() + self.server.limits.stall_s)

    def resume_writing(self) -> None:
        if self.at is not At.FLUSH:
            self._set_stall_deadline(NEVER)
        super().resume_writing()
        if self.at is At.HEAD and self._pending:
            self._head_came(b"")

    # Requests ---------------------------------------------------------------------------------------------------------

    def _head_came(self, data: bytes) -> None:
        """More of a head, or of several: the first complete one is served."""
        pending = self._pending
        known = max(len(pending) - 3, 0)
        pending += data
        if pending[:2] == b"\r\n":
            # A line break too many after the last body: old clients send one.
            del pending[:2]
            known = 0
        if self.full:
            # Replies that the client does not read are no reason to make more of them.
            self.stop_reading()
            return
        end = pending.find(b"\r\n\r\n", known)
        limits = self.server.limits.head
        if end < 0:
            self._head_incomplete(pending)
            return
        try:
            if end > limits.header_bytes:
                raise Refused(431, f"the header is {end} bytes long; {limits.header_bytes} are allowed")
            head = read_request_head(bytes(pending[:end]), limits)
        except Refused as problem:
            self._refuse(problem)
            return
        rest = bytes(pending[end + 4 :])
        pending.clear()
        self._deadline_free()
        self.keep_alive = head.keep_alive and not self.server.closing and not self.half_closed
        self.speaks_1_1 = bool(head.version)
        self._left = None
        self._body = []
        self._body_bytes = 0
        self.body_problem = None
        request = Request(self, head, self.peer)
        self._reply = Reply(self, head.method == "HEAD")
        if head.length == 0:
            self.at = At.BUSY
            self.body_ended = True
            self._owes_continue = False
            if rest:
                self.received(rest)
        else:
            self.at = At.BODY
            self.body_ended = False
            self._owes_continue = head.expects
            self._reader = ChunkedReader() if head.length is None else LengthReader(head.length)
            if rest:
                self._body_came(rest)
            if not self.body_ended:
                self._body_awaited()
        self.task = asyncio.get_running_loop().create_task(self._serve(request, self._reply))

    def _head_incomplete(self, pending: bytearray) -> None:
        limits = self.server.limits.head
        if not pending:
            self._be_idle()
            return
        if len(pending) > limits.header_bytes:
            line_end = pending.find(b"\r\n")
            if line_end < 0 or line_end > limits.target_bytes + 64:
                self._refuse(
                    Refused(414, f"the target is longer than the {limits.target_bytes} bytes that are allowed")
                )
            else:
                self._refuse(
                    Refused(431, f"the header is longer than the {limits.header_bytes} bytes that are allowed")
                )
        elif problem := is_hopeless(pending):
            self._refuse(Refused(400, f"this is not an HTTP/1.1 request: {problem}"))
        elif self.deadline == NEVER or self.is_idle_deadline:
            self.is_idle_deadline = False
            self._set_read_deadline(self.server.clock() + self.server.limits.header_s)

    is_idle_deadline = False

    @property
    def is_idle(self) -> bool:
        """True between requests, when nothing of a next one has come."""
        return self.at is At.HEAD and not self._pending

    def _be_idle(self) -> None:
        self.is_idle_deadline = True
        self._set_read_deadline(self.server.clock() + self.server.limits.idle_s)

    async def _serve(self, request: Request, reply: Reply) -> None:
        """Ask the handler, and make an answer of whatever it leaves."""
        try:
            await self.server.handler(request, reply)
            if not reply.ended and not self.gone:
                raise RuntimeError("the handler left " + ("the reply unfinished" if reply.begun else "without a reply"))
        except ClientGone:
            pass
        except Refused as problem:
            self._answer(reply, problem)
        except asyncio.CancelledError:
            if not reply.ended:
                self.abort()
            if not self.gone and not self.server.closing:
                raise
        except Exception:
            if not self.gone:
                log.exception("%s %s was not served: the handler failed", request.method, request.raw_path)
                self._answer(reply, Refused(500, "gpud could not serve this request because of an error of its own"))
            else:
                log.debug("the handler failed after its client had left", exc_info=True)
        finally:
            self.task = None
            self._reply = None
            if self.gone and not self.lost:
                self.abort()
            elif not self.lost and self.at not in (At.DUPLEX, At.LINGER, At.FLUSH):
                self._next()

    def _answer(self, reply: Reply, problem: Refused) -> None:
        """The layer's own answer to a request; cuts the connection when another one was begun."""
        if self.gone or reply.ended:
            return
        if reply.begun:
            self.abort()
            return
        kind, body = self.server.words(problem.status, problem.message)
        if problem.status == 408:
            self.keep_alive = False
        reply.answer(problem.status, (("Content-Type", kind),), body)

    def _refuse(self, problem: Refused, *more: tuple[str, str]) -> None:
        """Answer what is no request, and close: where the next one would begin is not known."""
        kind, body = self.server.words(problem.status, problem.message)
        framing = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
        head = write_head(status_line(problem.status), (("Content-Type", kind), *more), framing, self.server.date())
        self.transport.write(head + body)
        self._pending.clear()
        self._linger()

    # The reply's side -------------------------------------------------------------------------------------------------

    def left_event(self) -> asyncio.Event:
        if self._left is None:
            self._left = asyncio.Event()
            if self.gone:
                self._left.set()
        return self._left

    def closing_words(self) -> bytes:
        """The last line of a reply's head: whether another request may follow."""
        if not self.body_ended and (self.body_problem is not None or self._unread_is_much()):
            self.keep_alive = False
        if self.server.closing:
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        if not self.speaks_1_1:
            return b"Connection: keep-alive\r\n"
        return b""

    def _unread_is_much(self) -> bool:
        """True when more of the body is to come than is worth reading for a next request."""
        if self._owes_continue:
            return True
        return not isinstance(self._reader, LengthReader) or self._reader.left > BUFFER_BYTES

    def flush_soon(self, reply: Reply) -> None:
        asyncio.get_running_loop().call_soon(reply.flush)

    def _next(self) -> None:
        """The reply has ended: close, or read the next request."""
        if not self.body_ended:
            if not self.keep_alive:
                self._linger()
                return
            # Little is left of a body that nobody wanted: it is read and dropped, then the next request may come.
            self._body = []
            self._body_bytes = 0
            self.go_on_reading()
            self._read_waits_for_rest = True
            return
        if not self.keep_alive:
            self._finish()
            return
        self._body = []
        self.at = At.HEAD
        self.go_on_reading()
        if self._pending:
            self._head_came(b"")
        else:
            self._be_idle()

    _read_waits_for_rest = False

    def _finish(self) -> None:
        """Send what is unsent, then close."""
        self.at = At.FLUSH
        self._stalled_from = self.transport.get_write_buffer_size()
        if self._stalled_from:
            self._set_stall_deadline(self.server.clock() + self.server.limits.stall_s)
        self._forget_departure()
        self.transport.close()

    def _linger(self) -> None:
        """Close for writing, and throw away what still comes: a close with unread data would take the reply with it."""
        self.at = At.LINGER
        self.go_on_reading()
        self._set_read_deadline(self.server.clock() + self.server.limits.linger_s)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        else:
            self._finish()

    def become_duplex(self) -> Duplex:
        self.at = At.DUPLEX
        self.keep_alive = False
        self._deadline_free()
        early, self._pending = bytes(self._pending), bytearray()
        return Duplex(self, early)

    # The body's side --------------------------------------------------------------------------------------------------

    def take_body(self) -> bytes:
        """What has come of the body."""
        if not self._body_bytes:
            return b""
        pieces, self._body = self._body, []
        self._body_bytes = 0
        if not self.body_ended:
            self.go_on_reading()
            self._body_awaited()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def more_body(self) -> None:
        """Wait until more of the body has come, or it has ended, or cannot. Raises ClientGone."""
        if self.gone:
            raise ClientGone("the client has left before its request was complete")
        if self._owes_continue:
            self._owes_continue = False
            if self._reply is None or not self._reply.begun:
                self.transport.write(CONTINUE)
        self.go_on_reading()
        if self._read_deadline == NEVER:
            self._body_awaited()
        self._body_waiter = asyncio.get_running_loop().create_future()
        try:
            await self._body_waiter
        finally:
            self._body_waiter = None
        if self.gone and not self._body_bytes and not self.body_ended:
            raise ClientGone("the client has left before its request was complete")

    def _body_awaited(self) -> None:
        """From now on the client has to send."""
        self._progress = 0
        self._set_read_deadline(self.server.clock() + self.server.limits.body_s)

    def _body_came(self, data: bytes) -> None:
        self._owes_continue = False
        found: list[bytes] = []
        try:
            used = self._reader.feed(data, found)
        except Malformed as problem:
            self.keep_alive = False
            self._body_fails(Refused(400, f"cannot read the body: {problem}"))
            return
        came = sum(map(len, found))
        self._progress += came
        if not self._read_waits_for_rest:
            self._body += found
            self._body_bytes += came
        if self._reader.ended:
            self.body_ended = True
            self.at = At.BUSY
            self._set_read_deadline(NEVER)
            if used < len(data):
                self._pending += data[used:]
            if self._read_waits_for_rest:
                self._read_waits_for_rest = False
                self._next()
                return
        elif self._body_bytes > BUFFER_BYTES:
            # Nobody takes it: the client waits, and is not to blame.
            self.stop_reading()
            self._set_read_deadline(NEVER)
        self._wake_body()

    def _body_fails(self, problem: Exception) -> None:
        self.body_problem = problem
        self._set_read_deadline(NEVER)
        self.stop_reading()
        if self._read_waits_for_rest:
            self.cut()
            return
        self._wake_body()

    def _wake_body(self) -> None:
        waiter = self._body_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Time -------------------------------------------------------------------------------------------------------------

    def _set_read_deadline(self, at_s: float) -> None:
        self._read_deadline = at_s
        self._set_deadline()

    def _set_stall_deadline(self, at_s: float) -> None:
        self._stall_deadline = at_s
        self._set_deadline()

    def _deadline_free(self) -> None:
        self.is_idle_deadline = False
        self._read_deadline = NEVER
        self.deadline = self._stall_deadline

    def _set_deadline(self) -> None:
        self.deadline = min(self._read_deadline, self._stall_deadline)
        if self.deadline < NEVER:
            self.server.expect(self.deadline)

    def overdue(self, now_s: float) -> None:
        """A deadline has passed."""
        limits = self.server.limits
        if self._stall_deadline <= now_s:
            unsent = self.transport.get_write_buffer_size()
            if unsent > self._stalled_from - limits.progress_bytes:
                log.debug(
                    "cut %s: it has read less than %d bytes in %g s",
                    self.peer.describe(),
                    limits.progress_bytes,
                    limits.stall_s,
                )
                self.cut()
                return
            self._stalled_from = unsent
            self._set_stall_deadline(now_s + limits.stall_s)
        if self._read_deadline > now_s:
            return
        if self.at is At.HEAD:
            if self._pending:
                self._refuse(Refused(408, f"the header was not complete after {limits.header_s:g} s"))
            else:
                self.cut()
        elif self.at is At.BODY:
            if self._progress >= limits.progress_bytes:
                self._progress = 0
                self._set_read_deadline(now_s + limits.body_s)
            else:
                self.keep_alive = False
                self._body_fails(
                    Refused(408, f"the body stopped coming: {self._progress} bytes in {limits.body_s:g} s")
                )
        else:
            self.cut()

    # Leaving ----------------------------------------------------------------------------------------------------------

    def leave_when_idle(self) -> None:
        """Be done after the request that is being served, or now."""
        self.keep_alive = False
        if self.at is At.HEAD:
            self._finish()

    def cut(self) -> None:
        """End it now, whatever runs."""
        self._is_gone()
        self.abort()

    def _ask_whether_it_lives(self) -> None:
        """A TCP client whose sending has ended may be gone altogether. An interim answer costs one that is there
        nothing (clients skip it), and from one that is not a reset comes back.
        """
        reply = self._reply
        if reply is not None and not reply.begun and self.speaks_1_1 and not self.lost:
            self.transport.write(CONTINUE)

    def _is_gone(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._forget_departure()
        if self._left is not None:
            self._left.set()
        self._wake_body()
        if self.task is not None and self.at is not At.DUPLEX:
            self.task.cancel()

    def _forget_departure(self) -> None:
        if self.half_closed:
            self.server.departures.forget(self.transport.get_extra_info("socket").fileno())
