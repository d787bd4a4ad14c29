"""Sees work to its end that must be done whatever becomes of whoever began it; never lets anybody wait for ever.

What was killed is gone within milliseconds, unless it hangs in the kernel, mostly in a GPU's driver: then it ends when
it ends, or never. The daemon has to start, to report and to stop all the same.
"""

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger(__name__)

CLEARING_LIMIT_S = 15.0
"""How long anybody waits: longer than it takes until the processes that hang have been named in a warning."""


class Clearing:
    """All such work of one launcher. Belongs to one event loop."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._tasks: set[asyncio.Task[object]] = set()

    async def see_through(self, unit: str, work: Coroutine[None, None, object]) -> None:
        """Returns when it is done, and at the limit; it goes on behind that, and behind a cancellation. Whatever goes
        wrong in it is logged, not raised.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        done, _ = await asyncio.wait({task}, timeout=self.limit_s)
        if not done:
            log.warning('"%s" has not ended %g s after it was killed: gpud goes on without', unit, self.limit_s)

    async def close(self) -> None:
        """Wait for what is still under way, within the limit."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=self.limit_s)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("cannot clear away everything of an engine", exc_info=problem)
