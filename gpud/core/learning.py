"""What was measured, and what follows from it for the next load. Values only; who keeps them is not its business."""

import math
from dataclasses import dataclass, replace

from gpud.core.budget import MIB

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


@dataclass(frozen=True, slots=True)
class Measured:
    """One model with one set of settings, as it was when its load had settled: bytes by device kind, and the time."""

    gpu_bytes: int
    host_bytes: int
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Residual:
    """What engines held beyond their own count, on one kind of GPU with one driver and one build of the engine.

    ``spread_bytes`` is the standard deviation.
    """

    count: int = 0
    mean_bytes: float = 0.0
    spread_bytes: float = 0.0
    largest_bytes: int = 0

    def with_one_more(self, residual_bytes: int) -> "Residual":
        """After one more measurement."""
        count = self.count + 1
        step = residual_bytes - self.mean_bytes
        mean = self.mean_bytes + step / count
        squares = self.spread_bytes**2 * self.count + step * (residual_bytes - mean)
        largest = max(self.largest_bytes, residual_bytes) if self.count else residual_bytes
        return replace(
            self, count=count, mean_bytes=mean, spread_bytes=math.sqrt(max(0.0, squares / count)), largest_bytes=largest
        )


def beyond(counted_bytes: int, residual: Residual | None, *, on_host: bool) -> tuple[int, int]:
    """What to reserve beyond the engine's own count: the expected rest, and a margin for what is not known of it."""
    if residual is None or residual.count == 0:
        rest = UNKNOWN_HOST_RESIDUAL_BYTES if on_host else UNKNOWN_RESIDUAL_BYTES
        return rest, max(FIRST_MARGIN_BYTES, int(counted_bytes * FIRST_MARGIN_SHARE))
    rest = max(0, round(residual.mean_bytes))
    if residual.count < ENOUGH:
        return rest, max(FIRST_MARGIN_BYTES, int(counted_bytes * FIRST_MARGIN_SHARE), residual.largest_bytes - rest)
    return rest, max(LEAST_MARGIN_BYTES, round(3 * residual.spread_bytes), residual.largest_bytes - rest)
