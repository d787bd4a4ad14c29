"""How likely a model is to be used again soon, from its own history."""

from collections.abc import Iterable

from hypothesis import given
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
