"""One vocabulary for what happened, what is to be done, and what is told.

An *event* goes into :meth:`gpud.core.scheduler.Scheduler.handle`; *actions* come out and the engine carries them out;
those actions that are *outcomes* go to every surface alike: the journal, the bus, the event log.
"""

from collections.abc import Mapping
from enum import StrEnum

from gpud.core.errors import GpudError
from gpud.core.facts import (
    Caller,
    Exit,
    GpuSample,
    JobKind,
    JobResult,
    Limits,
    Model,
    Priority,
    Session,
    State,
)
from gpud.core.quote import Offer, Quote, Share
from gpud.core.record import Record, field

# Events: what happened -----------------------------------------------------------------------------------------------


class LoadOptions(Record):
    """What a caller may ask of one load, beyond the configuration.

    ``evict`` False: rather refuse than make room. ``hold``: keep it loaded for as long as the caller lives.
    ``priority`` None is the model's own. ``wait_s`` bounds the wait for memory, None is what is configured; 0: now or
    never. ``use``: a request follows, so once it is ready it counts as in flight. ``engines``: only by one of these,
    the first that can; none: as configured.
    """

    idle_timeout_s: float | None = None
    context: int | None = None
    hold: bool = False
    evict: bool = True
    priority: Priority | None = None
    wait_s: float | None = None
    use: bool = False
    engines: tuple[str, ...] = ()


class LoadAsked(Record):
    job: int
    model: str
    caller: Caller
    options: LoadOptions = field(default_factory=LoadOptions)


class UnloadAsked(Record):
    """``model`` empty: every loaded model. ``others`` allows it in spite of holds that belong to somebody else."""

    job: int
    model: str
    caller: Caller
    force: bool = False
    others: bool = False


class CancelAsked(Record):
    job: int


class HoldAsked(Record):
    """``model`` empty: an inhibitor. ``what`` is drawn from ``unload``, ``evict``, ``load`` (the GPUs are given away)
    and ``game`` (the same, and loads do meanwhile what is configured).
    """

    cookie: int
    model: str
    caller: Caller
    reason: str
    application: str
    what: frozenset[str]


class HoldDropped(Record):
    cookie: int
    reason: str


class ClaimAsked(Record):
    """Somebody who is no engine wants memory on one GPU (``gpu``: index or uuid, empty: any; the machine's own memory
    where there is none), and waits for it at most ``wait_s``; None is what is configured.
    """

    claim: int
    bytes: int
    caller: Caller
    who: str
    why: str
    gpu: str = ""
    priority: Priority = Priority.NORMAL
    wait_s: float | None = None


class ClaimDropped(Record):
    claim: int
    reason: str


class YieldAsked(Record):
    """Empty the GPUs, and load nothing on them until somebody resumes, or for so long."""

    caller: Caller
    why: str
    for_s: float | None = None


class ResumeAsked(Record):
    caller: Caller


class SessionBegan(Record):
    """A shell has registered, or a login session is going to hold something."""

    session: Session


class SessionEnded(Record):
    session: str
    reason: str


class UsersRestored(Record):
    """By model, the sessions (and ``""`` for everybody else) that used it, as an earlier daemon had noted."""

    users: Mapping[str, frozenset[str]]


class UseBegan(Record):
    """A request is about to be sent to a ready engine. ``by`` is the session whose request it is."""

    model: str
    by: str = ""


class UseEnded(Record):
    """Its last byte has been relayed, or its client or engine has gone."""

    model: str


class Progressed(Record):
    model: str
    generation: int
    stage: str
    fraction: float | None


class Sized(Record):
    """The engine's own word, while it starts, on what it is about to take where; nothing has been allocated yet."""

    model: str
    generation: int
    shares: tuple[Share, ...]


class BecameReady(Record):
    model: str
    generation: int


