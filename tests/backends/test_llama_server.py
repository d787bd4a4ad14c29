"""The llama_server backend against processes that behave as badly as engines do, and against the real engine."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from place import FAKE, HELP_NEW, HELP_OLD, QUICK, Place, complete

from gpud.backends import call
from gpud.backends.llama_server import LlamaServer
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model, StopTimes
from gpud.core.ports import Child, Command, LineReader
from gpud.core.record import replace

Run = Callable[..., Any]

AS_LLAMA = (("FAKE_HELP", str(HELP_NEW)),)
AS_OLD_LLAMA = (("FAKE_HELP", str(HELP_OLD)),)


def fake(place: Place, environment: tuple[tuple[str, str], ...] = AS_LLAMA) -> LlamaServer:
    return LlamaServer(EngineOptions(binary=str(FAKE), environment=environment), place.launcher)


def told(file: str, *switches: str, timeout_s: float = 20.0, name: str = "tiny", **environment: str) -> Model:
    """A model whose engine, the fake one, behaves as the switches say."""
    settings = EngineSettings(file=file, environment=(("FAKE_SWITCHES", " ".join(switches)), *environment.items()))
    return Model(name, "llama_server", settings, load_timeout_s=timeout_s, stop=QUICK)


async def loaded(backend: LlamaServer, place: Place, model: Model) -> ProcessRunner:
    runner = await backend.load(place.order(model))
    assert isinstance(runner, ProcessRunner)
    return runner


async def failed(backend: LlamaServer, place: Place, model: Model) -> BackendFailed:
    with pytest.raises(BackendFailed) as failure:
        await backend.load(place.order(model))
    return failure.value


# The fake one: what a start meets ------------------------------------------------------------------------------------


def test_a_start_is_recorded_before_it_is_ready(run: Run, tmp_path: Path, tiny: str) -> None:
    """A daemon that is killed a moment later can find the child again."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            loading = asyncio.ensure_future(fake(place).load(place.order(told(tiny, "--never-healthy"))))
            await asyncio.wait_for(place.recorded.wait(), 50)
            record = place.records[0]
            assert not loading.done()
            assert record.child is not None
            assert (record.child.model, record.child.engine) == ("tiny", "llama_server")
            assert record.endpoint.socket.endswith(".sock")
            assert record.endpoint.key
            assert record.fingerprint == fake(place).fingerprint(told(tiny, "--never-healthy"))
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    run(work())


@pytest.mark.parametrize("switches", [("--ready-after", "0.2"), ("--listen-after", "0.2")], ids=["says-so", "silent"])
@pytest.mark.parametrize("environment", [AS_LLAMA, AS_OLD_LLAMA], ids=["socket", "port"])
def test_readiness_is_seen_by_asking(
    run: Run, tmp_path: Path, tiny: str, switches: tuple[str, ...], environment: tuple[tuple[str, str], ...]
) -> None:
    """An engine that announces nothing, on a socket or a port, is loaded when it is ready and not before."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            ready = tmp_path / "ready"
            runner = await loaded(fake(place, environment), place, told(tiny, "--ready-file", str(ready), *switches))
            assert ready.exists()
            await runner.unload(QUICK)

    run(work())


def test_an_engine_that_announces_itself_is_not_asked_over_and_over(run: Run, tmp_path: Path, tiny: str) -> None:
    """Its own word is waited for, and its progress is handed on."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            requests = tmp_path / "requests"
            switches = ("--protocol", "--ready-after", "0.5", "--requests", str(requests))
            runner = await loaded(fake(place), place, told(tiny, *switches))
            assert requests.read_text().count("/health") <= 5
            assert [(step.stage, step.fraction) for step in place.progress] == [
                ("loading weights", 0.0),
                ("loading weights", 0.25),
            ]
            assert not [line for line in place.journal.texts if "cmd_child_to_router" in line]
            await runner.unload(QUICK)

    run(work())


