"""A clock that a test moves: what waits for it runs when the test says so, and never by itself."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any


class HandClock(asyncio.AbstractEventLoop):
    """As much of a loop as schedules callbacks."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._timers: list[asyncio.TimerHandle] = []

    def get_debug(self) -> bool:
        return False

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s, callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers.append(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    @property
    def waiting(self) -> list[float]:
        """In how many seconds something is to be done."""
        return sorted(timer.when() - self.now_s for timer in self._timers if not timer.cancelled())

    def advance(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and do in order what falls due in it."""
        end_s = self.now_s + seconds
        while due := [timer for timer in self._timers if not timer.cancelled() and timer.when() <= end_s]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self._timers.remove(timer)
            self.now_s = max(self.now_s, timer.when())
            timer._run()
        self.now_s = end_s
