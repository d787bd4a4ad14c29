"""The database file: its versions, and what disks and other programs do to it."""

import random
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpud.core.events import Kind, Logged, Notice
from gpud.core.learning import Measured, Residual
from gpud.core.quote import Estimate, Source
from gpud.store.database import MIGRATIONS, WAITING_MOST, Change, Database, numbered
from gpud.store.problems import Problems
from store.model_entries import entry as model
from store.model_entries import names
from store.place import Place, fill
from store.test_records import RECORD

ESTIMATE = Estimate("llama", (), Source.PROBE)


def entry(text: str) -> Logged:
    return Logged(1, Notice(Kind.EVICTED, text))


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


# Versions ------------------------------------------------------------------------------------------------------------


def test_a_stranger_adds_a_table_with_one_file(tmp_path: Path) -> None:
    """The next number is applied to what an older gpud left, whose rows stay; once."""
    migrations = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, migrations)
    known = len(numbered(migrations))
    problems = Problems(lambda problem: None)
    database = Database(tmp_path / "registry.db", problems, migrations=migrations)
    database.write(Change("INSERT INTO probe VALUES ('k', '{}', 1)"))
    database.close()
    (migrations / f"{known + 1:04d}_sessions.sql").write_text(
        "CREATE TABLE session (name TEXT);\nINSERT INTO session VALUES ('a; b');\n-- the end, without a line of its own"
    )
    for _ in range(2):
        database = Database(tmp_path / "registry.db", problems, migrations=migrations)
        assert database.read("SELECT name FROM session") == [("a; b",)]
        assert database.read("SELECT key FROM probe") == [("k",)]
        database.close()
    assert version(tmp_path / "registry.db") == known + 1 and problems.text == ""


def test_every_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file of any earlier release is the same afterwards as one that was made today."""
    steps = numbered(MIGRATIONS)

    def schema(path: Path) -> list[tuple[str, str]]:
        problems = Problems(lambda problem: None)
        database = Database(path, problems)
        found = database.read("SELECT name, sql FROM sqlite_master ORDER BY name")
        database.close()
        assert found is not None and problems.text == "" and version(path) == len(steps)
        return found

    today = schema(tmp_path / "today.db")
    for count in range(len(steps)):
        older = tmp_path / f"older-{count}"
        older.mkdir()
        for step in steps[:count]:
            shutil.copy(step, older)
        database = Database(older / "registry.db", Problems(lambda problem: None), migrations=older)
        database.read("SELECT 1")
        database.close()
        assert version(older / "registry.db") == count
        assert schema(older / "registry.db") == today


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The file stays at the version before, and says so by what still works with it."""
    migrations = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, migrations)
    known = len(numbered(migrations))
    database = Database(tmp_path / "registry.db", Problems(lambda problem: None))
    database.read("SELECT 1")
    database.close()
    bad = migrations / f"{known + 1:04d}_bad.sql"
    bad.write_text("CREATE TABLE half (a);\nCREATE TABLE probe (a);")
    problems = Problems(lambda problem: None)
    database = Database(tmp_path / "registry.db", problems, migrations=migrations)
    assert database.read("SELECT * FROM half") is None
    assert "table probe already exists" in problems.text
    database.close()
    database = Database(tmp_path / "registry.db", Problems(lambda problem: None))
    assert database.read("SELECT name FROM sqlite_master WHERE name = 'half'") == []
    database.close()
    assert version(tmp_path / "registry.db") == known


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["1_a.sql"]])
def test_numbers_have_no_gaps(tmp_path: Path, names: list[str]) -> None:
    """Two branches that each add a table must notice each other."""
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="numbers grow by one"):
        numbered(tmp_path)


def test_the_file_of_a_newer_gpud_is_left_alone(place: Place) -> None:
    """After a downgrade it is not read, not changed, not set aside; it is said what to do."""
    place.store().learn("a", Measured(1, 1))
    place.close()
    connection = sqlite3.connect(place.database)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = place.database.read_bytes()
    store = place.store()
    assert store.learned("a") is None
    store.learn("a", Measured(2, 2))
    assert store.learned("a") == Measured(2, 2)
    (told,) = place.told
    assert "newer gpud (version 999" in told and "install that one again" in told
    place.close()
    assert place.database.read_bytes() == before


# Damage --------------------------------------------------------------------------------------------------------------


def grown(place: Place) -> None:
    """A closed database of some 300 pages."""
    store = place.store()
    store.registry.take([model(f"m{number}") for number in range(60)], 1)
    for number in range(60):
        store.learn(f"key-{number}", Measured(number, number))
        store.keep_probe(f"key-{number}", ESTIMATE)
        store.log([entry("x" * 300)] * 40)
    place.close()


