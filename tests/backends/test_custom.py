"""Any program as an engine, and engines that run already, described by the configuration alone."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from place import FAKE, PATIENT, QUICK, Place
from squatter import Squatter

from gpud.backends import call
from gpud.backends.attached import AttachedRunner
from gpud.backends.custom import Custom
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import BusyProbe, Endpoint, EngineSettings, HttpCall, Model, StopTimes
from gpud.core.ports import Standing

Run = Callable[..., Any]

ON_PORT = (str(FAKE), "--port", "${port}")
ON_SOCKET = (str(FAKE), "--host", "${socket}")

FREE = HttpCall("POST", "/free", {"unload_models": True, "free_memory": True})
QUEUE = BusyProbe("/queue", ("queue_running", "queue_pending"))


def service(*switches: str, command: tuple[str, ...] = ON_PORT, timeout_s: float = 20.0, **settings: Any) -> Model:
    chosen: dict[str, Any] = {"health": "/health", "command": (*command, *switches) if command else (), **settings}
    return Model("paint", "custom", EngineSettings(**chosen), size_bytes=1 << 30, load_timeout_s=timeout_s, stop=QUICK)


def custom(place: Place, **options: Any) -> Custom:
    return Custom(EngineOptions(**options), place.launcher)


async def started(place: Place, model: Model) -> ProcessRunner:
    backend = custom(place)
    backend.check(model)
    runner = await backend.load(place.order(model))
    assert isinstance(runner, ProcessRunner)
    return runner


def refused(place: Place, model: Model, **options: Any) -> BackendFailed:
    with pytest.raises(BackendFailed) as failure:
        custom(place, **options).check(model)
    assert failure.value.preflight
    return failure.value


@asynccontextmanager
async def running(*switches: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Somebody else's service: the url of the fake one, run by the test itself."""
    process = await asyncio.create_subprocess_exec(sys.executable, str(FAKE), *switches, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 50)
    try:
        yield f"http://{line.decode().split()[-1]}", process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# Programs of ours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [ON_PORT, ON_SOCKET], ids=["port", "socket"])
