"""A session for each test: a bus, a tray, a place for a daemon, and gpud-tray."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon.harness import TOP, Place, place_at
from dbus.private_bus import PrivateBus, session_bus

from .desktop import Desktop, Program

# Where the stand-ins for engines are; a run of this room alone does not collect theirs.
sys.path.append(str(TOP / "tests" / "backends"))


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """The session bus."""
    with session_bus() as made:
        yield made


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where the test's daemon lives; it is ended as systemd would, and leaves nothing."""
    with place_at(bus.address) as made:
        yield made
        for daemon in made.daemons:
            if daemon.running:
                assert daemon.stop() == 0, daemon.log()
                assert "Traceback" not in daemon.log(), daemon.log()


@pytest.fixture
def desktop(bus: PrivateBus) -> Iterator[Desktop]:
    """A session with a tray, and with somebody who shows notifications."""
    made = Desktop(bus.address)
    made.own()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def start_tray(bus: PrivateBus, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start it on the session bus; it ends with the test at the latest."""
    started: list[Program] = []

    def start(*words: str, **environment: str) -> Program:
        started.append(Program(*words, **{"address": bus.address, "home": tmp_path, **environment}))
        return started[-1]

    try:
        yield start
    finally:
        for program in started:
            program.close()
