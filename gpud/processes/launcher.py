"""Starts engines, finds those that an earlier daemon started, and ends what nobody answers for."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from pathlib import Path

from gpud.core.errors import BackendFailed
from gpud.core.ports import ChildRecord, Command, FdStore, LineReader, OutputSink, Stream
from gpud.processes import identity
from gpud.processes.cgroup import Cgroup, Leaf
from gpud.processes.child import Connections, RunningChild, reap
from gpud.processes.clearing import CLEARING_LIMIT_S, Clearing
from gpud.processes.environment import child_environment
from gpud.processes.names import StoredNames, safe_name
from gpud.processes.output import ChildLines, OutputReader, Throttle
from gpud.processes.sockets import SocketDirectory
from gpud.processes.start import START_LIMIT_S, Started, explain, let_go, raise_oom_score, start_at_gate
from gpud.processes.tree import CgroupTree, SessionTree, Tree, kill_and_wait, readable

log = logging.getLogger(__name__)

_HINTS = {
    errno.E2BIG: "its arguments or its environment are too long: the kernel takes 128 KiB for one and 2 MiB for all",
    errno.EMFILE: "gpud has too many files open: raise LimitNOFILE= of its unit",
    errno.ENFILE: "the whole machine has too many files open: raise fs.file-max",
    errno.EAGAIN: "there are too many processes: raise TasksMax= of gpud's unit",
    errno.ENOMEM: "the machine is out of memory: unload a model, or end something else",
}


class ProcessLauncher:
    """Fulfils :class:`gpud.core.ports.Launcher`. Lives and is used on one event loop.

    Where the descriptor store lasts, engines outlive a crash of the daemon; elsewhere they die with it. Processes are
    held together by a leaf of ``cgroup`` where there is one, else by a session of their own.
    """

    def __init__(
        self,
        *,
        runtime_dir: Path,
        fd_store: FdStore,
        sink: OutputSink,
        cgroup: Cgroup | None,
        environment: Mapping[str, str] | None = None,
        lines_per_second: float = 200.0,
        burst_lines: int = 1000,
        clearing_limit_s: float = CLEARING_LIMIT_S,
    ) -> None:
        """``environment`` is what children's environments are drawn from: the daemon's own, unless another is given.
        ``lines_per_second`` may be changed at any time, and holds for what is started afterwards.
        """
        self._runtime_dir = str(runtime_dir.absolute())
        self._fd_store = fd_store
        self._sink = sink
        self._cgroup = cgroup
        self._environment = dict(os.environ if environment is None else environment)
        self.lines_per_second = lines_per_second
        self._burst_lines = burst_lines
        self._children: dict[str, RunningChild] = {}
        self._starting: set[str] = set()
        self._clearing = Clearing(clearing_limit_s)
        self._sockets = SocketDirectory(runtime_dir, self._environment)
        self._oom_kills_told = 0
        self._dies_with_us = () if fd_store.lasting else _death_signal()
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Inherited from whoever started us; the kernel would throw exit codes away.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    # Starting

    async def spawn(self, command: Command, on_line: LineReader | None = None) -> RunningChild:
        self._check(command)
        environment = child_environment(self._environment, command.environment)
        self._starting.add(command.unit)
        leaf: Leaf | None = None
        started: Started | None = None
        try:
            leaf = self._make_leaf(command)
            started = self._start(command, environment)
            record = self._settle(command, started, leaf)
            if not await let_go(started, self._marker(record)):
                said = started.said.decode("utf-8", "backslashreplace").strip()
                raise await asyncio.to_thread(explain, command, environment, said)
            return self._take_over(record, started, leaf, on_line)
        except TimeoutError:
            raise BackendFailed(
                f'cannot start "{command.argv[0]}" for "{command.model}": it was not executed within '
                f"{START_LIMIT_S:.0f} s",
                hint="see whether its file system answers",
                preflight=True,
            ) from None
        finally:
            if command.unit in self._children:
                self._starting.discard(command.unit)
            else:
                await self._clear_failed_start(command.unit, started, leaf)

    def _check(self, command: Command) -> None:
        unit = command.unit
        if unit in self._children or unit in self._starting:
            raise BackendFailed(f'cannot start "{unit}": it is running already', kind="internal", preflight=True)
        if not command.argv or not command.argv[0] or command.argv[0].startswith("-"):
            raise BackendFailed(
                f'cannot start an engine for "{command.model}": {command.argv[:1]} names no program',
                hint="correct the command",
                kind="not-executable",
                preflight=True,
            )

    def _make_leaf(self, command: Command) -> Leaf | None:
        if self._cgroup is None:
            return None
        try:
            return self._cgroup.make_leaf(command.unit)
        except OSError as problem:
            raise BackendFailed(
                f'cannot make a cgroup for "{command.unit}" below "{self._cgroup.root}": {problem.strerror}',
                hint="see systemctl status gpud for what lives there",
                kind="internal",
                preflight=True,
            ) from problem

    def _start(self, command: Command, environment: Mapping[str, str]) -> Started:
        try:
            return start_at_gate(command, environment, prefix=self._dies_with_us)
        except (OSError, ValueError) as problem:
            number = problem.errno if isinstance(problem, OSError) and problem.errno is not None else 0
            words = os.strerror(number) if number else str(problem)
            raise BackendFailed(
                f'cannot start "{command.argv[0]}" for "{command.model}": {words}',
                hint=_HINTS.get(number, ""),
                kind="no-resources",
                preflight=True,
            ) from problem

    def _settle(self, command: Command, started: Started, leaf: Leaf | None) -> ChildRecord:
        """While it waits at the gate: into its cgroup, its descriptors into the store."""
        if leaf is not None:
            try:
                leaf.place(started.pid)
            except OSError as problem:
                raise BackendFailed(
                    f'cannot put the process for "{command.unit}" into the cgroup "{leaf.path}": {problem.strerror}',
                    hint="see systemctl status gpud",
                    kind="internal",
                    preflight=True,
                ) from problem
        raise_oom_score(started.pid)
        names = StoredNames(command.unit)
        self._fd_store.put(names.out, started.out)
        self._fd_store.put(names.err, started.err)
        if started.lease >= 0:
            self._fd_store.put(names.lease, started.lease)
        return ChildRecord(
            unit=command.unit,
            model=command.model,
            engine=command.engine,
            pid=started.pid,
            start_time=started.start_time,
            cgroup=str(leaf.path) if leaf is not None else "",
        )

    def _take_over(
        self, record: ChildRecord, started: Started, leaf: Leaf | None, on_line: LineReader | None
    ) -> RunningChild:
        started.gate.close()
        child = self._child(
            record,
            self._tree(record, leaf),
            leaf,
            on_line,
            pidfd=started.pidfd,
            pipes={Stream.OUT: (started.out, b""), Stream.ERR: (started.err, started.said)},
            lease=started.lease,
        )
        started.pidfd = started.out = started.err = started.lease = -1
        return child

    async def _clear_failed_start(self, unit: str, started: Started | None, leaf: Leaf | None) -> None:
        """Whoever cancels a start gets nothing left behind, however often it is canceled."""
        await self._clearing.see_through(unit, self._clear(unit, started, leaf))

    async def _clear(self, unit: str, started: Started | None, leaf: Leaf | None) -> None:
        if started is not None:
            # The program may have got through the gate in the last moment, and have forked.
            record = ChildRecord(unit, "", "", started.pid, started.start_time)
            tree = self._tree(record, leaf)
            try:
                signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
                await readable(started.pidfd)
                await tree.end()
            finally:
                reap(started.pidfd)
                for name in StoredNames(unit):
                    self._fd_store.drop(name)
                started.close()
        if leaf is not None:
            await leaf.remove()
        self._sockets.forget(unit)
        self._starting.discard(unit)

    # Finding again

    def adopt(self, record: ChildRecord, on_line: LineReader | None = None) -> RunningChild | None:
        known = self._children.get(record.unit)
        if known is not None:
            return known if known.record == record else None
        try:
            pidfd = os.pidfd_open(record.pid)
        except OSError:
            return None
        # The descriptor first: from here on the number cannot come to mean another process unnoticed.
        if not identity.lives(record.pid, record.start_time):
            os.close(pidfd)
            return None
        names = StoredNames(record.unit)
        pipes = {Stream.OUT: (self._take(names.out), b""), Stream.ERR: (self._take(names.err), b"")}
        leaf = self._recorded_leaf(record)
        lease = self._take(names.lease)
        return self._child(record, self._tree(record, leaf), leaf, on_line, pidfd=pidfd, pipes=pipes, lease=lease)

    async def end(self, record: ChildRecord) -> None:
        child = self._children.get(record.unit)
        if child is not None and child.record == record:
            await child.kill()
            return
        # The name of a unit may be in use again; its cgroup is then another's.
        leaf = self._recorded_leaf(record) if child is None else None
        await self._clearing.see_through(record.unit, _end(self._tree(record, leaf)))
        if child is None:
            for name in StoredNames(record.unit):
                self._fd_store.drop(name)

    async def end_strangers(self, known_units: Collection[str]) -> tuple[str, ...]:
        """End what an earlier daemon started and no record names, and remove the sockets of what has ended; returns the
        units that were still alive.

        To be called at the start, before anything is spawned.
        """
        known = {safe_name(unit) for unit in (*known_units, *self._children, *self._starting)}
        ended: set[str] = set()
        clearing: list[Coroutine[None, None, None]] = []
        for leaf in self._cgroup.leaves() if self._cgroup is not None else ():
            if leaf.name in known:
                continue
            if leaf.is_populated():
                ended.add(leaf.name)
            clearing.append(self._clearing.see_through(leaf.name, _end(CgroupTree(leaf.name, leaf))))
        # Those without a cgroup carry our mark in their environment.
        await asyncio.gather(*clearing, self._end_marked(known, ended))
        with contextlib.suppress(OSError):
            self._sockets.sweep((*known_units, *self._children, *self._starting))
        return tuple(sorted(ended))

    async def _end_marked(self, known: Collection[str], ended: set[str]) -> None:
        """Not a moment beyond the limit: what is spawned later carries a mark that ``known`` does not have."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._clearing.limit_s
        refused: set[int] = set()
        while strangers := await asyncio.to_thread(self._marked_strangers, known, refused):
            ended.update(strangers.values())
            if loop.time() >= end_s:
                names, pids = sorted(set(strangers.values())), sorted(process.pid for process in strangers)
                log.warning(
                    "%s of an earlier gpud have not ended %g s after they were killed (PID %s): gpud goes on without",
                    ", ".join(names),
                    self._clearing.limit_s,
                    ", ".join(map(str, pids)),
                )
                return
            refused |= await kill_and_wait(strangers)

    def _marked_strangers(self, known: Collection[str], refused: Collection[int]) -> dict[identity.ProcessStat, str]:
        found = {}
        for process in identity.all_processes():
            if process.pid in refused:
                continue
            _, _, unit, runtime_dir = identity.parse_marker(identity.marker_of(process.pid))
            if unit and runtime_dir == self._runtime_dir and unit not in known:
                found[process] = unit
        return found

    # The rest

    def socket_path(self, unit: str) -> str:
        return self._sockets.path(unit)

    def family(self, pid: int) -> frozenset[int]:
        return frozenset((pid, *identity.descendants(pid)))

    async def close(self) -> tuple[str, ...]:
        """End whatever still runs, and return its units: at an orderly end there is nothing."""
        left = tuple(self._children)
        if left:
            log.warning("gpud ends while %s still runs: killed", ", ".join(left))
        await asyncio.gather(*(self._clearing.see_through(unit, self._children[unit].kill()) for unit in left))
        await self._clearing.close()
        self._sockets.close()
        return left

    def _child(
        self,
        record: ChildRecord,
        tree: Tree,
        leaf: Leaf | None,
        on_line: LineReader | None,
        *,
        pidfd: int,
        pipes: Mapping[Stream, tuple[int, bytes]],
        lease: int,
    ) -> RunningChild:
        loop = asyncio.get_running_loop()
        names = StoredNames(record.unit)
        lines = ChildLines(
            model=record.model,
            engine=record.engine,
            pid=record.pid,
            sink=self._sink,
            on_line=on_line,
            throttle=Throttle(self.lines_per_second, self._burst_lines, loop.time()),
            loop=loop,
        )
        outputs = tuple(
            OutputReader(
                fd, stream, lines, loop=loop, closed=partial(self._fd_store.drop, names.of(stream)), first=first
            )
            for stream, (fd, first) in pipes.items()
            if fd >= 0
        )
        child = RunningChild(
            record,
            tree,
            Connections(pidfd, lease, lines, outputs, partial(self._fd_store.drop, names.lease)),
            oom_kills=self._oom_watch(leaf),
            gone=self._on_gone,
        )
        self._children[record.unit] = child
        return child

    def _on_gone(self, child: RunningChild) -> None:
        del self._children[child.record.unit]
        self._sockets.forget(child.record.unit)

    def _tree(self, record: ChildRecord, leaf: Leaf | None) -> Tree:
        if leaf is not None:
            return CgroupTree(record.unit, leaf)
        return SessionTree(record.unit, record.pid, record.start_time, self._marker(record))

    def _marker(self, record: ChildRecord) -> str:
        return identity.marker_for(record.pid, record.start_time, safe_name(record.unit), self._runtime_dir)

    def _recorded_leaf(self, record: ChildRecord) -> Leaf | None:
        return self._cgroup.recorded_leaf(record.cgroup) if self._cgroup is not None else None

    def _take(self, name: str) -> int:
        fd = self._fd_store.take(name)
        if fd is None:
            return -1
        os.set_inheritable(fd, False)
        return fd

    def _oom_watch(self, leaf: Leaf | None) -> Callable[[bool], bool]:
        """The leaf's own count where there is one. Else the unit's: each kill explains one SIGKILL of nobody's."""
        cgroup = self._cgroup
        if cgroup is None or leaf is None:
            return lambda _: False
        if not self._children:
            self._oom_kills_told = cgroup.oom_kills() or 0

        def killed_by_kernel(killed_by_nobody: bool) -> bool:
            own = leaf.oom_kills()
            if own is not None:
                return own > 0
            if not killed_by_nobody or (cgroup.oom_kills() or 0) <= self._oom_kills_told:
                return False
            self._oom_kills_told += 1
            return True

        return killed_by_kernel


async def _end(tree: Tree) -> None:
    await tree.end()
    await tree.remove()


def _death_signal() -> tuple[str, ...]:
    """What makes a child die with the daemon. The kernel ties it to the *thread* that starts the child."""
    program = shutil.which("setpriv")
    if program is None:
        log.warning('engines will outlive a killed gpud: there is no "setpriv" in PATH; install util-linux')
        return ()
    return (program, "--pdeathsig", "KILL", "--")
