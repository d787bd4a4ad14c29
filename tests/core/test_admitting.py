"""The queue is served by one look: in which order, with which wishes, until when, and what is told of it."""

import pytest

from gpud.core import events
from gpud.core.admitting import grown
from gpud.core.events import Kind
from gpud.core.facts import HOST, BudgetLimits, JobResult, Limits, QueueLimits
from gpud.core.quote import ANY_GPU, Offer, Quote, Share
from gpud.core.record import replace

from .world import ALICE, BOB, CAROL, GIB, World, model

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


@pytest.mark.parametrize("growth", [1.0, 1.5])
def test_a_quote_grows_where_the_engine_was_seen_to_grow(growth: float) -> None:
    """On its GPUs; what it maps of the machine's memory beside them is its file, unless that is all it has."""
    on_gpu = Offer((Share(ANY_GPU, 4), Share(HOST, 8)))
    quote = Quote((on_gpu, Offer((Share(HOST, 8),))), load_s=3.0, less=(on_gpu,))
    result = grown(quote, growth)
    assert [[share.bytes for share in offer.shares] for offer in result.offers] == [[4 * growth, 8], [8 * growth]]
    assert (result.load_s, result.less) == (3.0, (on_gpu,))
