"""Programs of others to which the GPUs are left, found by name in /proc when somebody looks; their end is an event.

A watch that hears of each start would need the right to administer the network; a look is made anyway while a model is
loaded, and before each load. With nothing loaded there is nothing to leave to anybody.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gpud.core.ports import OtherProgram

PROC = Path("/proc")
COMMAND_BYTES = 4096
"""Of a command line so much is read: a program's name is at its beginning, and Steam's number of a game soon after."""

STEAM = re.compile(r"(?:^|\0)SteamLaunch\0(?:[^\0]*\0)*?AppId=(\d+)(?:\0|$)")


class OtherPrograms:
    """``patterns`` are asked for at each look, so that a reload needs nothing."""

    def __init__(self, patterns: Callable[[], Sequence[str]], proc: Path = PROC) -> None:
        self._patterns = patterns
        self._proc = proc

    def wanted(self) -> bool:
        return bool(self._patterns())

    def look(self) -> Sequence[OtherProgram]:
        patterns = [pattern.casefold() for pattern in self._patterns()]
        found = []
        for entry in self._proc.iterdir() if patterns else ():
            if not entry.name.isdecimal():
                continue
            name = next((n for n in _names(entry) if any(fnmatchcase(n.casefold(), p) for p in patterns)), None)
            if name is not None:
                found.append(OtherProgram(int(entry.name), name))
        return found

    async def ended(self, program: OtherProgram) -> None:
        try:
            descriptor = os.pidfd_open(program.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(descriptor, lambda: None if over.done() else over.set_result(None))
            await over
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _names(process: Path) -> Iterator[str]:
    """Of a process: as it was started, as the kernel calls it (15 characters), and Steam's name for a game."""
    try:
        name = (process / "comm").read_text(errors="replace").rstrip("\n")
        with (process / "cmdline").open("rb") as file:
            command = file.read(COMMAND_BYTES).decode(errors="replace")
    except OSError:
        # It has ended meanwhile.
        return
    if not command:
        # A thread of the kernel's, or one that has ended and was not fetched.
        return
    # A program for Windows has its path with backslashes.
    yield re.split(r"[/\\]", command.partition("\0")[0])[-1]
    yield name
    game = STEAM.search(command)
    if game:
        yield f"steam_app_{game[1]}"
