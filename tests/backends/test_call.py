"""One question, one answer: what is accepted, and what is said of everything else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpud.backends import call
from gpud.backends.call import Trouble, Unreachable, request
from gpud.core.facts import Endpoint

Run = Callable[..., Any]


@asynccontextmanager
async def answering(raw: bytes, *, stay: bool = False) -> AsyncIterator[tuple[Endpoint, list[bytes]]]:
    """A server that answers every request with the same bytes, and keeps what it was sent."""
    heard: list[bytes] = []
    over = asyncio.Event()
    busy: set[asyncio.Task[Any]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
            heard.append(head + await reader.readexactly(length))
            writer.write(raw)
            await writer.drain()
            if stay:
                await over.wait()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1]), heard
    finally:
        server.close()
        over.set()
        await asyncio.gather(*busy)


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}"),
        (b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 503, b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", 200, b"ok"),
    ],
)
def test_answers_are_read_however_their_end_is_told(run: Run, raw: bytes, status: int, body: bytes) -> None:
    """By a length, by chunks, by the end of the connection, by having none."""

    async def work() -> None:
        async with answering(raw) as (endpoint, _):
            answer = await request(endpoint, "GET", "/health", timeout_s=5)
            assert (answer.status, answer.body) == (status, body)

    run(work())


@pytest.mark.parametrize(
    ("raw", "trouble"),
    [
        (b"220 mail.example ESMTP\r\n", Trouble.GARBAGE),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", Trouble.GARBAGE),
        (b"", Trouble.CLOSED),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Trouble.CLOSED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort", Trouble.CLOSED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", Trouble.CLOSED),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (call.LARGEST_HEADER_BYTES + 1) + b"\r\n\r\n", Trouble.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (call.LARGEST_ANSWER_BYTES + 1), Trouble.TOO_LARGE),
    ],
)
def test_what_is_no_answer_is_told_by_its_trouble(run: Run, raw: bytes, trouble: Trouble) -> None:
    """Whoever asks decides by the trouble; whoever reads sees what was asked of whom."""

    async def work() -> None:
        async with answering(raw) as (endpoint, _):
            with pytest.raises(Unreachable) as failure:
                await request(endpoint, "GET", "/health", timeout_s=5)
            assert failure.value.trouble is trouble
            assert str(failure.value).startswith(f"GET /health at 127.0.0.1:{endpoint.port}: ")

    run(work())


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])
def test_the_time_bounds_all_of_it(run: Run, raw: bytes) -> None:
    """A server that takes the question and never ends its answer."""

    async def work() -> None:
        async with answering(raw, stay=True) as (endpoint, _):
            with pytest.raises(Unreachable, match=r"no answer within 0\.05 s") as failure:
                await request(endpoint, "GET", "/health", timeout_s=0.05)
            assert failure.value.trouble is Trouble.TIMED_OUT

    run(work())


@pytest.mark.parametrize("endpoint", [Endpoint(host="127.0.0.1", port=1), Endpoint(socket="/nonexistent/x.sock")])
def test_nobody_there_is_refused(run: Run, endpoint: Endpoint) -> None:
    """On a port and on a socket."""
    with pytest.raises(Unreachable) as failure:
        run(request(endpoint, "GET", "/health", timeout_s=5))
    assert failure.value.trouble is Trouble.REFUSED


def test_a_question_carries_key_and_body(run: Run) -> None:
    """The base path goes before the path; the key is a bearer token."""

    async def work() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (endpoint, heard):
            there = Endpoint(host="127.0.0.1", port=endpoint.port, base_path="/api", key="secret")
            await request(there, "POST", "/free", body={"unload_models": True}, timeout_s=5)
            head, _, body = heard[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /api/free HTTP/1.1\r\n")
            assert b"\r\nAuthorization: Bearer secret" in head
            assert body == b'{"unload_models": true}'

    run(work())


def test_a_unix_socket_is_asked_like_a_port(run: Run, tmp_path: Path) -> None:
    """The private sockets of engines."""

    async def work() -> None:
        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + b'{"ok": [1]')
            writer.close()

        path = str(tmp_path / "a.sock")
        server = await asyncio.start_unix_server(connection, path)
        answer = await request(Endpoint(socket=path), "GET", "/", timeout_s=5)
        server.close()
        with pytest.raises(Unreachable, match="not JSON"):
            answer.json()

    run(work())


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\x7f"])
def test_a_path_cannot_become_a_second_request(run: Run, path: str) -> None:
    """Paths come from the configuration."""
    asking: Awaitable[object] = request(Endpoint(host="127.0.0.1", port=1), "GET", path, timeout_s=5)
    with pytest.raises(Unreachable, match="contains a space or a control character"):
        run(asking)


def test_a_key_is_in_no_message() -> None:
    """Endpoints appear in errors and logs."""
    endpoint = Endpoint(host="::1", port=80, key="secret")
    assert call.describe(endpoint) == "[::1]:80"
    assert "secret" not in repr(endpoint)
