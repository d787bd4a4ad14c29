"""``.venv/bin/python -m bench.models [--models N...] [--repeats N]``: what very many models cost a daemon, and who
lists them.

Starts the real daemon on a bus of its own with an empty folder, puts so many model files there, and prints one line for
each figure: what, the median and the spread, and the bar. Lists are timed from the call to the last byte of the answer,
by a client that does not look into it; beside each stands what the same number of bytes take from a program that has
them ready, over the same kind of socket, and over the same bus.

``again``: nothing has changed since somebody asked before. ``after a change``: a model was given another tag or another
state meanwhile, and the answer has to be made anew.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from bench.gguf import report, text

TOP = Path(__file__).resolve().parent.parent
NAME, PATH = "org.kernelcore.GpuD", "/org/kernelcore/GpuD"
PLAIN_NAME = "org.kernelcore.GpuD.Plain"

LIST_BAR_MS, LISTED_BAR_S, MEMORY_BAR_MIB = 10.0, 1.0, 5.0
BOUND_S = 300.0

SCANS = 5
"""So many more, which find nothing new: a daemon scans whenever something may have changed that it cannot watch."""

BUS = """<busconfig><type>session</type><listen>unix:path={}</listen><policy context="default">
<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
<limit name="max_message_size">134217728</limit><limit name="max_incoming_bytes">268435456</limit>
<limit name="max_outgoing_bytes">268435456</limit></busconfig>"""


def write(path: Path, number: int) -> None:
    """One model: with as many tensors as a real one has, and hardly a vocabulary. Its weights are a hole."""
    tensors, tensor_bytes = 291, 4096 * 64
    values = [
        (("general.architecture", 8), text("llama")),
        (("general.name", 8), text(f"model {number:05}")),
        (("general.size_label", 8), text("8B")),
        (("llama.context_length", 4), struct.pack("<I", 32768)),
        (("llama.embedding_length", 4), struct.pack("<I", 4096)),
        (("llama.block_count", 4), struct.pack("<I", 32)),
        (("llama.attention.head_count", 4), struct.pack("<I", 32)),
        (("llama.feed_forward_length", 4), struct.pack("<I", 11008)),
        (("tokenizer.chat_template", 8), text("{% if tools %}" + "x" * 1000)),
        (("general.file_type", 4), struct.pack("<I", 15)),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values))
    head += b"".join(text(key) + struct.pack("<I", kind) + content for (key, kind), content in values)
    head += b"".join(
        text(f"blk.{index}.ffn_down.weight") + struct.pack("<IQQIQ", 2, 4096, 64, 0, 4 * tensor_bytes * index)
        for index in range(tensors)
    )
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 32 + 4 * tensor_bytes * tensors + 32 * number)
    os.utime(path, (1_700_000_000 + number, 1_700_000_000))


# The daemon ----------------------------------------------------------------------------------------------------------


class Daemon:
    """The real one, as a user's, with everything in a folder of its own."""

    def __init__(self, top: Path) -> None:
        self.top, self.folder = top, top / "models"
        self.folder.mkdir()
        (top / "run").mkdir(mode=0o700)
        self.address = f"unix:path={top}/bus"
        (top / "bus.conf").write_text(BUS.format(top / "bus"))
        self._bus = subprocess.Popen(
            ["dbus-daemon", f"--config-file={top}/bus.conf", "--nofork", "--print-address=1"], stdout=subprocess.PIPE
        )
        assert self._bus.stdout is not None and self._bus.stdout.readline()
        self.port, management, ollama = (_free_port() for _ in range(3))
        self.ports = {"front": self.port, "management": management, "ollama": ollama}
        doors = ", ".join(f"{name}: {{port: {port}}}" for name, port in self.ports.items())
        config = top / "gpud.yaml"
        config.write_text(
            f"registry: {{paths: [{self.folder}], huggingface: [], ollama: []}}\nhttp: {{{doors}}}\nmodels: {{}}\n"
        )
        self._log = (top / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpud", "--user", "--config", str(config)],
            cwd=TOP,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(TOP),
                "HOME": str(top),
                "XDG_RUNTIME_DIR": str(top / "run"),
                "XDG_STATE_HOME": str(top / "state"),
                "DBUS_SESSION_BUS_ADDRESS": self.address,
            },
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"READY\n", (top / "log").read_text()
        self.bus = open_dbus_connection(self.address)
        self.bus.send_and_get_reply(message_bus.AddMatch(MatchRule(type="signal", interface=NAME)), timeout=BOUND_S)

    def close(self) -> None:
        self.bus.close()
        for process in (self.process, self._bus):
            process.send_signal(signal.SIGTERM)
            process.wait(BOUND_S)
            assert process.stdout is not None
            process.stdout.close()
        self._log.close()

    def call(self, method: str, signature: str = "", *values: object) -> Any:
        message = new_method_call(DBusAddress(PATH, NAME, NAME), method, signature or None, values)
        reply = self.bus.send_and_get_reply(message, timeout=BOUND_S)
        assert reply.header.message_type is MessageType.method_return, reply.body
        return reply.body

    def memory_bytes(self) -> int:
        """What it alone holds, and nobody could take back from it."""
        found = re.search(
            r"^Private_Dirty: +(\d+) kB", Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(), re.M
        )
        assert found is not None
        return int(found[1]) * 1024

    def processor_s(self) -> float:
        """The time of the processor that it and those of its children took that have ended, since it began."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def until_told(self, name: str) -> None:
        """Until a signal says that the model is new."""
        rule = MatchRule(type="signal", interface=NAME, member="CatalogChanged")
        with self.bus.filter(rule) as heard:
            while name not in self.bus.recv_until_filtered(heard, timeout=BOUND_S).body[0]:
                pass

    def until_sized(self) -> None:
        """Until it has calculated what each model would need: then it rests."""
        path = next((self.top / "state").rglob("registry.db"))
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            while database.execute("SELECT count(*) FROM model WHERE estimate_bytes IS NULL").fetchone()[0]:
                time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Clients that do not look into what they get -------------------------------------------------------------------------


class Http:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=BOUND_S)

    def ask(self, path: str) -> int:
        """How many bytes the answer's body has."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = self._socket.recv(65536)
            assert more, "the door closed the connection"
            head += more
        head, _, body = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head[:200]
        size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        left = size - len(body)
        while left:
            left -= len(self._socket.recv(min(left, 1 << 20)))
        return size

    def close(self) -> None:
        self._socket.close()


