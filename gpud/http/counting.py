"""Counters and histograms as plain numbers, cheap enough for every request. Knows no library and writes no text."""

from bisect import bisect_left
from collections.abc import Collection, Sequence

from gpud.core.record import Struct, field

Labels = tuple[str, ...]


class Counter(Struct):
    """One number for each combination of labels, which only grows."""

    name: str
    help: str
    labels: Labels
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def known(self, labels: Labels) -> None:
        """It is there from now on, as zero: what is missing cannot be told from what never happened."""
        self.values.setdefault(labels, 0.0)

    def keep_models(self, models: Collection[str]) -> None:
        """Let go of the numbers of models that are no longer configured."""
        _keep(self.values, self.labels, models)


class Tally(Struct):
    """How many fell into each bucket (the last one has no upper bound), and their sum."""

    counts: list[int]
    sum: float = 0.0

    def copy(self) -> "Tally":
        return Tally(self.counts.copy(), self.sum)


class Histogram(Struct):
    """A distribution for each combination of labels. ``bounds`` are the buckets' upper ends, ascending."""

    name: str
    help: str
    labels: Labels
    bounds: Sequence[float]
    values: dict[Labels, Tally] = field(default_factory=dict)

    def observe(self, labels: Labels, value: float) -> None:
        tally = self.values.get(labels)
        if tally is None:
            self.known(labels)
            tally = self.values[labels]
        tally.counts[bisect_left(self.bounds, value)] += 1
        tally.sum += value

    def known(self, labels: Labels) -> None:
        if labels not in self.values:
            self.values[labels] = Tally([0] * (len(self.bounds) + 1))

    def buckets(self, tally: Tally) -> list[tuple[str, float]]:
        """Cumulative, as they are written."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), tally.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(total)))
        return found

    def keep_models(self, models: Collection[str]) -> None:
        _keep(self.values, self.labels, models)


def _keep(values: dict[Labels, float] | dict[Labels, Tally], names: Labels, models: Collection[str]) -> None:
    if "model" not in names:
        return
    place = names.index("model")
    for labels in [labels for labels in values if labels[place] and labels[place] not in models]:
        del values[labels]
