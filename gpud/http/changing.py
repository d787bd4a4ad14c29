"""Loads and unloads as HTTP clients ask for them: waited for, so that the answer says what came of it.

A client that leaves while it waits leaves the job behind: it goes on, and /jobs tells of it.
"""

import asyncio
from collections.abc import Iterable

from gpud.core import statuses
from gpud.core.errors import Busy, Canceled, GpudError, LimitsExceeded, NotLoaded
from gpud.core.events import JobEnded, LoadOptions
from gpud.core.facts import Caller, ModelStatus
from gpud.core.record import Struct, field
from gpud.engine import Engine
from gpud.engine.ended import problem_of
from gpud.http.shapes import HttpError

JOBS_AT_ONCE = 64
"""So many loads and unloads of one caller may be under way. More than any client means to have."""


class Unloaded(Struct):
    """What came of it: names, errors by name, and what was given back in all. ``called_off`` are among the names; for
    ``stay_away`` see :class:`UnloadResult`.
    """

    names: list[str] = field(default_factory=list)
    errors: dict[str, GpudError] = field(default_factory=dict)
    freed_bytes: int = 0
    called_off: list[str] = field(default_factory=list)
    stay_away: list[str] = field(default_factory=list)


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
    jobs: dict[str, int] = {}
    for name in names:
        try:
            jobs[name] = engine.unload(name, caller, force=force, others=force)
        except NotLoaded:
            continue
        except GpudError as error:
            found.errors[name] = _told(error)
    for name, ended in zip(jobs, await asyncio.gather(*map(engine.wait, jobs.values())), strict=True):
        unload = ended.unload
        if unload is None:
            found.errors[name] = ended.error or Canceled(ended.message or f'the unload of "{name}" was {ended.result}')
        elif unload.left:
            found.errors[name] = _told(Busy("; ".join(unload.left.values()), hint="try again, or use force"))
        else:
            found.names += [*unload.unloaded, *unload.called_off]
            found.freed_bytes += sum(unload.unloaded.values())
            found.called_off += unload.called_off
            found.stay_away += unload.stay_away
    return found


def _told(error: GpudError) -> GpudError:
    """Busy means here that somebody holds or uses the model, not that it is loaded in another way already."""
    return HttpError(409, "model_in_use", error.message, hint=error.hint) if isinstance(error, Busy) else error
