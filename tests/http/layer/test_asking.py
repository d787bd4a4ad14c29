"""How engines are asked: connections kept and dropped, answers of every framing, failures that say what happened."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.facts import Endpoint
from gpud.http.client import Engine, Pool, Stage, Trouble, UpstreamFailed
from gpud.http.limits import ClientLimits
from gpud.http.listening import UnixAddress
from gpud.http.message import Reply, Request
from gpud.http.server import Server

from .raw import BOUND_S, connected, echo, engine, request_of, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def pooling(limits: ClientLimits | None = None) -> AsyncIterator[Pool]:
    pool = Pool(limits)
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.connections == 0


ANSWERS = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\nA: b\r\n\r\n",
    "interim answers before it": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.0 that keeps alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}
ENDLESS = {
    "its end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "its end in HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "a length and close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    "a length in HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", [*ANSWERS, *ENDLESS])
def test_an_answer_is_read_by_its_framing(name: str, run: Run) -> None:
    """And the connection is kept exactly when it can be."""
    data = {**ANSWERS, **ENDLESS}[name]
    connected = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        while name in ANSWERS:
            await request_of(reader)
            writer.write(data)
        await request_of(reader)
        writer.write(data)
        # Abort instead of close would lose what the engine has written: it closes as a program that ends does.
        await writer.drain()
        writer.write_eof()
        await reader.read()

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            for _ in range(3):
                async with pool.request(endpoint, "GET", "/") as response:
                    assert (response.status, await response.read(100)) == (200, b"hello")
        assert connected == (1 if name in ANSWERS else 3)

    run(scene())


@pytest.mark.parametrize("status", [204, 304, 200])
def test_bodiless_answers_leave_the_connection_clean(status: int, run: Run) -> None:
    """204, 304 and what HEAD is answered have no body, whatever their header says."""
    method = "HEAD" if status == 200 else "GET"

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status)

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            for _ in range(2):
                async with pool.request(endpoint, method, "/") as response:
                    assert (response.status, response.length, await response.read(100)) == (status, 5, b"")
            assert pool.connections == 1

    run(scene())


SPLIT = ANSWERS["interim answers before it"] + ANSWERS["chunks"]


def test_answers_read_the_same_however_they_are_split(run: Run) -> None:
    """Cut at any places, two answers are the same two answers."""

    async def scene(data: bytes, cuts: list[int]) -> bytes:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request_of(reader)
            for start, end in itertools.pairwise(sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})):
                writer.write(data[start:end])
                await writer.drain()
                for _ in range(3):
                    await asyncio.sleep(0)
            await reader.read()

        async with engine(speak) as endpoint, pooling() as pool, pool.request(endpoint, "GET", "/") as response:
            return await response.read(100)

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 150), max_size=10))
    def check(name: str, cuts: list[int]) -> None:
        assert run(scene(ANSWERS[name], cuts)) == b"hello"

    check()
    for data in ANSWERS.values():
        assert run(scene(data, list(range(len(data))))) == b"hello"


@pytest.mark.parametrize("kind", ["bytes", "large", "stream", "stream of known length", "nothing"])
def test_a_body_is_sent_as_it_is_given(kind: str, run: Run) -> None:
    """With its length where that is known, else in chunks."""
    body: Any = {"bytes": b"hello", "large": b"x" * 3_000_000, "nothing": None}.get(kind)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"he", b"", b"llo"):
            yield piece

    async def handler(request: Request, reply: Reply) -> None:
        framing = f"{request.content_length} {request.headers.get('authorization')} {request.headers.get('host')} "
        await reply.send(200, (), framing.encode() + await request.body(1 << 30))

    async def scene() -> None:
        async with serving(handler) as (_, port), pooling() as pool:
            endpoint = Endpoint(host="127.0.0.1", port=port, base_path="/base/", key="the-key")
            for _ in range(2):
                streamed = kind.startswith("stream")
                async with pool.request(
                    endpoint,
                    "POST",
                    "/x",
                    headers=[("Host", "evil"), (b"authorization", b"Bearer mine"), ("X-A", "b")],
                    body=pieces() if streamed else body,
                    length=5 if kind == "stream of known length" else None,
                ) as response:
                    length = {"stream": "None", "stream of known length": "5"}.get(kind, str(len(body or b"")))
                    head = f"{length} Bearer the-key 127.0.0.1:{port} ".encode()
                    assert await response.read(1 << 30) == head + (b"hello" if streamed else body or b"")
            assert pool.connections == 1

    run(scene())


def test_a_unix_socket_is_reached_like_an_address(run: Run, tmp_path: Any) -> None:
    """And its connections are kept."""

    async def scene() -> None:
        server = Server(echo)
        path = str(tmp_path / "engine")
        await server.listen(UnixAddress(path), door="engine")
        async with pooling() as pool:
            for _ in range(3):
                async with pool.request(Endpoint(socket=path), "PUT", "/a?b", body=b"c") as response:
                    assert await response.read(100) == b"PUT /a?b c"
            assert (pool.connections, server.connections) == (1, 1)
            pool.drop(Endpoint(socket=path))
            await until(lambda: pool.connections == server.connections == 0)
        await server.close()

    run(scene())


FAILURES = {
    "closes without a word": (b"", Stage.HEADER, Trouble.CLOSED),
    "closes within the header": (b"HTTP/1.1 200 OK\r\nContent-", Stage.HEADER, Trouble.CLOSED),
    "closes within the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", Stage.BODY, Trouble.CLOSED),
    "closes within a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        Stage.BODY,
        Trouble.CLOSED,
    ),
    "closes between chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        Stage.BODY,
        Trouble.CLOSED,
    ),
    "sends garbage": (b"\x00\x01garbage\r\n\r\n", Stage.HEADER, Trouble.GARBAGE),
    "sends bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", Stage.HEADER, Trouble.GARBAGE),
    "sends two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        Stage.HEADER,
        Trouble.GARBAGE,
    ),
    "sends a bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Stage.BODY, Trouble.GARBAGE),
    "sends an endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, Stage.HEADER, Trouble.TOO_LARGE),
    "changes the protocol unasked": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", Stage.HEADER, Trouble.GARBAGE),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_what_happened_and_when(name: str, run: Run) -> None:
    """Typed, named after the endpoint, without its key; and the connection is never used again."""
    data, stage, trouble = FAILURES[name]

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    async def scene() -> None:
        async with engine(speak) as where, pooling() as pool:
            endpoint = Endpoint(host=where.host, port=where.port, key="the-key")
            with pytest.raises(UpstreamFailed) as caught:
                async with pool.request(endpoint, "POST", "/", body=b"x") as response:
                    await response.read(1000)
            assert (caught.value.stage, caught.value.trouble) == (stage, trouble)
            assert f"127.0.0.1:{endpoint.port}" in str(caught.value)
            assert "the-key" not in str(caught.value)
            await until(lambda: pool.connections == 0)

    run(scene())


def test_nobody_there_is_told_with_the_reason(run: Run, tmp_path: Any) -> None:
    """Nothing was sent: another engine can be asked."""

    async def scene() -> None:
        async with pooling(ClientLimits(connect_s=0.2)) as pool:
            for endpoint in (Endpoint(host="127.0.0.1", port=1), Endpoint(socket=str(tmp_path / "none"))):
                with pytest.raises(UpstreamFailed, match="cannot connect to") as caught:
                    async with pool.request(endpoint, "GET", "/"):
                        pass
                assert (caught.value.stage, caught.value.trouble, caught.value.sent) == (
                    Stage.CONNECT,
                    Trouble.REFUSED,
                    False,
                )

    run(scene())


def test_a_crowded_unix_socket_is_waited_for(run: Run, tmp_path: Any) -> None:
    """Within its bound: the queue of an engine that accepts nobody fills."""

    async def scene() -> None:
        path = str(tmp_path / "full")
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
            listener.bind(path)
            listener.listen(0)
            first = stack.enter_context(socket.socket(socket.AF_UNIX))
            first.connect(path)
            async with pooling(ClientLimits(connect_s=0.2)) as pool:
                with pytest.raises(UpstreamFailed) as caught:
                    async with pool.request(Endpoint(socket=path), "GET", "/"):
                        pass
                assert caught.value.trouble is Trouble.TIMED_OUT
            async with pooling() as pool:
                asking = asyncio.create_task(pool.connect(Engine(Endpoint(socket=path)), ClientLimits()))
                await asyncio.sleep(0.03)
                assert not asking.done()
                listener.accept()[0].close()
                await asking

    run(scene())


@pytest.mark.parametrize("stage", [Stage.HEADER, Stage.BODY])
def test_silence_is_bounded_where_it_is_asked_for(stage: Stage, run: Run) -> None:
    """By default a model may think as long as it likes."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        if stage is Stage.BODY:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await reader.read()

    async def scene() -> None:
        limits = ClientLimits(header_s=0.1) if stage is Stage.HEADER else ClientLimits(stall_s=0.1)
        async with engine(speak) as endpoint, pooling() as pool:
            with pytest.raises(UpstreamFailed) as caught:
                async with pool.request(endpoint, "GET", "/", limits=limits) as response:
                    await response.read(100)
            assert (caught.value.stage, caught.value.trouble) == (stage, Trouble.TIMED_OUT)
            assert "0.1 s" in str(caught.value)

    run(scene())


