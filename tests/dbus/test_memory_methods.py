"""The queue, giving the GPUs away, and what was or would be decided, as the bus shows them."""

import time
from typing import Any

import pytest

from gpud.core.admission import Considered
from gpud.core.events import Alert, Kind, Level, Logged, Notice
from gpud.core.facts import Caller, ClaimStatus, Priority, QueueStatus, State, YieldStatus
from gpud.core.quote import ANY_GPU, Offer, Part, Quote, Share, Source
from gpud.core.record import replace
from gpud.dbus.render import logged_record, model_record, property_values
from gpud.dbus.wall_clock import WallClock

from .fake_engine import GIB, FakeEngine, gpu, status
from .peers import NAME, PATH, busctl, peer, serving
from .private_bus import NOBODY, PrivateBus
from .test_signals import Told, changed

STANDARD = "org.freedesktop.DBus.Error."
OWN = f"{NAME}.Error."
CALLER = Caller(":1.7", 1000, 42, "uid 1000 (python, pid 42)")


def queued(position: int = 1, model: str = "big", **changes: Any) -> QueueStatus:
    values = {
        "claim": 0,
        "need_bytes": 5 * GIB,
        "priority": Priority.NORMAL,
        "callers": ("uid 1000",),
        "requests": 2,
        "since_s": 990.0,
        "until_s": 1290.0,
        "overdue": False,
        "waits_for": '"tiny" is busy',
        "load_s": 4.5,
    }
    return QueueStatus(position, model, **(values | changes))


def values_of(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value[1] for key, value in record.items()}


# The queue ------------------------------------------------------------------------------------------------------------


def test_the_queue_is_shown_in_its_order(run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str) -> None:
    """ListQueue, the property and Status have the same records; times are on the wall clock."""
    engine.queue = (queued(), queued(2, "", claim=7, need_bytes=None, until_s=None, load_s=None, overdue=True))

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            shown = await client.call("ListQueue")
            first, second = map(values_of, shown)
            assert first["SinceUSec"] / 1e6 == pytest.approx(time.time() - 10, abs=5)
            assert first["UntilUSec"] - first["SinceUSec"] == 300_000_000
            assert {
                key: value for key, value in first.items() if not key.endswith("ilUSec") and key != "SinceUSec"
            } == {
                "Position": 1,
                "Model": "big",
                "Claim": 0,
                "NeedBytes": 5 * GIB,
                "Priority": "normal",
                "Callers": ["uid 1000"],
                "Requests": 2,
                "Overdue": False,
                "WaitsFor": '"tiny" is busy',
                "LoadUSec": 4_500_000,
            }
            assert (second["Claim"], second["NeedBytes"], second["UntilUSec"], second["Overdue"]) == (7, 0, 0, True)
            assert await client.get("Queue") == shown
            assert (await client.call("Status"))["Queue"][1] == shown

    run(scenario())


def test_changes_of_the_queue_are_told_at_most_once_a_second() -> None:
    """A queue under load changes with every request; whoever watches it is not flooded."""
    engine = FakeEngine()
    told = Told(engine)
    engine.queue = (queued(),)
    engine.touch("tiny")
    assert [set(one) for one in told.after(0)] == [{"Queue"}]
    for number in range(100):
        engine.queue = (queued(requests=number),)
        engine.touch("tiny")
    assert told.after(0.9) == []
    (last,) = told.after(0.1)
    assert last["Queue"][0]["Requests"].value == 99
    assert told.after(60.0) == []


def test_a_claim_is_told_at_once_and_its_use_once_a_second() -> None:
    """Who appears, is granted or goes matters; what is measured waits."""
    engine = FakeEngine()
    told = Told(engine)
    claim = ClaimStatus(1, CALLER, "trainer", "night run", GIB, 1000.0)

    def show(**changes: Any) -> None:
        engine.claims = {1: replace(claim, **changes)}
        engine.touch("tiny")

    show()
    assert [set(one) for one in told.after(0)] == [{"Claims"}]
    for number in range(5):
        show(used_bytes=number)
    assert told.after(0.5) == []
    engine.grant(1)
    (granted,) = told.after(0)
    assert granted["Claims"][0]["Granted"].value is True
    show(device="GPU-1", used_bytes=99)
    (measured,) = told.after(1.0)
    assert measured["Claims"][0]["UsedBytes"].value == 99


# Giving away ----------------------------------------------------------------------------------------------------------


