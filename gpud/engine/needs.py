"""What models would need, calculated ahead so that lists can show it: one after the other, beside all other work."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from gpud.core.facts import Model
from gpud.core.ports import Registry


class Needs:
    """For the event loop's thread. What is calculated stays in the registry until the model changes."""

    def __init__(
        self,
        registry: Registry,
        models: Callable[[], Mapping[str, Model]],
        size: Callable[[Model], Awaitable[int | None]],
    ) -> None:
        self._registry = registry
        self._models = models
        self._size = size
        self._anew: set[str] = set()
        """Those whose need has to be calculated whatever the registry has."""
        self._working: asyncio.Task[None] | None = None
        self._wanted = False
        self.calculated = 0
        """How many have been, since gpud started."""

    def anew(self, names: Iterable[str]) -> None:
        """What was calculated of these is of other settings."""
        self._anew.update(names)

    def soon(self) -> None:
        """Calculate what is not known. What comes while others are calculated is calculated after them."""
        self._wanted = True
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def known(self) -> None:
        """Returns when everything that is wanted has been calculated."""
        if self._working is not None:
            await asyncio.shield(self._working)

    async def close(self) -> None:
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def _work(self) -> None:
        while self._wanted:
            self._wanted = False
            for id_, name in await asyncio.to_thread(self._unknown, frozenset(self._anew)):
                self._anew.discard(name)
                model = self._models().get(name)
                if model is None:
                    continue
                began_s = time.monotonic()
                need_bytes = await self._size(model)
                if need_bytes is not None:
                    await asyncio.to_thread(self._registry.estimated, {id_: need_bytes})
                    self.calculated += 1
                # To read a large vocabulary keeps the interpreter busy: whoever asks for something comes first.
                await asyncio.sleep(time.monotonic() - began_s)

    def _unknown(self, anew: Collection[str]) -> list[tuple[int, str]]:
        """For a thread: those that are there, by number and name, of which nobody knows what they need."""
        return [
            (entry.id, entry.name)
            for entry in self._registry.entries()
            if entry.present and (entry.estimate_bytes is None or entry.name in anew)
        ]
