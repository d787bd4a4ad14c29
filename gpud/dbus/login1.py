"""logind's word that the machine is about to sleep or to shut down, and the locks that make it wait for gpud.

Knows nothing of models: whoever listens says when the machine may go on. Login sessions are asked for in ``logind``.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine
from typing import Any, Protocol

from gpud.dbus.connection import ReplyError
from gpud.dbus.logind import LOGIND, MANAGER, PATH, PROPERTIES, SESSION
from gpud.dbus.neighbours import Line, plain
from gpud.dbus.wire import Message

log = logging.getLogger(__name__)

SHARE_OF_DELAY = 0.8
"""Of the time that logind waits for locks, so much is used; what takes longer than it should does so in the rest."""

USUAL_DELAY_S = 5.0
"""logind's own default, for one that does not say how long it waits."""

LOST_S = 30.0
"""A logind that went away while the machine was about to sleep, and stays away, will not say that it is awake: it is,
by then, or slept.
"""

COME_AND_GO = ("SessionNew", "SessionRemoved")
"""A user who lingers is not removed with the last session, so that only sessions tell who has left."""

SIGNALS = {"PrepareForSleep": "sleep", "PrepareForShutdown": "shutdown"}
PREPARING = {"sleep": "PreparingForSleep", "shutdown": "PreparingForShutdown"}
WHY = {
    "sleep": "Unloads models, whose GPU memory may not survive",
    "shutdown": "Lets running answers end, and stops the engines",
}


class Listener(Protocol):
    """What is done about it."""

    async def prepare(self, what: str, within_s: float) -> None:
        """The machine is about to ``sleep``, or to ``shutdown``; it goes on when this returns, or this time is over."""

    def over(self, what: str) -> None:
        """The machine is awake, or the shutdown was called off."""

    def sessions_idle(self, *, idle: bool) -> None:
        """All login sessions are idle, or one is not."""

    def locked(self) -> None:
        """A session was locked."""

    def logged_out(self) -> None:
        """The last user has logged out."""


