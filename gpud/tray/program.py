"""gpud-tray as a whole: shows an icon while there are both a daemon and a tray, and ends when there is no tray at all.

Knows when, never what it looks like: that is for words, picture, item and menu.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from gpud.cli import client
from gpud.cli.exits import NotRunning
from gpud.cli.library import MessageBus
from gpud.core.errors import GpudError
from gpud.tray import settings as files
from gpud.tray.daemon import Follower
from gpud.tray.item import WATCHER, Item, Shown
from gpud.tray.names import NameWatch
from gpud.tray.notices import Notices
from gpud.tray.picture import picture
from gpud.tray.settings import Settings
from gpud.tray.texts import Texts
from gpud.tray.view import Snapshot
from gpud.tray.wishes import Kind, Wish
from gpud.tray.words import Words

log = logging.getLogger(__name__)

OWN_NAME = "org.kernelcore.GpuD.Tray"
DO_NOT_QUEUE = 4
FIRST_OWNER = 1
"""What the bus takes and answers when a name is asked for."""

AGAIN_S = 5.0
"""Before an icon is offered again that the session bus dropped: at once would be a race with what made it drop it."""


class AlreadyRuns(GpudError):
    """Another gpud-tray shows the icon in this session."""

    code = "already-runs"


class NoTray(GpudError):
    """The desktop has no place for icons."""

    code = "no-tray"


class Tray:
    """:meth:`run` returns when the person quits, the session ends or a signal says so; it raises GpudError."""

    def __init__(self, settings: Settings, file: Path, texts: Texts, tray_wait_s: float) -> None:
        self._file = file
        self._words = Words(texts, settings)
        self._tray_wait_s = tray_wait_s
        self._follower = Follower(self._changed, self._failed, lambda: self._words.settings.favourites)
        self._snapshot: Snapshot | None = None
        self._problem = ""
        self._item: Item | None = None
        self._registered_turn = 0
        """Which of the trays that there were has the icon."""
        self._news = asyncio.Event()
        self._end = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._notices: Notices | None = None

    async def run(self, buses: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_let_connections_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        session, problem = await client.open_bus("user")
        if session is None:
            raise NotRunning(f"cannot show an icon: {problem}", hint="start gpud-tray inside of a session of a desktop")
        try:
            self._notices = Notices(session)
            await self._until_the_end(session, buses)
        finally:
            if self._item is not None:
                await self._item.close()
            client.hang_up(session)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _until_the_end(self, session: MessageBus, buses: Sequence[str]) -> None:
        """Returns when it is over for a good reason, and raises what ended the work for a bad one."""
        over = (self._end.wait(), _wait_closed(session), self._work(session, buses))
        parts = [asyncio.create_task(part) for part in over]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            everything = [*parts, *self._tasks]
            for part in everything:
                part.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
        # The end of the session makes everything else fail as well, and is none of its failures.
        if not self._end.is_set() and parts[1] not in done:
            for part in done:
                part.result()

    async def _work(self, session: MessageBus, buses: Sequence[str]) -> None:
        """Does not return. Raises GpudError."""
        await _be_the_only_one(session)
        watcher = await self._tray(session)
        await asyncio.gather(self._follower.run(buses, session), self._keep_item(watcher))

    # The tray of the desktop -----------------------------------------------------------------------------------------

    async def _tray(self, session: MessageBus) -> NameWatch:
        """Who takes icons. A desktop that is starting gets some time. Raises NoTray."""
        came = asyncio.Event()

        def changed() -> None:
            came.set()
            self._news.set()

        watcher = await NameWatch.start(session, WATCHER, changed)
        if not watcher.owner:
            log.info("nobody takes icons yet; waiting %g s for a tray", self._tray_wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tray_wait_s):
                    await came.wait()
        if not watcher.owner:
            raise NoTray(
                f"there is no tray: nobody owned {WATCHER} on the session bus within {self._tray_wait_s:g} s",
                hint="add a tray to the panel; GNOME has none of its own: use gpud's extension there",
            )
        return watcher

    async def _keep_item(self, watcher: NameWatch) -> None:
        """Keep the icon there while there are a daemon and a tray, and registered with the tray that there is."""
        while True:
            self._news.clear()
            if self._item is not None and self._item.closed.done():
                await self._drop_item()
                await asyncio.sleep(AGAIN_S)
            if self._snapshot is None or not watcher.owner:
                await self._drop_item()
            else:
                await self._offer_item(self._shown(self._snapshot), watcher.turn)
            await self._news.wait()

    async def _offer_item(self, shown: Shown, turn: int) -> None:
        try:
            if self._item is None:
                self._item = await Item.open(shown, self._wished)
                self._item.closed.add_done_callback(lambda _: self._news.set())
            else:
                self._item.show(shown)
            if self._registered_turn != turn:
                await self._item.register()
                self._registered_turn = turn
                log.info("the tray has the icon")
        except GpudError as problem:
            # The tray may have gone in this moment; the next one is told of by the bus.
            log.warning("the tray did not take the icon: %s", problem.text)

    async def _drop_item(self) -> None:
        self._registered_turn = 0
        if self._item is not None:
            item, self._item = self._item, None
            await item.close()

    def _shown(self, now: Snapshot) -> Shown:
        return Shown(
            self._words.headline(now),
            self._words.tooltip(now),
            picture(now, self._words.settings),
            self._words.menu(now, self._problem),
        )

    # What happens ----------------------------------------------------------------------------------------------------

    def _changed(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._news.set()

    def _wished(self, wish: Wish) -> None:
        if wish.kind is Kind.QUIT:
            self._end.set()
        elif wish.kind is Kind.FAVOURITE:
            self._turn_favourite(wish)
        else:
            # What went wrong before is seen to, whatever comes of this.
            self._problem = ""
            if wish.kind is not Kind.CLEAR:
                self._follower.wish(wish)
        self._news.set()

    def _turn_favourite(self, wish: Wish) -> None:
        chosen = self._words.settings.with_favourite_turned(wish.model)
        try:
            files.write(self._file, chosen)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            self._failed(wish, f"cannot write {self._file}: {reason}; see that you may write there")
            return
        self._words.settings = chosen

    def _failed(self, wish: Wish, text: str) -> None:
        log.warning("%s %s: %s", wish.kind, wish.model or "all", text)
        title = self._words.failure(wish, 1 if self._snapshot is None else self._snapshot.gpus)
        self._problem = f"{title}: {text}"
        self._news.set()
        if self._notices is not None:
            self._start(self._notices.tell(title, text))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _be_the_only_one(session: MessageBus) -> None:
    """Raises AlreadyRuns."""
    if await client.ask_bus(session, "RequestName", "su", OWN_NAME, DO_NOT_QUEUE) != FIRST_OWNER:
        pid = "unknown"
        with contextlib.suppress(GpudError):
            pid = str(await client.ask_bus(session, "GetConnectionUnixProcessID", "s", OWN_NAME))
        raise AlreadyRuns(f"gpud-tray runs in this session already (pid {pid})", hint=f"to end it: kill {pid}")


def _let_connections_end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The library's own tasks fail with their connection, which is heard of elsewhere; the rest is to be seen."""
    if isinstance(context.get("exception"), OSError | EOFError):
        log.debug("a connection has ended: %r", context["exception"])
    else:
        loop.default_exception_handler(context)


async def _wait_closed(session: MessageBus) -> None:
    """Until the session is over."""
    with contextlib.suppress(OSError, EOFError):
        await session.wait_for_disconnect()  # type: ignore[no-untyped-call]
    log.info("the session bus has gone: the session is over")


def buses(asked: str) -> tuple[str, ...]:
    """Where to look for gpud, the first choice first. Raises Usage."""
    return client.wanted_buses(asked, os.environ)
