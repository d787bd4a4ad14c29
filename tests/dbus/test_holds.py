"""Holds end with their holder, whatever ends it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

from gpud.core.errors import GpudError
from gpud.dbus.limits import CallerLimits

from .fake_engine import FakeEngine
from .peers import NAME, PATH, Polkit, busctl, peer, serving
from .private_bus import NOBODY, PrivateBus

STANDARD = "org.freedesktop.DBus.Error."
OWN = f"{NAME}.Error."


class ObservedEngine(FakeEngine):
    """Lets a test wait for the holds to change."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def tell(self, *outcomes: Any) -> None:
        super().tell(*outcomes)
        self.changed.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(50):
            while not predicate():
                self.changed.clear()
                await self.changed.wait()


def test_a_hold_ends_when_its_holder_leaves_the_bus(run: Any, private_bus: PrivateBus, library: str) -> None:
    """No Release is needed: the connection is the promise."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine, library=library) as service:
            async with peer(private_bus.address) as client:
                cookie = await client.call("Hold", "sss", "tiny", "chat", "org.example.Chat")
                assert 0 < cookie < 1 << 32
                held = engine.holds[cookie]
                assert (held.model, held.reason, held.application) == ("tiny", "chat", "org.example.Chat")
                assert held.caller.owner == client.name
                assert service.watched == 1
            await engine.until(lambda: not engine.holds)
            assert engine.asked("release_owner") == [("release_owner", held.caller.owner)]
            assert service.watched == 0

    run(scenario())


def test_a_killed_holder_holds_nothing(run: Any, private_bus: PrivateBus) -> None:
    """kill -9 of the holder is the same as leaving."""
    program = (
        "import sys\n"
        "from jeepney import DBusAddress, new_method_call\n"
        "from jeepney.io.blocking import open_dbus_connection\n"
        "bus = open_dbus_connection(sys.argv[1])\n"
        f"where = DBusAddress('{PATH}', '{NAME}', '{NAME}')\n"
        "bus.send_and_get_reply(new_method_call(where, 'Hold', 'sss', ('tiny', 'why', 'app')))\n"
        "sys.stdin.read()\n"
    )

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine):
            holder = subprocess.Popen([sys.executable, "-c", program, private_bus.address], stdin=subprocess.PIPE)
            try:
                await engine.until(lambda: bool(engine.holds))
                os.kill(holder.pid, signal.SIGKILL)
                await engine.until(lambda: not engine.holds)
            finally:
                holder.kill()
                holder.communicate()

    run(scenario())


def test_only_the_holder_can_release(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Another connection, even root's, gets NoSuchHold; the holder needs no permission."""
    polkit = Polkit()

    async def scenario() -> None:
        engine = ObservedEngine()
        async with (
            serving(private_bus.address, engine, library=library) as service,
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as holder,
            peer(private_bus.address) as other,
        ):
            cookie = await holder.call("Hold", "sss", "tiny", "why", "app")
            polkit.answer = (False, False)
            assert (await other.refused("Release", "u", cookie)).name == OWN + "NoSuchHold"
            assert list(engine.holds) == [cookie]
            await holder.call("Release", "u", cookie)
            assert engine.holds == {}
            assert (await holder.refused("Release", "u", cookie)).name == OWN + "NoSuchHold"
            assert service.watched == 0, "who holds nothing is not watched"

    run(scenario())


def test_a_holder_that_left_while_polkit_was_asked_holds_nothing(run: Any, private_bus: PrivateBus) -> None:
    """However late the answer comes, no hold is made for a name that is gone."""
    polkit = Polkit()
    polkit.answer = None

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine) as service, polkit.on(private_bus.address):
            async with peer(private_bus.address, NOBODY) as client:
                await client.router.send(
                    new_method_call(DBusAddress(PATH, NAME, NAME), "Hold", "sss", ("tiny", "why", "app"))
                )
                question = await asyncio.wait_for(polkit.asked.get(), 50)
            async with peer(private_bus.address) as witness:
                # Its leaving has been told to everybody once the bus answers somebody else.
                await witness.call("Status")
                polkit.answer_to(question, True)
                await asyncio.wait_for(service.settle(), 50)
            assert engine.asked("hold") == []
            assert service.watched == 0

    run(scenario())


def test_two_holds_of_one_caller_are_watched_once_and_released_one_by_one(run: Any, private_bus: PrivateBus) -> None:
    """Two at once share a rule on the bus, which stays until the last is released."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine) as service, peer(private_bus.address) as client:
            first, second = await asyncio.gather(
                client.call("Hold", "sss", "tiny", "a", ""), client.call("Hold", "sss", "big", "b", "")
            )
            assert service.watched == 1
            await client.call("Release", "u", first)
            assert service.watched == 1
            await client.call("Release", "u", second)
            assert service.watched == 0

    run(scenario())


def test_holds_are_bounded_and_their_texts_are_made_safe(run: Any, private_bus: PrivateBus) -> None:
    """Too many and too long are refused; what cannot be printed becomes a space."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with (
            serving(private_bus.address, engine, limits=CallerLimits(holds=2)),
            peer(private_bus.address) as client,
        ):
            long = await client.refused("Hold", "sss", "tiny", "x" * 129, "app")
            assert long.name == STANDARD + "InvalidArgs" and "129 characters, the limit is 128" in long.text
            await client.call("Hold", "sss", "tiny", "red \x1b[31m\n", "app")
            assert next(iter(engine.holds.values())).reason == "red  [31m"
            await client.call("LoadWithOptions", "sa{sv}", "tiny", {"hold": ("b", True)})
            for member, signature, arguments in (
                ("Hold", "sss", ("tiny", "", "")),
                ("Inhibit", "sss", ("unload", "", "")),
                ("LoadWithOptions", "sa{sv}", ("tiny", {"hold": ("b", True)})),
            ):
                refused = await client.refused(member, signature, *arguments)
                assert refused.name == STANDARD + "LimitsExceeded"
                assert "2 holds, the limit is 2" in refused.text

    run(scenario())