def test_a_start_that_never_becomes_ready_ends_with_its_time(run: Run, tmp_path: Path, tiny: str) -> None:
    """An answer that says no, that hangs, or that is none: each is "not ready", and the process is ended."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            switches = ("--never-healthy", "--hang-health", "--garbage")
            models = [told(tiny, switch, "--say hello", timeout_s=3, name=switch.strip("-")) for switch in switches]
            for failure in await asyncio.gather(*(failed(fake(place), place, model) for model in models)):
                assert failure.kind == "timeout"
                assert "llama-server was not ready within 3 s; its last line was: " in failure.message
                assert "hello" in failure.tail

    run(work())


def test_an_engine_that_ends_is_told_at_once(run: Run, tmp_path: Path, tiny: str) -> None:
    """Not when the time for loading is over; with its own last words."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            say = ("--say 'gguf_init_from_reader: failed to read key-value pairs'", "--exit-at-once 1")
            failure = await failed(fake(place), place, told(tiny, *say, timeout_s=60))
            assert (failure.kind, failure.preflight) == ("truncated", False)
            assert failure.message == (
                'cannot load "tiny": llama-server exited with status 1 before it was ready: '
                f"the model file ends within its header ({tiny})"
            )

    run(work(), 20)


def test_a_flood_of_output_does_not_delay_a_load(run: Run, tmp_path: Path, tiny: str) -> None:
    """Pipes are always emptied."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(fake(place), place, told(tiny, "--print-mb", "8"))
            await runner.unload(QUICK)

    run(work(), 30)


def test_a_stubborn_engine_is_killed_and_its_end_announced(run: Run, tmp_path: Path, tiny: str) -> None:
    """The ladder's last rung."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(fake(place), place, told(tiny, "--ignore-term"))
            killed: list[bool] = []
            await runner.unload(QUICK, on_kill=lambda: killed.append(True))
            assert killed == [True]
            assert (await runner.gone()).code == -9

    run(work())


def test_an_engine_that_ends_by_itself_is_gone(run: Run, tmp_path: Path, tiny: str) -> None:
    """Everybody who waits is told, and its socket is removed."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(fake(place), place, told(tiny, "--exit-after", "0.1"))
            first, second = await asyncio.gather(runner.gone(), runner.gone())
            assert first == second
            assert first.code == 0
            assert await runner.busy() is None

    run(work())


@pytest.mark.parametrize(("switches", "busy"), [((), False), (("--busy 2",), True), (("--no-metrics",), None)])
def test_busy_is_what_its_gauges_say(
    run: Run, tmp_path: Path, tiny: str, switches: tuple[str, ...], busy: bool | None
) -> None:
    """Without gauges it cannot tell."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(fake(place), place, told(tiny, *switches))
            assert await runner.busy() is busy
            await runner.unload(QUICK)

    run(work())


# Ports, and strangers on them ----------------------------------------------------------------------------------------


class Thief:
    """A launcher that lets a stranger take the engine's port just before the engine starts, the first ``times``."""

    def __init__(self, place: Place, times: int) -> None:
        self.place = place
        self.times = times
        self.ports: list[int] = []
        self.held: list[asyncio.Server] = []

    async def spawn(self, command: Command, on_line: LineReader | None = None) -> Child:
        port = int(command.argv[command.argv.index("--port") + 1])
        self.ports.append(port)
        if len(self.ports) <= self.times:
            self.held.append(await asyncio.start_server(self._friendly, "127.0.0.1", port))
        return await self.place.launcher.spawn(command, on_line)

    async def _friendly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers every question with yes, as a development server would."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place.launcher, name)


