"""What somebody has unloaded does not come back by itself: not after a sleep, and not when the GPUs are taken back."""

import pytest

from gpud.core import events
from gpud.core.errors import Busy, NotLoaded
from gpud.core.facts import JobResult, Session, State
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, World, model

SHELL = Session("4711-1", 1000, 4711, "bash (pid 4711)", "pts/1")
SLEEP, YIELD = "the machine sleeps", "the GPUs are given away"
AWAY = pytest.mark.parametrize("why", [SLEEP, YIELD])


def away(why: str, *names: str, held_by_bob: str = "") -> World:
    """These models were loaded and have to come back: a yield remembers what is pinned, and what somebody holds."""
    w = World(
        {name: model(name, pinned=why == YIELD and not held_by_bob) for name in names}, dict.fromkeys(names, 2 * GIB)
    )
    for name in names:
        w.load(name)
    w.settle()
    if held_by_bob:
        w.post(events.HoldAsked(1, held_by_bob, BOB, "", "app", frozenset(("unload", "evict"))))
    w.post(events.SuspendAsked(4.0) if why == SLEEP else events.YieldAsked(ALICE, "", None))
    w.settle()
    assert not w.engines
    return w


def come_back(w: World, why: str) -> set[str]:
    """What is loaded when it is over."""
    w.post(events.WokeUp() if why == SLEEP else events.ResumeAsked(ALICE))
    w.settle()
    return {name for name in w.models if w.state(name) is State.READY}


@AWAY
def test_a_model_that_was_sent_away_meanwhile_stays_away(why: str) -> None:
    """Nothing has to be unloaded, and still it is no mistake to ask for it; the answer says what becomes of it."""
    w = away(why, "a", "b")
    job = w.unload("a")
    assert w.result(job) is JobResult.DONE
    assert w.jobs[job].message == 'nothing loaded; "a" does not come back by itself'
    with pytest.raises(NotLoaded, match='"a" is not loaded'):
        w.unload("a")
    assert come_back(w, why) == {"b"}


@AWAY
def test_who_sends_everything_away_is_told_of_each_that_stays_away(why: str) -> None:
    """Also where nothing is loaded any more."""
    w = away(why, "a", "b")
    job = w.unload()
    assert w.jobs[job].message == 'nothing loaded; "a" does not come back by itself; "b" does not come back by itself'
    assert come_back(w, why) == set()


@AWAY
def test_what_others_hold_comes_back_to_them(why: str) -> None:
    """Neither by its name nor with everything is it sent away by somebody else."""
    w = away(why, "a", held_by_bob="a")
    with pytest.raises(Busy, match='"a" is held by app'):
        w.unload("a")
    job = w.unload()
    assert w.jobs[job].message == "nothing loaded"
    assert come_back(w, why) == {"a"}


@AWAY
def test_who_holds_it_may_send_it_away(why: str) -> None:
    """Their own hold is in nobody's way."""
    w = away(why, "a", held_by_bob="a")
    assert w.result(w.unload("a", BOB)) is JobResult.DONE
    assert come_back(w, why) == set()


def test_who_sends_everything_away_has_a_crashed_model_stay_away() -> None:
    """It backs off, and would be started again by itself."""
    w = World({"a": model("a")}, {"a": 2 * GIB})
    w.load("a")
    w.settle()
    w.end("a", code=1)
    job = w.unload()
    assert w.jobs[job].message == 'nothing loaded; "a" no longer waits and its failures are forgotten'
    w.pass_time(100)
    assert w.launches() == ["a"]


@AWAY
def test_what_is_no_longer_there_stays_away(why: str) -> None:
    """Its engine was still on its way out when it was over."""
    w = World({"a": model("a", pinned=True), "b": model("b")}, {"a": 2 * GIB, "b": GIB})
    w.load("a")
    w.settle()
    w.post(events.SuspendAsked(4.0) if why == SLEEP else events.YieldAsked(ALICE, "", None))
    w.do(next(a for a in w.pending if isinstance(a, events.AskBusy)))
    assert w.state("a") is State.STOPPING
    del w.models["a"]
    w.configure()
    assert come_back(w, why) == set()
    assert (w.state("a"), w.queue(), w.launches()) == (None, (), ["a"])


@AWAY
def test_what_comes_back_is_as_it_was(why: str) -> None:
    """With the context that was asked for, and with those who use it."""
    w = World({"a": model("a", pinned=True)}, {"a": 2 * GIB})
    w.post(events.SessionBegan(SHELL))
    w.load("a", replace(ALICE, session=SHELL.id), context=4096)
    w.settle()
    w.post(events.SuspendAsked(4.0) if why == SLEEP else events.YieldAsked(ALICE, "", None))
    w.settle()
    assert come_back(w, why) == {"a"}
    assert w.last_launch("a").model.settings.context == 4096
    assert w.scheduler.users() == {"a": {SHELL.id}}


@AWAY
def test_what_comes_back_and_fails_is_tried_again(why: str) -> None:
    """Nobody else waits for it: it backs off, and does not stay away for that."""
    w = away(why, "a")
    w.broken.add("a")
    assert come_back(w, why) == set()
    w.broken.clear()
    w.pass_time(10)
    assert w.state("a") is State.READY
