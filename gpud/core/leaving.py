"""How a model goes: asked, idle, evicted, crashed. Drains before it stops, and asks the engine before that."""

from collections.abc import Iterable

from gpud.core import events
from gpud.core.budget import describe
from gpud.core.counts import plural
from gpud.core.errors import Busy, NotLoaded
from gpud.core.events import AskBusy, Kind, Level
from gpud.core.facts import (
    JobKind,
    JobResult,
    State,
)
from gpud.core.instance import Failure, Instance, Job
from gpud.core.lifecycle import Trigger
from gpud.core.table import Table

# How long after "I am busy" an engine is left in peace: llama-server starves its own checks when asked faster (0.5 Hz).
BUSY_AGAIN_S = 2.0
BUSY_AGAIN_AT_MOST_S = 30.0

TURN = "turn"
"""Drained for one who had waited long enough: it is not taken back because it works, it answers and goes."""

GPU_LOST = "gpu-lost"
"""Its GPU came back from a sleep without what was kept there, or not at all."""

_REASONS = {GPU_LOST: "suspend", "evict": "budget", TURN: "budget", "give-way": "budget", "yield": "user"}
"""What is told of the reason, where the word inside is another."""


class Leaving:
    """Everything on the way from ready to cold, and what keeps a model from going."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._books = table.books
        self._holds = table.holds
        self._out = table.out

    def unload_asked(self, event: events.UnloadAsked) -> None:
        """What was sent away for a while, and is meant, does not come back by itself."""
        away = self._table.after_sleep, self._table.with_gpus
        coming_back = self._meant((*away[0], *away[1]), event)
        job = Job(event.job, JobKind.UNLOAD, event.model, event.caller, self._table.now)
        if event.model:
            instance = self._table.find(event.model)
            rests = instance.state is State.COLD and not instance.waiting and not instance.attempts
            if rests and event.model not in coming_back:
                raise NotLoaded(f'"{event.model}" is not loaded')
            holders = self.holders(instance, event)
            if holders:
                raise Busy(holders, hint="ask them to release it, or use force")
            chosen = [] if rests else [instance]
            job.stay_away = [event.model] if rests else []
        else:
            there = [i for i in self._table.instances.values() if i.state.has_engine() or i.waiting or i.wanted]
            holders_of = {instance.model.name: self.holders(instance, event) for instance in there}
            job.left_out = {name: holders for name, holders in holders_of.items() if holders}
            chosen = [instance for instance in there if not holders_of[instance.model.name]]
            job.stay_away = [name for name in coming_back if name not in holders_of]
        for name in coming_back:
            for names in away:
                names.pop(name, None)
        job.remaining = {instance.model.name for instance in chosen}
        if not chosen:
            self._out.end_if_settled(job)
        for instance in chosen:
            self.unload(instance, job, event)

    def _meant(self, names: Iterable[str], event: events.UnloadAsked) -> dict[str, None]:
        """Those of these that somebody wants gone; without a name, all that nobody else holds."""
        if event.model:
            return {name: None for name in names if name == event.model}
        there = {name: self._table.instances[name] for name in names if name in self._table.instances}
        return {name: None for name, instance in there.items() if not self.holders(instance, event)}

    def holders(self, instance: Instance, event: events.UnloadAsked) -> str:
        """A sentence that names those whose holds stand in the way, or nothing."""
        holders = self._holds.holders(instance.model.name, other_than=event.caller)
        if event.others or not holders:
            return ""
        return f'"{instance.model.name}" is held by {", ".join(holders)}'

    def unload(self, instance: Instance, job: Job, event: events.UnloadAsked) -> None:
        """
        1. It only waits: its loads are called off, done.
        2. It backs off or has failed: its failures are forgiven, done.
        3. It is loading: canceled at once.
        4. It is ready: drained, or stopped at once with force.
        5. It is going already: the wish joins, and hurries it with force.
        """
        by = event.caller.label or event.caller.owner
        instance.wanted = False
        if instance.waiting:
            instance.leave_queue()
            self._table.look = True
        self._out.end_load_jobs(instance, JobResult.SUPERSEDED, f"unloaded by {by} before it was ready")
        if not instance.state.has_engine():
            self.forgive(instance, "user")
            job.forgiven.append(instance.model.name)
            job.remaining.discard(instance.model.name)
            self._out.end_if_settled(job)
            return
        instance.unload_jobs.append(job)
        instance.force = instance.force or event.force
        if instance.state is State.LOADING:
            self.cancel_launch(instance, "user", f"unloaded by {by} while it was loading")
        elif instance.state is State.READY:
            self.drain(instance, "user", instance.model.stop.drain_s)
        elif instance.state is State.DRAINING:
            if instance.draining_for not in ("shutdown", "suspend", "yield"):
                instance.draining_for = instance.reason = "user"
            if event.force:
                self.drained(instance)
        self._out.touch()

    def cancel_launch(self, instance: Instance, reason: str, text: str, *, kill: bool = False) -> None:
        self._table.move(instance, Trigger.CANCEL, reason)
        self._out.tell(Kind.LOAD_CANCELED, f'Loading "{instance.model.name}" is canceled: {text}', instance)
        self._out.add(events.CancelLaunch(instance.model.name, instance.generation, kill))

    def drain(self, instance: Instance, why: str, bound_s: float | None) -> None:
        """No new request from now on; stopped once the running ones are through."""
        instance.draining_for = why
        instance.told_busy = False
        instance.drain_until_s = None if bound_s is None else self._table.now + bound_s
        self._table.move(instance, Trigger.DRAIN, _REASONS.get(why, why))
        if instance.force:
            self.drained(instance)
        elif not instance.in_flight:
            self.ask_busy(instance)

    def go_on_draining(self, instance: Instance, why: str, bound_s: float | None) -> None:
        """It is on its way out already; from now on for this reason, and until then."""
        instance.draining_for = why
        instance.drain_until_s = None if bound_s is None else self._table.now + bound_s
        instance.reason = _REASONS.get(why, why)
        self._out.touch()

    def drained(self, instance: Instance) -> None:
        instance.stopping_since_s = self._table.now
        self._table.move(instance, Trigger.DRAINED, instance.reason)
        self._out.add(events.Stop(instance.model.name, instance.generation))

    def resume(self, instance: Instance) -> None:
        """It is needed after all: back to work."""
        instance.last_used_s = self._table.now
        self._table.move(instance, Trigger.RESUME, "request")
        if instance.waiting:
            instance.leave_queue()
            self.served_as_it_is(instance)
        self._table.look = True

    def stay_after_all(self, instance: Instance) -> None:
        """What it was to go for is over: it stays. Who has it unloaded waits as long as for any other."""
        if instance.unload_jobs:
            self.go_on_draining(instance, "user", instance.model.stop.drain_s)
        else:
            self.resume(instance)

    def served_as_it_is(self, instance: Instance) -> None:
        """Those who waited for the next engine get this one, unless they asked for another one, or another context."""
        name, engine = instance.model.name, instance.launchable().engine
        context = instance.launchable().settings.context
        jobs, instance.load_jobs = instance.load_jobs, []
        for job in jobs:
            if job.context in (None, context) and (not job.engines or engine in job.engines):
                self._out.serve(instance, job, f'"{name}" is still loaded', self._table.now)
            else:
                text = f'"{name}" is busy and stays loaded with a context of {context}, not {job.context}'
                if job.context in (None, context):
                    text = f'"{name}" is busy and stays loaded with {engine}, not {" or ".join(job.engines)}'
                error = Busy(text, hint="unload it with force, or ask again later")
                self._out.end_job(job, JobResult.FAILED, error.text, error)

    def kill_began(self, name: str, generation: int) -> None:
        instance = self._table.current(name, generation)
        if instance is None or instance.state is not State.STOPPING:
            return
        self._table.move(instance, Trigger.GRACE_OVER, instance.reason)
        times = instance.model.stop
        self._out.tell(
            Kind.ENGINE_KILLED,
            f'The engine of "{name}" did not end within {times.term_s + times.second_term_s:g} s of being asked twice '
            "and is killed",
            instance,
            level=Level.WARNING,
        )

    def engine_gone(self, event: events.EngineGone) -> None:
        """
        1. It was going: it is cold now.
        2. It was ready and ended with status 0: somebody else stopped it on purpose, it is cold now.
        3. It was ready and crashed: back-off, and it comes back by itself.
        """
        instance = self._table.current(event.model, event.generation)
        if instance is None or not instance.state.has_engine():
            return
        if instance.state is not State.READY:
            self.gone(instance, _why(instance))
            return
        if event.exit.code == 0:
            self.gone(instance, "ended from outside with status 0")
            return
        text = f"the engine {event.exit.describe()}"
        if instance.in_flight:
            text += f" with {plural(instance.in_flight, 'request')} in flight"
        instance.failure = Failure(text, event.hint, "crashed", event.exit.tail)
        self._books.expect_back(instance, self._table.now)
        self._out.tell(
            Kind.ENGINE_CRASHED,
            f'"{event.model}": {text} (process {event.exit.pid})',
            instance,
            level=Level.ERROR,
            hint=event.hint,
            tail=event.exit.tail,
            pid=event.exit.pid,
            exit_code="unknown" if event.exit.code is None else event.exit.code,
        )
        self.crashed(instance, again=not instance.removed)
        self._table.drop_if_removed(instance)
        self._table.sample()

    def crashed(self, instance: Instance, *, again: bool) -> None:
        """Back off, or give up after too many failures in a row. ``again``: it comes back by itself."""
        instance.attempts = instance.crash_count(self._table.now, self._table.limits)
        instance.let_go()
        if instance.attempts >= self._table.limits.backoff_attempts:
            instance.wanted = False
            instance.retry_at_s = None
            self._table.move(instance, Trigger.GIVE_UP, "crash")
            failure = instance.failure or Failure("it failed")
            self._out.tell(
                Kind.ENGINE_GIVEN_UP,
                f'"{instance.model.name}" has failed {plural(instance.attempts, "time")} in a row and is not tried '
                f"again: {failure.message}",
                instance,
                level=Level.ERROR,
                hint=f"{failure.hint or 'read the lines below'}; then `gpudctl reset {instance.model.name}` clears "
                "the count",
                tail=failure.tail,
                attempts=instance.attempts,
            )
            return
        delay_s = min(
            self._table.limits.backoff_first_s * 2 ** (instance.attempts - 1), self._table.limits.backoff_max_s
        )
        instance.wanted = again
        instance.retry_at_s = self._table.now + delay_s
        self._table.move(instance, Trigger.CRASH, "crash")

    def gone(self, instance: Instance, why: str) -> None:
        """Its engine is no more. What it held counts as free when a sample shows it."""
        used_bytes = instance.used_bytes
        freed_bytes = instance.need_bytes if used_bytes is None else used_bytes
        self._books.expect_back(instance, self._table.now)
        if instance.stopping_since_s is not None:
            instance.stop_s = self._table.now - instance.stopping_since_s
            instance.stopping_since_s = None
        was_loaded = instance.ready_since_s is not None
        self._table.move(instance, Trigger.GONE, instance.reason)
        if was_loaded:
            self._out.tell(
                Kind.MODEL_UNLOADED,
                f'"{instance.model.name}" is unloaded, {describe(freed_bytes)} given back: {why}',
                instance,
                freed_bytes=freed_bytes,
                reason=instance.reason,
            )
        instance.let_go()
        instance.off_gpu = False
        instance.idle_timeout_s = self._table.idle_override_s
        instance.attempts = 0
        if instance.load_jobs:
            # The next one has other users. Until there is one, it may come back as it was.
            instance.users = {self._table.user_of(job.caller.session) for job in instance.load_jobs}
        instance.leave_at_s = None
        self._out.end_unload_jobs(instance, freed_bytes if was_loaded else 0)
        if instance.waiting:
            self._table.enqueue(instance)
        self._table.drop_if_removed(instance)
        self._table.sample()
        self._table.look = True

    def forgive(self, instance: Instance, reason: str) -> None:
        """Its failures count no longer, and it is cold; with no engine, whatever its state."""
        instance.attempts = 0
        instance.retry_at_s = None
        instance.failure = None
        instance.wanted = False
        if instance.state is not State.COLD:
            self._table.move(instance, Trigger.FORGIVEN, reason)

    def use_began(self, name: str, by: str) -> None:
        instance = self._table.find(name)
        if instance.state is not State.READY:
            raise NotLoaded(f'"{name}" is {instance.state}, not ready')
        self._table.used(instance, by)
        instance.in_flight += 1
        instance.last_used_s = self._table.now
        instance.usage.note(self._table.now)
        self._out.touch()

    def use_ended(self, name: str) -> None:
        instance = self._table.instances.get(name)
        if instance is None or instance.in_flight == 0:
            return
        instance.in_flight -= 1
        instance.last_used_s = self._table.now
        self._out.touch()
        if instance.in_flight:
            return
        if instance.state is State.DRAINING:
            self.ask_busy(instance)
        elif instance.state is State.READY and instance.stale:
            self.drain(instance, "config", instance.model.stop.drain_s)
        elif self._table.waiting():
            # It may go now, if somebody needs what it holds.
            self._table.look = True

    def ask_busy(self, instance: Instance, delay_s: float = 0.0) -> None:
        if not instance.asking:
            instance.asking = True
            self._out.add(AskBusy(instance.model.name, instance.generation, delay_s))

    def busy_answered(self, event: events.BusyAnswered) -> None:
        """The engine's own word, asked once before each stop: the in-flight count knows only what went through gpud."""
        instance = self._table.current(event.model, event.generation)
        if instance is None or not instance.state.has_engine():
            return
        instance.asking = False
        busy = bool(event.busy) or instance.in_flight > 0
        if busy:
            # An engine that works past gpud for long is taken off its work for the question less and less often.
            instance.busy_again_s = min(BUSY_AGAIN_AT_MOST_S, max(BUSY_AGAIN_S, 2 * instance.busy_again_s))
            instance.last_used_s = self._table.now
            instance.busy_until_s = self._table.now + instance.busy_again_s
            # It counts as used, and goes later than was told.
            self._out.touch()
        else:
            instance.busy_again_s = 0.0
        if instance.state is State.DRAINING:
            if instance.draining_for in ("evict", "give-way") and busy:
                self.resume(instance)
            elif instance.in_flight:
                return
            elif busy:
                instance.told_busy = True
                self.ask_busy(instance, BUSY_AGAIN_S)
            else:
                self.drained(instance)
        elif instance.state is State.READY and not busy:
            self.idle(instance)

    def idle(self, instance: Instance) -> None:
        at = instance.unload_at(held=self._holds.held(instance.model.name, "unload"))
        if at is None or at > self._table.now:
            return
        why = "session" if instance.is_left(self._table.now) else "idle"
        if why == "idle":
            idle_s = self._table.now - instance.idle_since()
            self._out.tell(
                Kind.IDLE,
                f'"{instance.model.name}" has been idle for {idle_s:.0f} s and is unloaded',
                instance,
                idle_seconds=round(idle_s),
            )
        instance.draining_for = why
        self._table.move(instance, Trigger.DRAIN, why)
        self.drained(instance)

    def drain_over(self, instance: Instance) -> None:
        """The bound of a drain has come: who asked learns that it is still busy; at shutdown it is stopped all the
        same.
        """
        name, bound_s = instance.model.name, instance.model.stop.drain_s
        busy = (
            f"{plural(instance.in_flight, 'request')} in flight"
            if instance.in_flight
            else "its engine says that it is busy"
        )
        if instance.draining_for in ("shutdown", "suspend"):
            suspended = self._table.suspended
            if suspended is not None:
                waited_s = self._table.now - suspended.since_s
                why = "the machine is about to " + ("shut down" if suspended.shutdown else "sleep")
            else:
                waited_s, why = self._table.limits.shutdown_drain_s, "gpud is shutting down"
            self._out.tell(
                Kind.STILL_BUSY,
                f'"{name}" is still busy ({busy}) after {waited_s:.3g} s and is stopped: {why}',
                instance,
                level=Level.WARNING,
            )
            self.drained(instance)
            return
        text = f'"{name}" is still busy after {bound_s:g} s ({busy}) and stays loaded'
        self._out.tell(Kind.STILL_BUSY, text, instance, level=Level.WARNING)
        for job in list(instance.unload_jobs):
            instance.unload_jobs.remove(job)
            job.timed_out = True
            self._out.settle(job, instance, 0, left_out=f"{text}; unload it with force")
        self.resume(instance)


def _askers(instance: Instance) -> str:
    return ", ".join(dict.fromkeys(job.caller.label or job.caller.owner for job in instance.unload_jobs))


def _why(instance: Instance) -> str:
    return {
        "user": f"{_askers(instance) or 'somebody'} asked for it",
        "evict": "its memory was needed",
        TURN: "its memory was needed by one who had waited long enough",
        "give-way": "other programs needed its memory",
        "yield": "the GPUs are given away",
        "idle": "it was idle",
        "session": "the sessions that used it have ended",
        "config": "it is no longer there" if instance.removed else "its file or its configuration has changed",
        "shutdown": "gpud is shutting down",
        "suspend": "the machine is about to sleep",
        GPU_LOST: "its GPU did not keep it over the sleep",
    }.get(instance.draining_for, instance.reason)
