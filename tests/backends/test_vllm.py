"""vLLM as a child and as somebody else's server, against a stand-in that is a real HTTP process."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hub_model
import pytest
from place import HERE, QUICK, Place

from gpud.backends import call
from gpud.backends.attached import AttachedRunner
from gpud.backends.budget import CONTEXT_BYTES, GIB, REST_BYTES
from gpud.backends.call import Answer
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.backends.serving import HubServer
from gpud.backends.vllm import vllm
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, EngineSettings, GpuSample, Model, StopTimes
from gpud.core.ports import LoadOrder, Standing, TellsNeed, TellsStanding
from gpud.core.quote import Source
from gpud.core.record import replace

Run = Callable[..., Any]

FAKE = HERE / "fake_vllm.py"
GPU = GpuSample("GPU-7", "Test GPU", 0, "nvidia", 24 * GIB, 0, 24 * GIB)


def backend(place: Place, **options: Any) -> HubServer:
    return vllm(EngineOptions(binary=str(FAKE), **options), place.launcher)


def llama(folder: Path, *, size_bytes: int | None = None, **settings: Any) -> Model:
    chosen: dict[str, Any] = {"file": str(folder), **settings}
    return Model(
        "chat", "vllm", EngineSettings(**chosen), ("small",), size_bytes=size_bytes, load_timeout_s=30, stop=QUICK
    )


def on_gpu(place: Place, model: Model) -> LoadOrder:
    return replace(place.order(model, ("GPU-7",), "nvidia"), gpus=(GPU,))


def refused(server: HubServer, model: Model) -> BackendFailed:
    """Before anything is started: by the look at its files, or by the count of what it needs."""
    with pytest.raises(BackendFailed) as failure:
        server.check(model)
        server.need(model, on_gpu=True)
    assert failure.value.preflight
    return failure.value


async def chat(endpoint: Endpoint, tokens: int = 3, *, model: str = "chat", timeout_s: float = 10) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": tokens}
    return await call.request(endpoint, "POST", "/v1/chat/completions", body=body, timeout_s=timeout_s)


def flag(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


@asynccontextmanager
async def running(*flags: str, **environment: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Somebody else's vLLM, which serves "chat" on a port of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(FAKE),
        "serve",
        "some/model",
        "--served-model-name",
        "chat",
        "--port",
        "0",
        *flags,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 50)
    try:
        yield f"http://127.0.0.1:{line.decode().split()[-1]}", process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


SLEEPS = {"VLLM_SERVER_DEV_MODE": "1"}


# A child -------------------------------------------------------------------------------------------------------------


def test_a_folder_is_served_on_a_private_socket_and_given_back(run: Run, tmp_path: Path) -> None:
    """Started, waited for with its progress, asked, stopped; the process behind it goes with it."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = llama(hub_model.write(tmp_path / "model"), environment=(("FAKE_ORPHAN", "1"),))
            server = backend(place)
            server.check(model)
            runner = await server.load(on_gpu(place, model))
            assert isinstance(runner, ProcessRunner)
            assert runner.endpoint.socket and runner.endpoint.key
            assert runner.endpoint.model == "chat"
            assert len(runner.pids()) == 2
            assert await runner.busy() is False
            assert (await chat(runner.endpoint)).status == 200
            assert (await chat(runner.endpoint, model="small")).status == 200
            assert (await chat(replace(runner.endpoint, key=""))).status == 401
            assert place.stages[0] == "starting"
            assert [(one.stage, one.fraction) for one in place.progress if one.stage == "weights"][-1][1] == 1.0
            assert "warming up" in place.stages
            record = place.records[0]
            assert record.child is not None and record.endpoint == runner.endpoint and record.engine == "vllm"
            await runner.unload(StopTimes(term_s=10))
            assert (await runner.gone()).code == 0
            assert runner.pids() == frozenset()

    run(work())


