"""How one model is used, and how likely it is to be used again soon. Values only: no clock, and a size that never
grows.
"""

import math

SHORTEST_S = 0.25
RATIO = 1.5
BINS = 36
"""Pauses between requests are counted by their logarithm: below a quarter of a second, then each bin half as long again
as the one before; the last one begins at about four days."""

FADES_AT = 256.0
"""So many remembered pauses are halved: what was weeks ago counts less, and a new habit shows within a day."""

PRIOR_PAUSES = 2.0
PRIOR_EXPONENT = 0.4
"""Before anything is known, and beside it: pauses as they are everywhere, with a long tail. The chance that one which
has lasted ``a`` lasts until ``b`` is ``(a / b) ** PRIOR_EXPONENT``, so who was used last is likeliest to be used again;
it weighs as much as two pauses that were seen."""

SHORT_MEMORY_S = 300.0
LONG_MEMORY_S = 1800.0
"""Requests of the last minutes and of the last half hour: several people at one model, or nobody since lunch."""

_LOG_RATIO = math.log(RATIO)
_ENDS_IN_BIN = 1.0 - RATIO**-PRIOR_EXPONENT
_LEAST = 1e-300
_LAST_EDGE_S = SHORTEST_S * RATIO ** (BINS - 1)


def unknown(pause_s: float, horizon_s: float) -> float:
    """The chance of a use within the horizon, of something about which only the pause since its last use is known."""
    pause_s = max(pause_s, SHORTEST_S)
    return 1.0 - _tail(pause_s, pause_s + max(0.0, horizon_s))


def _tail(lasted_s: float, until_s: float) -> float:
    return math.pow(lasted_s / until_s, PRIOR_EXPONENT)


class Usage:
    """One model's requests: a histogram of the pauses between them, and two rates that fade.

    A pause that has lasted ``a`` goes on as those did that lasted ``a`` before: within a burst the next request comes
    in seconds or not for long, and the longer nothing has come, the less is expected soon. The rates know what the
    histogram does not: whether more people than usual are at it. ``count`` is how many requests there have been.
    """

    __slots__ = ("_answer", "_asked", "_last_s", "_long", "_pauses", "_short", "_survival", "_total", "count")

    def __init__(self) -> None:
        # Most of the thousands of models that may be there are never used: they shall cost nothing.
        self._pauses: list[float] | None = None
        self._total = 0.0
        self._last_s: float | None = None
        self._short = 0.0
        self._long = 0.0
        self._survival: list[float] | None = None
        self._asked: tuple[float, float] | None = None
        self._answer = 0.0
        self.count = 0

    @property
    def last_s(self) -> float | None:
        """When it was used last; None: never."""
        return self._last_s

    def note(self, now: float) -> None:
        """A request has come."""
        self.count += 1
        if self._last_s is not None:
            if self._pauses is None:
                self._pauses = [0.0] * (BINS + 1)
            pause_s = max(0.0, now - self._last_s)
            self._short *= math.exp(-pause_s / SHORT_MEMORY_S)
            self._long *= math.exp(-pause_s / LONG_MEMORY_S)
            self._pauses[_bin_of(pause_s)] += 1.0
            self._total += 1.0
            if self._total >= FADES_AT:
                self._pauses = [count / 2 for count in self._pauses]
                self._total /= 2
            self._survival = None
        self._short += 1.0
        self._long += 1.0
        self._asked = None
        self._last_s = now if self._last_s is None else max(now, self._last_s)

    def chance(self, now: float, horizon_s: float) -> float:
        """The probability that a request comes within the horizon, none having come until now; 0 of one that was never
        used. What the pauses say and what the rates say must agree on it: it is their geometric mean. To ask again at
        the same moment costs nothing, as a long queue does.
        """
        if self._asked != (now, horizon_s):
            self._answer = self._chance(now, max(0.0, horizon_s))
            self._asked = (now, horizon_s)
        return self._answer

    def _chance(self, now: float, horizon_s: float) -> float:
        if self._last_s is None:
            return 0.0
        pause_s = max(0.0, now - self._last_s)
        survival = self._survival
        if survival is None:
            survival = self._survival = self._survivals()
        lasts = _lasts(survival, pause_s + horizon_s) / _lasts(survival, pause_s)
        rate = (
            self._short / SHORT_MEMORY_S * math.exp(-pause_s / SHORT_MEMORY_S)
            + self._long / LONG_MEMORY_S * math.exp(-pause_s / LONG_MEMORY_S)
        ) / 2
        return 1.0 - math.exp(-math.sqrt(-math.log(min(1.0, max(lasts, _LEAST))) * rate * horizon_s))

    def _survivals(self) -> list[float]:
        """The chance that a pause lasts beyond the beginning of each bin, by what was seen and the prior."""
        survival = [1.0]
        at_risk = self._total
        for count in self._pauses or [0.0] * (BINS + 1):
            ends = (count + PRIOR_PAUSES * _ENDS_IN_BIN) / (at_risk + PRIOR_PAUSES)
            survival.append(survival[-1] * (1.0 - ends))
            at_risk = max(0.0, at_risk - count)
        return survival


def _bin_of(pause_s: float) -> int:
    if pause_s < SHORTEST_S:
        return 0
    return min(BINS, 1 + int(math.log(pause_s / SHORTEST_S) / _LOG_RATIO))


def _lasts(survival: list[float], pause_s: float) -> float:
    """The chance that a pause lasts longer than this: between the edges of the bins by its logarithm, beyond the last
    as the prior has it.
    """
    if pause_s < SHORTEST_S:
        return survival[0] + (survival[1] - survival[0]) * pause_s / SHORTEST_S
    if pause_s >= _LAST_EDGE_S:
        return survival[BINS] * _tail(_LAST_EDGE_S, pause_s)
    place = math.log(pause_s / SHORTEST_S) / _LOG_RATIO
    below = int(place)
    low, high = survival[1 + below], survival[2 + below]
    return low + (high - low) * (place - below)
