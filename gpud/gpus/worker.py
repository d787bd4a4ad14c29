"""Runs the blocking calls of one probe, one at a time, in a thread of their own; never more than one waits for an
answer.

A driver that hangs cannot be interrupted: its thread is left behind as a daemon thread, the caller gets
:class:`Unanswered`, and later callers get the same at once instead of queueing up behind it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unanswered(Exception):
    """A call has not returned; ``since_s`` says for how long."""

    def __init__(self, since_s: float) -> None:
        super().__init__(f"no answer for {since_s:.0f} s")
        self.since_s = since_s


class _Job(Generic[T]):
    """One call, with where its result goes. ``done`` only says that there is one: nobody may be waiting any more."""

    def __init__(self, function: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.loop = loop
        self.began = time.monotonic()
        self.done: asyncio.Future[None] = loop.create_future()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # a function that returned: its own type, None included


class Worker:
    """A thread that starts with the first call and ends after a call that leaves ``holding()`` False.

    Belongs to one event loop.
    """

    def __init__(self, name: str, holding: Callable[[], bool]) -> None:
        self._name = name
        self._holding = holding
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: _Job[Any] | None = None
        self._afterwards: Callable[[], object] | None = None

    @property
    def active(self) -> bool:
        """True while there is a thread: it works, hangs, or keeps a driver open."""
        return self._thread is not None

    async def call(self, function: Callable[[], T], within_s: float) -> T:
        """The result of ``function``, begun after this call was made; raises :class:`Unanswered` in time."""
        deadline = time.monotonic() + within_s
        while (running := self._running) is not None:
            await self._wait(running, min(deadline, running.began + within_s))
        job = self._submit(function)
        await self._wait(job, deadline)
        return job.outcome()

    def afterwards(self, function: Callable[[], object]) -> None:
        """Run this when the call that hangs now returns at last. Its outcome interests nobody."""
        if self._running is None:
            self._submit(function)
        else:
            self._afterwards = function

    @staticmethod
    async def _wait(job: _Job[Any], deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s > 0:
            await asyncio.wait({job.done}, timeout=left_s)
        if not job.done.done():
            raise Unanswered(time.monotonic() - job.began)

    def _submit(self, function: Callable[[], T]) -> _Job[T]:
        job = _Job(function, asyncio.get_running_loop())
        self._running = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return job

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            job.run()
            ends = not self._holding()
            try:
                job.loop.call_soon_threadsafe(self._finished, job, ends)
            except RuntimeError:
                return  # The loop was closed while the driver hung: nobody is left to be told.
            if ends:
                return

    def _finished(self, job: _Job[Any], ends: bool) -> None:
        if ends and self._thread is not None:
            self._thread.join()  # It is at its last instruction: when this returns, nothing of it is left.
            self._thread = None
        self._running = None
        job.done.set_result(None)
        function, self._afterwards = self._afterwards, None
        if function is not None:
            self._submit(function)
