"""What a kind of value is, and the kinds that are numbers and words: how each is read, and how it is written back.

A kind raises nothing but :class:`Wrong` and never touches the file system.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from gpud.config.source import Node, Problem, Scalar, Where, shown
from gpud.core.counts import plural
from gpud.core.facts import AUTO_IDLE, Priority
from gpud.core.record import Record, Struct


class Wrong(Exception):
    """A value that is not allowed. The text completes ``FILE:LINE: KEY: VALUE: …``."""


class Reading(Struct):
    """One pass over a configuration: where problems are collected, and what a value may depend on.

    ``home`` is what ``~/`` stands for; empty where a configuration belongs to no user. ``known_engines`` None: any; it
    is walked through only for a message, for to know all engines may mean to look at all installed packages.
    ``places`` names the sections that have a key, ``ours`` the key that other programs call so.
    """

    problems: list[Problem]
    home: str = ""
    known_engines: Collection[str] | None = None
    places: Callable[[str], Sequence[str]] = lambda _: ()
    ours: Callable[[str], str] = lambda _: ""

    def wrong(self, where: Where, path: str, text: str) -> None:
        path = path if len(path) <= 200 else f"{path[:199]}…"
        self.problems.append(Problem(where, f"{path}: {text}" if path else text))


class Broken:
    """Stands for a value that was given and refused, so that nothing complains that it is missing."""


BROKEN = Broken()


class Kind(Protocol):
    @property
    def allowed(self) -> str:
        """Completes "allowed: …"."""

    def read(self, node: Node, path: str, reading: Reading, /) -> Any:
        """The value, or :data:`BROKEN` when the problem has been noted already, or :class:`Wrong`."""

    def write(self, value: Any) -> object:
        """The value as plain YAML data that :meth:`read` reads back."""


def text_of(node: Node) -> str:
    """The text of a scalar as it was written, whatever YAML would make of it."""
    if not isinstance(node, Scalar):
        raise Wrong(f"is {shown(node)}, one value is expected")
    if "\0" in node.text:
        raise Wrong("holds a NUL character")
    return node.text


def number_of(node: Node) -> str:
    text = text_of(node)
    assert isinstance(node, Scalar)
    if not node.plain:
        raise Wrong("is text; write the number without quotes")
    return text


# Patterns are compiled when they are first used: most starts need few of them.
WHOLE = r"[-+]?(0|[1-9][0-9]{0,18})"
DECIMAL = r"[0-9]{1,15}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?"


class Flag:
    allowed: str = "true or false"

    def read(self, node: Node, _path: str, _reading: Reading) -> bool:
        text = number_of(node) if isinstance(node, Scalar) and node.plain else text_of(node)
        if isinstance(node, Scalar) and node.plain and text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise Wrong("is neither true nor false")

    def write(self, value: Any) -> object:
        return value


class Whole:
    """A whole number, decimal."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, node: Node, _path: str, _reading: Reading) -> int:
        text = number_of(node)
        if not re.fullmatch(WHOLE, text):
            raise Wrong("is not a whole number")
        if not self.low <= int(text) <= self.high:
            raise Wrong("is out of range")
        return int(text)

    def write(self, value: Any) -> object:
        return value


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?(?:ms|s|m|h|d) *)+"
_DURATION_PART = r"([0-9.]+)(ms|s|m|h|d)"


class Duration:
    """Seconds. With ``never``, 0 and the word mean that the time never comes; with ``auto``, that word AUTO_IDLE."""

    def __init__(
        self, low: float = 0.0, high: float = 365 * 86400.0, *, never: bool = False, auto: bool = False
    ) -> None:
        self.low = low
        self.high = high
        self.never = never
        self.auto = auto

    @property
    def allowed(self) -> str:
        if self.never:
            auto = "auto, " if self.auto else ""
            low = f"from {_time(self.low)} " if self.low else ""
            to = f"{low}to" if low else "up to"
            return f"{auto}0 or never, or seconds, or a time like 90s, 5m, 1h30m, {to} {_time(self.high)}"
        return f"seconds, or a time like 500ms, 90s, 5m, 2h, from {_time(self.low)} to {_time(self.high)}"

    def read(self, node: Node, _path: str, _reading: Reading) -> float:
        text = text_of(node)
        if self.never and text == "never":
            return 0.0
        if self.auto and text == "auto":
            return AUTO_IDLE
        if re.fullmatch(DECIMAL, text):
            seconds = float(text)
        elif re.fullmatch(_DURATION, text):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_DURATION_PART, text))
        elif text.startswith("-"):
            raise Wrong("is negative")
        else:
            raise Wrong("is not a time")
        if not self.low <= seconds <= self.high and not (self.never and seconds == 0):
            raise Wrong("is out of range")
        return seconds

    def write(self, value: Any) -> object:
        if self.auto and value == AUTO_IDLE:
            return "auto"
        return int(value) if value == int(value) else value


