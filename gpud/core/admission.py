"""May this be loaded now, and where? A function from values to a verdict; who is before whom is left to others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpud.core import eviction
from gpud.core.budget import Account, describe
from gpud.core.errors import BudgetExceeded, GpudError, GpuTaken, GpuUnavailable
from gpud.core.facts import HOST, EvictionPolicy, GpuSample, Model
from gpud.core.quote import ANY_GPU, Offer, Quote, Share


@dataclass(frozen=True, slots=True)
class Device:
    """One device as admission sees it.

    ``coming_bytes`` are promised back: engines that are stopping, and memory of engines just gone that no sample shows
    yet. ``movable`` are the models that may be unloaded to make room, ``occupied`` those that may as soon as they have
    answered, ``starting`` those that may once they have come up. ``claimed_bytes`` belong to programs that are no
    engines. ``taken_by`` says that other programs hold so much of it that nothing is to be loaded there.
    """

    sample: GpuSample
    account: Account
    coming_bytes: int = 0
    movable: Sequence[eviction.Candidate] = ()
    occupied: Sequence[eviction.Candidate] = ()
    starting: Sequence[eviction.Candidate] = ()
    claimed_bytes: int = 0
    taken_by: str = ""

    @property
    def uuid(self) -> str:
        return self.sample.uuid

    @property
    def capacity_bytes(self) -> int:
        return self.account.capacity_bytes or 0

    @property
    def could_go_bytes(self) -> int:
        """What all models hold together that may be unloaded, sooner or later."""
        return sum(candidate.bytes for tier in (self.movable, self.occupied, self.starting) for candidate in tier)


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants memory: ``subject`` completes "cannot …". ``gpu`` is one by index or uuid, or the machine's memory.

    ``overdue``: it has waited for as long as others may be served before it, so that models which are in use are in the
    way no longer: they take no new requests until it has been served. ``awaits_claims``: it waits for what programs
    have claimed, which may be long; whoever does not is refused.
    """

    subject: str
    quote: Quote
    gpu: str = ""
    may_evict: bool = True
    overdue: bool = False
    awaits_claims: bool = False

    @classmethod
    def load(cls, model: Model, quote: Quote, *, may_evict: bool = True, overdue: bool = False) -> "Wish":
        gpu = HOST if model.settings.layers == "0" else model.gpu
        return cls(f'load "{model.name}"', quote, gpu, may_evict, overdue)


@dataclass(frozen=True, slots=True)
class Granted:
    offer: Offer
    shares: tuple[Share, ...]
    vendor: str


@dataclass(frozen=True, slots=True)
class Waits:
    """``shares`` are kept free for it from now on. ``cause``: ``coming`` memory is on its way, ``eviction`` idle models
    are asked to go, ``behind`` others are before it, ``busy`` models in the way have to answer first, ``loading`` some
    have to come up before they can go, ``claimed`` programs have to give back what they claimed.

    It waits for the models in ``awaits``, and so for ``freed`` bytes by device, beyond what is on its way back anyway.
    """

    shares: tuple[Share, ...]
    text: str
    cause: str
    awaits: frozenset[str] = frozenset()
    freed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evicts:
    """It fits once these models are unloaded; ``spared`` are those that could have gone and stay."""

    shares: tuple[Share, ...]
    victims: tuple[eviction.Candidate, ...]
    spared: tuple[eviction.Candidate, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    error: GpudError


Verdict = Granted | Waits | Evicts | Refused


@dataclass(frozen=True, slots=True)
class Ahead:
    """Those who are before a wish, together: ``kept`` bytes by device are theirs, of which ``freed`` are yet to come
    when the models in ``awaited`` have gone.
    """

    kept: Mapping[str, int] = field(default_factory=dict)
    freed: Mapping[str, int] = field(default_factory=dict)
    awaited: frozenset[str] = frozenset()

    def and_then(self, waits: Waits) -> "Ahead":
        """With one more, who waits for that."""
        kept, freed = dict(self.kept), dict(self.freed)
        for share in waits.shares:
            kept[share.device] = kept.get(share.device, 0) + share.bytes
        for device, size in waits.freed.items():
            freed[device] = freed.get(device, 0) + size
        return Ahead(kept, freed, self.awaited | waits.awaits)


NOBODY = Ahead()


@dataclass(frozen=True, slots=True)
class Considered:
    """What would happen to a wish: ``fits``, ``waits``, ``evicts`` or ``refused``."""

    verdict: str
    device: str = ""
    victims: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """So many bytes on this device. Those who are before take ``kept_bytes``, and wait for ``freed_bytes`` there."""

    device: Device
    bytes: int
    kept_bytes: int
    freed_bytes: int

    @property
    def available_bytes(self) -> int:
        return self.device.account.available_bytes or 0

    @property
    def left_bytes(self) -> int:
        """What is available now and needed by nobody before."""
        surplus = self.available_bytes + self.device.coming_bytes + self.freed_bytes - self.kept_bytes
        return max(0, min(self.available_bytes, surplus))

    def fits(self) -> bool:
        """Now, and without taking anything that those before will need when what they wait for has come."""
        return self.bytes <= self.left_bytes

    def missing_bytes(self) -> int:
        """What has to go for it, beyond what is on its way back: so that it has enough, and those before, too."""
        soon = self.available_bytes + self.device.coming_bytes
        return max(self.bytes - soon, self.bytes + self.kept_bytes - soon - self.freed_bytes)


@dataclass(frozen=True, slots=True)
class _Placement:
    parts: tuple[_Part, ...]
    first: Device = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.parts[0].device)

    @property
    def shares(self) -> tuple[Share, ...]:
        return tuple(Share(part.device.uuid, part.bytes) for part in self.parts)

    def possible(self) -> bool:
        return all(part.bytes <= part.device.capacity_bytes for part in self.parts)


