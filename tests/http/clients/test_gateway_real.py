"""What the real llama-server answers directly, and what it answers through gpud: the same."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gateway_place import QUICK, Front, question
from layer.raw import connected

from gpud.core.facts import Endpoint, EngineSettings, Model

pytestmark = pytest.mark.engines
Run = Callable[..., Any]

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"model": {"type": "string"}}, "required": ["model"]},
    },
}
IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0, "seed": 1, "cache_prompt": False}
TEXT = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0, "seed": 1, "cache_prompt": False}
NATIVE = {"prompt": "hello", "n_predict": 8, "temperature": 0, "seed": 1, "cache_prompt": False}


@dataclass(frozen=True)
class Case:
    """One request, and how it is to be answered."""

    name: str
    path: str
    body: Any = None
    status: int = 200


CASES = (
    Case("chat", "/v1/chat/completions", CHAT),
    Case("chat-stream", "/v1/chat/completions", CHAT | {"stream": True}),
    Case("chat-usage", "/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    Case("chat-progress", "/v1/chat/completions", CHAT | {"stream": True, "return_progress": True}),
    Case("tools", "/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "auto"}),
    Case("tools-required", "/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required", "stream": True}),
    Case("schema", "/v1/chat/completions", CHAT | {"response_format": SCHEMA, "max_tokens": 12}, status=400),
    Case("logprobs", "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3}),
    Case("several", "/v1/chat/completions", CHAT | {"n": 2}),
    Case("stop", "/v1/chat/completions", CHAT | {"stop": ["e", "a"], "max_tokens": 64}),
    Case(
        "image",
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}]},
        status=500,
    ),
    Case("seed-images", "/v1/chat/completions", CHAT | {"messages": [{**HELLO[0], "images": [IMAGE]}]}),
    Case("no-messages", "/v1/chat/completions", {"model": "tiny"}, status=400),
    Case("wrong-type", "/v1/chat/completions", CHAT | {"messages": "hello"}, status=400),
    Case("no-v1", "/chat/completions", CHAT),
    Case("input-tokens", "/v1/chat/completions/input_tokens", CHAT),
    Case("completions", "/v1/completions", TEXT | {"logprobs": 2, "echo": False}),
    Case("completions-stream", "/v1/completions", TEXT | {"stream": True}),
    Case("completion", "/completion", NATIVE),
    Case("completion-stream", "/completion", NATIVE | {"stream": True, "n_probs": 2}),
    Case("completions-native", "/completions", NATIVE),
    Case("infill", "/infill", {"input_prefix": "a", "input_suffix": "b", **NATIVE}, status=501),
    Case("messages", "/v1/messages", CHAT),
    Case("messages-stream", "/v1/messages", CHAT | {"stream": True}),
    Case("messages-tokens", "/v1/messages/count_tokens", CHAT),
    Case("responses", "/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 8, "temperature": 0}),
    Case(
        "responses-stream",
        "/v1/responses",
        {"model": "tiny", "input": "hello", "max_output_tokens": 8, "temperature": 0, "stream": True},
    ),
    Case("embeddings-refused", "/v1/embeddings", {"model": "tiny", "input": "hello"}, status=501),
    Case("rerank-refused", "/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}, status=501),
    Case("tokenize", "/tokenize", {"content": "hello", "with_pieces": True}),
    Case("detokenize", "/detokenize", {"tokens": [40, 50, 60]}),
    Case("apply-template", "/apply-template", {"messages": HELLO}),
    Case("props", "/props"),
    Case("slots", "/slots"),
    Case("lora-adapters", "/lora-adapters"),
    Case("audio-refused", "/v1/audio/speech", {"model": "tiny", "input": "hello"}, status=404),
)

_TIME = rb"[0-9.e+-]+"
_CHANGING = re.compile(
    rb'"(?:id|item_id|call_id|_id)":"[^"]*"|"(?:created|created_at|completed_at|t|id_task|time_ms)":'
    + _TIME
    + rb'|"(?:timings|prompt_progress)":\{[^}]*\}|"[a-z_]*_(?:ms|per_second)":'
    + _TIME
)


def settled(body: bytes) -> bytes:
    """Without what differs between any two answers: ids, times, speeds, and how far a slot had come before."""
    return _CHANGING.sub(b"", body)


def real(tiny: str, **settings: Any) -> Model:
    chosen: dict[str, Any] = {"file": tiny, "context": 1024, "parallel": 1, "threads": 1, **settings}
    return Model("tiny", "llama_server", EngineSettings(**chosen), stop=QUICK)


async def ask_directly(endpoint: Endpoint, case: Case) -> tuple[int, str, bytes]:
    """The same bytes to the engine's own socket, with its own key."""
    async with connected(endpoint.socket) as client:
        headers = {"Authorization": f"Bearer {endpoint.key}"}
        await client.send(question(case.path, case.body, headers=headers))
        answer = await client.answer()
    return answer.status, answer.headers.get("content-type", ""), answer.body


