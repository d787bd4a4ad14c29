"""gpud on a machine that sleeps, runs on a battery and has users: what logind and UPower tell becomes the engine's.

Part of the composition root, as ``daemon``: it wires the two, and decides nothing that the configuration does not say.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from gpud.config import Config
from gpud.core.errors import GpudError
from gpud.core.facts import Caller
from gpud.core.ports import OtherProgram
from gpud.dbus.address import SYSTEM_BUS
from gpud.dbus.login1 import Login1
from gpud.dbus.neighbours import Neighbours
from gpud.dbus.upower import UPower
from gpud.engine import Engine
from gpud.power import on_battery
from gpud.programs import OtherPrograms
from gpud.trial import NVIDIA, Trial

log = logging.getLogger(__name__)

TRY_AGAIN_S = (1.0, 3.0)
"""Between the first tries: right after a sleep a driver may not be ready yet. Loads are refused meanwhile."""

TRY_LATER_S = (5.0, 15.0, 60.0, 300.0)
"""Once the GPUs have been found not to work, as long as they do not; the last one again and again. Whoever mends them
need not tell gpud, and each try is one short process.
"""

CURE = (
    "end every program that uses the GPU, then as root: rmmod nvidia_uvm && modprobe nvidia_uvm; gpud tries them again "
    "by itself, at once after systemctl reload gpud. gpud-uvm-reload.service does all that after each sleep. If it "
    "does not help, restart the machine"
)

TRIED = "nvidia"
"""Whose GPUs are tried; of others nothing is known to need it."""

Try = Callable[[], Awaitable[str]]


def loses_memory(nvidia: Path = NVIDIA) -> str:
    """Why what is on NVIDIA's GPUs does not survive a sleep; empty where it does, or there is none."""
    if not nvidia.exists():
        return ""
    try:
        settings = dict(line.split(": ", 1) for line in (nvidia / "params").read_text().splitlines() if ": " in line)
    except OSError as problem:
        return f"the settings of NVIDIA's driver cannot be read ({problem.strerror})"
    if "1" in (settings.get("PreserveVideoMemoryAllocations"), settings.get("UseKernelSuspendNotifiers")):
        return ""
    return "NVIDIA's driver does not preserve memory (PreserveVideoMemoryAllocations is not 1)"


class Surroundings:
    """What is noticed whenever the devices are looked at anyway. Fulfils ``ports.Programs``."""

    def __init__(self, programs: OtherPrograms, machine: "Callable[[], Machine]") -> None:
        self._programs = programs
        self._machine = machine

    def wanted(self) -> bool:
        return self._programs.wanted() or self._machine().looks_at_battery()

    def look(self) -> Sequence[OtherProgram]:
        machine = self._machine()
        if machine.looks_at_battery():
            machine.look_at_battery()
        return self._programs.look()

    async def ended(self, program: OtherProgram) -> None:
        await self._programs.ended(program)


