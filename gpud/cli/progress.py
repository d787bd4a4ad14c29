"""How a load looks while it is waited for: a moving line on a terminal, plain lines elsewhere.

rich is imported here alone, and only once a load has taken so long that a person would begin to wonder.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gpud.cli.client import Signal, changed_models
from gpud.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_S = 0.3
"""A load that ends within this time shows no progress: it would flicker, and importing rich takes half as long."""

WORDS = {
    "queued": "waiting for memory",
    "loading": "loading",
    "ready": "ready",
    "busy": "ready",
    "unloading": "stopping",
    "failed": "failed",
    "unloaded": "starting",
}


def watcher(models: list[str], output: Output, stack: ExitStack) -> Callable[[Signal], None]:
    """What to call with each signal. The stack takes down at its end what was put up."""
    if output.is_terminal and not output.wants_json:
        return _Moving(models, stack, colors=output.colors).signal
    return _Lines(models, output).signal


def _updates(signal: Signal, models: list[str]) -> list[tuple[str, str, float | None]]:
    """The name as it was asked for, the state, and the progress of each of our models that the signal tells of."""
    if signal.member == "ModelStateChanged":
        model, state, _ = signal.body
        return [(model, state, None)] if model in models else []
    found = []
    for record in changed_models(signal) or []:
        names: set[str] = {record["Id"], *record.get("Aliases", ())}
        found += [(model, record["State"], record.get("Progress")) for model in models if model in names]
    return found


class _Lines:
    """One line for each state, and one for each quarter of the way."""

    def __init__(self, models: list[str], output: Output) -> None:
        self._models = models
        self._output = output
        self._told: dict[str, tuple[str, int]] = {}

    def signal(self, signal: Signal) -> None:
        if self._output.wants_json:
            return
        for model, state, progress in _updates(signal, self._models):
            if state not in ("queued", "loading"):
                continue
            before = self._told.get(model, ("", 0))
            quarter = int((progress or 0.0) * 4)
            if state == before[0] and quarter <= before[1]:
                continue
            self._told[model] = (state, quarter if state == "loading" else 0)
            self._output.note(f"{model}: {WORDS[state]}" + (f", {quarter * 25} %" if quarter else ""))


class _Moving:
    """A line with a bar for each model, drawn by rich."""

    def __init__(self, models: list[str], stack: ExitStack, *, colors: bool) -> None:
        self._models = models
        self._stack = stack
        self._colors = colors
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._known: dict[str, tuple[str, float | None]] = dict.fromkeys(models, ("unloaded", None))
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._put_up)
        stack.callback(timer.cancel)

    def _put_up(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.fields[model]}", style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        console = Console(stderr=True, no_color=not self._colors, highlight=False)
        self._progress = self._stack.enter_context(Progress(*columns, console=console, transient=True))
        for model in self._models:
            self._tasks[model] = self._progress.add_task("", total=None, model=model)
            self._show(model)

    def signal(self, signal: Signal) -> None:
        for model, state, progress in _updates(signal, self._models):
            before = self._known[model]
            self._known[model] = (state, before[1] if progress is None and state == before[0] else progress)
            if self._progress is not None:
                self._show(model)

    def _show(self, model: str) -> None:
        assert self._progress is not None
        state, fraction = self._known[model]
        known = fraction is not None and state == "loading"
        self._progress.update(
            self._tasks[model],
            description=WORDS.get(state, state),
            total=1.0 if known else None,
            completed=fraction if known else 0.0,
        )
