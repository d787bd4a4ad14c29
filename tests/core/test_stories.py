"""Whole stories, word by word: what gpud does, says and shows changes only on purpose."""

import pytest

from core.stories import STORIES, kept, told

KEPT = kept()


@pytest.mark.parametrize("name", STORIES)
def test_a_story_goes_as_before(name: str) -> None:
    """Every action, every notice with its numbers, and all that is to be seen in the end."""
    assert told(STORIES[name]) == KEPT[name]


def test_every_kept_story_is_told() -> None:
    """None is left over of one that is no longer there."""
    assert list(KEPT) == list(STORIES)
