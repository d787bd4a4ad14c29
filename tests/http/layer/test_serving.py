"""What a server makes of requests and a handler's replies, one connection at a time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpud.http.message import Reply, Request
from gpud.http.server import Server
from gpud.http.wire import Refused

from .raw import connected, echo, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_serves_one_request_after_another(run: Run) -> None:
    """Keep-alive is the rule in HTTP/1.1."""

    async def scene() -> None:
        async with serving(echo) as (server, port), connected(port) as client:
            for number in range(5):
                answer = await client.ask(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
                assert (answer.status, answer.body) == (200, b"GET /%d " % number)
                assert "connection" not in answer.headers
                assert answer.headers["date"].endswith("GMT")
            assert server.connections == 1

    run(scene())


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.0", "", False),
        ("1.0", "keep-alive", True),
        ("1.1", "x, Close", False),
    ],
)
def test_a_connection_stays_as_long_as_both_want(version: str, connection: str, stays: bool, run: Run) -> None:
    """And says so."""

    async def scene() -> None:
        async with serving(echo) as (_, port), connected(port) as client:
            field = f"Connection: {connection}\r\n" if connection else ""
            answer = await client.ask(f"GET / HTTP/{version}\r\nHost: x\r\n{field}\r\n".encode())
            if stays:
                assert answer.headers.get("connection", "") == ("keep-alive" if version == "1.0" else "")
                assert (await client.ask(GET)).status == 200
            else:
                assert answer.headers["connection"] == "close"
                assert await client.rest() == b""

    run(scene())


def test_pipelined_requests_are_served_one_by_one_and_in_order(run: Run) -> None:
    """The second is not begun before the first has ended, although it is there."""
    running = most = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        await reply.send(200, (), request.path.encode())

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50)))
            assert [(await client.answer()).body for _ in range(50)] == [b"/%d" % number for number in range(50)]
            assert most == 1

    run(scene())


def test_a_flood_of_pipelined_requests_is_held_back(run: Run) -> None:
    """A client that asks without end and reads nothing is made to wait; memory does not grow with what it sends."""
    served = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal served
        served += 1
        await reply.send(200, (), b"x" * 10_000)

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port, receive_bytes=4096) as client:
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.7):
                    while sent < 200 << 20:
                        client.writer.write(GET * 1000)
                        sent += len(GET) * 1000
                        await client.writer.drain()
            assert served * 10_000 < 32 << 20, "it stops making replies that nobody reads"
            (connection,) = server._connections
            assert len(connection._pending) < 256 << 10
            assert connection.transport.get_write_buffer_size() < 256 << 10

    run(scene())


def test_head_and_bodiless_answers_have_no_body(run: Run) -> None:
    """HEAD says how long the body would be; 204 and 304 say nothing of it; what follows is read rightly."""

    async def handler(request: Request, reply: Reply) -> None:
        status = int(request.parameter("status", "200"))
        await reply.send(status, [("ETag", '"a"')], b"hello")

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            head = await client.ask(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD")
            assert head.headers["content-length"] == "5"
            for status in (204, 304):
                answer = await client.ask(b"GET /?status=%d HTTP/1.1\r\nHost: x\r\n\r\n" % status)
                assert (answer.status, answer.body, answer.headers.get("content-length")) == (status, b"", None)
            assert (await client.ask(GET)).body == b"hello"

    run(scene())


def test_an_answer_of_many_parts_waits_for_who_reads_it(run: Run) -> None:
    """It is whole and in order, its length is said before, and no more of it is put together than is read; the
    connection goes on.
    """
    parts = [b"%0120d " % number for number in range(100_000)]

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send_parts(200, (), parts[: int(request.parameter("of"))])

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port, receive_bytes=4096) as client:
            for size in (0, 1, 250, 251, 1000):
                assert (await client.ask(b"GET /?of=%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)).body == b"".join(
                    parts[:size]
                )
            head = await client.ask(b"HEAD /?of=1000 HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD")
            assert head.headers["content-length"] == "121000"
            (connection,) = server._connections
            await client.send(b"GET /?of=100000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: connection.full)
            assert connection.transport.get_write_buffer_size() < 128 << 10
            assert (await client.answer()).body == b"".join(parts)

    run(scene())


async def count(request: Request, reply: Reply) -> None:
    await reply.begin(200, [("Content-Type", "text/event-stream")])
    for number in range(3):
        await reply.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0)
    await reply.end()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_reply_of_unknown_length_ends_where_its_reader_can_see_it(version: str, method: str, run: Run) -> None:
    """Chunked for HTTP/1.1; for HTTP/1.0 the connection ends."""

    async def scene() -> None:
        async with serving(count) as (_, port), connected(port) as client:
            request = f"{method} / HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n".encode()
            answer = await client.ask(request, method)
            assert answer.body == (b"" if method == "HEAD" else b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
            if version == "1.0":
                assert "transfer-encoding" not in answer.headers
                assert answer.headers["connection"] == "close"
                assert await client.rest() == b""
            else:
                assert answer.headers["transfer-encoding"] == "chunked"
                assert (await client.ask(GET)).status == 200

    run(scene())


def test_a_begun_reply_is_sent_without_waiting_for_its_body(run: Run) -> None:
    """A client sees the status while the body is still being thought of."""
    go_on = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        await reply.begin(200)
        await go_on.wait()
        await reply.write(b"x")
        await reply.end()

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            await client.send(GET)
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            go_on.set()
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"

    run(scene())


def test_a_client_that_expects_is_told_to_go_on_when_its_body_is_wanted(run: Run) -> None:
    """100 Continue comes when the handler reads, and only then."""

    async def handler(request: Request, reply: Reply) -> None:
        if request.path == "/no":
            raise Refused(401, "who are you?")
        await echo(request, reply)

    async def scene() -> None:
        head = b"POST /%b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        async with serving(handler) as (_, port):
            async with connected(port) as client:
                await client.send(head % b"yes")
                assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                assert (await client.ask(b"hello")).body == b"POST /yes hello"
                assert (await client.ask(head % b"now" + b"hello")).interim == 0, "it did not wait: nothing to say"
            async with connected(port) as client:
                answer = await client.ask(head % b"no")
                assert (answer.status, answer.interim, answer.headers["connection"]) == (401, 0, "close")
                assert await client.rest() == b""

    run(scene())


def test_a_body_that_is_too_large_is_refused_before_it_is_read(run: Run) -> None:
    """With 413, although the client is still sending; a chunked one as soon as it is too long."""

    async def handler(request: Request, reply: Reply) -> None:
        await request.body(100_000)
        await reply.send(200)

    async def scene() -> None:
        async with serving(handler) as (_, port):
            for framing in (b"Content-Length: 50000000", b"Transfer-Encoding: chunked"):
                async with connected(port) as client:
                    body = b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n" if b"chunked" in framing else b"x" * 1_000_000
                    sending = asyncio.create_task(
                        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + body * 30)
                    )
                    answer = await client.answer()
                    assert (answer.status, answer.headers["connection"]) == (413, "close")
                    assert b"100000" in answer.body
                    await asyncio.wait([sending])
                    sending.exception()

    run(scene())


def test_a_small_body_that_nobody_reads_does_not_cost_the_connection(run: Run) -> None:
    """It is read and dropped, and the next request is served."""

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(404, (), b"no")

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegin")
            assert (await client.answer()).status == 404
            await client.send(b"x" * 995 + GET)
            assert (await client.answer()).status == 404
            assert server.connections == 1

    run(scene())


def test_a_large_body_streams_with_flat_memory(run: Run) -> None:
    """100 MB pass through a slow handler, and never more than a little of it is here."""
    most = 0
    total = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal most, total
        async for piece in request.chunks():
            total += len(piece)
            most = max(most, len(piece))
            await asyncio.sleep(0)
        await reply.send(200)

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            size = 100_000_000
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(100):
                await client.send(b"x" * (size // 100))
            assert (await client.answer()).status == 200
            assert total == size
            assert most < 300_000

    run(scene())


def test_a_client_waits_while_nobody_reads_its_body(run: Run) -> None:
    """Back-pressure: what the handler does not take stays with the client."""
    go_on = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        await go_on.wait()
        await reply.send(200, (), b"%d" % len(await request.body(1 << 30)))

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port) as client:
            size = 64 << 20
            sending = asyncio.create_task(
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            )
            await until(lambda: any(each.is_held for each in server._connections))
            for _ in range(20):
                await asyncio.sleep(0.005)
            (connection,) = server._connections
            assert connection.body._bytes < 256 << 10
            assert not sending.done()
            go_on.set()
            await sending
            assert (await client.answer()).body == b"%d" % size

    run(scene())


def test_a_slow_reader_makes_the_handler_wait(run: Run) -> None:
    """A line of 50 MB to a client that does not read: little of it is kept, and all of it arrives in the end."""
    written = 0

    async def handler(request: Request, reply: Reply) -> None:
        nonlocal written
        await reply.begin(200)
        for _ in range(500):
            await reply.write(b"x" * 100_000)
            written += 100_000
        await reply.end()

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port, receive_bytes=65536) as client:
            await client.send(GET)
            await until(lambda: any(each.full for each in server._connections))
            for _ in range(10):
                await asyncio.sleep(0.005)
            assert written < 20_000_000
            (connection,) = server._connections
            assert connection.transport.get_write_buffer_size() < 300_000
            assert len((await client.answer()).body) == 50_000_000

    run(scene())


@pytest.mark.parametrize("size", [0, 1, 70_000, 30_000_000])
def test_a_whole_answer_of_any_size_arrives(size: int, run: Run) -> None:
    """Also one that is larger than any buffer."""
    body = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(200, (), body[:size])

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            assert (await client.ask(GET)).body == body[:size]
            assert (await client.ask(GET)).body == body[:size]

    run(scene())


# Handlers that do not do what they should -----------------------------------------------------------------------------


def test_a_handler_s_error_is_told_in_plain_words_and_logged_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The client sees no traceback, and the connection goes on."""

    async def handler(request: Request, reply: Reply) -> None:
        if request.path == "/bad":
            raise KeyError("secret")
        await reply.send(200)

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            answer = await client.ask(b"GET /bad?key=hidden HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.status == 500
            assert b"secret" not in answer.body
            assert b"Traceback" not in answer.body
            assert (await client.ask(GET)).status == 200

    with caplog.at_level(logging.ERROR):
        run(scene())
    (record,) = caplog.records
    assert "/bad" in record.getMessage()
    assert "hidden" not in record.getMessage(), "a query may hold a secret"


async def says_nothing(request: Request, reply: Reply) -> None:
    """No reply at all."""


async def leaves_it_open(request: Request, reply: Reply) -> None:
    await reply.begin(200)
    await reply.write(b"half")


async def fails_in_the_middle(request: Request, reply: Reply) -> None:
    await reply.begin(200)
    await reply.write(b"half")
    raise RuntimeError("in the middle")


async def promises_more(request: Request, reply: Reply) -> None:
    await reply.begin(200, length=100)
    await reply.write(b"half")
    await reply.end()


async def gives_more(request: Request, reply: Reply) -> None:
    await reply.begin(200, length=4)
    await reply.write(b"half")
    await reply.write(b"more")
    await reply.end()


async def refuses_in_the_middle(request: Request, reply: Reply) -> None:
    await reply.begin(200)
    await reply.write(b"half")
    raise Refused(400, "too late")


async def aborts(request: Request, reply: Reply) -> None:
    await reply.begin(200)
    await reply.write(b"half")
    await asyncio.sleep(0)
    reply.abort()


@pytest.mark.parametrize(
    "handler", [leaves_it_open, fails_in_the_middle, promises_more, gives_more, refuses_in_the_middle, aborts]
)
def test_a_reply_that_cannot_be_kept_is_cut(handler: Any, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Never a fake end: the client sees that something is missing."""

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port) as client:
            await client.send(GET + GET)
            seen = await client.rest()
            assert b"\r\n0\r\n\r\n" not in seen
            assert seen.count(b"HTTP/1.1") <= 1
            await until(lambda: server.connections == 0)

    run(scene())
    assert len(caplog.records) == (0 if handler in (aborts, refuses_in_the_middle) else 1)


def test_a_handler_without_a_reply_is_an_error(run: Run) -> None:
    """The client is not left waiting."""

    async def scene() -> None:
        async with serving(says_nothing) as (_, port), connected(port) as client:
            assert (await client.ask(GET)).status == 500

    run(scene())


def test_a_reply_is_begun_once(run: Run) -> None:
    """A second status, and words after the end, are the handler's mistakes, and told to it."""
    problems: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        for attempt in (reply.write(b"x"), reply.send(200, (), b"one"), reply.send(200), reply.write(b"x")):
            try:
                await attempt
            except RuntimeError as problem:
                problems.append(str(problem))

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            assert (await client.ask(GET)).body == b"one"

    run(scene())
    assert problems == [
        "cannot write: the reply was not begun",
        "the reply was begun already, with 200",
        "cannot write: the reply has ended",
    ]


def test_refusals_have_the_words_of_the_door(run: Run) -> None:
    """The layer's own refusals are written in the door's way."""

    async def scene() -> None:
        server = Server(echo, words=lambda status, text: ("application/json", b'{"code":%d}' % status))
        from gpud.http.listening import TcpAddress

        listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test")
        try:
            async with connected(listening.port) as client:
                answer = await client.ask(b"nonsense\r\n\r\n")
                assert (answer.headers["content-type"], answer.body) == ("application/json", b'{"code":400}')
        finally:
            await server.close()

    run(scene())


def test_a_request_says_what_was_asked(run: Run) -> None:
    """Path decoded once, its raw form, its parts, the query with repeated names."""
    seen: list[Any] = []

    async def handler(request: Request, reply: Reply) -> None:
        seen.append((request.path, request.raw_path, request.segments, request.query))
        await reply.send(200)

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            await client.ask(b"GET /a%2Fb/%25c?d=1&d=%26&e= HTTP/1.1\r\nHost: x\r\n\r\n")

    run(scene())
    assert seen == [("/a/b/%c", "/a%2Fb/%25c", ("a/b", "%c"), {"d": ["1", "&"], "e": [""]})]
