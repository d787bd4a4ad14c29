"""Runs the handler of one request: in its caller's stead for as long as that is enough, in a task from then on.

A task costs a request about 30 µs: itself, a future to wait with, and two more rounds of the loop. Most requests wait
for one thing only, the head of an engine's answer, and go on as soon as it is there.
"""

import asyncio
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any


async def in_task() -> None:
    """From here on the handler runs in a task: what asyncio itself bounds or groups asks for one."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)


def waiter() -> "asyncio.Future[None] | Turn":
    """What the running coroutine can wait for until a callback calls ``set_result``."""
    return Turn() if asyncio.current_task() is None else asyncio.get_running_loop().create_future()


class Turn:
    """A future's place for a handler without a task: whoever sets its result has the handler go on at once, and gets
    back only when that waits again. It is to be the last that a callback does.
    """

    __slots__ = ("work",)

    def __init__(self) -> None:
        self.work: Work | None = None

    def __await__(self) -> Generator["Turn", None, None]:
        yield self

    def done(self) -> bool:
        """Its handler may have got a task meanwhile, and been told otherwise."""
        return self.work is None or self.work.task is not None

    def set_result(self, _: None) -> None:
        if self.work is not None:
            self.work.go_on()

    def hand_over(self) -> None:
        """As :meth:`set_result`, in a task: where it will have to do more than to answer."""
        if self.work is not None:
            self.work.take_task()


class Work:
    """One handler. ``task`` is None while it needs none."""

    __slots__ = ("_coroutine", "task")

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine = coroutine
        self.task: asyncio.Task[None] | None = None

    def go_on(self) -> None:
        """Have it run until it waits. For what is no :class:`Turn` it gets a task."""
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration:
            return
        if type(waits_for) is Turn:
            waits_for.work = self
        else:
            self.take_task(waits_for)

    def take_task(self, waits_for: object = None) -> None:
        """What is left of it runs in a task, which begins by waiting for this."""
        self.task = asyncio.get_running_loop().create_task(_Rest(self._coroutine, waits_for))

    def cancel(self) -> None:
        """Always within a task: what is to be cleaned up may have to wait."""
        if self.task is None:
            self.take_task()
        assert self.task is not None
        self.task.cancel()


class _Rest(Coroutine[Any, None, None]):
    """A coroutine that was begun already, and what it waits for: a task begins with neither."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, None], waits_for: object) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def send(self, value: None) -> Any:
        waits_for, self._waits_for = self._waits_for, None
        return self._coroutine.send(value) if waits_for is None else waits_for

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> Any:
        self._waits_for = None
        problem = kind if isinstance(kind, BaseException) else value if isinstance(value, BaseException) else kind()
        return self._coroutine.throw(problem.with_traceback(trace) if trace is not None else problem)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, None]:
        return self._coroutine.__await__()
