"""What the management API takes and gives where models are loaded and unloaded."""

import msgspec

from gpud.http.admin_shapes import UnloadError
from gpud.http.own import Name


class LoadParams(msgspec.Struct, forbid_unknown_fields=True):
    """Only ``context_length`` can be chosen for one load; the others must be as they are configured."""

    context_length: int | None = None
    gpu_layers: int | str | None = None
    kv_cache_type: str | None = None
    flash_attention: bool | str | None = None
    rope_freq_scale: float | None = None


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """``model`` is a name or an alias, ``model_id`` a number or a name, ``model_path`` the file of a configured model.
    ``wait: false`` answers with the job at once; ``wait_seconds`` bounds the wait for memory; with ``evict: false``
    nothing is unloaded for it. ``engines`` are the only ones of the model's that may serve it, in the order in which
    they are tried; ``backend`` is one of them by the name that the ml-offload API has for it.
    """

    model: Name = ""
    model_id: int | Name | None = None
    model_path: Name = ""
    backend: Name = ""
    engines: list[Name] = []
    priority: str | int | None = None
    gpu_layers: int | str | None = None
    params: LoadParams | None = None
    wait: bool = True
    wait_seconds: float | None = None
    evict: bool = True


class ParamsUsed(msgspec.Struct):
    """Null is the engine's own default; ``gpu_layers`` is ``auto``, ``all`` or a number."""

    context_length: int | None
    gpu_layers: str | None
    kv_cache_type: str | None
    flash_attention: str | None
    threads: int | None


class LoadAnswer(msgspec.Struct):
    """``reduced`` says what the model was denied to make it fit, or that it is on the processor; empty: nothing."""

    success: bool
    status: str
    message: str
    model: str
    model_id: int
    backend: str
    job: int
    vram_usage_gb: float | None
    load_time_seconds: float | None
    estimated_time_seconds: float | None
    params_used: ParamsUsed
    reduced: str


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """One model, all of a backend, or with nothing (or ``all``) every one."""

    backend: Name = ""
    model: Name = ""
    model_id: int | Name | None = None
    model_path: Name = ""
    force: bool = False


class UnloadAnswer(msgspec.Struct):
    """``status`` is ``unloaded``, ``not_loaded`` where there was nothing to unload, ``partly`` where some stay.
    ``models`` that are also in ``called_off`` were not loaded: they no longer wait, and their failures are forgotten;
    ``stay_away`` would have come back by themselves.
    """

    success: bool
    status: str
    backend: str
    models: list[str]
    vram_freed_gb: float | None
    errors: list[UnloadError]
    called_off: list[str]
    stay_away: list[str]


class SwitchBody(msgspec.Struct, forbid_unknown_fields=True):
    """All other models of the backend, or of the engines, go, then this one is loaded by it. Without either it is the
    model's.
    """

    backend: Name = ""
    engines: list[Name] = []
    model: Name = ""
    model_id: int | Name | None = None
    model_path: Name = ""
    gpu_layers: int | str | None = None
    priority: str | int | None = None
    force: bool = False


class SwitchAnswer(msgspec.Struct):
    success: bool
    status: str
    model: str
    backend: str
    unloaded: list[str]
    vram_freed_gb: float | None
    load_time_seconds: float | None
    job: int


class Scheduled(msgspec.Struct):
    """``position`` is its place in the queue for memory; null: it does not wait for that."""

    status: str
    job: int
    model: str
    priority: str
    position: int | None
    estimated_time_seconds: float | None


class QueueEntry(msgspec.Struct):
    position: int
    model: str | None
    claim: int | None
    priority: str
    need_gb: float | None
    requests: int
    waited_seconds: float
    until_seconds: float | None
    overdue: bool
    waits_for: str


class Queue(msgspec.Struct):
    depth: int
    queue: list[QueueEntry]


class JobError(msgspec.Struct):
    type: str
    message: str


class JobUnload(msgspec.Struct):
    """As in the answer of ``/unload``."""

    models: list[str]
    vram_freed_gb: float | None
    errors: list[UnloadError]
    called_off: list[str]
    stay_away: list[str]


class JobInfo(msgspec.Struct):
    """``state`` is ``running`` until it is ``done``, ``failed``, ``canceled``, ``timeout`` or ``superseded``.

    ``kind`` is ``load``, ``unload`` or ``download``; of a download, ``model`` is what is downloaded.
    """

    id: int
    kind: str
    model: str
    state: str
    stage: str | None = None
    progress: float | None = None
    since: str | None = None
    message: str | None = None
    error: JobError | None = None
    unload: JobUnload | None = None
