"""A list of models as it is sent: what each of them comes to is kept while it stays the same, and while somebody asks.

There may be thousands, and clients ask for all of them whenever somebody opens a menu.
"""

import asyncio
from collections.abc import Callable, Sequence

from gpud.core.facts import ModelStatus
from gpud.engine import Engine
from gpud.http.known_models import Known, KnownModels

KEPT_S = 60.0
"""So long it is kept after somebody asked: for 5,000 models it takes some MB."""

AT_ONCE = 100
"""After so many models whoever else waits is served."""

Encode = Callable[[ModelStatus, Known], bytes]


class KeptList:
    """``encode`` makes of one model the bytes that stand for it in the list."""

    def __init__(self, engine: Engine, known: KnownModels, encode: Encode) -> None:
        self._engine = engine
        self._known = known
        self._encode = encode
        self._kept: dict[str, tuple[ModelStatus, bytes]] = {}
        self._version = -1
        self._asked_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def of(self, statuses: Sequence[ModelStatus]) -> list[bytes]:
        """What each of them comes to, in their order."""
        version = self._engine.library.version
        if version != self._version:
            self._kept, self._version = {}, version
        # Who asks at the same time may put others there, and take away what has gone.
        kept = self._kept
        parts = []
        for one in statuses:
            part = kept.get(one.model.name)
            # Nearly all are the very same: to compare thousands of them field by field takes longer than all else.
            parts.append(part[1] if part is not None and (part[0] is one or part[0] == one) else b"")
        missing = [number for number, part in enumerate(parts) if not part]
        if missing:
            known = await self._known.of([statuses[number].model for number in missing])
            for done, (number, facts) in enumerate(zip(missing, known, strict=True), 1):
                one = statuses[number]
                parts[number] = self._encode(one, facts)
                kept[one.model.name] = one, parts[number]
                if done % AT_ONCE == 0:
                    await asyncio.sleep(0)
            self._drop_others(kept, statuses)
        self._asked()
        return parts

    def _drop_others(self, kept: dict[str, tuple[ModelStatus, bytes]], statuses: Sequence[ModelStatus]) -> None:
        """Who asks may be allowed to see a few alone: only where there are more than all, some have gone."""
        if len(kept) > len(self._engine.library.models):
            here = {one.model.name for one in statuses} | self._engine.library.models.keys()
            for name in kept.keys() - here:
                del kept[name]

    def _asked(self) -> None:
        loop = asyncio.get_running_loop()
        self._asked_at_s = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(KEPT_S, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._asked_at_s + KEPT_S - loop.time()
        self._timer = None
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._look)
        else:
            self._kept = {}


def joined(parts: Sequence[bytes]) -> bytes:
    """As a list of JSON."""
    return b"[" + b",".join(parts) + b"]"
