"""Services on the system bus that tell gpud of the machine: one connection of gpud's own to them, kept up and silent.

It is not the connection that gpud is asked over: in user mode that is another bus, and a flood of calls there must not
delay the news that the machine is about to sleep.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from gpud.core.errors import GpudError
from gpud.dbus.bus import load_library
from gpud.dbus.connection import Connection, ConnectionGone, ReplyError
from gpud.dbus.wire import BUS_NAME, Flag, Kind, Message, Variant

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 5.0
"""After the bus was lost, as the service on it does; a bus that was never there is not looked for."""

ANSWER_S = 5.0
"""For the answer to a question, which takes milliseconds; a service that hangs is taken to know nothing."""


class Neighbour(Protocol):
    """One service. Only signals that it has sent itself are handed on."""

    @property
    def service(self) -> str:
        """Its well-known name."""

    @property
    def rules(self) -> Sequence[str]:
        """What of its signals is wanted, as match rules without the sender."""

    async def came(self, line: "Line") -> None:
        """It is there, for the first time or again: what it told before is forgotten."""

    def gone(self) -> None:
        """It is not there, or no longer."""

    def signal(self, message: Message) -> None:
        """It has told something."""


class Line:
    """To ask one service something."""

    def __init__(self, connection: Connection, service: str) -> None:
        self._connection = connection
        self._service = service

    async def call(self, path: str, interface: str, member: str, signature: str = "", *values: object) -> Message:
        """Raises ReplyError, OSError or TimeoutError. Descriptors in the answer are the caller's to close."""
        return await self._connection.call(
            Message(
                Kind.CALL,
                flags=Flag.NO_AUTO_START,
                destination=self._service,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(values),
            ),
            ANSWER_S,
        )

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """Empty where it does not say."""
        try:
            reply = await self.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", interface)
        except (ReplyError, OSError, TimeoutError) as problem:
            log.debug("%s does not tell its properties: %s", self._service, problem)
            return {}
        return plain(reply.body[0]) if reply.body and isinstance(reply.body[0], dict) else {}


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Variant) else value for name, value in values.items()}


class Neighbours:
    """Run :meth:`run` in a task; it ends when it is canceled, or where there is no bus at all."""

    def __init__(self, address: str, neighbours: Sequence[Neighbour], *, library: str | None = None) -> None:
        self._address = address
        self._library = library
        self._neighbours = {neighbour.service: neighbour for neighbour in neighbours}
        self._owners: dict[str, str] = {}
        self._connection: Connection | None = None
        self._coming: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        reached, delay_s = False, RECONNECT_FIRST_S
        try:
            while True:
                try:
                    await self._follow()
                except (OSError, GpudError, ReplyError, TimeoutError) as problem:
                    if not reached and self._connection is None:
                        log.debug("there is no system bus: neither sleep nor power is told (%s)", problem)
                        return
                    log.debug("the system bus is not back yet: %s", problem)
                else:
                    delay_s = RECONNECT_FIRST_S
                reached = True
                self._all_gone()
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RECONNECT_MAX_S)
        finally:
            if self._connection is not None:
                self._connection.close()
            self._all_gone()

    async def _follow(self) -> None:
        """Returns when the bus has gone."""
        connection = self._connection = await Connection.open(
            load_library(self._library), self._address, self._on_message
        )
        for service, neighbour in self._neighbours.items():
            owner_rule = f"type='signal',sender='{BUS_NAME}',interface='{BUS_NAME}',member='NameOwnerChanged'"
            await connection.call_bus("AddMatch", "s", [f"{owner_rule},arg0='{service}'"])
            for rule in neighbour.rules:
                await connection.call_bus("AddMatch", "s", [f"type='signal',sender='{service}',{rule}"])
        for service in self._neighbours:
            owner = ""
            with contextlib.suppress(ReplyError):
                owner = str(await connection.call_bus("GetNameOwner", "s", [service]))
            if owner and owner != self._owners.get(service):
                self._came(service, owner)
            elif not owner:
                log.debug("%s is not there; what it would tell is done without", service)
        reason = await asyncio.shield(connection.closed)
        log.debug("lost the system bus: %s", reason)

    def _on_message(self, message: Message) -> None:
        if message.kind is not Kind.SIGNAL:
            return
        if message.sender == BUS_NAME:
            if message.member == "NameOwnerChanged" and message.signature == "sss":
                service, _, owner = message.body
                if service in self._neighbours:
                    self._came(service, owner) if owner else self._gone(service)
            return
        # Everybody may send us a signal that looks like another's.
        for service, owner in self._owners.items():
            if owner == message.sender:
                self._neighbours[service].signal(message)

    def _came(self, service: str, owner: str) -> None:
        self._gone(service)
        self._owners[service] = owner
        assert self._connection is not None
        self._coming[service] = asyncio.ensure_future(self._welcome(service, Line(self._connection, service)))

    async def _welcome(self, service: str, line: Line) -> None:
        try:
            await self._neighbours[service].came(line)
        except (ReplyError, ConnectionGone, OSError, TimeoutError) as problem:
            log.debug("%s does not answer: %s", service, problem)
        except Exception:
            log.exception("internal error while %s was asked", service)

    def _gone(self, service: str) -> None:
        task = self._coming.pop(service, None)
        if task is not None:
            task.cancel()
        if self._owners.pop(service, None) is not None:
            self._neighbours[service].gone()

    def _all_gone(self) -> None:
        for service in list(self._owners):
            self._gone(service)