class Machine:
    """Run :meth:`run` in a task."""

    def __init__(
        self,
        engine: Engine,
        config: Callable[[], Config],
        *,
        try_gpus: Try | None = None,
        try_again_s: Sequence[float] = TRY_AGAIN_S,
        try_later_s: Sequence[float] = TRY_LATER_S,
        address: str | None = None,
        library: str | None = None,
    ) -> None:
        self._engine = engine
        self._config = config
        self._try_gpus = try_gpus or Trial()
        self._try_again_s = try_again_s
        self._try_later_s = try_later_s
        self._lost = ""
        self._away = False
        self._loop = asyncio.get_running_loop()
        self._login1 = Login1(self)
        self._battery: bool | None = None
        self._knows_battery = False
        self._checks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._all_idle = False
        self._neighbours = Neighbours(
            address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS,
            (self._login1, UPower(self.power_told)),
            library=library,
        )

    async def run(self) -> None:
        try:
            await self._neighbours.run()
        finally:
            await self._login1.close()
            self._stop_idle()
            for task in self._checks:
                task.cancel()
            await asyncio.gather(*self._checks, return_exceptions=True)

    def reconfigured(self) -> None:
        """The configuration is another one; and whoever reloads gpud may have mended the GPUs."""
        if self._all_idle:
            self.sessions_idle(idle=True)
        # Right after a sleep they are being tried, and loads wait for what comes of it.
        if self._lost and not self._away:
            self._check(awake=False)

    # Sleep, as logind tells it

    async def prepare(self, what: str, within_s: float) -> None:
        self._away = True
        self._stop_checks()
        keep = what == "sleep" and self._config().suspend.policy == "keep"
        lost = {}
        if keep:
            why = await asyncio.to_thread(loses_memory)
            lost = {"nvidia": why} if why else {}
        await self._engine.suspend(within_s, shutdown=what == "shutdown", keep=keep, lost=lost)

    def over(self, what: str) -> None:
        if what == "sleep":
            self._away = True
            self._check(awake=True)
        else:
            self._tell(self._lost, restore=True)
            if self._lost:
                self._check(awake=False)

    def _check(self, *, awake: bool) -> None:
        self._stop_checks()
        task = asyncio.ensure_future(self._check_gpus(awake=awake))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def _stop_checks(self) -> None:
        for task in self._checks:
            task.cancel()

    async def _check_gpus(self, *, awake: bool) -> None:
        """Ends when the GPUs work. ``awake``: nothing is loaded before that is known, so it is told soon."""
        found = await self._found()
        if awake:
            for pause_s in self._try_again_s:
                if not found:
                    break
                await asyncio.sleep(pause_s)
                found = await self._found()
            self._tell(found, restore=self._config().suspend.restore)
        for pause_s in itertools.chain(self._try_later_s, itertools.repeat(self._try_later_s[-1])):
            if not found:
                break
            await asyncio.sleep(pause_s)
            found = await self._found()
        if self._lost:
            self._tell("", restore=self._config().suspend.restore)

    async def _found(self) -> str:
        try:
            return await self._try_gpus()
        except OSError as problem:
            # Nothing more is known of the GPUs than before.
            log.warning("cannot try whether the GPUs work: %s", problem.strerror)
            return self._lost

    def _tell(self, found: str, *, restore: bool) -> None:
        self._lost, self._away = found, False
        text = f"the GPUs cannot be used since the machine woke up: {found}" if found else ""
        self._engine.woke_up(restore=restore, problem=text, hint=CURE if text else "", vendor=TRIED)

    # Sessions, as logind tells it

    def sessions_idle(self, *, idle: bool) -> None:
        self._all_idle = idle
        self._stop_idle()
        after_s = self._config().idle.sessions_idle
        if idle and after_s is not None:
            self._idle = self._loop.call_later(after_s, self._idle_over, after_s)

    def _idle_over(self, after_s: float) -> None:
        self._idle = None
        self._unload(f"sessions idle for {after_s:g} s")

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def locked(self) -> None:
        if self._config().idle.locked:
            self._unload("a session was locked")

    def logged_out(self) -> None:
        if self._config().idle.logged_out:
            self._unload("the last user has logged out")

    def _unload(self, why: str) -> None:
        try:
            self._engine.unload("", Caller("gpud", 0, label=f"gpud ({why})"))
        except GpudError as error:
            log.debug("nothing is unloaded although %s: %s", why, error.text)

    # Power, as UPower tells it

    def power_told(self, battery: bool | None) -> None:
        self._knows_battery = battery is not None
        if battery is not None:
            self._set_battery(battery)

    def runs_on_battery(self) -> bool:
        """Blocks where nobody tells: for a thread."""
        return self._battery is True if self._knows_battery else on_battery() is True

    def looks_at_battery(self) -> bool:
        """Where there is no UPower, it is noticed when a look is made anyway."""
        return not self._knows_battery and self._config().limits.battery_idle_s is not None

    def look_at_battery(self) -> None:
        """Blocks: for a thread."""
        self._loop.call_soon_threadsafe(self._set_battery, bool(on_battery()))

    def _set_battery(self, battery: bool) -> None:
        if battery is not self._battery:
            self._battery = battery
            self._engine.power_seen(on_battery=battery)
