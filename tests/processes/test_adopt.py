"""Children of an earlier daemon: found again, or ended, and never mistaken for somebody else."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from process_parts import BOUND_S, PATIENT, SHORT, Lines, MemoryFdStore, command, is_running, shell

from gpud.core.facts import Exit
from gpud.core.ports import ChildRecord, Stream
from gpud.core.record import replace
from gpud.processes import identity
from gpud.processes.cgroup import Cgroup, Leaf
from gpud.processes.launcher import ProcessLauncher

Run = Callable[..., Any]

FIRST_DAEMON = """
import asyncio, json, msgspec, socket, sys
from pathlib import Path
from process_parts import Lines, MemoryFdStore, shell
from gpud.processes.cgroup import Cgroup
from gpud.processes.launcher import ProcessLauncher

class Forwarding(MemoryFdStore):
    def put(self, name, fd):
        socket.send_fds(keeper, [name.encode()], [fd])

async def main():
    group = Cgroup(Path(cgroup)) if cgroup else None
    launcher = ProcessLauncher(runtime_dir=Path(runtime_dir), fd_store=Forwarding(), sink=Lines(), cgroup=group)
    child = await launcher.spawn(shell(script, lease=lease))
    print(json.dumps(msgspec.to_builtins(child.record)), flush=True)
    await child.wait()

