"""Clients that are slow on purpose, or too many: each is ended in time, and others do not notice."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpud.http.limits import ServerLimits
from gpud.http.message import Peer, Reply, Request
from gpud.http.server import Server

from .raw import connected, echo, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Clock:
    """Time as a test wants it. The server's own timer follows real time: the test looks over the connections itself."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def go_on(self, server: Server, seconds: float) -> None:
        self.now_s += seconds
        server.sweep(self.now_s)


def test_a_header_that_comes_too_slowly_is_ended(run: Run) -> None:
    """However steadily its bytes drip, the header must be complete in time."""

    async def scene() -> None:
        clock = Clock()
        async with serving(echo, clock=clock) as (server, port), connected(port) as client:
            for sent, byte in enumerate(GET[:9], 1):
                await client.send(bytes([byte]))
                await until(lambda sent=sent: any(len(each._pending) == sent for each in server._connections))  # type: ignore[misc]
                clock.go_on(server, 1.0)
            assert server.connections == 1
            clock.go_on(server, 1.1)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert b"10 s" in answer.body

    run(scene())


def test_a_connection_that_says_nothing_is_closed(run: Run) -> None:
    """Sooner before its first request than between two."""

    async def scene() -> None:
        clock = Clock()
        async with serving(echo, clock=clock) as (server, port):
            async with connected(port) as silent:
                await until(lambda: server.connections == 1)
                clock.go_on(server, 10.1)
                assert await silent.rest() == b""
            async with connected(port) as client:
                await client.ask(GET)
                clock.go_on(server, 74.0)
                await client.ask(GET)
                clock.go_on(server, 74.0)
                assert server.connections == 1
                clock.go_on(server, 1.1)
                assert await client.rest() == b""

    run(scene())


