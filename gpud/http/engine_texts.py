"""Fetches what running engines tell Prometheus of themselves. Loads nothing, and counts as no use of a model."""

import asyncio
import time
from collections.abc import Callable

from gpud.core import statuses
from gpud.core.engines import ENGINES
from gpud.core.facts import Endpoint, ModelStatus, State
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.upstream import UpstreamFailed

TELLING = frozenset(kind.name for kind in ENGINES if kind.has_metrics)
"""The engines that have /metrics; others would be asked for what they do not know."""

PATIENCE_S = 1.0
"""An engine answers between two batches. What takes longer is left out: a scrape ends in time all the same."""

KEPT_S = 2.0
"""For so long an answer is used again. An engine that is looked at more often looks for its clients more often, too,
and works the less."""


MOST_BYTES = 256 << 10
"""llama-server says two kilobytes, vLLM a hundred."""


class EngineTexts:
    """One for all doors: they share what was fetched."""

    def __init__(self, engine: Engine, pool: Pool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._pool = pool
        self._clock = clock
        self._reading = asyncio.Lock()
        self._kept: dict[Endpoint, tuple[float, str]] = {}

    async def read(self) -> dict[str, str]:
        """By model. An engine that says nothing, or says it too late, is left out."""
        async with self._reading:
            found = {
                status.model.name: status.endpoint
                for status in statuses.lively(self._engine.snapshot().models)
                if status.endpoint is not None and _tells(status)
            }
            now = self._clock()
            there = set(found.values())
            self._kept = {at: kept for at, kept in self._kept.items() if at in there and now - kept[0] < KEPT_S}
            missing = [endpoint for endpoint in there if endpoint not in self._kept]
            for endpoint, text in zip(missing, await asyncio.gather(*map(self._ask, missing)), strict=True):
                self._kept[endpoint] = (now, text)
            return {name: text for name, endpoint in found.items() if (text := self._kept[endpoint][1])}

    async def _ask(self, endpoint: Endpoint) -> str:
        try:
            async with (
                asyncio.timeout(PATIENCE_S),
                self._pool.request(endpoint, "GET", "/metrics", headers=[("Accept", "text/plain")]) as response,
            ):
                body = await response.read(MOST_BYTES)
                return body.decode("utf-8", "replace") if response.status == 200 else ""
        except (UpstreamFailed, TimeoutError):
            return ""


def _tells(status: ModelStatus) -> bool:
    return status.state in (State.READY, State.DRAINING) and status.model.engine in TELLING
