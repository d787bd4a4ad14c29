"""What the scheduler knows about one configured model. Mutable, and written by the scheduler alone."""

from collections.abc import Collection, Mapping

from gpud.core.budget import Charge
from gpud.core.facts import (
    HOST,
    Caller,
    JobKind,
    JobStatus,
    Limits,
    Model,
    ModelStatus,
    Priority,
    State,
)
from gpud.core.lifecycle import Trigger, next_state
from gpud.core.queue import Ticket
from gpud.core.quote import Offer, Share
from gpud.core.record import Struct, field, replace
from gpud.core.statuses import Patience
from gpud.core.usage import Usage


class Job(Struct):
    """Somebody's wish.

    What belongs to a load holds when its engine is started: ``evict``, ``context``, ``engines`` and
    ``idle_timeout_s``. It waits until ``until_s`` (None: for ever); ``hasty``: it does not wait for others to finish.
    ``use``: a request follows, and counts as in flight from the moment at which the model is ready. ``remaining`` is
    for an unload: the models that are not gone yet. ``unloaded`` are those that are, with what each gave back;
    ``left_out`` those that stay, each with a sentence that says why. ``forgiven`` were not loaded, and it ended their
    failures or waiting; ``stay_away`` would have come back by themselves.
    """

    id: int
    kind: JobKind
    model: str
    caller: Caller
    since_s: float
    evict: bool = True
    context: int | None = None
    idle_timeout_s: float | None = None
    priority: Priority | None = None
    until_s: float | None = None
    hasty: bool = False
    use: bool = False
    engines: tuple[str, ...] = ()
    remaining: set[str] = field(default_factory=set)
    unloaded: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    forgiven: list[str] = field(default_factory=list)
    stay_away: list[str] = field(default_factory=list)
    timed_out: bool = False

    def status(self, stage: str, progress: float | None) -> JobStatus:
        return JobStatus(self.id, self.kind, self.model, self.caller, self.since_s, stage, progress)


class Failure(Struct):
    """Why the last try did not work, until the next one does."""

    message: str
    hint: str = ""
    code: str = ""
    tail: tuple[str, ...] = ()


