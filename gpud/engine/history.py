"""What was decided and why, as it was told: kept for whoever asks later. Decides and tells nothing itself.

Entries go to the store in the order in which they came, in a thread, as many at a time as have come meanwhile.
"""

import asyncio
import time
from collections import deque

from gpud.core.events import Logged, Notice
from gpud.core.ports import Store

KEPT_WAITING = 1000
"""So many entries wait for a disk that does not answer; older ones are lost then, and the journal has them."""


class History:
    """Belongs to the engine's loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Logged] = deque(maxlen=KEPT_WAITING)
        self._writing: asyncio.Task[None] | None = None

    def add(self, notice: Notice) -> None:
        self._waiting.append(Logged(time.time_ns() // 1000, notice))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                entries = tuple(self._waiting)
                self._waiting.clear()
                await asyncio.to_thread(self._store.log, entries)
        finally:
            self._writing = None

    async def latest(self, model: str, limit: int) -> tuple[Logged, ...]:
        """The newest first, also those that are not written yet."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        return await asyncio.to_thread(self._store.logged, model, limit)

    async def close(self) -> None:
        """Everything is with the store."""
        if self._writing is not None:
            await self._writing
