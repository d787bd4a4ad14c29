"""``gpudctl run``: runs a command and keeps a model loaded for as long as it runs."""

import os
import shutil
import signal
from argparse import REMAINDER, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.exits import Usage
from gpud.cli.output import Output
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Load a model, hold it so that it is not unloaded, run a command, and release the model when the command has ended. The
status is the command's own; 128 and the number of the signal when one ended it, 127 when there is no such command. The
hold ends with this process, whatever ends it."""

EXAMPLES = (
    "gpudctl run --hold qwen3-8b -- python summarize.py notes/",
    "gpudctl run --hold big --hold tiny -- ./evaluate.sh",
)

NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED = 128

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mean the command. A terminal's Ctrl-C and Ctrl-\\ reach it without us."""


class NoSuchCommand(GpudError):
    code = "no-such-command"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--hold", metavar="MODEL", action="append", required=True, help="the model to load and hold; may be repeated"
    )
    parser.add_argument("--why", metavar="TEXT", default="", help="what others read about the hold (default: COMMAND)")
    parser.add_argument("command", metavar="COMMAND", nargs=REMAINDER, help="what to run, best behind --")


def run(arguments: Namespace, output: Output) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise Usage("run: there is no command to run", hint=f"write it behind --: {EXAMPLES[0]}")
    program = shutil.which(command[0])
    if program is None:
        found = Path(command[0]).exists()
        what = "it is not executable" if found else "there is no such command"
        output.error(NoSuchCommand(f'cannot run "{command[0]}": {what}', hint="no model was loaded for it"))
        return NOT_EXECUTABLE if found else NOT_FOUND
    from gpud.cli import client

    return client.run(lambda gpud: hold_and_run(gpud, arguments, command, output), arguments.bus, start=True)


async def hold_and_run(gpud: "Gpud", arguments: Namespace, command: list[str], output: Output) -> int:
    import asyncio

    from gpud.cli import load

    await gpud.subscribe()
    why = arguments.why or f"runs {Path(command[0]).name}"
    cookies: dict[int, str] = {}
    jobs: dict[int, str] = {}
    for model in dict.fromkeys(arguments.hold):
        # Held before it is loaded: between the two nothing can take its place.
        (cookie,) = await gpud.call("Hold", "sss", model, why[:128], "gpudctl run", asks=True)
        cookies[cookie] = model
        jobs[await load.start(gpud, model, {})] = model
    ended = await load.wait_for(gpud, jobs, output)
    if failed := next((one for one in ended if not one.done), None):
        raise GpudError(failed.sentence("loading"), hint=f'"{command[0]}" was not started')
    watch = asyncio.ensure_future(_watch(gpud, cookies, output))
    try:
        return await _run(command)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _run(command: list[str]) -> int:
    """The command's status, with signals passed on to it meanwhile."""
    import asyncio

    loop = asyncio.get_running_loop()
    child: asyncio.subprocess.Process | None = None
    early: list[signal.Signals] = []

    def pass_on(number: signal.Signals) -> None:
        if child is None:
            early.append(number)
        elif child.returncode is None:
            os.kill(child.pid, number)

    # Before the command is there: a signal in between would end us, and leave it running without its model.
    for number in PASSED_ON:
        loop.add_signal_handler(number, pass_on, number)
    # Ctrl-C is the command's to answer: it has got it from the terminal, and may well go on.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        child = await asyncio.create_subprocess_exec(*command)
        for number in early:
            pass_on(number)
        status = await child.wait()
    finally:
        for number in (*PASSED_ON, signal.SIGINT):
            loop.remove_signal_handler(number)
    return KILLED - status if status < 0 else status


async def _watch(gpud: "Gpud", cookies: dict[int, str], output: Output) -> None:
    """Say when a hold ends before the command does; the command goes on all the same."""
    try:
        while True:
            told = await gpud.next_signal()
            if told.member == "HoldReleased" and told.body[0] in cookies:
                model = cookies.pop(told.body[0])
                output.note(f'gpudctl: "{model}" is held no longer ({told.body[1]}); the command goes on')
    except GpudError as error:
        output.note(f"gpudctl: {error.message}: nothing is held any longer; the command goes on")