class Instance(Struct, eq=False):
    """One model's life, from the first wish for it on.

    ``generation`` counts starts: an answer that carries an older one is about an engine that is gone. ``wanted``: it
    comes back by itself, as it was: its engine has crashed, or had to go for a while. ``stale``: its engine no longer
    matches the configuration and goes as soon as it is idle. ``draining_for`` says why it is to go; ``told_busy``:
    since then its engine has said that it works. ``offer`` is how it was loaded; ``used`` what it was measured to hold,
    by device. ``outgrew``: it took more than it had been promised and was ended for that; ``growth`` is how much more
    it is promised now; ``first_need_bytes`` what was promised before any of it was seen, and ``before_bytes`` what was
    in use of its devices then, by whomever; None: they did not say. ``for_request``: a request had it loaded.
    ``expects_bytes`` is what the last quote asks for. ``off_gpu``: this time on the processor, for the GPUs are
    somebody else's, or do not work; ``kept_off``: it waits until they are there again. ``battery_idle_s``: on battery,
    the longest that it may be idle. ``stop_s`` is how long its engine took to end the last time.
    ``users`` are the sessions that have used it since it came, with ``""`` for everybody else; when the last of them
    has ended, it goes at ``leave_at_s``.
    """

    model: Model
    state: State = State.COLD
    reason: str = ""
    generation: int = 0
    offer: Offer | None = None
    shares: tuple[Share, ...] = ()
    used: Mapping[str, int] = field(default_factory=dict)
    first_need_bytes: int = 0
    before_bytes: int | None = None
    context: int | None = None
    engines: tuple[str, ...] = ()
    settled: bool = False
    in_flight: int = 0
    ticket: Ticket | None = None
    outgrew: bool = False
    growth: float = 1.0
    expects_bytes: int = 0
    for_request: bool = False
    usage: Usage = field(default_factory=Usage)
    reload_s: float | None = None
    launched_s: float = 0.0
    last_used_s: float | None = None
    ready_since_s: float | None = None
    idle_timeout_s: float | None = None
    load_seconds: float | None = None
    off_gpu: bool = False
    kept_off: bool = False
    battery_idle_s: float | None = None
    stopping_since_s: float | None = None
    stop_s: float | None = None
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
    busy_again_s: float = 0.0
    removed: bool = False
    failure: Failure | None = None
    load_jobs: list[Job] = field(default_factory=list)
    unload_jobs: list[Job] = field(default_factory=list)
    users: set[str] = field(default_factory=set)
    leave_at_s: float | None = None

    @property
    def waiting(self) -> bool:
        """True while it stands in the queue for memory."""
        return self.ticket is not None

    @property
    def waits_for(self) -> str:
        return "" if self.ticket is None else self.ticket.waits_for

    @property
    def wanted_priority(self) -> Priority:
        """Of those who wait for it, the most urgent."""
        highest = self.model.priority
        for job in self.load_jobs:
            if job.priority is not None and job.priority > highest:
                highest = job.priority
        return highest

    @property
    def parties(self) -> Collection[str]:
        return {job.caller.stands_for for job in self.load_jobs}

    @property
    def served_per_second(self) -> float:
        return len(self.load_jobs) / max(0.1, self.reload_s or 1.0)

    def leave_queue(self) -> None:
        """It stands in the queue no longer: it is started, or nobody waits for it."""
        self.ticket = None

    # What it holds

    @property
    def device(self) -> str:
        """The first of its devices: a GPU, if it has one."""
        return self.shares[0].device if self.shares else ""

    @property
    def on_host(self) -> bool:
        """True when all of it is in the machine's own memory."""
        return all(share.device == HOST for share in self.shares)

    @property
    def main_shares(self) -> tuple[Share, ...]:
        """Those that it is about: on GPUs, or in the machine's memory where it has none there."""
        return tuple(share for share in self.shares if self.on_host or share.device != HOST)

    @property
    def need_bytes(self) -> int:
        return sum(share.bytes for share in self.main_shares)

    @property
    def used_bytes(self) -> int | None:
        known = [self.used[share.device] for share in self.main_shares if share.device in self.used]
        return sum(known) if known and len(known) == len(self.main_shares) else None

    def charges(self) -> tuple[Charge, ...]:
        """What it costs each device. Of an engine on a GPU the pages in host memory are mostly its file's, which the
        kernel takes back when it likes: there only the promise counts.
        """
        return tuple(
            Charge(share.device, share.bytes, self.used.get(share.device), self.settled)
            if self.on_host or share.device != HOST
            else Charge(HOST, share.bytes, share.bytes if self.settled else None, self.settled)
            for share in self.shares
        )

    def bytes_on(self, device: str) -> int:
        return sum(charge.bytes for charge in self.charges() if charge.device == device)

    def let_go(self) -> None:
        """Its engine is no more: nothing is left of what was true of that one alone."""
        self.shares, self.used, self.offer = (), {}, None
        self.settled = self.for_request = self.stale = self.asking = self.force = False
        self.in_flight = 0
        self.ready_since_s = None
        self.busy_until_s = self.busy_again_s = 0.0
        self.stage, self.progress = "", None
        self.draining_for = ""

    def move(self, trigger: Trigger) -> State:
        """Take a transition; returns the state that was left."""
        old = self.state
        self.state = next_state(old, trigger)
        return old

    def launchable(self) -> Model:
        """The model with what the caller of this one load asked for: as it was started, or as it would be now."""
        found = self._launchable()
        return without_gpu(found) if self.off_gpu else found

    def _launchable(self) -> Model:
        if self.state.has_engine() and self.offer is not None:
            return as_offered(self.model, self.offer, self.context)
        if self.state.has_engine():
            return as_wished(self.model, self.engines, self.context)
        return as_wished(self.model, self.wished_engines, self.wished_context)

    @property
    def wished_context(self) -> int | None:
        """The latest wish of those who wait; an engine that comes back by itself is as it was."""
        wishes = [job.context for job in self.load_jobs if job.context is not None]
        return wishes[-1] if wishes else self.context if self.wanted else None

    @property
    def wished_engines(self) -> tuple[str, ...]:
        """Those by which one who waits wants it, the latest wish first."""
        wishes = [job.engines for job in self.load_jobs if job.engines]
        return wishes[-1] if wishes else self.engines if self.wanted else ()

    def idle_since(self) -> float:
        return max(self.last_used_s or 0.0, self.ready_since_s or 0.0)

    @property
    def drain_can_end(self) -> bool:
        """It drains, and its bound holds. However short that is, an engine that is not known to be busy is heard first;
        only the end of gpud itself waits no longer than it said.
        """
        unheard = (
            self.asking
            and not self.in_flight
            and not self.told_busy
            and self.draining_for not in ("shutdown", "suspend")
        )
        return self.state is State.DRAINING and not unheard

    def unload_at(self, *, held: bool) -> float | None:
        """When it goes by itself, for idleness or because those who used it have left, or None when it does not."""
        if self.state is not State.READY or self.in_flight or held or self.model.pinned:
            return None
        timeout_s = self.idle_for_s
        idle_at = self.idle_since() + timeout_s if timeout_s > 0 else None
        if self.leave_at_s is None:
            return idle_at
        return self.leave_at_s if idle_at is None else min(idle_at, self.leave_at_s)

    def is_left(self, now: float) -> bool:
        """Whether all who used it have left, and the grace is over."""
        return self.leave_at_s is not None and self.leave_at_s <= now

    @property
    def idle_for_s(self) -> float:
        """How long it may be idle; 0: for ever."""
        return Patience(self.idle_timeout_s, self.battery_idle_s).idle_for_s(self.model, self.reload_s)

    def crash_count(self, now: float, limits: Limits) -> int:
        """How many failures in a row this one makes: an engine that was healthy for a while starts anew."""
        healthy = self.ready_since_s is not None and now - self.ready_since_s >= limits.healthy_after_s
        return 1 if healthy else self.attempts + 1

    def is_untouched(self) -> bool:
        """There is nothing to remember of it: nobody has loaded it, and nobody wishes for it."""
        return (
            self.state is State.COLD
            and not (self.generation or self.attempts or self.wanted or self.in_flight)
            and not (self.load_jobs or self.unload_jobs or self.users)
            and not self.reason
            and self.ticket is None
            and self.failure is None
            and self.retry_at_s is None
            and self.last_used_s is None
        )

    def status(self, holds: int, *, held: bool) -> ModelStatus:
        failure = self.failure or Failure("")
        loaded = self.state.has_engine()
        offer = self.offer if loaded else None
        return ModelStatus(
            model=self.launchable() if loaded else self.model,
            state=self.state,
            reason=self.reason,
            progress=self.progress if self.state is State.LOADING else None,
            device=self.device if loaded else "",
            need_bytes=self.need_bytes if loaded else 0,
            used_bytes=self.used_bytes if loaded else None,
            in_flight=self.in_flight,
            holds=holds,
            waiting=self.waiting,
            last_used_s=self.last_used_s,
            ready_since_s=self.ready_since_s if loaded else None,
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
            shares=tuple((share.device, share.bytes) for share in self.shares) if loaded else (),
            waits_for=self.waits_for,
            reduced="" if offer is None else offer.reduced,
            source="" if offer is None else str(offer.source),
            kv_bytes=None if offer is None else offer.kv_bytes,
            idle_timeout_s=self.idle_for_s,
            uses=self.usage.count,
        )


