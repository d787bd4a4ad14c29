"""What the admin routes of the front door take and give, as their clients know it."""

from typing import Any

import msgspec

from gpud.http.own import Name


class Health(msgspec.Struct):
    """``status`` is ok whenever gpud answers; ``state`` is what it does, ``degraded`` what it lacks (else empty), with
    a sentence about it in ``reason`` and what to do in ``hint``.
    """

    status: str
    state: str
    degraded: str
    loaded_models: list[str]
    uptime: int
    version: str
    reason: str
    hint: str


class AdminUnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """``all`` means every model."""

    model: Name = ""
    force: bool = False


class Success(msgspec.Struct):
    status: str
    message: str


class Reloaded(msgspec.Struct):
    status: str
    message: str
    config: dict[str, Any]


class ServedModel(msgspec.Struct):
    model: str
    service: str
    loaded_at: str | None
    vram_mb: int | None
    status: str


class ModelsStatus(msgspec.Struct):
    """``utilization_percent`` is how busy the GPU is."""

    total_mb: int | None
    used_mb: int | None
    free_mb: int | None
    utilization_percent: int | None
    loaded_models: dict[str, ServedModel]


class ModelsLoadBody(msgspec.Struct):
    """``wait: false`` answers at once. What else an old client sends is passed over."""

    model: Name = ""
    service: Name = ""
    priority: str | int | None = None
    wait: bool = True


class ModelsUnloadBody(msgspec.Struct):
    model: Name = ""
    force: bool = False


class Loaded(msgspec.Struct):
    success: bool
    model: str
    service: str
    loaded_at: str | None
    vram_mb: int | None
    status: str
    job: int


class UnloadError(msgspec.Struct):
    model: str
    error: str


class ModelsUnloaded(msgspec.Struct):
    """For one model ``status`` (``unloaded``, ``not_loaded``), ``model``, ``service`` and ``note``; for all of them
    ``unloaded``, ``errors`` and ``freed_mb``.
    """

    success: bool
    status: str | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    service: str | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET
    unloaded: list[str] | msgspec.UnsetType = msgspec.UNSET
    errors: list[UnloadError] | msgspec.UnsetType = msgspec.UNSET
    freed_mb: int | msgspec.UnsetType = msgspec.UNSET


class SwapUnloaded(msgspec.Struct):
    msg: str
    success: bool
    unloaded: list[str]
    errors: list[UnloadError]


class RunningModel(msgspec.Struct):
    """``cmd`` and ``proxy`` are always empty: command lines and engines' addresses are nobody's business."""

    model: str
    state: str
    ttl: int
    name: str = ""
    description: str = ""
    cmd: str = ""
    proxy: str = ""


class RunningModels(msgspec.Struct):
    running: list[RunningModel]


class Version(msgspec.Struct):
    version: str
    commit: str = ""
    build_date: str = ""


class Front(msgspec.Struct):
    name: str
    version: str
    state: str
    message: str
    endpoints: dict[str, str]
