"""The packages that programs use, unchanged, against a real llama-server behind gpud; and curl."""

import asyncio
import json
import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from gateway_place import QUICK, Front, talker

from gpud.core.facts import Endpoint, EngineSettings, Model
from gpud.http.gateway import GatewaySettings

pytestmark = pytest.mark.engines
Run = Callable[..., Any]


def real(tiny: str) -> Model:
    settings = EngineSettings(file=tiny, context=1024, parallel=1, threads=1)
    return Model("tiny", "llama_server", settings, aliases=("small",), stop=QUICK)


def of_openai(front: Front) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="unused", max_retries=0)


def of_anthropic(front: Front) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=front.url, api_key="unused", max_retries=0)


HELLO: Any = [{"role": "user", "content": "hello"}]


def test_openais_package_lists_chats_and_streams(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Models, a chat, the same as a stream, a completion, a response."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front, of_openai(front) as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
            assert (await client.models.retrieve("small")).id == "tiny"
            asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0}
            chat = await client.chat.completions.create(**asked)
            words = chat.choices[0].message.content
            assert words
            assert chat.usage is not None
            assert chat.usage.completion_tokens == 8
            stream = await client.chat.completions.create(**asked, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == words
            text = await client.completions.create(model="tiny", prompt="hello", max_tokens=4)
            assert text.choices[0].text
            answer = await client.responses.create(model="tiny", input="hello", max_output_tokens=8)
            assert answer.output_text
            with pytest.raises(openai.NotFoundError, match='did you mean \\"tiny\\"'):
                await client.chat.completions.create(**asked | {"model": "tinny"})

    run(work(), 180)


def test_anthropics_package_lists_counts_and_streams(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Models, tokens, a message, the same as a stream."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front, of_anthropic(front) as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
            counted = await client.messages.count_tokens(model="tiny", messages=HELLO)
            assert counted.input_tokens > 0
            asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 8}
            message = await client.messages.create(**asked)
            assert message.usage.output_tokens == 8
            async with client.messages.stream(**asked) as stream:
                pieces = [piece async for piece in stream.text_stream]
                final = await stream.get_final_message()
            assert "".join(pieces)
            assert final.usage.output_tokens == 8
            with pytest.raises(anthropic.NotFoundError, match="tiny"):
                await client.messages.create(**asked | {"model": "tinny"})

    run(work(), 180)


WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CHANGING = re.compile(r'"(?:id|created|created_at|completed_at)": ?(?:"[^"]*"|[0-9.e+]+)|"timings": ?\{[^}]*\}')


def settled(told: list[str]) -> list[str]:
    """Without what differs between any two answers."""
    return [CHANGING.sub("", one) for one in told]


async def by_openai(client: openai.AsyncOpenAI) -> list[str]:
    """What a chat program does: streams with tools, the helper that gathers them, probabilities, and mistakes."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 0, "seed": 1}
    asked["extra_body"] = {"cache_prompt": False}
    tools: Any = [{"type": "function", "function": WEATHER}]
    told = []
    for choice in ("auto", "required"):
        stream = await client.chat.completions.create(
            **asked, tools=tools, tool_choice=choice, stream=True, stream_options={"include_usage": True}
        )
        told += [chunk.to_json(indent=None) async for chunk in stream]
    async with client.chat.completions.stream(**asked, tools=tools, tool_choice="required") as events:
        told += [event.type async for event in events]
        told.append(events.current_completion_snapshot.to_json(indent=None))
    for more in ({"logprobs": True, "top_logprobs": 2}, {"stop": ["a"]}):
        told.append((await client.chat.completions.create(**asked, **more)).to_json(indent=None))
    for wrong in ({"messages": "hello"}, {"n": 2}, {"max_tokens": "many"}, {"tools": [{"type": "hammer"}]}):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**asked | wrong)
        told.append(f"{caught.value.status_code} {caught.value.body}")
    return settled(told)


async def by_anthropic(client: anthropic.AsyncAnthropic) -> list[str]:
    """The same with the events of Anthropic's API."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24}
    asked["extra_body"] = {"cache_prompt": False, "seed": 1, "temperature": 0}
    tools: Any = [{"name": "weather", "description": "Of a place", "input_schema": WEATHER["parameters"]}]
    told = []
    for choice in ({"type": "auto"}, {"type": "any"}):
        stream = await client.messages.create(**asked, tools=tools, tool_choice=choice, stream=True)
        told += [event.to_json(indent=None) async for event in stream]
    told.append((await client.messages.create(**asked, system="Be brief")).to_json(indent=None))
    return settled(told)


def directly(endpoint: Endpoint) -> dict[str, Any]:
    """How a package is told to ask an engine itself."""
    client = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=endpoint.socket))
    return {"api_key": endpoint.key, "max_retries": 0, "http_client": client}


