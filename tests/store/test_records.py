"""Records of running engines, on real files."""

import stat
from pathlib import Path

import pytest

from gpud.core.facts import HOST, Endpoint
from gpud.core.ports import ChildRecord, RunnerRecord
from gpud.core.quote import Share
from store.place import Place

RECORD = RunnerRecord(
    unit="tiny-1",
    model="tiny",
    engine="embedded",
    fingerprint="f",
    endpoint=Endpoint(socket="/run/gpud/engines/tiny-1.sock", key="secret"),
    devices=("GPU-1",),
    shares=(Share("GPU-1", 7), Share(HOST, 8)),
    context=4096,
    layers=20,
    child=ChildRecord("tiny-1", "tiny", "embedded", 42, 4711),
    extra={"sizes": "{}"},
)


def test_a_record_outlives_the_daemon_until_it_is_forgotten(place: Place) -> None:
    """Everything comes back as it was, key and all."""
    place.store().keep(RECORD)
    assert place.again().records() == (RECORD,)
    place.again().forget(RECORD.unit)
    assert place.again().records() == ()


def test_records_alone_need_no_database(place: Place) -> None:
    """Whoever ends what is left over reads them and makes nothing."""
    store = place.store()
    store.keep(RECORD)
    assert store.records() == (RECORD,)
    store.close()
    assert not place.state.exists()


def test_a_record_is_for_the_daemons_user_alone(place: Place) -> None:
    """It holds the key of an engine."""
    place.store().keep(RECORD)
    file = place.runtime / "engines/tiny-1.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "secret" not in repr(RECORD)


@pytest.mark.parametrize("content", ["", "{", "null", "7", "[]", '"text"', "{}", '{"child": 1}', "[" * 5000])
def test_a_record_that_cannot_be_read_is_set_aside(place: Place, content: str) -> None:
    """It keeps no daemon from its start, nor a good record beside it from being read."""
    place.store().keep(RECORD)
    bad = place.runtime / "engines/bad-1.json"
    bad.write_text(content)
    assert place.store().records() == (RECORD,)
    assert not bad.exists() and bad.with_suffix(".unreadable").exists()


def test_half_a_record_of_a_killed_daemon_goes_and_leaves_the_whole_one(place: Place) -> None:
    """Killed while it wrote a record anew: the one before counts, and nothing is left beside it."""
    place.store().keep(RECORD)
    half = place.runtime / "engines/tiny-1.new"
    half.write_text('{"unit": "ti')
    assert place.again().records() == (RECORD,)
    assert not half.exists()


def test_a_record_under_another_name_is_set_aside(place: Place) -> None:
    """Its own name is a path when it is forgotten: it must not lead anywhere else."""
    place.store().keep(RECORD)
    good, bad = place.runtime / "engines/tiny-1.json", place.runtime / "engines/bad-1.json"
    bad.write_text(good.read_text().replace('"tiny-1", "model"', '"../../tiny-1", "model"'))
    assert place.store().records() == (RECORD,)
    assert not bad.exists()


def test_a_file_in_the_way_of_records_is_a_problem_until_it_has_gone(place: Place) -> None:
    """Said once, with what it means; work goes on."""
    place.runtime.write_text("")
    store = place.store()
    store.keep(RECORD)
    store.keep(RECORD)
    assert len(place.told) == 1 and "may not know it" in place.told[0]
    assert store.problem == place.told[0]
    place.runtime.unlink()
    store.keep(RECORD)
    assert store.problem == ""


def test_a_link_in_the_place_of_a_new_record_is_not_followed(place: Place, tmp_path: Path) -> None:
    """Nobody has another file overwritten by laying a link."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    store = place.store()
    (place.runtime / "engines").mkdir(parents=True)
    (place.runtime / "engines/tiny-1.new").symlink_to(precious)
    store.keep(RECORD)
    assert precious.read_text() == "mine"
    assert "tiny-1.json" in store.problem
