"""The table of what shows what does not rot: every test that it names is there."""

import subprocess
import sys

import pytest
from daemon.harness import TOP

from .coverage import GROUPS, PAGE, page
from .rows import ROWS

WANTED = """
    S0: 01-42
    S1: 01 02 04-16 22-39 60-65 68-80 82 83
    S2: 01-42
    S3: 01-32
    S4: 01-75
    RX: 01-24
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
    """All that gpud was asked for with, and nothing else."""
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


def test_the_page_says_what_the_table_has() -> None:
    """docs/coverage.md, as the tests' own words have it now; each group of promises is on it."""
    assert PAGE.read_text() == page(), "make coverage writes it anew"
    assert {row.partition("-")[0] for row in ROWS} == set(GROUPS)
    assert all(f"| {row} | **" in PAGE.read_text() for row in ROWS)


def _missing(nodes: list[str]) -> list[tuple[str, str]]:
    """The rows, with the names that none of these tests has."""
    return [
        (row, name) for row, names in ROWS.items() for name in names if not any(node.startswith(name) for node in nodes)
    ]
