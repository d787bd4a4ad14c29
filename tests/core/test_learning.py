"""What follows from measurements: the arithmetic of residuals and margins."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.budget import MIB
from gpud.core.learning import (
    ENOUGH,
    LEAST_MARGIN_BYTES,
    REMEMBERED,
    Measured,
    Residual,
    beyond,
    largest,
)

GIB = 1 << 30
values = st.integers(-2 * GIB, 4 * GIB)


def after(measured: list[int]) -> Residual:
    residual = Residual()
    for one in measured:
        residual = residual.with_one_more(one)
    return residual


def reserved(residual: Residual | None, counted: int = 0, *, on_host: bool = False) -> int:
    """Beyond the engine's own count."""
    return sum(beyond(counted, residual, on_host=on_host))


# Measured sizes ------------------------------------------------------------------------------------------------------


def test_of_nothing_follows_nothing() -> None:
    """No measurement is not a measurement of nothing."""
    assert largest([]) is None


def test_of_several_the_most_on_each_kind_of_device_is_expected() -> None:
    """Not the sizes of one load: another placement may have had its most on the other kind."""
    assert largest([Measured(9, 1), Measured(4, 6)]) == Measured(9, 6, 0.0)


def test_a_time_that_nobody_took_does_not_count() -> None:
    """An adopted engine was measured, but not timed."""
    assert largest([Measured(1, 1, 0.0), Measured(1, 1, 4.0), Measured(1, 1, 2.0)]) == Measured(1, 1, 3.0)


# Residuals -----------------------------------------------------------------------------------------------------------


@given(st.lists(values, min_size=1, max_size=REMEMBERED))
def test_while_everything_is_remembered_it_is_the_textbooks(measured: list[int]) -> None:
    """Mean, standard deviation and largest are exactly those of all that was measured."""
    residual = after(measured)
    assert residual.count == len(measured)
    assert residual.mean_bytes == pytest.approx(statistics.fmean(measured), rel=1e-9, abs=1.0)
    assert residual.spread_bytes == pytest.approx(statistics.pstdev(measured), rel=1e-6, abs=1024)
    assert residual.largest_bytes == max(max(measured), math.ceil(residual.mean_bytes))


def test_one_measurement_tells_no_spread() -> None:
    """It is the mean and the largest, and nothing is known of how far others are from it."""
    assert after([5 * MIB]) == Residual(1, 5.0 * MIB, 0.0, 5 * MIB)


@given(st.lists(values, min_size=1, max_size=200), values)
def test_a_residual_stays_sound(measured: list[int], last: int) -> None:
    """However long it goes on: the count is bounded, nothing is lost to rounding, the latest is never above the
    largest."""
    residual = after([*measured, last])
    assert residual.count == min(len(measured) + 1, REMEMBERED)
    low, high = min(*measured, last), max(*measured, last)
    assert low - 1 <= residual.mean_bytes <= high + 1
    assert 0 <= residual.spread_bytes <= (high - low) + 1
    assert max(last, residual.mean_bytes) <= residual.largest_bytes <= max(high, math.ceil(residual.mean_bytes))


@given(values, values)
def test_what_changes_without_a_new_version_is_learnt(old: int, new: int) -> None:
    """Sixty measurements of another value leave a third of the difference; three hundred leave next to nothing."""
    residual = after([old] * 100 + [new] * 60)
    assert abs(residual.mean_bytes - new) <= 0.31 * abs(new - old) + 1
    residual = after([old] * 100 + [new] * 300)
    assert abs(residual.mean_bytes - new) <= 0.01 * abs(new - old) + 1
    assert residual.largest_bytes - new <= 0.02 * abs(new - old) + REMEMBERED + 1


# What is reserved for them -------------------------------------------------------------------------------------------


def test_before_the_first_measurement_much_is_reserved() -> None:
    """The context of a large card, or a program's own memory, and a margin that grows with what was counted."""
    for none in (None, Residual()):
        assert beyond(0, none, on_host=False) == (512 * MIB, 128 * MIB)
        assert beyond(0, none, on_host=True) == (96 * MIB, 128 * MIB)
        assert beyond(100 * GIB, none, on_host=False) == (512 * MIB, 2 * GIB)


def test_steady_measurements_make_the_margin_small() -> None:
    """As soon as there are enough of them, and not before."""
    few, enough = after([300 * MIB] * (ENOUGH - 1)), after([300 * MIB] * ENOUGH)
    assert beyond(20 * GIB, few, on_host=False) == (300 * MIB, int(20 * GIB * 0.02))
    assert beyond(20 * GIB, enough, on_host=False) == (300 * MIB, 64 * MIB)


@given(st.lists(values, min_size=1, max_size=150), st.integers(0, 64 * GIB), st.booleans())
def test_what_was_just_seen_would_have_fitted(measured: list[int], counted: int, on_host: bool) -> None:
    """Neither part is negative, some margin is always left, and the last measurement is covered: while all are
    remembered, every one."""
    residual = after(measured)
    rest, margin = beyond(counted, residual, on_host=on_host)
    assert rest >= 0 and margin >= LEAST_MARGIN_BYTES
    assert rest + margin >= measured[-1]
    if len(measured) <= REMEMBERED:
        assert rest + margin >= max(measured)


@given(st.integers(1, REMEMBERED), st.floats(0, 1e10), st.floats(0, 1e10), st.integers(-GIB, GIB))
def test_a_wider_spread_never_makes_a_smaller_margin(count: int, one: float, other: float, mean: int) -> None:
    """With everything else as it was."""
    narrow, wide = sorted((one, other))
    assert reserved(Residual(count, mean, narrow, mean)) <= reserved(Residual(count, mean, wide, mean))


def test_engines_that_hold_less_than_they_count_are_not_reserved_for_twice() -> None:
    """Below zero the spread eats up first what was not needed: nothing is added that no load came near."""
    residual = after([-800 * MIB, -1000 * MIB, -1200 * MIB, -1000 * MIB] * 5)
    assert beyond(8 * GIB, residual, on_host=True) == (0, 64 * MIB)


@pytest.mark.parametrize(("known", "least"), [(ENOUGH, 0.965), (10, 0.99), (REMEMBERED, 0.997)])
def test_the_next_load_fits(known: int, least: float) -> None:
    """Measurements around 600 MiB that differ by far more than the smallest margin: so many of the next are within what
    was reserved after so many."""
    chance = random.Random(7)
    trials, fitted = 4000, 0
    for _ in range(trials):
        residual = after([round(chance.gauss(600 * MIB, 100 * MIB)) for _ in range(known)])
        fitted += chance.gauss(600 * MIB, 100 * MIB) <= reserved(residual)
    assert fitted / trials >= least
