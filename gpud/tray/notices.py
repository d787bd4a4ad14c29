"""Tells a person on the desktop that what they asked for could not be done: one notification, replaced by the next."""

import logging
from typing import TYPE_CHECKING

from gpud.cli import client
from gpud.cli.library import Message, Variant
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus

log = logging.getLogger(__name__)

SERVICE = "org.freedesktop.Notifications"
OBJECT = "/org/freedesktop/Notifications"
ANSWER_S = 10.0
"""For the desktop's answer; its notification service may have to be started first."""

AS_THE_DESKTOP_LIKES = -1
"""How long it stays."""


class Notices:
    """On the session bus. Where nobody shows notifications, the menu has the words as well."""

    def __init__(self, bus: "MessageBus") -> None:
        self._bus = bus
        self._last = 0

    async def tell(self, title: str, text: str) -> None:
        hints = {"desktop-entry": Variant("s", "gpud-tray"), "category": Variant("s", "device.error")}
        message = Message(
            destination=SERVICE,
            path=OBJECT,
            interface=SERVICE,
            member="Notify",
            signature="susssasa{sv}i",
            body=["gpud", self._last, "org.kernelcore.gpud", title, text, [], hints, AS_THE_DESKTOP_LIKES],
        )
        try:
            (self._last,) = await client.call_anyone(self._bus, message, ANSWER_S)
        except GpudError as problem:
            log.debug("no notification is shown: %s", problem)
