"""The one place that decides: which engine starts, waits, goes. ``handle(event, now)`` returns what is to be done.

It never awaits, logs or asks the time; whoever calls it carries the actions out and feeds the answers back as events.
Memory is admitted only against a look at the devices that was begun after the wish (``Sampled``), and an engine that
has gone gives its memory back when a later look shows it. How models come is in ``loading``, how they go in
``leaving``, what a look brings in ``memory``, who gets what is free in ``admitting``, what others need in ``pressure``;
what another configuration changes in ``reconfiguring``; here are the events, the deadlines, holds and the end.
"""

from collections.abc import Mapping
from typing import assert_never

from gpud.core import events
from gpud.core.admission import Considered
from gpud.core.admitting import Admitting, Entry
from gpud.core.budget import describe
from gpud.core.canceling import Canceling
from gpud.core.claiming import Claiming
from gpud.core.claims import Claim
from gpud.core.events import Action
from gpud.core.facts import (
    ClaimStatus,
    GpuStatus,
    HoldStatus,
    JobResult,
    JobStatus,
    Limits,
    Model,
    QueueStatus,
    SessionStatus,
    State,
    Suspension,
    YieldStatus,
)
from gpud.core.foresight import Foresight
from gpud.core.instance import Instance
from gpud.core.leaving import Leaving
from gpud.core.loading import Loading
from gpud.core.memory import Memory
from gpud.core.pressure import Pressure
from gpud.core.quote import Quote
from gpud.core.reconfiguring import Reconfiguring
from gpud.core.sessions import Sessions
from gpud.core.statuses import Statuses
from gpud.core.suspending import Sleeping
from gpud.core.table import Table
from gpud.core.verdict import Evicts, Granted, Refused, Waits, Wish
from gpud.core.yielding import GIVES_AWAY, Yielding


