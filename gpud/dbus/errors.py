"""The one table from gpud's error codes to names on the bus."""

from gpud.core.errors import GpudError
from gpud.dbus.interface import INTERFACE

_STANDARD = "org.freedesktop.DBus.Error"
_OWN = f"{INTERFACE}.Error"

FAILED = f"{_STANDARD}.Failed"
ACCESS_DENIED = f"{_STANDARD}.AccessDenied"
INVALID_ARGS = f"{_STANDARD}.InvalidArgs"
LIMITS_EXCEEDED = f"{_STANDARD}.LimitsExceeded"
UNKNOWN_OBJECT = f"{_STANDARD}.UnknownObject"
UNKNOWN_INTERFACE = f"{_STANDARD}.UnknownInterface"
UNKNOWN_METHOD = f"{_STANDARD}.UnknownMethod"
UNKNOWN_PROPERTY = f"{_STANDARD}.UnknownProperty"
PROPERTY_READ_ONLY = f"{_STANDARD}.PropertyReadOnly"

NAMES = {
    "failed": FAILED,
    "no-such-model": f"{_OWN}.NoSuchModel",
    "no-such-job": f"{_OWN}.NoSuchJob",
    "no-such-hold": f"{_OWN}.NoSuchHold",
    "no-such-claim": f"{_OWN}.NoSuchClaim",
    "no-session": f"{_OWN}.NoSession",
    "not-loaded": f"{_OWN}.NotLoaded",
    "busy": f"{_OWN}.Busy",
    "budget-exceeded": f"{_OWN}.BudgetExceeded",
    "queue-full": f"{_OWN}.QueueFull",
    "waited-too-long": f"{_OWN}.WaitedTooLong",
    "yielded": f"{_OWN}.Yielded",
    "gpu-taken": f"{_OWN}.GpuTaken",
    "gpu-unavailable": f"{_OWN}.GpuUnavailable",
    "backend-failed": f"{_OWN}.BackendFailed",
    "invalid-option": f"{_OWN}.InvalidOption",
    "invalid-arguments": INVALID_ARGS,
    "limits-exceeded": LIMITS_EXCEEDED,
    "access-denied": ACCESS_DENIED,
    "interaction-required": f"{_STANDARD}.InteractiveAuthorizationRequired",
    "suspending": f"{_OWN}.Suspending",
    "shutting-down": f"{_OWN}.ShuttingDown",
    "config-invalid": f"{_OWN}.ConfigInvalid",
    "canceled": f"{_OWN}.Canceled",
}


class CallError(Exception):
    """A call that does not fit the interface; ``name`` is a standard error of D-Bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text


def bus_error(problem: GpudError) -> tuple[str, str]:
    """The name and the text of an error as a caller sees it."""
    return NAMES.get(problem.code, FAILED), problem.text
