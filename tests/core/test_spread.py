"""Margins that follow from measurements, by the numbers."""

import math

import pytest

from gpud.core.learning import (
    ENOUGH,
    FIRST_MARGIN_BYTES,
    LEAST_MARGIN_BYTES,
    REMEMBERED,
    UNKNOWN_HOST_RESIDUAL_BYTES,
    UNKNOWN_RESIDUAL_BYTES,
    Residual,
    beyond,
)

MIB = 1 << 20
GIB = 1 << 30


def after(*measured: int) -> Residual:
    known = Residual()
    for size in measured:
        known = known.with_one_more(size)
    return known


def test_what_was_exceptional_fades_by_a_fiftieth_each_time() -> None:
    """Towards the mean, and not below what is measured now."""
    known = after(*[100 * MIB] * 49, 600 * MIB)
    assert known.count == REMEMBERED
    assert known.largest_bytes == 600 * MIB
    then = known.with_one_more(100 * MIB)
    assert then.count == REMEMBERED
    assert then.largest_bytes == math.ceil(known.mean_bytes + (600 * MIB - known.mean_bytes) * 0.98)
    assert then.mean_bytes == pytest.approx(known.mean_bytes + (100 * MIB - known.mean_bytes) / 50)
    assert known.with_one_more(700 * MIB).largest_bytes == 700 * MIB


@pytest.mark.parametrize(
    ("counted", "margin"), [(0, FIRST_MARGIN_BYTES), (6 * GIB, FIRST_MARGIN_BYTES), (100 * GIB, 2 * GIB)]
)
def test_before_anything_is_measured_a_driver_is_expected_and_a_margin(counted: int, margin: int) -> None:
    """Two percent of what the engine counts, and 128 MiB at least; less rest in the machine's own memory."""
    for nothing in (None, Residual()):
        assert beyond(counted, nothing, on_host=False) == (UNKNOWN_RESIDUAL_BYTES, margin)
        assert beyond(counted, nothing, on_host=True) == (UNKNOWN_HOST_RESIDUAL_BYTES, margin)


def test_a_few_measurements_tell_the_rest_and_no_spread() -> None:
    """The margin stays, and covers the largest that was seen."""
    assert beyond(GIB, after(100 * MIB, 120 * MIB), on_host=False) == (110 * MIB, FIRST_MARGIN_BYTES)
    assert beyond(GIB, after(0, 600 * MIB, 0), on_host=True) == (200 * MIB, 400 * MIB)
    assert beyond(GIB, after(-50 * MIB), on_host=False) == (0, FIRST_MARGIN_BYTES)


def test_enough_measurements_tell_three_deviations_of_the_next_one() -> None:
    """Of a sample's deviation, and of the mean's own: sqrt((n+1)/(n-1)); 64 MiB at least, and the largest seen."""
    wide = [(100 + step) * MIB for step in (-60, 60, -60, 60)]
    assert len(wide) == ENOUGH
    margin = math.ceil(3.0 * 60 * MIB * math.sqrt(5 / 3))
    assert beyond(GIB, after(*wide), on_host=False) == (100 * MIB, pytest.approx(margin, abs=2))
    assert beyond(GIB, after(*[100 * MIB] * 4), on_host=False) == (100 * MIB, LEAST_MARGIN_BYTES)
    odd = after(*[0] * 48, 490 * MIB)
    assert beyond(GIB, odd, on_host=False) == (10 * MIB, 480 * MIB)
