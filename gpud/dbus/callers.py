"""Who a caller is, as the bus vouches for it; decides nothing."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from gpud.core.errors import AccessDenied
from gpud.core.facts import Caller, Session
from gpud.core.record import replace
from gpud.dbus.connection import Connection, ReplyError
from gpud.dbus.wire import Variant

# A bus never gives out a unique name twice, so that a name that is remembered too long does no harm: nobody has to tell
# us when a caller leaves, and the idle daemon sleeps on. This bounds the memory.
MAX_CALLERS = 256


class Callers:
    """Remembers the credentials of those who called last."""

    def __init__(self, connection: Callable[[], Connection], find_session: Callable[[int], Session | None]) -> None:
        self._connection = connection
        self._find_session = find_session
        self._known: OrderedDict[str, Caller] = OrderedDict()

    async def identify(self, sender: str) -> Caller:
        """Raises AccessDenied for a caller that has left, or that the bus knows no uid of."""
        caller = await self._credentials(sender)
        # Not remembered: a shell may register after its programs have connected.
        session = self._find_session(caller.pid)
        return caller if session is None else replace(caller, session=session.id)

    async def _credentials(self, sender: str) -> Caller:
        known = self._known.get(sender)
        if known is not None:
            self._known.move_to_end(sender)
            return known
        try:
            credentials = await self._connection().call_bus("GetConnectionCredentials", "s", [sender])
        except (ReplyError, OSError) as problem:
            raise AccessDenied(f"cannot tell who {sender} is: {problem}") from None
        uid = _number(credentials, "UnixUserID")
        if uid is None:
            raise AccessDenied(f"cannot tell who {sender} is: the bus knows no uid of it")
        pid = _number(credentials, "ProcessID") or 0
        caller = Caller(owner=sender, uid=uid, pid=pid, label=_label(uid, pid))
        self._known[sender] = caller
        if len(self._known) > MAX_CALLERS:
            self._known.popitem(last=False)
        return caller

    def clear(self) -> None:
        """The bus is gone; another one gives out the same names again."""
        self._known.clear()


def _number(credentials: object, key: str) -> int | None:
    value = credentials.get(key) if isinstance(credentials, dict) else None
    return value.value if isinstance(value, Variant) and isinstance(value.value, int) else None


def _label(uid: int, pid: int) -> str:
    """For messages only: the process may have changed its name, or be another one by now."""
    name = ""
    if pid:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    name = "".join(letter for letter in name if letter.isprintable())
    known = ", ".join(part for part in (name, f"pid {pid}" if pid else "") if part)
    return f"uid {uid} ({known})" if known else f"uid {uid}"
