"""The table of what shows what does not rot: every test that it names is there."""

import subprocess
import sys

import pytest
from daemon.harness import TOP

from .rows import ROWS

WANTED = """
    S0: 01-41
    S1: 04 06-15 22-28 30-32 34-39 60-65 68 70 71 73-80 83
    S2: 01-14 16-21 23-37 39-41
    S3: 02-09 11 13-15 17-28 31 32
    S4: 01-04 07 09-34 36 37 40 43 45-49 54 55 57 58 63-75
    RX: 01-06 10 11 14-24
    DC: 01-13
"""


def wanted() -> set[str]:
    found = set()
    for line in WANTED.split("\n"):
        group, _, numbers = line.strip().partition(":")
        for part in numbers.split():
            first, _, last = part.partition("-")
            found |= {f"{group}-{number:02}" for number in range(int(first), int(last or first) + 1)}
    return found


def test_every_promise_is_in_the_table() -> None:
    """All that the core owes, and nothing twice."""
    assert wanted() == set(ROWS)
    assert all(ROWS.values())


def test_every_test_that_is_named_exists(request: pytest.FixtureRequest) -> None:
    """Each entry is the beginning of the name of a test that pytest finds."""
    # A run of all tests has collected them; else those files are collected now which have names not seen yet.
    nodes = [item.nodeid for item in request.session.items]
    files = {name.partition("::")[0] for _, name in _missing(nodes)}
    if files:
        collected = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(files)],
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
        )
        assert collected.returncode == 0, collected.stdout[-3000:] + collected.stderr[-3000:]
        nodes = [line for line in collected.stdout.splitlines() if "::" in line] + nodes
    missing = [f"{row}: {name}" for row, name in _missing(nodes)]
    assert not missing, "\n".join(missing)


def _missing(nodes: list[str]) -> list[tuple[str, str]]:
    """The rows, with the names that none of these tests has."""
    return [
        (row, name) for row, names in ROWS.items() for name in names if not any(node.startswith(name) for node in nodes)
    ]
