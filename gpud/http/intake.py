"""The body of the request that a connection is serving, as it comes: kept until somebody takes it, and never more of it
than may wait.

It belongs to a connection, which reads for it and minds the client's time; whether the client is let go on is decided
there.
"""

import asyncio
from typing import TYPE_CHECKING

from gpud.http.bodies import BodyReader, ChunkedReader, LengthReader
from gpud.http.connection import ClientGone
from gpud.http.limits import BUFFER_BYTES, HELD_BYTES
from gpud.http.wire import Malformed, Refused

if TYPE_CHECKING:
    from gpud.http.serving import ServerConnection


class Intake:
    """One for each connection, begun anew with each request. ``progress`` counts what has come since the client's time
    began; ``problem`` is why the rest cannot come.
    """

    __slots__ = (
        "_bytes",
        "_drops_rest",
        "_gathers_bytes",
        "_owes_continue",
        "_owner",
        "_pieces",
        "_reader",
        "_waiter",
        "ended",
        "problem",
        "progress",
    )

    def __init__(self, owner: "ServerConnection") -> None:
        self._owner = owner
        self.ended = True
        self.problem: Exception | None = None
        self.progress = 0
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._reader: BodyReader = LengthReader(0)
        self._waiter: asyncio.Future[None] | None = None
        self._owes_continue = False
        self._drops_rest = False
        self._gathers_bytes: int | None = None

    # What the connection tells ----------------------------------------------------------------------------------------

    def begin_none(self) -> None:
        """The request has no body."""
        self.let_go()
        self.ended = True
        self.problem = None
        self._owes_continue = False

    def begin(self, length: int | None, data: bytes, *, expects: bool) -> None:
        """The request has a body of so many bytes (None: in chunks), of which this came with the head. ``expects``: the
        client waits for a word before it sends any.
        """
        self.problem = None
        self._owes_continue = expects
        if length is not None and len(data) == length:
            # As good as always: all of it came with the head.
            self._pieces = [data]
            self._bytes = length
            self.ended = True
            self._owner.body_over(b"", dropped=False)
            return
        self.let_go()
        self.ended = False
        self._reader = ChunkedReader() if length is None else LengthReader(length)
        if data:
            self.came(data)
        if not self.ended:
            self._owner.await_body()

    def came(self, data: bytes) -> None:
        """More of it, and perhaps of what is behind it."""
        owner = self._owner
        self._owes_continue = False
        found: list[bytes] = []
        try:
            used = self._reader.feed(data, found)
        except Malformed as problem:
            owner.keep_alive = False
            self.fail(Refused(400, f"cannot read the body: {problem}"))
            return
        came = sum(map(len, found))
        self.progress += came
        if not self._drops_rest:
            self._pieces += found
            self._bytes += came
        if self._reader.ended:
            self.ended = True
            owner.await_nothing()
            dropped, self._drops_rest = self._drops_rest, False
            owner.body_over(data[used:], dropped=dropped)
            if dropped:
                return
        elif self._gathers_bytes is not None:
            # Whoever waits for all of it is not woken for a part.
            if self._bytes <= self._gathers_bytes:
                return
        elif self._bytes > HELD_BYTES:
            # Nobody takes it: the client waits, and is not to blame.
            owner.stop_reading()
            owner.await_nothing()
        self.wake()

    def fail(self, problem: Exception) -> None:
        """The rest will not come."""
        owner = self._owner
        self.problem = problem
        owner.await_nothing()
        owner.stop_reading()
        if self._drops_rest:
            owner.cut()
            return
        self.wake()

    @property
    def is_much_to_come(self) -> bool:
        """True when more is to come than is worth reading for a next request."""
        if self._owes_continue:
            return True
        return not isinstance(self._reader, LengthReader) or self._reader.left > BUFFER_BYTES

    def drop_rest(self) -> None:
        """Little is left of what nobody wanted: it is read and dropped, then the next request may come."""
        self.let_go()
        self._drops_rest = True
        self._owner.go_on_reading()
        self._owner.await_body()

    def let_go(self) -> None:
        """Forget what nobody has taken."""
        self._pieces = []
        self._bytes = 0

    def wake(self) -> None:
        """Whoever waits is to look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the request asks --------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What has come of it."""
        if not self._bytes:
            return b""
        pieces, self._pieces = self._pieces, []
        self._bytes = 0
        if not self.ended:
            self._read_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def more(self) -> None:
        """Wait until more of it has come, or it has ended, or cannot. Raises ClientGone."""
        owner = self._owner
        if owner.gone:
            raise ClientGone("the client has left before its request was complete")
        if self._owes_continue:
            self._owes_continue = False
            owner.send_continue()
        self._read_on()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if owner.gone and not self._bytes and not self.ended:
            raise ClientGone("the client has left before its request was complete")

    async def gather(self, limit_bytes: int) -> None:
        """Wait until all of it is here, or more than the limit, or it cannot come. Raises ClientGone."""
        self._gathers_bytes = limit_bytes
        try:
            while not self.ended and self.problem is None and self._bytes <= limit_bytes:
                await self.more()
        finally:
            self._gathers_bytes = None

    def _read_on(self) -> None:
        self._owner.go_on_reading()
        if not self._owner.is_awaited:
            self._owner.await_body()
