"""The routes about gpud itself on the front door: for clients of llama-server, of llama-swap, of the model orchestrator
and of llama-cpp-server, each of which finds the shapes that it knows.
"""

from gpud.core.counts import plural
from gpud.core.errors import InvalidArguments, NoSuchModel
from gpud.core.events import LoadOptions
from gpud.core.facts import ModelStatus, Snapshot, State
from gpud.http.admin_shapes import (
    AdminUnloadBody,
    Front,
    Health,
    Loaded,
    ModelsLoadBody,
    ModelsStatus,
    ModelsUnloadBody,
    ModelsUnloaded,
    Reloaded,
    RunningModel,
    RunningModels,
    ServedModel,
    Success,
    SwapUnloaded,
    UnloadError,
    Version,
)
from gpud.http.changing import Unloaded, begin_load, is_there, load, status_of, unload
from gpud.http.exchange import Exchange
from gpud.http.feed_shapes import swap_state
from gpud.http.models_api import loaded_first
from gpud.http.own import Parts, asked, engines_of, is_stranger, mb, model_of, seen, wished_priority
from gpud.http.routing import Route
from gpud.http.shapes import Api, HttpError, error_value
from gpud.http.streams import Streams
from gpud.http.vram import shown_devices

ALL = "all"

ENDPOINTS = {
    "models": "/v1/models",
    "chat": "/v1/chat/completions",
    "health": "/health",
    "metrics": "/metrics",
    "running": "/running",
    "events": "/api/events",
    "logs": "/logs",
}


def admin_routes(parts: Parts) -> tuple[Route, ...]:
    """Everything on the front door that goes to no engine."""
    return Admin(parts).routes()