@pytest.mark.parametrize("binds", [True, False], ids=["engine-ends", "engine-waits"])
def test_a_stolen_port_is_noticed_and_another_taken(run: Run, tmp_path: Path, tiny: str, binds: bool) -> None:
    """The stranger answers health with 200, but to any key: it is not the engine that was started."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            thief = Thief(place, 1)
            backend = LlamaServer(EngineOptions(binary=str(FAKE), environment=AS_OLD_LLAMA), thief)
            # An engine that cannot bind ends; one that is slow to bind lives while the stranger answers for it.
            model = told(tiny) if binds else told(tiny, "--listen-after 1")
            runner = await loaded(backend, place, model)
            assert len(thief.ports) == 2
            assert runner.endpoint.port == thief.ports[1] != thief.ports[0]
            await runner.unload(QUICK)
            for server in thief.held:
                server.close()

    run(work())


def test_three_stolen_ports_are_an_error(run: Run, tmp_path: Path, tiny: str) -> None:
    """Something is wrong with the machine then."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            thief = Thief(place, 3)
            backend = LlamaServer(EngineOptions(binary=str(FAKE), environment=AS_OLD_LLAMA), thief)
            failure = await failed(backend, place, told(tiny, "--listen-after 1"))
            assert failure.kind == "port-in-use"
            assert failure.message == f'cannot load "tiny": another program answers at 127.0.0.1:{thief.ports[2]}'
            for server in thief.held:
                server.close()

    run(work())


def test_only_gpud_may_use_the_engine(run: Run, tmp_path: Path, tiny: str) -> None:
    """Each start has a key of its own, which is nowhere to be read but in the engine's environment."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            first = await loaded(fake(place), place, told(tiny, name="a"))
            second = await loaded(fake(place), place, told(tiny, name="b"))
            assert first.endpoint.key != second.endpoint.key
            stranger = replace(first.endpoint, key=second.endpoint.key)
            assert (await call.request(stranger, "GET", "/v1/models", timeout_s=50)).status == 401
            assert (await call.request(first.endpoint, "GET", "/v1/models", timeout_s=50)).status == 200
            (pid,) = first.pids()
            assert first.endpoint.key not in Path(f"/proc/{pid}/cmdline").read_text()
            await asyncio.gather(first.unload(QUICK), second.unload(QUICK))

    run(work())


@pytest.mark.parametrize(
    ("devices", "vendor", "expected"),
    [
        (("GPU-1", "GPU-2"), "nvidia", {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (("GPU-beef",), "amd", {"ROCR_VISIBLE_DEVICES": "GPU-beef"}),
        ((), "", {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}),
        (("host",), "", {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}),
    ],
)
def test_an_engine_sees_the_devices_it_was_given(
    run: Run, tmp_path: Path, tiny: str, devices: tuple[str, ...], vendor: str, expected: Mapping[str, str]
) -> None:
    """And no other, whatever the configuration's environment says; everything else of it arrives."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            dump = tmp_path / "environment"
            engine = (*AS_LLAMA, ("CUDA_VISIBLE_DEVICES", "7"), ("CUDA_ALLOW_TF32", "1"), ("OF_MODEL", "engine"))
            model = told(tiny, f"--environment-file {dump}", OF_MODEL="model")
            runner = await fake(place, engine).load(place.order(model, devices, vendor))
            await runner.unload(QUICK)
            seen = json.loads(dump.read_text())
            assert {name: seen.get(name) for name in expected} == expected
            assert (seen["CUDA_ALLOW_TF32"], seen["OF_MODEL"]) == ("1", "model")
            assert (seen["GGML_NO_BACKTRACE"], seen["LLAMA_SERVER_ROUTER_PORT"]) == ("1", "1")
            assert seen["LLAMA_API_KEY"] == place.records[0].endpoint.key

    run(work())


