"""The daemon's command line. Parses arguments and nothing else."""

import argparse
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gpud import __version__

UNUSABLE = 78
"""The exit status where another start would end in the same way: systemd does not try again."""

EPILOG = """\
exit status: 0 stopped as requested; 75 another gpud is running; 78 the
configuration is invalid or a package is missing; 80 the engines are left to the
next gpud (SIGUSR2); 1 any other failure.
Configuration: gpud.yaml(5). To control a running gpud, use gpudctl(1).
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="gpud",
        description="Load, serve and unload local models within a GPU memory budget.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--user", action="store_true", help="serve one user on the session bus, without polkit")
    made.add_argument(
        "--beside-system", action="store_true", help="with --user: start even if the machine has its own gpud"
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file (default: /etc/gpud/gpud.yaml, or the user's own)",
    )
    made.add_argument("--reap", action="store_true", help="end the engines that a failed gpud left behind, then exit")
    made.add_argument("--version", action="version", version=f"gpud {__version__}")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Until the loop takes them over: a reload that comes too early must not end the daemon, and Ctrl-C ends it without
    # a traceback. There is nothing yet that would have to be ended in order.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Imported here: --help and --version need nothing of it. What is imported stays for good: looking through all of it
    # for garbage, again and again while it grows, would take a tenth of the start.
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000, 20, 50)
    try:
        if options.reap:
            from gpud import reaper

            return reaper.run(user=options.user)
        from gpud import daemon
    except ModuleNotFoundError as problem:
        sys.stderr.write(
            f"gpud: cannot start: {sys.executable} has no package {problem.name}; install gpud again "
            "(sudo make install, or pip install kernelcore-gpud)\n"
        )
        return UNUSABLE

    gc.freeze()
    gc.set_threshold(*thresholds)

    return daemon.run(user=options.user, config_path=options.config, beside_system=options.beside_system)


if __name__ == "__main__":
    sys.exit(main())
