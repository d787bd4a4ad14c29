"""The extension as it is built for each release of GNOME Shell."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.harness import Place, engine, place_at
from dbus.private_bus import PrivateBus, session_bus

from .gjs_programs import GNOME


@pytest.fixture(scope="session", params=["43", "45"])
def release(request: pytest.FixtureRequest) -> str:
    """The first release of GNOME Shell that the build is for."""
    return str(request.param)


@pytest.fixture(scope="session")
def build(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension's folder, as it is installed."""
    for program in ("gjs", "msgfmt", "glib-compile-schemas"):
        assert shutil.which(program), f"{program} is missing: tools/packages test installs it"
    folder = tmp_path_factory.mktemp(f"gnome-{release}")
    subprocess.run([sys.executable, GNOME / "build.py", release, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """A bus that lets everything through."""
    with session_bus() as made:
        yield made


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where a gpud with two models can be started."""
    with place_at(bus.address) as made:
        made.configure({"tiny": engine(), "spare": engine()})
        yield made
        for daemon in made.daemons:
            if daemon.running:
                daemon.stop()


@pytest.fixture
def empty_bus() -> Iterator[PrivateBus]:
    """A bus without a gpud, for the one of the two that has none."""
    with session_bus() as made:
        yield made
