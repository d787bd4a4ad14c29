"""How fast an answer comes that is under way, by what of it has passed last."""

from gpud.http.requests import tokens_per_s

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def test_each_event_of_a_stream_is_a_token() -> None:
    """Events before those that are still known are taken to be as long as these."""
    assert tokens_per_s(EVENT * 10, len(EVENT) * 100, 2.0) == 50.0


def test_what_the_engine_measured_goes_before() -> None:
    """The last figure of the engine's own counts."""
    told = EVENT + b'data: {"timings":{"predicted_per_second":41.26}}\n\n'
    assert tokens_per_s(b'"predicted_per_second": 3.0' + told, 10_000, 2.0) == 41.3


def test_nothing_is_said_of_what_cannot_be_known() -> None:
    """An answer that is no stream, one that has only begun, and one of which nothing has come."""
    assert tokens_per_s(b'{"choices":[]}', 14, 2.0) is None
    assert tokens_per_s(EVENT, len(EVENT), 0.1) is None
    assert tokens_per_s(b"", 0, 2.0) is None