class Bus:
    """One connection to the bus."""

    def __init__(self, address: str) -> None:
        self._connection = open_dbus_connection(address)
        self._serial = 1000

    def ask(self, name: str, method: str, signature: str = "", *values: object) -> int:
        """How many bytes the answer has."""
        self._serial += 1
        message = new_method_call(DBusAddress(PATH, name, NAME), method, signature or None, values)
        sock = self._connection.sock
        sock.settimeout(BOUND_S)
        sock.sendall(message.serialise(serial=self._serial))
        while True:
            head = b""
            while len(head) < 16:
                head += sock.recv(16 - len(head))
            body, _, fields = struct.unpack_from("<III", head, 4)
            left = fields + (-fields & 7) + body
            while left:
                left -= len(sock.recv(min(left, 1 << 20)))
            # The bus itself tells a new connection what it is called.
            if head[1] != MessageType.signal.value:
                assert head[1] == MessageType.method_return.value, "an error came"
                return int(body)

    def close(self) -> None:
        self._connection.close()


# Programs that have the bytes ready ----------------------------------------------------------------------------------


def _plain_http(listener: socket.socket, size: int) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + b"x" * size
    connection, _ = listener.accept()
    while connection.recv(65536):
        connection.sendall(answer)


def _plain_bus(address: str, size: int, ready: Any) -> None:
    connection: DBusConnection = open_dbus_connection(address)
    connection.send_and_get_reply(message_bus.RequestName(PLAIN_NAME), timeout=BOUND_S)
    ready.set()
    content = b"x" * max(0, size - 4)
    while True:
        asked = connection.receive()
        if asked.header.message_type is MessageType.method_call:
            assert HeaderFields.sender in asked.header.fields
            connection.send(new_method_return(asked, "ay", (content,)))


