"""The daemon, its bus and its signals: whatever ends when, nothing is orphaned and the next daemon starts clean."""

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus.private_bus import PrivateBus

from .harness import CallFailed, Client, Daemon, Place, engine, gone, place_at, script, settle, wait_gone


@pytest.fixture
def mortal_place(mortal_bus: PrivateBus) -> Iterator[Place]:
    with place_at(mortal_bus.address) as made:
        yield made


# kill -9 -----------------------------------------------------------------------------------------------------------


def test_engines_end_with_a_killed_daemon_in_the_foreground(place: Place) -> None:
    """Outside systemd nothing keeps an engine's pipes: ready, loading and deaf ones die with the daemon, and the
    restarted one starts clean."""
    place.configure(
        {
            "ready": engine(),
            "deaf": engine("--ignore-term"),
            "loading": engine("--never-healthy"),
            "spare": engine(),
        }
    )
    daemon = place.start()
    daemon.loaded("ready")
    daemon.loaded("deaf")
    daemon.ask_load("loading")
    settle(lambda: len(place.records()) == 3, "all are written down")
    pids = [record["child"]["pid"] for record in place.records().values()]
    daemon.kill9()
    for pid in pids:
        wait_gone(pid)
    settle(lambda: not place.children(), f"nothing lives of {place.children()}")
    again = place.start()
    assert again.call("ListModels")
    assert {name: again.state(name) for name in ("ready", "deaf", "loading")} == dict.fromkeys(
        ("ready", "deaf", "loading"), "unloaded"
    )
    settle(lambda: not place.left_files(), "records of the dead are forgotten", lambda: str(place.left_files()))
    assert again.load("ready").result == "done"
    again.aftermath()


def test_a_process_that_escaped_its_killed_daemon_is_ended_by_the_next(place: Place) -> None:
    """A grandchild in another session, deaf to TERM, whose engine and daemon are gone, is known by its mark."""
    place.configure({"parent": engine("--fork-holder"), "spare": engine()})
    daemon = place.start()
    pid = daemon.loaded("parent")["child"]["pid"]
    (escaped,) = set(place.children()) - {pid}
    daemon.kill9()
    wait_gone(pid)
    assert not gone(escaped)
    again = place.start()
    wait_gone(escaped)
    again.wait_log("Ended what was left of")
    again.aftermath()


def test_a_killed_daemon_frees_its_lock_and_its_name(place: Place) -> None:
    """Ten times in a row: each new one is up and owns the name."""
    place.configure({"spare": engine(), "pinned": engine(preload=True)})
    for _ in range(5):
        daemon = place.start()
        daemon.wait_state("pinned", "ready", "loading")
        daemon.kill9()
    daemon = place.start()
    daemon.wait_state("pinned", "ready")
    assert daemon.client.owner()
    daemon.aftermath()


def test_a_daemon_killed_at_any_moment_leaves_a_clean_start(place: Place) -> None:
    """While it starts, loads, stops and forgets engines of every kind: the next one begins with nothing, and works."""
    place.configure(
        {
            "quick": engine(),
            "slow": engine("--ready-after", "0.3", preload=True),
            "deaf": engine("--ignore-term", stop={"drain": 1, "term": "100ms", "second_term": "100ms"}),
            "parent": engine("--fork-holder"),
            "spare": engine(),
        }
    )
    moments = random.Random(9)
    for _ in range(5):
        daemon = place.start()
        client = place.client()
        for _ in range(moments.randrange(1, 6)):
            client.send(moments.choice(["Load", "Load", "Unload"]), "s", moments.choice(["quick", "deaf", "parent"]))
            time.sleep(moments.uniform(0.0, 0.2))
        daemon.kill9()
    daemon = place.start()
    daemon.wait_state("slow", "ready")
    settle(lambda: len(place.children()) == 1, "only the new engine lives", lambda: str(place.children()))
    settle(
        lambda: set(place.records()) == {"slow"}, "of the others nothing is written down", lambda: str(place.records())
    )
    settle(lambda: len(place.left_files()) == 2, "one record and one socket", lambda: str(place.left_files()))
    daemon.aftermath()


def test_unreadable_records_do_not_keep_the_daemon_from_starting(place: Place) -> None:
    """They are set aside, and that is said of each."""
    place.configure({"spare": engine()})
    place.engines.mkdir(parents=True)
    contents = ["{", "[]", '{"unit": 1}', "", "\0\1\2"]
    for number, content in enumerate(contents):
        (place.engines / f"tiny-{number}.json").write_text(content)
    daemon = place.start()
    daemon.wait_log("unreadable engine record", count=len(contents))
    for number in range(len(contents)):
        (place.engines / f"tiny-{number}.unreadable").unlink()
    daemon.aftermath()


