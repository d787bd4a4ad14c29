"""gpud-notify as a whole: follows the daemon and the weekly look at the disk, and shows what needs a person.

It sleeps until a bus has something to say, and ends with the session. When the system bus goes, it ends with a failure
and its unit starts it again.
"""

import asyncio
import contextlib
import logging
import shlex
import shutil
import signal
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from gpud.cli import client
from gpud.cli.client import Gpud, Signal, asks_for_models, changed
from gpud.cli.exits import NotRunning
from gpud.cli.library import Message, MessageType
from gpud.core.errors import GpudError
from gpud.notify.news import LOG, RETRY, STORAGE, News, Words
from gpud.notify.notices import Notices
from gpud.tray.names import NameWatch

if TYPE_CHECKING:
    from gpud.cli.library import MessageBus

log = logging.getLogger(__name__)

OWN_NAME = "org.kernelcore.GpuD.Notify"
DO_NOT_QUEUE = 4
FIRST_OWNER = 1

AGAIN_S = 2.0
"""Before a daemon that is on the bus and does not answer is tried again: it may be starting."""

SYSTEMD = "org.freedesktop.systemd1"
DISK_UNIT = "/org/freedesktop/systemd1/unit/ml_2dstorage_2dmonitor_2eservice"
PROPERTIES = "org.freedesktop.DBus.Properties"

TERMINALS = (
    ("xdg-terminal-exec",),
    ("x-terminal-emulator", "-e"),
    ("gnome-terminal", "--"),
    ("konsole", "-e"),
    ("xterm", "-e"),
)
"""How a command is shown to somebody who sits at a desktop; the first that is there."""


