"""The records that the rooms of gpud exchange. All are frozen: whoever wants a change makes a new one.

Sizes are bytes and end in ``_bytes``; times are seconds and end in ``_s``; ``None`` means unknown, never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

HOST = "host"
"""The device name of the machine's own memory: the budget of a machine without a GPU, and of models kept off the
GPU."""


class State(StrEnum):
    """Where a model's instance stands. Busy is not a state: it is ``in_flight > 0``."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    KILLING = "killing"
    BACKOFF = "backoff"
    FAILED = "failed"

    def has_engine(self) -> bool:
        """True while an engine may hold memory for the model."""
        return self in (State.LOADING, State.READY, State.DRAINING, State.STOPPING, State.KILLING)


class Priority(IntEnum):
    """Who goes first. The names are what a configuration says."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


# What the configuration says about a model -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request to an engine, as data: ``POST /free {"unload_models": true}``."""

    method: str
    path: str
    body: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class BusyProbe:
    """How to ask a custom engine whether it works right now: it does if any of ``fields`` of the JSON answer is truthy.

    A field may reach inside with dots: ``exec_info.queue_remaining``.
    """

    path: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopTimes:
    """The rungs of the stop ladder.

    ``drain_s`` bounds the wait for running requests; after the first TERM an engine has ``term_s``, after the second
    ``second_term_s``; then its whole cgroup or process group is killed.
    """

    drain_s: float = 300.0
    term_s: float = 2.0
    second_term_s: float = 2.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is told for one model. ``None`` and empty mean: the engine's own default.

    ``layers`` is a number, ``auto`` or ``all``. The fields from ``command`` on belong to custom engines,
    ``ollama_name`` to Ollama.
    """

    file: str = ""
    context: int | None = None
    layers: str | None = None
    threads: int | None = None
    parallel: int | None = None
    batch: int | None = None
    micro_batch: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: str | None = None
    continuous_batching: bool | None = None
    cpu_moe: int | None = None
    override_tensor: str | None = None
    mmproj: str = ""
    draft_file: str = ""
    chat_template: str = ""
    embeddings: bool = False
    reranking: bool = False
    ollama_name: str = ""
    command: tuple[str, ...] = ()
    directory: str = ""
    url: str = ""
    health: str = ""
    unload: HttpCall | None = None
    busy: BusyProbe | None = None
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One model as configured: a name, the engine that serves it, and how it is to be treated.

    ``size_bytes`` is what the user declares that it needs; ``None`` lets gpud find out. ``idle_timeout_s`` 0 means
    never
    unload for idleness. ``gpu`` names a GPU by uuid or index, ``host`` keeps the model off the GPU, empty lets gpud
    choose.
    """

    name: str
    engine: str
    settings: EngineSettings = field(default_factory=EngineSettings)
    aliases: tuple[str, ...] = ()
    size_bytes: int | None = None
    idle_timeout_s: float = 300.0
    priority: Priority = Priority.NORMAL
    pinned: bool = False
    preload: bool = False
    load_timeout_s: float = 300.0
    stop: StopTimes = field(default_factory=StopTimes)
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What gpud may take of each device. ``budget`` is bytes, ``percent`` a share of the total; both absent mean all.

    ``reserve_bytes`` is always left free: for the desktop on a GPU, for everything else in host memory.
    """

    budget_bytes: int | None = None
    budget_percent: float | None = None
    reserve_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that the scheduler obeys; all of them come from the configuration."""

    gpu: BudgetLimits = field(default_factory=lambda: BudgetLimits(reserve_bytes=256 << 20))
    host: BudgetLimits = field(default_factory=lambda: BudgetLimits(reserve_bytes=1 << 30))
    backoff_first_s: float = 5.0
    backoff_max_s: float = 60.0
    backoff_attempts: int = 5
    healthy_after_s: float = 30.0
    memory_wait_s: float = 10.0
    shutdown_drain_s: float = 20.0


# What is measured ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """One process that uses a device; ``used_bytes`` is None where the driver does not say."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One look at one device. ``uuid`` is :data:`HOST` for the machine's own memory.

    ``asleep`` says that the device was left alone, because it is runtime-suspended or its driver was let go: the
    figures are unknown then. ``health`` is empty when all is well, else a sentence. ``driver`` is the driver's
    version.
    """

    uuid: str
    name: str
    index: int
    vendor: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    temperature_c: int | None = None
    utilization_percent: int | None = None
    power_mw: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    asleep: bool = False
    health: str = ""
    driver: str = ""

    @property
    def is_host(self) -> bool:
        return self.uuid == HOST


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine answers: a Unix socket, or a loopback address. ``key`` is the engine's own API key."""

    socket: str = ""
    host: str = ""
    port: int = 0
    base_path: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` is negative for a signal and None where it cannot be known (an adopted process)."""

    pid: int
    code: int | None
    tail: tuple[str, ...] = ()
    oom_killed: bool = False

    def describe(self) -> str:
        if self.oom_killed:
            return "was killed by the kernel for lack of memory"
        if self.code is None:
            return "ended"
        if self.code < 0:
            return f"was ended by signal {-self.code}"
        return f"exited with status {self.code}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``label`` is how the caller appears in messages; ``owner`` is what its holds and jobs are counted
    on."""

    owner: str
    uid: int
    pid: int = 0
    label: str = ""


# What is told to the outside -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as every surface shows it. Deadlines are on the scheduler's clock (seconds, monotonic).

    ``retry_at_s`` is when a failed model may be tried again; ``retries`` says that it will be, without anybody's asking
    anew.
    """

    model: Model
    state: State
    reason: str = ""
    progress: float | None = None
    device: str = ""
    need_bytes: int = 0
    used_bytes: int | None = None
    in_flight: int = 0
    holds: int = 0
    waiting: bool = False
    last_used_s: float | None = None
    ready_since_s: float | None = None
    unload_at_s: float | None = None
    retry_at_s: float | None = None
    retries: bool = False
    attempts: int = 0
    restarts: int = 0
    load_seconds: float | None = None
    error: str = ""
    error_code: str = ""
    error_hint: str = ""
    error_tail: tuple[str, ...] = ()
    endpoint: Endpoint | None = None
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One device with the scheduler's account of it."""

    sample: GpuSample
    budget_bytes: int | None
    committed_bytes: int
    reserved_bytes: int
    available_bytes: int | None
    foreign_bytes: int | None


class JobKind(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"


class JobResult(StrEnum):
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A load or unload that somebody asked for and that has not ended. ``model`` is empty for "all models"."""

    id: int
    kind: JobKind
    model: str
    caller: Caller
    since_s: float
    stage: str = ""
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """A promise that a model stays loaded while its owner lives. ``model`` is empty for an inhibitor of all models."""

    cookie: int
    model: str
    caller: Caller
    reason: str
    application: str
    what: frozenset[str]
    since_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that can be seen of gpud at one moment."""

    now_s: float
    state: str
    degraded: str
    models: tuple[ModelStatus, ...]
    gpus: tuple[GpuStatus, ...]
    jobs: tuple[JobStatus, ...]
    holds: tuple[HoldStatus, ...]
    idle_timeout_s: float
    version: str = ""
