"""The webhook: what arrives at a real receiver, and what becomes of alerts when there is none."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpud.core.events import Alert, Kind, Notice, Outcome, Touched
from gpud.webhook import KEPT, Webhook, shown

RAISED = Alert("GPU-1", 0, "RTX", True, 91 << 20, 100 << 20, 90.0, "vram usage 91% >= 90% on GPU 0 (RTX)")
OVER = Alert("GPU-1", 0, "RTX", False, 50 << 20, 100 << 20, 90.0, "vram usage 50% on GPU 0 (RTX)")

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """An HTTP server that answers as it is told, one after the other, the last answer again and again."""

    answers: list[str] = field(default_factory=lambda: ["204 No Content"])
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    port: int = 0
    arrived: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
        content = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((first, headers, json.loads(content)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.arrived.put_nowait(None)

    async def got(self, count: int) -> None:
        for _ in range(count):
            await asyncio.wait_for(self.arrived.get(), 50)


@asynccontextmanager
async def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def receiving(*answers: str) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers) or ["204 No Content"])
    async with listening(receiver.handle) as receiver.port:
        yield receiver


@asynccontextmanager
async def telling(url: str, **more: Any) -> AsyncIterator[Webhook]:
    webhook = Webhook(url, host="box", **{"pauses_s": (0.0, 0.0), **more})
    try:
        yield webhook
    finally:
        await webhook.close()


class Told:
    """What the log was told, as an event to wait for."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> bool:
        self.lines.put_nowait((record.levelname, record.getMessage()))
        return True

    async def line(self) -> tuple[str, str]:
        return await asyncio.wait_for(self.lines.get(), 50)


@asynccontextmanager
async def listening_to_the_log() -> AsyncIterator[Told]:
    told = Told()
    logger = logging.getLogger("gpud.webhook")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(told.emit)
    try:
        yield told
    finally:
        logger.removeFilter(told.emit)
        logger.setLevel(before)


def test_an_alert_arrives_as_json(run: Callable[..., Any]) -> None:
    """With its numbers, the words of the journal, and where and when it was; other outcomes are not told."""

    async def scene() -> None:
        async with receiving() as receiver, telling(receiver.url + "?room=gpu") as webhook:
            others: tuple[Outcome, ...] = (Notice(Kind.VRAM_HIGH, "words"), Touched())
            webhook.listen(others)
            webhook.listen((*others, RAISED))
            await receiver.got(1)
            webhook.listen((OVER,))
            await receiver.got(1)
        (first, headers, told), (_, _, over) = receiver.requests
        assert first == "POST /hook?room=gpu HTTP/1.1"
        assert (headers["content-type"], headers["host"]) == ("application/json", f"127.0.0.1:{receiver.port}")
        assert "authorization" not in headers
        assert told.pop("time").endswith("Z")
        assert told == {
            "event": "vram-high",
            "text": "vram usage 91% >= 90% on GPU 0 (RTX)",
            "raised": True,
            "host": "box",
            "gpu": {"uuid": "GPU-1", "index": 0, "name": "RTX"},
            "used_bytes": 91 << 20,
            "total_bytes": 100 << 20,
            "limit_percent": 90.0,
        }
        assert (over["event"], over["raised"]) == ("vram-normal", False)

    run(scene())


def test_without_an_address_nothing_is_done(run: Callable[..., Any]) -> None:
    """No task, and nothing is kept for an address that may come: what was so then is old."""

    async def scene() -> None:
        async with receiving() as receiver, telling("") as webhook:
            webhook.listen((RAISED,))
            assert len(asyncio.all_tasks()) == 1
            webhook.url = receiver.url
            webhook.listen((OVER,))
            await receiver.got(1)
            assert [told["raised"] for _, _, told in receiver.requests] == [False]

    run(scene())


def test_nothing_waits_when_all_is_sent(run: Callable[..., Any]) -> None:
    """The task that sends ends with the last alert."""

    async def scene() -> None:
        async with receiving() as receiver, telling(receiver.url) as webhook:
            webhook.listen((RAISED, OVER))
            (sender,) = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait_for(sender, 50)
            assert [told["raised"] for _, _, told in receiver.requests] == [True, False]

    run(scene())


