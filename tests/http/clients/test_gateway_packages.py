"""The packages that programs use, unchanged, against a real llama-server behind gpud; and curl."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from gateway_place import QUICK, Front, talker

from gpud.core.facts import EngineSettings, Model
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

    run(work(), 90)


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

    run(work(), 90)


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

    run(work(), 60)


def test_curl_as_in_the_documentation(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """A chat with a placeholder for the model, and a stream that ends with [DONE]."""

    async def curl(*arguments: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run, ["curl", "-sSN", "--max-time", "30", *arguments], capture_output=True, text=True, check=True
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

    run(work(), 60)
