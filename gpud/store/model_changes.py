"""What becomes of the rows of table ``model`` when models are looked for, and when what was in memory meets the disk.

Values only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpud.core.catalogue import Entry
from gpud.core.record import Struct, field, replace
from gpud.store.database import Change
from gpud.store.model_rows import (
    COLUMNS,
    Row,
    Stored,
    entry_of,
    found_columns,
    found_of,
    new_row,
    places,
    places_text,
    stored,
    text,
    with_found,
)

ABSENT_MOST = 5000
"""So many models that are not there any more are remembered, a KiB each. Those that were seen longest ago go first."""

UNSAVED_FROM = 1_000_000_000
"""Ids from here on are given while nobody can know which ones the disk has: they are exchanged when it can be read.
Clients may keep them in 32 bits."""

_INSERT = f"INSERT INTO model ({COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))})"  # noqa: S608
_LOOKED = "INSERT OR REPLACE INTO scan VALUES (1, ?)"


class Known(Struct):
    """All rows by their ids, when the last look was, and the highest id that was ever given."""

    rows: dict[int, Row]
    looked_us: int
    last_id: int

    @property
    def blind(self) -> bool:
        """Nobody could look what the disk has."""
        return self.last_id >= UNSAVED_FROM

    def changed_by(self, taken: "Taken", at_us: int) -> "Known":
        rows = {id_: row for id_, row in self.rows.items() if id_ not in taken.old} | taken.new
        return Known(rows, at_us, taken.last_id)


class Taken(Struct):
    """``old`` and ``new`` are the rows that differ, before and after."""

    entries: tuple[Entry, ...]
    last_id: int
    old: dict[int, Row] = field(default_factory=dict)
    new: dict[int, Row] = field(default_factory=dict)


def take(rows: Iterable[Row], looked_us: int, last_id: int, entries: Sequence[Entry], at_us: int) -> Taken:
    """What becomes of the rows by a look that found these; see ``Registry.take`` of ``core/ports.py``.

    ``looked_us`` is when the look before was, ``last_id`` the highest id that was ever given. Of rows in which nothing
    differs none is held.

    Raises ValueError for two entries with one id, name or path.
    """
    _insist_on_distinct(entries)
    taken = Taken((), last_id)
    unknown = {entry.id or -place: entry for place, entry in enumerate(entries, 1)}
    gone: list[Row] = []
    result: list[Entry] = []
    for row in rows:
        entry = unknown.pop(row.id, None)
        if entry is None:
            gone.append(row)
            continue
        now = _again(row, entry, looked_us)
        if now is not row:
            taken.old[row.id], taken.new[row.id] = row, now
        result.append(entry_of(now, at_us, entry))
    kept = [entry.id for entry in unknown.values() if _keeps_its_id(entry.id, last_id)]
    if last_id < UNSAVED_FROM:
        taken.last_id = max([last_id, *kept])
    for entry in unknown.values():
        now = new_row(entry.id if _keeps_its_id(entry.id, last_id) else _next_id(taken), entry, at_us)
        taken.new[now.id] = now
        result.append(entry_of(now, at_us, entry))
    result += _take_gone(taken, gone, entries, looked_us)
    taken.entries = tuple(sorted(result, key=lambda entry: entry.id))
    return taken


def _take_gone(taken: Taken, gone: Sequence[Row], entries: Sequence[Entry], looked_us: int) -> Iterator[Entry]:
    """Those that are known and were not found."""
    names = {stored(entry.name) for entry in entries}
    paths = {stored(entry.found.path) for entry in entries}
    remembered = _remembered(gone, looked_us)
    forgotten = {row.id: row for row in gone}
    for row in remembered:
        del forgotten[row.id]
        now = _giving_way(_gone(row, looked_us), names, paths)
        if now is not row:
            taken.old[row.id], taken.new[row.id] = row, now
        names.add(now.name)
        paths.add(now.path)
        yield entry_of(now, looked_us)
    taken.old.update(forgotten)


def _insist_on_distinct(entries: Sequence[Entry]) -> None:
    ids: list[int | str] = [entry.id for entry in entries if entry.id]
    names: list[int | str] = [entry.name for entry in entries]
    paths: list[int | str] = [entry.found.path for entry in entries]
    for what, values in (("id", ids), ("name", names), ("path", paths)):
        if len(set(values)) < len(values):
            twice = next(value for value, count in Counter(values).items() if count > 1)
            raise ValueError(f"cannot take models: two of them have the {what} {twice!r}")


def _keeps_its_id(id_: int, last_id: int) -> bool:
    """One that is not known, and was not forgotten: the database was begun anew, or cannot be read, since it was."""
    return 0 < id_ < UNSAVED_FROM and (id_ > last_id or last_id >= UNSAVED_FROM)


def _next_id(taken: Taken) -> int:
    taken.last_id += 1
    return taken.last_id


def _again(row: Row, entry: Entry, looked_us: int) -> Row:
    """The very row where nothing differs."""
    columns = found_columns(entry)
    if row.stamp == stored(entry.found.stamp) or (row.digest and row.digest == stored(entry.found.digest)):
        estimate = entry.estimate_bytes if row.estimate_bytes is None else row.estimate_bytes
    else:
        # It is another file: what was calculated for the one before says nothing of it.
        estimate = None if entry.estimate_bytes == row.estimate_bytes else entry.estimate_bytes
    if found_of(row) == columns and row.estimate_bytes == estimate and (row.last_seen_us is None) == entry.present:
        return row
    last_seen_us = looked_us if row.last_seen_us is None else row.last_seen_us
    return with_found(row, columns)._replace(
        estimate_bytes=estimate, last_seen_us=None if entry.present else last_seen_us
    )


def _gone(row: Row, looked_us: int) -> Row:
    if not row.present and not row.configured and row.last_seen_us is not None:
        return row
    last_seen_us = row.last_seen_us if row.last_seen_us is not None else looked_us
    return row._replace(present=0, configured=0, last_seen_us=last_seen_us)


def _remembered(rows: Iterable[Row], looked_us: int) -> list[Row]:
    """Those that are kept, in the order of their ids."""

    def seen(row: Row) -> tuple[int, int]:
        return (looked_us if row.last_seen_us is None else row.last_seen_us, row.id)

    return sorted(sorted(rows, key=seen)[-ABSENT_MOST:], key=lambda row: row.id)


def _giving_way(row: Row, names: set[Stored], paths: set[Stored]) -> Row:
    """Under a name and at a path that nobody wants, with its number: one that is there has taken the old ones."""
    if row.name in names:
        row = row._replace(name=_free(row.name, row.id, names))
    if row.path in paths:
        path = _free(row.path, row.id, paths)
        first, *others = places(row)
        row = row._replace(path=path, places=places_text((replace(first, path=text(path)), *others)))
    return row


def _free(value: Stored, id_: int, taken: set[Stored]) -> Stored:
    wanted = f"{text(value)}~{id_}"
    while stored(wanted) in taken:
        wanted += "~"
    return stored(wanted)


# What was in memory meets the disk -----------------------------------------------------------------------------------


def merged(held: Known, kept: Known, forgotten: set[int]) -> tuple[Known, dict[int, int]]:
    """All rows after both, and which ids were exchanged for which.

    What the disk has and memory does not know is not present, unless it was forgotten.
    """
    rest = {id_: row for id_, row in kept.rows.items() if id_ not in forgotten}
    rows: dict[int, Row] = {}
    unsaved: list[Row] = []
    for id_, row in held.rows.items():
        if id_ >= UNSAVED_FROM:
            unsaved.append(row)
        else:
            past = rest.pop(id_, None)
            rows[id_] = row if past is None or not held.blind else _with_more(row, past)
    last_id = max(kept.last_id, *rows, 0) if held.blind else max(kept.last_id, held.last_id)
    by_path = {row.path: id_ for id_, row in rest.items()}
    numbers: dict[int, int] = {}
    for row in sorted(unsaved):
        id_ = by_path.get(row.path, 0)
        past = rest.pop(id_, None)
        if past is None:
            last_id += 1
            numbers[row.id] = last_id
            rows[last_id] = row._replace(id=last_id)
        else:
            numbers[row.id] = past.id
            rows[past.id] = _with_past(row, past)
    names = {row.name for row in rows.values()}
    paths = {row.path for row in rows.values()}
    for row in rest.values():
        now = _giving_way(_gone(row, kept.looked_us), names, paths)
        names.add(now.name)
        paths.add(now.path)
        rows[now.id] = now
    return Known(rows, max(held.looked_us, kept.looked_us), last_id), numbers


def _with_more(row: Row, past: Row) -> Row:
    """Both count from the same beginning."""
    return row._replace(
        usage_count=max(row.usage_count, past.usage_count),
        last_used_us=max(row.last_used_us or 0, past.last_used_us or 0) or None,
        load_s=past.load_s if row.load_s is None else row.load_s,
    )


def _with_past(row: Row, past: Row) -> Row:
    """What was new while the disk could not be read, and is not."""
    return row._replace(
        id=past.id,
        estimate_bytes=past.estimate_bytes
        if row.estimate_bytes is None and row.stamp == past.stamp
        else row.estimate_bytes,
        aliases=past.aliases if row.aliases == "[]" else row.aliases,
        priority=row.priority or past.priority,
        tags=past.tags if row.tags == "[]" else row.tags,
        notes=row.notes or past.notes,
        usage_count=row.usage_count + past.usage_count,
        first_seen_us=min(row.first_seen_us, past.first_seen_us),
        last_used_us=past.last_used_us if row.last_used_us is None else row.last_used_us,
        load_s=past.load_s if row.load_s is None else row.load_s,
    )


# Statements ----------------------------------------------------------------------------------------------------------


def statements(old: Mapping[int, Row], new: Mapping[int, Row], looked_us: int | None = None) -> list[Change]:
    """What makes the new rows of the old ones, in an order in which no name and no path is ever there twice."""
    changes = [Change("DELETE FROM model WHERE id = ?", (id_,)) for id_ in old if id_ not in new]
    changed = [(old[id_], row) for id_, row in new.items() if id_ in old and old[id_] != row]
    added = [row for id_, row in new.items() if id_ not in old]
    for column in ("name", "path"):
        wanted = {getattr(row, column) for row in new.values()}
        changes += [
            # No text is a blob that begins like this.
            Change(f"UPDATE model SET {column} = ? WHERE id = ?", (b"\0%d" % before.id, before.id))  # noqa: S608
            for before, after in changed
            if getattr(before, column) != getattr(after, column) and getattr(before, column) in wanted
        ]
    changes += [_update(before, after) for before, after in changed]
    changes += [Change(_INSERT, row) for row in added]
    if looked_us is not None:
        changes.append(Change(_LOOKED, (looked_us,)))
    return changes


def _update(before: Row, after: Row) -> Change:
    """Of the columns that differ only: the others' indexes are left alone."""
    pairs = [(column, value) for column, was, value in zip(Row._fields, before, after, strict=True) if was != value]
    columns = ", ".join(f"{column} = ?" for column, _ in pairs)
    return Change(f"UPDATE model SET {columns} WHERE id = ?", (*(value for _, value in pairs), after.id))  # noqa: S608
