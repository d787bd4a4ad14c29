"""An engine that only remembers what it was asked, and shows what the test sets."""

import asyncio
import itertools
import secrets
from collections.abc import Callable
from typing import Any

from gpud.core.admission import Considered
from gpud.core.errors import ConfigInvalid, GpudError, NoSuchClaim, NoSuchHold, NoSuchJob, NoSuchModel
from gpud.core.events import (
    ClaimGranted,
    ClaimOver,
    HoldEnded,
    JobEnded,
    LoadOptions,
    Logged,
    ModelChanged,
    Outcome,
    SessionsChanged,
    Touched,
    UnloadResult,
)
from gpud.core.facts import (
    Caller,
    ClaimStatus,
    GpuProcess,
    GpuSample,
    GpuStatus,
    HoldStatus,
    JobKind,
    JobResult,
    JobStatus,
    Model,
    ModelStatus,
    Priority,
    QueueStatus,
    Session,
    SessionStatus,
    Snapshot,
    State,
    YieldStatus,
)
from gpud.core.quote import Quote
from gpud.core.record import replace
from gpud.engine.shelf import Past

GIB = 1 << 30
NO_OPTIONS = LoadOptions()


def status(name: str, state: State = State.COLD, **changes: Any) -> ModelStatus:
    return replace(ModelStatus(model=Model(name=name, engine="llama_server"), state=state), **changes)


class NothingKnown:
    """A library that knows nothing of any model but its name."""

    version = uses_kept = 0

    def __init__(self) -> None:
        self.needs: dict[str, int] = {}
        self.past: dict[str, Past] = {}

    def need_of(self, name: str) -> int | None:
        return self.needs.get(name)

    def past_of(self, name: str) -> Past | None:
        return self.past.get(name)


