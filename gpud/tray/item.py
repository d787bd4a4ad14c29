"""The icon on the bus: org.kde.StatusNotifierItem with its menu, on a connection of its own, so that every tray
drops it when that connection ends. Draws nothing and decides nothing.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

from gpud.cli import client
from gpud.cli.exits import NotRunning
from gpud.cli.library import Message, MessageBus
from gpud.core.record import Record
from gpud.tray import menu
from gpud.tray.menu import Menu
from gpud.tray.picture import Picture, pixmaps
from gpud.tray.served import Interface, Method, Served
from gpud.tray.wishes import Wish
from gpud.tray.words import Entry

log = logging.getLogger(__name__)

PATH = "/StatusNotifierItem"
NAME = "org.kde.StatusNotifierItem"
WATCHER = "org.kde.StatusNotifierWatcher"
WATCHER_PATH = "/StatusNotifierWatcher"

REGISTER_S = 10.0
"""For the tray's answer, which takes milliseconds unless the desktop is still starting."""

_counter = itertools.count(1)


class Shown(Record):
    """All that the tray shows at one moment."""

    title: str
    tooltip: str
    picture: Picture
    menu: tuple[Entry, ...]


class Item:
    """Made by :meth:`open`; gone when it is closed, or when its connection ends, whereupon ``on_gone`` is called."""

    def __init__(self, bus: MessageBus, shown: Shown, on_wish: Callable[[Wish], None]) -> None:
        self._bus = bus
        self._shown = shown
        self._menu = Menu(on_wish, self._send)
        self._menu.show(shown.menu)
        self.bus_name = f"{NAME}-{os.getpid()}-{next(_counter)}"
        self.closed = asyncio.ensure_future(self._wait_closed())
        self._interface = self._described()
        bus.add_message_handler(Served(self._interface, self._menu.interface).take)

    @classmethod
    async def open(cls, shown: Shown, on_wish: Callable[[Wish], None]) -> "Item":
        """On the session bus, not registered yet. Raises GpudError."""
        bus, problem = await client.open_bus("user")
        if bus is None:
            raise NotRunning(f"cannot show an icon: {problem}", hint="look whether the session bus runs")
        item = cls(bus, shown, on_wish)
        try:
            await client.ask_bus(bus, "RequestName", "su", item.bus_name, 0)
        except BaseException:
            await item.close()
            raise
        return item

    async def register(self) -> None:
        """Tell the tray that it is there. Raises GpudError."""
        message = Message(
            destination=WATCHER,
            path=WATCHER_PATH,
            interface=WATCHER,
            member="RegisterStatusNotifierItem",
            signature="s",
            body=[self.bus_name],
        )
        await client.call_anyone(self._bus, message, REGISTER_S)

    def show(self, shown: Shown) -> None:
        """What differs from before is told, the rest is not."""
        before, self._shown = self._shown, shown
        self._menu.show(shown.menu)
        if shown.title != before.title:
            self._send(self._interface.signal("NewTitle"))
        if shown.picture != before.picture:
            self._send(self._interface.signal("NewIcon"))
        if (shown.title, shown.tooltip) != (before.title, before.tooltip):
            self._send(self._interface.signal("NewToolTip"))

    async def close(self) -> None:
        client.hang_up(self._bus)
        await asyncio.gather(self.closed, return_exceptions=True)

    async def _wait_closed(self) -> None:
        try:
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception:  # Any reason is the same: no tray shows it any longer.
            log.debug("the connection of the icon has gone", exc_info=True)

    def _send(self, message: Message) -> None:
        if self._bus.connected:
            self._bus.send(message)

    def _described(self) -> Interface:
        def nothing(*_: Any) -> tuple[Any, ...]:
            return ()

        where = ("x:i", "y:i")
        return Interface(
            PATH,
            NAME,
            properties={
                "Category": ("s", lambda: "Hardware"),
                "Id": ("s", lambda: "gpud"),
                "Title": ("s", lambda: self._shown.title),
                "Status": ("s", lambda: "Active"),
                "WindowId": ("i", lambda: 0),
                "IconThemePath": ("s", lambda: ""),
                "IconName": ("s", lambda: ""),
                "IconPixmap": ("a(iiay)", lambda: pixmaps(self._shown.picture)),
                "OverlayIconName": ("s", lambda: ""),
                "OverlayIconPixmap": ("a(iiay)", list),
                "AttentionIconName": ("s", lambda: ""),
                "AttentionIconPixmap": ("a(iiay)", list),
                "AttentionMovieName": ("s", lambda: ""),
                "ToolTip": ("(sa(iiay)ss)", lambda: ["", [], self._shown.title, self._shown.tooltip]),
                # A click opens the menu, as there is nothing else to open.
                "ItemIsMenu": ("b", lambda: True),
                "Menu": ("o", lambda: menu.PATH),
            },
            methods={
                "ContextMenu": Method(where, (), nothing),
                "Activate": Method(where, (), nothing),
                "SecondaryActivate": Method(where, (), nothing),
                "Scroll": Method(("delta:i", "orientation:s"), (), nothing),
                "ProvideXdgActivationToken": Method(("token:s",), (), nothing),
            },
            signals={
                "NewTitle": (),
                "NewIcon": (),
                "NewAttentionIcon": (),
                "NewOverlayIcon": (),
                "NewMenu": (),
                "NewToolTip": (),
                "NewStatus": ("status:s",),
            },
        )
