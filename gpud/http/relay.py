"""Passes an engine's answer to a client while it comes: nothing is held back, nothing is kept.

The engine is read no faster than the client reads. It looks at nothing but where chunks and the body end.
"""

import asyncio
from collections.abc import Callable

from gpud.http.client import Response
from gpud.http.message import Reply
from gpud.http.upstream import ClientConnection

Observer = Callable[[bytes], None]
"""Sees each piece of the body, without its chunk framing, before it is sent. It must be quick, and not raise."""


async def relay(response: Response, reply: Reply, observe: Observer | None = None) -> int:
    """The rest of the response's body as the rest of the reply's, which was begun by the caller; ends the reply.

    Returns how many bytes of body the client was sent. Raises UpstreamFailed when the engine breaks off: the reply is
    then still open, between two chunks, and its caller may write a last word and end it, or abort it. When the client
    leaves, the handler's task is cancelled as always.
    """
    source = response.connection
    first = source.take()
    if first and observe is not None:
        observe(first)
    if source.is_complete:
        # As good as always where the answer is no stream: its head and its body go out in one.
        reply.finish(first)
        if reply.connection.full:
            await reply.drained()
        return reply.body_bytes
    return await _Relay(source, reply, observe).run(first)


class _Relay:
    """One answer on its way."""

    __slots__ = ("_done", "_observe", "_reply", "_source")

    def __init__(self, source: ClientConnection, reply: Reply, observe: Observer | None) -> None:
        self._source = source
        self._reply = reply
        self._observe = observe
        self._done: asyncio.Future[None] | None = None

    async def run(self, first: bytes) -> int:
        source, reply = self._source, self._reply
        reply.put(first)
        if source.problem is not None:
            reply.flush()
            raise source.problem
        front = reply.connection
        self._done = asyncio.get_running_loop().create_future()
        source.sink = self._came
        front.on_full = source.stop_reading
        front.on_room = source.go_on_reading
        if front.full:
            source.stop_reading()
        else:
            source.go_on_reading()
        reply.flush()
        try:
            await self._done
        finally:
            source.sink = None
            front.on_full = front.on_room = None
        if source.problem is not None:
            raise source.problem
        await reply.drained()
        return reply.body_bytes

    def _came(self, data: bytes) -> None:
        """Called by the engine's connection: with data, or without when it has ended or failed."""
        source, reply = self._source, self._reply
        try:
            found: list[bytes] = []
            readable = source.problem is None and (not data or source.feed(data, found))
            piece = found[0] if len(found) == 1 else b"".join(found)
            if piece and self._observe is not None:
                self._observe(piece)
            if source.is_complete:
                reply.finish(piece)
            else:
                reply.put(piece)
                if readable and source.problem is None:
                    return
            self._end(None)
        except Exception as problem:
            self._end(problem)

    def _end(self, problem: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if problem is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(problem)