class LoadEnded(Record):
    """A load that did not become ready: it failed, or it was canceled (then ``error`` is empty)."""

    model: str
    generation: int
    error: str = ""
    hint: str = ""
    kind: str = ""
    tail: tuple[str, ...] = ()
    preflight: bool = False


class EngineGone(Record):
    """A ready, draining or stopping engine is no more."""

    model: str
    generation: int
    exit: Exit
    hint: str = ""


class BusyAnswered(Record):
    """The engine's own word on whether it works; ``busy`` None: it cannot tell."""

    model: str
    generation: int
    busy: bool | None


class KillBegan(Record):
    """The polite rungs of the stop ladder were in vain."""

    model: str
    generation: int


class Adopted(Record):
    """An engine that an earlier daemon started was taken over, ready and answering.

    ``stale``: it was started with other settings than are configured now, and goes as soon as it is not busy.
    ``engine`` is the one of the model's that it is, empty: its first.
    """

    model: str
    generation: int
    shares: tuple[Share, ...]
    context: int | None = None
    layers: int | None = None
    stale: bool = False
    engine: str = ""


class Unfit(Record):
    """Why a model cannot be started, found without starting anything: a missing file, a missing program."""

    error: str
    hint: str = ""
    kind: str = ""


class Sampled(Record):
    """A fresh look at all devices, begun after it was asked for.

    ``own`` says which processes belong to which model, ``claimed`` which to which claim. For the models that the look
    was asked to check, ``quotes`` has what each needs and ``unfit`` those that cannot be started at all; ``settling``,
    ``checked`` and ``tickets`` come from the wish.
    """

    gpus: tuple[GpuSample, ...]
    own: Mapping[str, frozenset[int]]
    quotes: Mapping[str, Quote] = field(default_factory=dict)
    unfit: Mapping[str, "Unfit"] = field(default_factory=dict)
    settling: frozenset[str] = frozenset()
    checked: tuple[Model, ...] = ()
    claimed: Mapping[int, frozenset[int]] = field(default_factory=dict)
    tickets: int = 0


class TimePassed(Record):
    """A deadline of the scheduler's has come (or the clock made a jump: all deadlines are looked at again)."""


class Reconfigured(Record):
    """New models and limits. ``changed`` are the models whose running engines no longer match the configuration."""

    models: Mapping[str, Model]
    limits: Limits
    idle_timeout_s: float
    changed: frozenset[str]


class CatalogueTaken(Record):
    """Other models are there than before; what was set for a while, and what failed, stays as it is.

    ``changed`` are the models whose running engines no longer match.
    """

    models: Mapping[str, Model]
    changed: frozenset[str]


class LookAsked(Record):
    """Somebody wants to see fresh figures; a sleeping device is not woken for that."""


class BudgetSet(Record):
    """Until the next reload: this many bytes on each GPU (on the host where there is no GPU); 0 goes back."""

    budget_bytes: int


class IdleTimeoutSet(Record):
    """Until the next reload: this idle time-out for every model that is not pinned."""

    idle_timeout_s: float


class PowerSeen(Record):
    """The machine runs on its battery from now on, or does so no longer."""

    on_battery: bool


class SuspendAsked(Record):
    """The machine is about to sleep, or to shut down: every engine that would not survive it is gone within
    ``within_s``, by force if need be.

    ``keep``: what survives a sleep stays loaded; ``lost`` says by vendor why a GPU's memory does not.
    """

    within_s: float
    shutdown: bool = False
    keep: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)


class WokeUp(Record):
    """The machine is awake again, or does not sleep after all. ``restore``: what was unloaded for it comes back.

    ``problem`` says why the GPUs cannot be used: what needs them stays away until another one comes without, and what
    was kept on those of ``vendor`` (none: on any) goes.
    """

    restore: bool = True
    problem: str = ""
    hint: str = ""
    vendor: str = ""


class ShutdownAsked(Record):
    """gpud ends: drain within the bound, then stop every engine. A second one does not wait any longer."""


