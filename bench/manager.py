"""Starts gpud the way a service manager does: readiness and stored descriptors over NOTIFY_SOCKET, restarts with them.

For measurements only. It keeps what systemd would keep, so that a crash can be timed without a booted machine.
"""

import array
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

TOP = Path(__file__).resolve().parents[1]
ADDRESS = DBusAddress("/org/kernelcore/GpuD", "org.kernelcore.GpuD", "org.kernelcore.GpuD")
BOUND_S = 60.0

BUS_CONFIG = """<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy>
<limit name="max_replies_per_connection">50000</limit></busconfig>"""


@dataclass
class Bus:
    """A private dbus-daemon."""

    root: Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        config = self.root / "bus.conf"
        config.write_text(BUS_CONFIG.format(path=self.root / "bus"))
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()

    def connect(self) -> DBusConnection:
        return open_dbus_connection(self.address)

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()


@dataclass
class Managed:
    """One gpud with its directories. ``stored`` is what it gave to the manager's store."""

    bus: Bus
    root: Path
    config: str
    environment: Mapping[str, str] = field(default_factory=dict)
    lasting: bool = True
    stored: dict[str, int] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    ready_after_s: float = 0.0

    def __post_init__(self) -> None:
        (self.root / "gpud.yaml").write_text(self.config)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.root / "notify"))
        self._messages: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> "Managed":
        self.ready_after_s = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        clear(self.root)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> float:
        """Returns the seconds from exec to READY=1."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "XDG_RUNTIME_DIR": str(self.root),
            "XDG_STATE_HOME": str(self.root / "state"),
            "DBUS_SESSION_BUS_ADDRESS": self.bus.address,
            "NOTIFY_SOCKET": str(self.root / "notify"),
            **self.environment,
        }
        if self.lasting:
            environment["GPUD_FDSTORE"] = "512"
        names, fds = list(self.stored), list(self.stored.values())
        log = (self.root / "log").open("ab")
        # LISTEN_PID must name the process itself, so a shell sets it in the moment before it becomes gpud.
        script = 'LISTEN_PID=$$ exec "$0" -m gpud --user --config "$1"'
        if fds:
            environment |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}

        def place() -> None:
            high = [os.dup2(fd, 200 + i) for i, fd in enumerate(fds)]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)
                os.close(fd)

        begun = time.perf_counter()
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, sys.executable, str(self.root / "gpud.yaml")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=range(3, 3 + len(fds)) if fds else (),
            preexec_fn=place if fds else None,
            cwd=TOP,
        )
        log.close()
        self.until("READY=1")
        return time.perf_counter() - begun

    def until(self, wanted: str) -> None:
        """Wait for a message of the daemon with this line in it."""
        while wanted not in self._messages.get(timeout=BOUND_S).splitlines():
            pass

    def _listen(self) -> None:
        """Like a service manager: take every message at once, keep the descriptors that come with some."""
        while True:
            text = self.take()
            if not text:
                return
            self._messages.put(text)

    def take(self) -> str:
        data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(64))
        lines = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content)
        name = lines.get("FDNAME", "")
        if "FDSTORE" in lines and fds:
            self.stored[name] = fds[0]
        elif "FDSTOREREMOVE" in lines and name in self.stored:
            os.close(self.stored.pop(name))
        return data.decode()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(BOUND_S)
        for fd in self.stored.values():
            os.close(fd)
        self.stored.clear()
        # An empty message ends the listener.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.root / "notify"))
        self._listener.join()
        self.notify.close()


class Caller:
    """A client that sees the daemon's signals."""

    def __init__(self, bus: Bus) -> None:
        self.connection = bus.connect()
        rule = MatchRule(type="signal", interface="org.kernelcore.GpuD", path="/org/kernelcore/GpuD")
        self._filter = self.connection.filter(rule, bufsize=10_000)
        self._queue = self._filter.__enter__()
        self.connection.send_and_get_reply(message_bus.AddMatch(rule))

    def call(self, method: str, signature: str = "", *values: object) -> object:
        reply = self.connection.send_and_get_reply(
            new_method_call(ADDRESS, method, signature or None, values), timeout=BOUND_S
        )
        if reply.header.message_type is MessageType.error:
            raise RuntimeError(f"{method}: {reply.body}")
        return reply.body[0] if reply.body else None

    def until(self, member: str, *start: object) -> float:
        """Wait for a signal whose body begins like this; returns when it came."""
        while True:
            message = self.connection.recv_until_filtered(self._queue, timeout=BOUND_S)
            now = time.perf_counter()
            if message.header.fields[HeaderFields.member] == member and tuple(message.body[: len(start)]) == start:
                return now

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def workplace() -> Path:
    return Path(tempfile.mkdtemp(prefix="gpud-bench-"))


def clear(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
