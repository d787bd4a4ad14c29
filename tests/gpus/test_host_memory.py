"""The machine's own memory, from a tree of /proc and cgroup files and from the real machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_trees import lay_out

from gpud.gpus.host import HostProbe
from gpud.gpus.sysfs import process_name

GIB = 1 << 30
MIB = 1 << 20
NOBODY: frozenset[int] = frozenset()
MACHINE = """
proc/meminfo: MemTotal:       16777216 kB\\nMemFree:         1048576 kB\\nMemAvailable:    8388608 kB
proc/cpuinfo: processor\\t: 0\\nmodel name\\t: AMD  Ryzen 7 5800X
proc/self/cgroup: 0::/system.slice/gpud.service/daemon
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


def test_what_is_available_counts_as_free(tmp_path: Path) -> None:
    """Caches can be dropped: MemAvailable, not MemFree. The device has the host's name and is the host's."""
    (sample,) = HostProbe(lay_out(MACHINE, tmp_path)).look(NOBODY, wake=False)
    assert (sample.total_bytes, sample.used_bytes, sample.free_bytes) == (16 * GIB, 8 * GIB, 8 * GIB)
    assert (sample.uuid, sample.vendor, sample.name) == ("host", "host", "AMD Ryzen 7 5800X host memory")
    assert sample.is_host
    assert sample.health == ""


def test_a_limit_of_our_cgroup_or_one_above_is_the_total(tmp_path: Path) -> None:
    """The narrowest holds; what the kernel could drop of the group's caches is free; no limit is no limit."""
    limits = """
    sys/fs/cgroup/system.slice/gpud.service/daemon/memory.max: max
    sys/fs/cgroup/system.slice/gpud.service/daemon/memory.current: 52428800
    sys/fs/cgroup/system.slice/gpud.service/memory.max: 6442450944
    sys/fs/cgroup/system.slice/gpud.service/memory.current: 5368709120
    sys/fs/cgroup/system.slice/gpud.service/memory.stat: anon 1\\ninactive_file 1073741824\\nactive_file 536870912
    sys/fs/cgroup/system.slice/memory.max: 10737418240
    sys/fs/cgroup/system.slice/memory.current: 5368709120
    """
    (sample,) = HostProbe(lay_out(MACHINE + limits, tmp_path)).look(NOBODY, wake=False)
    assert sample.total_bytes == 6 * GIB
    assert sample.free_bytes == 2 * GIB + 512 * MIB
    assert sample.used_bytes == 3 * GIB + 512 * MIB


def test_a_wide_limit_leaves_the_machine_as_it_is(tmp_path: Path) -> None:
    """A group may be allowed more than there is."""
    limits = """
    sys/fs/cgroup/system.slice/memory.max: 99999999999
    sys/fs/cgroup/system.slice/memory.current: 1048576
    """
    (sample,) = HostProbe(lay_out(MACHINE + limits, tmp_path)).look(NOBODY, wake=False)
    assert (sample.total_bytes, sample.free_bytes) == (16 * GIB, 8 * GIB)


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    """Never a negative figure."""
    limits = """
    sys/fs/cgroup/system.slice/memory.max: 1073741824
    sys/fs/cgroup/system.slice/memory.current: 2147483648
    """
    (sample,) = HostProbe(lay_out(MACHINE + limits, tmp_path)).look(NOBODY, wake=False)
    assert (sample.total_bytes, sample.free_bytes, sample.used_bytes) == (1 * GIB, 0, 1 * GIB)


def test_own_processes_are_listed_with_their_share(tmp_path: Path) -> None:
    """The proportional share where it can be read, the resident size where not; the ended and the others not at all."""
    processes = f"""
    proc/100/comm: llama-server
    proc/100/smaps_rollup: 55e4-7ffd ---p 00000000 00:00 0  [rollup]\\nRss:  9000 kB\\nPss:  4000 kB\\nPss_Anon: 1 kB
    proc/101/comm: runner
    proc/101/statm: 9000 {3 * MIB // PAGE} 100 1 0 50 0
    proc/999/comm: somebody
    proc/999/statm: 9000 500 100 1 0 50 0
    """
    (sample,) = HostProbe(lay_out(MACHINE + processes, tmp_path)).look(frozenset({101, 100, 555}), wake=False)
    listed = [(process.pid, process.name, process.used_bytes) for process in sample.processes]
    assert listed == [(100, "llama-server", 4000 * 1024), (101, "runner", 3 * MIB)]


def test_a_machine_that_tells_nothing_is_unwell(tmp_path: Path) -> None:
    """Unknown is not zero."""
    (sample,) = HostProbe(tmp_path).look(NOBODY, wake=False)
    assert (sample.total_bytes, sample.free_bytes, sample.used_bytes) == (None, None, None)
    assert "/proc" in sample.health
    assert sample.name == "host memory"


def test_what_is_recalled_still_has_the_totals(tmp_path: Path) -> None:
    """Only the processes can make a look at the host hang."""
    (sample,) = HostProbe(lay_out(MACHINE, tmp_path)).recall("it hangs")
    assert (sample.total_bytes, sample.free_bytes, sample.health) == (16 * GIB, 8 * GIB, "it hangs")


def test_a_real_process_is_measured_on_the_real_machine() -> None:
    """A child that fills 64 MiB is seen to hold them."""
    program = "import sys; held = bytearray(b'x') * (64 << 20); print(len(held), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (sample,) = HostProbe().look(frozenset({child.pid}), wake=False)
        child.communicate()
    (process,) = sample.processes
    assert process.pid == child.pid
    assert process.used_bytes is not None and 64 * MIB <= process.used_bytes < 128 * MIB
    assert sample.total_bytes is not None and sample.free_bytes is not None
    assert 0 < sample.free_bytes <= sample.total_bytes


@pytest.mark.parametrize(
    ("comm", "command", "name"),
    [
        (b"game\n", b"/opt/other\0", "game"),
        (b"averylongprogra\n", b"/opt/averylongprogramname\0-x\0", "averylongprogramname"),
        (b"a renamed threa\n", b"/opt/averylongprogramname\0", "a renamed threa"),
        (b"fifteen.letters\n", b"", "fifteen.letters"),
        ("änderungsdiens".encode() + b"\n", "/opt/änderungsdienst\0".encode(), "änderungsdienst"),
        ("zehn Wörter mö".encode()[:15] + b"\n", "/x/zehn Wörter möglich\0".encode(), "zehn Wörter möglich"),
        (b"\xff\xfe\n", b"", "\ufffd\ufffd"),
        (b"", b"", ""),
    ],
)
def test_a_process_has_the_name_of_its_program(tmp_path: Path, comm: bytes, command: bytes, name: str) -> None:
    """The kernel cuts it after 15 bytes, in the middle of a letter if need be; whatever is there, nothing is raised."""
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/comm").write_bytes(comm)
    (tmp_path / "proc/7/cmdline").write_bytes(command)
    assert process_name(tmp_path, 7) == name
    assert process_name(tmp_path, 8) == ""
