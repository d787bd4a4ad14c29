"""What READY means, and what a gpud that cannot start says."""

import contextlib
import socket
import subprocess

import pytest

from .doors import Doors, open_doors
from .harness import BOUND_S, PYTHON, TOP, Place, engine
from .service_manager import Manager


def test_ready_comes_when_it_can_be_asked(place: Place, manager: Manager) -> None:
    """At the moment at which the service manager is told, the name on the bus is gpud's and each door is open."""
    doors: Doors = open_doors(place)
    place.configure({"tiny": engine()})
    client = place.client()
    daemon = place.start(wait=False)
    manager.wait_ready(BOUND_S)
    # Nothing below waits.
    open_now = []
    for door in (doors.front, doors.management, doors.ollama):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", door.port), BOUND_S):
            open_now.append(door)
    assert open_now == [doors.front, doors.management, doors.ollama]
    assert client.owner() != ""
    daemon.is_ready()


def test_a_start_that_fails_says_why_in_one_line(place: Place) -> None:
    """And its status says that another try would end in the same way."""
    place.configure({"tiny": {"engine": "nonsense", "size": "1MiB"}})
    daemon = place.start(wait=False)
    assert daemon.wait_exit() == 78
    (line,) = [line for line in daemon.log().splitlines() if "nonsense" in line]
    assert f"{place.config}:" in line


@pytest.mark.parametrize("package", ["msgspec", "yaml", "httptools"])
def test_a_missing_package_is_named(package: str) -> None:
    """With the Python that lacks it and what to do, without a traceback, and not to be tried again."""
    code = f"import sys; sys.modules[{package!r}] = None; from gpud.__main__ import main; sys.exit(main(['--user']))"
    done = subprocess.run([PYTHON, "-c", code], cwd=TOP, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gpud: cannot start: {PYTHON} has no package {package}; install gpud again")
