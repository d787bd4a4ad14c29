"""The machine that the daemon's tests stand on: GPUs that are files, and processes that really live."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends.conftest import llama_server, site
from daemon.conftest import bus, place
from daemon.harness import Daemon, Place, embedded, engine, gone, plain, settle, tiny
from fake_nvml.gpu import FOR_EVER, GIB, MIB, FakeGpus
from nvml_program import Program, held

__all__ = ["bus", "llama_server", "place", "site"]


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[FakeGpus]:
    with FakeGpus(tmp_path / "gpus", 6 * GIB, 8 * GIB) as made:
        yield made


@pytest.fixture
def program(gpus: FakeGpus, tmp_path: Path) -> Iterator[Program]:
    """What looks at them, through the real nvidia-ml-py."""
    (tmp_path / "proc").symlink_to("/proc")
    made = Program(tmp_path, gpus.environment())
    yield made
    made.close()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """Starts a process that does nothing and whose command line has the words; ended after the test."""

    def start(*words: str, **variables: str) -> subprocess.Popen[bytes]:
        code = "import time; print('started', flush=True); time.sleep(300)"
        process = subprocess.Popen([sys.executable, "-c", code, *words], env=os.environ | variables, stdout=-1)
        request.addfinalizer(process.communicate)
        request.addfinalizer(process.kill)
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        return process

    return start


# The stand-in.


def test_a_process_holds_what_the_rule_for_its_command_line_says(
    gpus: FakeGpus, program: Program, start: Start, tmp_path: Path
) -> None:
    """On the GPUs that it sees, and none where it sees none; a rule that changes is felt by those that live."""
    model = str(tmp_path / "a.gguf")
    gpus.rule(f"--model {model}", 3 * GIB, 1 * GIB)
    plain, second, none = (
        start("--model", model, **variables)
        for variables in ({}, {"CUDA_VISIBLE_DEVICES": gpus.uuid(1)}, {"CUDA_VISIBLE_DEVICES": ""})
    )
    other = start("--model", str(tmp_path / "b.gguf"))
    one, two = program.sample()
    assert held(one) == {plain.pid: 3 * GIB}
    assert held(two) == {plain.pid: 1 * GIB, second.pid: 3 * GIB}
    assert not {none.pid, other.pid} & (held(one) | held(two)).keys()
    gpus.rule(f"--model {model}", 2 * GIB + 1)
    one, two = program.sample()
    assert (held(one), held(two)) == ({plain.pid: 2 * GIB + 1}, {second.pid: 2 * GIB + 1})
    assert one["used_bytes"] == 2 * GIB + 1
    plain.kill()
    plain.wait()
    assert program.sample()[0]["used_bytes"] == 0


def test_a_process_may_grow_into_its_memory(gpus: FakeGpus, program: Program, start: Start, tmp_path: Path) -> None:
    """It holds the first figure until it is so old."""
    words = str(tmp_path / "growing")
    gpus.rule(words, 3 * GIB, first_bytes=300 * MIB, after_ms=3_600_000)
    process = start(words)
    assert held(program.sample()[0]) == {process.pid: 300 * MIB}
    gpus.rule(words, 3 * GIB, first_bytes=300 * MIB, after_ms=1)
    settle(lambda: held(program.sample()[0]) == {process.pid: 3 * GIB}, "it has grown")


def test_of_a_wrapper_and_what_it_runs_the_inner_one_holds(
    gpus: FakeGpus, program: Program, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The words are in the command line of both."""
    words = str(tmp_path / "wrapped")
    gpus.rule(words, 1 * GIB)
    code = f"{sys.executable} -c 'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()' {words}; exit 0"
    wrapper = subprocess.Popen(["/bin/sh", "-c", code], stdin=-1, stdout=-1)
    request.addfinalizer(wrapper.communicate)
    assert wrapper.stdout is not None
    inner = int(wrapper.stdout.readline())
    assert inner != wrapper.pid
    assert held(program.sample()[0]) == {inner: 1 * GIB}


def test_another_program_takes_memory_grows_and_goes(gpus: FakeGpus, program: Program) -> None:
    """It is there under its name, on the GPU that was said."""
    pid = gpus.set_foreign(2 * GIB, gpu=1, name="game")
    one, two = program.sample()
    assert (held(one), held(two)) == ({}, {pid: 2 * GIB})
    assert [process["name"] for process in two["processes"]] == ["game"]
    assert gpus.set_foreign(5 * GIB, gpu=1, name="game") == pid
    assert gpus.set_foreign(1 * GIB, gpu=0, name="game") == pid
    assert [held(sample) for sample in program.sample()] == [{pid: 1 * GIB}, {pid: 5 * GIB}]
    gpus.end_foreign("game")
    assert [held(sample) for sample in program.sample()] == [{}, {}]


