"""Looks at a model's files and programs without ever waiting for ever: they may lie on a file system that hangs.

Each question has a thread of its own, which is left behind where it hangs; about that model no other is asked then.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unanswered(Exception):
    """It has not been answered in time, or one asked before still hangs."""


class _Question(Generic[T]):
    """One call in its thread, and where its outcome goes."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="gpud-check", daemon=True).start()

    def _run(self) -> None:
        try:
            answer, problem = self._ask(), None
        except Exception as error:
            answer, problem = None, error
        try:
            self._loop.call_soon_threadsafe(self._tell, answer, problem)
        except RuntimeError:
            return  # The loop was closed meanwhile: nobody is left to be told.

    def _tell(self, answer: Any, problem: Exception | None) -> None:
        if self.answer.done():
            return
        if problem is None:
            self.answer.set_result(answer)
        else:
            self.answer.set_exception(problem)


class Checks:
    """Belongs to one event loop. ``limit_s`` is how long a question may take."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._hanging: dict[str, _Question[Any]] = {}

    async def ask(self, model: str, question: Callable[[], T]) -> T:
        """The answer, or what the question raised; raises Unanswered in time."""
        before = self._hanging.get(model)
        if before is not None and not before.answer.done():
            raise Unanswered
        asked = _Question(question)
        await asyncio.wait({asked.answer}, timeout=self._limit_s)
        if not asked.answer.done():
            self._hanging[model] = asked
            raise Unanswered
        self._hanging.pop(model, None)
        return asked.answer.result()
