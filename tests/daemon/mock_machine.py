"""python-dbusmock's logind and UPower on the test's bus: programs of their own, with another D-Bus library, whose locks
are real pipes.
"""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

from .harness import BOUND_S, Daemon, Place

MOCK = "org.freedesktop.DBus.Mock"
SESSION = "org.freedesktop.login1.Session"


def _session(name: str) -> str:
    return f"/org/freedesktop/login1/session/{name}"


class MockService:
    """One template of python-dbusmock's. ``parameters`` go to it as they are."""

    name = ""
    path = ""
    interface = ""
    template = ""

    def __init__(self, address: str) -> None:
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.address}
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-m", "dbusmock", "--system", "--template", self.template],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        waited = subprocess.run(
            ["gdbus", "wait", "--system", "--timeout", "120", self.name], env=environment, check=False
        )
        assert waited.returncode == 0, f"the mock of {self.name} did not come up"
        self._connection = open_dbus_connection(self.address)

    def call(
        self, interface: str, member: str, signature: str | None = None, *values: object, path: str | None = None
    ) -> Any:
        message = new_method_call(DBusAddress(path or self.path, self.name, interface), member, signature, values)
        reply = self._connection.send_and_get_reply(message, timeout=BOUND_S)
        assert reply.header.message_type is not MessageType.error, (
            reply.header.fields[HeaderFields.error_name],
            reply.body,
        )
        return reply.body[0] if len(reply.body) == 1 else reply.body

    def emit(self, member: str, signature: str, *values: tuple[str, object]) -> None:
        self.call(MOCK, "EmitSignal", "sssav", self.interface, member, signature, list(values))

    def set(self, **properties: tuple[str, object]) -> None:
        """Change properties; everybody is told."""
        self.call(MOCK, "UpdateProperties", "sa{sv}", self.interface, properties)

    def kill(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    close = kill


class MockLogind(MockService):
    name = "org.freedesktop.login1"
    path = "/org/freedesktop/login1"
    interface = "org.freedesktop.login1.Manager"
    template = "logind"

    delay_s = 5.0

    def start(self) -> None:
        super().start()
        # The template has no such property; it comes before gpud asks, or is learned later.
        self.call(MOCK, "AddProperty", "ssv", self.interface, "InhibitDelayMaxUSec", ("t", int(self.delay_s * 1e6)))

    def locks(self) -> list[str]:
        """What is waited for, by whom it is gpud."""
        return sorted(lock[0] for lock in self.call(self.interface, "ListInhibitors") if lock[1] == "gpud")

    def wait_locks(self, *wanted: str, timeout_s: float = BOUND_S) -> float:
        """Returns, when these and no others are held, for how long that took."""
        return wait_until(lambda: self.locks() == sorted(wanted), f"the locks {wanted}", timeout_s)

    def log_in(self, session: str, uid: int, kind: str = "user") -> None:
        """``kind`` is what logind calls a session's class."""
        self.call(MOCK, "AddSession", "ssusb", session, "seat0", uid, f"user{uid}", True)
        self.call(MOCK, "UpdateProperties", "sa{sv}", SESSION, {"Class": ("s", kind)}, path=_session(session))
        self.emit("SessionNew", "so", ("s", session), ("o", _session(session)))

    def log_out(self, session: str) -> None:
        self.call(MOCK, "RemoveObject", "s", _session(session))
        self.emit("SessionRemoved", "so", ("s", session), ("o", _session(session)))

    def ask_to_lock(self, session: str) -> None:
        """As ``loginctl lock-session`` does."""
        self.call(MOCK, "EmitSignal", "sssav", SESSION, "Lock", "", [], path=_session(session))

    def locked(self, session: str) -> None:
        """As a desktop tells that it has locked its screen."""
        changed = {"LockedHint": ("b", True)}
        self.call(MOCK, "UpdateProperties", "sa{sv}", SESSION, changed, path=_session(session))

    def sleep(self, begins: bool) -> None:
        self.set(PreparingForSleep=("b", begins))
        self.emit("PrepareForSleep", "b", ("b", begins))

    def shut_down(self, begins: bool) -> None:
        self.set(PreparingForShutdown=("b", begins))
        self.emit("PrepareForShutdown", "b", ("b", begins))


class MockUPower(MockService):
    name = "org.freedesktop.UPower"
    path = "/org/freedesktop/UPower"
    interface = "org.freedesktop.UPower"
    template = "upower"


def started(place: Place, logind: MockLogind) -> Daemon:
    """A daemon that has taken its locks; what it has open then is what it has open ever after."""
    daemon = place.start()
    logind.wait_locks("shutdown", "sleep")
    daemon.is_ready()
    return daemon


def overall(daemon: Daemon) -> str:
    return str(daemon.status()["State"])


def is_awake(daemon: Daemon, logind: MockLogind) -> None:
    """It has its locks again and loads: the locks come first, and between the two it looks whether the GPUs work."""
    logind.wait_locks("shutdown", "sleep")
    wait_until(lambda: overall(daemon) != "suspending", "it is awake")


def wait_until(reached: Callable[[], bool], what: str, timeout_s: float = BOUND_S) -> float:
    """Somebody else's state, which is told to nobody: asked for until it is so. Returns how long that took."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - began
