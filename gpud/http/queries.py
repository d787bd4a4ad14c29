"""What may stand behind a route's question mark, for the description of the API. Reads nothing of a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpud.core.record import Record

TEXT: Mapping[str, Any] = {"type": "string"}
TRUTH: Mapping[str, Any] = {"type": "boolean"}


class Query(Record):
    """``kind`` is a schema as JSON Schema has it."""

    name: str
    says: str
    kind: Mapping[str, Any]


def text(name: str, says: str) -> Query:
    return Query(name, says, TEXT)


def truth(name: str, says: str) -> Query:
    return Query(name, says, TRUTH)


def one_of(name: str, says: str, words: Sequence[str]) -> Query:
    return Query(name, says, {"type": "string", "enum": list(words)})


def whole(name: str, says: str, least: int, most: int, default: int | None = None) -> Query:
    kind: dict[str, Any] = {"type": "integer", "minimum": least, "maximum": most}
    return Query(name, says, kind if default is None else {**kind, "default": default})
