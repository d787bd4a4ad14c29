"""The GPUs are given away, for a time, until somebody resumes, or for as long as somebody forbids loading."""

import pytest

from gpud.core import events
from gpud.core.errors import Yielded
from gpud.core.events import Kind
from gpud.core.facts import HOST, EngineSettings, JobResult, LoadsMeanwhile, State
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, World, model


def world(*names: str, size: int = 2 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def give_away(w: World, why: str = "a game", for_s: float | None = None) -> None:
    w.post(events.YieldAsked(ALICE, why, for_s))
    w.settle()


def resume(w: World) -> None:
    w.post(events.ResumeAsked(BOB))
    w.settle()


def forbid(w: World, cookie: int = 7) -> None:
    w.post(events.HoldAsked(cookie, "", BOB, "a benchmark", "bench", frozenset(("load",))))
    w.settle()


def test_everything_on_the_gpus_goes_and_loads_are_refused_with_the_reason() -> None:
    """Also what is held: the GPUs are wanted whole."""
    w = world("a", "b")
    w.load("a")
    w.settle()
    w.post(events.HoldAsked(1, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    give_away(w)
    assert w.state("a") is State.COLD
    assert w.engines == {}
    with pytest.raises(Yielded) as caught:
        w.load("b")
    assert caught.value.message == 'cannot load "b": the GPUs are given away, alice has asked for them (a game)'
    assert w.notices(Kind.YIELDED)[0].message == "The GPUs are given away until somebody resumes by alice: a game"
    assert w.scheduler.yield_status() is not None
    assert w.scheduler.given_away() == "alice has asked for them (a game)"


def test_a_running_answer_is_not_cut() -> None:
    """It goes when it is through, and not before, however long that is."""
    w = world("a")
    w.load("a", use=True)
    w.settle()
    give_away(w)
    w.pass_time(1000)
    assert w.state("a") is State.DRAINING
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD
    assert "given back: the GPUs are given away" in w.notices(Kind.MODEL_UNLOADED)[0].message


def test_what_loads_is_canceled_and_who_waits_is_told() -> None:
    """Their jobs end with the reason."""
    w = world("a", "b", size=6 * GIB, load_s={"a": 10.0})
    loading, waiting = w.load("a"), w.load("b")
    w.pass_time(1)
    give_away(w)
    for job in (loading, waiting):
        assert w.result(job) is JobResult.FAILED
        assert isinstance(w.jobs[job].error, Yielded)
    assert w.queue() == ()
    assert w.engines == {}


def test_for_a_time_ends_by_itself() -> None:
    """And tells how much of it is left."""
    w = world("a")
    give_away(w, for_s=600.0)
    w.pass_time(200)
    with pytest.raises(Yielded, match="7 min left"):
        w.load("a")
    w.pass_time(401)
    assert w.notices(Kind.RESUMED)[0].message == "The GPUs are taken back because the 10 min are over"
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE


def test_what_is_pinned_comes_back_and_the_rest_does_not() -> None:
    """Nobody asked for the rest; and it has not crashed."""
    w = world("pinned", "other")
    w.configure(model("pinned", pinned=True))
    w.load("pinned")
    w.load("other")
    w.settle()
    give_away(w)
    resume(w)
    assert (w.state("pinned"), w.state("other")) == (State.READY, State.COLD)
    assert w.status("pinned").restarts == 0
    assert w.notices(Kind.RESUMED)[0].message == "The GPUs are taken back by bob"


def test_what_is_pinned_comes_back_when_the_gpus_are_taken_back_while_it_goes() -> None:
    """It is not forgotten because it was not gone yet."""
    w = world("a")
    w.configure(model("a", pinned=True))
    w.load("a")
    w.settle()
    w.post(events.YieldAsked(ALICE, "", None))
    w.do(next(a for a in w.pending if isinstance(a, events.AskBusy)))
    assert w.state("a") is State.STOPPING
    w.post(events.ResumeAsked(BOB))
    w.settle()
    assert w.state("a") is State.READY


def test_what_still_answers_when_they_are_taken_back_stays() -> None:
    """There is no reason any more for it to go."""
    w = world("a")
    w.load("a", use=True)
    w.settle()
    give_away(w)
    resume(w)
    w.post(events.UseEnded("a"))
    w.pass_time(60)
    assert w.state("a") is State.READY
    assert w.launches() == ["a"]


def test_a_model_that_makes_room_for_another_goes_although_it_turns_out_to_be_busy() -> None:
    """For the other alone it would have stayed; the GPUs are given away."""
    w = world("a", "b", size=6 * GIB)
    w.load("a")
    w.settle()
    w.load("b")
    w.look()
    assert w.state("a") is State.DRAINING
    w.busy.add("a")
    give_away(w)
    assert w.state("a") is State.DRAINING
    w.busy.clear()
    w.pass_time(3)
    assert w.state("a") is State.COLD


def test_a_crashed_model_does_not_come_back_before_the_gpus_do() -> None:
    """Then it does."""
    w = world("a")
    w.load("a")
    w.settle()
    w.end("a", code=-9)
    give_away(w)
    w.pass_time(60)
    assert w.launches() == ["a"]
    resume(w)
    w.settle()
    assert w.state("a") is State.READY
    assert w.launches() == ["a", "a"]


@pytest.mark.parametrize("where", ["gpu", "layers"])
def test_models_off_the_gpus_are_not_concerned(where: str) -> None:
    """They stay, and others like them are loaded."""
    w = world("a", "b")
    off = {"gpu": HOST} if where == "gpu" else {"settings": EngineSettings(layers="0")}
    w.configure(model("a", **off), model("b", **off))
    w.load("a")
    w.settle()
    give_away(w)
    job = w.load("b")
    w.settle()
    assert w.state("a") is State.READY
    assert w.result(job) is JobResult.DONE


def test_without_a_gpu_it_is_the_machines_memory_that_is_given_away() -> None:
    """That is what its models are on."""
    w = world("a", gpus={})
    w.load("a")
    w.settle()
    give_away(w)
    assert w.state("a") is State.COLD
    with pytest.raises(Yielded):
        w.load("a")


def test_who_forbids_loading_has_the_gpus_until_it_lets_go() -> None:
    """A descriptor, closed by whatever way."""
    w = world("a")
    w.load("a")
    w.settle()
    forbid(w)
    assert w.state("a") is State.COLD
    with pytest.raises(Yielded, match=r"bench forbids loading \(a benchmark\)"):
        w.load("a")
    w.post(events.HoldDropped(7, "its program has ended"))
    w.settle()
    assert w.notices(Kind.RESUMED)[0].message == "The GPUs are taken back because nobody forbids loading any more"
    w.load("a")
    w.settle()
    assert w.state("a") is State.READY


@pytest.mark.parametrize("first", ["resume", "let go", "time"])
def test_the_gpus_stay_away_while_anybody_wants_that(first: str) -> None:
    """Two reasons: the end of one is not the end of the other."""
    w = world("a")
    w.configure(model("a", pinned=True))
    w.load("a")
    w.settle()
    give_away(w, for_s=100.0 if first == "time" else None)
    forbid(w)
    if first == "resume":
        resume(w)
    elif first == "time":
        w.pass_time(101)
    else:
        w.post(events.HoldDropped(7, "released"))
        w.settle()
    assert w.engines == {}
    assert w.notices(Kind.RESUMED) == []
    assert w.notices(Kind.YIELDED)[-1].message.startswith("The GPUs stay given away: ")
    if first == "let go":
        resume(w)
    else:
        w.post(events.HoldDropped(7, "released"))
        w.settle()
    assert w.state("a") is State.READY


def test_to_resume_what_is_not_given_away_changes_nothing() -> None:
    """And tells nothing."""
    w = world("a")
    resume(w)
    assert w.notices(Kind.RESUMED) == []


def test_giving_away_twice_has_the_last_word() -> None:
    """Longer or shorter."""
    w = world("a")
    give_away(w, for_s=100.0)
    give_away(w, for_s=10.0)
    w.pass_time(11)
    assert w.scheduler.yield_status() is None


def play(w: World, cookie: int = 7) -> None:
    w.post(events.HoldAsked(cookie, "", BOB, "GameMode says so", "steam_app_70", frozenset(("game",))))
    w.settle()


def end_game(w: World, cookie: int = 7) -> None:
    w.post(events.HoldDropped(cookie, "its process has ended"))
    w.settle()


def gaming(loads: LoadsMeanwhile, *names: str) -> World:
    w = world(*names)
    w.configure(limits=replace(w.limits, loads_during_game=loads))
    return w


def test_a_game_has_the_gpus_and_loads_wait_for_its_end() -> None:
    """What is idle goes at once; who wants something meanwhile is told what it waits for, and then served."""
    w = gaming(LoadsMeanwhile.WAIT, "a", "b")
    w.load("a")
    w.settle()
    play(w)
    assert w.engines == {}
    job = w.load("b")
    w.settle()
    assert w.engines == {}
    reason = "waiting until the GPUs are taken back: steam_app_70 has them (GameMode says so)"
    assert w.queue()[0].waits_for == reason
    end_game(w)
    assert w.result(job) is JobResult.DONE
    assert w.state("b") is State.READY
    assert w.state("a") is State.COLD


def test_who_waits_for_the_end_of_a_game_does_not_wait_for_ever() -> None:
    """No longer than anybody in the queue, and the reason is told."""
    w = gaming(LoadsMeanwhile.WAIT, "a")
    play(w)
    job = w.load("a")
    w.settle()
    w.pass_time(w.limits.queue.timeout_s + 1)
    assert w.result(job) is JobResult.TIMEOUT
    assert "steam_app_70 has them" in w.jobs[job].message


def test_during_a_game_loads_do_without_a_gpu_where_that_is_configured() -> None:
    """They come up on the processor; after the game the next load has the GPU again."""
    w = gaming(LoadsMeanwhile.CPU, "a")
    play(w)
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE
    launch = w.last_launch("a")
    assert [share.device for share in launch.shares] == [HOST]
    assert launch.model.gpu == HOST
    end_game(w)
    assert w.state("a") is State.READY
    w.unload("a")
    w.settle()
    w.load("a")
    w.settle()
    assert w.last_launch("a").shares[0].device == GPU


def test_a_load_under_way_is_begun_anew_without_a_gpu_when_a_game_starts() -> None:
    """Whoever waits for it gets it, on the processor."""
    w = gaming(LoadsMeanwhile.CPU, "a")
    w.load_s = {"a": 30.0}
    job = w.load("a")
    w.settle()
    assert w.state("a") is State.LOADING
    play(w)
    w.pass_time(40)
    assert w.result(job) is JobResult.DONE
    assert w.last_launch("a").shares[0].device == HOST


def test_during_a_game_loads_are_refused_where_that_is_configured() -> None:
    """With the game's name, and what to do."""
    w = gaming(LoadsMeanwhile.REFUSE, "a")
    play(w)
    with pytest.raises(Yielded, match="steam_app_70 has them") as caught:
        w.load("a")
    assert caught.value.hint == "wait until it has ended, or set give_way.loads to wait or cpu"


def test_who_gives_the_gpus_away_has_loads_refused_even_during_a_game() -> None:
    """The stricter wish holds, until only the game is left."""
    w = gaming(LoadsMeanwhile.WAIT, "a")
    play(w)
    give_away(w)
    with pytest.raises(Yielded, match="alice has asked for them"):
        w.load("a")
    resume(w)
    assert w.notices(Kind.YIELDED)[-1].message.startswith("The GPUs stay given away: steam_app_70 has them")
    job = w.load("a")
    w.settle()
    end_game(w)
    assert w.result(job) is JobResult.DONE


def test_what_somebody_holds_comes_back_after_a_game() -> None:
    """Its holder lives, and was promised that it stays."""
    w = gaming(LoadsMeanwhile.WAIT, "a", "b")
    w.load("a")
    w.load("b")
    w.settle()
    w.post(events.HoldAsked(1, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    play(w)
    assert w.engines == {}
    end_game(w)
    assert w.state("a") is State.READY
    assert w.state("b") is State.COLD


def test_on_battery_models_are_idle_for_less_long() -> None:
    """As soon as the machine runs on its battery, and as before when it no longer does; never stays never."""
    w = world("a", "b")
    w.configure(model("b", idle_timeout_s=0.0), limits=replace(w.limits, battery_idle_s=60.0))
    w.load("a")
    w.load("b")
    w.settle()
    w.post(events.PowerSeen(True))
    w.pass_time(50)
    assert w.state("a") is State.READY
    w.post(events.PowerSeen(False))
    w.pass_time(100)
    assert w.state("a") is State.READY
    w.post(events.PowerSeen(True))
    w.pass_time(1)
    assert w.state("a") is State.COLD
    w.pass_time(10_000)
    assert w.state("b") is State.READY


def test_who_asks_for_what_is_there_has_it() -> None:
    """It came up on the processor beside a game, and the GPUs are given away for another reason since."""
    w = gaming(LoadsMeanwhile.CPU, "a")
    play(w)
    w.load("a")
    w.settle()
    give_away(w)
    assert w.result(w.load("a")) is JobResult.DONE


@pytest.mark.parametrize("sleeps_first", [True, False])
def test_an_answer_that_outlasts_a_sleep_is_the_last_of_a_model_on_gpus_that_are_given_away(sleeps_first: bool) -> None:
    """The machine is awake again, or did not sleep after all: that gives nobody the GPUs back."""
    w = world("a")
    w.load("a", use=True)
    w.settle()
    if sleeps_first:
        w.post(events.SuspendAsked(4.0))
    give_away(w)
    if not sleeps_first:
        w.post(events.SuspendAsked(4.0))
    w.post(events.WokeUp())
    w.pass_time(1000)
    assert w.state("a") is State.DRAINING
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD
    resume(w)
    assert w.state("a") is (State.READY if sleeps_first else State.COLD)


def test_what_is_off_the_gpus_keeps_nothing_on_them() -> None:
    """It was there before what is."""
    w = world("h", "a")
    w.configure(model("h", gpu=HOST))
    w.load("h")
    w.load("a")
    w.settle()
    give_away(w)
    assert set(w.engines) == {"h"}


@pytest.mark.parametrize(("end", "within_s"), [(events.ShutdownAsked(), 20.0), (events.SuspendAsked(4.0), 2.5)])
def test_who_gives_the_gpus_away_has_neither_gpud_nor_the_machine_wait(end: events.Event, within_s: float) -> None:
    """An answer has as long as it would have had."""
    w = world("a")
    w.load("a", use=True)
    w.settle()
    w.post(end)
    give_away(w)
    w.pass_time(within_s + 0.1)
    assert w.engines == {}
