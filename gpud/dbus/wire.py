"""Messages as gpud sees them, whichever library turns their bodies into bytes; owns no socket."""

from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from gpud.core.record import Struct, field

BUS_NAME = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"


class Kind(IntEnum):
    """The type of a message; ``OTHER`` stands for those that are not invented yet, which are passed over."""

    OTHER = 0
    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(IntFlag):
    """The flags of a message header."""

    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


class Variant(NamedTuple):
    """A value together with its signature. Compares like any tuple, and belongs to no library."""

    signature: str
    value: Any


class Message(Struct):
    """One message, in or out.

    ``oversize`` says what of a call was too large to be read; ``damaged`` marks one whose body cannot be. ``encoded``
    is a body for sending that is bytes already; ``body`` is not looked at then.
    """

    kind: Kind
    serial: int = 0
    flags: Flag = Flag.NONE
    sender: str = ""
    destination: str = ""
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    signature: str = ""
    body: list[Any] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    encoded: bytes = b""
    oversize: str = ""
    damaged: bool = False

    @property
    def wants_reply(self) -> bool:
        return self.kind is Kind.CALL and not self.flags & Flag.NO_REPLY_EXPECTED


def is_unique_name(owner: str) -> bool:
    """Whether a hold's owner is a connection of the bus (an inhibitor's is written with a slash)."""
    return owner.startswith(":") and "/" not in owner
