"""One download from its first byte to its last: shown here, shown to others, and ended when somebody wants that."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from gpud.cli.downloading.job import Job, called_off
from gpud.cli.downloading.shown import amount, failed, shown
from gpud.cli.output import Output
from gpud.core.errors import Canceled, GpudError

Events = AsyncGenerator[dict[str, Any], None]
"""Of a download: ``progress`` (stage, done, total), ``waiting`` (seconds, why), ``said`` (text), ``arrived``, and
whatever else is for the caller."""


class Following:
    """``run`` is to be called once."""

    def __init__(self, what: str, job: Job, output: Output) -> None:
        self.what = what
        self._job = job
        self._output = output
        self._done_bytes = 0
        self._total_bytes: int | None = None
        self.arrived: list[dict[str, Any]] = []
        self.began_s = time.monotonic()

    async def run(self, events: Events) -> dict[str, Any]:
        """The last event. Raises GpudError; canceled (Ctrl-C), it says what is kept."""
        try:
            last = await self._unless_called_off(events)
        except asyncio.CancelledError:
            await self._job.end("canceled", f"the download of {self.what} was interrupted")
            failed(self._output, self._interrupted())
            raise
        except GpudError as problem:
            await self._job.end("failed", problem.message)
            raise
        return last

    async def _unless_called_off(self, events: Events) -> dict[str, Any]:
        # The bar is taken down before anything is said about the end.
        with ExitStack() as stack:
            following = asyncio.ensure_future(self._follow(events, stack))
            try:
                await asyncio.wait((following, self._job.canceled), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise called_off(self._job.canceled.result())
                return following.result()
            finally:
                following.cancel()
                await asyncio.wait((following,))

    async def _follow(self, events: Events, stack: ExitStack) -> dict[str, Any]:
        view = shown(self.what, self._output, stack)
        event: dict[str, Any] = {}
        async with aclosing(events) as source:
            async for event in source:
                match event["event"]:
                    case "progress":
                        self._done_bytes, self._total_bytes = event["done"], event["total"]
                        view.moved(event["stage"], self._done_bytes, self._total_bytes)
                        if event["stage"] == "downloading":
                            await self._job.moved(self._done_bytes, self._total_bytes)
                    case "waiting":
                        view.waiting(event["seconds"], event["why"])
                    case "said":
                        view.said(event["text"])
                    case "arrived":
                        self.arrived.append(event)
                    case _:
                        pass
        return event

    def _interrupted(self) -> Canceled:
        kept = f" after {amount(self._done_bytes, self._total_bytes)}" if self._done_bytes else ""
        return Canceled(
            f"interrupted{kept}: {self.what} is not complete",
            hint="the downloaded part is kept: run the same command again to continue",
        )
