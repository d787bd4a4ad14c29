"""One gpud with all that it lives with: a bus, a service manager, logind, polkit, GPUs, folders, a disk, a clock.

All of it is real but the stand-ins that the tests use. It can be killed and started again as a service manager would.
"""

import contextlib
import ctypes
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from daemon.doors import listening, open_doors
from daemon.harness import BOUND_S, CallFailed, Daemon, Place, plain
from daemon.mock_machine import MockLogind
from daemon.service_manager import Manager
from daemon.test_clock import Clock
from dbus.private_bus import MockPolkit, PrivateBus
from fake_nvml.gpu import FakeGpus

from bench.faults.apart import is_apart
from bench.faults.models import TOTAL_BYTES, configured, real_engines

DISK_KIB = 4096
SETTINGS: dict[str, object] = {
    "restart": {"first": 0.1, "max": 0.3, "attempts": 5, "healthy_after": 1},
    "stop": {"drain": 20, "term": 2, "second_term": 2},
    "queue": {"size": 40, "timeout": 30, "turn": 0.5},
    "gpu": {"reserve": "256MiB", "watch": 1, "host_reserve": "0MiB"},
    "memory_wait": 3,
    "shutdown_drain": 5,
    "prefetch": {"page_cache": False},
    "bus": {"jobs": 64, "holds": 64},
}