@pytest.mark.parametrize("answer", ["500 Broken", "503 Busy", "429 Slowly", "408 Late"])
def test_what_may_pass_is_tried_again(run: Callable[..., Any], answer: str) -> None:
    """Twice, and nobody hears of it when it works then."""

    async def scene() -> None:
        async with (
            receiving(answer, answer, "200 OK") as receiver,
            listening_to_the_log() as told,
            telling(receiver.url) as webhook,
        ):
            webhook.listen((RAISED,))
            await receiver.got(3)
        assert [one["event"] for _, _, one in receiver.requests] == ["vram-high"] * 3
        assert told.lines.empty()

    run(scene())


def test_an_outage_is_told_once(run: Callable[..., Any]) -> None:
    """The first failure with its reason and without secrets, no further ones, and that it works again."""

    async def scene() -> None:
        async with receiving("500 Broken") as receiver, listening_to_the_log() as told:
            url = receiver.url.replace("//", "//me:hush@") + "/hush?key=hush"
            async with telling(url) as webhook:
                webhook.listen((RAISED,))
                level, line = await told.line()
                assert level == "WARNING"
                assert line == (
                    f"cannot send an alert to http://127.0.0.1:{receiver.port}/…: it answered 500; alerts are still "
                    "told here and on D-Bus, and further failures are not told until one arrives; check alerts.webhook"
                )
                webhook.listen((OVER,))
                await receiver.got(6)
                receiver.answers = ["200 OK"]
                webhook.listen((RAISED,))
                assert await told.line() == ("INFO", f"alerts reach http://127.0.0.1:{receiver.port}/… again")

    run(scene())


@pytest.mark.parametrize("answer", ["400 Bad", "401 Who", "404 Gone", "410 Gone"])
def test_what_a_further_try_would_not_change_is_not_tried(run: Callable[..., Any], answer: str) -> None:
    """The receiver has understood and does not want it."""

    async def scene() -> None:
        async with receiving(answer) as receiver, listening_to_the_log() as told, telling(receiver.url) as webhook:
            webhook.listen((RAISED,))
            assert f"it answered {answer[:3]};" in (await told.line())[1]
            assert len(receiver.requests) == 1

    run(scene())


def test_a_redirection_on_the_same_host_is_followed(run: Callable[..., Any]) -> None:
    """As a POST with the same content, whatever the status, and with the same user."""

    async def scene() -> None:
        answers = ("307 There\r\nLocation: /there?x=y", "302 Here\r\nLocation: here", "200 OK")
        async with receiving(*answers) as receiver, telling(receiver.url.replace("//", "//me:a%40b@")) as webhook:
            webhook.listen((RAISED,))
            await receiver.got(3)
        assert [first for first, _, _ in receiver.requests] == [
            "POST /hook HTTP/1.1",
            "POST /there?x=y HTTP/1.1",
            "POST /here HTTP/1.1",
        ]
        assert {one["event"] for _, _, one in receiver.requests} == {"vram-high"}
        user = base64.b64encode(b"me:a@b").decode()
        assert {headers["authorization"] for _, headers, _ in receiver.requests} == {f"Basic {user}"}

    run(scene())


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://elsewhere.invalid/", "redirects to another host, which is not followed"),
        ("file:///etc/passwd", "redirects to another host, which is not followed"),
        ("/a b", "redirects to what is no address"),
        ("http://[/", "redirects to what is no address"),
        ("/hook", "redirects more than 3 times"),
    ],
)
def test_a_redirection_elsewhere_is_not_followed(run: Callable[..., Any], location: str, said: str) -> None:
    """What the address of the alert is given for is that host, once, and with a bound."""

    async def scene() -> None:
        answer = f"302 Found\r\nLocation: {location}"
        async with receiving(answer) as receiver, listening_to_the_log() as told, telling(receiver.url) as webhook:
            webhook.listen((RAISED,))
            assert f": it {said};" in (await told.line())[1]

    run(scene())


