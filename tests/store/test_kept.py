"""What is learnt and what happened, through a restart."""

import sqlite3
import stat
import tempfile
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.events import Kind, Level, Logged, Notice
from gpud.core.learning import REMEMBERED, Measured, Residual
from gpud.core.quote import Estimate, Part, Source
from gpud.store import event_log, probes, sizes
from gpud.store.database import WAITING_MOST, Database
from gpud.store.event_log import EventLog
from gpud.store.problems import Problems
from store.place import Place

ESTIMATE = Estimate(
    "llama",
    (Part("CUDA0", 0, 4 << 30, 1 << 28, 0, 1 << 27), Part("Host", None, 1 << 27, 0, 5, 1 << 20)),
    Source.PROBE,
    context=4096,
    layers=33,
)


def entry(text: str, model: str = "", at_us: int = 1) -> Logged:
    return Logged(at_us, Notice(Kind.EVICTED, text, model))


def messages(entries: tuple[Logged, ...]) -> list[str]:
    return [one.notice.message for one in entries]


def rows(place: Place, table: str) -> int:
    connection = sqlite3.connect(place.database)
    try:
        return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


# Sizes ---------------------------------------------------------------------------------------------------------------


def test_the_largest_of_the_last_measurements_is_answered(place: Place) -> None:
    """A small one hides no large one until there were enough small ones; before and after a restart."""
    store = place.store()
    assert store.learned("a") is None
    store.learn("a", Measured(9, 1, 2.0))
    store.learn("a", Measured(5, 3, 4.0))
    assert store.learned("a") == Measured(9, 3, 3.0)
    store = place.again()
    assert store.learned("a") == Measured(9, 3, 3.0)
    store.learn("a", Measured(4, 0))
    assert store.learned("a") == Measured(9, 3, 3.0)
    store.learn("a", Measured(5, 0))
    assert store.learned("a") == Measured(5, 3, 4.0)
    assert place.again().learned("a") == Measured(5, 3, 4.0)
    assert store.problem == "" and rows(place, "measured") == sizes.COUNTED


def test_the_settings_measured_longest_ago_go_first(place: Place) -> None:
    """Rows are bounded; what was measured again is young."""
    store = place.store()
    store.learn("old", Measured(1, 1))
    store.learn("again", Measured(1, 1))
    place.close()
    connection = sqlite3.connect(place.database)
    with connection:
        connection.executemany(
            "INSERT INTO measured (key, gpu_bytes, host_bytes, load_s, at_us) VALUES (?, 1, 1, 1, 1)",
            ((f"key-{number}",) for number in range(sizes.MEASURED_MOST - 2)),
        )
    connection.close()
    store = place.store()
    store.learn("again", Measured(2, 2))
    store = place.again()
    assert store.learned("old") is None
    assert store.learned("again") == Measured(2, 2)
    assert rows(place, "measured") == sizes.MEASURED_MOST


def test_a_residual_goes_on_where_it_was(place: Place) -> None:
    """The arithmetic is that of one series, whenever the daemon was restarted."""
    expected = Residual()
    for number in range(REMEMBERED + 10):
        value = (number * 37) % 101 - 20
        expected = expected.with_one_more(value)
        if number % 20 == 0:
            store = place.again()
        store.learn_residual("GPU/driver/build", value)
        assert store.residual("GPU/driver/build") == expected
    assert place.again().residual("GPU/driver/build") == expected
    assert place.store().residual("another") is None


def test_places_are_bounded(place: Place) -> None:
    """The one that was measured longest ago goes."""
    store = place.store()
    for number in range(sizes.PLACES_MOST + 2):
        store.learn_residual(f"place-{number}", number)
        store.learn_residual("place-0", 0)
    store = place.again()
    assert rows(place, "residual") == sizes.PLACES_MOST
    assert store.residual("place-0") is not None
    assert store.residual("place-1") is None and store.residual("place-2") is None
    assert store.residual("place-3") == Residual(1, 3.0, 0.0, 3)


# Probes --------------------------------------------------------------------------------------------------------------


def test_an_estimate_comes_back_as_it_was(place: Place) -> None:
    """Parts, source and all; the latest one of a key."""
    store = place.store()
    assert store.probed("k") is None
    store.keep_probe("k", Estimate("other", (), Source.FORMULA))
    store.keep_probe("k", ESTIMATE)
    assert store.probed("k") == ESTIMATE
    assert place.again().probed("k") == ESTIMATE