class Leak(AssertionError):
    """Something is left over. ``kind`` is the column of the table, ``count`` how much."""

    def __init__(self, kind: str, count: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.count = count


class System:
    """Use it as ``with``: everything that it started ends with it."""

    def __init__(self, logs: Path, *, real: bool) -> None:
        self.logs = logs
        self.real = real
        self.up = threading.Event()
        self._ends = contextlib.ExitStack()
        self._starts = 0
        self._sound: Counter[str] = Counter()
        self.daemon: Daemon

    def __enter__(self) -> "System":
        try:
            self._build()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.up.clear()
        self._ends.close()

    def _build(self) -> None:
        self.bus = PrivateBus(relaxed=True)
        self._ends.callback(self.bus.close)
        self.bus.start()
        self.place = Place(self.bus.address)
        self._ends.callback(self._close_place)
        self.gpus = FakeGpus(self.place.root / "gpus", TOTAL_BYTES)
        self._ends.callback(self.gpus.close)
        self.manager = self._ends.enter_context(Manager(self.place.root))
        self.logind = MockLogind(self.bus.address)
        self._ends.callback(lambda: self.logind.close())
        self.polkit = MockPolkit(self.bus.address)
        self._ends.callback(lambda: self.polkit.kill())
        self.state = self.place.state / "gpud"
        self.state.mkdir(parents=True)
        self.has_disk = is_apart() and self.mount_disk()
        self.folder = self.place.root / "models"
        self.folder.mkdir()
        (self.place.root / "ollama" / "manifests").mkdir(parents=True)
        (self.place.root / "ollama" / "blobs").mkdir()
        # Programs of other users speak to its bus.
        self.place.root.chmod(0o755)
        self.clock = Clock(self.place)
        self.place.environment |= self.gpus.environment() | self.manager.environment
        self.place.environment |= {
            "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address,
            "RUNTIME_DIRECTORY": str(self.place.runtime / "gpud"),
            "STATE_DIRECTORY": str(self.state),
        }
        self.place.command = lambda command: self.manager.command([word for word in command if word != "--user"])
        self.doors = open_doors(self.place, heartbeat=2)
        self.models = configured(self.place, self.gpus, real=self.real)
        if self.real:
            self.place.sections["engines"] = real_engines(self.place)
        (self.place.root / "gate").touch()
        self.configure()
        self.start()
        # Its locks are two of the descriptors that it has for good.
        self.logind.wait_locks("shutdown", "sleep")

    def _close_place(self) -> None:
        # Whatever state it is in: told to end first, so that its engines end with it; who is left then is killed.
        with contextlib.suppress(AssertionError):
            self._end_daemon(Daemon.stop)
        with contextlib.suppress(OSError):
            self._umount()
        with contextlib.suppress(AssertionError):
            self.place.close()

    # Its disk ---------------------------------------------------------------------------------------------------------

    def mount_disk(self) -> bool:
        """A small one of its own for the state, which goes with the room."""
        return self._mount(b"tmpfs", 0, f"size={DISK_KIB}k,mode=700".encode())

    def write_disk(self, allowed: bool) -> None:
        """Whether anybody may write on it."""
        remount, read_only = 32, 1
        if not self._mount(b"tmpfs", remount | (0 if allowed else read_only), f"size={DISK_KIB}k".encode()):
            raise OSError(ctypes.get_errno(), f"cannot mount {self.state} anew")

    def _mount(self, kind: bytes, flags: int, options: bytes) -> bool:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.mount(b"none", os.fsencode(self.state), kind, flags, options) == 0)

    def _umount(self) -> None:
        ctypes.CDLL(None).umount2(os.fsencode(self.state), 2)

    # Its configuration ------------------------------------------------------------------------------------------------

    def configure(self, **changed: object) -> None:
        """Write the file; ``changed`` are models that are another, or sections."""
        models = {**self.models, **{name: value for name, value in changed.items() if name in self.models}}
        sections = {name: value for name, value in changed.items() if name not in self.models}
        registry = {"paths": [str(self.folder)], "huggingface": [], "ollama": [str(self.place.root / "ollama")]}
        storage = {"base_directory": str(self.place.root / "store")}
        self.place.configure(models, **{**SETTINGS, "registry": registry, "storage": storage, **sections})

    # The daemon -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """As a service manager does: with what it keeps for it."""
        self.manager.forget_ready()
        self.daemon = self.place.start(wait=False)
        self._starts += 1
        deadline = time.monotonic() + BOUND_S
        while True:
            try:
                self.manager.wait_ready(1.0)
                break
            except AssertionError as problem:
                if time.monotonic() > deadline or not self.daemon.running:
                    raise AssertionError(f"{problem}:\n{self.daemon.log()[-3000:]}") from None
        self.daemon.is_ready()
        self.up.set()

    def start_and_kill(self, after_s: float) -> None:
        """One that does not come far."""
        self.daemon = self.place.start(wait=False)
        self._starts += 1
        time.sleep(after_s)  # The moment is the point of it: it is drawn, not waited for.
        self.kill()

    def kill(self) -> None:
        self._end_daemon(Daemon.kill9)

    def terminate(self) -> int:
        statuses: list[int] = []
        self._end_daemon(lambda daemon: statuses.append(daemon.stop()))
        return statuses[0]

    def _end_daemon(self, end: Callable[[Daemon], object]) -> None:
        self.up.clear()
        if not self.place.daemons:
            return
        daemon = self.place.daemons[-1]
        try:
            end(daemon)
        finally:
            daemon.destroy()
            self.place.daemons.remove(daemon)
            self._keep_log(daemon)

    def _keep_log(self, daemon: Daemon) -> None:
        (self.logs / f"gpud-{self._starts:03}.log").write_text(daemon.log() + "\n")

    def keep_logs(self) -> None:
        """What the one that runs has said until now."""
        if self.place.daemons:
            self._keep_log(self.daemon)

    def complaints(self) -> list[str]:
        """What no fault may ever bring about."""
        # Its own words, not what it passes on of its engines'.
        bad = re.compile(r"Traceback|[\d:]+ (?!\[).*(internal error|Task exception|never retrieved|never awaited)")
        self.keep_logs()
        found = []
        for path in sorted(self.logs.glob("gpud-*.log")):
            found += [f"{path.name}: {line[:300]}" for line in path.read_text().splitlines() if bad.match(line)]
        return found

    def heal(self) -> None:
        """After something went wrong: whatever stands in its way is taken away, and a gpud runs."""
        self.clock.set(0)
        self.gpus.find(0)
        self.gpus.late(0)
        self.configure()
        if not self.place.daemons or not self.daemon.running:
            self._end_daemon(_no_more)
            self.start()
        with contextlib.suppress(CallFailed, OSError):
            self.daemon.call("Resume")

    # What it has ------------------------------------------------------------------------------------------------------

    def pid_of(self, model: str) -> int:
        """Of its engine; 0 when it has none."""
        record = self.place.records().get(model)
        return int(record["child"]["pid"]) if record and record.get("child") else 0

    def ready(self) -> dict[str, int]:
        """The PIDs of engines that could answer."""
        states = {record["Id"]: record["State"] for record in map(plain, self.daemon.call("ListModels"))}
        records = self.place.records()
        return {
            name: int(record["child"]["pid"])
            for name, record in records.items()
            if states.get(name) in ("ready", "busy") and record.get("child")
        }

    def unload_all(self) -> None:
        """Everything goes, in order; who has failed is forgiven."""
        for _ in range(5):
            with contextlib.suppress(CallFailed):
                ended = self.daemon.unload()
                if ended.result == "done":
                    return
        raise AssertionError(f"not everything can be unloaded: {ended}")

    def check_empty(self) -> None:
        """Nobody asks for anything: raises Leak for what is left over once everything is unloaded."""
        self.unload_all()
        if not self._sound:
            # The first time: this is what it has open at rest.
            self._settled("processes", lambda: [f"{pid}: {what}" for pid, what in self.place.children().items()])
            self._sound = self.daemon.descriptors()
        self._settled("processes", lambda: [f"{pid}: {what}" for pid, what in self.place.children().items()])
        self._settled("sockets", self._sockets)
        self._settled("fds", self._descriptors)
        self._settled("reservations", self._reservations)
        self._settled("bytes", self._bytes)

    def _settled(self, kind: str, left: Callable[[], list[str]]) -> None:
        """What ends by itself is given its time."""
        deadline = time.monotonic() + 20
        while found := left():
            if time.monotonic() > deadline:
                raise Leak(kind, len(found), f"{kind} are left over: {'; '.join(found)[:1000]}")
            time.sleep(0.02)

    def _sockets(self) -> list[str]:
        files = self.place.left_files()
        doors = listening(self.daemon.pid)
        return files + ([] if len(doors) == 3 else [f"listens on {sorted(doors)}"])

    def _descriptors(self) -> list[str]:
        now = self.daemon.descriptors()
        return [f"{count} more {kind} than {self._sound[kind]}" for kind, count in (now - self._sound).items()]

    def _reservations(self) -> list[str]:
        found = []
        for device in map(plain, self.daemon.call("ListGpus")):
            found += [
                f"{device['Name']}: {key} {device[key]} bytes" for key in ("Committed", "Reserved") if device.get(key)
            ]
        names = ("Holds", "Claims", "Queue", "Downloads", "Yielded")
        found += [f"{name}: {value}" for name in names if (value := self.daemon.property(name))]
        found += [f"session: {plain(session)}" for session in self.daemon.call("ListSessions")]
        found += [f"job: {job}" for job in self.doors.management.ask("/jobs").value]
        for model in map(plain, self.daemon.call("ListModels")):
            found += [f"{model['Id']}: {key} {model[key]}" for key in ("InFlight", "Holds") if model.get(key)]
        return found

    def _bytes(self) -> list[str]:
        found = []
        for device in map(plain, self.daemon.call("ListGpus")):
            used, foreign = device.get("VramUsed", 0), device.get("VramForeign", 0)
            if device["Uuid"] != "host" and (used or foreign or device.get("Health")):
                found.append(f"{device['Name']}: {used} bytes used, {foreign} by others, health {device['Health']!r}")
        return found


def _no_more(_daemon: Daemon) -> None:
    """It has ended already, or is destroyed now."""
