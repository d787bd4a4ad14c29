"""POST /inference: one question, one answer, over an engine that is a server in this test."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from engine.parts import GIB
from house import BOUND_S, chatting_house, house

from gpud.core.errors import BackendFailed
from gpud.core.facts import Caller, Model, Priority
from gpud.http.message import Reply, Request

Run = Callable[..., Any]
Answers = Callable[[dict[str, Any], Reply], Awaitable[None]]
A = Model("Alpha-8B", "fake", aliases=("first",))
CALLER = Caller("alice", 1000, label="alice")
JSON = [("Content-Type", "application/json")]


class Engine:
    """Notes what it is asked; answers with what was said last, or as a test says."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.targets: list[str] = []
        self.answers = answers or self.echo

    async def __call__(self, request: Request, reply: Reply) -> None:
        asked = json.loads(await request.body(1 << 20))
        self.asked.append(asked)
        self.keys.append(request.headers.get("authorization"))
        self.targets.append(f"{request.method} {request.target}")
        await self.answers(asked, reply)

    async def echo(self, asked: dict[str, Any], reply: Reply) -> None:
        answer = {
            "id": "chatcmpl-1",
            "choices": [{"message": {"role": "assistant", "content": "I hear you"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
        await reply.send(200, JSON, json.dumps(answer).encode())


def test_a_prompt_is_answered_with_text(run: Run, tmp_path: Path) -> None:
    """Its model is loaded for it; the answer says which, what it cost, and how long everything took."""

    async def work() -> None:
        engine = Engine()
        async with chatting_house(tmp_path, engine, A) as (found, _):
            told = await found.ask("POST /inference", {"model": "first", "prompt": "Hello?"})
            assert told.status == 200, told.body
            value = told.value
            assert set(value) == {
                "id",
                "model",
                "backend",
                "text",
                "finish_reason",
                "usage",
                "load_ms",
                "duration_ms",
            }
            assert (value["id"], value["model"], value["backend"]) == ("chatcmpl-1", "Alpha-8B", "fake")
            assert (value["text"], value["finish_reason"]) == ("I hear you", "stop")
            assert value["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            assert 0 <= value["load_ms"] <= value["duration_ms"] < 1000 * BOUND_S
            (asked,) = engine.asked
            assert asked["messages"] == [{"role": "user", "content": "Hello?"}] and asked["stream"] is False
            assert engine.keys == ["Bearer engine-key"] and engine.targets == ["POST /v1/chat/completions"]
            stats = (await found.ask("GET /api/stats")).value
            assert stats["requests_by_model"] == {"Alpha-8B": 1} and stats["in_flight"] == 0

    run(work())


def test_messages_and_options_go_to_the_engine(run: Run, tmp_path: Path) -> None:
    """What is named by itself goes before what is among the options; nothing else of the body goes on."""

    async def work() -> None:
        engine = Engine()
        async with chatting_house(tmp_path, engine, A) as (found, bench):
            body = {
                "messages": [{"role": "user", "content": "Hello?"}],
                "system": "Be brief.",
                "backend": "fake",
                "priority": "critical",
                "max_tokens": 5,
                "temperature": 0.5,
                "options": {"temperature": 2, "top_p": 0.9, "stream": True, "model": "other"},
            }
            assert (await found.ask("POST /inference", body)).status == 200
            assert engine.asked == [
                {
                    "model": "Alpha-8B",
                    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
                    "max_tokens": 5,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "stream": False,
                }
            ]
            assert len(bench.backend.orders) == 1

    run(work())


def test_a_question_with_a_higher_priority_is_served_first(run: Run, tmp_path: Path) -> None:
    """Of two that wait for memory the later one may go before; a model's own priority is the least that it has."""

    async def work() -> None:
        big = [Model(name, "fake", size_bytes=7 * GIB) for name in ("low", "high")]
        async with chatting_house(tmp_path, Engine(), A, *big) as (found, bench):
            assert (await found.ask("POST /load", {"model": "Alpha-8B"})).status == 200
            async with bench.engine.use("Alpha-8B", CALLER):
                tasks = []
                for name in ("low", "high"):
                    body = {"model": name, "prompt": "?", "priority": name}
                    tasks.append(asyncio.ensure_future(found.ask("POST /inference", body)))
                    async with asyncio.timeout(BOUND_S):
                        while not any(one.model == name for one in bench.engine.snapshot().queue):
                            await asyncio.sleep(0.005)
                await bench.engine.refresh()
                assert [(one.model, one.priority) for one in bench.engine.snapshot().queue] == [
                    ("high", Priority.HIGH),
                    ("low", Priority.NORMAL),
                ]
            for task in tasks:
                assert (await task).status == 200

    run(work())


def test_a_stream_is_that_of_chat_completions(run: Run, tmp_path: Path) -> None:
    """Passed on byte for byte."""
    events = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'

    async def stream(asked: dict[str, Any], reply: Reply) -> None:
        assert asked["stream"] is True
        await reply.send(200, [("Content-Type", "text/event-stream")], events)

    async def work() -> None:
        async with chatting_house(tmp_path, Engine(stream), A) as (found, _):
            told = await found.ask("POST /inference", {"prompt": "Hello?", "stream": True})
            assert told.headers["content-type"] == "text/event-stream" and told.body == events

    run(work())


@pytest.mark.parametrize(
    ("body", "status", "kind", "word"),
    [
        ({}, 400, "invalid_request", "neither"),
        ({"prompt": "x", "messages": []}, 400, "invalid_request", "both"),
        ({"messages": []}, 400, "invalid_request", "empty"),
        ({"prompt": "x", "model": "nobody"}, 404, "model_not_found", "nobody"),
        ({"prompt": "x", "backend": "ollama"}, 400, "invalid_request", "ollama"),
        ({"prompt": "x", "backend": "nobody"}, 400, "invalid_request", "nobody"),
        ({"prompt": "x", "max_token": 1}, 400, "invalid_request", 'did you mean "max_tokens"'),
        ({"prompt": 5}, 400, "invalid_request", "prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    run: Run, tmp_path: Path, body: dict[str, object], status: int, kind: str, word: str
) -> None:
    """Before anything is loaded."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            told = (await found.ask("POST /inference", body)).error
            assert told[:2] == (status, kind) and word in told[2]
            assert bench.backend.orders == []

    run(work())


def test_what_does_not_fit_is_507(run: Run, tmp_path: Path) -> None:
    """As everywhere."""

    async def work() -> None:
        async with house(tmp_path, Model("huge", "fake", size_bytes=20 * GIB)) as (found, _):
            status, kind, message = (await found.ask("POST /inference", {"prompt": "x"})).error
            assert (status, kind) == (507, "insufficient_vram") and "20.0" in message

    run(work())


@pytest.mark.parametrize(
    ("engine_status", "body", "status", "kind", "word"),
    [
        (400, b'{"error": {"message": "the context is 10 tokens"}}', 400, "invalid_request", "10 tokens"),
        (400, b'{"error": "in one word"}', 400, "invalid_request", "in one word"),
        (500, b"oops", 502, "backend_error", "answered 500"),
        (503, b"{}", 503, "backend_error", "answered 503"),
        (200, b"no JSON", 502, "backend_error", "cannot be read"),
        (200, b'{"choices": 5}', 502, "backend_error", "cannot be read"),
    ],
)
def test_an_engine_that_refuses_is_quoted(
    run: Run, tmp_path: Path, engine_status: int, body: bytes, status: int, kind: str, word: str
) -> None:
    """Its 4xx is the client's business; everything else is a bad gateway."""

    async def refuse(_: dict[str, Any], reply: Reply) -> None:
        await reply.send(engine_status, JSON, body)

    async def work() -> None:
        async with chatting_house(tmp_path, Engine(refuse), A) as (found, _):
            told = (await found.ask("POST /inference", {"prompt": "x"})).error
            assert told[:2] == (status, kind) and word in told[2]

    run(work())


def test_an_engine_that_goes_before_it_answers_is_asked_once_more(run: Run, tmp_path: Path) -> None:
    """And the second time it is told what went wrong."""

    async def work() -> None:
        left = 1
        engine = Engine()

        async def go(asked: dict[str, Any], reply: Reply) -> None:
            nonlocal left
            if left:
                left -= 1
                reply.abort()
            else:
                await engine.echo(asked, reply)

        engine.answers = go
        async with chatting_house(tmp_path, engine, A) as (found, _):
            assert (await found.ask("POST /inference", {"prompt": "x"})).status == 200
            left = 10
            status, kind, message = (await found.ask("POST /inference", {"prompt": "x"})).error
            assert (status, kind) == (502, "backend_error") and "gave no proper answer" in message

    run(work())


def test_a_model_that_cannot_be_loaded_says_why(run: Run, tmp_path: Path) -> None:
    """500 with the engine's own reason."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.failure = BackendFailed("out of memory", hint="lower its context")
            status, kind, message = (await found.ask("POST /inference", {"prompt": "x"})).error
            assert (status, kind) == (500, "backend_error")
            assert "out of memory" in message and "lower its context" in message

    run(work())


def test_a_client_that_leaves_ends_its_question(run: Run, tmp_path: Path) -> None:
    """The engine is let go, and nothing is in flight any more."""

    async def work() -> None:
        gone = asyncio.Event()
        begun = asyncio.Event()

        async def hang(_: dict[str, Any], reply: Reply) -> None:
            begun.set()
            try:
                await asyncio.sleep(BOUND_S)
            except asyncio.CancelledError:
                gone.set()
                raise

        async with chatting_house(tmp_path, Engine(hang), A) as (found, bench):
            asking = asyncio.ensure_future(found.ask("POST /inference", {"prompt": "x"}))
            await asyncio.wait_for(begun.wait(), BOUND_S)
            asking.cancel()
            await asyncio.wait_for(gone.wait(), BOUND_S)
            async with asyncio.timeout(BOUND_S):
                while bench.engine.snapshot().models[0].in_flight:
                    await asyncio.sleep(0.005)

    run(work())
