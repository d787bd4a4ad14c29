"""All models as one list: those that rest are made when they are asked for, and nobody sees the difference."""

import pytest

from gpud.core.facts import AUTO_IDLE, ModelStatus, State
from gpud.core.record import replace
from gpud.core.statuses import Patience, Statuses, at_rest, lively, names_of, names_with_aliases, only, status_of
from gpud.core.stock import Stock

from .world import model

A, B, C, GONE = (model(name, aliases=(f"{name}-too",), idle_timeout_s=60.0) for name in ("a", "b", "c", "gone"))
READY_B = ModelStatus(B, State.READY, pids=(7,))
LEAVING = ModelStatus(GONE, State.DRAINING)
PATIENCE = Patience()


def statuses(patience: Patience = PATIENCE) -> Statuses:
    """Three that are there, of which one runs, and one that is no longer there and still has an engine."""
    return Statuses(Stock({m.name: m for m in (A, B, C)}), {"b": READY_B, "gone": LEAVING}, patience)


def as_list() -> list[ModelStatus]:
    return [at_rest(A, PATIENCE), READY_B, at_rest(C, PATIENCE), LEAVING]


def test_it_is_a_sequence_of_those_that_are_there_and_then_of_those_that_go() -> None:
    """By place, from the end, as a part, with their number."""
    found = statuses()
    assert list(found) == as_list()
    assert len(found) == 4
    assert found[0] == at_rest(A, PATIENCE)
    assert found[1] is READY_B
    assert found[-1] is LEAVING
    assert found[1:3] == as_list()[1:3]
    with pytest.raises(IndexError):
        found[4]


def test_it_is_equal_to_whatever_shows_the_same() -> None:
    """Another of its kind, or a list; not one with another engine, another patience, or another model."""
    assert statuses() == statuses()
    assert statuses() == as_list()
    assert statuses() != as_list()[:3]
    assert statuses() != 4
    others = Statuses(statuses().stock, {"b": replace(READY_B, pids=(8,)), "gone": LEAVING}, PATIENCE)
    assert statuses() != others
    assert statuses() != statuses(Patience(idle_timeout_s=5.0))
    assert statuses() != Statuses(Stock({"a": A, "b": B}), statuses().lively, PATIENCE)
    assert not statuses().same_rest(statuses(Patience(battery_idle_s=5.0)))
    assert statuses().same_rest(others)


@pytest.mark.parametrize("given", [statuses(), as_list()], ids=["made when asked for", "a list"])
def test_one_is_found_by_its_name(given: Statuses | list[ModelStatus]) -> None:
    """Whether it rests, runs or goes; None for one that is not there."""
    assert status_of(given, "a") == at_rest(A, PATIENCE)
    assert status_of(given, "b") is READY_B
    assert status_of(given, "gone") is LEAVING
    assert status_of(given, "nobody") is None


@pytest.mark.parametrize("given", [statuses(), as_list()], ids=["made when asked for", "a list"])
def test_names_come_in_the_order_of_the_list(given: Statuses | list[ModelStatus]) -> None:
    """With their aliases where somebody wants them."""
    assert list(names_of(given)) == ["a", "b", "c", "gone"]
    assert list(names_with_aliases(given)) == [(name, (f"{name}-too",)) for name in ("a", "b", "c", "gone")]


@pytest.mark.parametrize("given", [statuses(), as_list()], ids=["made when asked for", "a list"])
def test_some_of_them_are_chosen_by_name(given: Statuses | list[ModelStatus]) -> None:
    """In the order of the list; None means all, and names that are not there are nobody."""
    assert list(only(given, {"gone", "a", "nobody"})) == [at_rest(A, PATIENCE), LEAVING]
    assert list(only(given, ())) == []
    assert only(given, None) is given


def test_who_looks_for_what_is_loaded_need_not_look_at_those_that_rest() -> None:
    """Of a list all are looked at."""
    assert list(lively(statuses())) == [READY_B, LEAVING]
    assert list(lively(as_list())) == as_list()


@pytest.mark.parametrize(
    ("configured", "patience", "reload_s", "expected"),
    [
        (60.0, Patience(), None, 60.0),
        (60.0, Patience(idle_timeout_s=7.0), None, 7.0),
        (60.0, Patience(battery_idle_s=30.0), None, 30.0),
        (60.0, Patience(battery_idle_s=90.0), None, 60.0),
        (0.0, Patience(battery_idle_s=30.0), None, 0.0),
        (60.0, Patience(idle_timeout_s=0.0, battery_idle_s=30.0), None, 0.0),
        (0.5, Patience(battery_idle_s=0.25), None, 0.25),
        (AUTO_IDLE, Patience(), None, 60.0),
        (AUTO_IDLE, Patience(), 2.0, 60.0),
        (AUTO_IDLE, Patience(), 4.0, 80.0),
        (AUTO_IDLE, Patience(), 90.0, 1800.0),
        (AUTO_IDLE, Patience(), 1000.0, 1800.0),
        (AUTO_IDLE, Patience(battery_idle_s=30.0), 1000.0, 30.0),
        (60.0, Patience(idle_timeout_s=AUTO_IDLE), 4.0, 80.0),
    ],
)
def test_how_long_a_model_may_be_idle(
    configured: float, patience: Patience, reload_s: float | None, expected: float
) -> None:
    """A command counts for all, a battery only shortens, 0 is for ever, and "auto" follows from what a reload takes."""
    assert patience.idle_for_s(model("a", idle_timeout_s=configured), reload_s) == expected


def test_what_rests_is_cold_and_shows_how_long_it_would_stay() -> None:
    """By whoever has the last word."""
    assert at_rest(A, Patience(idle_timeout_s=7.0)) == ModelStatus(A, State.COLD, idle_timeout_s=7.0)
