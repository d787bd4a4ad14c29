"""The programs that talk to Ollama, unchanged, talk to gpud: the ollama command, the ollama package and curl; about
models of a real llama-server and of a real Ollama.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ollama
import psutil
import pytest
from gateway_place import QUICK, question
from layer.raw import connected
from ollama_front import OllamaDoor

from gpud.backends.options import EngineOptions
from gpud.core.facts import EngineSettings, Model, State
from gpud.core.record import replace
from gpud.http.ollama import OllamaSettings

pytestmark = pytest.mark.engines
Run = Callable[..., Any]

PROVISION = Path(__file__).parents[1] / "provision"
COMMAND_S = 90.0
SHORT = {"num_predict": 6}
CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|[\u2800-\u28ff]\s*")
"""What the command moves a terminal's cursor with, and its spinner."""


@pytest.fixture(scope="session")
def ollama_binary() -> str:
    made = subprocess.run([PROVISION, "ollama"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.fail(f"tests/provision ollama: {made.stderr}")
    return str(Path(made.stdout.strip()) / "bin" / "ollama")


@pytest.fixture
def options(tmp_path: Path, ollama_binary: str, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    """An Ollama with an empty store and a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return EngineOptions(binary=ollama_binary, models_dir=str(tmp_path / "models"))


def own(tiny: str) -> Model:
    settings = EngineSettings(file=tiny, context=1024, parallel=1, threads=1)
    return Model("tiny", "llama_server", settings, aliases=("small",), stop=QUICK)


def embedding(tiny: str) -> Model:
    flags = ("--pooling", "mean")
    settings = EngineSettings(file=tiny, context=1024, threads=1, embeddings=True, extra_flags=flags)
    return Model("words", "llama_server", settings, stop=QUICK)


CHATTY = Model("chatty", "ollama", EngineSettings(ollama_name="someone/other:v1", context=2048, threads=1), stop=QUICK)
"""A model of Ollama's whose name at gpud is another."""


async def command(door: OllamaDoor, binary: str, *argv: str, status: int = 0) -> str:
    """What the ollama command prints."""
    process = await asyncio.create_subprocess_exec(
        binary,
        *argv,
        env={**os.environ, "OLLAMA_HOST": door.url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    text = CONTROL.sub("", output.decode())
    assert process.returncode == status, (argv, text)
    return text


async def create(door: OllamaDoor, binary: str, tiny: str, name: str = "someone/other:v1") -> str:
    recipe = door.folder / "Modelfile"
    # It never ends by itself.
    recipe.write_text(f"FROM {tiny}\nPARAMETER num_predict 20\n")
    return await command(door, binary, "create", name, "-f", str(recipe))


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()[1:] if line.strip()]


def test_the_ollama_command_uses_a_model_of_llama_servers(
    run: Run, tmp_path: Path, tiny: str, llama_server: str, ollama_binary: str
) -> None:
    """list, show, run, ps, stop; what is not there, and what is not Ollama's to delete."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, own(tiny), llama_server=llama_server) as door:
            say = lambda *argv, status=0: command(door, ollama_binary, *argv, status=status)  # noqa: E731
            (row,) = rows(await say("list"))
            assert row[0] == "tiny:latest"
            shown = await say("show", "tiny")
            assert "architecture" in shown and "llama" in shown and "F16" in shown
            assert rows(await say("ps")) == []
            answer = asyncio.create_task(say("run", "tiny", "hello"))
            await door.until("tiny", "ready")
            assert (await answer).strip()
            (row,) = rows(await say("ps"))
            assert (row[0], row[-4:]) == ("tiny:latest", ["4", "minutes", "from", "now"])
            assert any(exchange.generated_tokens for exchange in door.exchanges)
            await say("stop", "tiny")
            await door.until("tiny", "cold")
            assert rows(await say("ps")) == []
            assert "Ollama itself" in await say("run", "nothing-like-it", "x", status=1)
            assert "gpud's configuration" in await say("rm", "tiny", status=1)

    run(work(), 300)


def test_the_ollama_command_uses_ollamas_own(
    run: Run, tmp_path: Path, tiny: str, options: EngineOptions, ollama_binary: str
) -> None:
    """create, cp, list, show, run, ps, stop, rm: gpud starts and stops the server, admits the load, and counts it."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, CHATTY, ollama=options, can_serve=True) as door:
            say = lambda *argv, status=0: command(door, ollama_binary, *argv, status=status)  # noqa: E731
            assert "success" in await create(door, ollama_binary, tiny)
            await say("cp", "someone/other:v1", "extra")
            assert {row[0] for row in rows(await say("list"))} == {"chatty:latest", "extra:latest"}
            assert "context length" in await say("show", "chatty")
            assert (await say("run", "chatty", "hello", "--keepalive", "20m")).strip()
            assert door.status("chatty").state is State.READY
            assert door.status("chatty").idle_timeout_s == 1200
            (row,) = rows(await say("ps"))
            assert (row[0], row[-4]) == ("chatty:latest", "19")
            ids = {row[0]: row[1] for row in rows(await say("list"))}
            assert row[1] == ids["chatty:latest"]
            refused = await say("run", "extra", "x", status=1)
            assert "engine: ollama" in refused or "pull" in refused
            await say("stop", "chatty")
            await door.until("chatty", "cold")
            assert "deleted" in await say("rm", "extra")
            assert [row[0] for row in rows(await say("list"))] == ["chatty:latest"]

    run(work(), 300)


@pytest.mark.parametrize("name", ["tiny", "chatty"])
def test_the_ollama_package_uses_both(
    run: Run,
    tmp_path: Path,
    tiny: str,
    llama_server: str,
    options: EngineOptions,
    ollama_binary: str,
    name: str,
) -> None:
    """list, show, load, chat and generate with and without a stream, ps, unload, errors."""

    async def work() -> None:
        models = (own(tiny), CHATTY)
        async with (
            OllamaDoor(tmp_path, *models, llama_server=llama_server, ollama=options, can_serve=True) as door,
            ollama.AsyncClient(host=door.url) as client,
        ):
            await create(door, ollama_binary, tiny)
            assert {model.model for model in (await client.list()).models} == {"tiny:latest", "chatty:latest"}
            shown = await client.show(name)
            assert shown.capabilities is not None and "completion" in shown.capabilities
            loaded = await client.generate(name, keep_alive="10m")
            assert loaded.done_reason == "load"
            (running,) = (await client.ps()).models
            assert running.model == f"{name}:latest"
            assert running.context_length == door.status(name).model.settings.context
            hello = [{"role": "user", "content": "hello"}]
            told = await client.chat(name, hello, options=SHORT | {"temperature": 0})
            assert told.message.content
            assert (told.done_reason, told.eval_count) == ("length", 6)
            assert told.total_duration and told.eval_duration and told.prompt_eval_count
            pieces = [
                piece async for piece in await client.chat(name, hello, stream=True, options=SHORT | {"temperature": 0})
            ]
            assert "".join(piece.message.content or "" for piece in pieces) == told.message.content
            assert pieces[-1].done and len(pieces) > 2
            text = await client.generate(name, "hello", raw=True, options=SHORT)
            assert text.response and text.eval_count == 6
            assert door.exchanges[-1].generated_tokens == 6
            with pytest.raises(ollama.ResponseError, match="not found") as caught:
                await client.chat("nothing-like-it", hello)
            assert caught.value.status_code == 404
            assert (await client.generate(name, keep_alive=0)).done_reason == "unload"
            await door.until(name, "cold")
            assert not (await client.ps()).models

    run(work(), 300)


def test_the_ollama_package_embeds(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Texts in one request, in their order, and each alone."""

    async def work() -> None:
        async with (
            OllamaDoor(tmp_path, embedding(tiny), llama_server=llama_server) as door,
            ollama.AsyncClient(host=door.url) as client,
        ):
            both = await client.embed("words", ["hello", "world"])
            one = await client.embed("words", "world", dimensions=8)
            assert [len(vector) for vector in both.embeddings] == [64, 64]
            assert len(one.embeddings[0]) == 8
            assert sum(number * number for number in one.embeddings[0]) == pytest.approx(1.0)
            old = await client.embeddings("words", "hello")
            assert list(old.embedding) == pytest.approx(list(both.embeddings[0]), abs=1e-4)
            with pytest.raises(ollama.ResponseError, match="does not support chat"):
                await client.chat("words", [{"role": "user", "content": "x"}])

    run(work(), 300)


def test_curl_reads_lines_of_json(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """As Ollama's own documentation asks."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, own(tiny), llama_server=llama_server) as door:
            body = json.dumps({"model": "tiny", "prompt": "why?", "options": SHORT})
            process = await asyncio.create_subprocess_exec(
                "curl", "-sSN", f"{door.url}/api/generate", "-d", body, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(process.communicate(), COMMAND_S)
            lines = [json.loads(line) for line in output.splitlines()]
            assert len(lines) > 2
            assert lines[-1]["done_reason"] == "length"

    run(work(), 300)


def test_a_wish_for_another_context_starts_no_second_process_in_ollama(
    run: Run, tmp_path: Path, tiny: str, options: EngineOptions, ollama_binary: str
) -> None:
    """Ollama would load anew, with memory that nobody admitted; the engine's own name works at /v1, too."""

    async def work() -> None:
        async with (
            OllamaDoor(tmp_path, CHATTY, ollama=options, can_serve=True) as door,
            ollama.AsyncClient(host=door.url) as client,
        ):
            await create(door, ollama_binary, tiny)
            await client.generate("chatty", "x", options=SHORT)
            before = door.status("chatty").pids
            for wish in ({"num_ctx": 512}, {"num_ctx": 8192, "num_gpu": 0, "num_thread": 2, "num_batch": 64}):
                await client.generate("someone/other:v1", "x", options=SHORT | wish)
            told = await door.ask("/v1/completions", {"model": "chatty", "prompt": "x", "max_tokens": 3})
            assert told.status == 200
            assert door.status("chatty").pids == before
            assert len(before) >= 1

    run(work(), 300)


def test_kill_9_of_ollama_in_mid_stream_is_the_last_line(
    run: Run, tmp_path: Path, tiny: str, options: EngineOptions, ollama_binary: str
) -> None:
    """An error, and the end; and the next request has a fresh server."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, CHATTY, ollama=options, can_serve=True) as door:
            await create(door, ollama_binary, tiny)
            body = {"model": "chatty", "prompt": "x", "raw": True, "options": {"num_predict": 30000}}
            async with connected(door.path) as client:
                await client.send(question("/api/generate", body))
                async with asyncio.timeout(90):
                    await client.reader.readuntil(b'"done":false')
                    (server,) = (child.pid for child in psutil.Process().children() if is_server(child.pid))
                    os.kill(server, signal.SIGKILL)
                    await client.reader.readuntil(b'{"error":"')
            await door.until("chatty", "cold", "backoff", "failed")
            told = await door.ask("/api/generate", body | {"options": SHORT, "stream": False})
            assert told.status == 200

    run(work(), 300)


def is_server(pid: int) -> bool:
    """Not one of those that are asked something and end."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"serve"]
    return False


def test_an_ollama_of_somebody_elses_is_used_and_left_alone(
    run: Run, tmp_path: Path, tiny: str, options: EngineOptions, ollama_binary: str
) -> None:
    """Its store is listed and changed through gpud; its models are loaded when gpud admits them."""

    async def work() -> None:
        async with OllamaDoor(tmp_path, ollama=options, can_serve=True) as other, other.ollama.serving() as there:
            await create(other, ollama_binary, tiny)
            folder = tmp_path / "second"
            folder.mkdir()
            attached = EngineOptions(url=f"http://{there.host}:{there.port}")
            model = replace(CHATTY, settings=replace(CHATTY.settings, context=1024))
            async with (
                OllamaDoor(folder, model, ollama=attached, can_serve=True) as door,
                ollama.AsyncClient(host=door.url) as client,
            ):
                door.front.settings = OllamaSettings(attached=True)
                assert [row[0] for row in rows(await command(door, ollama_binary, "list"))] == ["chatty:latest"]
                assert (await client.generate("chatty", "hello", options=SHORT)).response
                before = door.status("chatty").pids
                assert (await client.generate("chatty", "x", options=SHORT)).eval_count == 6
                assert door.status("chatty").pids == before
                await command(door, ollama_binary, "cp", "chatty", "copied")
                await command(door, ollama_binary, "stop", "chatty")
                await door.until("chatty", "cold")
            assert [row[0] for row in rows(await command(other, ollama_binary, "list"))] == [
                "copied:latest",
                "someone/other:v1",
            ]

    run(work(), 300)
