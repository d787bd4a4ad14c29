"""How a model comes: asked for, admitted, started, ready, or failed."""

from gpud.core import admission, events
from gpud.core.budget import describe
from gpud.core.errors import BackendFailed, Busy, GpudError, NoSuchModel, ShuttingDown
from gpud.core.events import Kind, Level
from gpud.core.facts import (
    JobKind,
    JobResult,
    State,
)
from gpud.core.instance import Failure, Instance, Job
from gpud.core.leaving import Leaving
from gpud.core.lifecycle import Trigger
from gpud.core.table import Table


class Loading:
    """Everything on the way from cold to ready."""

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving
        self._books = table.books
        self._out = table.out

    def load_asked(self, event: events.LoadAsked) -> None:
        """
        1. gpud is ending: refused.
        2. It failed too often: refused until somebody clears it.
        3. It is loaded or loading with another context: refused.
        4. It is ready: done at once.
        5. It is loading: the wish joins.
        6. Else it stands in the queue: until it has gone completely if it is going, until its back-off is over, and
           until a look at the devices says yes.
        """
        if self._table.closing:
            raise ShuttingDown(f'cannot load "{event.model}": gpud is shutting down')
        instance = self._table.find(event.model)
        if instance.removed:
            raise NoSuchModel(f'cannot load "{event.model}": it is no longer configured and is being unloaded')
        if instance.state is State.FAILED and instance.attempts >= self._table.limits.backoff_attempts:
            failure = instance.failure or Failure("it failed")
            raise BackendFailed(
                f'cannot load "{event.model}": {instance.attempts} attempts have failed, the last: {failure.message}',
                hint=f"{failure.hint or 'repair it'}; then `gpudctl reset {event.model}` clears the count",
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
        job = Job(
            event.job,
            JobKind.LOAD,
            event.model,
            event.caller,
            self._table.now,
            evict=event.options.evict,
            context=context,
            idle_timeout_s=event.options.idle_timeout_s,
        )
        if instance.state is State.READY:
            instance.last_used_s = self._table.now
            self._out.end_job(job, JobResult.DONE, f'"{event.model}" is already loaded')
            return
        instance.load_jobs.append(job)
        self._out.touch()
        if instance.state is not State.LOADING:
            self._table.enqueue(instance)

    def launch(self, instance: Instance, granted: admission.Granted, need_bytes: int) -> None:
        restarted = instance.wanted or instance.attempts > 0
        self.take_wishes(instance)
        instance.leave_queue()
        instance.generation += 1
        instance.device = granted.device
        instance.need_bytes = need_bytes
        instance.used_bytes = None
        instance.settled = False
        instance.stale = False
        instance.launched_s = self._table.now
        instance.ready_since_s = None
        instance.retry_at_s = None
        instance.failure = None
        instance.stage, instance.progress = "starting", None
        instance.restarts += restarted
        reason = "crash" if instance.wanted else "user"
        self._out.move(instance, Trigger.LAUNCH, reason)
        self._out.tell(
            Kind.LOAD_STARTED,
            f'Loading "{instance.model.name}" with {instance.model.engine} on '
            f"{self._books.device_name(granted.device)}, {describe(need_bytes)} reserved",
            instance,
            device=granted.device,
            need_bytes=need_bytes,
        )
        self._out.add(
            events.Launch(instance.launchable(), instance.generation, granted.device, granted.vendor, need_bytes)
        )

    def take_wishes(self, instance: Instance) -> None:
        """What those who wait asked of this one load, the latest first; an engine that comes back by itself is as it
        was.
        """
        instance.context = instance.wished_context
        if not instance.wanted:
            instance.idle_timeout_s = self._table.idle_override_s
        for job in instance.load_jobs:
            if job.idle_timeout_s is not None:
                instance.idle_timeout_s = job.idle_timeout_s

    def progressed(self, event: events.Progressed) -> None:
        instance = self._table.current(event.model, event.generation)
        if instance is not None and instance.state is State.LOADING:
            instance.stage, instance.progress = event.stage, event.fraction
            self._out.touch()

    def became_ready(self, event: events.BecameReady) -> None:
        instance = self._table.current(event.model, event.generation)
        if instance is None or instance.state is not State.LOADING:
            return
        instance.ready_since_s = instance.last_used_s = self._table.now
        instance.load_seconds = self._table.now - instance.launched_s
        instance.stage, instance.progress = "", None
        instance.wanted = False
        self._out.move(instance, Trigger.READY, instance.reason)
        text = f"ready after {instance.load_seconds:.2f} s"
        self._out.tell(
            Kind.MODEL_LOADED,
            f'"{event.model}" is {text} on {self._books.device_name(instance.device)}',
            instance,
            device=instance.device,
            load_seconds=round(instance.load_seconds, 3),
        )
        self._out.end_load_jobs(instance, JobResult.DONE, f'"{event.model}" is {text}')
        self._table.sample()

    def load_ended(self, event: events.LoadEnded) -> None:
        """A load failed, or the cancelation that was asked for is complete."""
        instance = self._table.current(event.model, event.generation)
        if instance is None:
            return
        if instance.state in (State.STOPPING, State.KILLING):
            self._leaving.gone(instance, "canceled while it was loading")
            return
        if instance.state is not State.LOADING:
            return
        if not event.error:
            self._out.move(instance, Trigger.CANCEL, "user")
            self._leaving.gone(instance, "canceled while it was loading")
            return
        instance.failure = Failure(event.error, event.hint, event.kind or "failed", event.tail)
        self._out.tell(
            Kind.LOAD_FAILED,
            f'Loading "{event.model}" failed: {event.error}',
            instance,
            level=Level.ERROR,
            hint=event.hint,
            tail=event.tail,
            error=event.kind or "failed",
        )
        if event.preflight:
            self._out.move(instance, Trigger.GIVE_UP, "config")
            instance.wanted = False
        else:
            self._leaving.crashed(instance, again=instance.wanted)
        text = f"{event.error}; {event.hint}" if event.hint else event.error
        self._out.end_load_jobs(instance, JobResult.FAILED, text)
        self._table.look = True

    def refuse(self, instance: Instance, error: GpudError) -> None:
        self._out.tell(
            Kind.LOAD_REFUSED,
            error.message[:1].upper() + error.message[1:],
            instance,
            level=Level.WARNING,
            hint=error.hint,
            error=error.code,
        )
        instance.leave_queue()
        if instance.state is State.BACKOFF:
            self._leaving.forgive(instance, "budget")
        instance.failure = Failure(error.message, error.hint, error.code)
        instance.wanted = False
        self._out.end_load_jobs(instance, JobResult.FAILED, error.text)

    def refuse_unfit(self, instance: Instance, unfit: events.Unfit) -> None:
        instance.leave_queue()
        instance.wanted = False
        instance.failure = Failure(unfit.error, unfit.hint, unfit.kind or "failed")
        if instance.state is not State.FAILED:
            self._out.move(instance, Trigger.GIVE_UP, "config")
        self._out.tell(
            Kind.LOAD_FAILED,
            f'Loading "{instance.model.name}" failed: {unfit.error}',
            instance,
            level=Level.ERROR,
            hint=unfit.hint,
            error=unfit.kind or "failed",
        )
        self._out.end_load_jobs(
            instance, JobResult.FAILED, f"{unfit.error}; {unfit.hint}" if unfit.hint else unfit.error
        )

    def adopted(self, event: events.Adopted) -> None:
        instance = self._table.find(event.model)
        instance.generation = event.generation
        instance.device = event.device
        instance.need_bytes = event.reserved_bytes
        instance.context = event.context
        instance.settled = False
        instance.ready_since_s = instance.last_used_s = self._table.now
        instance.idle_timeout_s = self._table.idle_override_s
        self._out.move(instance, Trigger.ADOPT, "adopt")
        self._out.tell(
            Kind.MODEL_ADOPTED,
            f'"{event.model}" was loaded by an earlier gpud and is taken over as it is',
            instance,
            device=event.device,
        )
        self._table.sample()
        if event.stale:
            instance.stale = True
            self._leaving.drain(instance, "config", instance.model.stop.drain_s)
