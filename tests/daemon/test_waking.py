"""The machine wakes up, and its GPU does not, or only later; and what of a model is kept over the sleep."""

import json

import pytest
from fake_cuda import FakeCuda
from fake_nvml.gpu import GIB, FakeGpus

from .doors import Doors
from .harness import CallFailed, Daemon, Place, engine, gone, on_gpu
from .mock_machine import MockLogind, is_awake, started, wait_until
from .own_files import nvidia_driver

NO_RESERVE = {"reserve": 0, "watch": 0}


@pytest.fixture
def cuda(place: Place, gpus: FakeGpus) -> FakeCuda:
    """The driver is loaded, and both of its libraries are there."""
    made = FakeCuda(place.root / "cuda")
    place.environment = made.environment(place.environment)
    return made


def slept(daemon: Daemon, logind: MockLogind) -> None:
    """It has slept, and nothing is known yet of how it woke up."""
    logind.sleep(True)
    logind.wait_locks("shutdown")
    logind.sleep(False)


def test_a_gpu_that_did_not_wake_up_is_told_with_its_cure_and_comes_back_by_itself(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda, doors: Doors
) -> None:
    """On the bus, at the doors, by gpudctl and in the log; what needs no GPU goes on. Whoever mends it need not say so:
    a later try finds it, and what was loaded is loaded again.
    """
    nvidia_driver(place)
    place.configure({"a": on_gpu(place, gpus, "a"), "host": engine(gpu="host")}, gpu=NO_RESERVE)
    daemon = started(place, logind)
    assert daemon.load("a").result == "done", daemon.log()
    cuda.fail("cuMemAlloc_v2", 999)
    slept(daemon, logind)
    daemon.wait_log(
        "The GPUs cannot be used since the machine woke up: GPU 0 cannot be given memory by CUDA: CUDA_ERROR"
    )
    status = daemon.status()
    assert (status["Degraded"], status["State"]) == ("gpu-unavailable", "unavailable")
    assert status["DegradedText"].endswith("GPU 0 cannot be given memory by CUDA: CUDA_ERROR_UNKNOWN (999)")
    assert "rmmod nvidia_uvm && modprobe nvidia_uvm" in status["DegradedHint"]
    health = doors.front.ask("/health").value
    assert (health["status"], health["degraded"]) == ("ok", "gpu-unavailable")
    assert (health["reason"], health["hint"]) == (status["DegradedText"], status["DegradedHint"])
    shown = place.type("gpudctl", "status")
    assert status["DegradedText"] in shown and "modprobe nvidia_uvm" in shown
    assert json.loads(place.type("gpudctl", "status", "--json"))["degraded_hint"] == status["DegradedHint"]
    with pytest.raises(CallFailed) as caught:
        daemon.ask_load("a")
    assert caught.value.name == "GpuUnavailable"
    assert "modprobe nvidia_uvm" in caught.value.text
    told = doors.front.chat("a")
    assert (told.status, "since the machine woke up" in told.error["message"]) == (503, True)
    assert daemon.load("host").result == "done"
    cuda.work()
    daemon.wait_log("The GPUs can be used again; a is loaded again")
    daemon.wait_state("a", "ready")
    status = daemon.status()
    assert (status["Degraded"], status["DegradedText"], status["DegradedHint"]) == ("", "", "")
    assert gpus.overflows() == []
    daemon.aftermath(spare="host")


def test_a_reload_tries_the_gpus_at_once(place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda) -> None:
    """As gpud-uvm-reload does after its work; where it was in vain nothing is told twice."""
    nvidia_driver(place)
    place.configure({"a": on_gpu(place, gpus, "a")}, gpu=NO_RESERVE)
    daemon = started(place, logind)
    assert daemon.load("a").result == "done", daemon.log()
    cuda.fail()
    slept(daemon, logind)
    daemon.wait_log("CUDA cannot be started: CUDA_ERROR_UNKNOWN")
    daemon.reload()
    cuda.work()
    daemon.reload()
    daemon.wait_state("a", "ready")
    assert daemon.log().count("The GPUs cannot be used since") == 1
    daemon.aftermath(spare="a")


def test_a_gpu_that_needs_a_moment_is_not_told_of(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda
) -> None:
    """It is tried again before anything is said, and loads are refused as long."""
    nvidia_driver(place)
    place.configure({"a": on_gpu(place, gpus, "a")}, gpu=NO_RESERVE)
    daemon = started(place, logind)
    assert daemon.load("a").result == "done", daemon.log()
    cuda.fail()
    slept(daemon, logind)
    with pytest.raises(CallFailed, match=r"looks whether its GPUs work|is about to sleep"):
        daemon.ask_load("a")
    cuda.work()
    daemon.wait_state("a", "ready")
    assert "cannot be used" not in daemon.log()
    daemon.aftermath(spare="a")


