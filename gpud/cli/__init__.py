"""gpudctl, the command line of gpud. What it consists of is imported when it runs, so that Ctrl-C ends that, too."""

from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit status and never raises."""
    try:
        # Imported here: that takes longer than some commands do, and may be interrupted as they may be.
        from gpud.cli import commands

        return commands.main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
