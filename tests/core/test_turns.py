"""Turns of parties, rising priorities and the order of the queue, each on its own."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.facts import Priority, QueueLimits
from gpud.core.queue import Ticket, Turns, in_order, level
from gpud.core.record import Struct


class Entry(Struct):
    ticket: Ticket | None
    wanted_priority: Priority = Priority.NORMAL
    served_per_second: float = 0.0


def given_to(turns: Turns, others: list[Ticket], *parties: str, overdue: bool = False) -> Ticket:
    ticket = Ticket(len(others) + 1, 0.0, overdue=overdue)
    turns.give(ticket, parties, others)
    others.append(ticket)
    return ticket


def test_everybodys_first_wish_comes_before_anybodys_second() -> None:
    """A party's wishes have one turn after the other; a new party has the first."""
    turns, queue = Turns(), []
    wishes = [given_to(turns, queue, party) for party in ("a", "a", "a", "b", "b", "c")]
    assert [wish.turn for wish in wishes] == [1, 2, 3, 1, 2, 1]


def test_who_comes_later_begins_with_those_who_still_wait() -> None:
    """Not before them: turns that have been served do not come back. An empty queue begins anew."""
    turns, queue = Turns(), []
    for _ in range(3):
        given_to(turns, queue, "a")
    del queue[:2]
    assert given_to(turns, queue, "b").turn == 3
    assert given_to(turns, queue, "a").turn == 4
    queue.clear()
    assert given_to(turns, queue, "a").turn == 1


def test_nobody_comes_before_who_is_overdue() -> None:
    """Neither a new party, nor one that had an earlier turn free."""
    turns, queue = Turns(), []
    given_to(turns, queue, "a")
    for _ in range(4):
        given_to(turns, queue, "b")
    queue[3].overdue = True
    assert given_to(turns, queue, "c").turn == 3


def test_a_wish_of_several_has_the_best_turn_of_any_and_takes_one_of_each() -> None:
    """Who joins twice is there once."""
    turns, queue = Turns(), []
    given_to(turns, queue, "a")
    wish = given_to(turns, queue, "a")
    assert wish.turn == 2
    turns.give(wish, ("a",), queue[:1])
    assert (wish.turn, wish.parties) == (2, {"a"})
    turns.give(wish, ("b",), queue[:1])
    assert (wish.turn, wish.parties) == (1, {"a", "b"})
    assert given_to(turns, queue, "b").turn == 2
    late = given_to(turns, queue, "b")
    turns.give(late, ("c",), queue[:3])
    assert given_to(turns, queue, "c").turn == 2


@given(st.sampled_from(Priority), st.floats(0.0, 1e6), st.floats(0.1, 1e4))
def test_a_priority_rises_by_one_for_each_full_span(priority: Priority, waited_s: float, aging_s: float) -> None:
    """To the highest, and no further."""
    assert level(priority, waited_s, aging_s) == min(int(Priority.CRITICAL), priority + int(waited_s // aging_s))


@pytest.mark.parametrize("aging_s", [0.0, -1.0])
def test_without_a_span_no_priority_rises(aging_s: float) -> None:
    """However long anybody waits; a clock that went back counts as no time."""
    assert level(Priority.LOW, 1e9, aging_s) == Priority.LOW
    assert level(Priority.LOW, -50.0, 10.0) == Priority.LOW


ORDERED = (
    Entry(Ticket(9, 0.0), Priority.HIGH),
    Entry(Ticket(7, 0.0, overdue=True, turn=5)),
    Entry(Ticket(8, 0.0, overdue=True, turn=1), served_per_second=9.0),
    Entry(Ticket(6, 0.0, turn=1), served_per_second=2.0),
    Entry(Ticket(2, 0.0, turn=1), served_per_second=1.0),
    Entry(Ticket(5, 0.0, turn=1), served_per_second=1.0),
    Entry(Ticket(1, 0.0, turn=2), served_per_second=3.0),
    Entry(Ticket(3, 0.0), Priority.LOW, 99.0),
)


@pytest.mark.parametrize("shift", range(len(ORDERED)))
def test_the_order_is_by_priority_overdue_turn_use_and_arrival(shift: int) -> None:
    """However they are listed; who has no ticket does not stand in it."""
    some: Sequence[Entry] = [*ORDERED[shift:], Entry(None, Priority.CRITICAL), *ORDERED[:shift]]
    assert in_order(some, 1.0, QueueLimits()) == list(ORDERED)
    assert in_order(some[::-1], 1.0, QueueLimits()) == list(ORDERED)


def test_who_has_waited_for_a_span_stands_with_the_next_priority() -> None:
    """With a turn of its own there."""
    early = Entry(Ticket(5, 0.0, turn=1), Priority.LOW)
    late = Entry(Ticket(2, 90.0, turn=1), Priority.NORMAL)
    for order in itertools.permutations((early, late)):
        assert in_order(order, 59.0, QueueLimits(aging_s=60.0)) == [late, early]
        assert in_order(order, 60.0, QueueLimits(aging_s=60.0)) == [late, early]
        early.ticket = Ticket(1, 0.0, turn=1)
        assert in_order(order, 59.0, QueueLimits(aging_s=60.0)) == [late, early]
        assert in_order(order, 60.0, QueueLimits(aging_s=60.0)) == [early, late]
        early.ticket = Ticket(5, 0.0, turn=1)
