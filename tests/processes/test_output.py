"""Lines out of bytes: splitting, escaping, throttling."""

import asyncio
import fcntl
import os
import sys
import termios
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_parts import Lines

from gpud.core.ports import Stream
from gpud.processes.output import READ_BYTES, ChildLines, LineSplitter, OutputReader, Throttle, printable

LIMIT = 10
PIECES = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bc", b"d" * 9, b"e" * 25, "ü".encode(), b"\0"]))


def as_a_terminal_shows(stream: bytes) -> list[bytes]:
    """The lines of a whole stream, said as simply as possible."""
    lines = []
    raw_lines = stream.split(b"\n")
    for index, raw in enumerate(raw_lines):
        if index == len(raw_lines) - 1 and not raw:
            break
        lines.append(raw.rstrip(b"\r").rpartition(b"\r")[2])
    return lines


@given(PIECES, st.data())
def test_any_chopping_of_a_stream_gives_the_same_lines(pieces: list[bytes], data: st.DataObject) -> None:
    """However the kernel chops the stream up, the lines are those of the whole."""
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter = LineSplitter(LIMIT)
    got: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += splitter.feed(stream[start:end])
    got += splitter.finish()
    expected = as_a_terminal_shows(stream)
    assert len(got) == len(expected)
    for line, whole in zip(got, expected, strict=True):
        if len(whole) <= LIMIT:
            assert line == whole
        else:
            kept, _, marker = line.partition(b" [cut")
            assert whole.startswith(kept) and LIMIT - 3 <= len(kept) <= LIMIT
            assert marker == b", the line had %d bytes]" % len(whole)
            kept.decode("utf-8")


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    """Of a gigantic line only the beginning is held."""
    splitter = LineSplitter(LIMIT)
    for _ in range(1000):
        assert splitter.feed(b"x" * 10_000) == []
    assert splitter.feed(b"\n") == [b"xxxxxxxxxx [cut, the line had 10000000 bytes]"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", "plain"),
        ("größer".encode(), "größer"),
        (b"tab\there", "tab\there"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\0b", "a\\x00b"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("\u009b31m".encode(), "\\x9b31m"),
        ("abc\u202edcb".encode(), "abc\\u202edcb"),
    ],
)
def test_nothing_that_a_terminal_would_obey_gets_through(line: bytes, shown: str) -> None:
    """Colours are left out; other control characters and wrong bytes appear as escapes."""
    assert printable(line) == shown


@given(st.binary())
def test_every_line_of_bytes_becomes_printable(line: bytes) -> None:
    """No bytes whatever give a control character other than a tab."""
    text = printable(line.replace(b"\n", b""))
    assert not any(character != "\t" and (ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0) for character in text)


def test_throttle_tells_once_how_many_were_dropped() -> None:
    """After the burst nothing passes until a second's worth is there; then the dropped are told, once."""
    throttle = Throttle(10, 20, now=0.0)
    assert throttle.take(15, 0.0) == (0, 15)
    assert throttle.take(15, 0.0) == (0, 5)
    assert throttle.take(7, 0.5) == (0, 0)
    assert throttle.opens_in_s(0.5) == pytest.approx(0.5)
    assert throttle.take(3, 1.0) == (17, 3)
    assert throttle.take(1, 1.0) == (0, 1)


class Pipe:
    """A pipe whose reading end is a child's output."""

    def __init__(self, sink: Any, on_line: Callable[[Stream, str], bool] | None = None, burst: int = 1000) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.lines = ChildLines(
            model="tiny",
            engine="custom",
            pid=1,
            sink=sink,
            on_line=on_line,
            throttle=Throttle(50, burst, self.loop.time()),
            loop=self.loop,
        )
        read, self.write = os.pipe()
        self.reader = OutputReader(read, Stream.OUT, self.lines, loop=self.loop, closed=self.closed.set)

    async def say(self, data: bytes) -> None:
        """All of it, and the end."""
        await asyncio.to_thread(self._write_all, data)
        await asyncio.wait_for(self.closed.wait(), 50)
        self.lines.close()

    def _write_all(self, data: bytes) -> None:
        with os.fdopen(self.write, "wb") as file:
            file.write(data)


