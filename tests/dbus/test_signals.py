"""What the bus is told, when, and what it is spared."""

import asyncio
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call

from gpud.core.events import Touched
from gpud.core.facts import JobResult, State
from gpud.core.record import replace
from gpud.dbus.announce import Announcer
from gpud.dbus.bus import load_library
from gpud.dbus.interface import load_tree
from gpud.dbus.model_records import MANY
from gpud.dbus.shown import Shown
from gpud.dbus.wall_clock import WallClock
from gpud.dbus.wire import Message
from gpud.engine.shelf import Past

from .fake_engine import GIB, FakeEngine, gpu, status
from .hand_clock import HandClock
from .peers import NAME, PATH, Peer, Signals, peer, serving
from .private_bus import PrivateBus


class Anything:
    """A rule that every message matches."""

    def matches(self, _message: Any) -> bool:
        return True


async def settle(client: Peer, signals: Signals) -> list[str]:
    """Everything that was sent before this call was answered has come: one sender, one order."""
    await client.call("Status")
    return signals.waiting()


async def changed(signals: Signals) -> dict[str, Any]:
    _, (interface, values, invalidated) = await signals.next("PropertiesChanged")
    assert (interface, invalidated) == (NAME, [])
    return {name: value[1] for name, value in values.items()}


def test_a_load_is_told_from_queued_to_busy_in_the_words_of_the_interface(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Each state once, in order, with its reason; the scheduler's own words stay inside."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            engine.touch("tiny", waiting=True)
            assert await signals.next("ModelStateChanged") == ("ModelStateChanged", ("tiny", "queued", "budget"))
            engine.change("tiny", State.LOADING, waiting=False)
            engine.change("tiny", State.READY)
            engine.change("tiny", State.DRAINING, "idle")
            engine.change("tiny", State.STOPPING, "idle")
            engine.change("tiny", State.KILLING, "idle")
            engine.change("tiny", State.COLD, "idle")
            engine.change("tiny", State.LOADING, "request")
            engine.change("tiny", State.BACKOFF, "crash")
            expected = [
                ("loading", "user"),
                ("ready", "user"),
                ("unloading", "idle"),
                ("unloaded", "idle"),
                ("loading", "request"),
                ("failed", "crash"),
            ]
            for state, reason in expected:
                _, told = await signals.next("ModelStateChanged")
                assert told == ("tiny", state, reason)

    run(scenario())


def test_job_removed_comes_after_the_reply_that_named_the_job(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Even a job that is done at once is known to its caller before it ends."""
    engine.end_loads_at_once = True

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            client.signals(),
        ):
            came: asyncio.Queue[Any] = asyncio.Queue()
            with client.router.filter(Anything(), queue=came):
                await client.router.send(new_method_call(DBusAddress(PATH, NAME, NAME), "Load", "s", ("tiny",)))
                reply, signal = [await asyncio.wait_for(came.get(), 50) for _ in range(2)]
            assert reply.header.message_type is MessageType.method_return
            assert signal.header.fields[HeaderFields.member] == "JobRemoved"
            assert signal.body == (reply.body[0], "tiny", "done", "")

    run(scenario())


def test_a_failed_job_says_why(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The result is a word for programs, the message a sentence for people."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            job = await client.call("Load", "s", "tiny")
            engine.end(job, JobResult.FAILED, "the file is not a GGUF")
            assert (await signals.next("JobRemoved"))[1] == (job, "tiny", "failed", "the file is not a GGUF")

    run(scenario())


def test_properties_that_change_in_one_turn_come_in_one_signal_with_their_values(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """State, LoadedModels, ActiveModel and Models together; what did not change is not in it, nor what never tells."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            engine.state = "active"
            engine.gpus = (replace(gpu(), sample=replace(gpu().sample, utilization_percent=99)),)
            engine.change("tiny", State.LOADING)
            engine.change("tiny", State.READY, last_used_s=990.0)
            values = await changed(signals)
            assert set(values) == {"State", "LoadedModels", "ActiveModel", "Models"}
            assert (values["State"], values["LoadedModels"], values["ActiveModel"]) == ("active", ["tiny"], "tiny")
            assert "PropertiesChanged" not in await settle(client, signals)
            assert await client.get("Utilization") == 99

    run(scenario())


def test_very_many_models_are_asked_for_and_not_sent_round(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """The signal says that they have changed; everything else comes with its value, and so do states."""

    async def scenario() -> None:
        engine.models |= {f"m{number}": status(f"m{number}") for number in range(MANY)}
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            engine.change("tiny", State.READY, last_used_s=990.0)
            assert (await signals.next("ModelStateChanged"))[1][:2] == ("tiny", "ready")
            _, (_, values, invalidated) = await signals.next("PropertiesChanged")
            assert (set(values), invalidated) == ({"LoadedModels", "ActiveModel"}, ["Models"])
            assert [one["State"][1] for one in await client.get("Models") if one["Id"][1] == "tiny"] == ["ready"]

    run(scenario())


def test_what_the_registry_knows_is_shown_of_a_model_at_rest(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """What it would need, how often it was used and when; uses since gpud started count with those before."""

    async def scenario() -> None:
        engine.library.needs["tiny"] = 3 * GIB
        engine.library.past["tiny"] = Past(4, 1_700_000_000_000_000)
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:

            async def shown() -> tuple[int, ...]:
                records = {one["Id"][1]: one for one in await client.call("ListModels")}
                keys = ("VramEstimate", "NeedBytes", "Uses", "LastUsedUSec")
                return tuple(records["tiny"][key][1] for key in keys)

            assert await shown() == (3 * GIB, 0, 4, 1_700_000_000_000_000)
            engine.library.needs["tiny"] = 2 * GIB
            engine.library.version += 1
            assert (await shown())[0] == 2 * GIB
            engine.change("tiny", State.READY, last_used_s=990.0, uses=2, need_bytes=GIB)
            estimate, need, uses, last_used = await shown()
            assert (estimate, need, uses) == (GIB, GIB, 6)
            assert last_used > 1_700_000_000_000_000

    run(scenario())


class Told:
    """An announcer on a clock of the test's, and what it sent."""

    def __init__(self, engine: FakeEngine) -> None:
        self.clock = HandClock()
        self._sent: list[Message] = []
        shown = Shown(engine.snapshot, WallClock(self.clock.time), "1", load_library().encode_body)
        self.announcer = Announcer(load_tree(), shown, self._sent.append, self.clock)
        self.announcer.baseline()
        engine.subscribe(self.announcer.listen)

    def after(self, seconds: float) -> list[Any]:
        """What is told when so much time has passed: the changed properties, or a signal's own words."""
        self.clock.advance(seconds)
        sent, self._sent[:] = list(self._sent), []
        return [
            {name: value.value for name, value in message.body[1].items()}
            if message.member == "PropertiesChanged"
            else (message.member, *message.body)
            for message in sent
        ]


def test_vram_is_told_when_it_moved_far_enough_and_once_a_second(engine: FakeEngine) -> None:
    """A small move is silent; a large one comes at once; a second one within the second waits, with the last value."""
    told = Told(engine)
    engine.gpus = (gpu(2 * GIB + (63 << 20)),)
    engine.tell(Touched())
    assert told.after(0) == []
    assert told.clock.waiting == [], "nothing waits for a change that nobody hears of"
    assert told.after(10.0) == []
    engine.gpus = (gpu(2 * GIB + (64 << 20)),)
    engine.tell(Touched())
    assert told.after(0) == [{"VramUsed": 2 * GIB + (64 << 20)}]
    for step in range(1, 6):
        engine.gpus = (gpu((2 + step) * GIB),)
        engine.tell(Touched())
        assert told.after(0.19) == []
    assert told.clock.waiting == [pytest.approx(0.05)]
    assert told.after(0.05) == [{"VramUsed": 7 * GIB}]
    assert told.clock.waiting == []


def test_a_request_more_or_less_is_no_news_but_busy_is(engine: FakeEngine) -> None:
    """A thousand requests through the gateway make no thousand signals: busy, and what is true a second later."""
    engine.models["tiny"] = status("tiny", State.READY)
    told = Told(engine)
    told.clock.advance(1.0)
    engine.touch("tiny", in_flight=1)
    busy = told.after(0)
    assert busy[0] == ("ModelStateChanged", "tiny", "busy", "request")
    assert [set(changed) for changed in busy[1:]] == [{"Models"}]
    for number in range(1000):
        engine.touch("tiny", in_flight=number % 2, last_used_s=1000.0 + number)
    assert told.after(0.9) == []
    engine.touch("tiny", in_flight=0)
    later = told.after(0.1)
    assert later[0][:3] == ("ModelStateChanged", "tiny", "ready")
    assert [set(changed) for changed in later[1:]] == [{"Models"}]
    assert told.after(60.0) == [] and told.clock.waiting == []


def test_hold_released_goes_to_the_holder_alone(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """When somebody else ends the hold; one's own Release is not told."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine, library=library),
            peer(private_bus.address) as holder,
            peer(private_bus.address) as other,
            holder.signals() as heard,
            other.signals() as overheard,
        ):
            cookie = await holder.call("Hold", "sss", "tiny", "why", "app")
            engine.drop_hold(cookie, "suspend")
            assert (await heard.next("HoldReleased"))[1] == (cookie, "suspend")
            again = await holder.call("Hold", "sss", "tiny", "why", "app")
            await holder.call("Release", "u", again)
            assert "HoldReleased" not in await settle(holder, heard)
            assert "HoldReleased" not in await settle(other, overheard)

    run(scenario())


def test_deadlines_are_told_on_the_wall_clock_and_stand_still(engine: FakeEngine) -> None:
    """A deadline that did not move is the same number every time, although no two clocks agree to the microsecond."""
    now = [1_000_000.0]
    engine.models["tiny"] = status("tiny", State.READY, unload_at_s=1300.0, last_used_s=1000.0)
    shown = Shown(engine.snapshot, WallClock(lambda: now[0]), "1", load_library().encode_body)
    for drift_s in (0.0, 0.003, -0.2):
        engine.now_s += 60.0
        now[0] += 60.0 + drift_s
        engine.touch("tiny")
        values = shown.properties()
        (tiny,) = (model for model in values["Models"].value if model["Id"].value == "tiny")
        assert values["NextUnloadUSec"].value == tiny["UnloadAtUSec"].value == 1_000_300_000_000
