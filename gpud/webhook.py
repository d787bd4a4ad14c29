"""Tells a receiver on the web of alerts: one POST each, and nothing else that happens. Never blocks, never decides.

It speaks HTTP on asyncio's own streams. A thread with ``urllib`` could be held up for ever by a receiver that sends a
byte now and then, and its imports cost the daemon 25 ms; asyncio has TLS loaded already.
"""

import asyncio
import base64
import json
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from gpud import __version__
from gpud.core.events import Alert, Kind, Outcome
from gpud.core.record import Record

log = logging.getLogger(__name__)

KEPT = 16
"""Alerts that wait for a receiver that is slow or away; of more, the oldest go: what is so now matters."""

TRY_S = 10.0
"""One try, from the look-up of the name to the status of the answer: a receiver needs a fraction of a second."""

PAUSES_S = (2.0, 8.0)
"""Between the three tries of one alert: enough for a receiver that is being restarted."""

REDIRECTIONS = 3

_LARGEST_HEAD_BYTES = 64 << 10


class _Failed(Exception):
    """One try was in vain; the text completes "cannot send …: it …"."""

    def __init__(self, reason: str, *, passing: bool = True) -> None:
        super().__init__(reason)
        self.passing = passing


class _Answer(Record):
    status: int
    location: str


class Webhook:
    """Subscribe :meth:`listen` to the engine. ``url`` may be changed at any time; empty: nobody is told."""

    def __init__(
        self, url: str = "", *, host: str | None = None, try_s: float = TRY_S, pauses_s: Sequence[float] = PAUSES_S
    ) -> None:
        self.url = url
        self._host = socket.gethostname() if host is None else host
        self._try_s = try_s
        self._pauses_s = tuple(pauses_s)
        self._waiting: deque[bytes] = deque(maxlen=KEPT)
        self._lost = 0
        self._failing = False
        self._sender: asyncio.Task[None] | None = None

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """Take the alerts among them; they are sent by a task that lives only until all are."""
        if not self.url:
            return
        for outcome in outcomes:
            if isinstance(outcome, Alert):
                self._lost += len(self._waiting) == KEPT
                self._waiting.append(json.dumps(body(outcome, self._host)).encode())
        # It may have seen that nothing waits, and not have been taken away yet.
        if self._waiting and (self._sender is None or self._sender.done()):
            self._sender = asyncio.get_running_loop().create_task(self._send_all())
            self._sender.add_done_callback(self._ended)

    async def close(self) -> None:
        """What has not been sent by now is not sent any more."""
        self._waiting.clear()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    def _ended(self, sender: asyncio.Task[None]) -> None:
        if self._sender is sender:
            self._sender = None
        if not sender.cancelled() and sender.exception() is not None:
            log.error("internal error: an alert was not sent", exc_info=sender.exception())

    async def _send_all(self) -> None:
        while self._waiting and self.url:
            content = self._waiting.popleft()
            url = self.url
            try:
                await self._send(url, content)
            except _Failed as failed:
                self._tell_failure(url, str(failed))
            else:
                self._tell_success(url)
        self._waiting.clear()

    async def _send(self, url: str, content: bytes) -> None:
        for pause_s in (*self._pauses_s, None):
            try:
                async with asyncio.timeout(self._try_s):
                    await _post(url, content)
                return
            except _Failed as failed:
                reason, passing = str(failed), failed.passing
            except TimeoutError:
                reason, passing = f"did not answer within {self._try_s:g} s", True
            if pause_s is None or not passing:
                raise _Failed(reason)
            log.debug("%s %s; trying again in %g s", shown(url), reason, pause_s)
            await asyncio.sleep(pause_s)

    def _tell_failure(self, url: str, reason: str) -> None:
        """Once for each outage: the alerts themselves are in the journal anyway."""
        if not self._failing:
            log.warning(
                "cannot send an alert to %s: it %s; alerts are still told here and on D-Bus, and further failures are "
                "not told until one arrives; check alerts.webhook",
                shown(url),
                reason,
            )
        self._failing = True

    def _tell_success(self, url: str) -> None:
        if self._failing:
            log.info("alerts reach %s again", shown(url))
        if self._lost:
            log.warning("alerts that were not sent to %s, since %d waited already: %d", shown(url), KEPT, self._lost)
        self._failing, self._lost = False, 0