def test_the_gpus_are_given_away_and_taken_back(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Yielded says since when, until when, why and by whom; the state says that it is not mere idleness."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            assert await client.get("Yielded") == {}
            await client.call("Yield", "ts", 7_200_000_000, "a game\n")
            told = await changed(signals)
            assert told["State"] == "yielded"
            yielded = values_of(told["Yielded"])
            assert yielded["UntilUSec"] - yielded["SinceUSec"] == 7_200_000_000
            assert (yielded["Why"], yielded["Uid"]) == ("a game", 0)
            assert yielded["Caller"].startswith("uid 0 (")
            await client.call("Resume")
            assert await changed(signals) == {"Yielded": {}, "State": "idle"}
            await client.call("Yield", "ts", 0, "")
            assert (await client.get("Yielded"))["UntilUSec"] == ("t", 0)
            assert engine.calls == [("yield", 0, "a game", 7200.0), ("resume", 0), ("yield", 0, "", None)]
            assert (await client.refused("Yield", "ts", 1 << 62, "")).name == STANDARD + "InvalidArgs"
            assert (await client.refused("Yield", "ts", 0, "x" * 129)).name == STANDARD + "InvalidArgs"

    run(scenario())


def test_a_loading_model_is_more_than_a_given_away_gpu() -> None:
    """What still happens is what the state says: the last models go, or one runs in the machine's own memory."""
    engine = FakeEngine()
    engine.yielded = YieldStatus(CALLER, "", 1.0, None)
    for state, word in (("idle", "yielded"), ("active", "active"), ("unloading", "unloading")):
        engine.state = state
        assert property_values(engine.snapshot(), WallClock(), "1")["State"].value == word
    engine.yielded, engine.state = None, "idle"
    assert property_values(engine.snapshot(), WallClock(), "1")["State"].value == "idle"
    engine.inhibit(frozenset({"load"}), CALLER, who="a game", why="")
    assert property_values(engine.snapshot(), WallClock(), "1")["State"].value == "yielded"


def test_loading_can_be_inhibited_for_as_long_as_a_descriptor_is_open(
    run: Any, private_bus: PrivateBus, engine: FakeEngine
) -> None:
    """From a shell: busctl closes it at its end."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine):
            done = await busctl(private_bus.address, "call", NAME, PATH, NAME, "Inhibit", "sss", "load", "game", "")
            assert done[0] == 0
            assert engine.asked("inhibit")[0][1] == {"load"}

    run(scenario())


# Explanations ---------------------------------------------------------------------------------------------------------


def test_what_was_decided_is_shown_with_its_numbers(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """Everybody may ask; the limit is the caller's, 20 without one, and never above 500."""
    fields: dict[str, Any] = {"NEED": 5 * GIB, "BELOW": -3, "SHARE": 0.5, "WHO": "big", "HUGE": 1 << 70}
    notice = Notice(Kind.EVICTED, 'unloaded "big"', "big", Level.WARNING, fields, ("one", "two"))
    engine.records = (Logged(1_700_000_000_000_001, notice, 3),)

    async def scenario() -> None:
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address, NOBODY) as client:
            (shown,) = await client.call("Explain", "su", "big", 3)
            assert values_of(shown) == {
                "AtUSec": 1_700_000_000_000_001,
                "Kind": "evicted",
                "Level": "warning",
                "Model": "big",
                "Message": 'unloaded "big"',
                "Detail": ["one", "two"],
                "Fields": {
                    "NEED": ("t", 5 * GIB),
                    "BELOW": ("x", -3),
                    "SHARE": ("d", 0.5),
                    "WHO": ("s", "big"),
                    "HUGE": ("s", str(1 << 70)),
                },
            }
            await client.call("Explain", "su", "", 0)
            await client.call("Explain", "su", "", 4_000_000_000)
            assert [call[1:] for call in engine.calls] == [("big", 3), ("", 20), ("", 500)]
            assert (await client.refused("Explain", "su", "a\nb", 1)).name == STANDARD + "InvalidArgs"

    run(scenario())


def test_nothing_in_a_record_can_make_it_unsendable() -> None:
    """A number of any size, a truth, an empty record."""
    record = logged_record(Logged(0, Notice(Kind.IDLE, "", fields={"YES": True, "MANY": 1 << 64, "LESS": -(1 << 64)})))
    assert {key: value.signature for key, value in record["Fields"].value.items()} == {
        "YES": "b",
        "MANY": "s",
        "LESS": "s",
    }


def test_asking_what_would_happen_does_nothing(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The answer is the scheduler's, for a program and for a person."""
    engine.answer = Considered("evicts", "GPU-1", ("big", "old"), 'unloads "big" and "old"')

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address, NOBODY) as client:
            assert values_of(await client.call("Consider", "ta{sv}", GIB, {"gpu": ("s", "0")})) == {
                "Verdict": "evicts",
                "Device": "GPU-1",
                "Victims": ["big", "old"],
                "Message": 'unloads "big" and "old"',
            }
            assert engine.calls == [("consider", GIB, "0")]
            assert (await client.refused("Consider", "ta{sv}", 0, {})).name == STANDARD + "InvalidArgs"
            wrong = await client.refused("Consider", "ta{sv}", 1, {"model": ("s", "big")})
            assert wrong.name == OWN + "InvalidOption"

    run(scenario())


