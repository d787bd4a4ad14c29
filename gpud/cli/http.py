"""A small HTTP client for gpud's doors: where a door is, with which key it is asked, plain answers and streams.

It follows no redirect, and shows the key to nobody but the door. Whatever goes wrong comes out as a GpudError:
NotRunning where nobody answers, HttpError for what gpud says.
"""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpud.cli.arguments import Parser
from gpud.cli.exits import BusError, NotRunning, Usage
from gpud.core.errors import ConfigInvalid, GpudError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse
    from socket import socket

CONNECT_S = 5.0
"""To reach a door, which takes milliseconds on this machine and a second on a bad network."""

ASK_S = 15.0
"""For an answer of gpud's own, which waits for no model."""

ANSWER_BYTES = 64 << 20
"""The largest answer that is read whole."""

LINE_BYTES = 16 << 20
"""The longest line of a stream that is read."""

DEFAULT_URL = "http://127.0.0.1:8080"

CODES = {
    "model_not_found": "no-such-model",
    "model_not_loaded": "not-loaded",
    "model_already_loaded": "busy",
    "model_in_use": "busy",
    "insufficient_vram": "budget-exceeded",
    "queue_full": "queue-full",
    "queue_timeout": "waited-too-long",
    "gpu_yielded": "yielded",
    "gpu_busy": "gpu-taken",
    "gpu_unavailable": "gpu-unavailable",
    "backend_error": "backend-failed",
    "invalid_request": "invalid-arguments",
    "limits_exceeded": "limits-exceeded",
    "permission_denied": "access-denied",
    "invalid_api_key": "access-denied",
    "foreign_origin": "access-denied",
    "suspending": "suspending",
    "shutting_down": "shutting-down",
    "canceled": "canceled",
}
"""The types of errors as they go out by HTTP, and the codes that gpud.core.errors has for them."""

BY_STATUS = {401: "access-denied", 403: "access-denied", 429: "limits-exceeded"}
"""What an error is whose type is none of these."""


class HttpError(BusError):
    """What gpud, or an engine behind it, answered with. ``tail`` is what the engine said last."""

    def __init__(self, code: str, message: str, *, hint: str = "", tail: tuple[str, ...] = ()) -> None:
        super().__init__(code, message, hint=hint)
        self.tail = tail


def add_door_arguments(parser: Parser) -> None:
    """The options of every command that asks by HTTP."""
    parser.add_argument(
        "--url", metavar="URL", help=f"door: http://…, https://… or unix:/… (default: as configured, or {DEFAULT_URL})"
    )
    parser.add_argument("--key-file", metavar="FILE", help="file with the API key (default: GPUD_API_KEY)")


# Where a door is -----------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """One door. ``socket`` is the path of a Unix socket; ``certificate`` is the one that it must show."""

    url: str
    host: str = "localhost"
    port: int = 0
    path: str = ""
    socket: str = ""
    tls: bool = False
    certificate: str = ""


def door_address(arguments: Namespace) -> Address:
    """What --url says, else what is configured, else the default. Raises Usage, and GpudError where no door is open."""
    if arguments.url:
        return parse_url(arguments.url)
    return configured(arguments.bus) or parse_url(DEFAULT_URL)


def parse_url(text: str) -> Address:
    """Raises Usage."""
    if text.startswith("unix:/"):
        return Address(text, socket=text.removeprefix("unix:"))
    from urllib.parse import urlsplit

    allowed = "write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Usage(f'"{text[:200]}" is not the address of a door', hint=allowed) from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or not re.fullmatch(r"[\x21-\x7e]+", text)
    ):
        raise Usage(f'"{text[:200]}" is not the address of a door', hint=allowed)
    if parts.username is not None or parts.password is not None:
        raise Usage("--url has a name or a password in it", hint="put the API key into GPUD_API_KEY or a file")
    tls = parts.scheme == "https"
    # Clients of OpenAI are given the address with /v1, which the paths here have already.
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(text.rstrip("/"), parts.hostname, port or (443 if tls else 80), path, tls=tls)


