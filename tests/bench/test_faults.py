"""The fault campaign and the soak, short and with a fixed seed; and that they would find what they look for."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.faults.account import Account, Excuse
from bench.faults.campaign import LISTS
from bench.faults.fault import FAULTS, drawn
from bench.soak.__main__ import grown

TOP = Path(__file__).resolve().parents[2]
BOUND_S = 540
"""For what takes half a minute alone. The programs have bounds of their own, which are shorter."""


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=BOUND_S, check=False)


def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """Twenty faults under load: nothing is lost that no fault cut, and nothing is left over."""
    file = tmp_path / "figures.json"
    quick = ("--without-engines", "--check-every", "10", "--minutes", "8", "--json", str(file))
    done = bench("bench.faults", "--seed", "7", "--faults", "20", *quick)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    told = json.loads(file.read_text())
    assert told["faults"] == 20 and sum(row["times"] for row in told["rows"].values()) == 20
    assert told["totals"]["lost"] == 0 and told["totals"]["whole"] > 20
    assert "20 faults in" in done.stdout


def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    """Some seconds of load: everybody is answered, and at rest the descriptors are those of the beginning."""
    file = tmp_path / "figures.json"
    done = bench("bench.soak", "--seed", "7", "--without-engines", "--minutes", "0.1", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    told: dict[str, Any] = json.loads(file.read_text())
    assert told["totals"]["lost"] == told["totals"]["cut"] == 0 and told["totals"]["whole"] > 10
    assert max(told["descriptors"]) <= told["descriptors"][0]


def test_a_campaign_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    """TERM in the middle of it: no process of it lives on, and no folder stays."""
    mark = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "bench.faults", "--seed", "1", "--without-engines", "--faults", "50"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    running = subprocess.Popen(command, cwd=TOP, env=mark, text=True, **quiet)
    assert running.stderr is not None
    with running.stderr:
        assert running.stderr.readline()  # The first fault is over.
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        running.stderr.read()
    assert running.wait(BOUND_S) != 0
    assert time.monotonic() - began < BOUND_S
    assert mine(str(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("gpud-faults-1-")] == []


def mine(mark: str) -> list[str]:
    """Processes that have it in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


# What it would find ---------------------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path / "log")
    yield made
    made.close()


def test_a_broken_answer_is_lost_unless_a_fault_may_cut_it(account: Account) -> None:
    """Of the models that the fault names, while it lasts and of those that began before it was over."""
    with account.asks("stream", "ada") as asked:
        account.broken(asked, "it ended")
    assert len(account.lost) == 1
    with account.excusing(Excuse("engine-killed-idle", frozenset({"ada"}))) as excuse:
        with account.asks("stream", "ada") as asked:
            account.broken(asked, "it ended")
        with account.asks("stream", "bob") as asked:
            account.broken(asked, "it ended")
        early = account.asks("plain", "ada")
        late_asked = early.__enter__()
    account.broken(late_asked, "it ended after the fault, and began before")
    early.__exit__(None, None, None)
    with account.asks("stream", "ada") as asked:
        account.broken(asked, "it ended")
    assert (excuse.cut, len(account.lost)) == (2, 3)
    assert account.waiting == 0


def test_a_wrong_answer_is_excused_by_nothing(account: Account) -> None:
    """Whatever goes on: an answer is right, or there is none."""
    with account.excusing(Excuse("gpud-killed", None)), account.asks("plain", "ada") as asked:
        account.wrong(asked, "another's")
    assert len(account.lost) == 1


def test_a_refusal_needs_a_reason_that_somebody_gives(account: Account) -> None:
    """Turns are always one; that the GPU is lost is one while it is."""
    with account.asks("plain", "ada") as asked:
        account.refused(asked, "queue_full", "40 wait")
    assert account.lost == []
    with account.asks("plain", "ada") as asked:
        account.refused(asked, "gpu_unavailable", "it is lost")
    assert len(account.lost) == 1
    lost = Excuse("gpu-lost", frozenset(), frozenset({"gpu_unavailable"}))
    with account.excusing(lost) as excuse, account.asks("plain", "ada") as asked:
        account.refused(asked, "gpu_unavailable", "it is lost")
    assert (excuse.refused, len(account.lost)) == (1, 1)


def test_what_nobody_settles_is_lost(account: Account) -> None:
    """A client that forgets is no answer."""
    with account.asks("plain", "ada"):
        pass
    assert account.totals["lost"] == 1


def test_every_fault_happens_as_often_as_every_other_and_the_seed_decides_the_order() -> None:
    """Each has a name and says what it is, and no module with faults is forgotten; twice as many are each twice."""
    written = {path.stem for path in (TOP / "bench" / "faults").glob("*.py") if "\n@fault(" in path.read_text()}
    assert {module.__name__.rpartition(".")[2] for module in LISTS} == written
    assert all(one.about for one in FAULTS.values())
    names = sorted(FAULTS)
    first, again, other = (drawn(random.Random(seed), 2 * len(names), names) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(names * 2)


def test_growth_is_the_last_quarter_against_the_second() -> None:
    """What comes before, the start, does not count."""
    assert grown([1, 1, 100, 100, 100, 100, 102, 102]) == pytest.approx(1.02)
    assert grown([5]) == 1.0
