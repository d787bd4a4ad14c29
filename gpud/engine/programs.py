"""Programs of others to which the GPUs are left for as long as they run: seen at each look, their end is an event."""

import asyncio
import logging
from collections.abc import Callable

from gpud.core.facts import Caller
from gpud.core.ports import OtherProgram, Programs

log = logging.getLogger(__name__)

Gives = Callable[[Caller, str], int]
"""Leaves the GPUs to this program, which is called so; returns the cookie by which that ends."""


class GivesWay:
    """Of each program that was seen, what it has; nothing is asked while there is none."""

    def __init__(self, programs: Programs | None, begin: Gives, end: Callable[[int], None]) -> None:
        self._programs = programs
        self._begin = begin
        self._end = end
        self._running: dict[int, asyncio.Task[None]] = {}

    async def look(self) -> None:
        """Whoever has come since the last look has the GPUs before anything is decided by this one."""
        if self._programs is None or not self._programs.wanted():
            return
        try:
            found = await asyncio.to_thread(self._programs.look)
        except Exception:
            # Models are served all the same: by what the devices show, as without the list.
            log.exception("internal error: looking for programs failed")
            return
        for program in found:
            if program.pid not in self._running:
                self._running[program.pid] = asyncio.ensure_future(self._follow(self._programs, program))
        # The holds are there when this returns.
        await asyncio.sleep(0)

    async def _follow(self, programs: Programs, program: OtherProgram) -> None:
        caller = Caller(f"program {program.pid}", 0, program.pid, program.name)
        cookie = self._begin(caller, f"process {program.pid}, one of give_way.programs")
        try:
            await programs.ended(program)
        finally:
            self._running.pop(program.pid, None)
            self._end(cookie)

    async def close(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
