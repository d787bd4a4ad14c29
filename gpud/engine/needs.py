"""What models would need, calculated ahead so that lists can show it: one after the other, beside all other work."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping

from gpud import __version__
from gpud.core.facts import Model
from gpud.core.ports import Registry
from gpud.core.record import replace
from gpud.core.stock import Stock

KEPT_AT_ONCE = 20
"""So many are written together: to be calculated once more after a crash costs less than to write each by itself."""


class Needs:
    """For the event loop's thread. What is calculated stays in the registry, together with what it was calculated from:
    when the settings are others than then, it is calculated anew, whether gpud ran when they were changed or not.

    ``unknown`` are those of which nothing is known that holds, by name: their numbers in the registry. ``told`` hears
    of each that is calculated, and of what.
    """

    def __init__(
        self,
        registry: Registry,
        models: Callable[[], Stock],
        unknown: Callable[[], Mapping[str, int]],
        size: Callable[[Model], Awaitable[int | None]],
        told: Callable[[str, int, str], None],
    ) -> None:
        self._registry = registry
        self._models = models
        self._unknown = unknown
        self._size = size
        self._told = told
        self._working: asyncio.Task[None] | None = None
        self._wanted = False
        self._unkept: dict[int, tuple[int, str]] = {}

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
        await self._keep()

    async def _work(self) -> None:
        while self._wanted:
            self._wanted = False
            for name, number in self._unknown().items():
                models = self._models()
                model = models.get(name)
                if model is None:
                    continue
                began_s = time.monotonic()
                of = settings_mark(models.pattern(name))
                need_bytes = await self._size(model)
                if need_bytes is not None:
                    self._unkept[number] = need_bytes, of
                    self._told(name, need_bytes, of)
                if len(self._unkept) >= KEPT_AT_ONCE:
                    await self._keep()
                # To read a large vocabulary keeps the interpreter busy: whoever asks for something comes first.
                await asyncio.sleep(time.monotonic() - began_s)
            await self._keep()

    async def _keep(self) -> None:
        unkept, self._unkept = self._unkept, {}
        if unkept:
            await asyncio.to_thread(self._registry.estimated, unkept)


def settings_mark(pattern: Model) -> str:
    """Another one when something is said otherwise that a model's need follows from, or when it is calculated by
    another gpud. Of the model's files it says nothing.
    """
    ways = [
        (way.engine, replace(way.settings, environment=()), way.settings.environment, way.size_bytes, way.gpu)
        for way in (pattern, *pattern.alternatives)
    ]
    return hashlib.sha256(repr((__version__, ways)).encode()).hexdigest()[:12]
