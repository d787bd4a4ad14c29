"""What the management API tells of memory: the devices, and whether a model would fit. Nothing is loaded for it.

GB are 1024 MiB here, as its clients count. What is not known is null.
"""

import asyncio

import msgspec

from gpud.core import statuses
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, GpuStatus, ModelStatus, Snapshot, State
from gpud.core.modelfile import ModelFile
from gpud.core.quote import Offer, Quote
from gpud.http import queries
from gpud.http.changing import status_of
from gpud.http.exchange import Exchange
from gpud.http.own import Parts, gb, mb, model_of, number, percent
from gpud.http.routing import Route
from gpud.http.shapes import Api

LAYERS_MOST = 10_000
CONTEXT_MOST = 1 << 30


class VramSummary(msgspec.Struct):
    """The GPUs together; on a machine without one its own memory."""

    total_gb: float | None
    used_gb: float | None
    free_gb: float | None
    utilization_percent: float | None


class GpuInfo(msgspec.Struct):
    """``id`` and ``gpu_id`` are the same."""

    id: int
    gpu_id: int
    uuid: str
    name: str
    total_mb: int | None
    used_mb: int | None
    free_mb: int | None
    foreign_mb: int | None
    available_mb: int | None
    utilization_percent: float | None
    temperature_c: int | None
    asleep: bool
    health: str


class ProcessInfo(msgspec.Struct):
    gpu_id: int
    pid: int
    name: str
    memory_mb: int | None
    own: bool


class Vram(VramSummary):
    """``utilization_percent`` is the share of memory in use; that of a GPU in the list as well."""

    timestamp: str
    gpus: list[GpuInfo]
    processes: list[ProcessInfo]


class BudgetOffer(msgspec.Struct):
    """One way in which it may be loaded."""

    need_gb: float
    context: int | None
    layers: int | None
    backend: str
    source: str
    reduced: str


class Budget(msgspec.Struct):
    """``fits``: it could be loaded now, if need be after idle models have made room. ``recommended_layers`` is the most
    that fit on the GPU now, by its file; null: not known.
    """

    model: str
    need_gb: float
    available_gb: float | None
    fits: bool
    recommended_layers: int | None
    verdict: str
    victims: list[str]
    message: str
    source: str
    offers: list[BudgetOffer]


class Memory:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> tuple[Route, ...]:
        api, tag = Api.MANAGEMENT, "memory"
        return (
            Route("GET", "/vram", self._vram, api, summary="The GPUs and who uses them", answer=Vram, tag=tag),
            Route("GET", "/vram/status", self._vram, api, summary="As /vram", answer=Vram, tag=tag),
            Route(
                "GET",
                "/vram/budget",
                self._budget,
                api,
                summary="Whether a model would fit",
                asks=(
                    queries.text("model", "a model's name or alias"),
                    queries.text("model_id", "a model's number or name"),
                    queries.text("model_path", "the file of a configured model"),
                    queries.whole("context", "with this context", 1, CONTEXT_MOST),
                    queries.whole("layers", "with so many layers on the GPU", 0, LAYERS_MOST),
                ),
                answer=Budget,
                tag=tag,
            ),
        )

    async def _vram(self, exchange: Exchange) -> None:
        snapshot = await self._parts.fresh()
        gpus = shown_devices(snapshot)
        found = summary(snapshot)
        await exchange.answer(
            Vram(
                total_gb=found.total_gb,
                used_gb=found.used_gb,
                free_gb=found.free_gb,
                utilization_percent=found.utilization_percent,
                timestamp=self._parts.now(),
                gpus=[gpu_info(gpu) for gpu in gpus],
                processes=[
                    ProcessInfo(gpu.sample.index, one.pid, one.name, mb(one.used_bytes), one.pid in gpu.own_pids)
                    for gpu in gpus
                    for one in gpu.sample.processes
                ],
            )
        )

    async def _all_layers(self, name: str) -> int | None:
        model = status_of(self._parts.engine, name).model
        if not model.settings.file.endswith(".gguf"):
            return None
        try:
            return layers_of(await asyncio.to_thread(self._parts.files.read, model.settings.file))
        except BackendFailed:
            return None

    async def _recommended(self, name: str, context: int | None, status: ModelStatus) -> int | None:
        """The most layers that a GPU has room for now, whatever is configured."""
        everything = await self._all_layers(name)
        if everything is None:
            return None
        engine = self._parts.engine
        quote = await engine.quote(name, context=context, layers=everything)
        if not quote.offers[0].gpu_bytes:
            return 0
        # What it holds itself would be there for it.
        own = sum(size for device, size in status.shares if device != HOST)
        available = _available(engine.snapshot(), quote.offers[0])
        return None if available is None else _layers(quote, available + own, everything)

    async def _budget(self, exchange: Exchange) -> None:
        parts, request = self._parts, exchange.request
        said = request.parameter("model") or request.parameter("model_id")
        context = number(exchange, "context", None, 1, CONTEXT_MOST)
        layers = number(exchange, "layers", None, 0, LAYERS_MOST)
        name = model_of(exchange, parts, said, request.parameter("model_path"))
        snapshot = await parts.fresh()
        quote = await parts.engine.quote(name, context=context, layers=layers)
        best = quote.offers[0]
        considered = parts.engine.consider(max(1, best.need_bytes), gpu=_place(snapshot, name, best))
        status = status_of(parts.engine, name)
        # With other settings it would have to be loaded anew.
        is_loaded = status.state is State.READY and context is None and layers is None
        available = _available(snapshot, best)
        await exchange.answer(
            Budget(
                model=name,
                need_gb=gb(best.need_bytes) or 0.0,
                available_gb=gb(available),
                fits=is_loaded or considered.verdict in ("fits", "evicts"),
                recommended_layers=await self._recommended(name, context, status),
                verdict="loaded" if is_loaded else considered.verdict,
                victims=[] if is_loaded else list(considered.victims),
                message=f'"{name}" is loaded' if is_loaded else considered.message,
                source=best.source.value,
                offers=[_offer(offer) for offer in (*quote.offers, *quote.less)],
            )
        )


