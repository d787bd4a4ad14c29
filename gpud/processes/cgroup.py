"""Owns the cgroup v2 tree that systemd delegated to the daemon: one leaf for the daemon, one for each start.

A leaf holds a process and whatever it forks, however often those change session or parent, and ends all of them at
once. It never touches a cgroup that is not a leaf made here.
"""

import asyncio
import errno
import logging
import os
import select
from collections.abc import Mapping
from pathlib import Path

from gpud.processes.names import safe_name

log = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
"""The daemon's own leaf. With ``DelegateSubgroup=supervisor`` (systemd 254) systemd starts the daemon there."""

DELEGATED = "GPUD_DELEGATED"
"""Set to 1 by the unit of a user's own gpud."""

LEAF_PREFIX = "engine-"
"""Tells our leaves from the cgroup's own files and from systemd's ``.control``."""

REMOVE_PAUSE_S = 0.01
REMOVE_ATTEMPTS = 100
"""A cgroup whose last process has just gone can be busy for a moment: rmdir is tried again for a second, and after that
the next start of the daemon clears it away."""

KILL_PAUSE_S = 0.02
"""Between two rounds of killing one by one, on kernels without cgroup.kill (before 5.14): time for the dying to go."""


class Leaf:
    """The cgroup of one start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name.removeprefix(LEAF_PREFIX)

    def place(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> frozenset[int]:
        found: set[int] = set()
        for directory, _, _ in os.walk(self.path):
            try:
                found.update(map(int, (Path(directory) / "cgroup.procs").read_text().split()))
            except OSError:
                continue
        return frozenset(found)

    def is_populated(self) -> bool:
        try:
            return _value(self.path / "cgroup.events", "populated") == 1
        except FileNotFoundError:
            return False

    def kill(self) -> None:
        """SIGKILL for everything inside, at once; a fork cannot escape it."""
        try:
            (self.path / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            if self.path.exists():
                self._kill_one_by_one()

    def _kill_one_by_one(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue

    async def emptied(self) -> None:
        """Returns when nothing lives inside. The kernel announces it: no polling where it knows ``cgroup.kill``."""
        try:
            events = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        loop = asyncio.get_running_loop()
        # The file is always readable; a change shows as POLLPRI, which a selector loop does not watch. An epoll that
        # watches only that is itself readable exactly when there is a change.
        changes = select.epoll()
        changed = asyncio.Event()
        try:
            changes.register(events, select.EPOLLPRI)
            loop.add_reader(changes.fileno(), changed.set)
            while b"populated 1" in os.pread(events, 4096, 0):
                if (self.path / "cgroup.kill").exists():
                    await changed.wait()
                    changed.clear()
                else:
                    self._kill_one_by_one()
                    await asyncio.sleep(KILL_PAUSE_S)
        except OSError as problem:
            # ENODEV: the cgroup was removed, so it was empty.
            if problem.errno != errno.ENODEV:
                raise
        finally:
            loop.remove_reader(changes.fileno())
            changes.close()
            os.close(events)

    async def remove(self) -> bool:
        """Remove the empty leaf and what was made inside; False when the kernel keeps it busy."""
        for _ in range(REMOVE_ATTEMPTS):
            try:
                for directory, _, _ in os.walk(self.path, topdown=False):
                    os.rmdir(directory)  # noqa: PTH106 - cgroupfs is memory, and does not block
            except FileNotFoundError:
                return True
            except OSError as problem:
                if problem.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    log.warning('cannot remove the cgroup "%s": %s; it is empty and does no harm', self.path, problem)
                    return False
            if not self.path.exists():
                return True
            await asyncio.sleep(REMOVE_PAUSE_S)
        log.debug('the cgroup "%s" stays busy and is left to the next start of the daemon', self.path)
        return False

    def oom_kills(self) -> int | None:
        """How many processes of this leaf the kernel has killed for lack of memory; None without the controller."""
        return _oom_kills(self.path)


class Cgroup:
    """The delegated cgroup. ``root`` is its directory, below which the leaves are made."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def enter(self, *, controllers: bool) -> None:
        """Move the daemon into its own leaf: cgroup v2 wants processes at the leaves only. Harmless when repeated.

        ``controllers`` turns the memory controller on for the leaves, so that each counts its own out-of-memory kills.
        Only where systemd itself starts the daemon in a subgroup: a cgroup with controllers turned on for its children
        takes no process, and a systemd that puts the restarted daemon there would fail (status 219).
        """
        own = self.root / SUPERVISOR
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text("0")
        if not controllers:
            return
        try:
            if "memory" in (self.root / "cgroup.controllers").read_text().split():
                (self.root / "cgroup.subtree_control").write_text("+memory")
        except OSError as problem:
            log.debug("the memory controller stays off for the engines' cgroups: %s", problem)

    def make_leaf(self, unit: str) -> Leaf:
        """A leaf for a new start. Raises FileExistsError when something still lives in a leaf of this name."""
        leaf = self.leaf(unit)
        try:
            leaf.path.mkdir()
        except FileExistsError:
            if leaf.is_populated():
                raise
        # The kernel's out-of-memory killer then ends the engine as a whole, not one of its workers. Only with the
        # memory controller.
        group = leaf.path / "memory.oom.group"
        if group.exists():
            group.write_text("1")
        return leaf

    def leaf(self, unit: str) -> Leaf:
        return Leaf(self.root / f"{LEAF_PREFIX}{safe_name(unit)}")

    def recorded_leaf(self, path: str) -> Leaf | None:
        """The leaf that a record names, if it is there and ours: a wrong record is no reason to kill strangers."""
        recorded = Path(path)
        if not path or recorded.parent != self.root or not recorded.name.startswith(LEAF_PREFIX):
            return None
        return Leaf(recorded) if recorded.is_dir() else None

    def leaves(self) -> tuple[Leaf, ...]:
        try:
            found = [entry for entry in self.root.iterdir() if entry.name.startswith(LEAF_PREFIX) and entry.is_dir()]
        except FileNotFoundError:
            # systemd removes the cgroup of a unit that has ended together with the last process in it.
            return ()
        return tuple(Leaf(path) for path in sorted(found))

    def oom_kills(self) -> int | None:
        """The count of the whole unit, which systemd's own controllers keep even where the leaves have none."""
        return _oom_kills(self.root)


