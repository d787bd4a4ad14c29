"""Who goes when somebody needs the memory. Decides by values alone, and must not log."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ready, idle model that nobody holds, and the bytes that its unloading gives back on the device in question."""

    model: str
    last_used_s: float
    bytes: int
    priority: int = 1


def choose(candidates: Iterable[Candidate], missing_bytes: int) -> Sequence[Candidate] | None:
    """The least recently used ones whose bytes together cover what is missing, or None when all would not do.

    Afterwards those that turn out not to be needed are spared, the most recently used first: a small old model does not
    have to go when a larger one has to go anyway.
    """
    if missing_bytes <= 0:
        return ()
    victims: list[Candidate] = []
    covered = 0
    for candidate in sorted(candidates, key=lambda c: (c.priority, c.last_used_s, c.model)):
        if covered >= missing_bytes:
            break
        if candidate.bytes <= 0:
            continue
        victims.append(candidate)
        covered += candidate.bytes
    if covered < missing_bytes:
        return None
    for candidate in sorted(victims, key=lambda c: (c.priority, c.last_used_s, c.model), reverse=True):
        if covered - candidate.bytes >= missing_bytes:
            victims.remove(candidate)
            covered -= candidate.bytes
    return tuple(victims)
