"""What a session alone has used goes with it; what anybody else uses, holds, or waits for stays."""

import pytest

from gpud.core import events
from gpud.core.errors import Busy
from gpud.core.events import Kind
from gpud.core.facts import Caller, JobResult, Limits, Session, SessionLimits, State
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, World, model

SHELL = Session("4711-1", 1000, 4711, "bash (pid 4711)", "pts/1")
OTHER = Session("4712-1", 1000, 4712, "zsh (pid 4712)", "pts/2")
GRACE_S = SessionLimits().grace_s


def of(session: Session) -> Caller:
    return Caller(":1.9", session.uid, session.pid, label="gpudctl", session=session.id)


def world(*names: str, sessions: SessionLimits | None = None, **more: object) -> World:
    limits = Limits(sessions=sessions or SessionLimits(), memory_wait_s=5.0)
    models = {name: model(name) for name in names}
    w = World(models, dict.fromkeys(names, GIB), limits=limits, **more)  # type: ignore[arg-type]
    for session in (SHELL, OTHER):
        w.post(events.SessionBegan(session))
    return w


def loaded(w: World, name: str, *callers: Caller) -> None:
    for caller in callers:
        w.load(name, caller)
    w.settle()
    assert w.state(name) is State.READY


def end(w: World, session: Session = SHELL) -> None:
    w.post(events.SessionEnded(session.id, "it exited"))
    w.settle()


def test_what_only_the_session_used_goes_after_the_grace() -> None:
    """Not before, and with the reason."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    end(w)
    w.pass_time(GRACE_S - 1)
    assert w.state("a") is State.READY
    w.pass_time(2)
    assert w.state("a") is State.COLD
    (notice,) = w.notices(Kind.SESSION_ENDED)
    assert notice.message == (
        'The session of bash (pid 4711) has ended (it exited): nobody else has used "a", to be unloaded in 5 s'
    )
    assert "given back: the sessions that used it have ended" in w.notices(Kind.MODEL_UNLOADED)[0].message
    assert w.notices(Kind.IDLE) == []
    assert {a.reason for a in w.told if isinstance(a, events.ModelChanged) and a.new is State.COLD} == {"session"}


def test_another_session_keeps_what_it_used() -> None:
    """Until it ends too: then nobody is left."""
    w = world("a", "b")
    loaded(w, "a", of(SHELL), of(OTHER))
    loaded(w, "b", of(OTHER))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert (w.state("a"), w.state("b")) == (State.READY, State.READY)
    end(w, OTHER)
    w.pass_time(2 * GRACE_S)
    assert (w.state("a"), w.state("b")) == (State.COLD, State.COLD)


def test_somebody_in_no_session_keeps_it_too() -> None:
    """A request of an editor or of another machine is a use like any other."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    w.post(events.UseBegan("a"))
    w.post(events.UseEnded("a"))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY


def test_requests_of_the_session_itself_do_not() -> None:
    """They are known by their session, and a running one is answered first."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    w.post(events.UseBegan("a", SHELL.id))
    end(w)
    w.pass_time(20 * GRACE_S)
    assert w.state("a") is State.READY
    w.post(events.UseEnded("a"))
    w.pass_time(1)
    assert w.state("a") is State.COLD


def test_a_use_within_the_grace_keeps_it() -> None:
    """Whoever comes in time finds it loaded, and it stays."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    end(w)
    w.pass_time(GRACE_S / 2)
    w.post(events.UseBegan("a", OTHER.id))
    w.post(events.UseEnded("a"))
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY
    end(w, OTHER)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.COLD


