"""May this be loaded now, and where? A function from values to a verdict; who is before whom is left to others."""

from collections.abc import Iterable, Iterator, Sequence

from gpud.core.budget import describe
from gpud.core.errors import BudgetExceeded, GpudError, GpuTaken, GpuUnavailable
from gpud.core.facts import HOST, EvictionPolicy
from gpud.core.quote import ANY_GPU, Offer, Share
from gpud.core.record import Record
from gpud.core.refusal import refusal
from gpud.core.room import TIERS, Placement, Room, cheapest
from gpud.core.verdict import Device, Evicts, Granted, Refused, Verdict, Waits, Wish


class Considered(Record):
    """What would happen to a wish: ``fits``, ``waits``, ``evicts`` or ``refused``."""

    verdict: str
    device: str = ""
    victims: tuple[str, ...] = ()
    message: str = ""


class Admission:
    """One after the other asks for memory of the same devices, and finds what those before it, who wait, have left."""

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        ahead: Iterable[Waits] = (),
        policy: EvictionPolicy = EvictionPolicy.HYBRID,
        now: float = 0.0,
    ) -> None:
        self._devices = devices
        self._rooms = {device.uuid: Room(device) for device in devices}
        self._policy = policy
        self._now = now
        self._somebody_before = False
        self._spoken_for: dict[bool, bool] = {}
        self._usable: dict[tuple[str, bool], Sequence[Device]] = {}
        for waits in ahead:
            self.keep(waits)

    def keep(self, waits: Waits) -> None:
        """One more waits, and those behind it find less."""
        self._somebody_before = True
        self._spoken_for.clear()
        sizes = {share.device: share.bytes for share in waits.shares}
        for uuid, room in self._rooms.items():
            if waits.awaits or uuid in sizes or uuid in waits.freed:
                room.keep(sizes.get(uuid, 0), waits.freed.get(uuid, 0), waits.awaits)

    def still_behind(self, before: Waits) -> bool:
        """Whether one who was told to wait for those before it has to all the same: they have everything there is."""
        if before.cause != "behind":
            return False
        on_host = before.shares[0].device == HOST
        spoken_for = self._spoken_for.get(on_host)
        if spoken_for is None:
            rooms = [room for room in self._rooms.values() if room.device.sample.is_host is on_host]
            spoken_for = self._spoken_for[on_host] = all(room.is_spoken_for() for room in rooms)
        return spoken_for

    def decide(self, wish: Wish) -> Verdict:
        """The first offer that can be had decides: each of these is asked of the first offer, then of the next.

        1. Nothing is needed: granted on the first device.
        2. It fits somewhere, and those before it will still get what they wait for: granted there, the roomiest first.
        3. It will fit when what is already on its way back has come: waits.
        4. It will fit when idle models go for which nobody before it waits: evicts, where the least is lost.
        5. It will fit when models that are in use go as well: waits (for the same as before, as long as that is
           enough), or evicts them too once it is overdue.
        6. It will fit when models that are loading are ready and can go: waits.
        7. It will fit when programs give back what they have claimed, and it is one who waits for that: waits.
        8. It could have it, now or then, if nobody were before it: waits.
        9. Else refused, with need and available and what stands in the way.

        Who may not evict passes 4 to 7 over.
        """
        refused: Refused | None = None
        for offer in wish.quote.offers:
            if offer.reduced and refused is not None and not isinstance(refused.error, BudgetExceeded):
                # It is not memory that is missing: a GPU is lost or somebody else's, and less of one would not help.
                break
            verdict = self._decide(wish, offer)
            if not isinstance(verdict, Refused):
                return verdict
            refused = refused or verdict
        return refused or Refused(
            BudgetExceeded(f"cannot {wish.subject}: no engine offers it", need_bytes=0, available_bytes=0)
        )

    def _decide(self, wish: Wish, offer: Offer) -> Verdict:
        usable = self._usable_for(wish, offer)
        if not any(share.bytes for share in offer.shares):
            first = HOST if isinstance(usable, GpudError) or not usable else usable[0].uuid
            vendor = HOST if isinstance(usable, GpudError) or not usable else usable[0].sample.vendor
            return Granted(offer, (Share(first, 0),), vendor)
        if isinstance(usable, GpudError):
            return Refused(usable)
        placements = list(self._placements(offer, usable))
        for placement in placements:
            if placement.fits():
                return Granted(offer, placement.shares, placement.first.sample.vendor)
        possible = [placement for placement in placements if placement.possible()]
        for placement in possible:
            if placement.has_soon():
                room, size = max(placement.parts, key=lambda part: part[1] - part[0].left_bytes)
                lacking = describe(size - room.left_bytes)
                return Waits(placement.shares, f"waiting for {lacking} to come back on {room.device.name}", "coming")
        if wish.may_evict:
            verdict = self._by_others(wish, possible)
            if verdict is not None:
                return verdict
        for placement in possible if self._somebody_before else ():
            if placement.could_have(may_evict=wish.may_evict, claims_too=wish.awaits_claims):
                text = f"waiting for those before it on {placement.first.name}"
                return Waits(placement.shares, text, "behind")
        return Refused(refusal(wish, offer, placements))

    def _usable_for(self, wish: Wish, offer: Offer) -> Sequence[Device] | GpudError:
        """As :func:`_devices_for`; what is not refused is the same for everybody."""
        where = wish.gpu, all(share.device == HOST for share in offer.shares)
        usable = self._usable.get(where) or _devices_for(wish, offer, self._devices)
        if not isinstance(usable, GpudError):
            self._usable[where] = usable
        return usable

    def _by_others(self, wish: Wish, possible: Sequence[Placement]) -> Evicts | Waits | None:
        """By idle models alone; else by those in use as well; else by what is still loading; else by claims."""
        idle = cheapest(possible, 1, self._policy, self._now)
        if idle is not None:
            return idle.evicts()
        before = wish.before
        if before is not None and before.cause == "busy" and not wish.overdue:
            for placement in possible:
                if placement.shares == before.shares and placement.still_waits_for(before):
                    return before
        busy = cheapest(possible, 2, self._policy, self._now)
        if busy is not None:
            if wish.overdue:
                return busy.evicts()
            return busy.waits("busy", f"waiting until {busy.busy_names()} has answered")
        loading = cheapest(possible, TIERS, self._policy, self._now)
        if loading is not None:
            return loading.waits("loading", "waiting for models that are loading, to see whether they can make room")
        for placement in possible if wish.awaits_claims else ():
            if placement.has_with_claims():
                return placement.all_of_it()
        return None

    def _placements(self, offer: Offer, usable: Sequence[Device]) -> Iterator[Placement]:
        """Every way to lay the shares on devices. Shares on one device are one."""
        anywhere = any(share.device == ANY_GPU for share in offer.shares)
        known = {device.uuid for device in usable} | {HOST}
        for first in usable if anywhere else usable[:1]:
            sizes: dict[str, int] = {}
            for share in offer.shares:
                uuid = first.uuid if share.device == ANY_GPU else share.device
                sizes[uuid] = sizes.get(uuid, 0) + share.bytes
            if all(uuid in known and uuid in self._rooms for uuid in sizes):
                yield Placement([(self._rooms[uuid], size) for uuid, size in sizes.items()])


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
