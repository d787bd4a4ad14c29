"""Why somebody cannot have memory, in a sentence with the numbers, and what to do about it."""

from collections.abc import Sequence

from gpud.core.budget import describe
from gpud.core.errors import BudgetExceeded, GpuUnavailable
from gpud.core.quote import Offer, Quote
from gpud.core.room import Placement
from gpud.core.verdict import Device, Wish


def refusal(wish: Wish, offer: Offer, placements: Sequence[Placement]) -> BudgetExceeded | GpuUnavailable:
    """By the device that comes nearest."""
    if not placements:
        names = ", ".join(share.device for share in offer.shares)
        return GpuUnavailable(f"cannot {wish.subject}: not all of its devices can be used ({names})")

    def nearness(placement: Placement) -> tuple[int, int]:
        short = max(size - room.device.capacity_bytes for room, size in placement.parts)
        return max(0, short), max(room.missing_bytes(size) for room, size in placement.parts)

    nearest = min(placements, key=nearness)
    room, size = max(
        nearest.parts, key=lambda part: (part[1] > part[0].device.capacity_bytes, part[0].missing_bytes(part[1]))
    )
    if room.device.capacity_bytes < size:
        return _too_large(wish, size, room.available_bytes, room.device)
    return _too_full(wish, size, room.available_bytes, room.device)


def _too_large(wish: Wish, size: int, available: int, device: Device) -> BudgetExceeded:
    """For the whole budget, whoever goes."""
    return BudgetExceeded(
        f"cannot {wish.subject}: it needs {describe(size)}, the whole budget of {device.name} is "
        f"{describe(device.capacity_bytes)}",
        need_bytes=size,
        available_bytes=available,
        hint=_advice(wish.quote, device) or wish.less,
    )


def _too_full(wish: Wish, size: int, available: int, device: Device) -> BudgetExceeded:
    """With what may not go, or what others hold."""
    account = device.account
    own_bytes = account.committed_bytes - device.claimed_bytes
    claims = f"claims {describe(device.claimed_bytes)}, " if device.claimed_bytes else ""
    idle_bytes = sum(candidate.bytes for candidate in device.movable)
    if not wish.may_evict and idle_bytes:
        hint = f"allow eviction: idle models hold {describe(idle_bytes)}"
    elif own_bytes - device.coming_bytes > device.could_go_bytes:
        hint = "unload a model that is held or pinned, see gpudctl status"
    elif device.claimed_bytes:
        hint = "wait until a claim is given back, see gpudctl vram"
    else:
        hint = "other programs hold the memory, see gpudctl vram"
    return BudgetExceeded(
        f"cannot {wish.subject}: it needs {describe(size)}, {describe(available)} are available on {device.name} "
        f"(budget {describe(device.capacity_bytes)}, own models {describe(own_bytes)}, {claims}"
        f"free {describe(account.free_bytes)})",
        need_bytes=size,
        available_bytes=available,
        hint=hint,
    )


def _advice(quote: Quote, device: Device) -> str:
    """What would fit into the whole budget of the device, if less were asked for."""
    fitting = [offer for offer in quote.less if offer.gpu_bytes + offer.host_bytes * device.sample.is_host]
    fitting = [offer for offer in fitting if offer.need_bytes <= device.capacity_bytes]
    firsts: dict[str, str] = {}
    for offer in fitting:
        firsts.setdefault("layers" if offer.layers is not None else "context", offer.reduced)
    return "it fits with " + " or with ".join(firsts.values()) if firsts else ""
