"""What is remembered of models, whatever disks and other programs do to the file."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpud.core.catalogue import Entry
from gpud.core.learning import Measured
from gpud.core.record import replace
from gpud.store import FileStore
from gpud.store.database import MIGRATIONS, Database, numbered
from gpud.store.model_changes import UNSAVED_FROM
from gpud.store.models import ModelRegistry
from gpud.store.problems import Problems
from store.model_entries import by_name, change, entry, found, names, query
from store.place import Place, fill

MANY = 1500
"""More than wait for a disk at most, and more than fits on a small one."""


def many(count: int = MANY) -> list[Entry]:
    return [entry(f"m{number}") for number in range(count)]


# A disk that takes nothing -------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_all_of_a_look_or_nothing(place: Place, small: Callable[[Path], None]) -> None:
    """What does not fit is answered from memory, with all that happens to it; there is room: all of it is there."""
    small(place.state)
    registry = place.store().registry
    first = registry.take([entry("first", notes="n")], 1)[0]
    ballast = fill(place.state)
    taken = registry.take([first, *many()], 2)
    (told,) = place.told
    assert "database or disk is full" in told and "make room" in told and "memory only" in told
    assert query(place.database, "SELECT name FROM model") == [("first",)]
    assert [one.id for one in taken] == list(range(1, MANY + 2))
    assert registry.entries() == taken
    registry.used({first.id: (1, 5, 2.0), taken[-1].id: (2, 6, None)})
    registry.annotate(replace(taken[-1], tags=("late",)))
    registry.estimated({taken[5].id: (55, "a")})
    registry.forget(taken[7].id)
    after = registry.take(tuple(one for one in registry.entries() if one.name != "m3"), 3)
    assert registry.entries() == after and registry.entries(["m3"])[0].present is False
    known = by_name(after)
    assert "m6" not in known and known["m4"].estimate_bytes == 55
    assert (known["first"].usage_count, known["first"].notes, known["first"].load_s) == (1, "n", 2.0)
    assert (known[f"m{MANY - 1}"].usage_count, known[f"m{MANY - 1}"].tags) == (2, ("late",))
    subprocess.run(["mount", "-o", "remount,size=8m", str(place.state)], check=True)
    ballast.unlink()
    registry.used({first.id: (1, 7, None)})
    assert query(place.database, "SELECT COUNT(*) FROM model") == [(MANY,)]
    again = place.again().registry.entries()
    assert by_name(again)["first"].usage_count == 2
    assert [one for one in again if one.name != "first"] == [one for one in after if one.name != "first"]
    assert len(place.told) == 1 and place.store().problem == ""


def test_what_is_held_goes_to_the_disk_at_the_end(place: Place, small: Callable[[Path], None]) -> None:
    """Where there is room by then, though nothing came any more."""
    small(place.state)
    registry = place.store().registry
    registry.entries()
    ballast = fill(place.state)
    # The log beside the database has some room left.
    number = 0
    while not place.told:
        number += 1
        registry.take(many(number), number)
    taken = registry.entries()
    ballast.unlink()
    assert place.again().registry.entries() == taken and len(taken) == number


def test_a_read_only_disk_stops_no_look(place: Place, small: Callable[[Path], None]) -> None:
    """Found models are known as long as gpud runs; when it can be written again, their past has come back."""
    small(place.state)
    registry = place.store().registry
    a, gone = registry.take([entry("a", notes="n"), entry("gone")], 1)
    registry.used({a.id: (3, 4, 5.0)})
    place.close()
    subprocess.run(["mount", "-o", "remount,ro", str(place.state)], check=True)
    registry = place.store().registry
    assert registry.entries() == ()
    for_now = registry.take([entry("a"), entry("b")], 10)
    (told,) = place.told
    assert "Read-only file system" in told and "let gpud write there" in told
    assert names(for_now) == ["a", "b"] and min(one.id for one in for_now) > UNSAVED_FROM
    registry.used({for_now[0].id: (1, 11, None), a.id: (2, 11, None)})
    registry.annotate(replace(for_now[1], aliases=("bee",)))
    assert registry.entries(["a"])[0].usage_count == 1
    subprocess.run(["mount", "-o", "remount,rw", str(place.state)], check=True)
    # The ids of that time stay valid.
    registry.used({for_now[0].id: (1, 12, None)})
    registry.estimated({for_now[1].id: (9, "a")})
    now = registry.entries()
    assert [(one.id, one.name, one.present) for one in now] == [(1, "a", True), (2, "gone", False), (3, "b", True)]
    assert (now[0].usage_count, now[0].last_used_us, now[0].load_s, now[0].notes) == (7, 12, 5.0, "n")
    assert (now[0].last_scanned_us, now[1].last_scanned_us) == (10, 1)
    assert (now[2].aliases, now[2].estimate_bytes) == (("bee",), 9)
    assert registry.take(for_now, 20)[0] == replace(now[0], last_scanned_us=20)
    assert len(place.told) == 1
    assert gone.id == 2 and [one.id for one in place.again().registry.entries()] == [1, 2, 3]


def test_ids_for_the_time_being_are_never_those_of_another_time(place: Place) -> None:
    """The file could not be read twice; whoever kept an id of the first time meets the right model or none."""
    place.database.mkdir(parents=True)
    registry = place.store().registry
    (first,) = registry.take([entry("a")], 1)
    place.database.rmdir()
    registry.used({first.id: (1, 2, None)})
    (kept,) = registry.entries()
    assert (kept.id, kept.usage_count) == (1, 1)
    # Damaged once it is begun anew, twice it is given up.
    for number in (3, 4):
        spoil(place.database, "model")
        taken = registry.take([kept, entry("b")], number)
    assert "damaged again" in place.told[-1]
    a, b = taken
    assert (a.id, a.usage_count, a.name, b.name) == (1, 1, "a", "b")
    assert b.id > UNSAVED_FROM and b.id != first.id
    registry.used({first.id: (1, 5, None), b.id: (3, 5, None)})
    assert [(one.name, one.usage_count) for one in registry.entries()] == [("a", 2), ("b", 3)]


def test_uses_wait_while_nothing_can_be_read(place: Place) -> None:
    """Also where no look has filled the memory: they are counted once the file can be opened."""
    a, b = place.store().registry.take([entry("a"), entry("b")], 1)
    place.close()
    aside = place.database.with_name("aside.db")
    place.database.rename(aside)
    place.database.mkdir()
    registry = place.store().registry
    assert registry.entries() == ()
    registry.used({a.id: (1, 5, None)})
    registry.annotate(replace(a, notes="n"))
    registry.forget(b.id)
    assert place.told and "move away what is in its place" in place.told[0]
    place.database.rmdir()
    aside.rename(place.database)
    registry.used({a.id: (1, 6, None)})
    (kept,) = registry.entries()
    assert (kept.usage_count, kept.last_used_us, kept.notes) == (2, 6, "n")


class Locked:
    """A registry, and another program that may lock its file, which is waited for hardly at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self._problems = Problems(self.told.append)
        self.database = Database(path, self._problems, busy_s=0.05)
        self.registry = ModelRegistry(self.database, self._turn)
        self._other: sqlite3.Connection | None = None

    def lock(self) -> None:
        self._other = sqlite3.connect(self.path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        yield
        self._problems.tell()

    def let_go(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    made = Locked(tmp_path / "registry.db")
    yield made
    made.let_go()
    made.database.close()


def test_another_program_that_locks_it_holds_up_no_look(locked: Locked) -> None:
    """Its models are known meanwhile, and forgotten; it lets go: all of it is on the disk with the next change."""
    registry = locked.registry
    a, _ = registry.take([entry("a"), entry("forgotten")], 1)
    locked.lock()
    taken = registry.take([a, entry("b")], 2)
    assert [one.id for one in taken] == [1, 2, 3] and registry.entries() == taken
    registry.forget(2)
    registry.used({3: (1, 3, None)})
    assert query(locked.path, "SELECT name FROM model") == [("a",), ("forgotten",)]
    locked.let_go()
    registry.used({3: (1, 4, None)})
    assert query(locked.path, "SELECT name, usage_count FROM model") == [("a", 0), ("b", 2)]
    assert len(locked.told) == 1 and "close the program that keeps it locked" in locked.told[0]


def test_what_was_only_used_while_it_was_locked_is_counted(locked: Locked) -> None:
    """Also where the very first that goes wrong is a use."""
    registry = locked.registry
    registry.take([entry("a"), entry("b")], 1)
    locked.lock()
    registry.forget(2)
    registry.used({1: (1, 3, None)})
    assert [(one.name, one.usage_count) for one in registry.entries()] == [("a", 1)]
    locked.let_go()
    registry.used({1: (1, 4, None)})
    assert query(locked.path, "SELECT name, usage_count FROM model") == [("a", 2)]


def test_damage_found_when_it_is_let_go_costs_nothing_that_was_held(locked: Locked) -> None:
    """All that was held is in the new file."""
    registry = locked.registry
    a, b = registry.take([entry("a"), entry("b")], 1)
    locked.lock()
    held = registry.take([a, replace(b, name="bee"), entry("c")], 2)
    locked.let_go()
    spoil(locked.path, "sqlite_autoindex_model_1")
    registry.used({a.id: (1, 3, None)})
    assert "was damaged" in locked.told[-1]
    now = registry.entries()
    assert now[1:] == held[1:] and (now[0].name, now[0].usage_count) == ("a", 1)
    assert query(locked.path, "SELECT name FROM model ORDER BY id") == [("a",), ("bee",), ("c",)]
    assert query(locked.path, "PRAGMA integrity_check") == [("ok",)]


def test_ids_outlive_what_was_held_and_then_damaged(locked: Locked) -> None:
    """Whoever still has an entry finds its model by the same number in the new file."""
    registry = locked.registry
    registry.take([entry("a")], 1)
    locked.lock()
    taken = registry.take([*registry.entries(), entry("b")], 2)
    locked.let_go()
    registry.used({2: (1, 3, None)})
    taken = registry.entries()
    spoil(locked.path, "model")
    assert registry.take(taken, 4) == tuple(replace(one, last_scanned_us=4) for one in taken)
    assert "was damaged" in locked.told[-1]


def test_somebody_who_reads_holds_up_no_look(place: Place) -> None:
    """As long as they like: they see what was there when they began."""
    store = place.store()
    (a,) = store.registry.take([entry("a")], 1)
    reader = sqlite3.connect(f"file:{place.database}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT name FROM models").fetchall() == [("a",)]
    store.registry.take([a, entry("b")], 2)
    assert query(place.database, "SELECT name FROM models") == [("a",), ("b",)]
    assert reader.execute("SELECT name FROM models").fetchall() == [("a",)]
    reader.close()
    assert store.problem == ""


def test_a_second_gpud_changes_nothing_of_the_firsts(place: Place) -> None:
    """It knows what it finds itself, says why, and takes over when the first has gone."""
    first, second = place.store(), place.store()
    (a,) = first.registry.take([entry("a", notes="n")], 1)
    (of_second,) = second.registry.take([entry("a")], 2)
    assert "another gpud uses it" in second.problem and first.problem == ""
    assert of_second.id > UNSAVED_FROM and second.registry.entries() == (of_second,)
    assert first.registry.entries() == (a,)
    first.close()
    second.registry.used({of_second.id: (1, 3, None)})
    assert second.problem == ""
    (kept,) = second.registry.entries()
    assert (kept.id, kept.notes, kept.usage_count) == (a.id, "n", 1)


def test_the_models_of_a_newer_gpud_are_left_alone(place: Place) -> None:
    """Its file stays as it is, whatever is found meanwhile."""
    place.store().registry.take([entry("a")], 1)
    place.close()
    change(place.database, "PRAGMA user_version = 999")
    before = place.database.read_bytes()
    registry = place.store().registry
    taken = registry.take([entry("b")], 2)
    registry.used({taken[0].id: (1, 1, None)})
    assert names(registry.entries()) == ["b"]
    place.close()
    assert place.database.read_bytes() == before
    (told,) = place.told
    assert "newer gpud (version 999" in told


def test_what_comes_after_the_end_stops_nothing(place: Place) -> None:
    """A thread that is late meets no error, and opens nothing."""
    store = place.store()
    (a,) = store.registry.take([entry("a")], 1)
    store.close()
    assert store.registry.entries() == ()
    store.registry.used({a.id: (1, 1, None)})
    assert names(store.registry.take([a, entry("b")], 2)) == ["a", "b"]
    store.close()
    assert names(place.store().registry.entries()) == ["a"] and place.told == []


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "cut", "zeros"])
def test_after_damage_a_look_fills_it_again(place: Place, kind: str) -> None:
    """It is said where the old file is and that the past is lost; the same models are known after the next look."""
    registry = place.store().registry
    for one in registry.take(many(300), 1):
        registry.used({one.id: (1, 2, 3.0)})
    place.close()
    content = place.database.read_bytes()
    damaged = {
        "text": b"no database" * 1000,
        "cut": content[: len(content) // 2],
        "zeros": content[:8192] + bytes(len(content) - 8192),
    }[kind]
    place.database.write_bytes(damaged)
    registry = place.store().registry
    assert registry.entries() == ()
    taken = registry.take(many(300), 10)
    (told,) = place.told
    assert "was damaged" in told and "how often they were used" in told and f"{place.database}.damaged" in told
    assert Path(f"{place.database}.damaged").read_bytes() == damaged
    assert [(one.id, one.name, one.usage_count) for one in taken] == [(n + 1, f"m{n}", 0) for n in range(300)]
    assert place.again().registry.entries() == taken and len(place.told) == 1


def spoil(path: Path, table: str) -> None:
    """Nonsense in the first page of a table or an index, while it is open."""
    connection = sqlite3.connect(path, isolation_level=None)
    # Whoever has it open reads its pages again.
    connection.execute("UPDATE scan SET at_us = at_us")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("where", ["model", "sqlite_autoindex_model_1"])
def test_damage_found_by_a_look_costs_no_past(place: Place, where: str) -> None:
    """Found while reading or while writing: those that are there bring their past along. Of the others nothing is
    left."""
    registry = place.store().registry
    a, b, _ = registry.take([entry("a"), entry("b"), entry("gone")], 1)
    registry.used({b.id: (7, 8, 9.0)})
    registry.take([a, b], 2)
    before = registry.entries()
    spoil(place.database, where)
    taken = registry.take([before[0], replace(before[1], name="bee"), entry("new")], 3)
    assert "was damaged" in place.told[0] and len(place.told) == 1
    known = by_name(taken)
    assert known["a"] == replace(before[0], last_scanned_us=3)
    assert known["bee"] == replace(before[1], name="bee", last_scanned_us=3)
    assert known["new"].id == 3 and len(known) == 3
    assert place.again().registry.entries() == taken
    assert query(place.database, "PRAGMA integrity_check") == [("ok",)]


def test_damage_found_by_a_use_loses_no_model_for_long(place: Place) -> None:
    """What was used is not known any more until the next look, which nothing keeps from its work."""
    registry = place.store().registry
    taken = registry.take([entry("a"), entry("b")], 1)
    spoil(place.database, "model")
    registry.used({taken[0].id: (1, 2, None)})
    assert "was damaged" in place.told[0] and registry.entries() == ()
    assert registry.take(taken, 3) == tuple(replace(one, last_scanned_us=3) for one in taken)
    expected = registry.entries()
    assert names(expected) == ["a", "b"]
    assert place.again().registry.entries() == expected and len(place.told) == 1


# Versions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(3))
def test_a_file_of_every_earlier_version_gets_the_table(place: Place, tmp_path: Path, version: int) -> None:
    """What was in it is there as before."""
    older = tmp_path / "older"
    older.mkdir()
    for step in numbered(MIGRATIONS)[:version]:
        shutil.copy(step, older)
    place.state.mkdir()
    database = Database(place.database, Problems(place.told.append), migrations=older)
    database.read("SELECT 1")
    database.close()
    if version >= 1:
        change(
            place.database, "INSERT INTO measured (key, gpu_bytes, host_bytes, load_s, at_us) VALUES ('k', 1, 2, 3, 4)"
        )
    if version >= 2:
        change(place.database, "INSERT INTO event VALUES (5, 1, 'idle', 'info', 'm', 'words', '{}', '[]')")
    store: FileStore = place.store()
    (a,) = store.registry.take([entry("a")], 1)
    assert store.learned("k") == (Measured(1, 2, 3.0) if version >= 1 else None)
    assert [one.notice.message for one in store.logged()] == (["words"] if version >= 2 else [])
    assert place.again().registry.entries() == (a,) and place.told == []


OFFLOAD = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, path TEXT NOT NULL UNIQUE, format TEXT NOT NULL,
    size_gb REAL NOT NULL, vram_estimate_gb REAL NOT NULL, architecture TEXT, quantization TEXT, parameter_count TEXT,
    context_length INTEGER DEFAULT 0, compatible_backends TEXT, last_scanned TEXT NOT NULL, last_used TEXT,
    usage_count INTEGER DEFAULT 0, priority TEXT DEFAULT 'medium', tags TEXT, notes TEXT
);
CREATE INDEX idx_models_name ON models(name);
CREATE INDEX idx_models_last_used ON models(last_used);
INSERT INTO models VALUES
    (4, 'llama', '/models/llama.gguf', 'GGUF', 4.5, 5.0, 'llama', 'Q4_K_M', '8B', 0, '["llamacpp"]',
     '2025-11-25T19:46:40.123456', '2025-11-25T20:00:00.5', 12, 'high', '["chat", "night"]', 'the good one'),
    (9, 'old', '/models/old.pt', 'PyTorch', 1.0, 1.2, NULL, NULL, NULL, 0, NULL,
     'never', NULL, NULL, 'medium', 'chat', NULL);
