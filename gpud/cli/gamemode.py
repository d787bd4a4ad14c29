"""``gpudctl _gamemode``, which gpud-gamemode.service runs for each user: leaves the GPUs to games that GameMode knows.

A system service does not see the buses of sessions, where GameMode is. Sleeps until GameMode tells of a game, and is
connected with gpud only while one runs.
"""

import asyncio
import contextlib
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.exits import NotRunning
from gpud.cli.output import Output
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.library import Message, MessageBus

DESCRIPTION = """\
Follow GameMode on the session bus: while a game that it reports is running,
models leave the GPUs, and loads follow give_way in gpud.yaml. The unit
gpud-gamemode.service runs this command; there is no need to call it."""

EXAMPLES = ("systemctl --user enable --now gpud-gamemode",)

log = logging.getLogger(__name__)

GAMEMODE = "com.feralinteractive.GameMode"
GAMEMODE_PATH = "/com/feralinteractive/GameMode"

AGAIN_S = 10.0
"""Between two tries to reach a gpud that is not there, and only while a game runs: it is being restarted, or is not
wanted; a game that has been missed for so long has its memory by then."""


def add_arguments(parser: Parser) -> None:
    """It has none."""


def run(arguments: Namespace, _output: Output) -> int:
    return asyncio.run(Follower(arguments.bus).run())


class Follower:
    """Knows which games run, and holds the descriptor with which gpud leaves the GPUs to them."""

    def __init__(self, gpud_bus: str) -> None:
        self._gpud_bus = gpud_bus
        self._games: dict[int, str] = {}
        self._news = asyncio.Event()
        self._gamemode = ""

    async def run(self) -> int:
        from gpud.cli import client

        session, problem = await client.open_bus("user")
        if session is None:
            raise NotRunning(f"cannot follow GameMode: {problem}", hint="run it in a session: systemctl --user")
        session.add_message_handler(self._take)
        owner = f"type='signal',sender='{client.DBUS}',interface='{client.DBUS}',member='NameOwnerChanged'"
        for rule in (f"type='signal',sender='{GAMEMODE}',interface='{GAMEMODE}'", f"{owner},arg0='{GAMEMODE}'"):
            await client.ask_bus(session, "AddMatch", "s", rule)
        await self._ask(session)
        keeping = asyncio.ensure_future(self._keep())
        try:
            await session.wait_for_disconnect()  # type: ignore[no-untyped-call]
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        return 0

    async def _ask(self, session: "MessageBus") -> None:
        """Which games run already; nobody starts GameMode for this."""
        from gpud.cli import client
        from gpud.cli.library import Message, MessageFlag, MessageType

        if not await client.ask_bus(session, "NameHasOwner", "s", GAMEMODE):
            return
        self._gamemode = await client.ask_bus(session, "GetNameOwner", "s", GAMEMODE)
        call = Message(
            destination=GAMEMODE,
            path=GAMEMODE_PATH,
            interface=GAMEMODE,
            member="ListGames",
            flags=MessageFlag.NO_AUTOSTART,
        )
        reply = await session.call(call)
        if reply is not None and reply.message_type is MessageType.METHOD_RETURN and reply.signature == "a(io)":
            for pid, _ in reply.body[0]:
                self._began(pid)

    def _take(self, message: "Message") -> None:
        from gpud.cli import client
        from gpud.cli.library import MessageType

        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == client.DBUS and message.member == "NameOwnerChanged" and message.body[0] == GAMEMODE:
            self._gamemode = message.body[2]
            if not self._gamemode:
                # It ends with its last game, or has crashed: nobody would say when its games end.
                self._games.clear()
                self._news.set()
        elif message.sender == self._gamemode and message.interface == GAMEMODE and message.signature == "io":
            if message.member == "GameRegistered":
                self._began(message.body[0])
            elif message.member == "GameUnregistered":
                self._games.pop(message.body[0], None)
                self._news.set()

    def _began(self, pid: int) -> None:
        name = "a game"
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() or name
        self._games[pid] = name
        self._news.set()

    async def _keep(self) -> None:
        while True:
            self._news.clear()
            if self._games:
                try:
                    await self._give_way(next(iter(self._games.values())))
                except (GpudError, OSError) as problem:
                    log.warning("cannot give way to a game: %s", problem)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), AGAIN_S)
            else:
                await self._news.wait()

    async def _give_way(self, name: str) -> None:
        """Returns when no game runs any longer; raises when gpud has gone before that."""
        from gpud.cli import client

        gpud = await client.connect(self._gpud_bus, descriptors=True)
        try:
            descriptor = await gpud.inhibit("game", name[:128], "a game that GameMode knows")
            await gpud.subscribe()
            gone = asyncio.ensure_future(_gone(gpud))
            try:
                while self._games and not gone.done():
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait((news, gone), return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                if gone.done():
                    gone.result()
            finally:
                gone.cancel()
                os.close(descriptor)
        finally:
            gpud.close()


async def _gone(gpud: "Gpud") -> None:
    """Raises NotRunning when gpud has gone."""
    while True:
        await gpud.next_signal()
