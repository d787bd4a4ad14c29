"""A place in which a backend runs: a real launcher, and everything that the backend and its children tell."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from gpud.backends import call
from gpud.core.facts import Model, StopTimes
from gpud.core.ports import LoadOrder, Progress, Runner, RunnerRecord, Stream
from gpud.core.quote import Estimate
from gpud.core.record import replace
from gpud.processes.launcher import ProcessLauncher

HERE = Path(__file__).parent
FAKE = HERE / "fake_http.py"
HELP_OLD = HERE / "help_old.txt"
HELP_NEW = HERE / "help_new.txt"

QUICK = StopTimes(drain_s=0.1, term_s=0.2, second_term_s=0.2)
PATIENT = StopTimes(drain_s=0.1, term_s=50.0, second_term_s=50.0)
"""For what ends by itself when it is told to, however slow the machine is."""


def is_gone(pid: int) -> bool:
    """A process that was killed ends a moment after the call that kills it."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        process.wait(50)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


async def complete(runner: Runner, tokens: int, timeout_s: float = 60) -> Mapping[str, Any]:
    """Let a real engine generate so many tokens."""
    body = {"prompt": "hello", "max_tokens": tokens, "temperature": 0}
    answer = await call.request(runner.endpoint, "POST", "/v1/completions", body=body, timeout_s=timeout_s)
    assert answer.status == 200, answer.body
    told: Any = answer.json()
    assert isinstance(told, dict)
    return told


class NoFdStore:
    """Descriptors that outlive nothing, as outside systemd."""

    lasting = False

    def put(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...

    def take(self, name: str) -> int | None:
        return None


@dataclass
class Journal:
    """An OutputSink that keeps everything."""

    texts: list[str] = field(default_factory=list)

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        self.texts.append(text)


class Place:
    """Use it as ``async with``: at its end no child may be left, and no socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal()
        self.records: list[RunnerRecord] = []
        self.recorded = asyncio.Event()
        self.progress: list[Progress] = []
        self.units = 0
        self.launcher = ProcessLauncher(
            runtime_dir=folder / "run", fd_store=NoFdStore(), sink=self.journal, cgroup=None, burst_lines=100_000
        )
        (folder / "run").mkdir(exist_ok=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sockets = [str(path) for path in (self.folder / "run").rglob("*.sock")]
        left = await self.launcher.close()
        if error is None:
            assert left == (), f"children were left: {left}"
            assert sockets == [], f"sockets were left: {sockets}"

    def order(self, model: Model, devices: tuple[str, ...] = (), vendor: str = "") -> LoadOrder:
        self.units += 1
        return LoadOrder(model, f"{model.name}-{self.units}", devices, vendor, self.progress.append, self._record)

    def unproven(self, model: Model, sized: Callable[[Estimate], None]) -> LoadOrder:
        """An order for a model whose size nobody has heard yet."""
        return replace(self.order(model), unproven=True, sized=sized)

    def _record(self, record: RunnerRecord) -> None:
        self.records.append(record)
        self.recorded.set()

    @property
    def stages(self) -> list[str]:
        return [progress.stage for progress in self.progress]