"""


def test_the_registry_of_the_offload_manager_comes_along(place: Place) -> None:
    """Where its file lies in the state directory: use, priority, tags and notes are those of the model that is found
    at the same path, by the same id and name.
    """
    place.state.mkdir()
    connection = sqlite3.connect(place.database)
    connection.executescript(OFFLOAD)
    connection.close()
    registry = place.store().registry
    llama, old = registry.entries()
    assert (llama.id, llama.name, llama.found.path, llama.present) == (4, "llama", "/models/llama.gguf", False)
    assert (old.id, old.usage_count, old.priority, old.tags, old.notes, old.last_scanned_us) == (9, 0, "", (), "", 0)
    taken = registry.take([replace(llama, found=found("llama"), present=True), entry("new")], 1_764_200_000_000_000)
    kept = by_name(taken)["llama"]
    assert (kept.usage_count, kept.priority, kept.tags, kept.notes) == (12, "high", ("chat", "night"), "the good one")
    assert kept.found.quantization == "Q4_K_M" and by_name(taken)["new"].id == 10
    row = query(place.database, "SELECT size_gb, last_used, usage_count, priority FROM models WHERE name = 'llama'")[0]
    assert row[0] == 5.0 and row[2:] == (12, "high")
    local = "SELECT strftime('%Y-%m-%dT%H:%M:%S', last_used, 'localtime') FROM models WHERE id = 4"
    assert query(place.database, local) == [("2025-11-25T20:00:00",)]
    assert place.told == [] and len(place.again().registry.entries()) == 3
