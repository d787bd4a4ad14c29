"""Memory on the whole daemon: a budget of host memory, a stand-in for NVIDIA's library whose figures come from living
processes, models that make room, wait and are refused."""

import re
import time
from pathlib import Path

import fake_nvml
import pytest
from fake_nvml import FakeGpu, FakeProcess

from .harness import CallFailed, Daemon, Place, embedded, engine, gone, plain, settle, tiny

MIB = 1 << 20


def _order(daemon: Daemon, *states: str) -> list[tuple[str, str]]:
    """The announced changes to these states."""
    return [
        (s.body[0], s.body[1]) for s in daemon.client.signals if s.member == "ModelStateChanged" and s.body[1] in states
    ]


# Host memory -------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_makes_room(place: Place) -> None:
    """Two fit, the third evicts the one that was used longest ago, and only that one."""
    models = {name: engine(size="300MiB") for name in ("a", "b", "c")}
    place.configure({**models, "spare": engine()}, gpu={"host_budget": "700MiB"})
    daemon = place.start()
    records = {name: daemon.loaded(name) for name in ("a", "b")}
    assert daemon.load("a").message.endswith("already loaded")
    assert daemon.load("c").result == "done"
    assert daemon.state("a") == "ready" and daemon.state("b") == "unloaded"
    assert gone(records["b"]["child"]["pid"])
    assert ("b", "unloading") in _order(daemon, "unloading") and len(_order(daemon, "unloading")) == 1
    assert '"b"' in daemon.wait_log('makes room for "c"')
    daemon.aftermath()


def test_what_cannot_fit_is_refused_with_need_and_available(place: Place) -> None:
    """Larger than the whole budget: nobody is unloaded for it."""
    place.configure(
        {"a": engine(size="300MiB"), "huge": engine(size="900MiB"), "spare": engine()}, gpu={"host_budget": "700MiB"}
    )
    daemon = place.start()
    daemon.loaded("a")
    ended = daemon.load("huge")
    assert ended.result == "failed"
    assert "900 MiB" in ended.message and "700 MiB" in ended.message
    assert daemon.state("a") == "ready"
    daemon.aftermath()


def test_held_pinned_and_busy_models_do_not_make_room(place: Place) -> None:
    """Each in its own way; whoever waits for the one that works is told so when its time is over."""
    busy = engine("--stream-every", "0.02", size="200MiB", busy={"get": "/queue", "any": ["queue_running"]})
    place.configure(
        {
            "held": engine(size="200MiB"),
            "pinned": engine(size="200MiB", pinned=True),
            "busy": busy,
            "new": engine(size="200MiB"),
            "spare": engine(),
        },
        gpu={"host_budget": "700MiB"},
        queue={"timeout": 3, "turn": 3},
    )
    daemon = place.start()
    daemon.wait_state("pinned", "ready")
    daemon.loaded("held")
    cookie = daemon.call("Hold", "sss", "held", "because", "test")
    record = daemon.loaded("busy")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        job = daemon.ask_load("new")
        # The engine says that it works, and stays: there is nobody left to make room.
        ended = daemon.wait_job(job)
        assert ended.result == "timeout" and re.search(r"it has waited \d+ s", ended.message), ended
        assert '"busy"' in ended.message, ended
        for _ in range(20):
            assert stream.read(), "the answer was cut"
    assert {daemon.state(name) for name in ("held", "pinned")} == {"ready"}
    daemon.wait_state("busy", "ready")
    daemon.call("Release", "u", cookie)
    assert daemon.load("new").result == "done"
    daemon.aftermath()


def test_who_forbids_eviction_is_refused_instead(place: Place) -> None:
    """evict=false: rather no model than another one less."""
    place.configure(
        {"a": engine(size="500MiB"), "b": engine(size="500MiB"), "spare": engine()}, gpu={"host_budget": "700MiB"}
    )
    daemon = place.start()
    daemon.loaded("a")
    ended = daemon.wait_job(daemon.ask_load("b", evict=("b", False)))
    assert ended.result == "failed" and "allow eviction" in ended.message
    assert daemon.state("a") == "ready"
    daemon.aftermath()


