"""Ends a process with everything that it forked: by its cgroup where there is one, else by all that /proc tells.

Never signals a process that has not been proven to belong to the tree.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine, Iterable
from typing import Protocol

from gpud.processes import identity
from gpud.processes.cgroup import Leaf

log = logging.getLogger(__name__)

UNKILLABLE_WARNING_S = 10.0
"""A killed process that is still there after this hangs in the kernel, mostly in a GPU driver. Ordinary processes go
within milliseconds, those that must give back tens of GiB within seconds."""

LOOK_AGAIN_S = 1.0
"""How long one round of killing waits for its processes to go before /proc is searched again: a fork that was under way
during the search is found then."""


class Tree(Protocol):
    def pids(self) -> frozenset[int]:
        """Those of the tree that live now."""

    def kill(self) -> None:
        """SIGKILL for everything that can be reached without a search. Never waits."""

    async def end(self) -> None:
        """Kill whatever is left; returns when nothing of the tree lives. The main process may be dead, not reaped."""

    async def remove(self) -> None:
        """Nothing lives any more: give back what the tree itself takes up."""


class CgroupTree:
    """Everything in one cgroup leaf."""

    def __init__(self, unit: str, leaf: Leaf) -> None:
        self._unit = unit
        self.leaf = leaf

    def pids(self) -> frozenset[int]:
        return self.leaf.pids()

    def kill(self) -> None:
        try:
            self.leaf.kill()
        except OSError as problem:
            log.error('cannot kill the cgroup "%s": %s', self.leaf.path, problem)

    async def end(self) -> None:
        if not self.leaf.is_populated():
            return
        self.kill()
        await _with_warning(self.leaf.emptied(), self._unit, self)

    async def remove(self) -> None:
        await self.leaf.remove()


class SessionTree:
    """The session that a process leads, and its descendants that left the session.

    Without a cgroup a process can leave both session and parent (a daemon does so on purpose). It is still found by the
    marker in its environment, and by having been seen as a descendant before. What clears its environment *and* leaves
    the session *and* loses its parent, all before anybody has called :meth:`pids`, gets away.
    """

    def __init__(self, unit: str, pid: int, start_time: int, marker: str) -> None:
        self._unit = unit
        self._pid = pid
        self._start_time = start_time
        self._marker = marker
        self._seen: dict[int, int] = {}
        self._refused: set[int] = set()

    def pids(self) -> frozenset[int]:
        found: set[int] = set()
        if identity.lives(self._pid, self._start_time):
            found |= {self._pid} | identity.descendants(self._pid)
        for pid, start_time in tuple(self._seen.items()):
            if not identity.lives(pid, start_time):
                del self._seen[pid]
            elif pid not in found:
                found |= {pid} | identity.descendants(pid)
        for pid in found - {self._pid} - self._seen.keys():
            stat = identity.stat_of(pid)
            if stat is not None:
                self._seen[pid] = stat.start_time
        return frozenset(found)

    def kill(self) -> None:
        known = self.pids()
        # The number of a process group is not given away while its leader lives or waits to be reaped.
        stat = identity.stat_of(self._pid)
        if stat is not None and stat.start_time == self._start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        for pid in known:
            start_time = self._start_time if pid == self._pid else self._seen.get(pid)
            if start_time is None:
                continue
            with contextlib.suppress(PermissionError):
                pidfd = kill_exactly(pid, start_time)
                if pidfd is not None:
                    os.close(pidfd)

    async def end(self) -> None:
        self.kill()
        await _with_warning(self._end_found(), self._unit, self)

    async def remove(self) -> None:
        """A session takes up nothing."""

    async def _end_found(self) -> None:
        # The first look may be too early: what the kernel is about to kill is still listed.
        while members := await asyncio.to_thread(self._members):
            for stat in members:
                self._seen[stat.pid] = stat.start_time
            self._refused |= await kill_and_wait(members)

    def _members(self) -> list[identity.ProcessStat]:
        leader = identity.stat_of(self._pid)
        # If the leader's number belongs to another process now, its session and group had ended before.
        ours = leader is None or leader.start_time == self._start_time
        return [stat for stat in identity.all_processes() if self._is_member(stat, ours)]

    def _is_member(self, stat: identity.ProcessStat, session_is_ours: bool) -> bool:
        if stat.start_time < self._start_time or stat.pid in self._refused:
            return False
        if self._seen.get(stat.pid) == stat.start_time:
            return True
        if session_is_ours and self._pid in (stat.session, stat.group):
            return True
        return identity.marker_of(stat.pid) == self._marker


async def kill_and_wait(members: Iterable[identity.ProcessStat]) -> set[int]:
    """Kill these very processes and wait a moment for them to go; returns those that may not be killed."""
    refused: set[int] = set()
    pidfds: list[int] = []
    try:
        for stat in members:
            try:
                pidfd = kill_exactly(stat.pid, stat.start_time)
            except PermissionError:
                log.warning(
                    'cannot kill process %d ("%s"), which an engine started as another user', stat.pid, stat.name
                )
                refused.add(stat.pid)
                continue
            if pidfd is not None:
                pidfds.append(pidfd)
        ends = [asyncio.ensure_future(readable(pidfd)) for pidfd in pidfds]
        if ends:
            await asyncio.wait(ends, timeout=LOOK_AGAIN_S)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
    return refused


def kill_exactly(pid: int, start_time: int) -> int | None:
    """SIGKILL for this very process; its pidfd, which the caller closes, or None when it was gone before."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        # The descriptor is of whoever has the number now; the start time says whether that is the one meant.
        if identity.lives(pid, start_time):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            kept, pidfd = pidfd, -1
            return kept
    except ProcessLookupError:
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return None


async def readable(fd: int) -> None:
    """Returns when the descriptor is readable: for a pidfd, when its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


async def _with_warning(ending: Coroutine[None, None, None], unit: str, tree: Tree) -> None:
    task = asyncio.get_running_loop().create_task(ending)
    try:
        done, _ = await asyncio.wait({task}, timeout=UNKILLABLE_WARNING_S)
        if not done:
            left = ", ".join(str(pid) for pid in sorted(tree.pids())) or "unknown"
            log.warning(
                'processes of "%s" are still there %.0f s after they were killed (PID %s): they hang in the kernel, '
                "mostly in the GPU's driver; their memory counts as used until they are gone",
                unit,
                UNKILLABLE_WARNING_S,
                left,
            )
        await task
    finally:
        if not task.done():
            task.cancel()
