"""What a handler sees of HTTP: the request that it is asked, and the reply that it gives."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from gpud.core.counts import plural
from gpud.core.record import Record
from gpud.http.connection import ClientGone, Duplex
from gpud.http.fields import HeadStart, start_head
from gpud.http.wire import FieldItems, Fields, Refused, RequestHead, decode_path, status_line, write_head

if TYPE_CHECKING:
    from gpud.http.serving import ServerConnection

SLICE_BYTES = 256 << 10
"""A large body is handed to the kernel in pieces of this size, so that it is not copied as a whole."""

AT_ONCE = 250
"""So many of an answer's many small parts are handed over together."""


class Peer(Record):
    """Who is at the other end: an address, or on a Unix socket a process and its user (as the kernel says).

    ``door`` is the name that was given to :meth:`gpud.http.server.Server.listen`; ``at`` is where it was reached.
    """

    door: str
    address: str = ""
    port: int = 0
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    is_loopback: bool = False
    is_encrypted: bool = False
    at: tuple[str, int] = ("", 0)

    def describe(self) -> str:
        """For a message: ``192.0.2.1:5000``, or ``process 12 of user 1000``."""
        if self.uid is not None:
            return f"process {self.pid} of user {self.uid}"
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Request:
    """One request. Its head is complete; its body comes when it is asked for.

    ``target`` is as it was sent, ``raw_path`` its path, ``path`` the same decoded once, ``raw_query`` what stands
    behind the question mark. ``content_length`` is None for a chunked body and 0 without one. ``upgrade`` names the
    protocol that the client would like to change to, or is empty. ``kept`` is what whoever answered the request before
    this one left there, on the same connection and with the same head, but for the length of its body.
    """

    __slots__ = (
        "_connection",
        "_query",
        "content_length",
        "headers",
        "kept",
        "method",
        "path",
        "peer",
        "raw_path",
        "raw_query",
        "target",
        "upgrade",
    )

    def __init__(self, connection: "ServerConnection", head: RequestHead, peer: Peer) -> None:
        self._connection = connection
        self.raw_query: str = head.query
        self.kept: dict[str, Any] = head.kept
        self._query: dict[str, list[str]] | None = None
        self.method: str = head.method
        self.target: str = head.target
        self.raw_path: str = head.raw_path
        self.path: str = head.path
        self.headers: Fields = head.fields
        self.content_length: int | None = head.length
        self.upgrade: str = head.upgrade
        self.peer = peer

    @property
    def query(self) -> dict[str, list[str]]:
        """The parameters behind the question mark, decoded; a name may come more than once."""
        if self._query is None:
            try:
                self._query = parse_qs(self.raw_query, keep_blank_values=True, errors="strict", max_num_fields=1000)
            except ValueError as problem:
                raise Refused(400, f"cannot read the query: {problem}") from None
        return self._query

    def parameter(self, name: str, default: str = "") -> str:
        """The first value of a parameter."""
        return self.query.get(name, (default,))[0]

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's parts, each decoded by itself: a %2F stays within its part."""
        parts = self.raw_path.split("/")[1:]
        return tuple(parts) if "%" not in self.raw_path else tuple(decode_path(part) for part in parts)

    @property
    def is_gone(self) -> bool:
        """True as soon as it is known that the client has gone. One that only ended its sending (a half-close) has not.

        What runs the handler is cancelled then, so that whatever it waits for ends; a handler that must go on gives
        that work to a task of its own. Only one that catches the cancellation needs to look here.
        """
        return self._connection.gone

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises Refused with 413 when it is larger than the limit (before it is read, where its length
        was said), with 400 when it is malformed, with 408 when it stops coming; ClientGone when the client leaves.
        """
        connection = self._connection
        length = self.content_length
        if length == 0:
            return b""
        if length is not None and length > limit_bytes:
            raise Refused(413, f"the body is {length} bytes long; {limit_bytes} are allowed")
        if not connection.body.ended:
            await connection.body.gather(limit_bytes)
        whole = connection.body.take()
        if len(whole) > limit_bytes:
            raise Refused(413, f"the body is longer than the {limit_bytes} bytes that are allowed")
        if connection.body.problem is not None:
            raise connection.body.problem
        return whole

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. While nobody asks, the client is made to wait. Raises as :meth:`body` does."""
        connection = self._connection
        while True:
            if piece := connection.body.take():
                yield piece
            elif connection.body.problem is not None:
                raise connection.body.problem
            elif connection.body.ended:
                return
            else:
                await connection.body.more()


