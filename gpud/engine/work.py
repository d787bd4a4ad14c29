"""What the scheduler decided is carried out here: each load, stop, question and look is a task whose end is an event.

Owns the running engines and the tasks. Decides nothing, and never waits for one piece of work before it begins another.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Protocol, assert_never

from gpud.core import events
from gpud.core.errors import BackendFailed, GpudError
from gpud.core.events import Event, Kind, Level
from gpud.core.facts import HOST, Exit, GpuSample, Model
from gpud.core.instance import as_offered
from gpud.core.ports import (
    Backend,
    Files,
    Gpus,
    Launcher,
    LoadOrder,
    Progress,
    Runner,
    RunnerRecord,
    Store,
    Warmer,
)
from gpud.core.quote import Estimate, Offer, Quote, Share
from gpud.core.record import replace
from gpud.core.stock import Stock
from gpud.engine.checks import Unanswered
from gpud.engine.quoting import Quoting, Refuses
from gpud.engine.sizing import Machine, Sizer
from gpud.engine.starts import Running, Start, as_started, is_launched_alike

log = logging.getLogger(__name__)

# A busy probe is one local request; an engine that takes longer than this is not asked again now.
BUSY_PROBE_S = 5.0
# An engine of an earlier daemon that does not answer within this time is not taken over: recovery must be quick.
ADOPT_S = 5.0
# What a backend has, after it said that the memory is given back, to notice itself that the model is gone.
GONE_GRACE_S = 5.0


class Say(Protocol):
    """Tells everybody something that happened outside the scheduler."""

    def __call__(self, kind: Kind, message: str, model: str = "", level: Level = Level.INFO) -> None: ...


class Work:
    """``post`` takes an event to the writer, ``touch`` tells it that something new can be seen.

    ``looks`` are resolved when the devices have been looked at.
    """

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        say: Say,
        touch: Callable[[], None],
        models: Mapping[str, Model],
        backends: Mapping[str, Backend],
        gpus: Gpus,
        store: Store,
        launcher: Launcher,
        files: Files,
        warmer: Warmer | None = None,
        refuses: Refuses | None = None,
        clock: Callable[[], float] | None = None,
        look_first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.models = Stock.of(models)
        self.backends = backends
        self.running: dict[str, Running] = {}
        self.looks: set[asyncio.Future[None]] = set()
        self.looked_at_s: float | None = None
        self._post = post
        self._say = say
        self._touch = touch
        self._gpus = gpus
        self._store = store
        self._launcher = launcher
        self._loop = asyncio.get_running_loop()
        self._loading: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._starting: dict[str, Backend] = {}
        self._retired: list[Backend] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gpu_problems: tuple[str, ...] = ()
        self._samples: tuple[GpuSample, ...] = ()
        self._starting_pids: dict[str, frozenset[int]] = {}
        self._sizer = Sizer(files, store)
        self._quoting = Quoting(self._sizer, lambda engine: self.backends.get(engine), refuses)
        self._warmer = warmer
        self._now = clock or self._loop.time
        self._look_first = look_first

    def begin(self, action: events.Work) -> None:
        """Begin to carry out one action; what comes of it is posted."""
        match action:
            case events.Launch():
                task = self._start(self._load(action))
                task.add_done_callback(partial(self._never_began, action))
                self._loading[action.model.name] = (action.generation, task)
            case events.CancelLaunch(model, generation, kill):
                started = self._loading.get(model)
                if started is not None and started[0] == generation:
                    started[1].cancel()
                else:
                    self._start(self._stop(model, generation, kill=kill))
            case events.Stop(model, generation, kill):
                self._start(self._stop(model, generation, kill=kill))
            case events.AskBusy():
                self._start(self._ask_busy(action))
            case events.Sample():
                self._start(self._sample(action))
            case events.ReleaseGpus():
                self._start(self._gpus.release())
            case events.Learn():
                self._start(self._learn(action))
            case events.Warm(model):
                self._start(self._warm(model))
            case _:
                assert_never(action)

    async def take_over(self) -> None:
        """Adopt what an earlier daemon left and still answers; end the rest, and what no record names."""
        records = self._store.records()
        taken = await asyncio.gather(*(self._take_over(record) for record in records))
        # Several models may share a process: it ends only when none of them was taken over.
        kept = {r.child.pid for r, adopted in zip(records, taken, strict=True) if adopted and r.child is not None}
        left = [record for record, adopted in zip(records, taken, strict=True) if not adopted]
        await asyncio.gather(*(self._end_leftover(record, kept) for record in left))
        units = {running.start.unit for running in self.running.values()}
        for unit in await self._launcher.end_strangers(units):
            self._say(Kind.LEFTOVER_ENDED, f"Ended what was left of {unit}: no record names it", level=Level.WARNING)

    async def changed(self, models: Mapping[str, Model], backends: Mapping[str, Backend]) -> frozenset[str]:
        """The models whose engines, running or starting, no longer match these settings."""
        asked: dict[str, Running] = {}
        running: set[str] = set()
        # While one is asked about, others become ready.
        while new := {n: one for n, one in self.running.items() if n in models and asked.get(n) is not one}:
            asked |= new
            for name, one in new.items():
                if not await self._still_matches(one, models[name], backends):
                    running.add(name)
        loading = {name for name in self._loading if not is_launched_alike(self.models.get(name), models.get(name))}
        return frozenset(running | loading)

    async def _still_matches(self, running: Running, model: Model, backends: Mapping[str, Backend]) -> bool:
        started = as_started(model, running.start.engine, running.start.context, running.start.layers)
        if started is None or running.start.engine not in backends:
            return False
        return await self._quoting.fingerprint(backends[running.start.engine], started) in (
            "",
            running.start.fingerprint,
        )

    def reconfigure(self, models: Mapping[str, Model], backends: Mapping[str, Backend]) -> None:
        """From now on these. A backend that is replaced is closed once its last model has gone."""
        self._retired += [b for name, b in self.backends.items() if backends.get(name) is not b]
        self.models = Stock.of(models)
        self.backends = backends

    async def close(self) -> None:
        """Nothing runs any more: let go of the backends, the tasks and the devices."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        for backend in (*self.backends.values(), *self._retired):
            await backend.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # What is to be called when they have ended is called as well: gather() would not wait for it (Python 3.12).
            await asyncio.wait(self._tasks)
        await self._gpus.release()
        for look in self.looks:
            look.cancel()

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
        gpus = tuple(g for share in action.shares for g in self._samples if g.uuid == share.device and not g.is_host)
        start = Start(generation, unit, model.engine, layers=action.offer.layers, gpus=gpus)
        ended: Event
        try:
            backend = self._starting[unit] = self.backends[model.engine]
            configured = as_offered(self.models.get(name, model), Offer((), engine=model.engine), None)
            if model.settings.context != configured.settings.context:
                start.context = model.settings.context
            start.fingerprint, start.build = await self._quoting.identify(backend, model)
            runner = await backend.load(self._order(action, start))
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
            running = self.running[name] = Running(start, runner, backend)
            self._start(self._watch(name, running))
            ended = events.BecameReady(name, generation)
        started = self._loading.get(name)
        if started is not None and started[0] == generation:
            del self._loading[name]
            self._starting_pids.pop(name, None)
        self._starting.pop(unit, None)
        if isinstance(ended, events.LoadEnded):
            self._store.forget(unit)
        self._post(ended)
        self.close_retired()

    def _order(self, action: events.Launch, start: Start) -> LoadOrder:
        name, generation = action.model.name, action.generation

        def report(progress: Progress) -> None:
            self._post(events.Progressed(name, generation, progress.stage, progress.fraction))

        def record(made: RunnerRecord) -> None:
            if made.child is not None:
                self._starting_pids[name] = frozenset((made.child.pid,))
            self._store.keep(replace(made, shares=action.shares, context=start.context, layers=start.layers))

        def sized(counted: Estimate) -> None:
            start.counted = counted
            if action.offer.key:
                self._start(self._in_thread(partial(self._sizer.heard, action.offer.key, counted)))
            shares = self._sizer.shares_of(counted, start.gpus, start.build)
            self._post(events.Sized(name, generation, shares))

        devices = tuple(share.device for share in action.shares if share.device != HOST)
        offer = action.offer
        return LoadOrder(
            action.model,
            start.unit,
            devices,
            action.vendor,
            report,
            record,
            offer.split,
            offer.unproven,
            sized,
            start.gpus,
        )

    async def _watch(self, name: str, running: Running) -> None:
        """An engine's end, whatever brought it about, is noticed here and only here."""
        gone = await running.runner.gone()
        self._lost(name, running, gone)

    def _lost(self, name: str, running: Running, gone: Exit) -> None:
        if self.running.get(name) is not running:
            return
        del self.running[name]
        self._store.forget(running.start.unit)
        self._post(events.EngineGone(name, running.start.generation, gone, running.runner.crash_hint(gone)))
        self.close_retired()

    async def _stop(self, name: str, generation: int, *, kill: bool) -> None:
        running = self.running.get(name)
        if running is None or running.start.generation != generation:
            return
        model = self.models.get(name)
        times = model.stop if model is not None else Model(name, running.start.engine).stop
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
            log.error("internal error: %r says that %r is unloaded but not that it is gone", running.start.engine, name)
            gone = Exit(0, None)
        self._lost(name, running, gone)

    async def _ask_busy(self, action: events.AskBusy) -> None:
        if action.delay_s:
            await asyncio.sleep(action.delay_s)
        running = self.running.get(action.model)
        busy: bool | None = None
        if running is not None and running.start.generation == action.generation:
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
        try:
            seen = await self._seen(action)
        except Exception as error:
            # Nothing would be looked at any more if this look did not come, and nothing loaded.
            log.exception("internal error: a look at the devices failed")
            unfit = dict.fromkeys(
                (m.name for m in action.check), events.Unfit(f"internal error: {error!r}", kind="internal")
            )
            claimed = dict.fromkeys(action.claims, frozenset[int]())
            seen = events.Sampled((), {}, {}, unfit, action.settling, action.check, claimed, action.tickets)
        looks, self.looks = self.looks, set()
        self._post(seen)
        for look in looks:
            if not look.done():
                look.set_result(None)

    async def _seen(self, action: events.Sample) -> events.Sampled:
        if self._look_first is not None:
            await self._look_first()
        quotes: dict[str, Quote] = {}
        unfit: dict[str, events.Unfit] = {}
        if action.check and not self._samples:
            self._samples = await self._look(self._own_pids(), wake=action.wake)
        machine = Machine.of(self._samples)
        found = await asyncio.gather(*(self._quoting.quote(model, machine) for model in action.check))
        for model, answer in zip(action.check, found, strict=True):
            if isinstance(answer, events.Unfit):
                unfit[model.name] = answer
            else:
                quotes[model.name] = answer
        claimed = await self._families(action.claims)
        before = self._processes()
        samples = await self._look(frozenset[int]().union(*before.values(), *claimed.values()), wake=action.wake)
        # Who was started during the look may be in it, and so may a process that has ended since, of an engine that is
        # still one: neither is a stranger.
        after = self._processes()
        own = {name: pids | before.get((name, number), frozenset()) for (name, number), pids in after.items()}
        self._samples = samples
        self.looked_at_s = self._now()
        for problem in self._gpus.problems:
            if problem not in self._gpu_problems:
                self._say(Kind.GPU_PROBLEM, problem, level=Level.WARNING)
        self._gpu_problems = self._gpus.problems
        return events.Sampled(samples, own, quotes, unfit, action.settling, action.check, claimed, action.tickets)

    def _processes(self) -> Mapping[tuple[str, int], frozenset[int]]:
        """Those of every engine, by model and generation, also of those that are still loading."""
        pids_of = self._starting_pids
        loading = {(name, load[0]): pids_of[name] for name, load in self._loading.items() if name in pids_of}
        running = {(name, each.start.generation): each.runner.pids() for name, each in self.running.items()}
        return {**loading, **running}

    def _own_pids(self) -> frozenset[int]:
        return frozenset[int]().union(*self._processes().values())

    async def _look(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        try:
            return await self._gpus.sample(own, wake=wake)
        except Exception:
            # Nothing is admitted on figures that are not there, and everybody who waits is told so.
            log.exception("internal error: looking at the devices failed")
            return ()

    async def _families(self, claims: Mapping[int, int]) -> Mapping[int, frozenset[int]]:
        """The processes of each claim: whoever asked, and what it started."""
        if not claims:
            return {}
        return await asyncio.to_thread(lambda: {claim: self._launcher.family(pid) for claim, pid in claims.items()})

    async def quote(self, model: Model) -> Quote | events.Unfit:
        """What a model would need now."""
        if not self._samples:
            self._samples = await self._look(self._own_pids(), wake=False)
        return await self._quoting.quote(model, Machine.of(self._samples))

    async def _learn(self, action: events.Learn) -> None:
        """In a thread: the disk may be slow. Whether it takes what is written can be seen from outside."""
        running = self.running.get(action.model)
        if running is None or not running.start.fingerprint:
            return
        before = self._store.problem
        await asyncio.to_thread(
            self._sizer.settled,
            running.start.fingerprint,
            running.start.build,
            action.shares,
            action.load_s,
            running.start.gpus,
            running.start.counted,
        )
        if self._store.problem != before:
            self._touch()

    async def _warm(self, model: Model) -> None:
        """Read the file ahead that its engine would read. What stands in the way is told when somebody loads it."""
        backend = self.backends.get(model.engine)
        if self._warmer is None or backend is None:
            return
        try:
            plan = await self._quoting.ask(model.name, partial(backend.plan, model, 0))
        except (Unanswered, GpudError) as problem:
            log.debug("The file of %r is not read ahead: %r", model.name, problem)
            return
        if plan is not None and plan.file:
            await self._warmer.warm(plan.file)

    async def _in_thread(self, what: Callable[[], None]) -> None:
        await asyncio.to_thread(what)

    async def _take_over(self, record: RunnerRecord) -> bool:
        """One engine of an earlier daemon: True when it was adopted because it answers."""
        configured = self.models.get(record.model)
        backend = self.backends.get(record.engine)
        runner: Runner | None = None
        stale = False
        model = None if configured is None else as_started(configured, record.engine, record.context, record.layers)
        if model is not None and backend is not None:
            try:
                stale = await self._quoting.fingerprint(backend, model) not in ("", record.fingerprint)
                runner = await asyncio.wait_for(backend.adopt(record, model), ADOPT_S)
            except Exception as error:
                log.warning("Cannot take over %r: %r", record.unit, error)
        if runner is None or backend is None:
            return False
        if record.model in self.running:
            log.warning("Two records name %r; the second one is ended", record.model)
            await runner.kill()
            return False
        generation = 1
        start = Start(generation, record.unit, record.engine, record.fingerprint, record.context, record.layers)
        running = self.running[record.model] = Running(start, runner, backend)
        shares = record.shares or (Share(record.devices[0] if record.devices else HOST, 0),)
        self._post(
            events.Adopted(
                record.model, generation, shares, record.context, record.layers, stale=stale, engine=record.engine
            )
        )
        self._start(self._watch(record.model, running))
        return True

    async def _end_leftover(self, record: RunnerRecord, kept: Collection[int]) -> None:
        if record.child is not None and record.child.pid not in kept:
            await self._launcher.end(record.child)
        self._store.forget(record.unit)
        text = f'Ended what was left of "{record.model}" ({record.unit}): it did not answer or is not configured'
        self._say(Kind.LEFTOVER_ENDED, text, record.model, Level.WARNING)

    def close_retired(self) -> None:
        """A backend that was replaced by a reload ends what it shares between models once its last one is gone."""
        used = [*(running.backend for running in self.running.values()), *self._starting.values()]
        for backend in [b for b in self._retired if not any(b is other for other in used)]:
            self._retired.remove(backend)
            task = self._start(self._close_backend(backend))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_backend(self, backend: Backend) -> None:
        await backend.close()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("internal error: a task failed", exc_info=task.exception())
