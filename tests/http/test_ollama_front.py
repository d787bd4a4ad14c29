"""Ollama's door for the models that are not Ollama's, their engines being processes that say what a script says."""

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from engine.parts import GIB
from gateway_place import question
from layer.raw import connected
from ollama_front import OllamaDoor, asked_of_engine, chunk, script, scripted, with_key

from gpud.core.facts import Caller, State
from gpud.core.keys import Right

Run = Callable[..., Any]

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
TIMINGS = {"cache_n": 3, "prompt_n": 4, "prompt_ms": 2.0, "predicted_n": 2, "predicted_ms": 5.0}
ANSWER = (chunk(role="assistant", content=None), chunk(content="Hel"), chunk(content="lo"), chunk(finish="stop"))
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and more of it").decode()


def caller(owner: str = "somebody") -> Caller:
    return Caller(owner, 0, label=owner)


# Who is there ------------------------------------------------------------------------------------------------------


def test_it_greets_as_ollama_does(run: Run, tmp_path: Path) -> None:
    """GET and HEAD; clients look for these before anything else."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            told = await door.ask("/")
            assert (told.status, told.body) == (200, b"Ollama is running")
            told = await door.ask("/", method="HEAD")
            assert (told.status, told.body) == (200, b"")
            assert (await door.ask("/api/version")).value["version"].count(".") == 2

    run(work())


def test_what_it_does_not_know_is_an_error_of_ollamas_shape(run: Run, tmp_path: Path) -> None:
    """A path, a method, a body."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            for path, method, status in (("/api/nothing", "GET", 404), ("/api/chat", "GET", 405)):
                told = await door.ask(path, method=method)
                assert told.status == status
                assert isinstance(told.value["error"], str)
            for body in ({}, {"model": ""}, {"model": 7}, {"model": "tiny", "messages": 5}):
                told = await door.ask("/api/chat", body)
                assert told.status == 400, body
                assert isinstance(told.value["error"], str)

    run(work())


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "small", "small:latest", "default"])
def test_a_tag_may_be_there_or_not(run: Run, tmp_path: Path, name: str) -> None:
    """Ollama's clients add it. Aliases and "default" are known as at the other doors; the answer has the asked name."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, aliases=("small",))) as door:
            script(tmp_path, *ANSWER)
            told = await door.ask("/api/chat", HELLO | {"model": name, "stream": False})
            assert (told.status, told.value["model"]) == (200, name)
            assert door.exchanges[-1].model == "tiny"

    run(work())


def test_a_name_that_is_unknown_is_told_in_ollamas_words(run: Run, tmp_path: Path) -> None:
    """404, as the ollama command expects it, and the nearest name."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            for path in ("/api/chat", "/api/generate", "/api/show", "/api/embed"):
                told = await door.ask(path, HELLO | {"model": "tinny", "prompt": "x", "input": "x"})
                assert told.status == 404, path
                assert told.value == {"error": "model 'tinny' not found; did you mean \"tiny\"?"}

    run(work())


def test_a_key_sees_and_uses_only_its_models(run: Run, tmp_path: Path) -> None:
    """Others are not listed, and not answered."""

    async def work() -> None:
        models = (scripted(tmp_path), scripted(tmp_path, "other"))
        async with OllamaDoor(tmp_path, *models, allowed=("tiny",)) as door:
            script(tmp_path, *ANSWER)
            told = await door.ask("/api/tags", headers=with_key())
            assert [entry["name"] for entry in told.value["models"]] == ["tiny:latest"]
            assert (await door.ask("/api/chat", HELLO, headers=with_key())).status == 200
            told = await door.ask("/api/chat", HELLO | {"model": "other"}, headers=with_key())
            assert told.status == 403
            assert door.status("other").state is State.COLD

    run(work())


# Chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_streams_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    """A line for each piece, the last with the figures; without a stream, one object with all of it."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER, USAGE | {"timings": TIMINGS})
            told = await door.ask("/api/chat", HELLO)
            assert told.headers["content-type"] == "application/x-ndjson"
            *pieces, last = told.lines
            assert [line["message"] for line in pieces] == [
                {"role": "assistant", "content": "Hel"},
                {"role": "assistant", "content": "lo"},
            ]
            assert not any(line["done"] for line in pieces)
            assert (last["done"], last["done_reason"]) == (True, "stop")
            assert (last["prompt_eval_count"], last["eval_count"]) == (7, 2)
            assert (last["prompt_eval_duration"], last["eval_duration"]) == (2_000_000, 5_000_000)
            assert last["total_duration"] >= last["load_duration"] > 0
            assert datetime.fromisoformat(last["created_at"]).tzinfo == UTC

            told = await door.ask("/api/chat", HELLO | {"stream": False})
            assert told.headers["content-type"] == "application/json"
            assert told.value["message"] == {"role": "assistant", "content": "Hello"}
            assert told.value["eval_count"] == 2
            assert (door.exchanges[-1].prompt_tokens, door.exchanges[-1].generated_tokens) == (7, 2)

    run(work())


def test_a_piece_is_told_as_soon_as_it_comes(run: Run, tmp_path: Path) -> None:
    """While the engine has not said its last word yet."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door, connected(door.path) as client:
            mark = tmp_path / "go-on"
            script(tmp_path, *ANSWER, wait=str(mark))
            await client.send(question("/api/chat", HELLO))
            async with asyncio.timeout(50):
                await client.reader.readuntil(b'"content":"Hel"')
                mark.touch()
                await client.reader.readuntil(b'"done":true')

    run(work())


def test_figures_are_measured_where_the_engine_tells_none(run: Run, tmp_path: Path) -> None:
    """Nothing is made up: the pieces are counted, the time is what it took."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            value = (await door.ask("/api/chat", HELLO | {"stream": False})).value
            assert (value["prompt_eval_count"], value["eval_count"]) == (0, 2)
            assert 0 < value["prompt_eval_duration"] < value["total_duration"]

    run(work())


def test_thinking_stands_apart(run: Run, tmp_path: Path) -> None:
    """What the engine calls reasoning; and earlier thoughts go back to it as that."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(reasoning_content="Hm"), chunk(reasoning="m"), *ANSWER)
            earlier = {"role": "assistant", "content": "a", "thinking": "b"}
            body = HELLO | {"messages": [earlier, *HELLO["messages"]], "think": True}
            told = await door.ask("/api/chat", body)
            assert [line["message"].get("thinking") for line in told.lines[:3]] == ["Hm", "m", None]
            told = await door.ask("/api/chat", body | {"stream": False, "think": "high"})
            assert told.value["message"]["thinking"] == "Hmm"
            first, second = (entry["body"] for entry in asked_of_engine(tmp_path))
            assert first["messages"][0]["reasoning_content"] == "b"
            assert first["chat_template_kwargs"] == {"enable_thinking": True}
            assert second["reasoning_effort"] == "high"

    run(work())


def test_tools_are_called_with_objects(run: Run, tmp_path: Path) -> None:
    """The engine's pieces of a call are put together; each call is told once, whole."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

    def piece(index: int, **function: str) -> dict[str, object]:
        begins = {"id": f"id{index}", "type": "function"} if "name" in function else {}
        return chunk(tool_calls=[{"index": index, "function": function, **begins}])

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(
                tmp_path,
                piece(0, name="weather", arguments='{"pla'),
                piece(0, arguments='ce": "Rome"}'),
                piece(1, name="time", arguments=""),
                chunk(finish="tool_calls"),
            )
            expected = [
                {"id": "id0", "function": {"index": 0, "name": "weather", "arguments": {"place": "Rome"}}},
                {"id": "id1", "function": {"index": 1, "name": "time", "arguments": {}}},
            ]
            told = await door.ask("/api/chat", HELLO | {"tools": tools})
            assert [line["message"].get("tool_calls") for line in told.lines] == [[expected[0]], [expected[1]], None]
            assert told.lines[-1]["done_reason"] == "stop"
            told = await door.ask("/api/chat", HELLO | {"tools": tools, "stream": False})
            assert told.value["message"]["tool_calls"] == expected
            assert asked_of_engine(tmp_path)[0]["body"]["tools"] == tools

    run(work())


