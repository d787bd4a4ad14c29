"""The Ollama backend against a fake server that is a real program with real runner processes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_ollama import write_model
from ollama_place import (
    PATIENT,
    QUICK,
    Place,
    alive,
    environment_of,
    generate,
    model,
    release,
    until,
)

from gpud.backends import ollama_api
from gpud.backends.call import request
from gpud.backends.ollama_processes import RunnerProcess, watch_runner
from gpud.backends.ollama_store import parse_name
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Model
from gpud.core.ports import Runner, Standing
from gpud.core.record import replace

Run = Callable[[Coroutine[Any, Any, None]], None]

TINY, BIG = model("tiny"), model("big", ollama_name="big:7b")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    write_model(made.store, "tiny")
    write_model(made.store, "big:7b", model=b"w" * 1000, projector=b"p" * 24)
    return made


@asynccontextmanager
async def closing(place: Place) -> AsyncIterator[None]:
    """Every backend of the place is closed, whatever the test does."""
    try:
        yield
    finally:
        await place.close()


def server_pid(place: Place, index: int = -1) -> int:
    child = place.records[index].child
    assert child is not None
    return child.pid


def the_pid(runner: Runner) -> int:
    (pid,) = runner.pids()
    return pid


# Load and unload -----------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_to_stay_and_unloaded_by_its_name(place: Place, run: Run) -> None:
    """What the original command got wrong: it asked to unload the model named "", which unloads nothing."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            runner = await backend.load(place.order(TINY))
            process = the_pid(runner)
            assert alive(process) and await runner.busy() is False
            assert place.posts("/api/generate") == [{"model": "tiny:latest", "keep_alive": -1, "stream": False}]

            await runner.unload(PATIENT)
            assert not alive(process)
            assert (await asyncio.wait_for(runner.gone(), 50)).code == 0
            assert runner.pids() == frozenset()
            assert place.posts("/api/generate")[-1] == {"model": "tiny:latest", "keep_alive": 0, "stream": False}
            await until(lambda: not alive(server_pid(place)), "the server ends with its last model")
        assert all(body["model"] for body in place.posts("/api/generate"))
        assert place.stages == ["starting Ollama", "loading"]

    run(scenario())


def test_models_share_a_server_that_outlives_the_first_of_them(place: Place, run: Run) -> None:
    """One ``ollama serve`` for both; each has its own process, its own end and the same record of the server."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            tiny, big = await asyncio.gather(backend.load(place.order(TINY)), backend.load(place.order(BIG)))
            assert tiny.endpoint.port == big.endpoint.port
            assert len({record.child for record in place.records}) == 1
            assert tiny.pids().isdisjoint(big.pids())

            await tiny.unload(PATIENT)
            assert alive(the_pid(big)) and alive(server_pid(place))
            await big.unload(PATIENT)
            await until(lambda: not alive(server_pid(place)), "the server ends with its last model")

    run(scenario())


def test_a_server_is_kept_for_the_model_that_takes_the_room(place: Place, run: Run) -> None:
    """Swapping two models does not pay for the start of a server."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(linger_s=30)
            await (await backend.load(place.order(TINY))).unload(PATIENT)
            await backend.load(place.order(BIG))
            assert server_pid(place, 0) == server_pid(place, 1)
            server = server_pid(place)
        assert not alive(server)

    run(scenario())


def test_keep_running_leaves_an_empty_server_until_the_end(place: Place, run: Run) -> None:
    """Who asked for a server that is always there gets one, and gpud's end is its end."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(replace(place.options(), keep_running=True))
            await (await backend.load(place.order(TINY))).unload(PATIENT)
            server = server_pid(place)
            await backend.load(place.order(BIG))
            assert server_pid(place) == server
        assert not alive(server)

    run(scenario())


def test_a_model_that_only_embeds_is_loaded_without_generating(place: Place, run: Run) -> None:
    """Ollama refuses ``generate`` for it with status 400; the embedding route loads it."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(place.options(embedding=1)).load(place.order(TINY))
            assert place.posts("/api/embed") == [{"model": "tiny:latest", "keep_alive": -1}]
            await runner.unload(PATIENT)

    run(scenario())


