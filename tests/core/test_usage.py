"""How likely a model is to be used again soon, from its own history."""

import itertools
import math
from collections.abc import Iterable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpud.core.usage import FADES_AT, Usage, unknown

DAY_S = 86400.0


def used(times: Iterable[float]) -> Usage:
    usage = Usage()
    for time in times:
        usage.note(time)
    return usage


def bursts(count: int, length: int = 6, within_s: float = 3.0, between_s: float = 600.0) -> list[float]:
    times, now = [], 0.0
    for _ in range(count):
        for _ in range(length):
            times.append(now)
            now += within_s
        now += between_s
    return times


pauses = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=300)


@given(pauses, st.floats(0.0, 1e7), st.floats(0.0, 1e7))
def test_a_chance_is_a_probability(steps: list[float], pause_s: float, horizon_s: float) -> None:
    """Whatever has happened, however long ago."""
    now, usage = 0.0, Usage()
    for step in steps:
        now += step
        usage.note(now)
    assert 0.0 <= usage.chance(now + pause_s, horizon_s) <= 1.0


@given(pauses, st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_a_longer_horizon_is_no_less_likely(steps: list[float], pause_s: float, one_s: float, other_s: float) -> None:
    """More time brings no fewer requests."""
    now, usage = 0.0, Usage()
    for step in steps:
        now += step
        usage.note(now)
    near, far = sorted((one_s, other_s))
    now += pause_s
    assert usage.chance(now, near) <= usage.chance(now, far) + 1e-9


def test_after_the_last_request_of_a_burst_the_chance_drops_at_once() -> None:
    """Within a burst the next one is expected in seconds; once it is late, not for long."""
    usage = used(bursts(20))
    last_s = usage.last_s
    assert last_s is not None
    assert usage.chance(last_s + 1, 5.0) > 0.3
    assert usage.chance(last_s + 10, 5.0) < 0.05


def test_a_model_that_is_asked_by_the_clock_is_expected_by_the_clock() -> None:
    """Ten minutes after the last burst, as always, the next one is near; minutes before it is not."""
    usage = used(bursts(20))
    last_s = usage.last_s
    assert last_s is not None
    assert usage.chance(last_s + 590, 120.0) > 5 * usage.chance(last_s + 400, 120.0)


def test_more_requests_lately_make_another_one_likelier() -> None:
    """Two models have the same pauses in their history, but one of them had more of it in the last minutes."""
    quiet = used(range(0, 3000, 60))
    crowded = used([*range(0, 2700, 60), *range(2700, 2940, 10), 2940])
    assert crowded.chance(3000.0, 20.0) > 1.2 * quiet.chance(3000.0, 20.0)


def test_who_was_used_later_is_likelier_when_nothing_else_is_known() -> None:
    """One request each: the order is that of least recent use."""
    chances = [used([time]).chance(1000.0, 60.0) for time in (0.0, 500.0, 900.0, 990.0)]
    assert chances == sorted(chances)
    assert len(set(chances)) == len(chances)
    guesses = [unknown(pause, 60.0) for pause in (1000.0, 500.0, 100.0, 10.0)]
    assert guesses == sorted(guesses)


def test_a_model_that_was_never_used_is_not_expected() -> None:
    """There is nothing to expect it from."""
    assert Usage().chance(100.0, 60.0) == 0.0
    assert Usage().last_s is None


def test_a_new_habit_replaces_the_old_one() -> None:
    """Hundreds of quick pauses are forgotten after as many slow ones."""
    usage = used(range(0, 800, 2))
    before = usage.chance(800.0, 5.0)
    for step in range(1, int(4 * FADES_AT)):
        usage.note(800.0 + step * 500)
    assert before > 0.5
    last_s = usage.last_s
    assert last_s is not None
    assert usage.chance(last_s + 2, 5.0) < 0.05


def test_to_ask_does_not_change_the_answer() -> None:
    """Asked twice, or for something else in between, it says the same; after a request it does not."""
    usage = used(bursts(3))
    first = usage.chance(2000.0, 60.0)
    other = usage.chance(2000.0, 6.0)
    assert usage.chance(2000.0, 60.0) == first != other
    usage.note(2000.0)
    assert usage.chance(2000.0, 60.0) > first


def edge(number: int) -> float:
    """Where a bin of pauses begins: the first at once, the next ones at a quarter of a second and half as long again
    each, the last one after four days."""
    return 0.0 if number == 0 else 0.25 * 1.5 ** (number - 1)


def lasting(pauses_s: list[float], least_s: float) -> float:
    """The chance that a pause lasts so long: the product, over all bins before, of those that did not end in one; two
    pauses more than were seen are as pauses are everywhere."""
    last = 36
    prior = 1 - 1.5**-0.4
    survived = [1.0]
    for number in range(last):
        began = [pause for pause in pauses_s if pause >= edge(number)]
        ended = [pause for pause in began if pause < edge(number + 1)]
        survived.append(survived[-1] * (1 - (len(ended) + 2 * prior) / (len(began) + 2)))
    if least_s >= edge(last):
        return survived[last] * (edge(last) / least_s) ** 0.4
    number = max(one for one in range(last) if edge(one) <= least_s)
    part = math.log(least_s / edge(number)) / math.log(1.5) if number else least_s / 0.25
    return survived[number] + (survived[number + 1] - survived[number]) * part


def defined(pauses_s: list[float], times: list[float], now: float, horizon_s: float) -> float:
    """The chance of a request within the horizon, from all pauses and all requests that there were."""
    pause_s = now - times[-1]
    by_pauses = -math.log(lasting(pauses_s, pause_s + horizon_s) / lasting(pauses_s, pause_s))
    rates = (sum(math.exp((time - now) / memory_s) for time in times) / memory_s for memory_s in (300.0, 1800.0))
    return 1 - math.exp(-math.sqrt(max(0.0, by_pauses) * sum(rates) / 2 * horizon_s))


@given(
    st.lists(st.floats(0.0, 1e4) | st.floats(0.0, 4.0) | st.floats(0.0, 1e6), max_size=40),
    st.floats(0.0, 600.0) | st.floats(0.0, 1e6),
    st.floats(0.1, 600.0) | st.floats(0.0, 1e6),
)
def test_the_chance_is_that_of_its_definition(steps: list[float], pause_s: float, horizon_s: float) -> None:
    """The geometric mean, as a rate, of what the pauses say and of how many requests came in the last five minutes and
    in the last half hour, where older ones count less and less."""
    times = [0.0, *itertools.accumulate(steps)]
    pauses_s = [later - sooner for sooner, later in itertools.pairwise(times)]
    # On the very edge of a bin a pause is in either.
    assume(all(abs(pause / edge(number) - 1) > 1e-9 for pause in pauses_s for number in range(1, 37)))
    now = times[-1] + pause_s
    expected = defined(pauses_s, times, now, horizon_s)
    assert used(times).chance(now, horizon_s) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("count", "remembered"), [(255, 255), (256, 128), (257, 129)])
