"""How often each may ask: never more than the rate allows, never refused without need, in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from gpud import config
from gpud.core.keys import Rate
from gpud.http.rates import Rates

MINUTE = Rate(60, 60.0)


def test_the_whole_count_may_come_at_once() -> None:
    """And then one as each token comes."""
    rates = Rates()
    assert [rates.take("a", MINUTE, 100.0) for _ in range(60)] == [0.0] * 60
    assert rates.take("a", MINUTE, 100.0) == 1.0
    assert rates.take("a", MINUTE, 100.5) == 0.5
    assert rates.take("a", MINUTE, 101.0) == 0.0
    assert rates.take("a", MINUTE, 101.0) == 1.0


def test_a_refused_request_costs_nothing() -> None:
    """Whoever asks too early again and again is let in as early as whoever waits."""
    rates = Rates()
    slow = Rate(1, 10.0)
    assert rates.take("a", slow, 0.0) == 0.0
    assert [rates.take("a", slow, float(now)) for now in range(1, 10)] == [10.0 - now for now in range(1, 10)]
    assert rates.take("a", slow, 10.0) == 0.0


def test_each_has_a_bucket_of_its_own() -> None:
    """One who asks too often takes nothing from the others."""
    rates = Rates()
    once = Rate(1, 60.0)
    assert rates.take("a", once, 0.0) == 0.0
    assert rates.take("a", once, 0.0) > 0
    assert rates.take("b", once, 0.0) == 0.0


def test_a_new_rate_holds_at_once() -> None:
    """After a reload nobody is held for longer than the new rate's own time."""
    rates = Rates()
    assert rates.take("a", Rate(1, 86400.0), 0.0) == 0.0
    assert 0 < rates.take("a", Rate(1, 60.0), 0.0) <= 60.0
    assert rates.take("a", Rate(1, 60.0), 60.0) == 0.0


def test_who_has_been_silent_is_forgotten_first() -> None:
    """Memory is bounded, and those who are held stay held."""
    rates = Rates(most=10)
    slow = Rate(1, 1000.0)
    for number in range(10):
        rates.take(f"old {number}", Rate(1, 1.0), 0.0)
    assert rates.take("held", slow, 5.0) == 0.0
    for number in range(9):
        rates.take(f"new {number}", Rate(1, 10.0), 5.0)
    assert len(rates) <= 10
    assert rates.take("held", slow, 6.0) > 0


def test_a_flood_of_names_is_bounded() -> None:
    """However many ask at the same time."""
    rates = Rates(most=100)
    for number in range(10_000):
        rates.take(str(number), MINUTE, 0.0)
        assert len(rates) <= 100


RATES = st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 60.0, 3600.0]))


@given(RATES, st.lists(st.floats(0, 120), max_size=200))
def test_no_window_has_more_than_the_bucket_and_what_came_since(rate: Rate, gaps: list[float]) -> None:
    """In any time of ``t`` seconds at most the count and ``t`` seconds' tokens are let in."""
    rates = Rates()
    now, taken = 0.0, []
    for gap in gaps:
        now += gap
        if rates.take("a", rate, now) == 0.0:
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span_s = taken[last] - taken[first]
            assert last - first + 1 <= rate.count + span_s * rate.count / rate.per_s + 0.001


@given(RATES, st.lists(st.floats(0, 120), max_size=100))
def test_the_wait_that_is_told_is_enough(rate: Rate, gaps: list[float]) -> None:
    """Whoever comes back when told is let in, and is never told to wait longer than a token takes."""
    rates = Rates()
    now = 0.0
    for gap in gaps:
        now += gap
        wait_s = rates.take("a", rate, now)
        if wait_s:
            assert 0 < wait_s <= rate.per_s / rate.count * 1.001
            now += wait_s
            assert rates.take("a", rate, now) == 0.0


def test_what_the_configuration_reads_is_what_is_counted() -> None:
    """And it is written as it is read."""
    for text in ("5/s", "60/min", "1000/h", "10000/d"):
        rate = config.parse(f"http: {{rate: {text}}}", "x").http.rate
        assert rate is not None
        assert str(rate) == text
    assert config.parse("http: {rate: 60/min}", "x").http.rate == MINUTE