class FakeEngine:
    """``calls`` holds what was asked, in order; ``fail`` makes the next load raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.library = NothingKnown()
        self.models = {"tiny": status("tiny"), "big": status("big")}
        self.gpus = (gpu(),)
        self.jobs: dict[int, JobStatus] = {}
        self.ended: dict[int, JobEnded] = {}
        self.holds: dict[int, HoldStatus] = {}
        self.now_s = 1000.0
        self.state = "idle"
        self.idle_timeout_s = 300.0
        self.problems: list[str] = []
        self.fail: Exception | None = None
        self.end_loads_at_once = False
        self.claims: dict[int, ClaimStatus] = {}
        self.grant_at_once = True
        self.queue: tuple[QueueStatus, ...] = ()
        self.yielded: YieldStatus | None = None
        self.records: tuple[Logged, ...] = ()
        self.answer = Considered("fits", "GPU-1")
        self.quotes: dict[str, Quote] = {}
        self.sessions: dict[str, Session] = {}
        self._waiting: dict[int, asyncio.Future[ClaimStatus]] = {}
        self.fresh_gpus: tuple[GpuStatus, ...] | None = None
        self._numbers = itertools.count(1)
        self._listeners: list[Callable[[tuple[Outcome, ...]], None]] = []

    # What the bus asks

    def is_fresh(self) -> bool:
        return self.fresh_gpus is None

    async def refresh(self) -> None:
        assert self.fresh_gpus is not None
        self.gpus, self.fresh_gpus = self.fresh_gpus, None

    def snapshot(self) -> Snapshot:
        counts = {name: sum(hold.model == name for hold in self.holds.values()) for name in self.models}
        return Snapshot(
            now_s=self.now_s,
            state=self.state,
            degraded="",
            models=tuple(replace(model, holds=counts[name]) for name, model in self.models.items()),
            gpus=self.gpus,
            jobs=tuple(self.jobs.values()),
            holds=tuple(self.holds.values()),
            idle_timeout_s=self.idle_timeout_s,
            claims=tuple(self.claims.values()),
            queue=self.queue,
            yielded=self.yielded,
            sessions=tuple(SessionStatus(session, self.now_s, (), ()) for session in self.sessions.values()),
        )

    def resolve(self, model: str) -> str:
        if model not in self.models:
            raise NoSuchModel(f'there is no model "{model}"')
        return model

    def load(self, model: str, caller: Caller, options: LoadOptions = NO_OPTIONS) -> int:
        self.calls.append(("load", model, caller, options))
        if self.fail is not None:
            raise self.fail
        if model not in self.models:
            raise NoSuchModel(f'there is no model "{model}"', hint='did you mean "tiny"?')
        job = self._job(JobKind.LOAD, model, caller)
        if options.hold:
            self._hold(model, caller, "loaded", "", frozenset({"unload", "evict"}))
        if self.end_loads_at_once:
            self.end(job)
        return job

    def unload(self, model: str, caller: Caller, *, force: bool = False, others: bool = False) -> int:
        self.calls.append(("unload", model, caller, force, others))
        if self.fail is not None:
            raise self.fail
        return self._job(JobKind.UNLOAD, model, caller)

    def cancel(self, job: int, caller: Caller, *, any_owner: bool = False) -> None:
        self.calls.append(("cancel", job, caller, any_owner))
        self.end(job, JobResult.CANCELED, "canceled")

    def job(self, job: int) -> JobStatus | None:
        return self.jobs.get(job)

    async def wait(self, job: int) -> JobEnded:
        if job not in self.ended:
            raise NoSuchJob(f"there is no job {job}", hint="it may have ended long ago")
        return self.ended[job]

    def hold(self, model: str, caller: Caller, *, reason: str, application: str) -> int:
        self.calls.append(("hold", model, caller, reason, application))
        return self._hold(model, caller, reason, application, frozenset({"unload", "evict"}))

    def inhibit(self, what: frozenset[str], caller: Caller, *, who: str, why: str) -> int:
        self.calls.append(("inhibit", what, caller, who, why))
        return self._hold("", caller, why, who, what)

    def release(self, cookie: int, owner: str) -> None:
        self.calls.append(("release", cookie, owner))
        hold = self.holds.get(cookie)
        if hold is None or hold.caller.owner != owner:
            raise NoSuchHold(f"{owner} has no hold {cookie}")
        self.drop_hold(cookie, "released")

    def release_owner(self, owner: str) -> None:
        self.calls.append(("release_owner", owner))
        for cookie in [cookie for cookie, hold in self.holds.items() if hold.caller.owner == owner]:
            self.drop_hold(cookie, "owner gone")
        jobs = list(self.jobs.values())
        for job in [job.id for job in jobs if job.caller.owner == owner and job.kind is JobKind.DOWNLOAD]:
            self.end(job, JobResult.FAILED, "owner gone")

    def session_began(self, session: Session) -> None:
        self.calls.append(("session_began", session))
        self.sessions[session.id] = session
        self.tell(SessionsChanged())

    def session_ended(self, session: Session, reason: str) -> None:
        self.calls.append(("session_ended", session, reason))
        for cookie in [cookie for cookie, hold in self.holds.items() if hold.caller.owner == session.owner]:
            self.drop_hold(cookie, reason)
        del self.sessions[session.id]
        self.tell(SessionsChanged())

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
        self.calls.append(("claim", size_bytes, caller, who, why, gpu, priority, wait_s))
        if self.fail is not None:
            raise self.fail
        number = next(self._numbers)
        waits = "1 of 2 in the queue"
        self.claims[number] = ClaimStatus(number, caller, who, why, size_bytes, self.now_s, priority, waits_for=waits)
        self.tell(Touched())
        if self.grant_at_once:
            self.grant(number)
        return number

    async def claimed(self, claim: int) -> ClaimStatus:
        if claim not in self.claims:
            raise NoSuchClaim(f"there is no claim {claim}")
        if self.claims[claim].granted:
            return self.claims[claim]
        waiter = self._waiting[claim] = asyncio.get_running_loop().create_future()
        return await waiter

    def drop_claim(self, claim: int, reason: str) -> None:
        self.calls.append(("drop_claim", claim, reason))
        if self.claims.pop(claim, None) is not None:
            self.tell(ClaimOver(claim, None, reason))

    def yield_gpus(self, caller: Caller, *, why: str, for_s: float | None = None) -> None:
        self.calls.append(("yield", caller.uid, why, for_s))
        until_s = None if for_s is None else self.now_s + for_s
        self.yielded = YieldStatus(caller, why, self.now_s, until_s)
        self.tell(Touched())

    def resume(self, caller: Caller) -> None:
        self.calls.append(("resume", caller.uid))
        self.yielded = None
        self.tell(Touched())

    async def explain(self, model: str, limit: int = 20) -> tuple[Logged, ...]:
        self.calls.append(("explain", model, limit))
        return self.records

    def consider(self, size_bytes: int, *, gpu: str = "") -> Considered:
        self.calls.append(("consider", size_bytes, gpu))
        return self.answer

    async def quote(self, model: str, *, context: int | None = None, layers: int | None = None) -> Quote:
        self.calls.append(("quote", model, context, layers))
        if model not in self.quotes:
            raise NoSuchModel(f'there is no model "{model}"')
        return self.quotes[model]

    def begin_download(self, caller: Caller, what: str, total_bytes: int | None) -> int:
        self.calls.append(("begin_download", caller, what, total_bytes))
        job = next(self._numbers)
        self.jobs[job] = JobStatus(job, JobKind.DOWNLOAD, what, caller, self.now_s, "downloading", None, 0, total_bytes)
        self.tell(Touched())
        return job

    def download_progress(self, job: int, caller: Caller, done_bytes: int, total_bytes: int | None) -> None:
        if job not in self.jobs or self.jobs[job].caller.owner != caller.owner:
            raise NoSuchJob(f"there is no download {job} of yours")
        self.jobs[job] = replace(self.jobs[job], done_bytes=done_bytes, total_bytes=total_bytes)
        self.tell(Touched())

    def end_download(self, job: int, caller: Caller, result: JobResult, message: str) -> None:
        if job not in self.jobs or self.jobs[job].caller.owner != caller.owner:
            raise NoSuchJob(f"there is no download {job} of yours")
        self.end(job, result, message)

    def set_idle_timeout(self, timeout_s: float) -> None:
        self.calls.append(("set_idle_timeout", timeout_s))
        self.idle_timeout_s = timeout_s
        self.tell(Touched())

    def set_budget(self, budget_bytes: int) -> None:
        self.calls.append(("set_budget", budget_bytes))

    async def reload(self) -> None:
        self.calls.append(("reload",))
        if self.problems:
            raise ConfigInvalid(self.problems)

    def subscribe(self, listener: Callable[[tuple[Outcome, ...]], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # What the test makes happen

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]

    def tell(self, *outcomes: Outcome) -> None:
        for listener in list(self._listeners):
            listener(outcomes)

    def change(self, name: str, state: State, reason: str = "user", **changes: Any) -> None:
        old = self.models[name]
        self.models[name] = replace(old, state=state, reason=reason, **changes)
        self.tell(ModelChanged(name, old.state, state, reason))

    def touch(self, name: str, **changes: Any) -> None:
        self.models[name] = replace(self.models[name], **changes)
        self.tell(Touched())

    def end(
        self,
        job: int,
        result: JobResult = JobResult.DONE,
        message: str = "",
        error: GpudError | None = None,
        unload: UnloadResult | None = None,
    ) -> None:
        gone = self.jobs.pop(job)
        self.ended[job] = JobEnded(job, gone.kind, gone.model, result, message, gone.caller, error, unload=unload)
        self.tell(self.ended[job])

    def grant(self, claim: int, device: str = "GPU-1") -> None:
        self.claims[claim] = replace(self.claims[claim], device=device, vendor="nvidia", waits_for="")
        if waiter := self._waiting.pop(claim, None):
            waiter.set_result(self.claims[claim])
        self.tell(ClaimGranted(claim, device, "nvidia"))

    def end_claim(self, claim: int, error: GpudError | None = None, reason: str = "") -> None:
        """The engine's own doing: refused while it waits, or ended later."""
        del self.claims[claim]
        waiter = self._waiting.pop(claim, None)
        if waiter is not None and error is not None:
            waiter.set_exception(error)
        self.tell(ClaimOver(claim, error, reason))

    def drop_hold(self, cookie: int, reason: str) -> None:
        hold = self.holds.pop(cookie)
        self.tell(HoldEnded(cookie, hold.caller.owner, reason))

    def _job(self, kind: JobKind, model: str, caller: Caller) -> int:
        job = next(self._numbers)
        self.jobs[job] = JobStatus(job, kind, model, caller, self.now_s, "starting", 0.25)
        return job

    def _hold(self, model: str, caller: Caller, reason: str, application: str, what: frozenset[str]) -> int:
        cookie = secrets.randbelow(0xFFFFFFFF) + 1
        self.holds[cookie] = HoldStatus(cookie, model, caller, reason, application, what, self.now_s)
        self.tell(Touched())
        return cookie


def gpu(used_bytes: int = 2 * GIB) -> GpuStatus:
    sample = GpuSample(
        uuid="GPU-1",
        name="Test GPU",
        index=0,
        vendor="nvidia",
        total_bytes=24 * GIB,
        used_bytes=used_bytes,
        free_bytes=24 * GIB - used_bytes,
        temperature_c=41,
        utilization_percent=7,
        power_mw=21000,
        processes=(GpuProcess(4711, "game", GIB), GpuProcess(4712, "driver", None)),
    )
    return GpuStatus(sample, 23 * GIB, GIB, 0, 20 * GIB, GIB)
