"""``gpudctl run``: runs a command, and keeps a model loaded or memory claimed for as long as it runs."""

import os
import shutil
import signal
from argparse import REMAINDER, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.cli.arguments import PRIORITIES, Parser, patience, size
from gpud.cli.exits import Usage
from gpud.cli.output import Output
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud

DESCRIPTION = """\
Run a command that needs a GPU.
With --hold, load a model and hold it, so that it stays loaded while the
command runs. With --vram, claim GPU memory for the command itself: gpud evicts
idle models to make room, loads nothing else into that memory, and shows the
command only that GPU (CUDA_VISIBLE_DEVICES, or ROCR_VISIBLE_DEVICES for AMD).
The claim waits its turn and reports what it waits for; Ctrl-C gives up.
The exit status is that of the command, 128 plus the signal number if a signal
ended it, or 127 if the command does not exist. The hold or claim ends with
this process, however that ends: what the command leaves running in the
background has no claim."""

EXAMPLES = (
    "gpudctl run --hold qwen3-8b -- python3 summarize.py notes/",
    "gpudctl run --hold big --hold tiny -- ./evaluate.sh",
    "gpudctl run --vram 8GiB -- python3 train.py",
    "gpudctl run --vram 20G --gpu 1 --wait 10m --priority high -- ./render.sh",
)

NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED = 128

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mean the command. A terminal's Ctrl-C and Ctrl-\\ reach it without us."""


class NoSuchCommand(GpudError):
    code = "no-such-command"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--hold", metavar="MODEL", action="append", help="load this model and hold it; may be repeated")
    parser.add_argument(
        "--vram", metavar="SIZE", type=size, help="claim this much memory for the command (8GiB, 500MiB)"
    )
    parser.add_argument("--gpu", metavar="GPU", help="with --vram: on this GPU, by index or UUID (default: any)")
    parser.add_argument(
        "--wait", metavar="TIME", type=patience, help="with --vram: wait at most TIME (90s, 10m; 0: do not wait)"
    )
    parser.add_argument("--priority", choices=PRIORITIES, help="with --vram: queue priority (default: normal)")
    parser.add_argument("--why", metavar="TEXT", default="", help="reason that others see (default: COMMAND)")
    parser.add_argument("command", metavar="COMMAND", nargs=REMAINDER, help="command to run, preferably after --")


def run(arguments: Namespace, output: Output) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    _check(arguments, command)
    program = shutil.which(command[0])
    if program is None:
        found = os.path.lexists(command[0])
        what = "it is not executable" if found else "there is no such command"
        spared = "no memory was claimed" if arguments.vram else "no model was loaded"
        output.error(NoSuchCommand(f'cannot run "{command[0]}": {what}', hint=f"{spared} for it"))
        return NOT_EXECUTABLE if found else NOT_FOUND
    from gpud.cli import client

    if arguments.vram:
        from gpud.cli.claim import claim_and_run

        return client.run(
            lambda gpud: claim_and_run(gpud, arguments, command, output), arguments.bus, start=True, descriptors=True
        )
    return client.run(lambda gpud: hold_and_run(gpud, arguments, command, output), arguments.bus, start=True)


def _check(arguments: Namespace, command: list[str]) -> None:
    """What the parser cannot know: which options go with which."""
    if arguments.hold and arguments.vram:
        raise Usage(
            "run: --hold and --vram cannot be combined",
            hint="--hold keeps a model loaded, --vram claims memory for the command itself: choose one",
        )
    if not arguments.hold and not arguments.vram:
        raise Usage("run: there is nothing to hold or claim", hint="give --hold MODEL or --vram SIZE")
    for name in ("gpu", "wait", "priority"):
        if arguments.hold and getattr(arguments, name) is not None:
            raise Usage(f"run: --{name} needs --vram", hint='configure it for the model, or use "gpudctl load"')
    if not command:
        raise Usage("run: there is no command to run", hint=f"write it after --: {EXAMPLES[0]}")


async def hold_and_run(gpud: "Gpud", arguments: Namespace, command: list[str], output: Output) -> int:
    import asyncio

    from gpud.cli import load

    await gpud.subscribe()
    cookies: dict[int, str] = {}
    jobs: dict[int, str] = {}
    for model in dict.fromkeys(arguments.hold):
        # Held before it is loaded: between the two nothing can take its place.
        (cookie,) = await gpud.call("Hold", "sss", model, reason_of(arguments, command), "gpudctl run", asks=True)
        cookies[cookie] = model
        jobs[await load.start(gpud, model, {})] = model
    ended = await load.wait_for(gpud, jobs, output)
    if failed := next((one for one in ended if not one.done), None):
        raise GpudError(failed.sentence("loading"), hint=f'"{command[0]}" was not started')
    watch = asyncio.ensure_future(_watch(gpud, cookies, output))
    try:
        return await run_command(command)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def reason_of(arguments: Namespace, command: list[str]) -> str:
    """What others read about it."""
    why: str = arguments.why or f"runs {Path(command[0]).name}"
    return why[:128]


async def run_command(command: list[str], environment: Mapping[str, str] | None = None) -> int:
    """The command's status, with signals passed on to it meanwhile. ``environment`` is laid over our own."""
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
        child = await asyncio.create_subprocess_exec(*command, env={**os.environ, **(environment or {})})
        for number in early:
            pass_on(number)
        status = await child.wait()
    finally:
        for number in (*PASSED_ON, signal.SIGINT):
            loop.remove_signal_handler(number)
    return KILLED - status if status < 0 else status


async def _watch(gpud: "Gpud", cookies: dict[int, str], output: Output) -> None:
    """Say when a hold ends before the command does; the command continues all the same."""
    try:
        while True:
            told = await gpud.next_signal()
            if told.member == "HoldReleased" and told.body[0] in cookies:
                model = cookies.pop(told.body[0])
                output.note(f'gpudctl: "{model}" is no longer held ({told.body[1]}); the command continues')
    except GpudError as error:
        output.note(f"gpudctl: {error.message}: nothing is held any longer; the command continues")
