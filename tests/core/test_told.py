"""Who listens is told of whatever can be seen, when it changes and not else. ``World.post`` asserts the first of it;
here are the changes that nobody asked for: time passes, or an engine says how it is.
"""

from gpud.core import events
from gpud.core.events import Outcome
from gpud.core.facts import Limits, Model, QueueLimits, Session, SessionLimits, State
from gpud.core.quote import Share
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, World, model

SHELL = Session("s1", 1000, 77, "bash", "pts/1")
UNWATCHED = replace(Limits(), watch_s=0.0)
"""Nothing is looked at because time passes: what is told then was told for its own sake."""


def world(*models: Model, limits: Limits = UNWATCHED) -> World:
    return World({one.name: one for one in models}, {one.name: 5 * GIB for one in models}, limits=limits)


def outcomes(w: World, event: events.Event) -> list[Outcome]:
    """What is told of this event."""
    before = len(w.told)
    w.post(event)
    return [action for action in w.told[before:] if isinstance(action, Outcome)]


def test_an_engine_that_works_past_gpud_is_told_to_go_later() -> None:
    """The time at which it goes had come; who shows it is told the new one with the engine's answer."""
    w = world(model("a", idle_timeout_s=60.0))
    w.load("a")
    w.settle()
    w.busy.add("a")
    before = w.status("a").unload_at_s
    w.now += 60.0
    assert outcomes(w, events.TimePassed()) == []
    (question,) = (action for action in w.pending if isinstance(action, events.AskBusy))
    assert outcomes(w, events.BusyAnswered("a", question.generation, True)) == [events.Touched()]
    assert before == w.now
    assert w.status("a").unload_at_s == w.now + 60.0


def test_an_answer_that_changes_nothing_is_not_told() -> None:
    """It was used while its engine was asked: it is idle, and stays for as long as was told then."""
    w = world(model("a", idle_timeout_s=60.0))
    w.load("a")
    w.settle()
    w.now += 60.0
    w.post(events.TimePassed())
    (question,) = (action for action in w.pending if isinstance(action, events.AskBusy))
    w.post(events.UseBegan("a"))
    w.post(events.UseEnded("a"))
    assert outcomes(w, events.BusyAnswered("a", question.generation, False)) == []
    assert w.state("a") is State.READY


def test_a_time_at_which_nothing_is_due_is_not_told() -> None:
    """As after a jump of the clock."""
    w = world(model("a", idle_timeout_s=60.0), model("b"), limits=replace(UNWATCHED, queue=QueueLimits(turn_s=10.0)))
    w.load("a", use=True)
    w.settle()
    w.load("b", BOB)
    w.settle()
    w.now += 5.0
    assert outcomes(w, events.TimePassed()) == []


def test_it_is_told_once_that_somebodys_turn_has_come() -> None:
    """At that moment, not with the next look at the devices, which may be long in coming."""
    w = world(model("a"), model("b"), limits=replace(UNWATCHED, queue=QueueLimits(turn_s=10.0)))
    w.load("a", use=True)
    w.settle()
    w.load("b", BOB)
    w.settle()
    w.now += 10.0
    assert outcomes(w, events.TimePassed()) == [events.Touched()]
    assert [place.overdue for place in w.queue()] == [True]
    assert outcomes(w, events.TimePassed()) == []


def test_it_is_told_that_an_engine_which_has_crashed_stands_in_the_queue_again() -> None:
    """Its back-off is over, so that is not what it waits for."""
    w = world(model("a"))
    w.load("a")
    w.settle()
    w.end("a", code=1)
    w.settle()
    retry_at_s = w.status("a").retry_at_s
    assert retry_at_s is not None
    w.now = retry_at_s
    assert outcomes(w, events.TimePassed()) == [events.Touched()]
    assert [place.waits_for for place in w.queue()] == ["waiting for a look at the devices"]


def test_what_an_earlier_daemon_noted_of_users_is_told_to_be_noted_again() -> None:
    """Else the next daemon takes what only a session used for everybody's, and never has it go with the session."""
    w = world(model("a"))
    w.adopt("a", Share(GPU, 5 * GIB))
    w.settle()
    w.post(events.SessionBegan(SHELL))
    assert outcomes(w, events.UsersRestored({"a": frozenset({SHELL.id})})) == [events.SessionsChanged()]
    assert w.scheduler.users() == {"a": frozenset({SHELL.id})}


def test_it_is_told_that_a_crashed_engine_does_not_come_back_for_one_who_has_left() -> None:
    """It goes on backing off, and is shown to be wanted no longer."""
    w = world(model("a"), limits=replace(UNWATCHED, sessions=SessionLimits(grace_s=1.0)))
    w.post(events.SessionBegan(SHELL))
    w.load("a", replace(ALICE, session=SHELL.id))
    w.settle()
    w.end("a", code=1)
    w.post(events.SessionEnded(SHELL.id, "it exited"))
    w.settle()
    assert w.status("a").retries
    w.now += 1.0
    assert outcomes(w, events.TimePassed()) == [events.Touched()]
    assert (w.state("a"), w.status("a").retries) == (State.BACKOFF, False)
