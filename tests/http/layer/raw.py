"""Speaks HTTP by hand, so that a test sends and sees exactly the bytes it names; and stands up what it speaks to."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from gpud.core.facts import Endpoint
from gpud.http.limits import ServerLimits
from gpud.http.listening import TcpAddress
from gpud.http.message import Reply, Request
from gpud.http.server import Handler, Server

BOUND_S = 50.0


@dataclass
class Answer:
    """One answer off the wire. Names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: int = 0


@dataclass
class Raw:
    """One connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(BOUND_S):
            await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer; interim ones are counted."""
        async with asyncio.timeout(BOUND_S):
            interim = 0
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                lines = head[:-4].decode("latin-1").split("\r\n")
                status = int(lines[0].split(" ")[1])
                if status >= 200 or status == 101:
                    break
                interim += 1
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body: bytes | bytearray = b""
            if method != "HEAD" and status not in (101, 204, 304):
                if headers.get("transfer-encoding") == "chunked":
                    body = bytearray()
                    while size := int(await self.reader.readuntil(b"\r\n"), 16):
                        body += await self.reader.readexactly(size)
                        assert await self.reader.readexactly(2) == b"\r\n"
                    assert await self.reader.readexactly(2) == b"\r\n"
                elif "content-length" in headers:
                    body = await self.reader.readexactly(int(headers["content-length"]))
                else:
                    body = await self.reader.read()
            return Answer(status, headers, bytes(body), interim)

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def rest(self) -> bytes:
        """All that comes until the other side closes; what came is there also when it breaks."""
        data = bytearray()
        async with asyncio.timeout(BOUND_S):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(1 << 16):
                    data += piece
        return bytes(data)

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Leave without a word: the other side gets a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def leave(self) -> None:
        """Close as a client does that has had enough."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(where: int | str, *, host: str = "127.0.0.1", receive_bytes: int = 0) -> AsyncIterator[Raw]:
    """A connection to a port or to the path of a Unix socket."""
    if isinstance(where, str):
        reader, writer = await asyncio.open_unix_connection(where, limit=1 << 20)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, where))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    handler: Handler,
    limits: ServerLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    at_once: bool = False,
) -> AsyncIterator[tuple[Server, int]]:
    """A server on a port of its own."""
    server = Server(handler, limits, clock=clock, at_once=at_once)
    listening = await server.listen(TcpAddress("127.0.0.1", 0), door="test")
    try:
        yield server, listening.port
    finally:
        await server.close()
        assert server.connections == 0
        assert server.departures._watched == {}, "a descriptor that is closed is still watched"


Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def engine(speak: Speak) -> AsyncIterator[Endpoint]:
    """An engine that answers exactly the bytes that ``speak`` writes, on a port of its own."""
    tasks: set[asyncio.Task[None]] = set()

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await speak(reader, writer)
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(attend, "127.0.0.1", 0)
    try:
        yield Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """One request as it arrived at an engine, with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    if b"transfer-encoding: chunked" in head.lower():
        return head + await reader.readuntil(b"0\r\n\r\n")
    return head


async def echo(request: Request, reply: Reply) -> None:
    """Answer with what was asked."""
    body = await request.body(1 << 30)
    await reply.send(200, [("Content-Type", "text/plain")], f"{request.method} {request.target} ".encode() + body)


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop its turns until something is so."""
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.001)