def test_it_is_told_what_was_reserved_for_it_and_no_more(run: Run, tmp_path: Path) -> None:
    """Both the bytes of its cache and its share of the whole GPU, which is what it would take by itself."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            record = tmp_path / "record"
            model = llama(
                hub_model.write(tmp_path / "model"),
                context=8192,
                parallel=16,
                environment=(("FAKE_RECORD", str(record)), ("FAKE_TOKEN_BYTES", str(hub_model.TOKEN_BYTES))),
                extra_flags=("--dtype", "half"),
            )
            server = backend(place)
            runner = await server.load(on_gpu(place, model))
            seen = json.loads(record.read_text())
            argv, environment = seen["argv"], seen["environment"]
            assert argv[:2] == ["serve", str(tmp_path / "model")]
            assert argv[2:5] == ["--served-model-name", "chat", "small"]
            assert argv[-2:] == ["--dtype", "half"]
            assert flag(argv, "--max-model-len") == "8192"
            assert flag(argv, "--max-num-seqs") == "16"
            cache = int(flag(argv, "--kv-cache-memory-bytes"))
            assert 1.0 < cache / (8192 * hub_model.TOKEN_BYTES) < 1.1
            need = server.need(model, on_gpu=True)
            assert need is not None
            assert (need.source, need.parts[0].kv_bytes) == (Source.FORMULA, cache)
            assert need.parts[0].weights_bytes == 4 * GIB
            told = float(flag(argv, "--gpu-memory-utilization")) * (24 * GIB)
            assert need.parts[0].total_bytes - 24 * GIB / 10_000 <= told <= need.parts[0].total_bytes
            assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-7"
            assert environment["VLLM_API_KEY"] == runner.endpoint.key
            assert runner.endpoint.key not in " ".join(argv)
            assert "VLLM_SERVER_DEV_MODE" not in environment
            await runner.unload(QUICK)

    run(work())


def test_a_declared_size_is_all_that_it_may_take(run: Run, tmp_path: Path) -> None:
    """What the weights and the rest leave of it is its cache; what does not hold a whole context is refused."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            folder, record = hub_model.write(tmp_path / "model"), tmp_path / "record"
            server = backend(place)
            model = llama(folder, size_bytes=12 * GIB, environment=(("FAKE_RECORD", str(record)),))
            runner = await server.load(on_gpu(place, model))
            argv = json.loads(record.read_text())["argv"]
            assert int(flag(argv, "--kv-cache-memory-bytes")) == 8 * GIB - REST_BYTES - CONTEXT_BYTES
            assert flag(argv, "--gpu-memory-utilization") == "0.4791"
            await runner.unload(QUICK)
            failure = refused(server, llama(folder, size_bytes=7 * GIB, context=32768))
            assert failure.kind == "size-too-small"
            assert "its size of 7.0 GiB leaves 512 MiB for keys and values after 4.0 GiB of weights" in failure.message
            assert "a context of 32768 takes 4.2 GiB" in failure.message
            assert "raise its size to 10.7 GiB" in failure.hint

    run(work())


def test_in_host_memory_it_is_told_so_its_own_way(run: Run, tmp_path: Path) -> None:
    """Builds for the CPU read the size of the cache from a variable, in whole GiB; there is no GPU to share."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            record = tmp_path / "record"
            model = llama(hub_model.write(tmp_path / "model"), environment=(("FAKE_RECORD", str(record)),))
            server = backend(place)
            runner = await server.load(place.order(model))
            seen = json.loads(record.read_text())
            assert seen["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
            assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == ""
            assert not {"--kv-cache-memory-bytes", "--gpu-memory-utilization"} & set(seen["argv"])
            need = server.need(model, on_gpu=False)
            assert need is not None and [part.gpu for part in need.parts] == [None]
            assert need.parts[0].kv_bytes == GIB
            await runner.unload(QUICK)

    run(work())


def test_a_model_by_name_is_found_in_the_cache(run: Run, tmp_path: Path) -> None:
    """In the one that the engine itself would use; one that is not there has to be given a size."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            hub, record = tmp_path / "hf" / "hub", tmp_path / "record"
            folder = hub_model.cached(hub, "owner/tiny", shards=1)
            home = (("HF_HOME", str(tmp_path / "hf")), ("FAKE_RECORD", str(record)))
            named = Model("chat", "vllm", EngineSettings(hub_name="owner/tiny", environment=home), stop=QUICK)
            server = backend(place)
            server.check(named)
            assert server.file_bytes(named) == 4 * GIB
            runner = await server.load(on_gpu(place, named))
            assert json.loads(record.read_text())["argv"][1] == str(folder)
            await runner.unload(QUICK)

            absent = Model("chat", "vllm", EngineSettings(hub_name="owner/other", environment=home), stop=QUICK)
            failure = refused(server, absent)
            assert failure.kind == "size-unknown"
            assert "hf download owner/other" in failure.hint
            sized = replace(absent, size_bytes=6 * GIB)
            runner = await server.load(on_gpu(place, sized))
            argv = json.loads(record.read_text())["argv"]
            assert argv[1] == "owner/other"
            assert "--kv-cache-memory-bytes" not in argv
            assert flag(argv, "--gpu-memory-utilization") == "0.2291"
            await runner.unload(QUICK)

    run(work())


