"""UPower's word on whether the machine runs on its battery; nothing is asked twice."""

from collections.abc import Callable

from gpud.dbus.neighbours import Line, plain
from gpud.dbus.wire import Message

UPOWER = "org.freedesktop.UPower"
PATH = "/org/freedesktop/UPower"
PROPERTIES = "org.freedesktop.DBus.Properties"


class UPower:
    """A ``Neighbour``. ``tell`` gets each change; None: nobody knows any longer."""

    service = UPOWER
    rules = (f"path='{PATH}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{UPOWER}'",)

    def __init__(self, tell: Callable[[bool | None], None]) -> None:
        self._tell = tell
        self._known: bool | None = None
        self._told_since = False

    async def came(self, line: Line) -> None:
        self._told_since = False
        known = await line.properties(PATH, UPOWER)
        # What was told meanwhile has been handled before this answer, and may be newer.
        if not self._told_since:
            self._take(known.get("OnBattery"))

    def gone(self) -> None:
        self._take(None)

    def signal(self, message: Message) -> None:
        if message.interface == PROPERTIES and message.signature == "sa{sv}as" and message.body[0] == UPOWER:
            changed = plain(message.body[1])
            if "OnBattery" in changed:
                self._told_since = True
                self._take(changed["OnBattery"])

    def _take(self, value: object) -> None:
        known = value if isinstance(value, bool) else None
        if known != self._known:
            self._known = known
            self._tell(known)
