"""The last lines that each engine printed and that gpud itself told, for whoever asks by HTTP; in memory, bounded.

The journal has everything and for long; this has what somebody wants to see who has no journal at hand. It never holds
up the engine that prints, and no secret gets in: see :mod:`gpud.http.redaction`.
"""

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from heapq import merge

from gpud.core.counts import plural
from gpud.core.events import Level, Notice, Outcome
from gpud.core.ports import OutputSink, Stream
from gpud.core.record import Record
from gpud.http.mailbox import Mailbox
from gpud.http.redaction import redacted

ENGINE_BYTES = 64 << 10
"""What is kept of one engine: some five hundred lines, which is more than a llama-server prints while it loads."""

ENGINES = 64
"""How many engines' lines are kept; of more, those that were silent for longest go. Together this bounds the memory
to four MiB, and nothing is taken before something is printed."""

LINE_COST_BYTES = 200
"""What a line takes beside its text."""

FOLLOWER_LINES = 1000
FOLLOWER_BYTES = 256 << 10
"""What waits for one who follows and does not read. What goes beyond is lost, and said to be."""


class Origin(StrEnum):
    """Who said a line: an engine, or gpud."""

    ENGINE = "engine"
    GPUD = "gpud"


class Line(Record):
    """``at_s`` is the time of day. ``model`` is empty for what is about no model, or about an engine that several
    share; ``engine`` is empty for what gpud itself says, and ``stream`` then its level.
    """

    at_s: float
    origin: Origin
    model: str
    engine: str
    stream: str
    text: str

    @property
    def size_bytes(self) -> int:
        return len(self.text) + LINE_COST_BYTES

    def shown(self, *, named: bool) -> str:
        """As a line of a log: with the time, and with whose it is where lines of several stand together."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at_s))
        if not named:
            return f"{clock} {self.text}"
        whose = self.model or self.engine
        return f"{clock} [{whose if self.origin is Origin.ENGINE else 'gpud'}] {self.text}"


class Follower:
    """The lines of one model, or of all, from now on."""

    def __init__(self, lines: "Lines", wanted: Callable[[Line], bool]) -> None:
        self._lines = lines
        self._wanted = wanted
        self._mailbox: Mailbox[Line] = Mailbox(FOLLOWER_LINES, FOLLOWER_BYTES)

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def next(self) -> Line | None:
        """The next line; None when there will be none any more. Lines that this reader was too slow for are replaced
        by one of gpud's that counts them.
        """
        await self._mailbox.wait()
        lost = self._mailbox.take_lost()
        if lost:
            text = f"{plural(lost, 'line is', 'lines are')} missing here: they were not read in time"
            return Line(self._lines.clock(), Origin.GPUD, "", "", Level.WARNING.value, text)
        return self._mailbox.take()

    def close(self) -> None:
        self._lines.forget(self)
        self._mailbox.close()

    def offer(self, line: Line) -> None:
        if self._wanted(line):
            self._mailbox.put(line, line.size_bytes)


class Kept:
    """The last lines of one, within a number of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self.lines: deque[Line] = deque()

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self._bytes += line.size_bytes
        while self._bytes > self._limit_bytes and len(self.lines) > 1:
            self._bytes -= self.lines.popleft().size_bytes


class Lines:
    """Fed with what engines print (it is an :class:`gpud.core.ports.OutputSink`) and with the engine's outcomes."""

    def __init__(
        self, clock: Callable[[], float] = time.time, *, engine_bytes: int = ENGINE_BYTES, engines: int = ENGINES
    ) -> None:
        self.clock = clock
        self._engine_bytes = engine_bytes
        self._engines = engines
        self._own = Kept(engine_bytes)
        # By engine and model, the one that spoke last at the end.
        self._kept: dict[tuple[str, str], Kept] = {}
        self._followers: list[Follower] = []
        self._listeners: list[Callable[[Line], None]] = []

    # What goes in ----------------------------------------------------------------------------------------------------

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:  # noqa: ARG002 -- the port's
        """One line of an engine."""
        self.keep(Line(self.clock(), Origin.ENGINE, model, engine, stream.value, redacted(text)))

    def keep(self, line: Line) -> None:
        """One line of an engine that has no secret any more."""
        key = (line.engine, line.model)
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = Kept(self._engine_bytes)
            if len(self._kept) >= self._engines:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = kept
        kept.add(line)
        self._tell(line)

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """The engine's listener: what it tells of what happened."""
        for outcome in outcomes:
            if isinstance(outcome, Notice):
                self.notice(outcome)

    def notice(self, notice: Notice) -> None:
        """What gpud itself says, with the lines that explain it."""
        if notice.level is Level.DEBUG:
            return
        for text in (notice.message, *notice.detail):
            for part in text.splitlines():
                line = Line(self.clock(), Origin.GPUD, notice.model, "", notice.level.value, redacted(part))
                self._own.add(line)
                self._tell(line)

    def _tell(self, line: Line) -> None:
        for listener in self._listeners:
            listener(line)
        for follower in tuple(self._followers):
            follower.offer(line)

    # What can be asked -----------------------------------------------------------------------------------------------

    def tail(self, model: str = "", limit: int = 100, *, origin: Origin | None = None) -> tuple[Line, ...]:
        """The last lines, the oldest first: of one model (its engine's, and what gpud said about it), or, when
        ``model`` is empty, of all. ``origin`` leaves out the other one's.
        """
        wanted = _wanted(model, origin)
        found = [
            [line for line in kept.lines if wanted(line)]
            for key, kept in (*self._kept.items(), (("", ""), self._own))
            if not model or key[1] in ("", model)
        ]
        # Each is in the order of time; of equal times an engine's lines stay together.
        together = list(merge(*found, key=lambda line: line.at_s))
        return tuple(together[-limit:]) if limit > 0 else ()

    def follow(self, model: str = "", *, origin: Origin | None = None) -> Follower:
        """Whoever follows closes it at the end: it is a context manager."""
        follower = Follower(self, _wanted(model, origin))
        self._followers.append(follower)
        return follower

    def forget(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)

    def subscribe(self, listener: Callable[[Line], None]) -> Callable[[], None]:
        """Be told each line at once; returns how to stop that. For what never waits."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def close(self) -> None:
        """Whoever follows comes to an end."""
        for follower in tuple(self._followers):
            follower.close()


def _wanted(model: str, origin: Origin | None) -> Callable[[Line], bool]:
    return lambda line: (not model or line.model == model) and origin in (None, line.origin)


class TeeSink:
    """Hands the lines of engines to another sink (the journal) and keeps the last ones. Neither gets a secret."""

    def __init__(self, sink: OutputSink, lines: Lines) -> None:
        self._sink = sink
        self._lines = lines

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        text = redacted(text)
        try:
            self._sink.line(model=model, engine=engine, stream=stream, pid=pid, text=text)
        finally:
            self._lines.keep(Line(self._lines.clock(), Origin.ENGINE, model, engine, stream.value, text))
