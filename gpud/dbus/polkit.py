"""Asks polkit whether a caller may do something; knows nothing of models and keeps no answer.

The subject is always the caller's unique name on the bus, never a PID: a PID can be somebody else's by the time polkit
looks at it.
"""

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum

from gpud.core.errors import AccessDenied, InteractionRequired, LimitsExceeded
from gpud.core.facts import Caller
from gpud.dbus.connection import Connection, ConnectionGone, ReplyError
from gpud.dbus.interface import INTERFACE
from gpud.dbus.wire import Flag, Kind, Message, Variant

POLKIT = "org.freedesktop.PolicyKit1"
_AUTHORITY = "/org/freedesktop/PolicyKit1/Authority"
_AUTHORITY_INTERFACE = "org.freedesktop.PolicyKit1.Authority"

# Without a dialog polkit answers from its rules; it may have to be started first. A caller's own call times out then.
TIMEOUT_S = 25.0
# With a dialog somebody has to find the window and type a password.
INTERACTIVE_TIMEOUT_S = 120.0

# What the bus says when nobody can answer for polkit, and nobody can be started.
_ABSENT = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Spawn.ServiceNotFound",
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.systemd1.UnitMasked",
)


class Permission(StrEnum):
    """What polkit is asked about. The value is the action's name below the interface's."""

    LOAD = "load"
    UNLOAD = "unload"
    UNLOAD_OTHERS = "unload-others"
    HOLD = "hold"
    MANAGE = "manage"

    @property
    def action(self) -> str:
        return f"{INTERFACE}.{self.value}"


class _Absent(Exception):
    """There is no polkit on this machine."""


class _Unanswered(Exception):
    """What came of the question instead of an answer, and what to do about it."""

    def __init__(self, text: str, hint: str = "nothing was done; call again") -> None:
        super().__init__(text)
        self.hint = hint


class Authority:
    """Decides whether a caller may; in user mode without polkit: whoever runs gpud may do everything."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        *,
        user_mode: bool,
        in_flight: int,
        timeout_s: float = TIMEOUT_S,
        interactive_timeout_s: float = INTERACTIVE_TIMEOUT_S,
    ) -> None:
        self._connection = connection
        self._user_mode = user_mode
        self._limit = in_flight
        self._timeout_s = timeout_s
        self._interactive_timeout_s = interactive_timeout_s
        self._in_flight: Counter[int] = Counter()
        self._ids = itertools.count(1)

    async def check(
        self,
        caller: Caller,
        permission: Permission,
        *,
        sender: str,
        interactive: bool,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Returns when the caller may. Raises AccessDenied, InteractionRequired or LimitsExceeded.

        ``details`` are for polkit's dialog and its rules: what stands as ``$(name)`` in the action's message.
        """
        if caller.uid == 0:
            return
        if self._user_mode:
            if caller.uid != os.getuid():
                raise AccessDenied(f"{caller.label} may not use the gpud of uid {os.getuid()}")
            return
        if self._in_flight[caller.uid] >= self._limit:
            raise LimitsExceeded(
                f"polkit is being asked {self._limit} questions about uid {caller.uid} already, which is the limit",
                hint="answer the open dialogs, or call again later",
            )
        self._in_flight[caller.uid] += 1
        try:
            await self._ask(caller, permission, sender, interactive=interactive, details=dict(details or {}))
        finally:
            self._in_flight[caller.uid] -= 1
            if not self._in_flight[caller.uid]:
                del self._in_flight[caller.uid]

    async def _ask(
        self, caller: Caller, permission: Permission, sender: str, *, interactive: bool, details: dict[str, str]
    ) -> None:
        action = permission.action
        try:
            allowed, challenge = await self._check(action, sender, interactive=interactive, details=details)
        except _Unanswered as problem:
            raise AccessDenied(
                f"cannot ask polkit whether {caller.label} may {permission.value} ({action}): {problem}",
                hint=problem.hint,
            ) from None
        except _Absent:
            raise AccessDenied(
                f"{caller.label} may not {permission.value}: there is no polkit on this machine, "
                "so that only uid 0 may",
                hint="install polkit, or call as root",
            ) from None
        if allowed is True:
            return
        if challenge is True and not interactive:
            raise InteractionRequired(
                f"{caller.label} may {permission.value} only after authentication ({action})",
                hint="call as root (sudo), or at a terminal, where gpudctl asks for a password (on the bus: with "
                "interactive authorization allowed); or have an administrator let you in, as "
                "/usr/share/doc/gpud/50-gpud.rules shows",
            )
        raise AccessDenied(
            f"polkit does not allow {caller.label} to {permission.value} ({action})",
            hint="an administrator can allow it in polkit's rules: see 50-gpud.rules",
        )

    async def _check(
        self, action: str, sender: str, *, interactive: bool, details: dict[str, str]
    ) -> tuple[object, object]:
        """Whether it is allowed, and whether it would be with a password. Raises what says why that is not known."""
        connection = self._connection()
        timeout_s = self._interactive_timeout_s if interactive else self._timeout_s
        cancellation = f"gpud-{next(self._ids)}"
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        question = Message(
            Kind.CALL,
            destination=POLKIT,
            path=_AUTHORITY,
            interface=_AUTHORITY_INTERFACE,
            member="CheckAuthorization",
            signature="(sa{sv})sa{ss}us",
            body=[subject, action, details, 1 if interactive else 0, cancellation],
        )
        try:
            reply = await connection.call(question, timeout_s)
            allowed, challenge, _details = reply.body[0]
        except ReplyError as problem:
            if problem.name in _ABSENT:
                raise _Absent from None
            raise _Unanswered(
                str(problem), "nothing was done; see whether polkit.service runs, then call again"
            ) from None
        except TimeoutError:
            self._withdraw(connection, cancellation)
            raise _Unanswered(f"no answer within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._withdraw(connection, cancellation)
            raise
        except ConnectionGone as problem:
            raise _Unanswered(str(problem)) from None
        except (IndexError, TypeError, ValueError):
            raise _Unanswered(f'its answer has the type "{reply.signature}", expected "(bba{{ss}})"', "") from None
        return allowed, challenge

    def _withdraw(self, connection: Connection, cancellation: str) -> None:
        """Close polkit's dialog: nobody waits for its answer any more."""
        with contextlib.suppress(Exception):
            connection.send(
                Message(
                    Kind.CALL,
                    flags=Flag.NO_REPLY_EXPECTED,
                    destination=POLKIT,
                    path=_AUTHORITY,
                    interface=_AUTHORITY_INTERFACE,
                    member="CancelCheckAuthorization",
                    signature="s",
                    body=[cancellation],
                )
            )
