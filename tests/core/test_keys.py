"""What an API key may: which models, with which priority, how often; and that nobody reads it out of a log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.facts import Priority
from gpud.core.keys import ApiKey, Rate

words = st.text("abc.-", min_size=1, max_size=6)
priorities = st.sampled_from(Priority)


def key(*allow: str, priority: Priority | None = None) -> ApiKey:
    return ApiKey("ci", b"digest-of-it", allow, priority=priority) if allow else ApiKey("ci", b"digest-of-it")


@given(words)
def test_a_key_may_use_every_model_by_default(name: str) -> None:
    """Whoever names none has meant all."""
    assert key().allows(name)


@given(words, words)
def test_a_name_allows_that_model_alone(allowed: str, name: str) -> None:
    """A model whose name begins alike is another."""
    assert key(allowed).allows(name) == (allowed == name)


@given(words, words)
def test_a_star_at_the_end_allows_what_begins_so(beginning: str, rest: str) -> None:
    """And nothing that begins otherwise."""
    assert key(f"{beginning}*").allows(beginning + rest)
    assert not key(f"{beginning}*").allows(f"X{beginning}{rest}")


def test_one_of_several_names_and_one_of_several_patterns_are_enough() -> None:
    """A model has aliases, a key has a list."""
    assert key("big", "qwen*").allows("small", "qwen3")
    assert not key("big", "qwen*").allows("small", "llama")
    assert not key("big").allows()


@given(priorities)
def test_without_a_priority_of_the_key_requests_have_their_own(asked: Priority) -> None:
    """Or none, and then the model's."""
    assert key().priority_for(asked) is asked
    assert key().priority_for(None) is None


@given(priorities, priorities)
def test_no_request_has_a_priority_above_its_keys(own: Priority, asked: Priority) -> None:
    """A lower one is its own wish; without a wish it has that of the key."""
    assert key("*", priority=own).priority_for(asked) == min(own, asked)
    assert key("*", priority=own).priority_for(None) is own


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(1.0, "7/s"), (60.0, "7/min"), (3600.0, "7/h"), (86400.0, "7/d"), (90.0, "7/90s"), (0.5, "7/0.5s")],
)
def test_a_rate_is_shown_as_it_is_configured(per_s: float, text: str) -> None:
    """With the unit's name where it has one."""
    assert str(Rate(7, per_s)) == text


def test_the_digest_of_a_key_stays_out_of_logs() -> None:
    """All else is shown."""
    text = repr(key("a*", priority=Priority.LOW))
    assert "digest" not in text
    assert text.startswith("ApiKey(name='ci', allow=('a*',), rate=None, priority=<Priority.LOW")