def test_settings_reach_the_server_and_the_load(place: Place, run: Run) -> None:
    """What Ollama would otherwise forget at the next request is told to the server itself."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(
                place.options({"OLLAMA_DEBUG": "1", "LLAMA_ARG_FIT_TARGET": "512", "LLAMA_API_KEY": "secret"})
            )
            wanted = model(
                "tiny", context=2048, threads=3, layers="all", parallel=2, cache_type_k="q8_0", flash_attention="on"
            )
            runner = await backend.load(place.order(wanted, devices=("GPU-1", "GPU-2"), vendor="nvidia"))
            (said,) = place.posts("/api/generate")
            assert said["options"] == {"num_ctx": 2048, "num_gpu": 999}
            environment = environment_of(server_pid(place))
            expected = {
                "OLLAMA_HOST": f"127.0.0.1:{runner.endpoint.port}",
                "OLLAMA_MODELS": str(place.store),
                "OLLAMA_KEEP_ALIVE": "-1",
                "OLLAMA_NOPRUNE": "1",
                "OLLAMA_NO_CLOUD": "1",
                "OLLAMA_CONTEXT_LENGTH": "2048",
                "OLLAMA_NUM_PARALLEL": "2",
                "OLLAMA_KV_CACHE_TYPE": "q8_0",
                "OLLAMA_FLASH_ATTENTION": "1",
                "LLAMA_ARG_THREADS": "3",
                "LLAMA_ARG_FIT_TARGET": "512",
                "OLLAMA_DEBUG": "1",
                "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2",
            }
            assert expected.items() <= environment.items()
            assert int(environment["OLLAMA_MAX_LOADED_MODELS"]) >= 100
            assert environment["HOME"]
            assert "LLAMA_API_KEY" not in environment

    run(scenario())


def test_models_on_other_devices_get_a_server_of_their_own(place: Place, run: Run) -> None:
    """A server sees the devices it was started with, so each set of devices has one."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            await backend.load(place.order(TINY, devices=("GPU-1",), vendor="nvidia"))
            await backend.load(place.order(BIG, devices=("GPU-2",), vendor="nvidia"))
            seen = [environment_of(server_pid(place, index))["CUDA_VISIBLE_DEVICES"] for index in (0, 1)]
            assert seen == ["GPU-1", "GPU-2"]

    run(scenario())


def test_one_ollama_model_under_two_names_gets_two_servers(place: Place, run: Run) -> None:
    """Ollama holds a model once: unloading one entry must not take the other's model away."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            first = await backend.load(place.order(TINY))
            second = await backend.load(place.order(model("twin", ollama_name="Library/TINY")))
            assert first.endpoint != second.endpoint
            await first.unload(PATIENT)
            assert alive(the_pid(second))

    run(scenario())


def test_a_model_kept_off_the_gpu_sees_none(place: Place, run: Run) -> None:
    """Not even a context is opened: it would cost memory and power."""

    async def scenario() -> None:
        async with closing(place):
            await place.backend().load(place.order(TINY))
            environment = environment_of(server_pid(place))
            assert environment["CUDA_VISIBLE_DEVICES"] == environment["ROCR_VISIBLE_DEVICES"] == "-1"

    run(scenario())


# Loads that fail -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "kind", "words"),
    [
        ({"load_error": "cudaMalloc failed: out of memory"}, "oom", "out of memory"),
        ({"load_error": "model requires more system memory (9 GiB) than is available (2 GiB)"}, "oom", "9 GiB"),
        ({"error_in_200": "unable to allocate CUDA0 buffer"}, "oom", "CUDA0"),
        ({"load_error": "unable to load model: /blobs/x"}, "bad-model", "unable to load"),
        ({"load_error": "the moon is in the wrong quarter"}, "refused", "moon"),
        ({"load_garbage": 1}, "unreachable", "not JSON"),
    ],
)
def test_what_ollama_says_is_handed_on(
    place: Place, run: Run, switches: dict[str, object], kind: str, words: str
) -> None:
    """With the model's own name, a kind for programs and a hint for people; nothing is left running."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(place.options(**switches))
            with pytest.raises(BackendFailed, match=words) as caught:
                await backend.load(place.order(TINY))
            assert caught.value.kind == kind
            assert '"tiny"' in caught.value.message and caught.value.hint
            assert not alive(server_pid(place))

    run(scenario())


