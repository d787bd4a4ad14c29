"""The whole daemon on a machine with two NVIDIA GPUs: who is put where, what it sees, what the figures say."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daemon.harness import CallFailed, Daemon, Place, engine, settle, wait_gone
from fake_nvml import FakeProcess

from .conftest import LARGE, SMALL, Gpus

MIB = 1 << 20
RESERVE = 256 * MIB


def holds(mib: int, environment_file: Path | None = None, **settings: object) -> dict[str, object]:
    """An engine that holds so much of the first GPU that it sees, and writes down its environment."""
    switches = ("--environment-file", str(environment_file)) if environment_file else ()
    wanted = {"GPUD_FAKE_VRAM_MIB": str(mib), **settings.pop("environment", {})}  # type: ignore[dict-item]
    return engine(*switches, size=f"{mib}MiB", environment=wanted, **settings)


def gpu(daemon: Daemon, uuid: str) -> dict[str, Any]:
    return next(record for record in records(daemon, "Gpus") if record["Uuid"] == uuid)


def records(daemon: Daemon, key: str) -> list[dict[str, Any]]:
    return [{name: value[1] for name, value in record.items()} for record in daemon.status()[key]]


def measured(daemon: Daemon, model: str, size_bytes: int) -> None:
    """Wait until the model is shown with what it was measured to hold."""
    settle(lambda: daemon.model(model)["VramBytes"] == size_bytes, f"{model} is measured", lambda: str(daemon.status()))


def test_a_model_is_shown_with_what_the_driver_says_it_holds(place: Place, gpus: Gpus) -> None:
    """Its engine, its device and its measured bytes; the sum of the processes is what the driver counts."""
    place.configure({"chat": holds(1000), "spare": engine(gpu="host")})
    daemon = place.start()
    pid = daemon.loaded("chat")["child"]["pid"]
    measured(daemon, "chat", 1000 * MIB)
    model = daemon.model("chat")
    assert (model["Backend"], model["Device"], model["Pid"]) == ("custom", "GPU-large", pid)
    large = gpu(daemon, "GPU-large")
    listed = [{key: value[1] for key, value in process.items()} for process in large["Processes"]]
    assert {process["Pid"]: process["UsedBytes"] for process in listed} == {1: 180 * MIB, pid: 1000 * MIB}
    assert large["VramUsed"] == 1180 * MIB
    assert large["VramForeign"] == 180 * MIB
    assert (
        next(process["Name"] for process in listed if process["Pid"] == 1) == Path("/proc/1/comm").read_text().strip()
    )
    daemon.aftermath()


def test_each_child_sees_the_gpu_that_it_was_given_by_uuid(place: Place, gpus: Gpus) -> None:
    """By index, by uuid, by room, and none at all where the model is kept off the GPU."""
    seen = {name: place.root / f"{name}.json" for name in ("index", "uuid", "room", "off")}
    place.configure(
        {
            "index": holds(100, seen["index"], gpu=0),
            "uuid": holds(100, seen["uuid"], gpu="GPU-large"),
            "room": holds(3000, seen["room"]),
            "off": engine("--environment-file", str(seen["off"]), gpu="host"),
            "spare": engine(gpu="host"),
        }
    )
    daemon = place.start()
    for name in seen:
        assert daemon.load(name).result == "done", daemon.log()
    visible = {name: json.loads(path.read_text())["CUDA_VISIBLE_DEVICES"] for name, path in seen.items()}
    assert visible == {"index": "GPU-small", "uuid": "GPU-large", "room": "GPU-large", "off": ""}
    assert json.loads(seen["index"].read_text())["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert {name: daemon.model(name)["Device"] for name in seen} == {**visible, "off": "host"}
    daemon.aftermath()


def test_variables_of_the_engine_and_of_the_model_reach_the_child(place: Place, gpus: Gpus) -> None:
    """What all models of an engine share, what one model adds, what one model says otherwise; and of gpud's own where
    caches are, but no secret."""
    place.environment |= {"HF_HOME": "/data/hub", "HF_TOKEN": "secret"}
    own, shared = place.root / "own.json", place.root / "shared.json"
    place.configure(
        {
            "own": holds(10, own, environment={"CUDA_ALLOW_TF32": "0", "GGML_CUDA_NO_PINNED": "1"}),
            "shared": holds(10, shared),
            "spare": engine(gpu="host"),
        },
        engines={"custom": {"environment": {"CUDA_ALLOW_TF32": "1", "NVIDIA_TF32_OVERRIDE": "1"}}},
    )
    daemon = place.start()
    assert daemon.load("own").result == daemon.load("shared").result == "done"
    wanted = ("CUDA_ALLOW_TF32", "NVIDIA_TF32_OVERRIDE", "GGML_CUDA_NO_PINNED")
    assert [json.loads(own.read_text()).get(name) for name in wanted] == ["0", "1", "1"]
    assert [json.loads(shared.read_text()).get(name) for name in wanted] == ["1", "1", None]
    assert json.loads(shared.read_text())["HF_HOME"] == "/data/hub"
    assert "HF_TOKEN" not in json.loads(shared.read_text())
    daemon.aftermath()


def test_two_models_that_exceed_the_gpu_are_never_both_there(place: Place, gpus: Gpus) -> None:
    """The second one takes the place of the idle first, whose process is gone before the second starts."""
    gpus.have(SMALL)
    seen = place.root / "second.json"
    place.configure({"first": holds(1200), "second": holds(1000, seen), "spare": engine(gpu="host")})
    daemon = place.start()
    first = daemon.loaded("first")["child"]["pid"]
    since = len(daemon.client.signals)
    assert daemon.load("second").result == "done", daemon.log()
    wait_gone(first)
    assert daemon.state("first") == "unloaded"
    told = [s.body for s in daemon.client.signals[since:] if s.member == "ModelStateChanged"]
    assert told.index(("first", "unloaded", "budget")) < [body[:2] for body in told].index(("second", "loading")), told
    daemon.wait_log('"first", idle for .* makes room for "second"')
    daemon.aftermath()


def test_whoever_does_not_fit_beside_a_held_model_is_refused_with_numbers(place: Place, gpus: Gpus) -> None:
    """A held model is never evicted. The refusal has need and available, and the status says who holds what."""
    gpus.have(SMALL)
    place.configure({"first": holds(1200), "second": holds(1000), "spare": engine(gpu="host")})
    daemon = place.start()
    holder = place.client()
    daemon.loaded("first")
    measured(daemon, "first", 1200 * MIB)
    holder.call("Hold", "sss", "first", "a long job", "org.example.Job")
    (hold,) = records(daemon, "Holds")
    assert (hold["Model"], hold["Reason"], hold["Application"]) == ("first", "a long job", "org.example.Job")
    assert hold["Uid"] == os.getuid()
    assert daemon.model("first")["Holds"] == 1
    ended = daemon.load("second")
    assert ended.result == "failed"
    assert "needs 1000 MiB" in ended.message and "592 MiB are available on NVIDIA Small" in ended.message
    assert daemon.state("first") == "ready"
    with pytest.raises(CallFailed, match='"first" is held by') as refused:
        daemon.call("Unload", "s", "first")
    assert refused.value.name == "Busy"
    holder.close()
    settle(lambda: not records(daemon, "Holds"), "the hold has ended with its holder")
    assert daemon.load("second").result == "done"
    daemon.aftermath()


def test_a_configured_budget_is_the_most_that_is_taken(place: Place, gpus: Gpus) -> None:
    """What fits on the GPU and not in the budget is refused at once, with the budget."""
    gpus.have(LARGE)
    place.configure({"big": holds(3000), "spare": engine(gpu="host")}, gpu={"budget": "2GiB"})
    daemon = place.start()
    ended = daemon.load("big")
    assert ended.result == "failed"
    assert "needs 2.9 GiB" in ended.message and "budget of NVIDIA Large is 2.0 GiB" in ended.message
    assert gpu(daemon, "GPU-large")["Budget"] == 2 << 30
    daemon.aftermath()


def test_memory_of_other_programs_is_never_promised(place: Place, gpus: Gpus) -> None:
    """A game that came since the last load counts at the next one."""
    gpus.have(SMALL)
    place.configure({"chat": holds(1000), "spare": engine(gpu="host")})
    daemon = place.start()
    daemon.loaded("chat")
    measured(daemon, "chat", 1000 * MIB)
    assert gpu(daemon, "GPU-small")["Available"] == 1048 * MIB - RESERVE
    assert daemon.unload("chat").result == "done"
    gpus.have(replace(SMALL, processes=(FakeProcess(pid=1, mib=1500, kind="graphics"),)))
    ended = daemon.load("chat")
    assert ended.result == "failed"
    assert "292 MiB are available" in ended.message and "other programs hold the memory" in ended.message
    gpus.have(SMALL)
    again = daemon.load("chat")
    assert again.result == "done", (again, daemon.log())
    daemon.aftermath()


def test_the_status_says_who_holds_the_gpu_now(place: Place, gpus: Gpus) -> None:
    """A game that was started after the last load is seen within a second by whoever asks."""
    gpus.have(LARGE)
    place.configure({"chat": holds(1000), "spare": engine(gpu="host")})
    daemon = place.start()
    daemon.loaded("chat")
    measured(daemon, "chat", 1000 * MIB)
    gpus.have(replace(LARGE, processes=(FakeProcess(pid=1, mib=700, kind="graphics"),)))
    settle(lambda: gpu(daemon, LARGE.uuid)["VramForeign"] == 700 * MIB, "the game is seen")
    assert gpu(daemon, LARGE.uuid)["VramUsed"] == 1700 * MIB
    daemon.aftermath()
