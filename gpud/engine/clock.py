"""The time of deadlines: it goes on while the machine sleeps, and does not jump when the clock is set."""

import time
from collections.abc import Callable

LEAST_SLEEP_S = 0.5
"""What is less is no sleep: two clocks are read one after the other."""


def machine_slept_s() -> float:
    """How long the machine has slept since it was booted, a little less where this was interrupted."""
    # In this order: what passes between the two makes it less, and never looks like a sleep.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class Clock:
    """The loop's time, which stands still while the machine sleeps, and the sleeps since this was made on top of it."""

    def __init__(self, loop_time: Callable[[], float], slept: Callable[[], float] = machine_slept_s) -> None:
        self._loop_time = loop_time
        self._slept = slept
        self._before_s = slept()
        self._slept_s = 0.0

    def now(self) -> float:
        found_s = self._slept() - self._before_s
        if found_s >= self._slept_s + LEAST_SLEEP_S:
            self._slept_s = found_s
        return self._loop_time() + self._slept_s

    def on_loop(self, at_s: float) -> float:
        """What the loop's own clock shows at this time, if the machine does not sleep until then."""
        return at_s - self._slept_s
