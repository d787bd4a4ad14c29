"""Waits for the jobs that a command has started, and gives them up when the command is interrupted."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gpud.cli.client import Gpud, Signal
from gpud.cli.exits import BusError
from gpud.core.errors import GpudError

CANCEL_S = 5.0
"""How long the end of a canceled job is waited for: an engine that is being stopped may take its time, a person not."""

Watcher = Callable[[Signal], None]


class Ended(NamedTuple):
    """How a job ended. ``result`` is done, failed, canceled, timeout, superseded, or a word that is not known yet;
    ``record`` is what ``Job`` has of it.
    """

    model: str
    job: int
    result: str
    message: str
    record: Mapping[str, Any] = MappingProxyType({})

    @property
    def done(self) -> bool:
        return self.result == "done"

    def as_data(self) -> dict[str, Any]:
        return {"model": self.model, "job": self.job, "result": self.result, "message": self.message}

    def sentence(self, doing: str) -> str:
        """Why it is not done. The daemon's sentence where it has one that names the model."""
        name = f'"{self.model}"' if self.model else "all models"
        if self.message and (not self.model or self.model in self.message):
            return self.message
        words = {
            "canceled": "was canceled",
            "timeout": "took too long",
            "superseded": "was superseded by another request",
        }
        what = f"{doing} {name} {words.get(self.result, self.result)}"
        return f"{what}: {self.message}" if self.message and self.message != self.result else what


async def finish(gpud: Gpud, jobs: Mapping[int, str], watch: Watcher | None = None) -> list[Ended]:
    """Return when every job has ended, in the order of the jobs. The signals must have been subscribed to before.

    Canceled itself (Ctrl-C), it cancels the jobs and waits a moment for their end.
    """
    ended: dict[int, Ended] = {}
    try:
        await _collect(gpud, jobs, ended, watch)
    except asyncio.CancelledError:
        await _cancel(gpud, jobs, ended)
        raise
    return [ended[job]._replace(record=await _record(gpud, job)) for job in jobs]


async def _record(gpud: Gpud, job: int) -> Mapping[str, Any]:
    try:
        (record,) = await gpud.call("Job", "u", job)
    except BusError as error:
        if error.code != "no-such-job":
            raise
        # Hundreds of others have ended since: it is known no longer.
        return {}
    return dict(record)


async def _collect(gpud: Gpud, jobs: Mapping[int, str], ended: dict[int, Ended], watch: Watcher | None) -> None:
    while len(ended) < len(jobs):
        signal = await gpud.next_signal()
        if signal.member == "JobRemoved" and signal.body[0] in jobs:
            job, model, result, message = signal.body
            ended[job] = Ended(model or jobs[job], job, result, message)
        if watch is not None:
            watch(signal)


async def _cancel(gpud: Gpud, jobs: Mapping[int, str], ended: dict[int, Ended]) -> None:
    left = {job: model for job, model in jobs.items() if job not in ended}
    try:
        async with asyncio.timeout(CANCEL_S):
            for job in left:
                await gpud.call("CancelJob", "u", job)
            await _collect(gpud, left, {}, None)
    except (GpudError, TimeoutError):
        # It has ended by itself, or the daemon has gone or is slow: there is nothing more that we could do about it.
        return
