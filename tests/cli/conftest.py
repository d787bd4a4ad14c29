"""A bus and a daemon for all tests of a module, and a bus alone for those who bring their own daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_place import Place, RealDaemon, models_yaml, private_bus, real_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    """A real gpud with five models, shared by the tests of a module."""
    directory = tmp_path_factory.mktemp("gpud")
    with private_bus(directory / "session") as address:
        place = Place(directory, {"DBUS_SESSION_BUS_ADDRESS": address})
        config = directory / "gpud.yaml"
        config.write_text(models_yaml(directory))
        with real_daemon(place, config) as running:
            yield running


@pytest.fixture
def gpud(daemon: RealDaemon) -> Iterator[RealDaemon]:
    """The daemon with nothing loaded, before and after."""
    yield daemon
    daemon.empty()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A session bus on which nobody is."""
    with private_bus(tmp_path / "session") as address:
        yield Place(tmp_path, {"DBUS_SESSION_BUS_ADDRESS": address})
