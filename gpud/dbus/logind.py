"""What logind knows of login sessions, asked over gpud's own connection to the system bus; decides nothing.

Machines without logind are machines like others: every question has the answer that it does not know.
"""

import logging
from collections.abc import Callable
from typing import Any

from gpud.core.record import Record
from gpud.dbus.connection import Connection, ReplyError
from gpud.dbus.wire import BUS_NAME, Flag, Kind, Message, Variant

log = logging.getLogger(__name__)

LOGIND = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = f"{LOGIND}.Manager"
SESSION = f"{LOGIND}.Session"
PROPERTIES = "org.freedesktop.DBus.Properties"

ANSWER_S = 2.0
"""logind answers within milliseconds; a shell that registers does not wait longer for one that hangs."""


class Login(Record):
    """One login session. ``leader`` is the process that logged in: it ends at logout, whatever stays behind."""

    id: str
    leader: int


class Logind:
    """``on_change`` is called when a login session may have ended, or logind itself has come back."""

    def __init__(self, connection: Callable[[], Connection], on_change: Callable[[], None]) -> None:
        self._connection = connection
        self._on_change = on_change
        self._watching = False

    async def session_of(self, pid: int) -> Login | None:
        """The login session that a process is in; None for services, for what such start, and where nobody knows."""
        path = await self._ask(MANAGER, "GetSessionByPID", "u", pid)
        if not isinstance(path, str):
            return None
        values = await self._ask(PROPERTIES, "GetAll", "s", SESSION, path=path)
        if not isinstance(values, dict):
            return None
        name, leader = _value(values, "Id"), _value(values, "Leader")
        return Login(name, leader) if isinstance(name, str) and name and isinstance(leader, int) else None

    async def living(self) -> frozenset[str] | None:
        """The login sessions that there are; None where logind does not say."""
        listed = await self._ask(MANAGER, "ListSessions")
        return frozenset(entry[0] for entry in listed) if isinstance(listed, list) else None

    async def watch(self) -> None:
        """From now on be told when login sessions end. Nothing happens where that is so already."""
        if self._watching:
            return
        self._watching = True
        for rule in _RULES:
            try:
                await self._connection().call_bus("AddMatch", "s", [rule])
            except (ReplyError, OSError) as problem:
                log.debug("the bus does not tell when login sessions end: %s", problem)

    def unwatch(self) -> None:
        """Nothing depends on logind any more: it need not wake us."""
        if self._watching:
            self._watching = False
            for rule in _RULES:
                self._connection().tell_bus("RemoveMatch", "s", [rule])

    def clear(self) -> None:
        """The bus is gone, and its rules with it."""
        self._watching = False

    def signal(self, message: Message) -> None:
        """Anybody may send one that looks like logind's: it makes us ask, and nothing else."""
        if not self._watching:
            return
        removed = message.interface == MANAGER and message.member == "SessionRemoved"
        owner = message.sender == BUS_NAME and message.member == "NameOwnerChanged"
        if removed or (owner and message.signature == "sss" and message.body[0] == LOGIND and message.body[2]):
            self._on_change()

    async def _ask(self, interface: str, member: str, signature: str = "", *values: object, path: str = PATH) -> Any:
        """The first value of the answer; None for every way to get none."""
        call = Message(
            Kind.CALL,
            flags=Flag.NO_AUTO_START,
            destination=LOGIND,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(values),
        )
        try:
            reply = await self._connection().call(call, ANSWER_S)
        except (ReplyError, OSError) as problem:
            log.debug("logind does not answer %s: %s", member, problem)
            return None
        return reply.body[0] if reply.body else None


def _value(values: dict[str, Any], name: str) -> object:
    value = values.get(name)
    return value.value if isinstance(value, Variant) else None


_RULES = (
    f"type='signal',sender='{LOGIND}',path='{PATH}',interface='{MANAGER}',member='SessionRemoved'",
    f"type='signal',sender='{BUS_NAME}',interface='{BUS_NAME}',member='NameOwnerChanged',arg0='{LOGIND}'",
)
