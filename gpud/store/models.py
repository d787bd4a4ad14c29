"""The Registry of ``core/ports.py``: what is remembered of each model, in tables ``model`` and ``scan``."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from gpud.core.catalogue import Entry
from gpud.store.database import WAITING_MOST, Change, Database
from gpud.store.model_changes import UNSAVED_FROM, Known, merged, statements, take
from gpud.store.model_rows import COLUMNS, Row, entry_of, number, stored, texts_text

log = logging.getLogger(__name__)

T = TypeVar("T")

ASKED_AT_ONCE = 500
"""So many names or ids in one query."""

_ALL = f"SELECT {COLUMNS} FROM model"  # noqa: S608

Edit = Callable[[Row], Row | None]
"""What becomes of a row; None where it goes."""


class ModelRegistry:
    """The disk is the memory: nothing is held here while it works.

    While it takes nothing (full, read-only, locked, another gpud's, broken), all rows are held here and every call
    works on them; the next change that finds it working again brings both together and lets go of them.

    Where it cannot even be read, :meth:`entries` has nothing until the next :meth:`take`: whoever calls it must not
    forget for that what it knows. New models then get ids for the time being (from ``UNSAVED_FROM`` on), which stay
    valid until gpud ends; what the disk knows of these models comes back once it can be read. The same holds after the
    file was damaged while gpud runs: entries come back with the next take, with the past that they bring along.
    """

    def __init__(self, database: Database, turn: Callable[[], AbstractContextManager[None]]) -> None:
        self._database = database
        self._turn = turn
        self._held: Known | None = None
        self._forgotten: set[int] = set()
        self._later: deque[tuple[int, Edit]] = deque(maxlen=WAITING_MOST)
        self._numbers: dict[int, int] = {}
        self._last_id = 0
        self._last_unsaved = UNSAVED_FROM
        self._anew = False

    # The port --------------------------------------------------------------------------------------------------------

    def entries(self, names: Collection[str] | None = None) -> tuple[Entry, ...]:
        """Also empty where they cannot be read: see the class."""
        with self._turn():
            wanted = None if names is None else {stored(name) for name in names}
            if self._held is not None:
                rows = [row for row in self._held.rows.values() if wanted is None or row.name in wanted]
                looked_us = self._held.looked_us
            else:
                rows = (self._rows() if wanted is None else self._rows_with("name", wanted)) or []
                looked_us = self._looked_us()
            return tuple(entry_of(row, looked_us) for row in sorted(rows, key=lambda row: row.id))

    def take(self, entries: Sequence[Entry], at_us: int) -> tuple[Entry, ...]:
        """Only rows that differ are written. Who is not there any more gives its name and its path to whom they are
        given now. Raises ValueError for two entries with one id, name or path.
        """
        with self._turn():
            self._settle()
            given = [replace(entry, id=self._id(entry.id)) if entry.id in self._numbers else entry for entry in entries]
            known = self._held or self._reading(self._known) or Known({}, 0, self._last_unsaved)
            taken = take(known, given, at_us)
            now = {id_: row for id_, row in known.rows.items() if id_ not in taken.old} | taken.new
            if known.blind:
                self._last_unsaved = taken.last_id
            else:
                self._last_id = taken.last_id
            may_save = self._held is None and not known.blind
            if not (may_save and self._save(taken.old, taken.new, now, at_us)):
                self._held = Known(now, at_us, taken.last_id)
            return taken.entries

    def annotate(self, entry: Entry) -> None:
        aliases, tags = texts_text(entry.aliases), texts_text(entry.tags)
        priority, notes = stored(entry.priority), stored(entry.notes)
        self._edit(
            {entry.id: lambda row: row._replace(aliases=aliases, priority=priority, tags=tags, notes=notes)},
        )

    def estimated(self, sizes: Mapping[int, int]) -> None:
        self._edit({id_: _with_estimate(size) for id_, size in sizes.items()})

    def used(self, uses: Mapping[int, tuple[int, int, float | None]]) -> None:
        self._edit({id_: _with_use(*use) for id_, use in uses.items()})

    def forget(self, id_: int) -> None:
        self._edit({id_: lambda _: None})

    # For the store ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """What is held is tried once more. For whoever has the turn."""
        self._settle()

    # What is held ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """What is held goes to the disk, if that takes it now."""
        if (self._held is None and not self._later) or not self._database.write():
            return
        if self._held is not None:
            kept = self._known()
            if kept is None:
                return
            now, numbers = merged(self._held, kept, self._forgotten)
            if not self._save(kept.rows, now.rows, now.rows, now.looked_us):
                return
            log.debug("%d models that were held in memory are on the disk", len(now.rows))
            self._held = None
            self._forgotten.clear()
            self._numbers.update(numbers)
            self._last_id = now.last_id
        rows = self._rows_with("id", {self._id(id_) for id_, _ in self._later})
        if rows is None:
            return
        old = {row.id: row for row in rows}
        new = dict(old)
        for id_, edit in self._later:
            _apply(new, self._id(id_), edit)
        if old == new or self._database.write_now(statements(old, new)):
            self._later.clear()

    def _edit(self, edits: Mapping[int, Edit]) -> None:
        """What is said of a row that is not there makes no difference."""
        with self._turn():
            self._settle()
            edits = {self._id(id_): edit for id_, edit in edits.items()}
            if self._held is None:
                rows = self._reading(lambda: self._rows_with("id", edits))
                if rows is not None:
                    old = {row.id: row for row in rows}
                    new = dict(old)
                    for id_, edit in edits.items():
                        _apply(new, id_, edit)
                    if old == new or self._database.write_now(statements(old, new)):
                        return
                    self._held = self._known()
            for id_, edit in edits.items():
                if self._held is None or (self._held.blind and id_ not in self._held.rows):
                    self._later.append((id_, edit))
                elif not _apply(self._held.rows, id_, edit):
                    self._forgotten.add(id_)

    def _id(self, id_: int) -> int:
        return self._numbers.get(id_, id_)

    # The disk --------------------------------------------------------------------------------------------------------

    def _save(self, old: Mapping[int, Row], new: Mapping[int, Row], now: Mapping[int, Row], looked_us: int) -> bool:
        """``now`` is everything that there is afterwards."""
        anew = self._database.begun_anew
        if not self._database.write_now(statements(old, new, looked_us)):
            return False
        if anew == self._database.begun_anew:
            return True
        # Found damaged on the way: of what was there before nothing is in the new file.
        return self._database.write_now([Change("DELETE FROM model"), *statements({}, now, looked_us)])

    def _reading(self, read: Callable[[], T | None]) -> T | None:
        """What could not be opened is opened again by an empty write, never by reading."""
        found = read()
        return read() if found is None and self._database.write() else found

    def _known(self) -> Known | None:
        rows = self._rows()
        given = self._database.read("SELECT seq FROM sqlite_sequence WHERE name = 'model'")
        if rows is None or given is None:
            return None
        if self._anew != self._database.begun_anew:
            # Ids begin anew with the file, so that those that entries bring along can be kept.
            self._anew, self._last_id = True, 0
        last_id = max(self._last_id, given[0][0] if given else 0)
        return Known({row.id: row for row in rows}, self._looked_us(), last_id)

    def _rows(self) -> list[Row] | None:
        rows = self._database.read(_ALL)
        return None if rows is None else [Row._make(row) for row in rows]

    def _rows_with(self, column: str, values: Collection[Any]) -> list[Row] | None:
        wanted, rows = list(values), []
        for first in range(0, len(wanted), ASKED_AT_ONCE):
            some = wanted[first : first + ASKED_AT_ONCE]
            found = self._database.read(f"{_ALL} WHERE {column} IN ({', '.join('?' * len(some))})", some)
            if found is None:
                return None
            rows += [Row._make(row) for row in found]
        return rows

    def _looked_us(self) -> int:
        rows = self._database.read("SELECT at_us FROM scan")
        return (number(rows[0][0]) or 0) if rows else 0


def _apply(rows: dict[int, Row], id_: int, edit: Edit) -> bool:
    """False where the row goes."""
    row = rows.get(id_)
    if row is None:
        return True
    now = edit(row)
    if now is None:
        del rows[id_]
        return False
    rows[id_] = now
    return True


def _with_estimate(size: int) -> Edit:
    return lambda row: row._replace(estimate_bytes=size)


def _with_use(more: int, at_us: int, load_s: float | None) -> Edit:
    return lambda row: row._replace(
        usage_count=(number(row.usage_count) or 0) + more,
        last_used_us=max(number(row.last_used_us) or 0, at_us),
        load_s=row.load_s if load_s is None else load_s,
    )