def test_a_quote_has_every_way_to_load_a_model(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """The best first, and at the top what the best one needs."""
    parts = (Part("CUDA0", 0, 3 * GIB, GIB, 5, 0), Part("Host", None, 7))
    best = Offer((Share(ANY_GPU, 4 * GIB), Share("host", GIB)), Source.PROBE, parts=parts)
    less = Offer((Share("host", 2 * GIB),), Source.FORMULA, context=2048, layers=0, reduced="context 2048")
    engine.quotes["tiny"] = Quote((best,), 3.5, (less,))

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address, NOBODY) as client:
            shown = values_of(await client.call("Quote", "sa{sv}", "tiny", {}))
            (first,), (second,) = (map(values_of, shown.pop(key)) for key in ("Offers", "Less"))
            assert shown == {
                "NeedBytes": 4 * GIB,
                "HostBytes": GIB,
                "Source": "probe",
                "LoadUSec": 3_500_000,
            }
            assert (first["KvBytes"], first["Shares"], "Context" in first) == (
                GIB + 5,
                {"": 4 * GIB, "host": GIB},
                False,
            )
            assert (second["NeedBytes"], second["HostBytes"], second["Context"], second["Layers"]) == (
                2 * GIB,
                0,
                2048,
                0,
            )
            options = {"context-size": ("u", 4096), "layers": ("u", 0)}
            assert (await client.refused("Quote", "sa{sv}", "big", options)).name == OWN + "NoSuchModel"
            assert engine.calls == [("quote", "tiny", None, None), ("quote", "big", 4096, 0)]
            assert (await client.refused("Quote", "sa{sv}", "", {})).name == STANDARD + "InvalidArgs"

    run(scenario())


# Devices and models ---------------------------------------------------------------------------------------------------


def test_a_full_device_is_told_once_as_a_signal(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """With the percentage, the limit, and a sentence; and once more when it is over."""

    async def scenario() -> None:
        async with (
            serving(private_bus.address, engine),
            peer(private_bus.address) as client,
            client.signals() as signals,
        ):
            for raised, used in ((True, 22 * GIB), (False, 12 * GIB)):
                engine.tell(Alert("GPU-1", 0, "Test GPU", raised, used, 24 * GIB, 90.0, f"raised: {raised}"))
                percent = round(100 * used / (24 * GIB))
                assert await signals.next("VramAlert") == (
                    "VramAlert",
                    ("GPU-1", "Test GPU", raised, percent, 90, f"raised: {raised}"),
                )

    run(scenario())


def test_new_keys_of_models_and_gpus(run: Any, private_bus: PrivateBus, engine: FakeEngine) -> None:
    """Under the documented names and types; whose a process is, is said and not left to guessing."""
    engine.gpus = (replace(gpu(), reserve_bytes=GIB, alert=True, own_pids=frozenset({4711})),)
    engine.models["big"] = status(
        "big",
        State.READY,
        shares=(("GPU-1", 3), ("GPU-2", 4), ("host", 5)),
        waits_for="nothing",
        reduced="context 2048 of 4096",
        source="probe",
        kv_bytes=9,
        idle_timeout_s=1.5,
    )

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            shown = (await client.call("ListModels"))[1]
            assert {
                key: shown[key]
                for key in ("Devices", "Shares", "WaitsFor", "Reduced", "NeedSource", "KvBytes", "IdleTimeoutUSec")
            } == {
                "Devices": ("as", ["GPU-1", "GPU-2", "host"]),
                "Shares": ("a{st}", {"GPU-1": 3, "GPU-2": 4, "host": 5}),
                "WaitsFor": ("s", "nothing"),
                "Reduced": ("s", "context 2048 of 4096"),
                "NeedSource": ("s", "probe"),
                "KvBytes": ("t", 9),
                "IdleTimeoutUSec": ("t", 1_500_000),
            }
            (device,) = await client.call("ListGpus")
            assert (device["Reserve"], device["Alert"], device["Driver"]) == (("t", GIB), ("b", True), ("s", ""))
            assert [one["Own"][1] for one in device["Processes"][1]] == [True, False]

    run(scenario())


def test_what_a_model_waits_for_is_told_when_a_second_has_passed() -> None:
    """It has numbers in it that move with every look at the devices."""
    engine = FakeEngine()
    told = Told(engine)
    engine.touch("tiny", waiting=True, waits_for="needs 5.0 GiB, 1.0 GiB are free")
    assert told.after(0)
    engine.touch("tiny", waits_for="needs 5.0 GiB, 1.1 GiB are free")
    assert told.after(0.5) == []
    (models,) = told.after(0.5)
    assert model_record(engine.snapshot().models[0], WallClock())["WaitsFor"] == models["Models"][0]["WaitsFor"]
