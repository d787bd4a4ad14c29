"""Asks one server for one thing: proxies from the environment, redirects by our rules, and a token for nobody else.

What the standard library would do by itself with a redirect (read its body to the end, take every header along, go
from https to http) is not done.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from gpud import __version__
from gpud.pulling.problems import Broken, DownloadFailed, NotAllowed

SILENCE_S = 30.0
"""A server that sends nothing for so long has gone. Links that are merely slow send something each second."""

REDIRECTS = 8
"""A hub needs two or three; more is a circle."""

LONGEST_WAIT_S = 300.0
"""A server that wants to be left alone for longer is told of, and not waited for."""

AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Statuses that another try may not meet."""


class Reading(Protocol):
    """What is used of an answer of the library's."""

    status: int
    headers: http.client.HTTPMessage

    def read1(self, count: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class Answer:
    """An answer that is read as it comes. A context manager: leaving it closes the connection."""

    def __init__(self, reading: Reading, url: str) -> None:
        self._reading = reading
        self.status = reading.status
        self.url = url
        self.host = host_of(url)

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.close()

    def header(self, name: str) -> str:
        return str(self._reading.headers.get(name) or "").strip()

    @property
    def length(self) -> int | None:
        """Of what follows, where the server says so."""
        text = self.header("Content-Length")
        return int(text) if text.isascii() and text.isdecimal() and not self.is_chunked else None

    @property
    def is_chunked(self) -> bool:
        """Whether its end is marked in what follows."""
        return "chunked" in self.header("Transfer-Encoding").lower()

    @property
    def encoding(self) -> str:
        """How what follows is packed; empty: not at all."""
        word = self.header("Content-Encoding").lower()
        return "" if word == "identity" else word

    @property
    def after_s(self) -> float | None:
        """When the server wants to be asked again."""
        text = self.header("Retry-After")
        if text.isascii() and text.isdecimal():
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (TypeError, ValueError, OverflowError):
            return None

    def read(self, most: int) -> bytes:
        """What is there, empty at the end. Raises Broken."""
        try:
            return self._reading.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise Broken(f"{self.host} broke off ({reason(problem)})") from None


class Web:
    """All that is asked of servers goes through one of these."""

    def __init__(self, *, silence_s: float = SILENCE_S, proxies: Mapping[str, str] | None = None) -> None:
        self._silence_s = silence_s
        self._opener = OpenerDirector()
        # Only these: no handler that follows a redirect, opens a file or speaks FTP.
        for handler in (
            ProxyHandler(dict(proxies) if proxies is not None else None),
            HTTPHandler(),
            HTTPSHandler(context=ssl.create_default_context()),
        ):
            self._opener.add_handler(handler)

    def get(self, url: str, headers: Mapping[str, str] | None = None, *, token: str = "") -> Answer:
        """The answer to GET, wherever it is. The token is shown to the server of this URL, and to no other.

        Raises Broken for what may work in a moment, DownloadFailed or NotAllowed for what will not.
        """
        first = url
        for _ in range(REDIRECTS + 1):
            answer = self._ask(url, headers or {}, token if origin(url) == origin(first) else "")
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            target = answer.header("Location")
            with answer:
                url = self._redirected(url, target)
        raise DownloadFailed(
            f"{host_of(first)} redirects {REDIRECTS} times and more: its redirects may go in a circle",
            hint="name the place where the file really is",
        )

    def _ask(self, url: str, headers: Mapping[str, str], token: str) -> Answer:
        asked = {"User-Agent": f"gpudctl/{__version__}", "Accept-Encoding": "identity", **headers}
        request = Request(url, headers=asked)  # noqa: S310  # the opener knows http and https alone
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            reading = self._opener.open(request, timeout=self._silence_s)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise _unreachable(url, problem) from None
        if reading is None:
            raise DownloadFailed(f"cannot ask {host_of(url)}: its address is none of http or https")
        return Answer(reading, url)

    @staticmethod
    def _redirected(url: str, target: str) -> str:
        new = urljoin(url, target)
        scheme, was = urlsplit(new).scheme, urlsplit(url).scheme
        if not target or not (scheme == "https" or (scheme == "http" and was == "http")):
            where = f"{scheme}://{host_of(new)}" if target and scheme else "nowhere"
            raise DownloadFailed(
                f"{host_of(url)} redirects from {was} to {where}, which is not followed",
                hint="from https it is only followed to https",
            )
        return new


def refusal(answer: Answer, what: str) -> Exception:
    """What an answer that is an error means for this. ``what`` is what was asked for, for the message."""
    status, host = answer.status, answer.host
    if status in AGAIN:
        after_s = answer.after_s
        if after_s is not None and after_s > LONGEST_WAIT_S:
            return DownloadFailed(
                f"{host} answers {status} and wants to be left alone for {after_s:.0f} s",
                hint="run the same command again then; what has come is kept",
            )
        return Broken(f"{host} answers {status}", after_s=after_s)
    if status == 401:
        return NotAllowed(
            f"{host} wants to know who asks for {what} (401)",
            hint='log in with "hf auth login", or set HF_TOKEN; see whether the name is right',
        )
    if status == 403:
        return NotAllowed(
            f"{host} does not give {what} to you (403)",
            hint="accept the conditions of the repository on its page, and see whether your token may read it",
        )
    if status in (404, 410):
        return DownloadFailed(f"{host} has no {what} ({status})", hint="check its name")
    return DownloadFailed(f"{host} answers {status} where {what} was asked for", hint="try again later")


def checked_url(url: str) -> str:
    """A URL that may be downloaded from. Raises DownloadFailed."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise DownloadFailed(f'"{shown_url(url)}" is no URL', hint="write https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise DownloadFailed(
            "the URL has a name or a password in it, which every user of this machine can see in the list of processes",
            hint="use a URL without it",
        )
    return url


def shown_url(url: str) -> str:
    """Without what may be a secret in it."""
    try:
        parts = urlsplit(url)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        text = url.partition("?")[0]
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def is_loopback(host: str) -> bool:
    """Whether what is said to it stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def host_of(url: str) -> str:
    """For messages: the rest of an address may hold a signature that opens it to everybody."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or "the server"
    except ValueError:
        return "the server"


def reason(problem: BaseException) -> str:
    if isinstance(problem, URLError) and isinstance(problem.reason, BaseException):
        return reason(problem.reason)
    if isinstance(problem, TimeoutError):
        return "nothing came in time"
    if isinstance(problem, http.client.IncompleteRead):
        return "before its end"
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def _unreachable(url: str, problem: BaseException) -> Exception:
    cause = problem.reason if isinstance(problem, URLError) else problem
    host = host_of(url)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadFailed(
            f"cannot trust {host}: {cause.verify_message}",
            hint="where a proxy of yours is in between, name its certificate with SSL_CERT_FILE",
        )
    if isinstance(cause, socket.gaierror):
        return Broken(f"there is no way to {host}: its name is not known here ({reason(cause)})")
    if isinstance(cause, http.client.InvalidURL | UnicodeError):
        return DownloadFailed(f"{host} is no address that can be asked: {reason(cause)}")
    return Broken(f"{host} cannot be reached ({reason(problem)})")
