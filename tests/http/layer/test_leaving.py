"""Clients that leave, or seem to; a server that does; and what neither leaves behind."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpud.http.connection import ClientGone
from gpud.http.limits import ServerLimits
from gpud.http.message import Reply, Request
from gpud.http.server import Server

from .raw import BOUND_S, connected, echo, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Waiting:
    """A handler that waits until its client leaves, or it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.outcome = ""

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.path == "/stream":
            await reply.begin(200)
            await reply.write(b"first")
        self.begun.set()
        try:
            await self.go_on.wait()
            if request.path == "/stream":
                await reply.end()
            else:
                await reply.send(200, (), b"done")
            self.outcome = "answered"
        except asyncio.CancelledError:
            self.outcome = "canceled" + (" and told" if request.is_gone else "")
            raise
        except ClientGone:
            self.outcome = "gone"
            raise


@pytest.mark.parametrize("path", ["/plain", "/stream"])
@pytest.mark.parametrize("how", ["reset", "leave"])
def test_a_client_that_leaves_ends_what_is_done_for_it(path: str, how: str, run: Run) -> None:
    """The handler is canceled, whether its client resets or closes; how soon is told by the bench."""

    async def scene() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port), connected(port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await waiting.begun.wait()
            if path == "/stream":
                await client.reader.readuntil(b"first\r\n")
            getattr(client, how)()
            if how == "leave" and path == "/stream":
                # The one case in which only a next word finds out.
                for connection in list(server._connections):
                    while not connection.half_closed:
                        await asyncio.sleep(0.001)
                    connection.transport.write(b"1\r\nx\r\n")
            await until(lambda: bool(waiting.outcome))
            assert waiting.outcome == "canceled and told"
            await until(lambda: server.connections == 0)

    run(scene())


def test_a_client_that_leaves_over_a_unix_socket_is_missed_at_once(run: Run, tmp_path: Any) -> None:
    """In mid-stream, too: the kernel tells a close from a half-close."""
    from gpud.http.listening import UnixAddress

    async def scene() -> None:
        waiting = Waiting()
        server = Server(waiting)
        path = str(tmp_path / "socket")
        await server.listen(UnixAddress(path), door="test")
        try:
            async with connected(path) as client:
                await client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                await client.reader.readuntil(b"first\r\n")
                client.half_close()
                await until(lambda: all(each.half_closed for each in server._connections))
                assert not waiting.outcome
                client.leave()
                await until(lambda: bool(waiting.outcome))
                assert waiting.outcome == "canceled and told"
        finally:
            await server.close()

    run(scene())


@pytest.mark.parametrize("path", ["/plain", "/stream"])
def test_a_client_that_only_ends_its_sending_is_answered(path: str, run: Run) -> None:
    """A half-close is no farewell; interim answers that were sent to find out do no harm."""

    async def scene() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port), connected(port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await waiting.begun.wait()
            client.half_close()
            await until(lambda: all(each.half_closed for each in server._connections))
            for _ in range(10):
                await asyncio.sleep(0.002)
            assert not waiting.outcome
            waiting.go_on.set()
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"first" if path == "/stream" else b"done")
            assert await client.rest() == b""
            await until(lambda: server.connections == 0)

    run(scene())


def test_a_half_closed_client_that_breaks_under_a_write_is_forgotten(run: Run) -> None:
    """A later connection may have the same descriptor: it is watched anew."""

    async def scene() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port):
            for _ in range(2):
                waiting.outcome = ""
                waiting.begun.clear()
                async with connected(port) as client:
                    await client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                    await waiting.begun.wait()
                    await client.reader.readuntil(b"first\r\n")
                    client.half_close()
                    await until(lambda: all(each.half_closed for each in server._connections))
                    (connection,) = server._connections
                    connection.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
                    connection.transport.write(b"1\r\nx\r\n")
                    await until(lambda: server.connections == 0)
                    assert waiting.outcome == "canceled and told"
                assert server.departures._watched == {}

    run(scene())


def test_all_that_was_pipelined_before_a_half_close_is_answered(run: Run) -> None:
    """printf requests | nc -N: each has its answer, then the connection ends."""

    async def scene() -> None:
        async with serving(echo) as (server, port), connected(port) as client:
            await client.send(GET * 3)
            client.half_close()
            answers = [await client.answer() for _ in range(3)]
            assert [each.status for each in answers] == [200] * 3
            assert answers[-1].headers["connection"] == "close"
            assert await client.rest() == b""
            await until(lambda: server.connections == 0)

    run(scene())


