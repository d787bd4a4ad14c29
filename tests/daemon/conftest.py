"""Each module's own bus, and a place of its own for each test's daemon."""

import sys
from collections.abc import Iterator

import pytest
from dbus.private_bus import PrivateBus, session_bus
from fake_nvml.gpu import GIB, FakeGpus

from .doors import Doors, open_doors
from .harness import TOP, Place, gpus_of, place_at
from .mock_machine import MockLogind
from .service_manager import Manager

# Where the stand-ins for engines are; a run of this room alone does not collect theirs.
sys.path.append(str(TOP / "tests" / "backends"))


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """A bus that lets everything through, as a session bus does."""
    with session_bus() as made:
        yield made


@pytest.fixture
def mortal_bus() -> Iterator[PrivateBus]:
    """A bus that the test may kill."""
    with session_bus() as made:
        yield made


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where the test's daemon lives; at the end nothing that was started there may live on."""
    with place_at(bus.address) as made:
        yield made


@pytest.fixture
def gpus(place: Place) -> Iterator[FakeGpus]:
    """The one GPU of a laptop."""
    with gpus_of(place, 6 * GIB) as made:
        yield made


@pytest.fixture
def doors(place: Place) -> Doors:
    """Where the place's daemons listen."""
    return open_doors(place)


@pytest.fixture
def system_bus(place: Place, bus: PrivateBus) -> PrivateBus:
    """The bus of the place's daemons is the machine's as well."""
    place.environment["DBUS_SYSTEM_BUS_ADDRESS"] = bus.address
    return bus


@pytest.fixture
def logind(system_bus: PrivateBus) -> Iterator[MockLogind]:
    """Beside the place's daemons."""
    made = MockLogind(system_bus.address)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def manager(place: Place) -> Iterator[Manager]:
    """Who starts the daemons of the place as systemd does; it goes with all of them."""
    with Manager(place.root) as made:
        place.environment |= made.environment
        place.command = made.command
        yield made
        for daemon in place.daemons:
            daemon.destroy()
