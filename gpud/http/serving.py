"""One client's connection: reads its requests, one at a time, has each served, and minds its deadlines.

The server tells it what it may do and for how long; the handler what to answer.
"""

import asyncio
import contextlib
import fcntl
import logging
import struct
import termios
from typing import TYPE_CHECKING

from gpud.core.counts import plural
from gpud.http.connection import ClientGone, Connection, Duplex
from gpud.http.intake import Intake
from gpud.http.limits import BUFFER_BYTES, HeadLimits
from gpud.http.listening import identify
from gpud.http.memory import HeadMemory
from gpud.http.message import Peer, Reply, Request
from gpud.http.wire import (
    Refused,
    RequestHead,
    is_hopeless,
    read_request_head,
    status_line,
    write_head,
)
from gpud.http.work import Work

if TYPE_CHECKING:
    from gpud.http.server import Server

log = logging.getLogger(__name__)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

NEVER = float("inf")

ASK_AGAIN_S = 5.0
"""How often a client that has ended its sending is asked whether it is still there, while it waits for its answer. One
that has left answers the first time; only one that leaves later makes more than one necessary."""

LAST_MOMENT_S = 0.5
"""How long a client that has connected and asked nothing yet may still ask when the server is to end: one that came for
that has it under way. Somebody may keep such a connection ready for later, and the end is not to wait long for that."""

HEAD, BODY, BUSY, DUPLEX, LINGER, FLUSH = range(6)
"""Where a connection stands: between requests or within a head; serving one whose body has not come completely; serving
one that is here as a whole; upgraded; refused, and what still comes is thrown away; the last reply is being sent."""


