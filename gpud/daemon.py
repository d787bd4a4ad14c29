"""The composition root: the only module that knows every room. It wires, starts, reloads and ends them; it decides
nothing.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from gpud import __version__, config, gpus, systemd
from gpud.allocator import give_memory_back
from gpud.aside import Aside
from gpud.backends.listeners import program_at
from gpud.catalog.finder import ModelFinder
from gpud.catalog.kinds import quantization
from gpud.catalog.reader import FileReader
from gpud.config import Config
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, GpudError
from gpud.core.events import Kind, Level, Notice, Outcome, SessionsChanged
from gpud.core.facts import State
from gpud.core.record import replace
from gpud.core.statuses import lively
from gpud.dbus.limits import CallerLimits
from gpud.dbus.neighbour import gpud_of_the_machine
from gpud.dbus.service import BusUnavailable, NameTaken, Service
from gpud.directories import AlreadyRunning, Directories, alone
from gpud.engine import Engine
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf
from gpud.engines import Engines, KnownEngines
from gpud.facades import Facades
from gpud.http.lines import Lines, TeeSink
from gpud.log import Journal, set_level, setup
from gpud.machine import Machine, Surroundings
from gpud.pagecache import PageCache
from gpud.processes.cgroup import enter_delegated_cgroup
from gpud.processes.launcher import ProcessLauncher
from gpud.programs import OtherPrograms
from gpud.shells import Shells
from gpud.shelves import shelf
from gpud.store import FileStore
from gpud.web import APIS, Web, read_keys
from gpud.webhook import Webhook

log = logging.getLogger(__name__)

# Exit statuses, after sysexits.h: the unit does not restart gpud for the first two, and always for the last.
EXIT_CONFIG = 78
EXIT_TAKEN = 75
EXIT_FAILED = 1
EXIT_HANDED_OVER = 80

LAST_WORDS_S = 2.0
"""Every engine has stopped: what is still being answered is that."""

SERVE_AGAIN_S = 5.0
"""After a defect has ended the service on the bus: soon enough for whoever waits, too seldom to flood the log."""

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

HAND_OVER = signal.SIGUSR2
"""Until there is an answer to it, and to a gpud from before there was one, it is a crash: engines outlive that, too."""


class Daemon:
    """One run of gpud. :meth:`run` returns the exit status."""

    def __init__(
        self, *, user: bool, config_path: Path, directories: Directories, journal: Journal, first: Config
    ) -> None:
        self._user = user
        self._config_path = config_path
        self._directories = directories
        self._journal = journal
        self._config = first
        self._notifier = systemd.Notifier()
        self._status = ""
        self._reloads: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._watchdog: asyncio.TimerHandle | None = None
        self._started = False
        self._stop_asked = False
        self._handing_over: asyncio.Task[None] | None = None

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._keys = await read_keys(self._config)
        with alone(self._directories.runtime):
            for number in STOP_SIGNALS:
                self._loop.add_signal_handler(number, self._stop)
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
            service = self._put_together()
            try:
                await self._serve(service)
            finally:
                if self._watchdog is not None:
                    self._watchdog.cancel()
                # Everything has ended. A signal that comes after the loop let go of them must not change the status.
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGHUP})
                self._store.close()
        return 0

    def _put_together(self) -> Service:
        """Make every part, and give each those that it needs. Nothing of it has begun yet."""
        self._store = FileStore(
            runtime_dir=self._directories.runtime,
            state_dir=self._directories.state,
            on_problem=self._store_problem,
        )
        self._fd_store = systemd.SystemdFdStore()
        lines, files = Lines(), FileReader()
        self._facades = Facades(self._directories.runtime / "facades", self._journal, self._doors_changed)
        self._facades.prepare()
        self._launcher = ProcessLauncher(
            runtime_dir=self._directories.runtime,
            fd_store=self._fd_store,
            sink=TeeSink(self._facades, lines),
            cgroup=enter_delegated_cgroup(),
            lines_per_second=self._config.logging.engine_lines_per_second,
        )
        self._engines = Engines(self._config, self._launcher, service=not self._user)
        self._engine = Engine(
            shelf=self._shelf(),
            library=Library(ModelFinder(), self._store.registry, Aside()),
            limits=self._config.limits,
            idle_timeout_s=self._config.idle_timeout_s,
            backends=self._engines,
            gpus=gpus.build(),
            store=self._store,
            launcher=self._launcher,
            files=files,
            warmer=PageCache(may=self._may_read_ahead),
            version=__version__,
            reload=self.reload,
            refuses=self._facades.refuses,
            programs=Surroundings(OtherPrograms(lambda: self._config.give_way.programs), lambda: self._machine),
        )
        self._machine = Machine(self._engine, lambda: self._config)
        self._shells = Shells(self._directories.runtime, lambda s, why: self._engine.session_ended(s.id, why))
        self._engine.subscribe(self._listen, touched=False)
        self._engine.subscribe(self._facades.listen, touched=False)
        self._webhook = Webhook(self._config.alerts.webhook)
        self._engine.subscribe(self._webhook.listen, touched=False)
        self._web = Web(
            self._engine,
            lines,
            self._tell,
            files=files,
            quantization=quantization,
            who_listens=program_at,
            session_of=self._shells.of_client,
            passed={name: self._fd_store.take_all(name) for name in APIS},
        )
        return Service(
            self._engine,
            shells=self._shells,
            user_mode=self._user,
            limits=CallerLimits(
                outstanding=self._config.bus.calls, holds=self._config.bus.holds, jobs=self._config.bus.jobs
            ),
            version=__version__,
            on_bus=self._tell,
        )

    async def _serve(self, service: Service) -> None:
        """From the first engine taken over to the last one stopped."""
        await self._engine.start()
        await self._know_sessions_again()
        self._started = True
        if self._stop_asked:
            self._web.hand_over()
            self._engine.shutdown()
        for name in self._fd_store.unclaimed():
            self._fd_store.drop(name)
        try:
            await service.start()
        except NameTaken:
            # Somebody without our runtime directory owns the name. What was taken over stays as it is found.
            await self._end(service)
            raise
        except BusUnavailable as problem:
            log.error("%s", problem)
        self._facades.begin(self._engine)
        await self._apply_doors()
        serving = asyncio.create_task(_keep_serving(service))
        living = asyncio.create_task(self._machine.run())
        self._ready()
        self._loop.add_signal_handler(HAND_OVER, self._hand_over, service)
        self._engine.library.begin()
        try:
            await self._engine.finished()
            self._tell(Notice(Kind.STOPPED, "gpud has stopped every engine and ends"))
        finally:
            # Not before the engines have ended: until then the machine waits with its shutdown.
            living.cancel()
            await self._end(service)
            serving.cancel()
            await asyncio.gather(serving, living, *self._reloads, return_exceptions=True)

    async def _know_sessions_again(self) -> None:
        """Those of an earlier daemon: the shells that still live, and what has to go because of those that do not."""
        living, ended, users = await self._shells.restore()
        for session in (*living, *ended):
            self._engine.session_began(session)
        self._engine.restore_users(users)
        for session in ended:
            self._engine.session_ended(session.id, "it ended while gpud was away")

    async def _end(self, service: Service) -> None:
        if not self._stop_asked:
            self._engine.shutdown()
        await self._engine.finished()
        await self._web.close(LAST_WORDS_S)
        await service.close()
        await self._engine.close()
        await self._webhook.close()
        await self._shells.close()
        await self._launcher.close()
        await self._facades.close()

    def _tell(self, notice: Notice) -> None:
        """Tell what the daemon itself has to say, to everybody who listens."""
        self._journal.notice(notice)
        self._web.notice(notice)
        self._facades.notice(notice)

    def _ready(self) -> None:
        self._tell(
            Notice(
                Kind.STARTED,
                f"gpud {__version__} is ready: {config.summary(self._config)}",
                fields={"models": len(self._config.models), "version": __version__},
            )
        )
        self._notifier.ready(self._status_text())
        if not os.environ.get("NOTIFY_SOCKET"):
            print("READY", flush=True)  # noqa: T201 -- promised to whoever starts gpud without systemd
        interval_s = systemd.watchdog_interval_s()
        if interval_s is not None:
            self._feed_watchdog(interval_s / 2)

    def _feed_watchdog(self, every_s: float) -> None:
        """From the loop itself, so that a loop that hangs starves the watchdog."""
        self._notifier.watchdog()
        self._watchdog = asyncio.get_running_loop().call_later(every_s, self._feed_watchdog, every_s)

    def _stop(self) -> None:
        self._stop_asked = True
        self._notifier.stopping("stopping the engines")
        # What is just being taken over can be stopped only once it is: then _serve does it.
        if self._started:
            self._web.hand_over()
            self._engine.shutdown()

    def _hand_over(self, service: Service) -> None:
        if not self._fd_store.lasting:
            log.warning(
                "cannot leave the engines to another gpud: nobody keeps their pipes meanwhile; "
                "as a service of systemd, with FileDescriptorStoreMax= as in gpud.service, it could"
            )
        elif not self._stop_asked and self._handing_over is None:
            self._handing_over = self._loop.create_task(self._leave_the_engines(service))

    async def _leave_the_engines(self, service: Service) -> None:
        """End for the next gpud, of a newer version say, which takes the engines over as after a crash; but no answer
        is cut before, and nothing that was learnt is lost.
        """
        self._notifier.status("leaving the engines to the next gpud")
        self._web.hand_over()
        try:
            await self._web.close(self._config.limits.shutdown_drain_s)
            if not self._stop_asked:
                await service.close()
        finally:
            # Unless gpud was told meanwhile to end for good, which is under way then. What ends in order from here on
            # would take the engines along.
            if not self._stop_asked:
                self._store.close()
                self._journal.say(Level.INFO, "gpud has left its engines to the next gpud and ends")
                self._journal.close()
                os._exit(EXIT_HANDED_OVER)

    # Configuration ---------------------------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        if self._stop_asked:
            return
        task = asyncio.get_running_loop().create_task(self._reload_quietly())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_quietly(self) -> None:
        with contextlib.suppress(ConfigInvalid):
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again. A bad one is refused with every problem, and the old one stays.

        One after the other: what was read first must not be applied last.
        """
        async with self._reloading:
            await self._reload()

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            new = await asyncio.to_thread(config.load, self._config_path, known_engines=KnownEngines())
            keys = await read_keys(new)
            made = Engines(new, self._launcher, service=not self._user, before=self._engines)
        except ConfigInvalid as error:
            self._tell(
                Notice(
                    Kind.CONFIG_REJECTED,
                    f"The configuration was not reloaded, the old one stays: {plural(len(error.problems), 'problem')}",
                    level=Level.ERROR,
                    detail=error.problems,
                )
            )
            raise
        finally:
            self._notifier.ready(self._status_text())
        restart = new.bus != self._config.bus
        self._config, self._engines, self._keys = new, made, keys
        self._launcher.lines_per_second = new.logging.engine_lines_per_second
        self._webhook.url = new.alerts.webhook
        set_level(self._journal, Level(new.logging.level))
        await self._engine.apply(
            shelf=self._shelf(), limits=new.limits, idle_timeout_s=new.idle_timeout_s, backends=made
        )
        self._machine.reconfigured()
        await self._apply_doors()
        text = f"The configuration was reloaded: {config.summary(new)}"
        if restart:
            text += "; its section bus takes effect after a restart of gpud"
        self._tell(Notice(Kind.CONFIG_RELOADED, text, fields={"models": len(new.models)}))

    async def _apply_doors(self) -> None:
        """The doors as configured, but for the one that somebody has stopped."""
        http = self._config.http
        if "management" in self._facades.closed_doors():
            http = replace(http, management=replace(http.management, enable=False))
        async with self._opening:
            await self._web.apply(replace(self._config, http=http), self._keys, self._engines.ollama())

    async def _doors_changed(self) -> None:
        if not self._stop_asked:
            await self._apply_doors()

    def _shelf(self) -> Shelf:
        return shelf(self._config, self._engines.here, os.environ, user=self._user)

    def _may_read_ahead(self) -> bool:
        """Asked in a thread, each time before a file is read ahead of its load."""
        wanted = self._config.prefetch
        return wanted.page_cache and (wanted.on_battery or not self._machine.runs_on_battery())

    # What is told ----------------------------------------------------------------------------------------------------

    def _listen(self, outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Notice):
                self._journal.notice(outcome)
            elif isinstance(outcome, SessionsChanged):
                self._shells.keep(self._engine.users())
        status = self._status_text()
        if status != self._status:
            self._status = status
            self._notifier.status(status)

    def _store_problem(self, problem: str) -> None:
        """The store writes in a thread, too; what is told is told on the loop."""
        notice = Notice(Kind.STORE_PROBLEM, problem[:1].upper() + problem[1:], level=Level.ERROR)
        self._loop.call_soon_threadsafe(self._tell, notice)

    def _status_text(self) -> str:
        """One line for ``systemctl status``."""
        snapshot = self._engine.snapshot()
        by_state: dict[State, list[str]] = {}
        for model in lively(snapshot.models):
            if model.state is not State.COLD:
                by_state.setdefault(model.state, []).append(model.model.name)
        parts = [f"{state}: {', '.join(names)}" for state, names in by_state.items()]
        text = "; ".join(parts) or "nothing loaded"
        return f"{text} ({snapshot.degraded})" if snapshot.degraded else text


