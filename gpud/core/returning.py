"""Memory on its way back: engines that have gone, whose bytes no sample shows as free yet."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpud.core.facts import GpuSample

# A driver may keep a little for itself and others may take some at the same moment: this share counts as all of it.
RETURNED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class _Expected:
    device: str
    bytes: int
    free_before_bytes: int | None
    until_s: float


class Returning:
    """What is expected back on each device, and for how long it may be waited for."""

    def __init__(self) -> None:
        self._expected: list[_Expected] = []

    def expect(self, device: str, size_bytes: int, free_before_bytes: int | None, until_s: float) -> None:
        if size_bytes > 0:
            self._expected.append(_Expected(device, size_bytes, free_before_bytes, until_s))

    def seen(self, samples: Iterable[GpuSample], now: float) -> tuple[tuple[str, int], ...]:
        """Forget what a sample shows to be back. Returns device and bytes of what did not come in time, once."""
        free = {sample.uuid: sample.free_bytes for sample in samples}
        missing = [entry for entry in self._expected if not self._back(entry, free.get(entry.device))]
        self._expected = [entry for entry in missing if now < entry.until_s]
        return tuple((entry.device, entry.bytes) for entry in missing if now >= entry.until_s)

    @staticmethod
    def _back(entry: _Expected, free_bytes: int | None) -> bool:
        if free_bytes is None or entry.free_before_bytes is None:
            # A device that does not tell its free memory never shows it: there is nothing to wait for.
            return True
        return free_bytes >= entry.free_before_bytes + entry.bytes * RETURNED_SHARE

    def bytes(self, device: str) -> int:
        return sum(entry.bytes for entry in self._expected if entry.device == device)

    def pending(self) -> bool:
        return bool(self._expected)
