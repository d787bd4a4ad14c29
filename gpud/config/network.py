"""The kinds of values that say who is reached how: addresses, host names, origins, rates, the mode of a socket.

A kind raises nothing but :class:`Wrong`; names are never looked up.
"""

import re
from collections.abc import Callable
from typing import Any

from gpud.config.kinds import BROKEN, Reading, Wrong, text_of
from gpud.config.source import Items, Node, Scalar, shown
from gpud.core.keys import Rate

_NAME = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"


def host_name(text: str) -> str:
    """A name or an address in the one way to write it. Raises Wrong; ports and brackets are not part of it."""
    import ipaddress  # only whoever has such a value pays for the import

    name = text.lower().removesuffix(".")
    if not name.isascii():
        raise Wrong('has letters beyond ASCII; write it as DNS has it ("xn--…")')
    if re.fullmatch(r".*\.?(0x[0-9a-f]*|[0-9]+)", name) or ":" in name:
        if re.fullmatch(r"[a-z0-9._-]+:[0-9]+|\[.*\]:[0-9]+", name):
            raise Wrong("has a port; it stands in a key of its own")
        try:
            return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise Wrong("is not an address") from None
    if len(name) > 253 or not re.fullmatch(_NAME, name):
        raise Wrong("is empty" if not name else "is not a host name")
    return name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. A name other than localhost may be anything."""
    if host == "localhost":
        return True
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


class Several:
    """A list of texts, each made what it means by ``meaning``, which raises :class:`Wrong`.

    ``single``: one may stand without a list.
    """

    def __init__(self, allowed: str, meaning: Callable[[str], str], *, single: bool = False) -> None:
        self.allowed = allowed
        self._meaning = meaning
        self._single = single

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if self._single and isinstance(node, Scalar):
            return (self._meaning(text_of(node)),)
        if not isinstance(node, Items):
            raise Wrong("is not a list")
        good: list[str] = []
        for index, item in enumerate(node.nodes):
            try:
                good.append(self._meaning(text_of(item)))
            except Wrong as wrong:
                reading.wrong(item.where, f"{path}[{index}]", f"{shown(item)}: {wrong}; allowed: {self.allowed}")
        return tuple(dict.fromkeys(good)) if len(good) == len(node.nodes) else BROKEN

    def write(self, value: Any) -> object:
        return value[0] if self._single and len(value) == 1 else list(value)


def allowed_host(text: str) -> str:
    """A name by which clients reach a door. Raises Wrong."""
    if "*" in text:
        raise Wrong("stands for many names; a page of a stranger's could come by one of them: write each name out")
    if re.match(r"[a-z]+://", text):
        raise Wrong("is a whole address; write the name alone")
    return host_name(text)


def origin(text: str) -> str:
    """What a browser sends as Origin, or ``*``. Raises Wrong."""
    if text == "*":
        return text
    if text == "null":
        raise Wrong("is what every page without an origin sends, a stranger's too")
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]+)(/?)", text)
    if match is None:
        raise Wrong("is not an origin")
    if "*" in match[2]:
        raise Wrong("stands for many origins; write each of them out")
    scheme, rest = match[1].lower(), match[2]
    if scheme not in ("http", "https"):
        return f"{scheme}://{rest}"  # of an application or an extension, which spell it as they like
    parts = re.fullmatch(r"(\[[^]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", rest)
    if parts is None or (parts[2] is not None and not 1 <= int(parts[2]) <= 65535):
        raise Wrong("has a port that is not from 1 to 65535")
    host = host_name(parts[1])
    host = f"[{host}]" if ":" in host else host
    default = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" if parts[2] in (None, default) else f"{scheme}://{host}:{int(parts[2])}"


class FileMode:
    """Who may connect, as chmod writes it."""

    allowed: str = "a mode in octal digits like 0660"

    def read(self, node: Node, _path: str, _reading: Reading) -> int:
        text = text_of(node)
        if not re.fullmatch("(0o|0)?[0-7]{3}", text):
            raise Wrong("is not a mode")
        mode = int(text[-3:], 8)
        if mode & 0o600 != 0o600:
            raise Wrong("would lock out gpud itself")
        return mode

    def write(self, value: Any) -> object:
        return f"{value:04o}"


_PERIODS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class RateOf:
    """So many requests in a time."""

    allowed: str = "requests in a time, like 60/min, 5/s, 1000/h, 10000/d"

    def read(self, node: Node, _path: str, _reading: Reading) -> Rate:
        return rate(text_of(node))

    def write(self, value: Any) -> object:
        return str(value)


def rate(text: str) -> Rate:
    """Raises Wrong."""
    match = re.fullmatch(r"([1-9][0-9]{0,6}) ?/ ?(s|min|m|h|d)", text)
    if match is None:
        raise Wrong("is not a rate")
    return Rate(int(match[1]), _PERIODS[match[2]])
