"""A download as everybody sees it: a job of gpud's, which anybody who may can call off. Works as well without gpud."""

import asyncio
import os
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpud.cli.exits import NotRunning
from gpud.core.errors import Canceled, GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

WHAT_CHARACTERS = 128
GOODBYE_S = 1.0
"""For the last word to a daemon, which answers in milliseconds; nobody who pressed Ctrl-C waits for one that hangs."""


async def connected(bus: str) -> "Gpud | None":
    """The daemon, if one runs; none is started for this."""
    from gpud.cli import client

    try:
        return await client.connect(bus)
    except NotRunning:
        return None


class Job:
    """The figures go out one at a time: while gpud has not taken the last ones, newer ones wait, the newest alone."""

    def __init__(self, gpud: "Gpud | None", what: str) -> None:
        self._gpud = gpud
        self._what = what if len(what) <= WHAT_CHARACTERS else f"…{what[1 - WHAT_CHARACTERS :]}"
        self._number: int | None = None
        self._begun = False
        self._latest: tuple[int, int] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.canceled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Has the daemon's sentence once somebody has called it off."""

    @property
    def kind(self) -> str:
        """Of the gpud that shows it: ``system``, ``user``, or empty."""
        return self._gpud.kind if self._gpud is not None else ""

    async def moved(self, done_bytes: int, total_bytes: int | None) -> None:
        """It is shown from the first of these on."""
        if self._gpud is None:
            return
        if not self._begun:
            self._begun = True
            await self._begin(done_bytes, total_bytes)
        self._latest = (done_bytes, total_bytes or 0)
        if self._number is not None and (self._sender is None or self._sender.done()):
            self._sender = asyncio.ensure_future(self._send())

    async def _begin(self, done_bytes: int, total_bytes: int | None) -> None:
        from gpud.cli.library import Variant

        assert self._gpud is not None
        options = {"done-bytes": Variant("t", done_bytes)} if done_bytes else {}
        # It may be denied, or the daemon may be older or go away: that is no reason not to download.
        with suppress(GpudError):
            await self._gpud.subscribe()
            (number,) = await self._gpud.call("BeginDownload", "sta{sv}", self._what, total_bytes or 0, options)
            self._number = int(number)
            self._watcher = asyncio.ensure_future(self._watch())

    async def _send(self) -> None:
        assert self._gpud is not None
        with suppress(GpudError):
            while self._latest is not None:
                (done_bytes, total_bytes), self._latest = self._latest, None
                await self._gpud.call("UpdateDownload", "utt", self._number, done_bytes, total_bytes)

    async def _watch(self) -> None:
        assert self._gpud is not None
        with suppress(GpudError):
            while True:
                signal = await self._gpud.next_signal()
                if signal.member == "JobRemoved" and signal.body[0] == self._number:
                    _, _, result, message = signal.body
                    if not self.canceled.done():
                        self.canceled.set_result(message or f"the download ended as {result}")
                    return

    async def end(self, result: str, message: str) -> None:
        """What becomes of it, unless it has ended already."""
        for task in (self._watcher, self._sender):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if self._gpud is None or self._number is None or self.canceled.done():
            return
        number, self._number = self._number, None
        text = " ".join(message.split())
        with suppress(GpudError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._gpud.call("EndDownload", "uss", number, result, text[:WHAT_CHARACTERS])

    async def known_as(self, paths: Collection[str]) -> list[str]:
        """Have gpud look at what has come, and say what it is called there. Nothing where it does not say."""
        if self._gpud is None:
            return []
        try:
            # It may have seen it by itself meanwhile: what it says is new need not be what has come.
            with suppress(GpudError):
                await self._gpud.call("Scan")
            (entries,) = await self._gpud.call("ListCatalog", "as", [])
        except GpudError:
            # An older gpud, or one that has gone: it looks by itself, some day.
            return []
        return _lying_at(entries, paths)


def _lying_at(entries: list[dict[str, Any]], paths: Collection[str]) -> list[str]:
    """The names of what lies at one of these places, by whatever way it is reached."""
    wanted = {os.path.realpath(path) for path in paths}
    places = ((entry["Id"], entry.get("Paths") or [entry["Path"]]) for entry in entries)
    return sorted(name for name, there in places if wanted & {os.path.realpath(path) for path in there})


def called_off(message: str) -> Canceled:
    return Canceled(message, hint="the downloaded part is kept: run the same command again to continue")
