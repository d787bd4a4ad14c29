"""The daemon, as the tray follows it: waits until there is one, reads it again when it says that something has changed,
and passes on what a person wants done. Never starts it, and asks nothing while nothing changes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gpud.cli import client
from gpud.cli.client import BUS_NAMES, Gpud, Signal
from gpud.cli.exits import NotRunning
from gpud.core.errors import GpudError
from gpud.tray.names import NameWatch
from gpud.tray.view import Snapshot, snapshot
from gpud.tray.wishes import Kind, Wish

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus

log = logging.getLogger(__name__)

AGAIN_S = 2.0
"""Between two tries to talk to a daemon that is on the bus and does not answer: it may be starting, or hang."""

BUS_FIRST_S = 1.0
BUS_LAST_S = 60.0
"""Between tries to reach a system bus that was there and has gone: it is being restarted, or the machine goes down."""

WHY = "gpud-tray"
"""What others read about a GPU that was given away from here."""

MODELS_MOST = 30
"""Beside those that are there and the favourites. Nobody reads a menu of thousands, and each look would cost it."""

NAMES_MOST = 100
"""So many favourites are asked for."""

ENDED_WELL = ("done", "superseded", "canceled")


class Follower:
    """``on_change`` gets what there is to show, None when no daemon is there; ``on_failure`` what went wrong with which
    wish. ``favourites`` are the names of models that are to be among what is shown."""

    def __init__(
        self,
        on_change: Callable[[Snapshot | None], None],
        on_failure: Callable[[Wish, str], None],
        favourites: Callable[[], Sequence[str]],
    ) -> None:
        self._on_change = on_change
        self._on_failure = on_failure
        self._favourites = favourites
        self._watches: dict[str, NameWatch] = {}
        self._news = asyncio.Event()
        self._gpud: Gpud | None = None
        self._jobs: dict[int, Wish] = {}
        self._wishes: set[asyncio.Task[None]] = set()

    async def run(self, buses: Sequence[str], session: "MessageBus") -> None:
        """Follow the daemon on the first of these buses that has one, for ever. ``session`` is the session bus.

        Raises NotRunning where there is none of these buses.
        """
        keepers = []
        if "user" in buses:
            self._watches["user"] = await NameWatch.start(session, client.NAME, self._news.set)
        if "system" in buses:
            system, problem = await client.open_bus("system")
            if system is not None:
                looked = asyncio.Event()
                keepers.append(asyncio.ensure_future(self._keep_system(system, looked)))
                # Both buses are known before one is chosen.
                await looked.wait()
            elif "user" not in buses:
                raise NotRunning(f"cannot look for gpud: {problem}", hint="start the system bus: systemctl start dbus")
            else:
                # A machine without a system bus: only the session's gpud can be shown.
                log.info("%s", problem)
        try:
            while True:
                await self._follow_one(await self._where(buses))
        finally:
            tasks = [*keepers, *self._wishes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wish(self, wish: Wish) -> None:
        """Have it done; ``on_failure`` tells if it could not be."""
        task = asyncio.get_running_loop().create_task(self._grant(wish))
        self._wishes.add(task)
        task.add_done_callback(self._wishes.discard)

    # Where it is -----------------------------------------------------------------------------------------------------

    async def _where(self, buses: Sequence[str]) -> str:
        while True:
            self._news.clear()
            for kind in buses:
                if kind in self._watches and self._watches[kind].owner:
                    return kind
            await self._news.wait()

    async def _keep_system(self, bus: "MessageBus | None", looked: asyncio.Event) -> None:
        """Watch the system bus, and the one that comes after it. ``looked`` is set when it is known who is there."""
        delay_s = 0.0
        while True:
            if bus is not None:
                delay_s = 0.0
                await self._watch_system(bus, looked)
            delay_s = min(BUS_LAST_S, 2 * delay_s or BUS_FIRST_S)
            await asyncio.sleep(delay_s)
            bus, _ = await client.open_bus("system")

    async def _watch_system(self, bus: "MessageBus", looked: asyncio.Event) -> None:
        """Returns when it has gone."""
        try:
            self._watches["system"] = await NameWatch.start(bus, client.NAME, self._news.set)
            self._news.set()
            looked.set()
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except (GpudError, OSError, EOFError) as trouble:
            log.debug("the system bus: %r", trouble)
        finally:
            looked.set()
            client.hang_up(bus)
        log.warning("the system bus has gone; trying to reach it again")
        if "system" in self._watches:
            self._watches["system"].forget()

    # While it is there -----------------------------------------------------------------------------------------------

    async def _follow_one(self, kind: str) -> None:
        """One daemon, until it has gone."""
        try:
            await self._follow(kind)
        except NotRunning as gone:
            log.info("gpud on the %s: %s", BUS_NAMES[kind], gone.message)
        except GpudError as problem:
            log.warning("cannot follow gpud on the %s: %s", BUS_NAMES[kind], problem.text)
        self._gpud = None
        self._jobs.clear()
        self._on_change(None)
        if self._watches[kind].owner:
            # It hangs, or the bus has not told here yet that it has gone.
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._news.wait()

    async def _follow(self, kind: str) -> None:
        """Show what it says until it goes. Raises NotRunning."""
        gpud = await client.connect(kind)
        gpud.has_desktop = True
        try:
            await gpud.subscribe()
            self._gpud = gpud
            log.info("gpud is on the %s", gpud.bus_name)
            while True:
                names = list(self._favourites()[:NAMES_MOST])
                (overview,) = await gpud.call("Overview", "usas", MODELS_MOST, "", names)
                self._on_change(snapshot(overview))
                self._heed(await gpud.next_signal())
                # What has come meanwhile is in the next look as well.
                while (signal := gpud.waiting_signal()) is not None:
                    self._heed(signal)
        finally:
            gpud.close()

    def _heed(self, signal: Signal) -> None:
        if signal.member == "JobRemoved":
            job, _, result, message = signal.body
            wish = self._jobs.pop(job, None)
            if wish is not None and result not in ENDED_WELL:
                self._on_failure(wish, message)

    # What is wanted --------------------------------------------------------------------------------------------------

    async def _grant(self, wish: Wish) -> None:
        gpud = self._gpud
        try:
            if gpud is None:
                raise NotRunning("gpud is not running", hint="start it: systemctl start gpud")
            if (job := await self._ask(gpud, wish)) is not None:
                self._jobs[job] = wish
        except GpudError as problem:
            self._on_failure(wish, problem.text)

    async def _ask(self, gpud: Gpud, wish: Wish) -> int | None:
        """Raises GpudError. The job, where it becomes one."""
        call: Mapping[Kind, tuple[str, str, tuple[object, ...]]] = {
            Kind.LOAD: ("Load", "s", (wish.model,)),
            Kind.UNLOAD: ("Unload", "s", (wish.model,)),
            Kind.UNLOAD_ALL: ("UnloadAll", "", ()),
            Kind.CANCEL: ("CancelJob", "u", (wish.job,)),
            Kind.GIVE_AWAY: ("Yield", "ts", (0, WHY)),
            Kind.TAKE_BACK: ("Resume", "", ()),
        }
        member, signature, values = call[wish.kind]
        reply = await gpud.call(member, signature, *values, asks=True)
        return int(reply[0]) if reply else None
