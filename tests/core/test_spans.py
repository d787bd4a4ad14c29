"""How long something is, as people say it."""

import pytest

from gpud.core.spans import span


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (0.42, "0.4 s"),
        (3.0, "3 s"),
        (9.5, "9.5 s"),
        (10.4, "10 s"),
        (59.6, "60 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3540, "59 min"),
        (3600, "1 h"),
        (7199, "2 h"),
        (5400, "1 h 30 min"),
        (47.4 * 3600, "47 h 24 min"),
        (48 * 3600, "2 days"),
        (200_000, "2 days"),
    ],
)
def test_what_does_not_matter_at_a_length_is_left_out(seconds: float, said: str) -> None:
    """No 7199 s."""
    assert span(seconds) == said
