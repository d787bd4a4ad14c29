"""A real process is killed at any moment: what it was told is kept is there, and nothing is half there."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from gpud.core.learning import Measured
from store.model_writer import MODELS
from store.place import Place
from store.writer import BATCH

KILLS = 20
LOOKS_KILLED = 30
PROGRAM = Path(__file__).with_name("writer.py")
LOOKER = Path(__file__).with_name("model_writer.py")


def written_until_killed(place: Place, first: int, lines: int, spin_s: float, *, program: Path = PROGRAM) -> list[int]:
    """Let it say so many lines, go on for a moment, and be killed. What it reported as kept."""
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])}
    argv = [sys.executable, str(program), str(place.state), str(first)]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment)
    assert writer.stdout is not None
    with writer.stdout as out:
        said = [out.readline() for _ in range(lines)]
        # The very moment is what is tried: it must hold for any.
        end = time.perf_counter() + spin_s
        while time.perf_counter() < end:
            pass
        writer.kill()
        said += out.readlines()
    assert writer.wait(10) == -9
    assert said[0] == b"opening\n"
    return [int(line) for line in said[1:] if line.endswith(b"\n")]


def check(place: Place, reported: list[int]) -> None:
    """All that was reported is there, in full; of what was under way all or nothing is; the file is sound."""
    store = place.store()
    for number in reported:
        assert store.learned(f"key-{number}") == Measured(number, number, 1.0)
        estimate = store.probed(f"key-{number}")
        assert estimate is not None and estimate.parts[0].weights_bytes == number
        assert len(store.logged(f"batch-{number}")) == BATCH
    assert store.problem == "" and place.told == []
    if reported:
        residual = store.residual("place")
        assert residual is not None and (residual.mean_bytes, residual.spread_bytes) == (100.0, 0.0)
    connection = sqlite3.connect(place.database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "event" in tables:
            counts = connection.execute("SELECT DISTINCT n FROM (SELECT COUNT(*) AS n FROM event GROUP BY model)")
            assert {row[0] for row in counts} <= {BATCH}
    finally:
        connection.close()
    place.close()


def test_nothing_that_was_kept_is_lost_by_a_kill(place: Place) -> None:
    """Twenty times over the same file, with more and more in it."""
    chance = random.Random(4)
    reported: list[int] = []
    for _ in range(KILLS):
        lines = chance.randrange(2, 60)
        reported += written_until_killed(place, len(reported) * 1000, lines, chance.uniform(0, 0.002))
        check(place, reported)
    assert len(reported) >= KILLS


def test_a_kill_while_the_file_is_made_is_no_damage(place: Place, tmp_path: Path) -> None:
    """From the first byte to the last step of bringing it up to date."""
    chance = random.Random(5)
    for number in range(8):
        fresh = Place(tmp_path / f"fresh-{number}")
        fresh.state.mkdir(parents=True)
        reported = written_until_killed(fresh, 0, 1, chance.uniform(0, 0.008))
        if fresh.database.exists():
            check(fresh, reported)


def test_a_killed_look_is_there_in_full_or_not_at_all(place: Place) -> None:
    """Thirty times over the same models, of which each look gives every name and path to another one."""
    chance = random.Random(6)
    reported, used = 0, 0
    for _ in range(LOOKS_KILLED):
        said = written_until_killed(
            place, reported + 1000, chance.randrange(1, 8), chance.uniform(0, 0.02), program=LOOKER
        )
        reported, used = max([reported, *said]), used + len(said)
        if not place.database.exists():
            continue
        connection = sqlite3.connect(place.database)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            connection.close()
        store = place.store()
        entries = store.registry.entries()
        assert store.problem == "" and place.told == []
        place.close()
        assert len(entries) in ({MODELS} if reported else {0, MODELS})
        if entries and entries[0].last_scanned_us > 1:
            look = entries[0].last_scanned_us
            assert look >= reported
            assert {(one.found.stamp, one.present, one.last_scanned_us) for one in entries} == {(f"{look}", True, look)}
            assert {one.name for one in entries} == {f"m{number}" for number in range(MODELS)}
            # One use more may have been kept than was reported.
            assert used <= sum(one.usage_count for one in entries) <= used + LOOKS_KILLED
            reported = look
    assert reported > 1000
