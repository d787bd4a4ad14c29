"""Engines that fail in every way there is: what the caller learns, what is left, whether the next load works."""

import select
import time
from itertools import pairwise
from pathlib import Path

import pytest

from .harness import PYTHON, CallFailed, Place, engine, gone, script, settle, wait_gone


def test_a_load_and_an_unload_leave_nothing(place: Place) -> None:
    """The base of all others: load, unload, and the daemon is as it was."""
    place.configure({"spare": engine()})
    daemon = place.start()
    daemon.aftermath()


def test_an_engine_that_exits_at_once_is_spawned_only_so_often(place: Place) -> None:
    """Fifty wishes for an engine that exits at once start it five times, each start later than its back-off; then it is
    refused with the last lines of its output and a hint, and an unload clears the count."""
    starts = place.root / "starts"
    sad = script(f'date +%s.%N >> {starts}; echo "first line"; echo "the disk is made of cheese" >&2; exit 3')
    place.configure({"sad": sad, "spare": engine()}, restart={"first": 0.1, "max": 0.4, "attempts": 5})
    daemon = place.start()
    messages = []
    for _ in range(50):
        try:
            ended = daemon.load("sad")
        except CallFailed as refused:
            assert refused.name == "BackendFailed"
            messages.append(refused.text)
        else:
            assert ended.result == "failed"
            messages.append(ended.message)
    times = [float(line) for line in starts.read_text().split()]
    assert len(times) == 5, messages
    pauses = [after - before for before, after in pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.4), strict=True)), pauses
    assert "exited with status 3" in messages[0] and "the disk is made of cheese" in messages[0]
    assert "5 attempts have failed" in messages[-1] and "gpudctl reset sad" in messages[-1]
    assert daemon.model("sad")["Attempts"] == 5
    assert daemon.state("sad") == "failed"
    assert daemon.unload("sad").result == "done"
    assert daemon.state("sad") == "unloaded"
    assert daemon.model("sad")["Attempts"] == 0
    assert daemon.load("sad").result == "failed", "after an unload it may be tried again"
    assert len(starts.read_text().split()) == 6
    assert daemon.unload("sad").result == "done"
    daemon.aftermath()


def test_the_whole_life_of_a_failing_engine_is_in_the_log(place: Place) -> None:
    """The log says that it was given up, after how many tries, with the engine's last words."""
    place.configure(
        {"sad": script('echo "no such device" >&2; exit 7'), "spare": engine()},
        restart={"first": 0.1, "max": 0.1, "attempts": 2},
    )
    daemon = place.start()
    for _ in range(2):
        assert daemon.load("sad").result == "failed"
    line = daemon.wait_log('"sad" has failed 2 times in a row')
    assert "exited with status 7" in line
    daemon.wait_log("no such device")
    daemon.unload("sad")
    daemon.aftermath()


@pytest.mark.parametrize("switch", ["--never-healthy", "--hang-health", "--garbage"])
def test_an_engine_that_never_becomes_healthy_is_given_up_in_time(place: Place, switch: str) -> None:
    """The configured load time-out ends the load, and the engine with it; the message names the time-out."""
    place.configure({"slow": engine(switch, load_timeout="1s"), "spare": engine()})
    daemon = place.start()
    began = time.monotonic()
    ended = daemon.load("slow")
    took_s = time.monotonic() - began
    assert ended.result == "failed"
    assert "1 s" in ended.message, ended.message
    assert took_s >= 0.9
    daemon.wait_state("slow", "failed", "unloaded")
    settle(lambda: not place.children(), "the engine is gone")
    daemon.aftermath()


def test_an_engine_that_listens_late_is_loaded_all_the_same(place: Place) -> None:
    """A slow load is no failure while its time-out has not come."""
    place.configure({"late": engine("--listen-after", "0.5", "--ready-after", "0.5"), "spare": engine()})
    daemon = place.start()
    assert daemon.load("late").result == "done"
    daemon.aftermath()


