"""Each module's own dbus-daemon; a test that kills it has one of its own."""

from collections.abc import Iterator

import pytest

from .fake_engine import FakeEngine
from .private_bus import PrivateBus


def _bus(**options: object) -> Iterator[PrivateBus]:
    bus = PrivateBus(**options)  # type: ignore[arg-type]
    bus.start()
    try:
        yield bus
    finally:
        bus.close()


@pytest.fixture(scope="module")
def private_bus() -> Iterator[PrivateBus]:
    """A system bus with the shipped policy."""
    yield from _bus()


@pytest.fixture(scope="module")
def open_bus() -> Iterator[PrivateBus]:
    """A bus that lets everything through, as a session bus does."""
    yield from _bus(relaxed=True)


@pytest.fixture(scope="module")
def wide_bus() -> Iterator[PrivateBus]:
    """A system bus on which one client may have any number of calls open."""
    yield from _bus(limits={"max_replies_per_connection": 50000})


@pytest.fixture
def mortal_bus() -> Iterator[PrivateBus]:
    """A system bus that the test may kill."""
    yield from _bus()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(params=["dbus_next", "dbus_fast"])
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)
