"""Writes a configuration as YAML with comments, and knows in which line each key stands; gpud's own reader reads it."""

import re
from collections.abc import Mapping
from typing import Any

from gpud.config.source import Scalar, Where
from gpud.importing.reading import plain
from gpud.importing.report import Comment, Path

WIDTH = 118
"""A comment that would not fit behind its key stands above it."""

_PLAIN_START = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._")
_PLAIN = _PLAIN_START | frozenset("-+@ =")


def write(config: Mapping[str, Any], comments: Mapping[Path, Comment], header: str) -> tuple[str, dict[int, Path]]:
    """The text, and the path of the key that stands in each line of it."""
    writer = _Writer(comments)
    for line in header.splitlines():
        writer.line(f"# {plain(line)}".rstrip())
    for key, value in config.items():
        writer.line("")
        writer.entry((key,), value)
    return "\n".join(writer.lines) + "\n", writer.paths


class _Writer:
    def __init__(self, comments: Mapping[Path, Comment]) -> None:
        self._comments = comments
        self.lines: list[str] = []
        self.paths: dict[int, Path] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    def entry(self, path: Path, value: object) -> None:
        indent = "  " * (len(path) - 1)
        comment = self._comments.get(path)
        said = f"# {plain(comment.text)}" if comment else ""
        key = f"{indent}{quoted(path[-1])}:"
        is_map = isinstance(value, Mapping) and bool(value)
        text = key if is_map else f"{key} {flow(value)}"
        if said and (is_map or len(text) + len(said) + 2 > WIDTH):
            for part in _wrapped(said, indent):
                self.line(part)
            said = ""
        self.line(f"{text}  {said}" if said else text)
        self.paths[len(self.lines)] = path
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                self.entry((*path, str(name)), inner)


def _wrapped(comment: str, indent: str) -> list[str]:
    import textwrap

    return textwrap.wrap(
        comment,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def flow(value: object) -> str:
    """A value on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(str(key))}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(one) for one in value) + "]"
    return quoted(str(value))


_BARE = re.compile(r"-{1,2}[A-Za-z][A-Za-z0-9_.-]*|[0-9]{1,6}(?:[KMGT]i?B|%|/(?:s|min|h|d))|[1-9][0-9]{0,5}d")
"""Flags, sizes, shares, rates and days, which no version of YAML takes for anything but text."""


def quoted(text: str) -> str:
    """Text as YAML reads it back: bare where that is the same to everybody, else in double quotes."""
    if _BARE.fullmatch(text):
        return text
    if (
        text
        and text[0] in _PLAIN_START
        and all(one in _PLAIN for one in text)
        and text[-1] != " "
        and Scalar(Where("", 0), text).looks_like == "text"
        and not text.startswith(("---", "..."))
        and text.lower() not in ("y", "n")
        and not text[0].isdigit()
    ):
        return text
    return '"' + "".join(map(_escaped, text)) + '"'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if character.isprintable() and not 0xD800 <= code <= 0xDFFF:
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
