"""The control group (version 2) that a process is in, as a folder and by its number; changes nothing there."""

from pathlib import Path
from typing import NamedTuple

from gpud.shells.proc import read

PLACES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where the hierarchy is: alone, or beside those of version 1."""


class Group(NamedTuple):
    """``number`` is what the kernel calls it, and the folder's inode."""

    folder: Path
    number: int


def cgroup_of(pid: int) -> Group | None:
    """None for the root, where everything is that nobody has put anywhere."""
    path = next((line[3:] for line in read(pid, "cgroup").splitlines() if line.startswith("0::")), "/")
    # What lies outside of our own view of the tree begins with /.. and is of no use.
    if path == "/" or "/../" in f"{path}/":
        return None
    for place in PLACES:
        folder = Path(place + path)
        try:
            if (folder / "cgroup.procs").exists():
                return Group(folder, folder.stat().st_ino)
        except OSError:
            continue
    return None


def members(group: Group) -> list[int]:
    """The processes that are in it now, without those of groups below."""
    try:
        return [int(line) for line in (group.folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []
