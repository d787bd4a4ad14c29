"""An engine's answer on its way to a client: unchanged, at once, at the client's speed, and ended truthfully."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gpud.core.facts import Endpoint
from gpud.http.client import Pool, UpstreamFailed
from gpud.http.connection import tunnel
from gpud.http.crossing import PASSED_BACK, PASSED_BACK_UPGRADE, SENT_ON, SENT_ON_UPGRADE, passed_on
from gpud.http.message import Reply, Request
from gpud.http.relay import relay
from gpud.http.server import Server
from gpud.http.work import in_task

from .raw import BOUND_S, Raw, Speak, connected, engine, request_of, serving, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Door:
    """The least that a door does: pass the request on and the answer back."""

    def __init__(self, pool: Pool, endpoint: Endpoint) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.observed: list[bytes] = []
        self.watching = False
        self.relayed = 0

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.upgrade:
            await in_task()
            await self.upgrade(request, reply)
            return
        body = await request.body(1 << 30)
        async with self.pool.request(
            self.endpoint, request.method, request.target, headers=passed_on(request.headers, SENT_ON), body=body
        ) as response:
            await reply.begin(response.status, passed_on(response.headers, PASSED_BACK), response.length)
            try:
                self.relayed = await relay(response, reply, self.observed.append if self.watching else None)
            except UpstreamFailed:
                if response.length is not None:
                    reply.abort()
                    return
                await reply.write(b"event: error\n\n")
                await reply.end()

    async def upgrade(self, request: Request, reply: Reply) -> None:
        headers = passed_on(request.headers, SENT_ON_UPGRADE)
        async with self.pool.request(self.endpoint, request.method, request.target, headers=headers) as response:
            if response.status != 101:
                await reply.begin(response.status, passed_on(response.headers, PASSED_BACK), response.length)
                await relay(response, reply)
                return
            back = response.upgrade()
            front = await reply.upgrade(passed_on(response.headers, PASSED_BACK_UPGRADE))
            await tunnel(front, back)


@contextlib.asynccontextmanager
async def through(speak: Speak) -> AsyncIterator[tuple[Door, Server, int]]:
    """A client's way to an engine."""
    async with engine(speak) as endpoint:
        pool = Pool()
        door = Door(pool, endpoint)
        try:
            async with serving(door, at_once=True) as (server, port):
                yield door, server, port
        finally:
            await pool.close()


def answering(data: bytes, *, close: bool = False) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(data)
            await writer.drain()
            if close:
                writer.write_eof()
                await reader.read()
                return

    return speak


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("size", [0, 5, 200_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "end"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_arrives_unchanged(version: str, framing: str, size: int, method: str, run: Run) -> None:
    """Whatever the framing on either side: the body is the same, and so are the fields that cross."""
    body = bytes(index % 251 for index in range(size))
    head = b"HTTP/1.1 418 Teapot\r\nX-Request-Id: a\r\nx-request-id: b\r\nKeep-Alive: 5\r\n"
    if framing == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % size + body
    elif framing == "chunked":
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 70_000]), body[at : at + 70_000]) for at in range(0, size, 70_000)
        )
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        data = head + b"\r\n" + body
    if method == "HEAD":
        data = data[: data.index(b"\r\n\r\n") + 4]

    async def scene() -> None:
        async with through(answering(data, close=framing == "end")) as (_, _, port), connected(port) as client:
            request = f"{method} / HTTP/{version}\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
            answer = await client.ask(request, method)
            assert answer.status == 418
            assert answer.body == (b"" if method == "HEAD" else body)
            assert answer.headers["x-request-id"] == "b"
            assert "keep-alive" not in answer.headers
            if framing == "length":
                assert answer.headers["content-length"] == str(size)

    run(scene())


@pytest.mark.parametrize("watching", [False, True])
def test_no_chunk_is_held_back(watching: bool, run: Run) -> None:
    """Each is with the client before the engine makes the next one."""
    go_on = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            await go_on.wait()
            go_on.clear()
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await go_on.wait()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async def scene() -> None:
        async with through(speak) as (door, _, port), connected(port) as client:
            door.watching = watching
            await client.send(GET)
            await client.reader.readuntil(b"\r\n\r\n")
            for number in range(20):
                go_on.set()
                event = b"data: %d\n\n" % number
                size = len(b"%x\r\n%b\r\n" % (len(event), event))
                async with asyncio.timeout(BOUND_S):
                    assert await client.reader.readexactly(size) == b"%x\r\n%b\r\n" % (len(event), event)
            go_on.set()
            assert await client.reader.readexactly(5) == b"0\r\n\r\n"
            if watching:
                assert door.observed == [b"data: %d\n\n" % number for number in range(20)]
            await until(lambda: door.relayed == sum(len(b"data: %d\n\n" % number) for number in range(20)))

    run(scene())


