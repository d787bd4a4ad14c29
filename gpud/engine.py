"""The one writer. Events go in one at a time, the scheduler decides, and what it decides is carried out here.

Owns the scheduler, the running engines and the one timer. Nothing here waits for an adapter before the next event is
taken: every load, stop, probe and look at the devices is a task of its own whose end is another event.
"""

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial

from gpud.core import estimate, events
from gpud.core.errors import BackendFailed, GpudError, NoSuchHold, NoSuchJob, NoSuchModel
from gpud.core.events import Action, Event, JobEnded, Kind, Level, LoadOptions, Notice, Outcome
from gpud.core.facts import (
    HOST,
    Caller,
    Endpoint,
    Exit,
    JobResult,
    JobStatus,
    Limits,
    Model,
    Snapshot,
    State,
)
from gpud.core.ports import Backend, Gpus, Launcher, LoadOrder, Progress, Runner, RunnerRecord, Store
from gpud.core.scheduler import Scheduler

log = logging.getLogger(__name__)

Listener = Callable[[tuple[Outcome, ...]], None]

# A busy probe is one local request; an engine that takes longer than this is not asked again now.
BUSY_PROBE_S = 5.0
# An engine of an earlier daemon that does not answer within this time is not taken over: recovery must be quick.
ADOPT_S = 5.0
# What a backend has, after it said that the memory is given back, to notice itself that the model is gone.
GONE_GRACE_S = 5.0
# Whoever asks for fresh figures gets the last known ones when the devices take longer than this.
REFRESH_S = 1.0
# Figures of this age may be shown: a program that asks all the time has the devices looked at no more often.
FRESH_S = 1.0


@dataclass(slots=True)
class _Running:
    """A runner, the start it belongs to, and the settings it was started with."""

    generation: int
    unit: str
    runner: Runner
    backend: Backend
    engine: str
    fingerprint: str