def test_what_a_tool_said_goes_to_the_call_that_asked(run: Run, tmp_path: Path) -> None:
    """Ollama's clients name the tool, and the call only lately; engines want the call."""
    calls = [{"function": {"name": name, "arguments": {"n": 1}}} for name in ("a", "b", "a")]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "from b", "tool_name": "b"},
        {"role": "tool", "content": "from a", "tool_name": "a"},
        {"role": "tool", "content": "the rest"},
    ]

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            assert (await door.ask("/api/chat", {"model": "tiny", "messages": messages})).status == 200
            sent = asked_of_engine(tmp_path)[0]["body"]["messages"]
            assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_1", "call_2", "call_3"]
            assert sent[1]["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"n":1}'}
            assert [message["tool_call_id"] for message in sent[2:]] == ["call_2", "call_1", "call_3"]

    run(work())


def test_images_become_parts_of_the_message(run: Run, tmp_path: Path) -> None:
    """With the type that their first bytes say; what is no base64 is refused before anything is loaded."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            told = await door.ask(
                "/api/chat", {"model": "tiny", "messages": [{"role": "user", "images": ["not base64"]}]}
            )
            assert told.status == 400
            assert door.status().state is State.COLD
            message = {"role": "user", "content": "what is it?", "images": [PNG]}
            assert (await door.ask("/api/chat", {"model": "tiny", "messages": [message]})).status == 200
            (sent,) = asked_of_engine(tmp_path)[0]["body"]["messages"]
            assert sent["content"] == [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ]

    run(work())


def test_probabilities_are_told_as_ollama_tells_them(run: Run, tmp_path: Path) -> None:
    """Token, logprob, bytes, and the others that were likely."""
    entry = {"id": 5, "token": "Hi", "logprob": -0.1, "bytes": [72, 105]}
    likely = entry | {"top_logprobs": [entry]}

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            event = chunk(content="Hi")
            event["choices"][0]["logprobs"] = {"content": [likely]}  # type: ignore[index]
            script(tmp_path, event, chunk(finish="stop"))
            told = await door.ask("/api/chat", HELLO | {"logprobs": True, "top_logprobs": 1})
            plain = {name: entry[name] for name in ("token", "logprob", "bytes")}
            assert told.lines[0]["logprobs"] == [plain | {"top_logprobs": [plain]}]
            sent = asked_of_engine(tmp_path)[0]["body"]
            assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)

    run(work())


# Generate ----------------------------------------------------------------------------------------------------------


def test_generate_is_a_chat_of_one_message(run: Run, tmp_path: Path) -> None:
    """With the system's words before it, and images in it, by the model's own template."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(reasoning_content="Hm"), *ANSWER)
            body = {"model": "tiny", "prompt": "hello", "system": "be kind", "images": [PNG]}
            told = await door.ask("/api/generate", body)
            assert told.lines[0]["thinking"] == "Hm"
            assert [line["response"] for line in told.lines] == ["", "Hel", "lo", ""]
            assert told.lines[-1]["done_reason"] == "stop"
            (sent,) = asked_of_engine(tmp_path)
            assert sent["path"] == "/v1/chat/completions"
            system, user = sent["body"]["messages"]
            assert system == {"role": "system", "content": "be kind"}
            assert [part["type"] for part in user["content"]] == ["text", "image_url"]

    run(work())


def test_a_raw_prompt_is_completed_as_it_stands(run: Run, tmp_path: Path) -> None:
    """No template; the schema goes where a completion has it."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(
                tmp_path,
                {"choices": [{"text": "Hi", "finish_reason": None}]},
                {"choices": [{"finish_reason": "length"}]},
            )
            body = {"model": "tiny", "prompt": "[INST]", "raw": True, "stream": False, "format": "json"}
            told = await door.ask("/api/generate", body)
            assert (told.value["response"], told.value["done_reason"]) == ("Hi", "length")
            (sent,) = asked_of_engine(tmp_path)
            assert (sent["path"], sent["body"]["prompt"]) == ("/v1/completions", "[INST]")
            assert sent["body"]["json_schema"] == {"type": "object"}

    run(work())


def test_a_suffix_asks_for_what_is_between(run: Run, tmp_path: Path) -> None:
    """By llama-server's infill, whose stream is of its own kind."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            end = {"content": "", "stop": True, "stop_type": "limit", "timings": TIMINGS}
            script(tmp_path, {"content": "a + ", "stop": False}, {"content": "b", "stop": False}, end)
            told = await door.ask("/api/generate", {"model": "tiny", "prompt": "def", "suffix": "return"})
            assert [line["response"] for line in told.lines] == ["a + ", "b", ""]
            assert (told.lines[-1]["done_reason"], told.lines[-1]["prompt_eval_count"]) == ("length", 7)
            (sent,) = asked_of_engine(tmp_path)
            assert sent["path"] == "/infill"
            assert (sent["body"]["input_prefix"], sent["body"]["input_suffix"]) == ("def", "return")

    run(work())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"format": 5}, "format"),
        ({"think": "hard"}, "think"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_load(run: Run, tmp_path: Path, more: Any, words: str) -> None:
    """400 with what it was."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            told = await door.ask("/api/generate", {"model": "tiny", "prompt": "x"} | more)
            assert told.status == 400
            assert words in told.value["error"]
            assert door.status().state is State.COLD

    run(work())


# Embeddings --------------------------------------------------------------------------------------------------------


def test_texts_are_embedded(run: Run, tmp_path: Path) -> None:
    """One or many, in their order, shortened to length one if asked; the old way too."""
    data = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, embeddings=True)) as door:
            script(tmp_path, answer={"data": data, "usage": {"prompt_tokens": 5}})
            told = (await door.ask("/api/embed", {"model": "tiny", "input": ["a", "b"]})).value
            assert told["embeddings"] == [[3.0, 4.0], [0.0, 2.0]]
            assert (told["model"], told["prompt_eval_count"]) == ("tiny", 5)
            assert told["total_duration"] >= told["load_duration"] > 0
            told = (await door.ask("/api/embed", {"model": "tiny", "input": "a", "dimensions": 1})).value
            assert told["embeddings"] == [[1.0], [0.0]]
            told = (await door.ask("/api/embeddings", {"model": "tiny", "prompt": "a"})).value
            assert told == {"embedding": [3.0, 4.0]}
            assert [entry["body"]["input"] for entry in asked_of_engine(tmp_path)] == [["a", "b"], ["a"], ["a"]]

    run(work())


def test_nothing_to_embed_loads_the_model(run: Run, tmp_path: Path) -> None:
    """As Ollama does it; the engine is not asked."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, embeddings=True)) as door:
            assert (await door.ask("/api/embed", {"model": "tiny", "input": []})).value["embeddings"] == []
            assert (await door.ask("/api/embeddings", {"model": "tiny"})).value == {"embedding": []}
            assert door.status().state is State.READY
            assert asked_of_engine(tmp_path) == []

    run(work())


def test_an_embedding_model_does_not_chat(run: Run, tmp_path: Path) -> None:
    """Said in Ollama's words, before it is loaded."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, embeddings=True)) as door:
            told = await door.ask("/api/chat", HELLO)
            assert told.status == 400
            assert told.value["error"].startswith('"tiny" does not support chat')
            assert door.status().state is State.COLD

    run(work())


# Loading, keeping, unloading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_request_without_a_question_loads(run: Run, tmp_path: Path, path: str) -> None:
    """It is answered, as one object, when the model is there."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            value = (await door.ask(path, {"model": "tiny", "keep_alive": "1h30m"})).value
            assert (value["done"], value["done_reason"]) == (True, "load")
            assert value["load_duration"] > 0
            assert door.status().state is State.READY
            assert door.status().idle_timeout_s == 5400
            assert door.status().in_flight == 0

    run(work())


def test_keep_alive_is_how_long_it_may_be_idle(run: Run, tmp_path: Path) -> None:
    """A number of seconds, a duration, or for ever; of a model that is loaded too; without one nothing changes."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, idle_timeout_s=77.0)) as door:
            script(tmp_path, *ANSWER)
            for keep, expected in ((None, 77.0), (60, 60.0), ("2m", 120.0), (None, 120.0), (-1, 0.0), ("-1s", 0.0)):
                body = HELLO if keep is None else HELLO | {"keep_alive": keep}
                assert (await door.ask("/api/chat", body)).status == 200
                assert door.status().idle_timeout_s == expected, keep
            assert all("keep_alive" not in entry["body"] for entry in asked_of_engine(tmp_path))

    run(work())


def test_keep_alive_zero_unloads_after_the_answer(run: Run, tmp_path: Path) -> None:
    """The answer comes whole; then the model goes."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            told = await door.ask("/api/chat", HELLO | {"keep_alive": 0})
            assert told.lines[-1]["done"] is True
            await door.until("tiny", "cold")

    run(work())


@pytest.mark.parametrize("keep", [0, "0s", "0"])
def test_a_request_without_a_question_unloads(run: Run, tmp_path: Path, keep: Any) -> None:
    """As ollama stop sends it; of a model that is not loaded nothing is said."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            await door.ask("/api/generate", {"model": "tiny"})
            for _ in range(2):
                value = (await door.ask("/api/generate", {"model": "tiny:latest", "keep_alive": keep})).value
                assert (value["done"], value["done_reason"]) == (True, "unload")
                await door.until("tiny", "cold")

    run(work())


def test_without_a_name_everything_is_unloaded(run: Run, tmp_path: Path) -> None:
    """The shell alias ollama-unload always sent that, and Ollama never did it."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path), scripted(tmp_path, "other")) as door:
            for name in ("tiny", "other"):
                await door.ask("/api/generate", {"model": name})
            assert (await door.ask("/api/generate", {"model": "", "keep_alive": 0})).value["done_reason"] == "unload"
            await door.until("tiny", "cold")
            await door.until("other", "cold")
            assert (await door.ask("/api/generate", {"model": "", "prompt": "x"})).status == 400

    run(work())


def test_an_unload_cuts_no_answer(run: Run, tmp_path: Path) -> None:
    """It waits for the stream that runs."""

    async def work() -> None:
        model = scripted(tmp_path)
        async with OllamaDoor(tmp_path, model) as door, connected(door.path) as client:
            mark = tmp_path / "go-on"
            script(tmp_path, *ANSWER, wait=str(mark))
            await client.send(question("/api/chat", HELLO))
            async with asyncio.timeout(50):
                await client.reader.readuntil(b'"content":"Hel"')
                await door.ask("/api/generate", {"model": "tiny", "keep_alive": 0})
                assert door.status().state is State.DRAINING
                (entry,) = (await door.ask("/api/ps")).value["models"]
                assert datetime.fromisoformat(entry["expires_at"]) < datetime.now(UTC)
                mark.touch()
                await client.reader.readuntil(b'"done":true')
            await door.until("tiny", "cold")

    run(work())


def test_what_somebody_else_holds_stays(run: Run, tmp_path: Path) -> None:
    """The client is told who it is."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            await door.ask("/api/generate", {"model": "tiny"})
            door.engine.hold("tiny", caller("the night job"), reason="works", application="night")
            told = await door.ask("/api/generate", {"model": "tiny", "keep_alive": 0})
            assert told.status == 409
            assert "held by" in told.value["error"]
            assert door.status().state is State.READY

    run(work())


def test_a_key_that_may_only_use_does_not_unload(run: Run, tmp_path: Path) -> None:
    """403 where it asks for that alone; its keep_alive is not heard, and its question is answered."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path), rights=frozenset((Right.USE,))) as door:
            script(tmp_path, *ANSWER)
            told = await door.ask("/api/chat", HELLO | {"keep_alive": 0}, headers=with_key())
            assert told.status == 200
            told = await door.ask("/api/generate", {"model": "tiny", "keep_alive": 0}, headers=with_key())
            assert told.status == 403
            assert door.status().state is State.READY
            assert door.status().idle_timeout_s == 300

    run(work())


def test_a_context_is_wished_for_a_load_only(run: Run, tmp_path: Path) -> None:
    """A longer one than configured; a model that is loaded keeps its own, and the request is served."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            for asked, expected in ((4096, 4096), (8192, 4096), (512, 4096)):
                told = await door.ask("/api/chat", HELLO | {"options": {"num_ctx": asked}})
                assert told.status == 200
                assert door.status().model.settings.context == expected

    run(work())


# What is loaded, and what there is -----------------------------------------------------------------------------------


def test_ps_tells_what_is_loaded(run: Run, tmp_path: Path) -> None:
    """Size, how much of it is on the GPU, and until when."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path), scripted(tmp_path, "other")) as door:
            assert (await door.ask("/api/ps")).value == {"models": []}
            await door.ask("/api/generate", {"model": "tiny", "keep_alive": "1h"})
            (entry,) = (await door.ask("/api/ps")).value["models"]
            assert (entry["name"], entry["model"]) == ("tiny:latest", "tiny:latest")
            assert entry["size"] == GIB
            assert 0 < entry["size_vram"] <= GIB
            assert len(entry["digest"]) == 64
            left_s = (datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)).total_seconds()
            assert 3500 < left_s <= 3600
            await door.ask("/api/generate", {"model": "tiny", "keep_alive": -1})
            (entry,) = (await door.ask("/api/ps")).value["models"]
            assert datetime.fromisoformat(entry["expires_at"]).year > datetime.now(UTC).year + 50

    run(work())


