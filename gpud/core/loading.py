"""How a model comes: asked for, admitted, started, ready, or failed."""

from collections.abc import Sequence

from gpud.core import events
from gpud.core.budget import describe
from gpud.core.counts import plural
from gpud.core.engine_wish import check_served
from gpud.core.errors import BackendFailed, BudgetExceeded, Busy, GpudError, NoSuchModel, ShuttingDown
from gpud.core.events import Kind, Level
from gpud.core.facts import (
    HOST,
    JobKind,
    JobResult,
    State,
)
from gpud.core.instance import Failure, Instance, Job
from gpud.core.leaving import Leaving
from gpud.core.lifecycle import Trigger
from gpud.core.quote import Offer, Share, Source
from gpud.core.suspending import Sleeping
from gpud.core.table import Table
from gpud.core.verdict import Granted
from gpud.core.yielding import Yielding

OUT_OF_MEMORY = "oom"
"""How the kinds of failures begin that say so: see the engines' ``failures``."""

GROWTH_BEYOND_SEEN = 1.1
"""An engine that was ended while it grew would have grown on: it is promised so much more than it was seen with."""

GROWTH_WHEN_UNKNOWN = 1.25
"""The same for one that ended by itself for lack of memory: nobody knows how much it wanted."""

_SOURCES = {
    Source.MEASURED: "as measured before",
    Source.DECLARED: "as configured",
    Source.PROBE: "by its engine's own count",
    Source.FORMULA: "calculated from its file",
    Source.GUESS: "a guess from its size on disk",
}


