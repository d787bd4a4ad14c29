"""The Registry of ``core/ports.py``: what is remembered of each model, in tables ``model`` and ``scan``."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from gpud.core.catalogue import Entry
from gpud.core.ports import Line
from gpud.core.record import replace
from gpud.store.database import WAITING_MOST, Change, Database
from gpud.store.lending import Borrowed, Interrupted, are_as_before, changes_from, send_rows, until_wanted
from gpud.store.model_changes import UNSAVED_FROM, Known, Taken, merged, statements, take
from gpud.store.model_rows import COLUMNS, Row, entry_of, json_text, number, stored, text, texts, texts_text

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
        self._edits = 0
        """Another one whenever rows may be otherwise."""

    # The port --------------------------------------------------------------------------------------------------------

    def entries(self, names: Collection[str] | None = None) -> tuple[Entry, ...]:
        """Also empty where they cannot be read: see the class."""
        with self._turn():
            wanted = None if names is None else {stored(name) for name in names}
            held = self._held
            if held is not None:
                rows = [row for row in held.rows.values() if wanted is None or row.name in wanted]
                found: list[Entry] | None = [entry_of(row, held.looked_us) for row in rows]
            else:
                looked_us = self._looked_us()
                found = self._rows("name", wanted, lambda row: entry_of(row, looked_us))
            return tuple(sorted(found or (), key=lambda entry: entry.id))

    def take(self, entries: Sequence[Entry], at_us: int) -> tuple[Entry, ...]:
        """Only rows that differ are written. Who is not there any more gives its name and its path to whom they are
        given now. Raises ValueError for two entries with one id, name or path.
        """
        with self._turn():
            self._settle()
            self._edits += 1
            given = [replace(entry, id=self._id(entry.id)) if entry.id in self._numbers else entry for entry in entries]
            taken = self._taken(given, at_us) if self._held is None else None
            if taken is not None and (saved := self._saved(taken, given, at_us)) is not None:
                return saved.entries
            # Rows of which nothing differs were not kept: they are read once more.
            known = self._held or (taken and self._known()) or Known({}, 0, self._last_unsaved)
            taken = take(known.rows.values(), known.looked_us, known.last_id, given, at_us)
            if known.blind:
                self._last_unsaved = taken.last_id
            self._held = known.changed_by(taken, at_us)
            return taken.entries

    def lend(self, line: Line) -> bool:
        """The database waits for nobody but while rows are sent, and while what is to be written comes."""
        with self._turn():
            if not self._sent_rows(line):
                return False
            edits, anew = self._edits, self._database.begun_anew
        until_wanted(line)
        with self._turn():
            if (edits, anew) == (self._edits, self._database.begun_anew):
                are_as_before(line)
            elif not self._sent_rows(line):
                return False
            anew = self._database.begun_anew
            try:
                written = self._database.write_each(changes_from(line))
            except Interrupted as problem:
                raise EOFError(str(problem)) from None
            return written and anew == self._database.begun_anew

    def borrowed(self, line: Line) -> Borrowed:
        return Borrowed(line, self._id)

    def _sent_rows(self, line: Line) -> bool:
        """False where the disk is not the memory just now."""
        self._settle()
        if self._held is not None or self._later:
            return False
        last_id, looked_us = self._reading(self._highest_id), self._looked_us()
        if last_id is None:
            return False
        return bool(self._database.read_each(_ALL, (), lambda rows: send_rows(line, rows, looked_us, last_id)))

    def related(self, paths: Collection[str] = (), sizes: Collection[int] = ()) -> tuple[Entry, ...] | None:
        with self._turn():
            if self._held is not None:
                return None
            looked_us = self._looked_us()
            # A path stands in the column as JSON has it.
            values = [*map(json_text, paths), *sizes]
            conditions = ["instr(places, ?)"] * len(paths) + ["size_bytes = ?"] * len(sizes)
            sql = f"{_ALL} WHERE {' OR '.join(conditions) or '0'} ORDER BY id"
            found = self._database.read_each(
                sql, values, lambda rows: [entry_of(Row._make(row), looked_us) for row in rows]
            )
            return None if found is None else tuple(found)

    def names(self) -> Mapping[str, bool] | None:
        with self._turn():
            rows = self._database.read("SELECT name, present, aliases FROM model") if self._held is None else None
            if rows is None:
                return None
            found = {text(name): bool(present) for name, present, _ in rows}
            given = [alias for _, _, aliases in rows if aliases != "[]" for alias in texts(aliases)]
            return found | dict.fromkeys(given, True)

    def take_some(self, entries: Sequence[Entry], gone: Collection[int], at_us: int) -> tuple[Entry, ...] | None:
        with self._turn():
            self._settle()
            self._edits += 1
            ids = {self._id(id_) for id_ in (*gone, *(entry.id for entry in entries if entry.id))}
            last_id, looked_us = self._highest_id(), self._looked_us()
            rows = self._rows("id", ids, lambda row: row)
            if self._held is not None or rows is None or last_id is None:
                return None
            given = [replace(entry, id=self._id(entry.id)) if entry.id in self._numbers else entry for entry in entries]
            taken = take(rows, looked_us, last_id, given, at_us)
            anew = self._database.begun_anew
            if not self._database.write_now(statements(taken.old, taken.new, at_us)):
                return None
            return taken.entries if anew == self._database.begun_anew else None

    def annotate(self, entry: Entry) -> None:
        aliases, tags = texts_text(entry.aliases), texts_text(entry.tags)
        priority, notes = stored(entry.priority), stored(entry.notes)
        self._edit(
            {entry.id: lambda row: row._replace(aliases=aliases, priority=priority, tags=tags, notes=notes)},
        )

    def estimated(self, sizes: Mapping[int, tuple[int, str]]) -> None:
        self._edit({id_: _with_estimate(*size) for id_, size in sizes.items()})

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
            anew = self._database.begun_anew
            if not self._database.write_now(statements(kept.rows, now.rows, now.looked_us)):
                return
            if anew != self._database.begun_anew and not self._fill(now.rows, now.looked_us):
                return
            log.debug("%d models that were held in memory are on the disk", len(now.rows))
            self._held = None
            self._forgotten.clear()
            self._numbers.update(numbers)
            self._last_id = now.last_id
        if self._edited([(self._id(id_), edit) for id_, edit in self._later]):
            self._later.clear()

    def _edit(self, edits: Mapping[int, Edit]) -> None:
        """What is said of a row that is not there makes no difference."""
        with self._turn():
            self._settle()
            self._edits += 1
            now = [(self._id(id_), edit) for id_, edit in edits.items()]
            if self._held is None:
                if self._reading(lambda: self._edited(now)):
                    return
                self._held = self._known()
            for id_, edit in now:
                if self._held is None or (self._held.blind and id_ not in self._held.rows):
                    self._later.append((id_, edit))
                elif not _apply(self._held.rows, id_, edit):
                    self._forgotten.add(id_)

    def _edited(self, edits: Collection[tuple[int, Edit]]) -> bool | None:
        """Whether they are on the disk; None where it could not even be read."""
        rows = self._rows("id", {id_ for id_, _ in edits}, lambda row: row)
        if rows is None:
            return None
        old = {row.id: row for row in rows}
        new = dict(old)
        for id_, edit in edits:
            _apply(new, id_, edit)
        return old == new or self._database.write_now(statements(old, new))

    def _id(self, id_: int) -> int:
        return self._numbers.get(id_, id_)

    # The disk --------------------------------------------------------------------------------------------------------

    def _taken(self, given: Sequence[Entry], at_us: int) -> Taken | None:
        """None where the disk cannot be read."""
        while True:
            anew = self._database.begun_anew
            last_id, looked_us = self._reading(self._highest_id), self._looked_us()
            if last_id is None:
                return None

            def taken(rows: Iterable[Any], looked_us: int = looked_us, last_id: int = last_id) -> Taken:
                return take((Row._make(row) for row in rows), looked_us, last_id, given, at_us)

            found = self._database.read_each(_ALL, (), taken)
            if found is None or anew == self._database.begun_anew:
                return found

    def _saved(self, taken: Taken, given: Sequence[Entry], at_us: int) -> Taken | None:
        """None where the disk takes nothing."""
        anew = self._database.begun_anew
        if not self._database.write_now(statements(taken.old, taken.new, at_us)):
            return None
        if anew != self._database.begun_anew:
            taken = take((), 0, 0, given, at_us)
            if not self._fill(taken.new, at_us):
                return None
        return taken

    def _fill(self, rows: Mapping[int, Row], looked_us: int) -> bool:
        """After damage that was found on the way: the new file has nothing but what was being written."""
        return self._database.write_now([Change("DELETE FROM model"), *statements({}, rows, looked_us)])

    def _reading(self, read: Callable[[], T | None]) -> T | None:
        """What could not be opened is opened again by an empty write, never by reading."""
        found = read()
        return read() if found is None and self._database.write() else found

    def _known(self) -> Known | None:
        last_id, looked_us = self._highest_id(), self._looked_us()
        rows = self._rows("id", None, lambda row: row)
        if rows is None or last_id is None:
            return None
        return Known({row.id: row for row in rows}, looked_us, last_id)

    def _highest_id(self) -> int | None:
        """The highest that was ever given."""
        given = self._database.read("SELECT seq FROM sqlite_sequence WHERE name = 'model'")
        if given is None:
            return None
        if self._anew != self._database.begun_anew:
            # Ids begin anew with the file, so that those that entries bring along can be kept.
            self._anew, self._last_id = True, 0
        return max(self._last_id, given[0][0] if given else 0)

    def _rows(self, column: str, values: Collection[Any] | None, make: Callable[[Row], T]) -> list[T] | None:
        """What is made of the rows with one of these values, or of all; None where they cannot be read."""

        def made(rows: Iterable[Any]) -> list[T]:
            return [make(Row._make(row)) for row in rows]

        if values is None:
            return self._database.read_each(_ALL, (), made)
        wanted, result = list(values), list[T]()
        for first in range(0, len(wanted), ASKED_AT_ONCE):
            some = wanted[first : first + ASKED_AT_ONCE]
            sql = f"{_ALL} WHERE {column} IN ({', '.join('?' * len(some))})"
            found = self._database.read_each(sql, some, made)
            if found is None:
                return None
            result += found
        return result

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


def _with_estimate(size: int, of: str) -> Edit:
    return lambda row: row._replace(estimate_bytes=size, estimate_of=of)


def _with_use(more: int, at_us: int, load_s: float | None) -> Edit:
    return lambda row: row._replace(
        usage_count=(number(row.usage_count) or 0) + more,
        last_used_us=max(number(row.last_used_us) or 0, at_us),
        load_s=row.load_s if load_s is None else load_s,
    )
