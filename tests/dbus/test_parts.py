"""The parts that need no bus: words, clocks, buckets, addresses."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, new_method_call

from gpud.core.errors import AccessDenied, LimitsExceeded
from gpud.core.facts import HOST, Caller, Endpoint, State
from gpud.core.record import replace
from gpud.dbus.address import BusUnavailable, bus_address, socket_addresses
from gpud.dbus.bus import load_library
from gpud.dbus.connection import Connection
from gpud.dbus.limits import MAX_BUCKETS, CallerLimits, Meter
from gpud.dbus.polkit import Authority, Permission
from gpud.dbus.render import gpu_record, model_record, property_values, shown_state
from gpud.dbus.values import number
from gpud.dbus.wall_clock import WallClock

from .fake_engine import GIB, FakeEngine, gpu, status
from .peers import Overheard, Polkit, peer, serving
from .private_bus import NOBODY, PrivateBus

# Words ----------------------------------------------------------------------------------------------------------------


def test_every_state_has_a_documented_word() -> None:
    """Nobody on the bus meets a word that the interface does not list."""
    documented = {"unloaded", "queued", "loading", "ready", "busy", "unloading", "failed"}
    assert {state.word() for state in State} <= documented
    for state in State:
        for waiting in (False, True):
            for in_flight in (0, 1):
                assert shown_state(status("tiny", state, waiting=waiting, in_flight=in_flight)) in documented


@pytest.mark.parametrize(
    ("state", "changes", "word"),
    [
        (State.COLD, {}, "unloaded"),
        (State.COLD, {"waiting": True}, "queued"),
        (State.READY, {}, "ready"),
        (State.READY, {"in_flight": 2}, "busy"),
        (State.DRAINING, {"in_flight": 1}, "unloading"),
        (State.BACKOFF, {"retry_at_s": 5.0}, "failed"),
        (State.LOADING, {"waiting": True}, "loading"),
    ],
)
def test_a_state_is_shown_as(state: State, changes: dict[str, Any], word: str) -> None:
    """Busy and queued are seen from outside as states, though they are none inside."""
    assert shown_state(status("tiny", state, **changes)) == word


def test_numbers_stay_within_their_types() -> None:
    """A figure that an engine made up cannot make the message unsendable."""
    assert number("u", 1 << 40).value == (1 << 32) - 1
    assert number("q", -3).value == 0
    assert number("t", None).value == 0


def test_unknown_figures_have_no_key() -> None:
    """A sleeping GPU shows no 0 % and no 0 degrees."""
    asleep = gpu()
    sample = replace(asleep.sample, asleep=True, used_bytes=None, temperature_c=None, utilization_percent=None)
    record = gpu_record(replace(asleep, sample=sample, foreign_bytes=None))
    assert record["Asleep"].value is True
    assert not {"VramUsed", "Temperature", "Utilization", "VramForeign"} & set(record)


def test_without_a_gpu_the_machines_memory_is_shown() -> None:
    """VramTotal and its like are of the GPUs together, and of the host only where there is none."""
    engine = FakeEngine()
    host = replace(gpu(), sample=replace(gpu().sample, uuid=HOST, total_bytes=64 * GIB))
    clock = WallClock()
    engine.gpus = (gpu(), gpu(), host)
    assert property_values(engine.snapshot(), clock, "1")["VramTotal"].value == 48 * GIB
    engine.gpus = (host,)
    assert property_values(engine.snapshot(), clock, "1")["VramTotal"].value == 64 * GIB


def test_the_key_of_an_engine_is_not_shown() -> None:
    """Of an endpoint only the port goes out."""
    model = status("tiny", endpoint=Endpoint(host="127.0.0.1", port=4711, key="secret"))
    record = model_record(model, WallClock())
    assert record["Port"].value == 4711
    assert "secret" not in str(record)


def test_loaded_models_are_ordered_by_use_and_the_active_one_answers() -> None:
    """ActiveModel is the first that answers a request, else the one used last."""
    engine = FakeEngine()
    engine.models = {
        "old": status("old", State.READY, last_used_s=1.0, in_flight=1),
        "new": status("new", State.READY, last_used_s=2.0),
        "cold": status("cold"),
    }
    values = property_values(engine.snapshot(), WallClock(), "1")
    assert values["LoadedModels"].value == ["new", "old"]
    assert values["ActiveModel"].value == "old"
    engine.models["old"] = status("old", State.READY, last_used_s=1.0)
    assert property_values(engine.snapshot(), WallClock(), "1")["ActiveModel"].value == "new"


def test_the_wall_clock_follows_a_jump_and_ignores_jitter() -> None:
    """Setting the clock moves deadlines; a microsecond between two readings does not."""
    now = [1_000_000.0]
    clock = WallClock(lambda: now[0])
    clock.see(10.0)
    assert clock.usec(20.0) == 1_000_010_000_000
    now[0] += 0.1
    clock.see(10.0)
    assert clock.usec(20.0) == 1_000_010_000_000
    now[0] += 3600.0
    clock.see(10.0)
    assert clock.usec(20.0) == 1_003_610_100_000
    assert clock.usec(None) == 0


# Buckets --------------------------------------------------------------------------------------------------------------


def test_a_bucket_fills_with_time_and_belongs_to_one_sender() -> None:
    """After the burst the rate; another sender is not affected."""
    meter = Meter(CallerLimits(calls_per_s=10.0, burst=3))
    assert [meter.admit(":1.1", 0.0) for _ in range(3)] == [True] * 3
    assert not meter.admit(":1.1", 0.05)
    assert meter.admit(":1.2", 0.05)
    assert meter.admit(":1.1", 0.15)
    assert not meter.admit(":1.1", 0.15)
    assert "the limit is 10 a second after a burst of 3" in meter.refusal.message


def test_buckets_are_bounded() -> None:
    """The one that was longest silent is forgotten."""
    meter = Meter(CallerLimits(calls_per_s=0.001, burst=1))
    for sender in range(MAX_BUCKETS + 1):
        assert meter.admit(f":1.{sender}", 0.0)
    assert meter.admit(":1.0", 0.0)
    assert not meter.admit(f":1.{MAX_BUCKETS}", 0.0)


def test_open_calls_of_one_sender_are_bounded() -> None:
    """Each end makes room for one begin."""
    meter = Meter(CallerLimits(outstanding=2))
    meter.begin(":1.1")
    meter.begin(":1.1")
    with pytest.raises(LimitsExceeded, match="waits for 2 answers already, the limit is 2"):
        meter.begin(":1.1")
    meter.begin(":1.2")
    meter.end(":1.1")
    meter.begin(":1.1")
    assert meter.outstanding == 2
    for sender in (":1.1", ":1.1", ":1.2"):
        meter.end(sender)
    assert meter.outstanding == 0


# Addresses and connecting ---------------------------------------------------------------------------------------------


def test_the_bus_is_found_as_every_program_finds_it() -> None:
    """The variables of the specification, then the well-known places."""
    assert bus_address({}, session=False) == "unix:path=/run/dbus/system_bus_socket"
    assert bus_address({"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/x"}, session=False) == "unix:path=/x"
    assert bus_address({"XDG_RUNTIME_DIR": "/run/user/7"}, session=True) == "unix:path=/run/user/7/bus"
    both = {"XDG_RUNTIME_DIR": "/run/user/7", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/y"}
    assert bus_address(both, session=True) == "unix:path=/y"
    with pytest.raises(BusUnavailable, match="neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"):
        bus_address({}, session=True)


def test_addresses_are_taken_apart() -> None:
    """Several, escaped, abstract; what is not known is passed over while something is left."""
    assert socket_addresses("tcp:host=a,port=1;unix:path=/a%20b,guid=0;unix:abstract=c") == ["/a b", "\0c"]
    with pytest.raises(BusUnavailable, match="only unix:path= and unix:abstract= are known"):
        socket_addresses("tcp:host=a,port=1")


def test_a_bus_that_does_not_speak_is_given_up_without_blocking_the_loop(run: Any, tmp_path: Any) -> None:
    """A stopped bus accepts and says nothing: the loop goes on, and the attempt ends with its bound."""

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{tmp_path}/bus")
            silent.listen()
            address = f"unix:path={tmp_path}/bus"
            attempt = asyncio.create_task(Connection.open(load_library(), address, lambda _message: None, 2.0))
            ticks = 0
            while not attempt.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert ticks > 3
            with pytest.raises(BusUnavailable, match="does not answer within 2 s"):
                await attempt

    run(scenario())


def test_an_unknown_library_is_named() -> None:
    """The message says what was tried."""
    with pytest.raises(ImportError, match=r"cannot load a D-Bus library: no_such_dbus: .*install dbus-next"):
        load_library("no_such_dbus")


# polkit's time-outs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interactive", [False, True])
def test_polkit_that_does_not_answer_means_no_and_its_dialog_is_withdrawn(
    run: Any, private_bus: PrivateBus, interactive: bool
) -> None:
    """Within the bound for calls with or without a dialog; polkit is told that nobody waits any more."""
    polkit = Polkit()
    polkit.answer = None
    bounds = {"timeout_s": 30.0, "interactive_timeout_s": 30.0}
    bounds["interactive_timeout_s" if interactive else "timeout_s"] = 0.1

    async def scenario() -> None:
        bus = await Connection.open(load_library(), private_bus.address, lambda _message: None)
        authority = Authority(lambda: bus, user_mode=False, in_flight=8, **bounds)
        async with polkit.on(private_bus.address):
            caller = Caller(":1.1", NOBODY, 7, "somebody")
            with pytest.raises(AccessDenied, match=r"no answer within 0\.1 s") as refused:
                await authority.check(caller, Permission.LOAD, sender=":1.1", interactive=interactive)
            assert refused.value.hint == "nothing was done; call again"
            question = await asyncio.wait_for(polkit.asked.get(), 50)
            assert await asyncio.wait_for(polkit.withdrawn.get(), 50) == question.body[4]
        bus.close()

    run(scenario())


# Idleness -------------------------------------------------------------------------------------------------------------


def test_an_idle_service_has_no_timer_and_is_not_woken_by_others(
    run: Any, private_bus: PrivateBus, tmp_path: Path
) -> None:
    """Programs come and go on the bus; gpud, which nobody asks anything, sleeps."""

    async def scenario() -> None:
        async with (
            Overheard(private_bus.address, tmp_path).listening() as overheard,
            serving(overheard.address, FakeEngine()),
        ):
            async with peer(private_bus.address) as client:
                await client.call("Load", "s", "tiny")
            async with peer(private_bus.address) as witness:
                # What follows from the end of the first stands before the second answer.
                for _ in range(2):
                    await witness.router.send_and_get_reply(_ping())
            before = len(overheard.messages())
            for _ in range(5):
                async with peer(private_bus.address):
                    pass
            async with peer(private_bus.address) as last:
                await last.router.send(_ping())
                heard = await overheard.until(lambda messages: len(messages) > before)
                assert [message.sender for message in heard[before:]] == [last.name], "nothing but the last one's call"
            scheduled = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            assert [timer for timer in scheduled if "gpud" in repr(timer)] == []

    run(scenario())


def _ping() -> Any:
    return new_method_call(DBusAddress("/", "org.kernelcore.GpuD", "org.freedesktop.DBus.Peer"), "Ping")


def test_importing_the_room_brings_no_heavy_stranger() -> None:
    """Neither the other library nor what only tests and clients need is loaded with the daemon's edge."""
    code = "import gpud.dbus.service, gpud.dbus.bus as b, sys; b.load_library(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "dbus_next.signature" in shown
    assert not {"dbus_next.aio", "dbus_fast", "rich", "jeepney", "psutil", "yaml"} & set(shown)


def test_a_failed_model_tells_when_it_is_tried_again_only_if_it_is() -> None:
    """What waits for nobody's wish has no time."""
    clock = WallClock(lambda: 1000.0)
    clock.see(0.0)
    crashed = status("tiny", State.BACKOFF, retry_at_s=5.0, retries=True)
    assert model_record(crashed, clock)["RetryAtUSec"].value == 1_005_000_000
    assert model_record(replace(crashed, retries=False), clock)["RetryAtUSec"].value == 0
