"""An answer for which its model had to be loaded says how long that took: X-Gpud-Load-Seconds, on every API."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_place import Front, question, talker
from house import chatting_house
from layer.raw import connected
from ollama_front import OllamaDoor, chunk, script, scripted

from gpud.core.facts import Model
from gpud.http.message import Reply, Request

Run = Callable[..., Any]
HEADER = "x-gpud-load-seconds"
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/messages", "/completion", "/upstream/tiny/health"]
)
def test_the_first_answer_says_it_and_the_second_does_not(run: Run, tmp_path: Path, path: str) -> None:
    """The seconds are those that the client waited for the model, of all that it waited."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            began_s = time.monotonic()
            told = await front.ask(path, {"model": "tiny"})
            assert told.status == 200
            assert 0 < float(told.headers[HEADER]) <= time.monotonic() - began_s
            assert HEADER not in (await front.ask(path, {"model": "tiny"})).headers

    run(work())


def test_all_who_wait_for_one_load_are_told(run: Run, tmp_path: Path) -> None:
    """Each how long it has waited itself: whoever came later, less."""
    gate = tmp_path / "gate"

    async def work() -> None:
        async with Front(tmp_path, talker("tiny", "--ready-when", str(gate))) as front:
            first = asyncio.create_task(front.ask(CHAT, {"model": "tiny"}))
            while front.state() != "loading":
                await asyncio.sleep(0.01)
            second = asyncio.create_task(front.ask(CHAT, {"model": "tiny"}))
            while len(front.engine.snapshot().jobs) < 2:
                await asyncio.sleep(0.01)
            gate.touch()
            waited = [float((await one).headers[HEADER]) for one in (first, second)]
            assert waited[0] > waited[1] > 0

    run(work())


def test_a_stream_that_was_begun_before_is_told_in_a_comment(run: Run, tmp_path: Path) -> None:
    """Its header has gone out with the first sign of life: the figure comes right before the engine's first word."""
    gate = tmp_path / "gate"

    async def work() -> None:
        model = talker("tiny", "--ready-when", str(gate))
        async with Front(tmp_path, model) as front, connected(front.path) as client:
            await client.send(question(CHAT, {"model": "tiny", "stream": True, "do": "stream"}))
            head = await asyncio.wait_for(client.reader.readuntil(b": gpud waits"), 50)
            assert HEADER.encode() not in head.lower()
            gate.touch()
            rest = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 50)
            (found,) = re.finditer(rb": gpud: it was loaded after (\d+\.\d{3}) s\n\n", rest)
            assert float(found[1]) > 0
            assert found.start() < rest.index(b'{"number": 0}')
            assert b"gpud waits" not in rest[found.end() :]

    run(work())


def test_a_load_that_failed_is_told_without_it(run: Run, tmp_path: Path) -> None:
    """Nothing was loaded."""

    async def work() -> None:
        async with Front(tmp_path, talker("tiny", "--ready-after", "60", load_timeout_s=0.2)) as front:
            told = await front.ask(CHAT, {"model": "tiny"})
            assert told.status == 500
            assert HEADER not in told.headers

    run(work())


def test_ollamas_clients_are_told(run: Run, tmp_path: Path) -> None:
    """Of a question, of a stream of lines, and of a request that only loads."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(role="assistant", content="Hello"), chunk(finish="stop"))
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
            for body, path in (
                (asked, "/api/chat"),
                (asked | {"stream": False}, "/api/chat"),
                ({"model": "tiny"}, "/api/generate"),
            ):
                told = await door.ask(path, body)
                assert told.status == 200
                assert float(told.headers[HEADER]) > 0
                assert HEADER not in (await door.ask(path, body)).headers
                await door.ask("/api/generate", {"model": "tiny", "keep_alive": 0})
                await door.until("tiny", "cold")

    run(work())


def test_the_management_api_tells_it(run: Run, tmp_path: Path) -> None:
    """On POST /inference, beside ``load_ms`` in the body."""

    async def echo(request: Request, reply: Reply) -> None:
        await request.body(1 << 20)
        answer = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
        await reply.send(200, [("Content-Type", "application/json")], json.dumps(answer).encode())

    async def work() -> None:
        async with chatting_house(tmp_path, echo, Model("Alpha-8B", "fake")) as (found, _):
            told = await found.ask("POST /inference", {"model": "Alpha-8B", "prompt": "Hello?"})
            assert told.status == 200, told.body
            assert float(told.headers[HEADER]) >= 0
            assert HEADER not in (await found.ask("POST /inference", {"model": "Alpha-8B", "prompt": "Hello?"})).headers

    run(work())