class Engine:
    """What the edges talk to. All methods are for the event loop's thread; only the ``async`` ones wait."""

    def __init__(
        self,
        *,
        models: Mapping[str, Model],
        limits: Limits,
        idle_timeout_s: float,
        backends: Mapping[str, Backend],
        gpus: Gpus,
        store: Store,
        launcher: Launcher,
        version: str,
        reload: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._models = dict(models)
        self._backends = dict(backends)
        self._gpus = gpus
        self._store = store
        self._launcher = launcher
        self._version = version
        self._reload = reload
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(models, limits)
        self._running: dict[str, _Running] = {}
        self._loading: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[Listener] = []
        self._waiters: dict[int, list[asyncio.Future[JobEnded]]] = {}
        self._looks: list[asyncio.Future[None]] = []
        self._looked_at_s: float | None = None
        self._jobs = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._snapshot: Snapshot | None = None
        self._gpu_problems: tuple[str, ...] = ()
        self._finished = asyncio.Event()
        self._starting: dict[str, Backend] = {}
        self._retired: list[Backend] = []

    # What can be asked -----------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything visible, put together once for each change."""
        if self._snapshot is None:
            self._snapshot = self._look_at_everything()
        return replace(self._snapshot, now_s=self._loop.time())

    def is_fresh(self) -> bool:
        """Whether the figures may be shown as they are. With nothing loaded any look will do: a driver that was let go
        is not taken up again because somebody watches.
        """
        if self._looked_at_s is None:
            return False
        return not self._running or self._loop.time() - self._looked_at_s < FRESH_S

    async def refresh(self) -> None:
        """Have the devices looked at again, without waking one that sleeps; returns early when they take too long."""
        seen: asyncio.Future[None] = self._loop.create_future()
        self._looks.append(seen)
        # The first look is under way since the start. One more behind it would find the drivers let go, and know less.
        if self._looked_at_s is not None:
            self._post(events.LookAsked())
        try:
            await asyncio.wait_for(seen, REFRESH_S)
        except TimeoutError:
            log.debug("The devices have not been looked at within %g s", REFRESH_S)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Be told after each event what happened; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def resolve(self, name: str) -> str:
        """The configured name that a user means: the name itself, an alias, or either with ``.gguf`` behind it."""
        for candidate in (name, name.removesuffix(".gguf")):
            if candidate in self._models:
                return candidate
            for model in self._models.values():
                if candidate in model.aliases:
                    return model.name
        known = list(self._models)
        near = get_close_matches(name, [*known, *(a for m in self._models.values() for a in m.aliases)], 1, 0.5)
        if not known:
            hint = "no model is configured: add one under models: in gpud.yaml"
        elif near:
            hint = f'did you mean "{near[0]}"?'
        else:
            hint = f"configured are {', '.join(known[:10])}" + (", …" if len(known) > 10 else "")
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
        self._post(events.CancelAsked(job))

    def job(self, job: int) -> JobStatus | None:
        return next((status for status in self._scheduler.job_statuses() if status.id == job), None)

    async def wait(self, job: int) -> JobEnded:
        """How a job ended. It must be asked for before the loop has run again, or while the job is still there."""
        future: asyncio.Future[JobEnded] = self._loop.create_future()
        self._waiters.setdefault(job, []).append(future)
        return await future

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

    def held_by_others(self, model: str, owner: str) -> bool:
        return self._scheduler.held_by_others(self.resolve(model), owner)

    def set_idle_timeout(self, timeout_s: float) -> None:
        self._idle_timeout_s = timeout_s
        self._post(events.IdleTimeoutSet(timeout_s))

    def set_budget(self, budget_bytes: int) -> None:
        self._post(events.BudgetSet(budget_bytes))

    async def reload(self) -> None:
        """Read the configuration again; raises ConfigInvalid and keeps the old one when it cannot be used."""
        if self._reload is not None:
            await self._reload()

    @asynccontextmanager
    async def use(self, model: str, caller: Caller) -> AsyncIterator[Endpoint]:
        """An engine that answers, for as long as the block lasts: loaded if need be, and never stopped meanwhile."""
        name = self.resolve(model)
        while self._scheduler.state_of(name) is not State.READY or name not in self._running:
            job = self.load(name, caller)
            try:
                ended = await self.wait(job)
            except asyncio.CancelledError:
                if self.job(job) is not None:
                    self._post(events.CancelAsked(job))
                raise
            if ended.result is not JobResult.DONE:
                raise BackendFailed(ended.message)
        self._post(events.UseBegan(name))
        running = self._running[name]
        try:
            yield running.runner.endpoint
        finally:
            if self._running.get(name) is running:
                self._post(events.UseEnded(name))

    # Beginning and end -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what an earlier daemon left, end what cannot be taken over, load what is to be there from the
        start.
        """
        records = self._store.records()
        taken = await asyncio.gather(*(self._take_over(record) for record in records))
        # Several models may share a process: it ends only when none of them was taken over.
        kept = {r.child.pid for r, adopted in zip(records, taken, strict=True) if adopted and r.child is not None}
        left = [record for record, adopted in zip(records, taken, strict=True) if not adopted]
        await asyncio.gather(*(self._end_leftover(record, kept) for record in left))
        units = {running.unit for running in self._running.values()}
        for unit in await self._launcher.end_strangers(units):
            self._say(Kind.LEFTOVER_ENDED, f"Ended what was left of {unit}: no record names it", level=Level.WARNING)
        caller = Caller("gpud", 0, label="the configuration")
        for model in self._models.values():
            if (model.preload or model.pinned) and model.name not in self._running:
                self._post(events.LoadAsked(next(self._jobs), model.name, caller))
        self._post(events.LookAsked())

    def shutdown(self) -> None:
        """Drain within the bound, then stop every engine. Called a second time: no longer wait for anything."""
        self._post(events.ShutdownAsked())

    async def finished(self) -> None:
        """Returns when every engine has been stopped after :meth:`shutdown`."""
        await self._finished.wait()

    async def close(self) -> None:
        """After :meth:`finished`: let go of everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for backend in (*self._backends.values(), *self._retired):
            await backend.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._gpus.release()
        for look in self._looks:
            look.cancel()
        for waiter in itertools.chain.from_iterable(self._waiters.values()):
            waiter.cancel()

    async def apply(
        self, *, models: Mapping[str, Model], limits: Limits, idle_timeout_s: float, backends: Mapping[str, Backend]
    ) -> None:
        """Take a new configuration. Engines that still match it are not touched."""
        prints = {
            name: await asyncio.to_thread(backends[model.engine].fingerprint, model)
            for name, model in models.items()
            if name in self._running and model.engine in backends
        }
        changed = frozenset(
            name for name, value in prints.items() if name in self._running and value != self._running[name].fingerprint
        )
        loading = frozenset(name for name in self._loading if models.get(name) != self._models.get(name))
        self._retired += [b for name, b in self._backends.items() if backends.get(name) is not b]
        self._models = dict(models)
        self._backends = dict(backends)
        self._idle_timeout_s = idle_timeout_s
        self._post(events.Reconfigured(models, limits, idle_timeout_s, changed | loading))
        self._close_retired()

    def _close_retired(self) -> None:
        """A backend that was replaced by a reload ends what it shares between models once its last one is gone."""
        used = [*(running.backend for running in self._running.values()), *self._starting.values()]
        for backend in [b for b in self._retired if not any(b is other for other in used)]:
            self._retired.remove(backend)
            self._start(self._close_backend(backend))

    async def _close_backend(self, backend: Backend) -> None:
        await backend.close()

    # The writer ------------------------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        actions = self._scheduler.handle(event, self._loop.time())
        self._snapshot = None
        outcomes: list[Outcome] = []
        for action in actions:
            self._carry_out(action, outcomes)
        self._rearm()
        told = tuple(outcomes)
        if told:
            self._tell(told)

    def _carry_out(self, action: Action, outcomes: list[Outcome]) -> None:
        match action:
            case events.Launch():
                task = self._start(self._load(action))
                task.add_done_callback(partial(self._never_began, action))
                self._loading[action.model.name] = (action.generation, task)
            case events.CancelLaunch(model, generation):
                started = self._loading.get(model)
                if started is not None and started[0] == generation:
                    started[1].cancel()
                else:
                    self._start(self._stop(model, generation, kill=False))
            case events.Stop(model, generation, kill):
                self._start(self._stop(model, generation, kill=kill))
            case events.AskBusy():
                self._start(self._ask_busy(action))
            case events.Sample():
                self._start(self._sample(action))
            case events.ReleaseGpus():
                self._start(self._gpus.release())
            case events.Learn(model, used_bytes):
                running = self._running.get(model)
                if running is not None:
                    self._store.learn(running.fingerprint, used_bytes)
            case events.Finish():
                self._finished.set()
            case _:
                outcomes.append(action)

    def _tell(self, outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, JobEnded):
                for future in self._waiters.pop(outcome.job, ()):
                    if not future.done():
                        future.set_result(outcome)
        for listener in tuple(self._listeners):
            try:
                listener(outcomes)
            except Exception:
                log.exception("internal error: a listener failed")

    def _say(self, kind: Kind, message: str, model: str = "", level: Level = Level.INFO) -> None:
        self._tell((Notice(kind, message, model, level),))

    def _rearm(self) -> None:
        """One timer for the earliest deadline, none when there is none."""
        deadline = self._scheduler.next_deadline()
        if self._timer is not None:
            if deadline == self._timer.when():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        self._post(events.TimePassed())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("internal error: a task failed", exc_info=task.exception())

    # Carrying out ----------------------------------------------------------------------------------------------------

    def _never_began(self, action: events.Launch, task: asyncio.Task[None]) -> None:
        """A load canceled in the turn in which it was ordered has not taken its first step: it says nothing itself."""
        if task.cancelled():
            if self._loading.get(action.model.name) == (action.generation, task):
                del self._loading[action.model.name]
            self._post(events.LoadEnded(action.model.name, action.generation))

    async def _load(self, action: events.Launch) -> None:
        model, generation = action.model, action.generation
        name = model.name
        unit = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:40]}-{secrets.token_hex(4)}"
        fingerprint = ""

        def report(progress: Progress) -> None:
            self._post(events.Progressed(name, generation, progress.stage, progress.fraction))

        def record(made: RunnerRecord) -> None:
            configured = self._models.get(name, model).settings.context
            context = model.settings.context if model.settings.context != configured else None
            self._store.keep(replace(made, reserved_bytes=action.need_bytes, context=context))

        devices = () if action.device == HOST else (action.device,)
        ended: Event
        try:
            backend = self._starting[unit] = self._backends[model.engine]
            fingerprint = await asyncio.to_thread(backend.fingerprint, model)
            runner = await backend.load(LoadOrder(model, unit, devices, action.vendor, report, record))
        except asyncio.CancelledError:
            ended = events.LoadEnded(name, generation)
        except BackendFailed as error:
            ended = events.LoadEnded(
                name, generation, error.message, error.hint, error.kind, error.tail, preflight=error.preflight
            )
        except GpudError as error:
            ended = events.LoadEnded(name, generation, error.message, error.hint, error.code)
        except Exception as error:
            log.exception("internal error: loading %r failed", name)
            ended = events.LoadEnded(name, generation, f"internal error: {error!r}", kind="internal")
        else:
            running = _Running(generation, unit, runner, backend, model.engine, fingerprint)
            self._running[name] = running
            self._start(self._watch(name, running))
            ended = events.BecameReady(name, generation)
        started = self._loading.get(name)
        if started is not None and started[0] == generation:
            del self._loading[name]
        self._starting.pop(unit, None)
        if isinstance(ended, events.LoadEnded):
            self._store.forget(unit)
        self._post(ended)
        self._close_retired()

    async def _watch(self, name: str, running: _Running) -> None:
        """An engine's end, whatever brought it about, is noticed here and only here."""
        gone = await running.runner.gone()
        self._lost(name, running, gone)

    def _lost(self, name: str, running: _Running, gone: Exit) -> None:
        if self._running.get(name) is not running:
            return
        del self._running[name]
        self._store.forget(running.unit)
        self._post(events.EngineGone(name, running.generation, gone, running.runner.crash_hint(gone)))
        self._close_retired()

    async def _stop(self, name: str, generation: int, *, kill: bool) -> None:
        running = self._running.get(name)
        if running is None or running.generation != generation:
            return
        model = self._models.get(name)
        times = model.stop if model is not None else Model(name, running.engine).stop
        runner = running.runner
        try:
            if not kill:
                await runner.unload(times, on_kill=lambda: self._post(events.KillBegan(name, generation)))
        except Exception:
            log.exception("internal error: stopping %r failed; it is killed", name)
            self._post(events.KillBegan(name, generation))
            kill = True
        if kill:
            try:
                await runner.kill()
            except Exception:
                log.exception("internal error: killing %r failed; see what is left of it", name)
        try:
            gone = await asyncio.wait_for(runner.gone(), GONE_GRACE_S)
        except TimeoutError:
            log.error("internal error: %r says that %r is unloaded but not that it is gone", running.engine, name)
            gone = Exit(0, None)
        self._lost(name, running, gone)

    async def _ask_busy(self, action: events.AskBusy) -> None:
        if action.delay_s:
            await asyncio.sleep(action.delay_s)
        running = self._running.get(action.model)
        busy: bool | None = None
        if running is not None and running.generation == action.generation:
            try:
                busy = await asyncio.wait_for(running.runner.busy(), BUSY_PROBE_S)
            except TimeoutError:
                log.debug("%r does not say whether it is busy", action.model)
            except Exception:
                log.exception("internal error: asking %r whether it is busy failed", action.model)
        self._post(events.BusyAnswered(action.model, action.generation, busy))

    async def _sample(self, action: events.Sample) -> None:
        if action.delay_s:
            await asyncio.sleep(action.delay_s)
        own = {name: running.runner.pids() for name, running in self._running.items()}
        pids = frozenset[int]().union(*own.values())
        sizes: dict[str, int] = {}
        unfit: dict[str, events.Unfit] = {}
        for name in action.check:
            model = self._models.get(name)
            if model is not None:
                await asyncio.to_thread(self._check, model, sizes, unfit)
        samples = await self._gpus.sample(pids, wake=action.wake)
        self._looked_at_s = self._loop.time()
        for problem in self._gpus.problems:
            if problem not in self._gpu_problems:
                self._say(Kind.GPU_PROBLEM, problem, level=Level.WARNING)
        self._gpu_problems = self._gpus.problems
        looks, self._looks = self._looks, []
        self._post(events.Sampled(samples, own, sizes, unfit, action.settling))
        for look in looks:
            if not look.done():
                look.set_result(None)

    def _check(self, model: Model, sizes: dict[str, int], unfit: dict[str, events.Unfit]) -> None:
        """In a thread: look at a model's files and programs, and find what it needs."""
        try:
            backend = self._backends[model.engine]
            backend.check(model)
            sizes[model.name] = self._need(backend, model)
        except GpudError as error:
            unfit[model.name] = events.Unfit(error.message, error.hint, getattr(error, "kind", error.code))
        except KeyError:
            unfit[model.name] = events.Unfit(f'the engine "{model.engine}" is not available')
        except Exception as error:
            log.exception("internal error: checking %r failed", model.name)
            unfit[model.name] = events.Unfit(f"internal error: {error!r}", kind="internal")

    def _need(self, backend: Backend, model: Model) -> int:
        """What is declared, else what was measured with these settings, else a first guess."""
        if model.size_bytes is not None:
            return model.size_bytes
        learned = self._store.learned(backend.fingerprint(model))
        if learned is not None:
            return learned
        return estimate.first_guess(backend.file_bytes(model), model.settings.context)

    async def _take_over(self, record: RunnerRecord) -> bool:
        """One engine of an earlier daemon: True when it was adopted because it answers."""
        model = self._models.get(record.model)
        backend = self._backends.get(record.engine)
        runner: Runner | None = None
        stale = False
        if model is not None and backend is not None and model.engine == record.engine:
            if record.context is not None:
                model = replace(model, settings=replace(model.settings, context=record.context))
            try:
                stale = await asyncio.to_thread(backend.fingerprint, model) != record.fingerprint
                runner = await asyncio.wait_for(backend.adopt(record, model), ADOPT_S)
            except Exception as error:
                log.warning("Cannot take over %r: %r", record.unit, error)
        if runner is None or backend is None:
            return False
        if record.model in self._running:
            log.warning("Two records name %r; the second one is ended", record.model)
            await runner.kill()
            return False
        generation = 1
        running = _Running(generation, record.unit, runner, backend, record.engine, record.fingerprint)
        self._running[record.model] = running
        device = record.devices[0] if record.devices else HOST
        self._post(events.Adopted(record.model, generation, device, record.reserved_bytes, record.context, stale=stale))
        self._start(self._watch(record.model, running))
        return True

    async def _end_leftover(self, record: RunnerRecord, kept: Collection[int]) -> None:
        if record.child is not None and record.child.pid not in kept:
            await self._launcher.end(record.child)
        self._store.forget(record.unit)
        text = f'Ended what was left of "{record.model}" ({record.unit}): it did not answer or is not configured'
        self._say(Kind.LEFTOVER_ENDED, text, record.model, Level.WARNING)

    # The picture -----------------------------------------------------------------------------------------------------

    def _look_at_everything(self) -> Snapshot:
        models = []
        for status in self._scheduler.model_statuses():
            running = self._running.get(status.model.name)
            if running is None:
                models.append(status)
            else:
                # Those of the last look; right after a start or a take-over there has been none.
                pids = tuple(sorted(self._scheduler.pids_of(status.model.name) or running.runner.pids()))
                models.append(replace(status, endpoint=running.runner.endpoint, pids=pids))
        gpus = self._scheduler.gpu_statuses()
        if any(gpu.sample.health for gpu in gpus):
            degraded = "gpu-unavailable"
        elif self._store.problem:
            degraded = "state-not-kept"
        else:
            degraded = ""
        states = {model.state for model in models}
        if State.LOADING in states:
            state = "loading"
        elif states & {State.DRAINING, State.STOPPING, State.KILLING}:
            state = "unloading"
        elif State.READY in states:
            state = "active"
        elif degraded == "gpu-unavailable":
            state = "unavailable"
        else:
            state = "idle"
        return Snapshot(
            now_s=0.0,
            state=state,
            degraded=degraded,
            models=tuple(models),
            gpus=gpus,
            jobs=self._scheduler.job_statuses(),
            holds=self._scheduler.hold_statuses(),
            idle_timeout_s=self._idle_timeout_s,
            version=self._version,
        )
