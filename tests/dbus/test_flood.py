"""One client does its worst; everybody else notices nothing."""

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from gpud.dbus.bus import load_library
from gpud.dbus.frame import parse_header, sizes
from gpud.dbus.limits import CallerLimits
from gpud.dbus.wire import Kind, Message

from .fake_engine import FakeEngine, status
from .peers import PATH, connected_socket, peer, serving
from .private_bus import PrivateBus
from .test_connection import with_field

LIBRARY = load_library()
CALLS = 20_000
LATE_S = 0.3

# Another process with another library: it writes all its calls as fast as the socket takes them and counts the answers.
FLOOD = """
import struct, sys, threading
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

count = int(sys.argv[2])
bus = open_dbus_connection(sys.argv[1])
where = DBusAddress("/org/kernelcore/GpuD", "org.kernelcore.GpuD", "org.kernelcore.GpuD")
calls = b"".join(new_method_call(where, sys.argv[3]).serialise(serial) for serial in range(1000, 1000 + count))
threading.Thread(target=bus.sock.sendall, args=(calls,)).start()
bus.sock.settimeout(60)
counts = {1: 0, 2: 0, 3: 0, 4: 0}
data = bytearray()
while counts[2] + counts[3] < count:
    piece = bus.sock.recv(1 << 20)
    if not piece:
        sys.exit("disconnected by the bus")
    data += piece
    at = 0
    while len(data) - at >= 16:
        body, fields = struct.unpack_from("<I4xI", data, at + 4)
        size = 16 + fields + (-fields & 7) + body
        if len(data) - at < size:
            break
        counts[data[at + 1]] += 1
        at += size
    del data[:at]
print(counts[2], counts[3])
"""

ENDLESS = CallerLimits(calls_per_s=1e9, burst=1_000_000_000)


class Lateness:
    """How long the loop worked at worst before it came back to a timer that was due.

    It is counted in the processor time of the loop's thread: a machine that does other things meanwhile makes every
    timer late, and says nothing about gpud. The loop never sleeps while it has messages, so that nothing is missed.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def measure(self) -> None:
        while True:
            began_s = time.thread_time()
            await asyncio.sleep(0.01)
            self.worst_s = max(self.worst_s, time.thread_time() - began_s)


async def flood(address: str, count: int, lateness: Lateness) -> tuple[int, int]:
    """Run the flood with a bystander who wants an answer now and then; returns results and errors."""
    measuring = asyncio.create_task(lateness.measure())
    argv = [sys.executable, "-c", FLOOD, address, str(count), "Status"]
    work = asyncio.create_task(
        asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=90, check=False)
    )
    async with peer(address) as bystander:
        while not work.done():
            # It waits in the same queue, behind what came before it; it must not be lost.
            assert await bystander.get("State", bound_s=90) == "idle"
            await asyncio.wait((work,), timeout=0.1)
    measuring.cancel()
    done = work.result()
    assert done.returncode == 0, done.stderr
    results, errors = done.stdout.split()
    return int(results), int(errors)


def test_twenty_thousand_calls_at_once_disconnect_nobody_and_delay_no_timer(
    run: Any, wide_bus: PrivateBus, library: str, engine: FakeEngine
) -> None:
    """Every call is answered; those above the caller's rate with LimitsExceeded."""
    limits = CallerLimits(calls_per_s=0.001)

    async def scenario() -> None:
        lateness = Lateness()
        async with serving(wide_bus.address, engine, library=library, limits=limits) as service:
            own_name = service.unique_name
            assert await flood(wide_bus.address, CALLS, lateness) == (limits.burst, CALLS - limits.burst)
            assert service.unique_name == own_name and service.connected, "the connection was lost"
            assert lateness.worst_s < LATE_S

    run(scenario(), timeout_s=120)


