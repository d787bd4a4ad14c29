"""What goes wrong around a daemon that runs: no descriptors left, directories removed under it, a frozen bus, a stopped
daemon, wishes that are taken back."""

import os
import resource
import shutil
import signal
import time

import pytest
from dbus.private_bus import PrivateBus

from .harness import CallFailed, Place, engine, gone, place_at, script, settle


def test_without_descriptors_a_load_fails_with_a_sentence(place: Place) -> None:
    """Not one more file may be opened: said, nothing breaks, and all works again afterwards."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    assert daemon.load("spare").result == "done"
    assert daemon.unload("spare").result == "done"
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    failed = []
    for room in range(14):
        used = max(int(entry.name) for entry in os.scandir(f"/proc/{daemon.pid}/fd")) + 1
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + room, hard))
        ended = daemon.load("model")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
        if ended.result == "failed":
            failed.append(room)
            assert "oo many" in ended.message or "does not tell" in ended.message, (
                f"room for {room}: {ended.message}\n{daemon.log()}"
            )
        if daemon.state("model") != "unloaded":
            assert daemon.unload("model").result == "done"
        settle(lambda: not place.children(), f"room for {room}: nothing is left")
    assert 0 in failed, "without any room it was loaded"
    assert daemon.load("model").result == "done", daemon.log()
    daemon.aftermath()


def test_a_removed_engines_directory_is_made_again(place: Place) -> None:
    """Somebody tidied up: the engine that runs is stopped as ever, and the next load finds a place."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    shutil.rmtree(place.engines)
    assert daemon.unload("model").result == "done"
    assert gone(record["child"]["pid"])
    assert daemon.load("model").result == "done", daemon.log()
    assert "model" in place.records()
    daemon.aftermath()


def test_a_frozen_bus_holds_nothing_up(mortal_bus: PrivateBus) -> None:
    """Models are unloaded for idleness while the bus does not read, and TERM ends the daemon in time with status 0."""
    with place_at(mortal_bus.address) as place:
        place.configure({"brief": engine(idle_timeout="500ms"), "other": engine()})
        daemon = place.start()
        with daemon.held("brief") as record:
            pid = record["child"]["pid"]
            daemon.loaded("other")
        os.kill(mortal_bus.pid, signal.SIGSTOP)
        try:
            daemon.wait_log('"brief" is unloaded')
            assert gone(pid)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 25, "it waited for an answer of the bus"
        finally:
            os.kill(mortal_bus.pid, signal.SIGCONT)
        place.check_empty()


def test_a_stopped_daemon_goes_on_where_it_was(place: Place) -> None:
    """SIGSTOP for longer than an idle time, as a laptop's sleep: afterwards the deadline has passed, and holds."""
    place.configure({"brief": engine(idle_timeout="700ms"), "held": engine(idle_timeout="700ms"), "spare": engine()})
    daemon = place.start()
    daemon.wait_job(daemon.ask_load("held", hold=("b", True)))
    assert daemon.load("brief").result == "done"
    daemon.signal(signal.SIGSTOP)
    time.sleep(1.0)  # The pause is the test.
    daemon.signal(signal.SIGCONT)
    daemon.wait_state("brief", "unloaded")
    assert daemon.state("held") == "ready"
    daemon.aftermath()


def test_a_canceled_load_leaves_nothing(place: Place) -> None:
    """By its caller; a job that has ended cannot be canceled."""
    place.configure({"slow": engine("--never-healthy"), "spare": engine()})
    daemon = place.start()
    job = daemon.ask_load("slow")
    settle(lambda: "slow" in place.records(), "it is written down")
    daemon.call("CancelJob", "u", job)
    assert daemon.wait_job(job).result == "canceled"
    daemon.wait_state("slow", "unloaded")
    with pytest.raises(CallFailed) as refused:
        daemon.call("CancelJob", "u", job)
    assert refused.value.name == "NoSuchJob"
    daemon.aftermath()


def test_one_of_two_callers_takes_its_wish_back(place: Place) -> None:
    """The other one still gets the model."""
    gate = place.root / "gate"
    place.configure({"slow": engine("--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    first, second = daemon.ask_load("slow"), daemon.ask_load("slow")
    daemon.call("CancelJob", "u", first)
    assert daemon.wait_job(first).result == "canceled"
    gate.touch()
    assert daemon.wait_job(second).result == "done"
    daemon.aftermath()


def test_everything_is_unloaded_whatever_it_is_doing(place: Place) -> None:
    """Ready, loading, waiting for its back-off, given up, cold: one call, one job, nothing left."""
    place.configure(
        {
            "ready": engine(),
            "loading": engine("--never-healthy"),
            "backing-off": script("exit 1"),
            "cold": engine(),
            "spare": engine(),
        },
        restart={"first": 30, "max": 30},
    )
    daemon = place.start()
    daemon.loaded("ready")
    loading = daemon.ask_load("loading")
    assert daemon.load("backing-off").result == "failed"
    waiting = daemon.ask_load("backing-off")
    settle(lambda: "loading" in place.records(), "it is written down")
    assert daemon.wait_job(int(daemon.call("UnloadAll"))).result == "done"
    assert daemon.wait_job(loading).result == "superseded"
    assert daemon.wait_job(waiting).result == "superseded"
    assert {daemon.state(name) for name in ("ready", "loading", "cold")} == {"unloaded"}
    daemon.aftermath()


def test_an_engine_that_puts_itself_into_the_background_is_not_taken_for_ready(place: Place) -> None:
    """It forks and its first process ends: the load fails with its status, and what it forked is ended."""
    place.configure({"daemonic": script("setsid sleep 1000 & exit 0"), "spare": engine()})
    daemon = place.start()
    ended = daemon.load("daemonic")
    assert ended.result == "failed" and "status 0" in ended.message, ended
    settle(lambda: not place.children(), "what it forked is gone")
    daemon.unload("daemonic")
    daemon.aftermath()


def test_broken_preloads_do_not_keep_the_daemon_from_starting(place: Place) -> None:
    """One cannot be started, one fails, one is well: READY comes, and the good one is loaded."""
    place.configure(
        {
            "missing": {"engine": "embedded", "file": str(place.root / "no.gguf"), "preload": True},
            "sad": script("exit 1", preload=True),
            "well": engine(preload=True),
            "spare": engine(),
        }
    )
    daemon = place.start()
    daemon.wait_state("well", "ready")
    daemon.wait_log("no.gguf")
    daemon.wait_log('Loading "sad" failed')
    daemon.aftermath()


def test_an_engine_that_answers_with_another_ones_name_is_still_stopped(place: Place) -> None:
    """Two models with the same unit-safe name: each has its own process, socket and record."""
    place.configure({"a/b": engine(), "a:b": engine(), "x" * 100: engine(), "spare": engine()})
    daemon = place.start()
    names = ["a/b", "a:b", "x" * 100]
    records = [daemon.loaded(name) for name in names]
    assert len({record["child"]["pid"] for record in records}) == 3
    assert len({record["endpoint"]["socket"] for record in records}) == 3
    assert daemon.unload("a/b").result == "done"
    assert daemon.state("a:b") == "ready"
    daemon.aftermath()
