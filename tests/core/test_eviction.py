"""Who goes: the set that covers what is missing with the least loss, by each policy's own measure."""

import itertools
from collections.abc import Sequence

import pytest
from counted import calls_of
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.eviction import Candidate, choose, loss
from gpud.core.facts import EvictionPolicy
from gpud.core.record import replace
from gpud.core.usage import Usage

GIB = 1 << 30
NOW = 10_000.0
POLICIES = tuple(EvictionPolicy)


def candidate(name: str, idle_s: float, gib: float, priority: int = 1, reload_s: float = 3.0) -> Candidate:
    return Candidate(name, NOW - idle_s, int(gib * GIB), priority, reload_s)


def with_habit(one: Candidate, *pauses_s: float) -> Candidate:
    """The same, used after each of these pauses, the last time when it was used last."""
    usage, at = Usage(), one.last_used_s - sum(pauses_s)
    usage.note(at)
    for pause_s in pauses_s:
        at += pause_s
        usage.note(at)
    return replace(one, usage=usage)


def names(chosen: Sequence[Candidate] | None) -> set[str]:
    assert chosen is not None
    return {one.model for one in chosen}


candidates = st.lists(
    st.builds(
        Candidate,
        model=st.just(""),
        last_used_s=st.floats(0.0, NOW),
        bytes=st.integers(0, 24 * GIB),
        priority=st.integers(0, 3),
        reload_s=st.floats(0.0, 60.0),
    ),
    max_size=9,
).map(lambda found: [replace(one, model=f"m{number}") for number, one in enumerate(found)])


@pytest.mark.parametrize("policy", POLICIES)
@given(some=candidates, missing=st.integers(-GIB, 100 * GIB))
def test_the_chosen_ones_cover_it_and_nobody_goes_in_vain(
    policy: EvictionPolicy, some: list[Candidate], missing: int
) -> None:
    """None only when all of them would not do; else enough, each of them once, and none that could stay."""
    chosen = choose(some, missing, policy=policy, now=NOW)
    if chosen is None:
        assert sum(one.bytes for one in some) < missing
        return
    covered = sum(one.bytes for one in chosen)
    assert covered >= missing
    assert len(names(chosen)) == len(chosen)
    assert all(covered - one.bytes < missing for one in chosen)
    assert all(one in some for one in chosen)


def test_a_cheap_model_is_spared_beside_a_very_dear_one_that_has_to_go_anyway() -> None:
    """Its cost is lost in the rounding of the sum, which must not send it away for nothing."""
    large = Candidate("large", 0.0, 562056, priority=0)
    cheap, dear = Candidate("cheap", 0.0, 1, priority=0), Candidate("dear", 0.0, 2, priority=2)
    dearer = Candidate("dearer", 0.0, 4, priority=2, reload_s=1.0)

    assert names(choose((cheap, dear, dearer, large), 562058, now=NOW)) == {"large", "dear"}