def test_a_body_that_breaks_off_ends_its_request(run: Run) -> None:
    """The handler is not served half a body."""
    got: list[bytes] = []
    outcome: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        try:
            got.append(await request.body(1000))
        except (ClientGone, asyncio.CancelledError) as problem:
            outcome.append(type(problem).__name__)
            raise

    async def scene() -> None:
        async with serving(handler) as (server, port), connected(port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
            await until(lambda: server.connections == 1)
            client.half_close()
            await until(lambda: server.connections == 0)
        assert (got, len(outcome)) == ([], 1)

    run(scene())


def test_a_handler_s_last_work_is_not_cut_by_a_client_that_has_its_answer(run: Run) -> None:
    """Who closes after the last byte does not cancel what comes after it."""
    finished = asyncio.Event()

    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(200)
        for _ in range(20):
            await asyncio.sleep(0.001)
        finished.set()

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            await client.ask(GET)
            client.reset()
            await finished.wait()

    run(scene())


# Draining -------------------------------------------------------------------------------------------------------------


def test_draining_lets_requests_end_and_takes_no_others(run: Run) -> None:
    """Idle connections go at once, the running one ends with its answer, which says that the connection ends."""

    async def scene() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port), connected(port) as busy, connected(port) as idle:
            waiting.go_on.set()
            await idle.ask(GET)
            waiting.go_on.clear()
            waiting.begun.clear()
            await busy.send(GET)
            await waiting.begun.wait()
            closing = asyncio.create_task(server.close(3600.0))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                async with connected(port):
                    pass
            assert not closing.done()
            waiting.go_on.set()
            answer = await busy.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            await closing
            assert (server.connections, waiting.outcome) == (0, "answered")

    run(scene())


@pytest.mark.parametrize("early", [b"", GET[:9]])
def test_who_has_just_come_may_still_ask(early: bytes, run: Run) -> None:
    """A connection on which nothing was asked yet, or the begin of something, is not closed before its answer."""

    async def scene() -> None:
        async with serving(echo) as (server, port), connected(port) as client:
            await client.send(early)
            await until(lambda: all(len(each._pending) == len(early) for each in server._connections))
            await until(lambda: server.connections == 1)
            closing = asyncio.create_task(server.close(3600.0))
            await until(lambda: server.closing)
            answer = await client.ask(GET[len(early) :])
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.rest() == b""
            await closing

    run(scene())


def test_who_comes_only_to_be_there_does_not_hold_up_the_end(run: Run) -> None:
    """A browser connects before it has anything to ask: after a moment that connection is closed, without a reset."""

    async def scene() -> None:
        async with serving(echo) as (server, port), connected(port) as client:
            await until(lambda: server.connections == 1)
            closing = asyncio.create_task(server.close(3600.0))
            async with asyncio.timeout(BOUND_S):
                assert await client.reader.read() == b""
                await closing

    run(scene())


@pytest.mark.parametrize("asked_before", [False, True])
def test_what_was_sent_before_the_end_is_answered(asked_before: bool, run: Run) -> None:
    """Although nobody had read it, or not even accepted its connection, when the server was told to end: all three
    happen here before the loop takes another turn.
    """

    async def scene() -> None:
        async with serving(echo) as (server, port):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                loop = asyncio.get_running_loop()
                if asked_before:
                    client.setblocking(False)
                    await loop.sock_sendall(client, GET)
                    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
                client.setblocking(True)
                client.sendall(GET)
                server.retire()
                client.setblocking(False)
                answer = b""
                async with asyncio.timeout(BOUND_S):
                    while piece := await loop.sock_recv(client, 4096):
                        answer += piece
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"\r\nConnection: close\r\n" in answer

    run(scene())


def test_draining_ends_in_time(run: Run) -> None:
    """What does not end by itself is cut, and its handler canceled."""

    async def scene() -> None:
        waiting = Waiting()
        async with serving(waiting) as (server, port), connected(port) as busy:
            await busy.send(GET)
            await waiting.begun.wait()
            await server.close(0.05)
            assert (server.connections, waiting.outcome) == (0, "canceled and told")
            assert await busy.rest() == b""

    run(scene())


def test_a_server_without_connections_has_no_timer(run: Run) -> None:
    """Nothing wakes an idle server; one timer serves all connections."""

    async def scene() -> None:
        async with serving(echo) as (server, port):
            assert server._sweep is None
            async with connected(port) as client:
                await client.ask(GET)
                assert server._sweep is not None
            await until(lambda: server.connections == 0)
            assert server._sweep is None

    run(scene())


def test_a_thousand_idle_connections_cost_one_timer(run: Run) -> None:
    """And others are served beside them."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        # None of them is to be closed for its silence meanwhile.
        async with serving(echo, ServerLimits(connections=1100, header_s=3600.0)) as (server, port):
            opened = []
            try:
                while len(opened) < 1000:
                    opened.append(await asyncio.open_connection("127.0.0.1", port))
                await until(lambda: server.connections == 1000)
                scheduled = [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
                assert len(scheduled) <= 4, "the test's own bounds, and one for the server"
                async with connected(port) as client:
                    assert (await client.ask(GET)).status == 200
            finally:
                for _, writer in opened:
                    writer.transport.abort()
            await until(lambda: server.connections == 0)

    run(scene())
