"""How all models stand: of thousands at rest nothing is held but that they rest. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import overload

from gpud.core.facts import AUTO_IDLE, Model, ModelStatus, State
from gpud.core.record import Record
from gpud.core.stock import Stock

AUTO_IDLE_PER_LOAD_SECOND = 20.0
LEAST_AUTO_IDLE_S = 60.0
MOST_AUTO_IDLE_S = 1800.0
"""An idle engine burns about a twentieth of what loading it again does: after so long keeping it has cost as much as
a reload. A minute at least, so that a pause for thought is not an unload; half an hour at most."""


class Patience(Record):
    """How long models may be idle, whichever they are. ``idle_timeout_s``: somebody has said so by command, for all;
    ``battery_idle_s``: the machine runs on its battery, and that is the longest.
    """

    idle_timeout_s: float | None = None
    battery_idle_s: float | None = None

    def idle_for_s(self, model: Model, reload_s: float | None = None) -> float:
        """How long this one may be idle, which took so long to load; 0: for ever."""
        timeout_s = model.idle_timeout_s if self.idle_timeout_s is None else self.idle_timeout_s
        if timeout_s == AUTO_IDLE:
            pays_s = AUTO_IDLE_PER_LOAD_SECOND * (reload_s or 0.0)
            timeout_s = min(MOST_AUTO_IDLE_S, max(LEAST_AUTO_IDLE_S, pays_s))
        if timeout_s > 0 and self.battery_idle_s is not None:
            return min(timeout_s, self.battery_idle_s)
        return timeout_s


class Statuses(Sequence[ModelStatus]):
    """One status for each model, made when somebody asks for it. ``lively`` are those for which somebody has wished
    since gpud started or the configuration was read, in whichever state they are now; all others rest, and what is
    shown of them follows from ``stock`` and ``patience``.
    """

    __slots__ = ("_others", "lively", "patience", "stock")

    def __init__(self, stock: Stock, lively: Mapping[str, ModelStatus], patience: Patience) -> None:
        self.stock = stock
        self.lively = lively
        self.patience = patience
        # Those that are there no longer, and still have an engine.
        self._others = [name for name in lively if name not in stock]

    def __len__(self) -> int:
        return len(self.stock) + len(self._others)

    def __iter__(self) -> Iterator[ModelStatus]:
        return map(self._of, self.names())

    @overload
    def __getitem__(self, index: int) -> ModelStatus: ...
    @overload
    def __getitem__(self, index: slice) -> list[ModelStatus]: ...
    def __getitem__(self, index: int | slice) -> ModelStatus | list[ModelStatus]:
        names = list(self.names())
        return [self._of(name) for name in names[index]] if isinstance(index, slice) else self._of(names[index])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Statuses):
            return self.same_rest(other) and self.lively == other.lively
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def same_rest(self, other: "Statuses") -> bool:
        """Whether those that rest in both are shown alike."""
        return self.patience == other.patience and self.stock == other.stock

    def names(self) -> Iterator[str]:
        """Of all, in their order."""
        yield from self.stock
        yield from self._others

    def of(self, name: str) -> ModelStatus | None:
        return self._of(name) if name in self.lively or name in self.stock else None

    def chosen(self, names: Iterable[str]) -> list[ModelStatus]:
        """Of those with these names, which are there."""
        return [self._of(name) for name in names]

    def _of(self, name: str) -> ModelStatus:
        status = self.lively.get(name)
        return at_rest(self.stock[name], self.patience) if status is None else status


def at_rest(model: Model, patience: Patience) -> ModelStatus:
    """What is shown of a model that nobody has wished for."""
    return ModelStatus(model, State.COLD, idle_timeout_s=patience.idle_for_s(model))


def lively(models: Sequence[ModelStatus]) -> Collection[ModelStatus]:
    """Of all models those that do not merely rest; whoever looks for one that is loaded finds it here."""
    return models.lively.values() if isinstance(models, Statuses) else models


def status_of(models: Sequence[ModelStatus], name: str) -> ModelStatus | None:
    if isinstance(models, Statuses):
        return models.of(name)
    return next((one for one in models if one.model.name == name), None)


def names_of(models: Sequence[ModelStatus]) -> Iterable[str]:
    return models.names() if isinstance(models, Statuses) else (one.model.name for one in models)


def only(models: Sequence[ModelStatus], names: Collection[str] | None) -> Sequence[ModelStatus]:
    """Those with one of these names; None: all."""
    if names is None:
        return models
    if isinstance(models, Statuses):
        return models.chosen(name for name in models.names() if name in names)
    return [one for one in models if one.model.name in names]


def names_with_aliases(models: Sequence[ModelStatus]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if not isinstance(models, Statuses):
        yield from ((one.model.name, one.model.aliases) for one in models)
        return
    stock = models.stock
    for name in models.names():
        yield name, stock.aliases_of(name) if name in stock else models.lively[name].model.aliases
