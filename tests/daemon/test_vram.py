"""Engines, a game and a training script share one GPU of 6 GiB on the whole daemon: nothing ever runs out of memory.

Everything is real but the library that tells of the GPU: the daemon, real llama-servers, the game's process. What a
process holds is ruled by its command line, from its start to its end.
"""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from fake_nvml.gpu import GIB, MIB, FakeGpus

from .harness import BOUND_S, CallFailed, Daemon, Place, llama_server, on_gpu, plain, settle, tiny

RESERVE = {"gpu": {"reserve": "256MiB", "watch": 1}}


def budget_error(daemon: Daemon, name: str) -> str:
    model = daemon.model(name)
    assert model["ErrorCode"] == "budget-exceeded", model
    return str(model["Error"])


# Sharing --------------------------------------------------------------------------------------------------------------


def test_two_models_and_a_game_never_hold_more_than_there_is(place: Place, gpus: FakeGpus) -> None:
    """Each load waits until the one before it is measured to be gone, and the game's memory is the game's."""
    place.configure({"a": on_gpu(place, gpus, "a", 3), "b": on_gpu(place, gpus, "b", 2.5)}, **RESERVE)
    gpus.late(150)
    gpus.set_foreign(1 * GIB)
    daemon = place.start()
    for name in ("a", "b", "a", "b"):
        assert daemon.load(name).result == "done", daemon.log()
    assert gpus.overflows() == []
    assert daemon.state("a") == "unloaded"
    daemon.wait_log(r'"a", idle for .* makes room for "b" \(needs 2\.5 GiB, 1\.8 GiB available on NVIDIA Fake 0\)')
    assert daemon.stop() == 0


def test_memory_that_never_comes_back_is_told_and_not_counted_as_free(place: Place, gpus: FakeGpus) -> None:
    """The load that waited for it is refused with the numbers, and nothing overflows."""
    place.configure({"a": on_gpu(place, gpus, "a", 4), "b": on_gpu(place, gpus, "b", 3)}, memory_wait="0.5", **RESERVE)
    gpus.late(-1)
    daemon = place.start()
    assert daemon.load("a").result == "done"
    assert daemon.load("b").result == "failed"
    daemon.wait_log("have not come back within 0.5 s after their engine ended; they do not count as free")
    assert "it needs 3.0 GiB, 1.8 GiB are available on NVIDIA Fake 0" in budget_error(daemon, "b")
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_an_idle_model_gives_way_to_a_game_that_grows(place: Place, gpus: FakeGpus) -> None:
    """Seen on the slow timer while something is loaded; the alert is told once."""
    place.configure({"a": on_gpu(place, gpus, "a", 2)}, **RESERVE)
    gpus.set_foreign(1 * GIB)
    daemon = place.start()
    assert daemon.load("a").result == "done"
    gpus.set_foreign(4 * GIB)
    daemon.wait_state("a", "unloaded")
    daemon.wait_log(r'"a", idle for .* and holding 2\.0 GiB, gives way: 0 MiB are free on NVIDIA Fake 0, 256 MiB are')
    daemon.wait_log(r"vram usage 100% >= 90% on NVIDIA Fake 0: .* by other programs: game \(pid \d+\) 4\.0 GiB")
    alert = daemon.client.wait_signal(lambda s: s.member == "VramAlert")
    assert alert.body[0] == "GPU-fake-0" and alert.body[2] is True
    assert daemon.stop() == 0


def test_a_load_is_refused_while_other_programs_hold_too_much(place: Place, gpus: FakeGpus) -> None:
    """gpu.external_busy_mib: by name and number, and again allowed once they have gone."""
    place.configure({"a": on_gpu(place, gpus, "a", 1)}, gpu={"external_busy_mib": 2048})
    gpus.set_foreign(3 * GIB, name="blender")
    daemon = place.start()
    assert daemon.load("a").result == "failed"
    assert daemon.model("a")["ErrorCode"] == "gpu-taken"
    daemon.wait_log(r"3\.0 GiB of NVIDIA Fake 0 are held by other programs, the limit is 2\.0 GiB \(blender")
    gpus.end_foreign("blender")
    assert daemon.load("a").result == "done"
    assert daemon.stop() == 0