number, runtime_dir, cgroup, script, lease = json.loads(sys.argv[1])
keeper = socket.socket(fileno=number)
asyncio.run(main())
"""


class Inherited:
    """What a daemon that was killed without warning leaves: a record, and descriptors in the store."""

    def __init__(self, tmp_path: Path, cgroup_root: Path | None) -> None:
        self._tmp_path = tmp_path
        self._cgroup_root = cgroup_root

    def leave(self, store: MemoryFdStore, script: str, *, lease: bool = False, kept: bool = True) -> ChildRecord:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cgroup = str(self._cgroup_root) if self._cgroup_root else ""
        gate = self._tmp_path / "gate"
        os.mkfifo(gate)
        gated = f"read -r _ <{gate}; {script}"
        options = json.dumps([theirs.fileno(), str(self._tmp_path / "run"), cgroup, gated, lease])
        daemon = subprocess.Popen(
            [sys.executable, "-c", FIRST_DAEMON, options],
            stdout=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()
        assert daemon.stdout is not None
        record = ChildRecord(**json.loads(daemon.stdout.readline()))
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
        # Only now, so that nothing that it says was read by the first daemon.
        gate.write_text("go\n")
        gate.unlink()
        while True:
            name, fds, _, _ = socket.recv_fds(ours, 256, 1)
            if not name:
                break
            if kept:
                store.kept[name.decode()] = fds[0]
            else:
                os.close(fds[0])
        ours.close()
        return record


@pytest.fixture(params=["session", "cgroup"])
def inherited(request: pytest.FixtureRequest, tmp_path: Path) -> Inherited:
    return Inherited(tmp_path, request.getfixturevalue("cgroup_root") if request.param == "cgroup" else None)


@pytest.fixture
def launcher(inherited: Inherited, make_launcher: Callable[..., ProcessLauncher]) -> ProcessLauncher:
    """The second daemon, of the same kind as the first."""
    root = inherited._cgroup_root
    return make_launcher(cgroup=Cgroup(root) if root else None)


COUNTING = "trap 'echo line 2' USR1; echo line 1; while :; do sleep 0.01; done"


def test_adopted_child_goes_on_as_before(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, sink: Lines, run: Run
) -> None:
    """Its output is read from where it was left and on from there, its end is noticed; its code is unknown."""
    record = inherited.leave(store, COUNTING, lease=True)

    async def scene() -> Exit:
        child = launcher.adopt(record)
        assert child is not None and child.alive() and child.pid in child.pids()
        assert child.record == record and launcher.adopt(record) is child
        await sink.until(lambda text: text == "line 1")
        os.kill(child.pid, signal.SIGUSR1)
        await sink.until(lambda text: text == "line 2")
        return await child.stop(PATIENT)

    ended = run(scene())
    assert ended.code is None and not ended.oom_killed and ended.tail == ("line 1", "line 2")
    assert (Stream.OUT, "line 2") in sink.kept and sink.models == {("tiny", "custom")}


def test_adopted_child_without_stored_output_can_be_stopped(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """The store was lost: the child is adopted all the same, silent."""
    record = inherited.leave(store, "exec sleep 1000", kept=False)

    async def scene() -> Exit:
        child = launcher.adopt(record)
        assert child is not None
        return await child.stop(PATIENT)

    assert run(scene()) == Exit(record.pid, None)


def test_adopted_child_that_ignores_term_is_killed_with_its_tree(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, sink: Lines, run: Run
) -> None:
    """The ladder is the same for a child that is not ours by birth."""
    record = inherited.leave(store, "trap '' TERM; setsid -f sh -c 'sleep 1000 & echo $!'; echo main; exec sleep 1000")

    async def scene() -> int:
        child = launcher.adopt(record)
        assert child is not None
        hidden = int(await sink.until(str.isdecimal))
        await sink.until(lambda text: text == "main")
        await asyncio.wait_for(child.stop(SHORT), BOUND_S)
        return hidden

    hidden = run(scene())
    assert not is_running(record.pid) and not is_running(hidden)


def test_stranger_with_the_same_number_is_not_touched(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A record whose start time does not fit is of a process that is gone: no adoption, no signal."""
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        stat = identity.stat_of(stranger.pid)
        assert stat is not None
        record = ChildRecord("tiny-1", "tiny", "custom", stranger.pid, stat.start_time - 1)

        async def scene() -> None:
            assert launcher.adopt(record) is None
            await asyncio.wait_for(launcher.end(record), BOUND_S)

        run(scene())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_older_session_with_the_same_number_is_not_touched(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A session whose leader has died keeps the leader's number; it is ours only if it is not older than our child."""
    leader = subprocess.Popen(["sh", "-c", "sleep 1000 >&2 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    member = int(leader.stdout.read())
    leader.stdout.close()
    leader.wait()
    try:
        stat = identity.stat_of(member)
        assert stat is not None and stat.session == leader.pid
        record = ChildRecord("tiny-1", "tiny", "custom", leader.pid, stat.start_time + 1)
        run(asyncio.wait_for(launcher.end(record), BOUND_S))
        assert is_running(member)
    finally:
        os.kill(member, signal.SIGKILL)


def test_record_of_a_process_that_is_gone_is_ended_quietly(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """Nothing is left; its descriptors leave the store."""
    record = inherited.leave(store, "exec sleep 1000")
    os.kill(record.pid, signal.SIGKILL)

    async def scene() -> None:
        await asyncio.wait_for(launcher.end(record), BOUND_S)
        assert launcher.adopt(record) is None

    run(scene())


def test_recorded_child_is_ended_with_what_it_left_behind(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """Even when the main process is dead already and only its workers live, in sessions of their own."""
    record = inherited.leave(store, "setsid -f sleep 1000; sleep 1000 & echo started; exit 0")

    async def left() -> set[int]:
        marker = identity.marker_of
        return {stat.pid for stat in identity.all_processes() if marker(stat.pid).startswith(f"{record.pid}:")}

    async def scene() -> None:
        # The first daemon may have been killed before or after it ended the workers; without a doubt now:
        await asyncio.wait_for(launcher.end(record), BOUND_S)
        assert await left() == set()

    run(scene())


def test_end_of_a_living_record_kills_it(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """What cannot be adopted (it does not answer) is ended."""
    record = inherited.leave(store, "trap '' TERM; sleep 1000 & wait; wait")

    run(asyncio.wait_for(launcher.end(record), BOUND_S))
    assert not is_running(record.pid)
    assert not store.kept


def test_end_of_an_own_child_waits_for_its_end(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A record of a child that runs here is that child."""

    async def scene() -> None:
        child = await launcher.spawn(command("sleep", "1000"))
        await launcher.end(child.record)
        assert not is_running(child.pid)

    run(scene())


def test_end_of_an_old_record_spares_a_new_child_of_the_same_unit(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """Unit names may come again after a restart; the living child keeps its cgroup and its descriptors."""

    async def scene() -> None:
        child = await launcher.spawn(command("sleep", "1000"))
        await launcher.end(replace(child.record, start_time=child.record.start_time - 1))
        await launcher.end(replace(child.record, pid=2**22 + 1))
        assert is_running(child.pid) and "tiny-1.out" in store.kept
        await child.kill()

    run(scene())


def test_what_no_record_names_is_ended(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """A daemon killed before it could write its record: the engine is found by its cgroup or its environment."""
    record = inherited.leave(store, "exec sleep 1000")

    async def scene() -> None:
        assert await launcher.end_strangers({"tiny-1"}) == ()
        assert is_running(record.pid)
        assert await asyncio.wait_for(launcher.end_strangers(()), BOUND_S) == ("tiny-1",)
        assert not is_running(record.pid)

    run(scene())
    store.close()


def test_another_daemons_engines_are_not_strangers(
    tmp_path: Path, make_launcher: Callable[..., ProcessLauncher], run: Run
) -> None:
    """A second gpud with another runtime directory (a user's own) keeps its engines."""

    async def scene() -> None:
        ours, theirs = make_launcher(), make_launcher(runtime_dir=tmp_path / "other")
        child = await theirs.spawn(shell("exec sleep 1000"))
        assert await ours.end_strangers(()) == ()
        assert is_running(child.pid)
        await child.kill()

    run(scene())


def test_first_record_says_who_the_child_is(
    inherited: Inherited, launcher: ProcessLauncher, store: MemoryFdStore, run: Run
) -> None:
    """PID, start time and, where there is one, the cgroup leaf; the descriptors are stored under the unit's name."""

    async def scene() -> None:
        child = await launcher.spawn(command("sleep", "1000", unit="qwen3:8b-2", lease=True))
        stat = identity.stat_of(child.pid)
        assert stat is not None and stat.start_time == child.record.start_time
        assert bool(child.record.cgroup) == bool(inherited._cgroup_root)
        assert to_builtins(child.record)["unit"] == "qwen3:8b-2"
        assert all(":" not in name and name.startswith("qwen3_8b-2-") for name in store.names)
        assert {name.rpartition(".")[2] for name in store.names} == {"out", "err", "in"}
        await child.kill()

    run(scene())


class Hanging(Leaf):
    """What lives here hangs in the kernel: a kill shows no effect."""

    def is_populated(self) -> bool:
        return True

    def kill(self) -> None:
        """It takes no signal."""

    def pids(self) -> frozenset[int]:
        return frozenset({4194304})

    async def emptied(self) -> None:
        await asyncio.Event().wait()


class CgroupThatHangs(Cgroup):
    def leaves(self) -> tuple[Leaf, ...]:
        return (Hanging(self.root / "engine-old-1"),)

    def recorded_leaf(self, path: str) -> Leaf | None:
        return Hanging(Path(path))


def test_what_hangs_in_the_kernel_keeps_no_daemon_from_its_start(
    make_launcher: Callable[..., ProcessLauncher], tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a recorded engine nor an unknown one is waited for beyond the limit; both are named."""

    async def scene() -> None:
        launcher = make_launcher(cgroup=CgroupThatHangs(tmp_path), clearing_limit_s=0.05)
        record = ChildRecord("old-2", "tiny", "custom", 4194304, 1, cgroup=str(tmp_path / "engine-old-2"))
        await asyncio.wait_for(launcher.end(record), BOUND_S)
        assert await asyncio.wait_for(launcher.end_strangers(()), BOUND_S) == ("old-1",)
        await asyncio.wait_for(launcher.close(), BOUND_S)

    run(scene())
    assert [record.getMessage() for record in caplog.records] == [
        f'"{unit}" has not ended 0.05 s after it was killed: gpud goes on without' for unit in ("old-2", "old-1")
    ]
