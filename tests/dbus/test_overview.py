"""Overview: what a widget shows of a machine with very many models."""

from typing import Any

import pytest

from gpud.core.facts import Model, Snapshot, State
from gpud.core.statuses import Patience, Statuses
from gpud.core.stock import Stock
from gpud.dbus.overview import Choice, Chosen, Overview
from gpud.dbus.render import Known
from gpud.dbus.wall_clock import WallClock
from gpud.engine.shelf import Past

from .fake_engine import FakeEngine, status
from .peers import peer, serving
from .private_bus import PrivateBus

MANY = 5000
STOCK = Stock({name: Model(name=name, engine="llama_server") for name in (f"m{number:04}" for number in range(MANY))})
PAST = {"m0007": Known(1, 3, 5_000_000), "m4999": Known(1, 1, 9_000_000)}


class Models:
    """Those of a machine, with what the registry knows; how often it was asked is counted."""

    def __init__(self, **lively: Any) -> None:
        self.clock = WallClock(lambda: 1_000_000.0)
        self.asked = 0
        self.told = 0
        self.overview = Overview(self._tells)
        statuses = {name: status(name, **changes) for name, changes in lively.items()}
        self.snapshot = Snapshot(
            now_s=100.0,
            state="idle",
            degraded="",
            models=Statuses(STOCK, statuses, Patience()),
            gpus=(),
            jobs=(),
            holds=(),
            idle_timeout_s=0.0,
        )
        self.clock.see(self.snapshot.now_s)

    def _tells(self, name: str) -> Known:
        self.asked += 1
        return PAST.get(name, Known(1))

    def choose(self, most: int, search: str = "", *names: str) -> Chosen:
        choice = Choice(most, search, frozenset(names))
        return self.overview.choose(self.snapshot, self.clock, self.told, choice)


def names(chosen: Chosen) -> list[str]:
    return [one.model.name for one in chosen.models]


def test_those_used_last_come_first_then_all_by_their_names() -> None:
    """So many as there is room for, and how many more there are."""
    chosen = Models().choose(4)
    assert (names(chosen), chosen.others) == (["m4999", "m0007", "m0000", "m0001"], MANY - 4)


def test_what_does_not_rest_is_shown_whatever_the_room() -> None:
    """Loaded, loading, waiting and failed; one that rests again since counts as used when it was."""
    models = Models(
        m0100={"state": State.READY},
        m0200={"state": State.LOADING},
        m0300={"waiting": 1},
        m0400={"state": State.FAILED},
        m0500={"last_used_s": 90.0},
    )
    chosen = models.choose(0)
    assert (sorted(names(chosen)), chosen.others) == (["m0100", "m0200", "m0300", "m0400"], MANY - 4)
    assert names(models.choose(2))[4:] == ["m0500", "m4999"]


def test_favourites_are_shown_in_any_case() -> None:
    """Each once, also where it would be among the others; one that is not there is passed over."""
    models = Models(m0002={"state": State.READY}, m0003={})
    chosen = models.choose(2, "", "m4321", "m4999", "m0002", "m0003", "gone")
    assert sorted(names(chosen)[:4]) == ["m0002", "m0003", "m4321", "m4999"]
    assert (names(chosen)[4:], chosen.others) == (["m0007", "m0000"], MANY - 6)


def test_a_search_finds_a_part_of_a_name_or_alias() -> None:
    """In whichever case; what is there and what was named stays, and the rest of what was found is counted."""
    models = Models(m0100={"state": State.READY})
    chosen = models.choose(3, "M49", "m0001")
    assert (names(chosen), chosen.others) == (["m0100", "m0001", "m4999", "m4900", "m4901"], 97)
    assert models.choose(3, "no such").others == 0
    stock = Stock(
        {"a": Model(name="a", engine="ollama", aliases=("Straße:7b",)), "b": Model(name="b", engine="ollama")}
    )
    few = Snapshot(**{**_fields(models.snapshot), "models": Statuses(stock, {}, Patience())})
    assert names(models.overview.choose(few, models.clock, 0, Choice(5, "STRASSE"))) == ["a"]


def _fields(snapshot: Snapshot) -> dict[str, Any]:
    return {name: getattr(snapshot, name) for name in snapshot.__struct_fields__}


def test_the_order_of_thousands_is_made_once() -> None:
    """Who asks again has the registry asked of what is shown, and of all only when it knows something else."""
    models = Models(m0100={"state": State.READY})
    models.choose(20)
    assert models.asked >= MANY
    models.asked = 0
    models.choose(20)
    assert models.asked < 100
    models.told += 1
    models.choose(20)
    assert models.asked >= MANY


def test_it_is_the_status_with_fewer_models(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, library: str
) -> None:
    """The same keys and the same records, two counts beside them; figures of the devices are looked at first."""

    async def scenario() -> None:
        engine.models |= {f"m{number:03}": status(f"m{number:03}") for number in range(300)}
        engine.library.past["m250"] = Past(4, 1_700_000_000_000_000)
        engine.change("tiny", State.READY, last_used_s=990.0)
        async with serving(private_bus.address, engine, library=library), peer(private_bus.address) as client:
            engine.fresh_gpus = engine.gpus
            shown = await client.call("Overview", "usas", 2, "", ["big"])
            assert engine.fresh_gpus is None
            whole = await client.call("Status")
            records = {record["Id"][1]: record for record in whole["Models"][1]}
            assert sorted(record["Id"][1] for record in shown["Models"][1]) == ["big", "m000", "m250", "tiny"]
            assert all(record == records[record["Id"][1]] for record in shown["Models"][1])
            assert (shown.pop("ModelCount"), shown.pop("Others")) == (("u", 302), ("u", 298))
            assert set(shown) == set(whole)
            found = await client.call("Overview", "usas", 5, "M29", [])
            assert found["Others"] == ("u", 5)
            assert len(found["Models"][1]) == 6

    run(scenario())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((501, "", []), "501 models are more than the limit of 500"),
        ((1, "", ["m"] * 501), "501 models are more than the limit of 500"),
        ((1, "x" * 5000, []), "search has 5000 characters"),
    ],
)
def test_what_is_too_much_is_refused(
    run: Any, private_bus: PrivateBus, engine: FakeEngine, values: tuple[Any, ...], says: str
) -> None:
    """With the number and its limit."""

    async def scenario() -> None:
        async with serving(private_bus.address, engine), peer(private_bus.address) as client:
            refused = await client.refused("Overview", "usas", *values)
            assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
            assert says in refused.text

    run(scenario())