def test_a_model_larger_than_the_gpu_is_refused_with_numbers_and_starts_nothing(place: Place, gpus: FakeGpus) -> None:
    """Nobody is unloaded for what can never fit."""
    place.configure({"a": on_gpu(place, gpus, "a", 2), "big": on_gpu(place, gpus, "big", 40)}, **RESERVE)
    daemon = place.start()
    assert daemon.load("a").result == "done"
    ended = daemon.load("big")
    assert ended.result == "failed"
    assert "it needs 40.0 GiB, the whole budget of NVIDIA Fake 0 is 5.8 GiB" in ended.message
    assert daemon.state("a") == "ready"
    assert len(place.records()) == 1
    assert daemon.stop() == 0


def test_many_loads_at_once_are_served_or_told_that_the_queue_is_full(place: Place, gpus: FakeGpus) -> None:
    """Nobody overflows anything, every job ends once."""
    names = [f"m{number}" for number in range(24)]
    models = {name: on_gpu(place, gpus, name, 1.5) for name in names}
    place.configure(models, queue={"size": 8}, bus={"jobs": 100}, **RESERVE)
    daemon = place.start()
    jobs = [daemon.ask_load(name) for name in names]
    ended = [daemon.wait_job(job, 60) for job in jobs]
    results = [end.result for end in ended]
    assert set(results) == {"done", "failed"}
    refused = [end.message for end in ended if end.result == "failed"]
    assert all("8 wait for memory already, the limit is 8" in text for text in refused), refused
    assert results.count("done") >= 8
    assert gpus.overflows() == []
    assert daemon.stop() == 0


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_lost_takes_no_model_until_it_is_found_again(place: Place, gpus: FakeGpus) -> None:
    """As after Xid 79."""
    place.configure({"a": on_gpu(place, gpus, "a", 1)}, **RESERVE)
    daemon = place.start()
    gpus.lose(0)
    assert daemon.load("a").result == "failed"
    assert daemon.model("a")["ErrorCode"] == "gpu-unavailable"
    gpus.find(0)
    assert daemon.load("a").result == "done"
    assert daemon.stop() == 0


def test_a_gpu_that_works_in_the_machines_memory_is_used(place: Place, gpus: FakeGpus) -> None:
    """It tells no total of its own."""
    gpus.set_total(None)
    place.configure({"a": on_gpu(place, gpus, "a", 1)}, **RESERVE)
    daemon = place.start()
    assert daemon.load("a").result == "done", daemon.log()
    assert daemon.model("a")["Device"] == "GPU-fake-0"
    assert daemon.stop() == 0


def test_models_go_to_the_gpu_with_room_and_see_only_that_one(place: Place) -> None:
    """Two GPUs: the second model does not push the first one out."""
    with FakeGpus(place.root / "two", 6 * GIB, 8 * GIB) as gpus:
        place.environment |= gpus.environment()
        place.configure({"a": on_gpu(place, gpus, "a", 5), "b": on_gpu(place, gpus, "b", 5)}, **RESERVE)
        daemon = place.start()
        assert daemon.load("a").result == "done"
        assert daemon.load("b").result == "done"
        devices = {name: daemon.model(name)["Device"] for name in ("a", "b")}
        assert devices == {"a": "GPU-fake-1", "b": "GPU-fake-0"}
        for name in ("a", "b"):
            pid = place.records()[name]["child"]["pid"]
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert f"CUDA_VISIBLE_DEVICES={devices[name]}".encode() in environ
        assert daemon.stop() == 0


# The engine's own word ------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(place: Place) -> dict[str, object]:
    place.sections = {"engines": llama_server()}
    file = tiny(place.root / "tiny.gguf")
    return {"engine": "llama_server", "file": str(file), "context": 1024, "threads": 1}


def test_an_engine_that_takes_more_than_it_was_promised_is_ended_and_tried_once_more(
    place: Place, gpus: FakeGpus
) -> None:
    """Said to need 1 GiB it takes 3, of which 2 are there: it is ended while it loads, and refused with what is known
    then.
    """
    model = on_gpu(place, gpus, "m", 3)
    command = [*model["command"], "--ready-after", "20"]  # type: ignore[misc]
    place.configure({"m": {**model, "command": command, "size": "1GiB"}}, **RESERVE)
    gpus.set_foreign(4 * GIB - 256 * MIB)
    daemon = place.start()
    ended = daemon.load("m")
    assert ended.result == "failed", daemon.log()
    daemon.wait_log(r'"m" is ended while it loads: it holds 3\.0 GiB on NVIDIA Fake 0, it was promised 1\.0 GiB')
    assert re.search(r"it needs 3\.3 GiB, 2\.0 GiB are available", budget_error(daemon, "m"))
    assert place.records() == {}
    assert daemon.stop() == 0


