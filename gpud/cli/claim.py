"""The part of ``gpudctl run`` that claims memory for a command: waits its turn, and gives it back at the end.

The descriptor that a claim lasts as long as stays in this process alone. The command does not get it: a process that it
leaves behind would keep the claim for ever, and nobody would know which.
"""

import asyncio
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpud.cli.client import Gpud, changed
from gpud.cli.exits import BusError
from gpud.cli.library import Variant
from gpud.cli.output import Output, size, span
from gpud.cli.run import reason_of, run_command
from gpud.core.errors import Canceled, GpudError


async def claim_and_run(gpud: Gpud, arguments: Namespace, command: list[str], output: Output) -> int:
    """The command's status. Raises GpudError where the memory was not granted; the command was not started then."""
    await gpud.subscribe()
    number, descriptor = await _wait(gpud, arguments, command, output)
    try:
        environment = await _devices(gpud, number)
        with _watching(descriptor, output):
            return await run_command(command, environment)
    finally:
        os.close(descriptor)


async def _wait(gpud: Gpud, arguments: Namespace, command: list[str], output: Output) -> tuple[int, int]:
    """The claim and its descriptor, once it was granted."""
    name = Path(command[0]).name[:128]
    telling = asyncio.ensure_future(_tell(gpud, arguments.vram, output))
    try:
        return await gpud.claim(arguments.vram, name, reason_of(arguments, command), _options(arguments))
    except GpudError as error:
        if isinstance(error, BusError):
            error.hint = f'"{command[0]}" was not started'
        raise
    except asyncio.CancelledError:
        output.error(Canceled(f"interrupted: no longer waiting for {size(arguments.vram)}"))
        raise
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


def _options(arguments: Namespace) -> dict[str, Variant]:
    options = {}
    if arguments.gpu is not None:
        options["gpu"] = Variant("s", arguments.gpu)
    if arguments.priority is not None:
        options["priority"] = Variant("s", arguments.priority)
    if arguments.wait is not None:
        options["wait-usec"] = Variant("t", round(arguments.wait * 1e6))
    return options


async def _tell(gpud: Gpud, size_bytes: int, output: Output) -> None:
    """Say what the claim waits for, whenever that is something else than before."""
    told: tuple[int, str] | None = None
    queue: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    while True:
        try:
            signal = await gpud.next_signal()
        except GpudError:
            return  # Whoever waits for the answer learns it as well, and says it.
        queue = _or_before(changed(signal, "Queue"), queue)
        claims = _or_before(changed(signal, "Claims"), claims)
        mine = next((one for one in claims if one["Pid"] == os.getpid() and not one["Granted"]), None)
        if mine is None:
            continue
        place = _place(queue, mine["Id"])
        if not place:
            # It is told at most once a second, and may be on its way. Asked for once, in place of saying half of it.
            queue = await _queue(gpud)
            place = _place(queue, mine["Id"])
        # The figures in the reason move with every look at the devices, and mean the same.
        reason = place.get("WaitsFor") or mine["WaitsFor"]
        news = (place.get("Position", 0), re.sub(r"\d+(\.\d+)?", "", reason))
        if news != told and news != (0, ""):
            told = news
            output.note(f"gpudctl: waiting for {size(size_bytes)}: {waiting_words(place, len(queue), reason)}")


def _place(queue: list[dict[str, Any]], number: int) -> dict[str, Any]:
    return next((one for one in queue if one["Claim"] == number), {})


async def _queue(gpud: Gpud) -> list[dict[str, Any]]:
    try:
        (queue,) = await gpud.call("ListQueue")
    except GpudError:
        return []
    return list(queue)


def _or_before(fresh: list[dict[str, Any]] | None, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return before if fresh is None else fresh


def waiting_words(place: dict[str, Any], waiting: int, reason: str) -> str:
    """Where a claim stands in the queue, until when, and what it waits for, as far as that is known."""
    if not place:
        return reason
    bound = f", for {span((place['UntilUSec'] - place['SinceUSec']) / 1e6)} at most" if place["UntilUSec"] else ""
    return f"{place['Position']} of {waiting} in the queue{bound}" + (f"; {reason}" if reason else "")


async def _devices(gpud: Gpud, number: int) -> dict[str, str]:
    """The variables with which the command sees the GPU that it was given, and no other."""
    status = await gpud.overview()
    device = next((one["Device"] for one in status["Claims"] if one["Id"] == number), "")
    gpu = next((one for one in status["Gpus"] if one["Uuid"] == device), None)
    if gpu is None or device == "host":
        return {}
    from gpud.backends.devices import visible

    return visible((device,), gpu["Vendor"])


@contextmanager
def _watching(descriptor: int, output: Output) -> Iterator[None]:
    """Say when the claim ends before the command does; the command goes on all the same."""
    loop = asyncio.get_running_loop()

    def over() -> None:
        loop.remove_reader(descriptor)
        output.note("gpudctl: gpud ended the claim: the memory is no longer promised; the command continues")

    # Nothing ever comes to read: the loop calls it for the error that shows when gpud closes its end.
    loop.add_reader(descriptor, over)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
