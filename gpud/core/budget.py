"""Byte arithmetic: what a device may give, what is promised, what is left. Never decides who gets it."""

from collections.abc import Iterable

from gpud.core.facts import HOST, BudgetLimits, GpuSample
from gpud.core.record import Record

MIB = 1 << 20
GIB = 1 << 30


def describe(size_bytes: int | None) -> str:
    """A size as a user reads it: GiB from one GiB on, else MiB, KiB below one; ``unknown`` where nobody knows."""
    if size_bytes is None:
        return "unknown"
    if abs(size_bytes) >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    if 0 < size_bytes < MIB:
        return f"{max(1, size_bytes >> 10)} KiB"
    return f"{size_bytes / MIB:.0f} MiB"


class Charge(Record):
    """What one tenant costs a device.

    Until its load has settled, ``need_bytes`` is a promise: it counts against the budget and, as far as no measurement
    shows it yet, against what is measured free. Afterwards, on a GPU, ``used_bytes`` takes its place where the driver
    tells it. In host memory an engine touches its pages as it works, and whoever holds a claim allocates when it likes
    (``grows``): there the promise is kept for the part that is not there yet.
    """

    device: str
    need_bytes: int
    used_bytes: int | None = None
    settled: bool = False
    grows: bool = False

    @property
    def bytes(self) -> int:
        if self.settled and not self._kept and self.used_bytes is not None:
            return self.used_bytes
        return max(self.need_bytes, self.used_bytes or 0)

    @property
    def unseen_bytes(self) -> int:
        """The part that a measurement of free memory may not show yet."""
        if not self.settled or self._kept:
            return max(0, self.need_bytes - (self.used_bytes or 0))
        return 0

    @property
    def _kept(self) -> bool:
        return self.grows or self.device == HOST


class Account(Record):
    """One device's books at one moment. ``None`` means that the device does not say.

    ``free_bytes`` is what is measured free beyond the reserve; negative when others have taken of that.
    """

    capacity_bytes: int | None
    committed_bytes: int
    unseen_bytes: int
    free_bytes: int | None

    @property
    def available_bytes(self) -> int | None:
        """What a new load may take now: within the budget and within what is measured free."""
        if self.capacity_bytes is None or self.free_bytes is None:
            return None
        within_budget = self.capacity_bytes - self.committed_bytes
        within_free = self.free_bytes - self.unseen_bytes
        return max(0, min(within_budget, within_free))

    @property
    def overdrawn(self) -> bool:
        """Whether more is promised or held than there is, as far as the device says."""
        over_budget = self.capacity_bytes is not None and self.committed_bytes > self.capacity_bytes
        return over_budget or (self.free_bytes is not None and self.unseen_bytes > self.free_bytes)


def capacity(total_bytes: int | None, limits: BudgetLimits, override_bytes: int = 0) -> int | None:
    """The most that all of gpud's engines together may hold on a device, or None where its size is unknown."""
    if override_bytes:
        return override_bytes if total_bytes is None else min(override_bytes, total_bytes)
    if total_bytes is None:
        return limits.budget_bytes
    candidates = [total_bytes - limits.reserve_bytes]
    if limits.budget_bytes is not None:
        candidates.append(limits.budget_bytes)
    if limits.budget_percent is not None:
        candidates.append(int(total_bytes * limits.budget_percent / 100))
    return max(0, min(candidates))


def account(sample: GpuSample, limits: BudgetLimits, charges: Iterable[Charge], override_bytes: int = 0) -> Account:
    """The books of the sampled device. ``charges`` of other devices are passed over."""
    mine = [charge for charge in charges if charge.device == sample.uuid]
    free_bytes = None if sample.free_bytes is None else sample.free_bytes - limits.reserve_bytes
    return Account(
        capacity_bytes=capacity(sample.total_bytes, limits, override_bytes),
        committed_bytes=sum(charge.bytes for charge in mine),
        unseen_bytes=sum(charge.unseen_bytes for charge in mine),
        free_bytes=free_bytes,
    )


def measured(sample: GpuSample, pids: frozenset[int]) -> int | None:
    """What these processes hold on the device by its own word, or None where it does not say."""
    sizes = [process.used_bytes for process in sample.processes if process.pid in pids]
    known = [size for size in sizes if size is not None]
    if not known or len(known) != len(sizes):
        return None
    return sum(known)


def foreign(sample: GpuSample, own_pids: frozenset[int]) -> int | None:
    """What other programs hold: by name where the driver tells, else what is used beyond our own."""
    if sample.used_bytes is None:
        return None
    own = measured(sample, own_pids) or 0
    return max(0, sample.used_bytes - own)
