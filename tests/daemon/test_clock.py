"""The wall clock is set while gpud runs: what is to happen happens when it was to, and is told in the new time."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from .harness import Daemon, Place, engine

SOURCE = Path(__file__).with_name("stepped_clock.c")
HOUR_S = 3600


class Clock:
    """The daemon's wall clock, which a test sets."""

    def __init__(self, place: Place) -> None:
        library = place.root / "stepped_clock.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE], check=True)
        self._file = place.root / "step"
        self.set(0)
        place.environment.update({"LD_PRELOAD": str(library), "GPUD_CLOCK_STEP": str(self._file)})

    def set(self, seconds: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._file)


def _unload_in_s(daemon: Daemon, name: str, step_s: int) -> float:
    """How far away the announced unload is by the clock that was set."""
    return float(daemon.model(name)["UnloadAtUSec"] / 1e6 - (time.time() + step_s))


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_an_idle_time_is_not_moved_by_the_clock(place: Place, step_s: int) -> None:
    """An hour forth or back: the model goes after its idle time, neither at once nor an hour later, and the time that
    is told of it follows the clock."""
    clock = Clock(place)
    place.configure({"model": engine(idle_timeout="2s"), "long": engine(idle_timeout="300s"), "spare": engine()})
    daemon = place.start()
    assert daemon.load("long").result == "done"
    began = time.monotonic()
    assert daemon.load("model").result == "done"
    assert 240 < _unload_in_s(daemon, "long", 0) <= 300
    clock.set(step_s)
    assert 240 < _unload_in_s(daemon, "long", step_s) <= 300
    daemon.wait_state("model", "unloaded")
    assert time.monotonic() - began >= 2.0
    assert daemon.state("long") == "ready"
    daemon.aftermath()


def test_a_back_off_is_not_moved_by_the_clock(place: Place) -> None:
    """A crashed engine comes back when it was to, whatever the clock says meanwhile."""
    clock = Clock(place)
    place.configure({"model": engine(), "spare": engine()}, restart={"first": 4, "max": 4})
    daemon = place.start()
    place.kill(daemon.loaded("model")["child"]["pid"])
    daemon.wait_state("model", "failed")
    assert 0 < daemon.model("model")["RetryAtUSec"] / 1e6 - time.time() <= 4
    clock.set(-24 * HOUR_S)
    daemon.wait_state("model", "ready")
    daemon.aftermath()