def test_an_engine_that_ignores_signals_is_killed(place: Place) -> None:
    """The ladder has the configured length, the kill is announced and said, and others are not held up meanwhile."""
    deaf = engine("--ignore-term", stop={"drain": 0, "term": "600ms", "second_term": "400ms"})
    place.configure({"deaf": deaf, "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("deaf")
    began = time.monotonic()
    job = int(daemon.call("Unload", "s", "deaf"))
    # The ladder of one model delays no other.
    assert daemon.load("spare").result == "done"
    assert daemon.wait_job(job).result == "done"
    assert time.monotonic() - began >= 1.0
    wait_gone(record["child"]["pid"])
    assert "did not end within 1 s of being asked twice" in daemon.wait_log("is killed")
    daemon.aftermath()


def test_an_unload_with_force_does_not_skip_the_signals(place: Place) -> None:
    """Force means without draining; the engine may still end by itself."""
    asked = place.root / "asked-to-end"
    busy = {"get": "/queue", "any": ["queue_running"]}
    place.configure({"spare": engine("--busy", "1", "--term-file", str(asked), busy=busy)})
    daemon = place.start()
    record = daemon.loaded("spare")
    assert daemon.unload("spare", force=True).result == "done"
    assert gone(record["child"]["pid"])
    assert asked.exists()
    assert daemon.unload().result == "done", "nothing is loaded, and that is said, not refused"
    assert daemon.stop() == 0
    place.check_empty()


@pytest.mark.parametrize("end", ["unload", "crash"])
def test_a_grandchild_that_holds_the_pipe_is_ended_with_its_engine(place: Place, end: str) -> None:
    """A process that left the engine's session and keeps its output open holds nothing up, and does not outlive it."""
    place.configure({"parent": engine("--fork-holder"), "spare": engine()}, restart={"first": "60s", "max": "60s"})
    daemon = place.start()
    pid = daemon.loaded("parent")["child"]["pid"]
    others = set(place.children()) - {pid}
    assert len(others) == 1
    if end == "crash":
        place.kill(pid)
        daemon.wait_state("parent", "failed")
    else:
        assert daemon.unload("parent").result == "done"
    for other in others:
        wait_gone(other)
    if end == "crash":
        daemon.unload("parent")
    daemon.aftermath()


@pytest.mark.parametrize("switch", ["--print-mb", "--print-binary-mb"])
def test_a_hundred_megabytes_of_output_disturb_nobody(place: Place, switch: str) -> None:
    """Text or bytes of any kind, with or without line ends: calls are answered meanwhile, memory stays flat, the log
    gets a bounded part, and the engine is loaded."""
    # At the usual 200 lines a second a slow machine would rightly log most of it.
    log = {"engine_lines_per_second": 10}
    place.configure({"loud": engine(switch, "100", load_timeout="10m"), "spare": engine()}, logging=log)
    daemon = place.start()
    before_kib = daemon.memory_kib()
    job = daemon.ask_load("loud")
    calls = 0
    while not any(s.member == "JobRemoved" and s.body[0] == job for s in daemon.client.signals):
        daemon.call("Status")
        calls += 1
        # One caller has 200 calls a second: the next comes with the next signal, or after 10 ms.
        select.select([daemon.client.socket], [], [], 0.01)
    assert daemon.wait_job(job).result == "done", daemon.log()[-2000:]
    assert calls > 5
    assert daemon.memory_kib() - before_kib < 24 << 10
    assert len(daemon.log()) < 20 << 20
    daemon.aftermath()


def test_an_engine_that_closes_its_output_is_not_taken_for_dead(place: Place) -> None:
    """The end of its output is not its end."""
    place.configure({"mute": engine("--close-output"), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("mute")
    assert daemon.load("spare").result == "done"
    assert daemon.state("mute") == "ready"
    assert not gone(record["child"]["pid"])
    daemon.aftermath()


def test_an_engine_that_ends_by_itself_with_status_zero_is_cold(place: Place) -> None:
    """Somebody stopped it on purpose: it is unloaded, and not started again."""
    place.configure({"brief": engine("--shut-down-on", "/bye"), "spare": engine()})
    daemon = place.start()
    with place.stream(daemon.loaded("brief"), "POST", "/bye") as stream:
        assert b" 200 " in stream.rest()
    daemon.wait_state("brief", "unloaded")
    assert daemon.model("brief")["Restarts"] == 0
    daemon.aftermath()


# Killed ------------------------------------------------------------------------------------------------------------


def test_a_killed_idle_engine_comes_back_by_itself(place: Place) -> None:
    """kill -9 of a ready engine: announced as a crash with the signal, and loaded again after the back-off."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    first = daemon.loaded("model")
    since = len(daemon.client.signals)
    place.kill(first["child"]["pid"])
    daemon.client.wait_signal(lambda s: s.body[:2] == ("model", "failed") and s.body[2] == "crash", since=since)
    daemon.wait_state("model", "ready")
    second = place.records()["model"]
    assert second["child"]["pid"] != first["child"]["pid"] and second["unit"] != first["unit"]
    assert daemon.model("model")["Restarts"] == 1
    assert "ended by signal 9" in daemon.wait_log('"model": the engine')
    daemon.aftermath()


def test_an_engine_that_is_killed_again_and_again_is_given_up(place: Place) -> None:
    """Five crashes in a row, and it stays away until somebody asks; the sixth start is refused with the reason."""
    place.configure({"model": engine(), "spare": engine()}, restart={"first": 0.1, "max": 0.1, "attempts": 5})
    daemon = place.start()
    daemon.load("model")
    for _ in range(5):
        daemon.wait_state("model", "ready")
        since = len(daemon.client.signals)
        place.kill(place.records()["model"]["child"]["pid"])
        daemon.client.wait_signal(lambda s: s.body[:2] == ("model", "failed"), since=since)
    daemon.wait_log('"model" has failed 5 times in a row')
    assert daemon.state("model") == "failed"
    assert daemon.model("model")["RetryAtUSec"] == 0
    with pytest.raises(CallFailed, match=r"5 attempts have failed.*signal 9.*gpudctl reset model") as refused:
        daemon.ask_load("model")
    assert refused.value.name == "BackendFailed"
    daemon.unload("model")
    assert daemon.load("model").result == "done"
    daemon.aftermath()


def test_an_engine_killed_while_it_loads_fails_its_load(place: Place) -> None:
    """The caller learns by which signal it was ended."""
    ready_file = place.root / "listening"
    place.configure({"model": engine("--never-healthy", "--ready-file", str(ready_file)), "spare": engine()})
    daemon = place.start()
    job = daemon.ask_load("model")
    settle(ready_file.exists, "the engine listens")
    settle(lambda: "model" in place.records(), "it is written down")
    place.kill(place.records()["model"]["child"]["pid"])
    ended = daemon.wait_job(job)
    assert ended.result == "failed" and "signal 9" in ended.message, ended
    settle(lambda: "model" not in place.records(), "its record is gone")
    daemon.unload("model")
    daemon.aftermath()


def test_an_engine_killed_while_it_answers_ends_the_answer(place: Place) -> None:
    """Its client sees the end of the connection at once, and the engine comes back."""
    place.configure(
        {"model": engine("--stream-every", "0.01", busy={"get": "/queue", "any": ["queue_running"]}), "spare": engine()}
    )
    daemon = place.start()
    record = daemon.loaded("model")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        place.kill(record["child"]["pid"])
        stream.rest()
    daemon.wait_state("model", "failed", "loading", "ready")
    daemon.wait_log('"model": the engine was ended by signal 9')
    daemon.wait_state("model", "ready")
    daemon.aftermath()


def test_an_engine_killed_while_it_stops_is_simply_gone(place: Place) -> None:
    """In the middle of the ladder: the unload is done, nothing is a crash."""
    deaf = engine("--ignore-term", stop={"drain": 0, "term": "20s", "second_term": "20s"})
    place.configure({"deaf": deaf, "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("deaf")
    job = int(daemon.call("Unload", "s", "deaf"))
    daemon.wait_state("deaf", "unloading")
    place.kill(record["child"]["pid"])
    assert daemon.wait_job(job).result == "done"
    assert daemon.state("deaf") == "unloaded"
    assert "crash" not in {s.body[2] for s in daemon.client.signals if s.member == "ModelStateChanged"}
    daemon.aftermath()


def test_a_load_is_canceled_by_an_unload(place: Place) -> None:
    """Whoever waited learns by whom it was superseded; the engine is gone."""
    place.configure({"slow": engine("--never-healthy"), "spare": engine()})
    daemon = place.start()
    job = daemon.ask_load("slow")
    settle(lambda: "slow" in place.records(), "it is written down")
    assert daemon.unload("slow").result == "done"
    assert daemon.wait_job(job).result == "superseded"
    daemon.aftermath()


def test_a_load_goes_on_when_its_caller_has_gone(place: Place) -> None:
    """Who asked for the model may leave the bus: it is loaded all the same."""
    gate = place.root / "gate"
    place.configure({"slow": engine("--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    caller = place.client()
    caller.call("Load", "s", "slow")
    daemon.wait_state("slow", "loading")
    caller.close()
    gate.touch()
    daemon.wait_state("slow", "ready")
    daemon.aftermath()


def test_a_hold_ends_with_its_caller_while_the_load_goes_on(place: Place) -> None:
    """Loaded with hold, and gone before it was ready: loaded, held by nobody."""
    gate = place.root / "gate"
    place.configure({"slow": engine("--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    caller = place.client()
    caller.call("LoadWithOptions", "sa{sv}", "slow", {"hold": ("b", True)})
    assert daemon.model("slow")["Holds"] == 1
    caller.close()
    gate.touch()
    daemon.wait_state("slow", "ready")
    settle(lambda: daemon.model("slow")["Holds"] == 0, "the hold has ended")
    daemon.aftermath()


def test_a_caller_that_never_reads_disturbs_nobody(place: Place) -> None:
    """Twenty thousand calls whose answers nobody takes: others are answered meanwhile, and the daemon's memory is
    bounded."""
    place.configure({"spare": engine()})
    daemon = place.start()
    before_kib = daemon.memory_kib()
    silent = place.client()
    silent.socket.settimeout(0.2)
    try:
        for _ in range(20000):
            silent.send("Status")
    except TimeoutError:
        pass  # The bus takes no more of it.
    assert daemon.load("spare").result == "done"
    assert daemon.memory_kib() - before_kib < 48 << 10
    silent.close()
    daemon.aftermath()


# What cannot be started --------------------------------------------------------------------------------------------


def _executable(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    return path


ELF_OF_ANOTHER_MACHINE = (
    b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + (243).to_bytes(2, "little") + bytes(44)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not there"),
        (ELF_OF_ANOTHER_MACHINE, "riscv"),
        (b"\0\1\2 no program", "neither a program"),
        (b"#!/no/such/shell\n", "/no/such/shell"),
    ],
    ids=["missing", "other-machine", "garbage", "no-interpreter"],
)
def test_a_program_that_cannot_be_executed_is_named(place: Place, content: bytes | None, words: str) -> None:
    """Known before anything is started, or at the start itself: no attempt is counted, and the next wish tries anew."""
    program = place.root / "engine"
    if content is not None:
        _executable(program, content)
    model = {"engine": "custom", "command": [str(program), "${socket}"], "health": "/health", "size": "1MiB"}
    place.configure({"model": model, "spare": engine()})
    daemon = place.start()
    for _ in range(7):
        ended = daemon.load("model")
        assert ended.result == "failed"
        assert words in ended.message and str(program) in ended.message, ended.message
    _executable(program, f"#!/bin/sh\nexec {PYTHON} {engine()['command'][3]} --host $1\n".encode())  # type: ignore[index]
    assert daemon.load("model").result == "done", "repaired: it needs nobody's pardon"
    daemon.aftermath()
