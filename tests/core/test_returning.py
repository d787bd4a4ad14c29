"""Memory on its way back from several at once: what a look shows to be back is waited for no longer."""

import itertools

import pytest

from gpud.core import events
from gpud.core.events import Kind
from gpud.core.facts import Exit, JobResult, State
from gpud.core.quote import Offer, Quote, Share, Source

from .world import GIB, GPU, GPU1, Gpu, World, model

SIZES = {"a": 3 * GIB, "b": 2 * GIB, "c": GIB}


def loaded_all() -> World:
    """Three engines, and a look that has seen what each of them holds."""
    w = World({name: model(name) for name in SIZES}, dict(SIZES))
    for name in SIZES:
        w.load(name)
        w.settle()
    w.pass_time(1)
    return w


def expects(w: World) -> bool:
    """Whether a look is wanted again: that is so while memory is on its way back."""
    return any(isinstance(action, events.Sample) for action in w.pending)


def late(w: World) -> list[str]:
    return [notice.message for notice in w.notices(Kind.MEMORY_LATE)]


def dies(w: World, name: str) -> events.EngineGone:
    """Its process ends and its memory comes back; that is told when somebody posts what this returns."""
    engine = w.engines.pop(name)
    return events.EngineGone(name, engine.generation, Exit(engine.pid, 0, ()))


@pytest.mark.parametrize("order", list(itertools.permutations(SIZES)))
def test_what_several_held_is_back_at_once(order: tuple[str, ...]) -> None:
    """All end between two looks: the next one shows everything free, and nobody waits for any of it."""
    w = loaded_all()
    for name in order:
        w.end(name)
    w.settle()
    w.pass_time(0.3)
    assert not expects(w)
    w.pass_time(w.limits.memory_wait_s + 1)
    assert late(w) == []


@pytest.mark.parametrize("order", list(itertools.permutations(SIZES)))
def test_what_a_look_saw_before_its_end_was_told_is_back(order: tuple[str, ...]) -> None:
    """A process is gone, and so is its memory, in a look that comes before anybody has heard of its end."""
    w = loaded_all()
    first, second, third = order
    w.end(first)
    told_later = dies(w, second)
    w.pass_time(0.3)
    w.post(told_later)
    w.end(third)
    w.settle()
    w.pass_time(0.3)
    assert not expects(w)
    w.pass_time(w.limits.memory_wait_s + 1)
    assert late(w) == []


@pytest.mark.parametrize("order", list(itertools.permutations(SIZES)))
def test_what_really_is_late_is_told_whoever_ends_meanwhile(order: tuple[str, ...]) -> None:
    """The memory of the one that ended first stays away, that of the others is back. Whose it is cannot be seen: at
    least as much is told."""
    w = loaded_all()
    first, *others = order
    w.gpus[GPU].late_bytes = SIZES[first]
    w.end(first)
    w.settle()
    for name in others:
        w.end(name)
    w.pass_time(w.limits.memory_wait_s + 1)
    told = [name for name in SIZES if any(f"{SIZES[name] // GIB}.0 GiB on" in text for text in late(w))]
    assert sum(SIZES[name] for name in told) >= SIZES[first], late(w)


def test_a_load_does_not_wait_for_memory_that_is_there() -> None:
    """All three end at once, then somebody wants almost everything."""
    w = loaded_all()
    for name in SIZES:
        w.end(name)
    w.configure(model("large"), large=7 * GIB)
    w.load("large")
    w.settle()
    w.pass_time(0.1)
    assert w.state("large") is State.READY