def test_a_hold_of_the_session_ends_with_it() -> None:
    """And what it held goes like what it used."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    holder = Caller(SHELL.owner, SHELL.uid, SHELL.pid, label=SHELL.label, session=SHELL.id)
    w.post(events.HoldAsked(7, "a", holder, "work", SHELL.label, frozenset(("unload", "evict"))))
    w.pass_time(400)
    assert w.state("a") is State.READY
    end(w)
    assert w.scheduler.hold_statuses() == ()
    assert [a for a in w.told if isinstance(a, events.HoldEnded)] == [
        events.HoldEnded(7, SHELL.owner, "its session has ended: it exited")
    ]
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.COLD


def test_its_own_hold_does_not_stand_in_the_sessions_way() -> None:
    """Who has held a model for the day may unload it in the evening; another session may not."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    holder = Caller(SHELL.owner, SHELL.uid, SHELL.pid, label=SHELL.label, session=SHELL.id)
    w.post(events.HoldAsked(7, "a", holder, "work", SHELL.label, frozenset(("unload", "evict"))))
    with pytest.raises(Busy, match="held by bash"):
        w.unload("a", of(OTHER))
    w.unload("a", of(SHELL))
    w.settle()
    assert w.state("a") is State.COLD


def test_a_hold_of_somebody_else_keeps_it() -> None:
    """Whoever holds a model uses it."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    w.post(events.HoldAsked(7, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    w.post(events.HoldDropped(7, "released"))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY


def test_an_inhibitor_of_all_models_delays_it() -> None:
    """It names no model, so it uses none; but nothing is unloaded while it lasts."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    w.post(events.HoldAsked(7, "", BOB, "", "app", frozenset(("unload",))))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY
    w.post(events.HoldDropped(7, "released"))
    w.pass_time(1)
    assert w.state("a") is State.COLD


def test_pinned_models_stay() -> None:
    """Whoever pinned it wants it there, whoever used it."""
    w = world("a")
    w.configure(replace(model("a"), pinned=True))
    loaded(w, "a", of(SHELL))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY


def test_nothing_goes_where_that_is_not_wanted() -> None:
    """unload_on_exit: false; idle models go as ever."""
    w = world("a", sessions=SessionLimits(unload_on_exit=False))
    loaded(w, "a", of(SHELL))
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY
    assert w.notices(Kind.SESSION_ENDED) == []


def test_turning_it_off_saves_what_was_to_go() -> None:
    """A reload within the grace counts."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    end(w)
    w.configure(limits=replace(w.limits, sessions=SessionLimits(unload_on_exit=False)))
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.READY


def test_without_grace_it_goes_at_once() -> None:
    """Zero is a time like others."""
    w = world("a", sessions=SessionLimits(grace_s=0.0))
    loaded(w, "a", of(SHELL))
    end(w)
    w.pass_time(0)
    assert w.state("a") is State.COLD
    assert w.notices(Kind.SESSION_ENDED)[0].message.endswith("to be unloaded now")


def test_a_load_that_nobody_waits_for_any_more_is_canceled() -> None:
    """Whoever closed the terminal meanwhile does not get the model afterwards."""
    w = world("a", load_s={"a": 60.0})
    job = w.load("a", of(SHELL))
    w.settle()
    assert w.state("a") is State.LOADING
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.COLD
    assert w.jobs[job].result is JobResult.CANCELED
    assert w.jobs[job].message == "whoever asked for it has left"


def test_a_load_that_somebody_else_waits_for_goes_on() -> None:
    """Two wishes, one of them without a session."""
    w = world("a", load_s={"a": 60.0})
    w.load("a", of(SHELL))
    job = w.load("a", ALICE)
    w.settle()
    end(w)
    w.pass_time(70)
    assert w.state("a") is State.READY
    assert w.jobs[job].result is JobResult.DONE


def test_a_wait_in_the_queue_ends_with_the_session() -> None:
    """It stands in nobody's way any longer."""
    w = world("a", "b")
    w.configure(b=7 * GIB, a=7 * GIB)
    w.load("a", ALICE, use=True)
    w.settle()
    job = w.load("b", of(SHELL))
    w.settle()
    assert w.scheduler.queue_statuses()
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.jobs[job].result is JobResult.CANCELED
    assert w.scheduler.queue_statuses() == ()


