"""How models go: who asked last, what of an engine outlives it, and what is said of engines that are gone."""

import itertools

import pytest

from gpud.core import events
from gpud.core.errors import Busy, NotLoaded
from gpud.core.events import Kind, ModelChanged
from gpud.core.facts import EvictionLimits, Exit, JobResult, QueueLimits, State
from gpud.core.quote import Share
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def at_work(*names: str, **more: object) -> World:
    """Each has a request in flight."""
    w = world(*names, **more)
    for name in names:
        w.load(name, use=True)
    w.settle()
    return w


# What is said of an engine that is gone


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda generation: events.KillBegan("a", generation),
        lambda generation: events.EngineGone("a", generation, Exit(100, 1, ())),
        lambda generation: events.BusyAnswered("a", generation, True),
        lambda generation: events.BusyAnswered("a", generation, False),
        lambda generation: events.Progressed("a", generation, "reading", 0.5),
        lambda generation: events.Sized("a", generation, (Share(GPU, GIB),)),
        lambda generation: events.BecameReady("a", generation),
        lambda generation: events.LoadEnded("a", generation, "it failed"),
    ],
)
def test_what_comes_too_late_changes_nothing(make: object, generation: int) -> None:
    """It was under way when its engine ended, whether another one has been started since or not."""
    w = world("a")
    for _ in range(2):
        w.load("a")
        w.settle()
        w.unload("a")
        w.settle()
    w.pass_time(10)
    before = w.status("a")
    actions = w.scheduler.handle(make(generation), w.now)  # type: ignore[operator]
    assert [action for action in actions if not isinstance(action, events.Warm)] == []
    assert w.status("a") == before


@pytest.mark.parametrize("state", [State.COLD, State.LOADING, State.DRAINING])
def test_a_use_is_of_a_model_that_is_ready(state: State) -> None:
    """Else whoever asks for it has to have it loaded first; an end of a use that was not counted is nobody's."""
    w = world("a", load_s={"a": 10.0 if state is State.LOADING else 0.0})
    if state is not State.COLD:
        w.load("a", use=state is State.DRAINING)
        w.settle()
    if state is State.DRAINING:
        w.unload("a")
    with pytest.raises(NotLoaded, match=f'"a" is {state}, not ready'):
        w.post(events.UseBegan("a"))
    w.post(events.UseEnded("nobody"))
    if state is State.COLD:
        w.post(events.UseEnded("a"))
    assert w.status("a").in_flight == (state is State.DRAINING)


# Crashes


def test_a_crash_is_shown_with_its_end_and_its_last_lines_until_the_next_start() -> None:
    """Whoever looks at the model sees why it is away."""
    w = at_work("a")
    w.end("a", code=-9)
    shown = w.status("a")
    assert shown.error == "the engine was ended by signal 9 with 1 request in flight"
    assert (shown.error_code, shown.error_tail) == ("crashed", ("last line",))
    assert (shown.in_flight, shown.device, shown.ready_since_s) == (0, "", None)
    w.pass_time(10)
    assert w.state("a") is State.READY
    assert (w.status("a").error, w.status("a").in_flight) == ("", 0)


def test_memory_of_an_engine_that_crashed_is_waited_for_as_that_of_any_other() -> None:
    """Its driver may take as long; who needs it is not refused meanwhile."""
    w = world("a", "b", size=6 * GIB, drivers_linger=True)
    w.load("a")
    w.settle()
    w.end("a", code=1)
    job = w.load("b", BOB)
    w.pass_time(1)
    assert job not in w.jobs
    assert "4.0 GiB to come back" in w.status("b").waits_for
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.1)
    assert w.result(job) is JobResult.DONE


def test_one_that_was_well_for_long_and_cannot_be_started_any_more_is_given_up() -> None:
    """Its good time counts once: each start that fails since is one more failure in a row."""
    w = world("a")
    w.load("a")
    w.pass_time(200)
    w.broken = {"a"}
    w.end("a", code=1)
    while w.state("a") is State.BACKOFF:
        assert w.status("a").retries
        w.load("a")
        w.pass_time(61)
    assert w.state("a") is State.FAILED
    assert (w.status("a").attempts, w.status("a").retries) == (w.limits.backoff_attempts, False)
    assert w.status("a").retry_at_s is None


def test_one_that_comes_back_by_itself_and_fails_for_good_is_not_wanted_any_more() -> None:
    """Nobody tries it again behind the back of whoever has to repair it, also not after a sleep."""
    w = world("a")
    w.load("a")
    w.settle()
    w.broken = {"a"}
    w.end("a", code=1)
    w.pass_time(61 * w.limits.backoff_attempts)
    launched = w.launches()
    assert (w.state("a"), w.status("a").retries) == (State.BACKOFF, True) or w.state("a") is State.FAILED
    w.pass_time(10_000)
    assert not w.status("a").retries
    w.post(events.SuspendAsked(4.0))
    w.post(events.WokeUp())
    w.pass_time(1000)
    assert len(w.launches()) - len(launched) <= w.limits.backoff_attempts


