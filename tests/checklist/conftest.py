"""Each module's own bus, a place for each test's daemon, and a GPU that is not there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import fake_nvml
import pytest
from daemon.harness import Place, place_at
from dbus.private_bus import PrivateBus
from fake_nvml import FakeGpu, FakeProcess


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """A bus that lets everything through, as a session bus does."""
    made = PrivateBus(relaxed=True)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where the test's daemon lives; at the end nothing that was started there may live on."""
    with place_at(bus.address) as made:
        yield made


@dataclass
class Gpus:
    """The NVIDIA GPUs that every program in the place sees, through the real nvidia-ml-py."""

    config: Path

    def have(self, *gpus: FakeGpu) -> None:
        """From now on there are these."""
        fake_nvml.write_config(self.config, gpus)


SMALL = FakeGpu(uuid="GPU-small", name="NVIDIA Small", pci="0000:01:00.0", total_mib=2048)
LARGE = FakeGpu(uuid="GPU-large", name="NVIDIA Large", pci="0000:02:00.0", total_mib=8192)
STRANGER = FakeProcess(pid=1, mib=180, kind="graphics")
"""The desktop. Process 1 is always there, and never ours."""


@pytest.fixture
def gpus(place: Place) -> Gpus:
    """One GPU of 2 GiB and one of 8 GiB, on which the desktop holds 180 MiB."""
    made = Gpus(place.root / "nvml.conf")
    made.have(SMALL, replace(LARGE, processes=(STRANGER,)))
    place.environment |= fake_nvml.environment(made.config)
    return made