def test_memory_of_the_dead_comes_back_late_or_never(gpus: FakeGpus, program: Program) -> None:
    """Nobody holds it, and it is not free either."""
    gpus.late(FOR_EVER)
    gpus.set_foreign(4 * GIB)
    program.sample()
    gpus.end_foreign()
    for _ in range(3):
        one, _ = program.sample()
        assert (held(one), one["free_bytes"]) == ({}, 2 * GIB)
    gpus.late(50)
    settle(lambda: program.sample()[0]["free_bytes"] == 6 * GIB, "it has come back")


def test_more_held_than_there_is_is_written_down(gpus: FakeGpus, program: Program) -> None:
    """A real GPU would have refused it: a test that claims to hold a budget can ask."""
    gpus.set_foreign(6 * GIB)
    program.sample()
    assert gpus.overflows() == []
    gpus.set_foreign(1 * GIB, name="straw")
    assert program.sample()[0]["free_bytes"] == 0
    assert gpus.overflows()[0] == f"GPU-fake-0: {7 * GIB} bytes are held, and there are {6 * GIB}"


def test_a_gpu_is_lost_and_found_while_the_other_is_well(gpus: FakeGpus, program: Program) -> None:
    """At run time, as often as the test likes."""
    program.sample()
    for _ in range(2):
        gpus.lose(1)
        one, two = program.sample()
        assert (one["health"], one["free_bytes"]) == ("", 6 * GIB)
        assert (two["uuid"], two["free_bytes"]) == (gpus.uuid(1), None) and "bus" in two["health"]
        gpus.find(1)
        two = program.sample()[1]
        assert (two["health"], two["free_bytes"]) == ("", 8 * GIB)


def test_the_total_may_change_and_be_absent(gpus: FakeGpus, program: Program) -> None:
    """In bytes; without one it is the machine's."""
    gpus.set_total(4 * GIB + 5)
    assert program.sample()[0]["total_bytes"] == 4 * GIB + 5
    gpus.set_total(None)
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert program.sample()[0]["total_bytes"] == total_kib * 1024


# Below the real daemon.


def shown(daemon: Daemon, uuid: str) -> dict[str, Any]:
    """What ListGpus says of one GPU."""
    return next(record for record in map(plain, daemon.call("ListGpus")) if record["Uuid"] == uuid)


@pytest.mark.engines
def test_a_real_llama_server_is_a_process_of_the_gpu(place: Place, llama_server: str) -> None:
    """A build for the CPU starts with what gpud tells it about the GPU, and holds what its rule says until it ends."""
    path = tiny(place.root / "tiny.gguf")
    with FakeGpus(place.root / "gpus", 6 * GIB) as gpus:
        place.environment |= gpus.environment()
        gpus.rule(str(path), 3 * GIB)
        model = {**embedded(path), "engine": "llama_server", "size": "3GiB", "layers": "all"}
        place.configure({"tiny": model, "spare": engine()}, engines={"llama_server": {"binary": llama_server}})
        daemon = place.start()
        assert shown(daemon, gpus.uuid())["VramTotal"] == 6 * GIB
        pid = daemon.loaded("tiny")["child"]["pid"]
        assert daemon.model("tiny")["Device"] == gpus.uuid()
        settle(lambda: daemon.model("tiny")["VramBytes"] == 3 * GIB, "it is measured")
        assert shown(daemon, gpus.uuid())["VramUsed"] == 3 * GIB
        assert daemon.unload("tiny").result == "done"
        assert gone(pid)
        assert gpus.overflows() == []
        daemon.aftermath()


def test_nothing_is_loaded_on_a_lost_gpu_and_it_is_taken_up_again(place: Place) -> None:
    """The refusal has the reason; nobody has to tell the daemon that the GPU is back."""
    with FakeGpus(place.root / "gpus", 6 * GIB) as gpus:
        place.environment |= gpus.environment()
        place.configure({"a": engine(size="1GiB", gpu=gpus.uuid()), "spare": engine()})
        daemon = place.start()
        assert daemon.load("a").result == "done", daemon.log()
        gpus.lose()
        assert daemon.unload("a").result == "done", daemon.log()
        refused = daemon.load("a")
        assert refused.result == "failed" and "fallen off the bus" in refused.message, refused
        assert "fallen off the bus" in shown(daemon, gpus.uuid())["Health"]
        gpus.find()
        assert daemon.load("a").result == "done", daemon.log()
        daemon.aftermath()
