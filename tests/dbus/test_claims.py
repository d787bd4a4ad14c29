"""Memory for programs that are no engines: a claim waits, is granted, and lasts as long as its descriptor."""

import asyncio
import contextlib
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest
from jeepney import DBusAddress, MessageFlag, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

from gpud.core.errors import BudgetExceeded, GpuTaken, QueueFull, WaitedTooLong, Yielded
from gpud.core.facts import Priority
from gpud.core.record import replace
from gpud.dbus.limits import CallerLimits

from .fake_engine import GIB, FakeEngine
from .peers import NAME, PATH, Polkit, busctl, peer, serving
from .private_bus import NOBODY, PrivateBus
from .test_holds import ObservedEngine

STANDARD = "org.freedesktop.DBus.Error."
OWN = f"{NAME}.Error."
ARGUMENTS = (GIB, "trainer", "fine-tuning", {})


@contextlib.contextmanager
def claimed(address: str, *arguments: Any) -> Iterator[tuple[int, int, Any]]:
    """A blocking client that takes descriptors: the claim's number, its descriptor, and the connection."""
    bus = open_dbus_connection(address, enable_fds=True)
    try:
        call = new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", arguments or ARGUMENTS)
        reply = bus.send_and_get_reply(call, timeout=50)
        assert reply.header.message_type is MessageType.method_return, reply.body
        number, descriptor = reply.body
        yield number, descriptor.to_raw_fd(), bus
    finally:
        bus.close()


@contextlib.asynccontextmanager
async def holding(address: str, *arguments: Any) -> Any:
    """The same beside a running loop."""
    made = claimed(address, *arguments)
    got = await asyncio.to_thread(made.__enter__)
    try:
        yield got
    finally:
        made.__exit__(None, None, None)