def test_tags_and_show_describe_what_has_no_file(run: Run, tmp_path: Path) -> None:
    """All that clients insist on is there."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path), scripted(tmp_path, "emb", embeddings=True)) as door:
            first, second = (await door.ask("/api/tags")).value["models"]
            assert (first["name"], second["name"]) == ("tiny:latest", "emb:latest")
            assert (first["capabilities"], second["capabilities"]) == (["completion"], ["embedding"])
            assert datetime.fromisoformat(first["modified_at"]).year == 1
            assert first["digest"] != second["digest"]
            shown = (await door.ask("/api/show", {"name": "tiny"})).value
            assert shown["capabilities"] == ["completion"]
            assert set(shown) >= {"modelfile", "template", "details", "model_info", "modified_at"}

    run(work())


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_an_engines_refusal_keeps_its_words_and_its_status(run: Run, tmp_path: Path) -> None:
    """In Ollama's shape."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            for error in ({"error": {"message": "too long"}}, {"error": "too long"}, {"message": "too long"}):
                script(tmp_path, answer=error, status=400)
                told = await door.ask("/api/chat", HELLO)
                assert (told.status, told.value) == (400, {"error": "too long"})
            script(tmp_path, answer=[], status=500)
            told = await door.ask("/api/chat", HELLO)
            assert told.status == 500
            assert "without saying why" in told.value["error"]

    run(work())