def test_a_model_that_ollama_does_not_have_is_missing(place: Place, run: Run) -> None:
    """When it was deleted after the check, the server's 404 says so."""

    async def scenario() -> None:
        async with closing(place):
            with pytest.raises(BackendFailed, match="not found") as caught:
                await place.backend().load(place.order(model("absent")))
            assert caught.value.kind == "model-missing"
            assert "ollama pull absent:latest" in caught.value.hint

    run(scenario())


def test_a_server_that_dies_in_a_load_is_reported_with_its_last_words(place: Place, run: Run) -> None:
    """Its lines say that memory was lacking, and so does the error."""

    async def scenario() -> None:
        async with closing(place):
            with pytest.raises(BackendFailed, match="exited with status 3") as caught:
                await place.backend(place.options(die_in_load=1, load_s=30)).load(place.order(TINY))
            assert caught.value.kind == "oom"
            assert any("out of memory" in line for line in caught.value.tail)

    run(scenario())


def test_a_server_that_does_not_start_is_reported_with_its_last_words(place: Place, run: Run) -> None:
    """It ended before it answered; waiting any longer would be in vain."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(place.options(exit="Error: $HOME is not defined"))
            with pytest.raises(BackendFailed, match="exited with status 1 before it answered") as caught:
                await backend.load(place.order(TINY))
            assert caught.value.tail == ("Error: $HOME is not defined",)

    run(scenario())


def test_a_configured_port_that_is_taken_is_named(place: Place, run: Run) -> None:
    """The other program is not mistaken for our server, although it answers on that port."""

    async def scenario() -> None:
        async with closing(place):
            first = await place.backend().load(place.order(TINY))
            port = first.endpoint.port
            second = place.backend(replace(place.options(), port=port))
            with pytest.raises(BackendFailed, match=f"port {port}") as caught:
                await second.load(place.order(BIG))
            assert caught.value.kind == "port-taken"
            assert alive(the_pid(first))

    run(scenario())


def test_a_load_that_takes_too_long_is_given_up(place: Place, run: Run) -> None:
    """After ``load_timeout`` nothing of it is left, neither the runner nor the server."""

    async def scenario() -> None:
        async with closing(place):
            late = replace(TINY, load_timeout_s=3)
            with pytest.raises(BackendFailed, match="after 3 s") as caught:
                await place.backend(place.options(load_s=30)).load(place.order(late))
            assert caught.value.kind == "timeout"
            assert not alive(server_pid(place))

    run(scenario())


def test_a_canceled_load_leaves_nothing_behind(place: Place, run: Run) -> None:
    """Ollama gives it up when our connection closes; the server, now unused, ends too."""

    async def scenario() -> None:
        async with closing(place):
            task = asyncio.create_task(place.backend(place.options(load_s=30)).load(place.order(TINY)))
            await until(lambda: place.posts("/api/generate"), "the load is asked for")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not alive(server_pid(place))

    run(scenario())


def test_a_load_canceled_before_its_server_answers_leaves_nothing_behind(place: Place, run: Run) -> None:
    """The start itself is ended."""

    async def scenario() -> None:
        async with closing(place):
            task = asyncio.create_task(place.backend().load(place.order(TINY)))
            await until(lambda: place.records, "the server's process exists")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not alive(server_pid(place))

    run(scenario())


def test_canceling_one_load_does_not_harm_the_other_on_the_same_server(place: Place, run: Run) -> None:
    """Both wait for one start of a server; it goes on for the one that stays."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            canceled = asyncio.create_task(backend.load(place.order(TINY)))
            kept = asyncio.create_task(backend.load(place.order(BIG)))
            await until(lambda: len(place.records) == 2, "the server's process exists")
            canceled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await canceled
            runner = await kept
            loaded = await ollama_api.listed(runner.endpoint)
            assert [entry.name for entry in loaded] == ["big:7b"]

    run(scenario())