def decide(
    wish: Wish,
    devices: Sequence[Device],
    *,
    ahead: Ahead = NOBODY,
    policy: EvictionPolicy = EvictionPolicy.HYBRID,
    now: float = 0.0,
) -> Verdict:
    """The first offer that can be had decides: each of these is asked of the first offer, then of the next.

    1. Nothing is needed: granted on the first device.
    2. It fits somewhere, and those before it will still get what they wait for: granted there, the roomiest first.
    3. It will fit when what is already on its way back has come: waits.
    4. It will fit when idle models go for which nobody before it waits: evicts, where the least is lost.
    5. It will fit when models that are in use go as well: waits, or evicts them too once it is overdue.
    6. It will fit when models that are loading are ready and can go: waits.
    7. It will fit when programs give back what they have claimed, and it is one of those who wait for that: waits.
    8. It would fit, or wait, if nobody were before it: waits.
    9. Else refused, with need and available and what stands in the way.

    Who may not evict passes 4 to 7 over.
    """
    refused: Refused | None = None
    for offer in wish.quote.offers:
        verdict = _decide(wish, offer, devices, ahead, policy, now)
        if not isinstance(verdict, Refused):
            return verdict
        refused = refused or verdict
    return refused or Refused(
        BudgetExceeded(f"cannot {wish.subject}: no engine offers it", need_bytes=0, available_bytes=0)
    )


def _decide(
    wish: Wish, offer: Offer, devices: Sequence[Device], ahead: Ahead, policy: EvictionPolicy, now: float
) -> Verdict:
    usable = _devices_for(wish, offer, devices)
    if not any(share.bytes for share in offer.shares):
        first = HOST if isinstance(usable, GpudError) or not usable else usable[0].uuid
        vendor = HOST if isinstance(usable, GpudError) or not usable else usable[0].sample.vendor
        return Granted(offer, (Share(first, 0),), vendor)
    if isinstance(usable, GpudError):
        return Refused(usable)
    placements = list(_placements(offer, usable, devices, ahead))
    for placement in placements:
        if all(part.fits() for part in placement.parts):
            return Granted(offer, placement.shares, placement.first.sample.vendor)
    possible = [placement for placement in placements if placement.possible()]
    for placement in possible:
        if all(part.missing_bytes() <= 0 for part in placement.parts):
            lacking = max(placement.parts, key=lambda part: part.bytes - part.left_bytes)
            size = describe(lacking.bytes - lacking.left_bytes)
            return Waits(placement.shares, f"waiting for {size} to come back on {_name(lacking.device)}", "coming")
    if wish.may_evict:
        verdict = _by_others(wish, possible, ahead.awaited, policy, now)
        if verdict is not None:
            return verdict
    if ahead.kept:
        alone = _decide(wish, offer, devices, NOBODY, policy, now)
        if not isinstance(alone, Refused):
            text = f"waiting for those before it on {_name(placements[0].first)}"
            return Waits(alone.shares, text, "behind")
    return Refused(_refusal(wish, offer, placements, usable))


