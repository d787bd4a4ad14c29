"""``gpud --reap``: what a gpud left behind that cannot be started any more."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpud.core.facts import Endpoint
from gpud.core.ports import ChildRecord, RunnerRecord
from gpud.directories import Directories, alone
from gpud.processes.identity import stat_of
from gpud.store import FileStore

BOUND_S = 60.0


@pytest.fixture
def left() -> Iterator[subprocess.Popen[bytes]]:
    """An engine whose gpud is gone."""
    engine = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        yield engine
    finally:
        engine.kill()
        engine.wait()


def record_of(engine: subprocess.Popen[bytes]) -> RunnerRecord:
    stat = stat_of(engine.pid)
    assert stat is not None
    child = ChildRecord("tiny-1", "tiny", "custom", engine.pid, stat.start_time)
    return RunnerRecord("tiny-1", "tiny", "custom", "", Endpoint(port=1), child=child)


def reap(place: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **where(place)}
    command = [sys.executable, "-m", "gpud", "--user", "--reap"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND_S, check=False)


def where(place: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(place), "HOME": str(place)}


def test_a_recorded_engine_is_ended_and_forgotten(tmp_path: Path, left: subprocess.Popen[bytes]) -> None:
    """And said so, with its model and its process."""
    directories = Directories.find(where(tmp_path), user=True)
    with alone(directories.runtime):
        FileStore(runtime_dir=directories.runtime, state_dir=directories.state).keep(record_of(left))
    done = reap(tmp_path)
    assert done.returncode == 0
    assert f'Ended the engine of "tiny" (process {left.pid})' in done.stderr
    assert left.wait(BOUND_S) != 0
    with alone(directories.runtime):
        assert FileStore(runtime_dir=directories.runtime, state_dir=directories.state).records() == ()


def test_while_a_gpud_works_nothing_is_ended(tmp_path: Path, left: subprocess.Popen[bytes]) -> None:
    """Its engines are in good hands."""
    directories = Directories.find(where(tmp_path), user=True)
    with alone(directories.runtime):
        store = FileStore(runtime_dir=directories.runtime, state_dir=directories.state)
        store.keep(record_of(left))
        done = reap(tmp_path)
        assert done.returncode == 0 and "nothing to end" in done.stderr
        assert len(store.records()) == 1
    assert left.poll() is None