# What happens while it is loaded -------------------------------------------------------------------------------------


def test_unloading_never_cuts_an_answer(place: Place, run: Run) -> None:
    """Busy is what the runner itself says; the model goes when its request has been answered in full."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend().load(place.order(TINY))
            process = the_pid(runner)
            answer = asyncio.create_task(generate(runner.endpoint, "tiny"))
            while await runner.busy() is not True:
                await asyncio.sleep(0.01)
            unload = asyncio.create_task(runner.unload(PATIENT))
            # Longer than an idle model would be given.
            done, _ = await asyncio.wait({unload, answer}, timeout=PATIENT.term_s + PATIENT.second_term_s + 0.3)
            assert not done and alive(process)
            await release(process)
            assert (await answer).json()["done_reason"] == "stop"
            await unload
            assert not alive(process)

    run(scenario())


def test_a_request_that_hangs_is_killed_when_the_time_is_over(place: Place, run: Run) -> None:
    """Whoever stops the model is told that force is used; the server goes on."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(linger_s=30)
            runner = await backend.load(place.order(TINY))
            process = the_pid(runner)
            answer = asyncio.create_task(generate(runner.endpoint, "tiny"))
            while await runner.busy() is not True:
                await asyncio.sleep(0.01)
            told: list[bool] = []
            await runner.unload(QUICK, on_kill=lambda: told.append(alive(process)))
            assert told == [True] and not alive(process)
            assert (await runner.gone()).code == -signal.SIGKILL
            assert (await answer).status == 500
            assert alive(server_pid(place))

    run(scenario())


def test_a_server_that_ignores_us_loses_the_process(place: Place, run: Run) -> None:
    """It says that it unloads and does not: the memory is what counts."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(place.options(keep=1), linger_s=30).load(place.order(TINY))
            process = the_pid(runner)
            told: list[bool] = []
            await runner.unload(QUICK, on_kill=lambda: told.append(True))
            assert told == [True] and not alive(process)
            await place.backends[0].close()

    run(scenario())


def test_a_model_deleted_while_loaded_can_still_be_unloaded(place: Place, run: Run) -> None:
    """Ollama no longer knows its name; its process is ended instead."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend().load(place.order(TINY))
            process = the_pid(runner)
            (place.store / "manifests/registry.ollama.ai/library/tiny/latest").unlink()
            await runner.unload(PATIENT)
            assert not alive(process)

    run(scenario())


def test_kill_ends_the_model_and_spares_its_neighbour(place: Place, run: Run) -> None:
    """Only the process of that model dies."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            tiny, big = await backend.load(place.order(TINY)), await backend.load(place.order(BIG))
            process = the_pid(tiny)
            await tiny.kill()
            assert not alive(process) and alive(the_pid(big))
            assert (await asyncio.wait_for(tiny.gone(), 50)).code == -signal.SIGKILL
            await tiny.unload(PATIENT)

    run(scenario())


def test_a_model_that_ollama_lets_go_by_itself_is_gone(place: Place, run: Run) -> None:
    """A client said ``keep_alive: 0``: the memory is free and must not be claimed any longer; that was no crash."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend().load(place.order(TINY))
            await ollama_api.expire(runner.endpoint, parse_name("tiny"))
            assert (await asyncio.wait_for(runner.gone(), 50)).code == 0
            await until(lambda: not alive(server_pid(place)), "the server ends with its last model")

    run(scenario())


