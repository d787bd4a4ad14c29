"""One client does its worst; everybody else notices nothing."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from gpud.dbus.bus import load_library
from gpud.dbus.connection import TURN_MESSAGES
from gpud.dbus.frame import parse_header, sizes
from gpud.dbus.limits import CallerLimits
from gpud.dbus.wire import Kind, Message

from .fake_engine import FakeEngine, status
from .peers import PATH, connected_socket, peer, serving
from .private_bus import PrivateBus
from .test_connection import call, wire, with_field

LIBRARY = load_library()
CALLS = 20_000

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
bus.sock.settimeout(240)
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


class CountingEngine(FakeEngine):
    """An engine that knows how often it was asked for its figures: once for each call that was admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def is_fresh(self) -> bool:
        self.looks += 1
        return super().is_fresh()


async def flood(address: str, count: int) -> tuple[int, int]:
    """Run the flood with a bystander who wants an answer now and then; returns results and errors."""
    argv = [sys.executable, "-c", FLOOD, address, str(count), "Status"]
    work = asyncio.create_task(
        asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=270, check=False)
    )
    async with peer(address) as bystander:
        while not work.done():
            # It waits in the same queue, behind what came before it; it must not be lost.
            assert await bystander.get("State", bound_s=270) == "idle"
            await asyncio.wait((work,), timeout=0.1)
    done = work.result()
    assert done.returncode == 0, done.stderr
    results, errors = done.stdout.split()
    return int(results), int(errors)


def test_twenty_thousand_calls_at_once_disconnect_nobody(
    run: Any, wide_bus: PrivateBus, library: str, engine: FakeEngine
) -> None:
    """Every call is answered; those above the caller's rate with LimitsExceeded. How late a deadline in the middle of
    it is, is told by the bench."""
    limits = CallerLimits(calls_per_s=0.001)

    async def scenario() -> None:
        async with serving(wide_bus.address, engine, library=library, limits=limits) as service:
            own_name = service.unique_name
            assert await flood(wide_bus.address, CALLS) == (limits.burst, CALLS - limits.burst)
            assert service.unique_name == own_name and service.connected, "the connection was lost"

    run(scenario(), timeout_s=300)


@pytest.mark.parametrize("refused", [False, True], ids=["admitted", "refused"])
def test_what_is_due_in_a_flood_is_done_after_two_slices_at_most(run: Any, library: str, refused: bool) -> None:
    """However many calls lie there: between any two turns of the loop one slice of them is dealt with, and a timer that
    falls due while one is has to wait for the next at most."""

    async def scenario() -> None:
        async with wire(library) as it:
            loop = asyncio.get_running_loop()
            it.refuse = refused
            waited = []

            def dealt_with() -> int:
                return len(it.refused) + it.received.qsize()

            def due(before: int) -> None:
                waited.append(dealt_with() - before)
                set_timer()

            def set_timer() -> None:
                """One is always due: the next is set when it has run."""
                nonlocal timer
                timer = loop.call_at(loop.time(), due, dealt_with())

            timer: asyncio.TimerHandle
            set_timer()
            flooding = asyncio.create_task(it.put(b"".join(LIBRARY.encode(call(n)) for n in range(1, 5001))))
            while dealt_with() < 5000:
                before = dealt_with()
                await asyncio.sleep(0)
                assert dealt_with() - before <= TURN_MESSAGES
            timer.cancel()
            await flooding
            assert max(waited) <= 2 * TURN_MESSAGES
            assert sum(1 for count in waited if count) >= 5000 / (2 * TURN_MESSAGES)

    run(scenario())


@pytest.mark.parametrize("stock", [False, True], ids=["wide", "stock"])
def test_large_answers_to_a_flood_disconnect_nobody(
    run: Any, wide_bus: PrivateBus, private_bus: PrivateBus, library: str, stock: bool
) -> None:
    """A hundred calls with answers of some KiB used to be enough to fill the buffer and disconnect a service; dbus-
    daemon's own limit of 128 open calls does not prevent it. And the loop is given back after each slice of them."""
    engine = CountingEngine()
    engine.models = {f"model-{number}": status(f"model-{number}") for number in range(10)}
    address = (private_bus if stock else wide_bus).address

    async def look_at_each_turn(most: list[int]) -> None:
        while True:
            before = engine.looks
            await asyncio.sleep(0)
            most.append(engine.looks - before)

    async def scenario() -> None:
        in_one_turn: list[int] = []
        async with serving(address, engine, library=library, limits=ENDLESS) as service:
            own_name = service.unique_name
            looking = asyncio.create_task(look_at_each_turn(in_one_turn))
            results, errors = await flood(address, 1500)
            looking.cancel()
            assert results + errors == 1500 and results >= 100
            assert errors == 0 or stock
            assert service.unique_name == own_name and service.connected
            assert engine.looks >= results and max(in_one_turn) <= TURN_MESSAGES

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
            async with asyncio.timeout(50):
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
