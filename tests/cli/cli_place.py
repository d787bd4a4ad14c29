"""Where gpudctl is tried: private buses, a real daemon with small engines, and a daemon that misbehaves on demand."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType, NameFlag
from dbus_next.message import Message
from dbus_next.signature import Variant
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

TOP = Path(__file__).resolve().parent.parent.parent
GPUDCTL = (sys.executable, "-m", "gpud.cli")
NAME = "org.kernelcore.GpuD"
PATH = "/org/kernelcore/GpuD"

PATIENCE_S = 60.0
"""No command of these tests takes a second; one that takes this long hangs."""

BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

ENGINE = """
import http.server, os, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass

gate = os.environ.get("GATE")
if gate:
    open(gate).read()  # A FIFO: nothing happens until somebody opens its other end.
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@contextmanager
def private_bus(directory: Path) -> Iterator[str]:
    """A real dbus-daemon of our own; services in ``directory/services`` can be activated. Yields its address."""
    services = directory / "services"
    services.mkdir(parents=True, exist_ok=True)
    config = directory / "bus.conf"
    config.write_text(BUS_CONFIG.format(socket=directory / "bus", services=services))
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("unix:")
        yield f"unix:path={directory / 'bus'}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stdout.close()


@dataclass
class Place:
    """A home of its own, with an environment in which gpudctl finds only what the test put there."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("home", "run", "state", "config"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.directory / 'no-system-bus'}",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(TOP),
            **self.environment,
        }

    def gpudctl(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end."""
        return subprocess.run(
            [*GPUDCTL, *words],
            env=self.environment | more,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )

    def json(self, *words: str) -> Any:
        """What a command line prints with --json."""
        done = self.gpudctl("--json", *words)
        return json.loads(done.stdout)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Run one command line beside the test."""
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([*GPUDCTL, *words], env=self.environment, text=True, **(options | more))


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Its status and what it printed."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


@dataclass
class RealDaemon:
    """A gpud in user mode."""

    place: Place
    config: Path
    process: "subprocess.Popen[str]"
    gate: Path

    def open_gate(self) -> None:
        """Let the model "slow" become ready; it must be starting."""
        self.gate.open("w").close()

    def empty(self) -> None:
        """Leave nothing loaded, and nobody in the queue. Most tests leave neither: then no command is run for it."""
        where = DBusAddress(PATH, NAME, NAME)
        with open_dbus_connection(self.place.environment["DBUS_SESSION_BUS_ADDRESS"]) as bus:
            models, queue = (
                bus.send_and_get_reply(new_method_call(where, member), timeout=PATIENCE_S).body[0]
                for member in ("ListModels", "ListQueue")
            )
        if queue or any(model["State"][1] != "unloaded" for model in models):
            self.place.gpudctl("unload", "--force")


def models_yaml(directory: Path) -> str:
    """tiny loads at once, slow when its gate is opened, big never fits, broken ends at once."""
    script = directory / "engine.py"
    script.write_text(ENGINE)
    command = f'[{sys.executable}, {script}, "${{port}}"]'
    return f"""
idle: {{timeout: 5m}}
restart: {{first: 60, max: 60}}
http: {{front: {{enable: false}}, management: {{enable: false}}, ollama: {{enable: false}}}}
models:
  tiny: {{engine: custom, command: {command}, size: 300MiB, aliases: [small]}}
  other:3b: {{engine: custom, command: {command}, size: 200MiB}}
  slow: {{engine: custom, command: {command}, size: 100MiB, environment: {{GATE: {directory / "gate"}}}}}
  big: {{engine: custom, command: {command}, size: 3000GiB}}
  broken: {{engine: custom, command: [/bin/false, "${{port}}"], size: 1MiB}}