@pytest.mark.parametrize("stock", [False, True], ids=["wide", "stock"])
def test_large_answers_to_a_flood_disconnect_nobody(
    run: Any, wide_bus: PrivateBus, private_bus: PrivateBus, library: str, engine: FakeEngine, stock: bool
) -> None:
    """A hundred calls with answers of some KiB used to be enough to fill the buffer and disconnect a service; dbus-
    daemon's own limit of 128 open calls does not prevent it."""
    engine.models = {f"model-{number}": status(f"model-{number}") for number in range(10)}
    address = (private_bus if stock else wide_bus).address

    async def scenario() -> None:
        lateness = Lateness()
        async with serving(address, engine, library=library, limits=ENDLESS) as service:
            own_name = service.unique_name
            results, errors = await flood(address, 1500, lateness)
            assert results + errors == 1500 and results >= 100
            assert errors == 0 or stock
            assert service.unique_name == own_name and service.connected
            assert lateness.worst_s < LATE_S

    run(scenario(), timeout_s=120)


def test_a_caller_that_never_reads_costs_bounded_memory(run: Any, wide_bus: PrivateBus) -> None:
    """Its answers go to the bus, which bounds them; ours do not pile up, and others are answered."""
    engine = FakeEngine()
    engine.models = {f"model-{number}": status(f"model-{number}") for number in range(10)}

    async def scenario() -> None:
        async with serving(wide_bus.address, engine, limits=ENDLESS) as service:
            deaf = connected_socket(wide_bus.address)
            deaf.sendall(LIBRARY.encode(_hello()))
            deaf.setblocking(False)
            calls = b"".join(
                LIBRARY.encode(
                    Message(
                        Kind.CALL,
                        serial=number,
                        destination="org.kernelcore.GpuD",
                        path=PATH,
                        interface="org.kernelcore.GpuD",
                        member="Status",
                    )
                )
                for number in range(2, 502)
            )
            await asyncio.get_running_loop().sock_sendall(deaf, calls)
            async with peer(wide_bus.address) as other:
                for _ in range(20):
                    await other.call("Status")
                    assert service.unsent_bytes < 5 << 20
            deaf.close()
            async with peer(wide_bus.address) as other:
                assert await other.get("State") == "idle"

    run(scenario())


def _hello() -> Message:
    return Message(
        Kind.CALL,
        serial=1,
        destination="org.freedesktop.DBus",
        path="/org/freedesktop/DBus",
        interface="org.freedesktop.DBus",
        member="Hello",
    )


def test_memory_does_not_grow_with_senders(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """A program that connects again and again for each call leaves nothing behind in the daemon."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine) as service:
            for _ in range(50):
                async with peer(private_bus.address) as client:
                    await client.call("Load", "s", "tiny")
                    engine.jobs.clear()
            assert service.watched == 0
            assert service.unanswered == 0

    run(scenario())


def test_a_message_of_the_future_passes_a_real_bus_and_is_answered(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Whether the bus hands a header field on that nobody knows or strips it: the call is a call."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library) as service:
            sock = connected_socket(private_bus.address)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            ping = Message(
                Kind.CALL,
                serial=77,
                destination="org.kernelcore.GpuD",
                path=PATH,
                interface="org.freedesktop.DBus.Peer",
                member="Ping",
            )
            strange = with_field(LIBRARY.encode(ping), b"\xc8\x01s\0\x02\0\0\0hi\0")
            await loop.sock_sendall(sock, LIBRARY.encode(_hello()) + strange)
            data = b""
            async with asyncio.timeout(10):
                while not any(message.reply_serial == 77 for message in messages(data)):
                    data += await loop.sock_recv(sock, 65536)
            sock.close()
            assert service.connected

    run(scenario())


def messages(data: bytes) -> list[Message]:
    """The headers of the whole messages in these bytes."""
    found = []
    while len(data) >= 16 and len(data) >= sum(sizes(data)[1:]):
        found.append(parse_header(data)[0])
        data = data[sum(sizes(data)[1:]) :]
    return found
