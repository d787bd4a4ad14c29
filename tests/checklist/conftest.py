"""Each module's own bus, a place for each test's daemon, and a GPU that is not there."""

from dataclasses import dataclass, replace
from pathlib import Path

import fake_nvml
import pytest
from daemon.conftest import bus, doors, place
from daemon.harness import Place
from fake_nvml import FakeGpu, FakeProcess

__all__ = ["bus", "doors", "gpus", "place"]


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
