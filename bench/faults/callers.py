"""Clients that leave, crawl, lie and crowd, over HTTP and on the bus."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from daemon.harness import CallFailed, Client, plain

from bench.faults.clients import CHAT, GONE, gpudctl
from bench.faults.fault import Cuts, Over, Scene, fault, message
from bench.faults.models import TALKERS


@fault()
def client_leaves_stream(scene: Scene) -> Over:
    """A client closes its connection in the middle of a stream, with or without a farewell."""
    with scene.system.doors.front.raw() as client:
        client.sendall(message(scene.model, stream=True, do="stream", events=500, every=0.02))
        with contextlib.suppress(*GONE):
            client.recv(1024)
        if scene.chance.random() < 0.5:
            _abort(client)
    return scene.answers


def _abort(client: socket.socket) -> None:
    """What closes it now is a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@fault()
def client_leaves_before_its_answer(scene: Scene) -> Over:
    """A client closes its connection while its engine thinks, or while it waits for the model."""
    for _ in range(3):
        with scene.system.doors.front.raw() as client:
            client.sendall(message(scene.chance.choice(TALKERS), stream=scene.chance.random() < 0.5, do="hang"))
            time.sleep(scene.chance.uniform(0.0, 0.1))
    return scene.answers


@fault()
def client_sends_half_a_request(scene: Scene) -> Over:
    """Clients leave in the middle of a header and of a body."""
    whole = message(scene.model, pad="x" * 5000)
    for _ in range(5):
        with scene.system.doors.front.raw() as client:
            client.sendall(whole[: scene.chance.randrange(1, len(whole))])
            if scene.chance.random() < 0.3:
                _abort(client)
    return scene.answers


@fault()
def client_reads_slowly(scene: Scene) -> Over:
    """A client takes 20 MB as slowly as it can, and leaves: memory stays flat, nobody else waits."""
    before_kib = scene.system.daemon.memory_kib()
    with scene.system.doors.front.raw() as client:
        client.sendall(message(scene.model, stream=True, do="pour", mb=20))
        for _ in range(5):
            client.recv(1000)
            time.sleep(0.05)
        scene.answers(next(name for name in TALKERS if name != scene.model))
        grown_kib = scene.system.daemon.memory_kib() - before_kib
    if grown_kib > 16 << 10:
        raise AssertionError(f"a slow reader cost {grown_kib} KiB")
    return scene.answers


@fault()
def clients_read_at_different_speeds(scene: Scene) -> Over:
    """Eight clients take 10 MB each, some as fast as it comes, some slowly, some not at all: memory stays flat."""
    before_kib = scene.system.daemon.memory_kib()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(scene.system.doors.front.raw(1.0)) for _ in range(8)]
        for client in clients:
            client.sendall(message(scene.model, stream=True, do="pour", mb=10))
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            for number, client in enumerate(clients[2:]):
                with contextlib.suppress(OSError):
                    client.setblocking(False)
                    client.recv(1 << (8 + 2 * number))
        grown_kib = scene.system.daemon.memory_kib() - before_kib
    if grown_kib > 24 << 10:
        raise AssertionError(f"eight readers, some of them slow, cost {grown_kib} KiB")
    return scene.answers


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\0" * 4096,
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /v1/models HTTP/1.1\r\n" + b"X-Long: " + b"a" * 70000 + b"\r\n\r\n",
    b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"A" * 100_000,
)


@fault()
def garbage_over_http(scene: Scene) -> Over:
    """TLS, nothing but zeros, both lengths, endless headers: each is refused, on all doors."""
    doors = scene.system.doors
    for data in GARBAGE:
        door = scene.chance.choice((doors.front, doors.management, doors.ollama))
        with door.raw(5) as client, contextlib.suppress(*GONE):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    for body in (
        b"[" * 20000,
        b'{"model": 3}',
        b"\xff\xfe",
        b'{"model": "' + scene.model.encode() + b'", "messages": ',
    ):
        told = scene.system.doors.front.ask(CHAT, body)
        if told.status < 400 or not told.error["message"]:
            raise AssertionError(f"{body[:30]!r} was answered with {told.status} {told.body[:200]!r}")
    return scene.answers