# Where it may go ------------------------------------------------------------------------------------------------------


def _devices_for(wish: Wish, offer: Offer, devices: Sequence[Device]) -> Sequence[Device] | GpudError:
    """The devices that the first share may have: what is named, else every GPU, else the host's memory; the roomiest
    first.
    """
    host = [device for device in devices if device.sample.is_host]
    gpus = [device for device in devices if not device.sample.is_host]
    if not host:
        return GpuUnavailable(f"cannot {wish.subject}: the memory of this machine cannot be read")
    if wish.gpu == HOST or all(share.device == HOST for share in offer.shares):
        return _readable(wish, host)
    if wish.gpu:
        named = [d for d in gpus if wish.gpu in (d.uuid, str(d.sample.index))]
        if not named:
            known = ", ".join(f"{d.sample.index} ({d.uuid})" for d in gpus) or "none"
            return GpuUnavailable(
                f'cannot {wish.subject}: GPU "{wish.gpu}" is not there (GPUs: {known})',
                hint="correct gpu: in its configuration, or check the driver with gpudctl doctor",
            )
        gpus = named
    if not gpus:
        return _readable(wish, host)
    well = [device for device in gpus if not device.sample.health and device.account.available_bytes is not None]
    if not well:
        reasons = "; ".join(f"{d.sample.name}: {d.sample.health or 'does not tell its free memory'}" for d in gpus)
        return GpuUnavailable(
            f"cannot {wish.subject}: no GPU can be used ({reasons})",
            hint="see gpudctl doctor; gpu: host in its configuration keeps it off the GPU",
        )
    free = [device for device in well if not device.taken_by]
    if not free:
        reasons = "; ".join(device.taken_by for device in well)
        return GpuTaken(
            f"cannot {wish.subject}: other programs use the GPU: {reasons}",
            hint="ask again when they have ended, or raise gpu.external_busy_mib",
        )
    return sorted(free, key=lambda d: -(d.account.available_bytes or 0))


def _readable(wish: Wish, host: Sequence[Device]) -> Sequence[Device] | GpudError:
    for device in host:
        if device.account.available_bytes is None:
            reason = device.sample.health or "it does not tell how much is free"
            return GpuUnavailable(f"cannot {wish.subject}: {device.sample.name}: {reason}")
    return host


def _placements(
    offer: Offer, usable: Sequence[Device], devices: Sequence[Device], ahead: Ahead
) -> Iterator[_Placement]:
    """Every way to lay the shares on devices. Shares on one device are one."""
    by_uuid = {device.uuid: device for device in devices}
    anywhere = any(share.device == ANY_GPU for share in offer.shares)
    for first in usable if anywhere else usable[:1]:
        sizes: dict[str, int] = {}
        for share in offer.shares:
            uuid = first.uuid if share.device == ANY_GPU else share.device
            sizes[uuid] = sizes.get(uuid, 0) + share.bytes
        known = {device.uuid for device in usable} | {HOST}
        if all(uuid in known and uuid in by_uuid for uuid in sizes):
            yield _Placement(
                tuple(
                    _Part(by_uuid[uuid], size, ahead.kept.get(uuid, 0), ahead.freed.get(uuid, 0))
                    for uuid, size in sizes.items()
                )
            )


# Who goes for it ------------------------------------------------------------------------------------------------------


def _by_others(
    wish: Wish, possible: Sequence[_Placement], awaited: frozenset[str], policy: EvictionPolicy, now: float
) -> Evicts | Waits | None:
    """Where the least is lost: by idle models alone; else by those in use as well; else by what is still loading."""
    rooms = [_Room(placement, awaited, policy, now) for placement in possible]
    idle = _cheapest(rooms, 1)
    if idle is not None:
        return idle.evicts()
    busy = _cheapest(rooms, 2)
    if busy is not None:
        if wish.overdue:
            return busy.evicts()
        return busy.waits("busy", f"waiting until {busy.names(busy=True)} has answered")
    loading = _cheapest(rooms, 3)
    if loading is not None:
        return loading.waits("loading", "waiting for models that are loading, to see whether they can make room")
    for room in rooms if wish.awaits_claims else ():
        if room.has_with_claims():
            return room.all_of_it()
    return None