def test_a_crashed_engine_does_not_come_back_for_those_who_have_left() -> None:
    """It backs off, and would be started again by itself."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    w.end("a", code=1)
    assert w.state("a") is State.BACKOFF
    w.post(events.SessionEnded(SHELL.id, "it exited"))
    w.pass_time(100)
    assert w.state("a") is State.COLD
    assert w.engines == {}


def test_who_asks_while_it_goes_is_its_next_user() -> None:
    """What was before its engine ended counts no longer; who waits for the next one does."""
    w = world("a")
    loaded(w, "a", ALICE)
    w.unload("a")
    w.load("a", of(SHELL))
    w.settle()
    assert w.state("a") is State.READY
    assert w.scheduler.users() == {"a": {SHELL.id}}


def test_an_unknown_session_is_somebody() -> None:
    """One that has just ended: nobody would ever end it again."""
    w = world("a")
    end(w)
    loaded(w, "a", of(SHELL))
    assert w.scheduler.users() == {"a": {""}}


def test_what_was_taken_over_has_the_users_that_were_noted() -> None:
    """Without a note somebody may use it that nobody knows of."""
    w = world("a", "b", "c")
    for name in ("a", "b", "c"):
        loaded(w, name, ALICE)
    w.post(events.UsersRestored({"a": frozenset((SHELL.id,)), "b": frozenset((SHELL.id, "9-9"))}))
    assert w.scheduler.users() == {"a": {SHELL.id}, "b": {SHELL.id, ""}, "c": {""}}


def test_sessions_show_what_they_used() -> None:
    """And what of it nobody else has."""
    w = world("a", "b")
    loaded(w, "a", of(SHELL))
    loaded(w, "b", of(SHELL), of(OTHER))
    first, second = w.scheduler.session_statuses()
    assert (first.session, first.used, first.alone) == (SHELL, ("a", "b"), ("a",))
    assert (second.session, second.used, second.alone) == (OTHER, ("b",), ())


def test_changes_are_told_once() -> None:
    """A request a second of the same session is no news."""
    w = world("a")
    loaded(w, "a", of(SHELL))
    told = len([a for a in w.told if isinstance(a, events.SessionsChanged)])
    for _ in range(3):
        w.post(events.UseBegan("a", SHELL.id))
        w.post(events.UseEnded("a"))
    assert len([a for a in w.told if isinstance(a, events.SessionsChanged)]) == told


def test_the_end_of_an_unknown_session_is_no_event() -> None:
    """It may be told twice."""
    w = world("a")
    end(w)
    told = len(w.told)
    end(w)
    assert len(w.told) == told


def test_who_wished_for_it_in_vain_is_no_user_of_it() -> None:
    """It did not fit then; whoever has it later is the only one, and it goes with that session."""
    w = world("a")
    w.configure(a=100 * GIB)
    for caller in (ALICE, of(OTHER)):
        w.load("a", caller)
        w.settle()
    w.configure(a=GIB)
    loaded(w, "a", of(SHELL))
    assert w.scheduler.users() == {"a": {SHELL.id}}
    end(w)
    w.pass_time(2 * GRACE_S)
    assert w.state("a") is State.COLD


def test_who_holds_what_is_not_there_yet_is_a_user_of_it_then() -> None:
    """Its hold was there before it."""
    w = world("a")
    w.post(events.HoldAsked(7, "a", of(OTHER), "", "app", frozenset(("unload", "evict"))))
    loaded(w, "a", of(SHELL))
    assert w.scheduler.users() == {"a": {SHELL.id, OTHER.id}}


def test_a_session_that_ends_before_its_model_is_back_does_not_use_it() -> None:
    """It was away for a sleep meanwhile."""
    w = world("a")
    loaded(w, "a", of(SHELL), of(OTHER))
    w.post(events.SuspendAsked(4.0))
    w.settle()
    end(w)
    w.post(events.WokeUp())
    w.settle()
    assert w.scheduler.users() == {"a": {OTHER.id}}
