"""A model in an engine that somebody else runs: gpud uses it, asks for its memory, and never starts or stops it."""

import asyncio
from collections.abc import Awaitable, Callable

from gpud.backends import listeners
from gpud.core.facts import Endpoint, Exit, StopTimes


class AttachedRunner:
    """It is gone when gpud let go of it, and never by itself. ``pid`` is who listens there, where that can be seen;
    ``give_back`` asks for the memory.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        pid: int | None,
        *,
        ask_busy: Callable[[], Awaitable[bool | None]],
        give_back: Callable[[], Awaitable[None]],
    ) -> None:
        self.endpoint = endpoint
        self._pid = pid
        self._started = None if pid is None else listeners.started_at(pid)
        self._ask_busy = ask_busy
        self._give_back = give_back
        self._let_go = asyncio.Event()

    def pids(self) -> frozenset[int]:
        # Its number may have been given to another process: whose memory is then not this model's.
        if self._pid is None or listeners.started_at(self._pid) != self._started:
            return frozenset()
        return listeners.family(self._pid)

    async def gone(self) -> Exit:
        await self._let_go.wait()
        return Exit(self._pid or 0, None)

    async def busy(self) -> bool | None:
        return await self._ask_busy()

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - not ours to kill
        await self._give_back()
        self._let_go.set()

    async def kill(self) -> None:
        await self.unload(StopTimes())

    def crash_hint(self, ended: Exit) -> str:  # noqa: ARG002 - nothing of it can be read
        return ""

    def tail(self) -> tuple[str, ...]:
        return ()
