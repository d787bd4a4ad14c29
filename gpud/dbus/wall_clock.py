"""The scheduler's times on the clock that everybody else has."""

import time
from collections.abc import Callable

# A wall clock that is read again differs by microseconds from what the monotonic one predicts. Within this the old
# relation is kept, so that a deadline that did not move does not look as if it had; beyond it the clock was set, or
# the machine slept.
_CLOCK_TOLERANCE_S = 0.25


class WallClock:
    """Turns the scheduler's times into microseconds of CLOCK_REALTIME, the same for the same time."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._offset_s: float | None = None

    def see(self, now_s: float) -> float:
        """Compare the two clocks; ``now_s`` is the scheduler's, read a moment ago. Returns what is between them."""
        offset_s = self._now() - now_s
        if self._offset_s is None or abs(offset_s - self._offset_s) > _CLOCK_TOLERANCE_S:
            self._offset_s = offset_s
        return self._offset_s

    def still(self) -> "WallClock":
        """One that stands where this one does now, whatever this one sees later."""
        other = WallClock(self._now)
        other._offset_s = self._offset_s
        return other

    def usec(self, at_s: float | None) -> int:
        if at_s is None or self._offset_s is None:
            return 0
        return max(0, round((at_s + self._offset_s) * 1_000_000))
