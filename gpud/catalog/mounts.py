"""What is mounted where, by the kernel's list: which folders are other machines', and that the list has changed.

Never touches what is mounted: a server that does not answer would make it wait.
"""

import os
import re
import select
from collections.abc import Iterable
from pathlib import Path

from gpud.core.record import Record

LIST = Path("/proc/self/mountinfo")

_REMOTE = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "fuse",
        "9p",
        "virtiofs",
        "vboxsf",
        "ncpfs",
        "afs",
        "coda",
        "ceph",
        "lustre",
        "gfs2",
        "ocfs2",
        "gpfs",
        "beegfs",
        "orangefs",
    )
)
"""File systems that another machine may change."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(Record):
    """``number`` is another one whenever something is mounted, also at the same point."""

    number: str
    point: str
    kind: str

    @property
    def remote(self) -> bool:
        return self.kind in _REMOTE or self.kind.startswith("fuse.")

    def holds(self, path: str) -> bool:
        return path == self.point or path.startswith(f"{self.point}/")


def read() -> tuple[Mount, ...]:
    return parsed(LIST.read_text(errors="surrogateescape"))


def parsed(text: str) -> tuple[Mount, ...]:
    """What the list says, in its order: of two at the same point the later one is on top."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            point = _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 8)), fields[4])
            found.append(Mount(fields[0], point.rstrip("/"), after.partition(" ")[0]))
    return tuple(found)


def is_remote(path: str, mounts: Iterable[Mount]) -> bool:
    """Whether the path lies in what is mounted from another machine."""
    nearest = None
    for mount in mounts:
        if mount.holds(path) and (nearest is None or len(mount.point) >= len(nearest.point)):
            nearest = mount
    return nearest is not None and nearest.remote


def about(tops: Iterable[str], mounts: Iterable[Mount]) -> frozenset[Mount]:
    """Those that decide what lies at or below these folders."""
    folders = tuple(tops)
    return frozenset(
        mount for mount in mounts if any(mount.holds(top) or f"{mount.point}/".startswith(f"{top}/") for top in folders)
    )


class Changes:
    """``fd`` is readable when something was mounted or unmounted since :meth:`taken`.

    The list itself is always readable; that it has changed it says as an exceptional condition, which an epoll of its
    own makes into something that any loop can wait for.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        try:
            self._list = os.open(LIST, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._epoll.close()
            raise
        self._epoll.register(self._list, select.EPOLLPRI)

    @property
    def fd(self) -> int:
        return self._epoll.fileno()

    def taken(self) -> None:
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._list)
