"""Reads HTTP/1.1 off the wire, strictly: heads of requests and answers, and where a body ends. It never does I/O.

What two readers could understand in two ways is refused, because a gateway that reads it one way in front of an engine
that reads it the other way lets one client speak in another's name. There is one reader, and it is this one; the tests
hold it against llhttp.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from gpud.http.limits import LARGEST_CHUNK_LINE_BYTES, LARGEST_TRAILER_BYTES, HeadLimits

FieldItems = Iterable[tuple[str | bytes, str | bytes]]
"""Header fields as a handler gives them."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+")
_FIELD_NAME = re.compile(_TOKEN + rb"+")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,12}")
_CHUNK_EXTENSIONS = re.compile(rb"[\t ]*;[\t -~]*")

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""What concerns one connection alone and is never passed on."""


class Refused(Exception):
    """A request that cannot be served as it was sent. ``str()`` is the sentence for its client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Malformed(Exception):
    """What came is not HTTP, or could be read in two ways. ``str()`` says what is wrong with it."""


class Fields:
    """Header fields: names in any case, repeated ones kept. Iterates over the raw pairs, in order."""

    __slots__ = ("_index", "_repeated", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self._repeated: set[bytes] | None = None
        index: dict[bytes, bytes] = {}
        for name, value in raw:
            key = name.lower()
            if key in index:
                if self._repeated is None:
                    self._repeated = set()
                self._repeated.add(key)
                index[key] += b", " + value
            else:
                index[key] = value
        self._index = index

    def get(self, name: str, default: str = "") -> str:
        """The value; several are joined by a comma, as HTTP reads them."""
        value = self._index.get(name.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def all(self, name: str) -> list[str]:
        """Every value of the name, in order."""
        key = name.lower().encode("latin-1")
        return [value.decode("latin-1") for each, value in self.raw if each.lower() == key]

    def lowered(self, key: bytes) -> bytes | None:
        """The raw value by a name in lower case."""
        return self._index.get(key)

    def is_repeated(self, key: bytes) -> bool:
        return self._repeated is not None and key in self._repeated

    def __contains__(self, name: str) -> bool:
        return name.lower().encode("latin-1") in self._index

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        """Names only: values may be secrets."""
        return f"Fields({', '.join(name.decode('latin-1') for name, _ in self.raw)})"


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields without those that belong to the connection they came by, and without ``Content-Length``."""
    pairs = list(fields)
    named: set[bytes] = set()
    for name, value in pairs:
        if name.lower() == b"connection":
            named.update(each.strip().lower() for each in value.split(b","))
    return [
        (name, value)
        for name, value in pairs
        if (key := name.lower()) not in HOP_BY_HOP and key not in named and key != b"content-length"
    ]


# Heads ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RequestHead:
    """What the head of a request says. ``length`` is None for a chunked body, 0 without one."""

    method: str
    target: str
    raw_path: str
    path: str
    query: str
    version: int
    fields: Fields
    length: int | None
    keep_alive: bool
    expects: bool
    upgrade: str


@dataclass(slots=True)
class ResponseHead:
    """What the head of an answer says. ``length`` is the Content-Length, None where there is none; ``body_length`` that
    of the body that comes, None when it is chunked or ends with the connection.
    """

    status: int
    reason: str
    version: int
    fields: Fields
    length: int | None
    body_length: int | None
    chunked: bool
    keep_alive: bool


def read_request_head(head: bytes, limits: HeadLimits) -> RequestHead:
    """Read a head, from its request line to the last field's line break; the empty line is not part of it.

    Raises Refused with 400, 414, 417, 431, 501 or 505.
    """
    line, _, rest = head.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Refused(400, f"cannot read the request line {_shown(line)}: it must be METHOD target HTTP/1.1")
    method, target = found[1].decode("ascii"), found[2].decode("ascii")
    if found[3] != b"1" or found[4] not in (b"0", b"1"):
        version = (found[3] + b"." + found[4]).decode()
        raise Refused(505, f"cannot serve HTTP/{version}: HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(target) > limits.target_bytes:
        raise Refused(414, f"the target is {len(target)} bytes long; {limits.target_bytes} are allowed")
    version = found[4] == b"1"
    fields = _read_fields(rest, limits)
    host = _host(fields, version)
    raw_path, path, query = _split_target(method, target, host)
    length = _request_length(fields, version)
    connection = fields.lowered(b"connection")
    options = frozenset(each.strip() for each in connection.lower().split(b",")) if connection else frozenset()
    expects = False
    expect = fields.lowered(b"expect")
    if expect is not None and version:
        if expect.lower() != b"100-continue":
            raise Refused(417, f"cannot meet the expectation {_shown(expect)}: only 100-continue is known")
        expects = length != 0
    upgrade = ""
    if b"upgrade" in options and version:
        upgrade = fields.get("upgrade")
    return RequestHead(
        method=method,
        target=target,
        raw_path=raw_path,
        path=path,
        query=query,
        version=int(version),
        fields=fields,
        length=length,
        keep_alive=b"close" not in options if version else b"keep-alive" in options and b"close" not in options,
        expects=expects,
        upgrade=upgrade,
    )


def read_response_head(head: bytes, method: str, limits: HeadLimits) -> ResponseHead:
    """Read the head of an answer to a request with the given method. Raises Malformed."""
    line, _, rest = head.partition(b"\r\n")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed(f"the status line is {_shown(line)}")
    status, version = int(found[2]), found[1] == b"1"
    try:
        fields = _read_fields(rest, limits)
        length, chunked = _response_length(fields, version)
    except Refused as problem:
        raise Malformed(problem.message) from None
    connection = fields.lowered(b"connection")
    options = frozenset(each.strip() for each in connection.lower().split(b",")) if connection else frozenset()
    body_length = length
    if status < 200 or status in (204, 304) or method == "HEAD":
        body_length, chunked = 0, False
    return ResponseHead(
        status=status,
        reason=(found[3] or b"").decode("latin-1"),
        version=int(version),
        fields=fields,
        length=length,
        body_length=body_length,
        chunked=chunked,
        keep_alive=b"close" not in options if version else b"keep-alive" in options,
    )


def is_hopeless(start: bytes | bytearray) -> str:
    """Why a head whose end has not come yet can never become one; empty while it can."""
    if start.count(b"\n") != start.count(b"\r\n"):
        return "a line does not end with CR LF"
    if start.count(b"\r") > start.count(b"\r\n") + start.endswith(b"\r"):
        return "a CR stands alone"
    if b"\0" in start:
        return "it contains a NUL"
    if not start[:1].isalpha() and _FIELD_NAME.match(start[:1]) is None and start[:2] not in (b"\r", b"\r\n"):
        return f"it begins with {_shown(bytes(start[:8]))}"
    return ""


def _read_fields(block: bytes, limits: HeadLimits) -> Fields:
    """The lines of a header; each ends with CR LF, but for the last one, whose line break may be missing."""
    if not block:
        return Fields([])
    if not block.endswith(b"\r\n"):
        block += b"\r\n"
    count = block.count(b"\r\n")
    if count > limits.fields:
        raise Refused(431, f"the header has {count} fields; {limits.fields} are allowed")
    if _FIELDS.fullmatch(block) is None:
        raise Refused(400, _blame(block))
    raw = []
    for line in block[:-2].split(b"\r\n"):
        name, _, value = line.partition(b":")
        raw.append((name, value.strip(b" \t")))
    return Fields(raw)


def _blame(block: bytes) -> str:
    """What is wrong with a header that was refused, in the words of its first bad line."""
    for line in block[:-2].split(b"\r\n"):
        if _FIELDS.fullmatch(line + b"\r\n") is not None:
            continue
        if line[:1] in (b" ", b"\t"):
            return f"the header line {_shown(line)} begins with a space: folded lines are not accepted"
        name, colon, _ = line.partition(b":")
        if not colon:
            return f"the header line {_shown(line)} has no colon"
        if _FIELD_NAME.fullmatch(name) is None:
            return f"{_shown(name)} is not the name of a header field"
        return f"the header field {_shown(name)} contains a control character"
    return "the header cannot be read"


def _host(fields: Fields, version: bool) -> bytes | None:
    host = fields.lowered(b"host")
    if host is None:
        if version:
            raise Refused(400, "the request has no Host, which HTTP/1.1 demands")
        return None
    if fields.is_repeated(b"host"):
        raise Refused(400, "the request has more than one Host")
    if _HOST.fullmatch(host) is None:
        raise Refused(400, f"the Host {_shown(host)} is not a host name or an address with an optional port")
    return host


def _split_target(method: str, target: str, host: bytes | None) -> tuple[str, str, str]:
    """Raw path, decoded path, query."""
    if "#" in target:
        raise Refused(400, f"the target {_shown(target)} contains a #")
    if method == "CONNECT":
        raise Refused(501, "CONNECT is not served: gpud is no proxy")
    rest = target
    if target[0] != "/":
        if target == "*" and method == "OPTIONS":
            return "*", "*", ""
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise Refused(400, f"the target {_shown(target)} is not a path")
        if host is not None and absolute[1].lower() != host.decode("latin-1").lower():
            raise Refused(400, f"the target names {_shown(absolute[1])}, the Host {_shown(host)}")
        if not absolute[1] or _HOST.fullmatch(absolute[1].encode()) is None:
            raise Refused(400, f"the target names no host: {_shown(target)}")
        rest = absolute[2] if absolute[2][:1] == "/" else "/" + absolute[2]
    raw_path, _, query = rest.partition("?")
    return raw_path, decode_path(raw_path), query


def decode_path(raw: str) -> str:
    """A path, or a part of one, with its percent signs decoded once. Raises Refused where that gives no clean text."""
    if "%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise Refused(400, f"the path {_shown(raw)} has a % without two hexadecimal digits")
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Refused(400, f"the path {_shown(raw)} is not UTF-8 when decoded") from None
    if any(ch < " " or ch == "\x7f" for ch in path):
        raise Refused(400, f"the path {_shown(raw)} contains a control character when decoded")
    return path


def _content_length(fields: Fields) -> int | None:
    value = fields.lowered(b"content-length")
    if value is None:
        return None
    if fields.is_repeated(b"content-length") or b"," in value:
        raise Refused(400, "there is more than one Content-Length")
    if _LENGTH.fullmatch(value) is None:
        raise Refused(400, f"the Content-Length {_shown(value)} is not a number")
    return int(value)


def _is_chunked(fields: Fields, version: bool) -> bool:
    coding = fields.lowered(b"transfer-encoding")
    if coding is None:
        return False
    if not version:
        raise Refused(400, "HTTP/1.0 knows no Transfer-Encoding")
    if b"content-length" in fields._index:
        raise Refused(400, "there are both a Content-Length and a Transfer-Encoding")
    if coding.lower() != b"chunked":
        if coding.lower().endswith(b"chunked") and not fields.is_repeated(b"transfer-encoding"):
            raise Refused(501, f"the Transfer-Encoding {_shown(coding)} is not known; only chunked is")
        raise Refused(400, f"the Transfer-Encoding {_shown(coding)} leaves the end of the body open")
    return True


def _request_length(fields: Fields, version: bool) -> int | None:
    if _is_chunked(fields, version):
        return None
    return _content_length(fields) or 0


def _response_length(fields: Fields, version: bool) -> tuple[int | None, bool]:
    if _is_chunked(fields, version):
        return None, True
    return _content_length(fields), False


def _shown(text: bytes | str) -> str:
    """At most 60 characters of what was sent, safe to print."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    cut = text if len(text) <= 60 else text[:60] + "…"
    return '"' + "".join(ch if " " <= ch <= "~" or ch == "…" else f"\\x{ord(ch):02x}" for ch in cut) + '"'


# Bodies --------------------------------------------------------------------------------------------------------------


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    BREAK = auto()
    TRAILER = auto()
    END = auto()


_sizes: dict[bytes, int] = {}
"""Chunk sizes that were read and found good, so that most need no second look; bounded."""

_SIZES_KEPT = 4096


def _chunk_size(line: bytes) -> int:
    """The size that a chunk's line says. Raises Malformed."""
    found = _CHUNK_SIZE.match(line)
    if found is None or len(line) > LARGEST_CHUNK_LINE_BYTES:
        raise Malformed(f"the chunk size {_shown(line)} cannot be read")
    if found.end() == len(line):
        size = int(line, 16)
        if len(_sizes) < _SIZES_KEPT and size:
            _sizes[line] = size
        return size
    if _CHUNK_EXTENSIONS.fullmatch(line, found.end()) is None:
        raise Malformed(f"the chunk size {_shown(line)} cannot be read")
    return int(found[0], 16)


class ChunkedReader:
    """Takes the chunked coding off a body, however its bytes are split. ``ended`` once the last chunk was read."""

    __slots__ = ("_at", "_left", "_line", "_trailer_bytes", "ended")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self.ended = False

    def is_whole(self, data: bytes) -> bool:
        """True when the data are one or more complete chunks, plainly written, and not the last one.

        They may then be passed on as they are. Nothing is remembered of them: at their end all is as before.
        """
        if self._at is not _At.SIZE or self._line:
            return False
        place, end = 0, len(data)
        find, sizes = data.find, _sizes
        while place < end:
            line_end = find(b"\r\n", place, place + 16)
            if line_end < 0:
                return False
            line = data[place:line_end]
            size = sizes.get(line, 0)
            if not size:
                if _CHUNK_SIZE.fullmatch(line) is None:
                    return False
                size = _chunk_size(line)
                if not size:
                    return False
            place = line_end + size + 4
            if place > end or data[place - 2 : place] != b"\r\n":
                return False
        return True

    def feed(self, data: bytes, found: list[bytes]) -> int:
        """Read on; what belongs to the body is appended. The count of bytes read: all, unless the body ended before.

        Raises Malformed.
        """
        place, end = 0, len(data)
        while place < end:
            if self._at is _At.DATA:
                piece = data[place : place + self._left]
                found.append(piece)
                place += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._at = _At.BREAK
                continue
            line_end = data.find(b"\n", place)
            stop = line_end + 1 if line_end >= 0 else end
            line = self._line + data[place:stop]
            place = stop
            if line_end < 0:
                self._keep(line)
                break
            if not line.endswith(b"\r\n"):
                raise Malformed("a line of the chunked body does not end with CR LF")
            self._line = b""
            self._take(line[:-2])
            if self.ended:
                break
        return place

    def _keep(self, line: bytes) -> None:
        """Remember the begin of a line, unless it can become none."""
        largest = LARGEST_TRAILER_BYTES if self._at is _At.TRAILER else LARGEST_CHUNK_LINE_BYTES
        if self._at is _At.BREAK and line != b"\r":
            raise Malformed("a chunk is longer than its size says")
        if self._at is _At.SIZE and _CHUNK_SIZE.match(line) is None:
            raise Malformed(f"the chunk size {_shown(line)} cannot be read")
        if len(line) > largest + 1:
            raise Malformed(f"a line of the chunked body is longer than {largest} bytes")
        self._line = line

    def _take(self, line: bytes) -> None:
        """One complete line that is not data."""
        if self._at is _At.BREAK:
            if line:
                raise Malformed("a chunk is longer than its size says")
            self._at = _At.SIZE
        elif self._at is _At.SIZE:
            self._left = _chunk_size(line)
            self._at = _At.DATA if self._left else _At.TRAILER
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > LARGEST_TRAILER_BYTES:
                raise Malformed(f"the trailer is larger than {LARGEST_TRAILER_BYTES >> 10} KiB")
            if _FIELDS.fullmatch(line + b"\r\n") is None:
                raise Malformed(_blame(line + b"\r\n"))
        else:
            self._at = _At.END
            self.ended = True


class LengthReader:
    """Reads a body whose length was said."""

    __slots__ = ("ended", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.ended = not length

    def feed(self, data: bytes, found: list[bytes]) -> int:
        if len(data) < self.left:
            self.left -= len(data)
            found.append(data)
            return len(data)
        taken = self.left
        if taken:
            found.append(data if taken == len(data) else data[:taken])
        self.left = 0
        self.ended = True
        return taken


class EndlessReader:
    """Reads a body that ends with its connection."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: bytes, found: list[bytes]) -> int:
        found.append(data)
        return len(data)


BodyReader = ChunkedReader | LengthReader | EndlessReader


# Writing -------------------------------------------------------------------------------------------------------------

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()


def write_head(first_line: bytes, fields: FieldItems, framing: bytes = b"", date: bytes = b"") -> bytes:
    """A head as bytes; ``framing`` are ready lines of our own that go last, and ``date`` another one that is left out
    when the fields have theirs. Raises ValueError for a field that would become more than one, or that would say again
    how long the body is.
    """
    parts = [first_line]
    count = 1 + framing.count(b"\n")
    for name, value in fields:
        if isinstance(name, str):
            name = name.encode("latin-1")
        if isinstance(value, str):
            value = value.encode("latin-1", "replace")
        key = name.lower()
        if key == b"date":
            date = b""
        elif key in _OURS:
            raise ValueError(f"the layer itself says {name.decode('latin-1')}; a handler must not")
        parts += (name, b": ", value, b"\r\n")
        count += 1
    if date:
        count += 1
    parts += (date, framing, b"\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != count + 1 or head.count(b"\r") != count + 1 or b"\0" in head:
        raise ValueError("a header field contains a line break or a NUL")
    return head


_OURS = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))
