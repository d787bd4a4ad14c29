"""A session for each test: a bus, python-dbusmock's notification daemon on it, and gpud-notify."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon.harness import TOP, Place, place_at
from dbus.private_bus import PrivateBus, session_bus
from jeepney import DBusAddress, MatchRule, Message, MessageType, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

sys.path.append(str(TOP / "tests" / "backends"))

BOUND_S = 60.0
MOCK = "org.freedesktop.DBus.Mock"
NOTIFICATIONS = "org.freedesktop.Notifications"
GPUD = "org.kernelcore.GpuD"
SYSTEMD = "org.freedesktop.systemd1"

LOST = "it has fallen off the bus"
BROKEN = {"Uuid": "GPU-1", "Name": "RTX 3050", "Health": LOST}
"""What the daemon of a test says of its GPU when it is asked."""

FAILING = {"Id": "sad", "DisplayName": "sad", "State": "failed", "Attempts": 5, "Error": "no room", "ErrorHint": "wait"}
"""And of its only model."""


@dataclass(frozen=True)
class Shown:
    """A notification as the desktop was told of it."""

    replaces: int
    title: str
    text: str
    actions: tuple[str, ...]
    labels: tuple[str, ...]
    urgency: int


class Mock:
    """A service of python-dbusmock's: another implementation of the protocol, in a process of its own."""

    def __init__(self, bus: PrivateBus, name: str, path: str, *words: str) -> None:
        self.name, self.path = name, path
        environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": bus.address}
        self._process = subprocess.Popen(
            ["/usr/bin/python3", "-m", "dbusmock", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        waited = subprocess.run(["gdbus", "wait", "--session", "--timeout", "120", name], env=environment, check=False)
        assert waited.returncode == 0, f"the mock of {name} did not come up"
        self._connection = open_dbus_connection(bus.address)
        self._told: deque[Message] = deque()
        rule = MatchRule(type="signal", interface=MOCK, member="MethodCalled", path=path)
        self._filter = self._connection.filter(rule, queue=self._told)
        self._connection.send_and_get_reply(message_bus.AddMatch(rule), timeout=BOUND_S)

    def call(self, member: str, signature: str, *values: object, path: str = "") -> Any:
        address = DBusAddress(path or self.path, self.name, MOCK)
        reply = self._connection.send_and_get_reply(
            new_method_call(address, member, signature, values), timeout=BOUND_S
        )
        assert reply.header.message_type is MessageType.method_return, reply.body
        return reply.body[0] if reply.body else None

    def next_call(self, member: str) -> tuple[Any, ...]:
        """The arguments of the next call of this method, waiting for it."""
        while True:
            while self._told:
                name, arguments = self._told.popleft().body
                if name == member:
                    return tuple(value for _, value in arguments)
            self._connection.recv_messages(timeout=BOUND_S)

    def calls(self, member: str) -> int:
        """How many calls of this method there were."""
        return sum(name == member for _, name, _ in self.call("GetCalls", ""))

    def emit(self, interface: str, member: str, signature: str, *values: tuple[str, object], path: str = "") -> None:
        self.call("EmitSignal", "sssav", interface, member, signature, list(values), path=path)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()


class Desktop(Mock):
    """Whoever shows notifications."""

    def __init__(self, bus: PrivateBus) -> None:
        super().__init__(
            bus, NOTIFICATIONS, "/org/freedesktop/Notifications", "--session", "--template", "notification_daemon"
        )

    def next_shown(self) -> Shown:
        _, replaces, _, title, text, actions, hints, _ = self.next_call("Notify")
        return Shown(replaces, title, text, tuple(actions[::2]), tuple(actions[1::2]), hints["urgency"][1])

    def press(self, number: int, action: str) -> None:
        self.emit(NOTIFICATIONS, "ActionInvoked", "us", ("u", number), ("s", action))


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    """The session bus, and the system bus as well."""
    with session_bus() as made:
        yield made


@pytest.fixture
def desktop(bus: PrivateBus) -> Iterator[Desktop]:
    made = Desktop(bus)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(bus: PrivateBus) -> Iterator[Place]:
    """Where a real daemon lives."""
    with place_at(bus.address) as made:
        yield made
        for daemon in made.daemons:
            if daemon.running:
                assert daemon.stop() == 0, daemon.log()


@pytest.fixture
def told_gpud(bus: PrivateBus) -> Iterator[Mock]:
    """A daemon that says what the test has it say: nothing is loaded, and all is well."""
    made = Mock(bus, GPUD, "/org/kernelcore/GpuD", "--session", GPUD, "/org/kernelcore/GpuD", GPUD)
    none = "dbus.Array([], 'a{sv}', variant_level=1)"
    lists = ", ".join(f"'{name}': {none}" for name in ("Models", "Gpus", "Holds"))
    made.call("AddMethod", "sssss", GPUD, "Status", "", "a{sv}", f"ret = {{'Degraded': '', {lists}}}")
    gpu = f"dbus.Dictionary({BROKEN!r}, 'sv')"
    made.call("AddMethod", "sssss", GPUD, "ListGpus", "", "aa{sv}", f"ret = [{gpu}]")
    failing = f"dbus.Dictionary({FAILING!r}, 'sv')"
    made.call("AddMethod", "sssss", GPUD, "ListModels", "", "aa{sv}", f"ret = [{failing}]")
    made.call("AddProperties", "sa{sv}", GPUD, {"Degraded": ("s", ""), "Holds": ("aa{sv}", [])})
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def systemd(bus: PrivateBus) -> Iterator[Mock]:
    """systemd as far as the look at the disk is concerned: the unit has not run yet."""
    top = "/org/freedesktop/systemd1"
    made = Mock(bus, SYSTEMD, top, "--session", SYSTEMD, top, f"{SYSTEMD}.Manager")
    made.call("AddMethod", "sssss", f"{SYSTEMD}.Manager", "Subscribe", "", "", "")
    unit = f"{top}/unit/ml_2dstorage_2dmonitor_2eservice"
    made.call("AddObject", "ssa{sv}a(ssss)", unit, f"{SYSTEMD}.Unit", {"ActiveState": ("s", "inactive")}, [])
    try:
        yield made
    finally:
        made.close()


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(bus: PrivateBus, tmp_path: Path) -> Iterator[Start]:
    """gpud-notify, which finds a terminal that writes down what it was to run."""
    terminal = tmp_path / "xdg-terminal-exec"
    terminal.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >{tmp_path}/ran.new && mv {tmp_path}/ran.new {tmp_path}/ran\n')
    terminal.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def begin(language: str = "C.UTF-8", *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpud.notify", *words],
            cwd=TOP,
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "DBUS_SESSION_BUS_ADDRESS": bus.address,
                "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
                "LANG": language,
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        named = ["gdbus", "wait", "--session", "--timeout", "120", "org.kernelcore.GpuD.Notify"]
        subprocess.run(named, env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": bus.address}, check=True)
        return process

    try:
        yield begin
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
            _, said = process.communicate(timeout=BOUND_S)
            assert "Traceback" not in said, said
