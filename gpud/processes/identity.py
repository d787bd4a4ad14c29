"""Tells processes apart by more than their number, from /proc; it never signals one.

A PID is used again after its process is gone. The PID together with the start time is unique as long as the machine
is up, and every process that gpud starts carries both in its environment (:data:`MARKER`), where its descendants
inherit them whatever session or parent they end up with.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from gpud.core.record import Record

MARKER = "GPUD_CHILD"
"""``PID:START_TIME:UNIT:RUNTIME_DIR`` of the main process, in the environment of everything that it forks."""

_DEAD = frozenset("ZXx")


class ProcessStat(Record):
    """What gpud needs of /proc/PID/stat."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    start_time: int

    @property
    def is_dead(self) -> bool:
        """It has ended and only waits to be reaped."""
        return self.state in _DEAD


def parse_stat(content: bytes) -> ProcessStat:
    """The name stands in parentheses and may hold spaces and parentheses itself: the last one closes it."""
    before, _, after = content.rpartition(b")")
    pid, _, name = before.partition(b"(")
    fields = after.split()
    return ProcessStat(
        pid=int(pid),
        name=name.decode("utf-8", "backslashreplace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
    )


STAT_BYTES = 4096
"""More than the line can have: some 50 numbers of at most 20 digits and a name of at most 64 bytes."""


def stat_of(pid: int) -> ProcessStat | None:
    try:
        # Not by a file object, which asks the kernel eight times instead of three: after each stop all processes are
        # looked through, while whoever waits for the memory waits.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse_stat(os.read(fd, STAT_BYTES))
        finally:
            os.close(fd)
    except OSError:
        return None


def lives(pid: int, start_time: int) -> bool:
    """True while this very process lives; a stranger that was given its number does not count."""
    stat = stat_of(pid)
    return stat is not None and stat.start_time == start_time and not stat.is_dead


def marker_for(pid: int, start_time: int, unit: str, runtime_dir: str) -> str:
    return f"{pid}:{start_time}:{unit}:{runtime_dir}"


def parse_marker(marker: str) -> tuple[str, str, str, str]:
    """PID, start time, unit and runtime directory; all empty for what is no marker."""
    parts = marker.split(":", 3)
    return (parts[0], parts[1], parts[2], parts[3]) if len(parts) == 4 else ("", "", "", "")


def marker_of(pid: int) -> str:
    """The marker in a process's environment; empty when there is none, or when it is not ours to read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    wanted = MARKER.encode() + b"="
    for entry in environment.split(b"\0"):
        if entry.startswith(wanted):
            return os.fsdecode(entry[len(wanted) :])
    return ""


def all_processes() -> Iterator[ProcessStat]:
    """Every process that lives now, without the dead and without the caller."""
    own = os.getpid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        stat = stat_of(int(entry.name))
        if stat is not None and not stat.is_dead and stat.pid != own:
            yield stat


def descendants(pid: int) -> set[int]:
    """The children of a process, their children, and so on, as far as the parents still live."""
    found: set[int] = set()
    to_visit = [pid]
    while to_visit:
        for child in _children(to_visit.pop()):
            if child not in found and child != pid:
                found.add(child)
                to_visit.append(child)
    return found


def _children(pid: int) -> list[int]:
    """The kernel lists the children of each thread, where it was built to; else all processes have to be looked at."""
    children: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_bytes().split())
    except OSError:
        if Path("/proc/self/task").exists() and not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            # Imported here: hardly a kernel needs it, and it is 2 MiB.
            import psutil

            try:
                return [child.pid for child in psutil.Process(pid).children()]
            except psutil.Error:
                return []
    return children