def test_what_was_seen_long_ago_counts_half(count: int, remembered: int) -> None:
    """Whenever 256 pauses are remembered, and not before."""
    times = [float(number) for number in range(count + 1)]
    usage = used(times)
    for pause_s, horizon_s in itertools.product((0.5, 1.5), (0.5, 2.0, 60.0)):
        expected = defined([1.0] * remembered, times, times[-1] + pause_s, horizon_s)
        assert usage.chance(times[-1] + pause_s, horizon_s) == pytest.approx(expected)
    assert usage.count == count + 1


def test_a_request_that_seems_to_have_come_later_counts_as_just_now() -> None:
    """So the chance is that of no pause at all."""
    usage = used([0.0, 10.0, 20.0])
    assert usage.chance(15.0, 5.0) == usage.chance(20.0, 5.0)
    assert usage.chance(25.0, -5.0) == usage.chance(25.0, 0.0) == 0.0
    assert usage.count == 3


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.25])
def test_a_pause_too_short_to_count_is_a_quarter_of_a_second(pause_s: float) -> None:
    """Of what nothing else is known: who was used a moment ago is likely, not certain, to be used again."""
    assert unknown(pause_s, 0.25) == pytest.approx(1 - 0.5**0.4)
    assert unknown(1.0, 3.0) == pytest.approx(1 - 0.25**0.4)
    assert unknown(pause_s, 0.0) == unknown(pause_s, -1.0) == 0.0


def test_a_clock_that_goes_back_does_no_harm() -> None:
    """A request that seems to come before the last one counts as one that follows at once."""
    usage = used([100.0, 200.0])
    usage.note(150.0)
    assert usage.last_s == 200.0
    assert 0.0 <= usage.chance(120.0, 60.0) <= 1.0


def test_its_size_does_not_grow() -> None:
    """A year of requests takes no more memory than a day of them."""

    def size(usage: Usage) -> int:
        usage.chance(usage.last_s or 0.0, 1.0)
        values = (getattr(usage, name) for name in Usage.__slots__)
        return sum(len(value) for value in values if isinstance(value, list))

    assert size(used(number * 60.0 for number in range(20_000))) == size(used([0.0, DAY_S]))
