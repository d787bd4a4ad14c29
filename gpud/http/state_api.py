"""The management API's routes about gpud itself: whether it is well, what it does and why, who has claimed memory, and
giving the GPUs away. It changes nothing but the last.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpud.core import statuses
from gpud.core.errors import InvalidArguments
from gpud.core.facts import ModelStatus, Snapshot
from gpud.core.facts import State as ModelState
from gpud.http import queries
from gpud.http.exchange import Exchange
from gpud.http.feed_events import timestamp
from gpud.http.loading_api import queue_entries
from gpud.http.models_api import Models, loaded_first
from gpud.http.own import (
    KNOWN_BACKENDS,
    Parts,
    asked,
    backend_name,
    gb,
    is_stranger,
    model_of,
    number,
    seen,
    sees_all,
    whole,
)
from gpud.http.redaction import redacted
from gpud.http.routing import Route
from gpud.http.shapes import Api
from gpud.http.state_shapes import (
    ApiHealth,
    BackendHealth,
    ClaimInfo,
    EngineInfo,
    Given,
    Health,
    LoadedModel,
    Reason,
    Reasons,
    Root,
    Services,
    Stats,
    Status,
    Storage,
    YieldBody,
    Yielding,
)
from gpud.http.vram import summary

EXPLAINED = 20
EXPLAINED_MOST = 500

YIELD_MOST_S = 10 * 366 * 86400.0
"""Ten years: more is a mistake in the unit, and would not fit into every clock."""


class State:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._models = Models(parts)

    def routes(self) -> tuple[Route, ...]:
        api, tag = Api.MANAGEMENT, "state"

        def look(
            path: str, handler: Any, summary: str, answer: Any, *asks: queries.Query, open_: bool = False
        ) -> Route:
            return Route("GET", path, handler, api, open=open_, summary=summary, answer=answer, asks=asks, tag=tag)

        def change(path: str, handler: Any, summary: str, body: Any) -> Route:
            return Route("POST", path, handler, api, changes=True, summary=summary, body=body, answer=Yielding, tag=tag)

        return (
            look("/", self._root, "What this is", Root),
            look("/health", self._health, "Whether gpud is well", Health, open_=True),
            look("/api/health", self._api_health, "Whether its backends are", ApiHealth, open_=True),
            look("/api/backend/info", self._engine_info, "The loaded model that was used last", EngineInfo),
            look("/status", self._status, "Everything at one glance", Status),
            look("/api/stats", self._stats, "What was done since the start", Stats),
            look(
                "/explain",
                self._explain,
                "What was decided lately, and why",
                Reasons,
                queries.text("model", "about this model; else about all"),
                queries.whole("limit", "how many at most", 1, EXPLAINED_MOST, EXPLAINED),
            ),
            look("/claims", self._claims, "Memory of programs that are no engines", list[ClaimInfo]),
            change("/yield", self._yield, "Empty the GPUs and load nothing on them", YieldBody),
            change("/resume", self._resume, "Take the GPUs back", None),
        )

    # Whether it is well ----------------------------------------------------------------------------------------------

    async def _root(self, exchange: Exchange) -> None:
        await exchange.answer(
            Root(
                name="gpud management API",
                version=self._parts.engine.snapshot().version,
                docs="/docs",
                health="/health",
                openapi="/openapi.json",
                endpoints={"backends": "/backends", "models": "/models", "status": "/status", "vram": "/vram"},
            )
        )

    async def _health(self, exchange: Exchange) -> None:
        snapshot = self._parts.engine.snapshot()
        services = Services(
            registry_db=snapshot.degraded != "state-not-kept",
            models_path=await asyncio.to_thread(self._finds_models, snapshot),
            vram_monitor=bool(snapshot.gpus) and not any(gpu.sample.health for gpu in snapshot.gpus),
        )
        well = not snapshot.degraded and services.models_path and services.vram_monitor
        await exchange.answer(Health("healthy" if well else "degraded", self._parts.now(), snapshot.version, services))

    def _finds_models(self, snapshot: Snapshot) -> bool:
        """For a thread. Without a directory for models, those of the configured files count."""
        path = self._parts.settings.models_path
        files = [one.model.settings.file for one in snapshot.models if one.model.settings.file]
        folders = {Path(path)} if path else {Path(file).parent for file in files}
        try:
            return all(folder.is_dir() for folder in folders)
        except OSError:
            return False

    async def _api_health(self, exchange: Exchange) -> None:
        snapshot = self._parts.engine.snapshot()
        by_name: dict[str, list[ModelStatus]] = {name: [] for name in KNOWN_BACKENDS}
        for _, one in seen(exchange):
            by_name.setdefault(backend_name(one.model.engine), []).append(one)
        backends = {name: _health_of(name, models, snapshot) for name, models in by_name.items()}
        used = [backends[name] for name, models in by_name.items() if models]
        if not any(one.ready for one in used):
            status = "unhealthy"
        elif snapshot.degraded or not all(one.ready for one in used):
            status = "degraded"
        else:
            status = "healthy"
        if is_stranger(exchange):
            backends = {name: BackendHealth(one.available, one.ready, None) for name, one in backends.items()}
        await exchange.answer(ApiHealth(status, backends))

    async def _engine_info(self, exchange: Exchange) -> None:
        loaded = loaded_first([one for _, one in seen(exchange)])
        if not loaded:
            await exchange.answer(EngineInfo(None, None, None, None, None))
            return
        model = loaded[0].model
        layers = model.settings.layers or ""
        await exchange.answer(
            EngineInfo(
                model=model.name,
                backend=backend_name(model.engine),
                n_ctx=model.settings.context,
                n_gpu_layers=-1 if layers == "all" else int(layers) if layers.isdigit() else None,
                n_threads=model.settings.threads,
            )
        )

    # What it does ----------------------------------------------------------------------------------------------------

    async def _status(self, exchange: Exchange) -> None:
        parts, snapshot = self._parts, await self._parts.fresh()
        await exchange.answer(
            Status(
                timestamp=parts.now(),
                version=snapshot.version,
                state=snapshot.state,
                degraded=snapshot.degraded,
                vram=summary(snapshot),
                backends=self._models.backends(exchange),
                loaded_models=[self._loaded(one, snapshot) for one in loaded_first([one for _, one in seen(exchange)])],
                pending_queue=queue_entries(exchange),
                yielded=self._given(snapshot),
                storage=await asyncio.to_thread(self._storage),
            )
        )

    def _storage(self) -> Storage | None:
        """For a thread: a disk may be slow."""
        path = self._parts.settings.models_path
        try:
            disk = os.statvfs(path) if path else None
        except OSError:
            return None
        if disk is None:
            return None
        return Storage(path, gb(disk.f_blocks * disk.f_frsize), gb(disk.f_bavail * disk.f_frsize))

    def _loaded(self, status: ModelStatus, snapshot: Snapshot) -> LoadedModel:
        parts = self._parts
        return LoadedModel(
            name=status.model.name,
            backend=backend_name(status.model.engine),
            state="busy" if status.in_flight else "ready",
            vram_gb=gb(status.need_bytes if status.used_bytes is None else status.used_bytes),
            in_flight=status.in_flight,
            loaded_at=parts.time_of_day(snapshot, status.ready_since_s),
            last_used=parts.time_of_day(snapshot, status.last_used_s),
            unload_at=parts.time_of_day(snapshot, status.unload_at_s),
        )

    def _given(self, snapshot: Snapshot) -> Given | None:
        given = snapshot.yielded
        if given is None:
            return None
        since, until = (self._parts.time_of_day(snapshot, at_s) for at_s in (given.since_s, given.until_s))
        return Given(since, until, given.why)

    async def _stats(self, exchange: Exchange) -> None:
        parts, snapshot = self._parts, self._parts.engine.snapshot()
        models = [one for _, one in seen(exchange)]
        by_status = {} if not sees_all(exchange) else parts.metrics.requests_by_status()
        by_model = {one.model.name: parts.metrics.requests_of(one.model.name) for one in models}
        depth: dict[str, int] = {}
        for entry in snapshot.queue:
            word = entry.priority.name.lower()
            depth[word] = depth.get(word, 0) + 1
        await exchange.answer(
            Stats(
                uptime_seconds=int(parts.uptime_s),
                requests=sum(by_status.values()) or sum(by_model.values()),
                requests_failed=sum(count for status, count in by_status.items() if status.startswith("5")),
                requests_by_status=by_status,
                requests_by_model=by_model,
                in_flight=sum(one.in_flight for one in models),
                queue_depth=depth,
                models=len(models),
                models_loaded=sum(one.state is ModelState.READY for one in models),
            )
        )

    async def _explain(self, exchange: Exchange) -> None:
        said = exchange.request.parameter("model")
        limit = number(exchange, "limit", EXPLAINED, 1, EXPLAINED_MOST) or EXPLAINED
        name = model_of(exchange, self._parts, said) if said else ""
        if not said:
            whole(exchange, "the reasons")
        entries = await self._parts.engine.explain(name, limit)
        await exchange.answer(
            Reasons(
                [
                    Reason(
                        at=timestamp(entry.at_us / 1_000_000),
                        kind=entry.notice.kind.value,
                        level=entry.notice.level.value,
                        model=entry.notice.model,
                        message=redacted(entry.notice.message),
                        detail=[redacted(line) for line in entry.notice.detail],
                        fields=dict(entry.notice.fields),
                    )
                    for entry in entries
                ]
            )
        )

    async def _claims(self, exchange: Exchange) -> None:
        whole(exchange, "the claims")
        snapshot = self._parts.engine.snapshot()
        await exchange.answer(
            [
                ClaimInfo(
                    id=one.id,
                    who=one.who,
                    why=one.why,
                    size_gb=gb(one.bytes),
                    used_gb=gb(one.used_bytes),
                    device=one.device,
                    granted=one.granted,
                    priority=one.priority.name.lower(),
                    waits_for=one.waits_for,
                    since=self._parts.time_of_day(snapshot, one.since_s),
                )
                for one in snapshot.claims
            ]
        )

    # Giving the GPUs away --------------------------------------------------------------------------------------------

    async def _yield(self, exchange: Exchange) -> None:
        body = await asked(exchange, YieldBody)
        whole(exchange, "the GPUs")
        if body.for_seconds is not None and not 0 < body.for_seconds <= YIELD_MOST_S:
            raise InvalidArguments(
                f"for_seconds is {body.for_seconds:g}", hint=f"it is more than 0 and at most {YIELD_MOST_S:.0f}"
            )
        why = "".join(letter if letter.isprintable() else " " for letter in body.why).strip()
        engine = self._parts.engine
        engine.yield_gpus(exchange.caller, why=why, for_s=body.for_seconds)
        snapshot = engine.snapshot()
        given = self._given(snapshot)
        moving = statuses.lively(snapshot.models)
        leaving = [one.model.name for one in moving if one.state.has_engine() and one.device != "host"]
        until = given.until if given is not None else None
        text = "The GPUs are given away" + (f" until {until}" if until else " until somebody resumes")
        await exchange.answer(Yielding("yielded", text, until, leaving))

    async def _resume(self, exchange: Exchange) -> None:
        whole(exchange, "the GPUs")
        was = self._parts.engine.snapshot().yielded is not None
        self._parts.engine.resume(exchange.caller)
        text = "Models are loaded again" if was else "The GPUs were not given away"
        await exchange.answer(Yielding("resumed", text, None, []))


def _health_of(name: str, models: Sequence[ModelStatus], snapshot: Snapshot) -> BackendHealth:
    """In short sentences: the plugin for Neovim shows them."""
    if not models:
        return BackendHealth(False, False, f"no model is configured for {name}")
    ready = [one for one in models if one.state in (ModelState.READY, ModelState.DRAINING)]
    if ready:
        return BackendHealth(True, True, f"loaded: {', '.join(one.model.name for one in ready)}")
    if all(one.state in (ModelState.FAILED, ModelState.BACKOFF) for one in models):
        return BackendHealth(True, False, f"{models[0].model.name}: {models[0].error}")
    if snapshot.yielded is not None:
        return BackendHealth(True, False, "the GPUs are given away; POST /resume takes them back")
    if snapshot.degraded == "gpu-unavailable":
        return BackendHealth(True, False, "a GPU does not answer")
    return BackendHealth(True, True, "nothing is loaded; a request loads its model")
