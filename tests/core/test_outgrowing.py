"""Engines that take more than they were promised, or say that they will: ended before it hurts, once tried again."""

import pytest

from gpud.core import events
from gpud.core.errors import BackendFailed, BudgetExceeded
from gpud.core.events import Kind
from gpud.core.facts import JobResult, State

from .world import BOB, GIB, GPU, Gpu, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def launches(w: World, name: str) -> list[float]:
    """What it was promised each time, in GiB."""
    found = [a for a in w.told if isinstance(a, events.Launch) and a.model.name == name]
    return [round(sum(share.bytes for share in launch.shares) / GIB, 2) for launch in found]


# While it loads


def test_what_takes_more_than_it_was_promised_while_there_is_room_is_promised_more() -> None:
    """Others are told no sooner than they have to be."""
    w = world("a", real_sizes={"a": 5 * GIB}, load_s={"a": 10.0})
    job = w.load("a")
    w.pass_time(8)
    assert w.status("a").need_bytes >= 3.8 * GIB
    assert w.device().committed_bytes >= 3.8 * GIB
    w.pass_time(3)
    assert w.result(job) is JobResult.DONE
    assert w.notices(Kind.OUTGREW) == []


def test_what_takes_more_than_there_is_is_killed_before_it_has_taken_it() -> None:
    """What others were promised is theirs; it is tried once more, with more."""
    w = world("a", "b", size=3 * GIB, real_sizes={"a": 6 * GIB}, load_s={"a": 10.0}, gpus={GPU: Gpu(7 * GIB)})
    w.load("b", use=True)
    w.settle()
    job = w.load("a")
    w.pass_time(7)
    notice = w.notices(Kind.OUTGREW)[0]
    assert '"a" is ended while it loads: it holds' in notice.message
    assert "on Test GPU, it was promised 3.0 GiB and no more is free; it is tried once more" in notice.message
    cancel = next(a for a in w.told if isinstance(a, events.CancelLaunch))
    assert cancel.kill
    assert w.held(GPU) <= 7 * GIB
    assert launches(w, "a") == [3.0]
    assert job not in w.jobs, "the second try waits for b"
    w.post(events.UseEnded("b"))
    w.pass_time(0.5)
    assert 4.05 * 1.1 <= launches(w, "a")[1] <= 4.2 * 1.1


def test_the_second_time_it_fails_with_the_numbers() -> None:
    """It is not tried for ever."""
    w = world("a", real_sizes={"a": 9 * GIB}, load_s={"a": 10.0}, gpus={GPU: Gpu(8 * GIB, foreign_bytes=2 * GIB)})
    job = w.load("a")
    w.pass_time(30)
    assert w.result(job) is JobResult.FAILED
    assert isinstance(w.jobs[job].error, BudgetExceeded)
    assert len(launches(w, "a")) <= 2
    assert w.engines == {}
    assert w.state("a") is State.COLD
    w.pass_time(60)
    assert len(launches(w, "a")) <= 2


def test_what_was_learned_by_ending_it_is_forgotten_with_the_next_wish() -> None:
    """The quote may be another by then."""
    w = world("a", real_sizes={"a": 9 * GIB}, load_s={"a": 10.0}, gpus={GPU: Gpu(8 * GIB, foreign_bytes=2 * GIB)})
    w.load("a")
    w.pass_time(30)
    w.real_sizes["a"] = 3 * GIB
    job = w.load("a")
    w.pass_time(11)
    assert w.result(job) is JobResult.DONE
    assert launches(w, "a")[-1] == 3.0


def test_what_a_driver_rounds_up_is_not_more() -> None:
    """Some MiB beyond the promise end no load."""
    w = world("a", real_sizes={"a": 3 * GIB + (60 << 20)}, load_s={"a": 4.0}, gpus={GPU: Gpu(3 * GIB + (60 << 20))})
    job = w.load("a")
    w.pass_time(5)
    assert w.result(job) is JobResult.DONE


@pytest.mark.parametrize("more_bytes", [64 << 20, (64 << 20) + 1])
def test_what_a_driver_may_round_up_has_a_limit(more_bytes: int) -> None:
    """A byte beyond it, and the engine is promised what it holds."""
    w = world("a", real_sizes={"a": 3 * GIB + more_bytes}, load_s={"a": 9.0})
    w.load("a")
    w.settle()
    w.engines["a"].load_s = 0.0
    w.post(events.LookAsked())
    w.settle()
    assert w.state("a") is State.LOADING
    assert w.status("a").need_bytes == 3 * GIB + (more_bytes if more_bytes > 64 << 20 else 0)


def test_one_that_came_up_is_promised_no_more_than_it_held_when_it_comes_back() -> None:
    """What it was given more for its second try has done its work."""
    w = world("a", oom={"a": 3 * GIB + 1})
    w.load("a")
    w.settle()
    assert launches(w, "a") == [3.0, 3.75]
    w.oom.clear()
    w.end("a", code=1)
    w.pass_time(10)
    assert launches(w, "a") == [3.0, 3.75, 3.0]