def enter_delegated_cgroup() -> Cgroup | None:
    """Called once at the start of the daemon, before READY=1. None where no cgroup v2 was delegated to it."""
    own = own_cgroup(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    if own is None:
        log.debug("no cgroup v2 here: engines get a session of their own instead")
        return None
    in_subgroup = own.name == SUPERVISOR
    root = own.parent if in_subgroup else own
    if not is_delegated(root) and not is_told(os.environ):
        log.debug('the cgroup "%s" is not delegated: engines get a session of their own instead', root)
        return None
    cgroup = Cgroup(root)
    try:
        cgroup.enter(controllers=in_subgroup)
    except OSError as problem:
        log.warning(
            'cannot use the delegated cgroup "%s": %s; engines get a session of their own instead', root, problem
        )
        return None
    return cgroup


def own_cgroup(memberships: str, mounts: str) -> Path | None:
    """The directory of a process's cgroup v2, from the text of its /proc/PID/cgroup and mountinfo."""
    group = next((line[3:] for line in memberships.splitlines() if line.startswith("0::")), None)
    if group is None:
        return None
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ", 1)[0] != "cgroup2":
            continue
        mounted, where = (_unescaped(field) for field in fields.split(" ")[3:5])
        inside = os.path.relpath(group, mounted)
        if not inside.startswith(".."):
            return Path(where) / inside
    return None


def is_delegated(directory: Path) -> bool:
    """Whether systemd handed this cgroup over. Being able to write there proves nothing: root can write everywhere."""
    for attribute in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, attribute) == b"1":
                return True
        except OSError:
            continue
    # A systemd too old for user.delegate hands a cgroup over to User= by giving it away below one that is root's.
    user = os.geteuid()
    try:
        return user != 0 and directory.stat().st_uid == user and directory.parent.stat().st_uid != user
    except OSError:
        return False


def is_told(environment: Mapping[str, str]) -> bool:
    """Whether the unit of this very process says that its cgroup is handed over; what is only inherited says nothing. A
    user's own service manager (systemd 252) marks none, and all below it is the user's anyway.
    """
    return environment.get(DELEGATED) == "1" and environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def _unescaped(field: str) -> str:
    """Mountinfo writes spaces and the like as octal escapes."""
    return field.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in field else field


def _oom_kills(directory: Path) -> int | None:
    try:
        return _value(directory / "memory.events", "oom_kill")
    except OSError:
        return None


def _value(file: Path, key: str) -> int | None:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None