def test_an_error_within_a_stream_is_its_last_line(run: Run, tmp_path: Path) -> None:
    """Or the whole answer, with a status, where no stream was asked for."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(content="Hel"), {"error": {"message": "it broke"}})
            told = await door.ask("/api/chat", HELLO)
            assert told.status == 200
            assert told.lines[0]["message"]["content"] == "Hel"
            assert told.lines[-1] == {"error": "it broke"}
            told = await door.ask("/api/chat", HELLO | {"stream": False})
            assert (told.status, told.value) == (500, {"error": "it broke"})

    run(work())


def test_an_engine_that_dies_in_mid_stream_is_told_with_its_last_words(run: Run, tmp_path: Path) -> None:
    """And the stream ends; without a stream it is an error like any other."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(content="Hel"), then="die")
            told = await door.ask("/api/chat", HELLO)
            assert told.lines[0]["message"]["content"] == "Hel"
            assert "out of memory" in told.lines[-1]["error"] + str(told.lines[-1].get("engine_output"))
            assert not any(line.get("done") for line in told.lines)
            told = await door.ask("/api/chat", HELLO | {"stream": False})
            assert told.status >= 500
            assert isinstance(told.value["error"], str)

    run(work())


def test_an_engine_that_dies_before_its_first_word_is_asked_once_more(run: Run, tmp_path: Path) -> None:
    """On a fresh one; the client notices nothing."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER, once=str(tmp_path / "died"))
            told = await door.ask("/api/chat", HELLO | {"stream": False})
            assert (told.status, told.value["message"]["content"]) == (200, "Hello")
            assert len(asked_of_engine(tmp_path)) == 2

    run(work())


@pytest.mark.parametrize("raw", ["data: {not json\n\n", 'data: {"choices": 7}\n\n', "data: " + "x" * (33 << 20)])
def test_garbage_in_a_stream_is_said_to_be_that(run: Run, tmp_path: Path, raw: str) -> None:
    """A line of 33 MiB is not held either."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, raw=raw)
            told = await door.ask("/api/chat", HELLO | {"stream": False})
            assert told.status == 502
            assert "the engine sent" in told.value["error"]

    run(work())


