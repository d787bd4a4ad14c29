"""Memory on its way back: engines and claims that have gone, whose bytes no sample shows as free yet."""

from collections.abc import Mapping, Sequence

from gpud.core.record import Record, replace

# A driver may keep a little for itself and others may take some at the same moment: this share counts as all of it.
RETURNED_SHARE = 0.75


class Expected(Record):
    """``after`` says what it is the memory of. It was held when ``before_bytes`` were free and ours."""

    device: str
    bytes: int
    after: str
    before_bytes: int | None
    until_s: float


class Returning:
    """What is expected back on each device, and for how long it may be waited for.

    It is told of a device what is free together with what gpud's own engines and claims hold there: that grows by what
    comes back, whatever they take of it at the same time.
    """

    def __init__(self) -> None:
        self._expected: list[Expected] = []

    def expect(self, expected: Expected) -> None:
        if expected.bytes > 0:
            self._expected.append(expected)

    def left(self, device: str, size_bytes: int) -> None:
        """Who held so much there is none of ours any longer: what is told of the device falls by it for everybody."""
        self._expected = [
            replace(entry, before_bytes=max(0, entry.before_bytes - size_bytes))
            if entry.device == device and entry.before_bytes is not None
            else entry
            for entry in self._expected
        ]

    def seen(self, ours: Mapping[str, int | None], now: float) -> Sequence[Expected]:
        """Forget what a look shows to be back, those first that went first: nothing is taken for the return of two.
        Returns what did not come in time, once.
        """
        kept: list[Expected] = []
        late: list[Expected] = []
        back: dict[str, int] = {}
        before: dict[str, int] = {}
        for entry in self._expected:
            device, seen_bytes = entry.device, ours.get(entry.device)
            if seen_bytes is None or entry.before_bytes is None:
                # A device that does not tell its free memory never shows it: there is nothing to wait for.
                continue
            # What went earlier was not back when this went: it comes on top.
            own_bytes = max(entry.before_bytes, back.get(device, 0))
            level = max(own_bytes, before.get(device, 0))
            if seen_bytes >= level + entry.bytes * RETURNED_SHARE:
                back[device] = level + entry.bytes
            elif now >= entry.until_s:
                late.append(entry)
            else:
                before[device] = level + entry.bytes
                kept.append(replace(entry, before_bytes=own_bytes))
        self._expected = kept
        return late

    def bytes(self, device: str) -> int:
        return sum(entry.bytes for entry in self._expected if entry.device == device)

    def pending(self) -> bool:
        return bool(self._expected)
