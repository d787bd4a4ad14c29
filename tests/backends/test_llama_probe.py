"""The engine's own word on a model's size: from dry runs, and in the first lines of a load that may be canceled."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sparse_model
import tiny_model
from place import FAKE, HELP_NEW, QUICK, Place, is_gone

from gpud.backends import llama_probe
from gpud.backends.llama_plan import plan_of
from gpud.backends.llama_probe import DryRun
from gpud.backends.llama_record import RecordReader
from gpud.backends.llama_server import LlamaServer
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, EngineSettings, Model
from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.ports import Command
from gpud.core.quote import Estimate, Source
from gpud.core.record import replace

Run = Callable[..., Any]

MIB = 1 << 20

RECORD = (
    '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":['
    '{"kind":"device","name":"CUDA0","model":5,"context":4,"compute":3},'
    '{"kind":"host","name":"Host","model":1,"context":0,"compute":1}]}}'
)


DONE = "common_params_fit_impl: projected to use 14 MiB of device memory vs. 24105 MiB of free device memory"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 7.9 GiB that takes 20 KiB on disk."""
    return sparse_model.write_llama(tmp_path_factory.mktemp("large") / "large.gguf")


def model(file: str, **settings: Any) -> Model:
    return Model("large", "llama_server", EngineSettings(file=file, **settings), stop=QUICK)


def fake(place: Place) -> LlamaServer:
    return LlamaServer(EngineOptions(binary=str(FAKE), environment=(("FAKE_HELP", str(HELP_NEW)),)), place.launcher)


def told(file: str, *switches: str) -> Model:
    """A model whose engine, the fake one, behaves as the switches say."""
    settings = EngineSettings(file=file, environment=(("FAKE_SWITCHES", " ".join(switches)),))
    return Model("tiny", "llama_server", settings, stop=QUICK)


# The plan and the build ----------------------------------------------------------------------------------------------


def test_the_plan_is_read_from_the_line_that_a_load_has(tmp_path: Path, tiny: str, llama_server: str, run: Run) -> None:
    """What extra_flags say counts, as the last word; without a context it is gpud's own number."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            plain = await asyncio.to_thread(backend.plan, model(tiny), 1)
            assert plain == Plan(context=4096, gpus=1, layers=ALL_LAYERS, file=tiny)
            on_host = await asyncio.to_thread(backend.plan, model(tiny), 0)
            assert on_host == Plan(context=4096, gpus=0, layers=0, file=tiny)
            flags = ("-np", "2", "--ctx-size", "8192", "--lora", "/a.gguf")
            more = model(tiny, context=512, layers="7", cache_type_k="q8_0", draft_file=tiny, extra_flags=flags)
            read = await asyncio.to_thread(backend.plan, more, 2)
            assert read is not None
            assert (read.context, read.parallel, read.layers, read.type_k) == (8192, 2, 7, "q8_0")
            assert (read.adapters, read.gpus) == (("/a.gguf",), 2)
            assert read.draft is not None
            assert (read.draft.file, read.draft.context, read.draft.gpus) == (tiny, 8192, 2)

    run(work())


def test_a_flag_that_cannot_be_read_is_the_models_fault(tmp_path: Path, tiny: str, run: Run) -> None:
    """It names the model and the flag, before anything is started."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            wrong = model(tiny, extra_flags=("-ub", "plenty"))
            with pytest.raises(BackendFailed, match=r'"large": cannot read -ub: "plenty"') as failure:
                await asyncio.to_thread(fake(place).plan, wrong, 1)
            assert failure.value.preflight

    run(work())