def test_a_client_that_leaves_ends_the_engines_work(run: Run, tmp_path: Path) -> None:
    """Its connection to the engine is closed, and the model counts as idle."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, chunk(content="Hel"), then="stall")
            async with connected(door.path) as client:
                await client.send(question("/api/chat", HELLO))
                async with asyncio.timeout(50):
                    await client.reader.readuntil(b'"content":"Hel"')
                assert door.status().in_flight == 1
            idle = asyncio.Event()
            unsubscribe = door.engine.subscribe(lambda _: idle.set() if not door.status().in_flight else None)
            async with asyncio.timeout(50):
                while door.status().in_flight:
                    await idle.wait()
                    idle.clear()
            unsubscribe()

    run(work())


def test_what_only_ollama_can_do_needs_an_ollama(run: Run, tmp_path: Path) -> None:
    """501 says so; one of gpud's own models is never Ollama's to delete."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            for path, method in (("/api/pull", "POST"), ("/api/create", "POST"), ("/api/blobs/sha256:00", "HEAD")):
                told = await door.ask(path, {"model": "x"}, method=method)
                assert told.status == 501, path
            told = await door.ask("/api/delete", {"model": "tiny"}, method="DELETE")
            assert told.status == 400
            assert "gpud's configuration" in told.value["error"]

    run(work())


