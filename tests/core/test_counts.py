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
