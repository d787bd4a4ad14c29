"""What the scheduler knows about one configured model. Mutable, and written by the scheduler alone."""

from dataclasses import dataclass, field, replace

from gpud.core.budget import Charge
from gpud.core.facts import Caller, JobKind, JobStatus, Limits, Model, ModelStatus, State
from gpud.core.lifecycle import Trigger, next_state


@dataclass(slots=True)
class Job:
    """Somebody's wish.

    ``evict``, ``context`` and ``idle_timeout_s`` belong to a load, and hold when its engine is started. ``remaining``
    is for an unload: the models that are not gone yet. ``forgiven`` are those that were not loaded, and whose failures
    or waiting it ended.
    """

    id: int
    kind: JobKind
    model: str
    caller: Caller
    since_s: float
    evict: bool = True
    context: int | None = None
    idle_timeout_s: float | None = None
    remaining: set[str] = field(default_factory=set)
    unloaded: int = 0
    freed_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    timed_out: bool = False

    def status(self, stage: str, progress: float | None) -> JobStatus:
        return JobStatus(self.id, self.kind, self.model, self.caller, self.since_s, stage, progress)


@dataclass(slots=True)
class Failure:
    """Why the last try did not work, until the next one does."""

    message: str
    hint: str = ""
    code: str = ""
    tail: tuple[str, ...] = ()


@dataclass(slots=True)
class Instance:
    """One model's life.

    ``generation`` counts starts: an answer that carries an older one is about an engine that is gone. ``wanted``: it
    was ready when its engine crashed, and comes back by itself. ``stale``: its engine no longer matches the
    configuration and goes as soon as it is idle. ``draining_for`` says why it is to go; ``told_busy``: since then its
    engine has said that it works.
    """

    model: Model
    state: State = State.COLD
    reason: str = ""
    generation: int = 0
    device: str = ""
    context: int | None = None
    need_bytes: int = 0
    used_bytes: int | None = None
    settled: bool = False
    in_flight: int = 0
    waiting_since: int = 0
    waits_for: str = ""
    launched_s: float = 0.0
    last_used_s: float | None = None
    ready_since_s: float | None = None
    idle_timeout_s: float | None = None
    load_seconds: float | None = None
    stage: str = ""
    progress: float | None = None
    attempts: int = 0
    restarts: int = 0
    retry_at_s: float | None = None
    wanted: bool = False
    stale: bool = False
    draining_for: str = ""
    drain_until_s: float | None = None
    force: bool = False
    asking: bool = False
    told_busy: bool = False
    busy_until_s: float = 0.0
    removed: bool = False
    failure: Failure | None = None
    load_jobs: list[Job] = field(default_factory=list)
    unload_jobs: list[Job] = field(default_factory=list)

    @property
    def waiting(self) -> bool:
        """True while it stands in the queue for memory."""
        return self.waiting_since > 0

    def leave_queue(self) -> None:
        """It stands in the queue no longer: it is started, or nobody waits for it."""
        self.waiting_since = 0
        self.waits_for = ""

    def move(self, trigger: Trigger) -> State:
        """Take a transition; returns the state that was left."""
        old = self.state
        self.state = next_state(old, trigger)
        return old

    def launchable(self) -> Model:
        """The model with what the caller of this one load asked for: as it was started, or as it would be now."""
        context = self.context if self.state.has_engine() else self.wished_context
        if context is None:
            return self.model
        return replace(self.model, settings=replace(self.model.settings, context=context))

    @property
    def wished_context(self) -> int | None:
        """The latest wish of those who wait; an engine that comes back by itself is as it was."""
        wishes = [job.context for job in self.load_jobs if job.context is not None]
        return wishes[-1] if wishes else self.context if self.wanted else None

    def charge(self) -> Charge:
        return Charge(self.device, self.need_bytes, self.used_bytes, self.settled)

    def idle_since(self) -> float:
        return max(self.last_used_s or 0.0, self.ready_since_s or 0.0)

    @property
    def drain_can_end(self) -> bool:
        """It drains, and its bound holds. However short that is, an engine that is not known to be busy is heard first;
        only the end of gpud itself waits no longer than it said.
        """
        unheard = self.asking and not self.in_flight and not self.told_busy and self.draining_for != "shutdown"
        return self.state is State.DRAINING and not unheard

    def unload_at(self, *, held: bool) -> float | None:
        """When it goes for idleness, or None when it does not."""
        timeout_s = self.model.idle_timeout_s if self.idle_timeout_s is None else self.idle_timeout_s
        if self.state is not State.READY or self.in_flight or held or self.model.pinned or timeout_s <= 0:
            return None
        return self.idle_since() + timeout_s

    def crash_count(self, now: float, limits: Limits) -> int:
        """How many failures in a row this one makes: an engine that was healthy for a while starts anew."""
        healthy = self.ready_since_s is not None and now - self.ready_since_s >= limits.healthy_after_s
        return 1 if healthy else self.attempts + 1

    def status(self, holds: int, *, held: bool) -> ModelStatus:
        failure = self.failure or Failure("")
        return ModelStatus(
            model=self.launchable() if self.state.has_engine() else self.model,
            state=self.state,
            reason=self.reason,
            progress=self.progress if self.state is State.LOADING else None,
            device=self.device if self.state.has_engine() else "",
            need_bytes=self.need_bytes if self.state.has_engine() else 0,
            used_bytes=self.used_bytes if self.state.has_engine() else None,
            in_flight=self.in_flight,
            holds=holds,
            waiting=self.waiting,
            last_used_s=self.last_used_s,
            ready_since_s=self.ready_since_s if self.state.has_engine() else None,
            unload_at_s=self.unload_at(held=held),
            retry_at_s=self.retry_at_s,
            retries=self.wanted or self.waiting,
            attempts=self.attempts,
            restarts=self.restarts,
            load_seconds=self.load_seconds,
            error=failure.message,
            error_code=failure.code,
            error_hint=failure.hint,
            error_tail=failure.tail,
        )