def test_a_load_is_looked_at_often_and_nothing_else_is() -> None:
    """Ten times a second while it fills its memory; then only on the slow timer."""
    w = world("a", load_s={"a": 2.0})
    w.load("a")
    w.pass_time(1.9)
    looks = sum(isinstance(a, events.Sample) for a in w.told)
    assert 15 <= looks <= 25
    w.pass_time(1)
    after = sum(isinstance(a, events.Sample) for a in w.told)
    w.pass_time(30)
    assert sum(isinstance(a, events.Sample) for a in w.told) - after == 3


def test_a_driver_that_does_not_tell_of_processes_ends_no_load() -> None:
    """What is not known is not taken for too much."""
    w = world("a", real_sizes={"a": 6 * GIB}, load_s={"a": 4.0}, gpus={GPU: Gpu(tells=False)})
    job = w.load("a")
    w.pass_time(5)
    assert w.result(job) is JobResult.DONE


# The engine's own word


def test_the_engines_own_word_takes_the_place_of_what_was_calculated() -> None:
    """More, and there is room."""
    w = world("a", says={"a": 5 * GIB}, load_s={"a": 5.0})
    w.load("a")
    w.settle()
    assert w.status("a").need_bytes == 5 * GIB
    assert w.device().committed_bytes == 5 * GIB


def test_if_it_says_less_those_who_wait_have_the_rest_at_once() -> None:
    """Not only when the load is over."""
    w = world("a", "b", size=5 * GIB, says={"a": 3 * GIB}, load_s={"a": 60.0, "b": 1.0})
    w.load("a")
    job = w.load("b", BOB)
    w.pass_time(2)
    assert w.result(job) is JobResult.DONE
    assert w.state("a") is State.LOADING


def test_if_it_says_more_than_there_is_it_is_ended_and_tried_again_with_the_new_quote() -> None:
    """Once, when there is room; what it said is known by then."""
    w = world("a", "b", size=4 * GIB, says={"a": 6 * GIB}, load_s={"a": 5.0})
    w.load("b", use=True)
    w.settle()
    job = w.load("a")
    w.sizes["a"] = 6 * GIB
    w.look()
    w.sizes["a"] = 4 * GIB
    w.unload("a")
    w.settle()
    w.jobs.clear()
    job = w.load("a")
    w.look()
    w.sizes["a"] = 6 * GIB
    w.settle()
    assert "its engine is about to take 6.0 GiB on Test GPU, it was promised 4.0 GiB" in (
        w.notices(Kind.OUTGREW)[0].message
    )
    assert job not in w.jobs
    assert 'waiting until "b" has answered' in w.status("a").waits_for
    w.post(events.UseEnded("b"))
    w.pass_time(6)
    assert w.result(job) is JobResult.DONE
    assert launches(w, "a") == [4.0, 6.0]


def test_if_it_can_never_fit_it_is_refused_after_the_first_try() -> None:
    """With the numbers of what is known now."""
    w = world("a", says={"a": 9 * GIB}, load_s={"a": 5.0})
    job = w.load("a")
    w.look()
    w.sizes["a"] = 9 * GIB
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert "it needs 9.0 GiB, the whole budget of Test GPU is 8.0 GiB" in w.jobs[job].message
    assert launches(w, "a") == [3.0]


# Out of memory


def test_a_load_that_runs_out_of_memory_is_tried_once_with_a_quarter_more() -> None:
    """Nobody knows how much it wanted."""
    w = world("a", size=4 * GIB, oom={"a": 5 * GIB})
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert launches(w, "a") == [4.0, 5.0]
    message = w.notices(Kind.OUTGREW)[0].message
    assert message == (
        'Loading "a" failed for lack of memory with 4.0 GiB reserved (out of memory); it is tried once more with '
        "5.0 GiB"
    )
    assert w.status("a").attempts == 0


def test_a_load_that_runs_out_of_memory_twice_has_failed() -> None:
    """It backs off like every other failure."""
    w = world("a", size=4 * GIB, oom={"a": 7 * GIB})
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert isinstance(w.jobs[job].error, BackendFailed)
    assert launches(w, "a") == [4.0, 5.0]
    assert w.state("a") is State.BACKOFF


def test_one_that_runs_out_of_memory_each_time_has_failed_like_any_other() -> None:
    """After so many times it is not tried again, although each time it was given more; and the count is told."""
    w = world("a", size=1 * GIB, oom={"a": 7 * GIB})
    tries = w.limits.backoff_attempts
    for _ in range(tries):
        job = w.load("a")
        w.settle()
        w.pass_time(w.limits.backoff_max_s + 1)
        assert w.result(job) is JobResult.FAILED
    assert (w.state("a"), w.status("a").attempts) == (State.FAILED, tries)
    with pytest.raises(BackendFailed, match=f"{tries} attempts have failed"):
        w.load("a")


def test_memory_of_a_load_that_failed_is_waited_for() -> None:
    """Its driver has not cleaned up yet: who waits for that memory is not refused."""
    w = world("a", "b", size=6 * GIB, load_s={"a": 4.0})
    w.load("a")
    w.pass_time(3)
    job = w.load("b", BOB)
    w.pass_time(0.05)
    w.gpus[GPU].late_bytes = w.held(GPU)
    w.end("a", code=1)
    w.settle()
    assert job not in w.jobs
    assert "come back" in w.status("b").waits_for
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.05)
    assert w.result(job) is JobResult.DONE
