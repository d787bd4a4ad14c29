"""The kinds of values that are texts, lists and maps: how each is read, what is allowed, how it is written back.

A kind raises nothing but :class:`Wrong` and never touches the file system: paths are made absolute, not visited.
"""

import math
import os.path
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpud.config.kinds import BROKEN, DECIMAL, WHOLE, Reading, Wrong, nearest, text_of
from gpud.config.source import Items, Node, Scalar, Table, shown
from gpud.core.engines import BUILT_IN, ENGINES


class Text:
    """Text. ``any_scalar`` takes a number or a flag for the text that was written; else such a value is a slip."""

    def __init__(self, allowed: str = "text", pattern: str = r"[^\0]+", *, any_scalar: bool = False) -> None:
        self.allowed = allowed
        self.pattern = pattern
        self.any_scalar = any_scalar

    def read(self, node: Node, _path: str, _reading: Reading) -> str:
        text = text_of(node)
        assert isinstance(node, Scalar)
        if not self.any_scalar and node.looks_like != "text":
            raise Wrong(f"is a {node.looks_like}; put it in quotes if it is meant as text")
        if not re.fullmatch(self.pattern, text, re.DOTALL):
            raise Wrong("is empty" if not text else "is not allowed")
        return text

    def write(self, value: Any) -> object:
        return value


class FilePath:
    """A path, made absolute: relative ones are relative to the file that names them."""

    def __init__(self, *, program: bool = False) -> None:
        self.program = program

    @property
    def allowed(self) -> str:
        name = "a program's name (looked up in PATH) or " if self.program else ""
        return f"{name}a path; a relative one starts from the directory of the file that names it"

    def read(self, node: Node, path: str, reading: Reading) -> str:
        text = Text(pattern=r"[^\0-\x1f\x7f]+").read(node, path, reading)
        if self.program and "/" not in text:
            return text
        if text == "~" or text.startswith("~/"):
            if not reading.home:
                raise Wrong('begins with "~", but the configuration of the system belongs to no user; write it in full')
            return os.path.normpath(reading.home + text[1:])
        if text.startswith("~"):
            raise Wrong('begins with the home directory of another user ("~name"); write it in full')
        # Path knows no way to make ".." go without following links, and messages name what was given.
        return os.path.abspath(Path(node.where.file).parent / text)  # noqa: PTH100

    def write(self, value: Any) -> object:
        return value


class Folders:
    """Folders to look into, or ``auto`` for those that are known, read as None."""

    def __init__(self, known: str) -> None:
        self.allowed = f"auto ({known}), or a list of folders; an empty one: none"

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if isinstance(node, Scalar):
            if node.text == "auto":
                return None
            return (FilePath().read(node, path, reading),)
        if not isinstance(node, Items):
            raise Wrong("is not a list")
        good: list[str] = []
        for index, item in enumerate(node.nodes):
            try:
                good.append(FilePath().read(item, path, reading))
            except Wrong as wrong:
                reading.wrong(item.where, f"{path}[{index}]", f"{shown(item)}: {wrong}")
        return tuple(dict.fromkeys(good)) if len(good) == len(node.nodes) else BROKEN

    def write(self, value: Any) -> object:
        return "auto" if value is None else list(value)


class Url:
    allowed: str = "http://host:port, or with a path: http://host:port/path"

    def read(self, node: Node, _path: str, _reading: Reading) -> str:
        text = text_of(node)
        match = re.fullmatch(r"http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(/[!-~]*)?", text)
        if match is None:
            if text.startswith("https://"):
                raise Wrong("asks for TLS, which gpud does not speak to engines")
            if "@" in text:
                raise Wrong("holds a user name; gpud sends none")
            raise Wrong("is not an address of an engine")
        if match[2] is not None and not 1 <= int(match[2]) <= 65535:
            raise Wrong(f"has the port {match[2]}, which is not from 1 to 65535")
        if match[3] and re.search("[?#]", match[3]):
            raise Wrong('has a query or a fragment ("?" or "#")')
        return text.rstrip("/")

    def write(self, value: Any) -> object:
        return value