@contextlib.contextmanager
def plain_http(size: int) -> Iterator[Callable[[], object]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = multiprocessing.Process(target=_plain_http, args=(listener, size), daemon=True)
        server.start()
        client = Http(listener.getsockname()[1])
        yield lambda: client.ask("/")
        client.close()
        server.join(BOUND_S)


@contextlib.contextmanager
def plain_bus(address: str, size: int) -> Iterator[Callable[[], object]]:
    ready = multiprocessing.Event()
    server = multiprocessing.Process(target=_plain_bus, args=(address, size, ready), daemon=True)
    server.start()
    assert ready.wait(BOUND_S)
    client = Bus(address)
    yield lambda: client.ask(PLAIN_NAME, "Any")
    client.close()
    server.kill()
    server.join()


# Measuring -----------------------------------------------------------------------------------------------------------


def timed(ask: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Milliseconds."""
    taken = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        ask()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def lists(daemon: Daemon, count: int, repeats: int) -> list[float]:
    """The medians of lists that nothing has changed since."""
    bus = Bus(daemon.address)
    tags = iter(range(1_000_000))

    def change() -> None:
        daemon.call("Annotate", "sa{sv}", "model-0", {"tags": ("as", [f"t{next(tags)}"])})

    medians = []
    asked: list[tuple[str, Callable[[], int], str]] = [
        ("ListModels", lambda: bus.ask(NAME, "ListModels"), "bus"),
        ("ListCatalog", lambda: bus.ask(NAME, "ListCatalog", "as", []), "bus"),
    ]
    clients: dict[str, Http] = {}

    def http(door: str, path: str) -> int:
        if door not in clients:
            clients[door] = Http(daemon.ports[door])
        return clients[door].ask(path)

    for door, path in (
        ("front", "/v1/models"),
        ("management", "/models?limit=1000"),
        ("ollama", "/api/tags"),
    ):
        asked.append((path, lambda door=door, path=path: http(door, path), "http"))  # type: ignore[misc]
    for name, ask, kind in asked:
        size = ask()
        plain = plain_bus(daemon.address, size) if kind == "bus" else plain_http(size)
        with plain as floor:
            floor()
            least = timed(floor, repeats)
        again = timed(ask, repeats)
        anew = timed(ask, repeats, change)
        what = f"{count:,} models: {name}, {size / 1e6:.1f} MB"
        report(f"{what}, again", again, "ms", f"{LIST_BAR_MS:g} ms", 1)
        report(f"{what}, after a change", anew, "ms", "", 1)
        report(f"{what}, the bytes alone", least, "ms", "", 1)
        print(f"{'':<4}ratio {statistics.median(again) / statistics.median(least):.1f} x", flush=True)
        medians.append(statistics.median(again))
    bus.close()
    for client in clients.values():
        client.close()
    return medians


def scanned(daemon: Daemon, count: int) -> tuple[float, float]:
    """Seconds of a scan, and of the processor, the process that looks included."""
    began, worked = time.perf_counter(), daemon.processor_s()
    ((_, models),) = (daemon.call("Scan")[0]["Models"],)
    assert models == count, models
    return time.perf_counter() - began, daemon.processor_s() - worked


def found(daemon: Daemon, top: Path, count: int) -> tuple[int, float]:
    """So many models come at once, and are scanned again and again. Bytes of memory before, and the MiB that stay."""
    # What comes with the first of everything is no matter of their number.
    write(daemon.folder / "model-0.gguf", 0)
    daemon.call("Scan")
    daemon.until_sized()
    before = daemon.memory_bytes()
    others = top / "others"
    others.mkdir()
    for number in range(1, count):
        path = others / f"publisher-{number // 50}" / f"model-{number}.gguf"
        path.parent.mkdir(exist_ok=True)
        write(path, number)
    others.rename(daemon.folder / "others")
    scan_s, scan_processor_s = scanned(daemon, count)
    after_scan = daemon.memory_bytes()
    daemon.until_sized()
    again = [scanned(daemon, count) for _ in range(SCANS)]
    added = (daemon.memory_bytes() - before) / 2**20
    what, bar = f"{count:,} models", f"{MEMORY_BAR_MIB:g} MiB"
    print(f"{what}: memory before {before / 2**20:.1f} MiB", flush=True)
    report(f"{what}: the first scan", [scan_s], "s", "", 2)
    report(f"{what}: the first scan, processor", [scan_processor_s], "s", "", 2)
    report(f"{what}: a scan, nothing new", [wall for wall, _ in again], "s", "", 2)
    report(f"{what}: a scan, nothing new, processor", [processor for _, processor in again], "s", "", 2)
    report(f"{what}: memory added by the scan", [(after_scan - before) / 2**20], "MiB", bar, 1)
    report(f"{what}: memory added, all sized and scanned {1 + SCANS} times", [added], "MiB", bar, 1)
    return before, added


def told(daemon: Daemon, top: Path, count: int) -> float:
    """Seconds from ``cp`` of one more model to its being told, the median."""
    listed = []
    source = top / "new.gguf"
    write(source, 999_999)
    for number in range(5):
        heard = threading.Thread(target=daemon.until_told, args=(f"new-{number}",))
        heard.start()
        began = time.perf_counter()
        subprocess.run(["cp", "--sparse=always", str(source), str(daemon.folder / f"new-{number}.gguf")], check=True)
        # Each is another model: none is told the same as one that is there already.
        heard.join(BOUND_S)
        listed.append(time.perf_counter() - began)
        write(source, 999_998 - number)
    report(f"{count:,} models: from cp to told", listed, "s", f"{LISTED_BAR_S:g} s", 2)
    return statistics.median(listed)


def measure(top: Path, count: int, repeats: int) -> bool:
    """Whether all of it is within its bars."""
    daemon = Daemon(top)
    try:
        before, added = found(daemon, top, count)
        medians = lists(daemon, count, repeats)
        kept = (daemon.memory_bytes() - before) / 2**20
        report(f"{count:,} models: memory added, with lists kept", [kept], "MiB", "", 1)
        listed = told(daemon, top, count)
        return added <= MEMORY_BAR_MIB and max(medians) <= LIST_BAR_MS and listed <= LISTED_BAR_S
    finally:
        daemon.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m bench.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    within = []
    for count in options.models:
        top = Path(tempfile.mkdtemp(prefix="gpud-b-"))
        try:
            within.append(measure(top, count, options.repeats))
        finally:
            shutil.rmtree(top)
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