# Canceling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4])
def test_a_load_can_be_canceled_at_any_moment(run: Run, tmp_path: Path, tiny: str, after_s: float) -> None:
    """While the binary is asked for its flags, while it starts, while it loads: nothing is left."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            loading = asyncio.ensure_future(fake(place).load(place.order(told(tiny, "--never-healthy"))))
            await asyncio.sleep(after_s)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading

    run(work())


def test_canceling_twice_still_ends_the_engine(run: Run, tmp_path: Path, tiny: str) -> None:
    """The second one arrives while the engine is being stopped."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = told(tiny, "--never-healthy", "--ignore-term")
            loading = asyncio.ensure_future(fake(place).load(place.order(model)))
            await asyncio.wait_for(place.recorded.wait(), 50)
            for _ in range(5):
                loading.cancel()
                await asyncio.sleep(0.02)
            with pytest.raises(asyncio.CancelledError):
                await loading
            child = place.records[0].child
            assert child is not None
            assert not Path(f"/proc/{child.pid}").exists()

    run(work())


# Binaries ------------------------------------------------------------------------------------------------------------


def test_a_missing_binary_is_said_before_the_start(tmp_path: Path, tiny: str, run: Run) -> None:
    """By path, by name, and when it may not be executed."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            plain = tmp_path / "plain"
            plain.write_text("")
            for binary, words in (
                ("/opt/none/llama-server", "/opt/none/llama-server is not there (errno 2"),
                ("no-such-llama-server", 'no program "no-such-llama-server" in '),
                (str(plain), f"{plain} cannot be executed (errno 13"),
            ):
                backend = LlamaServer(EngineOptions(binary=binary), place.launcher)
                with pytest.raises(BackendFailed) as failure:
                    backend.check(Model("tiny", "llama_server", EngineSettings(file=tiny)))
                assert failure.value.kind == "binary-missing"
                assert failure.value.preflight
                assert words in failure.value.message

    run(work())


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'error while loading shared libraries: libcuda.so.1: no' >&2; exit 127", "library libcuda.so.1 cannot"),
        ("exit 3", "--help ended with status 3: it printed nothing"),
        ("echo '-m, --model FNAME  the model'", "does not read LLAMA_API_KEY"),
    ],
)
def test_a_binary_that_is_no_llama_server_is_told_apart(
    run: Run, tmp_path: Path, tiny: str, script: str, words: str
) -> None:
    """Before anything is started with a model."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            binary = tmp_path / "llama-server"
            binary.write_text(f"#!/bin/sh\n{script}\n")
            binary.chmod(0o755)
            backend = LlamaServer(EngineOptions(binary=str(binary)), place.launcher)
            failure = await failed(backend, place, Model("tiny", "llama_server", EngineSettings(file=tiny)))
            assert words in failure.message
            assert (failure.kind, failure.preflight) == ("binary-broken", True)

    run(work())


def test_a_binary_is_asked_once_until_it_changes(run: Run, tmp_path: Path, tiny: str) -> None:
    """An upgrade brings other flags."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            asked = tmp_path / "asked"
            binary = tmp_path / "llama-server"

            def install(extra: str) -> None:
                binary.write_text(f'#!/bin/sh\n{extra}\n[ "$1" = --help ] && echo x >>{asked}\nexec {FAKE} "$@"\n')
                binary.chmod(0o755)

            install("")
            backend = LlamaServer(EngineOptions(binary=str(binary), environment=AS_LLAMA), place.launcher)
            for expected in (1, 1, 2):
                runner = await loaded(backend, place, told(tiny))
                await runner.unload(QUICK)
                assert asked.read_text().count("x") == expected
                if expected == 1 and len(place.records) == 2:
                    install("# a newer build")

    run(work())


# Adoption ------------------------------------------------------------------------------------------------------------


def test_an_engine_is_taken_over_with_what_is_known_of_it(run: Run, tmp_path: Path, tiny: str) -> None:
    """By its record alone; it goes on answering."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = fake(place)
            model = told(tiny)
            first = await loaded(backend, place, model)
            record = place.records[-1]
            second = await backend.adopt(record, model)
            assert isinstance(second, ProcessRunner)
            assert (second.endpoint, second.pids()) == (first.endpoint, first.pids())
            assert await second.busy() is False
            await second.unload(QUICK)
            await first.gone()

    run(work())


