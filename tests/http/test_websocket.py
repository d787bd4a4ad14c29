"""GET /ws: a real WebSocket client, and one that breaks the rules byte by byte."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from house import BOUND_S, House, house, question
from layer.raw import Raw, connected
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from gpud.core.facts import Model
from gpud.http.feed_events import Type
from gpud.http.metrics import RequestSeen
from gpud.http.own import OwnSettings

Run = Callable[..., Any]
A = Model("Alpha-8B", "fake")
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@asynccontextmanager
async def live(found: House) -> AsyncIterator[ClientConnection]:
    async with unix_connect(found.socket("management"), "ws://localhost/ws", compression=None) as client:
        yield client


async def message(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(BOUND_S):
        value: dict[str, Any] = json.loads(await client.recv())
    return value


async def up_to(client: ClientConnection, kind: str) -> dict[str, Any]:
    while (told := await message(client))["type"] != kind:
        pass
    return told


@asynccontextmanager
async def by_hand(found: House) -> AsyncIterator[Raw]:
    """A WebSocket whose frames a test writes itself; what gpud says first has been read."""
    async with connected(found.socket("management")) as client:
        await client.send(question("GET /ws", headers=HANDSHAKE).replace(b"Content-Length: 0\r\n", b""))
        answer = await client.answer()
        assert answer.status == 101
        # RFC 6455 has this pair as its example.
        assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        yield client


def masked(first: int, data: bytes) -> bytes:
    """One frame of a client; its mask leaves everything as it is."""
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes((first,)) + size + b"\0\0\0\0" + data


async def closed_with(client: Raw) -> int:
    """The status of the close that comes after whatever else."""
    async with asyncio.timeout(BOUND_S):
        while True:
            first, size = await client.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack(">H", await client.reader.readexactly(2))
            data = await client.reader.readexactly(size)
            if first == 0x88:
                status: int = struct.unpack(">H", data[:2])[0]
                return status


def test_what_happens_is_told_in_the_names_that_clients_know(run: Run, tmp_path: Path) -> None:
    """Memory first; then a load, and an unload."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), live(found) as client:
            first = await message(client)
            assert first["type"] == "vram_update" and first["total_gb"] == 8.0
            await found.ask("POST /load", {"model_id": 1})
            told = await up_to(client, "model_loaded")
            assert told["model_name"] == "Alpha-8B" and told["load_time_seconds"] >= 0
            await found.ask("POST /unload", {})
            gone = await up_to(client, "model_unloaded")
            assert gone["model_id"] == "Alpha-8B" and gone["vram_freed_gb"] == 1.0

    run(work())


def test_a_client_says_what_it_wishes(run: Run, tmp_path: Path) -> None:
    """Requests only for those who ask for them; what is no wish is passed over."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), live(found) as client:
            await message(client)
            await client.send("no JSON")
            await client.send("[1]")
            wishes = {"vram_updates": False, "model_events": False, "backend_status": False, "inference_events": True}
            await client.send(json.dumps({**wishes, "update_interval_seconds": 2}))
            while not found.feed.wants(Type.REQUEST):
                await asyncio.sleep(0.005)
            found.feed.observe(RequestSeen("front", "/v1/chat/completions", "Alpha-8B", 200, 0.5, generated_tokens=3))
            told = await up_to(client, "inference_complete")
            assert told["model_id"] == "Alpha-8B"
            assert (told["completion_tokens"], told["duration_seconds"]) == (3, 0.5)
            assert told["status"] == 200

    run(work())


def test_pings_are_answered_and_sent(run: Run, tmp_path: Path) -> None:
    """So that both sides know of each other."""

    async def work() -> None:
        async with house(tmp_path, A, settings=OwnSettings(heartbeat_s=0.05)) as (found, _):
            async with live(found) as client:
                async with asyncio.timeout(BOUND_S):
                    await (await client.ping(b"are you there"))
            async with by_hand(found) as raw:
                async with asyncio.timeout(BOUND_S):
                    assert b"\x89\x00" in await raw.reader.readuntil(b"\x89\x00")

    run(work())


def test_the_end_of_gpud_is_told(run: Run, tmp_path: Path) -> None:
    """1001: going away."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), live(found) as client:
            await message(client)
            found.feed.close()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await message(client)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001

    run(work())


def test_a_message_may_come_in_pieces(run: Run, tmp_path: Path) -> None:
    """With a ping between them; the close is echoed."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), by_hand(found) as client:
            await client.send(masked(0x01, b'{"vram_up') + masked(0x89, b"!") + masked(0x80, b'dates": true}'))
            await client.send(masked(0x88, struct.pack(">H", 3000)))
            assert await closed_with(client) == 3000
            assert await client.rest() == b""

    run(work())


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        (b"\x81\x02hi", 1002),
        (masked(0xC1, b"x"), 1002),
        (masked(0x83, b"x"), 1002),
        (masked(0x80, b"x"), 1002),
        (masked(0x01, b"x") + masked(0x81, b"y"), 1002),
        (masked(0x09, b"x"), 1002),
        (masked(0x89, b"x" * 126), 1002),
        (b"\x81\xff" + struct.pack(">Q", 1 << 40), 1009),
        (masked(0x01, b"x" * 60_000) + masked(0x80, b"x" * 60_000), 1009),
        (masked(0x88, b""), 1000),
        (masked(0x88, struct.pack(">H", 1006)), 1002),
    ],
)
def test_broken_rules_close_the_connection(run: Run, tmp_path: Path, frames: bytes, status: int) -> None:
    """With the status that says which."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), by_hand(found) as client:
            await client.send(frames)
            assert await closed_with(client) == status

    run(work())


def test_whoever_leaves_is_forgotten(run: Run, tmp_path: Path) -> None:
    """Without a word."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            async with by_hand(found) as client:
                async with asyncio.timeout(BOUND_S):
                    await client.reader.readexactly(2)
                assert found.feed.listeners == 1
                client.reset()
            async with asyncio.timeout(BOUND_S):
                while found.feed.listeners:
                    await asyncio.sleep(0.005)

    run(work())


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": "", "Connection": "keep-alive"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
    ],
)
def test_what_is_no_websocket_is_refused(run: Run, tmp_path: Path, changes: dict[str, str], status: int) -> None:
    """With what would be one."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), connected(found.socket("management")) as client:
            fields = {name: value for name, value in {**HANDSHAKE, **changes}.items() if value}
            answer = await client.ask(question("GET /ws", headers=fields).replace(b"Content-Length: 0\r\n", b""))
            assert answer.status == status and b'"error"' in answer.body

    run(work())