def test_last_line_without_newline_is_kept(sink: Lines, run: Callable[..., Any]) -> None:
    """What stands after the last newline is a line when the stream ends."""

    async def scene() -> None:
        await Pipe(sink).say(b"one\ntwo")

    run(scene())
    assert sink.texts == ["one", "two"]


def test_line_reader_sees_all_and_keeps_its_own_lines_out(sink: Lines, run: Callable[..., Any]) -> None:
    """Protocol lines reach neither the sink nor the tail; every line is seen, also those that are dropped."""
    seen: list[str] = []

    def on_line(stream: Stream, text: str) -> bool:
        seen.append(text)
        return text.startswith("protocol")

    async def scene() -> tuple[str, ...]:
        pipe = Pipe(sink, on_line, burst=2)
        await pipe.say(b"protocol 1\nfirst\nsecond\nprotocol 2\nthird\n")
        return pipe.lines.tail()

    tail = run(scene())
    assert seen == ["protocol 1", "first", "second", "protocol 2", "third"]
    assert sink.texts == ["first", "second", "1 line dropped: more than 50 lines/s were printed"]
    assert tail == ("first", "second", "third")


def test_line_reader_that_fails_costs_no_line(sink: Lines, run: Callable[..., Any]) -> None:
    """A defect in a line reader ends the reading of protocol lines, not the output."""

    def on_line(stream: Stream, text: str) -> bool:
        raise RuntimeError("a defect")

    async def scene() -> None:
        await Pipe(sink, on_line).say(b"one\ntwo\n")

    run(scene())
    assert sink.texts == ["one", "two"]


def test_sink_that_fails_holds_nobody_up(run: Callable[..., Any]) -> None:
    """A journal that has gone away does not stop the reading."""

    class Broken:
        def line(self, **_: object) -> None:
            raise OSError("the journal is away")

    async def scene() -> tuple[str, ...]:
        pipe = Pipe(Broken())
        await pipe.say(b"one\ntwo\n")
        return pipe.lines.tail()

    assert run(scene()) == ("one", "two")


def test_dropped_lines_are_told_when_the_flood_is_over(sink: Lines, run: Callable[..., Any]) -> None:
    """The child says nothing any more and lives on: the dropped lines are told all the same."""

    async def scene() -> str:
        pipe = Pipe(sink, burst=10)
        os.write(pipe.write, b"line\n" * 30)
        told = await sink.until(lambda text: "dropped" in text)
        await pipe.say(b"")
        return told

    assert run(scene()) == "20 lines dropped: more than 50 lines/s were printed"


def test_one_turn_of_the_loop_reads_a_bounded_amount(sink: Lines, run: Callable[..., Any]) -> None:
    """However much waits in the pipe, the others get their turns in between."""
    size = 200 << 10

    async def scene() -> list[int]:
        pipe = Pipe(sink)
        fcntl.fcntl(pipe.write, fcntl.F_SETPIPE_SZ, 256 << 10)
        os.write(pipe.write, b"x\n" * (size // 2))
        left = []
        while not left or left[-1]:
            await asyncio.sleep(0)
            left.append(int.from_bytes(fcntl.ioctl(pipe.write, termios.FIONREAD, b"\0" * 4), sys.byteorder))
        await pipe.say(b"")
        return left

    left = [size, *run(scene())]
    assert max(before - after for before, after in pairwise(left)) == READ_BYTES


def test_tail_is_bounded_in_lines_and_in_length(sink: Lines, run: Callable[..., Any]) -> None:
    """The last 50 lines, each cut to 500 characters."""

    async def scene() -> tuple[str, ...]:
        pipe = Pipe(sink, burst=1)
        await pipe.say(b"".join(b"%04d" % number + b"x" * 1000 + b"\n" for number in range(200)))
        return pipe.lines.tail()

    tail = run(scene())
    assert [line[:4] for line in tail] == [f"{number:04d}" for number in range(150, 200)]
    assert {len(line) for line in tail} == {502}
