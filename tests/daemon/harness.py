"""The whole daemon as a child of the test: started as a user starts it, on a bus and in directories of its own, and
talked to by an independent D-Bus library.

What waits, waits for a message of the bus, a line of the daemon's output or a process's end, each within a bound.
:meth:`Daemon.aftermath` is what every test asks for at its end: nothing is left over, and the daemon still works.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fake_nvml.gpu import GIB, FakeGpus
from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

TOP = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
ENGINE = TOP / "tests" / "backends" / "fake_http.py"
NAME = "org.kernelcore.GpuD"
PATH = "/org/kernelcore/GpuD"

BOUND_S = 180.0
"""For anything that takes at most a second or two when it works: the machines that run this are small and shared."""

SETTLE_S = 90.0
"""How long what is ending may take to be gone from /proc."""

POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""asyncio's own pool keeps its threads for ever: up to this many are no leak."""


class CallFailed(Exception):
    """An error reply of the daemon's."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name.removeprefix(f"{NAME}.Error.")
        self.text = text


@dataclass(frozen=True)
class Signal:
    """Something that the daemon announced."""

    member: str
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    result: str
    message: str


class Client:
    """One connection to the bus. It has seen every signal since it was made."""

    def __init__(self, address: str) -> None:
        self._connection = open_dbus_connection(address)
        self.signals: list[Signal] = []
        self._queue: Any = _Listener(self.signals)
        rule = MatchRule(type="signal", interface=NAME, path=PATH)
        self._filter = self._connection.filter(rule, queue=self._queue)
        reply = self._connection.send_and_get_reply(message_bus.AddMatch(rule), timeout=BOUND_S)
        assert reply.header.message_type is MessageType.method_return

    @property
    def name(self) -> str:
        return str(self._connection.unique_name)

    @property
    def socket(self) -> socket.socket:
        return self._connection.sock

    def send(self, method: str, signature: str = "", *values: object) -> None:
        """A call whose answer nobody waits for."""
        self._connection.send(new_method_call(DBusAddress(PATH, NAME, NAME), method, signature or None, values))

    def call(
        self, method: str, signature: str = "", *values: object, interface: str = NAME, timeout_s: float = BOUND_S
    ) -> Any:
        message = new_method_call(DBusAddress(PATH, NAME, interface), method, signature or None, values)
        reply = self._connection.send_and_get_reply(message, timeout=timeout_s)
        if reply.header.message_type is MessageType.error:
            text = str(reply.body[0]) if reply.body else ""
            raise CallFailed(reply.header.fields[HeaderFields.error_name], text)
        return reply.body[0] if len(reply.body) == 1 else reply.body

    def wait_signal(self, wanted: Callable[[Signal], bool], *, since: int = 0, timeout_s: float = BOUND_S) -> Signal:
        """The first matching signal from position ``since`` on, waiting for it if need be."""
        deadline = time.monotonic() + timeout_s
        position = since
        while True:
            for signal_ in self.signals[position:]:
                if wanted(signal_):
                    return signal_
            position = len(self.signals)
            try:
                self._connection.recv_messages(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                seen = "\n".join(map(str, self.signals[-20:]))
                raise AssertionError(f"the signal did not come within {timeout_s} s; the last ones:\n{seen}") from None

    def owner(self) -> str:
        """Who owns the daemon's name; empty when nobody does."""
        reply = self._connection.send_and_get_reply(message_bus.GetNameOwner(NAME), timeout=BOUND_S)
        return str(reply.body[0]) if reply.header.message_type is MessageType.method_return else ""

    def close(self) -> None:
        self._connection.close()


class _Listener:
    """What jeepney appends matching messages to."""

    def __init__(self, signals: list[Signal]) -> None:
        self._signals = signals

    def append(self, message: Any) -> None:
        self._signals.append(Signal(message.header.fields[HeaderFields.member], tuple(message.body)))


