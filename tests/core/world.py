"""A world of values around the scheduler: devices, engines and programs that do what they are told, a clock moved by
hand.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from gpud.core import events
from gpud.core.errors import GpudError
from gpud.core.events import Action, Event, JobEnded, LoadOptions, Notice
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    ClaimStatus,
    Exit,
    GpuProcess,
    GpuSample,
    GpuStatus,
    JobResult,
    Limits,
    LoadsMeanwhile,
    Model,
    ModelStatus,
    Priority,
    QueueStatus,
    State,
)
from gpud.core.quote import Quote, Share
from gpud.core.record import replace
from gpud.core.scheduler import Scheduler

GIB = 1 << 30
MIB = 1 << 20
ALICE = Caller("alice", 1000, label="alice")
BOB = Caller("bob", 1001, label="bob")
CAROL = Caller("carol", 1002, label="carol")
GPU = "GPU-0"
GPU1 = "GPU-1"
HOST_BYTES = 16 * GIB
BOUNDED = ("shutdown", "suspend")
"""Why an answer may be cut: the machine, or gpud itself, waits no longer."""

WORK = (events.Launch, events.CancelLaunch, events.Stop, events.AskBusy, events.Sample)


def model(name: str, **settings: object) -> Model:
    return replace(Model(name, "llama_server"), **settings)  # type: ignore[arg-type]


def promised(launch: events.Launch, device: str | None = None) -> int:
    return sum(share.bytes for share in launch.shares if device in (None, share.device))


@dataclass
class Gpu:
    """``programs`` are others' by name; ``foreign_bytes`` are held by nobody in particular, ``late_bytes`` by an engine
    that is no more. ``tells`` False: its driver does not say which process holds how much.
    """

    bytes: int = 8 * GIB
    foreign_bytes: int = 0
    late_bytes: int = 0
    programs: dict[str, int] = field(default_factory=dict)
    health: str = ""
    asleep: bool = False
    tells: bool = True


@dataclass
class Engine:
    """What really runs: its process and the memory it holds, which may differ from what was reserved for it."""

    model: str
    generation: int
    pid: int
    promised: dict[str, int]
    real: dict[str, int]
    begun_s: float = 0.0
    load_s: float = 0.0
    ready: bool = False

    def holds(self, device: str, now: float) -> int:
        """While it loads, it fills its memory evenly."""
        size = self.real.get(device, 0)
        return size if self.ready or self.load_s <= 0 else int(size * min(1.0, (now - self.begun_s) / self.load_s))


@dataclass
class Program:
    """One that claims memory: its process, and what it really uses of it."""

    pid: int
    bytes: int
    device: str = ""
    used_bytes: int = 0


@dataclass
class World:
    """Carries the scheduler's actions out, one at a time, when the test says so.

    ``sizes`` are what models are quoted, unless ``quotes`` has more to say; ``real_sizes`` what they take of their
    first device. ``load_s`` is how long a load takes, at once by default. ``says`` is what an engine says itself that
    it is about to take, ``oom`` what it must be promised if it shall not end for lack of memory.
    ``drivers_linger``: what an engine held on a GPU becomes ``late_bytes`` when it ends.
    """

    models: dict[str, Model]
    sizes: dict[str, int]
    gpus: dict[str, Gpu] = field(default_factory=lambda: {GPU: Gpu()})
    limits: Limits = field(default_factory=lambda: Limits(gpu=BudgetLimits(), host=BudgetLimits(), memory_wait_s=5.0))
    now: float = 1000.0
    unfit: dict[str, events.Unfit] = field(default_factory=dict)
    quotes: dict[str, Quote] = field(default_factory=dict)
    real_sizes: dict[str, int] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    says: dict[str, int] = field(default_factory=dict)
    oom: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    told: list[Action] = field(default_factory=list)
    pending: list[Action] = field(default_factory=list)
    due_at: dict[int, float] = field(default_factory=dict)
    """When a pending action that is delayed is to be carried out, by its identity."""
    engines: dict[str, Engine] = field(default_factory=dict)
    programs: dict[int, Program] = field(default_factory=dict)
    jobs: dict[int, JobEnded] = field(default_factory=dict)
    granted: dict[int, events.ClaimGranted] = field(default_factory=dict)
    over: dict[int, events.ClaimOver] = field(default_factory=dict)
    learned: dict[str, int] = field(default_factory=dict)
    drivers_linger: bool = False
    forced: set[str] = field(default_factory=set)
    released: int = 0
    finished: bool = False
    when_ended: Callable[[JobEnded], None] | None = None

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.models, self.limits)
        self._jobs = itertools.count(1)
        self._claims = itertools.count(1)
        self._pids = itertools.count(100)
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []

    # Wishes

    def load(self, name: str, caller: Caller = ALICE, **options: object) -> int:
        job = next(self._jobs)
        self.post(events.LoadAsked(job, name, caller, LoadOptions(**options)))  # type: ignore[arg-type]
        return job

    def unload(self, name: str = "", caller: Caller = ALICE, *, force: bool = False, others: bool = False) -> int:
        job = next(self._jobs)
        if force:
            self.forced |= {name} if name else set(self.models)
        self.post(events.UnloadAsked(job, name, caller, force, others))
        return job

    def claim(
        self,
        size: int,
        caller: Caller = ALICE,
        *,
        who: str = "train.py",
        gpu: str = "",
        priority: Priority = Priority.NORMAL,
        wait_s: float | None = None,
    ) -> int:
        claim = next(self._claims)
        pid = next(self._pids)
        self.programs[claim] = Program(pid, size)
        try:
            self.post(events.ClaimAsked(claim, size, replace(caller, pid=pid), who, "", gpu, priority, wait_s))
        except GpudError:
            del self.programs[claim]
            raise
        return claim

    def drop(self, claim: int) -> None:
        self.post(events.ClaimDropped(claim, "its program has ended"))

    def configure(self, *models: Model, limits: Limits | None = None, **sizes: int) -> None:
        """Add or change models, sizes in bytes, limits."""
        self.models = {**self.models, **{one.name: one for one in models}}
        self.sizes |= sizes
        self.limits = limits or self.limits
        self.post(events.Reconfigured(self.models, self.limits, 300.0, frozenset()))

    def post(self, event: Event) -> None:
        before = self.seen()
        actions = self.scheduler.handle(event, self.now)
        told = any(isinstance(action, events.Outcome) for action in actions)
        assert told or self.seen() == before, f"{event} changes what is seen, and nobody is told"
        work = [a for a in actions if isinstance(a, WORK)]
        self.pending += work
        self.due_at |= {id(a): self.now + getattr(a, "delay_s", 0.0) for a in work}
        for action in actions:
            self.told.append(action)
            match action:
                case JobEnded():
                    assert action.job not in self.jobs, f"job {action.job} ended twice"
                    self.jobs[action.job] = action
                case events.ClaimGranted(claim, device):
                    assert claim not in self.granted and claim not in self.over, f"claim {claim} is granted too late"
                    self.granted[claim] = action
                    self.programs[claim].device = device
                case events.ClaimOver(claim):
                    assert claim not in self.over, f"claim {claim} ended twice"
                    self.over[claim] = action
                    del self.programs[claim]
                case events.ReleaseGpus():
                    assert not self.engines
                    self.released += 1
                case events.Finish():
                    assert not self.engines
                    self.finished = True
                case events.Learn(name, shares, _):
                    self.learned[name] = sum(share.bytes for share in shares)
                case _:
                    pass
        self.check(actions)
        for action in actions:
            if isinstance(action, JobEnded) and self.when_ended is not None:
                self.when_ended(action)

    # The outside

    def held(self, device: str) -> int:
        """What engines and claims hold there."""
        engines = sum(engine.holds(device, self.now) for engine in self.engines.values())
        return engines + sum(program.used_bytes for program in self.programs.values() if program.device == device)

    def free(self, device: str) -> int:
        if device == HOST:
            return max(0, HOST_BYTES - self.held(HOST))
        gpu = self.gpus[device]
        others = gpu.foreign_bytes + gpu.late_bytes + sum(gpu.programs.values())
        return max(0, gpu.bytes - self.held(device) - others)

    def sample(self) -> tuple[GpuSample, ...]:
        samples = []
        for index, (uuid, gpu) in enumerate(self.gpus.items()):
            name = "Test GPU" if index == 0 else f"Test GPU {index}"
            if gpu.asleep or gpu.health:
                samples.append(GpuSample(uuid, name, index, "nvidia", asleep=gpu.asleep, health=gpu.health))
                continue
            free = self.free(uuid)
            processes = self._processes(uuid)
            if not gpu.tells:
                processes = tuple(replace(process, used_bytes=None) for process in processes)
            samples.append(
                GpuSample(uuid, name, index, "nvidia", gpu.bytes, gpu.bytes - free, free, processes=processes)
            )
        free = self.free(HOST)
        processes = self._processes(HOST)
        samples.append(
            GpuSample(HOST, "host memory", 0, "host", HOST_BYTES, HOST_BYTES - free, free, processes=processes)
        )
        return tuple(samples)

    def _processes(self, device: str) -> tuple[GpuProcess, ...]:
        found = [
            GpuProcess(engine.pid, engine.model, engine.holds(device, self.now))
            for engine in self.engines.values()
            if engine.holds(device, self.now)
        ]
        found += [
            GpuProcess(program.pid, "python", program.used_bytes)
            for program in self.programs.values()
            if program.device == device and program.used_bytes
        ]
        others = self.gpus[device].programs if device in self.gpus else {}
        found += [GpuProcess(5000 + number, name, size) for number, (name, size) in enumerate(others.items())]
        return tuple(found)

    def do(self, action: Action) -> None:
        """Carry one pending action out."""
        self.pending.remove(action)
        match action:
            case events.Launch():
                self._launch(action)
            case events.CancelLaunch(name, generation):
                launch = [a for a in self.pending if isinstance(a, events.Launch) and a.generation == generation]
                launch = [a for a in launch if a.model.name == name]
                if launch:
                    self.pending.remove(launch[0])
                    self.post(events.LoadEnded(name, generation))
                elif name in self.engines and self.engines[name].generation == generation:
                    self.end(name, code=0)
            case events.Stop(name, generation):
                if name in self.engines and self.engines[name].generation == generation:
                    self.end(name, code=0)
            case events.AskBusy(name, generation):
                self.post(events.BusyAnswered(name, generation, name in self.busy))
            case events.Sample(_, _, check, settling, claims, tickets):
                own = {e.model: frozenset((e.pid,)) for e in self.engines.values()}
                names = [model.name for model in check]
                quotes = {m.name: self.quote(m) for m in check if m.name not in self.unfit}
                unfit = {name: self.unfit[name] for name in names if name in self.unfit}
                claimed = {claim: frozenset((pid,)) for claim, pid in claims.items()}
                self.post(events.Sampled(self.sample(), own, quotes, unfit, settling, check, claimed, tickets))

    def look(self) -> None:
        """Have the devices looked at, if that is wanted now."""
        self.do(next(a for a in self.pending if isinstance(a, events.Sample) and not a.delay_s))

    def quote(self, wanted: Model) -> Quote:
        """A context costs a byte a token, beyond what the model needs anyway."""
        known = self.quotes.get(wanted.name)
        return known or Quote.simple(self.sizes[wanted.name] + (wanted.settings.context or 0))

    def _launch(self, launch: events.Launch) -> None:
        name, generation = launch.model.name, launch.generation
        assert name not in self.engines, f"{name} is started twice"
        if name in self.broken:
            self.post(events.LoadEnded(name, generation, "exited with status 1", tail=("last line",)))
            return
        if promised(launch) < self.oom.get(name, 0):
            self.post(events.LoadEnded(name, generation, "out of memory", kind="oom-gpu"))
            return
        first = launch.shares[0].device
        reserved = {share.device: share.bytes for share in launch.shares}
        real = {**reserved, first: self.real_sizes.get(name, reserved[first])}
        load_s = self.load_s.get(name, 0.0)
        self.engines[name] = Engine(name, generation, next(self._pids), reserved, real, self.now, load_s)
        if name in self.says:
            said = tuple(Share(s.device, self.says[name] if s.device == first else s.bytes) for s in launch.shares)
            engine = self.engines[name]
            engine.real = {**{share.device: share.bytes for share in said}, **engine.real}
            engine.real[first] = self.real_sizes.get(name, self.says[name])
            before, engine.promised = engine.promised, {share.device: share.bytes for share in said}
            self.post(events.Sized(name, generation, said))
            if self.state(name) is not State.LOADING:
                engine.promised = before
        if load_s:
            self.at(self.now + load_s, lambda: self.come_up(name, generation))
        else:
            self.come_up(name, generation)

    def adopt(self, name: str, *shares: Share, stale: bool = False) -> None:
        """An engine of an earlier daemon is there, and holds what its shares say."""
        held = {share.device: share.bytes for share in shares}
        self.engines[name] = Engine(name, 1, next(self._pids), dict(held), dict(held), self.now, ready=True)
        self.post(events.Adopted(name, 1, shares, stale=stale))

    def come_up(self, name: str, generation: int) -> None:
        engine = self.engines.get(name)
        if engine is None or engine.generation != generation or self.state(name) is not State.LOADING:
            return
        engine.ready = True
        self.post(events.BecameReady(name, generation))

    def end(self, name: str, code: int | None = 0) -> None:
        if self.drivers_linger:
            for uuid, gpu in self.gpus.items():
                gpu.late_bytes += self.engines[name].holds(uuid, self.now)
        engine = self.engines.pop(name)
        if engine.ready:
            self.post(events.EngineGone(name, engine.generation, Exit(engine.pid, code, ("last line",))))
        elif code == 0:
            self.post(events.LoadEnded(name, engine.generation))
        else:
            self.post(events.LoadEnded(name, engine.generation, "ended while it loaded"))

    def settle(self, limit: int = 1000) -> None:
        """Carry everything out until nothing is pending but delayed looks and questions."""
        for _ in range(limit):
            now = [a for a in self.pending if getattr(a, "delay_s", 0.0) == 0.0]
            if not now:
                return
            self.do(now[0])
        raise AssertionError(f"it does not settle: {self.pending}")

    # Time

    def at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time, next(self._order), call))

    def pass_time(self, seconds: float, limit: int = 10_000) -> None:
        """Move the clock; deadlines, timers and delayed actions come on their way."""
        self.settle()
        end = self.now + seconds
        still = 0
        for _ in range(limit):
            deadline = self.scheduler.next_deadline()
            delayed = [a for a in self.pending if getattr(a, "delay_s", 0.0) > 0.0]
            timers = [self._timers[0][0]] if self._timers else []
            times = (deadline, *(self.due_at[id(a)] for a in delayed), *timers)
            at = [time for time in times if time is not None and time <= end]
            if not at:
                break
            first = max(self.now, min(at))
            still = still + 1 if first == self.now else 0
            assert still < 200, f"a deadline comes again and again: {self.scheduler.next_deadline()} at {self.now}"
            due = [a for a in delayed if self.due_at[id(a)] <= first]
            self.now = first
            if deadline is not None and deadline <= first:
                self.post(events.TimePassed())
            for action in due:
                if any(action is other for other in self.pending):
                    self.do(action)
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            self.settle()
        else:
            raise AssertionError("time does not pass: a deadline comes again and again")
        self.now = end

    # What is seen

    def status(self, name: str) -> ModelStatus:
        return next(s for s in self.scheduler.model_statuses() if s.model.name == name)

    def state(self, name: str) -> State | None:
        return self.scheduler.state_of(name)

    def device(self, uuid: str = GPU) -> GpuStatus:
        return next(s for s in self.scheduler.gpu_statuses() if s.sample.uuid == uuid)

    def claim_status(self, claim: int) -> ClaimStatus:
        return next(s for s in self.scheduler.claim_statuses() if s.id == claim)

    def queue(self) -> tuple[QueueStatus, ...]:
        return self.scheduler.queue_statuses()

    def seen(self) -> tuple[object, ...]:
        """Everything that is shown, but for what changes as time passes: places in the queue, and how long the GPUs are
        still given away.
        """
        seen = self.scheduler
        waiting = {(entry.model, entry.claim): replace(entry, position=0) for entry in seen.queue_statuses()}
        return (
            *(list(seen.model_statuses()), seen.gpu_statuses(), seen.job_statuses(), seen.hold_statuses(), waiting),
            *(seen.claim_statuses(), seen.yield_status(), seen.session_statuses(), seen.suspended()),
            *(bool(seen.given_away()), seen.gpu_problem()),
        )

    def result(self, job: int) -> JobResult:
        return self.jobs[job].result

    def notices(self, kind: events.Kind) -> list[Notice]:
        return [a for a in self.told if isinstance(a, Notice) and a.kind is kind]

    def launches(self) -> list[str]:
        return [a.model.name for a in self.told if isinstance(a, events.Launch)]

    def last_launch(self, name: str) -> events.Launch:
        return [a for a in self.told if isinstance(a, events.Launch) and a.model.name == name][-1]

    # What must hold after every event

    def check(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case events.Launch(model, shares=shares) if self.scheduler.given_away():
                    off_gpu = all(share.device == HOST for share in shares) and self.has_processor_left()
                    assert off_gpu, f"{model.name} is loaded although the GPUs are given away"
                case events.ModelChanged(name, _, State.READY) if self.scheduler.given_away():
                    off_gpu = all(device == HOST for device, _ in self.status(name).shares)
                    assert off_gpu and self.has_processor_left(), f"{name} is there although the GPUs are given away"
                case events.ModelChanged(name, State.DRAINING, State.STOPPING, reason) if reason not in BOUNDED:
                    busy = self.status(name).in_flight
                    assert not busy or name in self.forced, f"an answer of {name} is cut ({reason})"
                case events.ModelChanged(name, State.READY, State.DRAINING, "budget"):
                    assert not self.status(name).model.pinned, f"{name} is pinned, and has to make room"
                    held = [h for h in self.scheduler.hold_statuses() if h.model in ("", name) and "evict" in h.what]
                    assert not held, f"{name} is held, and has to make room"
                case events.ModelChanged(name, _, State.COLD):
                    self.forced.discard(name)
                case _:
                    pass
        # The books are kept here a second time, from what was launched and what really runs.
        granted = {a.device for a in actions if isinstance(a, events.ClaimGranted)}
        launched = [a for a in actions if isinstance(a, events.Launch)]
        for device in granted | {s.device for a in launched for s in a.shares if s.bytes}:
            self._check_device(device)

    def has_processor_left(self) -> bool:
        """Whether the processor is not given away with the GPUs: that is so where there are none, but for a game beside
        which models may be loaded without them.
        """
        return bool(self.gpus) or self.limits.loads_during_game is LoadsMeanwhile.CPU

    def _check_device(self, device: str) -> None:
        running = [e for e in self.engines.values() if device in e.promised]
        if any(e.holds(device, self.now) > e.promised[device] for e in running):
            return
        committed = unseen = 0
        for engine in running:
            held = engine.holds(device, self.now)
            kept = device == HOST or not engine.ready
            committed += engine.promised[device] if kept else held
            # Of an engine on a GPU the pages in host memory are its file's: nobody is promised them twice.
            unseen += engine.promised[device] - held if kept else 0
        for action in self.pending:
            if isinstance(action, events.Launch):
                committed += promised(action, device)
                unseen += promised(action, device)
        for program in self.programs.values():
            if program.device == device:
                committed += max(program.bytes, program.used_bytes)
                unseen += max(0, program.bytes - program.used_bytes)
        gpu = self.device(device)
        assert gpu.budget_bytes is not None
        assert committed <= gpu.budget_bytes, f"{committed} is promised on {device}, the budget is {gpu.budget_bytes}"
        free = self.free(device)
        assert unseen <= free, f"{unseen} is promised on {device} and not there yet, {free} is free"
