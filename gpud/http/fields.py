"""Header fields: read strictly, looked up by name, written. It never does I/O."""

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import NamedTuple

from gpud.http.limits import HeadLimits

FieldItems = Iterable[tuple[str | bytes, str | bytes]]
"""Header fields as a handler gives them."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]"
_FIELD = re.compile(rb"^(" + TOKEN + rb"++):[\t ]*+(" + VALUE + rb"*+)\r\n", re.MULTILINE)
FIELD_NAME = re.compile(TOKEN + rb"+")

LENGTH = b"content-length"


class Refused(Exception):
    """A request that cannot be served as it was sent. ``str()`` is the sentence for its client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Malformed(Exception):
    """What came is not HTTP, or could be read in two ways. ``str()`` says what is wrong with it."""


class Fields:
    """Header fields: names in any case, repeated ones kept. Iterates over the raw pairs, in order.

    ``index`` has the raw values by names in lower case, repeated ones joined.
    """

    __slots__ = ("_repeated", "index", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self.index = {name.lower(): value for name, value in raw}
        self._repeated: frozenset[bytes] = frozenset()
        if len(self.index) != len(raw):
            self._join()

    def _join(self) -> None:
        """Some names come more than once."""
        index: dict[bytes, bytes] = {}
        repeated = set()
        for name, value in self.raw:
            key = name.lower()
            if key in index:
                repeated.add(key)
                index[key] += b", " + value
            else:
                index[key] = value
        self.index = index
        self._repeated = frozenset(repeated)

    def with_length(self, digits: bytes) -> "Fields":
        """The same with another value of Content-Length, which is there once."""
        other = Fields.__new__(Fields)
        other.raw = [
            (name, digits if len(name) == 14 and name.lower() == LENGTH else value) for name, value in self.raw
        ]
        other.index = {**self.index, LENGTH: digits}
        other._repeated = self._repeated
        return other

    def get(self, name: str, default: str = "") -> str:
        """The value; several are joined by a comma, as HTTP reads them."""
        value = self.index.get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def lowered(self, key: bytes) -> bytes | None:
        """The raw value by a name in lower case."""
        return self.index.get(key)

    def is_repeated(self, key: bytes) -> bool:
        return key in self._repeated

    def __contains__(self, name: str) -> bool:
        return name.lower().encode("latin-1") in self.index

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        """Names only: values may be secrets."""
        return f"Fields({', '.join(name.decode('latin-1') for name, _ in self.raw)})"


def connection_options(connection: bytes | None) -> frozenset[bytes]:
    """What a Connection field says."""
    if connection is None:
        return frozenset()
    return frozenset(each.strip() for each in connection.lower().split(b","))


# Reading -----------------------------------------------------------------------------------------------------------


def read_fields(block: bytes, limits: HeadLimits) -> Fields:
    """The lines of a header, without the line break of the last one."""
    if not block:
        return Fields([])
    block += b"\r\n"
    count = block.count(b"\n")
    if count > limits.fields:
        raise Refused(431, f"the header has {count} fields; {limits.fields} are allowed")
    raw: list[tuple[bytes, bytes]] = _FIELD.findall(block)
    if len(raw) != count:
        # Each match is a whole line: a line without one cannot be read.
        raise Refused(400, blame(block))
    if b" \r\n" in block or b"\t\r\n" in block:
        raw = [(name, value.rstrip(b" \t")) for name, value in raw]
    return Fields(raw)


def blame(block: bytes) -> str:
    """What is wrong with a header that was refused, in the words of its first bad line."""
    for line in block[:-2].split(b"\r\n"):
        if _FIELD.fullmatch(line + b"\r\n") is not None:
            continue
        if b"\n" in line:
            return f"the header line {shown(line)} does not end with CR LF"
        if line[:1] in (b" ", b"\t"):
            return f"the header line {shown(line)} begins with a space: folded lines are not accepted"
        name, colon, _ = line.partition(b":")
        if not colon:
            return f"the header line {shown(line)} has no colon"
        if FIELD_NAME.fullmatch(name) is None:
            return f"{shown(name)} is not the name of a header field"
        return f"the header field {shown(name)} contains a control character"
    return "the header cannot be read"


def is_field(line: bytes) -> bool:
    """True for one line that reads as a field."""
    return _FIELD.fullmatch(line + b"\r\n") is not None


def shown(text: bytes | str) -> str:
    """At most 60 characters of what was sent, safe to print."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    cut = text if len(text) <= 60 else text[:60] + "…"
    return '"' + "".join(ch if " " <= ch <= "~" or ch == "…" else f"\\x{ord(ch):02x}" for ch in cut) + '"'


# Writing -----------------------------------------------------------------------------------------------------------

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()


class HeadStart(NamedTuple):
    """A head but for its last lines, looked at and ready to be sent. ``is_dated``: the fields have their own Date."""

    text: bytes
    is_dated: bool

    def finished(self, framing: bytes, date: bytes = b"") -> bytes:
        """The whole head. ``framing`` are ready lines of our own, and so is ``date``, unless there is one already."""
        return b"".join((self.text, b"" if self.is_dated else date, framing, b"\r\n"))


def start_head(first_line: bytes, fields: FieldItems, without: frozenset[bytes] = frozenset()) -> HeadStart:
    """Fields that begin as one of ``without`` are left out. Raises ValueError for a field that would become more than
    one, or that would say again how long the body is.
    """
    parts = [first_line]
    lines = first_line.count(b"\n")
    is_dated = False
    for name, value in fields:
        prefix = _prefixes.get(name) or _prefix(name)
        if prefix in _SPECIAL_VALUES:
            is_dated = is_dated or prefix is _DATE
            if prefix in without:
                continue
        parts += (prefix, value if isinstance(value, bytes) else value.encode("latin-1", "replace"), b"\r\n")
        lines += 1
    text = b"".join(parts)
    if text.count(b"\n") != lines or text.count(b"\r") != lines or b"\0" in text:
        raise ValueError("a header field contains a line break or a NUL")
    return HeadStart(text, is_dated)


def write_head(
    first_line: bytes,
    fields: FieldItems,
    framing: bytes = b"",
    date: bytes = b"",
    without: frozenset[bytes] = frozenset(),
) -> bytes:
    """A head as bytes, as :func:`start_head` and :meth:`HeadStart.finished` make it."""
    return start_head(first_line, fields, without).finished(framing, date)


_OURS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))
_DATE, HOST, AUTHORIZATION, UPGRADE = b"Date: ", b"Host: ", b"Authorization: ", b"Upgrade: "
_SPECIAL = {each.lower(): each for each in (_DATE, HOST, AUTHORIZATION, UPGRADE)}
"""These are written in one way, however they are given, so that they are known again."""

_SPECIAL_VALUES = frozenset(_SPECIAL.values())
_prefixes: dict[str | bytes, bytes] = {}
"""Names that were looked at, as they begin a line. Bounded."""

_PREFIXES_KEPT = 512


def _prefix(name: str | bytes) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode("latin-1")
    if FIELD_NAME.fullmatch(raw) is None:
        raise ValueError(f"{shown(raw)} is not the name of a header field")
    if raw.lower() in _OURS:
        raise ValueError(f"the layer itself says {raw.decode('latin-1')}; a handler must not")
    prefix = raw + b": "
    prefix = _SPECIAL.get(prefix.lower(), prefix)
    if len(_prefixes) < _PREFIXES_KEPT:
        _prefixes[name] = prefix
    return prefix
