"""The records that the rooms of gpud exchange. All are frozen: whoever wants a change makes a new one.

Sizes are bytes and end in ``_bytes``; times are seconds and end in ``_s``; ``None`` means unknown, never zero.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum

from gpud.core.record import Record, field, repr_without

HOST = "host"
"""The device name of the machine's own memory: the budget of a machine without a GPU, and of models kept off the
GPU."""


AUTO_IDLE = -1.0
"""As an idle time-out: as long as pays, by the measured cost of a reload."""


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

    def word(self) -> str:
        """What every surface calls it."""
        return _WORDS[self]


_WORDS = {
    State.COLD: "unloaded",
    State.LOADING: "loading",
    State.READY: "ready",
    State.DRAINING: "unloading",
    State.STOPPING: "unloading",
    State.KILLING: "unloading",
    State.BACKOFF: "failed",
    State.FAILED: "failed",
}


class Priority(IntEnum):
    """Who goes first. The names are what a configuration says."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


# What the configuration says about a model -------------------------------------------------------------------------


class HttpCall(Record):
    """One request to an engine, as data: ``POST /free {"unload_models": true}``."""

    method: str
    path: str
    body: Mapping[str, object] | None = None


class BusyProbe(Record):
    """How to ask a custom engine whether it works right now: it does if any of ``fields`` of the JSON answer is truthy.

    A field may reach inside with dots: ``exec_info.queue_remaining``.
    """

    path: str
    fields: tuple[str, ...]


class StopTimes(Record):
    """The rungs of the stop ladder.

    ``drain_s`` bounds the wait for running requests; after the first TERM an engine has ``term_s``, after the second
    ``second_term_s``; then its whole cgroup or process group is killed.
    """

    drain_s: float = 300.0
    term_s: float = 2.0
    second_term_s: float = 2.0


class EngineSettings(Record):
    """What an engine is told for one model. ``None`` and empty mean: the engine's own default.

    ``layers`` is a number, ``auto`` or ``all``. The fields from ``command`` on belong to custom engines,
    ``ollama_name`` to Ollama; ``hub_name`` is what Hugging Face calls a model that has no ``file``.
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
    environment: tuple[tuple[str, str], ...] = ()
    extra_flags: tuple[str, ...] = ()
    hub_name: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "environment")


class Model(Record):
    """One model as configured: a name, the engine that serves it, and how it is to be treated.

    ``size_bytes`` is what the user declares that it needs; ``None`` lets gpud find out. ``idle_timeout_s`` 0 means
    never unload for idleness, :data:`AUTO_IDLE` lets gpud derive it from what a reload costs. ``gpu`` names a GPU by
    uuid or index, ``host`` keeps the model off the GPU, empty lets gpud choose. ``least_context`` allows it to be
    loaded with a smaller context, down to this one, rather than not at all. ``alternatives`` are the same model by
    other engines, in the order in which they are tried; they have this one's name.
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
    least_context: int | None = None
    alternatives: tuple["Model", ...] = ()


class BudgetLimits(Record):
    """What gpud may take of each device. ``budget`` is bytes, ``percent`` a share of the total; both absent mean all.

    ``reserve_bytes`` is always left free: for the desktop on a GPU, for everything else in host memory.
    """

    budget_bytes: int | None = None
    budget_percent: float | None = None
    reserve_bytes: int = 0


class EvictionPolicy(StrEnum):
    """Who goes first when somebody needs the memory; a lower priority always goes before a higher one."""

    HYBRID = "hybrid"
    LRU = "lru"
    PRIORITY = "priority"


class QueueLimits(Record):
    """``size`` models may wait for memory, each for ``timeout_s``. Who has waited for ``turn_s`` has its turn: models
    in the way take no new requests. Who has waited for ``aging_s`` rises by one priority.
    """

    size: int = 10
    timeout_s: float = 300.0
    turn_s: float = 10.0
    aging_s: float = 60.0


class EvictionLimits(Record):
    """``residence_s`` is what a model that was loaded for a request has at least before it goes for another.

    Above ``above_percent`` of a device idle models go, without anybody's asking, until it is below ``below_percent``;
    None: never.
    """

    policy: EvictionPolicy = EvictionPolicy.HYBRID
    residence_s: float = 0.0
    above_percent: float | None = None
    below_percent: float = 80.0


