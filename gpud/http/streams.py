"""Events and lines of logs for as long as somebody listens: a stream that says something now and then even when nothing
happens, so that whoever stands between does not cut it.
"""

import asyncio
from collections.abc import Awaitable, Callable

from gpud.core.errors import InvalidArguments
from gpud.core.events import Level
from gpud.core.record import replace
from gpud.http import queries
from gpud.http.exchange import Exchange
from gpud.http.feed_events import Type
from gpud.http.feed_shapes import Shape
from gpud.http.lines import Line, Origin
from gpud.http.own import Parts, choice, model_of, number, whole
from gpud.http.waiting import STREAM

BEAT = b": gpud is here\n\n"

TEXT = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)

LINES = 1000
LINES_MOST = 20_000

SOURCES = {"proxy": Origin.GPUD, "gpud": Origin.GPUD, "upstream": Origin.ENGINE, "engines": Origin.ENGINE}
"""In place of a model: what gpud says, and what engines print. The first and the third are llama-swap's words."""


_ONE_LOG = queries.text("model", "of one model, of gpud (proxy) or of all engines (upstream)")
_NO_HISTORY = queries.text("no-history", "only what comes from now on")

EVENTS = (
    queries.text("types", "only these types, with commas between"),
    queries.one_of("shape", "in whose words", [shape.value for shape in Shape]),
    queries.text("last-event-id", "resume behind this event; the header Last-Event-ID says the same"),
)
LOGS = (_ONE_LOG, queries.whole("limit", "how many lines at most", 1, LINES_MOST, LINES))
FOLLOW = (_ONE_LOG, _NO_HISTORY)
FOLLOW_ONE = (_NO_HISTORY,)

_LOUD = frozenset((Level.ERROR.value, Level.WARNING.value))


class Streams:
    """Handlers for the routes of both doors."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def events(self, exchange: Exchange) -> None:
        """Server-sent events; ``?types=`` chooses, ``?shape=llama-swap`` says them in its words."""
        whole(exchange, "the events")
        request = exchange.request
        kinds = types_of(request.parameter("types"))
        shape = choice(exchange, "shape", (Shape.EVENTS.value, Shape.LLAMA_SWAP.value)) or Shape.EVENTS.value
        since = request.headers.get("last-event-id") or request.parameter("last-event-id")
        with self._parts.feed.subscribe(since, kinds, Shape(shape)) as subscription:
            await exchange.reply.begin(200, [*STREAM, *exchange.headers])
            await self._pour(exchange, subscription.next, BEAT)

    async def logs(self, exchange: Exchange) -> None:
        """The last lines of all, or of ``?model=``."""
        limit = number(exchange, "limit", LINES, 1, LINES_MOST) or LINES
        model, origin = self._wanted(exchange, exchange.request.parameter("model"))
        lines = self._parts.lines.tail(model, limit, origin=origin)
        text = "".join(_shown(line, model) for line in lines)
        await exchange.send(text.encode("utf-8", "backslashreplace"), *TEXT)

    async def follow(self, exchange: Exchange) -> None:
        """The last lines and those that come; ``?no-history`` leaves out the first."""
        said = exchange.parameters.get("model", "") or exchange.request.parameter("model")
        model, origin = self._wanted(exchange, said)
        with self._parts.lines.follow(model, origin=origin) as follower:
            history = (
                () if "no-history" in exchange.request.query else self._parts.lines.tail(model, LINES, origin=origin)
            )
            await exchange.reply.begin(200, [*TEXT, *exchange.headers])
            text = "".join(_shown(line, model) for line in history)
            if text:
                await exchange.reply.write(text.encode("utf-8", "backslashreplace"))

            async def line() -> bytes:
                found = await follower.next()
                return b"" if found is None else _shown(found, model).encode("utf-8", "backslashreplace")

            # Plain text has no way to say nothing: a broken connection is found by the layer below.
            await self._pour(exchange, line, b"")

    def _wanted(self, exchange: Exchange, said: str) -> tuple[str, Origin | None]:
        if said in SOURCES:
            whole(exchange, "the log")
            return "", SOURCES[said]
        if said:
            return model_of(exchange, self._parts, said), None
        whole(exchange, "the log")
        return "", None

    async def _pour(self, exchange: Exchange, following: Callable[[], Awaitable[bytes]], beat: bytes) -> None:
        """Write what comes until nothing comes any more. Who asks for the head alone waits for nothing."""
        if exchange.request.method == "HEAD":
            await exchange.reply.end()
            return
        waiting: asyncio.Future[bytes] | None = None
        heartbeat_s = (self._parts.settings.heartbeat_s or None) if beat else None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(following())
                await asyncio.wait((waiting,), timeout=heartbeat_s)
                if not waiting.done():
                    await exchange.reply.write(beat)
                    continue
                done, waiting = waiting, None
                if not (message := done.result()):
                    break
                await exchange.reply.write(message)
        finally:
            if waiting is not None:
                waiting.cancel()
        await exchange.reply.end()


def _shown(line: Line, model: str) -> str:
    """What went wrong says so, for those who search for the word."""
    if line.origin is Origin.GPUD and line.stream in _LOUD:
        line = replace(line, text=f"{line.stream}: {line.text}")
    return line.shown(named=not model) + "\n"


def types_of(said: str) -> tuple[Type, ...]:
    """Types of events by their names, with commas between. Raises InvalidArguments."""
    known = {kind.value: kind for kind in Type}
    words = [word for word in said.split(",") if word]
    wrong = [word for word in words if word not in known]
    if wrong:
        raise InvalidArguments(f"there is no type of event {wrong[0][:64]!a}", hint=f"the types are {', '.join(known)}")
    return tuple(known[word] for word in words)
