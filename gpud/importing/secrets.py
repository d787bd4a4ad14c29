"""What must go nowhere: which names say that a value is secret, and the values that were met."""

import re
from collections.abc import Mapping

from gpud.core.errors import GpudError
from gpud.importing.reading import plain

SHORTEST = 6
"""What is shorter than a secret can be may stand anywhere by chance."""

MOST = 256
"""Every text is searched for every secret: more of them than any configuration has would take for ever."""

LONGEST_SENTENCE = 400

_WORD = re.compile(
    r"(?:keys?|token|secrets?|passwords?|passwd|passphrase|credentials?|webhook|apikeys?)(?![a-z])", re.IGNORECASE
)


def names_secret(name: str) -> bool:
    """Whether a variable or a flag is secret by its name. Unlike in a mask, a number of tokens is none."""
    return _WORD.search(name) is not None


class Secrets:
    """The values that are secret."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._known: dict[str, None] = {}

    def hide(self, value: str) -> None:
        """Never show this text, nor copy it. Raises GpudError when there are too many."""
        if len(value) < SHORTEST or value in self._known:
            return
        if len(self._known) >= MOST:
            text = f"cannot import {self._file}: it has more than {MOST} keys, tokens and passwords"
            raise GpudError(text, hint="import a part of it; none of them is copied anyway")
        # The longest first: one may be the beginning of another.
        self._known = dict.fromkeys(sorted([*self._known, value], key=len, reverse=True))

    def __contains__(self, value: object) -> bool:
        """Whether a value has a secret in it, at any depth, or an address with a password."""
        if isinstance(value, str):
            return any(one in value for one in self._known) or bool(re.search(r"//[^/@\s:]*:[^/@\s]+@", value))
        if isinstance(value, Mapping):
            return any(one in self for pair in value.items() for one in pair)
        return isinstance(value, (list, tuple)) and any(one in self for one in value)

    def redact(self, text: str) -> str:
        """A sentence without what is secret, on one line."""
        for secret in self._known:
            text = text.replace(secret, "…")
        text = re.sub(r"//[^/@\s]*@", "//…@", text)
        return plain(text if len(text) <= LONGEST_SENTENCE else f"{text[: LONGEST_SENTENCE - 1]}…")
