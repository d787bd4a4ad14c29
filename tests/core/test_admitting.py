"""The queue is served by one look: in which order, with which wishes, until when, and what is told of it."""

import pytest

from gpud.core import events
from gpud.core.admitting import grown
from gpud.core.events import Kind
from gpud.core.facts import HOST, BudgetLimits, JobResult, Limits, QueueLimits, State
from gpud.core.quote import ANY_GPU, Offer, Quote, Share
from gpud.core.record import replace

from .world import ALICE, BOB, CAROL, GIB, GPU, GPU1, Gpu, World, model

LIMITS = Limits(gpu=BudgetLimits(), host=BudgetLimits(), queue=QueueLimits(timeout_s=100.0, turn_s=10.0), watch_s=0.0)


def one_at_a_time(*names: str) -> World:
    """Each fills the whole GPU, and the first answers."""
    w = World({name: model(name) for name in names}, dict.fromkeys(names, 8 * GIB), limits=LIMITS)
    w.load(names[0], use=True)
    w.settle()
    return w


def free(w: World, name: str) -> None:
    w.post(events.UseEnded(name))
    w.settle()


def test_of_two_with_the_same_turn_the_one_that_is_known_to_load_quickly_comes_first() -> None:
    """By what was measured before gpud was started; what it has seen itself since counts instead."""
    w = one_at_a_time("z", "slow", "quick")
    for name, load_s in (("slow", 30.0), ("quick", 2.0)):
        w.quotes[name] = replace(Quote.simple(8 * GIB), load_s=load_s)
    w.load("slow", ALICE, use=True)
    w.load("quick", BOB, use=True)
    w.settle()
    free(w, "z")
    assert w.launches() == ["z", "quick"]
    free(w, "quick")
    assert w.launches() == ["z", "quick", "slow"]
    w.load("quick", BOB)
    w.settle()
    assert [place.load_s for place in w.queue()] == [0.0]


def test_of_two_who_wait_for_one_load_it_is_enough_that_one_lets_others_go() -> None:
    """The other has what comes of it."""
    w = World({name: model(name) for name in "ab"}, dict.fromkeys("ab", 8 * GIB), limits=LIMITS)
    w.load("a")
    w.settle()
    jobs = [w.load("b", ALICE, evict=False), w.load("b", BOB, evict=True)]
    w.settle()
    assert [w.result(job) for job in jobs] == [JobResult.DONE] * 2


def test_time_is_wanted_for_the_turn_of_who_waits_and_then_for_the_end_of_its_patience() -> None:
    """And for nothing in between; of two who wait for one load the sooner one counts."""
    w = one_at_a_time("z", "a")
    asked = w.now
    w.load("a", BOB, wait_s=50.0)
    hasty = w.load("a", CAROL, wait_s=30.0)
    w.settle()
    assert w.scheduler.next_deadline() == asked + 10
    w.pass_time(10)
    assert [place.overdue for place in w.queue()] == [True]
    assert w.scheduler.next_deadline() == asked + 30
    w.pass_time(20)
    assert w.result(hasty) is JobResult.TIMEOUT
    assert w.notices(Kind.LOAD_TIMED_OUT)[0].fields["waited_seconds"] == 30
    assert w.scheduler.next_deadline() == asked + 50


def test_a_claim_waits_until_its_own_time_and_has_its_turn_like_a_load() -> None:
    """One that names none waits as long as is configured."""
    w = one_at_a_time("z")
    asked = w.now
    patient, hasty = w.claim(8 * GIB), w.claim(8 * GIB, BOB, wait_s=20.0)
    w.settle()
    assert w.scheduler.next_deadline() == asked + 10
    w.pass_time(10)
    assert w.scheduler.next_deadline() == asked + 20
    w.pass_time(10)
    assert hasty in w.over and patient not in w.over
    assert w.scheduler.next_deadline() == asked + 100


def test_who_waits_is_told_with_what_it_asks_for() -> None:
    """A load by its model, a claim by its program, each once."""
    w = one_at_a_time("z", "a")
    w.load("a", BOB)
    claim = w.claim(4 * GIB)
    w.pass_time(5)
    load, claimed = w.notices(Kind.LOAD_WAITS)
    assert load.message.startswith('Load "a": needs 8.0 GiB, 0 MiB available on Test GPU')
    assert (load.model, load.fields["need_bytes"]) == ("a", 8 * GIB)
    assert claimed.message.startswith("Give 4.0 GiB to train.py: ")
    assert claimed.fields == {"claim": claim, "need_bytes": 4 * GIB}