@fault()
def idle_connections(scene: Scene) -> Over:
    """Two hundred connections that say nothing, and leave."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(scene.system.doors.front.raw())
        scene.answers()
    return scene.answers


@fault()
def garbage_on_the_bus(scene: Scene) -> Over:
    """Nonsense on the bus's own socket, and calls of gpud that are none: wrong members, types, names and sizes."""
    path = scene.system.bus.address.removeprefix("unix:path=")
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as raw, contextlib.suppress(OSError):
            raw.connect(path)
            raw.sendall(b"\0AUTH EXTERNAL 30\r\n" + scene.chance.randbytes(200))
    with scene.client() as client:
        for method, signature, values in (
            ("NoSuchMethod", "", ()),
            ("Load", "u", (1,)),
            ("Load", "s", ("x" * 10000,)),
            ("Load", "s", ("no\nsuch\x1bmodel",)),
            ("LoadWithOptions", "sa{sv}", (scene.model, {"bananas": ("s", "x")})),
            ("Hold", "sss", (scene.model, "x" * 1000, "")),
            ("Release", "u", (4711,)),
            ("CancelJob", "u", (4711,)),
            ("Claim", "tssa{sv}", (0, "nobody", "", {})),
        ):
            _refused(client, method, signature, *values)
    return scene.answers


def _refused(client: Client, method: str, signature: str, *values: object) -> None:
    try:
        client.call(method, signature, *values)
    except CallFailed as refused:
        if not refused.text:
            raise AssertionError(f"{method} was refused without a word: {refused}") from None
    else:
        raise AssertionError(f"{method}{values!r} was not refused")


@fault()
def bus_flooded(scene: Scene) -> Over:
    """A caller sends thousands of calls and takes no answer; others are served meanwhile."""
    silent = Client(scene.system.bus.address)
    try:
        silent.socket.settimeout(0.1)
        with contextlib.suppress(OSError):
            for _ in range(3000):
                silent.send("Status")
        scene.answers()
        with scene.client() as client:
            client.call("Status")
    finally:
        silent.close()
    return scene.answers