class Loading:
    """Everything on the way from cold to ready."""

    def __init__(self, table: Table, leaving: Leaving, yielding: Yielding, sleeping: Sleeping) -> None:
        self._table = table
        self._leaving = leaving
        self._yielding = yielding
        self._sleeping = sleeping
        self._books = table.books
        self._out = table.out

    def load_asked(self, event: events.LoadAsked) -> None:
        """
        1. gpud is ending, the machine sleeps, or the GPUs are given away: refused.
        2. It failed too often: refused until somebody clears it.
        3. It is loaded or loading with another context: refused.
        4. It is ready: done at once.
        5. It is loading: the wish joins.
        6. Else it stands in the queue: until it has gone completely if it is going, until its back-off is over, and
           until a look at the devices says yes.
        """
        instance = self._may_be_asked(event)
        context = event.options.context
        if instance.state in (State.LOADING, State.READY) and event.options.idle_timeout_s is not None:
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
            priority=event.options.priority,
            until_s=self._table.wait_until(event.options.wait_s),
            hasty=event.options.wait_s == 0,
            use=event.options.use,
            engines=event.options.engines,
        )
        instance.usage.note(self._table.now)
        if not (instance.load_jobs or instance.wanted or instance.state is State.READY):
            self._begin_anew(instance)
        self._table.used(instance, event.caller.session)
        if instance.state is State.READY:
            instance.last_used_s = self._table.now
            self._out.serve(instance, job, f'"{event.model}" is already loaded', self._table.now)
            return
        instance.load_jobs.append(job)
        self._out.touch()
        if instance.state is not State.LOADING:
            self._table.enqueue(instance)

    def _begin_anew(self, instance: Instance) -> None:
        """Nobody has wished for it before: what became of earlier wishes counts no longer, nor who had them."""
        instance.outgrew, instance.growth = False, 1.0
        if not instance.state.has_engine():
            held_by = self._table.holds.of(instance.model.name)
            instance.users = {self._table.user_of(caller.session) for caller in held_by}

    def _may_be_asked(self, event: events.LoadAsked) -> Instance:
        """The model that is meant; raises what stands in the way of its load."""
        if self._table.closing:
            raise ShuttingDown(f'cannot load "{event.model}": gpud is shutting down')
        instance = self._table.find(event.model)
        if instance.removed:
            raise NoSuchModel(f'cannot load "{event.model}": it is no longer there and is being unloaded')
        if instance.state is not State.READY:
            self._sleeping.check(instance.model)
            self._yielding.check(instance.model)
        if instance.state is State.FAILED and instance.attempts >= self._table.limits.backoff_attempts:
            failure = instance.failure or Failure("it failed")
            raise BackendFailed(
                f'cannot load "{event.model}": {plural(instance.attempts, "attempt has", "attempts have")} failed, '
                f"the last: {failure.message}",
                hint=f"{failure.hint or 'repair it'}; then `gpudctl reset {event.model}` clears the count",
                tail=failure.tail,
            )
        context = event.options.context
        self._check_engines(instance, event.options.engines)
        if instance.state in (State.LOADING, State.READY):
            current = instance.launchable().settings.context
            if context is not None and context != current:
                raise Busy(
                    f'"{event.model}" is {instance.state} with a context of {current}, not {context}',
                    hint="unload it first",
                )
        return instance

    @staticmethod
    def _check_engines(instance: Instance, engines: tuple[str, ...]) -> None:
        """Raises what is in the way of having it by one of these engines."""
        if not engines:
            return
        name, wanted = instance.model.name, " or ".join(engines)
        check_served(instance.model, engines)
        if instance.state in (State.LOADING, State.READY):
            current = instance.launchable().engine
            if current not in engines:
                raise Busy(f'"{name}" is {instance.state} with {current}, not {wanted}', hint="unload it first")
        others = next((job.engines for job in instance.load_jobs if job.engines not in ((), engines)), ())
        if others and instance.state not in (State.LOADING, State.READY):
            raise Busy(
                f'cannot load "{name}" with {wanted}: somebody waits for it with {" or ".join(others)}',
                hint="ask again later, or leave the choice to gpud",
            )

    def launch(self, instance: Instance, granted: Granted) -> None:
        crashed = instance.wanted and instance.attempts > 0
        self.take_wishes(instance)
        waited_s = 0.0 if instance.ticket is None else self._table.now - instance.ticket.since_s
        instance.leave_queue()
        offer = granted.offer
        instance.generation += 1
        instance.offer = offer
        instance.shares = granted.shares
        instance.first_need_bytes = instance.need_bytes
        instance.before_bytes = self._books.used_by_all(instance)
        instance.for_request = any(job.use for job in instance.load_jobs)
        instance.launched_s = self._table.now
        instance.retry_at_s = None
        instance.failure = None
        instance.stage, instance.progress = "starting", None
        instance.restarts += crashed
        self._table.move(instance, Trigger.LAUNCH, "crash" if crashed else "user")
        text = (
            f'Loading "{instance.model.name}" with {offer.engine or instance.model.engine} on '
            f"{self._where(instance.shares)}, {describe(instance.need_bytes)} reserved ({_SOURCES[offer.source]})"
        )
        if offer.reduced:
            text += f", {offer.reduced}"
        if waited_s >= 1.0:
            text += f", after {waited_s:.0f} s in the queue"
        self._out.tell(
            Kind.LOAD_STARTED,
            text,
            instance,
            device=instance.device,
            need_bytes=instance.need_bytes,
            source=str(offer.source),
            reduced=offer.reduced,
            waited_seconds=round(waited_s, 3),
        )
        self._out.add(events.Launch(instance.launchable(), instance.generation, offer, granted.shares, granted.vendor))

    def _where(self, shares: Sequence[Share]) -> str:
        main = [share for share in shares if share.device != HOST] or shares
        return " and ".join(self._books.device_name(share.device) for share in main)

    def take_wishes(self, instance: Instance) -> None:
        """What those who wait asked of this one load, the latest first; an engine that comes back by itself is as it
        was.
        """
        instance.context, instance.engines = instance.wished_context, instance.wished_engines
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
            if instance is not None and instance.state in (State.STOPPING, State.KILLING):
                # It was ready in the moment in which it was told to give up.
                self._out.add(events.Stop(event.model, event.generation, kill=instance.state is State.KILLING))
            return
        instance.ready_since_s = instance.last_used_s = self._table.now
        instance.load_seconds = self._table.now - instance.launched_s
        instance.stage, instance.progress = "", None
        instance.reload_s = instance.load_seconds
        instance.wanted = False
        self._table.move(instance, Trigger.READY, instance.reason)
        text = f"ready after {instance.load_seconds:.2f} s"
        self._out.tell(
            Kind.MODEL_LOADED,
            f'"{event.model}" is {text} on {self._books.device_name(instance.device)}',
            instance,
            device=instance.device,
            load_seconds=round(instance.load_seconds, 3),
        )
        jobs, instance.load_jobs = instance.load_jobs, []
        for job in jobs:
            self._out.serve(instance, job, f'"{event.model}" is {text}', self._table.now)
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
            # Nobody here has asked for that: whoever waits for it must not do so for ever.
            self._out.end_load_jobs(instance, JobResult.CANCELED, f'the load of "{event.model}" was called off')
            self._table.move(instance, Trigger.CANCEL, "user")
            self._leaving.gone(instance, "canceled while it was loading")
            return
        if event.kind.startswith(OUT_OF_MEMORY) and self.again_with_more(instance, event.error):
            return
        self._books.expect_back(instance, self._table.now)
        if self._books.anything_back():
            self._table.sample()
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
            self._table.move(instance, Trigger.GIVE_UP, "config")
            instance.let_go()
            instance.wanted = False
        else:
            self._leaving.crashed(instance, again=instance.wanted)
        text = f"{event.error}; {event.hint}" if event.hint else event.error
        error = BackendFailed(event.error, hint=event.hint, kind=event.kind, tail=event.tail, preflight=event.preflight)
        self._out.end_load_jobs(instance, JobResult.FAILED, text, error)
        self._table.look = True

    # More than was promised

    def sized(self, event: events.Sized) -> None:
        """What the engine is about to take. If that is more than it was promised and cannot be had, it is ended before
        it has taken anything, and tried once more with what is known now.
        """
        instance = self._table.current(event.model, event.generation)
        if instance is None or instance.state is not State.LOADING:
            return
        if self.promise(instance, event.shares):
            instance.first_need_bytes = instance.need_bytes
            # Those who wait may get what it does not need after all.
            self._table.look = True
        else:
            self.outgrown(instance, event.shares, "its engine is about to take", learned=True)

    def promise(self, instance: Instance, shares: tuple[Share, ...]) -> bool:
        """Promise it this instead of what it was promised, if nobody is the worse for it."""
        before, instance.shares = instance.shares, shares
        had = {share.device: share.bytes for share in before}
        more = {share.device for share in shares if share.bytes > had.get(share.device, 0)}
        if any(d.account.overdrawn for d in self._table.devices() if d.uuid in more):
            instance.shares = before
            return False
        self._out.touch()
        return True

    def outgrown(self, instance: Instance, shares: Sequence[Share], what: str, *, learned: bool = False) -> None:
        """It takes, or is about to take, more than it was promised, and nobody can give it. ``learned``: the next quote
        knows it already.
        """
        # Not what it has been promised meanwhile, while there was room.
        promised: dict[str, int] = {}
        for share in () if instance.offer is None else instance.offer.placed(instance.device):
            promised[share.device] = promised.get(share.device, 0) + share.bytes
        worst = max(shares, key=lambda share: share.bytes - promised.get(share.device, 0))
        had_bytes = promised.get(worst.device, 0)
        name = self._books.device_name(worst.device)
        text = (
            f'"{instance.model.name}" is ended while it loads: {what} {describe(worst.bytes)} on {name}, it was '
            f"promised {describe(had_bytes)} and no more is free"
        )
        again = not instance.outgrew and bool(instance.load_jobs or instance.wanted)
        self._out.tell(
            Kind.OUTGREW,
            f"{text}; " + ("it is tried once more with what is known now" if again else "it is not tried again"),
            instance,
            level=Level.WARNING,
            need_bytes=worst.bytes,
            promised_bytes=had_bytes,
            device=worst.device,
        )
        instance.outgrew = True
        if not learned:
            instance.growth *= GROWTH_BEYOND_SEEN * worst.bytes / max(1, had_bytes)
        if not again:
            error = BudgetExceeded(
                text,
                need_bytes=worst.bytes,
                available_bytes=had_bytes,
                hint="lower its context or layers, or declare its size; gpudctl budget tells what fits",
            )
            instance.wanted = False
            instance.failure = Failure(error.message, error.hint, error.code)
            self._out.end_load_jobs(instance, JobResult.FAILED, error.text, error)
        self._leaving.cancel_launch(instance, "budget", "it takes more memory than it was promised", kill=True)
        if again:
            self._table.enqueue(instance)

    def again_with_more(self, instance: Instance, error: str) -> bool:
        """Its engine ran out of memory, although what it was expected to need was free: once, it is given more."""
        if instance.outgrew or not (instance.load_jobs or instance.wanted):
            return False
        instance.outgrew = True
        instance.growth = GROWTH_WHEN_UNKNOWN
        self._out.tell(
            Kind.OUTGREW,
            f'Loading "{instance.model.name}" failed for lack of memory with {describe(instance.need_bytes)} reserved '
            f"({error}); it is tried once more with {describe(int(instance.need_bytes * instance.growth))}",
            instance,
            level=Level.WARNING,
            need_bytes=instance.need_bytes,
        )
        self._table.move(instance, Trigger.CANCEL, "budget")
        self._table.enqueue(instance)
        # Whoever runs out of memory each time has failed, too, after so many times.
        attempts = instance.attempts
        self._leaving.gone(instance, "it ran out of memory")
        instance.attempts = attempts
        return True

    # Refused

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
        self._out.end_load_jobs(instance, JobResult.FAILED, error.text, error)

    def refuse_unfit(self, instance: Instance, unfit: events.Unfit) -> None:
        instance.leave_queue()
        instance.wanted = False
        instance.failure = Failure(unfit.error, unfit.hint, unfit.kind or "failed")
        if instance.state is not State.FAILED:
            self._table.move(instance, Trigger.GIVE_UP, "config")
        self._out.tell(
            Kind.LOAD_FAILED,
            f'Loading "{instance.model.name}" failed: {unfit.error}',
            instance,
            level=Level.ERROR,
            hint=unfit.hint,
            error=unfit.kind or "failed",
        )
        error = BackendFailed(unfit.error, hint=unfit.hint, kind=unfit.kind, preflight=True)
        self._out.end_load_jobs(instance, JobResult.FAILED, error.text, error)

    def adopted(self, event: events.Adopted) -> None:
        instance = self._table.find(event.model)
        instance.generation = event.generation
        instance.shares = event.shares
        instance.first_need_bytes = instance.need_bytes
        instance.context = event.context
        if event.layers is not None or event.engine:
            text = "" if event.layers is None else f"{plural(event.layers, 'layer')} on the GPU"
            instance.offer = Offer(
                event.shares, context=event.context, layers=event.layers, reduced=text, engine=event.engine
            )
        # Nobody knows who used it; it may be said later.
        instance.users = {""}
        instance.ready_since_s = instance.last_used_s = self._table.now
        self._table.move(instance, Trigger.ADOPT, "adopt")
        self._out.tell(
            Kind.MODEL_ADOPTED,
            f'"{event.model}" was loaded by an earlier gpud and is taken over as it is',
            instance,
            device=instance.device,
        )
        self._table.sample()
        if event.stale:
            instance.stale = True
            self._leaving.drain(instance, "config", instance.model.stop.drain_s)