def test_an_engine_waits_for_a_slow_consumer(run: Run) -> None:
    """And a held engine is not taken for a stalled one."""
    sent = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(50):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1_000_000
        await reader.read()

    async def scene() -> None:
        async with (
            engine(speak) as endpoint,
            pooling(ClientLimits(stall_s=1.0)) as pool,
            pool.request(endpoint, "GET", "/") as response,
        ):
            await until(lambda: response.connection.is_held)
            await asyncio.sleep(1.5)
            assert sent < 30_000_000
            assert response.connection._body_bytes < 300_000
            total = 0
            async for piece in response.chunks():
                total += len(piece)
            assert total == 50_000_000

    run(scene())


def test_leaving_early_ends_the_engine_s_work_at_once(run: Run) -> None:
    """The connection is closed, not drained, and not kept."""
    ended = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        try:
            await reader.read()
        finally:
            ended.set()

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            async with pool.request(endpoint, "GET", "/") as response:
                assert response.status == 200
            async with asyncio.timeout(BOUND_S):
                await ended.wait()
            ended.clear()

            async def ask() -> None:
                async with pool.request(endpoint, "GET", "/") as response:
                    async for _ in response.chunks():
                        pass

            asking = asyncio.create_task(ask())
            await until(lambda: any(each.head for each in pool._all))
            asking.cancel()
            async with asyncio.timeout(BOUND_S):
                await ended.wait()
            await asyncio.wait([asking])
            await until(lambda: pool.connections == 0)

    run(scene())


