"""The Ollama backend against the real Ollama, with a model that the tests make."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_model
from fake_ollama import write_model
from ollama_place import PATIENT, Place, alive, environment_of, model, until

from gpud.backends import ollama_api
from gpud.backends.call import request
from gpud.backends.ollama_store import parse_name
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, StopTimes
from gpud.core.ports import Runner

pytestmark = pytest.mark.engines

Run = Callable[[Coroutine[Any, Any, None]], None]

TESTS = Path(__file__).parents[1]
PROVISION_S = 1800.0
TINY, OTHER = model("tiny", threads=1), model("other", ollama_name="someone/other:v1", threads=1)


@dataclass(frozen=True)
class Installed:
    binary: Path
    store: Path


@pytest.fixture(scope="session")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Ollama itself, and a store with two models that ``ollama create`` made."""
    made = subprocess.run(
        [TESTS / "provision", "ollama"], stdout=subprocess.PIPE, text=True, timeout=PROVISION_S, check=True
    )
    binary = Path(made.stdout.strip()) / "bin" / "ollama"
    folder = tmp_path_factory.mktemp("ollama")
    store = folder / "models"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OLLAMA_MODELS": str(store),
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_NO_CLOUD": "1",
    }
    server = subprocess.Popen(
        [binary, "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    try:
        line = next(line for line in server.stderr if "Listening on " in line)
        environment["OLLAMA_HOST"] = line.split("Listening on ")[1].split(" ")[0]
        for seed, entry in enumerate(("tiny", "someone/other:v1"), start=1):
            weights = tiny_model.write(folder / f"{seed}.gguf", seed=seed)
            recipe = folder / f"Modelfile{seed}"
            recipe.write_text(f"FROM {weights}\n")
            subprocess.run(
                [binary, "create", entry, "-f", recipe], env=environment, check=True, capture_output=True, timeout=120
            )
    finally:
        server.terminate()
        server.communicate(timeout=20)
    yield Installed(binary, store)


@pytest.fixture
def place(tmp_path: Path, ollama: Installed, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Place(tmp_path, ollama.binary)
    made.store = ollama.store
    return made


@asynccontextmanager
async def closing(place: Place) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await place.close()


def the_pid(runner: Runner) -> int:
    (pid,) = runner.pids()
    return pid


def server_pid(place: Place) -> int:
    child = place.records[-1].child
    assert child is not None
    return child.pid


@asynccontextmanager
async def streaming(endpoint: Endpoint, name: str, tokens: int) -> AsyncIterator[asyncio.StreamReader]:
    """A client that reads an answer token by token."""
    body = json.dumps({"model": name, "prompt": "a", "raw": True, "options": {"num_predict": tokens}})
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        head = ("POST /api/generate HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "Connection: close")
        writer.write("\r\n".join((*head, "", body)).encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}\n")
        yield reader
    finally:
        writer.transport.abort()


async def generate(endpoint: Endpoint, name: str) -> str:
    body = {"model": name, "prompt": "a", "raw": True, "stream": False, "options": {"num_predict": 5}}
    answer = await request(endpoint, "POST", "/api/generate", body=body, timeout_s=60)
    content = answer.json()
    assert answer.status == 200 and isinstance(content, dict), answer
    return str(content["response"])


def test_it_loads_answers_and_gives_the_memory_back(place: Place, run: Run) -> None:
    """The store is read without a server; the process is found, answers, and is gone after the unload."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            backend.check(TINY)
            backend.check(OTHER)
            assert 100_000 < (backend.file_bytes(TINY) or 0) < 2_000_000
            tiny, other = await backend.load(place.order(TINY)), await backend.load(place.order(OTHER))
            assert tiny.endpoint.port == other.endpoint.port
            assert len(await generate(tiny.endpoint, "tiny")) > 0
            assert len(await generate(other.endpoint, "someone/other:v1")) > 0
            assert await tiny.busy() is False
            pids = the_pid(tiny), the_pid(other)
            assert str(place.store) in Path(f"/proc/{pids[0]}/cmdline").read_text()

            await tiny.unload(PATIENT)
            assert not alive(pids[0]) and alive(pids[1])
            assert [entry.name for entry in await ollama_api.listed(other.endpoint)] == ["someone/other:v1"]
            await other.unload(PATIENT)
            assert not alive(pids[1])
            await until(lambda: not alive(server_pid(place)), "the server ends with its last model")

    run(scenario())


def test_a_request_without_options_does_not_reload_what_was_loaded_with_some(place: Place, run: Run) -> None:
    """Context, threads and layers hold for clients that say nothing: the process stays the same."""

    async def scenario() -> None:
        async with closing(place):
            wanted = model("tiny", context=2048, threads=1, layers="all")
            runner = await place.backend().load(place.order(wanted))
            process = the_pid(runner)
            arguments = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            assert arguments[arguments.index("-c") + 1] == "2048"
            assert environment_of(process)["LLAMA_ARG_THREADS"] == "1"
            await generate(runner.endpoint, "tiny")
            body = {"model": "tiny", "prompt": "a", "max_tokens": 3}
            answer = await request(runner.endpoint, "POST", "/v1/completions", body=body, timeout_s=60)
            assert answer.status == 200
            assert alive(process) and runner.pids() == {process}

    run(scenario())


def test_a_model_that_works_is_busy_and_is_not_cut(place: Place, run: Run) -> None:
    """The unload waits for the stream; the stream ends as it should."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend().load(place.order(model("tiny", context=32768, threads=1)))
            process = the_pid(runner)
            for tokens in (1500, 6000, 24000):
                async with streaming(runner.endpoint, "tiny", tokens) as reader:
                    if await runner.busy() is not True:
                        continue  # A machine so quick that the answer was over before it was asked.
                    unload = asyncio.create_task(runner.unload(PATIENT))
                    answer = await reader.read()
                    assert b'"done":true' in answer and b'"done_reason":"length"' in answer
                    await asyncio.wait_for(unload, 50)
                    break
            else:
                pytest.fail("it never said that it was busy while it answered")
            assert not alive(process)

    run(scenario())


def test_force_ends_a_model_that_works(place: Place, run: Run) -> None:
    """When the time is over the process is killed, the server lives on without it."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(linger_s=60).load(place.order(TINY))
            process = the_pid(runner)
            told: list[bool] = []
            async with streaming(runner.endpoint, "tiny", 30000):
                times = StopTimes(drain_s=0.3, term_s=0.1, second_term_s=0.1)
                await runner.unload(times, on_kill=lambda: told.append(True))
            assert told == [True] and not alive(process) and alive(server_pid(place))

    run(scenario())


def test_kill_9_of_the_server_leaves_no_runner(place: Place, run: Run) -> None:
    """Ollama's own runners would live on as orphans and keep the memory."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            tiny, other = await backend.load(place.order(TINY)), await backend.load(place.order(OTHER))
            pids = tiny.pids() | other.pids()
            os.kill(server_pid(place), signal.SIGKILL)
            await asyncio.wait_for(asyncio.gather(tiny.gone(), other.gone()), 50)
            assert not any(map(alive, pids))

    run(scenario())


def test_a_crashed_runner_is_gone_and_can_be_loaded_again(place: Place, run: Run) -> None:
    """The server stays; the model is loaded anew in it."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(linger_s=60, reload_grace_s=60)
            runner = await backend.load(place.order(TINY))
            os.kill(the_pid(runner), signal.SIGKILL)
            await asyncio.wait_for(runner.gone(), 50)
            again = await backend.load(place.order(TINY))
            assert again.endpoint == runner.endpoint
            assert len(await generate(again.endpoint, "tiny")) > 0

    run(scenario())


def test_a_model_reloaded_for_a_client_stays_ours(place: Place, run: Run) -> None:
    """A client asks for a longer context; Ollama starts another process, and that is the model's now."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(reload_grace_s=20).load(place.order(TINY))
            before = the_pid(runner)
            body = {"model": "tiny", "prompt": "a", "stream": False, "options": {"num_ctx": 1024, "num_predict": 2}}
            await request(runner.endpoint, "POST", "/api/generate", body=body, timeout_s=60)
            await until(lambda: runner.pids() and the_pid(runner) != before, "the new process is found")
            await runner.unload(PATIENT)

    run(scenario())


def test_a_client_may_unload_a_model_behind_our_back(place: Place, run: Run) -> None:
    """``ollama stop`` against the private server: the model is gone, and known to be."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend().load(place.order(TINY))
            await ollama_api.expire(runner.endpoint, parse_name("tiny"))
            assert (await asyncio.wait_for(runner.gone(), 50)).code == 0

    run(scenario())


def test_a_canceled_load_leaves_nothing_behind(place: Place, run: Run) -> None:
    """Canceled at whatever moment: no process, and no model that appears later."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(linger_s=60)
            other = await backend.load(place.order(OTHER))
            for after_s in (0.0, 0.02, 0.1, 0.25):
                task = asyncio.create_task(backend.load(place.order(TINY)))
                await until(lambda: place.stages[-1] == "loading", "the load is asked for")
                await asyncio.wait({task}, timeout=after_s)
                if task.done():
                    await task.result().unload(PATIENT)
                    continue
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                place.stages.append("")
                assert [entry.name for entry in await ollama_api.listed(other.endpoint)] == ["someone/other:v1"]
            children = psutil.Process(server_pid(place)).children(recursive=True)
            assert [child.pid for child in children] == [the_pid(other)]

    run(scenario())


def test_a_broken_model_says_what_is_wrong_with_it(place: Place, run: Run, tmp_path: Path) -> None:
    """Weights that were damaged after the check; Ollama's own words are in the sentence."""
    store = tmp_path / "broken"
    store.mkdir()
    content = tiny_model.write(tmp_path / "x.gguf").read_bytes()
    write_model(store, "broken", model=content[: len(content) // 2])
    place.store = store

    async def scenario() -> None:
        async with closing(place):
            with pytest.raises(BackendFailed, match='cannot load "broken": ') as caught:
                await place.backend().load(place.order(model("broken")))
            assert caught.value.kind not in ("timeout", "unreachable", "exited", "oom") and caught.value.hint
            assert caught.value.tail

    run(scenario())


def test_a_restarted_daemon_adopts_the_server_and_its_models(place: Place, run: Run) -> None:
    """Nothing is loaded again: the same process answers."""

    async def scenario() -> None:
        async with closing(place):
            first = place.backend()
            tiny, other = await first.load(place.order(TINY)), await first.load(place.order(OTHER))
            second = place.backend()
            adopted = [
                await second.adopt(record, entry) for record, entry in zip(place.records, (TINY, OTHER), strict=True)
            ]
            assert [runner.pids() for runner in adopted if runner is not None] == [tiny.pids(), other.pids()]
            assert adopted[0] is not None
            assert len(await generate(adopted[0].endpoint, "tiny")) > 0

    run(scenario())


def test_an_attached_server_is_only_asked(place: Place, run: Run) -> None:
    """An Ollama that somebody else runs keeps running; its runner is found by way of its port."""

    async def scenario() -> None:
        async with closing(place):
            owner = await place.backend(linger_s=60).load(place.order(OTHER))
            url = f"http://127.0.0.1:{owner.endpoint.port}"
            backend = place.backend(EngineOptions(url=url))
            runner = await backend.load(place.order(TINY))
            process = the_pid(runner)
            assert alive(process) and await runner.busy() is False
            await runner.unload(PATIENT)
            assert not alive(process)
            await backend.close()
            assert alive(the_pid(owner))

    run(scenario())