def test_a_swap_back_and_forth_never_has_both(place: Place) -> None:
    """Ten swaps: each load is done, and the two engines never live at the same time."""
    place.configure(
        {"a": engine(size="500MiB"), "b": engine(size="500MiB"), "spare": engine()}, gpu={"host_budget": "700MiB"}
    )
    daemon = place.start()
    for _ in range(3):
        for name in ("a", "b"):
            assert daemon.load(name).result == "done"
            assert set(place.records()) == {name}
            assert len(place.children()) == 1
    daemon.aftermath()


def test_everybody_asks_for_everything_at_once(place: Place) -> None:
    """Eight models of which two fit, asked for at the same time: every job ends, with a model or with the numbers, and
    there are never more than two engines."""
    models = {f"m{number}": engine(size="300MiB") for number in range(8)}
    place.configure({**models, "spare": engine()}, gpu={"host_budget": "700MiB"})
    daemon = place.start()
    jobs = [daemon.ask_load(name) for name in models]
    ends = [daemon.wait_job(job, timeout_s=60) for job in jobs]
    assert all(end.result == "done" or "it needs 300 MiB" in end.message for end in ends), ends
    assert sum(end.result == "done" for end in ends) >= 2
    assert len(place.records()) <= 2
    for name in models:
        assert daemon.load(name).result == "done", "one after the other all of them fit"
    daemon.aftermath()


# A GPU -------------------------------------------------------------------------------------------------------------


class Card:
    """The stand-in GPU of a place, which a test changes while the daemon runs."""

    def __init__(self, place: Place, *gpus: FakeGpu, **settings: object) -> None:
        self.file = place.root / "nvml.conf"
        self.call_log = place.root / "nvml.calls"
        self._settings = {"call_log": self.call_log, "state": place.root / "nvml.state", **settings}
        self.set(*gpus)
        place.environment.update(fake_nvml.environment(self.file))

    def set(self, *gpus: FakeGpu) -> None:
        fake_nvml.write_config(self.file, gpus or (FakeGpu(total_mib=8192),), **self._settings)  # type: ignore[arg-type]

    def calls(self) -> list[str]:
        return fake_nvml.calls(self.call_log)

    def is_left_alone(self) -> bool:
        """Looks for a while: the last call of what has just been done may still be on its way, and nobody tells."""
        before = len(self.calls())
        time.sleep(1.5)
        return len(self.calls()) == before


def _on_gpu(mib: int, *switches: str, size: str = "", **settings: object) -> dict[str, object]:
    """An engine that holds so much of the GPU while it lives."""
    return engine(*switches, size=size or f"{mib}MiB", environment={"GPUD_FAKE_VRAM_MIB": str(mib)}, **settings)


def _gpu(daemon: Daemon) -> dict[str, object]:
    return next(g for g in (plain(r) for r in daemon.call("ListGpus")) if g["Uuid"] != "host")