def test_nobody_there_is_told_with_the_reason(run: Callable[..., Any]) -> None:
    """A refused connection, after three tries."""

    async def scene() -> None:
        async with receiving() as receiver:
            gone = receiver.url
        async with listening_to_the_log() as told, telling(gone) as webhook:
            webhook.listen((RAISED,))
            assert "it cannot be reached: " in (await told.line())[1]

    run(scene())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200", "closed the connection without an answer"),
        (b"SSH-2.0-x\r\n\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 \xff\xff\xff\r\n\r\n", "does not answer in HTTP"),
        (b"x" * (1 << 20), "does not answer in HTTP"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(run: Callable[..., Any], answer: bytes, said: str) -> None:
    """However much of it there is."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    async def scene() -> None:
        async with (
            listening(handle) as port,
            listening_to_the_log() as told,
            telling(f"http://127.0.0.1:{port}/") as webhook,
        ):
            webhook.listen((RAISED,))
            assert f": it {said};" in (await told.line())[1]

    run(scene())


def test_an_interim_answer_is_not_the_answer(run: Callable[..., Any]) -> None:
    """``100 Continue`` and the like come before it."""

    async def scene() -> None:
        async with (
            receiving("100 Continue\r\n\r\nHTTP/1.1 404 Gone") as receiver,
            listening_to_the_log() as told,
            telling(receiver.url) as webhook,
        ):
            webhook.listen((RAISED,))
            assert "it answered 404;" in (await told.line())[1]

    run(scene())


def test_a_receiver_that_hangs_holds_nobody_up(run: Callable[..., Any]) -> None:
    """It has a bound for each try, even when it keeps sending; up to 16 alerts wait, of more the latest are kept."""
    dripping = asyncio.Event()
    left: asyncio.Queue[None] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dripping.set()
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            writer.close()
            left.put_nowait(None)

    async def scene() -> None:
        async with (
            receiving() as receiver,
            listening(handle) as port,
            listening_to_the_log() as told,
            telling(f"http://127.0.0.1:{port}/", try_s=1) as webhook,
        ):
            webhook.listen((RAISED,))
            await asyncio.wait_for(dripping.wait(), 50)
            webhook.listen((RAISED, *[OVER] * KEPT))
            webhook.url = receiver.url
            assert "it did not answer within 1 s;" in (await told.line())[1]
            await receiver.got(KEPT)
            assert {one["raised"] for _, _, one in receiver.requests} == {False}
            assert (await told.line())[0] == "INFO"
            assert "since 16 waited already: 1" in (await told.line())[1]
            for _ in range(3):
                await asyncio.wait_for(left.get(), 50)

    run(scene())


def test_the_end_of_gpud_does_not_wait_for_a_receiver(run: Callable[..., Any]) -> None:
    """What has not been sent is not sent any more."""
    asked = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async def scene() -> None:
        async with listening(handle) as port, telling(f"http://127.0.0.1:{port}/", try_s=60) as webhook:
            webhook.listen((RAISED, OVER))
            await asyncio.wait_for(asked.wait(), 50)
            await asyncio.wait_for(webhook.close(), 30)

    run(scene())


def test_tls_is_spoken_with_those_who_are_trusted(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, localhost_pem: Path
) -> None:
    """And with nobody else: the reason is told."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(localhost_pem)

    async def scene() -> None:
        receiver = Receiver()
        async with (
            listening(receiver.handle, tls) as receiver.port,
            listening_to_the_log() as told,
            telling(receiver.url.replace("http:", "https:")) as webhook,
        ):
            webhook.listen((RAISED,))
            line = (await told.line())[1]
            assert "it cannot be reached: its certificate is not trusted (self-signed certificate)" in line
            assert receiver.requests == []
            monkeypatch.setenv("SSL_CERT_FILE", str(localhost_pem))
            webhook.listen((RAISED,))
            await receiver.got(1)
            assert "again" in (await told.line())[1]

    run(scene())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://h", "https://h"),
        ("https://h/", "https://h"),
        ("https://me:pw@h:8443/services/T0/B0/secret?x=y", "https://h:8443/…"),
        ("http://[::1]:80?x", "http://[::1]:80/…"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url: str, said: str) -> None:
    """Chat services have the secret in the path."""
    assert shown(url) == said
