"""What one event brings about: actions and outcomes, collected in the order in which they happened."""

from gpud.core import events
from gpud.core.budget import describe
from gpud.core.counts import plural
from gpud.core.errors import GpudError
from gpud.core.events import Action, Kind, Level, Notice
from gpud.core.facts import JobResult
from gpud.core.instance import Instance, Job
from gpud.core.lifecycle import Trigger
from gpud.core.no_longer_wanted import no_longer_wanted

_TOUCHED = events.Touched()


class Outbox:
    """Filled while an event is handled, emptied when it has been."""

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def add(self, action: Action) -> None:
        self._actions.append(action)

    def take(self) -> tuple[Action, ...]:
        actions, self._actions = self._actions, []
        return tuple(actions)

    def touch(self) -> None:
        """Something can be seen that could not be seen before."""
        self.add(_TOUCHED)

    def move(self, instance: Instance, trigger: Trigger, reason: str) -> None:
        """Take a transition, and tell it."""
        old = instance.move(trigger)
        instance.reason = reason
        self.add(events.ModelChanged(instance.model.name, old, instance.state, reason))

    def tell(
        self,
        kind: Kind,
        message: str,
        instance: Instance,
        *,
        level: Level = Level.INFO,
        hint: str = "",
        tail: tuple[str, ...] = (),
        **fields: str | int | float,
    ) -> None:
        detail = (f"What to do: {hint}", *tail) if hint else tail
        name, engine = instance.model.name, instance.model.engine
        self.add(Notice(kind, message, name, level, {"engine": engine, **fields}, detail))

    # Jobs

    def end_job(
        self,
        job: Job,
        result: JobResult,
        message: str,
        error: GpudError | None = None,
        generation: int = 0,
        unload: events.UnloadResult | None = None,
    ) -> None:
        self.add(events.JobEnded(job.id, job.kind, job.model, result, message, job.caller, error, generation, unload))

    def end_load_jobs(
        self, instance: Instance, result: JobResult, message: str, error: GpudError | None = None
    ) -> None:
        jobs, instance.load_jobs = instance.load_jobs, []
        for job in jobs:
            self.end_job(job, result, message, error)

    def serve(self, instance: Instance, job: Job, message: str, now: float) -> None:
        """A load that is wished for is there. If a request follows, it counts as in flight from this moment."""
        if job.use:
            instance.in_flight += 1
            instance.last_used_s = now
        self.end_job(job, JobResult.DONE, message, generation=instance.generation)

    def end_unload_jobs(self, instance: Instance, freed_bytes: int) -> None:
        jobs, instance.unload_jobs = instance.unload_jobs, []
        for job in jobs:
            self.settle(job, instance, freed_bytes)

    def settle(self, job: Job, instance: Instance, freed_bytes: int, *, left_out: str = "") -> None:
        """One model of an unload job is settled: gone, or still there for the reason that ``left_out`` gives."""
        job.remaining.discard(instance.model.name)
        if left_out:
            job.left_out[instance.model.name] = left_out
        else:
            job.unloaded[instance.model.name] = freed_bytes
        self.end_if_settled(job)

    def end_if_settled(self, job: Job) -> None:
        """An unload ends when each of its models is gone or known to stay."""
        if job.remaining:
            return
        if job.unloaded:
            text = f"unloaded {plural(len(job.unloaded), 'model')}, freed {describe(sum(job.unloaded.values()))}"
        else:
            text = "" if job.left_out else "nothing loaded"
        said = (text, *job.left_out.values(), *no_longer_wanted(job.forgiven, job.stay_away))
        result = JobResult.TIMEOUT if job.timed_out and not job.unloaded else JobResult.DONE
        unload = events.UnloadResult(job.unloaded, job.left_out, tuple(job.forgiven), tuple(job.stay_away))
        self.end_job(job, result, "; ".join(filter(None, said)), unload=unload)