def test_what_it_cannot_read_is_refused_before_it_is_started(tmp_path: Path, run: Run) -> None:
    """Each with what is wrong and what to do; a GGUF file is for others."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            server = backend(place)
            gguf = tmp_path / "m.gguf"
            gguf.write_bytes(b"GGUF")
            assert refused(server, llama(gguf)).kind == "not-a-model"
            assert refused(server, llama(tmp_path / "nowhere")).kind == "file-missing"
            (tmp_path / "empty").mkdir()
            assert refused(server, llama(tmp_path / "empty")).kind == "file-missing"
            part = hub_model.write(tmp_path / "part", shards=3)
            (part / "model-00002-of-00003.safetensors").unlink()
            failure = refused(server, llama(part))
            assert "1 of its 3 files is not in" in failure.message
            pointer = hub_model.write(tmp_path / "pointer", shards=1)
            (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
            assert "git lfs pull" in refused(server, llama(pointer)).hint
            broken = hub_model.write(tmp_path / "broken")
            (broken / "config.json").write_text("[" * 100_000)
            assert refused(server, llama(broken)).kind == "truncated"
            no_name = Model("chat", "vllm", EngineSettings(hub_name="../etc"))
            assert refused(server, no_name).kind == "bad-setting"
            owned = llama(hub_model.write(tmp_path / "good"), extra_flags=("-tp", "2"))
            assert "extra_flags has -tp, which gpud sets itself" in refused(server, owned).message
            absent = vllm(EngineOptions(binary="no-such-vllm"), place.launcher)
            assert refused(absent, llama(tmp_path / "good")).kind == "binary-missing"
            one_file = llama(tmp_path / "good" / "model-00001-of-00002.safetensors")
            server.check(one_file)
            assert server.file_bytes(one_file) == 4 * GIB

    run(work())


@pytest.mark.parametrize(
    ("environment", "kind", "words"),
    [
        (
            {"TOTAL_GIB": "24", "FREE_GIB": "2"},
            "gpu-taken",
            "only 2.00 GiB of the GPU were free when it started, of the 6.5",
        ),
        ({"TOKEN_BYTES": str(1 << 20)}, "size-too-small", "one whole context takes 4.00 GiB of keys and values"),
        (
            {"FAIL": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"},
            "oom-gpu",
            "2.50 GiB more could not be had",
        ),
        (
            {"FAIL": "OSError: x/y is not a local folder and is not a valid model identifier listed on 'https://hf'"},
            "no-such-model",
            "Hugging Face knows no model x/y",
        ),
        (
            {"FAIL": "ValueError: Model architectures ['NewForCausalLM'] are not supported for now. Supported: dict"},
            "unsupported",
            "does not know the architecture 'NewForCausalLM'",
        ),
        (
            {
                "FAIL": "ValueError: User-specified max_model_len (4096) is greater than the derived max_model_len "
                "(max_position_embeddings=1024 or model_max_length=None in model's config.json)."
            },
            "bad-setting",
            "its context of 4096 is more than the 1024 tokens",
        ),
        ({"FAIL": "RuntimeError: Failed to infer device type"}, "gpu-driver", "the GPU driver cannot be used"),
    ],
)
def test_a_start_that_fails_is_told_by_its_last_words(
    environment: Mapping[str, str], kind: str, words: str, run: Run, tmp_path: Path
) -> None:
    """With what to do about it."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            switches = tuple((f"FAKE_{name}", value) for name, value in environment.items())
            model = llama(hub_model.write(tmp_path / "model"), environment=switches)
            with pytest.raises(BackendFailed) as failure:
                await backend(place).load(on_gpu(place, model))
            assert failure.value.kind == kind
            assert words in failure.value.message
            assert failure.value.hint and failure.value.tail and not failure.value.preflight

    run(work())