def test_load_with_hold_holds_as_long_as_the_caller_lives(run: Any, private_bus: PrivateBus) -> None:
    """One call loads and holds; it takes both permissions, and ends with the caller."""
    polkit = Polkit()

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine), polkit.on(private_bus.address):
            async with peer(private_bus.address, NOBODY) as client:
                await client.call("LoadWithOptions", "sa{sv}", "tiny", {"hold": ("b", True)})
                asked = [polkit.asked.get_nowait().body[1] for _ in range(2)]
                assert asked == [f"{NAME}.load", f"{NAME}.hold"]
                assert len(engine.holds) == 1
            await engine.until(lambda: not engine.holds)

    run(scenario())


def test_sessions_are_refused_with_a_reason_and_their_release_does_nothing(
    run: Any, private_bus: PrivateBus, engine: FakeEngine
) -> None:
    """HoldSession: Error.NoSession; ReleaseSession from a closing shell must never fail."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            assert (await client.refused("HoldSession", "ss", "tiny", "shell")).name == OWN + "NoSession"
            assert await client.call("ReleaseSession") is None
            done = await busctl(
                private_bus.address,
                "--auto-start=no",
                "--expect-reply=no",
                "--quiet",
                *("call", NAME, PATH, NAME, "ReleaseSession"),
            )
            assert done == (0, "", "")
            assert engine.calls == []

    run(scenario())


def inhibit(address: str, what: str = "unload:evict") -> tuple[Any, int]:
    """A blocking client that takes descriptors: the connection, and the descriptor that it got."""
    bus = open_dbus_connection(address, enable_fds=True)
    where = DBusAddress(PATH, NAME, NAME)
    reply = bus.send_and_get_reply(new_method_call(where, "Inhibit", "sss", (what, "backup", "copying")), timeout=50)
    return bus, reply.body[0].to_raw_fd()


def test_an_inhibition_lasts_as_long_as_a_copy_of_its_descriptor(
    run: Any, private_bus: PrivateBus, library: str
) -> None:
    """It outlives the caller's connection, and ends when the last copy is closed."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine, library=library):
            bus, fd = await asyncio.to_thread(inhibit, private_bus.address)
            copy = os.dup(fd)
            with contextlib.closing(bus):
                held = next(iter(engine.holds.values()))
                assert (held.model, held.what) == ("", {"unload", "evict"})
                assert (held.application, held.reason) == ("backup", "copying")
                os.close(fd)
            async with peer(private_bus.address) as witness:
                assert len(await witness.get("Holds")) == 1, "a copy is still open"
            os.close(copy)
            await engine.until(lambda: not engine.holds)

    run(scenario())


def test_writing_to_an_inhibition_ends_it(run: Any, private_bus: PrivateBus) -> None:
    """A holder that writes cannot keep the daemon busy with reading."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine):
            bus, fd = await asyncio.to_thread(inhibit, private_bus.address, "evict")
            os.write(fd, b"x")
            await engine.until(lambda: not engine.holds)
            os.close(fd)
            bus.close()

    run(scenario())


def test_an_inhibition_that_the_engine_ends_closes_our_end(run: Any, private_bus: PrivateBus) -> None:
    """The holder can see it: its pipe has no reader any more."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine):
            bus, fd = await asyncio.to_thread(inhibit, private_bus.address)
            engine.drop_hold(next(iter(engine.holds)), "suspend")
            try:
                os.write(fd, b"x")
                raise AssertionError("somebody still reads")
            except BrokenPipeError:
                pass
            os.close(fd)
            bus.close()

    run(scenario())


def test_an_inhibition_that_the_engine_refuses_leaves_no_pipe(run: Any, private_bus: PrivateBus) -> None:
    """Descriptors are not lost on the way out (the test would find them)."""

    class Refusing(ObservedEngine):
        def inhibit(self, what: frozenset[str], caller: Any, *, who: str, why: str) -> int:
            raise GpudError("no")

    async def scenario() -> None:
        async with serving(private_bus.address, Refusing()), peer(private_bus.address) as client:
            assert (await client.refused("Inhibit", "sss", "unload", "", "")).text == "no"
            wrong = await client.refused("Inhibit", "sss", "sleep", "", "")
            assert wrong.name == STANDARD + "InvalidArgs" and '"unload:evict"' in wrong.text

    run(scenario())