def test_a_record_of_a_stranger_harms_nobody(place: Place) -> None:
    """A record whose process number belongs to another program now: that program lives on."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    path = place.engines / f"{record['unit']}.json"
    kept = path.read_text()
    daemon.kill9()
    wait_gone(record["child"]["pid"])
    path.write_text(kept.replace(f'"pid": {record["child"]["pid"]}', f'"pid": {os.getppid()}'))
    again = place.start()
    settle(lambda: not path.exists(), "the record is forgotten")
    assert not gone(os.getppid())
    again.aftermath()


# The second daemon -------------------------------------------------------------------------------------------------


def test_a_second_daemon_gives_way(place: Place) -> None:
    """It exits with 75 and names the first, which notices nothing: its models and engines stay."""
    place.configure({"spare": engine()})
    first = place.start()
    record = first.loaded("spare")
    second = place.start(wait=False)
    assert second.wait_exit() == 75
    assert f"already owned by another gpud (process {first.pid})" in second.log()
    assert first.state("spare") == "ready"
    assert not gone(record["child"]["pid"])
    assert place.records()["spare"] == record
    first.aftermath()


def test_a_second_daemon_with_other_directories_gives_way_too(place: Place, bus: PrivateBus) -> None:
    """The name on the bus decides then; what it would have loaded at its start leaves nothing."""
    place.configure({"spare": engine()})
    first = place.start()
    assert first.load("spare").result == "done"
    with place_at(bus.address) as other:
        other.configure({"eager": engine(preload=True)})
        second = other.start(wait=False)
        assert second.wait_exit() == 75
        assert f"(pid {first.pid})" in second.log()
        other.check_empty()
    assert first.state("spare") == "ready"
    first.aftermath()


# The bus -----------------------------------------------------------------------------------------------------------


def test_models_outlive_their_bus(mortal_bus: PrivateBus, mortal_place: Place) -> None:
    """The bus is killed, twice: engines keep running and answering, the daemon is back under its name each time."""
    place = mortal_place
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    for count in (1, 2):
        mortal_bus.kill()
        daemon.wait_log("lost the session bus", count=count)
        with place.stream(record, "GET", "/health") as stream:
            assert b" 200 " in stream.rest()
        mortal_bus.start()
        daemon.wait_log("owns org.kernelcore.GpuD", count=count + 1)
        daemon.new_client()
        assert daemon.state("model") == "ready"
    assert place.records()["model"] == record
    daemon.aftermath()


def test_holds_end_with_the_bus_and_loads_go_on(mortal_bus: PrivateBus, mortal_place: Place) -> None:
    """A holder's name means nothing on the next bus; a load that was under way is finished."""
    place = mortal_place
    gate = place.root / "gate"
    place.configure({"slow": engine("--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    daemon.call("LoadWithOptions", "sa{sv}", "slow", {"hold": ("b", True)})
    mortal_bus.kill()
    daemon.wait_log("lost the session bus")
    gate.touch()
    daemon.wait_log('"slow" is ready')
    mortal_bus.start()
    daemon.wait_log("owns org.kernelcore.GpuD", count=2)
    daemon.new_client()
    assert daemon.model("slow")["Holds"] == 0
    assert daemon.state("slow") == "ready"
    daemon.aftermath()


def test_the_daemon_starts_before_its_bus(mortal_bus: PrivateBus, mortal_place: Place) -> None:
    """Without a bus it works and says so; once there is one, it owns its name."""
    mortal_bus.kill()
    place = mortal_place
    place.configure({"eager": engine(preload=True), "spare": engine()})
    daemon = place.start(wait=False)
    daemon.wait_log('"eager" is ready')
    daemon.wait_log("cannot connect to the bus")
    mortal_bus.start()
    daemon.wait_log("owns org.kernelcore.GpuD")
    daemon.wait_ready()
    daemon.aftermath()


def test_the_daemon_stops_without_a_bus(mortal_bus: PrivateBus, mortal_place: Place) -> None:
    """TERM while the bus is away: engines are stopped, status 0."""
    place = mortal_place
    place.configure({"spare": engine()})
    daemon = place.start()
    daemon.loaded("spare")
    mortal_bus.kill()
    daemon.wait_log("lost the session bus")
    assert daemon.stop() == 0
    place.check_empty()


# Signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["idle", "ready", "loading", "deaf", "waiting"])
def test_a_signal_stops_every_engine(place: Place, number: int, moment: str) -> None:
    """TERM and INT alike: status 0, and no process, record or socket is left."""
    place.configure(
        {
            "ready": engine(),
            "loading": engine("--never-healthy"),
            "deaf": engine("--ignore-term", stop={"drain": 5, "term": "300ms", "second_term": "200ms"}),
            "waiting": script("exit 1"),
        },
        restart={"first": 30, "max": 30},
    )
    daemon = place.start()
    if moment == "waiting":
        assert daemon.load("waiting").result == "failed"
        daemon.ask_load("waiting")  # Waits for the end of its back-off.
    elif moment == "loading":
        daemon.ask_load("loading")
        settle(lambda: "loading" in place.records(), "it is written down")
    elif moment != "idle":
        daemon.loaded(moment)
    daemon.signal(number)
    assert daemon.wait_exit() == 0, daemon.log()
    place.check_empty()
    assert "gpud has stopped every engine and ends" in daemon.log()
    assert "internal error" not in daemon.log()


def test_a_stop_waits_for_a_running_answer_and_a_second_signal_does_not(place: Place) -> None:
    """The bound of the shutdown holds for the first signal; the second one ends the wait."""
    busy = engine("--stream-every", "0.02", busy={"get": "/queue", "any": ["queue_running"]})
    place.configure({"busy": busy}, shutdown_drain="60s")
    daemon = place.start()
    record = daemon.loaded("busy")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        daemon.signal(signal.SIGTERM)
        daemon.wait_state("busy", "unloading")
        for _ in range(20):
            assert stream.read(), "the answer was cut"
        assert daemon.running
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
        stream.rest()
    place.check_empty()


def test_a_stop_ends_a_running_answer_after_its_bound(place: Place) -> None:
    """And says which model was still busy."""
    busy = engine("--stream-every", "0.02", busy={"get": "/queue", "any": ["queue_running"]})
    place.configure({"busy": busy}, shutdown_drain="700ms")
    daemon = place.start()
    record = daemon.loaded("busy")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
        assert time.monotonic() - began >= 0.7
    assert '"busy" is still busy' in daemon.log()
    place.check_empty()


def test_nothing_is_loaded_any_more_once_it_stops(place: Place) -> None:
    """A wish that comes while it stops is refused by name."""
    busy = engine("--stream-every", "0.02", busy={"get": "/queue", "any": ["queue_running"]})
    place.configure({"busy": busy, "spare": engine()}, shutdown_drain="60s")
    daemon = place.start()
    record = daemon.loaded("busy")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        daemon.signal(signal.SIGTERM)
        daemon.wait_state("busy", "unloading")
        with pytest.raises(CallFailed) as refused:
            daemon.ask_load("spare")
        assert refused.value.name == "ShuttingDown"
        stream.close()
        assert daemon.wait_exit() == 0, "as soon as the answer has ended"
    place.check_empty()


def test_hangups_in_a_row_reload_and_disturb_nobody(place: Place) -> None:
    """Twenty hangups at once: the model stays, the last one is reported."""
    place.configure({"spare": engine()})
    daemon = place.start()
    record = daemon.loaded("spare")
    for _ in range(20):
        daemon.signal(signal.SIGHUP)
    daemon.wait_log("The configuration was reloaded")
    assert daemon.state("spare") == "ready"
    assert place.records()["spare"] == record
    daemon.aftermath()


def _signal_at(place: Place, number: int, after_s: float) -> tuple[Daemon, int]:
    daemon = place.start(wait=False)
    settle(lambda: _minds(daemon, signal.SIGHUP), "gpud itself runs")
    time.sleep(after_s)  # The moment is the point of it: it is drawn, not waited for.
    daemon.signal(number)
    if number == signal.SIGHUP:
        daemon.wait_ready()
        daemon.signal(signal.SIGTERM)
    return daemon, daemon.wait_exit()


def _minds(daemon: Daemon, number: int) -> bool:
    """Whether a signal is ignored or handled: what it does to a program that has only begun is Python's."""
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Ign|Cgt):\s*([0-9a-f]+)$", text, re.M)]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start_leaves_nothing(place: Place, number: int) -> None:
    """From gpud's first instruction to long after READY, with a model that is loaded at the start. Before gpud has
    taken a signal over, each has its usual effect; hangup never ends it."""
    place.configure({"eager": engine(preload=True), "stubborn": engine("--never-healthy", preload=True)})
    moments = random.Random(4711)
    for _ in range(6):
        daemon, status = _signal_at(place, number, moments.uniform(0.0, 1.1))
        assert status in (0, -number), f"{status}\n{daemon.log()}"
        assert status == 0 or "Loading" not in daemon.log(), "once there is something to be ended, it ends in order"
        assert "Traceback" not in daemon.log(), daemon.log()
        place.check_empty()


def test_signals_at_random_moments_leave_nothing(place: Place) -> None:
    """Loads, unloads, reloads and hangups under way, then TERM or INT, once or twice: status 0 and nothing left."""
    place.configure(
        {
            "quick": engine(),
            "slow": engine("--ready-after", "0.3"),
            "deaf": engine("--ignore-term", stop={"drain": 1, "term": "100ms", "second_term": "100ms"}),
            "sad": script("exit 9"),
        }
    )
    moments = random.Random(30)
    for _ in range(8):
        daemon = place.start()
        other = Client(place.address)
        try:
            for _ in range(moments.randrange(1, 6)):
                name = moments.choice(["quick", "slow", "deaf", "sad"])
                what = moments.choice(["Load", "Load", "Unload", "Reload", "hangup"])
                if what == "hangup":
                    daemon.signal(signal.SIGHUP)
                elif what == "Reload":
                    other.send("Reload")
                else:
                    other.send(what, "s", name)
                time.sleep(moments.uniform(0.0, 0.15))
            number = moments.choice([signal.SIGTERM, signal.SIGINT])
            daemon.signal(number)
            if moments.random() < 0.5:
                time.sleep(moments.uniform(0.0, 0.1))
                if daemon.running:
                    daemon.signal(moments.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
            assert daemon.wait_exit() == 0, daemon.log()
        finally:
            other.close()
        assert "Traceback" not in daemon.log() and "internal error" not in daemon.log(), daemon.log()
        place.check_empty()