def test_the_packages_are_told_the_same_as_without_gpud(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Chunk by chunk, tools, probabilities and errors, but for ids and times."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front:
            async with of_openai(front) as client, of_anthropic(front) as theirs:
                # What is in the engine's cache of prompts is told too: it is to be the same before both.
                await by_anthropic(theirs)
                through = await by_openai(client), await by_anthropic(theirs)
            endpoint = front.engine.snapshot().models[0].endpoint
            assert endpoint is not None
            async with (
                openai.AsyncOpenAI(base_url="http://localhost/v1", **directly(endpoint)) as client,
                anthropic.AsyncAnthropic(base_url="http://localhost", **directly(endpoint)) as theirs,
            ):
                assert through == (await by_openai(client), await by_anthropic(theirs))

    run(work(), 180)


@pytest.mark.parametrize("how", ["closes", "cancels"])
def test_a_package_that_gives_up_a_stream_frees_the_slot(
    how: str, run: Run, tmp_path: Path, tiny: str, llama_server: str
) -> None:
    """Whether it closes the stream or its task is canceled in the middle of waiting for a word."""

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front, of_openai(front) as client:
            begun = asyncio.Event()
            endless: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 100_000, "stream": True}

            async def listen() -> None:
                stream = await client.chat.completions.create(**endless, extra_body={"ignore_eos": True})
                async for _ in stream:
                    begun.set()
                    if how == "closes":
                        await stream.close()
                        return

            listening = asyncio.create_task(listen())
            await asyncio.wait_for(begun.wait(), 50)
            if how == "cancels":
                listening.cancel()
            await asyncio.wait([listening], timeout=50)
            # There is one slot: this one gets it only when that one is over.
            asked: Awaitable[Any] = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
            assert (await asyncio.wait_for(asked, 50)).choices

    run(work(), 180)


def test_the_packages_see_no_heartbeats_and_understand_errors(run: Run, tmp_path: Path) -> None:
    """While a model loads and when its engine dies in the middle of a stream."""
    quick = GatewaySettings(first_s=0.01, heartbeat_s=0.01)

    async def work() -> None:
        async with Front(tmp_path, talker("tiny", "--ready-after", "0.3"), settings=quick) as front:
            async with of_openai(front) as client:
                stream = await client.chat.completions.create(
                    model="tiny", messages=HELLO, stream=True, extra_body={"do": "stream"}
                )
                seen = [chunk.model_extra async for chunk in stream]
                assert [one["number"] for one in seen if one and "number" in one] == [0, 1, 2]
                stream = await client.chat.completions.create(
                    model="tiny", messages=HELLO, stream=True, extra_body={"do": "die-mid"}
                )
                with pytest.raises(openai.APIError, match="exited with status 3"):
                    async for _ in stream:
                        pass
            async with of_anthropic(front) as theirs:
                messages = await theirs.messages.create(
                    model="tiny", max_tokens=5, messages=HELLO, stream=True, extra_body={"do": "die-mid"}
                )
                with pytest.raises(anthropic.APIStatusError, match="exited with status 3"):
                    async for _ in messages:
                        pass

    run(work(), 180)


def test_curl_as_in_the_documentation(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """A chat with a placeholder for the model, and a stream that ends with [DONE]."""

    async def curl(*arguments: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            ["curl", "-sSN", "--max-time", "120", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    async def work() -> None:
        async with Front(tmp_path, real(tiny), binary=llama_server) as front:
            asked = {"model": "local-model", "messages": HELLO, "temperature": 0.7, "max_tokens": 8}
            headers = ("-H", "Content-Type: application/json")
            told = await curl(f"{front.url}/v1/chat/completions", *headers, "-d", json.dumps(asked))
            assert json.loads(told)["choices"][0]["message"]["content"]
            told = await curl(f"{front.url}/v1/chat/completions", *headers, "-d", json.dumps(asked | {"stream": True}))
            assert told.endswith("data: [DONE]\n\n")
            listed = await curl(f"{front.url}/v1/models")
            assert json.loads(listed)["data"][0]["loaded"] is True

    run(work(), 180)
