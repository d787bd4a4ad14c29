"""gpud-tray: an icon in the tray of a desktop that shows what gpud does, and a menu to tell it what to do.

A program of its own, and a client of the daemon over D-Bus like any other. This module reads its command line and turns
what goes wrong into one line and a status.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

DONE = 0
FAILED = 1
USAGE = 2
NO_TRAY = 69
"""EX_UNAVAILABLE: trying again would end the same way. The unit takes it for an end, not for a failure."""

TRAY_WAIT_S = 30.0
"""For a desktop that is still starting to bring up its tray."""

DESCRIPTION = """\
Show an icon in the desktop's tray: how full the GPU is, which models are
loaded, and a menu to load and unload models and to yield the GPUs. The icon is
shown while gpud runs; gpud-tray never starts gpud. On GNOME and KDE Plasma 6,
use gpud's extension or widget instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("gpud-tray", description=DESCRIPTION, epilog="See gpud-tray(1).")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--user", dest="bus", action="store_const", const="user", help="show only your own gpud")
    group.add_argument(
        "--system", dest="bus", action="store_const", const="system", help="show only the gpud of this machine"
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=TRAY_WAIT_S,
        metavar="SECONDS",
        help=f"wait at most SECONDS for the desktop's tray (default: {TRAY_WAIT_S:g})",
    )
    parser.add_argument("--verbose", action="store_true", help="print more to standard error")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    options = parser.parse_args(arguments)
    if options.version:
        from gpud import __version__

        sys.stdout.write(f"gpud-tray {__version__}\n")
        return DONE
    level = logging.DEBUG if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="gpud-tray: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return _run(options.bus or "", options.wait)


def _run(bus: str, tray_wait_s: float) -> int:
    import asyncio

    from gpud.cli.exits import Usage
    from gpud.core.errors import GpudError
    from gpud.tray import settings
    from gpud.tray.program import AlreadyRuns, NoTray, Tray, buses
    from gpud.tray.texts import texts

    async def work() -> None:
        file = settings.settings_file(os.environ)
        await Tray(settings.read(file), file, texts(os.environ), tray_wait_s).run(buses(bus))

    try:
        asyncio.run(work())
    except GpudError as problem:
        sys.stderr.write(f"gpud-tray: {problem.text}\n")
        if isinstance(problem, NoTray):
            return NO_TRAY
        if isinstance(problem, AlreadyRuns):
            return DONE
        return USAGE if isinstance(problem, Usage) else FAILED
    return DONE


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 3600")
    return value