def test_more_than_an_answer_spoils_its_connection(run: Run) -> None:
    """What nobody asked for must not answer the next one's question."""
    connected = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        while True:
            await request_of(reader)
            writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            for count in range(3):
                async with pool.request(endpoint, "GET", "/") as response:
                    assert await response.read(100) == b"ok"
                assert connected == count + 1

    run(scene())


class Closes:
    """An engine that answers one request a connection and then closes it, or breaks it, when it is told to."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.requests: list[bytes] = []
        self.close = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await request_of(reader))
        writer.write(OK)
        if len(self.requests) > 1:
            await reader.read()
            return
        await self.close.wait()
        if self.how == "reads first":
            self.requests.append(await request_of(reader))


def test_a_kept_connection_that_has_ended_is_not_used(run: Run) -> None:
    """Its end is seen before anything is sent on it, even when it is known to the kernel alone."""

    async def scene() -> None:
        now_s = 1000.0
        closes = Closes("at once")
        async with engine(closes) as endpoint:
            pool = Pool(clock=lambda: now_s)
            async with pool.request(endpoint, "POST", "/1", body=b"x") as response:
                await response.read(100)
            (connection,) = pool._all
            now_s += 1.0
            assert connection.is_usable()
            # The engine closes, and the pool's loop has not looked since.
            peer = connection._socket
            peer.shutdown(socket.SHUT_RD)
            assert not connection.is_usable()
            async with pool.request(endpoint, "POST", "/2", body=b"x") as response:
                assert await response.read(100) == b"ok"
            assert [each.split()[1] for each in closes.requests] == [b"/1", b"/2"]
            await pool.close()

    run(scene())


def test_nothing_is_left_of_an_engine_that_has_gone(run: Run) -> None:
    """Its kept connections go with it, and with the last connection that is kept the timer that would close them."""

    async def scene() -> None:
        first, second = Closes("at once"), Closes("at once")
        async with engine(first) as one, engine(second) as other, pooling() as pool:
            for endpoint in (one, other):
                async with pool.request(endpoint, "GET", "/") as response:
                    await response.read(100)
            timer = pool._timer
            assert timer is not None
            first.close.set()
            await until(lambda: pool.connections == 1)
            assert not timer.cancelled(), "the other engine is still there"
            second.close.set()
            await until(lambda: pool.connections == 0)
            assert timer.cancelled()

    run(scene())


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("POST", False)])
def test_a_request_is_repeated_only_when_that_is_safe(method: str, again: bool, run: Run) -> None:
    """An engine that has read it and died may have done it; asking again is then up to the method."""

    async def scene() -> None:
        closes = Closes("reads first")
        async with engine(closes) as endpoint, pooling() as pool:
            async with pool.request(endpoint, method, "/1") as response:
                await response.read(100)
            closes.close.set()
            if again:
                async with pool.request(endpoint, method, "/2") as response:
                    assert await response.read(100) == b"ok"
            else:
                with pytest.raises(UpstreamFailed) as caught:
                    async with pool.request(endpoint, method, "/2"):
                        pass
                assert (caught.value.stage, caught.value.trouble) == (Stage.HEADER, Trouble.CLOSED)
            assert len(closes.requests) == (3 if again else 2)
            assert closes.requests[1].startswith(method.encode() + b" /2")

    run(scene())


def test_a_request_that_was_never_read_is_repeated_whatever_it_is(run: Run) -> None:
    """A reset says that the engine closed with it unread."""
    asked = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await request_of(reader)
        asked += 1
        writer.write(OK)
        if asked == 1:
            # Stop reading; the next request stays in the kernel. Then close: the kernel answers with a reset.
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await closing.wait()
            return
        await reader.read()

    closing = asyncio.Event()

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            async with pool.request(endpoint, "POST", "/1", body=b"x") as response:
                await response.read(100)
            exchange = pool.request(endpoint, "POST", "/2", body=b"x" * 1000)
            asking = asyncio.create_task(exchange.__aenter__())
            await until(lambda: exchange._connection is not None)
            closing.set()
            response = await asking
            assert await response.read(100) == b"ok"
            await exchange.__aexit__(None, None, None)
            assert asked == 2

    run(scene())


async def ask_at_once(pool: Pool, port: int, count: int) -> None:
    endpoint = Endpoint(host="127.0.0.1", port=port)

    async def ask() -> None:
        async with pool.request(endpoint, "GET", "/") as response:
            await response.read(100)

    await asyncio.gather(*(ask() for _ in range(count)))


def test_idle_connections_are_few(run: Run) -> None:
    """Of many that were needed at once some are kept."""

    async def scene() -> None:
        async with serving(echo) as (_, port), pooling(ClientLimits(idle=3, idle_s=3600)) as pool:
            await ask_at_once(pool, port, 10)
            await until(lambda: pool.connections == 3)

    run(scene())


def test_idle_connections_are_not_kept_for_ever(run: Run) -> None:
    """After a while the last of them is closed, and nothing is planned any more."""

    async def scene() -> None:
        async with serving(echo) as (server, port), pooling(ClientLimits(idle=3, idle_s=0.1)) as pool:
            await ask_at_once(pool, port, 10)
            await until(lambda: pool.connections == server.connections == 0)
            assert pool._timer is None

    run(scene())


def test_a_body_that_cannot_be_had_fails_the_request(run: Run) -> None:
    """A client that leaves while its upload is passed on does not leave half a request looking whole."""
    requests: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read())

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the client has left")

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            with pytest.raises(RuntimeError, match="the client has left"):
                async with pool.request(endpoint, "POST", "/", body=broken()):
                    pass
            await until(lambda: bool(requests))
            assert requests[0].endswith(b"4\r\nhalf\r\n")

    run(scene())


def test_an_early_answer_is_taken_although_the_body_is_not_sent(run: Run) -> None:
    """An engine may refuse before it has read all; the rest is not sent."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    async def scene() -> None:
        async with engine(speak) as endpoint, pooling() as pool:
            async with pool.request(endpoint, "POST", "/", body=b"x" * 50_000_000) as response:
                assert (response.status, await response.read(10)) == (413, b"no")
            await until(lambda: pool.connections == 0)

    run(scene())


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä"])
def test_a_target_that_would_become_two_is_not_sent(target: str, run: Run) -> None:
    """Whoever made it has not escaped it."""

    async def scene() -> None:
        async with pooling() as pool:
            with pytest.raises(ValueError, match="cannot ask for"):
                pool.request(Endpoint(host="127.0.0.1", port=1), "GET", target)

    run(scene())


def test_closing_the_pool_ends_what_is_asked(run: Run) -> None:
    """Nobody waits for an answer that cannot come."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scene() -> None:
        async with engine(speak) as endpoint:
            pool = Pool()

            async def ask() -> None:
                async with pool.request(endpoint, "GET", "/"):
                    pass

            asking = asyncio.create_task(ask())
            await until(lambda: pool.connections == 1)
            await pool.close()
            with pytest.raises(UpstreamFailed):
                await asking

    run(scene())


def test_what_is_connected_is_a_client(run: Run) -> None:
    """The hand-made client of these tests and the pool see the same server alike."""

    async def scene() -> None:
        async with serving(echo) as (_, port), connected(port) as client, pooling() as pool:
            by_hand = await client.ask(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            async with pool.request(Endpoint(host="127.0.0.1", port=port), "GET", "/a") as response:
                assert await response.read(100) == by_hand.body

    run(scene())
