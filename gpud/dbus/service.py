"""gpud on the bus: owns the name, keeps owning it when the bus dies and comes back, and ties the parts together."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from gpud.core.errors import GpudError, NoSuchHold
from gpud.core.events import ClaimOver, HoldEnded, JobEnded, Kind, Level, Notice, Outcome
from gpud.core.facts import JobKind
from gpud.dbus.address import BusUnavailable, bus_address
from gpud.dbus.announce import Announcer
from gpud.dbus.bus import load_library
from gpud.dbus.callers import Callers
from gpud.dbus.catalog import CatalogMethods
from gpud.dbus.connection import Connection, ConnectionGone, ReplyError
from gpud.dbus.dispatch import Dispatcher
from gpud.dbus.downloads import DownloadMethods
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.holds import Pipes, Waits, Watches
from gpud.dbus.interface import load_tree
from gpud.dbus.limits import CallerLimits, Meter
from gpud.dbus.logind import Logind
from gpud.dbus.memory import MemoryMethods
from gpud.dbus.methods import Methods
from gpud.dbus.polkit import Authority
from gpud.dbus.render import Known
from gpud.dbus.sessions import SessionMethods, ShellsApi
from gpud.dbus.shown import Shown
from gpud.dbus.wall_clock import WallClock
from gpud.dbus.wire import BUS_NAME, Message, is_unique_name
from gpud.dbus.wire import Kind as MessageKind

__all__ = ["NAME", "BusUnavailable", "CallerLimits", "EngineApi", "NameTaken", "Service"]

log = logging.getLogger(__name__)

NAME = "org.kernelcore.GpuD"

# After the bus was lost: the first attempt to reach it again comes after the first of these, each later one after twice
# as long, up to the second. A restarted bus is back within a fraction of a second; one that stays away costs one
# attempt every five seconds, and nothing else of gpud waits for it.
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 5.0
# The last words of a stopping daemon; a bus that does not take them within this is not waited for.
GOODBYE_S = 1.0

_DO_NOT_QUEUE = 4
_QUEUED = 2
_EXISTS = 3


class NameTaken(GpudError):
    """Somebody else owns the bus name: another gpud runs."""

    code = "name-taken"


class Service:
    """Make it on the running loop, call :meth:`start`, then :meth:`run` in a task, and :meth:`close` at the end."""

    def __init__(
        self,
        engine: EngineApi,
        *,
        shells: ShellsApi,
        user_mode: bool,
        limits: CallerLimits,
        version: str,
        library: str | None = None,
        address: str | None = None,
        on_bus: Callable[[Notice], None] = lambda _notice: None,
    ) -> None:
        self._engine = engine
        self._user_mode = user_mode
        self._library = load_library(library)
        self._address = address
        self._on_bus = on_bus
        self._connection: Connection | None = None
        self._closing = asyncio.Event()
        self._queued = False
        self._acquired = False
        self._tree = load_tree()
        self._callers = Callers(self._live, shells.find)
        self._watches = Watches(self._live, self._holds_something, self._holder_gone)
        self._waits = Waits()
        self._inhibitors = Pipes(self._inhibitor_closed)
        self._claims = Pipes(self._claim_closed)
        self._meter = Meter(limits)
        shown = Shown(
            engine.snapshot,
            WallClock(),
            version,
            self._library.encode_body,
            lambda name: _known(engine, name),
            lambda: (engine.library.version, engine.library.uses_kept),
        )
        gate = Gate(
            engine,
            limits=limits,
            connection=self._live,
            callers=self._callers,
            authority=Authority(self._live, user_mode=user_mode, in_flight=limits.polkit),
            notify=on_bus,
        )
        methods = Methods(
            engine,
            gate=gate,
            shown=shown,
            watches=self._watches,
            inhibitors=self._inhibitors,
            asked_for=lambda cookie: self._announcer.asked_for(cookie),
        )
        memory = MemoryMethods(
            engine, gate=gate, shown=shown, watches=self._watches, waits=self._waits, claims=self._claims
        )
        catalog = CatalogMethods(engine, gate=gate)
        downloads = DownloadMethods(engine, gate=gate, watches=self._watches)
        # logind is on the system bus; on a session bus processes alone say who is at work.
        self._logind = None if user_mode else Logind(self._live, lambda: self._sessions.check())
        self._sessions = SessionMethods(engine, gate=gate, shown=shown, shells=shells, logind=self._logind)
        loop = asyncio.get_running_loop()
        self._dispatcher = Dispatcher(
            self._tree,
            {**methods.table(), **memory.table(), **downloads.table(), **catalog.table(), **self._sessions.table()},
            shown,
            self._meter,
            loop.time,
            self._library.encode_body,
        )
        self._announcer = Announcer(self._tree, shown, self._send)
        self._unsubscribe = engine.subscribe(self._listen)

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed.done()

    @property
    def unique_name(self) -> str:
        """Our own name on the bus while there is one."""
        return self._connection.unique_name if self._connection is not None else ""

    @property
    def unsent_bytes(self) -> int:
        """What the bus has not taken yet."""
        return self._connection.unsent_bytes if self._connection is not None else 0

    @property
    def watched(self) -> int:
        """How many callers' leaving is waited for."""
        return len(self._watches)

    async def settle(self) -> None:
        """Returns when every call that has come is answered."""
        await self._dispatcher.settle()

    async def start(self) -> None:
        """Connect and own the name. Raises NameTaken, or BusUnavailable (run() goes on trying then)."""
        await self._connect(queue=False)

    async def run(self) -> None:
        """Serve until :meth:`close`; reconnects for as long as that takes."""
        delay_s = RECONNECT_FIRST_S
        while not self._closing.is_set():
            if self._connection is not None:
                reason = await asyncio.shield(self._connection.closed)
                if self._closing.is_set():
                    return
                self._lost(reason)
                delay_s = RECONNECT_FIRST_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)
                return
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)
            try:
                await self._connect(queue=True)
            except (OSError, GpudError) as problem:
                log.debug("the bus is not back yet: %s", problem)

    async def close(self) -> None:
        """Answer what is open, say what is to be said, let go of the name. The engine is not touched."""
        self._closing.set()
        self._unsubscribe()
        await self._dispatcher.close()
        await self._sessions.close()
        self._announcer.flush()
        self._announcer.close()
        self._inhibitors.close()
        self._claims.close()
        if self._connection is not None:
            await self._connection.drain(GOODBYE_S)
            self._connection.close()

    # Coming and going ----------------------------------------------------------------------------------------------

    async def _connect(self, *, queue: bool) -> None:
        address = self._address or bus_address(os.environ, session=self._user_mode)
        connection = await Connection.open(self._library, address, self._on_message, admit=self._admit)
        # Calls may come with the very answer to RequestName: whoever made the bus start gpud waits for one.
        self._connection = connection
        self._acquired = False
        try:
            self._announcer.baseline()
            answer = await self._request_name(connection, queue=queue)
            if answer == _EXISTS:
                raise NameTaken(
                    f"{NAME} already owned by {await _owner(connection)}", hint="another gpud runs: stop it first"
                )
        except BaseException:
            self._connection = None
            connection.close()
            raise
        if answer != _QUEUED or self._acquired:
            self._owned()
            return
        self._queued = True
        owner = await _owner(connection)
        self._say(Kind.BUS_LOST, Level.ERROR, f"{NAME} already owned by {owner}; waiting until it is free")

    async def _request_name(self, connection: Connection, *, queue: bool) -> int:
        try:
            return int(await connection.call_bus("RequestName", "su", [NAME, 0 if queue else _DO_NOT_QUEUE]))
        except ReplyError as problem:
            raise BusUnavailable(
                f"cannot own {NAME}: the bus refuses it to uid {os.geteuid()} ({problem}); "
                f"install {NAME}.conf in /usr/share/dbus-1/system.d"
            ) from None

    def _owned(self) -> None:
        self._queued = False
        self._sessions.connected()
        bus = "session" if self._user_mode else "system"
        self._say(Kind.BUS_OWNED, Level.INFO, f"owns {NAME} on the {bus} bus as {self.unique_name}")

    def _lost(self, reason: str) -> None:
        """The bus is gone, and everybody on it: their unique names mean nothing on the next one."""
        self._connection = None
        bus = "session" if self._user_mode else "system"
        self._say(
            Kind.BUS_LOST, Level.WARNING, f"lost the {bus} bus: {reason}; models stay loaded, trying to reconnect"
        )
        self._callers.clear()
        self._meter.clear()
        self._watches.clear()
        if self._logind is not None:
            self._logind.clear()
        self._waits.cancel_all()
        for owner in self._holders():
            self._holder_gone(owner)

    def _say(self, kind: Kind, level: Level, message: str) -> None:
        self._on_bus(Notice(kind, message, level=level))

    # The connection's side -----------------------------------------------------------------------------------------

    def _live(self) -> Connection:
        if self._connection is None:
            raise ConnectionGone("there is no connection to the bus")
        return self._connection

    def _send(self, message: Message) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _admit(self, head: Message) -> bool:
        connection = self._connection
        return connection is None or self._dispatcher.admit(head, connection.send)

    def _on_message(self, message: Message) -> None:
        connection = self._connection
        if connection is None:
            # Hello is not answered yet: only the bus knows that we are here.
            return
        if message.kind is MessageKind.CALL:
            self._dispatcher.call(message, connection.send)
        elif message.kind is MessageKind.SIGNAL and self._logind is not None and message.sender != BUS_NAME:
            self._logind.signal(message)
        elif message.kind is MessageKind.SIGNAL and message.sender == BUS_NAME:
            self._watches.signal(message)
            if self._logind is not None:
                self._logind.signal(message)
            if message.member == "NameAcquired" and message.body == [NAME]:
                self._acquired = True
                if self._queued:
                    self._owned()

    # The engine's side ---------------------------------------------------------------------------------------------

    def _listen(self, outcomes: tuple[Outcome, ...]) -> None:
        self._announcer.listen(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, HoldEnded):
                self._inhibitors.drop(outcome.cookie)
                self._watches.prune(outcome.owner)
            elif isinstance(outcome, ClaimOver):
                self._claims.drop(outcome.claim)
            elif isinstance(outcome, JobEnded) and outcome.kind is JobKind.DOWNLOAD:
                self._watches.prune(outcome.caller.owner)

    def _holds_something(self, owner: str) -> bool:
        return owner in self._holders()

    def _holders(self) -> set[str]:
        """The connections with which something ends: holds, and downloads."""
        snapshot = self._engine.snapshot()
        owners = {hold.caller.owner for hold in snapshot.holds}
        owners |= {job.caller.owner for job in snapshot.jobs if job.kind is JobKind.DOWNLOAD}
        return {owner for owner in owners if is_unique_name(owner)}

    def _holder_gone(self, owner: str) -> None:
        self._announcer.vanished(owner)
        self._waits.cancel(owner)
        self._engine.release_owner(owner)

    def _inhibitor_closed(self, cookie: int, owner: str) -> None:
        with contextlib.suppress(NoSuchHold):
            self._engine.release(cookie, owner)

    def _claim_closed(self, number: int, _owner: str) -> None:
        self._engine.drop_claim(number, "its descriptor is closed")


async def _owner(connection: Connection) -> str:
    """Who owns our name, for a message: ``:1.7 (pid 4711)``."""
    try:
        owner = str(await connection.call_bus("GetNameOwner", "s", [NAME]))
        pid = await connection.call_bus("GetConnectionUnixProcessID", "s", [owner])
    except (ReplyError, OSError):
        return "somebody who has just left"
    return f"{owner} (pid {pid})"


def _known(engine: EngineApi, name: str) -> Known:
    """What the registry knows of a model."""
    past = engine.library.past_of(name)
    need_bytes = engine.library.need_of(name) or 0
    return Known(need_bytes) if past is None else Known(need_bytes, past.uses, past.last_used_us or 0)