@fault()
def queue_full(scene: Scene) -> Over:
    """Sixty clients want all models at the same time: more than may wait. Each is served, or told so."""
    told: list[int] = []
    statuses = {200, 503, 504}  # 503 also where somebody's unload called a load off.

    def ask(model: str) -> None:
        with contextlib.suppress(*GONE):
            told.append(scene.ask(model).status)

    threads = [threading.Thread(target=ask, args=(scene.chance.choice(TALKERS),)) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(told) != len(threads) or not set(told) <= statuses:
        raise AssertionError(f"{len(threads)} clients were answered {sorted(told)}")
    return scene.answers


HOLDER = """
import sys
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
connection = open_dbus_connection(sys.argv[1])
address = DBusAddress("/org/kernelcore/GpuD", "org.kernelcore.GpuD", "org.kernelcore.GpuD")
reply = connection.send_and_get_reply(new_method_call(address, "Hold", "sss", (sys.argv[2], "bench", "bench")))
print(reply.body[0], flush=True)
connection.receive(timeout=60)
"""


@fault()
def owner_of_a_hold_killed(scene: Scene) -> Over:
    """kill -9 of the program that holds a model: the hold ends with it."""
    scene.answers()
    command = [sys.executable, "-c", HOLDER, scene.system.bus.address, scene.model]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    scene.end(holder)

    def over() -> None:
        scene.until(lambda: not any(_holds(scene)), "the hold has ended")
        scene.answers()

    return over


def _holds(scene: Scene) -> list[str]:
    """Those of the fault; clients of the load hold for a moment, too, under another name."""
    return [
        str(hold) for hold in map(plain, scene.system.daemon.property("Holds")) if hold.get("ApplicationId") == "bench"
    ]


@fault()
def claimant_killed(scene: Scene) -> Over:
    """kill -9 of ``gpudctl run --vram`` and of what it runs: the memory is given back."""
    command = ("run", "--vram", "1GiB", "--wait", "20s", "--", "/bin/sh", "-c", "echo here; exec sleep 60")
    claimant = gpudctl(scene.system, *command)
    assert claimant.stdout is not None
    here = claimant.stdout.readline()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(claimant.pid, signal.SIGKILL)
    _, errors = claimant.communicate()
    if here != "here\n" and "wait" not in errors and "memory" not in errors:
        raise AssertionError(f"a claim was not granted: {errors}")

    def over() -> None:
        scene.until(lambda: not scene.system.daemon.property("Claims"), "the claim has ended")
        scene.answers()

    return over


@fault()
def command_killed(scene: Scene) -> Over:
    """kill -9 of a ``gpudctl load`` that waits: the model is loaded all the same."""
    process = gpudctl(scene.system, "load", scene.model)
    time.sleep(scene.chance.uniform(0.1, 0.6))
    scene.end(process)
    return scene.answers


@fault(Cuts.NOBODY, "gpu_yielded")
def gpus_given_away(scene: Scene) -> Over:
    """``Yield`` in the middle of everything, and ``Resume``."""
    with scene.client() as client:
        client.call("Yield", "ts", 0, "a long game")
        time.sleep(0.3)
        client.call("Resume")
    return scene.answers


@fault()
def too_large_a_model(scene: Scene) -> Over:
    """A model that can never fit: refused with the numbers, nobody goes for it."""
    told = scene.ask("huge")
    if told.status != 507 or told.error["type"] != "insufficient_vram" or told.error["need_bytes"] != 40 << 30:
        raise AssertionError(f"a model of 40 GiB was answered with {told.status}: {told.body[:300]!r}")
    return scene.answers


@fault()
def upload_broken_off(scene: Scene) -> Over:
    """A body of 30 MB that stops in the middle."""
    with scene.system.doors.front.raw() as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n{")
        with contextlib.suppress(*GONE):
            client.sendall(b" " * 10_000_000)
    return scene.answers


INHIBITOR = """
import sys
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
connection = open_dbus_connection(sys.argv[1], enable_fds=True)
address = DBusAddress("/org/kernelcore/GpuD", "org.kernelcore.GpuD", "org.kernelcore.GpuD")
reply = connection.send_and_get_reply(new_method_call(address, "Inhibit", "sss", (sys.argv[2], "bench", "bench")))
print(len(reply.body), flush=True)
sys.stdin.read()
"""


@fault(Cuts.NOBODY, "gpu_yielded", "insufficient_vram")
def inhibitor_killed(scene: Scene) -> Over:
    """kill -9 of the program that keeps models loaded, or that has the GPUs as a game has: that ends with it."""
    what = scene.chance.choice(("unload:evict", "game", "load"))
    command = [sys.executable, "-c", INHIBITOR, scene.system.bus.address, what]
    inhibitor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert inhibitor.stdout is not None
    said = inhibitor.stdout.readline()
    time.sleep(0.3)
    scene.end(inhibitor)
    if said != "1\n":
        raise AssertionError(f"Inhibit {what} was answered {said!r}")

    def over() -> None:
        scene.until(lambda: not scene.system.daemon.property("Yielded"), "the GPUs are not given away any more")
        scene.answers()

    return over


@fault(Cuts.NOBODY, "limits_exceeded")
def many_loads_at_once(scene: Scene) -> Over:
    """A hundred loads by one caller, who leaves at once: they end, one way or the other."""
    with scene.client() as client:
        for _ in range(100):
            client.send("Load", "s", scene.chance.choice(TALKERS))
        client.call("Status")

    def over() -> None:
        scene.answers()
        scene.until(lambda: len(scene.system.doors.management.ask("/jobs").value) < 40, "the jobs end")

    return over
