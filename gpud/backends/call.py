"""Asks an engine one thing over HTTP/1.1: health, busy, unload. Never relays anybody's request, never keeps a
connection.

One connection a call, over a private Unix socket or loopback TCP; the answer is bounded in size and in time. A thing
on the other side that does not speak HTTP, speaks too much or does not speak at all is :class:`Unreachable`.
"""

import asyncio
import json
from collections.abc import Mapping
from enum import StrEnum

import httptools

from gpud.core.facts import Endpoint
from gpud.core.record import Record

LARGEST_ANSWER_BYTES = 16 << 20
"""No control answer of any engine comes near it; what is larger is not what was asked for."""

LARGEST_HEADER_BYTES = 64 << 10


class Trouble(StrEnum):
    """Why an engine was not reached."""

    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    CLOSED = "closed"
    GARBAGE = "garbage"
    TOO_LARGE = "too-large"


class Unreachable(Exception):
    """The question was not answered; ``str()`` says what was asked of whom and what happened instead."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


class Answer(Record):
    """What the engine said. Header names are in lower case; of repeated headers the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """The body as JSON; raises Unreachable when it is not."""
        try:
            value: object = json.loads(self.body)
        except (ValueError, RecursionError) as problem:
            start = self.body[:40].decode(errors="replace")
            raise Unreachable(
                f"answered with status {self.status} and something that is not JSON ({start!r}): {problem}",
                Trouble.GARBAGE,
            ) from None
        return value


def describe(endpoint: Endpoint) -> str:
    """Where an engine answers, for a message; never its key."""
    if endpoint.socket:
        return endpoint.socket
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"


async def request(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    body: Mapping[str, object] | None = None,
    timeout_s: float,
) -> Answer:
    """One question, one answer, whatever its status. Raises Unreachable; ``timeout_s`` bounds all of it."""
    asked = f"{method} {endpoint.base_path}{path} at {describe(endpoint)}"
    message = _request_bytes(endpoint, method, path, body)
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(endpoint, message, asked)
    except TimeoutError:
        raise Unreachable(f"{asked}: no answer within {timeout_s:g} s", Trouble.TIMED_OUT) from None


def _request_bytes(endpoint: Endpoint, method: str, path: str, body: Mapping[str, object] | None) -> bytes:
    target = endpoint.base_path.rstrip("/") + path
    host = "localhost" if endpoint.socket else describe(endpoint)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept: */*", "Connection: close"]
    if endpoint.key:
        lines.append(f"Authorization: Bearer {endpoint.key}")
    payload = b""
    if body is not None:
        payload = json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    elif method not in ("GET", "HEAD"):
        lines.append("Content-Length: 0")
    # A space or a line break in a configured path would make a second request out of one.
    for line in (method, target, endpoint.key):
        if any(ch <= " " or ch == "\x7f" for ch in line):
            raise Unreachable(
                f"cannot ask {method} {target!r}: it contains a space or a control character", Trouble.GARBAGE
            )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


async def _exchange(endpoint: Endpoint, message: bytes, asked: str) -> Answer:
    try:
        if endpoint.socket:
            reader, writer = await asyncio.open_unix_connection(endpoint.socket)
        else:
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError as problem:
        raise Unreachable(f"{asked}: {problem.strerror or problem}", Trouble.REFUSED) from None
    try:
        writer.write(message)
        return await _read_answer(reader, asked)
    except OSError as problem:
        raise Unreachable(f"{asked}: {problem.strerror or problem}", Trouble.CLOSED) from None
    finally:
        # Aborted, not closed: nothing that is still unsent is worth a wait, and no transport outlives the call.
        writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader, asked: str) -> Answer:
    collector = _Collector(asked)
    parser = httptools.HttpResponseParser(collector)
    collector.parser = parser
    while not collector.complete:
        data = await reader.read(1 << 16)
        if not data:
            if collector.ends_with_connection:
                break
            raise Unreachable(f"{asked}: the connection was closed before the answer was complete", Trouble.CLOSED)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Unreachable(f"{asked}: it wants to speak another protocol", Trouble.GARBAGE) from None
        except httptools.HttpParserError as problem:
            if collector.problem is not None:
                raise collector.problem from None
            if collector.complete:
                break
            raise Unreachable(f"{asked}: the answer is not HTTP ({problem})", Trouble.GARBAGE) from None
    return Answer(collector.status, collector.headers, b"".join(collector.body))


class _Collector:
    """Receives what the parser finds."""

    def __init__(self, asked: str) -> None:
        self.asked = asked
        self.parser: httptools.HttpResponseParser | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.complete = False
        self.problem: Unreachable | None = None
        self._seen_headers = False
        self._header_bytes = 0
        self._body_bytes = 0

    @property
    def ends_with_connection(self) -> bool:
        """True when the answer says nothing of its length: it is whole when the connection ends."""
        return self._seen_headers and "content-length" not in self.headers and "transfer-encoding" not in self.headers

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > LARGEST_HEADER_BYTES:
            self._refuse(f"its header is larger than {LARGEST_HEADER_BYTES >> 10} KiB")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        self.status = self.parser.get_status_code()
        if self.status >= 200:
            self._seen_headers = True

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > LARGEST_ANSWER_BYTES:
            self._refuse(f"the answer is larger than {LARGEST_ANSWER_BYTES >> 20} MiB")
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.status < 200:
            self.headers.clear()
            return
        self.complete = True

    def _refuse(self, why: str) -> None:
        self.problem = Unreachable(f"{self.asked}: {why}", Trouble.TOO_LARGE)
        raise self.problem