def test_answers_are_the_same_as_without_gpud(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Every route, stream or not: status, type and body are equal but for ids, times and speeds."""

    async def work() -> None:
        differ = []
        async with Front(tmp_path, real(tiny, parallel=2), binary=llama_server) as front:
            await front.ask("/v1/chat/completions", CHAT)
            endpoint = front.engine.snapshot().models[0].endpoint
            assert endpoint is not None
            for case in CASES:
                directly = await ask_directly(endpoint, case)
                through = await front.ask(case.path, case.body)
                found = (through.status, through.headers.get("content-type", ""), settled(through.body))
                if found != (*directly[:2], settled(directly[2])):
                    differ.append((case.name, directly, through.status, through.body))
                if through.status != case.status:
                    differ.append((case.name, case.status, through.status, through.body))
                assert endpoint.key.encode() not in through.body
        assert differ == []

    run(work(), 180)


def test_an_embedding_model_embeds(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Both routes of llama-server, equal to the last digit."""
    cases = (
        Case("v1", "/v1/embeddings", {"model": "tiny", "input": ["hello", "world"]}),
        Case("base64", "/v1/embeddings", {"model": "tiny", "input": "hello", "encoding_format": "base64"}),
        Case("native", "/embedding", {"content": "hello"}),
        Case("native-plural", "/embeddings", {"content": "hello"}),
        Case("chat", "/v1/chat/completions", CHAT),
    )

    async def work() -> None:
        async with Front(tmp_path, real(tiny, embeddings=True), binary=llama_server) as front:
            await front.ask("/v1/embeddings", cases[0].body)
            endpoint = front.engine.snapshot().models[0].endpoint
            assert endpoint is not None
            for case in cases:
                directly = await ask_directly(endpoint, case)
                through = await front.ask(case.path, case.body)
                assert (through.status, settled(through.body)) == (directly[0], settled(directly[2]))

    run(work(), 180)


def test_tokens_are_counted_of_every_kind_of_answer(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """OpenAI's usage, Anthropic's events, llama-server's own words; a stream without usage by its timings."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front:
            for path, body in (
                ("/v1/chat/completions", CHAT),
                ("/v1/chat/completions", CHAT | {"stream": True}),
                ("/v1/messages", CHAT),
                ("/v1/messages", CHAT | {"stream": True}),
                ("/completion", NATIVE),
                ("/completion", NATIVE | {"stream": True}),
            ):
                assert (await front.ask(path, body)).status == 200
            counted = [(one.prompt_tokens, one.generated_tokens) for one in front.exchanges]
            assert [generated for _, generated in counted] == [8] * 6
            assert all(prompt for prompt, _ in counted)
            assert counted[0] == counted[1]
            assert counted[2] == counted[3]

    run(work(), 180)


def test_a_stream_that_its_client_leaves_frees_the_slot(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """llama-server stops generating at once, whatever X-Conversation-Id the client sent."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front:
            async with connected(front.path) as client:
                asked = CHAT | {"stream": True, "max_tokens": 100_000, "ignore_eos": True}
                await client.send(question("/v1/chat/completions", asked, headers={"X-Conversation-Id": "7"}))
                await asyncio.wait_for(client.reader.readuntil(b"data: "), 50)
                client.leave()
            # There is one slot: this one gets it only when that one is over.
            told = await asyncio.wait_for(front.ask("/v1/chat/completions", CHAT), 50)
            assert told.status == 200

    run(work(), 180)


def test_the_default_name_and_a_path_name_the_model(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """The engine answers by the name that it was given, whatever the client calls it."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front:
            told = await front.ask("/v1/chat/completions", CHAT | {"model": "default"})
            assert (told.status, told.value["model"]) == (200, "tiny")
            told = await front.ask("/upstream/tiny/v1/chat/completions", CHAT)
            assert (told.status, told.value["choices"][0]["finish_reason"]) == (200, "length")
            told = await front.ask("/upstream/tiny/v1/models")
            assert json.loads(told.body)["data"][0]["owned_by"] == "llamacpp"

    run(work(), 180)
