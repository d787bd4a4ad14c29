"""gpud on the simulated machine: its own scheduler decides, fed with events and heard as the daemon does it.

Only the way between the two is here: what :class:`gpud.engine` does with engines, looks and requests is done with the
machine instead, at once. Idle models stay loaded, as with everybody else here, and the queue refuses nobody, so that no
wait is hidden.
"""

from collections.abc import Mapping

from bench.simulate.physics import Machine, Phase
from bench.simulate.trace import Request
from gpud.core import events
from gpud.core.events import LoadOptions
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    EvictionLimits,
    Exit,
    GpuProcess,
    GpuSample,
    JobResult,
    Limits,
    Model,
    QueueLimits,
    State,
)
from gpud.core.quote import ANY_GPU, Offer, Quote, Share, Source
from gpud.core.scheduler import Scheduler

GPU = "GPU-0"
HOST_BYTES = 1 << 40
NOBODY = "nobody"

LIMITS = Limits(
    gpu=BudgetLimits(),
    host=BudgetLimits(),
    queue=QueueLimits(size=1 << 30, timeout_s=1e9),
    eviction=EvictionLimits(),
    watch_s=0.0,
    alert_percent=None,
)
"""gpud's own, but for a whole GPU without a desktop, a queue without an end, and no look for its own sake."""


class Gpud:
    """Carries out what the scheduler says, and tells it what becomes of it."""

    def __init__(self, machine: Machine, limits: Limits = LIMITS) -> None:
        self.machine = machine
        models = {name: Model(name, "llama_server", idle_timeout_s=0.0) for name in machine.models}
        self.scheduler = Scheduler(models, limits)
        self._quotes = {
            model.name: Quote((Offer((Share(ANY_GPU, model.bytes),), Source.MEASURED),), load_s=model.load_s)
            for model in machine.models.values()
        }
        self._pids = {name: frozenset((number,)) for number, name in enumerate(machine.models, 1000)}
        self._callers: dict[str, Caller] = {}
        self._generations: dict[str, int] = {}
        self._asked: dict[int, Request] = {}
        self._jobs = 0
        self._look: events.Sample | None = None
        self._looked_at = -1
        self._changes = 0
        self._woken_s: float | None = None

    # What happens on the machine

    def arrived(self, request: Request) -> None:
        if self.scheduler.state_of(request.model) is State.READY:
            self._handle(events.UseBegan(request.model))
            self.machine.serve(request)
        else:
            self._ask(request)

    def ready(self, model: str) -> None:
        self._changes += 1
        self._handle(events.BecameReady(model, self._generations[model]))

    def finished(self, request: Request) -> None:
        self._handle(events.UseEnded(request.model))

    def gone(self, model: str) -> None:
        self._changes += 1
        (pid,) = self._pids[model]
        self._handle(events.EngineGone(model, self._generations[model], Exit(pid, 0)))

    # What the scheduler wants

    def _ask(self, request: Request) -> None:
        self._jobs += 1
        self._asked[self._jobs] = request
        self._handle(events.LoadAsked(self._jobs, request.model, self._caller(request), LoadOptions(use=True)))

    def _caller(self, request: Request) -> Caller:
        name = request.caller or NOBODY
        if name not in self._callers:
            self._callers[name] = Caller(name, 1000 + len(self._callers), label=name)
        return self._callers[name]

    def _handle(self, event: events.Event) -> None:
        """Every event and all that comes of it at this moment; then the clock is set for what the scheduler waits for,
        and a look that nothing has changed for is left until something has.
        """
        pending = list(self.scheduler.handle(event, self.machine.now))
        while pending:
            pending += self._do(pending.pop(0))
            if not pending and self._look is not None and self._looked_at != self._changes:
                pending += self._sampled(self._look)
        self._wake()

    def _do(self, action: events.Action) -> tuple[events.Action, ...]:
        match action:
            case events.Launch(model, generation):
                self._generations[model.name] = generation
                self._changes += 1
                self.machine.load(model.name)
            case events.Stop(name):
                if self.machine.engines[name].phase is not Phase.LEAVING:
                    self.machine.unload(name)
            case events.AskBusy(name, generation):
                busy = not self.machine.engines[name].idle
                return self.scheduler.handle(events.BusyAnswered(name, generation, busy), self.machine.now)
            case events.Sample(delay_s=delay_s):
                if delay_s == 0.0:
                    return self._sampled(action)
                self._look = action
            case events.JobEnded(job=job, result=result):
                self._job_ended(self._asked.pop(job), result)
            case events.CancelLaunch():
                raise AssertionError(f"nobody takes a wish back here: {action}")
            case _:
                pass
        return ()

    def _job_ended(self, request: Request, result: JobResult) -> None:
        if result is JobResult.DONE:
            self.machine.serve(request)
        else:
            self.machine.refuse(request)

    def _sampled(self, look: events.Sample) -> tuple[events.Action, ...]:
        self._look = None
        self._looked_at = self._changes
        machine = self.machine
        processes = tuple(
            GpuProcess(pid, name, engine.model.bytes)
            for name, engine in machine.engines.items()
            for pid in self._pids[name]
        )
        free_bytes = machine.free_bytes
        used_bytes = machine.vram_bytes - free_bytes
        gpu = GpuSample(
            GPU, "GPU", 0, "nvidia", machine.vram_bytes, used_bytes, free_bytes, processes=processes, driver="0"
        )
        host = GpuSample(HOST, "host memory", 0, HOST, HOST_BYTES, 0, HOST_BYTES)
        quotes: Mapping[str, Quote] = {model.name: self._quotes[model.name] for model in look.check}
        own = {name: self._pids[name] for name in machine.engines}
        event = events.Sampled((gpu, host), own, quotes, {}, look.settling, look.check, tickets=look.tickets)
        return self.scheduler.handle(event, machine.now)

    def _wake(self) -> None:
        deadline_s = self.scheduler.next_deadline()
        if deadline_s is not None and deadline_s != self._woken_s:
            self._woken_s = deadline_s
            self.machine.at(deadline_s, lambda: self._time_passed(deadline_s))

    def _time_passed(self, deadline_s: float) -> None:
        """The timer: only the latest one set counts."""
        if self._woken_s == deadline_s:
            self._woken_s = None
            self._handle(events.TimePassed())
