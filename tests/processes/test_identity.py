"""Telling processes apart."""

import os
import subprocess

import pytest

from gpud.processes import identity
from gpud.processes.names import NAME_LIMIT, safe_name


@pytest.mark.parametrize("name", [b"sh", b"a) R 1 (b", b"((", b"))", b"with space", b"\xff"])
def test_start_time_is_found_whatever_the_name(name: bytes) -> None:
    """The name of a process may hold parentheses and spaces."""
    rest = b" ".join(b"%d" % number for number in range(5, 53))
    stat = identity.parse_stat(b"4711 (" + name + b") S 4 " + rest)
    assert (stat.pid, stat.state, stat.parent, stat.group, stat.session, stat.start_time) == (4711, "S", 4, 5, 6, 22)


def test_process_is_itself_and_nobody_else() -> None:
    """The right number with the wrong start time is a stranger."""
    own = identity.stat_of(os.getpid())
    assert own is not None
    assert identity.lives(own.pid, own.start_time)
    assert not identity.lives(own.pid, own.start_time + 1)


def test_zombie_does_not_live() -> None:
    """A process that only waits to be reaped has ended."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    stat = identity.stat_of(process.pid)
    assert stat is not None and stat.is_dead
    assert not identity.lives(stat.pid, stat.start_time)
    process.wait()


def test_descendants_are_found_over_generations() -> None:
    """Children and their children."""
    process = subprocess.Popen(
        ["sh", "-c", "sh -c 'sleep 100 & echo $! $$; wait' & wait"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    grandchild, child = map(int, process.stdout.readline().split())
    try:
        assert identity.descendants(process.pid) == {child, grandchild}
    finally:
        os.kill(grandchild, 9)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("unit", ["qwen3:8b-3", "hf/org/model-1", "x" * 300, "", "ü-1", "a b", "../../etc"])
def test_unsafe_unit_gets_a_safe_name(unit: str) -> None:
    """Only characters that cgroups, stored descriptors and sockets take, and not too many."""
    name = safe_name(unit)
    assert name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name.isascii()
    assert len(name) <= NAME_LIMIT and "/" not in name


def test_names_tell_units_apart() -> None:
    """Two units that look the same once cleaned stay two."""
    assert len({safe_name(unit) for unit in ("a:b-1", "a/b-1", "a_b-1")}) == 3
    assert safe_name("tiny-3") == "tiny-3"
