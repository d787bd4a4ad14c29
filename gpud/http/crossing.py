"""Which fields of a header cross gpud, between a client and an engine: those that are listed here, and no other."""

from collections.abc import Iterable

Pair = tuple[str | bytes, str | bytes]

SENT_ON = frozenset(
    (
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"cache-control",
        b"content-language",
        b"content-type",
        b"if-modified-since",
        b"if-none-match",
        b"last-event-id",
        b"openai-beta",
        b"openai-organization",
        b"openai-project",
        b"range",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-request-id",
    )
)
"""What an engine is told of a request's header. No key, no cookie, no Origin; and no X-Conversation-Id, with which
llama-server would go on generating for a client that has left."""

SENT_ON_UPGRADE = SENT_ON | {
    b"upgrade",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-protocol",
    b"sec-websocket-extensions",
}

PASSED_BACK = frozenset(
    (
        b"accept-ranges",
        b"anthropic-organization-id",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-range",
        b"content-type",
        b"etag",
        b"expires",
        b"last-modified",
        b"location",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
        b"process-start-time-unix",
        b"request-id",
        b"retry-after",
        b"server",
        b"vary",
        b"x-accel-buffering",
        b"x-request-id",
    )
)
"""What a client is told of an answer's header."""

PASSED_BACK_UPGRADE = frozenset(
    (b"upgrade", b"sec-websocket-accept", b"sec-websocket-protocol", b"sec-websocket-extensions")
)


def passed_on(fields: Iterable[tuple[bytes, bytes]], allowed: frozenset[bytes]) -> list[Pair]:
    """The fields that may cross."""
    return [pair for pair in fields if pair[0].lower() in allowed]