def test_while_no_gpu_works_loads_run_on_the_processor_where_that_is_configured(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda
) -> None:
    """Whoever asks gets its model, in the machine's own memory."""
    nvidia_driver(place)
    place.configure(
        {"a": on_gpu(place, gpus, "a"), "b": on_gpu(place, gpus, "b")}, gpu=NO_RESERVE, suspend={"without_gpu": "cpu"}
    )
    daemon = started(place, logind)
    assert daemon.load("a").result == "done", daemon.log()
    assert daemon.model("a")["Device"] == gpus.uuid()
    cuda.fail()
    slept(daemon, logind)
    daemon.wait_log("The GPUs cannot be used since")
    assert daemon.load("b").result == "done", daemon.log()
    assert daemon.model("b")["Device"] == "host"
    assert daemon.state("a") == "unloaded"
    daemon.aftermath(spare="b")


@pytest.mark.parametrize("preserves", [1, 0])
def test_on_a_gpu_a_model_is_kept_where_its_driver_preserves_memory(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda, preserves: int
) -> None:
    """By NVreg_PreserveVideoMemoryAllocations; else it goes although it was to be kept, and the log says why."""
    nvidia_driver(place, PreserveVideoMemoryAllocations=preserves)
    place.configure({"a": on_gpu(place, gpus, "a")}, gpu=NO_RESERVE, suspend={"policy": "keep"})
    daemon = started(place, logind)
    before = daemon.loaded("a")["child"]["pid"]
    logind.sleep(True)
    logind.wait_locks("shutdown")
    assert [record["child"]["pid"] for record in place.records().values()] == ([before] if preserves else [])
    if not preserves:
        daemon.wait_log("not kept, because NVIDIA's driver does not preserve memory \\(PreserveVideoMemoryAlloc")
    logind.sleep(False)
    daemon.wait_state("a", "ready")
    is_awake(daemon, logind)
    assert (place.records()["a"]["child"]["pid"] == before) == bool(preserves)
    daemon.aftermath(spare="a")


def test_what_was_kept_on_a_gpu_that_did_not_wake_up_goes_until_it_works(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda
) -> None:
    """Its engine keeps the driver from being mended, and its answers are worth nothing. It is said which models that
    were, and they are loaded again as soon as the GPU works.
    """
    nvidia_driver(place, PreserveVideoMemoryAllocations=1)
    models = {"a": on_gpu(place, gpus, "a"), "host": engine(gpu="host")}
    place.configure(models, gpu=NO_RESERVE, suspend={"policy": "keep"})
    daemon = started(place, logind)
    before = {name: daemon.loaded(name)["child"]["pid"] for name in models}
    cuda.fail()
    slept(daemon, logind)
    daemon.wait_log("The GPUs cannot be used since the machine woke up: .*; a had been kept and is unloaded")
    daemon.wait_state("a", "unloaded")
    assert gone(before["a"])
    daemon.wait_log('"a" is unloaded, 1\\.0 GiB given back: its GPU did not keep it over the sleep')
    assert daemon.status()["Degraded"] == "gpu-unavailable"
    assert place.records()["host"]["child"]["pid"] == before["host"]
    cuda.work()
    daemon.wait_log("The GPUs can be used again; a is loaded again")
    daemon.wait_state("a", "ready")
    assert gpus.overflows() == []
    daemon.aftermath(spare="host")


def test_what_lost_its_memory_over_the_sleep_is_loaded_anew(
    place: Place, logind: MockLogind, gpus: FakeGpus, cuda: FakeCuda
) -> None:
    """The GPU works, and the engine says that it is well; only what it holds there tells."""
    nvidia_driver(place, PreserveVideoMemoryAllocations=1)
    place.configure({"a": on_gpu(place, gpus, "a")}, gpu=NO_RESERVE, suspend={"policy": "keep"})
    daemon = started(place, logind)
    pid = daemon.loaded("a")["child"]["pid"]
    wait_until(lambda: daemon.model("a")["VramBytes"] == GIB, "it is measured")
    gpus.rule(f"{place.root.name}-a.", GIB // 32)
    slept(daemon, logind)
    daemon.wait_log('"a" was kept over the sleep and has lost its memory: it holds 32 MiB of 1\\.0 GiB')
    gpus.rule(f"{place.root.name}-a.", GIB)
    wait_until(lambda: gone(pid), "the old engine is gone")
    daemon.wait_state("a", "ready")
    daemon.aftermath(spare="a")