class Login1:
    """A ``Neighbour``: takes the locks whenever logind comes, and again after each sleep."""

    service = LOGIND
    rules = (
        f"path='{PATH}',interface='{MANAGER}'",
        f"path='{PATH}',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{MANAGER}'",
        f"path_namespace='{PATH}/session',interface='{SESSION}',member='Lock'",
        f"path_namespace='{PATH}/session',interface='{PROPERTIES}',member='PropertiesChanged',arg0='{SESSION}'",
    )

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._line: Line | None = None
        self._locks: dict[str, int] = {}
        self._delay_s = USUAL_DELAY_S
        self._under_way: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._making: dict[str, asyncio.Task[None]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._lost: asyncio.TimerHandle | None = None
        self._looking = asyncio.Lock()
        self._somebody = False
        self._newer: dict[str, Any] = {}

    # It comes and goes

    async def came(self, line: Line) -> None:
        self._line = line
        self._stop_waiting()
        for what in SIGNALS.values():
            await self._take(what)
        self._newer = {}
        # What is told meanwhile is handled before the answer is, and may be newer.
        known = await line.properties(PATH, MANAGER) | self._newer
        self._learn(known)
        for what, name in PREPARING.items():
            if known.get(name) is True:
                # The lock was taken anew, whatever was done before logind went away.
                self._prepare(what, anew=True)
            elif what in self._under_way:
                # It was over while logind, or the bus, was away.
                self._over(what)
        await self._look_for_users()

    def gone(self) -> None:
        self._line = None
        for what in list(self._locks):
            self._let_go(what)
        if self._under_way:
            self._stop_waiting()
            self._lost = asyncio.get_running_loop().call_later(LOST_S, self._given_up)

    def _given_up(self) -> None:
        self._lost = None
        for what in list(self._under_way):
            self._over(what)

    def _stop_waiting(self) -> None:
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None

    async def close(self) -> None:
        """Let go of everything; whatever logind tells is nobody's business any more."""
        self._stop_waiting()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for what in list(self._locks):
            self._let_go(what)

    # It tells something

    def signal(self, message: Message) -> None:
        what = SIGNALS.get(message.member)
        if message.interface == MANAGER and what is not None and message.signature == "b":
            self._newer[PREPARING[what]] = message.body[0]
            self._prepare(what) if message.body[0] else self._over(what)
        elif message.interface == MANAGER and message.member in COME_AND_GO:
            self._start(self._look_for_users())
        elif message.interface == SESSION and message.member == "Lock":
            self._listener.locked()
        elif message.interface == PROPERTIES and message.signature == "sa{sv}as":
            interface, changed, _ = message.body
            values = plain(changed)
            if interface == MANAGER:
                self._newer |= values
                self._learn(values)
            elif interface == SESSION and values.get("LockedHint") is True:
                self._listener.locked()

    def _learn(self, values: dict[str, Any]) -> None:
        usec = values.get("InhibitDelayMaxUSec")
        if isinstance(usec, int) and usec > 0:
            self._delay_s = usec / 1e6
        idle = values.get("IdleHint")
        if isinstance(idle, bool):
            self._listener.sessions_idle(idle=idle)

    async def _look_for_users(self) -> None:
        """Whoever was there and is so no longer has logged out; who never was has not."""
        async with self._looking:
            there = await self._somebody_is_there()
            if there is not None:
                log.debug("somebody is logged in" if there else "nobody is logged in")
                left, self._somebody = self._somebody and not there, there
                if left:
                    self._listener.logged_out()

    async def _somebody_is_there(self) -> bool | None:
        """None where logind does not say. Greeters, cron and managers of users have sessions, too, and are nobody."""
        line = self._line
        if line is None:
            return None
        there: bool | None = False
        try:
            listed = (await line.call(PATH, MANAGER, "ListSessions")).body[0]
            for *_, path in listed:
                known = await line.properties(path, SESSION)
                if not known:
                    # It has ended since it was listed, which is told next.
                    there = None
                elif str(known.get("Class", "user")).startswith("user"):
                    return True
        except (ReplyError, OSError, TimeoutError, LookupError, TypeError) as problem:
            log.debug("logind does not say who is logged in: %s", problem)
            return None
        return there

    # Sleep and shutdown

    def _prepare(self, what: str, *, anew: bool = False) -> None:
        making = self._making.get(what)
        if making is not None and not making.done():
            if not anew:
                log.debug("logind says once more that the machine is about to %s", what)
                return
            making.cancel()
        ending = self._ending.pop(what, None)
        if ending is not None:
            # What it would tell is no longer so.
            ending.cancel()
        self._under_way.add(what)
        self._making[what] = self._start(self._make_ready(what))

    async def _make_ready(self, what: str) -> None:
        within_s = self._delay_s * SHARE_OF_DELAY
        held = self._locks.get(what)
        try:
            async with asyncio.timeout(within_s):
                await self._listener.prepare(what, within_s)
        except TimeoutError:
            log.warning(
                "the engines have not all ended %.1f s after logind said that the machine is about to %s; it goes on",
                within_s,
                "shut down" if what == "shutdown" else what,
            )
        finally:
            if self._locks.get(what) == held:
                self._let_go(what)

    def _over(self, what: str) -> None:
        self._under_way.discard(what)
        self._ending[what] = self._start(self._take_and_tell(what))

    async def _take_and_tell(self, what: str) -> None:
        making = self._making.pop(what, None)
        if making is not None:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        # First the lock: what comes next may be another sleep.
        await self._take(what)
        self._listener.over(what)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Locks

    async def _take(self, what: str) -> None:
        if self._line is None or what in self._locks:
            return
        try:
            reply = await self._line.call(PATH, MANAGER, "Inhibit", "ssss", what, "gpud", WHY[what], "delay")
        except (ReplyError, OSError, TimeoutError) as problem:
            log.debug("logind does not wait for gpud before a %s: %s", what, problem)
            return
        if len(reply.fds) != 1:
            for descriptor in reply.fds:
                os.close(descriptor)
            return
        # No engine may keep it: the machine would wait for it.
        os.set_inheritable(reply.fds[0], False)
        if what in self._locks or self._line is None:
            os.close(reply.fds[0])
        else:
            self._locks[what] = reply.fds[0]

    def _let_go(self, what: str) -> None:
        descriptor = self._locks.pop(what, None)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