def test_a_model_that_is_reloaded_stays_loaded(place: Place, run: Run) -> None:
    """A request with other options makes Ollama start another process; it is the same model."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(reload_grace_s=20).load(place.order(TINY))
            before = the_pid(runner)
            gone = asyncio.create_task(runner.gone())
            body = {"model": "tiny", "stream": False, "options": {"num_ctx": 99}}
            await request(runner.endpoint, "POST", "/api/generate", body=body, timeout_s=20)
            await until(lambda: runner.pids() and the_pid(runner) != before, "the new process is found")
            assert not gone.done() and alive(the_pid(runner))
            await runner.unload(PATIENT)
            await gone

    run(scenario())


def test_a_runner_that_crashes_is_gone(place: Place, run: Run) -> None:
    """Ollama still lists it; its process is what holds the memory, and that has ended."""

    async def scenario() -> None:
        async with closing(place):
            runner = await place.backend(reload_grace_s=60).load(place.order(TINY))
            os.kill(the_pid(runner), signal.SIGSEGV)
            assert (await asyncio.wait_for(runner.gone(), 50)).code is None

    run(scenario())


def test_a_killed_server_takes_its_models_along(place: Place, run: Run) -> None:
    """``kill -9`` of ``ollama serve`` orphans its runners, which would keep the memory for ever."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend()
            tiny, big = await backend.load(place.order(TINY)), await backend.load(place.order(BIG))
            processes = tiny.pids() | big.pids()
            os.kill(server_pid(place), signal.SIGKILL)
            ends = await asyncio.wait_for(asyncio.gather(tiny.gone(), big.gone()), 50)
            assert [end.code for end in ends] == [-signal.SIGKILL] * 2
            assert not any(map(alive, processes))
            again = await backend.load(place.order(TINY))
            assert alive(the_pid(again))

    run(scenario())


def test_a_number_that_another_process_was_given_is_not_watched(run: Run) -> None:
    """Between the look and the watch a runner may end: what has its number then must never be killed."""

    async def scenario() -> None:
        stranger = await asyncio.create_subprocess_exec("sleep", "1000")
        try:
            with pytest.raises(ProcessLookupError):
                watch_runner(RunnerProcess(stranger.pid, os.getpid(), "/blobs/sha256-" + "a" * 64, "a" * 64, 4711))
        finally:
            stranger.kill()
            await stranger.wait()

    run(scenario())


def test_closing_waits_for_no_stranger_longer_than_it_must(place: Place, run: Run) -> None:
    """gpud ends: loaded models are unloaded by name before the server is stopped."""

    async def scenario() -> None:
        backend = place.backend()
        runner = await backend.load(place.order(TINY))
        await backend.close()
        assert not alive(server_pid(place))
        assert place.posts("/api/generate")[-1] == {"model": "tiny:latest", "keep_alive": 0, "stream": False}
        await asyncio.wait_for(runner.gone(), 50)

    run(scenario())


# Attached ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def somebody_elses(place: Place, **switches: object) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """An Ollama that gpud did not start, and its address."""
    environment = dict(place.options(**switches).environment) | {
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_MODELS": str(place.store),
        "PATH": os.environ["PATH"],
    }
    process = await asyncio.create_subprocess_exec(
        str(place.binary), "serve", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 50)).decode()
        yield process, f"http://{line.split('Listening on ')[1].split(' ')[0]}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def attached(place: Place, url: str, **more: Any) -> EngineOptions:
    return EngineOptions(url=url, models_dir=str(place.store), **more)


