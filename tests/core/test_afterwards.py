"""What is left of an engine that went otherwise than planned: nothing that its next load would notice."""

import pytest

from gpud.core import events
from gpud.core.facts import BudgetLimits, EvictionLimits, EvictionPolicy, Limits, State
from gpud.core.quote import Share

from .world import GIB, GPU, World, model

LIMITS = Limits(gpu=BudgetLimits(), host=BudgetLimits(), memory_wait_s=5.0)


def world(*names: str, limits: Limits = LIMITS, size: int = 2 * GIB) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), limits=limits)


def test_a_crash_in_the_middle_of_a_question_is_not_the_last_question() -> None:
    """The engine that comes back is asked as well, and goes when it is idle."""
    w = world("a")
    w.load("a")
    w.settle()
    w.now += 301
    w.post(events.TimePassed())
    assert any(isinstance(action, events.AskBusy) for action in w.pending)
    w.pending = [action for action in w.pending if not isinstance(action, events.AskBusy)]
    w.end("a", code=1)
    w.pass_time(10)
    assert w.state("a") is State.READY
    w.pass_time(310)
    assert w.state("a") is State.COLD


def test_requests_that_a_crash_has_cut_are_not_in_flight_afterwards() -> None:
    """Else the engine that comes back would never be idle; an end with status 0 is no other."""
    for code in (1, 0):
        w = world("a")
        w.load("a", use=True)
        w.settle()
        w.end("a", code=code)
        assert w.status("a").in_flight == 0
        w.load("a")
        w.pass_time(10)
        assert (w.state("a"), w.status("a").in_flight) == (State.READY, 0)


def test_a_budget_that_was_set_for_a_while_ends_with_the_next_reload() -> None:
    """What is configured counts again."""
    w = world("a")
    w.load("a")
    w.settle()
    w.post(events.BudgetSet(3 * GIB))
    assert w.device().budget_bytes == 3 * GIB
    w.configure()
    assert w.device().budget_bytes == 8 * GIB


def test_an_adopted_engine_is_idle_for_as_long_as_was_said_for_all() -> None:
    """By command, before it was taken over."""
    w = world("a")
    w.post(events.IdleTimeoutSet(40.0))
    w.adopt("a", Share(GPU, 2 * GIB))
    w.pass_time(39)
    assert w.state("a") is State.READY
    w.pass_time(2)
    assert w.state("a") is State.COLD


@pytest.mark.parametrize(("policy", "goes"), [(EvictionPolicy.LRU, "dear"), (EvictionPolicy.HYBRID, "cheap")])
def test_who_gives_way_to_other_programs_follows_the_policy(policy: EvictionPolicy, goes: str) -> None:
    """By use alone, or by what is lost with it."""
    limits = Limits(
        gpu=BudgetLimits(reserve_bytes=GIB),
        host=BudgetLimits(),
        memory_wait_s=5.0,
        eviction=EvictionLimits(policy=policy),
    )
    w = world("dear", "cheap", limits=limits)
    w.load_s = {"dear": 50.0, "cheap": 0.1}
    for name in ("dear", "cheap"):
        w.load(name)
        w.pass_time(51)
    w.post(events.UseBegan("cheap"))
    w.post(events.UseEnded("cheap"))
    w.gpus[GPU].programs["blender"] = 4 * GIB - GIB // 2
    w.pass_time(12)
    assert [name for name in ("dear", "cheap") if w.state(name) is not State.READY] == [goes]


def test_a_model_above_the_threshold_goes_by_itself_down_to_the_other_one() -> None:
    """Not at the threshold itself."""
    eviction = EvictionLimits(above_percent=75.0, below_percent=40.0)
    limits = Limits(gpu=BudgetLimits(), host=BudgetLimits(), memory_wait_s=5.0, eviction=eviction)
    w = world("a", "b", "c", limits=limits)
    for name in ("a", "b", "c"):
        w.load(name)
        w.pass_time(11)
    assert [w.state(name) for name in ("a", "b", "c")] == [State.READY] * 3
    w.gpus[GPU].programs["viewer"] = 1
    w.pass_time(11)
    assert [w.state(name) for name in ("a", "b", "c")] == [State.COLD, State.COLD, State.READY]