"""


@contextmanager
def real_daemon(place: Place, config: Path) -> Iterator[RealDaemon]:
    """The daemon as it is, on the session bus of the place."""
    gate = place.directory / "gate"
    if not gate.exists():
        os.mkfifo(gate)
    errors = (place.directory / "gpud.log").open("w")
    command = [sys.executable, "-m", "gpud", "--user", "--config", str(config)]
    process = subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "READY\n", (place.directory / "gpud.log").read_text()
        yield RealDaemon(place, config, process, gate)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        errors.close()


# A daemon that does what a test wants --------------------------------------------------------------------------------

Answer = Callable[[Message], list[Message]]


class StubDaemon:
    """Owns gpud's name and answers each method as the test says; for what a healthy daemon never does."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.calls: list[tuple[str, list[Any], int]] = []
        self.open: list[Message] = []
        """All calls as they came: for answers that a test gives later."""
        self.answers: dict[str, Answer] = {"Job": reply("a{sv}", {})}
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        bus.add_message_handler(self._handle)

    @classmethod
    async def on(cls, address: str) -> "StubDaemon":
        bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        stub = cls(bus)
        await bus.request_name(NAME, NameFlag.DO_NOT_QUEUE)
        return stub

    def _handle(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != NAME:
            return False
        self.calls.append((message.member, message.body, message.flags.value))
        self.open.append(message)
        self.arrived.put_nowait(message.member)
        for answer in self.answers.get(message.member, nothing)(message):
            self.bus.send(answer)
        return True

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def signal(self, member: str, signature: str, *body: Any) -> Message:
        return Message.new_signal(PATH, NAME, member, signature, list(body))

    async def gpudctl(self, place: Place, *words: str) -> tuple[int, str, str]:
        """Run one command line against the stub."""
        process = await asyncio.create_subprocess_exec(
            *GPUDCTL,
            *words,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def until(self, member: str) -> None:
        """Return when the method has been called."""
        while await asyncio.wait_for(self.arrived.get(), PATIENCE_S) != member:
            pass

    async def leave(self) -> None:
        """Go off the bus, and leave no descriptor behind, which the library would."""
        self.bus.disconnect()
        with suppress(Exception):
            await self.bus.wait_for_disconnect()
        self.bus._stream.close()
        self.bus._sock.close()


def nothing(_: Message) -> list[Message]:
    """No answer at all."""
    return []


def reply(signature: str, *body: Any) -> Answer:
    return lambda message: [Message.new_method_return(message, signature, list(body))]


def error(name: str, text: str) -> Answer:
    return lambda message: [Message.new_error(message, name, text)]


def status(**values: Variant) -> Answer:
    """An answer to Status of a gpud with nothing but what is given."""
    empty = {
        "Version": Variant("s", "1"),
        "State": Variant("s", "idle"),
        "Degraded": Variant("s", ""),
        "LoadedModels": Variant("as", []),
        "Yielded": Variant("a{sv}", {}),
    }
    lists = {name: Variant("aa{sv}", []) for name in ("Models", "Gpus", "Jobs", "Holds", "Claims", "Queue")}
    return reply("a{sv}", empty | lists | values)


def shows(*records: dict[str, Variant], **values: Variant) -> dict[str, Answer]:
    """The answers of a gpud with these models: to whoever asks for all of them, and to whoever asks for some."""

    def overview(message: Message) -> list[Message]:
        names = message.body[2]
        there = [one for one in records if one["State"].value != "unloaded" or one["Id"].value in names]
        return status(Models=Variant("aa{sv}", there), **values)(message)

    return {"ListModels": reply("aa{sv}", list(records)), "Overview": overview}


def gpu(uuid: str, index: int = 0, **values: Variant) -> dict[str, Variant]:
    """A device's record as ListGpus has it."""
    record = {
        "Uuid": Variant("s", uuid),
        "Name": Variant("s", f"Test GPU {index}"),
        "Index": Variant("i", index),
        "Vendor": Variant("s", "nvidia"),
        "Committed": Variant("t", 0),
        "Reserved": Variant("t", 0),
        "Asleep": Variant("b", False),
        "Health": Variant("s", ""),
        "Processes": Variant("aa{sv}", []),
    }
    return record | values


def claim(number: int, **values: Variant) -> dict[str, Variant]:
    """A claim's record as the property Claims has it."""
    record = {
        "Id": Variant("u", number),
        "Who": Variant("s", "trainer"),
        "Why": Variant("s", "night run"),
        "Uid": Variant("u", 1000),
        "Pid": Variant("u", 42),
        "Caller": Variant("s", "uid 1000 (gpudctl, pid 42)"),
        "Bytes": Variant("t", 8 << 30),
        "Device": Variant("s", ""),
        "Granted": Variant("b", False),
        "WaitsFor": Variant("s", ""),
        "Priority": Variant("s", "normal"),
        "SinceUSec": Variant("t", 0),
    }
    return record | values


def waiting(position: int, **values: Variant) -> dict[str, Variant]:
    """A record of ListQueue."""
    record = {
        "Position": Variant("u", position),
        "Model": Variant("s", ""),
        "Claim": Variant("u", 0),
        "NeedBytes": Variant("t", 8 << 30),
        "Priority": Variant("s", "normal"),
        "Callers": Variant("as", ["uid 1000"]),
        "Requests": Variant("u", 1),
        "SinceUSec": Variant("t", 1_000_000),
        "UntilUSec": Variant("t", 301_000_000),
        "Overdue": Variant("b", False),
        "WaitsFor": Variant("s", ""),
        "LoadUSec": Variant("t", 0),
    }
    return record | values


def model(name: str, **values: Any) -> dict[str, Variant]:
    """A model's record as ListModels has it."""
    record = {
        "Id": Variant("s", name),
        "DisplayName": Variant("s", name),
        "Aliases": Variant("as", []),
        "Backend": Variant("s", "custom"),
        "State": Variant("s", "unloaded"),
        "Reason": Variant("s", ""),
        "Device": Variant("s", ""),
        "Error": Variant("s", ""),
        "ErrorHint": Variant("s", ""),
        "Pinned": Variant("b", False),
        "Devices": Variant("as", []),
        "Shares": Variant("a{st}", {}),
        "WaitsFor": Variant("s", ""),
        "Reduced": Variant("s", ""),
        "NeedSource": Variant("s", ""),
        "KvBytes": Variant("t", 0),
    }
    wide = ("VramBytes", "VramEstimate", "NeedBytes", "LastUsedUSec", "UnloadAtUSec", "RetryAtUSec", "LoadUSec")
    record |= {key: Variant("t", 0) for key in wide}
    record |= {key: Variant("u", 0) for key in ("ContextSize", "InFlight", "Holds", "Attempts", "Restarts", "Pid")}
    record["Port"] = Variant("q", 0)
    for key, value in values.items():
        signature = record[key].signature if key in record else "d"
        record[key] = Variant(signature, value)
    return record