class Scheduler:
    """Owns every instance, job, hold and the last look at the devices."""

    def __init__(self, models: Mapping[str, Model], limits: Limits) -> None:
        self._table = Table(models, limits)
        self._leaving = Leaving(self._table)
        self._yielding = Yielding(self._table, self._leaving)
        self._sleeping = Sleeping(self._table, self._leaving, self._yielding)
        self._loading = Loading(self._table, self._leaving, self._yielding, self._sleeping)
        self._claiming = Claiming(self._table)
        self._admitting = Admitting(self._table, self._loading, self._leaving, self._claiming)
        self._memory = Memory(self._table, self._loading, Pressure(self._table, self._leaving), self._admitting)
        self._foresight = Foresight(self._table)
        self._sessions = Sessions(self._table, self._leaving)
        self._reconfiguring = Reconfiguring(self._table, self._leaving)
        self._canceling = Canceling(self._table, self._leaving)
        self._books = self._table.books
        self._holds = self._table.holds
        self._out = self._table.out
        self._finished = False

    def handle(self, event: events.Event, now: float) -> tuple[Action, ...]:
        """Take one event. A wish that cannot be granted is raised as GpudError and changes nothing."""
        self._table.now = now
        self._out.take()
        match event:
            case events.UseBegan(name, by):
                self._leaving.use_began(name, by)
                return self._after_use()
            case events.UseEnded(name):
                self._leaving.use_ended(name)
                return self._after_use()
            case events.LoadAsked():
                self._loading.load_asked(event)
            case events.UnloadAsked():
                self._leaving.unload_asked(event)
            case events.CancelAsked(job):
                self._canceling.asked(job)
            case events.HoldAsked():
                self._hold_asked(event)
            case events.HoldDropped(cookie, reason):
                self._hold_dropped(cookie, reason)
            case events.ClaimAsked():
                self._claiming.asked(event)
            case events.ClaimDropped():
                self._claiming.dropped(event)
            case events.YieldAsked():
                self._yielding.asked(event)
            case events.ResumeAsked():
                self._yielding.resumed(event)
            case events.SessionBegan(session):
                self._sessions.began(session)
            case events.SessionEnded(session_id, reason):
                self._session_ended(session_id, reason)
            case events.UsersRestored(users):
                self._sessions.restored(users)
            case events.Progressed():
                self._loading.progressed(event)
            case events.Sized():
                self._loading.sized(event)
            case events.BecameReady():
                self._loading.became_ready(event)
                self._foresight.loaded()
            case events.LoadEnded():
                self._loading.load_ended(event)
            case events.EngineGone():
                self._leaving.engine_gone(event)
            case events.BusyAnswered():
                self._leaving.busy_answered(event)
            case events.KillBegan(name, generation):
                self._leaving.kill_began(name, generation)
            case events.Adopted():
                self._loading.adopted(event)
            case events.Sampled():
                self._memory.sampled(event)
                self._sleeping.looked()
            case events.TimePassed():
                self._time_passed()
            case events.Reconfigured():
                self._reconfiguring.reconfigured(event)
            case events.CatalogueTaken(models, changed):
                self._reconfiguring.catalogue_taken(models, changed, forgive=False)
            case events.LookAsked():
                self._table.sample()
            case events.BudgetSet(budget_bytes):
                self._books.override_bytes = budget_bytes
                self._table.look = True
                self._out.touch()
            case events.IdleTimeoutSet(idle_timeout_s):
                self._table.idle_override_s = idle_timeout_s
                for instance in self._table.instances.values():
                    instance.idle_timeout_s = idle_timeout_s
                self._out.touch()
            case events.PowerSeen(on_battery):
                self._reconfiguring.power_seen(on_battery=on_battery)
            case events.SuspendAsked():
                self._sleeping.asked(event)
            case events.WokeUp():
                self._sleeping.woke_up(event)
            case events.ShutdownAsked():
                self._shutdown_asked()
            case _:
                assert_never(event)
        self._pump()
        return self._out.take()

    def next_deadline(self) -> float | None:
        """When ``TimePassed`` is wanted next; None while nothing waits for the time."""
        deadlines = [*self._sleeping.deadlines(), *self._admitting.deadlines(), *self._sessions.deadlines()]
        yielded, limits = self._table.yielded, self._table.limits
        if yielded is not None and yielded.until_s is not None:
            deadlines.append(yielded.until_s)
        if limits.watch_s > 0 and not self._table.looks.pending() and self._table.with_engine():
            deadlines.append(self._table.looked_s + limits.watch_s)
        for instance in self._table.lively():
            if instance.state is State.READY:
                at = self._idle_deadline(instance)
                if at is not None:
                    deadlines.append(at)
            elif instance.state is State.BACKOFF and instance.retry_at_s is not None:
                if not (instance.waiting and instance.retry_at_s <= self._table.now):
                    deadlines.append(instance.retry_at_s)
            elif instance.drain_until_s is not None and instance.drain_can_end:
                deadlines.append(instance.drain_until_s)
        return min(deadlines, default=None)

    def deadline_of(self, name: str) -> float | None:
        """The only one that the end of a use by itself brings: when the model goes for idleness."""
        instance = self._table.instances.get(name)
        return None if instance is None else self._idle_deadline(instance)

    def _idle_deadline(self, instance: Instance) -> float | None:
        if instance.state is not State.READY or instance.asking:
            return None
        at = instance.unload_at(held=self._holds.held(instance.model.name, "unload"))
        return None if at is None else max(at, instance.busy_until_s)

    def model_statuses(self) -> Statuses:
        count, held = self._holds.count, self._holds.held
        lively = {
            name: instance.status(count(name), held=held(name, "unload"))
            for name, instance in self._table.instances.items()
        }
        return Statuses(self._table.stock, lively, self._table.patience)

    def gpu_statuses(self) -> tuple[GpuStatus, ...]:
        return self._books.statuses(self._table.with_engine(), self._table.claims.granted(), self._table.alerts)

    def claim_statuses(self) -> tuple[ClaimStatus, ...]:
        return self._table.claims.statuses()

    def yield_status(self) -> YieldStatus | None:
        return self._table.yielded

    def session_statuses(self) -> tuple[SessionStatus, ...]:
        return self._sessions.statuses()

    def users(self) -> Mapping[str, frozenset[str]]:
        """By model, the sessions that used it, with ``""`` for everybody else; of those that are loaded or wanted."""
        return self._sessions.users()

    def suspended(self) -> Suspension | None:
        return self._table.suspended

    def left_before_sleep(self) -> int:
        """How many engines have still to go before the machine may sleep or shut down."""
        return self._sleeping.left()

    def gpu_problem(self) -> str:
        """Why no GPU can be used since the machine woke up, or nothing."""
        return self._sleeping.problem

    def gpu_problem_hint(self) -> str:
        """What to do about it."""
        return self._sleeping.hint

    def given_away(self) -> str:
        """Why nothing is loaded on the GPUs now, or nothing."""
        return self._yielding.reason()

    def queue_statuses(self) -> tuple[QueueStatus, ...]:
        """Those who wait for memory in the order in which they are served, then those who wait for something else."""
        order = self._table.queue()
        placed = {id(entry) for entry in order}
        rest = [entry for entry in self._table.waiting() if id(entry) not in placed]
        return tuple(_place(position, entry) for position, entry in enumerate([*order, *rest], 1))

    def consider(self, size_bytes: int, gpu: str) -> Considered:
        """What would come of a wish for so many bytes, behind those who wait and by the last look; nothing is done."""
        admission = self._admitting.behind_all()
        verdict = admission.decide(Wish(f"give {describe(size_bytes)}", Quote.simple(size_bytes), gpu))
        match verdict:
            case Granted(_, shares, _):
                name = self._books.device_name(shares[0].device)
                return Considered("fits", shares[0].device, (), f"{describe(size_bytes)} fit on {name}")
            case Evicts(shares, victims, _, text):
                names = tuple(victim.model for victim in victims)
                return Considered("evicts", shares[0].device, names, text)
            case Waits(shares, text):
                return Considered("waits", shares[0].device, (), text)
            case Refused(error):
                return Considered("refused", "", (), error.text)

    def job_statuses(self) -> tuple[JobStatus, ...]:
        seen: dict[int, JobStatus] = {}
        for instance in self._table.instances.values():
            for job in (*instance.load_jobs, *instance.unload_jobs):
                stage = instance.waits_for if instance.waiting else instance.stage or str(instance.state)
                seen.setdefault(job.id, job.status(stage, instance.progress))
        return tuple(seen[job_id] for job_id in sorted(seen))

    def hold_statuses(self) -> tuple[HoldStatus, ...]:
        return self._holds.all()

    def uses(self) -> dict[str, tuple[int, float, float | None]]:
        """Of each model that was used: how many requests there have been, when the last one was, and how long its last
        load took.
        """
        return {
            name: (instance.usage.count, instance.usage.last_s, instance.load_seconds)
            for name, instance in self._table.instances.items()
            if instance.usage.last_s is not None
        }

    def state_of(self, name: str) -> State | None:
        instance = self._table.instances.get(name)
        if instance is None:
            return State.COLD if name in self._table.stock else None
        return instance.state

    def pids_of(self, name: str) -> frozenset[int]:
        """The model's processes as of the last look at the devices."""
        return self._books.pids_of(name)

    def _time_passed(self) -> None:
        self._yielding.time_passed()
        self._sleeping.time_passed()
        self._sessions.time_passed()
        self._admitting.time_passed()
        watch_s = self._table.limits.watch_s
        if watch_s > 0 and self._table.now >= self._table.looked_s + watch_s and self._table.with_engine():
            self._table.sample()
        for instance in self._table.lively():
            if instance.state is State.READY and not instance.asking:
                at = instance.unload_at(held=self._holds.held(instance.model.name, "unload"))
                if at is not None and at <= self._table.now and instance.busy_until_s <= self._table.now:
                    self._leaving.ask_busy(instance)
            elif instance.state is State.BACKOFF and (instance.retry_at_s or 0.0) <= self._table.now:
                if instance.wanted:
                    self._table.enqueue(instance)
                    self._out.touch()
                elif not instance.waiting:
                    attempts, failure = instance.attempts, instance.failure
                    self._leaving.forgive(instance, "crash")
                    # Nobody waits for it. The next wish is tried at once, but the failures still count.
                    instance.attempts, instance.failure = attempts, failure
                self._table.look = True
            elif instance.drain_can_end and (instance.drain_until_s or self._table.now + 1) <= self._table.now:
                self._leaving.drain_over(instance)

    def _session_ended(self, session_id: str, reason: str) -> None:
        session = self._sessions.ended(session_id, reason)
        if session is None:
            return
        for hold in self._holds.all():
            if hold.caller.owner == session.owner:
                self._hold_dropped(hold.cookie, f"its session has ended: {reason}")

    def _hold_asked(self, event: events.HoldAsked) -> None:
        if event.model:
            self._table.used(self._table.find(event.model), event.caller.session)
        self._holds.add(
            HoldStatus(
                event.cookie, event.model, event.caller, event.reason, event.application, event.what, self._table.now
            )
        )
        if event.what & GIVES_AWAY:
            self._yielding.inhibited()
        self._out.touch()

    def _hold_dropped(self, cookie: int, reason: str) -> None:
        hold = self._holds.drop(cookie)
        if hold is None:
            return
        # The idle time begins anew: who held it has just finished with it.
        instance = self._table.instances.get(hold.model)
        if instance is not None and instance.state is State.READY:
            instance.last_used_s = self._table.now
        if hold.what & GIVES_AWAY:
            self._yielding.inhibition_over()
        if self._table.waiting():
            # What it held may go now, if somebody needs the memory.
            self._table.look = True
        self._out.add(events.HoldEnded(cookie, hold.caller.owner, reason))
        self._out.touch()

    def _shutdown_asked(self) -> None:
        again = self._table.closing
        self._table.closing = True
        for claim in self._table.claims.all():
            self._claiming.dropped(events.ClaimDropped(claim.id, "gpud is shutting down"))
        for instance in self._table.instances.values():
            instance.wanted = False
            instance.leave_queue()
            self._out.end_load_jobs(instance, JobResult.CANCELED, "gpud is shutting down")
            if instance.state is State.LOADING:
                self._leaving.cancel_launch(instance, "shutdown", "gpud is shutting down")
            elif instance.state is State.READY:
                instance.force = instance.force or again
                self._leaving.drain(instance, "shutdown", self._table.limits.shutdown_drain_s)
            elif instance.state is State.DRAINING:
                self._leaving.go_on_draining(instance, "shutdown", self._table.limits.shutdown_drain_s)
                if again:
                    self._leaving.drained(instance)
            elif instance.state is State.STOPPING and again:
                self._out.add(events.Stop(instance.model.name, instance.generation, kill=True))
        self._out.touch()

    def _after_use(self) -> tuple[Action, ...]:
        """As after every event, at the price that each request pays twice: what is used has an engine, so that nothing
        is let go of, and nothing ends.
        """
        if self._table.look:
            self._pump()
        return self._out.take()

    def _pump(self) -> None:
        """After every event: look at the devices if somebody waits for that, let go of them if nobody does, end if
        all is over.
        """
        if self._table.look:
            self._table.look = False
            self._yielding.place()
            self._sleeping.place()
            if self._table.somebody_could_be_served():
                self._table.sample()
        engines = bool(self._table.with_engine())
        others = self._table.claims.all() or self._table.somebody_could_be_served()
        idle = not engines and not others and not self._table.looks.pending()
        if idle and self._table.gpus_held and not self._books.anything_back():
            self._table.gpus_held = False
            self._out.add(events.ReleaseGpus())
        if self._table.closing and not engines and not self._finished:
            self._finished = True
            self._out.add(events.Finish())


def _place(position: int, entry: Entry) -> QueueStatus:
    ticket = entry.ticket
    assert ticket is not None
    if isinstance(entry, Claim):
        return QueueStatus(
            position=position,
            model="",
            claim=entry.id,
            need_bytes=entry.bytes,
            priority=entry.priority,
            callers=(entry.caller.label or entry.caller.stands_for,),
            requests=1,
            since_s=entry.since_s,
            until_s=entry.until_s,
            overdue=ticket.overdue,
            waits_for=ticket.waits_for,
        )
    untils = [job.until_s for job in entry.load_jobs if job.until_s is not None]
    return QueueStatus(
        position=position,
        model=entry.model.name,
        claim=0,
        need_bytes=entry.expects_bytes,
        priority=entry.wanted_priority,
        callers=tuple(dict.fromkeys(job.caller.label or job.caller.stands_for for job in entry.load_jobs)),
        requests=len(entry.load_jobs),
        since_s=ticket.since_s,
        until_s=None if entry.wanted else max(untils, default=None),
        overdue=ticket.overdue,
        waits_for=ticket.waits_for,
        load_s=entry.reload_s,
    )
