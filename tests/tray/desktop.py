"""A desktop without a screen: a tray that takes icons, as KDE's does, and the program under test as a child.

The tray speaks through jeepney, a D-Bus library that gpud does not use. It waits for messages of the bus, each within a
bound.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    Message,
    MessageType,
    Properties,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

TOP = Path(__file__).resolve().parents[2]
BOUND_S = 60.0

WATCHER = "org.kde.StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
NOTIFICATIONS = "org.freedesktop.Notifications"


class Refused(Exception):
    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name.rpartition(".")[2]
        self.text = text


@dataclass(frozen=True)
class Line:
    """A line of the menu, as a tray reads it."""

    number: int
    properties: dict[str, Any]
    children: tuple["Line", ...]

    @property
    def label(self) -> str:
        return str(self.properties.get("label", ""))

    @property
    def enabled(self) -> bool:
        return bool(self.properties.get("enabled", True))

    def all(self) -> list["Line"]:
        return [self, *(line for child in self.children for line in child.all())]

    def labels(self) -> list[str]:
        return [child.label for child in self.children]


class Desktop:
    """The tray of a session. It shows icons while :attr:`icons` has any."""

    def __init__(self, address: str, *, refuses: bool = False) -> None:
        self._refuses = refuses
        self._connection = open_dbus_connection(address)
        self._messages: deque[Message] = deque()
        self._filters = [
            self._connection.filter(MatchRule(type=kind), queue=self._messages) for kind in ("signal", "method_call")
        ]
        self.icons: list[str] = []
        self.refused: list[str] = []
        self.signals: list[tuple[str, Any]] = []
        self.notifications: list[tuple[str, str]] = []
        for rule in (
            MatchRule(type="signal", interface=ITEM),
            MatchRule(type="signal", interface=MENU),
            MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged"),
        ):
            self._ask_bus(message_bus.AddMatch(rule))

    def _ask_bus(self, message: Message) -> Any:
        reply = self._connection.send_and_get_reply(message, timeout=BOUND_S)
        assert reply.header.message_type is MessageType.method_return, reply.body
        return reply.body[0] if reply.body else None

    def own(self, *names: str) -> None:
        for name in names or (WATCHER, NOTIFICATIONS):
            assert self._ask_bus(message_bus.RequestName(name, 4)) == 1

    def leave(self, name: str = WATCHER) -> None:
        """The tray ends, as plasmashell does when it is restarted."""
        self._ask_bus(message_bus.ReleaseName(name))
        self.icons.clear()

    def owned(self, name: str) -> bool:
        return bool(self._ask_bus(message_bus.NameHasOwner(name)))

    def close(self) -> None:
        self._connection.close()

    # What comes in ---------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str, bound_s: float = BOUND_S) -> Any:
        """Until it is true, looking again after each message."""
        deadline = time.monotonic() + bound_s
        while True:
            self._take_all()
            found = condition()
            # A condition that asks something hears what was said before its answer.
            news = self._take_all()
            if found:
                return found
            if news:
                continue
            try:
                self._connection.recv_messages(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise AssertionError(
                    f"{what} did not come true; icons {self.icons}, last {self.signals[-8:]}"
                ) from None

    def _take_all(self) -> bool:
        """Whether there was anything."""
        news = bool(self._messages)
        while self._messages:
            self._take(self._messages.popleft())
        return news

    def _take(self, message: Message) -> None:
        fields = message.header.fields
        member = fields[HeaderFields.member]
        if message.header.message_type is MessageType.method_call:
            self._answer(message, member)
        elif member == "NameOwnerChanged":
            name, _, owner = message.body
            if name in self.icons and not owner:
                self.icons.remove(name)
        else:
            self.signals.append((member, message.body))

    def _answer(self, message: Message, member: str) -> None:
        if member == "RegisterStatusNotifierItem" and self._refuses:
            self.refused.append(message.body[0])
            reply = new_error(message, "org.freedesktop.DBus.Error.Failed", "s", ("no more icons",))
        elif member == "RegisterStatusNotifierItem":
            self.icons.append(message.body[0])
            reply = new_method_return(message)
        elif member == "Notify":
            self.notifications.append((message.body[3], message.body[4]))
            reply = new_method_return(message, "u", (len(self.notifications),))
        else:
            reply = new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (member,))
        self._connection.send(reply)

    # The icon --------------------------------------------------------------------------------------------------------

    def icon(self) -> str:
        """The bus name of the only icon, waiting for it if need be."""
        self.wait(lambda: self.icons, "an icon")
        (name,) = self.icons
        return name

    def no_icon(self) -> None:
        self.wait(lambda: not self.icons, "that no icon is there")

    def call(self, path: str, interface: str, member: str, signature: str = "", *values: object) -> tuple[Any, ...]:
        """Of the icon's program. Raises Refused."""
        address = DBusAddress(path, self.icon(), interface)
        return self._reply(new_method_call(address, member, signature or None, values))

    def _reply(self, message: Message) -> tuple[Any, ...]:
        reply = self._connection.send_and_get_reply(message, timeout=BOUND_S)
        if reply.header.message_type is MessageType.error:
            raise Refused(reply.header.fields[HeaderFields.error_name], str(reply.body[0]))
        return tuple(reply.body)

    def property(self, name: str) -> Any:
        address = DBusAddress("/StatusNotifierItem", self.icon(), ITEM)
        return self._reply(Properties(address).get(name))[0][1]

    def tooltip(self) -> str:
        """Title and text as one."""
        _, _, title, text = self.property("ToolTip")
        return f"{title}\n{text}"

    def wait_tooltip(self, part: str) -> str:
        def said() -> str:
            text = self.tooltip()
            return text if part in text else ""

        return str(self.wait(said, f"a tooltip with {part!r}"))

    def menu(self) -> Line:
        """As a tray asks for it when somebody opens it."""
        (_, layout) = self.call("/MenuBar", MENU, "GetLayout", "iias", 0, -1, [])
        return _line(layout)

    def line(self, label: str) -> Line:
        """The line that says that, waiting for it if need be."""

        def find() -> Line | None:
            return next((line for line in self.menu().all() if line.label == label), None)

        try:
            return self.wait(find, f"the line {label!r}")
        except AssertionError as problem:
            raise AssertionError(f"{problem}; the menu has {[line.label for line in self.menu().all()]}") from None

    def click(self, label: str) -> None:
        line = self.line(label)
        assert line.enabled, f"{label!r} cannot be clicked"
        self.event(line.number)

    def event(self, number: int, kind: str = "clicked") -> None:
        self.call("/MenuBar", MENU, "Event", "isvu", number, kind, ("i", 0), 0)


def _line(layout: Any) -> Line:
    number, properties, children = layout
    plain = {name: value for name, (_, value) in properties.items()}
    return Line(number, plain, tuple(_line(child) for _, child in children))


class Program:
    """gpud-tray as a child."""

    def __init__(self, *words: str, address: str, home: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpud.tray", "--verbose", *words],
            cwd=TOP,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "DBUS_SESSION_BUS_ADDRESS": address,
                "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={home}/no-system-bus",
                "LANG": "C.UTF-8",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ends(self) -> tuple[int, str]:
        """Its status and all that it said."""
        _, said = self._process.communicate(timeout=BOUND_S)
        return self._process.returncode, said

    def stop(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGTERM)
        return self.ends()

    def close(self) -> None:
        if self.running:
            self._process.kill()
        self._process.communicate()
