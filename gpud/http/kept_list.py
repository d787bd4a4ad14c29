"""A list of models as it is sent: what each of them comes to is kept while it stays the same, and while somebody asks.

There may be thousands, and clients ask for all of them whenever somebody opens a menu.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from gpud.core.facts import ModelStatus
from gpud.core.statuses import Statuses
from gpud.engine import Engine
from gpud.http.known_models import Known, KnownModels

KEPT_S = 60.0
"""So long it is kept after somebody asked: for 5,000 models it takes some MB."""

AT_ONCE = 50
"""After so many models whoever else waits is served."""

LOOKED_UP = 500
"""What is known of so many models is asked for at once."""

Encode = Callable[[ModelStatus, Known], bytes]


class KeptList:
    """``encode`` makes of one model the bytes that stand for it in the list."""

    def __init__(self, engine: Engine, known: KnownModels, encode: Encode) -> None:
        self._engine = engine
        self._known = known
        self._encode = encode
        self._kept: dict[str, tuple[ModelStatus, bytes]] = {}
        self._resting: dict[str, bytes] = {}
        """Of those that rest: what they come to follows from which models there are, and what is known of them."""
        self._rest: Statuses | None = None
        self._version = -1
        self._asked_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def of(self, statuses: Sequence[ModelStatus]) -> list[bytes]:
        """What each of them comes to, in their order."""
        if isinstance(statuses, Statuses):
            return await self.named(statuses, statuses.names())
        return await self._of(statuses)

    async def named(self, statuses: Statuses, names: Iterable[str]) -> list[bytes]:
        """Of those with these names alone."""
        self._renew()
        if self._rest is None or (self._rest is not statuses and not self._rest.same_rest(statuses)):
            self._resting = {}
        self._rest = statuses
        # Who asks at the same time may put others there, and take away what has gone.
        resting, wanted = self._resting, list(names)
        parts = [b"" if name in statuses.lively else resting.get(name, b"") for name in wanted]
        missing = [number for number, part in enumerate(parts) if not part]
        moving = [number for number in missing if wanted[number] in statuses.lively]
        for number, part in zip(moving, await self._of([statuses.lively[wanted[n]] for n in moving]), strict=True):
            parts[number] = part
        missing = [number for number in missing if not parts[number]]
        for first in range(0, len(missing), LOOKED_UP):
            some = missing[first : first + LOOKED_UP]
            for number, part in zip(some, await self._made(statuses.chosen(wanted[n] for n in some)), strict=True):
                parts[number] = resting[wanted[number]] = part
        self._asked()
        return parts

    async def _of(self, statuses: Sequence[ModelStatus]) -> list[bytes]:
        """Each for itself: what it comes to is kept with how it stood."""
        self._renew()
        kept = self._kept
        parts = []
        for one in statuses:
            part = kept.get(one.model.name)
            parts.append(part[1] if part is not None and (part[0] is one or part[0] == one) else b"")
        missing = [number for number, part in enumerate(parts) if not part]
        if missing:
            for number, made in zip(missing, await self._made([statuses[n] for n in missing]), strict=True):
                kept[statuses[number].model.name] = statuses[number], made
                parts[number] = made
            self._drop_others(kept, statuses)
        self._asked()
        return parts

    async def _made(self, statuses: Sequence[ModelStatus]) -> list[bytes]:
        parts = []
        for one, facts in zip(statuses, await self._known.of([one.model for one in statuses]), strict=True):
            parts.append(self._encode(one, facts))
            if len(parts) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return parts

    def _renew(self) -> None:
        """Nothing that was kept holds any more once something else may be known of models."""
        version = self._engine.library.version
        if version != self._version:
            self._kept, self._resting, self._rest, self._version = {}, {}, None, version

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
            self._kept, self._resting, self._rest = {}, {}, None


def written(*pieces: bytes | Sequence[bytes]) -> list[bytes]:
    """JSON, in parts, out of what stands there as it is and of lists, each a sequence of what stands for one value."""
    found: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            found.append(piece)
            continue
        before = b"["
        for part in piece:
            found += (before, part)
            before = b","
        found.append(b"]" if piece else b"[]")
    return found
