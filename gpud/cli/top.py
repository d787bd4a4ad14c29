"""``gpudctl top``: models, devices, queue and requests, shown anew each second while somebody watches.

It asks gpud once a second while it runs; gpud does nothing for it otherwise, and no GPU that sleeps is woken.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gpud.cli import ps
from gpud.cli.arguments import Parser
from gpud.cli.output import Output, size, table
from gpud.cli.status import STATE_COLORS, state_words, waiting, yielded
from gpud.core.counts import NONE_THERE, plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    import asyncio

    from gpud.cli.client import Gpud
    from gpud.cli.http import Door

DESCRIPTION = """\
Show, updated every second: the models with their requests and tokens per
second, a bar for the memory of each device, the queue, and the current
requests. Press q or Ctrl-C to quit. Without a terminal, print once and exit.
With --url, all data comes over HTTP, which reports no devices and no queue."""

EXAMPLES = (
    "gpudctl top",
    "gpudctl top | cat                 # once",
    "gpudctl top --url http://gpu.example.org:8080",
)

EVERY_S = 1.0
"""How often gpud is asked. A person cannot read faster, and gpud answers from memory in less than a millisecond."""

BAR_WIDTH = 32

Record = dict[str, Any]


def add_arguments(parser: Parser) -> None:
    from gpud.cli.http import add_door_arguments

    add_door_arguments(parser)


def run(arguments: Namespace, output: Output) -> int:
    if output.wants_json or sys.stdout is None or not sys.stdout.isatty():
        frame = Frame(ps.look(arguments), time.monotonic())
        output.result("\n".join(lines(frame, None, output)), data_of(frame.activity))
        return 0
    return watch(arguments, output)


def data_of(activity: ps.Activity) -> Record:
    """What ps has, and the devices and the queue where they are known."""
    from gpud.cli.status import as_data

    status = activity.status or {}
    return ps.data_of(activity) | {"gpus": as_data(status.get("Gpus", [])), "queue": as_data(status.get("Queue", []))}


# Watching ------------------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """What there was at one moment."""

    activity: ps.Activity
    at_s: float


def watch(arguments: Namespace, output: Output) -> int:
    """Until q or Ctrl-C. Raises GpudError when gpud goes."""
    import asyncio

    from gpud.cli import client

    async def over_the_bus(gpud: "Gpud") -> None:
        door = _door(arguments)

        async def look() -> ps.Activity:
            status = await gpud.status()
            if isinstance(door, GpudError):
                return ps.Activity(status["Models"], [], {}, status, door)
            try:
                requests, served = await asyncio.to_thread(ps.requests_of, door)
            except GpudError as problem:
                return ps.Activity(status["Models"], [], {}, status, problem)
            return ps.Activity(status["Models"], requests, served, status)

        await _show(look, output)

    async def over_http() -> None:
        await _show(lambda: asyncio.to_thread(ps.by_http, arguments), output)

    try:
        if arguments.url:
            asyncio.run(over_http())
        else:
            client.run(over_the_bus, arguments.bus)
    except KeyboardInterrupt:
        pass  # It is how one leaves.
    return 0


def _door(arguments: Namespace) -> "Door | GpudError":
    from gpud.cli.http import Door

    try:
        return Door.of(arguments)
    except GpudError as problem:
        return problem


async def _show(look: Any, output: Output) -> None:
    """rich is loaded here, by the one command that draws a whole screen."""
    import asyncio

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    last: Frame | None = None
    frame = Frame(await look(), time.monotonic())
    left = asyncio.Event()
    console = Console(no_color=not output.colors, highlight=False)

    def drawn() -> Text:
        shown = lines(frame, last, output)[: max(1, console.height - 1)]
        text = Text.from_ansi("\n".join(shown))
        text.no_wrap, text.overflow = True, "ellipsis"
        return text

    with keys(left), Live(drawn(), console=console, screen=True, auto_refresh=False) as live:
        while not left.is_set():
            live.update(drawn(), refresh=True)
            try:
                async with asyncio.timeout(EVERY_S):
                    await left.wait()
            except TimeoutError:
                last, frame = frame, Frame(await look(), time.monotonic())


@contextmanager
def keys(left: "asyncio.Event") -> Iterator[None]:
    """While it lasts, q sets the event, and no key shows. Nothing where the keyboard is not a terminal."""
    import asyncio
    import os
    import termios
    import tty

    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        typed = os.read(descriptor, 64)
        if not typed or typed[:1] in (b"q", b"Q", b"\x04"):
            left.set()

    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, pressed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# What is shown -------------------------------------------------------------------------------------------------------


def lines(frame: Frame, last: Frame | None, output: Output) -> list[str]:
    """``last`` is what there was before: without it no rates are known but those of running answers."""
    activity = frame.activity
    status = activity.status
    found = [_head(frame, last, output)]
    if status is not None and status.get("Yielded"):
        found.append(output.paint(yielded(status["Yielded"]), "yellow"))
    found += ["", *_models(frame, last, output)]
    for gpu in status["Gpus"] if status is not None else ():
        found += ["", *_device(gpu, output)]
    if status is not None and status.get("Queue"):
        found += ["", *(waiting(record, status.get("Claims", ())) for record in status["Queue"])]
    if any(one["model"] for one in activity.requests):
        found += ["", *ps.rows(activity._replace(models=[]), output)]
    if activity.problem is not None:
        found += ["", output.paint(f"requests are unknown: {activity.problem.message}", "yellow")]
    return found


def _head(frame: Frame, last: Frame | None, output: Output) -> str:
    activity = frame.activity
    facts = []
    if activity.status is not None:
        facts.append(f"gpud {activity.status['Version']}: {activity.status['State']}")
        if activity.status["Degraded"]:
            facts.append(output.paint(f"degraded: {activity.status['Degraded']}", "red"))
    if activity.problem is None:
        mine = [one for one in activity.requests if one["model"]]
        waits = sum(one["state"] == "waiting" for one in mine)
        facts.append(plural(len(mine), "request") + (f", {waits} of them waiting" if waits else ""))
        if last is not None:
            facts.append(f"{sum(rates(frame, last).values()):.1f} requests/s")
        facts.append(f"{sum(one['tokens_per_s'] or 0.0 for one in mine):.1f} tokens/s")
    return "; ".join(facts)


def rates(frame: Frame, last: Frame) -> dict[str, float]:
    """Requests that ended in a second, by model."""
    between_s = max(1e-3, frame.at_s - last.at_s)
    before = last.activity.served
    return {
        name: max(0.0, (served["requests"] - before.get(name, {}).get("requests", 0)) / between_s)
        for name, served in frame.activity.served.items()
    }


def _models(frame: Frame, last: Frame | None, output: Output) -> list[str]:
    activity = frame.activity
    if not activity.models:
        return [NONE_THERE]
    ended = rates(frame, last) if last is not None else {}
    rows = []
    for model in activity.models:
        name, state = model["Id"], model["State"]
        mine = [one for one in activity.requests if one["model"] == name]
        speeds = [one["tokens_per_s"] for one in mine if one["tokens_per_s"] is not None]
        served = activity.served.get(name, {})
        rows.append(
            [
                (name, "bold"),
                (model["Backend"], ""),
                (state_words(model), STATE_COLORS.get(state, "")),
                (ps.memory_of(model) if state != "unloaded" else "", ""),
                (str(model.get("InFlight", len(mine)) or ""), ""),
                (f"{ended[name]:.1f}" if ended.get(name) else "", ""),
                (f"{sum(speeds):.1f}" if speeds else "", ""),
                (str(served.get("requests", "")), ""),
                (str(served.get("generated_tokens", "")), ""),
            ]
        )
    head = ("MODEL", "ENGINE", "STATE", "MEMORY", "RUNNING", "REQUESTS/S", "TOKENS/S", "REQUESTS", "TOKENS")
    return table(output, head, rows)


def _device(gpu: Record, output: Output) -> list[str]:
    """Its name with its readings, and a bar of its memory."""
    is_host = gpu["Uuid"] == "host"
    readings = [
        "asleep, left alone" if gpu["Asleep"] else "",
        f"{gpu['Utilization']} % busy" if "Utilization" in gpu else "",
        f"{gpu['Temperature']} °C" if "Temperature" in gpu else "",
        f"{gpu['PowerMilliWatt'] / 1000:.0f} W" if "PowerMilliWatt" in gpu else "",
        gpu["Health"],
    ]
    name = "Host memory" if is_host else f"GPU {gpu['Index']}  {gpu['Name']}"
    said = ", ".join(filter(None, readings))
    found = [output.paint(name, "bold") + (f"  {said}" if said else "")]
    if "VramTotal" in gpu and "VramUsed" in gpu:
        color = "red" if gpu.get("Alert") else "green"
        drawn = output.paint(bar(gpu["VramUsed"], gpu["VramTotal"], gpu["Committed"]), color)
        budget = f", budget {size(gpu['Budget'])}" if "Budget" in gpu else ""
        found.append(
            f"{drawn} {size(gpu['VramUsed'])} of {size(gpu['VramTotal'])}{budget}, {size(gpu['Committed'])} for models"
        )
    return found


def bar(used: int, total: int, committed: int) -> str:
    """Full blocks for what models have been promised, shaded ones for what else is used."""
    if total <= 0:
        return "·" * BAR_WIDTH
    filled = min(BAR_WIDTH, round(BAR_WIDTH * max(used, committed) / total))
    models = min(filled, round(BAR_WIDTH * committed / total))
    return "█" * models + "▒" * (filled - models) + "·" * (BAR_WIDTH - filled)