Event = (
    LoadAsked
    | UnloadAsked
    | CancelAsked
    | HoldAsked
    | HoldDropped
    | ClaimAsked
    | ClaimDropped
    | YieldAsked
    | ResumeAsked
    | SessionBegan
    | SessionEnded
    | UsersRestored
    | UseBegan
    | UseEnded
    | Progressed
    | Sized
    | BecameReady
    | LoadEnded
    | EngineGone
    | BusyAnswered
    | KillBegan
    | Adopted
    | Sampled
    | TimePassed
    | Reconfigured
    | CatalogueTaken
    | LookAsked
    | BudgetSet
    | IdleTimeoutSet
    | PowerSeen
    | SuspendAsked
    | WokeUp
    | ShutdownAsked
)

# Actions: what is to be done -----------------------------------------------------------------------------------------


class Launch(Record):
    """Start the engine of ``model`` as ``offer`` says, with its shares placed; every answer carries ``generation``."""

    model: Model
    generation: int
    offer: Offer
    shares: tuple[Share, ...]
    vendor: str


class CancelLaunch(Record):
    """``kill``: at once, it takes memory that it was not promised."""

    model: str
    generation: int
    kill: bool = False


class Stop(Record):
    """Walk the stop ladder. ``kill`` skips to its last rung."""

    model: str
    generation: int
    kill: bool = False


class AskBusy(Record):
    """Ask the engine whether it works, not before ``delay_s`` from now."""

    model: str
    generation: int
    delay_s: float = 0.0


class Sample(Record):
    """Look at the devices, not before ``delay_s`` from now. ``wake``: a sleeping device may be woken for it.

    ``check`` are the models whose files, programs and needs are looked at in the same go, as they would be loaded;
    ``settling`` names those that are ready, whose figures are therefore complete. ``claims`` has the process of each
    claim, also of those that wait; its children are looked at with it. ``tickets`` is the last that was given out: the
    look says nothing to whoever comes later, although it may have checked the same model for somebody else.
    """

    wake: bool
    delay_s: float = 0.0
    check: tuple[Model, ...] = ()
    settling: frozenset[str] = frozenset()
    claims: Mapping[int, int] = field(default_factory=dict)
    tickets: int = 0


class ReleaseGpus(Record):
    """Nothing is loaded: let go of the drivers."""


class Learn(Record):
    """Remember what the model was measured to hold, by device, and how long its load took."""

    model: str
    shares: tuple[Share, ...]
    load_s: float


class Warm(Record):
    """Have the file of this model in the page cache: it is likely to be loaded next, and there is memory for it."""

    model: Model


class Finish(Record):
    """Everything has been stopped after ShutdownAsked."""


# Outcomes: what is told ----------------------------------------------------------------------------------------------


class Kind(StrEnum):
    """One kind of thing that a user may want to find in the journal; each has one message id for ever (``log.py``)."""

    STARTED = "started"
    STOPPED = "stopped"
    MODEL_LOADED = "model-loaded"
    MODEL_UNLOADED = "model-unloaded"
    MODEL_ADOPTED = "model-adopted"
    LOAD_STARTED = "load-started"
    LOAD_FAILED = "load-failed"
    LOAD_CANCELED = "load-canceled"
    LOAD_REFUSED = "load-refused"
    LOAD_WAITS = "load-waits"
    LOAD_TIMED_OUT = "load-timed-out"
    OUTGREW = "outgrew"
    EVICTED = "evicted"
    GAVE_WAY = "gave-way"
    CLAIM_GRANTED = "claim-granted"
    CLAIM_REFUSED = "claim-refused"
    CLAIM_ENDED = "claim-ended"
    YIELDED = "yielded"
    RESUMED = "resumed"
    SUSPENDING = "suspending"
    WOKE_UP = "woke-up"
    VRAM_HIGH = "vram-high"
    VRAM_NORMAL = "vram-normal"
    DOOR_OPENED = "door-opened"
    DOOR_FAILED = "door-failed"
    IDLE = "idle"
    SESSION_ENDED = "session-ended"
    ENGINE_CRASHED = "engine-crashed"
    ENGINE_GIVEN_UP = "engine-given-up"
    ENGINE_KILLED = "engine-killed"
    STILL_BUSY = "still-busy"
    MEMORY_LATE = "memory-late"
    OVER_ESTIMATE = "over-estimate"
    ON_PROCESSOR = "on-processor"
    GPU_PROBLEM = "gpu-problem"
    CONFIG_RELOADED = "config-reloaded"
    CONFIG_REJECTED = "config-rejected"
    CATALOGUE_CHANGED = "catalogue-changed"
    CATALOGUE_PROBLEM = "catalogue-problem"
    BUS_LOST = "bus-lost"
    BUS_OWNED = "bus-owned"
    DENIED = "denied"
    STORE_PROBLEM = "store-problem"
    LEFTOVER_ENDED = "leftover-ended"