class SessionLimits(Record):
    """When a session ends, what only it has used is unloaded ``grace_s`` later, if ``unload_on_exit``."""

    unload_on_exit: bool = True
    grace_s: float = 5.0


class LoadsMeanwhile(StrEnum):
    """What becomes of a load while a game has the GPUs, or none can be used."""

    WAIT = "wait"
    CPU = "cpu"
    REFUSE = "refuse"


class Limits(Record):
    """The numbers that the scheduler obeys; all of them come from the configuration.

    Every ``watch_s`` the devices are looked at while something is loaded; 0: only when something happens. An alert is
    given at ``alert_percent`` of a device, None: never. Nothing is loaded on a GPU of which other programs hold
    ``external_busy_bytes``. ``loads_during_game`` are those for a GPU, as are ``loads_without_gpu``, of GPUs that did
    not wake up with the machine: they do not wait. On battery a model may be idle for ``battery_idle_s`` at most; None:
    as long as otherwise.
    """

    gpu: BudgetLimits = field(default_factory=lambda: BudgetLimits(reserve_bytes=256 << 20))
    host: BudgetLimits = field(default_factory=lambda: BudgetLimits(reserve_bytes=1 << 30))
    backoff_first_s: float = 5.0
    backoff_max_s: float = 60.0
    backoff_attempts: int = 5
    healthy_after_s: float = 30.0
    memory_wait_s: float = 10.0
    shutdown_drain_s: float = 20.0
    queue: QueueLimits = field(default_factory=QueueLimits)
    eviction: EvictionLimits = field(default_factory=EvictionLimits)
    sessions: SessionLimits = field(default_factory=SessionLimits)
    watch_s: float = 10.0
    alert_percent: float | None = 90.0
    external_busy_bytes: int | None = None
    loads_during_game: LoadsMeanwhile = LoadsMeanwhile.WAIT
    loads_without_gpu: LoadsMeanwhile = LoadsMeanwhile.REFUSE
    battery_idle_s: float | None = None


# What is measured ----------------------------------------------------------------------------------------------------


class GpuProcess(Record):
    """One process that uses a device; ``used_bytes`` is None where the driver does not say."""

    pid: int
    name: str
    used_bytes: int | None


class GpuSample(Record):
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


class Endpoint(Record):
    """Where an engine answers: a Unix socket, or a loopback address. ``key`` is the engine's own API key.

    ``model`` is the name by which the engine knows the model, where it wants to hear that and no other.
    """

    socket: str = ""
    host: str = ""
    port: int = 0
    base_path: str = ""
    key: str = ""
    model: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "key")


class Exit(Record):
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


class Caller(Record):
    """Who asks. ``label`` is how the caller appears in messages; ``owner`` is what its holds and jobs are counted on.

    ``party`` is whom the queue is fair to: an API key, an address; empty means the user. ``session`` is the id of the
    session whose use of a model this is; empty: of none, or nobody knows.
    """

    owner: str
    uid: int
    pid: int = 0
    label: str = ""
    party: str = ""
    session: str = ""

    @property
    def stands_for(self) -> str:
        """Whom the queue is fair to."""
        return self.party or f"uid {self.uid}"


def session_owner(session: str) -> str:
    """Whom the holds of a session belong to, by its id."""
    return f"session:{session}"


class Session(Record):
    """Somebody at work: a shell that has registered, or a login session that holds something. It ends with the process
    ``pid``. ``label`` is how it appears in messages, ``login`` what logind calls the login session that it is in.
    """

    id: str
    uid: int
    pid: int
    label: str
    terminal: str = ""
    login: str = ""

    @property
    def owner(self) -> str:
        """Whom the holds of this session belong to."""
        return session_owner(self.id)


class Process(Record):
    """What the kernel says of one process. ``leader`` is the first process of its terminal session, ``tty`` 0 means
    none. ``started`` tells it from another one that had the same pid.
    """

    pid: int
    name: str
    parent: int
    leader: int
    tty: int
    started: int


# What is told to the outside -----------------------------------------------------------------------------------------


