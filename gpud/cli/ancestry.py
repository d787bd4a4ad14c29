"""Whose child a process is, as /proc tells; knows nothing of gpud's own books."""

from collections.abc import Collection
from pathlib import Path

ANCESTORS = 16
"""How many parents of a process are looked at: engines do not nest deeper."""


def belongs_to(pid: int, pids: Collection[int]) -> bool:
    """Whether a process is one of these or descends from one."""
    for _ in range(ANCESTORS):
        if pid in pids:
            return True
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return False
        pid = int(fields[1])
        if pid <= 1:
            return False
    return False


def lives_in_unit(pid: int, unit: str) -> bool:
    """Whether systemd started the process, or what started it, for this unit: also after its parent has gone."""
    try:
        return f"/{unit}" in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
