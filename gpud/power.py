"""Whether the machine runs on its battery: read from sysfs when somebody asks, never watched."""

from collections.abc import Iterator
from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")

LINES = ("Mains", "USB", "Wireless")
"""Types of supplies that bring power from outside."""


def on_battery(supplies: Path = SUPPLIES) -> bool | None:
    """True while a battery of the machine's own is being emptied and nothing feeds it; None where that is not known.

    May block for as long as the firmware takes to answer (tens of milliseconds are common): for threads. Batteries of
    a mouse or a headset, and a UPS, which is for getting to the end in order, do not count.
    """
    try:
        entries = sorted(supplies.iterdir())
    except OSError:
        return None
    fed = False
    batteries: list[str] = []
    for kind, supply in _of_the_machine(entries):
        if kind in LINES:
            fed = fed or _read(supply / "online") not in ("", "0")
        elif kind == "Battery" and _read(supply / "present") != "0":
            batteries.append(_read(supply / "status"))
    if fed or not batteries:
        return False
    if "Discharging" in batteries:
        return True
    # "Unknown" is what a battery says while it finds out; a full one is not being emptied.
    return False if any(status in ("Charging", "Full", "Not charging") for status in batteries) else None


def _of_the_machine(entries: list[Path]) -> Iterator[tuple[str, Path]]:
    for supply in entries:
        if _read(supply / "scope") != "Device":
            yield _read(supply / "type"), supply


def _read(path: Path) -> str:
    """Empty where there is no such property; a supply may be unplugged while it is being read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