async def _keep_serving(service: Service) -> None:
    """Without the bus nobody could ask for anything any more: a defect there must not be its end."""
    while True:
        try:
            return await service.run()
        except Exception:
            log.exception("internal error: the service on the bus has ended; it is taken up again")
            await asyncio.sleep(SERVE_AGAIN_S)


def run(*, user: bool, config_path: Path | None, beside_system: bool = False) -> int:
    """Run gpud in the foreground until it is told to end. Returns the exit status.

    ``beside_system``: a user's gpud starts although the machine has one.
    """
    give_memory_back()
    if user and not beside_system and (other := asyncio.run(gpud_of_the_machine())):
        setup(Level.ERROR).say(
            Level.ERROR,
            f"cannot start: a gpud for the whole machine {other}, and neither would know what the other holds; use it "
            'with "gpudctl --system", or run both with "gpud --user --beside-system", each with a budget and ports',
        )
        return EXIT_TAKEN
    path = config_path or config.default_path(user)
    try:
        first = config.load(path, known_engines=KnownEngines())
    except ConfigInvalid as error:
        setup(Level.ERROR).say(Level.ERROR, "cannot start: the configuration is invalid\n" + "\n".join(error.problems))
        return EXIT_CONFIG
    journal = setup(Level(first.logging.level))
    directories = Directories.find(os.environ, user=user)
    daemon = None
    try:
        daemon = Daemon(user=user, config_path=path, directories=directories, journal=journal, first=first)
        return asyncio.run(daemon.run())
    except (NameTaken, AlreadyRunning) as error:
        journal.say(Level.ERROR, f"cannot start: {error.text}")
        return EXIT_TAKEN
    except ConfigInvalid as error:
        journal.say(Level.ERROR, "cannot start: the configuration is invalid\n" + "\n".join(error.problems))
        return EXIT_CONFIG
    except GpudError as error:
        journal.say(Level.ERROR, f"cannot start: {error.text}")
        return EXIT_FAILED
    finally:
        sys.stdout.flush()
        journal.close()