def test_the_build_changes_with_the_program(tmp_path: Path, llama_server: str, run: Run) -> None:
    """The version that it says, and which file it is; a program that is not there has none."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            build = await asyncio.to_thread(backend.build)
            size = Path(llama_server).stat().st_size
            assert build.startswith("llama_server version: ")
            assert f" {size}:" in build
            program, asked = tmp_path / "llama-server", tmp_path / "asked"
            program.write_text(f"#!/bin/sh\necho x >>{asked}\necho 'version: one'\n")
            program.chmod(0o755)
            backend = LlamaServer(EngineOptions(binary=str(program)), place.launcher)
            first = await asyncio.to_thread(backend.build)
            assert await asyncio.to_thread(backend.build) == first
            assert asked.read_text() == "x\n", "the same program is asked once"
            program.write_text("#!/bin/sh\necho 'version: three'\n")
            second = await asyncio.to_thread(backend.build)
            assert first.startswith("llama_server version: one ")
            assert second.startswith("llama_server version: three ")
            assert LlamaServer(EngineOptions(binary=str(tmp_path / "none")), place.launcher).build() == ""

    run(work())


# Dry runs ------------------------------------------------------------------------------------------------------------


def test_the_real_server_tells_what_it_would_allocate(
    run: Run, tmp_path: Path, tiny: str, large: str, llama_server: str
) -> None:
    """Weights, keys and values to the MiB, in a moment, of a file whose weights are not there; nothing is left."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            await backend.probe(model(tiny), (), "", ())
            started_s = time.monotonic()
            estimate = await backend.probe(model(large, context=16384), (), "", ())
            took_s = time.monotonic() - started_s
            print(f"a dry run took {took_s * 1000:.0f} ms")
            assert estimate is not None
            (host,) = estimate.parts
            assert (host.device, host.gpu, estimate.source, estimate.context) == ("Host", None, Source.PROBE, 16384)
            assert (host.weights_bytes, host.kv_bytes, host.state_bytes) == (8137 * MIB, 2048 * MIB, 0)
            assert 64 * MIB < host.compute_bytes < 512 * MIB
            assert (place.journal.texts, place.records) == ([], [])

    run(work())


def test_the_real_server_tells_of_all_that_is_loaded_beside_it(
    run: Run, tmp_path: Path, tiny: str, large: str, llama_server: str
) -> None:
    """A draft model with its cache, a projector, an adapter."""

    async def work() -> None:
        projector = sparse_model.write_projector(tmp_path / "mmproj.gguf")
        adapter = tmp_path / "adapter.gguf"
        adapter.write_bytes(bytes(3 * MIB))
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            alone = await backend.probe(model(tiny), (), "", ())
            drafted = await backend.probe(model(tiny, draft_file=large), (), "", ())
            seeing = await backend.probe(model(tiny, mmproj=projector), (), "", ())
            adapted = await backend.probe(model(tiny, extra_flags=("--lora", str(adapter))), (), "", ())
            assert alone is not None
            assert drafted is not None
            assert seeing is not None
            assert adapted is not None
            assert drafted.parts[-1].weights_bytes == 8137 * MIB
            assert drafted.parts[-1].kv_bytes == alone.parts[-1].kv_bytes + 512 * MIB
            assert Path(projector).stat().st_size < seeing.total_bytes - alone.total_bytes < 4 * MIB
            assert adapted.total_bytes - alone.total_bytes == 3 * MIB

    run(work())


@pytest.mark.parametrize("parallel", [None, 2])
def test_the_table_says_what_the_json_says(
    run: Run, tmp_path: Path, large: str, llama_server: str, parallel: int | None
) -> None:
    """A build without --log-jsonl is as well understood: here, one whose help does not list it."""

    async def work() -> None:
        program = tmp_path / "llama-server"
        hides = "sed s/--log-jsonl/--log-other/"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in\n*--log-jsonl*) exit 9;;\n*--help*) "{llama_server}" "$@" | {hides};;\n'
            f'*) exec "{llama_server}" "$@";;\nesac\n'
        )
        program.chmod(0o755)
        async with Place(tmp_path) as place:
            wanted = model(large, context=8192, parallel=parallel)
            new = await LlamaServer(EngineOptions(binary=llama_server), place.launcher).probe(wanted, (), "", ())
            old = await LlamaServer(EngineOptions(binary=str(program)), place.launcher).probe(wanted, (), "", ())
            assert new is not None
            assert new == old

    run(work())


