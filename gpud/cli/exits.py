"""The exit statuses of gpudctl, the one table from errors to them, and the errors that only a command line has."""

from gpud.cli import INTERRUPTED as INTERRUPTED
from gpud.core.errors import GpudError

DONE = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
REFUSED = 4
PIPE_CLOSED = 141

STATUSES = {
    "usage": USAGE,
    "invalid-arguments": USAGE,
    "invalid-option": USAGE,
    "not-running": NOT_RUNNING,
    "access-denied": REFUSED,
    "interaction-required": REFUSED,
    "busy": REFUSED,
    "budget-exceeded": REFUSED,
    "queue-full": REFUSED,
    "waited-too-long": REFUSED,
    "yielded": REFUSED,
    "gpu-taken": REFUSED,
    "limits-exceeded": REFUSED,
}
"""Every other error is FAILED."""


class Usage(GpudError):
    """The command line itself is wrong."""

    code = "usage"


class NotRunning(GpudError):
    """The daemon does not answer: it is not there, or it has gone while it was waited for."""

    code = "not-running"


class BusError(GpudError):
    """An error that the daemon, or the bus, answered with. ``code`` is as in gpud.core.errors."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def exit_status(error: GpudError) -> int:
    return STATUSES.get(error.code, FAILED)