def test_for_whom_a_model_had_to_go_is_told_of_a_program_as_well() -> None:
    """By its name, without quotes, as for every name of a program."""
    w = World({"a": model("a")}, {"a": 8 * GIB}, limits=LIMITS)
    w.load("a")
    w.pass_time(5)
    w.claim(4 * GIB)
    w.settle()
    notice = w.notices(Kind.EVICTED)[0]
    assert '"a", idle for 5 s and holding 8.0 GiB, makes room for train.py (' in notice.message
    assert notice.fields["for_model"] == "train.py"


def test_what_a_model_makes_room_for_is_what_it_has_on_that_device() -> None:
    """What it has in the machine's memory is nobody's gain on a GPU."""
    w = World({name: model(name) for name in "ab"}, dict.fromkeys("ab", 8 * GIB), limits=LIMITS)
    w.quotes["a"] = Quote((Offer((Share(ANY_GPU, 4 * GIB), Share(HOST, 2 * GIB))),))
    w.load("a")
    w.settle()
    w.load("b")
    w.settle()
    assert w.notices(Kind.EVICTED)[0].fields["freed_bytes"] == 4 * GIB


def test_eight_of_those_who_stay_are_told() -> None:
    """A line in the journal has an end."""
    names = [f"small{number}" for number in range(10)]
    w = World({name: model(name) for name in (*names, "a")}, dict.fromkeys(names, GIB // 2) | {"a": 3 * GIB + GIB // 2})
    for name in names:
        w.load(name)
        w.pass_time(1)
    w.load("a")
    w.settle()
    spared = str(w.notices(Kind.EVICTED)[0].fields["spared"]).split(", ")
    assert len(w.notices(Kind.EVICTED)) == 1
    assert len(spared) == len(set(spared)) == 8


def test_what_is_dear_to_load_makes_room_when_nobody_has_asked_for_it_for_long() -> None:
    """Rather than what is loaded in a moment and was asked for a moment ago."""
    w = World({name: model(name, idle_timeout_s=0.0) for name in "abc"}, dict.fromkeys("abc", 4 * GIB), limits=LIMITS)
    w.load_s = {"a": 10.0, "b": 2.0}
    for name, idle_s in (("a", 3600), ("b", 1)):
        w.load(name, use=True)
        w.pass_time(11)
        free(w, name)
        w.pass_time(idle_s)
    w.load("c")
    w.settle()
    assert [notice.model for notice in w.notices(Kind.EVICTED)] == ["a"]


def test_who_waits_for_a_model_waits_for_that_one() -> None:
    """Although another, which is in use as well, would now be the lesser loss: both would be kept from working else."""
    w = World({name: model(name) for name in "abc"}, dict.fromkeys("abc", 4 * GIB), limits=LIMITS)
    w.load_s = {"a": 1.0, "b": 8.0}
    for name in "ab":
        w.load(name, use=True)
        w.pass_time(9)
    w.load("c", BOB)
    w.settle()
    assert 'until "a" has answered' in w.queue()[0].waits_for
    for _ in range(200):
        w.post(events.UseBegan("a"))
    w.post(events.LookAsked())
    w.settle()
    assert 'until "a" has answered' in w.queue()[0].waits_for
    w.load("c", ALICE)
    w.settle()
    free(w, "b")
    w.settle()
    assert w.launches()[-1] == "c" and "b" not in w.engines


def test_all_whose_turn_has_come_have_it_at_the_same_time() -> None:
    """On different GPUs they are not in each other's way."""
    w = World(
        {"x": model("x", gpu="0"), "y": model("y", gpu="1"), "a": model("a", gpu="0"), "b": model("b", gpu="1")},
        dict.fromkeys("xyab", 8 * GIB),
        gpus={GPU: Gpu(), GPU1: Gpu()},
        limits=LIMITS,
    )
    for name in "xy":
        w.load(name, use=True)
    w.settle()
    w.load("a", ALICE)
    w.load("b", BOB)
    w.pass_time(LIMITS.queue.turn_s)
    assert [w.state(name) for name in "xy"] == [State.DRAINING] * 2


@pytest.mark.parametrize("growth", [1.0, 1.5, 2.0])
def test_a_quote_grows_where_the_engine_was_seen_to_grow(growth: float) -> None:
    """On its GPUs; what it maps of the machine's memory beside them is its file, unless that is all it has."""
    on_gpu = Offer((Share(ANY_GPU, 4), Share(HOST, 8)))
    quote = Quote((on_gpu, Offer((Share(HOST, 8),))), load_s=3.0, less=(on_gpu,))
    result = grown(quote, growth)
    assert [[share.bytes for share in offer.shares] for offer in result.offers] == [[4 * growth, 8], [8 * growth]]
    assert (result.load_s, result.less) == (3.0, (on_gpu,))
