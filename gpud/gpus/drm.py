"""What the drivers of the kernel's DRM have alike: cards in sysfs, and who uses them, by fdinfo. Opens no device."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gpud.gpus.sysfs import driver_of, entries, read_text

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def cards(root: Path, vendor: str, driver: str) -> list[tuple[str, Path]]:
    """The PCI address and the folder of each card of a vendor that this driver serves, in the order of addresses."""
    found = []
    for path in entries(root / "sys/class/drm"):
        directory = path / "device"
        if not path.name.removeprefix("card").isdigit():
            continue
        if read_text(directory / "vendor") == vendor and driver_of(directory) == driver:
            event = (read_text(directory / "uevent") or "").splitlines()
            address = (line.partition("=")[2] for line in event if line.startswith("PCI_SLOT_NAME="))
            found.append((next(address, path.name), directory))
    return sorted(found)


def held(root: Path, driver: str, kinds: Mapping[str, Sequence[tuple[str, ...]]]) -> dict[str, dict[int, int | None]]:
    """What each process holds of each card, by the card's address. Processes of others are seen only by root.

    ``kinds`` says by address which memories count: of each, the keys that kernels have called it by, the best first. A
    client (one opening of the device) that several processes share through inheritance counts once, on the first.
    """
    found: dict[str, dict[int, int | None]] = {address: {} for address in kinds}
    seen: set[tuple[str, str]] = set()
    proc = str(root / "proc")
    for pid in _numbers(proc):
        for client in _clients(f"{proc}/{pid}"):
            address, key = client.get("drm-pdev", ""), (client.get("drm-pdev", ""), client.get("drm-client-id", ""))
            if client.get("drm-driver") != driver or address not in found or key in seen:
                continue
            seen.add(key)
            sizes = [first(_size(client.get(name)) for name in names) for names in kinds[address]]
            known = [size for size in sizes if size is not None]
            earlier = found[address].get(pid)
            found[address][pid] = sum(known) + (earlier or 0) if known else earlier
    return found


def _clients(process: str) -> list[dict[str, str]]:
    """The fdinfo of each descriptor of a process that is a GPU's; the links tell which, so that few files are read.

    Plain strings and system calls, without a Path for each: a desktop has tens of thousands of descriptors, and this
    passes all of them at each look (3 µs for one; four times as much with paths).
    """
    try:
        numbers = os.listdir(f"{process}/fd")  # noqa: PTH208
    except OSError:
        return []
    clients = []
    for number in numbers:
        try:
            target = os.readlink(f"{process}/fd/{number}")  # noqa: PTH115
        except OSError:
            continue
        if target.startswith("/dev/dri/"):
            lines = (read_text(Path(process, "fdinfo", number)) or "").splitlines()
            clients.append({key: value.strip() for key, _, value in (line.partition(":") for line in lines)})
    return clients


def _numbers(directory: str) -> list[int]:
    """The processes of a /proc, in their order."""
    try:
        return sorted(int(name) for name in os.listdir(directory) if name.isdecimal())  # noqa: PTH208
    except OSError:
        return []


def _size(text: str | None) -> int | None:
    """``1024 KiB`` in bytes."""
    number, _, unit = (text or "").partition(" ")
    return int(number) * UNITS[unit] if number.isdigit() and unit in UNITS else None


def first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
