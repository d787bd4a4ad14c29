"""What happened and why, in the words that the journal has: table ``event``."""

import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from gpud.core.events import Kind, Level, Logged, Notice
from gpud.core.record import replace
from gpud.store.database import WAITING_MOST, Change, Database

log = logging.getLogger(__name__)

KEPT_MOST = 10_000
"""Weeks of a busy machine, a few MiB."""

PRUNE_EVERY = 500
"""So many entries more than are kept may be there before the oldest are taken away, all at once."""

REMEMBERED = 300
"""In memory, for a disk that does not answer."""

MESSAGE_MOST = 4000
DETAIL_MOST = 8000
"""Characters. Of an engine's last words the last ones are kept: one that prints without end must not fill the disk."""

CUT = "(what came before is in the journal)"

_COLUMNS = "id, at_us, kind, level, model, message, fields, detail"
_INSERT = f"INSERT INTO event ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_PRUNE = "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)"


class EventLog:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: deque[Logged] = deque(maxlen=REMEMBERED)
        self._unsaved: deque[tuple[int, Logged]] = deque(maxlen=WAITING_MOST)
        self._until_pruning = 0

    def add(self, entries: Sequence[Logged]) -> None:
        bounded = [replace(entry, notice=_bounded(entry.notice)) for entry in entries]
        changes = [Change(_INSERT, _values(entry)) for entry in bounded]
        self._until_pruning -= len(bounded)
        if self._until_pruning <= 0:
            self._until_pruning = PRUNE_EVERY
            changes.append(Change(_PRUNE, (KEPT_MOST,)))
        self._recent.extend(bounded)
        self._database.write(*changes)
        self._unsaved.extend((self._database.given, entry) for entry in bounded)

    def latest(self, model: str, limit: int) -> tuple[Logged, ...]:
        """The newest first. What is not on the disk yet has the ids that it will be given there."""
        if limit <= 0:
            return ()
        of_model, values = ("WHERE model = ?", (model,)) if model else ("", ())
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM event {of_model} ORDER BY id DESC LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        last = self._database.read("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
        while self._unsaved and self._unsaved[0][0] <= self._database.saved:
            self._unsaved.popleft()
        # Where the disk does not even answer there is what was given since the start.
        unsaved = self._recent if rows is None else (entry for _, entry in self._unsaved)
        numbered = [
            replace(entry, id=number)
            for number, entry in enumerate(unsaved, (last[0][0] if last else 0) + 1)
            if not model or entry.notice.model == model
        ]
        kept = [entry for row in rows or () if (entry := _logged(row)) is not None]
        return (*reversed(numbered), *kept)[:limit]


def _bounded(notice: Notice) -> Notice:
    """With no more words than are kept of one."""
    left, lines = DETAIL_MOST, []
    for line in reversed(notice.detail):
        if len(line) > left:
            lines.append(CUT)
            break
        lines.append(line)
        left -= len(line)
    return replace(notice, message=notice.message[:MESSAGE_MOST], detail=tuple(reversed(lines)))


def _values(entry: Logged) -> tuple[Any, ...]:
    notice = entry.notice
    fields, detail = json.dumps(dict(notice.fields)), json.dumps(notice.detail)
    return (entry.at_us, notice.kind, notice.level, notice.model, notice.message, fields, detail)


def _logged(row: tuple[Any, ...]) -> Logged | None:
    """None for what this gpud cannot read: a kind of a newer one, or what was changed by hand."""
    try:
        number, at_us, kind, level, model, message, fields, detail = row
        notice = Notice(Kind(kind), message, model, Level(level), dict(json.loads(fields)), tuple(json.loads(detail)))
        return Logged(int(at_us), notice, number)
    except (ValueError, TypeError, RecursionError) as error:
        log.debug("entry %s of the event log cannot be read: %r", row[0], error)
        return None
