"""Who listens at a loopback port, read from /proc. Blocking, a few milliseconds: for threads. Touches nothing."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from gpud.core.facts import Endpoint

_LISTENING = "0A"


def sockets_at(port: int, tables: str = "/proc/net") -> frozenset[str]:
    """The listening sockets at a TCP port, as the links in ``/proc/PID/fd`` name them. ``tables`` are those of the
    network that is meant.
    """
    return frozenset(f"socket:[{inode}]" for _, inode in _listening(port, tables))


def users_at(port: int) -> frozenset[int]:
    """Whose sockets listen at a TCP port: the kernel tells everybody the user, and only root and that user the
    process.
    """
    return frozenset(int(user) for user, _ in _listening(port, "/proc/net"))


def _listening(port: int, tables: str) -> Iterator[tuple[str, str]]:
    """The user and the inode of each socket."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(tables, table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[7], fields[9]


def holder(pids: Iterable[int], sockets: frozenset[str]) -> int | None:
    """The first of ``pids`` that has one of the sockets open, as far as that may be seen."""
    for pid in pids:
        if not sockets.isdisjoint(_links(pid)):
            return pid
    return None


def listener(endpoint: Endpoint) -> int | None:
    """The process of this machine that listens at an address, if it can be seen."""
    return holder(everybody(), sockets_at(endpoint.port)) if is_local(endpoint) else None


def program_at(port: int) -> str:
    """Who listens at a TCP port, as ``nginx (process 12)``; empty where that cannot be seen."""
    pid = holder(everybody(), sockets_at(port))
    if pid is None:
        return ""
    try:
        name = Path(f"/proc/{pid}/comm").read_text("utf-8", "backslashreplace").strip()
    except OSError:
        return ""
    return f"{name} (process {pid})"


def stranger(endpoint: Endpoint, ours: Collection[int], since: int) -> int | None:
    """The process that listens in the stead of an engine of these processes, if it is certain that it is none of
    theirs.

    An engine may be a client of a container that listens for it, so a process that started later (``since``, in clock
    ticks) is given the benefit of the doubt.
    """
    if not is_local(endpoint):
        return None
    sockets = sockets_at(endpoint.port)
    if holder(ours, sockets) is not None:
        return None
    other = holder(everybody(), sockets)
    started = None if other is None else started_at(other)
    return other if started is not None and started < since else None


def is_local(endpoint: Endpoint) -> bool:
    return endpoint.host in ("localhost", "::1") or endpoint.host.startswith("127.")


def everybody() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208 - names are all it takes


def started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def family(pid: int) -> frozenset[int]:
    """A process and its descendants that live now; empty when it is gone."""
    if started_at(pid) is None:
        return frozenset()
    found = {pid}
    waiting = [pid]
    while waiting:
        for child in _children(waiting.pop()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return frozenset(found)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass
    return children


def _links(pid: int) -> set[str]:
    links = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            links.add(os.readlink(entry))  # noqa: PTH115 - a string is wanted, not a path
    except OSError:
        pass
    return links
