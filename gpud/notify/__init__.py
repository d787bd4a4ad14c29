"""gpud-notify: tells a person on a desktop what of gpud needs a person, and nothing else.

A program of its own, and a client of the daemon over D-Bus like any other: the daemon of the machine belongs to no
session and cannot show anything. This module reads its command line and turns what goes wrong into one line and a
status.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

DONE = 0
FAILED = 1
USAGE = 2

DESCRIPTION = """\
Show a desktop notification when gpud needs attention: a GPU is lost, a model
keeps failing, a GPU is nearly full with memory that somebody holds, or a disk
for models is nearly full. Each event has one notification, which disappears
when the event is over. gpud-notify never starts gpud and reports no routine
events."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("gpud-notify", description=DESCRIPTION, epilog="See gpud-notify(1).")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--user", dest="bus", action="store_const", const="user", help="follow only your own gpud")
    group.add_argument(
        "--system", dest="bus", action="store_const", const="system", help="follow only the gpud of this machine"
    )
    parser.add_argument("--verbose", action="store_true", help="print more to standard error")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    options = parser.parse_args(arguments)
    if options.version:
        from gpud import __version__

        sys.stdout.write(f"gpud-notify {__version__}\n")
        return DONE
    level = logging.DEBUG if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="gpud-notify: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return _run(options.bus or "")


def _run(bus: str) -> int:
    import asyncio

    from gpud.cli import client
    from gpud.cli.exits import Usage
    from gpud.core.errors import GpudError
    from gpud.notify.news import Words
    from gpud.notify.program import Program
    from gpud.tray.texts import texts

    try:
        words = Words(texts(os.environ, "gpud.notify"))
        asyncio.run(Program(client.wanted_buses(bus, os.environ), words).run())
    except GpudError as problem:
        sys.stderr.write(f"gpud-notify: {problem.text}\n")
        return USAGE if isinstance(problem, Usage) else FAILED
    return DONE