@given(some=candidates, missing=st.integers(1, 60 * GIB))
def test_hybrid_finds_the_set_with_the_least_loss(some: list[Candidate], missing: int) -> None:
    """Compared with every set there is: first the losses of the highest priority, then of the next, and so on."""

    def losses(chosen: Sequence[Candidate]) -> tuple[float, ...]:
        return tuple(
            sum(max(1e-6, loss(one, NOW)) for one in chosen if one.priority == level) for level in (3, 2, 1, 0)
        )

    chosen = choose(some, missing, now=NOW)
    if chosen is None:
        return
    every = (group for size in range(1, len(some) + 1) for group in itertools.combinations(some, size))
    best = min(losses(group) for group in every if sum(one.bytes for one in group) >= missing)
    assert losses(chosen) == pytest.approx(best, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("policy", [EvictionPolicy.HYBRID, EvictionPolicy.PRIORITY])
def test_a_lower_priority_goes_before_a_higher_one(policy: EvictionPolicy) -> None:
    """However much is lost by it, and however many they are."""
    low = [candidate(f"low{number}", 1.0, 1.0, priority=0, reload_s=60.0) for number in range(5)]
    high = candidate("high", 9000.0, 5.0, priority=2, reload_s=0.1)
    assert names(choose([high, *low], 5 * GIB, policy=policy, now=NOW)) == {one.model for one in low}
    assert names(choose([high, *low], 6 * GIB, policy=policy, now=NOW)) >= {"high"}


def test_lru_looks_at_nothing_but_the_last_use() -> None:
    """Neither priority nor what is lost."""
    some = [candidate("old", 900.0, 4.0, priority=3, reload_s=60.0), candidate("new", 10.0, 4.0, priority=0)]
    assert names(choose(some, 4 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"old"}


def test_priority_takes_the_least_recently_used_of_the_lowest() -> None:
    """Sizes and reloads do not matter to it."""
    some = [
        candidate("a", 100.0, 4.0, priority=1),
        candidate("b", 50.0, 4.0, priority=0, reload_s=60.0),
        candidate("c", 20.0, 4.0, priority=0, reload_s=0.1),
    ]
    assert names(choose(some, 4 * GIB, policy=EvictionPolicy.PRIORITY, now=NOW)) == {"b"}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_small_old_model_stays_when_a_larger_one_has_to_go_anyway(policy: EvictionPolicy) -> None:
    """It would not be enough, and with the larger one it is not needed."""
    some = [candidate("small", 900.0, 1.0), candidate("large", 10.0, 8.0)]
    assert names(choose(some, 6 * GIB, policy=policy, now=NOW)) == {"large"}


def test_what_is_slow_to_load_stays() -> None:
    """Of two that are alike otherwise, the one that is back sooner goes."""
    some = [candidate("slow", 60.0, 4.0, reload_s=30.0), candidate("quick", 60.0, 4.0, reload_s=1.0)]
    assert names(choose(some, 4 * GIB, now=NOW)) == {"quick"}


def test_what_is_used_often_stays_though_it_was_used_last_before_the_other() -> None:
    """A model that comes back every minute outlives one that was used once, just now by mistake."""
    often = with_habit(candidate("often", 30.0, 4.0), *[60.0] * 30)
    once = with_habit(candidate("once", 25.0, 4.0))
    some = [often, once]
    assert names(choose(some, 4 * GIB, now=NOW)) == {"once"}
    assert names(choose(some, 4 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"often"}


def test_a_model_whose_burst_is_over_goes() -> None:
    """It was used last, but its pauses were a second or an hour, and the second is over."""
    chatty = with_habit(candidate("chatty", 20.0, 4.0), *([1.0] * 9 + [3600.0]) * 3, *[1.0] * 9)
    steady = with_habit(candidate("steady", 40.0, 4.0), *[50.0] * 40)
    assert names(choose([chatty, steady], 4 * GIB, now=NOW)) == {"chatty"}


def test_many_small_ones_go_for_a_large_one_only_if_less_is_lost_by_it() -> None:
    """The sum decides, not the value of each."""
    large = candidate("large", 100.0, 12.0, reload_s=6.0)
    small = [candidate(f"small{number}", 100.0, 4.0, reload_s=3.0) for number in range(3)]
    assert names(choose([large, *small], 12 * GIB, now=NOW)) == {"large"}
    idle = [replace(one, last_used_s=0.0) for one in small]
    busy = replace(large, last_used_s=NOW - 1)
    assert names(choose([busy, *idle], 12 * GIB, now=NOW)) == {one.model for one in small}


def test_nothing_missing_sends_nobody_away() -> None:
    """Nobody has to go for what is there."""
    assert choose([candidate("a", 1.0, 1.0)], 0, now=NOW) == ()


def test_an_engine_without_memory_is_no_help() -> None:
    """It gives nothing back, so it stays."""
    some = [candidate("empty", 900.0, 0.0), candidate("full", 1.0, 2.0)]
    assert names(choose(some, GIB, now=NOW)) == {"full"}


def test_loss_is_of_what_was_never_used_by_how_long_it_has_been_there() -> None:
    """A model that was loaded ahead has no history of its own."""
    fresh, stale = candidate("fresh", 5.0, 1.0), candidate("stale", 5000.0, 1.0)
    assert loss(fresh, NOW) > loss(stale, NOW) > 0
    assert loss(replace(fresh, usage=Usage()), NOW) == loss(fresh, NOW)


def test_twice_as_many_candidates_are_twice_the_work_at_most() -> None:
    """Whom to ask for memory is decided on the loop; the search for the best set is bounded, and the rest is a look at
    each candidate."""

    def work(count: int) -> int:
        some = [
            with_habit(candidate(f"m{number}", 1.0 + number * 7919 % 3600, 0.5 + number % 17), *[30.0] * 5)
            for number in range(count)
        ]
        return calls_of(lambda: choose(some, 20 * GIB, now=NOW))

    assert work(4000) < 2 * work(2000) < 4 * work(1000) < 40_000


@pytest.mark.parametrize("some", list(itertools.permutations([("old", 300.0), ("middle", 200.0), ("new", 100.0)])))
def test_the_order_in_which_they_are_listed_does_not_matter(some: Sequence[tuple[str, float]]) -> None:
    """Who was used longest ago goes first, and of two priorities the lower one before it."""
    alike = [candidate(name, idle_s, 2.0) for name, idle_s in some]
    assert names(choose(alike, 3 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"old", "middle"}
    assert names(choose(alike, 3 * GIB, policy=EvictionPolicy.PRIORITY, now=NOW)) == {"old", "middle"}
    assert names(choose(alike, 3 * GIB, policy=EvictionPolicy.HYBRID, now=NOW)) == {"old", "middle"}
    dearer = [replace(one, priority=2) if one.model == "old" else one for one in alike]
    assert names(choose(dearer, 3 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"old", "middle"}
    assert names(choose(dearer, 3 * GIB, policy=EvictionPolicy.PRIORITY, now=NOW)) == {"middle", "new"}
    assert names(choose(dearer, 3 * GIB, policy=EvictionPolicy.HYBRID, now=NOW)) == {"middle", "new"}


def test_the_least_recently_used_ones_go_however_dear_they_are() -> None:
    """That is what the policy is for; who is not needed after all stays."""
    some = [candidate("small", 400.0, 1.0), candidate("dear", 300.0, 4.0, reload_s=60.0), candidate("cheap", 9.0, 4.0)]
    assert names(choose(some, 4 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"dear"}
    assert names(choose(some, 5 * GIB, policy=EvictionPolicy.LRU, now=NOW)) == {"small", "dear"}