class ServerConnection(Connection):
    """One client."""

    def __init__(self, server: "Server", door: str) -> None:
        super().__init__(server.buffer)
        self.server = server
        self.door = door
        self.peer = Peer(door)
        self.at = HEAD
        self.gone = False
        self.half_closed = False
        self.keep_alive = True
        self.speaks_1_1 = True
        self.work: Work | None = None
        self.deadline = NEVER
        self.body = Intake(self)
        self._reply: Reply | None = None
        self._pending = bytearray()
        self._looked_at = 0
        self._stalled_from = 0
        self._stall_deadline = NEVER
        self._read_deadline = NEVER
        self._is_idle_deadline = False
        self._memory: HeadMemory[RequestHead] = HeadMemory()

    # The transport's callbacks ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = identify(transport, self.door)
        problem = self.server.joined(self, self.peer)
        if problem:
            self._refuse(Refused(503, problem), ("Retry-After", "5"))
        else:
            self._set_read_deadline(self.server.clock() + self.server.limits.header_s)
            if self.server.closing:
                self.leave_when_idle()

    def received(self, data: bytes) -> None:
        if self.at == HEAD:
            self._head_came(data)
        elif self.at == BODY:
            self.body.came(data)
        elif self.at == DUPLEX:
            assert self.duplex is not None
            self.duplex.received(data)
        elif self.at == BUSY:
            self._pending += data
            if len(self._pending) > BUFFER_BYTES:
                self.stop_reading()

    def eof_received(self) -> bool:
        """The client sends nothing more. That alone does not mean that it has left: it may still read."""
        if self.at == DUPLEX:
            assert self.duplex is not None
            self.read_ended = not self.peer.is_encrypted
            self.duplex.ended()
            return self.read_ended
        if self.at != BUSY or self.peer.is_encrypted:
            # In the middle of a request, or between two, nothing can follow; TLS knows no half-close. asyncio closes,
            # after what is unsent.
            self._is_gone()
            if self.work is None:
                self._finish()
            return False
        self.half_closed = self.read_ended = True
        self.server.departures.watch(self.transport.get_extra_info("socket").fileno(), self.abort)
        if self.peer.uid is None:
            self._ask_whether_it_lives()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        # While its descriptor is still its own: the next connection may have the same.
        self._forget_departure()
        super().connection_lost(exc)
        self._is_gone()
        self.deadline = NEVER
        self.server.parted(self, self.peer)
        if self.duplex is not None:
            self.duplex.broken()

    def abort(self) -> None:
        self._forget_departure()
        if self.at != DUPLEX:
            self.at = FLUSH
        super().abort()

    def stop_reading(self) -> None:
        super().stop_reading()
        if self.is_held and not self.peer.is_encrypted:
            # Who is not read is not heard leaving.
            self.server.departures.watch(self.transport.get_extra_info("socket").fileno(), self.abort)

    def go_on_reading(self) -> None:
        if self.is_held and not self.lost:
            self.server.departures.forget(self.transport.get_extra_info("socket").fileno())
        super().go_on_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_from = self.transport.get_write_buffer_size()
        self._set_stall_deadline(self.server.clock() + self.server.limits.stall_s)

    def resume_writing(self) -> None:
        if self.at != FLUSH:
            self._set_stall_deadline(NEVER)
        super().resume_writing()
        if self.at == HEAD:
            self.go_on_reading()
            if self._pending:
                self._head_came(b"")

    # Requests ---------------------------------------------------------------------------------------------------------

    def _head_came(self, data: bytes) -> None:
        """More of a head, or of several: the first complete one is served."""
        if self.full:
            # Replies that the client does not read are no reason to make more of them.
            self._pending += data
            self.stop_reading()
            return
        limits = self.server.limits.head
        was_waiting = not data
        if self._pending or data[:2] == b"\r\n" or (end := data.find(b"\r\n\r\n")) < 0:
            self._pending += data
            if self._pending[:2] == b"\r\n":
                # A line break too many after the last body: old clients send one.
                del self._pending[:2]
                self._looked_at = 0
            end = self._pending.find(b"\r\n\r\n", self._looked_at)
            if end < 0:
                self._looked_at = max(len(self._pending) - 3, 0)
                self._head_incomplete(self._pending)
                return
            data = bytes(self._pending)
            self._pending.clear()
            self._looked_at = 0
        try:
            if end > limits.header_bytes:
                raise Refused(431, f"the header is {end} bytes long; {limits.header_bytes} are allowed")
            text = data[:end]
            head = self._memory.find(text) or self._read_head(text, limits)
        except Refused as problem:
            self._refuse(problem)
            return
        rest = data[end + 4 :]
        self._deadline_free()
        self.keep_alive = head.keep_alive and not self.server.closing
        self.speaks_1_1 = bool(head.version)
        request = Request(self, head, self.peer)
        self._reply = Reply(self, head.method == "HEAD")
        if head.length == 0:
            self.at = BUSY
            self.body.begin_none()
            if rest:
                self.received(rest)
        else:
            self.at = BODY
            self.body.begin(head.length, rest, expects=head.expects)
        work = self.work = Work(self._serve(request, self._reply))
        if self.server.at_once and not was_waiting:
            work.go_on()
        else:
            # Of a thousand requests that were sent together each would be served within the one before.
            work.take_task()

    def _read_head(self, text: bytes, limits: HeadLimits) -> RequestHead:
        head = read_request_head(text, limits)
        if not head.expects:
            self._memory.keep(text, head)
        return head

    def _head_incomplete(self, pending: bytearray) -> None:
        limits = self.server.limits.head
        if self.half_closed:
            self._finish()
            return
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
        elif self._is_idle_deadline or self._read_deadline == NEVER:
            self._is_idle_deadline = False
            self._set_read_deadline(self.server.clock() + self.server.limits.header_s)

    @property
    def is_idle(self) -> bool:
        """True between requests, when nothing of a next one has come."""
        return self.at == HEAD and not self._pending

    def _be_idle(self) -> None:
        self._is_idle_deadline = True
        server = self.server
        self._read_deadline = self.deadline = deadline = server.clock() + server.limits.idle_s
        if self._stall_deadline < deadline:
            self.deadline = self._stall_deadline
        elif deadline < server.sweep_at:
            server.expect(deadline)

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
            if not self.gone:
                raise
        except Exception:
            if not self.gone:
                log.exception("%s %s was not served: the handler failed", request.method, request.raw_path)
                self._answer(reply, Refused(500, "gpud could not serve this request because of an error of its own"))
            else:
                log.debug("the handler failed after its client had left", exc_info=True)
        finally:
            self.work = None
            self._reply = None
            if self.gone and not self.lost:
                self._finish()
            elif not self.lost and self.at not in (DUPLEX, LINGER, FLUSH):
                self._next()

    def _answer(self, reply: Reply, problem: Refused) -> None:
        """The layer's own answer to a request; cuts the connection when another one was begun."""
        if self.gone or reply.ended:
            return
        if reply.begun:
            self.abort()
            return
        kind, body = self.server.words(problem.status, problem.message)
        reply.answer(problem.status, (("Content-Type", kind),), body)

    def _refuse(self, problem: Refused, *more: tuple[str, str]) -> None:
        """Answer what is no request, and close: where the next one would begin is not known."""
        kind, body = self.server.words(problem.status, problem.message)
        framing = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
        head = write_head(status_line(problem.status), (("Content-Type", kind), *more), framing, self.server.date())
        self.transport.write(head + body)
        self._pending.clear()
        self._looked_at = 0
        self._linger()

    # The reply's side -------------------------------------------------------------------------------------------------

    def closing_words(self) -> bytes:
        """The last line of a reply's head: whether another request may follow."""
        body = self.body
        if not body.ended and (body.problem is not None or body.is_much_to_come):
            self.keep_alive = False
        if self.server.closing or (self.half_closed and not self._pending):
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        if not self.speaks_1_1:
            return b"Connection: keep-alive\r\n"
        return b""

    def flush_soon(self, reply: Reply) -> None:
        asyncio.get_running_loop().call_soon(reply.flush)

    def _next(self) -> None:
        """The reply has ended: close, or read the next request."""
        if not self.body.ended:
            if self.keep_alive:
                self.body.drop_rest()
            else:
                self._linger()
            return
        if not self.keep_alive:
            self._finish()
            return
        self.body.let_go()
        self.at = HEAD
        if self.is_held:
            self.go_on_reading()
        if self._pending or self.half_closed:
            self._head_came(b"")
        else:
            self._be_idle()

    def _finish(self) -> None:
        """Send what is unsent, then close."""
        self.at = FLUSH
        self._stalled_from = self.transport.get_write_buffer_size()
        if self._stalled_from:
            self._set_stall_deadline(self.server.clock() + self.server.limits.stall_s)
        self._forget_departure()
        self.transport.close()

    def _linger(self) -> None:
        """Close for writing, and throw away what still comes: a close with unread data would take the reply with it."""
        if self.read_ended:
            self._finish()
            return
        self.at = LINGER
        self.go_on_reading()
        self._set_read_deadline(self.server.clock() + self.server.limits.linger_s)
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        else:
            self._finish()

    def become_duplex(self) -> Duplex:
        self.at = DUPLEX
        self.keep_alive = False
        self._deadline_free()
        early, self._pending = bytes(self._pending), bytearray()
        return Duplex(self, early)

    # What the body tells ----------------------------------------------------------------------------------------------

    def send_continue(self) -> None:
        """The client waits for a word before it sends the body."""
        if self._reply is None or not self._reply.begun:
            self.transport.write(CONTINUE)

    def await_body(self) -> None:
        """From now on the client has to send."""
        self.body.progress = 0
        self._set_read_deadline(self.server.clock() + self.server.limits.body_s)

    @property
    def is_awaited(self) -> bool:
        """True while the client has to send."""
        return self._read_deadline != NEVER

    def await_nothing(self) -> None:
        """The client need not send."""
        self._set_read_deadline(NEVER)

    def body_over(self, rest: bytes, *, dropped: bool) -> None:
        """The body has ended; behind it came the rest. Dropped: nobody wanted it, and the next request may come."""
        self.at = BUSY
        self._pending += rest
        if dropped:
            self._next()

    # Time -------------------------------------------------------------------------------------------------------------

    def _set_read_deadline(self, at_s: float) -> None:
        self._read_deadline = at_s
        self._set_deadline()

    def _set_stall_deadline(self, at_s: float) -> None:
        self._stall_deadline = at_s
        self._set_deadline()

    def _deadline_free(self) -> None:
        self._is_idle_deadline = False
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
        if self.at == HEAD:
            if self._pending:
                self._refuse(Refused(408, f"the header was not complete after {limits.header_s:g} s"))
            else:
                self.cut()
        elif self.at == BODY:
            if self.body.progress >= limits.progress_bytes:
                self.body.progress = 0
                self._set_read_deadline(now_s + limits.body_s)
            else:
                self.keep_alive = False
                self.body.fail(
                    Refused(
                        408, f"the body stopped coming: {plural(self.body.progress, 'byte')} in {limits.body_s:g} s"
                    )
                )
        elif self.at == BUSY:
            self._set_read_deadline(NEVER)
            self._ask_whether_it_lives()
        else:
            self.cut()

    # Leaving ----------------------------------------------------------------------------------------------------------

    def leave_when_idle(self) -> None:
        """Be done after the request that is being served, or that is coming, or now. Who has never asked anything is
        about to: no client knows that it should ask again when such a connection ends.
        """
        if not self.keep_alive:
            return
        self.keep_alive = False
        if not self.is_idle:
            return
        has_asked = self._is_idle_deadline
        if has_asked and not self._has_unread():
            self._finish()
        else:
            self._is_idle_deadline = True
            self._set_read_deadline(self.server.clock() + LAST_MOMENT_S)

    def _has_unread(self) -> bool:
        """True when something of a next request is here, and was not read yet."""
        fd = self.transport.get_extra_info("socket").fileno()
        (waiting,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
        return bool(waiting)

    def cut(self) -> None:
        """End it now, whatever runs."""
        self._is_gone()
        if self.work is not None:
            self.work.cancel()
        self.abort()

    def _ask_whether_it_lives(self) -> None:
        """A TCP client whose sending has ended may be gone altogether. An interim answer costs one that is there
        nothing (clients skip it), and from one that is not a reset comes back. In the middle of a stream, which may
        say nothing for long, a byte that means nothing does the same.
        """
        reply = self._reply
        if reply is None or self.lost:
            return
        if reply.begun:
            reply.nudge()
        elif self.speaks_1_1:
            self.transport.write(CONTINUE)
            self._set_read_deadline(self.server.clock() + ASK_AGAIN_S)

    def _is_gone(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._forget_departure()
        self.body.wake()
        # What a handler does after its answer, and with a raw stream, is not for the client's sake alone.
        if self.work is not None and self._reply is not None and not self._reply.ended:
            self.work.cancel()

    def _forget_departure(self) -> None:
        if (self.half_closed or self.is_held) and not self.lost:
            self.server.departures.forget(self.transport.get_extra_info("socket").fileno())
