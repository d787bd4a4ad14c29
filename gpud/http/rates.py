"""How often each caller may ask: a bucket of tokens for each, of which only one number is kept. Has no clock."""

from gpud.core.keys import Rate

MOST = 4096
"""Callers that are remembered at the same time, in about half a MiB."""


class Rates:
    """Counts by name. A caller who has not asked for as long as its rate is about needs no memory, and has none.

    What is kept is the time at which the bucket is full again; a request moves it by what one request costs. So a
    caller may ask ``count`` times at once and then as often as tokens come, one each ``per_s / count`` seconds.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, who: str, rate: Rate, now: float) -> float:
        """0.0: the request may go on, and is counted. Else after how many seconds it might; it is not counted then."""
        cost_s = rate.per_s / rate.count
        # A rate that was lowered since must not hold anybody for longer than the new one's whole bucket takes.
        full_at = min(max(self._full_at.get(who, now), now), now + rate.per_s)
        wait_s = full_at + cost_s - now - rate.per_s
        # Whoever comes back after exactly the wait that it was told is let in, however the sums were rounded.
        if wait_s > cost_s * 1e-6:
            self._full_at[who] = full_at
            return wait_s
        self._full_at[who] = full_at + cost_s
        if len(self._full_at) > self._most:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Drop those whose buckets are full; if there are none, the half that is nearest to it."""
        left = {who: full_at for who, full_at in self._full_at.items() if full_at > now}
        if len(left) > self._most:
            latest = sorted(left.items(), key=lambda pair: pair[1])[len(left) // 2 :]
            left = dict(latest)
        self._full_at = left