def test_an_attached_server_is_only_asked(place: Place, run: Run) -> None:
    """Models come and go by name, their processes are seen, and the server is still there at the end."""

    async def scenario() -> None:
        async with somebody_elses(place) as (process, url):
            backend = place.backend(attached(place, url))
            runner = await backend.load(place.order(TINY))
            assert place.records[0].child is None
            holder = the_pid(runner)
            assert alive(holder) and await runner.busy() is False
            await runner.unload(PATIENT)
            assert not alive(holder)
            kept = the_pid(await backend.load(place.order(BIG)))
            await backend.close()
            assert process.returncode is None and alive(kept)

    run(scenario())


def test_how_an_attached_server_stands_with_a_model(place: Place, run: Run) -> None:
    """It has it, or would have to load it; one that is not there cannot serve it. Of an own server nothing is asked."""

    async def work() -> None:
        async with closing(place):
            async with somebody_elses(place) as (_, url):
                backend = place.backend(attached(place, url))
                assert await backend.standing(TINY) is None
                runner = await backend.load(place.order(TINY))
                assert await backend.standing(TINY) == Standing(0, full=False, resident=True)
                await runner.unload(QUICK)
                assert await backend.standing(TINY) is None
            with pytest.raises(BackendFailed) as failure:
                await backend.standing(TINY)
            assert (failure.value.kind, failure.value.preflight) == ("unreachable", True)
            assert await place.backend().standing(TINY) is None

    run(work())


def test_an_attached_model_without_a_store_is_found_by_asking(place: Place, run: Run) -> None:
    """The server says which file a model comes from, and so its process is known."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            runner = await place.backend(EngineOptions(url=url, models_dir=str(place.folder))).load(place.order(TINY))
            assert alive(the_pid(runner))

    run(scenario())


def test_an_attached_model_unloaded_by_its_owner_is_gone(place: Place, run: Run) -> None:
    """The end of its process is seen, nothing is polled."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            runner = await place.backend(attached(place, url)).load(place.order(TINY))
            asked = len(place.requests())
            await ollama_api.expire(runner.endpoint, parse_name("tiny"))
            await asyncio.wait_for(runner.gone(), 50)
            first = place.requests()[asked]
            assert first["body"] == {"model": "tiny:latest", "keep_alive": 0, "stream": False}

    run(scenario())


def test_an_attached_server_that_ends_takes_its_models_along(place: Place, run: Run) -> None:
    """Its process is watched too."""

    async def scenario() -> None:
        async with somebody_elses(place) as (process, url), closing(place):
            runner = await place.backend(attached(place, url)).load(place.order(TINY))
            process.terminate()
            await asyncio.wait_for(runner.gone(), 50)

    run(scenario())


def unseen(place: Place, url: str) -> EngineOptions:
    """The same server under an address that is not the loopback's: its processes might be on another machine."""
    return attached(place, url.replace("127.0.0.1", "0.0.0.0"))


def test_a_server_whose_processes_cannot_be_seen_is_asked_now_and_then(place: Place, run: Run) -> None:
    """Twice in a row without the model, and it is gone."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            runner = await place.backend(unseen(place, url), unseen_look_s=0.05).load(place.order(TINY))
            assert runner.pids() == frozenset() and await runner.busy() is None
            gone = asyncio.create_task(runner.gone())
            await asyncio.wait({gone}, timeout=0.3)
            assert not gone.done()
            await ollama_api.expire(runner.endpoint, parse_name("tiny"))
            assert (await asyncio.wait_for(gone, 50)).code == 0

    run(scenario())


def test_an_unseen_model_that_outlives_its_time_is_busy(place: Place, run: Run) -> None:
    """Ollama was told to let it go and still lists it: a request uses it. It cannot be killed, and that is said."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            seen = await place.backend(attached(place, url)).load(place.order(TINY))
            runner = await place.backend(unseen(place, url)).load(place.order(TINY))
            process = the_pid(seen)
            answer = asyncio.create_task(generate(runner.endpoint, "tiny"))
            while await seen.busy() is not True:
                await asyncio.sleep(0.01)
            unload = asyncio.create_task(runner.unload(PATIENT))
            while await runner.busy() is not True:
                await asyncio.sleep(0.01)
            assert not unload.done()
            await runner.kill()
            assert (await asyncio.wait_for(runner.gone(), 50)).code is None
            await unload
            assert alive(process)
            await release(process)
            await answer

    run(scenario())


