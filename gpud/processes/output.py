"""Reads what a child prints, line by line, keeps the last lines, and hands them on at a bounded rate.

The child is never held up: its pipes are always emptied, whatever becomes of the lines. The event loop is never held
up either: one turn reads at most :data:`READ_BYTES` of one pipe.
"""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Sequence

from gpud.core.counts import plural
from gpud.core.ports import LineReader, OutputSink, Stream

log = logging.getLogger(__name__)

READ_BYTES = 32 << 10
"""What is read of one pipe in one turn of the loop: some milliseconds of work even if every line is one byte long."""

LINE_LIMIT_BYTES = 8 << 10
"""A longer line is cut: the journal would split it, and a line that never ends must not fill the memory."""

TAIL_LINES = 50
TAIL_LINE_CHARACTERS = 500
"""The lines that an error report carries, and how much of each."""

DRAIN_LIMIT_BYTES = 4 << 20
"""What is read of a pipe at the most after the child has ended: several times what a pipe holds, so that only somebody
who goes on writing (a process that left the tree) is cut off."""

_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
_ESCAPES: dict[int, str] = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


def printable(line: bytes) -> str:
    """One line as text that is safe to show: bytes that are no UTF-8 and control characters appear as escapes.

    Colours are left out. A tab stays.
    """
    text = line.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    return text.translate(_ESCAPES)


