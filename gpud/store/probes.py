"""What engines said that they would allocate, by everything that it depends on: table ``probe``."""

import json
import logging

from msgspec import to_builtins

from gpud.core.quote import Estimate, Part, Source
from gpud.store.database import Change, Database
from gpud.store.recent import Recent

log = logging.getLogger(__name__)

KEPT_MOST = 2000
"""Each takes about a KiB. A record is asked for with each model, context, build and set of devices."""

REMEMBERED = 300

_USED = "(SELECT COALESCE(MAX(used), 0) + 1 FROM probe)"


class Probes:
    """The least recently used go. That one was used is written with the next one that is kept: reading never writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: Recent[str, Estimate] = Recent(REMEMBERED)
        self._used: dict[str, None] = {}

    def keep(self, key: str, estimate: Estimate) -> None:
        self._recent.put(key, estimate)
        self._used.pop(key, None)
        self._database.write(
            *self._uses(),
            Change(
                f"INSERT OR REPLACE INTO probe (key, estimate, used) VALUES (?, ?, {_USED})",  # noqa: S608
                (key, json.dumps(to_builtins(estimate))),
            ),
            Change(
                "DELETE FROM probe WHERE used <= (SELECT used FROM probe ORDER BY used DESC LIMIT 1 OFFSET ?)",
                (KEPT_MOST,),
            ),
        )

    def get(self, key: str) -> Estimate | None:
        known = self._recent.get(key)
        if known is None:
            rows = self._database.read("SELECT estimate FROM probe WHERE key = ?", (key,))
            known = _estimate(rows[0][0]) if rows else None
            if known is not None:
                self._recent.put(key, known)
        if known is not None:
            self._used.pop(key, None)
            self._used[key] = None
        return known

    def flush(self) -> None:
        uses = self._uses()
        if uses:
            self._database.write(*uses)

    def _uses(self) -> list[Change]:
        uses = [Change(f"UPDATE probe SET used = {_USED} WHERE key = ?", (key,)) for key in self._used]  # noqa: S608
        self._used.clear()
        return uses


def _estimate(text: str) -> Estimate | None:
    """None for what cannot be read: the engine is asked again."""
    try:
        content = json.loads(text)
        parts = tuple(Part(**part) for part in content.pop("parts"))
        return Estimate(**content | {"parts": parts, "source": Source(content["source"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.debug("a kept record of an engine cannot be read and is asked for again: %r", error)
        return None
