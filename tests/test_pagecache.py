"""Model files in the page cache: real files, really dropped from it and read into it."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpud.pagecache import STEP_BYTES, PageCache, available_bytes, cached_bytes, parts, warm

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where files have pages that can be dropped: a tmpfs has none but its own."""
    probe = tmp_path / "probe"
    if dropped(probe, 1) != 0:
        pytest.skip("this machine's temporary files, or its kernel, do not say what is in the page cache")
    return tmp_path


def resident_bytes(path: str) -> int | None:
    """How much of a model's files is in the page cache; None where the kernel (before 6.5) does not say."""
    total = 0
    for part in parts(path):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = cached_bytes(fd, 0, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        if found is None:
            return None
        total += found
    return total


def dropped(path: Path, mib: int) -> int | None:
    """A file that is on the disk and not in memory; how much of it is in memory all the same."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_bytes(str(path))


def test_a_file_is_read_into_memory(folder: Path) -> None:
    """All of it, also what is no whole step; and a second time nothing has to be read."""
    path = folder / "m.gguf"
    assert dropped(path, 9) == 0
    with path.open("ab") as file:
        file.write(b"x")
    assert warm(str(path), 1 << 30) == 9 * MIB + 1
    assert resident_bytes(str(path)) == 9 * MIB + 1
    assert warm(str(path), 1 << 30) == 9 * MIB + 1


def test_no_more_is_read_than_there_is_room_for(folder: Path) -> None:
    """The beginning, which is loaded first."""
    path = folder / "m.gguf"
    dropped(path, 16)
    assert warm(str(path), 5 * MIB) == 5 * MIB
    # The kernel reads a little ahead by itself.
    assert 5 * MIB <= (resident_bytes(str(path)) or 0) < 10 * MIB
    assert warm(str(path), 0) == 0


def test_it_stops_when_it_is_told_to(folder: Path) -> None:
    """Between two steps."""
    path = folder / "m.gguf"
    dropped(path, 16)
    answers = iter([False, False, True])
    assert warm(str(path), 1 << 30, stop=lambda: next(answers)) == 2 * STEP_BYTES


def test_a_model_in_parts_is_read_in_their_order(folder: Path) -> None:
    """The first names the others; the bound is that of all."""
    files = [folder / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for file in reversed(files):
        assert dropped(file, 4) == 0
    assert parts(str(files[0])) == tuple(map(str, files))
    assert parts(str(files[1])) == (str(files[1]),)
    assert warm(str(files[0]), 8 * MIB) == 8 * MIB
    assert [resident_bytes(str(file)) for file in files[1:]] == [4 * MIB, 0]
    assert resident_bytes(str(files[0])) == 8 * MIB


def test_the_latest_snapshot_is_the_newest_that_has_the_file(tmp_path: Path) -> None:
    """As the engines that load it understand it."""
    for age, name in enumerate(("new", "old", "older"), start=1):
        snapshot = tmp_path / "snapshots" / name
        snapshot.mkdir(parents=True)
        if name != "new":
            (snapshot / "m.gguf").touch()
        os.utime(snapshot, (10**9 - age, 10**9 - age))
    asked = f"{tmp_path}/snapshots/latest/m.gguf"
    assert parts(asked) == (f"{tmp_path}/snapshots/old/m.gguf",)
    assert parts(asked.replace("m.gguf", "n.gguf")) == (asked.replace("m.gguf", "n.gguf"),)
    with pytest.raises(FileNotFoundError):
        parts("/nonexistent/snapshots/latest/m.gguf")


def test_a_file_that_is_not_there_is_an_error() -> None:
    """For the caller, who can say what it was to be read for."""
    with pytest.raises(FileNotFoundError):
        warm("/nonexistent/m.gguf", 1)


def test_what_is_available_is_read_from_the_kernel(tmp_path: Path) -> None:
    """In bytes; nothing where it does not say."""
    assert available_bytes() > 0
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:       10 kB\nMemAvailable:    3 kB\n")
    assert available_bytes(memory) == 3072
    memory.write_text("MemTotal:       10 kB\n")
    assert available_bytes(memory) == 0
    assert available_bytes(tmp_path / "none") == 0


def meminfo(tmp_path: Path, available: int) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemAvailable: {available >> 10} kB\n")
    return path


def test_it_is_done_beside_everything_else(folder: Path, run: Callable[..., Any]) -> None:
    """In a thread that comes after all others for the disk and the CPU, and that is gone afterwards."""
    path = folder / "m.gguf"
    dropped(path, 8)
    seen: list[tuple[int, str]] = []

    def may() -> bool:
        seen.append((threading.get_ident(), threading.current_thread().name))
        return True

    async def scene() -> None:
        await PageCache(may=may).warm(str(path))

    run(scene())
    assert resident_bytes(str(path)) == 8 * MIB
    ((ident, name),) = seen
    assert (ident == threading.get_ident(), name) == (False, "gpud-pagecache")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_the_bound_is_what_others_do_not_need(folder: Path, run: Callable[..., Any]) -> None:
    """So much stays available; with less than that nothing is read."""
    path = folder / "m.gguf"
    dropped(path, 16)

    async def scene(available: int) -> None:
        await PageCache(keep_bytes=100 * MIB, memory=meminfo(folder, available)).warm(str(path))

    run(scene(90 * MIB))
    assert resident_bytes(str(path)) == 0
    run(scene(105 * MIB))
    assert 5 * MIB <= (resident_bytes(str(path)) or 0) < 10 * MIB


def test_nothing_is_read_when_it_may_not(folder: Path, run: Callable[..., Any]) -> None:
    """Turned off, on battery, or for a model that has no file."""
    path = folder / "m.gguf"
    dropped(path, 1)

    async def scene() -> None:
        await PageCache(may=lambda: False).warm(str(path))
        await PageCache().warm("")

    run(scene())
    assert resident_bytes(str(path)) == 0


@pytest.mark.parametrize("how", ["cancel", "another", "task"])
def test_it_can_be_canceled(folder: Path, run: Callable[..., Any], how: str) -> None:
    """By hand, by the next file, or with the task that waits; then no further step is taken."""
    path, other = folder / "m.gguf", folder / "n.gguf"
    dropped(path, 8)
    dropped(other, 1)
    asked, go_on = threading.Event(), threading.Event()

    def may() -> bool:
        first = not asked.is_set()
        asked.set()
        return not first or go_on.wait(50)

    async def scene() -> None:
        cache = PageCache(may=may)
        task = asyncio.create_task(cache.warm(str(path)))
        await asyncio.to_thread(asked.wait, 50)
        if how == "cancel":
            cache.cancel()
        elif how == "another":
            await cache.warm(str(other))
        else:
            task.cancel()
            await asyncio.wait([task], timeout=50)
        go_on.set()
        await asyncio.wait([task], timeout=50)
        assert task.cancelled() == (how == "task")
        for thread in threading.enumerate():
            if thread.name == "gpud-pagecache":
                await asyncio.to_thread(thread.join, 50)

    run(scene())
    assert resident_bytes(str(path)) == 0
    assert resident_bytes(str(other)) == (MIB if how == "another" else 0)


def test_what_cannot_be_read_troubles_nobody(
    tmp_path: Path, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The load itself will say what is wrong."""

    async def scene() -> None:
        await PageCache(keep_bytes=0).warm(str(tmp_path / "none.gguf"))
        await PageCache(keep_bytes=0).warm(str(tmp_path))

    caplog.set_level(logging.DEBUG, "gpud.pagecache")
    run(scene())
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    assert "No such file or directory" in caplog.messages[0]
