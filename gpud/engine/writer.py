"""The one writer. Events go in one at a time, the scheduler decides, and what it decided is begun.

Owns the scheduler and the one timer; what takes time is begun in ``work`` and comes back as another event. Nothing here
waits for an adapter before the next event is taken.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping

from gpud.core import events
from gpud.core.admission import Considered
from gpud.core.errors import BackendFailed, NoSuchHold, NoSuchJob, NoSuchModel
from gpud.core.events import Event, JobEnded, Kind, Level, LoadOptions, Logged, Notice, Outcome
from gpud.core.facts import (
    Caller,
    ClaimStatus,
    JobResult,
    JobStatus,
    Limits,
    Model,
    Priority,
    Session,
    Snapshot,
    State,
)
from gpud.core.instance import as_offered
from gpud.core.naming import LONGEST, brief, those_there
from gpud.core.ports import Backend, Files, Gpus, Launcher, Programs, Store, Warmer
from gpud.core.quote import Offer, Quote
from gpud.core.record import replace
from gpud.core.scheduler import Scheduler
from gpud.engine.claimants import Claimants, no_such_claim
from gpud.engine.clock import Clock, machine_slept_s
from gpud.engine.downloads import Downloads
from gpud.engine.ended import problem_of
from gpud.engine.endings import Endings
from gpud.engine.guessing import closest
from gpud.engine.history import History
from gpud.engine.library import Library
from gpud.engine.listeners import Listener, Listeners
from gpud.engine.picture import picture
from gpud.engine.programs import GivesWay
from gpud.engine.quoting import Refuses
from gpud.engine.shelf import Shelf
from gpud.engine.starts import Running
from gpud.engine.use import Use
from gpud.engine.work import Work

log = logging.getLogger(__name__)

# Whoever asks for fresh figures gets the last known ones when the devices take longer than this.
REFRESH_S = 1.0
# Figures of this age may be shown: a program that asks all the time has the devices looked at no more often.
FRESH_S = 1.0


class Engine:
    """What the edges talk to. All methods are for the event loop's thread; only the ``async`` ones wait."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        library: Library,
        limits: Limits,
        idle_timeout_s: float,
        backends: Mapping[str, Backend],
        gpus: Gpus,
        store: Store,
        launcher: Launcher,
        files: Files,
        version: str,
        warmer: Warmer | None = None,
        reload: Callable[[], Awaitable[None]] | None = None,
        refuses: Refuses | None = None,
        programs: Programs | None = None,
        slept: Callable[[], float] = machine_slept_s,
    ) -> None:
        self._store = store
        self._version = version
        self._reload = reload
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._shelf = shelf
        self._clock = Clock(self._loop.time, slept)
        self._scheduler = Scheduler(shelf.configured, limits)
        self._gives_way = GivesWay(programs, self._leave_to, lambda cookie: self._drop(cookie, "it has ended"))
        self._emptied: list[asyncio.Future[None]] = []
        self._work = Work(
            post=self._post,
            say=self._say,
            touch=self._touch,
            models=shelf.configured,
            backends=backends,
            gpus=gpus,
            store=store,
            launcher=launcher,
            files=files,
            warmer=warmer,
            refuses=refuses,
            clock=self._clock.now,
            look_first=self._gives_way.look,
        )
        self._history = History(store)
        self.library = library
        library.serve(self._put, self._tell, self._need_of)
        self._downloads = Downloads(self._downloads_changed, self._clock.now)
        self._claims = itertools.count(1)
        self._claimants = Claimants()
        self._listeners = Listeners(self._loop)
        self._jobs = itertools.count(1)
        self._endings = Endings()
        self._timer: asyncio.TimerHandle | None = None
        self._snapshot: Snapshot | None = None
        self._finished = asyncio.Event()

    # What can be asked -----------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything visible, put together once for each change."""
        if self._snapshot is None:
            self._snapshot = picture(
                self._scheduler,
                self._work.running,
                self._job_statuses(),
                store_problem=self._store.problem,
                idle_timeout_s=self._idle_timeout_s,
                version=self._version,
            )
        return replace(self._snapshot, now_s=self._clock.now())

    def is_fresh(self) -> bool:
        """Whether the figures may be shown as they are. With nothing loaded a new look wakes nothing, and takes up a
        driver that was let go only where no GPU can be kept from its sleep by that.
        """
        looked_at_s = self._work.looked_at_s
        return looked_at_s is not None and self._clock.now() - looked_at_s < FRESH_S

    @property
    def looked_at_s(self) -> float | None:
        """When the figures of the devices were measured, on the loop's clock; None before the first look."""
        return self._work.looked_at_s

    async def refresh(self) -> None:
        """Have the devices looked at again, without waking one that sleeps; returns early when they take too long."""
        seen: asyncio.Future[None] = self._loop.create_future()
        self._work.looks.add(seen)
        # The first look is under way since the start. One more behind it would find the drivers let go, and know less.
        if self._work.looked_at_s is not None:
            self._post(events.LookAsked())
        try:
            await asyncio.wait_for(seen, REFRESH_S)
        except TimeoutError:
            log.debug("The devices have not been looked at within %g s", REFRESH_S)
        finally:
            self._work.looks.discard(seen)

    def subscribe(self, listener: Listener, *, touched: bool = True) -> Callable[[], None]:
        """Be told after each event what happened; returns how to stop that. ``touched`` False: not where nothing is
        told but that something can be seen, as twice for each request.
        """
        return self._listeners.subscribe(listener, touched=touched)

    def resolve(self, name: str) -> str:
        """The name of the model that a user means: the name itself, an alias, or either with ``.gguf`` behind it."""
        models = self._work.models
        for candidate in (name, name.removesuffix(".gguf")):
            if (meant := models.meaning(candidate)) is not None:
                return meant
        if len(name) > LONGEST:
            hint = f"its name has {len(name)} characters, the limit is {LONGEST}"
            raise NoSuchModel(f'there is no model "{brief(name)}"', hint=hint)
        near = closest(name, (*models, *models.aliases()))
        hint = f'did you mean "{near}"?' if near else those_there(models)
        raise NoSuchModel(f'there is no model "{name}"', hint=hint)

    # What can be wished ----------------------------------------------------------------------------------------------

    def load(self, model: str, caller: Caller, options: LoadOptions | None = None) -> int:
        """Returns the job at once; what can be refused at once is raised."""
        options = options or LoadOptions()
        name = self.resolve(model)
        job = next(self._jobs)
        self._post(events.LoadAsked(job, name, caller, options))
        if options.hold:
            self.hold(name, caller, reason="loaded with hold", application=caller.label)
        return job

    def unload(self, model: str, caller: Caller, *, force: bool = False, others: bool = False) -> int:
        """``model`` empty: every model that is loaded and that nobody else holds."""
        name = self.resolve(model) if model else ""
        job = next(self._jobs)
        self._post(events.UnloadAsked(job, name, caller, force, others))
        return job

    def cancel(self, job: int, caller: Caller, *, any_owner: bool = False) -> None:
        status = self.job(job)
        # Somebody else's job is not admitted to exist, unless the caller may manage.
        if status is None or not (any_owner or status.caller.uid == caller.uid):
            raise NoSuchJob(f"there is no job {job} of yours", hint="it may have ended already; see gpudctl status")
        if self._downloads.has(job):
            self._downloads.cancel(job)
        else:
            self._post(events.CancelAsked(job))

    def job(self, job: int) -> JobStatus | None:
        return next((status for status in self._job_statuses() if status.id == job), None)

    def _job_statuses(self) -> tuple[JobStatus, ...]:
        return (*self._scheduler.job_statuses(), *self._downloads.statuses())

    async def wait(self, job: int) -> JobEnded:
        """How a job ended, or will end. Raises NoSuchJob when there is none, or it ended long ago."""
        if self._endings.of(job) is None and self.job(job) is None:
            raise NoSuchJob(f"there is no job {job}", hint="it may have ended long ago")
        return await self._endings.wait(job)

    def hold(self, model: str, caller: Caller, *, reason: str, application: str) -> int:
        name = self.resolve(model)
        return self._hold(name, caller, reason, application, frozenset(("unload", "evict")))

    def inhibit(self, what: frozenset[str], caller: Caller, *, who: str, why: str) -> int:
        """No model is unloaded for idleness (``unload``) or for another's sake (``evict``) while this lasts."""
        return self._hold("", caller, why, who, what)

    def _hold(self, model: str, caller: Caller, reason: str, application: str, what: frozenset[str]) -> int:
        taken = {hold.cookie for hold in self._scheduler.hold_statuses()}
        # A cookie that cannot be guessed: nobody releases another's hold by counting.
        cookie = next(c for c in iter(lambda: secrets.randbits(32), None) if c and c not in taken)
        self._post(events.HoldAsked(cookie, model, caller, reason, application, what))
        return cookie

    def release(self, cookie: int, owner: str) -> None:
        for hold in self._scheduler.hold_statuses():
            if hold.cookie == cookie and hold.caller.owner == owner:
                self._post(events.HoldDropped(cookie, "released"))
                return
        raise NoSuchHold(f"there is no hold {cookie} of yours", hint="it may have been released already")

    def release_owner(self, owner: str) -> None:
        """Its owner is gone: whatever it held is held no longer."""
        for hold in self._scheduler.hold_statuses():
            if hold.caller.owner == owner:
                self._post(events.HoldDropped(hold.cookie, "its holder has gone"))
        self._downloads.release(owner)

    def session_began(self, session: Session) -> None:
        """From now on what its callers use, and what is held for it, counts as its own."""
        self._post(events.SessionBegan(session))

    def session_ended(self, session_id: str, reason: str) -> None:
        """What it held is held no longer, and what only it used goes. Nothing happens when it has ended already."""
        self._post(events.SessionEnded(session_id, reason))

    def users(self) -> Mapping[str, frozenset[str]]:
        """By model, the sessions that used it, with ``""`` for everybody else."""
        return self._scheduler.users()

    def restore_users(self, users: Mapping[str, frozenset[str]]) -> None:
        """What :meth:`users` of an earlier daemon said. Its engines are taken over and its sessions known by then."""
        self._post(events.UsersRestored(users))

    def set_idle_timeout(self, timeout_s: float) -> None:
        self._idle_timeout_s = timeout_s
        self._post(events.IdleTimeoutSet(timeout_s))

    def set_budget(self, budget_bytes: int) -> None:
        self._post(events.BudgetSet(budget_bytes))

    async def reload(self) -> None:
        """Read the configuration again; raises ConfigInvalid and keeps the old one when it cannot be used."""
        if self._reload is not None:
            await self._reload()

    def use(self, model: str, caller: Caller, options: LoadOptions | None = None) -> Use:
        """An engine that answers, for as long as the block lasts: loaded if need be, and never stopped meanwhile.

        Entering it raises the GpudError that kept it from being loaded; a name that means nothing is raised at once.
        """
        return Use(self, model if model in self._work.models else self.resolve(model), caller, options)

    def use_now(self, name: str, by: str = "") -> Running | None:
        """The engine, with this use of it counted; None where it is not ready, and :meth:`begin_use` has to wait."""
        running = self._work.running.get(name)
        if running is None or self._scheduler.state_of(name) is not State.READY:
            return None
        self._post(events.UseBegan(name, by))
        return running

    async def begin_use(self, name: str, caller: Caller, options: LoadOptions | None) -> Running:
        """The engine, with this use of it counted."""
        while True:
            running = self.use_now(name, caller.session)
            if running is not None:
                return running
            job = self.load(name, caller, replace(options or LoadOptions(), use=True))
            ending = self._endings.wait(job)
            try:
                ended = await asyncio.shield(ending)
            except asyncio.CancelledError:
                self._give_up(name, job, ending)
                raise
            if (problem := problem_of(ended)) is not None:
                raise problem
            running = self._work.running.get(name)
            if running is not None and running.start.generation == ended.generation:
                return running
            # It has gone again before anybody could use it.

    def end_use(self, name: str, running: Running) -> None:
        """What :meth:`begin_use` counted counts no longer."""
        if self._work.running.get(name) is running:
            self._post(events.UseEnded(name))

    def _give_up(self, name: str, job: int, ending: asyncio.Future[JobEnded]) -> None:
        """Whoever wanted it has left: it no longer waits, and what was counted for it counts no longer."""
        if not ending.done():
            self._post(events.CancelAsked(job))
        elif not ending.cancelled() and ending.result().result is JobResult.DONE:
            running = self._work.running.get(name)
            if running is not None and running.start.generation == ending.result().generation:
                self._post(events.UseEnded(name))

    # Downloads: the bytes flow in a process of whoever asks ----------------------------------------------------------

    def begin_download(self, caller: Caller, what: str, total_bytes: int | None) -> int:
        """A job for a download that the caller makes itself; it ends with the caller at the latest."""
        job = next(self._jobs)
        self._downloads.begin(job, caller, what, total_bytes)
        return job

    def download_progress(self, job: int, caller: Caller, done_bytes: int, total_bytes: int | None) -> None:
        """Raises NoSuchJob once it has been canceled: the caller stops then."""
        self._downloads.progress(job, caller, done_bytes, total_bytes)

    def end_download(self, job: int, caller: Caller, result: JobResult, message: str) -> None:
        """Raises NoSuchJob where it has ended already."""
        self._downloads.end(job, caller, result, message)

    def _downloads_changed(self, outcomes: tuple[Outcome, ...]) -> None:
        if outcomes:
            self._snapshot = None
            self._tell(outcomes)
        else:
            self._touch()

    # Claims, and giving the GPUs away --------------------------------------------------------------------------------

    def claim(
        self,
        size_bytes: int,
        caller: Caller,
        *,
        who: str,
        why: str,
        gpu: str = "",
        priority: Priority = Priority.NORMAL,
        wait_s: float | None = None,
    ) -> int:
        """Ask for memory for a program that is no engine. :meth:`claimed` tells when it has it."""
        claim = next(self._claims)
        with self._claimants.asked(claim):
            self._post(events.ClaimAsked(claim, size_bytes, caller, who, why, gpu, priority, wait_s))
        return claim

    async def claimed(self, claim: int) -> ClaimStatus:
        """Returns when it is granted; raises why it is not. Whoever no longer waits drops the claim."""
        await self._claimants.settled(claim)
        status = next((status for status in self._scheduler.claim_statuses() if status.id == claim), None)
        if status is None:
            raise no_such_claim(claim)
        return status

    def drop_claim(self, claim: int, reason: str) -> None:
        """It is no longer wanted, or its holder has gone. Nothing happens when it is not there any more."""
        if any(status.id == claim for status in self._scheduler.claim_statuses()):
            self._post(events.ClaimDropped(claim, reason))

    def yield_gpus(self, caller: Caller, *, why: str, for_s: float | None = None) -> None:
        """Empty the GPUs, and load nothing on them until :meth:`resume` or for so long."""
        self._post(events.YieldAsked(caller, why, for_s))

    def resume(self, caller: Caller) -> None:
        self._post(events.ResumeAsked(caller))

    # The machine sleeps, and runs on its battery ---------------------------------------------------------------------

    async def suspend(
        self, within_s: float, *, shutdown: bool = False, keep: bool = False, lost: Mapping[str, str] | None = None
    ) -> None:
        """The machine is about to sleep, or to shut down: have everything gone within this time that would not survive
        it, and load nothing more. Returns when it is gone, which may be at once.
        """
        emptied: asyncio.Future[None] = self._loop.create_future()
        self._post(events.SuspendAsked(within_s, shutdown, keep, lost or {}))
        if self._scheduler.left_before_sleep():
            self._emptied.append(emptied)
            await emptied

    def woke_up(self, *, restore: bool = True, problem: str = "", hint: str = "", vendor: str = "") -> None:
        """The machine is awake. ``problem``: its GPUs (of ``vendor``) cannot be used; called again without one, they
        can.
        """
        self._post(events.WokeUp(restore, problem, hint, vendor))

    def power_seen(self, *, on_battery: bool) -> None:
        self._post(events.PowerSeen(on_battery))

    def _leave_to(self, caller: Caller, why: str) -> int:
        return self._hold("", caller, why, caller.label, frozenset({"game"}))

    def _drop(self, cookie: int, why: str) -> None:
        if not self._finished.is_set():
            self._post(events.HoldDropped(cookie, why))

    # Reasons ---------------------------------------------------------------------------------------------------------

    async def explain(self, model: str, limit: int = 20) -> tuple[Logged, ...]:
        """What was decided about a model lately, and why; the newest first. Empty: about everything.

        Also of a name that is no longer configured, as long as something is known of it.
        """
        try:
            name = self.resolve(model) if model else ""
        except NoSuchModel:
            found = await self._history.latest(model, limit)
            if found:
                return found
            raise
        return await self._history.latest(name, limit)

    def consider(self, size_bytes: int, *, gpu: str = "") -> Considered:
        """What would come of a wish for so many bytes, by the last look at the devices. Nothing is done."""
        return self._scheduler.consider(size_bytes, gpu)

    async def quote(self, model: str, *, context: int | None = None, layers: int | None = None) -> Quote:
        """What a model would need now, as configured or with another context or other layers on the GPU, and in which
        ways it may be loaded.
        """
        configured = self._work.models[self.resolve(model)]
        answer = await self._work.quote(as_offered(configured, Offer((), context=context, layers=layers), None))
        if isinstance(answer, events.Unfit):
            raise BackendFailed(answer.error, hint=answer.hint, kind=answer.kind, preflight=True)
        return answer

    # Beginning and end -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what an earlier daemon left, end what cannot be taken over, load what is to be there from the
        start.
        """
        await self.library.configure(self._shelf)
        if self.library.models != self._work.models:
            await self._put(self.library.models, frozenset())
        await self._work.take_over()
        caller = Caller("gpud", 0, label="the configuration")
        for name in self._work.models:
            model = self._work.models.pattern(name)
            if (model.preload or model.pinned) and name not in self._work.running:
                self._post(events.LoadAsked(next(self._jobs), name, caller))
        self._post(events.LookAsked())

    def shutdown(self) -> None:
        """Drain within the bound, then stop every engine. Called a second time: no longer wait for anything."""
        self._post(events.ShutdownAsked())

    async def finished(self) -> None:
        """Returns when every engine has been stopped after :meth:`shutdown`."""
        await self._finished.wait()

    async def close(self) -> None:
        """After :meth:`finished`: let go of everything."""
        await self.keep_uses()
        await self._gives_way.close()
        await self.library.close()
        await self._work.close()
        await self._history.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._listeners.close()
        self._endings.close()

    async def apply(
        self, *, shelf: Shelf, limits: Limits, idle_timeout_s: float, backends: Mapping[str, Backend]
    ) -> None:
        """Take a new configuration. Engines that still match it are not touched."""
        before = self._work.models
        await self.library.configure(shelf)
        while True:
            models = self.library.models
            changed = await self._work.changed(models, backends)
            # While it was found out which engines no longer match, others may have been found.
            if models == self.library.models:
                break
        self._work.reconfigure(models, backends)
        self._idle_timeout_s = idle_timeout_s
        self._post(events.Reconfigured(models, limits, idle_timeout_s, changed))
        new, gone = sorted(models.keys() - before.keys()), sorted(before.keys() - models.keys())
        others = sorted(name for name in models.keys() & before.keys() if not models.same(before, name))
        if new or gone or others:
            self._tell((events.CatalogueChanged(tuple(new), tuple(gone), tuple(others)),))
        self._work.close_retired()

    async def _put(self, models: Mapping[str, Model], others: frozenset[str]) -> None:
        """Other models are there; ``others`` are those whose files are."""
        changed = await self._work.changed(models, self._work.backends)
        self._work.reconfigure(models, self._work.backends)
        self._post(events.CatalogueTaken(models, changed | others))

    async def _need_of(self, model: Model) -> int | None:
        """What it would need as it is configured, where that can be said."""
        answer = await self._work.quote(model)
        return None if isinstance(answer, events.Unfit) else answer.offers[0].need_bytes

    async def keep_uses(self) -> None:
        """Have the registry remember how often each model was used until now."""
        await self.library.count(self._scheduler.uses(), self._clock.now())

    # The writer ------------------------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        actions = self._scheduler.handle(event, self._clock.now())
        self._snapshot = None
        if len(actions) == 1 and isinstance(actions[0], events.Touched):
            match event:
                case events.UseBegan():
                    # It makes no deadline earlier.
                    self._listeners.use_seen()
                case events.UseEnded(name):
                    self._rearm_for(self._scheduler.deadline_of(name))
                    self._listeners.use_seen()
                case _:
                    self._rearm()
                    self._touch()
            return
        outcomes: list[Outcome] = []
        for action in actions:
            if isinstance(action, events.Finish):
                self._finished.set()
            elif isinstance(action, Outcome):
                outcomes.append(action)
            else:
                self._work.begin(action)
        self._rearm()
        if self._emptied and not self._scheduler.left_before_sleep():
            waiting, self._emptied = self._emptied, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
        told = tuple(outcomes)
        if told:
            self._tell(told)

    def _tell(self, outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Notice):
                self._history.add(outcome)
            elif isinstance(outcome, events.ClaimGranted):
                self._claimants.granted(outcome.claim)
            elif isinstance(outcome, events.ClaimOver):
                self._claimants.over(outcome.claim, outcome.error)
            elif isinstance(outcome, JobEnded):
                self._endings.add(outcome)
        self._listeners.tell(outcomes)

    def _say(self, kind: Kind, message: str, model: str = "", level: Level = Level.INFO) -> None:
        self._tell((Notice(kind, message, model, level),))

    def _touch(self) -> None:
        self._snapshot = None
        self._listeners.touch()

    def _rearm(self) -> None:
        """One timer for the earliest deadline, none when there is none."""
        deadline = self._scheduler.next_deadline()
        if self._timer is not None:
            # One that comes too early finds nothing to do and is set anew: cheaper than setting it for every request.
            if deadline is not None and self._timer.when() <= self._clock.on_loop(deadline):
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(self._clock.on_loop(deadline), self._time_passed)

    def _rearm_for(self, deadline: float | None) -> None:
        """This one is new, every other as it was."""
        if deadline is not None and (self._timer is None or self._timer.when() > self._clock.on_loop(deadline)):
            self._rearm()

    def _time_passed(self) -> None:
        self._timer = None
        self._post(events.TimePassed())