def configured(bus: str, names: Sequence[str] = ("front", "management")) -> Address | None:
    """The first of these doors that the configuration opens; None where there is no configuration that can be read."""
    from gpud.cli.config import chosen_path
    from gpud.config import load

    path = chosen_path(bus)
    try:
        if not path.exists():
            return None
        http = load(path).http
    except (ConfigInvalid, OSError):
        return None
    door = next((http.doors[name] for name in names if http.doors[name].enable), None)
    if door is None:
        keys = [f"http.{name}.enable" for name in names]
        off, one = ("are", "one of them") if len(keys) > 1 else ("is", "it")
        raise GpudError(
            f"gpud has no HTTP door open for that: {' and '.join(keys)} {off} false",
            hint=f"set {one} to true in {path} and reload gpud, or name another door with --url",
        )
    if door.socket and os.access(door.socket, os.W_OK):
        return Address(f"unix:{door.socket}", socket=door.socket)
    if not door.hosts:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(door.hosts[0], door.hosts[0])  # noqa: S104  # it is no address to bind
    shown = f"[{host}]" if ":" in host else host
    tls = bool(http.tls.certificate)
    url = f"{'https' if tls else 'http'}://{shown}:{door.port}"
    return Address(url, host, door.port, tls=tls, certificate=http.tls.certificate)


def api_key(arguments: Namespace) -> str:
    """The key, or nothing. Raises GpudError for a file that cannot be read, Usage for what can be no key."""
    where = "GPUD_API_KEY"
    text = os.environ.get(where, "")
    if arguments.key_file:
        where = arguments.key_file
        try:
            text = Path(where).read_text(errors="replace")[:4096]
        except OSError as problem:
            raise GpudError(f"cannot read the API key in {where}: {problem.strerror}") from None
    key = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key) or (arguments.key_file and not key):
        raise Usage(f"{where} has no API key in it", hint='a key is one word; "gpudctl key add NAME" makes one')
    return key


# Asking --------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One event of a stream, or a comment, which has the name ``:``."""

    name: str
    data: str


