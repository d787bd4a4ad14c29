"""A world of values around the scheduler: devices, engines that start and end when told, a clock moved by hand."""

from dataclasses import dataclass, field, replace

from gpud.core import events
from gpud.core.events import Action, Event, JobEnded, LoadOptions, Notice
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    Exit,
    GpuProcess,
    GpuSample,
    JobResult,
    Limits,
    Model,
    ModelStatus,
    State,
)
from gpud.core.quote import Quote
from gpud.core.scheduler import Scheduler

GIB = 1 << 30
ALICE = Caller("alice", 1000, label="alice")
BOB = Caller("bob", 1001, label="bob")
GPU = "GPU-0"
WORK = (events.Launch, events.CancelLaunch, events.Stop, events.AskBusy, events.Sample)


def model(name: str, **settings: object) -> Model:
    return replace(Model(name, "llama_server"), **settings)  # type: ignore[arg-type]


def promised(launch: events.Launch) -> int:
    return sum(share.bytes for share in launch.shares)


@dataclass
class Engine:
    """What really runs: its process and the memory it holds, which may differ from what was reserved for it."""

    model: str
    generation: int
    pid: int
    device: str
    bytes: int
    need_bytes: int = 0


@dataclass
class World:
    """Carries the scheduler's actions out, one at a time, when the test says so."""

    models: dict[str, Model]
    sizes: dict[str, int]
    gpu_bytes: int | None = 8 * GIB
    limits: Limits = field(default_factory=lambda: Limits(gpu=BudgetLimits(), host=BudgetLimits(), memory_wait_s=5.0))
    foreign_bytes: int = 0
    now: float = 1000.0
    unfit: dict[str, events.Unfit] = field(default_factory=dict)
    real_sizes: dict[str, int] = field(default_factory=dict)
    late_bytes: int = 0
    told: list[Action] = field(default_factory=list)
    pending: list[Action] = field(default_factory=list)
    engines: dict[str, Engine] = field(default_factory=dict)
    jobs: dict[int, JobEnded] = field(default_factory=dict)
    next_job: int = 1
    next_pid: int = 100
    busy: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    released: int = 0
    finished: bool = False
    learned: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.models, self.limits)

    # Wishes

    def load(self, name: str, caller: Caller = ALICE, **options: object) -> int:
        job, self.next_job = self.next_job, self.next_job + 1
        self.post(events.LoadAsked(job, name, caller, LoadOptions(**options)))  # type: ignore[arg-type]
        return job

    def unload(self, name: str = "", caller: Caller = ALICE, *, force: bool = False, others: bool = False) -> int:
        job, self.next_job = self.next_job, self.next_job + 1
        self.post(events.UnloadAsked(job, name, caller, force, others))
        return job

    def post(self, event: Event) -> None:
        actions = self.scheduler.handle(event, self.now)
        self.pending += [a for a in actions if isinstance(a, WORK)]
        for action in actions:
            self.told.append(action)
            match action:
                case JobEnded():
                    assert action.job not in self.jobs, f"job {action.job} ended twice"
                    self.jobs[action.job] = action
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

    # The outside

    def sample(self) -> tuple[GpuSample, ...]:
        samples = []
        own = self.engines.values()
        if self.gpu_bytes is not None:
            held = sum(e.bytes for e in own if e.device == GPU)
            used = min(self.gpu_bytes, held + self.foreign_bytes + self.late_bytes)
            processes = tuple(GpuProcess(e.pid, e.model, e.bytes) for e in own if e.device == GPU)
            samples.append(
                GpuSample(
                    GPU, "Test GPU", 0, "nvidia", self.gpu_bytes, used, self.gpu_bytes - used, processes=processes
                )
            )
        total = 16 * GIB
        used = min(total, sum(e.bytes for e in own if e.device == HOST))
        processes = tuple(GpuProcess(e.pid, e.model, e.bytes) for e in own if e.device == HOST)
        samples.append(GpuSample(HOST, "host memory", 0, "host", total, used, total - used, processes=processes))
        return tuple(samples)

    def do(self, action: Action) -> None:
        """Carry one pending action out."""
        self.pending.remove(action)
        match action:
            case events.Launch(launched, generation, _, shares, _):
                name, device = launched.name, shares[0].device
                need_bytes = promised(action)
                if name in self.broken:
                    self.post(events.LoadEnded(name, generation, "exited with status 1", tail=("last line",)))
                    return
                size = self.real_sizes.get(name, need_bytes)
                self.engines[name] = Engine(name, generation, self.next_pid, device, size, need_bytes)
                self.next_pid += 1
                self.post(events.BecameReady(name, generation))
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
            case events.Sample(_, _, check, settling, claims):
                own = {e.model: frozenset((e.pid,)) for e in self.engines.values()}
                names = [model.name for model in check]
                quotes = {m.name: Quote.simple(self.need(m)) for m in check if m.name not in self.unfit}
                unfit = {name: self.unfit[name] for name in names if name in self.unfit}
                claimed = {claim: frozenset((pid,)) for claim, pid in claims.items()}
                self.post(events.Sampled(self.sample(), own, quotes, unfit, settling, check, claimed))

    def need(self, wanted: Model) -> int:
        """A context costs a byte a token, beyond what the model needs anyway."""
        return self.sizes[wanted.name] + (wanted.settings.context or 0)

    def end(self, name: str, code: int | None = 0) -> None:
        engine = self.engines.pop(name)
        self.post(events.EngineGone(name, engine.generation, Exit(engine.pid, code, ("last line",))))

    def settle(self, limit: int = 1000) -> None:
        """Carry everything out until nothing is pending but delayed looks and questions."""
        for _ in range(limit):
            now = [a for a in self.pending if getattr(a, "delay_s", 0.0) == 0.0]
            if not now:
                return
            self.do(now[0])
        raise AssertionError(f"it does not settle: {self.pending}")

    def pass_time(self, seconds: float) -> None:
        """Move the clock; deadlines and delayed actions come on their way."""
        self.settle()
        end = self.now + seconds
        for _ in range(10_000):
            deadline = self.scheduler.next_deadline()
            delayed = [a for a in self.pending if getattr(a, "delay_s", 0.0) > 0.0]
            at = [d for d in (deadline, *(self.now + getattr(a, "delay_s", 0.0) for a in delayed)) if d is not None]
            at = [d for d in at if d <= end]
            if not at:
                break
            first = max(self.now, min(at))
            due = [a for a in delayed if self.now + getattr(a, "delay_s", 0.0) <= first + 1e-9]
            self.now = first
            if deadline is not None and deadline <= first:
                self.post(events.TimePassed())
            for action in due:
                if action in self.pending:
                    self.do(action)
            self.settle()
        else:
            raise AssertionError("time does not pass: a deadline comes again and again")
        self.now = end

    # What is seen

    def status(self, name: str) -> ModelStatus:
        return next(s for s in self.scheduler.model_statuses() if s.model.name == name)

    def state(self, name: str) -> State:
        return self.status(name).state

    def result(self, job: int) -> JobResult:
        return self.jobs[job].result

    def notices(self, kind: events.Kind) -> list[Notice]:
        return [a for a in self.told if isinstance(a, Notice) and a.kind is kind]

    def launches(self) -> list[str]:
        return [a.model.name for a in self.told if isinstance(a, events.Launch)]

    def check(self, actions: tuple[Action, ...]) -> None:
        """What must hold after every event."""
        for status in self.scheduler.model_statuses():
            assert status.in_flight >= 0
        # The books are kept here a second time, from what was launched and what really runs.
        launched = [a for a in actions if isinstance(a, events.Launch)]
        for device in {a.shares[0].device for a in launched if promised(a)}:
            pending = [a for a in self.pending if isinstance(a, events.Launch)]
            starting = [promised(a) for a in pending if a.shares[0].device == device]
            running = [e for e in self.engines.values() if e.device == device]
            if any(e.bytes > e.need_bytes for e in running):
                continue
            held = sum(e.need_bytes if device == HOST else e.bytes for e in running)
            limits = self.limits.host if device == HOST else self.limits.gpu
            gpu = next(g for g in self.scheduler.gpu_statuses() if g.sample.uuid == device)
            budget_bytes = (
                gpu.budget_bytes if limits.budget_bytes is None else max(limits.budget_bytes, gpu.budget_bytes or 0)
            )
            assert budget_bytes is not None
            assert held + sum(starting) <= budget_bytes, "more is promised than the budget has"
            assert gpu.sample.free_bytes is not None
            assert sum(starting) <= gpu.sample.free_bytes, "more is promised than was measured free"