class ModelStatus(Record):
    """One model as every surface shows it. Deadlines are on the scheduler's clock (seconds, monotonic).

    ``retry_at_s`` is when a failed model may be tried again; ``retries`` says that it will be, without anybody's asking
    anew. ``device`` is the first of ``shares``. ``waits_for`` says why it waits. ``reduced`` says what it was denied to
    make it fit, ``source`` where ``need_bytes`` comes from. ``uses`` is how often it was used since gpud started.
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
    shares: tuple[tuple[str, int], ...] = ()
    waits_for: str = ""
    reduced: str = ""
    source: str = ""
    kv_bytes: int | None = None
    idle_timeout_s: float = 0.0
    uses: int = 0


class GpuStatus(Record):
    """One device with the scheduler's account of it."""

    sample: GpuSample
    budget_bytes: int | None
    committed_bytes: int
    reserved_bytes: int
    available_bytes: int | None
    foreign_bytes: int | None
    reserve_bytes: int = 0
    alert: bool = False
    own_pids: frozenset[int] = frozenset()


class ClaimStatus(Record):
    """Memory that somebody asked for who is no engine. ``device`` is empty while it waits."""

    id: int
    caller: Caller
    who: str
    why: str
    bytes: int
    since_s: float
    priority: Priority = Priority.NORMAL
    device: str = ""
    vendor: str = ""
    used_bytes: int | None = None
    waits_for: str = ""

    @property
    def granted(self) -> bool:
        return bool(self.device)


class QueueStatus(Record):
    """One who waits for memory, in the order in which they will be served. ``claim`` is 0 for a model.

    ``overdue``: it has waited long enough for models in the way to take no new requests. ``until_s`` is when it is told
    no, None: never. ``load_s`` is how long its load took the last time, None where that is not known.
    """

    position: int
    model: str
    claim: int
    need_bytes: int | None
    priority: Priority
    callers: tuple[str, ...]
    requests: int
    since_s: float
    until_s: float | None
    overdue: bool
    waits_for: str
    load_s: float | None = None


class SessionStatus(Record):
    """One session with what it has used of what is loaded or on its way; ``alone`` are those that nobody else has."""

    session: Session
    since_s: float
    used: tuple[str, ...]
    alone: tuple[str, ...]


class YieldStatus(Record):
    """The GPUs are given away: nothing is loaded until ``until_s`` (None: until somebody resumes)."""

    caller: Caller
    why: str
    since_s: float
    until_s: float | None


class Suspension(Record):
    """The machine is about to sleep, or sleeps; with ``shutdown`` it goes down. Engines are to be gone by
    ``until_s``.
    """

    shutdown: bool
    since_s: float
    until_s: float


class JobKind(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    DOWNLOAD = "download"


class JobResult(StrEnum):
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    SUPERSEDED = "superseded"


class JobStatus(Record):
    """A load or unload that somebody asked for and that has not ended. ``model`` is empty for "all models".

    Of a download, ``model`` is what is downloaded, and the bytes are known; ``total_bytes`` None: not how many in all.
    """

    id: int
    kind: JobKind
    model: str
    caller: Caller
    since_s: float
    stage: str = ""
    progress: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None


class HoldStatus(Record):
    """A promise that a model stays loaded while its owner lives. ``model`` is empty for an inhibitor of all models."""

    cookie: int
    model: str
    caller: Caller
    reason: str
    application: str
    what: frozenset[str]
    since_s: float


class Snapshot(Record):
    """Everything that can be seen of gpud at one moment. ``degraded_text`` and ``degraded_hint`` say in sentences what
    the word ``degraded`` means this time, and what to do about it.
    """

    now_s: float
    state: str
    degraded: str
    models: Sequence[ModelStatus]
    gpus: tuple[GpuStatus, ...]
    jobs: tuple[JobStatus, ...]
    holds: tuple[HoldStatus, ...]
    idle_timeout_s: float
    version: str = ""
    claims: tuple[ClaimStatus, ...] = ()
    queue: tuple[QueueStatus, ...] = ()
    yielded: YieldStatus | None = None
    sessions: tuple[SessionStatus, ...] = ()
    degraded_text: str = ""
    degraded_hint: str = ""