def test_a_flag_that_the_installed_build_does_not_know_is_named(run: Run, tmp_path: Path) -> None:
    """Which is what an old vLLM says to gpud's own."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = llama(hub_model.write(tmp_path / "model"), extra_flags=("--turbo", "1"))
            with pytest.raises(BackendFailed) as failure:
                await backend(place).load(on_gpu(place, model))
            assert failure.value.kind == "bad-flag"
            assert "does not know --turbo 1" in failure.value.message

    run(work())


def test_a_load_that_is_canceled_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """Neither of its processes, and no socket."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = llama(hub_model.write(tmp_path / "model"), environment=(("FAKE_LOAD_S", "60"),))
            load = asyncio.ensure_future(backend(place).load(on_gpu(place, model)))
            await asyncio.wait_for(place.recorded.wait(), 50)
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load

    run(work())


def test_it_is_busy_while_it_answers_or_has_some_waiting(run: Run, tmp_path: Path) -> None:
    """By its own gauges, which ask nothing of the engine itself."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            folder = hub_model.write(tmp_path / "model")
            server = backend(place)
            runner = await server.load(on_gpu(place, llama(folder)))
            answer = asyncio.ensure_future(chat(runner.endpoint, 10_000, timeout_s=60))
            async with asyncio.timeout(50):
                while not await runner.busy():
                    await asyncio.sleep(0.01)
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            async with asyncio.timeout(50):
                while await runner.busy():
                    await asyncio.sleep(0.01)
            await runner.unload(QUICK)
            waits = llama(folder, environment=(("FAKE_WAITING", "2"),))
            runner = await server.load(on_gpu(place, waits))
            assert await runner.busy() is True
            await runner.kill()
            assert await runner.busy() is None

    run(work())


def test_a_restarted_daemon_finds_it_again(run: Run, tmp_path: Path) -> None:
    """By its record, if it still answers."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = llama(hub_model.write(tmp_path / "model"))
            runner = await backend(place).load(on_gpu(place, model))
            record = place.records[-1]
            adopted = await backend(place).adopt(record, model)
            assert adopted is not None and adopted.endpoint == runner.endpoint
            assert (await chat(adopted.endpoint)).status == 200
            await runner.unload(QUICK)
            await runner.gone()
            assert await backend(place).adopt(record, model) is None

    run(work())


