"""Reads HTTP/1.1 off the wire, strictly: heads of requests and answers, and where a body ends. It never does I/O.

What two readers could understand in two ways is refused, because a gateway that reads it one way in front of an engine
that reads it the other way lets one client speak in another's name. There is one reader, and it is this one; the tests
hold it against llhttp.
"""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from gpud.core.record import Struct, field
from gpud.http.fields import (
    FIELD_NAME,
    TOKEN,
    VALUE,
    FieldItems,
    Fields,
    Malformed,
    Refused,
    connection_options,
    read_fields,
    shown,
    status_line,
    write_head,
)
from gpud.http.limits import HeadLimits

__all__ = [
    "FieldItems",
    "Fields",
    "Malformed",
    "Refused",
    "RequestHead",
    "ResponseHead",
    "decode_path",
    "is_hopeless",
    "read_request_head",
    "read_response_head",
    "status_line",
    "write_head",
]

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"{1,32}) ([!-~]+) HTTP/([0-9]\.[0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + VALUE + rb"*))?")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(rb"[0-9]{1,15}")

# Heads ---------------------------------------------------------------------------------------------------------------


class RequestHead(Struct):
    """What the head of a request says. ``length`` is None for a chunked body, 0 without one.

    ``kept`` is for what follows from the head alone, the length of its body left out: on its connection the next head
    of the same bytes has it too.
    """

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
    kept: dict[str, Any] = field(default_factory=dict)

    def with_length(self, digits: bytes) -> "RequestHead":
        return RequestHead(
            self.method,
            self.target,
            self.raw_path,
            self.path,
            self.query,
            self.version,
            self.fields.with_length(digits),
            int(digits),
            self.keep_alive,
            self.expects,
            self.upgrade,
            self.kept,
        )


class ResponseHead(Struct):
    """What the head of an answer says. ``length`` is the Content-Length, None where there is none; ``body_length`` that
    of the body that comes, None when it is chunked or ends with the connection. ``kept`` as in RequestHead.
    """

    status: int
    reason: str
    version: int
    fields: Fields
    length: int | None
    body_length: int | None
    chunked: bool
    keep_alive: bool
    kept: dict[str, Any] = field(default_factory=dict)

    def with_length(self, digits: bytes) -> "ResponseHead":
        length, fields = int(digits), self.fields.with_length(digits)
        return ResponseHead(
            self.status, self.reason, self.version, fields, length, length, self.chunked, self.keep_alive, self.kept
        )

    @property
    def is_plain(self) -> bool:
        """Whether the length that it says is that of the body that comes."""
        return self.body_length == self.length and self.status >= 200 and self.status not in (204, 304)


