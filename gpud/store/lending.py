"""The registry for a copy of this process that looks for models: rows go there, and what makes other rows of them comes
back. The copy never touches the database, which belongs to who has it open.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from gpud.core.catalogue import Entry
from gpud.core.ports import Line
from gpud.core.record import replace
from gpud.store.database import Change
from gpud.store.model_changes import statements, take
from gpud.store.model_rows import Row, entry_of

AT_ONCE = 100
"""So many rows are in memory here at a time, on their way."""

ANSWER_S = 60.0
"""How long the copy may take between two messages while the database waits for it: it calculates a fraction of a
second."""

_BEGIN, _ROWS, _END, _WANTED = "begin", "rows", "end", "wanted"
_AS_BEFORE = "as before"


class Interrupted(Exception):
    """What was to be written has not come wholly."""


# Here ----------------------------------------------------------------------------------------------------------------


def send_rows(line: Line, rows: Iterable[Any], looked_us: int, last_id: int) -> bool:
    """What came of an earlier try counts no more."""
    line.send((_BEGIN, (looked_us, last_id)))
    each = iter(rows)
    while some := [tuple(row) for row in islice(each, AT_ONCE)]:
        line.send((_ROWS, some))
    line.send((_END, None))
    return True


def until_wanted(line: Line) -> None:
    """Until it knows what is there, and wants to say what the rows become."""
    kind, _ = line.receive()
    if kind != _WANTED:
        raise EOFError(f"the copy has said {kind!r} where nothing but {_WANTED!r} was left to say")


def are_as_before(line: Line) -> None:
    line.send((_AS_BEFORE, None))


def changes_from(line: Line) -> Iterator[Change]:
    """Raises Interrupted."""
    while True:
        try:
            kind, content = line.receive(ANSWER_S)
        except EOFError as problem:
            raise Interrupted(str(problem)) from None
        if kind == _END:
            return
        for sql, values in content:
            yield Change(sql, values)


# In the copy ---------------------------------------------------------------------------------------------------------


class Borrowed:
    """Fulfils :class:`gpud.core.ports.Remembered`. ``number`` is the id that an entry's id stands for."""

    def __init__(self, line: Line, number: Callable[[int], int]) -> None:
        self._line = line
        self._number = number
        self._rows: list[Row] = []
        self._looked_us = self._last_id = 0

    def entries(self, names: Collection[str] | None = None) -> tuple[Entry, ...]:
        self._receive_rows(*self._line.receive())
        found = [entry_of(row, self._looked_us) for row in self._rows]
        return tuple(sorted((e for e in found if names is None or e.name in names), key=lambda entry: entry.id))

    def take(self, entries: Sequence[Entry], at_us: int) -> tuple[Entry, ...]:
        self._line.send((_WANTED, None))
        kind, content = self._line.receive()
        if kind != _AS_BEFORE:
            self._receive_rows(kind, content)
        numbers = [self._number(entry.id) for entry in entries]
        given = [e if e.id == id_ else replace(e, id=id_) for e, id_ in zip(entries, numbers, strict=True)]
        taken = take(self._rows, self._looked_us, self._last_id, given, at_us)
        each = iter(statements(taken.old, taken.new, at_us))
        while some := [tuple(change) for change in islice(each, AT_ONCE)]:
            self._line.send((_ROWS, some))
        self._line.send((_END, None))
        return taken.entries

    def _receive_rows(self, kind: str, content: Any) -> None:
        while kind != _END:
            if kind == _BEGIN:
                self._rows = []
                self._looked_us, self._last_id = content
            else:
                self._rows += map(Row._make, content)
            kind, content = self._line.receive()
