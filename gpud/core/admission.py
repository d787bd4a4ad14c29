"""May this model be loaded now, and where? A function from values to a verdict; who is queued before whom is not its
business.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gpud.core import eviction
from gpud.core.budget import Account, describe
from gpud.core.errors import BudgetExceeded, GpudError, GpuUnavailable
from gpud.core.facts import HOST, GpuSample, Model


@dataclass(frozen=True, slots=True)
class Device:
    """One device as admission sees it.

    ``coming_bytes`` are promised back: engines that are stopping, and memory of engines just gone that no sample shows
    yet. ``starting_bytes`` belong to models that are loading and may be asked to go once they are ready.
    ``movable`` are the models that may be unloaded to make room.
    """

    sample: GpuSample
    account: Account
    coming_bytes: int = 0
    starting_bytes: int = 0
    movable: Sequence[eviction.Candidate] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    device: str
    vendor: str


@dataclass(frozen=True, slots=True)
class Waits:
    """Memory is on its way back; look again when it has come."""

    device: str
    text: str


@dataclass(frozen=True, slots=True)
class Evicts:
    """It fits once these models are unloaded."""

    device: str
    victims: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    error: GpudError


Verdict = Granted | Waits | Evicts | Refused


def devices_for(model: Model, devices: Sequence[Device]) -> Sequence[Device] | GpudError:
    """Where the model may go at all: what it names, else every GPU, else the host's memory; the roomiest first."""
    host = [device for device in devices if device.sample.is_host]
    gpus = [device for device in devices if not device.sample.is_host]
    if not host:
        return GpuUnavailable(f'cannot load "{model.name}": the memory of this machine cannot be read')
    if model.gpu == HOST or model.settings.layers == "0":
        return _readable(model, host)
    if model.gpu:
        named = [d for d in gpus if model.gpu in (d.sample.uuid, str(d.sample.index))]
        if not named:
            known = ", ".join(f"{d.sample.index} ({d.sample.uuid})" for d in gpus) or "none"
            return GpuUnavailable(
                f'cannot load "{model.name}": GPU "{model.gpu}" is not there (GPUs: {known})',
                hint="correct gpu: in its configuration, or check the driver with gpudctl doctor",
            )
        gpus = named
    if not gpus:
        return _readable(model, host)
    well = [device for device in gpus if not device.sample.health and device.account.available_bytes is not None]
    if not well:
        reasons = "; ".join(f"{d.sample.name}: {d.sample.health or 'does not tell its free memory'}" for d in gpus)
        return GpuUnavailable(
            f'cannot load "{model.name}": no GPU can be used ({reasons})',
            hint="see gpudctl doctor; gpu: host in its configuration keeps it off the GPU",
        )
    return sorted(well, key=lambda d: -(d.account.available_bytes or 0))


def _readable(model: Model, host: Sequence[Device]) -> Sequence[Device] | GpudError:
    for device in host:
        if device.account.available_bytes is None:
            reason = device.sample.health or "it does not tell how much is free"
            return GpuUnavailable(f'cannot load "{model.name}": {device.sample.name}: {reason}')
    return host


def decide(
    model: Model,
    need_bytes: int,
    devices: Sequence[Device],
    *,
    may_evict: bool,
    taken: Collection[str] = (),
) -> Verdict:
    """``taken`` are devices on which somebody before this one waits for memory.

    1. Nothing is needed: granted on the first device.
    2. It fits somewhere that is not taken: granted there, the roomiest first.
    3. One of its devices is taken: waits for those before it.
    4. It will fit when what is already on its way back has come: waits.
    5. It will fit when idle models go: evicts, where the fewest bytes have to go.
    6. It will fit when models that are loading are ready and can go: waits.
    7. Else refused, with need and available and what stands in the way.
    """
    if need_bytes == 0:
        usable = devices_for(model, devices)
        if isinstance(usable, GpudError) or not usable:
            return Granted(HOST, HOST)
        return Granted(usable[0].sample.uuid, usable[0].sample.vendor)

    usable = devices_for(model, devices)
    if isinstance(usable, GpudError):
        return Refused(usable)
    for device in usable:
        if (device.account.available_bytes or 0) >= need_bytes and device.sample.uuid not in taken:
            return Granted(device.sample.uuid, device.sample.vendor)

    possible = [device for device in usable if (device.account.capacity_bytes or 0) >= need_bytes]
    for device in possible:
        if device.sample.uuid in taken:
            return Waits(device.sample.uuid, f"waiting for those before it on {device.sample.name}")
    for device in possible:
        available = device.account.available_bytes or 0
        if available + device.coming_bytes >= need_bytes:
            text = f"waiting for {describe(need_bytes - available)} to come back on {device.sample.name}"
            return Waits(device.sample.uuid, text)

    if may_evict:
        evicts = _cheapest(possible, need_bytes)
        if evicts is not None:
            return evicts
        for device in possible:
            idle_bytes = sum(candidate.bytes for candidate in device.movable)
            available = (device.account.available_bytes or 0) + device.coming_bytes
            if available + idle_bytes + device.starting_bytes >= need_bytes:
                text = f"waiting for models that are loading on {device.sample.name}, to see whether they can make room"
                return Waits(device.sample.uuid, text)

    return Refused(_refusal(model, need_bytes, usable, may_evict=may_evict))


def _cheapest(possible: Sequence[Device], need_bytes: int) -> Evicts | None:
    """Where the fewest bytes have to go for it, if it fits anywhere by that."""
    best: tuple[int, Device, Sequence[eviction.Candidate]] | None = None
    for device in possible:
        missing = need_bytes - (device.account.available_bytes or 0) - device.coming_bytes
        victims = eviction.choose(device.movable, missing)
        if victims is not None:
            cost = sum(victim.bytes for victim in victims)
            if best is None or cost < best[0]:
                best = (cost, device, victims)
    if best is None:
        return None
    _, device, victims = best
    available = device.account.available_bytes or 0
    text = f"needs {describe(need_bytes)}, {describe(available)} available on {device.sample.name}"
    return Evicts(device.sample.uuid, tuple(victim.model for victim in victims), text)


def _refusal(model: Model, need_bytes: int, usable: Sequence[Device], *, may_evict: bool) -> BudgetExceeded:
    """The sentence with the numbers of the device that comes nearest."""
    device = max(usable, key=lambda d: (d.account.available_bytes or 0) + sum(c.bytes for c in d.movable))
    account = device.account
    available = account.available_bytes or 0
    capacity = account.capacity_bytes or 0
    where = device.sample.name
    if capacity < need_bytes:
        message = (
            f'cannot load "{model.name}": it needs {describe(need_bytes)}, the whole budget of {where} is '
            f"{describe(capacity)}"
        )
        hint = "lower its context or layers, take a smaller quantization, or raise gpu.budget"
    else:
        movable = sum(candidate.bytes for candidate in device.movable)
        message = (
            f'cannot load "{model.name}": it needs {describe(need_bytes)}, {describe(available)} are available on '
            f"{where} (budget {describe(capacity)}, own models {describe(account.committed_bytes)}, free "
            f"{describe(account.free_bytes)})"
        )
        if not may_evict and movable:
            hint = f"allow eviction: idle models hold {describe(movable)}"
        elif account.committed_bytes:
            hint = "unload a model that is in use or held, see gpudctl status"
        else:
            hint = "other programs hold the memory, see gpudctl status"
    return BudgetExceeded(message, need_bytes=need_bytes, available_bytes=available, hint=hint)
