"""Loads and unloads as HTTP clients ask for them: waited for, so that the answer says what came of it.

A client that leaves while it waits leaves the job behind: it goes on, and /jobs tells of it.
"""

import asyncio
from collections.abc import Iterable

from gpud.core import statuses
from gpud.core.errors import Busy, Canceled, GpudError, LimitsExceeded, NotLoaded
from gpud.core.events import JobEnded, Kind, LoadOptions, Notice, Outcome
from gpud.core.facts import Caller, JobResult, ModelStatus, State
from gpud.core.record import Struct, field
from gpud.engine import Engine
from gpud.engine.ended import problem_of
from gpud.http.shapes import HttpError

JOBS_AT_ONCE = 64
"""So many loads and unloads of one caller may be under way. More than any client means to have."""


class Unloaded(Struct):
    """What came of it: names, errors by name, and what was given back in all."""

    names: list[str] = field(default_factory=list)
    errors: dict[str, GpudError] = field(default_factory=dict)
    freed_bytes: int = 0


def status_of(engine: Engine, name: str) -> ModelStatus:
    """A configured model. Raises NotLoaded when a reload has removed it meanwhile."""
    found = statuses.status_of(engine.snapshot().models, name)
    if found is not None:
        return found
    raise NotLoaded(f'"{name}" is no longer there', hint="GET /models lists what is")


def begin_load(engine: Engine, name: str, caller: Caller, options: LoadOptions) -> int:
    """The job. Raises what is known at once."""
    check_jobs(engine, caller, 1)
    return engine.load(name, caller, options)


async def load(engine: Engine, name: str, caller: Caller, options: LoadOptions) -> JobEnded:
    """Returns when it is ready; raises why it is not."""
    return await ended_well(engine, begin_load(engine, name, caller, options))


async def ended_well(engine: Engine, job: int) -> JobEnded:
    ended = await engine.wait(job)
    if (problem := problem_of(ended)) is not None:
        raise problem
    return ended


def check_jobs(engine: Engine, caller: Caller, more: int) -> None:
    """Raises LimitsExceeded when one caller has too much under way."""
    count = sum(job.caller.owner == caller.owner for job in engine.snapshot().jobs)
    if count + more > JOBS_AT_ONCE:
        raise LimitsExceeded(
            f"{caller.label or caller.owner} has {count} loads and unloads under way, the limit is {JOBS_AT_ONCE}",
            hint="wait for some to end, or cancel one with DELETE /jobs/ID",
        )


def is_there(status: ModelStatus) -> bool:
    """Whether there is something to unload: an engine, or somebody who waits for one."""
    return status.state.has_engine() or status.waiting


async def unload(engine: Engine, names: Iterable[str], caller: Caller, *, force: bool) -> Unloaded:
    """All of these at once. What cannot be unloaded, and why, is told and not raised.

    Raises LimitsExceeded alone.
    """
    check_jobs(engine, caller, 1)
    found = Unloaded()
    freed: dict[str, int] = {}

    def listen(outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Notice) and outcome.kind is Kind.MODEL_UNLOADED:
                size = outcome.fields.get("freed_bytes", 0)
                freed[outcome.model] = size if isinstance(size, int) else 0

    stop = engine.subscribe(listen)
    try:
        jobs: dict[str, int] = {}
        for name in names:
            try:
                jobs[name] = engine.unload(name, caller, force=force, others=force)
            except NotLoaded:
                continue
            except GpudError as error:
                found.errors[name] = _told(error)
        ends = await asyncio.gather(*(engine.wait(job) for job in jobs.values()))
    finally:
        stop()
    for name, ended in zip(jobs, ends, strict=True):
        problem = _problem(engine, name, ended)
        if problem is None:
            found.names.append(name)
            found.freed_bytes += freed.get(name, 0)
        else:
            found.errors[name] = _told(problem)
    return found


def _told(error: GpudError) -> GpudError:
    """Busy means here that somebody holds or uses the model, not that it is loaded in another way already."""
    return HttpError(409, "model_in_use", error.message, hint=error.hint) if isinstance(error, Busy) else error


def _problem(engine: Engine, name: str, ended: JobEnded) -> GpudError | None:
    """Why a model is still there; None: it has gone."""
    if ended.error is not None:
        return ended.error
    if ended.result is JobResult.DONE:
        status = statuses.status_of(engine.snapshot().models, name)
        stays = status is not None and status.state in (State.READY, State.DRAINING)
        return Busy(ended.message) if stays and not ended.message.startswith("unloaded") else None
    if ended.result is JobResult.TIMEOUT:
        return Busy(ended.message or f'"{name}" is still busy', hint="try again, or use force")
    return Canceled(ended.message or f'the unload of "{name}" was {ended.result}')
