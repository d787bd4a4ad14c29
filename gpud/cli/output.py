"""What gpudctl prints: results to standard output, everything else to standard error; plain, colored, or as JSON."""

import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from gpud.core.errors import GpudError

MIB = 1 << 20
GIB = 1 << 30

QUOTED_MOST = 1024
BEGINNING = 128
"""More than the first of what somebody gave is not said back to them, but its beginning: as long as a name may be."""

COLORS = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2"}


class Output:
    """Where a command speaks. ``words`` are the raw command line: errors in it must already obey --json."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        before = list(words[: words.index("--")] if "--" in words else words)
        self.wants_json = "--json" in before
        self._no_color = "--no-color" in before or bool(os.environ.get("NO_COLOR"))

    def configure(self, arguments: Namespace) -> None:
        self.wants_json = arguments.json
        self._no_color = self._no_color or arguments.no_color

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches: then progress moves and colors show."""
        return _is_terminal(sys.stderr)

    @property
    def colors(self) -> bool:
        return not self._no_color and os.environ.get("TERM") != "dumb" and _is_terminal(sys.stdout)

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if color and self.colors else text

    def text(self, text: str) -> None:
        with _written():
            print(text)

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """The outcome of a command: for a person, or for a program."""
        if self.wants_json:
            self.json(data)
        elif text:
            self.text(text)

    def json(self, data: Mapping[str, Any] | Sequence[Any]) -> None:
        import json

        self.text(json.dumps(data, indent=2, ensure_ascii=False))

    def note(self, text: str) -> None:
        """Something that a person wants to know and a program does not. Where it cannot be said, it is not said."""
        self.flush()
        try:
            print(text, file=sys.stderr, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            give_up(sys.stderr)

    def error(self, error: GpudError) -> None:
        """One line with what to do; the same as an object where JSON was asked for. What it quotes may be anything."""
        message, hint = brief(error.message), brief(error.hint)
        if self.wants_json:
            self.json({"error": {"code": error.code, "message": message, "hint": hint}})
        parts = filter(None, (one_line(message), one_line(hint)))
        self.note(visible("gpudctl: " + "; ".join(parts)))

    def flush(self) -> None:
        with _written():
            sys.stdout.flush()


class NotWritten(GpudError):
    """Standard output takes nothing: the disk is full that it goes to, say."""


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up(sys.stdout)
        hint = "the command may have succeeded all the same; make room, or send the output elsewhere"
        raise NotWritten(f"cannot write to standard output: {error.strerror}", hint=hint) from None


def give_up(stream: TextIO) -> None:
    """What is still buffered must not fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_what_is_closed() -> None:
    """Whoever closes a stream wants to hear nothing. Left closed, the next file to be opened would be taken for it."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # As those that Python opens: for as long as it runs.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # No stream at all, or one that is closed.
        return False


def brief(text: str) -> str:
    """A sentence without most of what was quoted, where that is longer than any name and any path that people have: one
    argument may be a whole file.
    """
    if len(text) <= QUOTED_MOST:
        return text
    return re.sub(_SAID_BACK, _shortened, text)


def _shortened(found: re.Match[str]) -> str:
    text = found[0]
    if len(text) <= QUOTED_MOST:
        return text
    return f"{text[:BEGINNING]}…" + (text[-1] if text[-1] in "\"'" else "")


_SAID_BACK = r"""(?s)"[^"]*"|(?<=invalid choice: )'.+?'(?= \()|(?<=unrecognized arguments: ).+|\S+"""
"""What is said back, here and by argparse."""


def one_line(text: str) -> str:
    return " / ".join(part.strip() for part in text.splitlines() if part.strip())


def visible(text: str) -> str:
    """What may be the name of a file, and so anything: what would move a terminal's cursor is written as its number."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


# Words ---------------------------------------------------------------------------------------------------------------


def size(size_bytes: int) -> str:
    """GiB from one GiB on, else MiB; what is less than one MiB in KiB."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else mib(size_bytes)


def mib(size_bytes: int) -> str:
    if 0 < size_bytes < MIB:
        return f"{max(1, size_bytes >> 10)} KiB"
    return f"{size_bytes / MIB:.0f} MiB"


def span(seconds: float) -> str:
    """A length of time in its two largest units: ``4m 10s``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def since(at_usec: int) -> str:
    """How long ago; empty for never."""
    return f"{span(time.time() - at_usec / 1e6)} ago" if at_usec else ""


def until(at_usec: int) -> str:
    return span(at_usec / 1e6 - time.time()) if at_usec else ""


def table(output: Output, head: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """Aligned lines. A cell is its text and a color; columns that are empty everywhere are left out."""
    shown = [column for column in range(len(head)) if any(row[column][0] for row in rows)]
    widths = {column: max(len(head[column]), *(len(row[column][0]) for row in rows)) for column in shown}

    def line(cells: Sequence[tuple[str, str]]) -> str:
        parts: list[str] = []
        for column in shown:
            text, color = cells[column]
            padding = " " * (widths[column] - len(text)) if column != shown[-1] else ""
            parts.append(output.paint(text, color) + padding)
        return "  ".join(parts).rstrip()

    return [line([(title, "bold") for title in head]), *(line(row) for row in rows)]
