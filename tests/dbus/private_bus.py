"""A real dbus-daemon of the system type with the policy that gpud ships, and polkit mocks on it."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
POLICY = TOP / "dbus-policy" / "org.kernelcore.GpuD.conf"
NOBODY = 65534

# What a system bus allows by default, as dbus-daemon's own configuration says it, and what polkit's policy adds.
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{kind}</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.login1"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow own="org.freedesktop.login1"/>
  </policy>
  <include>{policy}</include>
  {relaxed}
  {limits}
</busconfig>
"""
RELAXED = """<policy context="mandatory">
    <allow send_destination="*" eavesdrop="false"/>
    <allow own="*"/>
  </policy>"""


class PrivateBus:
    """Start it, kill it, start it again at the same address."""

    def __init__(self, *, relaxed: bool = False, limits: dict[str, int] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gpud-bus-"))
        self.directory.chmod(0o755)
        self.address = f"unix:path={self.directory}/bus"
        self._process: subprocess.Popen[str] | None = None
        config = CONFIG.format(
            kind="session" if relaxed else "system",
            socket=self.directory / "bus",
            policy=POLICY,
            relaxed=RELAXED if relaxed else "",
            limits="".join(f'<limit name="{name}">{value}</limit>' for name, value in (limits or {}).items()),
        )
        (self.directory / "bus.conf").write_text(config)

    def start(self) -> None:
        (self.directory / "bus").unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self.directory}/bus.conf", "--nofork", "--nopidfile", "--print-address=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("unix:"), "dbus-daemon did not start"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As if it had crashed."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)


class MockPolkit:
    """python-dbusmock's polkitd, a program of its own with another D-Bus library."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-m", "dbusmock", "--system", "--template", "polkitd"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        waited = subprocess.run(
            ["gdbus", "wait", "--system", "--timeout", "120", "org.freedesktop.PolicyKit1"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
            check=False,
        )
        assert waited.returncode == 0, "the polkit mock did not come up"

    def tell(self, member: str, signature: str, *values: str) -> None:
        subprocess.run(
            [
                "busctl",
                f"--address={self._address}",
                "call",
                "org.freedesktop.PolicyKit1",
                "/org/freedesktop/PolicyKit1/Authority",
                "org.freedesktop.DBus.Mock",
                member,
                signature,
                *values,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()


class MockLogind:
    """python-dbusmock's logind, with what of the real one it lacks: which session a process is in."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-m", "dbusmock", "--system", "--template", "logind"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self._address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        waited = subprocess.run(
            ["gdbus", "wait", "--system", "--timeout", "120", "org.freedesktop.login1"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self._address},
            check=False,
        )
        assert waited.returncode == 0, "the logind mock did not come up"

    def _tell(self, member: str, signature: str, *values: str, path: str = "/org/freedesktop/login1") -> None:
        interface = "org.freedesktop.DBus.Mock"
        if member == "Set":
            interface = "org.freedesktop.DBus.Properties"
        command = ["busctl", f"--address={self._address}", "call", "org.freedesktop.login1", path, interface]
        subprocess.run([*command, member, signature, *values], check=True, stdout=subprocess.DEVNULL)

    def add_session(self, name: str, leader: int) -> None:
        """Every process is in this one from now on."""
        path = f"/org/freedesktop/login1/session/{name}"
        self._tell("AddSession", "ssusb", name, "seat0", "0", "root", "true")
        self._tell(
            "UpdateProperties", "sa{sv}", "org.freedesktop.login1.Session", "1", "Leader", "u", str(leader), path=path
        )
        manager = "org.freedesktop.login1.Manager"
        self._tell("AddMethod", "sssss", manager, "GetSessionByPID", "u", "o", f'ret = "{path}"')

    def remove_session(self, name: str, *, told: bool = True) -> None:
        path = f"/org/freedesktop/login1/session/{name}"
        self._tell("RemoveObject", "s", path)
        if told:
            manager = "org.freedesktop.login1.Manager"
            self._tell("EmitSignal", "sssav", manager, "SessionRemoved", "so", "2", "s", name, "o", path)

    def kill(self) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def session_bus() -> Iterator[PrivateBus]:
    """One that runs and lets everything through, as a session bus does; it ends with the block."""
    bus = PrivateBus(relaxed=True)
    bus.start()
    try:
        yield bus
    finally:
        bus.close()