class Place:
    """The directories and the configuration of one user's gpud. More than one daemon may be started in it."""

    def __init__(self, address: str) -> None:
        self.address = address
        # Not below tmp_path: a socket's path has room for 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="gpud-d-"))
        self.runtime = self.root / "run"
        self.state = self.root / "state"
        self.config = self.root / "gpud.yaml"
        self.runtime.mkdir(mode=0o700)
        self.environment: dict[str, str] = {}
        self.sections: dict[str, object] = {}
        self.daemons: list[Daemon] = []
        self.command: Callable[[list[str]], dict[str, Any]] = lambda command: {"args": command}
        """How a daemon is started: more for Popen. A service manager has its own way."""
        self._clients: list[Client] = []

    @property
    def engines(self) -> Path:
        """Where records and sockets lie."""
        return self.runtime / "gpud" / "engines"

    def configure(self, models: Mapping[str, object], **sections: object) -> None:
        # Many daemons run at the same time here: a door is opened where a test wants one.
        doors = {name: {"enable": False} for name in ("front", "management", "ollama")}
        settings = {
            "restart": {"first": 0.1, "max": 0.2},
            "stop": {"drain": 5, "term": 2, "second_term": 2},
            "http": doors,
        }
        fresh = self.config.with_suffix(".new")
        fresh.write_text(yaml.safe_dump({**settings, **self.sections, **sections, "models": dict(models)}))
        fresh.replace(self.config)

    def start(self, *, wait: bool = True) -> "Daemon":
        daemon = Daemon(self)
        self.daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    def client(self) -> Client:
        """Somebody else on the bus; closed with the place at the latest."""
        made = Client(self.address)
        self._clients.append(made)
        return made

    def stream(self, record: Mapping[str, Any], method: str, path: str, body: object = None) -> "Stream":
        return Stream(record, method, path, body)

    def terminal(self) -> dict[str, str]:
        """The environment of the user's terminal: gpudctl, and the commands with old names, are those of this tree."""
        program = self.root / "bin" / "gpudctl"
        if not program.exists():
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\ncd {TOP} && exec {PYTHON} -m gpud.cli "$@"\n')
            program.chmod(0o755)
        return {
            "PATH": f"{program.parent}:{TOP / 'shell' / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "DBUS_SESSION_BUS_ADDRESS": self.address,
            "GPUD_BUS": "user",
            "GPUD_LIB": str(TOP / "shell" / "lib"),
        }

    def type(self, *words: str, status: int = 0) -> str:
        """A line in that terminal, which ends with this status; what it says, on standard error where it fails."""
        done = subprocess.run(
            words,
            env=self.terminal(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stderr if status else done.stdout

    def kill(self, pid: int) -> None:
        """kill -9 of a process that belongs here."""
        assert pid in self.children(), f"process {pid} is none of this test's"
        os.kill(pid, signal.SIGKILL)

    def records(self) -> dict[str, dict[str, Any]]:
        """What is written down of each running engine, by model."""
        found = {}
        for path in self.engines.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                record = json.loads(path.read_text())
                found[record["model"]] = record
        return found

    def processes(self) -> dict[int, str]:
        """Every living process that belongs here, daemons too: all of them carry the directory in their environment."""
        return {seen.pid: seen.command for seen in self._seen()}

    def children(self) -> dict[int, str]:
        """The same without the daemons, and without the copies in which they look for models while they live."""
        daemons = {daemon.pid: command_of(daemon.pid) for daemon in self.daemons}
        return {
            seen.pid: seen.command
            for seen in self._seen()
            if seen.pid not in daemons and daemons.get(seen.parent) != seen.command
        }

    def _seen(self) -> Iterator["Seen"]:
        """Each of them as it was at one look: who ends while it is looked at is not there."""
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if os.fsencode(str(self.runtime)) in Path(f"/proc/{entry.name}/environ").read_bytes():
                        pid = int(entry.name)
                        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                        if command := command_of(pid):
                            yield Seen(pid, parent, command)

    def check_empty(self) -> None:
        """No process but the daemons, no record and no socket."""
        try:
            settle(lambda: not self.children() and not self.left_files(), "")
        except AssertionError:
            raise AssertionError(f"left behind: {self.children()} {self.left_files()}") from None

    def left_files(self) -> list[str]:
        return sorted(path.name for path in self.engines.iterdir()) if self.engines.is_dir() else []

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for daemon in self.daemons:
            daemon.destroy()
        with contextlib.suppress(AssertionError):
            # Who was destroyed has its engines ended by the kernel, which takes a moment.
            settle(lambda: not self.children(), "")
        left = self.children()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root)
        assert not left, f"no daemon lives any more, but these do: {left}"


class Daemon:
    """One run of ``gpud --user``."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._client: Client | None = None
        self._process = subprocess.Popen(
            **place.command([PYTHON, "-m", "gpud", "--user", "--config", str(place.config)]),
            cwd=TOP,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(place.root),
                "XDG_RUNTIME_DIR": str(place.runtime),
                "XDG_STATE_HOME": str(place.state),
                "DBUS_SESSION_BUS_ADDRESS": place.address,
                # Whether this machine has one is not what a test is about.
                "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={place.root}/no-system-bus",
                **place.environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._lines: list[str] = []
        self._rest = b""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._baseline: Counter[str] = Counter()

    # The process ---------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stderr is not None
        more = True
        while more:
            select.select([self._process.stderr], [], [])
            with self._news:
                more = self._take()
                self._news.notify_all()

    def _take(self) -> bool:
        """What it has said until now and nobody has read yet, without waiting; False once it can say nothing more."""
        pipe = self._process.stderr
        assert pipe is not None
        if pipe.closed or not select.select([pipe], [], [], 0)[0]:
            return not pipe.closed
        said = os.read(pipe.fileno(), 1 << 20)
        end_of_last = b"\n" if self._rest and not said else b""
        *lines, self._rest = (self._rest + said + end_of_last).split(b"\n")
        self._lines += [line.decode("utf-8", "replace") for line in lines]
        return bool(said)

    def wait_ready(self, timeout_s: float = BOUND_S) -> None:
        """Until it says READY."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        said = os.read(self._process.stdout.fileno(), 100) if readable else b""
        assert said == b"READY\n", f"the daemon said {said!r}:\n{self.log()}"
        self.is_ready()

    def is_ready(self) -> None:
        """It has said so, in whatever way: what it has open now is what it has open at rest."""
        self.call("Status")  # It has looked at the devices by the time that it has answered this, or is about to.
        self._baseline = self.descriptors()

    def log(self) -> str:
        """All that it has said by now: what followed it, on the bus say, may have come by a quicker way."""
        with self._news:
            self._take()
            return "\n".join(self._lines)

    def wait_log(self, pattern: str, *, count: int = 1, timeout_s: float = BOUND_S) -> str:
        """Until so many lines of its output match; the last of them."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                found = [line for line in self._lines if compiled.search(line)]
                if len(found) >= count:
                    return found[count - 1]
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._reader.is_alive():
                    text = "\n".join(self._lines[-60:])
                    raise AssertionError(f"{pattern!r} was said {len(found)} times, not {count}:\n{text}")
                self._news.wait(left_s)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_exit(self, timeout_s: float = BOUND_S) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon does not end within {timeout_s} s:\n{self.log()}") from None
        finally:
            if self._process.returncode is not None:
                self._reader.join(BOUND_S)

    def stop(self) -> int:
        """As systemd does; its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def kill9(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait_exit() == -signal.SIGKILL

    def destroy(self) -> None:
        """Whatever state it is in: it is gone, and everything that the test opened for it is closed."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(BOUND_S)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        if self._client is not None:
            self._client.close()
            self._client = None

    def descriptors(self) -> Counter[str]:
        """What it has open, by kind. Sockets and pipes have no names worth comparing."""
        kinds: Counter[str] = Counter()
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                kinds[re.sub(r":\[\d+\]$", "", os.readlink(entry.path))] += 1
        # Modules that are being imported and files that are being read are no matter of a leak's kind; the database is
        # opened by whoever needs it first, and stays open.
        passing = ("/proc", "/sys", "/usr", "/lib", str(TOP), str(self.place.state))
        return Counter({kind: count for kind, count in kinds.items() if not kind.startswith(passing)})

    def memory_kib(self) -> int:
        """What it holds in memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1])

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def is_working(self) -> bool:
        """A thread other than the loop's is busy."""
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(OSError):  # It has ended since it was listed.
                state = Path(f"/proc/{self.pid}/task/{task}/stat").read_bytes().rpartition(b")")[2].split()[0]
                if int(task) != self.pid and state == b"R":
                    return True
        return False

    # Over the bus --------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.place.address)
        return self._client

    def new_client(self) -> None:
        """The bus was another one: connect again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def call(self, method: str, signature: str = "", *values: object) -> Any:
        return self.client.call(method, signature, *values)

    def property(self, name: str) -> Any:
        value = self.client.call("Get", "ss", NAME, name, interface="org.freedesktop.DBus.Properties")
        return value[1]

    def status(self) -> dict[str, Any]:
        return plain(self.call("Status"))

    def model(self, name: str) -> dict[str, Any]:
        """What ListModels says of one model."""
        records = [plain(record) for record in self.call("ListModels")]
        return next(record for record in records if record["Id"] == name)

    def state(self, name: str) -> str:
        return str(self.model(name)["State"])

    def ask_load(self, name: str, **options: tuple[str, object]) -> int:
        if options:
            named = {key.replace("_", "-"): value for key, value in options.items()}
            return int(self.call("LoadWithOptions", "sa{sv}", name, named))
        return int(self.call("Load", "s", name))

    def wait_job(self, job: int, timeout_s: float = BOUND_S) -> Ended:
        found = self.client.wait_signal(lambda s: s.member == "JobRemoved" and s.body[0] == job, timeout_s=timeout_s)
        return Ended(found.body[2], found.body[3])

    def load(self, name: str, timeout_s: float = BOUND_S) -> Ended:
        return self.wait_job(self.ask_load(name), timeout_s)

    def unload(self, name: str = "", *, force: bool = False, timeout_s: float = BOUND_S) -> Ended:
        options = {"force": ("b", True)} if force else {}
        return self.wait_job(int(self.call("UnloadWithOptions", "sa{sv}", name, options)), timeout_s)

    def loaded(self, name: str) -> dict[str, Any]:
        """Load it, and what is written down of its engine."""
        ended = self.load(name)
        assert ended.result == "done", f"{ended}\n{self.log()}"
        return self.place.records()[name]

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[dict[str, Any]]:
        """Loaded, and held within the ``with``: however long that takes, it does not go for being idle."""
        ended = self.wait_job(self.ask_load(name, hold=("b", True)))
        assert ended.result == "done", f"{ended}\n{self.log()}"
        yield self.place.records()[name]
        (cookie,) = (hold["Cookie"][1] for hold in self.status()["Holds"] if hold["Model"][1] == name)
        self.call("Release", "u", cookie)

    def wait_state(self, name: str, *states: str, timeout_s: float = BOUND_S) -> str:
        """Until ListModels shows the model in one of these states, looking again at each announced change of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            position = len(self.client.signals)
            state = self.state(name)
            if state in states:
                return state
            self.client.wait_signal(
                lambda s: s.member == "ModelStateChanged" and s.body[0] == name,
                since=position,
                timeout_s=max(0.0, deadline - time.monotonic()),
            )

    def reload(self, timeout_s: float = BOUND_S) -> None:
        """Raises CallFailed with every problem."""
        self.client.call("Reload", timeout_s=timeout_s)

    # The end of every test -----------------------------------------------------------------------------------------

    def aftermath(self, spare: str = "spare") -> None:
        """Everything is unloaded: then nothing is left, the daemon is as it was when it started, and it still loads."""
        assert self.unload(force=True).result == "done", self.log()
        self._check_settled()
        if spare:
            assert self.load(spare).result == "done", self.log()
            assert self.unload(spare).result == "done", self.log()
            self._check_settled()
        assert self.stop() == 0, self.log()
        self.place.check_empty()
        assert "internal error" not in self.log() and "Traceback" not in self.log(), self.log()

    def _check_settled(self) -> None:
        self.place.check_empty()
        settle(
            lambda: self.descriptors() <= self._baseline,
            f"descriptors: {self._baseline} at the start",
            lambda: f"now {self.descriptors()}",
        )
        settle(lambda: self.threads() <= 1 + POOL_THREADS, "threads", lambda: str(self.threads()))

    def check_after_failure(self) -> None:
        """What must hold while models are still loaded or failed."""
        settle(lambda: self.threads() <= 1 + POOL_THREADS, "threads", lambda: str(self.threads()))


