"""A bus and a place for the daemon, as in tests/daemon."""

from collections.abc import Iterator

import pytest
from daemon.conftest import bus, place

__all__ = ["bus", "gpu", "place"]


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """These tests are for machines with a GPU; elsewhere the library's stand-in shows the same (tests/gpus)."""
    from pathlib import Path

    if not Path("/dev/nvidiactl").exists():
        pytest.skip("no GPU here: /dev/nvidiactl is missing")
    yield