def as_wished(model: Model, engines: Collection[str], context: int | None) -> Model:
    """The model by only these of its engines, in this order (none: as configured), each with this context."""
    if not engines and context is None:
        return model
    ways = [model, *model.alternatives]
    if engines:
        ways = [way for engine in engines for way in ways if way.engine == engine] or ways
    if context is not None:
        ways = [replace(way, settings=replace(way.settings, context=context)) for way in ways]
    first, *others = ways
    return replace(first, alternatives=tuple(others))


def without_gpu(model: Model) -> Model:
    """The model and its other ways, all of them in the machine's own memory."""
    settings = model.settings if model.settings.layers is None else replace(model.settings, layers="0")
    others = tuple(without_gpu(other) for other in model.alternatives)
    return replace(model, gpu=HOST, settings=settings, alternatives=others)


def as_offered(model: Model, offer: Offer, context: int | None) -> Model:
    """The model as an offer has it loaded: by which engine, with which context and layers. ``context`` is what the
    caller of this one load asked for.
    """
    chosen = next((other for other in model.alternatives if other.engine == offer.engine), model)
    wished = context if offer.context is None else offer.context
    settings = chosen.settings if wished is None else replace(chosen.settings, context=wished)
    if offer.layers is not None:
        settings = replace(settings, layers=str(offer.layers))
    return chosen if settings == chosen.settings else replace(chosen, settings=settings)
