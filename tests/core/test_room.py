"""What room there is on a device beside those who wait already, by the numbers."""

from collections.abc import Sequence

import pytest

from gpud.core.budget import Account
from gpud.core.eviction import Candidate
from gpud.core.facts import EvictionPolicy, GpuSample
from gpud.core.room import Placement, Room, cheapest
from gpud.core.verdict import Device, Waits

LRU = EvictionPolicy.LRU


def candidates(**sizes: int) -> Sequence[Candidate]:
    """The one that is named first was used longest ago."""
    return [Candidate(name, float(at), size) for at, (name, size) in enumerate(sizes.items())]


def room(available: int = 100, uuid: str = "GPU-0", **more: object) -> Room:
    sample = GpuSample(uuid, f"GPU {uuid}", 0, "nvidia", 1000)
    return Room(Device(sample, Account(1000, 1000 - available, 0, 1000), **more))  # type: ignore[arg-type]


def full(available: int = 0) -> Room:
    """Two that are idle, one that answers, one that loads, and a little on its way back."""
    return room(
        available,
        coming_bytes=50,
        movable=candidates(a=100, b=200),
        occupied=candidates(c=300),
        starting=candidates(d=350),
        claimed_bytes=40,
    )


def test_nothing_is_left_of_what_those_before_need() -> None:
    """What they wait for belongs to them, what comes beyond it is left."""
    one = full(100)
    assert (one.left_bytes, one.missing_bytes(100)) == (100, -50)
    one.keep(120, 0, ())
    assert (one.left_bytes, one.missing_bytes(100)) == (30, 70)
    one.keep(400, 300, ("c",))
    assert (one.left_bytes, one.missing_bytes(100)) == (0, 170)
    assert [list(tier) for tier in one.tiers] == [candidates(a=100, b=200), [], list(candidates(d=350))]
    assert one.within == [0, 300, 300, 650]


def test_who_waits_for_nobody_leaves_everybody_there() -> None:
    """And a place is only spoken for when nothing is left and nobody could go."""
    one = full()
    one.keep(50, 0, ())
    assert one.within == [0, 300, 600, 950]
    assert one.left_bytes == 0
    assert not one.is_spoken_for()
    one.keep(0, 0, ("a", "b", "c", "d"))
    assert one.is_spoken_for()
    one.keep(0, 1, ())
    assert not room(1).is_spoken_for()
    assert room(0).is_spoken_for()


@pytest.mark.parametrize(
    ("size", "may_evict", "claims_too", "could"),
    [
        (150, False, False, True),
        (151, False, False, False),
        (190, False, True, True),
        (191, False, True, False),
        (1100, True, False, True),
        (1101, True, False, False),
        (1140, True, True, True),
        (1141, True, True, False),
    ],
)
def test_what_could_be_had_if_nobody_were_before(size: int, may_evict: bool, claims_too: bool, could: bool) -> None:
    """Of what is there and comes back, of all models, of claims: as far as the wish goes."""
    placement = Placement(((full(100), size),))
    assert placement.could_have(may_evict=may_evict, claims_too=claims_too) is could


def test_of_several_devices_each_has_to_do() -> None:
    """One that is short is enough to say no, and only that one is named."""
    one, other = room(100, "GPU-0"), room(10, "GPU-1")
    assert Placement(((one, 100), (other, 10))).fits()
    assert not Placement(((one, 100), (other, 11))).fits()
    assert not Placement(((one, 101), (other, 10))).has_soon()
    assert Placement(((one, 100), (other, 10))).could_have(may_evict=True, claims_too=True)
    assert not Placement(((one, 100), (other, 11))).could_have(may_evict=True, claims_too=True)
    assert not Placement(((one, 101), (other, 10))).could_have(may_evict=True, claims_too=True)
    assert Placement(((one, 1000), (other, 1000))).possible()
    assert not Placement(((one, 1), (other, 1001))).possible()
    text = Placement(((one, 100), (other, 11))).text()
    assert "GPU GPU-1" in text
    assert "GPU GPU-0" not in text


def test_of_a_later_tier_no_more_go_than_the_earlier_ones_leave_open() -> None:
    """Who is busy is not waited for in vain, and then no idle one goes that is not needed beside it."""
    placement = Placement(((full(), 350),))
    choice = placement.choice(1, LRU, 10.0)
    assert choice is not None
    assert [victim.model for victim in choice.victims] == ["a", "b"]
    assert Placement(((full(), 351),)).choice(1, LRU, 10.0) is None
    both = Placement(((full(), 450),)).choice(2, LRU, 10.0)
    assert both is not None
    assert {victim.model for victim in both.victims} == {"c", "a"}
    assert Placement(((full(), 651),)).choice(2, LRU, 10.0) is None
    assert [c.model for c in choice.evicts().spared] == []
    assert [c.model for c in both.evicts().spared] == ["b"]


def test_a_model_on_two_devices_makes_room_on_both() -> None:
    """It goes once."""
    one = room(0, "GPU-0", movable=candidates(split=100, x=50))
    other = room(0, "GPU-1", movable=candidates(split=60, y=70))
    choice = Placement(((one, 100), (other, 60))).choice(1, LRU, 10.0)
    assert choice is not None
    assert [victim.model for victim in choice.victims] == ["split"]
    waits = choice.waits("busy", "waiting")
    assert waits.freed == {"GPU-0": 100, "GPU-1": 60}
    assert waits.awaits == {"split"}
    more = Placement(((one, 100), (other, 61))).choice(1, LRU, 10.0)
    assert more is not None
    assert [victim.model for victim in more.victims] == ["split", "y"]


def test_the_place_is_taken_where_the_least_is_lost() -> None:
    """Where the priority of those that go is lower, unless nobody asks for it; else what is used least."""
    low = room(0, "GPU-0", movable=[Candidate("low", 9.0, 100, priority=1), Candidate("lower", 8.0, 100, priority=0)])
    high = room(0, "GPU-1", movable=[Candidate("high", 0.0, 200, priority=2)])
    places = [Placement(((high, 200),)), Placement(((low, 200),))]
    hybrid = cheapest(places, 1, EvictionPolicy.HYBRID, 10.0)
    assert hybrid is not None and hybrid.placement is places[1]
    assert hybrid.cost[0] == 1
    lru = cheapest(places, 1, LRU, 10.0)
    assert lru is not None and lru.cost[0] == 0
    assert cheapest([Placement(((high, 201),))], 1, LRU, 10.0) is None


def test_a_wait_goes_on_while_what_it_waits_for_is_enough_and_not_too_much() -> None:
    """Not when idle ones would do, when some of them have gone, nor when one of them would not be needed."""
    one = room(0, occupied=candidates(c=300, e=100), movable=candidates(a=50))

    def waits(freed: int, *names: str) -> Waits:
        return Waits((), "", "busy", frozenset(names), {"GPU-0": freed})

    def goes_on(size: int, before: Waits) -> bool:
        return Placement(((one, size),)).still_waits_for(before)

    assert goes_on(300, waits(300, "c"))
    assert not goes_on(301, waits(300, "c"))
    assert goes_on(301, waits(400, "c", "e"))
    assert goes_on(400, waits(400, "c", "e"))
    assert not goes_on(300, waits(400, "c", "e"))
    assert not goes_on(50, waits(300, "c"))
    assert goes_on(51, waits(100, "e"))
    assert not goes_on(300, waits(301, "c"))
    assert not goes_on(300, waits(300, "c", "e"))
    assert not goes_on(60, waits(0))
