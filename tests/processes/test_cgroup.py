"""The delegated cgroup: finding it, leaves, and what the kernel counts there."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_parts import BOUND_S, Lines, command, is_running, shell

from gpud.core.errors import BackendFailed
from gpud.processes.cgroup import DELEGATED, Cgroup, is_delegated, own_cgroup
from gpud.processes.launcher import ProcessLauncher

Run = Callable[..., Any]

MOUNTS = """\
22 1 0:20 / / rw - ext4 /dev/sda1 rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid - {first} cgroup rw
31 22 0:27 {root} /sys/fs/cgroup/un\\040ified rw,nosuid shared:9 - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("memberships", "root", "found"),
    [
        ("0::/system.slice/gpud.service\n", "/", "/sys/fs/cgroup/un ified/system.slice/gpud.service"),
        ("4:memory:/x\n0::/a/supervisor\n", "/", "/sys/fs/cgroup/un ified/a/supervisor"),
        ("0::/outer/inner\n", "/outer", "/sys/fs/cgroup/un ified/inner"),
        ("0::/elsewhere\n", "/outer", None),
        ("4:memory:/x\n1:name=systemd:/y\n", "/", None),
    ],
)
def test_own_cgroup_is_found_in_the_mounts(memberships: str, root: str, found: str | None) -> None:
    """Beside version 1, below another root, under a path with spaces; or not at all."""
    expected = None if found is None else Path(found)
    assert own_cgroup(memberships, MOUNTS.format(first="tmpfs", root=root)) == expected


def test_cgroup_that_nobody_handed_over_is_left_alone(cgroup_root: Path) -> None:
    """Root may write everywhere; only systemd's mark says that it may."""
    assert not is_delegated(cgroup_root)
    os.setxattr(cgroup_root, "user.delegate", b"1")
    assert is_delegated(cgroup_root)


ENTER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from gpud.processes.cgroup import enter_delegated_cgroup
Path({root!r}, "cgroup.procs").write_text("0")
for _ in range(2):
    cgroup = enter_delegated_cgroup()
    print(cgroup and cgroup.root.name, Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition("/")[2])
"""


AS_ITS_UNIT = ["sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh"]
"""What a service manager says to the process that it starts itself."""


@pytest.mark.parametrize("how", ["marked", "told", "told to another", ""])
def test_daemon_moves_into_its_own_leaf(cgroup_root: Path, how: str) -> None:
    """At the start, before any engine; again after a restart in which systemd put it there already. By systemd's mark
    or by its unit's word, which is not for those who have only inherited it.
    """
    if how == "marked":
        os.setxattr(cgroup_root, "user.delegate", b"1")
    delegated = how in ("marked", "told")
    script = ENTER.format(path=sys.path, root=str(cgroup_root))
    environment = {**os.environ, **({DELEGATED: "1", "SYSTEMD_EXEC_PID": "1"} if "told" in how else {})}
    start = [*(AS_ITS_UNIT if how == "told" else []), sys.executable, "-c", script]
    done = subprocess.run(start, capture_output=True, text=True, check=True, env=environment)
    expected = f"{cgroup_root.name} supervisor\n" if delegated else f"None {cgroup_root.name}\n"
    assert done.stdout == expected * 2
    if delegated:
        (cgroup_root / "supervisor").rmdir()


def test_record_cannot_name_a_foreign_cgroup(cgroup_root: Path) -> None:
    """A record is data from a file: it must not get anything outside the engines' leaves killed."""
    cgroup = Cgroup(cgroup_root)
    leaf = cgroup.make_leaf("tiny-1")
    foreign = cgroup_root / "supervisor" / "engine-tiny-1"
    foreign.mkdir(parents=True)
    found = cgroup.recorded_leaf(str(leaf.path))
    assert found is not None and found.path == leaf.path
    for path in (
        "",
        "/",
        str(cgroup_root),
        str(cgroup_root / "supervisor"),
        str(foreign),
        f"{leaf.path}/..",
        f"{leaf.path}/a",
    ):
        assert cgroup.recorded_leaf(path) is None
    leaf.path.rmdir()
    assert cgroup.recorded_leaf(str(leaf.path)) is None
    foreign.rmdir()
    (cgroup_root / "supervisor").rmdir()