def resident_kib() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def test_streams_of_different_speeds_leave_memory_flat(run: Run) -> None:
    """8 × 25 MB in lines of 5 MB, to readers of which some are slow: all of it arrives, little of it is ever here."""
    line = b"data: " + b"x" * 4_999_992 + b"\n\n"
    count = 5

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(count):
            writer.write(b"%x\r\n" % len(line))
            for at in range(0, len(line), 100_000):
                writer.write(line[at : at + 100_000])
                await writer.drain()
            writer.write(b"\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async def consume(port: int, pause_s: float) -> bytes:
        digest = hashlib.sha256()
        async with connected(port, receive_bytes=1 << 16) as client:
            await client.send(GET)
            await client.reader.readuntil(b"\r\n\r\n")
            while left := int(await client.reader.readuntil(b"\r\n"), 16):
                while left:
                    piece = await client.reader.read(min(left, 1 << 16))
                    assert piece
                    digest.update(piece)
                    left -= len(piece)
                await client.reader.readexactly(2)
                if pause_s:
                    await asyncio.sleep(pause_s)
        return digest.digest()

    async def scene() -> None:
        async with through(speak) as (_, server, port):
            tasks = [asyncio.create_task(consume(port, 0.002 if number % 4 == 0 else 0)) for number in range(8)]
            before_kib = most_kib = resident_kib()
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, sum(each.transport.get_write_buffer_size() for each in server._connections))
                most_kib = max(most_kib, resident_kib())
                await asyncio.sleep(0.01)
            assert {await task for task in tasks} == {hashlib.sha256(line * count).digest()}
            assert most < 8 * 300_000
            assert most_kib - before_kib < 40_000

    run(scene())


def test_a_slow_client_slows_its_engine(run: Run) -> None:
    """Back-pressure reaches all the way: while the client does not read, gpud does not, and the engine waits in the
    middle of its answer. When the client goes on, so do they, to the end.
    """
    size = 100_000_000
    sent = 0
    waits = False

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent, waits
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 1_000_000)
            waits = True
            await writer.drain()
            waits = False
            sent += 1_000_000
        await reader.read()

    async def scene() -> None:
        async with through(speak) as (door, server, port), connected(port, receive_bytes=1 << 16) as client:
            await client.send(GET)
            # Without back-pressure all of it would be sent, to wherever.
            await until(lambda: sent == size or (waits and any(each.is_held for each in door.pool._all)))
            assert sent < size
            assert sum(each.transport.get_write_buffer_size() for each in server._connections) < 1 << 20
            await client.reader.readuntil(b"\r\n\r\n")
            left = size
            while left:
                async with asyncio.timeout(BOUND_S):
                    piece = await client.reader.read(left)
                assert piece.count(b"x") == len(piece) > 0
                left -= len(piece)
            await until(lambda: sent == size)

    run(scene())