def test_an_estimate_that_cannot_be_read_is_asked_for_again(place: Place) -> None:
    """Of another version of gpud, or changed by hand: as if it had not been kept."""
    place.store().keep_probe("k", ESTIMATE)
    place.close()
    bad = ["", "[]", "null", '{"parts": 7}', '{"architecture": "a", "parts": [], "source": "?"}', "[" * 5000]
    bad.append('{"architecture": "a", "parts": [{"wrong": 1}], "source": "probe"}')
    for text in bad:
        connection = sqlite3.connect(place.database)
        with connection:
            connection.execute("UPDATE probe SET estimate = ?", (text,))
        connection.close()
        assert place.again().probed("k") is None
    store = place.again()
    store.keep_probe("k", ESTIMATE)
    assert store.probed("k") == ESTIMATE and place.told == []


def test_the_estimates_used_longest_ago_go_first(place: Place) -> None:
    """Reading one makes it young, also for the next start, and writes nothing by itself."""
    store = place.store()
    for key in ("read", "unread"):
        store.keep_probe(key, ESTIMATE)
    place.close()
    connection = sqlite3.connect(place.database)
    with connection:
        connection.executemany(
            "INSERT INTO probe (key, estimate, used) VALUES (?, '{}', ?)",
            ((f"key-{number}", number + 3) for number in range(probes.KEPT_MOST - 2)),
        )
    connection.close()
    store = place.store()
    assert store.probed("read") == ESTIMATE
    store = place.again()
    store.keep_probe("new", ESTIMATE)
    store = place.again()
    assert store.probed("unread") is None
    assert (store.probed("read"), store.probed("new")) == (ESTIMATE, ESTIMATE)
    assert rows(place, "probe") == probes.KEPT_MOST


# Events --------------------------------------------------------------------------------------------------------------


def test_an_entry_comes_back_as_it_was(place: Place) -> None:
    """Time, kind, level, words, fields and detail; the id is the store's."""
    told = Logged(
        1_764_100_000_000_000,
        Notice(
            Kind.LOAD_FAILED,
            'cannot load "tiny": needs 5.1 GiB',
            "tiny",
            Level.ERROR,
            {"need_bytes": 5, "share": 0.5, "who": "uid 1000"},
            ("first line", "last line"),
        ),
    )
    store = place.store()
    store.log([told, entry("later")])
    for logged in (store.logged(), place.again().logged()):
        later, first = logged
        assert first == Logged(told.at_us, told.notice, 1)
        assert (later.id, later.notice.message) == (2, "later")


def test_entries_of_one_model_are_found(place: Place) -> None:
    """The newest first, no more than asked for."""
    store = place.store()
    store.log([entry(f"{model} {number}", model) for number in range(5) for model in ("a", "b", "")])
    assert messages(store.logged("b", 3)) == ["b 4", "b 3", "b 2"]
    assert messages(store.logged("", 4)) == [" 4", "b 4", "a 4", " 3"]
    assert store.logged("c") == () and store.logged("a", 0) == () and store.logged("a", -1) == ()


def test_the_oldest_entries_go(place: Place) -> None:
    """The log is bounded, whatever happens; ids go on."""
    store = place.store()
    total = event_log.KEPT_MOST + 2 * event_log.PRUNE_EVERY
    for start in range(0, total, 250):
        store.log([entry(str(number)) for number in range(start, start + 250)])
    store = place.again()
    assert event_log.KEPT_MOST <= rows(place, "event") <= event_log.KEPT_MOST + event_log.PRUNE_EVERY
    store.log([entry("last")])
    assert store.logged(limit=1)[0].id == total + 1
    assert rows(place, "event") == event_log.KEPT_MOST
    assert messages(store.logged(limit=3)) == ["last", str(total - 1), str(total - 2)]