@dataclass(frozen=True, slots=True)
class _Choice:
    """These models make room for this placement; ``spared`` could have gone and stay."""

    placement: _Placement
    victims: tuple[eviction.Candidate, ...]
    spared: tuple[eviction.Candidate, ...]
    freed: Mapping[str, int]
    cost: tuple[float, float]

    def text(self) -> str:
        return " and ".join(
            f"needs {describe(part.bytes)}, {describe(part.left_bytes)} available on {_name(part.device)}"
            for part in self.placement.parts
            if part.missing_bytes() > 0
        )

    def names(self, *, busy: bool) -> str:
        return ", ".join(f'"{victim.model}"' for victim in self.victims if victim.busy is busy)

    def evicts(self) -> Evicts:
        return Evicts(self.placement.shares, self.victims, self.spared, self.text())

    def waits(self, cause: str, what: str) -> Waits:
        awaits = frozenset(victim.model for victim in self.victims)
        return Waits(self.placement.shares, f"{self.text()}; {what}", cause, awaits, self.freed)


@dataclass(frozen=True, slots=True)
class _Room:
    """What could be made on the devices of a placement by models for which nobody before waits."""

    placement: _Placement
    awaited: frozenset[str]
    policy: EvictionPolicy
    now: float

    def tiers(self, device: Device) -> Sequence[Sequence[eviction.Candidate]]:
        """Who may go, those first for whom nobody has to wait: idle, in use, loading."""
        every = (device.movable, device.occupied, device.starting)
        if not self.awaited:
            return every
        return [[candidate for candidate in tier if candidate.model not in self.awaited] for tier in every]

    def choice(self, tiers: int) -> _Choice | None:
        """Those of the first so many tiers that make room on every device of the placement, or None when all would not
        do; a model on several devices counts on each.
        """
        chosen: dict[str, eviction.Candidate] = {}
        for part in self.placement.parts:
            usable = self.tiers(part.device)[:tiers]
            gone = sum(c.bytes for tier in usable for c in tier if c.model in chosen)
            open_tiers = [[c for c in tier if c.model not in chosen] for tier in usable] if chosen else usable
            victims = self._choose(open_tiers, part.missing_bytes() - gone)
            if victims is None:
                return None
            chosen.update((victim.model, victim) for victim in victims)
        devices = [part.device for part in self.placement.parts]
        freed = {
            device.uuid: sum(c.bytes for tier in self.tiers(device) for c in tier if c.model in chosen)
            for device in devices
        }
        spared = tuple(c for device in devices for c in self.tiers(device)[0] if c.model not in chosen)
        lost = sum(eviction.loss(victim, self.now) for victim in chosen.values())
        highest = max((victim.priority for victim in chosen.values()), default=0)
        cost = (0 if self.policy is EvictionPolicy.LRU else highest, lost)
        return _Choice(self.placement, tuple(chosen.values()), spared, freed, cost)

    def _choose(
        self, tiers: Sequence[Sequence[eviction.Candidate]], missing_bytes: int
    ) -> Sequence[eviction.Candidate] | None:
        """Of the last tier no more than all of those before it leave open; then of each before no more than is left."""
        chosen: list[eviction.Candidate] = []
        for position in reversed(range(len(tiers))):
            before = sum(candidate.bytes for tier in tiers[:position] for candidate in tier)
            rest = missing_bytes - before - sum(candidate.bytes for candidate in chosen)
            victims = eviction.choose(tiers[position], rest, policy=self.policy, now=self.now)
            if victims is None:
                return None
            chosen += victims
        return chosen

    def _most(self, device: Device) -> int:
        """What would be free if every model that may go and every claim had gone."""
        return device.claimed_bytes + sum(candidate.bytes for tier in self.tiers(device) for candidate in tier)

    def has_with_claims(self) -> bool:
        return all(self._most(part.device) >= part.missing_bytes() for part in self.placement.parts)

    def all_of_it(self) -> Waits:
        """It waits for claims, and for all models beside them: nobody knows which will be needed in the end."""
        devices = [part.device for part in self.placement.parts]
        text = " and ".join(
            f"needs {describe(part.bytes)}, {describe(part.left_bytes)} available on {_name(part.device)}, programs "
            f"have claimed {describe(part.device.claimed_bytes)}"
            for part in self.placement.parts
        )
        awaits = frozenset(c.model for device in devices for tier in self.tiers(device) for c in tier)
        freed = {device.uuid: self._most(device) for device in devices}
        return Waits(self.placement.shares, f"{text}; waiting until they give it back", "claimed", awaits, freed)


