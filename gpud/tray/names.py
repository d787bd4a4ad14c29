"""Who owns one name on a bus, followed by the bus's own signal: nothing is asked twice, and nothing is started."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpud.cli import client
from gpud.cli.client import DBUS
from gpud.cli.exits import NotRunning
from gpud.cli.library import Message, MessageType

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus


class NameWatch:
    """``owner`` is a unique name, "" for nobody; ``on_change`` is called when it has changed. Made by :meth:`start`."""

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self._name = name
        self._on_change = on_change
        self.owner = ""
        self.turn = 0
        """Counts the changes: who let go of the name and took it again is another owner, and may know nothing."""

    @classmethod
    async def start(cls, bus: "MessageBus", name: str, on_change: Callable[[], None]) -> "NameWatch":
        """Raises BusError, and NotRunning when the bus goes meanwhile."""
        watch = cls(name, on_change)
        bus.add_message_handler(watch._take)
        rule = f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{name}'"
        await client.ask_bus(bus, "AddMatch", "s", rule)
        # The rule stands: what changes from here on is told, and told after this answer.
        if await client.ask_bus(bus, "NameHasOwner", "s", name):
            try:
                watch._set(await client.ask_bus(bus, "GetNameOwner", "s", name))
            except NotRunning:
                watch._set("")
        return watch

    def forget(self) -> None:
        """The bus has gone, and with it everybody."""
        self._set("")

    def _take(self, message: Message) -> None:
        told = message.message_type is MessageType.SIGNAL and message.sender == DBUS
        if told and message.member == "NameOwnerChanged" and message.body[0] == self._name:
            self._set(message.body[2])

    def _set(self, owner: str) -> None:
        if owner != self.owner:
            self.owner = owner
            self.turn += 1
            self._on_change()