def test_an_engine_that_prints_without_end_does_not_fill_the_log(place: Place) -> None:
    """Of its last words the last ones are kept, and it is said that there were more."""
    store = place.store()
    lines = tuple(f"{number:04d}" + "x" * 996 for number in range(1000))
    store.log([Logged(1, Notice(Kind.ENGINE_CRASHED, "m" * 100_000, detail=lines))])
    (kept,) = place.again().logged()
    assert kept.notice.detail == (event_log.CUT, *lines[-event_log.DETAIL_MOST // 1000 :])
    assert len(kept.notice.message) == event_log.MESSAGE_MOST


def test_entries_of_a_newer_gpud_are_passed_over(place: Place) -> None:
    """A kind that this one does not know, or nonsense, hides no other entry."""
    place.store().log([entry(str(number)) for number in range(6)])
    place.close()
    connection = sqlite3.connect(place.database)
    with connection:
        connection.execute("UPDATE event SET kind = 'of-tomorrow' WHERE id = 2")
        connection.execute("UPDATE event SET fields = 'x' WHERE id = 3")
        connection.execute("UPDATE event SET detail = '7' WHERE id = 4")
        connection.execute("UPDATE event SET at_us = 'noon' WHERE id = 5")
    connection.close()
    assert messages(place.store().logged()) == ["5", "0"]


# All of them ---------------------------------------------------------------------------------------------------------

words = st.text(st.characters(), max_size=40)


@settings(max_examples=60, deadline=None)
@given(words, words, words, st.lists(words, max_size=3), st.integers(0, 2**63 - 1))
def test_any_words_can_be_kept(key: str, model: str, message: str, detail: list[str], size: int) -> None:
    """Paths and an engine's output are bytes that need not be text."""
    problems = Problems(lambda problem: None)
    with tempfile.TemporaryDirectory() as top:
        database = Database(Path(top) / "registry.db", problems)
        log, kept, records = EventLog(database), sizes.Sizes(database), probes.Probes(database)
        kept.learn(key, Measured(size, size, 1.0))
        records.keep(key, Estimate(model, (Part(message, None, size),), Source.PROBE))
        log.add([Logged(size, Notice(Kind.IDLE, message, model, fields={key: model}, detail=tuple(detail)))])
        database.close()
        assert problems.text == "" and database.saved == database.given
        database = Database(Path(top) / "registry.db", problems)
        assert sizes.Sizes(database).learned(key) == Measured(size, size, 1.0)
        found = probes.Probes(database).get(key)
        assert found is not None and found.parts[0].device == message
        (one,) = EventLog(database).latest(model, 5)
        assert (one.at_us, one.notice.detail, dict(one.notice.fields)) == (size, tuple(detail), {key: model})
        assert one.notice.message == message.encode(errors="backslashreplace").decode()
        database.close()


def test_many_threads_lose_nothing(place: Place) -> None:
    """The engine calls from as many threads as it has."""
    store = place.store()

    def work(name: int) -> None:
        for number in range(25):
            store.learn(f"{name}-{number}", Measured(number, name))
            store.learn_residual("shared", 100)
            store.log([entry(f"{name}-{number}", f"m{name}")])
            assert store.learned(f"{name}-{number}") == Measured(number, name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    store = place.again()
    assert store.residual("shared") == Residual(REMEMBERED, 100.0, 0.0, 100)
    assert len(store.logged(limit=1000)) == 200
    for name in range(8):
        assert messages(store.logged(f"m{name}")) == [f"{name}-{number}" for number in reversed(range(25))]
        assert all(store.learned(f"{name}-{number}") == Measured(number, name) for number in range(25))
    assert place.told == []


def test_what_is_kept_is_for_the_daemons_user_alone(place: Place) -> None:
    """It says who used which model, and when. A directory that is made for a group shows it to that group."""
    place.store().learn("a", Measured(1, 1))
    assert stat.S_IMODE(place.state.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in place.state.iterdir()}
    assert modes.pop("registry.db.lock") == 0o600
    assert set(modes.values()) == {0o640}
    assert sorted(file.name for file in place.state.iterdir()) == [
        "registry.db",
        "registry.db-shm",
        "registry.db-wal",
        "registry.db.lock",
    ]


def test_an_end_leaves_one_file(place: Place) -> None:
    """Everything is in the database itself, which can then be copied by itself."""
    place.store().learn("a", Measured(1, 1))
    place.close()
    assert sorted(file.name for file in place.state.iterdir()) == ["registry.db", "registry.db.lock"]


def test_what_comes_after_the_end_is_not_kept(place: Place) -> None:
    """A thread that is late meets no error, and opens nothing."""
    store = place.store()
    store.learn("a", Measured(1, 1))
    store.close()
    store.learn("a", Measured(2, 2))
    store.log([entry("late")] * (WAITING_MOST + 1))
    assert store.learned("a") == Measured(2, 2)
    assert len(store.logged(limit=10)) == 10
    store.close()
    assert place.told == [] and place.store().learned("a") == Measured(1, 1)