@pytest.mark.parametrize("kind", ["text", "cut", "zeros"])
def test_a_damaged_file_is_set_aside_and_begun_anew(place: Place, kind: str) -> None:
    """It is said once what was damaged, where it is now and what follows; all works at once, and nothing stands."""
    grown(place)
    content = place.database.read_bytes()
    damaged = {
        "text": b"this is no database at all, whatever its name says" * 100,
        "cut": content[: len(content) // 2],
        "zeros": content[:8192] + bytes(len(content) - 8192),
    }[kind]
    place.database.write_bytes(damaged)
    store = place.store()
    assert store.learned("key-1") is None
    store.learn("key-1", Measured(7, 7))
    (told,) = place.told
    assert "was damaged" in told and f"{place.database}.damaged" in told and "measured again" in told
    assert store.problem == ""
    assert Path(f"{place.database}.damaged").read_bytes() == damaged
    assert place.again().learned("key-1") == Measured(7, 7)
    assert len(place.told) == 1


def test_no_flipped_byte_stops_anything(place: Place) -> None:
    """Wherever it is: either nobody notices, or the file is set aside. Afterwards everything works."""
    grown(place)
    content = place.database.read_bytes()
    noticed = 0
    for seed in range(60):
        chance = random.Random(seed)
        flipped = bytearray(content)
        # The first page has what matters most: every third one goes there.
        reach = 4096 if seed % 3 == 0 else len(content)
        for _ in range(8):
            flipped[chance.randrange(reach)] ^= 1 << chance.randrange(8)
        place.database.write_bytes(flipped)
        place.told.clear()
        store = place.store()
        for number in range(60):
            store.learned(f"key-{number}")
            store.probed(f"key-{number}")
        store.logged(limit=1000)
        store.registry.take(store.registry.entries(), 2)
        found = [model(f"m{number}") for number in range(50)] + [model("new")]
        assert names(one for one in store.registry.take(found, 3) if one.present) == names(found)
        store.learn("new", Measured(seed, seed))
        store.log([entry("new")])
        if store.problem:
            # One that says it is of a version to come, or whose tables have other names: it is left alone.
            assert "move" in store.problem
        else:
            store = place.again()
            assert store.learned("new") is not None
            assert store.logged(limit=1)[0].notice.message == "new"
            assert names(one for one in store.registry.entries() if one.present) == names(found)
        noticed += bool(place.told)
        place.close()
        for file in place.state.iterdir():
            file.unlink()
    assert noticed > 20


def test_damage_found_at_work_is_no_end(place: Place) -> None:
    """What was just given is kept in the new file; a second time in one run the disk is no longer trusted."""
    grown(place)
    store = place.store()
    assert store.learned("key-1") == Measured(1, 1)

    def damage() -> None:
        with place.database.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (place.database.stat().st_size - 4096))

    damage()
    # All pages, not only those that SQLite remembers.
    assert store.logged(limit=5000) == ()
    assert store.learned("key-59") is None
    (told,) = place.told
    assert "was damaged" in told and store.problem == ""
    assert store.learned("key-1") == Measured(1, 1)
    store.learn("key-1", Measured(2, 2))
    for _ in range(60):
        store.log([entry("y" * 300)] * 10)
    connection = sqlite3.connect(place.database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damage()
    store.logged(limit=2000)
    assert "damaged again" in store.problem and "journalctl -k" in store.problem
    store.learn("key-2", Measured(3, 3))
    assert (store.learned("key-1"), store.learned("key-2")) == (Measured(2, 2), Measured(3, 3))
    assert len(place.told) == 2


# Disks ---------------------------------------------------------------------------------------------------------------


def given(store: object, number: int) -> None:
    """One of each."""
    store.learn(f"key-{number}", Measured(number, number))  # type: ignore[attr-defined]
    store.learn_residual("place", number)  # type: ignore[attr-defined]
    store.keep_probe(f"key-{number}", ESTIMATE)  # type: ignore[attr-defined]
    store.log([entry(f"event {number}")])  # type: ignore[attr-defined]


def answers(store: object, *numbers: int) -> bool:
    """All that was given is answered, in its order."""
    expected = Residual()
    for number in numbers:
        expected = expected.with_one_more(number)
    logged = [(one.id, one.notice.message) for one in store.logged()]  # type: ignore[attr-defined]
    return (
        all(store.learned(f"key-{n}") == Measured(n, n) for n in numbers)  # type: ignore[attr-defined]
        and all(store.probed(f"key-{n}") == ESTIMATE for n in numbers)  # type: ignore[attr-defined]
        and store.residual("place") == expected  # type: ignore[attr-defined]
        and logged == [(place, f"event {n}") for place, n in reversed(list(enumerate(numbers, 1)))]
    )


def test_a_full_disk_stops_nothing(place: Place, small: Callable[[Path], None]) -> None:
    """It is said once what to do; all that was given is answered meanwhile, and on the disk once there is room."""
    small(place.state)
    store = place.store()
    given(store, 1)
    ballast = fill(place.state)
    # The log beside the database has some room left.
    number = 1
    while not store.problem:
        number += 1
        given(store, number)
    for more in range(number + 1, number + 4):
        given(store, more)
    assert answers(store, *range(1, number + 4))
    (told,) = place.told
    assert "database or disk is full" in told and "make room" in told and str(place.database) in told
    ballast.unlink()
    given(store, number + 4)
    assert store.problem == "" and len(place.told) == 1
    assert answers(place.again(), *range(1, number + 5))


def test_a_full_disk_at_the_start_can_be_read(place: Place, small: Callable[[Path], None]) -> None:
    """What was measured before is known, and what comes is kept when there is room, though it came never again."""
    small(place.state)
    given(place.store(), 1)
    place.close()
    ballast = fill(place.state)
    store = place.store()
    assert answers(store, 1)
    given(store, 2)
    assert answers(store, 1, 2) and "make room" in store.problem
    ballast.unlink()
    assert answers(place.again(), 1, 2)
    assert place.store().problem == ""


def test_a_disk_that_becomes_read_only_can_be_read(place: Place, small: Callable[[Path], None]) -> None:
    """As after an error of the disk; and when it is writable again everything is written."""
    small(place.state)
    store = place.store()
    given(store, 1)
    store = place.again()
    # Without a file that is open for writing the kernel allows it.
    place.close()
    subprocess.run(["mount", "-o", "remount,ro", str(place.state)], check=True)
    store = place.store()
    given(store, 2)
    assert store.learned("key-2") == Measured(2, 2)
    (told,) = place.told
    assert "Read-only file system" in told and "let gpud write there" in told
    subprocess.run(["mount", "-o", "remount,rw", str(place.state)], check=True)
    given(store, 3)
    assert store.problem == ""
    store = place.again()
    assert store.learned("key-1") == Measured(1, 1) and store.learned("key-2") == Measured(2, 2)
    assert [one.notice.message for one in store.logged()] == ["event 3", "event 2", "event 1"]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_in_the_way_is_a_problem_until_it_has_gone(place: Place, kind: str) -> None:
    """A file where the directory should be, a directory or a link where the file should be."""
    if kind == "file":
        place.state.write_text("")
    else:
        place.state.mkdir()
        if kind == "directory":
            place.database.mkdir()
        else:
            place.database.symlink_to("/dev/null")
    store = place.store()
    for number in (1, 2):
        given(store, number)
    assert answers(store, 1, 2)
    (told,) = place.told
    assert str(place.state) in told and "memory only" in told and store.problem == told
    {"file": place.state, "link": place.database}.get(kind, place.state / "none").unlink(missing_ok=True)
    if kind == "directory":
        place.database.rmdir()
    given(store, 3)
    assert store.problem == ""
    assert answers(place.again(), 1, 2, 3)


def test_an_entry_is_there_once_whoever_saved_it(place: Place) -> None:
    """It waits, and another change that succeeds takes it along; the next ones wait again."""
    place.database.mkdir(parents=True)
    store = place.store()
    store.log([entry("first")])
    place.database.rmdir()
    store.learn("a", Measured(1, 1))
    assert [(one.id, one.notice.message) for one in store.logged()] == [(1, "first")]
    other = sqlite3.connect(place.database, isolation_level=None)
    other.execute("ALTER TABLE event RENAME TO hidden")
    store.log([entry("second")])
    store.learn("b", Measured(1, 1))
    assert "no such table" in store.problem
    other.execute("ALTER TABLE hidden RENAME TO event")
    other.close()
    for logged in (store.logged(), place.again().logged()):
        assert [(one.id, one.notice.message) for one in logged] == [(2, "second"), (1, "first")]


def test_changes_do_not_wait_without_bound(tmp_path: Path) -> None:
    """A disk that takes nothing for weeks does not fill the memory."""
    (tmp_path / "registry.db").mkdir()
    database = Database(tmp_path / "registry.db", Problems(lambda problem: None))
    for number in range(WAITING_MOST + 5):
        assert not database.write(Change("INSERT INTO probe VALUES (?, '', ?)", (str(number), number)))
    (tmp_path / "registry.db").rmdir()
    assert database.write() and database.saved == database.given
    assert database.read("SELECT MIN(used), COUNT(*) FROM probe") == [(5, WAITING_MOST)]
    database.close()


def test_a_defect_keeps_no_later_change_waiting(tmp_path: Path) -> None:
    """It is raised, and what it was about is given up."""
    database = Database(tmp_path / "registry.db", Problems(lambda problem: None))
    for bad in (("k", None, 1), ("k", "", 2**70), ("k",)):
        with pytest.raises((sqlite3.IntegrityError, OverflowError, sqlite3.ProgrammingError)):
            database.write(Change("INSERT INTO probe VALUES (?, ?, ?)", bad))
        assert database.saved == database.given
    assert database.write(Change("INSERT INTO probe VALUES ('k', '', 1)"))
    database.close()


# Others --------------------------------------------------------------------------------------------------------------


def test_two_never_write_one_file(place: Place) -> None:
    """The second works from memory, says why, and takes over when the first has gone."""
    first, second = place.store(), place.store()
    first.learn("a", Measured(1, 1))
    second.learn("b", Measured(2, 2))
    assert second.learned("a") is None and second.learned("b") == Measured(2, 2)
    assert "another gpud uses it" in second.problem and first.problem == ""
    first.close()
    second.learn("c", Measured(3, 3))
    assert second.problem == "" and second.learned("a") == Measured(1, 1)
    store = place.again()
    assert [store.learned(key) for key in "abc"] == [Measured(1, 1), Measured(2, 2), Measured(3, 3)]


def test_somebody_may_look_while_gpud_works(place: Place) -> None:
    """With any SQLite client; what was given is there at once."""
    store = place.store()
    store.learn("a", Measured(7, 8, 1.5))
    looking = sqlite3.connect(f"file:{place.database}?mode=ro", uri=True)
    looking.execute("BEGIN")
    assert looking.execute("SELECT gpu_bytes, host_bytes, load_s FROM measured").fetchall() == [(7, 8, 1.5)]
    store.learn("b", Measured(1, 1))
    assert store.problem == ""
    looking.execute("COMMIT")
    assert looking.execute("SELECT COUNT(*) FROM measured").fetchone() == (2,)
    looking.close()


def test_a_locked_database_is_a_problem_until_it_is_let_go(tmp_path: Path) -> None:
    """Reading goes on; what was given meanwhile is written afterwards."""
    told: list[str] = []
    problems = Problems(told.append)
    database = Database(tmp_path / "registry.db", problems, busy_s=0.05)
    assert database.write(Change("INSERT INTO probe VALUES ('a', '', 1)"))
    other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not database.write(Change("INSERT INTO probe VALUES ('b', '', 2)"))
    assert "database is locked; close the program" in problems.text
    assert database.read("SELECT key FROM probe") == [("a",)]
    other.execute("ROLLBACK")
    other.close()
    assert database.write()
    assert problems.text == "" and database.read("SELECT key FROM probe") == [("a",), ("b",)]
    database.close()


def test_records_do_not_wait_for_the_database(place: Place) -> None:
    """They are kept on the event loop, while a thread may wait for somebody who keeps the database locked."""
    store = place.store()
    store.learn("a", Measured(1, 1))
    other = sqlite3.connect(place.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun, done = threading.Event(), threading.Event()

    def learn() -> None:
        begun.set()
        store.learn("b", Measured(2, 2))
        done.set()

    thread = threading.Thread(target=learn)
    thread.start()
    assert begun.wait(50)
    store.keep(RECORD)
    assert store.records() == (RECORD,) and store.problem == ""
    store.forget(RECORD.unit)
    assert not done.is_set()
    other.execute("ROLLBACK")
    other.close()
    thread.join(50)
    assert store.learned("b") == Measured(2, 2) and store.problem == ""


def test_whoever_is_told_may_use_the_store(place: Place) -> None:
    """A problem becomes an entry of the very log that could not be written: no lock is held meanwhile."""
    from gpud.store import FileStore

    place.state.write_text("")
    told: list[str] = []

    def listen(problem: str) -> None:
        told.append(problem)
        store.log([entry(problem)])

    store = FileStore(runtime_dir=place.runtime, state_dir=place.state, on_problem=listen)
    store.learn("a", Measured(1, 1))
    assert [one.notice.message for one in store.logged()] == told and len(told) == 1
    store.close()