def test_an_attached_server_holds_a_model_once(place: Place, run: Run) -> None:
    """Two entries for one model would unload each other's."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            backend = place.backend(attached(place, url))
            await backend.load(place.order(TINY))
            with pytest.raises(BackendFailed, match="same model") as caught:
                await backend.load(place.order(model("twin", ollama_name="tiny:latest")))
            assert caught.value.preflight

    run(scenario())


def test_nobody_at_the_address_is_said_plainly(place: Place, run: Run) -> None:
    """The address is in the sentence, the next step in the hint."""

    async def scenario() -> None:
        async with closing(place):
            backend = place.backend(EngineOptions(url="http://127.0.0.1:9"))
            with pytest.raises(BackendFailed, match=r"127\.0\.0\.1:9") as caught:
                await backend.load(place.order(TINY))
            assert caught.value.kind == "unreachable" and "ollama ps" in caught.value.hint

    run(scenario())


# Adopt ---------------------------------------------------------------------------------------------------------------


def test_a_restarted_daemon_adopts_a_server_once_for_all_its_models(place: Place, run: Run) -> None:
    """The same processes go on; the last unload ends the server as if nothing had happened."""

    async def scenario() -> None:
        async with closing(place):
            first = place.backend()
            tiny, big = await first.load(place.order(TINY)), await first.load(place.order(BIG))
            pids = the_pid(tiny), the_pid(big)
            second = place.backend()
            adopted = [
                await second.adopt(record, wanted) for record, wanted in zip(place.records, (TINY, BIG), strict=True)
            ]
            assert all(adopted)
            assert [the_pid(runner) for runner in adopted if runner is not None] == list(pids)
            for runner in adopted:
                assert runner is not None
                await runner.unload(PATIENT)
            await until(lambda: not alive(server_pid(place)), "the adopted server ends with its last model")

    run(scenario())


def test_a_model_that_is_no_longer_loaded_is_not_adopted(place: Place, run: Run) -> None:
    """Its neighbour on the same server is, and is not harmed."""

    async def scenario() -> None:
        async with closing(place):
            first = place.backend()
            tiny, big = await first.load(place.order(TINY)), await first.load(place.order(BIG))
            await tiny.unload(PATIENT)
            second = place.backend()
            assert await second.adopt(place.records[0], TINY) is None
            adopted = await second.adopt(place.records[1], BIG)
            assert adopted is not None and adopted.pids() == big.pids()

    run(scenario())


def test_what_has_ended_is_not_adopted(place: Place, run: Run) -> None:
    """Neither a server that is gone, nor a record that makes no sense, nor another model's record."""

    async def scenario() -> None:
        async with closing(place):
            first = place.backend()
            await first.load(place.order(TINY))
            second = place.backend()
            (record,) = place.records
            assert await second.adopt(record, model("tiny", ollama_name="other")) is None
            assert await second.adopt(replace(record, child=None), TINY) is None
            await first.close()
            third = place.backend()
            assert await third.adopt(record, TINY) is None
            assert await third.adopt(replace(record, extra={"environment": "nonsense"}), TINY) is None

    run(scenario())


def test_an_attached_model_is_taken_up_again(place: Place, run: Run) -> None:
    """Nothing was started, so there is nothing to adopt but the name."""

    async def scenario() -> None:
        async with somebody_elses(place) as (_, url), closing(place):
            first = place.backend(attached(place, url))
            runner = await first.load(place.order(TINY))
            adopted = await place.backend(attached(place, url)).adopt(place.records[0], TINY)
            assert adopted is not None and adopted.pids() == runner.pids()
            await adopted.unload(PATIENT)
            assert await place.backend(attached(place, url)).adopt(place.records[0], TINY) is None

    run(scenario())


