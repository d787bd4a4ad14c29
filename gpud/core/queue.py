"""Who stands before whom. Knows places and parties, never memory: whether somebody fits is not its business."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gpud.core.facts import Priority, QueueLimits


@dataclass(slots=True)
class Ticket:
    """A place in the queue. ``sequence`` counts them all.

    ``waits_for`` says why it has not been served yet. ``queued``: the devices were looked at for it, and it has to wait
    for memory; only then does it count against the size of the queue. ``cause`` is why in one word, for whoever shall
    not be told the same thing twice. ``overdue``: it has waited for as long as others may be served before it.
    """

    sequence: int
    since_s: float
    waits_for: str = ""
    queued: bool = False
    cause: str = ""
    overdue: bool = False


class Waiting(Protocol):
    """Something with a ticket: a model that somebody wants, or a claim."""

    @property
    def ticket(self) -> Ticket | None: ...

    @property
    def wanted_priority(self) -> Priority: ...

    @property
    def parties(self) -> Collection[str]:
        """Whom it would serve."""


W = TypeVar("W", bound=Waiting)


def level(priority: Priority, waited_s: float, aging_s: float) -> int:
    """The priority that counts now. Whoever waits rises by one for each ``aging_s``, but not past the highest."""
    if aging_s <= 0:
        return int(priority)
    return min(int(Priority.CRITICAL), int(priority) + int(max(0.0, waited_s) // aging_s))


def in_order(waiting: Collection[W], now: float, limits: QueueLimits) -> Sequence[W]:
    """Higher priority first; within one, everybody's first wish before anybody's second; then first come, first
    served.

    A wish of several parties takes the best place that one of them has.
    """
    placed: list[tuple[int, int, int, W]] = []
    counts: dict[tuple[int, str], int] = {}
    tickets = [(entry.ticket, entry) for entry in waiting if entry.ticket is not None]
    for ticket, entry in sorted(tickets, key=lambda pair: pair[0].sequence):
        counted = level(entry.wanted_priority, now - ticket.since_s, limits.aging_s)
        keys = [(counted, party) for party in entry.parties] or [(counted, "")]
        rank = min(counts.get(key, 0) for key in keys)
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        placed.append((-counted, rank, ticket.sequence, entry))
    placed.sort(key=lambda place: place[:3])
    return [entry for _, _, _, entry in placed]