def test_a_look_from_before_an_end_shows_nothing_to_be_back() -> None:
    """It still sees the engines that made room and have ended meanwhile; what they hold is nobody's any more, and
    whoever waits for it goes on waiting until a look shows it free."""
    w = loaded_all()
    w.configure(model("large"), large=7 * GIB)
    job = w.load("large")
    while others := [action for action in w.pending if not isinstance(action, events.Stop)]:
        w.do(others[0])
    stops = list(w.pending)
    assert {stop.model for stop in stops} == {"a", "b"}  # With these gone it fits beside the third.
    seen, own = w.sample(), {engine.model: frozenset((engine.pid,)) for engine in w.engines.values()}
    w.gpus[GPU].late_bytes = 5 * GIB
    for stop in stops:
        w.do(stop)
    large = w.models["large"]
    w.post(events.Sampled(seen, own, {"large": w.quote(large)}, checked=(large,), tickets=99))
    w.pass_time(0.5)
    assert job not in w.jobs, w.jobs[job].message
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.1)
    assert w.state("large") is State.READY


def test_what_was_held_on_two_gpus_is_back_on_both() -> None:
    """A look shows it before its end is told: nothing is waited for, and the next one has all of it at once."""
    halves = (Share(GPU, 4 * GIB), Share(GPU1, 4 * GIB))
    w = World(
        {"a": model("a"), "b": model("b")},
        {"b": 6 * GIB},
        {GPU: Gpu(), GPU1: Gpu()},
        quotes={"a": Quote((Offer(halves, Source.FORMULA, split=(0.5, 0.5)),))},
    )
    w.load("a")
    w.settle()
    told_later = dies(w, "a")
    w.post(events.LookAsked())
    w.settle()
    w.post(told_later)
    w.pass_time(0.3)
    assert not expects(w)
    w.load("b")
    w.settle()
    assert w.state("b") is State.READY
    w.pass_time(w.limits.memory_wait_s + 1)
    assert late(w) == []


@pytest.mark.parametrize("first", ["asleep", "away"])
def test_a_gpu_that_tells_nothing_hides_nothing_of_the_others(first: str) -> None:
    """What was held on the second one is back all the same."""
    w = World({"a": model("a", gpu="1")}, {"a": 4 * GIB}, {GPU: Gpu(), GPU1: Gpu()})
    w.load("a")
    w.settle()
    told_later = dies(w, "a")
    if first == "asleep":
        w.gpus[GPU].asleep = True
    else:
        del w.gpus[GPU]
    w.post(events.LookAsked())
    w.settle()
    w.post(told_later)
    w.pass_time(0.3)
    assert not expects(w)
    w.pass_time(w.limits.memory_wait_s + 1)
    assert late(w) == []


def test_what_a_look_misses_is_waited_for_until_it_is_there() -> None:
    """Its process is no longer seen, and its driver still has the memory: who comes next waits, each time anew."""
    w = World({"a": model("a"), "b": model("b")}, {"a": 6 * GIB, "b": 6 * GIB})
    for seen_first in (True, False):
        w.load("a")
        w.settle()
        told_later = dies(w, "a")
        w.gpus[GPU].late_bytes = 6 * GIB
        if seen_first:
            w.post(events.LookAsked())
            w.settle()
        w.post(told_later)
        job = w.load("b")
        w.pass_time(1)
        assert "to come back on Test GPU" in w.status("b").waits_for
        w.gpus[GPU].late_bytes = 0
        w.pass_time(1)
        assert w.result(job) is JobResult.DONE
        w.unload("b")
        w.settle()
        w.pass_time(1)
    assert late(w) == []


def test_who_is_seen_again_has_not_ended() -> None:
    """One look did not list its process; when it really ends, its memory is waited for."""
    w = World({"a": model("a"), "b": model("b")}, {"a": 6 * GIB, "b": 6 * GIB})
    w.load("a")
    w.settle()
    real, w.engines["a"].real = w.engines["a"].real, {}
    w.post(events.LookAsked())
    w.settle()
    w.engines["a"].real = real
    w.post(events.LookAsked())
    w.settle()
    told = dies(w, "a")
    w.gpus[GPU].late_bytes = 6 * GIB
    w.post(told)
    job = w.load("b")
    w.pass_time(1)
    w.gpus[GPU].late_bytes = 0
    w.pass_time(1)
    assert w.result(job) is JobResult.DONE
