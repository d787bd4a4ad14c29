"""What room there is on each device beside those who wait already, and whose going would make more. Decides nothing."""

from collections.abc import Collection, Mapping, Sequence

from gpud.core import eviction
from gpud.core.budget import describe
from gpud.core.eviction import Candidate
from gpud.core.facts import EvictionPolicy
from gpud.core.quote import Share
from gpud.core.record import Record
from gpud.core.verdict import Device, Evicts, Waits

Tier = Sequence[Candidate]

TIERS = 3
"""Those first for whom nobody has to wait: idle models, those in use, those that are loading."""


class Room:
    """One device, as the next one in the queue finds it.

    Those before it take ``kept_bytes``, and wait for ``freed_bytes`` of models that nobody else may wait for. It is
    written while the queue is served, by :meth:`keep` alone.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.available_bytes = device.account.available_bytes or 0
        self.soon_bytes = self.available_bytes + device.coming_bytes
        self.most_bytes = self.soon_bytes + device.could_go_bytes
        self.kept_bytes = 0
        self.freed_bytes = 0
        self.tiers: Sequence[Tier] = (device.movable, device.occupied, device.starting)
        self.within: Sequence[int] = ()
        self._add_up()

    def _add_up(self) -> None:
        """``within`` has what the first so many tiers hold."""
        sums, total = [0], 0
        for tier in self.tiers:
            for candidate in tier:
                total += candidate.bytes
            sums.append(total)
        self.within = sums

    def keep(self, size_bytes: int, freed_bytes: int, awaits: Collection[str]) -> None:
        """One waits for so many bytes here, and for these models."""
        self.kept_bytes += size_bytes
        self.freed_bytes += freed_bytes
        if awaits and self.within[TIERS]:
            self.tiers = [[candidate for candidate in tier if candidate.model not in awaits] for tier in self.tiers]
            self._add_up()

    @property
    def left_bytes(self) -> int:
        """What is available now and needed by nobody before."""
        return max(0, min(self.available_bytes, self.soon_bytes + self.freed_bytes - self.kept_bytes))

    def missing_bytes(self, size_bytes: int) -> int:
        """What has to go for so many, beyond what is on its way back: so that there is enough for them, and for those
        before, too.
        """
        return max(size_bytes, size_bytes + self.kept_bytes - self.freed_bytes) - self.soon_bytes

    def is_spoken_for(self) -> bool:
        """Nothing is left here, and nobody could go."""
        return self.left_bytes == 0 and self.within[-1] == 0


class Placement(Record):
    """So many bytes in each of these rooms."""

    parts: Sequence[tuple[Room, int]]

    @property
    def first(self) -> Device:
        return self.parts[0][0].device

    @property
    def shares(self) -> tuple[Share, ...]:
        return tuple(Share(room.device.uuid, size) for room, size in self.parts)

    def possible(self) -> bool:
        """On devices that nobody else used."""
        return all(size <= room.device.capacity_bytes for room, size in self.parts)

    def fits(self) -> bool:
        """Now, and without taking anything that those before will need when what they wait for has come."""
        return all(size <= room.left_bytes for room, size in self.parts)

    def has_soon(self) -> bool:
        """When what is on its way back has come."""
        return all(room.missing_bytes(size) <= 0 for room, size in self.parts)

    def could_have(self, *, may_evict: bool, claims_too: bool) -> bool:
        """If nobody were before it: when everybody has gone who could go."""
        return all(
            size
            <= (room.most_bytes if may_evict else room.soon_bytes) + (room.device.claimed_bytes if claims_too else 0)
            for room, size in self.parts
        )

    def text(self) -> str:
        return " and ".join(
            f"needs {describe(size)}, {describe(room.left_bytes)} available on {room.device.name}"
            for room, size in self.parts
            if room.missing_bytes(size) > 0
        )

    # Who goes for it

    def still_waits_for(self, before: Waits) -> bool:
        """Whether what it was told to wait for is still there to be waited for, enough, and no more than that."""
        for room, size in self.parts:
            missing = room.missing_bytes(size)
            if missing <= room.within[1]:
                return False
            sizes = [c.bytes for c in room.tiers[1] if c.model in before.awaits]
            enough = sum(sizes)
            if enough != before.freed.get(room.device.uuid, 0):
                return False
            if not enough - min(sizes, default=0) < missing <= enough:
                return False
        return True

    def choice(self, tiers: int, policy: EvictionPolicy, now: float) -> "Choice | None":
        """Those of the first so many tiers that make room on each of its devices, or None when all would not do; a
        model on several devices counts on each.
        """
        if any(room.missing_bytes(size) > room.within[tiers] for room, size in self.parts):
            return None
        chosen: dict[str, Candidate] = {}
        for room, size in self.parts:
            usable = room.tiers[:tiers]
            gone = sum(c.bytes for tier in usable for c in tier if c.model in chosen)
            if chosen:
                usable = [[c for c in tier if c.model not in chosen] for tier in usable]
            victims = _choose(usable, room.missing_bytes(size) - gone, policy, now)
            if victims is None:
                return None
            chosen.update((victim.model, victim) for victim in victims)
        return Choice(self, chosen, policy, now)

    def has_with_claims(self) -> bool:
        """When every model that may go and every claim had gone."""
        return all(
            room.missing_bytes(size) <= room.within[TIERS] + room.device.claimed_bytes for room, size in self.parts
        )

    def all_of_it(self) -> Waits:
        """It waits for claims, and for all models beside them: nobody knows which will be needed in the end."""
        text = " and ".join(
            f"needs {describe(size)}, {describe(room.left_bytes)} available on {room.device.name}, programs have "
            f"claimed {describe(room.device.claimed_bytes)}"
            for room, size in self.parts
        )
        rooms = [room for room, _ in self.parts]
        awaits = frozenset(c.model for room in rooms for tier in room.tiers for c in tier)
        freed = {room.device.uuid: room.within[TIERS] + room.device.claimed_bytes for room in rooms}
        return Waits(self.shares, f"{text}; waiting until they give it back", "claimed", awaits, freed)


class Choice:
    """These models make room for this placement."""

    def __init__(
        self, placement: Placement, chosen: Mapping[str, Candidate], policy: EvictionPolicy, now: float
    ) -> None:
        self.placement = placement
        self.victims = tuple(chosen.values())
        highest = max((victim.priority for victim in self.victims), default=0)
        lost = sum(eviction.loss(victim, now) for victim in self.victims)
        self.cost = (0 if policy is EvictionPolicy.LRU else highest, lost)

    def evicts(self) -> Evicts:
        names = {victim.model for victim in self.victims}
        spared = tuple(c for room, _ in self.placement.parts for c in room.tiers[0] if c.model not in names)
        return Evicts(self.placement.shares, self.victims, spared, self.placement.text())

    def waits(self, cause: str, what: str) -> Waits:
        names = frozenset(victim.model for victim in self.victims)
        freed = {
            room.device.uuid: sum(c.bytes for tier in room.tiers for c in tier if c.model in names)
            for room, _ in self.placement.parts
        }
        return Waits(self.placement.shares, f"{self.placement.text()}; {what}", cause, names, freed)

    def busy_names(self) -> str:
        return ", ".join(f'"{victim.model}"' for victim in self.victims if victim.busy)


def cheapest(placements: Sequence[Placement], tiers: int, policy: EvictionPolicy, now: float) -> Choice | None:
    """Where the least is lost."""
    choices = [placement.choice(tiers, policy, now) for placement in placements]
    return min((choice for choice in choices if choice is not None), key=lambda choice: choice.cost, default=None)


def _choose(
    tiers: Sequence[Tier], missing_bytes: int, policy: EvictionPolicy, now: float
) -> Sequence[Candidate] | None:
    """Of the last tier no more than all of those before it leave open; then of each before no more than is left."""
    chosen: list[Candidate] = []
    for position in reversed(range(len(tiers))):
        before = sum(candidate.bytes for tier in tiers[:position] for candidate in tier)
        rest = missing_bytes - before - sum(candidate.bytes for candidate in chosen)
        victims = eviction.choose(tiers[position], rest, policy=policy, now=now)
        if victims is None:
            return None
        chosen += victims
    return chosen