def test_settings_change_its_fingerprint_and_its_files_too(run: Run, tmp_path: Path) -> None:
    """Then it is started anew."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            server, folder = backend(place), hub_model.write(tmp_path / "model")
            first = server.fingerprint(llama(folder))
            assert first == server.fingerprint(llama(folder))
            assert first != server.fingerprint(llama(folder, context=99))
            (folder / "more.safetensors").write_bytes(b"x")
            assert first != server.fingerprint(llama(folder))
            assert server.build().startswith("vllm ")
            one: object = server
            assert isinstance(one, TellsNeed)
            assert isinstance(one, TellsStanding)
            assert server.plan(llama(folder), 1) is None
            assert await server.probe(llama(folder), ("GPU-7",), "nvidia", ()) is None
            assert await server.standing(llama(folder)) is None

    run(work())


# Somebody else's -----------------------------------------------------------------------------------------------------


def attached(url: str, **settings: Any) -> Model:
    return Model("chat", "vllm", EngineSettings(url=url, **settings), size_bytes=8 * GIB, load_timeout_s=10, stop=QUICK)


def test_an_attached_one_sleeps_when_it_is_unloaded_and_wakes_up_when_it_is_loaded(run: Run, tmp_path: Path) -> None:
    """It goes on running, and is asked to end its last answers first."""

    async def work() -> None:
        requests = tmp_path / "requests"
        async with (
            Place(tmp_path) as place,
            running("--enable-sleep-mode", FAKE_REQUESTS=str(requests), **SLEEPS) as (url, process),
        ):
            server, model = backend(place), attached(url)
            server.check(model)
            assert await server.standing(model) == Standing(0, full=False, resident=True)
            runner = await server.load(place.order(model))
            assert isinstance(runner, AttachedRunner)
            assert place.records[0].child is None
            assert process.pid in runner.pids()
            answer = asyncio.ensure_future(chat(runner.endpoint, 100))
            async with asyncio.timeout(50):
                while not await runner.busy():
                    await asyncio.sleep(0.01)
            await runner.unload(QUICK)
            assert (await answer).body.endswith(b"data: [DONE]\n\n")
            assert (await runner.gone()).code is None
            assert 'POST /sleep {"level": "1", "mode": "wait"}' in requests.read_text()
            assert await server.standing(model) is None
            assert await server.adopt(place.records[0], model) is None
            await server.load(place.order(model))
            assert place.stages[-1] == "waking up"
            assert "POST /wake_up" in requests.read_text()
            assert await server.standing(model) == Standing(0, full=False, resident=True)
            assert await server.adopt(place.records[-1], model) is not None
            assert process.returncode is None

    run(work())


def test_an_attached_one_that_cannot_sleep_is_let_go(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a word about what it keeps, and why."""

    async def work() -> None:
        async with Place(tmp_path) as place, running() as (url, process):
            runner = await backend(place).load(place.order(attached(url)))
            await runner.unload(QUICK)
            await runner.gone()
            assert process.returncode is None

    run(work())
    assert "keeps its memory: it is not started with --enable-sleep-mode" in caplog.text


def test_an_attached_one_is_known_by_the_name_that_it_serves(run: Run, tmp_path: Path) -> None:
    """The model's own, an alias, or what its configuration says; one that serves another model is refused."""

    async def work() -> None:
        async with Place(tmp_path) as place, running() as (url, _):
            server = backend(place)
            other = replace(attached(url, hub_name="chat"), name="talk")
            runner = await server.load(place.order(other))
            assert runner.endpoint.model == "chat"
            await runner.unload(QUICK)
            stranger = replace(attached(url), name="talk")
            for ask in (server.standing(stranger), server.load(place.order(stranger))):
                with pytest.raises(BackendFailed) as failure:
                    await ask
                assert (failure.value.kind, failure.value.preflight) == ("no-such-model", True)
                assert failure.value.message.endswith("serves chat")

    run(work())


def test_an_attached_one_that_is_not_there_cannot_be_used(run: Run, tmp_path: Path) -> None:
    """It is said before others would be unloaded for it."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            async with running() as (url, _):
                pass
            server = backend(place, url=url)
            model = replace(attached(""), settings=EngineSettings())
            for ask in (server.standing(model), server.load(place.order(model))):
                with pytest.raises(BackendFailed) as failure:
                    await ask
                assert (failure.value.kind, failure.value.preflight) == ("unreachable", True)
            assert place.records == []
            assert server.need(model, on_gpu=True) is None
            assert server.file_bytes(model) is None

    run(work())


def test_how_an_attached_one_stands_is_told_by_its_gauges(run: Run, tmp_path: Path) -> None:
    """With a queue it has no room for another request."""

    async def work() -> None:
        async with Place(tmp_path) as place, running(FAKE_WAITING="3") as (url, _):
            assert await backend(place).standing(attached(url)) == Standing(3, full=True, resident=True)

    run(work())