def wait_kept(place: Place, table: str) -> None:
    """Until that is in the database, where the next daemon reads it: it is written in a thread, and nobody tells."""
    database = f"file:{place.state / 'gpud' / 'registry.db'}?mode=ro"

    def kept() -> bool:
        with (
            contextlib.suppress(sqlite3.OperationalError),  # It is being made, or in use.
            contextlib.closing(sqlite3.connect(database, uri=True)) as connection,
        ):
            return bool(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
        return False

    settle(kept, f"something is in the table {table}")


@pytest.mark.engines
def test_what_was_measured_is_reserved_the_next_time(place: Place, gpus: FakeGpus, llama: dict[str, object]) -> None:
    """Its file says 0.6 GiB, it holds 3: told as such, and known from then on, also to the next daemon."""
    gpus.rule(str(llama["file"]), 3 * GIB)
    place.configure({"m": llama}, **RESERVE)
    daemon = place.start()
    assert daemon.load("m").result == "done", daemon.log()
    daemon.wait_log(r'"m" holds 3\.0 GiB, more than the \d+ MiB reserved for it')
    wait_kept(place, "measured")
    assert daemon.unload("m").result == "done"
    assert daemon.stop() == 0
    again = place.start()
    assert again.load("m").result == "done", again.log()
    assert again.model("m")["NeedBytes"] == 3 * GIB
    assert again.model("m")["NeedSource"] == "measured"
    assert again.stop() == 0


@pytest.mark.engines
def test_what_an_engine_says_itself_is_kept_and_used_for_the_next_load(
    place: Place, gpus: FakeGpus, llama: dict[str, object]
) -> None:
    """The first load is calculated; the second, with another idle time, is by the engine's own count."""
    place.configure({"m": llama}, **RESERVE)
    daemon = place.start()
    assert daemon.load("m").result == "done", daemon.log()
    daemon.wait_log(r'Loading "m" with llama_server on NVIDIA Fake 0, .* \(calculated from its file\)')
    wait_kept(place, "probe")
    assert daemon.unload("m").result == "done"
    daemon.kill9()
    again = place.start()
    assert again.load("m").result == "done", again.log()
    again.wait_log(r'Loading "m" with llama_server .* \((by its engine\'s own count|as measured before)\)')
    assert again.stop() == 0


# Claims ---------------------------------------------------------------------------------------------------------------


def claims(daemon: Daemon) -> list[dict[str, object]]:
    return [plain(claim) for claim in daemon.property("Claims")]


def test_a_training_script_gets_its_memory_and_gives_it_back_however_it_ends(place: Place, gpus: FakeGpus) -> None:
    """Idle models go for it, nothing is loaded over it, and kill -9 of gpudctl gives it back."""
    place.configure({"a": on_gpu(place, gpus, "a", 3)}, **RESERVE)
    daemon = place.start()
    assert daemon.load("a").result == "done"
    train = subprocess.Popen(
        ["gpudctl", "run", "--vram", "4GiB", "--", "/bin/sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exec sleep 60"],
        env=place.terminal(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert train.stdout is not None and train.stderr is not None
    assert train.stdout.readline() == "GPU-fake-0\n", train.stderr.read()
    assert daemon.state("a") == "unloaded"
    assert [claim["Bytes"] for claim in claims(daemon)] == [4 * GIB]
    ended = daemon.load("a")
    assert ended.result == "failed"
    assert "claims 4.0 GiB" in ended.message
    os.killpg(train.pid, signal.SIGKILL)
    train.communicate(timeout=BOUND_S)
    daemon.wait_log(r"4\.0 GiB of NVIDIA Fake 0 are given back by .* after")
    assert claims(daemon) == []
    assert daemon.load("a").result == "done"
    assert daemon.stop() == 0


def test_the_gpus_are_given_away_and_taken_back(place: Place, gpus: FakeGpus) -> None:
    """gpudctl yield: everything goes, loads are refused; after resume they are not."""
    place.configure({"a": on_gpu(place, gpus, "a", 3)}, **RESERVE)
    daemon = place.start()
    assert daemon.load("a").result == "done"
    place.type("gpudctl", "yield", "--why", "a long game")
    daemon.wait_state("a", "unloaded")
    with pytest.raises(CallFailed, match=r"the GPUs are given away.*a long game"):
        daemon.load("a")
    place.type("gpudctl", "resume")
    assert daemon.load("a").result == "done"
    assert daemon.stop() == 0