class LineSplitter:
    """Cuts a stream of bytes into lines, the same ones however the stream is chopped up.

    A line ends at a newline. What a carriage return would have overwritten on a terminal (progress bars) is left out. A
    line over the limit keeps its beginning and says how long it was; no more than that is ever held.
    """

    def __init__(self, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()
        self._length = 0
        self._returned = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends."""
        parts = data.split(b"\n")
        rest = parts.pop()
        if not parts:
            self._add(rest)
            return []
        if b"\r" in data or len(max(parts, key=len)) > self._limit_bytes:
            lines = []
            for part in parts:
                self._add(part)
                lines.append(self._end())
        else:
            self._add(parts[0])
            parts[0] = self._end()
            lines = parts
        self._add(rest)
        return lines

    def finish(self) -> list[bytes]:
        """The last line when the stream ended without a newline."""
        return [self._end()] if self._length or self._returned else []

    def _add(self, part: bytes) -> None:
        written = part.rstrip(b"\r")
        if not written:
            self._returned = self._returned or bool(part)
            return
        if self._returned or b"\r" in written:
            written = written[written.rfind(b"\r") + 1 :]
            self._held.clear()
            self._length = 0
        self._returned = len(part.rstrip(b"\r")) < len(part)
        self._held += written[: max(0, self._limit_bytes - len(self._held))]
        self._length += len(written)

    def _end(self) -> bytes:
        line = bytes(self._held)
        if self._length > self._limit_bytes:
            line = _whole_characters(line) + b" [cut, the line had %d bytes]" % self._length
        self._held.clear()
        self._length = 0
        self._returned = False
        return line


def _whole_characters(line: bytes) -> bytes:
    """Without the beginning of a UTF-8 character that the cut went through."""
    for back in range(1, min(4, len(line)) + 1):
        byte = line[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return line[:-back] if needed > back else line
    return line


class Throttle:
    """Lets ``burst`` lines through at once and ``lines_per_second`` in the long run.

    Once it has shut it opens again only with a second's worth of lines to give (or the whole burst, if that is less):
    a steady flood is told of once a second, not once a line.
    """

    def __init__(self, lines_per_second: float, burst: int, now: float) -> None:
        self.lines_per_second = lines_per_second
        self._burst = burst
        self._reopen = min(float(burst), max(1.0, lines_per_second))
        self._left = float(burst)
        self._at = now
        self.dropped = 0

    def take(self, lines: int, now: float) -> tuple[int, int]:
        """For this many new lines: how many were dropped before, if that is to be told now; how many may pass."""
        self._refill(now)
        if self.dropped and self._left < self._reopen:
            self.dropped += lines
            return 0, 0
        told = self.dropped
        passing = min(lines, int(self._left))
        self._left -= passing
        self.dropped = lines - passing
        return told, passing

    def opens_in_s(self, now: float) -> float:
        self._refill(now)
        return max(0.0, (self._reopen - self._left) / self.lines_per_second)

    def _refill(self, now: float) -> None:
        self._left = min(float(self._burst), self._left + (now - self._at) * self.lines_per_second)
        self._at = now


class ChildLines:
    """Where the lines of both pipes of one child come together: its line reader, its tail, the sink."""

    def __init__(
        self,
        *,
        model: str,
        engine: str,
        pid: int,
        sink: OutputSink,
        on_line: LineReader | None,
        throttle: Throttle,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model = model
        self._engine = engine
        self._pid = pid
        self._sink = sink
        self._on_line = on_line
        self._throttle = throttle
        self._loop = loop
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._notice: asyncio.TimerHandle | None = None
        self._sink_failed = False

    def tail(self) -> tuple[str, ...]:
        return tuple(self._tail)

    def take(self, stream: Stream, lines: Sequence[bytes]) -> None:
        if self._on_line is not None:
            texts = [text for text in map(printable, lines) if not self._is_protocol(stream, text)]
            passing = self._admit(len(texts))
            for text in texts[:passing]:
                self._emit(stream, text)
            self._remember(texts[-TAIL_LINES:])
            return
        # In a flood most lines are neither passed on nor kept: only those that are get decoded.
        passing = self._admit(len(lines))
        for line in lines[:passing]:
            self._emit(stream, printable(line))
        self._remember([printable(line) for line in lines[-TAIL_LINES:]])

    def close(self) -> None:
        """The child has ended: say what was dropped and not told."""
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        if self._throttle.dropped:
            self._tell(self._throttle.dropped)
            self._throttle.dropped = 0

    def _is_protocol(self, stream: Stream, text: str) -> bool:
        if self._on_line is None:
            return False
        try:
            return self._on_line(stream, text)
        except Exception:
            # A defect in a backend's reader costs that reader, never the child's output.
            log.exception(
                "cannot interpret the output of %s: its line reader failed and is not called again", self._model
            )
            self._on_line = None
            return False

    def _admit(self, lines: int) -> int:
        now = self._loop.time()
        told, passing = self._throttle.take(lines, now)
        if told:
            self._tell(told)
        if self._throttle.dropped and self._notice is None:
            self._notice = self._loop.call_later(self._throttle.opens_in_s(now), self._reopen)
        return passing

    def _reopen(self) -> None:
        """The flood may be over and no further line may ever come: what was dropped is told all the same."""
        self._notice = None
        self._admit(0)

    def _tell(self, dropped: int) -> None:
        limit = f"more than {self._throttle.lines_per_second:g} lines/s were printed"
        self._emit(Stream.ERR, f"{plural(dropped, 'line')} dropped: {limit}")

    def _remember(self, texts: Sequence[str]) -> None:
        for text in texts:
            cut = len(text) > TAIL_LINE_CHARACTERS
            self._tail.append(text[:TAIL_LINE_CHARACTERS] + " …" if cut else text)

    def _emit(self, stream: Stream, text: str) -> None:
        try:
            self._sink.line(model=self._model, engine=self._engine, stream=stream, pid=self._pid, text=text)
        except Exception:
            if not self._sink_failed:
                log.exception(
                    "cannot hand on the output of %s; further failures of this kind are not logged", self._model
                )
            self._sink_failed = True


class OutputReader:
    """One pipe of one child. Owns the descriptor and closes it."""

    def __init__(
        self,
        fd: int,
        stream: Stream,
        lines: ChildLines,
        *,
        loop: asyncio.AbstractEventLoop,
        closed: Callable[[], None],
        first: bytes = b"",
    ) -> None:
        """``first`` is what was read of the pipe before; ``closed`` is called once, when it has ended."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._stream = stream
        self._lines = lines
        self._loop = loop
        self._closed = closed
        self._splitter = LineSplitter()
        loop.add_reader(fd, self._read_some)
        if first:
            self._take(first)

    async def drain(self) -> None:
        """Read what is there and close; never wait for more."""
        left = DRAIN_LIMIT_BYTES
        while self._fd >= 0 and left > 0 and (size := self._read_some()):
            left -= size
            await asyncio.sleep(0)
        self._close()

    def _read_some(self) -> int:
        """How many bytes there were; 0 for none now and for the end."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as problem:
            log.warning("cannot read the output of a child: %s; the rest of it is lost", problem)
            data = b""
        if not data:
            self._close()
            return 0
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        lines = self._splitter.feed(data)
        if lines:
            self._lines.take(self._stream, lines)

    def _close(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        rest = self._splitter.finish()
        if rest:
            self._lines.take(self._stream, rest)
        self._closed()
