"""One use of one model's engine: counted before it is used, and until after its last byte."""

import time
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from gpud.core.events import LoadOptions
from gpud.core.facts import Caller, Endpoint
from gpud.engine.starts import Running

if TYPE_CHECKING:
    from gpud.engine.writer import Engine


class Use(AbstractAsyncContextManager[Endpoint]):
    """One use of one model's engine. A class of its own because every request is one.

    ``waited_s`` is how long it took until the model was there; None: it was there already.
    """

    __slots__ = ("_caller", "_engine", "_name", "_options", "_running", "waited_s")

    def __init__(self, engine: "Engine", name: str, caller: Caller, options: LoadOptions | None) -> None:
        self._engine = engine
        self._name = name
        self._caller = caller
        self._options = options
        self.waited_s: float | None = None

    async def __aenter__(self) -> Endpoint:
        engine, name = self._engine, self._name
        caller = self._caller
        self._running = engine.use_now(name, caller.session) or await self._wait()
        return self._running.runner.endpoint

    async def _wait(self) -> Running:
        began_s = time.monotonic()
        running = await self._engine.begin_use(self._name, self._caller, self._options)
        self.waited_s = time.monotonic() - began_s
        return running

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.end_use(self._name, self._running)