def settle(condition: Callable[[], bool], what: str, now: Callable[[], str] = lambda: "") -> None:
    """For what nobody announces: the end of other programs' descriptors and of processes that are no children."""
    deadline = time.monotonic() + SETTLE_S
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what} {now()}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """True when the process has ended: it is not there, or waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


class Seen(NamedTuple):
    pid: int
    parent: int
    command: str


def command_of(pid: int) -> str:
    """Nothing of a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def wait_gone(pid: int) -> None:
    settle(lambda: gone(pid), f"process {pid} is gone")


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their types."""
    return {key: value[1] for key, value in record.items()}


# Engines -----------------------------------------------------------------------------------------------------------


def engine(*switches: str, size: str = "10MiB", **settings: object) -> dict[str, object]:
    """A custom engine that is tests/backends/fake_http.py with these switches, on a private Unix socket."""
    return {
        "engine": "custom",
        "command": [PYTHON, "-E", "-s", str(ENGINE), "--host", "${socket}", *switches],
        "health": "/health",
        "size": size,
        **settings,
    }


def on_gpu(place: Place, gpus: FakeGpus, name: str, size_gib: float = 1.0, **settings: object) -> dict[str, object]:
    """A custom engine that holds so much of the GPU while it lives, and is known to."""
    mark = f"{place.root.name}-{name}."
    gpus.rule(mark, int(size_gib * GIB))
    return engine("--say", mark, size=f"{int(size_gib * 1024)}MiB", **settings)


def script(text: str, *, size: str = "10MiB", **settings: object) -> dict[str, object]:
    """A custom engine that is a shell script."""
    command = ["/bin/sh", "-c", f"{text}\n: ${{socket}}"]
    return {"engine": "custom", "command": command, "health": "/health", "size": size, **settings}


def embedded(path: Path, **settings: object) -> dict[str, object]:
    """The real engine that gpud brings."""
    return {"engine": "embedded", "file": str(path), "context": 256, "threads": 1, **settings}


def provisioned(name: str) -> Path:
    """Where a real engine is, which is made the first time."""
    made = subprocess.run([TOP / "tests" / "provision", name], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


def llama_server() -> dict[str, object]:
    """llama.cpp's own server, for the section ``engines``."""
    return {"llama_server": {"binary": str(provisioned("llama-server") / "site" / "bin" / "llama-server")}}


def tiny(path: Path, *, broken: str = "") -> Path:
    """A model file that it loads in milliseconds, or a broken one."""
    command = [PYTHON, str(TOP / "tests" / "tiny_model.py"), str(path), *(["--broken", broken] if broken else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


class Stream:
    """A request to an engine by its own socket, past the daemon, whose answer is read as it comes."""

    def __init__(self, record: Mapping[str, Any], method: str, path: str, body: object = None) -> None:
        endpoint = record["endpoint"]
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOUND_S)
        self._socket.connect(endpoint["socket"])
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: engine\r\nAuthorization: Bearer {endpoint['key']}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)

    def read(self) -> bytes:
        """The next bytes; empty at the end."""
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""

    def rest(self) -> bytes:
        parts = []
        while data := self.read():
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def gpus_of(place: Place, *sizes_bytes: int) -> Iterator[FakeGpus]:
    """What the place's daemons find of GPUs; they end before these do."""
    with FakeGpus(place.root / "gpus", *sizes_bytes) as made:
        place.environment |= made.environment()
        yield made
        for daemon in place.daemons:
            daemon.destroy()


@contextlib.contextmanager
def place_at(address: str) -> Iterator[Place]:
    place = Place(address)
    try:
        yield place
    finally:
        place.close()
