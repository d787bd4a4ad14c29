"""Records of engines and measured sizes, on real files."""

import json
import stat
from pathlib import Path

import pytest

from gpud.core.facts import Endpoint
from gpud.core.ports import ChildRecord, RunnerRecord
from gpud.store import MEASUREMENTS_KEPT, FileStore

RECORD = RunnerRecord(
    unit="tiny-1",
    model="tiny",
    engine="embedded",
    fingerprint="f",
    endpoint=Endpoint(socket="/run/gpud/engines/tiny-1.sock", key="secret"),
    devices=("GPU-1",),
    reserved_bytes=7,
    context=4096,
    child=ChildRecord("tiny-1", "tiny", "embedded", 42, 4711),
    extra={"sizes": "{}"},
)


def store(tmp_path: Path) -> FileStore:
    return FileStore(runtime_dir=tmp_path / "run", state_dir=tmp_path / "state")


def test_a_record_outlives_the_daemon_until_it_is_forgotten(tmp_path: Path) -> None:
    """Everything comes back as it was, key and all."""
    store(tmp_path).keep(RECORD)
    assert store(tmp_path).records() == (RECORD,)
    store(tmp_path).forget(RECORD.unit)
    assert store(tmp_path).records() == ()


def test_a_record_is_for_the_daemons_user_alone(tmp_path: Path) -> None:
    """It holds the key of an engine."""
    store(tmp_path).keep(RECORD)
    file = tmp_path / "run/engines/tiny-1.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "secret" not in repr(RECORD)


@pytest.mark.parametrize("content", ["", "{", "null", "7", "[]", '"text"', "{}", '{"child": 1}', "[" * 5000])
def test_a_record_that_cannot_be_read_is_set_aside(tmp_path: Path, content: str) -> None:
    """It keeps no daemon from its start, nor a good record beside it from being read."""
    store(tmp_path).keep(RECORD)
    bad = tmp_path / "run/engines/bad-1.json"
    bad.write_text(content)
    assert store(tmp_path).records() == (RECORD,)
    assert not bad.exists() and bad.with_suffix(".unreadable").exists()


def test_a_record_under_another_name_is_set_aside(tmp_path: Path) -> None:
    """Its own name is a path when it is forgotten: it must not lead anywhere else."""
    store(tmp_path).keep(RECORD)
    good, bad = tmp_path / "run/engines/tiny-1.json", tmp_path / "run/engines/bad-1.json"
    bad.write_text(good.read_text().replace('"tiny-1", "model"', '"../../tiny-1", "model"'))
    assert store(tmp_path).records() == (RECORD,)
    assert not bad.exists()


@pytest.mark.parametrize("content", ["", "null", "[]", '{"used_bytes": 7}', '{"used_bytes": {"a": "x"}}', "[" * 5000])
def test_measurements_that_cannot_be_read_are_made_anew(tmp_path: Path, content: str) -> None:
    """Nothing is known then, and what is learnt is kept again."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/measurements.json").write_text(content)
    made = store(tmp_path)
    assert made.learned("a") is None
    made.learn("a", 5)
    assert store(tmp_path).learned("a") == 5


def test_only_so_many_measurements_are_kept(tmp_path: Path) -> None:
    """The oldest go; one that was learnt again counts as new."""
    (tmp_path / "state").mkdir()
    many = {str(number): number for number in range(MEASUREMENTS_KEPT)}
    (tmp_path / "state/measurements.json").write_text(json.dumps({"version": 1, "used_bytes": many}))
    made = store(tmp_path)
    made.learn("0", 9)
    made.learn("new", 1)
    assert (made.learned("0"), made.learned("1"), made.learned("new")) == (9, None, 1)


def test_a_file_in_the_way_is_a_problem_until_it_has_gone(tmp_path: Path) -> None:
    """Said once, with what it means; work goes on."""
    told: list[str] = []
    (tmp_path / "state").write_text("")
    made = FileStore(runtime_dir=tmp_path / "run", state_dir=tmp_path / "state", on_problem=told.append)
    made.learn("a", 5)
    made.learn("a", 6)
    assert made.learned("a") == 6
    assert len(told) == 2 and "measurements.json" in made.problem
    (tmp_path / "state").unlink()
    made.learn("a", 7)
    assert made.problem == ""


def test_a_link_in_the_place_of_a_new_record_is_not_followed(tmp_path: Path) -> None:
    """Nobody has another file overwritten by laying a link."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    made = store(tmp_path)
    (tmp_path / "run/engines").mkdir(parents=True)
    (tmp_path / "run/engines/tiny-1.new").symlink_to(precious)
    made.keep(RECORD)
    assert precious.read_text() == "mine"
    assert "tiny-1.json" in made.problem