def test_an_engine_that_does_not_answer_is_not_taken_over(run: Run, tmp_path: Path, tiny: str) -> None:
    """Gone, hanging, or with another key."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = fake(place)
            model = told(tiny, "--hang-models")
            runner = await loaded(backend, place, model)
            record = place.records[-1]
            other = replace(record, endpoint=replace(record.endpoint, key="other"))
            assert await backend.adopt(record, model) is None
            assert await backend.adopt(other, model) is None
            assert await backend.adopt(replace(record, child=None), model) is None
            await runner.unload(QUICK)
            assert await backend.adopt(record, model) is None

    run(work())


# The real one --------------------------------------------------------------------------------------------------------


def real(place: Place, binary: str) -> LlamaServer:
    return LlamaServer(EngineOptions(binary=binary), place.launcher)


def model_of(file: str, **settings: Any) -> Model:
    chosen = EngineSettings(file=file, **{"context": 2048, "threads": 1, **settings})
    return Model("tiny", "llama_server", chosen, aliases=("small",), load_timeout_s=60, stop=StopTimes(term_s=0.5))


@pytest.mark.engines
def test_the_real_server_loads_answers_and_unloads(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """On a private socket, with its progress; the journal is not flooded."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = real(place, llama_server)
            model = model_of(tiny, parallel=2, flash_attention="on", batch=512)
            backend.check(model)
            began = time.monotonic()
            runner = await loaded(backend, place, model)
            took = time.monotonic() - began
            answer = await complete(runner, 8)
            assert (answer["model"], answer["usage"]["completion_tokens"]) == ("tiny", 8)
            assert runner.endpoint.socket
            assert place.progress[0].stage == "loading weights"
            assert await runner.busy() is False
            props = (await call.request(runner.endpoint, "GET", "/props", timeout_s=50)).json()
            assert isinstance(props, dict)
            assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 1024)
            began = time.monotonic()
            await runner.unload(model.stop)
            print(f"load {took * 1000:.0f} ms, unload {(time.monotonic() - began) * 1000:.0f} ms")
            assert len(place.journal.texts) < 25, place.journal.texts
            assert runner.endpoint.key not in "".join(place.journal.texts)

    run(work())