def test_a_dry_run_is_started_as_a_load_is(run: Run, tmp_path: Path, tiny: str) -> None:
    """The same variables, the devices by uuid, their shares; and a key, a socket and a unit of its own."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = fake(place)
            seen = tmp_path / "environment"
            line = tmp_path / "line"
            script = tmp_path / "engine"
            script.write_text(f'#!/bin/sh\necho "$@" > {line}\nenv > {seen}\nexec {FAKE} "$@"\n')
            script.chmod(0o755)
            runner = await backend.load(place.order(told(tiny)))
            backend = LlamaServer(
                EngineOptions(binary=str(script), environment=(("FAKE_HELP", str(HELP_NEW)),)), place.launcher
            )
            asked = told(tiny, "--say", f"'{RECORD}'", "--say", f"'{DONE}'", "--ready-after", "60")
            estimate = await backend.probe(asked, ("GPU-1", "GPU-2"), "nvidia", (3.0, 1.0))
            assert estimate is not None
            assert [part.total_bytes for part in estimate.parts] == [12 * MIB, 2 * MIB]
            words = line.read_text().split()
            assert words[words.index("--tensor-split") + 1] == "3,1"
            assert words[words.index("--gpu-layers") + 1] == "all"
            assert words[-5:] == ["--fit", "on", "--log-jsonl", "--verbosity", "4"]
            assert words[words.index("--host") + 1] not in ("127.0.0.1", runner.endpoint.socket)
            environment = dict(entry.split("=", 1) for entry in seen.read_text().splitlines() if "=" in entry)
            assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
            assert environment["LLAMA_API_KEY"] not in ("", runner.endpoint.key)
            await runner.unload(QUICK)

    run(work())


@pytest.mark.parametrize(
    "switches",
    [("--exit-at-once", "1"), ("--exit-at-once", "0", "--fork-holder"), ("--print-mb", "3", "--exit-at-once", "1")],
)
def test_an_engine_that_tells_nothing_is_no_answer(
    run: Run, tmp_path: Path, tiny: str, switches: tuple[str, ...]
) -> None:
    """It died, it left something behind, it printed rubbish: None, and nothing of it lives."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            assert await fake(place).probe(told(tiny, *switches), (), "", ()) is None

    run(work())


@pytest.mark.parametrize("kind", ["empty", "wrong-magic", None])
def test_no_engine_is_started_for_a_file_that_is_none(
    run: Run, tmp_path: Path, llama_server: str, kind: str | None
) -> None:
    """A missing file, or one that is no model."""

    async def work() -> None:
        file = tmp_path / "file.gguf"
        if kind is not None:
            tiny_model.write_broken(file, kind)
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            assert await backend.probe(model(str(file)), (), "", ()) is None
            assert not list((tmp_path / "run").rglob("*"))

    run(work())


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.1, 0.3])
def test_a_dry_run_can_be_canceled_at_any_moment(run: Run, tmp_path: Path, tiny: str, after_s: float) -> None:
    """Nothing is left, however stubborn the engine."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            asking = asyncio.ensure_future(fake(place).probe(told(tiny, "--ignore-term", "--fork-holder"), (), "", ()))
            await asyncio.sleep(after_s)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(work())


def test_a_dry_run_is_bounded(run: Run, tmp_path: Path, tiny: str) -> None:
    """An engine that says nothing is ended when its time is over, and said to have said nothing."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            argv = ("/bin/sh", "-c", "echo still listening; sleep 60")
            command = Command("probe:x:1", "x", "llama_server", argv)
            with pytest.raises(BackendFailed, match=r"no record within 0\.5 s.*listening") as failure:
                await llama_probe.through(place.launcher, command, Endpoint(), RecordReader(Plan()), limit_s=0.5)
            assert failure.value.kind == "timeout"

    run(work())


