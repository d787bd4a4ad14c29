"""How often a starting engine is looked at, by a clock that leaps from one timer to the next."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpud.backends.runner import BELT_LOOK_S, LONGEST_LOOK_S, Announcement, until_ready
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Exit, Model

MODEL = Model("tiny", "custom", EngineSettings(), load_timeout_s=60.0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """Nobody waits: the time of the next timer comes when there is nothing else to do."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__(_Leap(self._leap))

    def _leap(self, by_s: float) -> None:
        self.now_s += by_s

    def time(self) -> float:
        return self.now_s


class _Leap(selectors.DefaultSelector):
    def __init__(self, leap: Callable[[float], None]) -> None:
        super().__init__()
        self._leap = leap

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._leap(max(0.0, timeout or 0.0))
        return super().select(0)


class Starting:
    """A child that becomes ready at some time, and what was seen of it when."""

    def __init__(self, ready_after_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready_s = self._loop.time() + ready_after_s
        self.looks_s: list[float] = []

    async def probe(self) -> bool:
        self.looks_s.append(self._loop.time())
        return self._loop.time() >= self._ready_s

    async def wait(self) -> Exit:
        await asyncio.Event().wait()
        raise AssertionError("it does not end")

    def tail(self) -> tuple[str, ...]:
        return ()

    @property
    def late_s(self) -> float:
        """How long after it was ready that was seen."""
        return self.looks_s[-1] - self._ready_s


def leaping(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(work)


@pytest.mark.parametrize("ready_after_s", [0.0, 0.0305, 0.2, 33.333])
def test_an_engine_that_announces_nothing_is_looked_at_every_ten_milliseconds(ready_after_s: float) -> None:
    """With the look itself it is known to be ready within 20 ms, whenever that is."""

    async def work() -> None:
        child = Starting(ready_after_s)
        await until_ready(child, MODEL, "fake", child.probe)  # type: ignore[arg-type]
        assert -0.001 < child.late_s <= LONGEST_LOOK_S + 0.001

    leaping(work())


def test_an_engine_that_announces_itself_is_seldom_looked_at_and_believed_at_once() -> None:
    """Its word is followed by a look in the same moment; without it there is one a second."""

    async def work() -> None:
        child, announcement = Starting(9.5), Announcement()
        announcement.hear(ready=False)
        asyncio.get_running_loop().call_later(9.5, lambda: announcement.hear(ready=True))
        await until_ready(child, MODEL, "fake", child.probe, announcement)  # type: ignore[arg-type]
        assert len(child.looks_s) <= 9.5 / BELT_LOOK_S + 2
        assert -0.001 < child.late_s <= 0.001

    leaping(work())


def test_an_announcement_that_is_lost_is_made_up_for() -> None:
    """The look that comes every second finds it."""

    async def work() -> None:
        child, announcement = Starting(9.5), Announcement()
        announcement.hear(ready=False)
        await until_ready(child, MODEL, "fake", child.probe, announcement)  # type: ignore[arg-type]
        assert 0 <= child.late_s <= BELT_LOOK_S

    leaping(work())


def test_a_start_has_its_time_and_no_more() -> None:
    """After it the load is given up, and the message says after how long."""

    async def work() -> None:
        child = Starting(1e9)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(BackendFailed, match="60 s"):
            await until_ready(child, MODEL, "fake", child.probe)  # type: ignore[arg-type]
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(60.0, abs=0.01)

    leaping(work())