def test_a_claim_reaches_the_engine_in_its_units(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Bytes, texts, and the options; the caller is who the bus says it is."""

    async def scenario() -> None:
        engine = ObservedEngine()
        options = {"gpu": ("s", "1"), "priority": ("s", "high"), "wait-usec": ("t", 600_000_000)}
        async with serving(private_bus.address, engine, library=library):
            async with holding(private_bus.address, 8 * GIB, "trainer", "night run", options) as (number, fd, bus):
                ((_, *asked),) = engine.asked("claim")
                caller = asked.pop(1)
                assert asked == [8 * GIB, "trainer", "night run", "1", Priority.HIGH, 600.0]
                assert (caller.owner, caller.uid, caller.pid) == (bus.unique_name, 0, os.getpid())
                assert list(engine.claims) == [number]
                os.close(fd)
                await engine.until(lambda: not engine.claims)
            assert engine.asked("drop_claim") == [("drop_claim", number, "its descriptor is closed")]

    run(scenario())


def test_without_options_the_configured_time_and_any_gpu_count(run: Any, private_bus: PrivateBus) -> None:
    """What is not given stays as configured."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine), holding(private_bus.address) as (_, fd, _):
            assert engine.asked("claim")[0][5:] == ("", Priority.NORMAL, None)
            os.close(fd)
            await engine.until(lambda: not engine.claims)

    run(scenario())


def test_a_claim_lasts_as_long_as_a_copy_of_its_descriptor(run: Any, private_bus: PrivateBus, library: str) -> None:
    """It outlives the caller's connection, and ends when the last copy is closed."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine, library=library) as service:
            async with holding(private_bus.address) as (_, fd, _):
                assert service.watched == 0, "the descriptor alone counts"
                copy = os.dup(fd)
                os.close(fd)
            async with peer(private_bus.address) as witness:
                assert len(await witness.get("Claims")) == 1, "a copy is still open, the caller has left"
            os.close(copy)
            await engine.until(lambda: not engine.claims)

    run(scenario())


def test_the_reply_comes_when_it_is_granted(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Meanwhile it is in Claims, not granted, with the reason; other calls are answered."""

    async def scenario() -> None:
        engine = ObservedEngine()
        engine.grant_at_once = False
        async with (
            serving(private_bus.address, engine, library=library) as service,
            peer(private_bus.address) as witness,
        ):
            made = claimed(private_bus.address)
            entering = asyncio.create_task(asyncio.to_thread(made.__enter__))
            await engine.until(lambda: bool(engine.claims))
            (waiting,) = await witness.get("Claims")
            assert (waiting["Granted"], waiting["Device"]) == (("b", False), ("s", ""))
            assert waiting["WaitsFor"] == ("s", "1 of 2 in the queue")
            assert waiting["Who"] == ("s", "trainer") and waiting["Bytes"] == ("t", GIB)
            assert service.watched == 1 and not entering.done()
            engine.grant(next(iter(engine.claims)))
            _, fd, _ = await entering
            (granted,) = await witness.get("Claims")
            assert (granted["Granted"], granted["Device"], granted["WaitsFor"]) == (
                ("b", True),
                ("s", "GPU-1"),
                ("s", ""),
            )
            os.close(fd)
            await engine.until(lambda: not engine.claims)
            made.__exit__(None, None, None)

    run(scenario())


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (QueueFull("too many wait already"), "QueueFull"),
        (WaitedTooLong("its turn did not come within 5 s"), "WaitedTooLong"),
        (BudgetExceeded("needs too much", need_bytes=2, available_bytes=1), "BudgetExceeded"),
        (Yielded("the GPUs are given away"), "Yielded"),
        (GpuTaken("a game holds it"), "GpuTaken"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_refusal_has_a_name_and_leaves_nothing(
    run: Any, private_bus: PrivateBus, error: Any, name: str, at_once: bool
) -> None:
    """Refused at once or after a wait: the same error, no pipe (the test would find it), and nobody is watched."""

    async def scenario() -> None:
        engine = ObservedEngine()
        engine.grant_at_once = False
        engine.fail = error if at_once else None
        async with serving(private_bus.address, engine) as service, peer(private_bus.address) as client:
            call = asyncio.create_task(client.refused("Claim", "tssa{sv}", *ARGUMENTS))
            if not at_once:
                await engine.until(lambda: bool(engine.claims))
                engine.end_claim(next(iter(engine.claims)), error)
            refused = await call
            assert (refused.name, refused.text) == (OWN + name, error.message)
            await service.settle()
            assert service.watched == 0

    run(scenario())


async def waiting_call(engine: ObservedEngine, client: Any) -> None:
    await client.router.send(new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", ARGUMENTS))
    await engine.until(lambda: bool(engine.claims))


def test_a_caller_that_leaves_while_it_waits_no_longer_waits(run: Any, private_bus: PrivateBus, library: str) -> None:
    """Its place in the queue is free at once, and nothing is left of it."""

    async def scenario() -> None:
        engine = ObservedEngine()
        engine.grant_at_once = False
        async with serving(private_bus.address, engine, library=library) as service:
            async with peer(private_bus.address) as client:
                await waiting_call(engine, client)
            await engine.until(lambda: not engine.claims)
            await service.settle()
            assert engine.asked("drop_claim") == [("drop_claim", 1, "nobody waits for it any longer")]
            assert service.watched == 0

    run(scenario())


def test_a_wait_ends_with_the_bus(run: Any, mortal_bus: PrivateBus) -> None:
    """Everybody on it has gone; what was granted stays with its descriptor."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(mortal_bus.address, engine) as service:
            async with holding(mortal_bus.address) as (granted, fd, _):
                engine.grant_at_once = False
                async with peer(mortal_bus.address) as client:
                    await client.router.send(
                        new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", ARGUMENTS)
                    )
                    await engine.until(lambda: len(engine.claims) == 2)
                    mortal_bus.kill()
                    await engine.until(lambda: list(engine.claims) == [granted])
                    await service.settle()
            os.close(fd)
            await engine.until(lambda: not engine.claims)

    run(scenario())


def test_a_claim_of_which_nobody_wants_to_hear_is_given_back(run: Any, private_bus: PrivateBus) -> None:
    """A call without a reply cannot bring a descriptor: the claim ends where it begins."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            call = new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", ARGUMENTS)
            call.header.flags = MessageFlag.no_reply_expected
            await client.router.send(call)
            await engine.until(lambda: bool(engine.asked("drop_claim")))
            assert engine.claims == {}

    run(scenario())


def test_a_claim_from_a_shell_lasts_as_long_as_the_command(run: Any, private_bus: PrivateBus) -> None:
    """busctl gets the number and the descriptor, and its end is the claim's."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine):
            status, shown, _ = await busctl(
                private_bus.address,
                *("call", NAME, PATH, NAME, "Claim", "tssa{sv}", str(GIB), "trainer", "", "1"),
                *("wait-usec", "t", "0"),
            )
            assert (status, shown.split()[:2]) == (0, ["uh", "1"])
            await engine.until(lambda: not engine.claims)

    run(scenario())


def test_a_claim_that_the_engine_ends_closes_our_end(run: Any, private_bus: PrivateBus) -> None:
    """The holder can see it: poll tells of an error on its descriptor."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine), holding(private_bus.address) as (number, fd, _):
            look = select.poll()
            look.register(fd, 0)
            assert look.poll(0) == []
            engine.end_claim(number, reason="gpud is stopping")
            assert look.poll(5000) == [(fd, select.POLLERR)]
            os.close(fd)

    run(scenario())


def test_a_stopping_service_ends_waits_and_claims(run: Any, private_bus: PrivateBus) -> None:
    """Who waits is answered; nothing stays open."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with peer(private_bus.address) as client:
            async with serving(private_bus.address, engine), holding(private_bus.address) as (number, fd, _):
                engine.grant_at_once = False
                call = asyncio.create_task(client.refused("Claim", "tssa{sv}", *ARGUMENTS))
                await engine.until(lambda: len(engine.claims) == 2)
            assert (await call).name == STANDARD + "Failed"
            look = select.poll()
            look.register(fd, 0)
            assert look.poll(5000) == [(fd, select.POLLERR)]
            os.close(fd)
            assert list(engine.claims) == [number], "the engine outlives the bus's edge"

    run(scenario())


@pytest.mark.parametrize(
    ("arguments", "name", "says"),
    [
        ((0, "w", "", {}), STANDARD + "InvalidArgs", "a size of 0 bytes is not from 1 to"),
        (((1 << 62) + 1, "w", "", {}), STANDARD + "InvalidArgs", "is not from 1 to 4611686018427387904"),
        ((1, "", "why", {}), STANDARD + "InvalidArgs", "who is empty; name the program"),
        ((1, "\n \t", "why", {}), STANDARD + "InvalidArgs", "who is empty"),
        ((1, "w" * 129, "", {}), STANDARD + "InvalidArgs", "who has 129 characters, the limit is 128"),
        ((1, "w", "y" * 129, {}), STANDARD + "InvalidArgs", "why has 129 characters"),
        ((1, "w", "", {"gpus": ("s", "0")}), OWN + "InvalidOption", 'allowed are "gpu", "priority", "wait-usec"'),
        ((1, "w", "", {"gpu": ("u", 0)}), OWN + "InvalidOption", 'its type is "s"'),
        ((1, "w", "", {"gpu": ("s", "x" * 129)}), OWN + "InvalidOption", "give an index or a uuid"),
        ((1, "w", "", {"priority": ("s", "urgent")}), OWN + "InvalidOption", "low, normal, high, critical"),
        ((1, "w", "", {"wait-usec": ("t", 1 << 62)}), STANDARD + "InvalidArgs", "wait-usec is"),
    ],
)
def test_a_wish_that_cannot_be_one_is_refused(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, arguments: tuple[Any, ...], name: str, says: str
) -> None:
    """Before anybody is asked, with what would have been right."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            refused = await client.refused("Claim", "tssa{sv}", *arguments)
            assert refused.name == name
            assert says in refused.text
            assert engine.calls == []

    run(scenario())


def test_claims_are_bounded_for_each_user(run: Any, private_bus: PrivateBus) -> None:
    """Those that wait count too; another user is not affected."""
    polkit = Polkit()

    async def scenario() -> None:
        engine = ObservedEngine()
        engine.grant_at_once = False
        async with (
            serving(private_bus.address, engine, limits=CallerLimits(claims=1)),
            polkit.on(private_bus.address),
            peer(private_bus.address) as client,
            peer(private_bus.address, NOBODY) as other,
        ):
            await waiting_call(engine, client)
            refused = await client.refused("Claim", "tssa{sv}", *ARGUMENTS)
            assert refused.name == STANDARD + "LimitsExceeded"
            assert "uid 0 has 1 claim, the limit is 1" in refused.text
            await other.router.send(new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", ARGUMENTS))
            await engine.until(lambda: len(engine.claims) == 2)

    run(scenario())


def test_polkit_is_asked_with_what_the_claim_is(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The action is that of a load, which takes memory as well; the dialog says who wants how much."""
    polkit = Polkit()
    polkit.answer = (False, False)

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            polkit.on(private_bus.address),
            peer(private_bus.address, NOBODY) as client,
        ):
            assert (await client.refused("Claim", "tssa{sv}", *ARGUMENTS)).name == STANDARD + "AccessDenied"
            _, action, details, _, _ = polkit.asked.get_nowait().body
            assert action == f"{NAME}.load"
            assert details == {
                "polkit.message": "Authentication is required to reserve $(size) of GPU memory for $(who)",
                "size": "1024 MiB",
                "who": "trainer",
            }
            assert engine.calls == []

    run(scenario())


def test_a_caller_that_left_while_polkit_was_asked_claims_nothing(run: Any, private_bus: PrivateBus) -> None:
    """However late the answer comes."""
    polkit = Polkit()
    polkit.answer = None

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine) as service, polkit.on(private_bus.address):
            async with peer(private_bus.address, NOBODY) as client:
                await client.router.send(new_method_call(DBusAddress(PATH, NAME, NAME), "Claim", "tssa{sv}", ARGUMENTS))
                question = await asyncio.wait_for(polkit.asked.get(), 50)
            async with peer(private_bus.address) as witness:
                # Its leaving has been told to everybody once the bus answers somebody else.
                await witness.call("Status")
                polkit.answer_to(question, True)
                await asyncio.wait_for(service.settle(), 50)
            assert engine.asked("claim") == []
            assert service.watched == 0

    run(scenario())


def test_use_is_shown_beside_the_claim(run: Any, private_bus: PrivateBus) -> None:
    """UsedBytes is absent until it was measured."""

    async def scenario() -> None:
        engine = ObservedEngine()
        async with serving(private_bus.address, engine), holding(private_bus.address) as (number, fd, _):
            async with peer(private_bus.address) as witness:
                (shown,) = await witness.get("Claims")
                assert "UsedBytes" not in shown
                engine.claims[number] = replace(engine.claims[number], used_bytes=5)
                (shown,) = (await witness.call("Status"))["Claims"][1]
                assert shown["UsedBytes"] == ("t", 5)
            os.close(fd)
            await engine.until(lambda: not engine.claims)

    run(scenario())
