"""What the management API tells of gpud itself."""

from typing import Any

import msgspec

from gpud.http.loading_shapes import QueueEntry
from gpud.http.models_api import BackendInfo
from gpud.http.own import Name
from gpud.http.vram import VramSummary


class Root(msgspec.Struct):
    name: str
    version: str
    docs: str
    health: str
    openapi: str
    endpoints: dict[str, str]


class Services(msgspec.Struct):
    """``registry_db``: state is kept on disk; ``models_path``: the models' directory is there; ``vram_monitor``: the
    devices answer."""

    registry_db: bool
    models_path: bool
    vram_monitor: bool


class Health(msgspec.Struct):
    status: str
    timestamp: str
    version: str
    services: Services


class BackendHealth(msgspec.Struct):
    """``ready``: a request would be answered, if need be after its model was loaded."""

    available: bool
    ready: bool
    details: str | None


class ApiHealth(msgspec.Struct):
    status: str
    backends: dict[str, BackendHealth]


class EngineInfo(msgspec.Struct):
    """Of the loaded model that was used last; all null: none is. -1 layers are all of them."""

    model: str | None
    backend: str | None
    n_ctx: int | None
    n_gpu_layers: int | None
    n_threads: int | None


class LoadedModel(msgspec.Struct):
    name: str
    backend: str
    state: str
    vram_gb: float | None
    in_flight: int
    loaded_at: str | None
    last_used: str | None
    unload_at: str | None


class Given(msgspec.Struct):
    since: str | None
    until: str | None
    why: str


class Storage(msgspec.Struct):
    """The disk on which models are kept, in the numbers of df."""

    path: str
    total_gb: float | None
    free_gb: float | None


class Status(msgspec.Struct):
    timestamp: str
    version: str
    state: str
    degraded: str
    vram: VramSummary
    backends: list[BackendInfo]
    loaded_models: list[LoadedModel]
    pending_queue: list[QueueEntry]
    yielded: Given | None
    storage: Storage | None


class Stats(msgspec.Struct):
    """Since gpud started. ``requests_failed`` are those that were answered with a 5xx."""

    uptime_seconds: int
    requests: int
    requests_failed: int
    requests_by_status: dict[str, int]
    requests_by_model: dict[str, int]
    in_flight: int
    queue_depth: dict[str, int]
    models: int
    models_loaded: int


class Reason(msgspec.Struct):
    at: str
    kind: str
    level: str
    model: str
    message: str
    detail: list[str]
    fields: dict[str, Any]


class Reasons(msgspec.Struct):
    """The newest first."""

    entries: list[Reason]


class ClaimInfo(msgspec.Struct):
    id: int
    who: str
    why: str
    size_gb: float | None
    used_gb: float | None
    device: str
    granted: bool
    priority: str
    waits_for: str
    since: str | None


class YieldBody(msgspec.Struct, forbid_unknown_fields=True):
    """``for_seconds`` absent: until somebody resumes."""

    why: Name = ""
    for_seconds: float | None = None


class Yielding(msgspec.Struct):
    status: str
    message: str
    until: str | None
    unloading: list[str]
