"""Who stands before whom. Knows places and parties, never memory: whether somebody fits is not its business."""

from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Protocol, TypeVar

from gpud.core.facts import Priority, QueueLimits
from gpud.core.record import Struct


class Ticket(Struct):
    """A place in the queue. ``sequence`` counts them all, ``turn`` is the best that one of ``parties`` has for it.

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
    turn: int = 1
    parties: frozenset[str] = frozenset()


class Waiting(Protocol):
    """Something with a ticket: a model that somebody wants, or a claim."""

    @property
    def ticket(self) -> Ticket | None: ...

    @property
    def wanted_priority(self) -> Priority: ...

    @property
    def served_per_second(self) -> float:
        """How many requests it would serve for each second that it takes to load."""


class Turns:
    """Everybody's first wish comes before anybody's second, and stays there when that first has been served: a wish has
    the turn after its party's last one. Who comes later begins with those who wait, but not before anybody who is
    overdue: a stream of new parties keeps nobody waiting. A queue that was empty begins anew.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def give(self, ticket: Ticket, parties: Collection[str], others: Collection[Ticket]) -> None:
        """Whom a new ticket serves, or one that stands in the queue serves as well, beside the others there."""
        if not others and not ticket.parties:
            self._last.clear()
        first = min((other.turn for other in others), default=1)
        first = max(first, *(other.turn for other in others if other.overdue), 1)
        for party in parties:
            if party not in ticket.parties:
                turn = self._last[party] = max(first, self._last.get(party, 0) + 1)
                ticket.turn = min(ticket.turn, turn) if ticket.parties else turn
                ticket.parties |= {party}


W = TypeVar("W", bound=Waiting)


def level(priority: Priority, waited_s: float, aging_s: float) -> int:
    """The priority that counts now. Whoever waits rises by one for each ``aging_s``, but not past the highest."""
    if aging_s <= 0:
        return int(priority)
    return min(int(Priority.CRITICAL), int(priority) + int(max(0.0, waited_s) // aging_s))


def in_order(waiting: Collection[W], now: float, limits: QueueLimits) -> Sequence[W]:
    """Higher priority first. Within one, whoever is overdue, in the order in which they came; then the earlier turn,
    and of one turn those by whom the most is served for each second of their load; then first come, first served.
    """
    placed: list[tuple[int, int, float, int, W]] = []
    for entry in waiting:
        ticket = entry.ticket
        if ticket is not None:
            counted = level(entry.wanted_priority, now - ticket.since_s, limits.aging_s)
            if ticket.overdue:
                placed.append((-counted, 0, 0.0, ticket.sequence, entry))
            else:
                placed.append((-counted, ticket.turn, -entry.served_per_second, ticket.sequence, entry))
    placed.sort(key=itemgetter(0, 1, 2, 3))
    return [entry for _, _, _, _, entry in placed]
