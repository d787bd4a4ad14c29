"""May this be loaded now, and where? A function from values to a verdict; who is before whom is left to others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpud.core import eviction
from gpud.core.budget import Account, describe
from gpud.core.errors import BudgetExceeded, GpudError, GpuTaken, GpuUnavailable
from gpud.core.facts import HOST, EvictionPolicy, GpuSample, Model
from gpud.core.quote import ANY_GPU, Offer, Quote, Share

NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Device:
    """One device as admission sees it.

    ``coming_bytes`` are promised back: engines that are stopping, and memory of engines just gone that no sample shows
    yet. ``starting_bytes`` belong to models that are loading and may be asked to go once they are ready. ``movable``
    are the models that may be unloaded to make room, ``occupied`` those that may as soon as they have answered.
    ``taken_by`` says that other programs hold so much of it that nothing is to be loaded there.
    """

    sample: GpuSample
    account: Account
    coming_bytes: int = 0
    starting_bytes: int = 0
    movable: Sequence[eviction.Candidate] = ()
    occupied: Sequence[eviction.Candidate] = ()
    claimed_bytes: int = 0
    taken_by: str = ""

    @property
    def uuid(self) -> str:
        return self.sample.uuid

    @property
    def capacity_bytes(self) -> int:
        return self.account.capacity_bytes or 0


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants memory: ``subject`` completes "cannot …". ``gpu`` is one by index or uuid, or the machine's memory.

    ``overdue``: it has waited for as long as others may be served before it, so that models which are in use are in the
    way no longer: they take no new requests until it has been served.
    """

    subject: str
    quote: Quote
    gpu: str = ""
    may_evict: bool = True
    overdue: bool = False

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
    """``shares`` are kept free for it from now on. ``cause``: ``coming`` memory is on its way, ``behind`` others are
    before it, ``busy`` models in the way have to answer first, ``loading`` some have to come up before they can go.
    """

    shares: tuple[Share, ...]
    text: str
    cause: str


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
class Considered:
    """What would happen to a wish: ``fits``, ``waits``, ``evicts`` or ``refused``."""

    verdict: str
    device: str = ""
    victims: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """So many bytes on this device, ``kept_bytes`` of which are kept for those who are before."""

    device: Device
    bytes: int
    kept_bytes: int

    @property
    def available_bytes(self) -> int:
        return self.device.account.available_bytes or 0

    def missing_bytes(self) -> int:
        """What has to come or go for it, beyond what is on its way back and not needed by those before."""
        return self.bytes + self.kept_bytes - self.available_bytes - self.device.coming_bytes

    def fits(self) -> bool:
        """Now, and without taking anything that those before will need when what is coming has come."""
        return self.bytes <= self.available_bytes and self.missing_bytes() <= 0


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
    kept: Mapping[str, int] = NOTHING,
    policy: EvictionPolicy = EvictionPolicy.HYBRID,
    now: float = 0.0,
) -> Verdict:
    """The first offer that can be had decides. ``kept`` are the bytes that those before this one will need, by device.

    1. Nothing is needed: granted on the first device.
    2. It fits somewhere, and what those before it wait for is still theirs: granted there, the roomiest first.
    3. It will fit when what is already on its way back has come: waits.
    4. It will fit when idle models go: evicts, where the least is lost.
    5. It will fit when models that are in use go as well: waits, or evicts them too once it is overdue.
    6. It will fit when models that are loading are ready and can go: waits.
    7. It would fit if nobody were before it: waits.
    8. Else refused, with need and available and what stands in the way.
    """
    refused: Refused | None = None
    for offer in wish.quote.offers:
        verdict = _decide(wish, offer, devices, kept, policy, now)
        if not isinstance(verdict, Refused):
            return verdict
        refused = refused or verdict
    return refused or Refused(
        BudgetExceeded(f"cannot {wish.subject}: no engine offers it", need_bytes=0, available_bytes=0)
    )