class Door:
    """One of gpud's doors. Each question has a connection of its own."""

    def __init__(self, address: Address, key: str = "") -> None:
        self.address = address
        self._key = key

    @classmethod
    def of(cls, arguments: Namespace) -> "Door":
        """The one that the command line, the environment and the configuration mean."""
        return cls(door_address(arguments), api_key(arguments))

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer as an object: to GET, or to POST where there is a body. Raises GpudError."""
        with self._send(path, body, ASK_S) as question:
            return _object(question.whole())

    def stream(self, path: str, body: Mapping[str, Any]) -> "Question":
        """What is asked with POST and answered event by event, however long that takes."""
        return self._send(path, body, None)

    def _send(self, path: str, body: Mapping[str, Any] | None, timeout_s: float | None) -> "Question":
        import json

        headers = {"Accept": "application/json, text/event-stream", "User-Agent": "gpudctl"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/json"
        connection = self._connect()
        question = Question(connection, self.address.url)
        try:
            assert connection.sock is not None
            connection.sock.settimeout(timeout_s)
            question.send("GET" if body is None else "POST", self.address.path + path, data, headers)
        except BaseException:
            question.close()
            raise
        return question

    def _connect(self) -> "HTTPConnection":
        from http.client import HTTPConnection

        address = self.address
        connection = HTTPConnection(address.host, address.port or None)
        try:
            # The library's own way to connect knows neither Unix sockets nor a certificate that is trusted by itself.
            connection.sock = self._reach()
        except (OSError, UnicodeError) as problem:
            raise NotRunning(
                f"nothing answers at {address.url} ({_reason(problem)})",
                hint='if gpud runs ("gpudctl status"), see "http:" in its configuration, or name its door with --url',
            ) from None
        return connection

    def _reach(self) -> "socket":
        import socket

        address = self.address
        if address.socket:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.settimeout(CONNECT_S)
                made.connect(address.socket)
            except BaseException:
                made.close()
                raise
            return made
        reached = socket.create_connection((address.host, address.port), CONNECT_S)
        reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A stream has no bound: that the other machine has gone is noticed by the kernel.
        reached.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not address.tls:
            return reached
        import ssl

        context = ssl.create_default_context()
        if address.certificate:
            # It is this machine's own door, reached by an address that its certificate need not name.
            context.load_verify_locations(address.certificate)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
        try:
            return context.wrap_socket(reached, server_hostname=address.host)
        except BaseException:
            reached.close()
            raise


class Question:
    """One request and its answer. To be closed; closed early, gpud and the engine stop working on it."""

    def __init__(self, connection: "HTTPConnection", url: str) -> None:
        self._connection = connection
        self._socket: socket | None = connection.sock
        self._url = url
        self._response: HTTPResponse | None = None

    def __enter__(self) -> "Question":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Also while another thread reads."""
        import socket
        import struct

        if self._socket is not None:
            with suppress(OSError):
                if (self._response is None or not self._response.isclosed()) and self._socket.family != socket.AF_UNIX:
                    # An end of TCP may mean that the client still listens; a reset means that nobody does.
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def send(self, method: str, target: str, data: bytes | None, headers: Mapping[str, str]) -> None:
        """Raises GpudError; HttpError for an answer that is an error."""
        from http.client import HTTPException

        try:
            self._connection.request(method, target, data, dict(headers))
            self._response = self._connection.getresponse()
        except (OSError, HTTPException) as problem:
            raise self._broken(problem) from None
        if self._response.status >= 300:
            raise error_of(self.whole(), self._response.status, self._url)

    def whole(self) -> bytes:
        from http.client import HTTPException

        assert self._response is not None
        try:
            body = self._response.read(ANSWER_BYTES + 1)
        except (OSError, HTTPException) as problem:
            raise self._broken(problem) from None
        if len(body) > ANSWER_BYTES:
            raise GpudError(f"the answer of {self._url} is longer than the {ANSWER_BYTES >> 20} MiB that are read")
        return body

    def events(self) -> Iterator[Event]:
        """What comes, as it comes. Raises GpudError when the stream breaks off, HttpError for an error in it."""
        name = ""
        data: list[str] = []
        for line in self._lines():
            if not line:
                if data:
                    yield Event(name or "message", "\n".join(data))
                name, data = "", []
            elif line.startswith(":"):
                yield Event(":", line[1:].strip())
            else:
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "data":
                    data.append(value)
                elif field == "event":
                    name = value

    def objects(self) -> Iterator[dict[str, Any]]:
        """Objects of JSON, one a line. Raises GpudError as :meth:`events` does, also for one that tells of an error."""
        for line in self._lines():
            if line:
                value = _object(line.encode())
                if found := error_in(value):
                    raise found
                yield value

    def _lines(self) -> Iterator[str]:
        from http.client import HTTPException

        assert self._response is not None
        while True:
            try:
                line = self._response.readline(LINE_BYTES + 1)
            except (OSError, HTTPException, ValueError, AttributeError) as problem:
                # The last two are what the library raises when it is closed from another thread.
                raise self._broken(problem) from None
            if not line:
                return
            if len(line) > LINE_BYTES:
                raise GpudError(f"{self._url} sent a line of more than the {LINE_BYTES >> 20} MiB that are read")
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def _broken(self, problem: Exception) -> GpudError:
        if isinstance(problem, TimeoutError):
            return GpudError(
                f"{self._url} gave no answer within {ASK_S:g} s", hint='gpud may hang; "gpudctl log" shows its messages'
            )
        from http.client import IncompleteRead

        if isinstance(problem, IncompleteRead):
            return GpudError(f"{self._url} ended its answer early", hint='"gpudctl log" shows why')
        if isinstance(problem, ConnectionError):  # which RemoteDisconnected is one of
            return NotRunning(
                f"{self._url} closed the connection before it answered",
                hint='if gpud does not restart by itself, "gpudctl log" shows why it ended',
            )
        return GpudError(
            f"cannot understand what {self._url} answers ({_reason(problem)})", hint="check whether gpud listens there"
        )


def _reason(problem: Exception) -> str:
    if isinstance(problem, UnicodeError):
        return "no machine can have such a name"
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def _object(body: bytes) -> dict[str, Any]:
    import json

    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise GpudError("the answer is not a JSON object", hint="check that gpud listens there, not another program")
    return value


def error_of(body: bytes, status: int, url: str) -> HttpError:
    """What an answer with such a status means."""
    try:
        value = _object(body)
    except GpudError:
        value = {}
    found = error_in(value, status)
    return found or HttpError(
        BY_STATUS.get(status, "http"),
        f"{url} answered with status {status}, but not like gpud",
        hint="check that gpud listens there, not another program",
    )


def error_in(value: Mapping[str, Any], status: int = 500) -> HttpError | None:
    """The error that an object tells of, in the shape of any of the APIs."""
    error = value.get("error")
    if isinstance(error, str):
        return HttpError(BY_STATUS.get(status, "failed"), error)
    if not isinstance(error, dict):
        return None
    code = CODES.get(str(error.get("type")), BY_STATUS.get(status, "failed"))
    tail = error.get("engine_output")
    lines = tuple(str(line) for line in tail) if isinstance(tail, list) else ()
    return HttpError(code, str(error.get("message") or error.get("type") or "no reason was given"), tail=lines)