def test_a_model_that_does_not_fit_says_how_much_is_missing(run: Run, tmp_path: Path) -> None:
    """507, and nothing is loaded."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, size_bytes=4000 * GIB)) as door:
            told = await door.ask("/api/chat", HELLO)
            assert told.status == 507
            assert "need 4000.00 GiB" in told.value["error"]
            assert door.status().state is State.COLD

    run(work())


def test_who_comes_while_it_loads_waits_for_it(run: Run, tmp_path: Path) -> None:
    """All of them are answered by one engine, and by nothing before it."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            script(tmp_path, *ANSWER)
            wishes = ({}, {"stream": False}, {"options": {"num_ctx": 2048}})
            told = await asyncio.gather(*(door.ask("/api/chat", HELLO | wish) for wish in wishes))
            assert [one.status for one in told] == [200, 200, 200]
            assert all(one.lines[-1]["done"] for one in told)
            assert door.status().load_seconds is not None
            assert door.status().restarts == 0

    run(work())


def test_a_wish_for_when_to_go_is_no_reason_to_refuse(run: Run, tmp_path: Path) -> None:
    """While the GPUs are given away a model in host memory answers as always, whatever its client wishes."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path, gpu="host")) as door:
            script(tmp_path, *ANSWER)
            await door.ask("/api/generate", {"model": "tiny"})
            door.engine.yield_gpus(caller(), why="a game")
            assert (await door.ask("/api/chat", HELLO | {"keep_alive": "1m"})).status == 200

    run(work())


def test_openais_language_is_spoken_here_too(run: Run, tmp_path: Path) -> None:
    """As Ollama's own door does."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, scripted(tmp_path)) as door:
            assert [entry["id"] for entry in (await door.ask("/v1/models")).value["data"]] == ["tiny"]
            script(tmp_path, answer={"choices": []})
            assert (await door.ask("/v1/chat/completions", HELLO)).value == {"choices": []}

    run(work())