def layers_of(file: ModelFile) -> int | None:
    """How many layers can go to a GPU: those of the model, and the one behind them."""
    count = file.values.get(f"{file.architecture}.block_count")
    return count + 1 if isinstance(count, int) else None


def shown_devices(snapshot: Snapshot) -> list[GpuStatus]:
    """The GPUs, or on a machine without one its own memory."""
    return [gpu for gpu in snapshot.gpus if not gpu.sample.is_host] or list(snapshot.gpus)


def gpu_info(gpu: GpuStatus) -> GpuInfo:
    sample = gpu.sample
    return GpuInfo(
        id=sample.index,
        gpu_id=sample.index,
        uuid=sample.uuid,
        name=sample.name,
        total_mb=mb(sample.total_bytes),
        used_mb=mb(sample.used_bytes),
        free_mb=mb(sample.free_bytes),
        foreign_mb=mb(gpu.foreign_bytes),
        available_mb=mb(gpu.available_bytes),
        utilization_percent=percent(sample.used_bytes, sample.total_bytes),
        temperature_c=sample.temperature_c,
        asleep=sample.asleep,
        health=sample.health,
    )


def summary(snapshot: Snapshot) -> VramSummary:
    samples = [gpu.sample for gpu in shown_devices(snapshot)]
    total = _sum([one.total_bytes for one in samples])
    used = _sum([one.used_bytes for one in samples])
    return VramSummary(gb(total), gb(used), gb(_sum([one.free_bytes for one in samples])), percent(used, total))


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _available(snapshot: Snapshot, offer: Offer) -> int | None:
    """The most that one device of the kind has that the model would go to."""
    devices = [gpu for gpu in snapshot.gpus if gpu.sample.is_host is not bool(offer.gpu_bytes)]
    known = [gpu.available_bytes for gpu in devices if gpu.available_bytes is not None]
    return max(known, default=None)


def _place(snapshot: Snapshot, name: str, offer: Offer) -> str:
    """Where it would have to go: the machine's memory, the GPU that its configuration names, or any."""
    if not offer.gpu_bytes:
        return HOST
    found = statuses.status_of(snapshot.models, name)
    return "" if found is None else found.model.gpu


def _layers(quote: Quote, available: int, everything: int) -> int | None:
    """Of the ways in which it may be loaded, the one with the most layers that fit."""
    if quote.offers[0].gpu_bytes <= available:
        return everything
    fitting = [o.layers for o in (*quote.offers, *quote.less) if o.layers is not None and o.gpu_bytes <= available]
    return max(fitting, default=None)


def _offer(offer: Offer) -> BudgetOffer:
    return BudgetOffer(
        need_gb=gb(offer.need_bytes) or 0.0,
        context=offer.context,
        layers=offer.layers,
        backend=offer.engine,
        source=offer.source.value,
        reduced=offer.reduced,
    )