class WebAddress:
    """Where something on the web is told: unlike an engine's address it may have TLS, a user and a query."""

    allowed: str = "http://… or https://…, with a path and a query where the receiver wants them"

    def read(self, node: Node, _path: str, _reading: Reading) -> str:
        text = text_of(node)
        host = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
        match = re.fullmatch(rf"https?://(?:[!-.0->A-~]*@)?{host}(?::([0-9]{{1,5}}))?(?:[/?][!-~]*)?", text)
        if match is None:
            raise Wrong("is not an address on the web")
        if match[1] is not None and not 1 <= int(match[1]) <= 65535:
            raise Wrong(f"has the port {match[1]}, which is not from 1 to 65535")
        try:
            urlsplit(text)
        except ValueError:
            raise Wrong("has a host in brackets that is no IPv6 address") from None
        if "#" in text:
            raise Wrong('has a fragment ("#"), which is never sent')
        return text

    def write(self, value: Any) -> object:
        return value


OTHER_NAMES = {other: kind.name for kind in ENGINES for other in kind.also}
"""What engines are called elsewhere."""


def check_engine(text: str, reading: Reading) -> None:
    """Raises Wrong for what cannot be, or is not, the name of an engine."""
    known = reading.known_engines
    if text in OTHER_NAMES:
        raise Wrong(f'is not what the engine is called here; did you mean "{OTHER_NAMES[text]}"?')
    if not re.fullmatch("[a-z][a-z0-9_]{0,63}", text):
        plain = text.lower().replace("-", "_").replace(".", "_")
        near = nearest(plain, sorted(known or BUILT_IN))
        raise Wrong(f"is not the name of an engine (a-z, 0-9 and _, beginning with a letter){near}")
    if known is not None and text not in known:
        raise Wrong(f"is not an engine that is installed here ({' '.join(known)}){nearest(text, sorted(known))}")


class Texts:
    """A list of texts; each item is checked by ``check``, which raises :class:`Wrong`."""

    def __init__(self, allowed: str, check: Callable[[str], None], *, least: int = 0) -> None:
        self.allowed = allowed
        self.check = check
        self.least = least

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if not isinstance(node, Items):
            raise Wrong("is not a list")
        if len(node.nodes) < self.least:
            raise Wrong("is empty")
        good: list[str] = []
        for index, item in enumerate(node.nodes):
            try:
                if isinstance(item, Scalar) and item.is_null:
                    raise Wrong("is empty; put it in quotes if that is meant")
                text = text_of(item)
                self.check(text)
                good.append(text)
            except Wrong as wrong:
                reading.wrong(item.where, f"{path}[{index}]", f"{shown(item)}: {wrong}")
        return tuple(good) if len(good) == len(node.nodes) else BROKEN

    def write(self, value: Any) -> object:
        return list(value)


class Environment:
    """Variables for a process. Values are taken as they were written and never shown in a message."""

    allowed = "a map of names (A-Z, 0-9, _) to values"

    def __init__(self, check: Callable[[str], None]) -> None:
        self.check = check  # of a name

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if not isinstance(node, Table):
            raise Wrong("is not a map")
        good: list[tuple[str, str]] = []
        for name, entry in node.entries.items():
            try:
                if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                    raise Wrong("is not the name of a variable")
                self.check(name)
                value = entry.node
                if isinstance(value, Scalar) and value.is_null:
                    raise Wrong('has no value; write "" if that is meant')
                good.append((name, text_of(value)))
            except Wrong as wrong:
                reading.wrong(entry.where, f"{path}.{name}", str(wrong))
        return tuple(good) if len(good) == len(node.entries) else BROKEN

    def write(self, value: Any) -> object:
        return dict(value)


class Json:
    """A map that is sent to an engine as JSON."""

    allowed: str = "a map, sent as JSON"

    def read(self, node: Node, _path: str, _reading: Reading) -> Any:
        if not isinstance(node, Table):
            raise Wrong("is not a map")
        return plain_data(node)

    def write(self, value: Any) -> object:
        return value


def plain_data(node: Node) -> Any:
    """What JSON makes of a node."""
    if isinstance(node, Table):
        return {key: plain_data(entry.node) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [plain_data(item) for item in node.nodes]
    kind = node.looks_like
    if kind == "null":
        return None
    if kind == "flag" and node.text.lower() in ("true", "false"):
        return node.text.lower() == "true"
    if kind == "number" and re.fullmatch(WHOLE, node.text):
        return int(node.text)
    if kind == "number" and re.fullmatch(DECIMAL, node.text.lstrip("+-")):
        value = float(node.text)
        if not math.isfinite(value):
            raise Wrong(f"holds {node.text}, which is beyond what JSON can carry")
        return value
    return node.text