def test_many_dry_runs_at_once(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Each has its own place."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            found = await asyncio.gather(*(backend.probe(model(tiny), (), "", ()) for _ in range(4)))
            assert None not in found
            assert len({estimate.total_bytes for estimate in found if estimate is not None}) == 1

    run(work())


# In the first lines of a load ----------------------------------------------------------------------------------------


def test_an_unproven_load_is_sized_before_it_reads_weights(
    run: Run, tmp_path: Path, large: str, llama_server: str
) -> None:
    """And when it is canceled for it, it is gone: nothing was read, nothing allocated."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            heard: list[tuple[Estimate, float, int, int]] = []

            def sized(estimate: Estimate) -> None:
                child = place.records[-1].child
                assert child is not None
                process = psutil.Process(child.pid)
                heard.append((estimate, time.monotonic(), process.memory_info().rss, child.pid))
                loading.cancel()

            started_s = time.monotonic()
            loading = asyncio.ensure_future(backend.load(place.unproven(model(large, context=16384), sized)))
            with pytest.raises(asyncio.CancelledError):
                await loading
            ((estimate, heard_s, rss_bytes, pid),) = heard
            gone_s = time.monotonic() - heard_s
            print(f"heard after {(heard_s - started_s) * 1000:.0f} ms, gone {gone_s * 1000:.1f} ms later")
            assert not Path(f"/proc/{pid}").exists()
            assert estimate.parts[0].weights_bytes == 8137 * MIB
            assert estimate.parts[0].kv_bytes == 2048 * MIB
            assert rss_bytes < 512 * MIB
            assert not any("buffer size" in text for text in place.journal.texts)

    run(work())


def test_an_unproven_load_that_fits_goes_on(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """It is told once, is loaded as it was configured, and its journal reads as ever."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            heard: list[Estimate] = []
            runner = await backend.load(place.unproven(model(tiny, context=2048), heard.append))
            assert len(heard) == 1
            probed = await backend.probe(model(tiny, context=2048), (), "", ())
            assert heard[0] == probed
            assert any("KV buffer size" in text for text in place.journal.texts)
            assert not any(text.startswith("{") for text in place.journal.texts)
            await runner.unload(QUICK)
            assert len(heard) == 1

    run(work())


def test_a_load_of_known_size_does_not_measure_again(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Fitting stays off."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = LlamaServer(EngineOptions(binary=llama_server), place.launcher)
            heard: list[Estimate] = []
            order = replace(place.unproven(model(tiny), heard.append), unproven=False)
            runner = await backend.load(order)
            child = place.records[-1].child
            assert child is not None
            line = psutil.Process(child.pid).cmdline()
            assert line[line.index("--fit") + 1] == "off"
            await runner.unload(QUICK)
            assert heard == []

    run(work())


# Without a daemon ----------------------------------------------------------------------------------------------------


def dry_run(program: str, file: str, *arguments: str) -> DryRun:
    environment = {**os.environ, "FAKE_HELP": str(HELP_NEW)}
    return DryRun((program,), file, arguments, environment, plan_of((*arguments, "-m", file), 0))


def test_an_engine_is_asked_without_a_daemon(tmp_path: Path, large: str, llama_server: str) -> None:
    """With anybody's arguments; layers left to the engine are all of them."""

    estimate = dry_run(llama_server, large, "-c", "16384", "-np", "2", "-ngl", "auto").ask(tmp_path)
    assert estimate.parts[0].weights_bytes == 8137 * MIB
    assert estimate.parts[0].kv_bytes == 2048 * MIB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--no-such-flag",), "does not know --no-such-flag"),
        (("-ctv", "q8_0", "-fa", "off"), "V cache requires flash_attn"),
    ],
)
def test_what_the_engine_complains_of_is_told(
    tmp_path: Path, large: str, llama_server: str, arguments: tuple[str, ...], words: str
) -> None:
    """In its own words, or in better ones."""

    with pytest.raises(BackendFailed, match=words):
        dry_run(llama_server, large, *arguments).ask(tmp_path)


def program(folder: Path, body: str) -> str:
    """Something that answers --help as a llama-server and then does as the body says."""
    path = folder / "engine"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--help*) cat {HELP_NEW}; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 3", "exited with status 3 and said nothing"),
        ("kill -9 $$", "ended by signal 9"),
        ("yes garbage", "no record within 50000 lines and 8 MiB"),
        ("yes | tr -d '\\n'", "no record within 50000 lines and 8 MiB"),
        ("head -c 100000 /dev/urandom; exit 1", "exited with status 1"),
        ("echo 'ggml_cuda_init: failed to initialize CUDA: no driver'; exit 1", "GPU driver"),
    ],
)
def test_an_engine_that_misbehaves_is_told_as_what_it_is(tmp_path: Path, tiny: str, body: str, words: str) -> None:
    """It dies, is killed, floods, or prints rubbish."""

    with pytest.raises(BackendFailed, match=words):
        dry_run(program(tmp_path, body), tiny).ask(tmp_path)


def test_an_engine_that_hangs_is_ended_with_its_children(tmp_path: Path, tiny: str) -> None:
    """Within its time; what it forked goes with it."""

    pids = tmp_path / "pids"
    hangs = program(tmp_path, f"sleep 60 & echo $$ $! > {pids}; wait")
    with pytest.raises(BackendFailed, match=r"no record within 3 s"):
        llama_probe.alone((hangs,), dict(os.environ), RecordReader(Plan()), limit_s=3)
    for pid in map(int, pids.read_text().split()):
        assert is_gone(pid)


def test_a_program_that_is_no_llama_server_is_refused(tmp_path: Path, tiny: str) -> None:
    """Before it is given a model."""

    with pytest.raises(BackendFailed, match="--help ended with status 0"):
        dry_run("/bin/echo", tiny).ask(tmp_path)
    with pytest.raises(BackendFailed, match="cannot be started"):
        dry_run(str(tmp_path / "none"), tiny).ask(tmp_path)