class Program:
    """:meth:`run` returns when the session ends or a signal says so. Raises GpudError."""

    def __init__(self, buses: Sequence[str], words: Words) -> None:
        self._buses = buses
        self._words = words
        self._end = asyncio.Event()
        self._news = asyncio.Event()
        self._watches: dict[str, NameWatch] = {}
        self._gpud: Gpud | None = None
        self._kind = ""
        """The bus of the gpud that was followed last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        session, problem = await client.open_bus("user")
        if session is None:
            raise NotRunning(f"cannot show notifications: {problem}", hint="start it inside of a session of a desktop")
        system, problem = await client.open_bus("system") if "system" in self._buses else (None, "")
        try:
            if await client.ask_bus(session, "RequestName", "su", OWN_NAME, DO_NOT_QUEUE) != FIRST_OWNER:
                log.warning("gpud-notify runs in this session already")
                return
            self._notices = Notices(session, self._words.actions(), self._pressed)
            await self._notices.start()
            parts = [self._end.wait(), _gone(session), self._follow_all(session, system)]
            if system is not None:
                parts += [_lost(system), self._watch_disk(system)]
            await self._until_one_ends(parts)
        finally:
            for bus in (session, system):
                if bus is not None:
                    client.hang_up(bus)

    async def _until_one_ends(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> None:
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            everything = [*tasks, *self._tasks]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
        if not self._end.is_set() and tasks[1] not in done:
            for task in done:
                task.result()

    # The daemon ------------------------------------------------------------------------------------------------------

    async def _follow_all(self, session: "MessageBus", system: "MessageBus | None") -> None:
        """One daemon after the other, for ever."""
        for kind, bus in (("user", session), ("system", system)):
            if kind in self._buses and bus is not None:
                self._watches[kind] = await NameWatch.start(bus, client.NAME, self._news.set)
        while True:
            self._news.clear()
            kind = next((kind for kind in self._buses if kind in self._watches and self._watches[kind].owner), "")
            if not kind:
                await self._news.wait()
                continue
            try:
                await self._follow(kind)
            except GpudError as problem:
                log.info("gpud on the %s: %s", client.BUS_NAMES[kind], problem.text)
            self._gpud = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._news.wait()

    async def _follow(self, kind: str) -> None:
        gpud = await client.connect(kind)
        gpud.has_desktop = True
        try:
            await gpud.subscribe()
            self._gpud, self._kind = gpud, kind
            status = await gpud.status()
            holds: list[dict[str, Any]] = status["Holds"]
            await self._degraded(status["Degraded"], status["Gpus"])
            await self._models(status["Models"])
            while True:
                told = [await gpud.next_signal()]
                # What has come meanwhile is seen to in the same go.
                while (more := gpud.waiting_signal()) is not None:
                    told.append(more)
                for one in told:
                    if (now := changed(one, "Holds")) is not None:
                        holds = now
                    await self._heed(gpud, one, holds)
                if any(asks_for_models(one) for one in told):
                    await self._models(await gpud.models())
        finally:
            gpud.close()

    async def _heed(self, gpud: Gpud, told: Signal, holds: Sequence[dict[str, Any]]) -> None:
        if told.member == "VramAlert":
            key, full = self._words.of_alert(told.body, holds)
            await (self._notices.show(full) if full is not None else self._notices.over(key))
        if (degraded := changed(told, "Degraded")) is not None:
            (gpus,) = await gpud.call("ListGpus") if degraded else ([],)
            await self._degraded(degraded, gpus)
        if (models := changed(told, "Models")) is not None:
            await self._models(models)

    async def _degraded(self, word: str, gpus: Sequence[dict[str, Any]]) -> None:
        lost = self._words.of_degraded(word, gpus)
        await (self._notices.show(lost) if lost is not None else self._notices.over("degraded"))

    async def _models(self, models: Sequence[dict[str, Any]]) -> None:
        failing = {failed.key: failed for failed in self._words.of_models(models)}
        for key in self._notices.keys("model "):
            if key not in failing:
                await self._notices.over(key)
        for failed in failing.values():
            await self._notices.show(failed)

    # The disk --------------------------------------------------------------------------------------------------------

    async def _watch_disk(self, system: "MessageBus") -> None:
        """What the unit that looks at the disk has come to, now and whenever it runs."""
        told: asyncio.Queue[str] = asyncio.Queue()

        def take(message: Message) -> None:
            if message.message_type is MessageType.SIGNAL and message.path == DISK_UNIT:
                state = message.body[1].get("ActiveState") if message.member == "PropertiesChanged" else None
                if state is not None:
                    told.put_nowait(state.value)

        system.add_message_handler(take)
        rule = f"type='signal',sender='{SYSTEMD}',path='{DISK_UNIT}',interface='{PROPERTIES}'"
        try:
            await client.ask_bus(system, "AddMatch", "s", rule)
            await _systemd(system, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "Subscribe", "")
            unit = (f"{SYSTEMD}.Unit", "ActiveState")
            (state,) = await _systemd(system, DISK_UNIT, PROPERTIES, "Get", "ss", *unit)
            told.put_nowait(state)
        except GpudError as problem:
            # Without systemd nobody looks at the disk.
            log.info("the disk is not watched: %s", problem.text)
        while True:
            state = await told.get()
            low = self._words.of_disk(state)
            if low is not None:
                await self._notices.show(low)
            elif state == "inactive":
                # It has run and found enough room.
                await self._notices.over("disk")

    # Buttons ---------------------------------------------------------------------------------------------------------

    def _pressed(self, about: News, action: str) -> None:
        work = self._retry(about) if action == RETRY else self._show(about, action)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retry(self, about: News) -> None:
        """A load forgives what was before. What becomes of it is told as the first time."""
        await self._notices.over(about.key)
        try:
            if self._gpud is None:
                raise NotRunning("gpud is not running", hint="systemctl start gpud")
            await self._gpud.call("Load", "s", about.model, asks=True)
        except GpudError as problem:
            await self._notices.show(self._words.of_retry(about, problem.text))

    async def _show(self, about: News, action: str) -> None:
        commands = {LOG: ["log", *filter(None, (about.model,))], STORAGE: ["storage", "du"]}
        command = ["gpudctl", *(["--user"] if self._kind == "user" else []), *commands[action]]
        for terminal, *options in TERMINALS:
            if (program := shutil.which(terminal)) is not None:
                # What it shows stays until somebody has read it.
                script = f"{shlex.join(command)}; printf '\\n[Enter] '; read -r answer"
                await asyncio.create_subprocess_exec(program, *options, "sh", "-c", script, start_new_session=True)
                return
        log.warning("there is no terminal to show it in; type: %s", shlex.join(command))


async def _systemd(
    bus: "MessageBus", path: str, interface: str, member: str, signature: str, *body: object
) -> list[Any]:
    message = Message(
        destination=SYSTEMD, path=path, interface=interface, member=member, signature=signature, body=list(body)
    )
    return await client.call_anyone(bus, message, client.CALL_S)


async def _gone(bus: "MessageBus") -> None:
    with contextlib.suppress(OSError, EOFError):
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def _lost(bus: "MessageBus") -> None:
    """Raises NotRunning when the bus has gone."""
    await _gone(bus)
    raise NotRunning("the system bus has gone", hint="the unit starts this again")
