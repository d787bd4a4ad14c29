"""What the tests of this room share: a sink that can be waited on, a descriptor store in memory, small commands."""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from gpud.core.facts import StopTimes
from gpud.core.ports import Command, Stream

BOUND_S = 50.0
"""Nothing that a test waits for takes longer, however busy the machine is."""

SHORT = StopTimes(drain_s=0.0, term_s=0.3, second_term_s=0.3)
PATIENT = StopTimes(drain_s=0.0, term_s=60.0, second_term_s=60.0)


@dataclass
class Lines:
    """Keeps every line and lets a test wait for one."""

    kept: list[tuple[Stream, str]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    models: set[tuple[str, str]] = field(default_factory=set)
    _waiting: list[tuple[Callable[[str], bool], asyncio.Future[str]]] = field(default_factory=list)

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        self.kept.append((stream, text))
        self.pids.add(pid)
        self.models.add((model, engine))
        for wanted, future in self._waiting:
            if not future.done() and wanted(text):
                future.set_result(text)

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.kept]

    async def until(self, wanted: Callable[[str], bool]) -> str:
        for text in self.texts:
            if wanted(text):
                return text
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        return await asyncio.wait_for(future, BOUND_S)

    async def starting(self, beginning: str) -> str:
        """The rest of the first line with this beginning."""
        return (await self.until(lambda text: text.startswith(beginning))).removeprefix(beginning)


class MemoryFdStore:
    """Keeps duplicates as systemd does, and remembers what happened."""

    def __init__(self, lasting: bool = True) -> None:
        self.lasting = lasting
        self.kept: dict[str, int] = {}
        self.names: list[str] = []

    def put(self, name: str, fd: int) -> None:
        self.names.append(name)
        self.kept[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))

    def take(self, name: str) -> int | None:
        return os.dup(self.kept[name]) if name in self.kept else None

    def close(self) -> None:
        for name in tuple(self.kept):
            self.drop(name)


def command(*argv: str, unit: str = "tiny-1", lease: bool = False, directory: str = "", **environment: str) -> Command:
    return Command(
        unit=unit,
        model="tiny",
        engine="custom",
        argv=argv,
        environment=environment,
        directory=directory,
        lease=lease,
    )


def shell(script: str, **options: object) -> Command:
    return command("/bin/sh", "-c", script, **options)  # type: ignore[arg-type]


def python(script: str, **options: object) -> Command:
    return command(sys.executable, "-I", "-u", "-c", script, **options)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
