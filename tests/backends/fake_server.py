"""What the stand-ins for vLLM and text-generation-inference share: a small HTTP server over asyncio, with streams."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Mapping[str, object]:
        told = json.loads(self.body or b"{}")
        assert isinstance(told, dict)
        return told


@dataclass
class Reply:
    """``body`` is sent whole, or as it comes."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, told: object, status: int = 200) -> "Reply":
        return cls(status, json.dumps(told).encode())


Handler = Callable[[Request], Awaitable[Reply]]


async def serve(handler: Handler, *, uds: str = "", host: str = "", port: int = 0) -> asyncio.Server:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(handler, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    if uds:
        return await asyncio.start_unix_server(connection, uds)
    return await asyncio.start_server(connection, host, port)


async def answer(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    reply = await handler(Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body))
    head = [f"HTTP/1.1 {reply.status} X", f"Content-Type: {reply.kind}", "Connection: close"]
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    if isinstance(reply.body, bytes):
        head.append(f"Content-Length: {len(reply.body)}")
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + reply.body)
    else:
        head.append("Transfer-Encoding: chunked")
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
        try:
            async for piece in reply.body:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
        finally:
            # Whoever has gone is answered no more, at once: when nobody knows the rest any more is for Python to say.
            if isinstance(reply.body, AsyncGenerator):
                await reply.body.aclose()
        writer.write(b"0\r\n\r\n")
    await writer.drain()