@pytest.mark.engines
def test_the_real_server_is_busy_while_it_generates(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """It ignores the first TERM then, and ends by the second: no kill."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(real(place, llama_server), place, model_of(tiny, context=32768))
            answering = asyncio.ensure_future(complete(runner, 30_000))
            while not (await runner.busy() or answering.done()):
                await asyncio.sleep(0.02)
            killed: list[bool] = []
            await runner.unload(StopTimes(term_s=0.3, second_term_s=60), on_kill=lambda: killed.append(True))
            assert killed == []
            # It exits with 1, and aborts or crashes on its way out when a thread of its own is in that way.
            assert (await runner.gone()).code in (1, -6, -11)
            with pytest.raises(call.Unreachable):
                await answering

    run(work())


@pytest.mark.engines
@pytest.mark.parametrize(
    ("broken", "kind", "words"),
    [
        ("empty", "truncated", "the model file ends within its header"),
        ("wrong-magic", "not-a-model", "the file is not a GGUF file: it starts with 'GGML'"),
        ("truncated-header", "truncated", "the model file ends within its header"),
        ("truncated-tensors", "truncated", "the model file ends before tensor blk.1."),
        ("unknown-architecture", "unsupported", "does not know the architecture 'perceptron9000'"),
        ("missing-tensor", "incomplete", "lacks a tensor that its architecture needs (blk.1.ffn_down.weight)"),
    ],
)
def test_the_real_server_says_what_is_wrong_with_a_file(
    run: Run, tmp_path: Path, llama_server: str, broken: str, kind: str, words: str
) -> None:
    """Each broken file has its kind, its sentence and something to do about it."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            file = str(tiny_model.write_broken(tmp_path / "broken.gguf", broken))
            failure = await failed(real(place, llama_server), place, model_of(file))
            assert failure.kind == kind
            assert words in failure.message
            assert file in failure.message
            assert failure.hint
            assert failure.tail

    run(work())


@pytest.mark.engines
@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"extra_flags": ("--nosuch", "1")}, "bad-flag", "the engine does not know --nosuch"),
        ({"cache_type_k": "q99"}, "bad-flag", "does not accept the value of --cache-type-k"),
        ({"cache_type_k": "q8_0"}, "bad-setting", "K cache type q8_0 with block size 32"),
        ({"mmproj": "TINY"}, "bad-projector", "the multimodal projector cannot be loaded"),
    ],
)
def test_the_real_server_says_what_is_wrong_with_a_setting(
    run: Run, tmp_path: Path, tiny: str, llama_server: str, settings: dict[str, Any], kind: str, words: str
) -> None:
    """Not only that it "exited with status 1"."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            chosen = {name: tiny if value == "TINY" else value for name, value in settings.items()}
            failure = await failed(real(place, llama_server), place, model_of(tiny, **chosen))
            assert failure.kind == kind, failure.tail
            assert words in failure.message
            assert failure.hint

    run(work())


@pytest.mark.engines
def test_the_real_server_says_that_memory_was_short(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """A context of 1 GiB where an address space of 700 MiB is all there is."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            binary = tmp_path / "llama-server"
            binary.write_text(f'#!/bin/sh\nulimit -v 700000\nexec {llama_server} "$@"\n')
            binary.chmod(0o755)
            failure = await failed(real(place, str(binary)), place, model_of(tiny, context=4 << 20))
            assert failure.kind == "oom-host", failure.tail
            assert "the host's memory was exhausted: " in failure.message
            assert "lower context" in failure.hint

    run(work())


@pytest.mark.engines
def test_the_real_server_ends_with_gpuds_hold_on_it(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Its stdin is a lease: when nobody holds the other end any more, it is gone."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(real(place, llama_server), place, model_of(tiny))
            runner.child.close_lease()
            gone = await asyncio.wait_for(runner.gone(), 50)
            assert gone.code == 1

    run(work())


@pytest.mark.engines
def test_the_real_server_is_found_again(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """Also while it generates."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = real(place, llama_server)
            model = model_of(tiny, context=32768)
            first = await loaded(backend, place, model)
            answering = asyncio.ensure_future(complete(first, 2_000))
            while not (await first.busy() or answering.done()):
                await asyncio.sleep(0.02)
            second = await backend.adopt(place.records[-1], model)
            assert isinstance(second, ProcessRunner)
            assert (await answering)["usage"]["completion_tokens"] == 2_000
            await second.unload(model.stop)

    run(work())


@pytest.mark.engines
def test_the_real_server_runs_on_a_port_as_well(run: Run, tmp_path: Path, tiny: str, llama_server: str) -> None:
    """For a launcher whose sockets it would not recognize; the stranger's port is left to the stranger."""

    class NoSockets(Thief):
        def socket_path(self, unit: str) -> str:
            return f"{self.place.folder}/{unit}"

    async def work() -> None:
        async with Place(tmp_path) as place:
            thief = NoSockets(place, 1)
            backend = LlamaServer(EngineOptions(binary=llama_server), thief)
            runner = await loaded(backend, place, model_of(tiny))
            assert runner.endpoint.port == thief.ports[1]
            assert (await complete(runner, 4))["usage"]["completion_tokens"] == 4
            await runner.unload(StopTimes())
            for server in thief.held:
                server.close()

    run(work())


def test_a_free_port_is_free() -> None:
    """It can be bound at once, without waiting for an old connection to be forgotten."""
    from gpud.backends.runner import free_port

    with socket.socket() as mine:
        mine.bind(("127.0.0.1", free_port()))
