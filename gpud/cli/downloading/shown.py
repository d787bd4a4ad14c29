"""How a download looks as it goes on: a moving bar on a terminal, a line every tenth elsewhere, objects for programs.

rich is imported here alone, and only where a person watches.
"""

import json
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from gpud.cli.output import Output, size, span
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

RATE_S = 10.0
"""The rate is that of the last so many seconds: short enough to show that a line has become slow."""

STEPS = 10

STAGES = {"downloading": "downloading", "checking": "checking what is there", "joined": "downloaded by another process"}


class Shown(Protocol):
    """What is told to whoever typed the command."""

    def moved(self, stage: str, done_bytes: int, total_bytes: int | None) -> None: ...

    def waiting(self, wait_s: float, why: str) -> None: ...

    def said(self, text: str) -> None:
        """Something that is neither: what Ollama does after its download."""


def shown(what: str, output: Output, stack: ExitStack) -> Shown:
    """The stack takes down at its end what was put up."""
    if output.wants_json:
        return Objects(what, output)
    if output.is_terminal:
        return Bar(what, stack, colors=output.colors)
    return Lines(what, output)


class Rate:
    """How fast it goes, from what came lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._stage = ""

    def see(self, stage: str, done_bytes: int, now_s: float) -> float | None:
        """Bytes a second; None where it has only begun."""
        if stage != self._stage or (self._seen and done_bytes < self._seen[-1][1]):
            self._seen.clear()
            self._stage = stage
        self._seen.append((now_s, done_bytes))
        while now_s - self._seen[0][0] > RATE_S and len(self._seen) > 2:
            self._seen.popleft()
        first_s, first_bytes = self._seen[0]
        return (done_bytes - first_bytes) / (now_s - first_s) if now_s > first_s else None


def left_s(done_bytes: int, total_bytes: int | None, rate: float | None) -> float | None:
    return (total_bytes - done_bytes) / rate if total_bytes is not None and rate else None


class Objects:
    """One object a line."""

    def __init__(self, what: str, output: Output) -> None:
        self._what = what
        self._output = output
        self._rate = Rate()

    def moved(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        rate = self._rate.see(stage, done_bytes, time.monotonic())
        left = left_s(done_bytes, total_bytes, rate)
        line(
            self._output,
            event="progress",
            what=self._what,
            stage=stage,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            bytes_per_second=None if rate is None else round(rate),
            seconds_left=None if left is None else round(left, 1),
        )

    def waiting(self, wait_s: float, why: str) -> None:
        line(self._output, event="waiting", what=self._what, seconds=wait_s, why=why)

    def said(self, text: str) -> None:
        line(self._output, event="note", what=self._what, message=text)


def line(output: Output, **values: object) -> None:
    """One object, on one line, and on its way at once."""
    output.text(json.dumps(values, ensure_ascii=False))
    output.flush()


def failed(output: Output, error: GpudError) -> None:
    """As every command tells of an error; where objects are wanted, on a line like all of them."""
    if not output.wants_json:
        output.error(error)
        return
    line(output, event="failed", error={"code": error.code, "message": error.message, "hint": error.hint})
    output.note(f"gpudctl: {error.text}")


class Lines:
    """A line for each tenth, and for what is out of the ordinary."""

    def __init__(self, what: str, output: Output) -> None:
        self._what = what
        self._output = output
        self._rate = Rate()
        self._told: tuple[str, int] = ("", -1)

    def moved(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        rate = self._rate.see(stage, done_bytes, time.monotonic())
        # Of what has no known end, each doubling.
        step = done_bytes * STEPS // total_bytes if total_bytes else (done_bytes >> 20).bit_length()
        if stage == self._told[0] and step <= self._told[1]:
            return
        self._told = (stage, step)
        parts = [f"{STAGES.get(stage, stage)}, {amount(done_bytes, total_bytes)}"]
        if rate:
            parts.append(f"{size(round(rate))}/s")
        left = left_s(done_bytes, total_bytes, rate)
        if left is not None and done_bytes != total_bytes:
            parts.append(f"{span(left)} left")
        self._output.note(f"{self._what}: {', '.join(parts)}")

    def waiting(self, wait_s: float, why: str) -> None:
        self._output.note(f"{self._what}: {why}{again(wait_s)}")

    def said(self, text: str) -> None:
        self._output.note(f"{self._what}: {text}")


def amount(done_bytes: int, total_bytes: int | None) -> str:
    if not total_bytes:
        return size(done_bytes)
    return f"{done_bytes / total_bytes:.0%}, {size(done_bytes)} of {size(total_bytes)}"


def again(wait_s: float) -> str:
    return f"; continuing in {span(wait_s)}" if wait_s >= 1 else ""


class Bar:
    """A line with a bar, drawn by rich."""

    def __init__(self, what: str, stack: ExitStack, *, colors: bool) -> None:
        self._what = what
        self._stack = stack
        self._colors = colors
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def moved(self, stage: str, done_bytes: int, total_bytes: int | None) -> None:
        progress, task = self._put_up()
        if stage != self._stage:
            # The rate of what is read from the disk is none of what comes by the network.
            progress.reset(task, completed=done_bytes, total=total_bytes, description=STAGES.get(stage, stage))
            self._stage = stage
        progress.update(task, completed=done_bytes, total=total_bytes)

    def waiting(self, wait_s: float, why: str) -> None:
        progress, _ = self._put_up()
        progress.console.print(f"{why}{again(wait_s)}", markup=False)

    def said(self, text: str) -> None:
        progress, task = self._put_up()
        progress.update(task, description=text)

    def _put_up(self) -> "tuple[Progress, Any]":
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                TextColumn("{task.fields[what]}", style="bold", markup=False),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            console = Console(stderr=True, no_color=not self._colors, highlight=False)
            self._progress = self._stack.enter_context(Progress(*columns, console=console, transient=True))
            self._task = self._progress.add_task("", total=None, what=self._what.rpartition("/")[2])
        return self._progress, self._task