def test_a_service_is_added_by_configuration_alone(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Started, waited for, asked, stopped; on a free port or a private socket."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await started(place, service("--ready-after=0.1", command=command, busy=QUEUE))
            assert bool(runner.endpoint.socket) == (command is ON_SOCKET)
            assert bool(runner.endpoint.port) == (command is ON_PORT)
            assert await runner.busy() is False
            assert place.stages == ["starting"]
            record = place.records[0]
            assert record.child is not None
            assert record.child.pid in runner.pids()
            await runner.unload(PATIENT)
            assert (await runner.gone()).code == -15

    run(work())


def test_every_name_is_filled_in(run: Run, tmp_path: Path) -> None:
    """In the command and in the environment; two dollars are one."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            dump, weights = tmp_path / "environment", tmp_path / "weights.safetensors"
            weights.write_bytes(b"x" * 1000)
            model = service(
                f"--environment-file={dump}",
                "--say=${model} ${file} $${port}",
                file=str(weights),
                environment=(("FAKE_KEY", "${key}"), ("ABOUT", "${model}:${port}"), ("PLAIN", "$HOME")),
            )
            assert custom(place).file_bytes(model) == 1000
            runner = await started(place, model)
            seen = json.loads(dump.read_text())
            assert seen["FAKE_KEY"] == runner.endpoint.key != ""
            assert seen["ABOUT"] == f"paint:{runner.endpoint.port}"
            assert seen["PLAIN"] == "$HOME"
            assert seen["CUDA_VISIBLE_DEVICES"] == ""
            assert f"paint {weights} ${{port}}" in place.journal.texts
            stranger = Endpoint(host="127.0.0.1", port=runner.endpoint.port)
            assert (await call.request(stranger, "GET", "/queue", timeout_s=50)).status == 401
            assert (await call.request(runner.endpoint, "GET", "/queue", timeout_s=50)).status == 200
            await runner.unload(QUICK)

    run(work())


@pytest.mark.parametrize(
    ("switch", "kind", "words"),
    [
        ("--never-healthy", "timeout", "was not ready within 2 s"),
        ("--hang-health", "timeout", "was not ready within 2 s"),
        ("--exit-at-once=3", "exited", "exited with status 3 before it was ready; it said: hello"),
    ],
)
def test_a_service_that_does_not_start_is_ended(run: Run, tmp_path: Path, switch: str, kind: str, words: str) -> None:
    """With its last words."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            with pytest.raises(BackendFailed) as failure:
                await started(place, service("--say=hello", switch, timeout_s=2 if kind == "timeout" else 50))
            assert failure.value.kind == kind
            assert words in failure.value.message

    run(work())


def test_without_a_health_path_any_answer_is_ready(run: Run, tmp_path: Path) -> None:
    """Below 500: the service has no such page and lives all the same. While it loads, it answers with 503."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            ready = tmp_path / "ready"
            runner = await started(place, service("--ready-after=0.2", f"--ready-file={ready}", health=""))
            assert ready.exists()
            assert await runner.busy() is None
            await runner.unload(QUICK)

    run(work())


def test_health_may_be_a_whole_url(run: Run, tmp_path: Path) -> None:
    """For services that answer for their health elsewhere."""

    async def work() -> None:
        async with Place(tmp_path) as place, running("--ready-after=0.1") as (url, _):
            runner = await started(place, service(health=f"{url}/health"))
            await runner.unload(QUICK)

    run(work())


def test_an_unload_call_ends_a_child_politely(run: Run, tmp_path: Path) -> None:
    """It replaces the first TERM; a service that does not end by it gets one."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            polite = service("--shut-down-on=/shutdown", unload=HttpCall("POST", "/shutdown"))
            runner = await started(place, polite)
            await runner.unload(PATIENT)
            assert (await runner.gone()).code == 0
            deaf = service(unload=HttpCall("POST", "/shutdown"))
            runner = await started(place, deaf)
            await runner.unload(PATIENT)
            assert (await runner.gone()).code == -15

    run(work())


def test_a_fixed_address_that_is_taken_is_not_fought_for(run: Run, tmp_path: Path) -> None:
    """Whatever answers there would be taken for the service."""

    async def work() -> None:
        async with Place(tmp_path) as place, running() as (url, _):
            with pytest.raises(BackendFailed) as failure:
                await started(place, service(command=(str(FAKE),), url=url))
            assert (failure.value.kind, failure.value.preflight) == ("address-taken", True)
            assert f"something listens at {url.removeprefix('http://')} already" in failure.value.message
            assert place.records == []

    run(work())


def test_a_fixed_address_is_used_when_it_is_free(run: Run, tmp_path: Path) -> None:
    """The url says where the command listens; a base path goes before every path."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = service(url="http://127.0.0.1:${port}/api", health="/health")
            runner = await started(place, model)
            assert runner.endpoint.base_path == "/api"
            await runner.unload(QUICK)

    run(work())


def test_a_stranger_on_its_port_is_not_taken_for_the_service(run: Run, tmp_path: Path) -> None:
    """It has no key to tell them apart, but the kernel knows who listens: another port is taken."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            squatter = Squatter(place)
            backend = Custom(EngineOptions(), squatter)
            runner = await backend.load(place.order(service("--listen-after=0.5")))
            assert squatter.server is not None
            assert runner.endpoint.port != squatter.server.sockets[0].getsockname()[1]
            assert len(place.records) == 2
            await runner.unload(QUICK)
            squatter.server.close()

    run(work())


def test_a_key_that_the_service_does_not_take_is_said(run: Run, tmp_path: Path) -> None:
    """Its health would never be good."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = service("--refuse-key", health="/queue", environment=(("FAKE_KEY", "${key}"),))
            with pytest.raises(BackendFailed, match="refuses the key of this start") as failure:
                await started(place, model)
            assert failure.value.kind == "key-refused"

    run(work())


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3])
def test_a_start_can_be_canceled(run: Run, tmp_path: Path, after_s: float) -> None:
    """Nothing is left."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            loading = asyncio.ensure_future(custom(place).load(place.order(service("--never-healthy"))))
            await asyncio.sleep(after_s)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading

    run(work())


def test_a_service_is_found_again(run: Run, tmp_path: Path) -> None:
    """With the address of its record, not that of the next start."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = service(busy=QUEUE)
            first = await started(place, model)
            second = await custom(place).adopt(place.records[0], model)
            assert second is not None
            assert (second.endpoint, second.pids()) == (first.endpoint, first.pids())
            assert await second.busy() is False
            await second.unload(QUICK)
            assert await custom(place).adopt(place.records[0], model) is None

    run(work())


# Services of others, with the shapes of ComfyUI ----------------------------------------------------------------------


def test_a_running_service_is_attached_and_asked_for_its_memory(run: Run, tmp_path: Path) -> None:
    """It is busy while its queue says so, gives its memory back when it is asked, and goes on running."""

    async def work() -> None:
        requests = tmp_path / "requests"
        async with Place(tmp_path) as place, running("--busy=1", f"--requests={requests}") as (url, process):
            model = service(command=(), url=url, health="/queue", busy=QUEUE, unload=FREE)
            backend = custom(place)
            backend.check(model)
            runner = await backend.load(place.order(model))
            assert isinstance(runner, AttachedRunner)
            assert place.records[0].child is None
            assert runner.pids() == {process.pid}
            assert await runner.busy() is True
            await call.request(runner.endpoint, "POST", "/set", body={"busy": 0}, timeout_s=50)
            assert await runner.busy() is False
            gone = asyncio.ensure_future(runner.gone())
            assert await backend.adopt(place.records[0], model) is not None
            assert not gone.done()
            await runner.unload(StopTimes())
            assert (await gone).code is None
            assert 'POST /free {"unload_models": true, "free_memory": true}\n' in requests.read_text()
            assert process.returncode is None

    run(work())


def test_a_field_is_looked_for_in_each_item_of_a_list(run: Run, tmp_path: Path) -> None:
    """As llama-server's slots are: it is busy while one of them works, and full while all do."""

    async def work() -> None:
        async with Place(tmp_path) as place, running("--shown-slots=2", "--busy=1") as (url, _):
            slots = BusyProbe("/slots", ("is_processing",))
            model, backend = service(command=(), url=url, busy=slots), custom(place)
            runner = await backend.load(place.order(model))
            assert await runner.busy() is True
            assert await backend.standing(model) == Standing(1, full=False)
            await call.request(runner.endpoint, "POST", "/set", body={"busy": 2}, timeout_s=50)
            assert await backend.standing(model) == Standing(2, full=True)
            await call.request(runner.endpoint, "POST", "/set", body={"busy": 0}, timeout_s=50)
            assert await runner.busy() is False
            assert await backend.standing(model) == Standing()
            queue = service(command=(), url=url, busy=QUEUE)
            await call.request(runner.endpoint, "POST", "/set", body={"busy": 3}, timeout_s=50)
            assert await backend.standing(queue) == Standing(3, full=True)
            assert await backend.standing(service()) is None

    run(work())


def test_a_service_that_is_not_there_has_no_standing(run: Run, tmp_path: Path) -> None:
    """It cannot serve the model, and others may; one that loads still says nothing."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            async with running("--never-healthy") as (url, _):
                model = service(command=(), url=url)
                assert await custom(place).standing(model) is None
            with pytest.raises(BackendFailed) as failure:
                await custom(place).standing(model)
            assert (failure.value.kind, failure.value.preflight) == ("unreachable", True)

    run(work())


def test_a_dotted_field_reaches_inside(run: Run, tmp_path: Path) -> None:
    """And a field that is not there tells nothing."""

    async def work() -> None:
        async with Place(tmp_path) as place, running("--busy=2") as (url, _):

            async def asked(*fields: str, path: str = "/prompt") -> bool | None:
                model = service(command=(), url=url, busy=BusyProbe(path, fields))
                runner = await custom(place).load(place.order(model))
                return await runner.busy()

            assert await asked("exec_info.queue_remaining") is True
            assert await asked("exec_info.nothing", "nothing.at.all") is None
            assert await asked("exec_info.nothing", "exec_info.queue_remaining") is True
            assert await asked("x", path="/metrics") is None
            assert await asked("x", path="/nowhere") is None

    run(work())


def test_a_service_that_is_not_there_is_unreachable(run: Run, tmp_path: Path) -> None:
    """It costs nothing to try again: gpud does not start it."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            with pytest.raises(BackendFailed) as failure:
                await custom(place, url="http://127.0.0.1:1").load(place.order(service(command=())))
            assert (failure.value.kind, failure.value.preflight) == ("unreachable", True)
            assert failure.value.message.startswith('cannot use "paint": nothing answers: GET /health at 127.0.0.1:1: ')

    run(work())


def test_a_service_that_is_ill_is_unreachable_too(run: Run, tmp_path: Path) -> None:
    """Its status is said."""

    async def work() -> None:
        async with Place(tmp_path) as place, running("--never-healthy") as (url, _):
            with pytest.raises(BackendFailed, match=r"GET /health at .* answered with status 503"):
                await custom(place).load(place.order(service(command=(), url=url)))

    run(work())


def test_a_service_that_ended_has_given_its_memory_back(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing to complain of, unlike a refusal."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            async with running("--refuse-free") as (url, _):
                model = service(command=(), url=url, unload=FREE)
                ending = await custom(place).load(place.order(model))
                refusing = await custom(place).load(place.order(model))
                await refusing.unload(StopTimes())
                assert "refused to give its memory back: POST /free at " in caplog.text
                assert "answered with status 500" in caplog.text
                caplog.clear()
            assert ending.pids() == frozenset()
            await ending.unload(StopTimes())
            await ending.gone()
            assert caplog.text == ""

    run(work())


# Descriptions that cannot work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"command": ()}, "it has neither a command nor a url"),
        ({"command": (str(FAKE),)}, "nothing says where its command listens"),
        ({"command": (*ON_PORT, "--x=${gpu}")}, "command uses ${gpu}, which is not known"),
        ({"command": (*ON_PORT, "--key=${key}")}, "everybody may read command lines"),
        ({"environment": (("A", "${b}"),)}, "environment A uses ${b}, which is not known"),
        ({"url": "https://example.org/"}, 'url "https://example.org/" cannot be used'),
        ({"url": "http://127.0.0.1:99999"}, 'the port of url "http://127.0.0.1:99999" is not a number up to 65535'),
        ({"command": ("no-such-program", "${port}")}, 'program "no-such-program" of its command is not there'),
        ({"command": (__file__, "${port}")}, "of its command cannot be executed"),
        ({"directory": "/nonexistent"}, "directory /nonexistent is not there"),
        ({"file": "/nonexistent/weights"}, "model file /nonexistent/weights: No such file or directory (errno 2)"),
    ],
)
def test_a_description_that_cannot_work_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    """Before anything is started."""
    failure = refused(Place(tmp_path), service(**settings))
    assert words in failure.message
    assert failure.hint


def test_a_relative_program_lies_in_its_directory(tmp_path: Path) -> None:
    """As the command will find it."""
    (tmp_path / "serve").symlink_to(FAKE)
    custom(Place(tmp_path)).check(service(command=("./serve", "${port}"), directory=str(tmp_path)))
    assert "is not there" in refused(Place(tmp_path), service(command=("./serve", "${port}"))).message