# Before any server ---------------------------------------------------------------------------------------------------


def test_a_check_finds_what_a_load_would_run_into(place: Place) -> None:
    """A misspelt name brings the nearest ones, a missing program what to do."""
    backend = place.backend()
    backend.check(TINY)
    backend.check(BIG)
    with pytest.raises(BackendFailed, match='nearest names there are "big:7b"') as caught:
        backend.check(model("bgi", ollama_name="bgi:7b"))
    assert caught.value.preflight and caught.value.kind == "model-missing"
    assert caught.value.hint == "get it with: ollama pull bgi:7b"
    with pytest.raises(BackendFailed, match="its tag is"):
        backend.check(model("odd", ollama_name="odd:"))
    with pytest.raises(BackendFailed, match="there is no program") as caught:
        place.backend(replace(place.options(), binary="no-such-ollama")).check(TINY)
    assert caught.value.kind == "binary-missing"


def test_a_check_finds_incomplete_and_damaged_models(place: Place) -> None:
    """A broken download, a cloud model and a damaged manifest each have their sentence."""
    digest = write_model(place.store, "half")
    (place.store / "blobs" / f"sha256-{digest}").unlink()
    write_model(place.store, "vast:cloud", template=b"t")
    write_model(place.store, "torn")
    (place.store / "manifests/registry.ollama.ai/library/torn/latest").write_text("{")
    backend = place.backend()
    for name, words in (("half", "1 file of"), ("vast:cloud", "cloud"), ("torn", "no manifest")):
        with pytest.raises(BackendFailed, match=words) as caught:
            backend.check(model("x", ollama_name=name))
        assert caught.value.preflight
    assert backend.file_bytes(model("torn")) is None
    assert backend.file_bytes(model("vast:cloud")) is None


@pytest.mark.parametrize("url", ["https://127.0.0.1:11434", "http://", "http://host:99999", "ftp://x"])
def test_an_address_that_cannot_be_used_is_refused(place: Place, url: str) -> None:
    """Before anything is tried, with the form that is expected."""
    with pytest.raises(BackendFailed, match="http://HOST:PORT"):
        place.backend(EngineOptions(url=url)).check(TINY)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:1234", Endpoint(host="127.0.0.1", port=1234)),
        ("localhost", Endpoint(host="localhost", port=11434)),
        ("http://[::1]:5/base/", Endpoint(host="::1", port=5, base_path="/base")),
    ],
)
def test_addresses_are_read_as_people_write_them(url: str, endpoint: Endpoint) -> None:
    """The port may be left out, and the scheme."""
    from gpud.backends.ollama_settings import endpoint_of

    assert endpoint_of(url) == endpoint


def test_sizes_are_known_without_a_server(place: Place) -> None:
    """Weights and projector, as the manifest says."""
    backend = place.backend()
    assert backend.file_bytes(BIG) == 1024
    assert backend.file_bytes(model("absent")) is None


def test_a_fingerprint_changes_with_what_a_running_model_was_started_with(place: Place) -> None:
    """Settings, and the weights themselves: after a new ``ollama pull`` the loaded model is the old one."""
    backend = place.backend()

    def all_of(*models: Model) -> set[str]:
        return {backend.fingerprint(entry) for entry in models}

    variants = [TINY, BIG, model("tiny", context=99), model("tiny", threads=2), model("tiny", layers="3")]
    assert len(all_of(*variants)) == len(variants)
    assert len(all_of(TINY, model("tiny", ollama_name="TINY:latest"), replace(TINY, idle_timeout_s=1))) == 1
    before = backend.fingerprint(TINY)
    write_model(place.store, "tiny", model=b"another")
    assert backend.fingerprint(TINY) != before
