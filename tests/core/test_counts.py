"""Every message with a number in it is right for one."""

import pytest

from gpud.core.counts import plural


@pytest.mark.parametrize(
    ("count", "nouns", "said"),
    [
        (0, ("model",), "0 models"),
        (1, ("model",), "1 model"),
        (2, ("model",), "2 models"),
        (1, ("wish", "wishes"), "1 wish"),
        (2, ("wish", "wishes"), "2 wishes"),
        (1, ("line is", "lines are"), "1 line is"),
        (0, ("line is", "lines are"), "0 lines are"),
    ],
)
def test_one_is_one(count: int, nouns: tuple[str, ...], said: str) -> None:
    """Nothing and many are many."""
    assert plural(count, *nouns) == said


def test_very_many_are_grouped_where_that_was_asked_for() -> None:
    """A number of seven digits cannot be read otherwise; one stays one."""
    assert plural(1_500_000, "byte", grouped=True) == "1,500,000 bytes"
    assert plural(1, "byte", grouped=True) == "1 byte"
