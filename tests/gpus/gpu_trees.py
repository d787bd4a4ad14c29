"""Makes a recorded tree of /sys and /proc from its listing: one line an entry, ``path: content`` with escapes,
``path -> target`` for a link, ``path |`` for a pipe that nobody writes to, ``path/`` for a directory."""

import os
from pathlib import Path

DATA = Path(__file__).with_name("data")


def recorded(name: str, root: Path) -> Path:
    """Lay out ``data/NAME.tree`` under ``root``; returns ``root``."""
    return lay_out((DATA / f"{name}.tree").read_text(), root)


def lay_out(listing: str, root: Path) -> Path:
    for line in filter(None, map(str.strip, listing.splitlines())):
        if line.startswith("#"):
            continue
        words = line.split(" ", 2)
        path = root / words[0].rstrip(":/")
        if line.endswith("/") and len(words) == 1:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if words[0].endswith(":"):
            content = line.partition(": ")[2] if " " in line else ""
            path.write_bytes(content.encode().decode("unicode_escape").encode() + b"\n")
        elif words[1] == "->":
            path.symlink_to(words[2])
        elif words[1] == "|":
            os.mkfifo(path)
        else:
            raise ValueError(f"cannot read the line {line!r}")
    return root


def nvidia_card(
    root: Path, address: str = "0000:01:00.0", *, driver: str = "nvidia", status: str = "active", control: str = "auto"
) -> Path:
    """An NVIDIA GPU as sysfs has it; the machine's real /proc and meminfo stay visible under ``root``."""
    directory = root / "sys/bus/pci/devices" / address
    (directory / "power").mkdir(parents=True)
    (directory / "vendor").write_text("0x10de\n")
    (directory / "class").write_text("0x030000\n")
    if driver:
        (directory / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
    set_status(directory, status)
    (directory / "power/control").write_text(f"{control}\n")
    if not (root / "proc").exists():
        (root / "proc").symlink_to("/proc")
    return directory


def set_status(directory: Path, status: str) -> None:
    (directory / "power/runtime_status").write_text(f"{status}\n")
