"""What models were measured to hold, and what engines held beyond their own count.

Tables ``measured`` and ``residual``.
"""

import time

from gpud.core.learning import Measured, Residual, largest
from gpud.store.database import Change, Database
from gpud.store.recent import Recent

COUNTED = 3
"""So many measurements of one key are kept and looked at: a large one is believed until three loads were smaller."""

MEASURED_MOST = 6000
"""Rows, all keys together. A laboratory has hundreds of models, each with a few settings, not thousands."""

PLACES_MOST = 500
"""Devices times drivers times builds: years of updates."""

REMEMBERED_KEYS = 500
"""In memory, a few hundred bytes each."""


class Sizes:
    """Memory is asked first, and is right even where the disk takes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._measured: Recent[str, tuple[Measured, ...]] = Recent(REMEMBERED_KEYS)
        self._residuals: Recent[str, Residual] = Recent(REMEMBERED_KEYS)

    def learn(self, key: str, measured: Measured) -> None:
        self._measured.put(key, (*self._of(key), measured)[-COUNTED:])
        self._database.write(
            Change(
                "INSERT INTO measured (key, gpu_bytes, host_bytes, load_s, at_us) VALUES (?, ?, ?, ?, ?)",
                (key, measured.gpu_bytes, measured.host_bytes, measured.load_s, time.time_ns() // 1000),
            ),
            Change(
                "DELETE FROM measured WHERE key = ?1 AND id <= "
                "(SELECT id FROM measured WHERE key = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                (key, COUNTED),
            ),
            Change(
                "DELETE FROM measured WHERE id <= (SELECT id FROM measured ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (MEASURED_MOST,),
            ),
        )

    def learned(self, key: str) -> Measured | None:
        return largest(self._of(key))

    def _of(self, key: str) -> tuple[Measured, ...]:
        """The latest few, the oldest first."""
        known = self._measured.get(key)
        if known is None:
            rows = self._database.read(
                "SELECT gpu_bytes, host_bytes, load_s FROM measured WHERE key = ? ORDER BY id DESC LIMIT ?",
                (key, COUNTED),
            )
            known = tuple(Measured(*row) for row in reversed(rows or ()))
            if known:
                self._measured.put(key, known)
        return known

    def learn_residual(self, place: str, residual_bytes: int) -> None:
        now = (self.residual(place) or Residual()).with_one_more(residual_bytes)
        self._residuals.put(place, now)
        self._database.write(
            Change(
                "INSERT OR REPLACE INTO residual (place, count, mean_bytes, spread_bytes, largest_bytes, used) "
                "VALUES (?, ?, ?, ?, ?, (SELECT COALESCE(MAX(used), 0) + 1 FROM residual))",
                (place, now.count, now.mean_bytes, now.spread_bytes, now.largest_bytes),
            ),
            Change(
                "DELETE FROM residual WHERE used <= (SELECT used FROM residual ORDER BY used DESC LIMIT 1 OFFSET ?)",
                (PLACES_MOST,),
            ),
        )

    def residual(self, place: str) -> Residual | None:
        known = self._residuals.get(place)
        if known is None:
            rows = self._database.read(
                "SELECT count, mean_bytes, spread_bytes, largest_bytes FROM residual WHERE place = ?", (place,)
            )
            if rows:
                known = Residual(*rows[0])
                self._residuals.put(place, known)
        return known
