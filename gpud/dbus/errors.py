"""What gpud's errors are called on the bus."""

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

_BY_CODE = {
    "failed": FAILED,
    "invalid-arguments": INVALID_ARGS,
    "limits-exceeded": LIMITS_EXCEEDED,
    "access-denied": ACCESS_DENIED,
    "interaction-required": f"{_STANDARD}.InteractiveAuthorizationRequired",
}
"""The codes for which D-Bus has names itself."""


class CallError(Exception):
    """A call that does not fit the interface; ``name`` is a standard error of D-Bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text


def bus_error(problem: GpudError) -> tuple[str, str]:
    """The name and the text of an error as a caller sees it."""
    return name_of(problem.code), problem.text


def name_of(code: str) -> str:
    """``no-such-model`` is ``NoSuchModel``, as its class in gpud.core.errors is, but for what D-Bus names itself."""
    return _BY_CODE.get(code) or f"{_OWN}.{''.join(map(str.capitalize, code.split('-')))}"
