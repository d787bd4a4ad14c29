"""What was measured, and what follows from it for the next load. Values only; who keeps them is not its business."""

import math
from collections.abc import Sequence

from gpud.core.budget import MIB
from gpud.core.record import Record

UNKNOWN_RESIDUAL_BYTES = 512 * MIB
"""What a process holds on a GPU beyond what its engine counts, before it was ever measured there: the driver's context
and its libraries, 107 MiB on a small card and 555 MiB on a large one."""

UNKNOWN_HOST_RESIDUAL_BYTES = 96 * MIB
"""The same in the machine's own memory: the program, its heap and its threads."""

LEAST_MARGIN_BYTES = 64 * MIB
"""Below this a margin would be eaten by what the driver rounds up."""

FIRST_MARGIN_BYTES = 128 * MIB
FIRST_MARGIN_SHARE = 0.02
"""While too little was measured to know how far figures spread."""

ENOUGH = 4
"""So many measurements tell a spread."""

DEVIATIONS = 3.0
"""So many standard deviations above the mean lies what the next load is not expected to exceed."""

REMEMBERED = 50
"""So many measurements count in full. From then on each new one takes the place of a fiftieth of what was known: what
changes without a new version is learnt, too."""


class Measured(Record):
    """One model with one set of settings, as it was when its load had settled: bytes by device kind, and the time.

    ``load_s`` 0 is a time that nobody took.
    """

    gpu_bytes: int
    host_bytes: int
    load_s: float = 0.0


def largest(measured: Sequence[Measured]) -> Measured | None:
    """What to expect of the next load after these: on each kind of device the most that was seen, in the usual time.

    A load that was measured small (little of its memory was touched yet) must not hide one that was measured large.
    """
    if not measured:
        return None
    times = [one.load_s for one in measured if one.load_s > 0]
    return Measured(
        max(one.gpu_bytes for one in measured),
        max(one.host_bytes for one in measured),
        sum(times) / len(times) if times else 0.0,
    )


class Residual(Record):
    """What engines held beyond their own count, on one kind of GPU with one driver and one build of the engine.

    ``count`` stays at :data:`REMEMBERED` once it is there. ``spread_bytes`` is the standard deviation of what was
    measured; ``largest_bytes`` fades towards the mean as everything does.
    """

    count: int = 0
    mean_bytes: float = 0.0
    spread_bytes: float = 0.0
    largest_bytes: int = 0

    def with_one_more(self, residual_bytes: int) -> "Residual":
        """After one more measurement."""
        if self.count == 0:
            return Residual(1, float(residual_bytes), 0.0, residual_bytes)
        count = min(self.count + 1, REMEMBERED)
        step = residual_bytes - self.mean_bytes
        mean = self.mean_bytes + step / count
        squares = self.spread_bytes**2 * (count - 1) + step * (residual_bytes - mean)
        peak = float(self.largest_bytes)
        if self.count >= REMEMBERED:
            peak = self.mean_bytes + (peak - self.mean_bytes) * (1 - 1 / REMEMBERED)
        # Rounding may leave the sum of squares a hair below zero.
        return Residual(
            count, mean, math.sqrt(max(0.0, squares / count)), max(residual_bytes, math.ceil(mean), math.ceil(peak))
        )


def beyond(counted_bytes: int, residual: Residual | None, *, on_host: bool) -> tuple[int, int]:
    """What to reserve beyond the engine's own count: the expected rest, and a margin for what is not known of it.

    Neither is ever negative: an engine may yet touch all that it counts.
    """
    first_margin = max(FIRST_MARGIN_BYTES, int(counted_bytes * FIRST_MARGIN_SHARE))
    if residual is None or residual.count == 0:
        return UNKNOWN_HOST_RESIDUAL_BYTES if on_host else UNKNOWN_RESIDUAL_BYTES, first_margin
    count = residual.count
    rest = max(0, round(residual.mean_bytes))
    if count < ENOUGH:
        return rest, max(first_margin, residual.largest_bytes - rest)
    # The spread of the next one around a mean that was itself only measured: n/(n-1) makes the deviation of a sample
    # that of what it was taken from, 1 + 1/n adds the mean's own.
    spread = residual.spread_bytes * math.sqrt((count + 1) / (count - 1))
    expected = math.ceil(residual.mean_bytes + DEVIATIONS * spread)
    return rest, max(LEAST_MARGIN_BYTES, expected - rest, residual.largest_bytes - rest)