def _decide(
    wish: Wish, offer: Offer, devices: Sequence[Device], kept: Mapping[str, int], policy: EvictionPolicy, now: float
) -> Verdict:
    usable = _devices_for(wish, offer, devices)
    if not any(share.bytes for share in offer.shares):
        first = HOST if isinstance(usable, GpudError) or not usable else usable[0].uuid
        vendor = HOST if isinstance(usable, GpudError) or not usable else usable[0].sample.vendor
        return Granted(offer, (Share(first, 0),), vendor)
    if isinstance(usable, GpudError):
        return Refused(usable)
    placements = list(_placements(offer, usable, devices, kept))
    for placement in placements:
        if all(part.fits() for part in placement.parts):
            return Granted(offer, placement.shares, placement.first.sample.vendor)
    possible = [placement for placement in placements if placement.possible()]
    for placement in possible:
        if all(part.missing_bytes() <= 0 for part in placement.parts):
            lacking = max(placement.parts, key=lambda part: part.bytes - part.available_bytes)
            size = describe(lacking.bytes - lacking.available_bytes)
            return Waits(placement.shares, f"waiting for {size} to come back on {_name(lacking.device)}", "coming")
    if wish.may_evict:
        verdict = _by_eviction(wish, possible, policy, now)
        if verdict is not None:
            return verdict
    if kept:
        alone = _decide(wish, offer, devices, NOTHING, policy, now)
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
    offer: Offer, usable: Sequence[Device], devices: Sequence[Device], kept: Mapping[str, int]
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
                tuple(_Part(by_uuid[uuid], size, max(0, kept.get(uuid, 0))) for uuid, size in sizes.items())
            )


# Who goes for it ------------------------------------------------------------------------------------------------------


def _by_eviction(wish: Wish, possible: Sequence[_Placement], policy: EvictionPolicy, now: float) -> Verdict | None:
    """Where the least is lost: by idle models alone; else by those in use as well; else by what is still loading."""
    idle = _cheapest(possible, policy, now, busy_too=False)
    if idle is not None:
        return idle
    both = _cheapest(possible, policy, now, busy_too=True)
    if both is not None:
        if wish.overdue:
            return both
        names = ", ".join(f'"{victim.model}"' for victim in both.victims if victim.busy)
        return Waits(both.shares, f"{both.text}; waiting until {names} has answered", "busy")
    for placement in possible:
        if all(_could_have(part) >= 0 for part in placement.parts):
            text = f"waiting for models that are loading on {_name(placement.first)}, to see whether they can make room"
            return Waits(placement.shares, text, "loading")
    return None


def _could_have(part: _Part) -> int:
    device = part.device
    others = sum(candidate.bytes for candidate in (*device.movable, *device.occupied))
    return others + device.starting_bytes - part.missing_bytes()


def _cheapest(possible: Sequence[_Placement], policy: EvictionPolicy, now: float, *, busy_too: bool) -> Evicts | None:
    best: tuple[float, _Placement, Sequence[eviction.Candidate]] | None = None
    for placement in possible:
        victims = _victims(placement, policy, now, busy_too=busy_too)
        if victims is not None:
            cost = sum(eviction.loss(victim, now) for victim in victims)
            if best is None or cost < best[0]:
                best = (cost, placement, victims)
    if best is None:
        return None
    _, placement, victims = best
    names = {victim.model for victim in victims}
    spared = [c for part in placement.parts for c in part.device.movable if c.model not in names]
    texts = [
        f"needs {describe(part.bytes)}, {describe(max(0, part.available_bytes - part.kept_bytes))} available on "
        f"{_name(part.device)}"
        for part in placement.parts
        if part.missing_bytes() > 0
    ]
    return Evicts(placement.shares, tuple(victims), tuple(spared), " and ".join(texts))


def _victims(
    placement: _Placement, policy: EvictionPolicy, now: float, *, busy_too: bool
) -> Sequence[eviction.Candidate] | None:
    """Those that make room on every device of the placement; a model on several devices counts on each."""
    chosen: dict[str, eviction.Candidate] = {}
    for part in placement.parts:
        idle = part.device.movable
        busy = part.device.occupied if busy_too else ()
        gone = sum(c.bytes for c in (*idle, *busy) if c.model in chosen)
        rest = part.missing_bytes() - gone
        victims = eviction.choose([c for c in idle if c.model not in chosen], rest, policy=policy, now=now)
        if victims is None and busy:
            left = rest - sum(c.bytes for c in idle if c.model not in chosen)
            more = eviction.choose([c for c in busy if c.model not in chosen], left, policy=policy, now=now)
            victims = None if more is None else [*(c for c in idle if c.model not in chosen), *more]
        if victims is None:
            return None
        chosen.update((victim.model, victim) for victim in victims)
    return tuple(chosen.values())


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
    message += f"free {describe(account.free_bytes)})"
    idle_bytes = sum(candidate.bytes for candidate in device.movable)
    if not wish.may_evict and idle_bytes:
        hint = f"allow eviction: idle models hold {describe(idle_bytes)}"
    elif account.committed_bytes > device.claimed_bytes:
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


def kept_with(kept: Mapping[str, int], shares: Iterable[Share]) -> dict[str, int]:
    """``kept``, and these shares beside it."""
    together = dict(kept)
    for share in shares:
        together[share.device] = together.get(share.device, 0) + share.bytes
    return together