def test_unloading_one_that_comes_back_from_a_crash_has_it_stay_away() -> None:
    """Its load is called off, and nothing of the wish that it be there is left."""
    w = world("a")
    w.load("a")
    w.settle()
    w.load_s = {"a": 30.0}
    w.end("a", code=1)
    w.pass_time(10)
    assert w.state("a") is State.LOADING
    w.unload("a")
    w.settle()
    assert (w.state("a"), w.status("a").retries) == (State.COLD, False)
    w.post(events.SuspendAsked(4.0))
    w.post(events.WokeUp())
    w.pass_time(100)
    assert w.state("a") is State.COLD


# The next engine begins anew


def test_the_next_engine_has_nothing_of_the_one_before() -> None:
    """Neither its context nor its time-out, neither its failures nor that it was busy."""
    w = world("a", "b", size=5 * GIB)
    w.load("a", context=4096, idle_timeout_s=7.0, use=True)
    w.settle()
    w.busy = {"a"}
    w.post(events.UseEnded("a"))
    w.pass_time(8)
    assert w.state("a") is State.READY, "its engine says that it works"
    w.unload("a", force=True)
    w.settle()
    w.busy = set()
    shown = w.status("a")
    assert (shown.idle_timeout_s, shown.model.settings.context, shown.shares) == (300.0, None, ())
    assert (shown.used_bytes, shown.source, shown.in_flight) == (None, "", 0)
    w.load("a")
    w.settle()
    assert w.last_launch("a").model.settings.context is None
    job = w.load("b", BOB)
    w.settle()
    assert w.result(job) is JobResult.DONE, "nobody has said of this engine that it is busy"


def test_one_that_was_loaded_for_a_request_stays_for_its_residence_once() -> None:
    """The next engine was loaded for nobody's request, and may go at once."""
    w = world("a", "b", size=5 * GIB)
    w.configure(limits=replace(w.limits, eviction=EvictionLimits(residence_s=60.0)))
    w.load("a", use=True)
    w.settle()
    w.post(events.UseEnded("a"))
    w.unload("a")
    w.settle()
    w.load("a")
    w.settle()
    job = w.load("b", BOB)
    w.settle()
    assert w.result(job) is JobResult.DONE


def test_how_long_an_engine_took_to_end_is_known_of_the_last_one() -> None:
    """And a crash, which takes no time, does not change it."""
    w = world("a")
    w.load("a")
    w.settle()
    w.unload("a")
    w.do(next(action for action in w.pending if isinstance(action, events.AskBusy)))
    stop = next(action for action in w.pending if isinstance(action, events.Stop))
    w.now += 3.0
    w.do(stop)
    w.settle()
    w.load("a", use=True)
    w.settle()
    w.now += 100
    w.end("a", code=0)
    w.settle()
    w.load("a", use=True)
    w.settle()
    w.post(events.SuspendAsked(10.0))
    assert w.scheduler.next_deadline() == w.now + 6.5, "of 10 s the kill takes 0.5, and the end 3"


# Who has it go


@pytest.mark.parametrize("reason", ["suspend", "shutdown", "yield"])
def test_who_calls_an_unload_off_does_not_keep_what_goes_for_another_reason(reason: str) -> None:
    """It joined what was under way; that goes on without it, and is told as what it was."""
    w = at_work("a")
    if reason == "suspend":
        w.post(events.SuspendAsked(1000.0))
    elif reason == "shutdown":
        w.post(events.ShutdownAsked())
    else:
        w.post(events.YieldAsked(ALICE, "", None))
    job = w.unload("a", BOB)
    w.post(events.CancelAsked(job))
    assert w.result(job) is JobResult.CANCELED
    assert w.state("a") is State.DRAINING
    w.post(events.UseEnded("a"))
    w.settle()
    told = w.notices(Kind.MODEL_UNLOADED)[0]
    assert (
        told.message.partition("given back: ")[2]
        == {
            "suspend": "the machine is about to sleep",
            "shutdown": "gpud is shutting down",
            "yield": "the GPUs are given away",
        }[reason]
    )
    assert told.fields["reason"] == ("user" if reason == "yield" else reason)


