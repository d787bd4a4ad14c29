"""How one kind of server of SafeTensors is told what to do and what it says of itself: data, and how lines are read."""

import re
from collections.abc import Callable, Mapping

from gpud.backends import runner
from gpud.backends.budget import Budget
from gpud.core.facts import Endpoint, GpuSample, Model
from gpud.core.ports import Progress, Stream
from gpud.core.record import Record

VALUE = rb"(?:\{[^}\n]*\})?[ \t]+(?P<value>[0-9.]+(?:[eE][+-]?[0-9]+)?)"
"""The labels and the value of a gauge, behind its name."""


class Start(Record):
    """Everything that a command line of one start is made of. ``target`` is a folder, or a name at Hugging Face;
    ``gpu`` is None in the machine's own memory; ``scratch`` is a path that belongs to this start.
    """

    program: str
    model: Model
    target: str
    budget: Budget
    gpu: GpuSample | None
    endpoint: Endpoint
    scratch: str


class Dialect(Record):
    """How one kind of server is told what to do, and what it says of itself.

    ``gauges`` finds the requests that run and those that wait in its metrics, by a group "waits". ``stages`` are the
    lines that say how far a load is, with a group of percents where they have one; ``ready`` is the last of them.
    ``sleeps``: it can give its memory back and stay.
    """

    name: str
    title: str
    program: str
    command: Callable[[Start], tuple[str, ...]]
    environment: Callable[[Start], Mapping[str, str]]
    gauges: re.Pattern[bytes]
    stages: tuple[tuple[re.Pattern[str], str], ...]
    ready: re.Pattern[str]
    on_socket: bool = False
    names_model: bool = False
    sleeps: bool = False
    own_flags: tuple[str, ...] = ()


class Listener:
    """Reads how far a load is from the lines of its server; keeps none of them back."""

    def __init__(self, dialect: Dialect, report: Callable[[Progress], None]) -> None:
        self.announcement = runner.Announcement()
        self._dialect = dialect
        self._report = report
        self._stage = ""

    def line(self, stream: Stream, text: str) -> bool:  # noqa: ARG002 - they write to either
        if self.announcement.ready.is_set():
            return False
        if self._dialect.ready.search(text):
            self.announcement.hear(ready=True)
            return False
        for pattern, stage in self._dialect.stages:
            match = pattern.search(text)
            if match is not None:
                percent = match.groupdict().get("percent")
                if percent is not None or stage != self._stage:
                    self._report(Progress(stage, None if percent is None else min(1.0, int(percent) / 100)))
                self._stage = stage
                self.announcement.hear(ready=False)
                break
        return False