def test_the_second_header_is_bounded_like_the_first(run: Run) -> None:
    """A kept connection is no way around the limit."""

    async def scene() -> None:
        clock = Clock()
        async with serving(echo, clock=clock) as (server, port), connected(port) as client:
            await client.ask(GET)
            await client.send(b"GET")
            await until(lambda: any(each._pending for each in server._connections))
            clock.go_on(server, 10.1)
            assert (await client.answer()).status == 408

    run(scene())


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_a_body_that_stops_coming_is_ended(framing: bytes, run: Run) -> None:
    """It may take as long as it likes while it makes progress; a byte now and then is none."""

    async def scene() -> None:
        clock = Clock()
        async with serving(echo, clock=clock) as (server, port), connected(port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
            await until(lambda: any(each.work for each in server._connections))
            (connection,) = server._connections
            piece = b"400\r\n" + b"x" * 1024 + b"\r\n" if b"chunked" in framing else b"x" * 1024
            for _ in range(10):
                read = connection.body.progress
                await client.send(piece)
                await until(lambda read=read: connection.body.progress >= read + 1024)  # type: ignore[misc]
                clock.go_on(server, 30.0)
            assert server.connections == 1
            drop = b"1\r\nx\r\n" if b"chunked" in framing else b"x"
            for _ in range(2):
                await client.send(drop)
                await until(lambda: connection.body.progress > 0)
                clock.go_on(server, 15.1)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")

    run(scene())


def test_a_client_is_not_blamed_for_a_handler_that_does_not_read(run: Run) -> None:
    """While the server holds the body back no time runs against it."""
    go_on = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        await go_on.wait()
        await reply.send(200, (), b"%d" % len(await request.body(1 << 30)))

    async def scene() -> None:
        clock = Clock()
        async with serving(handler, clock=clock) as (server, port), connected(port) as client:
            size = 16 << 20
            sending = asyncio.create_task(
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            )
            await until(lambda: any(each.is_held for each in server._connections))
            clock.go_on(server, 1000.0)
            go_on.set()
            await sending
            assert (await client.answer()).body == b"%d" % size

    run(scene())


@pytest.mark.parametrize("ended", [False, True])
def test_a_reader_that_stops_is_cut(ended: bool, run: Run) -> None:
    """Whether the handler still writes, or has ended and only the last bytes are unsent."""
    outcome: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        try:
            await reply.begin(200, length=8_000_000 if ended else 80_000_000)
            while reply.body_bytes < (8_000_000 if ended else 80_000_000):
                reply.put(b"x" * 1_000_000) if ended else await reply.write(b"x" * 1_000_000)
            await reply.end()
            outcome.append("ended")
        except asyncio.CancelledError:
            outcome.append("canceled")
            raise

    async def scene() -> None:
        clock = Clock()
        async with serving(handler, clock=clock) as (server, port), connected(port, receive_bytes=4096) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await until(lambda: any(each.full for each in server._connections))
            clock.go_on(server, 59.0)
            assert server.connections == 1
            clock.go_on(server, 1.1)
            await until(lambda: server.connections == 0)
            assert outcome == ["ended" if ended else "canceled"]

    run(scene())


def test_a_reader_that_is_merely_slow_is_served(run: Run) -> None:
    """Progress counts, not speed."""

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(200, (), b"x" * 8_000_000)

    async def scene() -> None:
        clock = Clock()
        async with serving(handler, clock=clock) as (server, port), connected(port, receive_bytes=4096) as client:
            await client.send(GET)
            await until(lambda: any(each.full for each in server._connections))
            (connection,) = server._connections
            got = 0
            for _ in range(5):
                unsent = connection.transport.get_write_buffer_size()
                while connection.transport.get_write_buffer_size() == unsent and connection.full:
                    got += len(await client.reader.read(1 << 20))
                clock.go_on(server, 59.0)
            assert server.connections == 1
            while got < 8_000_000:
                got += len(await client.reader.read(1 << 20))

    run(scene())


def test_the_timer_itself_is_on_time(run: Run) -> None:
    """The same, by the server's own timer: nobody has to look."""

    async def scene() -> None:
        async with serving(echo, ServerLimits(header_s=0.1)) as (server, port), connected(port) as client:
            await client.send(b"GET")
            assert (await client.answer()).status == 408
            await until(lambda: server.connections == 0)

    run(scene())


def test_no_more_connections_than_allowed(run: Run) -> None:
    """One too many is told so; one that idles makes room."""
    go_on = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        await go_on.wait()
        await reply.send(200)

    async def scene() -> None:
        async with (
            serving(handler, ServerLimits(connections=2)) as (server, port),
            connected(port) as first,
            connected(port) as second,
        ):
            await first.send(GET)
            await second.send(GET)
            await until(lambda: all(each.work for each in server._connections) and server.connections == 2)
            async with connected(port) as third:
                answer = await third.answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
                assert b"2 connections" in answer.body
            go_on.set()
            await first.answer()
            await second.answer()
            await until(lambda: server.connections == 2)
            async with connected(port) as fourth:
                assert (await fourth.ask(GET)).status == 200
                assert await first.rest() == b"", "it had idled for longest"
                assert (await second.ask(GET)).status == 200

    run(scene())


def test_the_addresses_of_one_network_are_one_client(run: Run) -> None:
    """Of IPv6 everybody has a /64; what is IPv4 in truth is counted as that."""

    async def scene() -> None:
        async with serving(echo, ServerLimits(per_peer=1)) as (server, _):
            first: Any = object()
            second: Any = object()
            for one, other, same in (
                ("2001:db8:0:1::5", "2001:db8:0:1:ffff::9", True),
                ("2001:db8:0:1::5", "2001:db8:0:2::5", False),
                ("192.0.2.1", "192.0.2.2", False),
                ("::ffff:192.0.2.1", "192.0.2.1", True),
                ("fe80::1%eth0", "fe80::2%eth0", True),
            ):
                assert server.joined(first, Peer("test", one, 1)) == ""
                assert bool(server.joined(second, Peer("test", other, 2))) is same
                server.parted(second, Peer("test", other, 2))
                server.parted(first, Peer("test", one, 1))
            assert server._per_peer == {}

    run(scene())


def test_no_more_connections_of_one_user_than_allowed(run: Run, tmp_path: Any) -> None:
    """Counted by user on a Unix socket, but for root; loopback addresses are everybody's."""

    async def scene() -> None:
        async with serving(echo, ServerLimits(per_peer=1)) as (server, port):
            async with connected(port) as one, connected(port) as two:
                assert ((await one.ask(GET)).status, (await two.ask(GET)).status) == (200, 200)
            await until(lambda: server.connections == 0)
            stranger = Peer("test", "192.0.2.1", 5000)
            user = Peer("test", uid=1000, pid=7)
            first: Any = object()
            second: Any = object()
            for peer in (stranger, user):
                assert server.joined(first, peer) == ""
                assert "2 connections, the limit is 1" in server.joined(second, peer)
                server.parted(second, peer)
                server.parted(first, peer)
                assert server.joined(first, peer) == ""
                server.parted(first, peer)

    run(scene())


def test_slow_clients_do_not_delay_others(run: Run) -> None:
    """300 that drip a header, and a request beside them."""

    async def scene() -> None:
        async with serving(echo, ServerLimits(header_s=3600.0)) as (server, port):
            opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
            try:
                for byte in GET[:6]:
                    for _, writer in opened:
                        writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                async with connected(port) as client:
                    assert (await client.ask(GET)).status == 200
                assert server.connections >= 300
            finally:
                for _, writer in opened:
                    writer.transport.abort()
            await until(lambda: server.connections == 0)

    run(scene())