class Reply:
    """The answer to one request: either :meth:`send`, or :meth:`begin`, :meth:`write` and :meth:`end`.

    ``Content-Length``, ``Transfer-Encoding``, ``Connection`` and ``Date`` are the layer's business; a header that says
    one of the first three is a ValueError. The body of an answer to HEAD, of a 204 and of a 304 is left out.
    ``status`` is 0 until it is begun.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_left",
        "_nudged",
        "_silent",
        "body_bytes",
        "ended",
        "status",
    )

    def __init__(self, connection: "ServerConnection", silent: bool) -> None:
        self._connection = connection
        self._silent = silent
        self._chunked = False
        self._nudged = False
        self._left: int | None = None
        self._head = b""
        self.status = 0
        self.ended = False
        self.body_bytes = 0

    @property
    def begun(self) -> bool:
        """True once a status was given: no other can be sent."""
        return self.status != 0

    async def send(self, status: int, headers: FieldItems = (), body: bytes = b"") -> None:
        """A whole answer. Raises ClientGone."""
        self._start(status, headers, len(body))
        if len(body) <= SLICE_BYTES:
            self.finish(body)
            await self.drained()
            return
        await self.write(body)
        self._finish()

    async def send_parts(self, status: int, headers: FieldItems, parts: Sequence[bytes]) -> None:
        """A whole answer of many small parts. Raises ClientGone. It may have megabytes: they are never put together,
        for memory for all of them at once is taken from the machine and given back each time.
        """
        self._start(status, headers, sum(map(len, parts)))
        for first in range(0, len(parts), AT_ONCE):
            await self.write(b"".join(parts[first : first + AT_ONCE]))
        self._finish()

    async def begin(self, status: int, headers: FieldItems | HeadStart = (), length: int | None = None) -> None:
        """The head; its fields may have been made ready by :func:`start_head`, with its first line. ``length`` is how
        long the body will be, None if that is not known. It is sent together with what is written next; of a stream
        (no length) by itself as soon as the handler waits.
        """
        self._start(status, headers, length)
        if length is None:
            self._connection.flush_soon(self)

    async def write(self, data: bytes) -> None:
        """More of the body. Waits while the client takes nothing. Raises ClientGone."""
        connection = self._connection
        if connection.gone:
            raise ClientGone("the client has left")
        if len(data) <= SLICE_BYTES:
            self.put(data)
            if connection.full:
                await self.drained()
            return
        view = memoryview(data)
        for start in range(0, len(view), SLICE_BYTES):
            self.put(bytes(view[start : start + SLICE_BYTES]))
            await self.drained()

    async def end(self) -> None:
        """The answer is complete. Raises RuntimeError, and cuts the connection, when less came than was promised."""
        self._finish()

    def abort(self) -> None:
        """Cut the connection: what was promised cannot be kept, and the client shall see that."""
        self.ended = True
        self._connection.abort()

    async def upgrade(self, headers: FieldItems = ()) -> Duplex:
        """Answer 101 and hand over the raw stream. The headers name the protocol (``Upgrade: websocket``). Raises
        ClientGone, and Refused while a body is still to come.
        """
        if self.begun:
            raise RuntimeError("the reply was begun already")
        connection = self._connection
        if connection.gone:
            raise ClientGone("the client has left")
        if not connection.body.ended:
            raise Refused(400, "a request that changes the protocol cannot have a body")
        head = write_head(status_line(101), headers, b"Connection: Upgrade\r\n")
        self.status = 101
        self.ended = True
        duplex = connection.become_duplex()
        connection.transport.write(head)
        return duplex

    # What relays use besides ------------------------------------------------------------------------------------------

    @property
    def connection(self) -> "ServerConnection":
        return self._connection

    def put(self, data: bytes) -> None:
        """Write without waiting: whoever calls it minds the connection's ``full``."""
        if self.ended or not self.status:
            raise RuntimeError("cannot write: the reply " + ("has ended" if self.ended else "was not begun"))
        size = len(data)
        if not size:
            return
        self.body_bytes += size
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                self.abort()
                raise RuntimeError(
                    f"the reply is {plural(-self._left, 'byte')} longer than was promised; the connection is cut"
                )
        if self._silent:
            return
        if self._chunked:
            self._out(b"%x\r\n%b\r\n" % (size, data))
        else:
            self._out(data)

    def finish(self, last: bytes) -> None:
        """The last piece and the end, in one."""
        if last and self._chunked and not self._silent and not self.ended:
            self.body_bytes += len(last)
            self._out(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
            self.ended = True
            return
        self.put(last)
        self._finish()

    def answer(self, status: int, headers: FieldItems, body: bytes) -> None:
        """A whole answer, small enough not to wait for."""
        self._start(status, headers, len(body))
        self.finish(body)

    async def drained(self) -> None:
        """Wait while more is unsent than may wait. Raises ClientGone."""
        connection = self._connection
        if connection.full:
            await connection.room()
            if connection.gone:
                raise ClientGone("the client has left")

    def flush(self) -> None:
        """Send the head if it still waits."""
        if self._head and not self.ended:
            self._out(b"")

    def nudge(self) -> None:
        """Send a byte that means nothing, where there are chunks: the next one's length begins with a zero. Once for
        each reply: some clients count the digits of a length.
        """
        if self._chunked and not (self._silent or self.ended or self._nudged):
            self._nudged = True
            self._out(b"0")

    def _start(self, status: int, headers: FieldItems | HeadStart, length: int | None) -> None:
        if self.status:
            raise RuntimeError(f"the reply was begun already, with {self.status}")
        connection = self._connection
        if connection.gone:
            raise ClientGone("the client has left")
        self._left = length
        if status in (204, 304) or status < 200:
            self._silent = True
            framing, self._left = b"", None
        elif length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif connection.speaks_1_1:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._chunked = True
        else:
            framing = b""
            connection.keep_alive = False
        start = headers if isinstance(headers, HeadStart) else start_head(status_line(status), headers)
        self._head = start.finished(framing + connection.closing_words(), connection.server.date())
        self.status = status

    def _finish(self) -> None:
        if self.ended:
            return
        if self._left and not self._silent:
            missing = self._left
            self.abort()
            raise RuntimeError(
                f"the reply is {plural(missing, 'byte')} shorter than was promised; the connection is cut"
            )
        if self._chunked and not self._silent:
            self._out(b"0\r\n\r\n")
        elif self._head:
            self._out(b"")
        self.ended = True

    def _out(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        connection = self._connection
        if not connection.lost:
            connection.transport.write(data)