def test_who_unloads_what_makes_room_has_it_go_though_it_is_busy_and_may_call_that_off() -> None:
    """For the other alone it would have stayed, had its engine said so."""
    for canceled in (False, True):
        w = world("a", "b", size=6 * GIB)
        w.load("a")
        w.settle()
        w.load("b", BOB)
        w.look()
        assert w.state("a") is State.DRAINING
        job = w.unload("a")
        w.busy = {"a"}
        w.settle()
        assert w.state("a") is State.DRAINING
        if canceled:
            w.post(events.CancelAsked(job))
            assert w.state("a") is State.READY
        else:
            w.busy = set()
            w.pass_time(3)
            assert w.notices(Kind.MODEL_UNLOADED)[0].message.endswith("given back: alice asked for it")


@pytest.mark.parametrize("label", ["", "the editor"])
def test_who_unloaded_it_is_named_to_who_waited_for_it(label: str) -> None:
    """By the name of the program, or else of the user."""
    w = world("a", load_s={"a": 30.0})
    job = w.load("a")
    w.settle()
    w.unload("a", replace(BOB, label=label))
    assert w.jobs[job].message == f"unloaded by {label or 'bob'} before it was ready"
    w = at_work("a")
    w.unload("a", replace(BOB, label=label))
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.notices(Kind.MODEL_UNLOADED)[0].message.endswith(f"given back: {label or 'bob'} asked for it")


def test_a_sleep_takes_over_what_is_going_already() -> None:
    """With the little time that it has, and as the reason that is told; the kill is not needed."""
    w = at_work("a")
    w.unload("a", BOB)
    w.post(events.SuspendAsked(4.0))
    w.pass_time(2.4)
    assert w.state("a") is State.DRAINING
    w.pass_time(0.2)
    assert w.state("a") is State.COLD
    assert w.notices(Kind.ENGINE_KILLED) == []
    changed = [change for change in w.told if isinstance(change, ModelChanged)][-2:]
    assert [change.reason for change in changed] == ["suspend", "suspend"]


def test_one_that_stays_after_all_serves_who_waited_for_the_next_and_they_leave_the_queue() -> None:
    """Each as far as it is what was asked for: with another engine it is another model."""
    w = World({"a": model("a", alternatives=(model("a", engine="ollama"),))}, {"a": 3 * GIB})
    w.load("a", use=True)
    w.settle()
    unload = w.unload("a", BOB)
    anyhow, this, other = (w.load("a", engines=engines) for engines in ((), ("llama_server",), ()))
    w.post(events.CancelAsked(unload))
    assert w.state("a") is State.READY
    assert [w.result(job) for job in (anyhow, this, other)] == [JobResult.DONE] * 3
    assert w.queue() == () and not w.status("a").waiting

    unload = w.unload("a", BOB)
    another = w.load("a", engines=("ollama",))
    w.post(events.CancelAsked(unload))
    assert isinstance(w.jobs[another].error, Busy)
    assert w.jobs[another].message.startswith('"a" is busy and stays loaded with llama_server, not ollama')


def test_who_waits_while_an_engine_ends_gets_the_next_one() -> None:
    """The wish is not lost with the engine that it came too late for."""
    w = world("a")
    w.load("a")
    w.settle()
    w.unload("a", force=True)
    job = w.load("a", BOB)
    assert w.status("a").waits_for == "waiting until it is unloaded"
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert w.launches() == ["a", "a"]


# The engine's own word


def test_an_engine_that_works_past_gpud_is_asked_ever_less_often_until_it_has_been_idle() -> None:
    """2, 4, 8, 16, 30 s and not longer apart; then from the beginning."""
    w = world("a", "b", size=6 * GIB)
    w.configure(limits=replace(w.limits, queue=QueueLimits(timeout_s=1e6, turn_s=1e6)))
    w.load("a")
    w.settle()

    def asked_again(seconds: float) -> list[float]:
        """After how long each time."""
        times: list[float] = []
        end_s = w.now + seconds
        while w.now < end_s:
            before = sum(isinstance(action, events.AskBusy) for action in w.told)
            w.pass_time(1.0)
            if sum(isinstance(action, events.AskBusy) for action in w.told) > before:
                times.append(w.now)
        return [later - sooner for sooner, later in itertools.pairwise(times)]

    w.busy = {"a"}
    w.load("b", BOB)
    w.settle()
    assert asked_again(125)[:5] == [4, 8, 16, 30, 30]


def test_a_model_that_is_held_is_asked_nothing_and_one_that_is_used_meanwhile_stays() -> None:
    """The answer to a question that was asked before says that the engine is idle; it is not to go any more."""
    for why in ("held", "used"):
        w = world("a")
        w.load("a")
        w.settle()
        w.now += 301
        w.post(events.TimePassed())
        question = next(action for action in w.pending if isinstance(action, events.AskBusy))
        if why == "held":
            w.post(events.HoldAsked(1, "a", BOB, "", "app", frozenset(("unload",))))
        else:
            w.post(events.UseBegan("a"))
            w.post(events.UseEnded("a"))
        w.do(question)
        assert w.state("a") is State.READY
