"""Notifications on the session bus: shown once, taken away again, and their buttons."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gpud.cli import client
from gpud.cli.library import Message, MessageType, Variant
from gpud.core.errors import GpudError
from gpud.notify.news import News

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus

log = logging.getLogger(__name__)

SERVICE = "org.freedesktop.Notifications"
OBJECT = "/org/freedesktop/Notifications"
ANSWER_S = 10.0
"""For the desktop's answer; its notification service may have to be started first."""

UNTIL_CLOSED = 0
NORMAL, CRITICAL = 1, 2


class Notices:
    """``labels``: what stands on each button; ``on_action`` is called with the news and the button that was pressed."""

    def __init__(self, bus: "MessageBus", labels: Mapping[str, str], on_action: Callable[[News, str], None]) -> None:
        self._bus = bus
        self._labels = labels
        self._on_action = on_action
        self._shown: dict[str, tuple[int, News]] = {}
        self._turns = asyncio.Lock()
        """A button may be heard of before the answer that says which notification has it."""
        self._presses: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._bus.add_message_handler(self._take)
        rule = f"type='signal',path='{OBJECT}',interface='{SERVICE}',member='ActionInvoked'"
        await client.ask_bus(self._bus, "AddMatch", "s", rule)

    async def show(self, news: News) -> None:
        """Once for each event: the same words are not shown again, other words replace them."""
        async with self._turns:
            await self._show(news)

    async def _show(self, news: News) -> None:
        number, before = self._shown.get(news.key, (0, None))
        if before == news:
            return
        self._shown[news.key] = (number, news)
        buttons = [word for action in news.actions for word in (action, self._labels[action])]
        hints = {
            "desktop-entry": Variant("s", "gpud-tray"),
            "category": Variant("s", "device.error"),
            "urgency": Variant("y", CRITICAL if news.critical else NORMAL),
        }
        body = ["gpud", number, "org.kernelcore.gpud", news.title, news.text, buttons, hints, UNTIL_CLOSED]
        try:
            (number,) = await self._call("Notify", "susssasa{sv}i", *body)
        except GpudError as problem:
            log.warning("cannot show %r: %s", news.title, problem.text)
        else:
            self._shown[news.key] = (number, news)

    async def over(self, key: str) -> None:
        """The event is over: what was shown of it goes."""
        async with self._turns:
            number, _ = self._shown.pop(key, (0, None))
            if number:
                try:
                    await self._call("CloseNotification", "u", number)
                except GpudError as problem:
                    # A person has closed it already.
                    log.debug("cannot close a notification: %s", problem.text)

    def keys(self, kind: str) -> tuple[str, ...]:
        """What is shown of one kind of event: those whose key begins so."""
        return tuple(key for key in self._shown if key.startswith(kind))

    async def _call(self, member: str, signature: str, *body: object) -> list[int]:
        message = Message(
            destination=SERVICE, path=OBJECT, interface=SERVICE, member=member, signature=signature, body=list(body)
        )
        return await client.call_anyone(self._bus, message, ANSWER_S)

    def _take(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL or message.member != "ActionInvoked":
            return
        task = asyncio.get_running_loop().create_task(self._press(*message.body))
        self._presses.add(task)
        task.add_done_callback(self._presses.discard)

    async def _press(self, number: int, action: str) -> None:
        async with self._turns:
            pressed = [news for shown, news in self._shown.values() if shown == number and action in news.actions]
        for news in pressed:
            self._on_action(news, action)
