"""The process that downloads: started, asked, and gone with us. It belongs to whoever typed the command, with their
proxies and their token in its environment.
"""

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gpud.cli.exits import BusError
from gpud.core.errors import GpudError

TOP = str(Path(__file__).resolve().parents[3])
"""Where this gpud is: the process is to be of the same, whatever else is installed."""

END_S = 2.0
"""It ends within milliseconds when its input does; one that hangs in the kernel, on a dead disk, is killed."""

LINE_BYTES = 64 << 20
"""A repository with thousands of files is told of in one line."""

TAIL_BYTES = 2000


class Puller:
    """A context manager; leaving it ends the process at once, and what has come is kept."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._errors: IO[bytes] | None = None

    async def __aenter__(self) -> "Puller":
        paths = [TOP, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed with the process
        try:
            # In a session of its own: Ctrl-C is ours, and ends it by ending its input.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gpud.pulling"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
                limit=LINE_BYTES,
            )
        except BaseException:
            self._errors.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None and self._errors is not None
        try:
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except (TimeoutError, asyncio.CancelledError):
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        finally:
            self._errors.close()

    async def ask(self, wish: Mapping[str, object]) -> AsyncGenerator[dict[str, Any], None]:
        """What happens, up to ``finished``. Raises GpudError for what it could not do."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        with suppress(ConnectionError):  # It has ended; why, is told below.
            self._process.stdin.write(json.dumps(wish).encode() + b"\n")
            await self._process.stdin.drain()
        while line := await self._process.stdout.readline():
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "failed":
                raise BusError(event["code"], event["message"], hint=event["hint"])
            yield event
            if event["event"] == "finished":
                return
        raise await self._ended()

    async def answer(self, wish: Mapping[str, object]) -> dict[str, Any]:
        """The last event alone."""
        events = [event async for event in self.ask(wish)]
        return events[-1]

    async def _ended(self) -> GpudError:
        assert self._process is not None and self._errors is not None
        status = await self._process.wait()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace")[-TAIL_BYTES:].strip().splitlines()
        last = f": {said[-1]}" if said else ""
        return GpudError(
            f"the process that downloads {how}{last}",
            hint="the downloaded part is kept: run the same command again to continue",
        )
