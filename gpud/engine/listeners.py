"""Who is told what happens, and how often. Decides nothing; one that fails harms no other."""

import asyncio
import logging
from collections.abc import Callable

from gpud.core.events import Outcome, Touched

log = logging.getLogger(__name__)

Listener = Callable[[tuple[Outcome, ...]], None]

# Uses that follow each other so closely are told of together: there may be thousands a second.
USES_S = 0.05


class Listeners:
    """For the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._all: list[Listener] = []
        self._touched: list[Listener] = []
        self._timer: asyncio.TimerHandle | None = None
        self._untold = False

    def subscribe(self, listener: Listener, *, touched: bool) -> Callable[[], None]:
        """Returns how to stop it. ``touched`` False: not where nothing is told but that something can be seen."""
        lists = (self._all, self._touched) if touched else (self._all,)
        for each in lists:
            each.append(listener)

        def stop() -> None:
            for each in lists:
                each.remove(listener)

        return stop

    def tell(self, outcomes: tuple[Outcome, ...]) -> None:
        _call(self._all, outcomes)

    def touch(self) -> None:
        """Something can be seen that is told by nothing else."""
        _call(self._touched, (Touched(),))

    def use_seen(self) -> None:
        """The first is told of at once, those that follow closely a moment later, together."""
        if self._timer is not None:
            self._untold = True
            return
        self._timer = self._loop.call_later(USES_S, self._uses_over)
        self.touch()

    def _uses_over(self) -> None:
        self._timer = None
        if self._untold:
            self._untold = False
            self.use_seen()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _call(listeners: list[Listener], outcomes: tuple[Outcome, ...]) -> None:
    for listener in tuple(listeners):
        try:
            listener(outcomes)
        except Exception:
            log.exception("internal error: a listener failed")