def _time(seconds: float) -> str:
    if seconds == 0:
        return "0"
    for unit in ("d", "h", "m", "s"):
        if seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    return f"{seconds * 1000:g}ms"


_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{0,15})?) ?(?:([kmgt])(i?b)?|(b))"
_PERCENT = r"([0-9]{1,3}(?:\.[0-9]{0,9})?) ?%"
_LARGEST = 1 << 50


class Percent(Record):
    """A share of the whole."""

    value: float


class Share:
    """A percentage; the sign may be left out. With ``never``, that word is read as 0."""

    def __init__(self, *, never: bool = False) -> None:
        self.never = never

    @property
    def allowed(self) -> str:
        return f"a share like 85% (more than 0%, at most 100%){', or never' if self.never else ''}"

    def read(self, node: Node, _path: str, _reading: Reading) -> float:
        text = text_of(node)
        if self.never and text == "never":
            return 0.0
        match = re.fullmatch(f"{_PERCENT}?", text)
        if match is None:
            raise Wrong("is not a share")
        if not 0 < float(match[1]) <= 100:
            raise Wrong("is out of range")
        return float(match[1])

    def write(self, value: Any) -> object:
        return percent_text(value) if value else "never"


def percent_text(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") + "%"


class Size:
    """Bytes: a whole number, or a number with a unit. ``8G`` and ``8GiB`` are binary, ``8GB`` is decimal."""

    def __init__(self, low: int = 0, *, percent: bool = False) -> None:
        self.low = low
        self.percent = percent

    @property
    def allowed(self) -> str:
        least = f", at least {size_text(self.low)}" if self.low else ""
        share = ", or a share like 80% (more than 0%, at most 100%)" if self.percent else ""
        return f"bytes, or a size like 300MiB, 1.5GiB, 8G (= 8GiB), 500MB{least}{share}"

    def read(self, node: Node, _path: str, _reading: Reading) -> int | Percent:
        text = text_of(node)
        if match := re.fullmatch(_PERCENT, text):
            if not self.percent:
                raise Wrong("is a share; this key takes a size")
            if not 0 < float(match[1]) <= 100:
                raise Wrong("is out of range")
            return Percent(float(match[1]))
        size = _bytes_in(text)
        if size > _LARGEST or size < 0:
            raise Wrong("is out of range")
        if size < self.low:
            raise Wrong(
                f"is {plural(size, 'byte')}, too small" + ("" if re.search("[a-zA-Z]", text) else "; add a unit")
            )
        return size

    def write(self, value: Any) -> object:
        if isinstance(value, Percent):
            return percent_text(value.value)
        return size_text(value)


def _bytes_in(text: str) -> int:
    if re.fullmatch(WHOLE, text):
        return int(text)
    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    if match is None:
        if re.fullmatch(DECIMAL, text):
            raise Wrong("is a fraction without a unit")
        raise Wrong("is not a size")
    number, power, suffix, _ = match.groups()
    if power is None:
        return round(float(number))
    base = 1000 if (suffix or "").lower() == "b" else 1024
    return round(float(number) * float(base ** _POWERS[power.lower()]))


def size_text(size: int) -> str | int:
    """The shortest exact way to write a size."""
    for unit, one in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size and size % one == 0:
            return f"{size // one}{unit}"
    return size


class Choice:
    """One of a few words. ``same`` are other ways to write them."""

    def __init__(self, words: tuple[str, ...], same: Mapping[str, str] | None = None) -> None:
        self.words = words
        self.same = same or {}

    @property
    def allowed(self) -> str:
        return " ".join(self.words)

    def read(self, node: Node, _path: str, _reading: Reading) -> str:
        text = text_of(node)
        text = self.same.get(text, text)
        if text not in self.words:
            raise Wrong("is none of the allowed words" + nearest(text, self.words))
        return text

    def write(self, value: Any) -> object:
        return str(value)


class PriorityName:
    allowed: str = "low normal high critical"

    def read(self, node: Node, _path: str, _reading: Reading) -> Priority:
        text = text_of(node)
        if text not in self.allowed.split():
            raise Wrong("is none of the allowed words" + nearest(text, self.allowed.split()))
        return Priority[text.upper()]

    def write(self, value: Any) -> object:
        return Priority(value).name.lower()


class Layers:
    allowed: str = "auto, all (or -1), or a whole number from 0 to 999"

    def read(self, node: Node, _path: str, _reading: Reading) -> str:
        text = text_of(node)
        if text in ("auto", "all"):
            return text
        if text == "-1":
            return "all"
        if not re.fullmatch("0|[1-9][0-9]{0,2}", text):
            raise Wrong("is not a number of layers")
        return text

    def write(self, value: Any) -> object:
        return int(value) if value.isdecimal() else value


def nearest(word: str, words: Sequence[str]) -> str:
    """``; did you mean "…"?`` where one of the words is near."""
    from difflib import get_close_matches  # only a mistake pays for this import

    found = get_close_matches(word[:80], words, n=1, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""
