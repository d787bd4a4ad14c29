"""What the management API tells of models: the list, one of them, and the backends that serve them.

What is known of a model is asked of the registry, and only while somebody asks.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import msgspec

from gpud.core.catalogue import Scanned
from gpud.core.counts import plural
from gpud.core.errors import NoSuchModel
from gpud.core.facts import Model, ModelStatus, State
from gpud.core.naming import shown_path
from gpud.core.statuses import Statuses, only, status_of
from gpud.http import queries
from gpud.http.exchange import JSON, Exchange
from gpud.http.feed_events import timestamp
from gpud.http.kept_list import KeptList, written
from gpud.http.known_models import Known, format_of
from gpud.http.own import (
    KNOWN_BACKENDS,
    Name,
    Parts,
    asked,
    backend_name,
    choice,
    engines_of,
    gb,
    mb,
    model_of,
    number,
    seen,
)
from gpud.http.routing import Route
from gpud.http.shapes import Api, HttpError

FORMATS = ("gguf", "safetensors", "ollama", "other")

CHANGES = {"scan": "POST", "load": "POST", "unload": "POST"}
"""Below /models these are no models' names."""

LISTED = 100
LISTED_MOST = 1000


class ModelInfo(msgspec.Struct):
    """One model, configured or found. ``id`` is its number in the registry, which no other model ever has; where an id
    is asked for, the name serves as well. ``path`` is where it lies, ``paths`` are all places where it was found.
    ``last_scanned`` is when it was last looked at. Null is what is not known.
    """

    id: int
    name: str
    aliases: list[str]
    path: str | None
    paths: list[str]
    format: str
    purpose: str
    size_gb: float | None
    vram_estimate_gb: float | None
    architecture: str | None
    quantization: str | None
    parameter_count: str | None
    context_length: int | None
    compatible_backends: list[str]
    last_scanned: str | None
    last_used: str | None
    usage_count: int
    priority: str
    tags: list[str]
    notes: str | None
    configured: bool
    size_bytes: int | None
    estimate_bytes: int | None
    load_seconds: float | None
    state: str
    loaded: bool
    error: str | None


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody says of a model. What is absent stays as it is; ``priority`` empty takes it back."""

    aliases: list[Name] | None = None
    priority: Name | None = None
    tags: list[Name] | None = None
    notes: str | None = None


class BackendInfo(msgspec.Struct):
    """One engine, or all that are llama.cpp. ``host`` and ``port`` are null where it is reached by private sockets."""

    name: str
    status: Literal["active", "inactive", "error", "unknown"]
    type: Literal["systemd", "docker", "api"]
    supervised: bool
    host: str | None
    port: int | None
    loaded_model: str | None
    loaded_models: list[str]
    models: int
    vram_usage_mb: int | None


class Problem(msgspec.Struct):
    path: str
    problem: str


class ScanAnswer(msgspec.Struct):
    """``files`` were looked at, ``read`` of them opened; ``new``, ``gone`` and ``changed`` are names."""

    status: str
    message: str
    models: int
    new: list[str]
    gone: list[str]
    changed: list[str]
    problems: list[Problem]
    files: int
    read: int
    seconds: float


# The routes ----------------------------------------------------------------------------------------------------------


class Models:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._listed = KeptList(parts.engine, parts.known, self._encoded)

    def routes(self) -> tuple[Route, ...]:
        api, tag = Api.MANAGEMENT, "models"
        return (
            Route(
                "GET",
                "/models",
                self._list,
                api,
                summary="Every model",
                asks=(
                    queries.one_of("format", "only models of this format", FORMATS),
                    queries.text("backend", "only models that this backend serves"),
                    queries.text("tag", "only models with this tag"),
                    queries.whole("limit", "how many at most", 1, LISTED_MOST, LISTED),
                ),
                answer=list[ModelInfo],
                tag=tag,
            ),
            Route("GET", "/models/{id...}", self._one, api, summary="One model", answer=ModelInfo, tag=tag),
            Route(
                "POST",
                "/models/scan",
                self._scan,
                api,
                changes=True,
                summary="Look for models anew; answers when that is done",
                answer=ScanAnswer,
                tag=tag,
            ),
            Route(
                "PATCH",
                "/models/{id...}",
                self._annotate,
                api,
                changes=True,
                summary="Say something about a model: aliases, priority, tags, notes",
                body=Said,
                answer=ModelInfo,
                tag=tag,
            ),
            Route("GET", "/backends", self._backends, api, summary="The engines", answer=list[BackendInfo], tag=tag),
        )

    async def _list(self, exchange: Exchange) -> None:
        wanted = choice(exchange, "format", FORMATS)
        engines = engines_of(self._parts, exchange.request.parameter("backend"))
        limit = number(exchange, "limit", LISTED, 1, LISTED_MOST)
        tag = exchange.request.parameter("tag")
        allowed, number_of = exchange.allowed_models, self._parts.engine.library.number_of
        models = self._parts.engine.snapshot().models
        assert isinstance(models, Statuses)
        names = (
            name
            for name in models.names()
            if (allowed is None or name in allowed)
            and (not (wanted or engines) or _is_one(models, name, wanted, engines))
        )
        if tag:
            # That only the registry can tell.
            infos = await self.infos([(number_of(one.model.name), one) for one in models.chosen(names)])
            await exchange.answer([info for info in infos if tag in info.tags][:limit])
            return
        await self._parts.engine.keep_uses()
        listed = await self._listed.named(models, islice(names, limit))
        await exchange.send_parts(written(listed), JSON)

    async def _one(self, exchange: Exchange) -> None:
        said = exchange.parameters["id"]
        if said in CHANGES:
            message = f"GET is not for /models/{said}; it answers {CHANGES[said]}"
            raise HttpError(405, "method_not_allowed", message, headers={"Allow": CHANGES[said]})
        await exchange.answer(await self._info_of(exchange, model_of(exchange, self._parts, said)))

    async def _info_of(self, exchange: Exchange, name: str) -> ModelInfo:
        found = status_of(only(self._parts.engine.snapshot().models, exchange.allowed_models), name)
        if found is None:
            raise NoSuchModel(f'"{name}" is no longer there', hint="GET /models lists what is")
        (info,) = await self.infos([(self._parts.engine.library.number_of(name), found)])
        return info

    async def _annotate(self, exchange: Exchange) -> None:
        said = exchange.parameters["id"]
        body = await asked(exchange, Said)
        name = model_of(exchange, self._parts, said)
        await self._parts.engine.library.annotate(
            name,
            aliases=None if body.aliases is None else tuple(body.aliases),
            priority=body.priority,
            tags=None if body.tags is None else tuple(body.tags),
            notes=body.notes,
        )
        await exchange.answer(await self._info_of(exchange, name))

    async def infos(self, found: Sequence[tuple[int, ModelStatus]]) -> list[ModelInfo]:
        await self._parts.engine.keep_uses()
        known = await self._parts.known.of([one.model for _, one in found])
        return [self._info(id_, one, facts) for (id_, one), facts in zip(found, known, strict=True)]

    def _encoded(self, status: ModelStatus, known: Known) -> bytes:
        number = self._parts.engine.library.number_of(status.model.name)
        return msgspec.json.encode(self._info(number, status, known))

    def _info(self, id_: int, status: ModelStatus, known: Known) -> ModelInfo:
        model, entry, found = status.model, known.entry, known.entry.found
        engines = [model.engine, *(other.engine for other in model.alternatives)]
        looked_at = timestamp(entry.last_scanned_us / 1e6) if found.stamp else None
        if known.file is not None:
            looked_at = self._parts.now()
        estimate_bytes = status.need_bytes or model.size_bytes or entry.estimate_bytes
        return ModelInfo(
            id=id_,
            name=model.name,
            aliases=list(model.aliases),
            path=shown_path(model.settings.file) or None,
            paths=[shown_path(place.path) for place in found.places] if found.stamp else [],
            format=known.format,
            purpose=known.purpose.value,
            size_gb=gb(known.size_bytes or None),
            vram_estimate_gb=gb(estimate_bytes),
            architecture=known.architecture or None,
            quantization=known.quantization or None,
            parameter_count=known.parameters or None,
            context_length=model.settings.context or known.trained_context,
            compatible_backends=list(dict.fromkeys(backend_name(engine) for engine in engines)),
            last_scanned=looked_at,
            last_used=None if entry.last_used_us is None else timestamp(entry.last_used_us / 1e6),
            usage_count=entry.usage_count,
            priority=model.priority.name.lower(),
            tags=list(dict.fromkeys((*entry.tags, *_tags(known)))),
            notes=entry.notes or found.problem or known.problem or None,
            configured=entry.configured,
            size_bytes=known.size_bytes or None,
            estimate_bytes=estimate_bytes,
            load_seconds=status.load_seconds or entry.load_s,
            state=status.state.word(),
            loaded=status.state in (State.READY, State.DRAINING),
            error=status.error or None,
        )

    async def _scan(self, exchange: Exchange) -> None:
        scanned = await self._parts.engine.library.scan()
        await exchange.answer(scan_answer(scanned))

    # Backends

    async def _backends(self, exchange: Exchange) -> None:
        await self._parts.fresh()
        await exchange.answer(self.backends(exchange))

    def backends(self, exchange: Exchange) -> list[BackendInfo]:
        by_name: dict[str, list[ModelStatus]] = {name: [] for name in KNOWN_BACKENDS}
        for _, one in seen(exchange):
            by_name.setdefault(backend_name(one.model.engine), []).append(one)
        return [self._backend(name, models) for name, models in by_name.items()]

    def _backend(self, name: str, models: Sequence[ModelStatus]) -> BackendInfo:
        loaded = loaded_first(models)
        attached = name in self._parts.settings.attached or (
            bool(models) and all(one.model.settings.url for one in models)
        )
        supervised = not attached and (name in (KNOWN_BACKENDS[0], "ollama") or bool(models))
        where = next((one.endpoint for one in loaded if one.endpoint is not None and one.endpoint.port), None)
        held = [
            one.need_bytes if one.used_bytes is None else one.used_bytes for one in models if one.pids or one in loaded
        ]
        if any(one.state.has_engine() for one in models):
            status: Literal["active", "inactive", "error", "unknown"] = "active"
        elif any(one.state in (State.FAILED, State.BACKOFF) for one in models):
            status = "error"
        else:
            status = "inactive"
        return BackendInfo(
            name=name,
            status=status,
            type="systemd" if supervised else "api",
            supervised=supervised,
            host=where.host if where is not None else None,
            port=where.port if where is not None else None,
            loaded_model=loaded[0].model.name if loaded else None,
            loaded_models=[one.model.name for one in loaded],
            models=len(models),
            vram_usage_mb=mb(sum(held)),
        )


def loaded_first(models: Sequence[ModelStatus]) -> list[ModelStatus]:
    """Those that answer, the one that was used last first."""
    ready = [one for one in models if one.state in (State.READY, State.DRAINING)]
    return sorted(ready, key=lambda one: (-(one.last_used_s or 0.0), -one.in_flight, one.model.name))


def scan_answer(scanned: Scanned) -> ScanAnswer:
    """What one look at everything has come to, as it is told."""
    text = f"{plural(scanned.models, 'model')}; {plural(scanned.files, 'file')} looked at, {scanned.read} read, "
    text += f"in {scanned.seconds:.2f} s"
    parts = (("new", scanned.new), ("gone", scanned.gone), ("changed", scanned.changed), ("problems", scanned.troubles))
    text += "".join(f"; {what}: {len(found)}" for what, found in parts if found)
    return ScanAnswer(
        status="scan_complete",
        message=text,
        models=scanned.models,
        new=list(scanned.new),
        gone=list(scanned.gone),
        changed=list(scanned.changed),
        problems=[Problem(shown_path(trouble.path), trouble.text) for trouble in scanned.troubles],
        files=scanned.files,
        read=scanned.read,
        seconds=round(scanned.seconds, 3),
    )


# What a model is -----------------------------------------------------------------------------------------------------


def _is_one(models: Statuses, name: str, wanted: str, engines: Sequence[str]) -> bool:
    """Of this format, and served by one of these engines. Told without making a model: there may be thousands."""
    if name in models.stock:
        model, file = models.stock.pattern(name), models.stock.file_of(name)
    else:
        model = models.lively[name].model
        file = model.settings.file
    return (not wanted or format_of(model, file) == wanted) and (not engines or serves(model, engines))


def serves(model: Model, engines: Sequence[str]) -> bool:
    return any(one.engine in engines for one in (model, *model.alternatives))


def _tags(known: Known) -> list[str]:
    """What it is good for, as far as the configuration and its file say."""
    tags = [known.purpose.value]
    if known.model.settings.mmproj:
        tags.append("vision")
    if known.tools:
        tags.append("tools")
    if known.model.pinned:
        tags.append("pinned")
    return tags
