"""Which API key a request shows, and whose it is. Holds digests; what a request showed is forgotten at once.

The digests are plain SHA-256: keys are 256 random bits, of which a fast hash gives nothing away. What was shown is
compared with every digest, each in constant time, so that the time taken says neither whether a key is known nor which.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Protocol

from gpud.core.keys import ApiKey
from gpud.http.shapes import HttpError

LONGEST = 512
"""Letters. No key of ours is as long; what is longer is not hashed."""

_HEADERS = ("Authorization", "X-API-Key", "api-key")


class Denied(HttpError):
    """Who asks is not let in. 401 asks for a key, 403 is final, 421 was meant for others, 429 may come back."""


class Headers(Protocol):
    """What is asked of a request's header fields: by a name in any case, repeated ones joined by commas."""

    def get(self, name: str, default: str = "", /) -> str: ...


def single(headers: Headers, name: str) -> str:
    """The value of a field that is there once at most and has no comma in it; raises Denied with 400 where it has."""
    value = headers.get(name)
    if "," in value:
        raise Denied(400, "invalid_request", f"cannot tell what is meant: the header {name} is there more than once")
    return value.strip()


class Keys:
    """The keys that are known. Immutable: a reload makes new ones. ``are_same`` compares in constant time."""

    __slots__ = ("_are_same", "_entries")

    def __init__(
        self, entries: Iterable[ApiKey], *, are_same: Callable[[bytes, bytes], bool] = hmac.compare_digest
    ) -> None:
        self._entries = tuple(entries)
        self._are_same = are_same

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Keys({', '.join(entry.name for entry in self._entries)})"

    def find(self, shown: str) -> ApiKey | None:
        """Whose key this is."""
        if not 0 < len(shown) <= LONGEST:
            return None
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        found: ApiKey | None = None
        for entry in self._entries:
            # No way out of this loop before its end: see above.
            if self._are_same(entry.digest, digest):
                found = entry
        return found


def shown_key(headers: Headers) -> str:
    """The key that a request shows; empty: none. Raises Denied with 400 where it shows more than one."""
    found = ""
    for name in _HEADERS:
        value = single(headers, name)
        if value and name == "Authorization":
            scheme, _, value = value.partition(" ")
            # Other schemes are for whoever stands before gpud: a proxy has let its user in with them.
            value = value.strip() if scheme.lower() == "bearer" else ""
        if not value:
            continue
        if found and found != value:
            message = "cannot tell who asks: different API keys are shown in Authorization, X-API-Key or api-key"
            raise Denied(400, "invalid_request", message, hint="send one of them")
        found = value
    return found