def body(alert: Alert, host: str) -> dict[str, object]:
    """What is sent. ``text`` is where chat services look for a sentence."""
    return {
        "event": str(Kind.VRAM_HIGH if alert.raised else Kind.VRAM_NORMAL),
        "text": alert.message,
        "raised": alert.raised,
        "host": host,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": {"uuid": alert.device, "index": alert.index, "name": alert.name},
        "used_bytes": alert.used_bytes,
        "total_bytes": alert.total_bytes,
        "limit_percent": alert.limit_percent,
    }


def shown(url: str) -> str:
    """An address without what may be a secret: the user, and all behind the host."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" + ("/…" if parts.path.strip("/") or parts.query else "")


async def _post(url: str, content: bytes) -> None:
    """One try, with all the redirections that it is sent on. Raises _Failed."""
    for _ in range(REDIRECTIONS + 1):
        answer = await _exchange(urlsplit(url), content)
        if 200 <= answer.status <= 299:
            return
        if answer.status in (301, 302, 303, 307, 308) and answer.location:
            url = _further(url, answer.location)
            continue
        passing = answer.status in (408, 429) or answer.status >= 500
        raise _Failed(f"answered {answer.status}", passing=passing)
    raise _Failed(f"redirects more than {REDIRECTIONS} times", passing=False)


def _further(url: str, location: str) -> str:
    """Where a redirection leads, as long as that is on the same host, and not out of TLS."""
    here = urlsplit(url)
    try:
        there = urlsplit(urljoin(url, location))
    except ValueError:
        there = None
    if there is None or not location.isascii() or not location.isprintable() or " " in location:
        raise _Failed("redirects to what is no address", passing=False)
    if there.scheme not in ("http", "https") or there.hostname != here.hostname:
        raise _Failed("redirects to another host, which is not followed", passing=False)
    if here.scheme == "https" and there.scheme == "http":
        raise _Failed("redirects out of TLS, which is not followed", passing=False)
    user, at, _ = here.netloc.rpartition("@")
    return there._replace(netloc=user + at + there.netloc.rpartition("@")[2], fragment="").geturl()


async def _exchange(url: SplitResult, content: bytes) -> _Answer:
    try:
        tls = await asyncio.to_thread(ssl.create_default_context) if url.scheme == "https" else None
        port = url.port or (443 if tls else 80)
        reader, writer = await asyncio.open_connection(url.hostname, port, ssl=tls, limit=_LARGEST_HEAD_BYTES)
    except (OSError, ValueError, UnicodeError) as error:
        raise _Failed(f"cannot be reached: {_reason(error)}") from None
    try:
        writer.write(_head(url, len(content)) + content)
        return await _answer(reader)
    except OSError as error:
        raise _Failed(f"broke off: {_reason(error)}") from None
    finally:
        writer.transport.abort()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _head(url: SplitResult, length: int) -> bytes:
    host = url.netloc.rpartition("@")[2]
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: gpud/{__version__}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    if url.username is not None:
        user = f"{unquote(url.username)}:{unquote(url.password or '')}"
        lines.append(f"Authorization: Basic {base64.b64encode(user.encode()).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii", errors="replace")


async def _answer(reader: asyncio.StreamReader) -> _Answer:
    """The status, and where it leads; nobody needs the rest."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            raise _Failed("closed the connection without an answer") from None
        except asyncio.LimitOverrunError:
            raise _Failed("does not answer in HTTP", passing=False) from None
        first, *lines = head.decode("latin-1").split("\r\n")
        protocol, _, rest = first.partition(" ")
        status = rest[:3]
        if not protocol.startswith("HTTP/1.") or not (status.isascii() and status.isdigit()):
            raise _Failed("does not answer in HTTP", passing=False)
        if not status.startswith("1"):
            break
    fields = dict(
        reversed([(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)])
    )
    return _Answer(int(status), fields.get("location", ""))