def _cheapest(rooms: Sequence[_Room], tiers: int) -> _Choice | None:
    choices = [choice for choice in (room.choice(tiers) for room in rooms) if choice is not None]
    return min(choices, key=lambda choice: choice.cost, default=None)


# Why not --------------------------------------------------------------------------------------------------------------


def _refusal(
    wish: Wish, offer: Offer, placements: Sequence[_Placement], usable: Sequence[Device]
) -> BudgetExceeded | GpuUnavailable:
    """The sentence with the numbers of the device that comes nearest."""
    if not placements:
        names = ", ".join(share.device for share in offer.shares)
        return GpuUnavailable(f"cannot {wish.subject}: not all of its devices can be used ({names})")

    def nearness(placement: _Placement) -> tuple[int, int]:
        short = max(part.bytes - part.device.capacity_bytes for part in placement.parts)
        return max(0, short), max(part.missing_bytes() for part in placement.parts)

    nearest = min(placements, key=nearness)
    part = max(nearest.parts, key=lambda p: (p.bytes > p.device.capacity_bytes, p.missing_bytes()))
    account, device = part.device.account, part.device
    available = part.available_bytes
    where = _name(device)
    if device.capacity_bytes < part.bytes:
        most = max(usable, key=lambda d: d.capacity_bytes)
        if not device.sample.is_host and most.capacity_bytes > device.capacity_bytes:
            where, device, account = _name(most), most, most.account
        message = (
            f"cannot {wish.subject}: it needs {describe(part.bytes)}, the whole budget of {where} is "
            f"{describe(device.capacity_bytes)}"
        )
        hint = (
            _advice(wish.quote, device)
            or "take a smaller quantization, lower its context or layers, or raise gpu.budget"
        )
        return BudgetExceeded(message, need_bytes=part.bytes, available_bytes=available, hint=hint)
    message = (
        f"cannot {wish.subject}: it needs {describe(part.bytes)}, {describe(available)} are available on {where} "
        f"(budget {describe(device.capacity_bytes)}, own models "
        f"{describe(account.committed_bytes - device.claimed_bytes)}, "
    )
    if device.claimed_bytes:
        message += f"claims {describe(device.claimed_bytes)}, "
    message += f"free {describe(None if account.free_bytes is None else max(0, account.free_bytes))})"
    idle_bytes = sum(candidate.bytes for candidate in device.movable)
    if not wish.may_evict and idle_bytes:
        hint = f"allow eviction: idle models hold {describe(idle_bytes)}"
    elif account.committed_bytes - device.claimed_bytes - device.coming_bytes > device.could_go_bytes:
        hint = "unload a model that is held or pinned, see gpudctl status"
    elif device.claimed_bytes:
        hint = "wait until a claim is given back, see gpudctl vram"
    else:
        hint = "other programs hold the memory, see gpudctl vram"
    return BudgetExceeded(message, need_bytes=part.bytes, available_bytes=available, hint=hint)


def _advice(quote: Quote, device: Device) -> str:
    """What would fit into the whole budget of the device, if less were asked for."""
    fitting = [offer for offer in quote.less if offer.gpu_bytes + offer.host_bytes * device.sample.is_host]
    fitting = [offer for offer in fitting if offer.need_bytes <= device.capacity_bytes]
    ways = dict.fromkeys("layers" if offer.layers is not None else "context" for offer in fitting)
    firsts = [next(o for o in fitting if ("layers" if o.layers is not None else "context") == way) for way in ways]
    return "it fits with " + " or with ".join(offer.reduced for offer in firsts) if firsts else ""


def _name(device: Device) -> str:
    return device.sample.name