class Level(StrEnum):
    """How much a notice matters: an error needs somebody now, a warning some day, the rest is history."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class Notice(Record):
    """Something happened and this is why, with the numbers. The same words on every surface.

    ``fields`` are for programs; their names become journal fields with the prefix ``GPUD_``.
    """

    kind: Kind
    message: str
    model: str = ""
    level: Level = Level.INFO
    fields: Mapping[str, str | int | float] = field(default_factory=dict)
    detail: tuple[str, ...] = ()


class Logged(Record):
    """A notice in the event log. ``at_us`` is the time of day in microseconds since the epoch; ``id`` grows."""

    at_us: int
    notice: Notice
    id: int = 0


class ModelChanged(Record):
    """``reason`` is one of user idle budget suspend session crash config shutdown request adopt."""

    model: str
    old: State
    new: State
    reason: str


class UnloadResult(Record):
    """What an unload came to, by model. ``unloaded`` are those that have gone, with the bytes that each gave back, and
    ``left`` those that stay, each with a sentence that says why. ``called_off`` were not loaded: they no longer wait,
    and their failures are forgotten; ``stay_away`` would have come back by themselves.
    """

    unloaded: Mapping[str, int]
    left: Mapping[str, str]
    called_off: tuple[str, ...]
    stay_away: tuple[str, ...]


class JobEnded(Record):
    """``error`` is why, where it failed or timed out; ``generation`` the engine that a load came to; ``unload`` what an
    unload did that was not called off.
    """

    job: int
    kind: JobKind
    model: str
    result: JobResult
    message: str
    caller: Caller
    error: GpudError | None = None
    generation: int = 0
    unload: UnloadResult | None = None


class HoldEnded(Record):
    cookie: int
    owner: str
    reason: str


class ClaimGranted(Record):
    claim: int
    device: str
    vendor: str


class ClaimOver(Record):
    """It was refused, timed out, or given back; ``error`` is None for the last."""

    claim: int
    error: GpudError | None
    reason: str


class Alert(Record):
    """A device is nearly full (``raised``), or is no longer."""

    device: str
    index: int
    name: str
    raised: bool
    used_bytes: int
    total_bytes: int
    limit_percent: float
    message: str


class Touched(Record):
    """Something visible changed that has no outcome of its own (progress, a measurement, a deadline)."""


class SessionsChanged(Record):
    """A session began or ended, or a model has another user than before."""


class CatalogueChanged(Record):
    """Other models can be asked for than before, or something is said otherwise about them. All are names."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


Outcome = (
    Notice
    | ModelChanged
    | JobEnded
    | HoldEnded
    | ClaimGranted
    | ClaimOver
    | Alert
    | SessionsChanged
    | CatalogueChanged
    | Touched
)
Work = Launch | CancelLaunch | Stop | AskBusy | Sample | ReleaseGpus | Learn | Warm
Action = Work | Finish | Outcome