@pytest.mark.parametrize("how", ["closes", "garbage"])
@pytest.mark.parametrize("within", [True, False])
def test_a_stream_that_breaks_off_ends_with_a_last_word(how: str, within: bool, run: Run) -> None:
    """The door may still say why, between two chunks, however the engine broke; then the reply ends whole."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    if within:
        data += b"9\r\nwor"
    if how == "garbage":
        data += b"ld and more and more and more"

    async def scene() -> None:
        async with through(answering(data, close=True)) as (door, _, port), connected(port) as client:
            answer = await client.ask(GET)
            assert answer.status == 200
            assert answer.body.startswith(b"hello")
            assert answer.body.endswith(b"event: error\n\n")
            assert (await client.ask(GET)).status == 200, "the client's connection is as good as ever"
            await until(lambda: door.pool.connections == 0)

    run(scene())


def test_an_answer_of_known_length_that_breaks_off_is_cut(run: Run) -> None:
    """The client sees that bytes are missing."""
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"

    async def scene() -> None:
        async with through(answering(data, close=True)) as (_, _, port), connected(port) as client:
            await client.send(GET)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.answer()

    run(scene())


@pytest.mark.parametrize("how", ["reset", "leave"])
@pytest.mark.parametrize("begun", [True, False])
def test_an_engine_is_left_when_its_client_leaves(begun: bool, how: str, run: Run) -> None:
    """Its connection is closed, before the header as in mid-stream; how soon is told by the bench."""
    ended = asyncio.Event()
    asked = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        asked.set()
        if begun:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        waiting = asyncio.create_task(reader.read())
        try:
            while begun and not waiting.done():
                await asyncio.wait([waiting], timeout=0.02)
                writer.write(b"5\r\nhello\r\n")
            await waiting
        finally:
            ended.set()

    async def scene() -> None:
        async with through(speak) as (door, server, port), connected(port) as client:
            await client.send(GET)
            await asked.wait()
            if begun:
                await client.reader.readuntil(b"hello\r\n")
            getattr(client, how)()
            async with asyncio.timeout(BOUND_S):
                await ended.wait()
            await until(lambda: server.connections == 0 and door.pool.connections == 0)

    run(scene())


async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echoes raw bytes after an upgrade; says goodbye when the other side has ended."""
    head = await request_of(reader)
    assert b"Connection: Upgrade\r\n" in head
    assert b"Upgrade: websocket\r\n" in head
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Protocol: b\r\n\r\nearly"
    )
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"goodbye")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def upgrade_request(extra: bytes = b"") -> bytes:
    return b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n" + extra


async def upgraded(client: Raw, extra: bytes = b"") -> None:
    answer = await client.ask(upgrade_request(extra))
    assert (answer.status, answer.headers["upgrade"], answer.headers["connection"]) == (101, "websocket", "Upgrade")
    assert answer.headers["sec-websocket-protocol"] == "b"
    assert await client.reader.readexactly(5) == b"early"


def test_an_upgraded_connection_passes_bytes_both_ways(run: Run) -> None:
    """Also those that came early, and many; and each side may end its sending by itself."""

    async def scene() -> None:
        async with through(websocket) as (door, server, port), connected(port) as client:
            await upgraded(client, b"first")
            assert await client.reader.readexactly(5) == b"first"
            blob = bytes(range(256)) * 20_000
            sending = asyncio.create_task(client.send(blob))
            assert await client.reader.readexactly(len(blob)) == blob
            await sending
            client.half_close()
            assert await client.rest() == b"goodbye"
            await until(lambda: server.connections == 0 and door.pool.connections == 0)

    run(scene())


def test_an_upgraded_connection_ends_for_both_when_one_breaks(run: Run) -> None:
    """The engine is left as soon as the client is gone, and no task stays."""

    async def scene() -> None:
        async with through(websocket) as (door, server, port), connected(port) as client:
            await upgraded(client)
            client.reset()
            await until(lambda: server.connections == 0 and door.pool.connections == 0)

    run(scene())


def test_an_upgraded_connection_is_cut_when_the_server_closes(run: Run) -> None:
    """It has no end of its own that could be waited for."""

    async def scene() -> None:
        async with through(websocket) as (door, server, port), connected(port) as client:
            await upgraded(client)
            await server.close(0.05)
            assert server.connections == 0
            await until(lambda: door.pool.connections == 0)

    run(scene())


def test_a_refused_upgrade_is_an_answer(run: Run) -> None:
    """And the connection goes on."""

    async def scene() -> None:
        data = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno"
        async with through(answering(data)) as (_, _, port), connected(port) as client:
            assert (await client.ask(upgrade_request())).body == b"no"
            assert (await client.ask(upgrade_request())).body == b"no"

    run(scene())


def test_an_upgrade_with_a_body_that_is_still_to_come_is_refused(run: Run) -> None:
    """Where the raw bytes would begin is not clear."""

    async def scene() -> None:
        async with through(websocket) as (door, _, port), connected(port) as client:
            request = upgrade_request().replace(b"Host: x", b"Host: x\r\nContent-Length: 5")
            assert (await client.ask(request)).status == 400
            await client.send(b"12345")
            await upgraded(client)
            client.leave()
            await until(lambda: door.pool.connections == 0)

    run(scene())


def test_a_backed_up_tunnel_holds_its_source(run: Run) -> None:
    """A WebSocket client that does not read slows the engine, too."""
    sent = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while True:
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1_000_000

    async def scene() -> None:
        async with through(speak) as (door, _, port), connected(port, receive_bytes=1 << 16) as client:
            assert (await client.ask(upgrade_request())).status == 101
            await until(lambda: any(each.is_held for each in door.pool._all))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert sent < 40_000_000

    run(scene())
