"""What the management API tells of models: the list, one of them, and the backends that serve them.

What a model's file says is read in a thread, and only while somebody asks. It never changes anything.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from gpud.core.errors import BackendFailed
from gpud.core.facts import Model, ModelStatus, State
from gpud.core.modelfile import ModelFile
from gpud.http.exchange import Exchange
from gpud.http.feed_events import state_word
from gpud.http.own import (
    KNOWN_BACKENDS,
    Parts,
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

CHANGES = frozenset(("scan", "load", "unload"))
"""Below /models these are no models' names."""

LISTED = 100
LISTED_MOST = 1000


class ModelInfo(msgspec.Struct):
    """One configured model. ``id`` is its place in the configuration, counted from 1; where an id is asked for, the
    name serves as well. Null is what is not known.
    """

    id: int
    name: str
    aliases: list[str]
    path: str | None
    format: str
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
    state: str
    loaded: bool
    error: str | None


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


class Scanned(msgspec.Struct):
    status: str
    message: str
    models: int


@dataclass(frozen=True, slots=True)
class Said:
    """What a model's file says; ``problem`` is why it says nothing."""

    file: ModelFile | None = None
    quantization: str = ""
    problem: str = ""


# The routes ----------------------------------------------------------------------------------------------------------


class Models:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> tuple[Route, ...]:
        api, tag = Api.MANAGEMENT, "models"
        return (
            Route(
                "GET",
                "/models",
                self._list,
                api,
                summary="Every configured model; ?format= ?backend= ?limit=",
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
                summary="Look at the models' files anew",
                answer=Scanned,
                tag=tag,
            ),
            Route("GET", "/backends", self._backends, api, summary="The engines", answer=list[BackendInfo], tag=tag),
        )

    async def _list(self, exchange: Exchange) -> None:
        wanted = choice(exchange, "format", FORMATS)
        engines = engines_of(self._parts, exchange.request.parameter("backend"))
        limit = number(exchange, "limit", LISTED, 1, LISTED_MOST)
        found = [
            (id_, one)
            for id_, one in seen(exchange)
            if (not wanted or format_of(one.model) == wanted) and (not engines or serves(one.model, engines))
        ]
        await exchange.answer(await self.infos(found[:limit]))

    async def _one(self, exchange: Exchange) -> None:
        said = exchange.parameters["id"]
        if said in CHANGES:
            message = f"GET is not for /models/{said}; it answers POST"
            raise HttpError(405, "method_not_allowed", message, headers={"Allow": "POST"})
        name = model_of(exchange, self._parts, said)
        found = [(id_, one) for id_, one in seen(exchange) if one.model.name == name]
        (info,) = await self.infos(found)
        await exchange.answer(info)

    async def infos(self, found: Sequence[tuple[int, ModelStatus]]) -> list[ModelInfo]:
        said = await asyncio.to_thread(self._read, [one.model for _, one in found])
        return [self._info(id_, one, words) for (id_, one), words in zip(found, said, strict=True)]

    def _read(self, models: Sequence[Model]) -> list[Said]:
        """For a thread. A file that cannot be read says why."""
        found = []
        for model in models:
            if not model.settings.file or format_of(model) != "gguf":
                found.append(Said())
                continue
            try:
                file = self._parts.files.read(model.settings.file)
                found.append(Said(file, self._parts.quantization(file)))
            except BackendFailed as problem:
                found.append(Said(problem=problem.text))
        return found

    def _info(self, id_: int, status: ModelStatus, said: Said) -> ModelInfo:
        parts, model, file = self._parts, status.model, said.file
        snapshot = parts.engine.snapshot()
        engines = [model.engine, *(other.engine for other in model.alternatives)]
        return ModelInfo(
            id=id_,
            name=model.name,
            aliases=list(model.aliases),
            path=model.settings.file or None,
            format=format_of(model),
            size_gb=None if file is None else gb(file.size_bytes),
            vram_estimate_gb=gb(status.need_bytes or model.size_bytes),
            architecture=None if file is None else file.architecture,
            quantization=said.quantization or None,
            parameter_count=None if file is None else parameters_of(file),
            context_length=model.settings.context or _trained_context(file),
            compatible_backends=list(dict.fromkeys(backend_name(engine) for engine in engines)),
            last_scanned=parts.now() if file is not None else None,
            last_used=parts.time_of_day(snapshot, status.last_used_s),
            usage_count=parts.metrics.requests_of(model.name),
            priority=model.priority.name.lower(),
            tags=_tags(model, file),
            notes=said.problem or None,
            state=state_word(status.state),
            loaded=status.state in (State.READY, State.DRAINING),
            error=status.error or None,
        )

    async def _scan(self, exchange: Exchange) -> None:
        models = [one.model for _, one in seen(exchange)]
        said = await asyncio.to_thread(self._read, models)
        bad = [f"{model.name}: {words.problem}" for model, words in zip(models, said, strict=True) if words.problem]
        text = f"The models are those of the configuration: {len(models)}. Their files were looked at"
        text += f"; {len(bad)} cannot be read: {'; '.join(bad[:5])}" if bad else ", and each can be read"
        await exchange.answer(
            Scanned("scan_complete", text + ". A model is added under models: in gpud.yaml", len(models))
        )

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


# What a model is -----------------------------------------------------------------------------------------------------


def format_of(model: Model) -> str:
    if model.engine == "ollama":
        return "ollama"
    if model.settings.file.endswith(".gguf"):
        return "gguf"
    return "safetensors" if model.engine in ("vllm", "tgi") else "other"


def serves(model: Model, engines: Sequence[str]) -> bool:
    return any(one.engine in engines for one in (model, *model.alternatives))


def parameters_of(file: ModelFile) -> str | None:
    """As people say it (``8.0B``): what the file says of itself, else counted."""
    label = file.values.get("general.size_label")
    if isinstance(label, str) and label:
        return label
    count = 0
    for tensor in file.tensors:
        size = 1
        for dimension in tensor.shape:
            size *= dimension
        count += size
    for unit, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count) if count else None


def _trained_context(file: ModelFile | None) -> int | None:
    value = None if file is None else file.values.get(f"{file.architecture}.context_length")
    return value if isinstance(value, int) else None


def _tags(model: Model, file: ModelFile | None) -> list[str]:
    """What it is good for, as far as the configuration and its file say."""
    settings = model.settings
    tags = ["embedding" if settings.embeddings else "reranking" if settings.reranking else "completion"]
    if settings.mmproj:
        tags.append("vision")
    template = file.values.get("tokenizer.chat_template") if file is not None else None
    if isinstance(template, str) and "tools" in template:
        tags.append("tools")
    if model.pinned:
        tags.append("pinned")
    return tags