def read_request_head(head: bytes, limits: HeadLimits) -> RequestHead:
    """Read a head, from its request line to the last field's line break; the empty line is not part of it.

    Raises Refused with 400, 414, 417, 431, 501 or 505.
    """
    line, _, rest = head.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Refused(400, f"cannot read the request line {shown(line)}: it must be METHOD target HTTP/1.1")
    raw_method, raw_target, protocol = found.groups()
    if protocol not in (b"1.1", b"1.0"):
        raise Refused(505, f"cannot serve HTTP/{protocol.decode()}: HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(raw_target) > limits.target_bytes:
        raise Refused(414, f"the target is {len(raw_target)} bytes long; {limits.target_bytes} are allowed")
    method, target = raw_method.decode("ascii"), raw_target.decode("ascii")
    version = protocol == b"1.1"
    fields = read_fields(rest, limits)
    host = _host(fields, version)
    raw_path, path, query = _split_target(method, target, host)
    index = fields.index
    length: int | None = 0
    if b"transfer-encoding" in index and _is_chunked(fields, version):
        length = None
    elif b"content-length" in index:
        length = _content_length(fields)
    keep_alive, upgrade, expects = version, "", False
    connection = fields.index.get(b"connection")
    if connection is not None:
        options = connection_options(connection)
        keep_alive = b"close" not in options and (version or b"keep-alive" in options)
        if version and b"upgrade" in options:
            upgrade = fields.get("upgrade")
    expect = fields.index.get(b"expect")
    if expect is not None and version:
        if expect.lower() != b"100-continue":
            raise Refused(417, f"cannot meet the expectation {shown(expect)}: only 100-continue is known")
        expects = length != 0
    return RequestHead(
        method, target, raw_path, path, query, int(version), fields, length, keep_alive, expects, upgrade
    )


def read_response_head(head: bytes, method: str, limits: HeadLimits) -> ResponseHead:
    """Read the head of an answer to a request with the given method. Raises Malformed."""
    line, _, rest = head.partition(b"\r\n")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed(f"the status line is {shown(line)}")
    status, version = int(found[2]), found[1] == b"1"
    try:
        fields = read_fields(rest, limits)
        chunked = b"transfer-encoding" in fields.index and _is_chunked(fields, version)
        length = _content_length(fields) if b"content-length" in fields.index else None
    except Refused as problem:
        raise Malformed(problem.message) from None
    connection = fields.index.get(b"connection")
    keep_alive = version
    if connection is not None:
        options = connection_options(connection)
        keep_alive = b"close" not in options and (version or b"keep-alive" in options)
    body_length = length
    if status < 200 or status in (204, 304) or method == "HEAD":
        body_length, chunked = 0, False
    reason = (found[3] or b"").decode("latin-1")
    return ResponseHead(status, reason, int(version), fields, length, body_length, chunked, keep_alive)


def is_hopeless(start: bytes | bytearray) -> str:
    """Why a head whose end has not come yet can never become one; empty while it can."""
    if start.count(b"\n") != start.count(b"\r\n"):
        return "a line does not end with CR LF"
    if start.count(b"\r") > start.count(b"\r\n") + start.endswith(b"\r"):
        return "a CR stands alone"
    if b"\0" in start:
        return "it contains a NUL"
    if not start[:1].isalpha() and FIELD_NAME.match(start[:1]) is None and start[:2] not in (b"\r", b"\r\n"):
        return f"it begins with {shown(bytes(start[:8]))}"
    return ""


def _host(fields: Fields, version: bool) -> bytes | None:
    host = fields.index.get(b"host")
    if host is None:
        if version:
            raise Refused(400, "the request has no Host, which HTTP/1.1 demands")
        return None
    if fields.is_repeated(b"host"):
        raise Refused(400, "the request has more than one Host")
    if host not in _good_hosts and not _is_good_host(host):
        raise Refused(400, f"the Host {shown(host)} is not a host name or an address with an optional port")
    return host


_good_hosts: set[bytes] = set()
"""Hosts that were looked at and are well written: nearly every request has one of a few. Bounded."""

_HOSTS_KEPT = 64


def _is_good_host(host: bytes) -> bool:
    if _HOST.fullmatch(host) is None:
        return False
    if len(_good_hosts) < _HOSTS_KEPT:
        _good_hosts.add(host)
    return True


def _split_target(method: str, target: str, host: bytes | None) -> tuple[str, str, str]:
    """Raw path, decoded path, query."""
    if "#" in target:
        raise Refused(400, f"the target {shown(target)} contains a #")
    if method == "CONNECT":
        raise Refused(501, "CONNECT is not served: gpud is no proxy")
    rest = target
    if target[0] != "/":
        if target == "*" and method == "OPTIONS":
            return "*", "*", ""
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise Refused(400, f"the target {shown(target)} is not a path")
        if host is not None and absolute[1].lower() != host.decode("latin-1").lower():
            raise Refused(400, f"the target names {shown(absolute[1])}, the Host {shown(host)}")
        if not absolute[1] or _HOST.fullmatch(absolute[1].encode()) is None:
            raise Refused(400, f"the target names no host: {shown(target)}")
        rest = absolute[2] if absolute[2][:1] == "/" else "/" + absolute[2]
    raw_path, _, query = rest.partition("?")
    return raw_path, decode_path(raw_path), query


def decode_path(raw: str) -> str:
    """A path, or a part of one, with its percent signs decoded once. Raises Refused where that gives no clean text."""
    if "%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise Refused(400, f"the path {shown(raw)} has a % without two hexadecimal digits")
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Refused(400, f"the path {shown(raw)} is not UTF-8 when decoded") from None
    if any(ch < " " or ch == "\x7f" for ch in path):
        raise Refused(400, f"the path {shown(raw)} contains a control character when decoded")
    return path


def _content_length(fields: Fields) -> int:
    value = fields.index[b"content-length"]
    if _LENGTH.fullmatch(value) is not None:
        return int(value)
    if b"," in value:
        raise Refused(400, "there is more than one Content-Length")
    raise Refused(400, f"the Content-Length {shown(value)} is not a number of 1 to 15 digits")


def _is_chunked(fields: Fields, version: bool) -> bool:
    coding = fields.index[b"transfer-encoding"]
    if not version:
        raise Refused(400, "HTTP/1.0 knows no Transfer-Encoding")
    if b"content-length" in fields.index:
        raise Refused(400, "there are both a Content-Length and a Transfer-Encoding")
    if coding.lower() != b"chunked":
        if coding.lower().endswith(b"chunked") and not fields.is_repeated(b"transfer-encoding"):
            raise Refused(501, f"the Transfer-Encoding {shown(coding)} is not known; only chunked is")
        raise Refused(400, f"the Transfer-Encoding {shown(coding)} leaves the end of the body open")
    return True