def test_a_model_on_the_gpu_is_measured_by_its_processes(place: Place) -> None:
    """What the driver tells of its process is what the model is said to hold."""
    Card(place)
    place.configure({"a": _on_gpu(1500, size="2GiB"), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("a")
    settle(lambda: _gpu(daemon)["Committed"] == 1500 * MIB, "the load has settled")
    assert daemon.model("a")["VramBytes"] == 1500 * MIB
    assert daemon.model("a")["Device"] == FakeGpu().uuid
    status = _gpu(daemon)
    assert status["VramUsed"] == 1500 * MIB and status["Committed"] == 1500 * MIB
    assert [p["Pid"][1] for p in status["Processes"]] == [record["child"]["pid"]]  # type: ignore[attr-defined,index]
    assert status.get("VramForeign", 0) == 0
    daemon.aftermath()


def test_what_was_measured_is_what_the_next_load_reserves(place: Place) -> None:
    """Where nothing is declared, a first guess is corrected by what the driver tells; a daemon that is started anew
    still knows it."""
    Card(place)
    environment = {"GPUD_FAKE_VRAM_MIB": "3000"}
    place.configure({"a": embedded(tiny(place.root / "tiny.gguf"), environment=environment), "spare": engine()})
    daemon = place.start()
    assert daemon.load("a").result == "done", daemon.log()
    settle(lambda: daemon.model("a")["VramBytes"] == 3000 * MIB, "it is measured")
    # While it loaded, or when it had: the look comes when it comes.
    daemon.wait_log(r'"a" holds 2\.9 GiB, more than the \d+ MiB reserved for it')
    assert daemon.unload("a").result == "done"
    assert daemon.stop() == 0
    again = place.start()
    assert again.load("a").result == "done"
    assert again.model("a")["NeedBytes"] == 3000 * MIB
    again.aftermath()


def test_the_gpu_is_a_budget_that_models_make_room_in(place: Place) -> None:
    """The least recently used one goes, and the new one starts once the memory has come back."""
    Card(place)
    place.configure({name: _on_gpu(3000) for name in ("a", "b", "c")} | {"spare": engine()})
    daemon = place.start()
    records = {name: daemon.loaded(name) for name in ("a", "b")}
    assert daemon.load("c").result == "done", daemon.log()
    assert daemon.state("a") == "unloaded" and daemon.state("b") == "ready"
    assert gone(records["a"]["child"]["pid"])
    daemon.aftermath()


def test_memory_that_comes_back_late_is_waited_for(place: Place) -> None:
    """The driver shows an ended engine's memory as used for a while: the next engine is not started before that."""
    Card(place, linger_ms=1500)
    started = place.root / "started"
    place.configure({"a": _on_gpu(5000), "b": _on_gpu(5000, "--ready-file", str(started)), "spare": engine()})
    daemon = place.start()
    pid = daemon.loaded("a")["child"]["pid"]
    began = time.monotonic()
    job = daemon.ask_load("b")
    settle(lambda: gone(pid), "a is gone")
    assert daemon.wait_job(job).result == "done"
    # Both clocks are one; what was before a's end counts in favor of nobody.
    assert float(started.read_text()) - began >= 1.5, "it did not wait for the memory"
    daemon.aftermath()


def test_memory_that_never_comes_back_is_not_waited_for_ever(place: Place) -> None:
    """After memory_wait the load is refused, with the numbers."""
    Card(place, linger_ms=3_600_000)
    place.configure({"a": _on_gpu(5000), "b": _on_gpu(5000), "spare": engine()}, memory_wait="1s")
    daemon = place.start()
    daemon.loaded("a")
    began = time.monotonic()
    ended = daemon.load("b")
    assert ended.result == "failed" and "4.9 GiB" in ended.message, ended
    assert time.monotonic() - began > 0.8
    daemon.aftermath()


def test_what_other_programs_hold_counts(place: Place) -> None:
    """A game takes most of the card: refused with need and available, told as foreign; loaded once it has ended."""
    card = Card(place)
    place.configure({"a": _on_gpu(3000), "spare": engine()})
    daemon = place.start()
    card.set(FakeGpu(total_mib=8192, used_mib=0, processes=[FakeProcess(99999, 7000, "graphics")]))
    ended = daemon.load("a")
    assert ended.result == "failed" and "2.9 GiB" in ended.message, ended
    assert _gpu(daemon)["VramForeign"] == 7000 * MIB
    card.set()
    assert daemon.load("a").result == "done"
    daemon.aftermath()


def test_a_killed_engine_comes_back_only_when_its_memory_has(place: Place) -> None:
    """kill -9 on the GPU, with a driver that is slow to notice."""
    Card(place, linger_ms=500)
    place.configure({"a": _on_gpu(5000), "spare": engine()})
    daemon = place.start()
    pid = daemon.loaded("a")["child"]["pid"]
    since = len(daemon.client.signals)
    place.kill(pid)
    daemon.client.wait_signal(lambda s: s.body[:2] == ("a", "failed"), since=since)
    daemon.wait_state("a", "ready")
    daemon.aftermath()


def test_nothing_is_asked_of_the_driver_while_nothing_happens(place: Place) -> None:
    """Not a call while idle: with nothing loaded and, but for the slow watch, with a model loaded. At the end the
    driver is let go.
    """
    device = place.root / "nvidia0"
    device.touch()
    card = Card(place, device=device)
    place.configure({"a": _on_gpu(1000, size="2GiB"), "spare": engine(gpu="host")})
    daemon = place.start()
    daemon.loaded("a")
    settle(lambda: _gpu(daemon)["Committed"] == 1000 * MIB, "the load has settled")
    settle(card.is_left_alone, "nothing is asked", lambda: str(card.calls()[-20:]))
    assert daemon.unload("a").result == "done"
    settle(lambda: str(device) not in daemon.descriptors(), "the device is let go")
    settle(card.is_left_alone, "nothing is asked", lambda: str(card.calls()[-20:]))
    daemon.aftermath()


@pytest.mark.parametrize("error", ["GPU_IS_LOST", "UNKNOWN"])
def test_a_lost_gpu_is_degraded_and_said(place: Place, error: str) -> None:
    """Loads are refused by name, models without a GPU still load; once it is back, so is everything."""
    card = Card(place)
    place.configure({"a": _on_gpu(1000), "host": engine(gpu="host"), "spare": engine()})
    daemon = place.start()
    assert daemon.load("a").result == "done"
    assert daemon.unload("a").result == "done"
    card.set(FakeGpu(total_mib=8192, errors={"": error}))
    ended = daemon.load("a")
    assert ended.result == "failed", ended
    assert "no GPU can be used" in ended.message
    assert daemon.property("Degraded") == "gpu-unavailable"
    assert daemon.load("host").result == "done"
    card.set()
    assert daemon.load("a").result == "done", daemon.log()
    assert daemon.property("Degraded") == ""
    daemon.aftermath()


def test_a_driver_that_hangs_holds_up_nobody_but_loads(place: Place) -> None:
    """Calls are answered and models on the host are unloaded while it hangs; the load gets a reason in time."""
    card = Card(place)
    place.configure({"a": _on_gpu(1000), "host": engine(gpu="host"), "spare": engine()})
    daemon = place.start()
    assert daemon.load("host").result == "done"
    card.set(FakeGpu(total_mib=8192, errors={"nvmlDeviceGetMemoryInfo_v2": "hang", "nvmlDeviceGetMemoryInfo": "hang"}))
    job = daemon.ask_load("a")
    # It gives up after five seconds; whoever asks for fresh figures waits for one at most, and for others not at all.
    daemon.call("Status")
    for _ in range(5):
        daemon.call("ListModels")
    assert not any(s.member == "JobRemoved" and s.body[0] == job for s in daemon.client.signals), "they waited for it"
    assert daemon.unload("host").result == "done"
    ended = daemon.wait_job(job)
    assert ended.result == "failed" and "NVML has not answered for 5 s" in ended.message, ended
    card.set()
    settle(lambda: daemon.load("a").result == "done", "it recovers")
    daemon.aftermath()


def test_the_gpu_of_another_size_after_a_reload(place: Place) -> None:
    """A smaller budget for the next load: what is loaded stays, what does not fit is refused."""
    Card(place)
    models = {"a": _on_gpu(3000), "b": _on_gpu(3000), "spare": engine()}
    place.configure(models)
    daemon = place.start()
    daemon.loaded("a")
    cookie = daemon.call("Hold", "sss", "a", "because", "test")
    place.configure(models, gpu={"budget": "4GiB"})
    daemon.reload()
    ended = daemon.load("b")
    assert ended.result == "failed" and "budget 4.0 GiB" in ended.message, ended
    assert daemon.state("a") == "ready"
    daemon.call("SetVramBudget", "t", 8 << 30)
    assert daemon.load("b").result == "done"
    daemon.call("Release", "u", cookie)
    daemon.aftermath()


def test_a_gpu_that_is_not_there_is_refused_by_name(place: Place) -> None:
    """The refusal lists those that are."""
    Card(place)
    place.configure({"a": _on_gpu(1000, gpu="GPU-ffffffff-2222-3333-4444-555555555555"), "spare": engine()})
    daemon = place.start()
    ended = daemon.load("a")
    assert ended.result == "failed" and FakeGpu().uuid in ended.message, ended
    with pytest.raises(CallFailed):
        daemon.unload("a")
    daemon.aftermath()


def test_call_logs_are_no_fiction(place: Place) -> None:
    """The stand-in really is what the daemon asks: without a call there would be nothing to count."""
    card = Card(place)
    place.configure({"a": _on_gpu(1000), "spare": engine()})
    daemon = place.start()
    daemon.loaded("a")
    assert any(name.startswith("nvmlDeviceGetMemoryInfo") for name in card.calls())
    assert Path(card.call_log).exists()
    daemon.aftermath()
