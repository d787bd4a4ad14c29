"""The one place that decides: which engine starts, waits, goes. ``handle(event, now)`` changes its state and returns
actions.

It never awaits, logs or asks the time; whoever calls it carries the actions out and feeds the answers back as events.
Memory is admitted only against a look at the devices that was begun after the wish (``Sampled``), and an engine that
has
gone gives its memory back when a later look shows it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import assert_never

from gpud.core import admission, budget, events, eviction
from gpud.core.budget import describe
from gpud.core.errors import BackendFailed, Busy, GpudError, NoSuchJob, NoSuchModel, NotLoaded, ShuttingDown
from gpud.core.events import Action, AskBusy, Kind, Level, Notice
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    GpuSample,
    GpuStatus,
    HoldStatus,
    JobKind,
    JobResult,
    JobStatus,
    Limits,
    Model,
    ModelStatus,
    State,
)
from gpud.core.instance import Failure, Instance, Job
from gpud.core.lifecycle import Trigger
from gpud.core.returning import Returning

# How long after "I am busy" an engine is left in peace: llama-server starves its own checks when asked faster (0.5 Hz).
BUSY_AGAIN_S = 2.0
# How soon to look again for memory that an ended engine gives back while somebody waits for it.
MEMORY_LOOK_S = 0.02
# The same when nobody waits: it is only for the books.
MEMORY_LOOK_IDLE_S = 0.25


class Scheduler:
    """Owns every instance, job, hold and the last look at the devices."""

    def __init__(self, models: Mapping[str, Model], limits: Limits) -> None:
        self._instances = {name: Instance(model) for name, model in models.items()}
        self._limits = limits
        self._holds: dict[int, HoldStatus] = {}
        self._samples: tuple[GpuSample, ...] = ()
        self._own: Mapping[str, frozenset[int]] = {}
        self._returning = Returning()
        self._budget_override = 0
        self._idle_override: float | None = None
        self._sequence = 0
        self._sample_pending = False
        self._sample_again = False
        self._look = False
        self._measuring: frozenset[str] = frozenset()
        self._gpus_held = False
        self._closing = False
        self._finished = False
        self._now = 0.0
        self._out: list[Action] = []

    # The way in ------------------------------------------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> tuple[Action, ...]:
        """Take one event. A wish that cannot be granted is raised as GpudError and changes nothing."""
        self._now = now
        self._out = []
        match event:
            case events.LoadAsked():
                self._load_asked(event)
            case events.UnloadAsked():
                self._unload_asked(event)
            case events.CancelAsked(job):
                self._cancel_asked(job)
            case events.HoldAsked():
                self._hold_asked(event)
            case events.HoldDropped(cookie, reason):
                self._hold_dropped(cookie, reason)
            case events.UseBegan(name):
                self._use_began(name)
            case events.UseEnded(name):
                self._use_ended(name)
            case events.Progressed():
                self._progressed(event)
            case events.BecameReady():
                self._became_ready(event)
            case events.LoadEnded():
                self._load_ended(event)
            case events.EngineGone():
                self._engine_gone(event)
            case events.BusyAnswered():
                self._busy_answered(event)
            case events.KillBegan(name, generation):
                self._kill_began(name, generation)
            case events.Adopted():
                self._adopted(event)
            case events.Sampled():
                self._sampled(event)
            case events.TimePassed():
                self._time_passed()
            case events.Reconfigured():
                self._reconfigured(event)
            case events.LookAsked():
                self._sample()
            case events.BudgetSet(budget_bytes):
                self._budget_override = budget_bytes
                self._look = True
                self._touch()
            case events.IdleTimeoutSet(idle_timeout_s):
                self._idle_override = idle_timeout_s
                for instance in self._instances.values():
                    instance.idle_timeout_s = idle_timeout_s
                self._touch()
            case events.ShutdownAsked():
                self._shutdown_asked()
            case _:
                assert_never(event)
        self._pump()
        return tuple(self._out)

    def next_deadline(self) -> float | None:
        """When ``TimePassed`` is wanted next; None while nothing waits for the time."""
        deadlines: list[float] = []
        for instance in self._instances.values():
            if instance.state is State.READY and not instance.asking:
                at = instance.unload_at(held=self._held(instance, "unload"))
                if at is not None:
                    deadlines.append(max(at, instance.busy_until_s))
            elif instance.state is State.BACKOFF and instance.retry_at_s is not None:
                if not (instance.waiting and instance.retry_at_s <= self._now):
                    deadlines.append(instance.retry_at_s)
            elif instance.state is State.DRAINING and instance.drain_until_s is not None:
                deadlines.append(instance.drain_until_s)
        return min(deadlines, default=None)

    # What can be seen ------------------------------------------------------------------------------------------------

    def model_statuses(self) -> tuple[ModelStatus, ...]:
        statuses = []
        for instance in self._instances.values():
            holds = sum(1 for hold in self._holds.values() if hold.model == instance.model.name)
            statuses.append(instance.status(holds, held=self._held(instance, "unload")))
        return tuple(statuses)

    def gpu_statuses(self) -> tuple[GpuStatus, ...]:
        charges = [i.charge() for i in self._with_engine()]
        pids = frozenset[int]().union(*self._own.values()) if self._own else frozenset[int]()
        return tuple(
            GpuStatus(
                sample=sample,
                budget_bytes=account.capacity_bytes,
                committed_bytes=account.committed_bytes,
                reserved_bytes=account.unseen_bytes,
                available_bytes=account.available_bytes,
                foreign_bytes=budget.foreign(sample, pids),
            )
            for sample in self._samples
            for account in (self._account(sample, charges),)
        )

    def job_statuses(self) -> tuple[JobStatus, ...]:
        seen: dict[int, JobStatus] = {}
        for instance in self._instances.values():
            for job in (*instance.load_jobs, *instance.unload_jobs):
                stage = instance.waits_for if instance.waiting else instance.stage or str(instance.state)
                seen.setdefault(job.id, job.status(stage, instance.progress))
        return tuple(seen[job_id] for job_id in sorted(seen))

    def hold_statuses(self) -> tuple[HoldStatus, ...]:
        return tuple(self._holds.values())

    def state_of(self, name: str) -> State | None:
        instance = self._instances.get(name)
        return None if instance is None else instance.state

    def held_by_others(self, name: str, owner: str) -> bool:
        return any(hold.caller.owner != owner and hold.model == name for hold in self._holds.values())

    def pids_of(self, name: str) -> frozenset[int]:
        """The model's processes as of the last look at the devices."""
        return self._own.get(name, frozenset())

    # Loading ---------------------------------------------------------------------------------------------------------

    def _load_asked(self, event: events.LoadAsked) -> None:
        """
        1. gpud is ending: refused.
        2. It failed too often: refused until somebody clears it.
        3. It is loaded or loading with another context: refused.
        4. It is ready: done at once.
        5. It is loading: the wish joins.
        6. Else it stands in the queue: until it has gone completely if it is going, until its back-off is over, and
           until a look at the devices says yes.
        """
        if self._closing:
            raise ShuttingDown(f'cannot load "{event.model}": gpud is shutting down')
        instance = self._find(event.model)
        if instance.removed:
            raise NoSuchModel(f'cannot load "{event.model}": it is no longer configured and is being unloaded')
        if instance.state is State.FAILED and instance.attempts >= self._limits.backoff_attempts:
            failure = instance.failure or Failure("it failed")
            raise BackendFailed(
                f'cannot load "{event.model}": {instance.attempts} attempts have failed, the last: {failure.message}',
                hint=f"{failure.hint or 'repair it'}; then `gpudctl unload {event.model}` clears the count",
                tail=failure.tail,
            )
        context = event.options.context
        if instance.state in (State.LOADING, State.READY):
            current = instance.launchable().settings.context
            if context is not None and context != current:
                raise Busy(
                    f'"{event.model}" is {instance.state} with a context of {current}, not {context}',
                    hint="unload it first",
                )
        if event.options.idle_timeout_s is not None:
            instance.idle_timeout_s = event.options.idle_timeout_s
        job = Job(event.job, JobKind.LOAD, event.model, event.caller, self._now, evict=event.options.evict)
        if instance.state is State.READY:
            instance.last_used_s = self._now
            self._end_job(job, JobResult.DONE, f'"{event.model}" is already loaded')
            return
        instance.load_jobs.append(job)
        self._touch()
        if instance.state is State.LOADING:
            return
        if context is not None or not instance.waiting:
            instance.context = context
        self._enqueue(instance)

    def _enqueue(self, instance: Instance) -> None:
        if not instance.waiting:
            self._sequence += 1
            instance.waiting_since = self._sequence
        if instance.state is State.BACKOFF and instance.retry_at_s is not None:
            instance.waits_for = f"backing off after {instance.attempts} failed attempts"
        elif instance.state in (State.DRAINING, State.STOPPING, State.KILLING):
            instance.waits_for = "waiting until it is unloaded"
        else:
            instance.waits_for = "waiting for a look at the devices"
        self._look = True

    def _launch(self, instance: Instance, granted: admission.Granted, need_bytes: int) -> None:
        restarted = instance.wanted or instance.attempts > 0
        instance.waiting_since = 0
        instance.waits_for = ""
        instance.generation += 1
        instance.device = granted.device
        instance.need_bytes = need_bytes
        instance.used_bytes = None
        instance.settled = False
        instance.stale = False
        instance.launched_s = self._now
        instance.ready_since_s = None
        instance.retry_at_s = None
        instance.failure = None
        instance.stage, instance.progress = "starting", None
        instance.restarts += restarted
        reason = "crash" if instance.wanted else "user"
        self._move(instance, Trigger.LAUNCH, reason)
        self._tell(
            Kind.LOAD_STARTED,
            f'Loading "{instance.model.name}" with {instance.model.engine} on {self._device_name(granted.device)}, '
            f"{describe(need_bytes)} reserved",
            instance,
            device=granted.device,
            need_bytes=need_bytes,
        )
        self._gpus_held = True
        self._out.append(
            events.Launch(instance.launchable(), instance.generation, granted.device, granted.vendor, need_bytes)
        )

    def _progressed(self, event: events.Progressed) -> None:
        instance = self._current(event.model, event.generation)
        if instance is not None and instance.state is State.LOADING:
            instance.stage, instance.progress = event.stage, event.fraction
            self._touch()

    def _became_ready(self, event: events.BecameReady) -> None:
        instance = self._current(event.model, event.generation)
        if instance is None or instance.state is not State.LOADING:
            return
        instance.ready_since_s = instance.last_used_s = self._now
        instance.load_seconds = self._now - instance.launched_s
        instance.stage, instance.progress = "", None
        instance.wanted = False
        self._move(instance, Trigger.READY, instance.reason)
        text = f"ready after {instance.load_seconds:.2f} s"
        self._tell(
            Kind.MODEL_LOADED,
            f'"{event.model}" is {text} on {self._device_name(instance.device)}',
            instance,
            device=instance.device,
            load_seconds=round(instance.load_seconds, 3),
        )
        self._end_load_jobs(instance, JobResult.DONE, f'"{event.model}" is {text}')
        self._sample()

    def _load_ended(self, event: events.LoadEnded) -> None:
        """A load failed, or the cancelation that was asked for is complete."""
        instance = self._current(event.model, event.generation)
        if instance is None:
            return
        if instance.state in (State.STOPPING, State.KILLING):
            self._gone(instance, "canceled while it was loading")
            return
        if instance.state is not State.LOADING:
            return
        if not event.error:
            self._move(instance, Trigger.CANCEL, "user")
            self._gone(instance, "canceled while it was loading")
            return
        instance.failure = Failure(event.error, event.hint, event.tail)
        self._tell(
            Kind.LOAD_FAILED,
            f'Loading "{event.model}" failed: {event.error}',
            instance,
            level=Level.ERROR,
            detail=(*((f"What to do: {event.hint}",) if event.hint else ()), *event.tail),
            error=event.kind or "failed",
        )
        if event.preflight:
            self._move(instance, Trigger.GIVE_UP, "config")
            instance.wanted = False
        else:
            self._crashed(instance, again=instance.wanted)
        text = f"{event.error}; {event.hint}" if event.hint else event.error
        self._end_load_jobs(instance, JobResult.FAILED, text)
        self._look = True

    def _crashed(self, instance: Instance, *, again: bool) -> None:
        """Back off, or give up after too many failures in a row. ``again``: it comes back by itself."""
        instance.attempts = instance.crash_count(self._now, self._limits)
        instance.ready_since_s = None
        instance.settled = False
        if instance.attempts >= self._limits.backoff_attempts:
            instance.wanted = False
            instance.retry_at_s = None
            self._move(instance, Trigger.GIVE_UP, "crash")
            failure = instance.failure or Failure("it failed")
            self._tell(
                Kind.ENGINE_GIVEN_UP,
                f'"{instance.model.name}" has failed {instance.attempts} times in a row and is not tried again: '
                f"{failure.message}",
                instance,
                level=Level.ERROR,
                detail=(
                    (
                        f"What to do: {failure.hint or 'read the lines below'}; "
                        f"then `gpudctl unload {instance.model.name}` clears the count"
                    ),
                    *failure.tail,
                ),
                attempts=instance.attempts,
            )
            return
        delay_s = min(self._limits.backoff_first_s * 2 ** (instance.attempts - 1), self._limits.backoff_max_s)
        instance.wanted = again
        instance.retry_at_s = self._now + delay_s
        self._move(instance, Trigger.CRASH, "crash")

    # Unloading -------------------------------------------------------------------------------------------------------

    def _unload_asked(self, event: events.UnloadAsked) -> None:
        job = Job(event.job, JobKind.UNLOAD, event.model, event.caller, self._now)
        if event.model:
            instance = self._find(event.model)
            if instance.state is State.COLD and not instance.waiting:
                raise NotLoaded(f'"{event.model}" is not loaded')
            if not event.others and self.held_by_others(event.model, event.caller.owner):
                raise Busy(self._held_text(instance, event.caller), hint="ask them to release it, or use force")
            job.remaining = {event.model}
            self._unload(instance, job, event)
            return
        chosen = [i for i in self._instances.values() if i.state.has_engine() or i.waiting]
        for instance in list(chosen):
            if not event.others and self.held_by_others(instance.model.name, event.caller.owner):
                job.left_out.append(self._held_text(instance, event.caller))
                chosen.remove(instance)
        job.remaining = {instance.model.name for instance in chosen}
        if not chosen:
            self._end_job(job, JobResult.DONE, self._unloaded_text(job))
            return
        for instance in chosen:
            self._unload(instance, job, event)

    def _unload(self, instance: Instance, job: Job, event: events.UnloadAsked) -> None:
        """
        1. It only waits: its loads are called off, done.
        2. It backs off or has failed: the count is cleared, done.
        3. It is loading: canceled at once.
        4. It is ready: drained, or stopped at once with force.
        5. It is going already: the wish joins, and hurries it with force.
        """
        by = event.caller.label or event.caller.owner
        instance.wanted = False
        if instance.waiting:
            instance.waiting_since = 0
            instance.waits_for = ""
        self._end_load_jobs(instance, JobResult.SUPERSEDED, f"unloaded by {by} before it was ready")
        if not instance.state.has_engine():
            if instance.state is not State.COLD:
                self._forgive(instance, "user")
            self._done_with(job, instance, freed_bytes=0)
            return
        instance.unload_jobs.append(job)
        instance.force = instance.force or event.force
        if instance.state is State.LOADING:
            self._cancel_launch(instance, "user", f"unloaded by {by} while it was loading")
        elif instance.state is State.READY:
            self._drain(instance, "user", instance.model.stop.drain_s)
        elif instance.state is State.DRAINING:
            instance.draining_for = "user" if instance.draining_for != "shutdown" else "shutdown"
            if event.force:
                self._drained(instance)
        self._touch()

    def _cancel_launch(self, instance: Instance, reason: str, text: str) -> None:
        self._move(instance, Trigger.CANCEL, reason)
        self._tell(Kind.LOAD_CANCELED, f'Loading "{instance.model.name}" is canceled: {text}', instance)
        self._out.append(events.CancelLaunch(instance.model.name, instance.generation))

    def _drain(self, instance: Instance, why: str, bound_s: float | None) -> None:
        """No new request from now on; stopped once the running ones are through."""
        instance.draining_for = why
        instance.drain_until_s = None if bound_s is None else self._now + bound_s
        self._move(instance, Trigger.DRAIN, {"evict": "budget"}.get(why, why))
        if instance.force:
            self._drained(instance)
        elif not instance.in_flight:
            self._ask_busy(instance)

    def _drained(self, instance: Instance) -> None:
        instance.drain_until_s = None
        self._move(instance, Trigger.DRAINED, instance.reason)
        self._out.append(events.Stop(instance.model.name, instance.generation))

    def _resume(self, instance: Instance) -> None:
        """It is needed after all: back to work."""
        instance.draining_for = ""
        instance.drain_until_s = None
        instance.force = False
        instance.last_used_s = self._now
        self._move(instance, Trigger.RESUME, "busy")
        if instance.waiting:
            instance.waiting_since = 0
            self._end_load_jobs(instance, JobResult.DONE, f'"{instance.model.name}" is still loaded')
        self._look = True

    def _kill_began(self, name: str, generation: int) -> None:
        instance = self._current(name, generation)
        if instance is None or instance.state is not State.STOPPING:
            return
        self._move(instance, Trigger.GRACE_OVER, instance.reason)
        times = instance.model.stop
        self._tell(
            Kind.ENGINE_KILLED,
            f'The engine of "{name}" did not end within {times.term_s + times.second_term_s:g} s of being asked twice '
            "and is killed",
            instance,
            level=Level.WARNING,
        )

    def _engine_gone(self, event: events.EngineGone) -> None:
        """
        1. It was going: it is cold now.
        2. It was ready and ended with status 0: somebody else stopped it on purpose, it is cold now.
        3. It was ready and crashed: back-off, and it comes back by itself.
        """
        instance = self._current(event.model, event.generation)
        if instance is None or not instance.state.has_engine():
            return
        if instance.state is not State.READY:
            self._gone(instance, _why(instance))
            return
        if event.exit.code == 0:
            instance.in_flight = 0
            self._gone(instance, "ended from outside with status 0")
            return
        text = f"the engine {event.exit.describe()}"
        if instance.in_flight:
            text += f" with {instance.in_flight} requests in flight"
        instance.failure = Failure(text, event.hint, event.exit.tail)
        self._expect_back(instance)
        self._tell(
            Kind.ENGINE_CRASHED,
            f'"{event.model}": {text} (process {event.exit.pid})',
            instance,
            level=Level.ERROR,
            detail=(*((f"What to do: {event.hint}",) if event.hint else ()), *event.exit.tail),
            pid=event.exit.pid,
            exit_code="unknown" if event.exit.code is None else event.exit.code,
        )
        instance.in_flight = 0
        instance.asking = False
        if instance.stale:
            instance.stale = False
        self._crashed(instance, again=not instance.removed)
        self._end_unload_jobs(instance, 0)
        self._drop_if_removed(instance)
        self._sample()
        self._look = True

    def _gone(self, instance: Instance, why: str) -> None:
        """Its engine is no more. What it held counts as free when a sample shows it."""
        freed_bytes = instance.need_bytes if instance.used_bytes is None else instance.used_bytes
        self._expect_back(instance)
        was_loaded = instance.ready_since_s is not None
        self._move(instance, Trigger.GONE, instance.reason)
        if was_loaded:
            self._tell(
                Kind.MODEL_UNLOADED,
                f'"{instance.model.name}" is unloaded, {describe(freed_bytes)} given back: {why}',
                instance,
                freed_bytes=freed_bytes,
                reason=instance.reason,
            )
        instance.device = ""
        instance.context = None
        instance.need_bytes = 0
        instance.used_bytes = None
        instance.settled = False
        instance.ready_since_s = None
        instance.stage, instance.progress = "", None
        instance.draining_for = ""
        instance.drain_until_s = None
        instance.idle_timeout_s = self._idle_override
        instance.force = instance.stale = instance.asking = False
        instance.attempts = 0
        instance.in_flight = 0
        self._end_unload_jobs(instance, freed_bytes if was_loaded else 0)
        if instance.waiting:
            self._enqueue(instance)
        self._drop_if_removed(instance)
        self._sample()
        self._look = True

    def _expect_back(self, instance: Instance) -> None:
        if instance.device and instance.device != HOST and instance.ready_since_s is not None:
            sample = self._sample_of(instance.device)
            self._returning.expect(
                instance.device,
                instance.charge().bytes,
                None if sample is None else sample.free_bytes,
                self._now + self._limits.memory_wait_s,
            )

    def _forgive(self, instance: Instance, reason: str) -> None:
        instance.attempts = 0
        instance.retry_at_s = None
        instance.failure = None
        instance.wanted = False
        self._move(instance, Trigger.FORGIVEN, reason)

    def _drop_if_removed(self, instance: Instance) -> None:
        if instance.removed and not instance.state.has_engine():
            self._instances.pop(instance.model.name, None)

    # Busy or not -----------------------------------------------------------------------------------------------------

    def _use_began(self, name: str) -> None:
        instance = self._find(name)
        if instance.state is not State.READY:
            raise NotLoaded(f'"{name}" is {instance.state}, not ready')
        instance.in_flight += 1
        instance.last_used_s = self._now
        self._touch()

    def _use_ended(self, name: str) -> None:
        instance = self._instances.get(name)
        if instance is None or instance.in_flight == 0:
            return
        instance.in_flight -= 1
        instance.last_used_s = self._now
        self._touch()
        if instance.in_flight:
            return
        if instance.state is State.DRAINING:
            self._ask_busy(instance)
        elif instance.state is State.READY and instance.stale:
            self._drain(instance, "config", instance.model.stop.drain_s)

    def _ask_busy(self, instance: Instance, delay_s: float = 0.0) -> None:
        if not instance.asking:
            instance.asking = True
            self._out.append(AskBusy(instance.model.name, instance.generation, delay_s))

    def _busy_answered(self, event: events.BusyAnswered) -> None:
        """The engine's own word, asked once before each stop: the in-flight count knows only what went through gpud."""
        instance = self._current(event.model, event.generation)
        if instance is None:
            return
        instance.asking = False
        busy = bool(event.busy) or instance.in_flight > 0
        if busy:
            instance.last_used_s = self._now
            instance.busy_until_s = self._now + BUSY_AGAIN_S
        if instance.state is State.DRAINING:
            if instance.draining_for == "evict" and busy:
                self._resume(instance)
            elif instance.in_flight:
                return
            elif busy:
                self._ask_busy(instance, BUSY_AGAIN_S)
            else:
                self._drained(instance)
        elif instance.state is State.READY and not busy:
            self._idle(instance)

    def _idle(self, instance: Instance) -> None:
        at = instance.unload_at(held=self._held(instance, "unload"))
        if at is None or at > self._now:
            return
        idle_s = self._now - instance.idle_since()
        self._tell(
            Kind.IDLE,
            f'"{instance.model.name}" has been idle for {idle_s:.0f} s and is unloaded',
            instance,
            idle_seconds=round(idle_s),
        )
        instance.draining_for = "idle"
        self._move(instance, Trigger.DRAIN, "idle")
        self._drained(instance)

    # Time ------------------------------------------------------------------------------------------------------------

    def _time_passed(self) -> None:
        for instance in list(self._instances.values()):
            if instance.state is State.READY and not instance.asking:
                at = instance.unload_at(held=self._held(instance, "unload"))
                if at is not None and at <= self._now and instance.busy_until_s <= self._now:
                    self._ask_busy(instance)
            elif instance.state is State.BACKOFF and (instance.retry_at_s or 0.0) <= self._now:
                if instance.wanted:
                    self._enqueue(instance)
                elif not instance.waiting:
                    attempts, failure = instance.attempts, instance.failure
                    self._forgive(instance, "crash")
                    # Nobody waits for it. The next wish is tried at once, but the failures still count.
                    instance.attempts, instance.failure = attempts, failure
                self._look = True
            elif instance.state is State.DRAINING and (instance.drain_until_s or self._now + 1) <= self._now:
                self._drain_over(instance)

    def _drain_over(self, instance: Instance) -> None:
        """The bound of a drain has come: who asked learns that it is still busy; at shutdown it is stopped all the
        same.
        """
        name, bound_s = instance.model.name, instance.model.stop.drain_s
        busy = f"{instance.in_flight} requests in flight" if instance.in_flight else "its engine says that it is busy"
        if instance.draining_for == "shutdown":
            self._tell(
                Kind.STILL_BUSY,
                f'"{name}" is still busy ({busy}) after {self._limits.shutdown_drain_s:g} s and is stopped: '
                "gpud is shutting down",
                instance,
                level=Level.WARNING,
            )
            self._drained(instance)
            return
        text = f'"{name}" is still busy after {bound_s:g} s ({busy}) and stays loaded'
        self._tell(Kind.STILL_BUSY, text, instance, level=Level.WARNING)
        for job in list(instance.unload_jobs):
            instance.unload_jobs.remove(job)
            self._done_with(job, instance, freed_bytes=None, left_out=f"{text}; unload it with force")
        self._resume(instance)

    # Memory ----------------------------------------------------------------------------------------------------------

    def _sampled(self, event: events.Sampled) -> None:
        self._sample_pending = False
        self._report_health(event.gpus)
        self._samples = event.gpus
        self._own = event.own
        self._measure()
        self._returning.seen(event.gpus, self._now)
        self._touch()
        self._admit(event)
        if self._sample_again:
            self._sample_again = False
            self._sample()
        elif self._returning.pending():
            someone = any(instance.waiting for instance in self._instances.values())
            self._sample(MEMORY_LOOK_S if someone else MEMORY_LOOK_IDLE_S)

    def _measure(self) -> None:
        """Set what each engine is measured to hold; the first time after it became ready, the load has settled."""
        for instance in self._instances.values():
            if instance.state not in (State.READY, State.DRAINING):
                continue
            sample = self._sample_of(instance.device)
            name = instance.model.name
            if sample is None or not (instance.settled or name in self._measuring):
                continue
            used_bytes = budget.measured(sample, self._own.get(name, frozenset()))
            if used_bytes is not None:
                instance.used_bytes = used_bytes
            if instance.settled:
                continue
            instance.settled = True
            if used_bytes is None:
                continue
            if used_bytes > instance.need_bytes:
                self._tell(
                    Kind.OVER_ESTIMATE,
                    f'"{name}" holds {describe(used_bytes)}, more than the {describe(instance.need_bytes)} reserved '
                    "for it; the next load reserves what was measured",
                    instance,
                    level=Level.WARNING,
                    used_bytes=used_bytes,
                    need_bytes=instance.need_bytes,
                )
            if not sample.is_host or used_bytes > instance.need_bytes:
                self._out.append(events.Learn(name, used_bytes))

    def _admit(self, event: events.Sampled) -> None:
        """Grant the queue in order; whoever waits for memory on a device keeps those behind off that device."""
        blocked: set[str] = set()
        for instance in self._queue():
            name = instance.model.name
            if name in event.unfit:
                self._refuse_unfit(instance, event.unfit[name])
                continue
            if name not in event.sizes:
                self._look = True
                continue
            need_bytes = event.sizes[name]
            may_evict = instance.wanted or any(job.evict for job in instance.load_jobs)
            verdict = admission.decide(
                instance.launchable(), need_bytes, self._devices(), may_evict=may_evict, taken=blocked
            )
            if isinstance(verdict, admission.Granted):
                self._launch(instance, verdict, need_bytes)
            elif isinstance(verdict, admission.Waits):
                instance.waits_for = verdict.text
                blocked.add(verdict.device)
            elif isinstance(verdict, admission.Evicts):
                instance.waits_for = f"waiting until {_names(verdict.victims)} is unloaded: {verdict.text}"
                blocked.add(verdict.device)
                for victim in verdict.victims:
                    self._evict(self._instances[victim], instance, verdict.text)
            else:
                self._refuse(instance, verdict.error)

    def _evict(self, victim: Instance, wanting: Instance, text: str) -> None:
        idle_s = self._now - victim.idle_since()
        self._tell(
            Kind.EVICTED,
            f'"{victim.model.name}", idle for {idle_s:.0f} s and holding {describe(victim.charge().bytes)}, makes room '
            f'for "{wanting.model.name}" ({text})',
            victim,
            for_model=wanting.model.name,
            freed_bytes=victim.charge().bytes,
        )
        self._drain(victim, "evict", victim.model.stop.drain_s)

    def _refuse(self, instance: Instance, error: GpudError) -> None:
        self._tell(
            Kind.LOAD_REFUSED,
            error.message[:1].upper() + error.message[1:],
            instance,
            level=Level.WARNING,
            detail=(f"What to do: {error.hint}",) if error.hint else (),
            error=error.code,
        )
        instance.waiting_since = 0
        instance.waits_for = ""
        instance.context = None
        if instance.state is State.BACKOFF:
            self._forgive(instance, "budget")
        instance.failure = Failure(error.message, error.hint)
        instance.wanted = False
        self._end_load_jobs(instance, JobResult.FAILED, error.text)

    def _refuse_unfit(self, instance: Instance, unfit: events.Unfit) -> None:
        instance.waiting_since = 0
        instance.waits_for = ""
        instance.wanted = False
        instance.context = None
        instance.failure = Failure(unfit.error, unfit.hint)
        if instance.state is not State.FAILED:
            self._move(instance, Trigger.GIVE_UP, "config")
        self._tell(
            Kind.LOAD_FAILED,
            f'Loading "{instance.model.name}" failed: {unfit.error}',
            instance,
            level=Level.ERROR,
            detail=(f"What to do: {unfit.hint}",) if unfit.hint else (),
            error=unfit.kind or "failed",
        )
        self._end_load_jobs(instance, JobResult.FAILED, f"{unfit.error}; {unfit.hint}" if unfit.hint else unfit.error)

    def _devices(self) -> Sequence[admission.Device]:
        charges = [instance.charge() for instance in self._with_engine()]
        devices = []
        for sample in self._samples:
            going = (State.DRAINING, State.STOPPING, State.KILLING)
            coming = sum(i.charge().bytes for i in self._with_engine() if i.device == sample.uuid and i.state in going)
            movable = tuple(
                eviction.Candidate(i.model.name, i.idle_since(), i.charge().bytes, int(i.model.priority))
                for i in self._with_engine()
                if i.device == sample.uuid and self._movable(i)
            )
            account = self._account(sample, charges)
            devices.append(admission.Device(sample, account, coming + self._returning.bytes(sample.uuid), movable))
        return devices

    def _movable(self, instance: Instance) -> bool:
        return (
            instance.state is State.READY
            and not instance.in_flight
            and not instance.model.pinned
            and not self._held(instance, "evict")
            and instance.busy_until_s <= self._now
        )

    def _account(self, sample: GpuSample, charges: Iterable[budget.Charge]) -> budget.Account:
        override = self._budget_override if self._overridden(sample) else 0
        return budget.account(sample, self._limits_of(sample), charges, override)

    def _overridden(self, sample: GpuSample) -> bool:
        """A budget that was set at run time is for the GPUs, or for the host where there is none."""
        return not sample.is_host or all(other.is_host for other in self._samples)

    def _limits_of(self, sample: GpuSample) -> BudgetLimits:
        return self._limits.host if sample.is_host else self._limits.gpu

    def _report_health(self, samples: Sequence[GpuSample]) -> None:
        before = {sample.uuid: sample.health for sample in self._samples}
        for sample in samples:
            if sample.health and sample.health != before.get(sample.uuid):
                self._out.append(
                    Notice(
                        Kind.GPU_PROBLEM,
                        f"{sample.name}: {sample.health}",
                        level=Level.ERROR,
                        fields={"device": sample.uuid},
                    )
                )

    def _sample(self, delay_s: float = 0.0) -> None:
        if self._sample_pending:
            self._sample_again = self._sample_again or delay_s == 0.0
            return
        self._sample_pending = True
        self._measuring = frozenset(i.model.name for i in self._with_engine() if i.state is State.READY)
        check = tuple(instance.model.name for instance in self._queue())
        wake = bool(check) or any(True for _ in self._with_engine())
        self._out.append(events.Sample(wake, delay_s, check))

    # Holds -----------------------------------------------------------------------------------------------------------

    def _hold_asked(self, event: events.HoldAsked) -> None:
        if event.model:
            self._find(event.model)
        self._holds[event.cookie] = HoldStatus(
            event.cookie, event.model, event.caller, event.reason, event.application, event.what, self._now
        )
        self._touch()

    def _hold_dropped(self, cookie: int, reason: str) -> None:
        hold = self._holds.pop(cookie, None)
        if hold is None:
            return
        # The idle time begins anew: who held it has just finished with it.
        instance = self._instances.get(hold.model)
        if instance is not None and instance.state is State.READY:
            instance.last_used_s = self._now
        self._out.append(events.HoldEnded(cookie, hold.caller.owner, reason))
        self._touch()

    def _held(self, instance: Instance, what: str) -> bool:
        return any(h.model in ("", instance.model.name) and what in h.what for h in self._holds.values())

    def _held_text(self, instance: Instance, caller: Caller) -> str:
        holders = sorted(
            h.application or h.caller.label or h.caller.owner
            for h in self._holds.values()
            if h.model == instance.model.name and h.caller.owner != caller.owner
        )
        return f'"{instance.model.name}" is held by {", ".join(holders)}'

    # Configuration and the end ---------------------------------------------------------------------------------------

    def _adopted(self, event: events.Adopted) -> None:
        instance = self._find(event.model)
        instance.generation = event.generation
        instance.device = event.device
        instance.need_bytes = event.reserved_bytes
        instance.context = event.context
        instance.settled = False
        instance.ready_since_s = instance.last_used_s = self._now
        instance.idle_timeout_s = self._idle_override
        self._move(instance, Trigger.ADOPT, "adopt")
        self._gpus_held = True
        self._tell(
            Kind.MODEL_ADOPTED,
            f'"{event.model}" was loaded by an earlier gpud and is taken over as it is',
            instance,
            device=event.device,
        )
        self._sample()
        if event.stale:
            instance.stale = True
            self._drain(instance, "config", instance.model.stop.drain_s)

    def _reconfigured(self, event: events.Reconfigured) -> None:
        """Unchanged models are not touched; what is changed or gone is unloaded as soon as it is not busy."""
        self._limits = event.limits
        self._budget_override = 0
        self._idle_override = None
        for name, instance in list(self._instances.items()):
            model = event.models.get(name)
            instance.idle_timeout_s = None
            if model is None:
                self._remove(instance)
                continue
            changed = name in event.changed or model.engine != instance.model.engine
            instance.model = model
            instance.removed = False
            if instance.state is State.FAILED or (instance.state is State.BACKOFF and changed):
                instance.waiting_since = 0
                self._forgive(instance, "config")
                self._end_load_jobs(instance, JobResult.CANCELED, "the configuration has changed")
            elif changed and instance.state is State.LOADING:
                # Those who wait for it get it as it is configured now.
                self._cancel_launch(instance, "config", "its configuration has changed")
                if instance.load_jobs:
                    self._enqueue(instance)
            elif changed and instance.state is State.READY:
                instance.stale = True
                if not instance.in_flight:
                    self._drain(instance, "config", model.stop.drain_s)
        for name, model in event.models.items():
            if name not in self._instances:
                self._instances[name] = Instance(model)
        self._look = True
        self._touch()

    def _remove(self, instance: Instance) -> None:
        instance.removed = True
        instance.stale = True
        instance.wanted = False
        instance.waiting_since = 0
        self._end_load_jobs(instance, JobResult.CANCELED, f'"{instance.model.name}" is no longer configured')
        if instance.state is State.LOADING:
            self._cancel_launch(instance, "config", "it is no longer configured")
        elif instance.state is State.READY and not instance.in_flight:
            self._drain(instance, "config", instance.model.stop.drain_s)
        self._drop_if_removed(instance)

    def _shutdown_asked(self) -> None:
        again = self._closing
        self._closing = True
        for instance in self._instances.values():
            instance.wanted = False
            instance.waiting_since = 0
            self._end_load_jobs(instance, JobResult.CANCELED, "gpud is shutting down")
            if instance.state is State.LOADING:
                self._cancel_launch(instance, "shutdown", "gpud is shutting down")
            elif instance.state is State.READY:
                instance.force = instance.force or again
                self._drain(instance, "shutdown", self._limits.shutdown_drain_s)
            elif instance.state is State.DRAINING:
                instance.draining_for = "shutdown"
                instance.drain_until_s = self._now + self._limits.shutdown_drain_s
                if again:
                    self._drained(instance)
            elif instance.state is State.STOPPING and again:
                self._out.append(events.Stop(instance.model.name, instance.generation, kill=True))

    # Bookkeeping -----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """After every event: look at the devices if somebody waits for that, let go of them if nobody does, end if
        all is over.
        """
        if self._look:
            self._look = False
            if self._queue():
                self._sample()
        engines = any(True for _ in self._with_engine())
        idle = not engines and not self._queue() and not self._sample_pending
        if idle and self._gpus_held and not self._returning.pending():
            self._gpus_held = False
            self._out.append(events.ReleaseGpus())
        if self._closing and not engines and not self._finished:
            self._finished = True
            self._out.append(events.Finish())

    def _queue(self) -> list[Instance]:
        """Those that may be admitted as soon as there is memory: higher priority first, then first come, first
        served.
        """
        ready = [
            i
            for i in self._instances.values()
            if i.waiting
            and (
                i.state in (State.COLD, State.FAILED)
                or (i.state is State.BACKOFF and (i.retry_at_s or 0.0) <= self._now)
            )
        ]
        return sorted(ready, key=lambda i: (-i.model.priority, i.waiting_since))

    def _with_engine(self) -> Iterable[Instance]:
        return (instance for instance in self._instances.values() if instance.state.has_engine())

    def _find(self, name: str) -> Instance:
        instance = self._instances.get(name)
        if instance is None:
            raise NoSuchModel(f'there is no model "{name}"', hint=_configured(self._instances))
        return instance

    def _current(self, name: str, generation: int) -> Instance | None:
        """The instance that an answer is about, or None when it is about an engine of the past."""
        instance = self._instances.get(name)
        return instance if instance is not None and instance.generation == generation else None

    def _sample_of(self, uuid: str) -> GpuSample | None:
        return next((sample for sample in self._samples if sample.uuid == uuid), None)

    def _device_name(self, uuid: str) -> str:
        sample = self._sample_of(uuid)
        return uuid if sample is None else sample.name

    def _move(self, instance: Instance, trigger: Trigger, reason: str) -> None:
        old = instance.move(trigger)
        instance.reason = reason
        self._out.append(events.ModelChanged(instance.model.name, old, instance.state, reason))

    def _touch(self) -> None:
        self._out.append(events.Touched())

    def _tell(
        self,
        kind: Kind,
        message: str,
        instance: Instance,
        *,
        level: Level = Level.INFO,
        detail: tuple[str, ...] = (),
        **fields: str | int | float,
    ) -> None:
        name, engine = instance.model.name, instance.model.engine
        self._out.append(Notice(kind, message, name, level, {"engine": engine, **fields}, detail))

    # Jobs ------------------------------------------------------------------------------------------------------------

    def _cancel_asked(self, job_id: int) -> None:
        found = False
        for instance in list(self._instances.values()):
            for jobs, give_up in (
                (instance.load_jobs, self._load_not_wanted),
                (instance.unload_jobs, self._unload_not_wanted),
            ):
                for job in [job for job in jobs if job.id == job_id]:
                    jobs.remove(job)
                    if not found:
                        self._end_job(job, JobResult.CANCELED, "canceled")
                    found = True
                    self._give_up(instance, jobs, give_up)
        if not found:
            raise NoSuchJob(f"there is no job {job_id}", hint="it may have ended already")

    def _give_up(self, instance: Instance, jobs: Sequence[Job], what: Callable[[Instance], None]) -> None:
        if not jobs:
            what(instance)

    def _load_not_wanted(self, instance: Instance) -> None:
        if instance.wanted:
            return
        if instance.waiting:
            instance.waiting_since = 0
            instance.waits_for = ""
        elif instance.state is State.LOADING:
            self._cancel_launch(instance, "user", "nobody waits for it any longer")

    def _unload_not_wanted(self, instance: Instance) -> None:
        if instance.state is State.DRAINING and instance.draining_for == "user":
            self._resume(instance)

    def _end_job(self, job: Job, result: JobResult, message: str) -> None:
        self._out.append(events.JobEnded(job.id, job.kind, job.model, result, message, job.caller))

    def _end_load_jobs(self, instance: Instance, result: JobResult, message: str) -> None:
        jobs, instance.load_jobs = instance.load_jobs, []
        for job in jobs:
            self._end_job(job, result, message)

    def _end_unload_jobs(self, instance: Instance, freed_bytes: int) -> None:
        jobs, instance.unload_jobs = instance.unload_jobs, []
        for job in jobs:
            self._done_with(job, instance, freed_bytes=freed_bytes)

    def _done_with(self, job: Job, instance: Instance, *, freed_bytes: int | None, left_out: str = "") -> None:
        """One model of an unload job is settled: gone (``freed_bytes``) or still there (``left_out``)."""
        job.remaining.discard(instance.model.name)
        if left_out:
            job.left_out.append(left_out)
        else:
            job.unloaded += 1
            job.freed_bytes += freed_bytes or 0
        if not job.remaining:
            result = JobResult.TIMEOUT if job.left_out and not job.unloaded else JobResult.DONE
            self._end_job(job, result, self._unloaded_text(job))

    def _unloaded_text(self, job: Job) -> str:
        if job.unloaded:
            models = "1 model" if job.unloaded == 1 else f"{job.unloaded} models"
            text = f"unloaded {models}, freed {describe(job.freed_bytes)}"
        else:
            text = "" if job.left_out else "nothing loaded"
        return "; ".join(part for part in (text, *job.left_out) if part)


def _why(instance: Instance) -> str:
    return {
        "user": "somebody asked for it",
        "evict": "its memory was needed",
        "idle": "it was idle",
        "config": "its configuration has changed",
        "shutdown": "gpud is shutting down",
    }.get(instance.draining_for, instance.reason)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _configured(instances: Mapping[str, Instance]) -> str:
    names = list(instances)
    if not names:
        return "no model is configured"
    shown = ", ".join(names[:10])
    return f"configured are {shown}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
