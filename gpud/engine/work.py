"""What the scheduler decided is carried out here: each load, stop, question and look is a task whose end is an event.

Owns the running engines and the tasks. Decides nothing, and never waits for one piece of work before it begins another.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, assert_never

from gpud.core import estimate, events
from gpud.core.errors import BackendFailed, GpudError
from gpud.core.events import Event, Kind, Level
from gpud.core.facts import HOST, Exit, Model
from gpud.core.ports import Backend, Gpus, Launcher, LoadOrder, Progress, Runner, RunnerRecord, Store
from gpud.engine.checks import Checks, Unanswered

log = logging.getLogger(__name__)

# A busy probe is one local request; an engine that takes longer than this is not asked again now.
BUSY_PROBE_S = 5.0
# An engine of an earlier daemon that does not answer within this time is not taken over: recovery must be quick.
ADOPT_S = 5.0
# What a backend has, after it said that the memory is given back, to notice itself that the model is gone.
GONE_GRACE_S = 5.0


# A look at a few files takes milliseconds, from a disk that has to spin up ten seconds.
CHECK_S = 20.0


class Say(Protocol):
    """Tells everybody something that happened outside the scheduler."""

    def __call__(self, kind: Kind, message: str, model: str = "", level: Level = Level.INFO) -> None: ...


@dataclass(slots=True)
class Running:
    """A runner, the start it belongs to, and the settings it was started with."""

    generation: int
    unit: str
    runner: Runner
    backend: Backend
    engine: str
    fingerprint: str


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
    ) -> None:
        self.models = dict(models)
        self.backends = dict(backends)
        self.running: dict[str, Running] = {}
        self.looks: list[asyncio.Future[None]] = []
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
        self._checks = Checks(CHECK_S)

    def begin(self, action: events.Work) -> None:
        """Begin to carry out one action; what comes of it is posted."""
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
                running = self.running.get(model)
                if running is not None and running.fingerprint:
                    self._start(self._learn(running.fingerprint, used_bytes))
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
        units = {running.unit for running in self.running.values()}
        for unit in await self._launcher.end_strangers(units):
            self._say(Kind.LEFTOVER_ENDED, f"Ended what was left of {unit}: no record names it", level=Level.WARNING)

    async def changed(self, models: Mapping[str, Model], backends: Mapping[str, Backend]) -> frozenset[str]:
        """The models whose engines, running or starting, no longer match these settings."""
        prints = {
            name: await self._fingerprint(backends[model.engine], model)
            for name, model in models.items()
            if name in self.running and model.engine in backends
        }
        running = {
            name
            for name, value in prints.items()
            if name in self.running and value not in ("", self.running[name].fingerprint)
        }
        loading = {name for name in self._loading if models.get(name) != self.models.get(name)}
        return frozenset(running | loading)

    def reconfigure(self, models: Mapping[str, Model], backends: Mapping[str, Backend]) -> None:
        """From now on these. A backend that is replaced is closed once its last model has gone."""
        self._retired += [b for name, b in self.backends.items() if backends.get(name) is not b]
        self.models = dict(models)
        self.backends = dict(backends)

    async def close(self) -> None:
        """Nothing runs any more: let go of the backends, the tasks and the devices."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        for backend in (*self.backends.values(), *self._retired):
            await backend.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
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
        fingerprint = ""

        def report(progress: Progress) -> None:
            self._post(events.Progressed(name, generation, progress.stage, progress.fraction))

        def record(made: RunnerRecord) -> None:
            configured = self.models.get(name, model).settings.context
            context = model.settings.context if model.settings.context != configured else None
            self._store.keep(replace(made, reserved_bytes=action.need_bytes, context=context))

        devices = () if action.device == HOST else (action.device,)
        ended: Event
        try:
            backend = self._starting[unit] = self.backends[model.engine]
            fingerprint = await self._fingerprint(backend, model)
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
            running = Running(generation, unit, runner, backend, model.engine, fingerprint)
            self.running[name] = running
            self._start(self._watch(name, running))
            ended = events.BecameReady(name, generation)
        started = self._loading.get(name)
        if started is not None and started[0] == generation:
            del self._loading[name]
        self._starting.pop(unit, None)
        if isinstance(ended, events.LoadEnded):
            self._store.forget(unit)
        self._post(ended)
        self.close_retired()

    async def _watch(self, name: str, running: Running) -> None:
        """An engine's end, whatever brought it about, is noticed here and only here."""
        gone = await running.runner.gone()
        self._lost(name, running, gone)

    def _lost(self, name: str, running: Running, gone: Exit) -> None:
        if self.running.get(name) is not running:
            return
        del self.running[name]
        self._store.forget(running.unit)
        self._post(events.EngineGone(name, running.generation, gone, running.runner.crash_hint(gone)))
        self.close_retired()

    async def _stop(self, name: str, generation: int, *, kill: bool) -> None:
        running = self.running.get(name)
        if running is None or running.generation != generation:
            return
        model = self.models.get(name)
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
        running = self.running.get(action.model)
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
        own = {name: running.runner.pids() for name, running in self.running.items()}
        pids = frozenset[int]().union(*own.values())
        sizes: dict[str, int] = {}
        unfit: dict[str, events.Unfit] = {}
        found = await asyncio.gather(*(self._check(model) for model in action.check))
        for model, need in zip(action.check, found, strict=True):
            if isinstance(need, events.Unfit):
                unfit[model.name] = need
            else:
                sizes[model.name] = need
        try:
            samples = await self._gpus.sample(pids, wake=action.wake)
        except Exception:
            # Nothing is admitted on figures that are not there, and everybody who waits is told so.
            log.exception("internal error: looking at the devices failed")
            samples = ()
        self.looked_at_s = self._loop.time()
        for problem in self._gpus.problems:
            if problem not in self._gpu_problems:
                self._say(Kind.GPU_PROBLEM, problem, level=Level.WARNING)
        self._gpu_problems = self._gpus.problems
        looks, self.looks = self.looks, []
        self._post(events.Sampled(samples, own, sizes, unfit, action.settling, action.check))
        for look in looks:
            if not look.done():
                look.set_result(None)

    async def _check(self, model: Model) -> int | events.Unfit:
        """Look at a model's files and programs, and find what it needs."""
        backend = self.backends.get(model.engine)
        if backend is None:
            return events.Unfit(f'the engine "{model.engine}" is not available')
        try:
            return await self._checks.ask(model.name, partial(self._need, backend, model))
        except Unanswered:
            return events.Unfit(
                f'cannot load "{model.name}": a look at its files and programs has not ended within {CHECK_S:g} s',
                "see whether the file systems that they lie on answer (df)",
                "timeout",
            )
        except GpudError as error:
            return events.Unfit(error.message, error.hint, getattr(error, "kind", error.code))
        except Exception as error:
            log.exception("internal error: checking %r failed", model.name)
            return events.Unfit(f"internal error: {error!r}", kind="internal")

    async def _learn(self, fingerprint: str, used_bytes: int) -> None:
        """In a thread: the disk may be slow. Whether it takes what is written can be seen from outside."""
        before = self._store.problem
        await asyncio.to_thread(self._store.learn, fingerprint, used_bytes)
        if self._store.problem != before:
            self._touch()

    async def _fingerprint(self, backend: Backend, model: Model) -> str:
        """Of the settings as they are now; empty, which matches any, while the files do not answer: an engine that runs
        is not ended for that.
        """
        try:
            return await self._checks.ask(model.name, partial(backend.fingerprint, model))
        except Unanswered:
            log.warning("The files of %r have not answered within %g s", model.name, CHECK_S)
            return ""

    def _need(self, backend: Backend, model: Model) -> int:
        """In a thread: what is declared, else what was measured with these settings, else a first guess."""
        backend.check(model)
        if model.size_bytes is not None:
            return model.size_bytes
        learned = self._store.learned(backend.fingerprint(model))
        if learned is not None:
            return learned
        return estimate.first_guess(backend.file_bytes(model), model.settings.context)

    async def _take_over(self, record: RunnerRecord) -> bool:
        """One engine of an earlier daemon: True when it was adopted because it answers."""
        model = self.models.get(record.model)
        backend = self.backends.get(record.engine)
        runner: Runner | None = None
        stale = False
        if model is not None and backend is not None and model.engine == record.engine:
            if record.context is not None:
                model = replace(model, settings=replace(model.settings, context=record.context))
            try:
                stale = await self._fingerprint(backend, model) not in ("", record.fingerprint)
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
        running = Running(generation, record.unit, runner, backend, record.engine, record.fingerprint)
        self.running[record.model] = running
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