class Admin:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._streams = Streams(parts)

    def routes(self) -> tuple[Route, ...]:
        return (*self._looking(), *self._changing())

    def _looking(self) -> tuple[Route, ...]:
        streams, llama, management, tag = self._streams, Api.LLAMA, Api.MANAGEMENT, "admin"
        return (
            Route("GET", "/", self._front, management, summary="What this is", answer=Front, tag=tag),
            Route("GET", "/health", self._health, llama, open=True, summary="Alive", answer=Health, tag=tag),
            Route("GET", "/v1/health", self._health, llama, open=True, summary="Alive", answer=Health, tag=tag),
            Route("GET", "/metrics", self.metrics, llama, summary="For Prometheus", tag=tag),
            Route(
                "GET",
                "/models/status",
                self._status,
                management,
                summary="Memory, and what is loaded",
                answer=ModelsStatus,
                tag=tag,
            ),
            Route("GET", "/running", self._running, management, summary="What runs", answer=RunningModels, tag=tag),
            Route("GET", "/api/version", self._version, management, summary="Version", answer=Version, tag=tag),
            Route("GET", "/logs", streams.logs, management, summary="The last lines of the log", tag=tag),
            Route("GET", "/logs/stream", streams.follow, management, summary="The log as it is written", tag=tag),
            Route(
                "GET",
                "/logs/stream/{model...}",
                streams.follow,
                management,
                summary="The log of one model, of gpud (proxy) or of all engines (upstream)",
                tag=tag,
            ),
            Route("GET", "/api/events", streams.events, management, summary="What happens, as it happens", tag=tag),
        )

    def _changing(self) -> tuple[Route, ...]:
        api, tag = Api.MANAGEMENT, "admin"

        def swap(path: str, summary: str) -> Route:
            return Route(
                "POST", path, self._swap_unload, api, changes=True, summary=summary, answer=SwapUnloaded, tag=tag
            )

        return (
            Route(
                "POST",
                "/admin/unload",
                self._admin_unload,
                api,
                changes=True,
                summary="Unload a model, or all",
                body=AdminUnloadBody,
                answer=Success,
                tag=tag,
            ),
            Route(
                "POST",
                "/admin/reload",
                self.reload,
                api,
                changes=True,
                summary="Read the configuration again",
                answer=Reloaded,
                tag=tag,
            ),
            Route(
                "POST",
                "/models/load",
                self._models_load,
                api,
                changes=True,
                summary="Load a model",
                body=ModelsLoadBody,
                answer=Loaded,
                tag=tag,
            ),
            Route(
                "POST",
                "/models/unload",
                self._models_unload,
                api,
                changes=True,
                summary="Unload a model; without one all of them",
                body=ModelsUnloadBody,
                answer=ModelsUnloaded,
                tag=tag,
            ),
            swap("/api/models/unload", "Unload all models"),
            swap("/api/models/unload/{model...}", "Unload a model"),
            swap("/unload", "Unload all models"),
        )

    # What only looks -------------------------------------------------------------------------------------------------

    async def _front(self, exchange: Exchange) -> None:
        snapshot = self._parts.engine.snapshot()
        await exchange.answer(
            Front(
                "gpud",
                snapshot.version,
                snapshot.state,
                "This is the door for models: point a client of OpenAI, Anthropic or llama-server here",
                ENDPOINTS,
            )
        )

    async def _health(self, exchange: Exchange) -> None:
        snapshot = self._parts.engine.snapshot()
        loaded = [] if is_stranger(exchange) else loaded_first([one for _, one in seen(exchange)])
        await exchange.answer(
            Health(
                "ok",
                snapshot.state,
                snapshot.degraded,
                [one.model.name for one in loaded],
                int(self._parts.uptime_s),
                snapshot.version,
                snapshot.degraded_text,
                snapshot.degraded_hint,
            )
        )

    async def metrics(self, exchange: Exchange) -> None:
        """Wakes nothing: what is told of the GPUs is the last look, and only engines that run are asked."""
        accept = exchange.request.headers.get("accept")
        content_type, text = await self._parts.metrics.scrape(accept, await self._parts.texts.read())
        await exchange.send(text, ("Content-Type", content_type))

    async def _status(self, exchange: Exchange) -> None:
        snapshot = await self._parts.fresh()
        samples = [gpu.sample for gpu in shown_devices(snapshot)]
        busy = [one.utilization_percent for one in samples if one.utilization_percent is not None]

        def together(sizes: list[int | None]) -> int | None:
            known = [size for size in sizes if size is not None]
            return mb(sum(known)) if known and len(known) == len(sizes) else None

        await exchange.answer(
            ModelsStatus(
                total_mb=together([one.total_bytes for one in samples]),
                used_mb=together([one.used_bytes for one in samples]),
                free_mb=together([one.free_bytes for one in samples]),
                utilization_percent=max(busy, default=None),
                loaded_models={
                    one.model.name: self._loaded_model(one, snapshot)
                    for _, one in seen(exchange)
                    if one.state in (State.LOADING, State.READY, State.DRAINING)
                },
            )
        )

    def _loaded_model(self, status: ModelStatus, snapshot: Snapshot) -> ServedModel:
        return ServedModel(
            model=status.model.name,
            service=status.model.engine,
            loaded_at=self._parts.time_of_day(snapshot, status.ready_since_s),
            vram_mb=mb(status.need_bytes if status.used_bytes is None else status.used_bytes),
            status={State.LOADING: "loading", State.DRAINING: "unloading"}.get(status.state, "loaded"),
        )

    async def _running(self, exchange: Exchange) -> None:
        running = [
            RunningModel(one.model.name, swap_state(one.state), max(0, round(one.idle_timeout_s)))
            for _, one in seen(exchange)
            if one.state.has_engine()
        ]
        await exchange.answer(RunningModels(running))

    async def _version(self, exchange: Exchange) -> None:
        await exchange.answer(Version(self._parts.engine.snapshot().version))

    # What changes something ------------------------------------------------------------------------------------------

    async def _admin_unload(self, exchange: Exchange) -> None:
        body = await asked(exchange, AdminUnloadBody)
        if not body.model:
            raise HttpError(400, "invalid_request", "model field is required", hint='"all" unloads every model')
        if body.model == ALL:
            found = await self._unload(exchange, self._there(exchange), force=body.force)
            if found.errors and not found.names:
                raise next(iter(found.errors.values()))
            count = plural(len(found.names), "model")
            stay = [f"{name} stays: {error.message}" for name, error in found.errors.items()]
            await exchange.answer(Success("success", "; ".join([f"Unloaded {count}", *stay])))
            return
        name = model_of(exchange, self._parts, body.model)
        found = await self._unload(exchange, [name], force=body.force)
        if name in found.errors:
            raise found.errors[name]
        text = f"Model '{name}' unloaded" if found.names else f"Model '{name}' was not loaded"
        await exchange.answer(Success("success", text))

    async def reload(self, exchange: Exchange) -> None:
        """Raises ConfigInvalid with every problem, and the old configuration stays."""
        await self._parts.engine.reload()
        snapshot = self._parts.engine.snapshot()
        config = {
            "models": [one.model.name for one in snapshot.models],
            "default_model": self._parts.settings.default_model,
            "idle_timeout_seconds": snapshot.idle_timeout_s,
        }
        await exchange.answer(Reloaded("success", "Configuration reloaded successfully", config))

    async def _models_load(self, exchange: Exchange) -> None:
        body = await asked(exchange, ModelsLoadBody)
        parts = self._parts
        engines = self._service(body.service)
        name = model_of(exchange, parts, body.model)
        options = LoadOptions(priority=wished_priority(exchange, body.priority), engines=engines)
        if body.wait:
            job = (await load(parts.engine, name, exchange.caller, options)).job
        else:
            job = begin_load(parts.engine, name, exchange.caller, options)
        status = status_of(parts.engine, name)
        is_ready = status.state is State.READY
        await exchange.answer(
            Loaded(
                success=True,
                model=name,
                service=status.model.engine,
                loaded_at=parts.time_of_day(parts.engine.snapshot(), status.ready_since_s),
                vram_mb=mb(status.need_bytes if status.used_bytes is None else status.used_bytes),
                status="loaded" if is_ready else "loading",
                job=job,
            ),
            200 if is_ready else 202,
        )

    def _service(self, service: str) -> tuple[str, ...]:
        """The orchestrator's services are engines here; one that stands for a single model is that model's name."""
        try:
            return engines_of(self._parts, service)
        except InvalidArguments:
            try:
                self._parts.engine.resolve(service)
            except NoSuchModel:
                pass
            else:
                return ()
            raise

    async def _models_unload(self, exchange: Exchange) -> None:
        body = await asked(exchange, ModelsUnloadBody)
        if body.model in ("", ALL):
            found = await self._unload(exchange, self._there(exchange), force=body.force)
            errors = _errors(found)
            freed = mb(found.freed_bytes) or 0
            await exchange.answer(ModelsUnloaded(not errors, unloaded=found.names, errors=errors, freed_mb=freed))
            return
        name = model_of(exchange, self._parts, body.model)
        status = status_of(self._parts.engine, name)
        was_there, service = is_there(status) or bool(status.attempts), status.model.engine
        found = await self._unload(exchange, [name], force=body.force)
        if name in found.errors:
            raise found.errors[name]
        note = f"{mb(found.freed_bytes)} MiB given back" if was_there else f'"{name}" was not loaded'
        word = "unloaded" if was_there else "not_loaded"
        await exchange.answer(ModelsUnloaded(True, word, name, service, note))

    async def _swap_unload(self, exchange: Exchange) -> None:
        said = exchange.parameters.get("model", "")
        names = [model_of(exchange, self._parts, said)] if said else self._there(exchange)
        found = await self._unload(exchange, names, force=False)
        if said and found.errors:
            raise found.errors[names[0]]
        errors = _errors(found)
        await exchange.answer(SwapUnloaded("error" if errors else "ok", not errors, found.names, errors))

    def _there(self, exchange: Exchange) -> list[str]:
        return [one.model.name for _, one in seen(exchange) if is_there(one)]

    async def _unload(self, exchange: Exchange, names: list[str], *, force: bool) -> Unloaded:
        return await unload(self._parts.engine, names, exchange.caller, force=force)


def _errors(found: Unloaded) -> list[UnloadError]:
    return [
        UnloadError(name, str(error_value(Api.MANAGEMENT, error)["error"]["message"]))
        for name, error in found.errors.items()
    ]