def test_emptying_is_announced_by_the_kernel(cgroup_root: Path, run: Run) -> None:
    """The wait ends when the last process has gone, not before."""

    async def scene() -> None:
        leaf = Cgroup(cgroup_root).make_leaf("tiny-1")
        processes = [await asyncio.create_subprocess_exec("sleep", "1000") for _ in range(2)]
        for process in processes:
            leaf.place(process.pid)
        assert leaf.is_populated() and leaf.pids() == {process.pid for process in processes}
        waiting = asyncio.ensure_future(leaf.emptied())
        processes[0].kill()
        await processes[0].wait()
        await asyncio.sleep(0)
        assert not waiting.done()
        leaf.kill()
        await asyncio.wait_for(waiting, BOUND_S)
        assert not leaf.is_populated() and leaf.pids() == frozenset()
        await processes[1].wait()
        assert await leaf.remove()
        await leaf.emptied()

    run(scene())


def test_cgroups_that_an_engine_made_inside_go_with_it(
    make_launcher: Callable[..., ProcessLauncher], cgroup_root: Path, sink: Lines, run: Run
) -> None:
    """An engine that divides its own leaf is killed and cleared away all the same."""

    async def scene() -> None:
        launcher = make_launcher(cgroup=Cgroup(cgroup_root))
        leaf = Cgroup(cgroup_root).leaf("tiny-1").path
        child = await launcher.spawn(
            shell(f"mkdir {leaf}/a {leaf}/a/b; sleep 1000 & echo $! >{leaf}/a/b/cgroup.procs; echo $!; wait")
        )
        inside = int(await sink.until(str.isdecimal))
        assert child.pids() >= {child.pid, inside}
        await child.kill()
        assert not is_running(inside) and not leaf.exists()

    run(scene())


def test_child_is_in_its_leaf_before_it_runs(
    make_launcher: Callable[..., ProcessLauncher], cgroup_root: Path, sink: Lines, run: Run
) -> None:
    """The very first thing that the program can see is its own cgroup."""

    async def scene() -> None:
        launcher = make_launcher(cgroup=Cgroup(cgroup_root))
        child = await launcher.spawn(command("cat", "/proc/self/cgroup", unit="hf/a:b-1"))
        assert child.record.cgroup.startswith(f"{cgroup_root}/engine-hf_a_b-1-")
        await child.wait()
        leaf = Path(child.record.cgroup).relative_to(cgroup_root.parent)
        assert f"0::/{leaf}" in sink.texts

    run(scene())


def test_leaf_in_use_is_not_used_again(
    make_launcher: Callable[..., ProcessLauncher], cgroup_root: Path, run: Run
) -> None:
    """A start never joins what an earlier daemon left running under the same name; an empty leaf is no obstacle."""

    async def scene() -> None:
        cgroup = Cgroup(cgroup_root)
        leaf = cgroup.make_leaf("tiny-1")
        launcher = make_launcher(cgroup=cgroup)
        assert (await (await launcher.spawn(command("true"))).wait()).code == 0
        leaf = cgroup.make_leaf("tiny-1")
        process = await asyncio.create_subprocess_exec("sleep", "1000")
        leaf.place(process.pid)
        with pytest.raises(BackendFailed, match="cannot make a cgroup"):
            await launcher.spawn(command("true"))
        assert await launcher.end_strangers(()) == ("tiny-1",)
        await process.wait()

    run(scene())


def test_own_leaf_counts_kills_for_lack_of_memory(tmp_path: Path) -> None:
    """What the kernel writes into memory.events, as far as there is a memory controller."""
    cgroup = Cgroup(tmp_path)
    leaf = cgroup.leaf("tiny-1")
    leaf.path.mkdir()
    assert leaf.oom_kills() is None
    events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill {}\noom_group_kill 0\n"
    (leaf.path / "memory.events").write_text(events.format(0))
    assert leaf.oom_kills() == 0
    (leaf.path / "memory.events").write_text(events.format(2))
    assert leaf.oom_kills() == 2


class CountingCgroup(Cgroup):
    """A real cgroup whose count of kills the test sets: there is no memory controller to be had here."""

    kills = 0

    def oom_kills(self) -> int | None:
        return self.kills


def test_sigkill_by_the_kernel_is_told_from_one_by_hand(
    make_launcher: Callable[..., ProcessLauncher], cgroup_root: Path, run: Run
) -> None:
    """Each kill that the unit counted explains one SIGKILL that was not gpud's; the next one is somebody's."""

    async def scene() -> None:
        cgroup = CountingCgroup(cgroup_root)
        launcher = make_launcher(cgroup=cgroup)
        first, second, third = [await launcher.spawn(command("sleep", "1000", unit=f"tiny-{n}")) for n in range(3)]
        cgroup.kills = 1
        os.kill(first.pid, 9)
        assert (await first.wait()).oom_killed
        os.kill(second.pid, 9)
        assert not (await second.wait()).oom_killed
        cgroup.kills = 2
        assert not (await third.kill()).oom_killed

    run(scene())
