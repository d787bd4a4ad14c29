"""A hub of each test's own, a daemon on a private bus, and no proxy or token of whoever runs the tests."""

import sys
from collections.abc import Iterator

import pytest
from daemon.harness import TOP, Place, place_at
from dbus.private_bus import PrivateBus, session_bus

from .hub_server import Hub

# Where the stand-ins for engines are; a run of this room alone does not collect theirs.
sys.path.append(str(TOP / "tests" / "backends"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as made:
        yield made


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HF_TOKEN", "HF_ENDPOINT", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """A bus that lets everything through, as a session bus does."""
    with session_bus() as made:
        yield made


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where the test's daemon lives; at the end nothing that was started there may live on."""
    with place_at(bus.address) as made:
        yield made
