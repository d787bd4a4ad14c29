"""Which of very many models are shown to somebody who has no room for all of them. Sends nothing, decides nothing."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from gpud.core.facts import ModelStatus, Snapshot
from gpud.core.record import Record
from gpud.core.statuses import Statuses, lively, names_of, names_with_aliases, status_of
from gpud.dbus.model_records import Tells
from gpud.dbus.render import last_used_usec, shown_state
from gpud.dbus.wall_clock import WallClock

RESTS = "unloaded"
"""The state of a model that has no engine, wants none, and whose last engine has not failed."""


class Choice(Record):
    """Those that do not rest and those with these ``names``, and of the others at most ``most``; with ``search`` only
    others whose name or alias has that in it.
    """

    most: int
    search: str = ""
    names: frozenset[str] = frozenset()


class Chosen(Record):
    """``others``: so many more would be shown if there were room."""

    models: tuple[ModelStatus, ...]
    others: int


class Overview:
    """Those used last come first, then all by their names. That order is kept until the registry knows otherwise."""

    def __init__(self, tells: Tells) -> None:
        self._tells = tells
        self._made_of: tuple[object, object] | None = None
        self._order: list[str] = []

    def choose(self, snapshot: Snapshot, clock: WallClock, told: object, choice: Choice) -> Chosen:
        """``told`` is another value whenever the registry may know otherwise."""
        models = snapshot.models
        moved = {status.model.name: status for status in lively(models)}
        there = [status for name, status in moved.items() if name in choice.names or shown_state(status) != RESTS]
        there += _named(models, sorted(choice.names - {status.model.name for status in there}))
        shown = {status.model.name for status in there}

        def place(name: str) -> tuple[int, str]:
            status, known = moved.get(name), self._tells(name)
            return -(known.last_used_us if status is None else last_used_usec(status, clock, known)), name

        late = sorted((name for name in moved if name not in shown), key=place)
        at_rest = (name for name in self._in_order(models, told) if name not in moved and name not in shown)
        others: Iterator[str] = heapq.merge(late, at_rest, key=place)
        if choice.search:
            found = _matching(models, choice.search)
            others = (name for name in others if name in found)
        picked = list(islice(others, choice.most))
        left = sum(1 for _ in others) if choice.search else len(models) - len(there) - len(picked)
        return Chosen((*there, *_named(models, picked)), left)

    def _in_order(self, models: Sequence[ModelStatus], told: object) -> list[str]:
        made_of = models.stock if isinstance(models, Statuses) else models, told
        if self._made_of is None or self._made_of[0] is not made_of[0] or self._made_of[1] != told:
            self._order = sorted(names_of(models), key=lambda name: (-self._tells(name).last_used_us, name))
            self._made_of = made_of
        return self._order


def _named(models: Sequence[ModelStatus], names: Iterable[str]) -> list[ModelStatus]:
    """In the order of the names; without a look at all models, as long as they are held in little."""
    return [status for name in names if (status := status_of(models, name)) is not None]


def _matching(models: Sequence[ModelStatus], search: str) -> set[str]:
    wanted = search.casefold()
    names = names_with_aliases(models)
    return {name for name, aliases in names if any(wanted in known.casefold() for known in (name, *aliases))}
