"""What an API key is to the rooms that read, check and count it: its name, what it may, how often. Never the key."""

from enum import StrEnum

from gpud.core.facts import Priority
from gpud.core.record import Record, repr_without

EVERYTHING = "*"
"""In a list of models: all of them. At the end of a name: whatever begins so."""


class Right(StrEnum):
    """What a caller may do beyond looking: have models answer, or change what is loaded and how gpud behaves."""

    USE = "use"
    MANAGE = "manage"


BOTH = frozenset(Right)


class Rate(Record):
    """So many requests in so many seconds; all of them may come at once, and then one by one as time passes."""

    count: int
    per_s: float

    def __str__(self) -> str:
        units = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "d"}
        return f"{self.count}/{units.get(self.per_s, f'{self.per_s:g}s')}"


class ApiKey(Record):
    """One entry of the keys file. ``digest`` is the SHA-256 of the key, which itself is kept nowhere.

    ``allow`` are names of models, or beginnings of names that end in ``*``. ``rate`` None is what is configured for all
    keys. ``priority`` is the highest that its requests may have, and what they have; None: as for everybody.
    """

    name: str
    digest: bytes
    allow: tuple[str, ...] = (EVERYTHING,)
    rate: Rate | None = None
    priority: Priority | None = None
    may: frozenset[Right] = frozenset({Right.USE})

    def __repr__(self) -> str:
        return repr_without(self, "digest")

    def allows(self, *names: str) -> bool:
        """Whether it may use a model, which is given with its name and its aliases: any of them is enough."""
        return any(_fits(pattern, name) for pattern in self.allow for name in names)

    def priority_for(self, asked: Priority | None) -> Priority | None:
        """What a request gets that asks for this: its own wish, but not above that of the key."""
        if self.priority is None or asked is None:
            return asked if self.priority is None else self.priority
        return min(asked, self.priority)


def _fits(pattern: str, name: str) -> bool:
    if pattern.endswith(EVERYTHING):
        return name.startswith(pattern[: -len(EVERYTHING)])
    return pattern == name
