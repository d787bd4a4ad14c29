"""Reads the file of the model that is likely to be loaded next into memory that is free, so that its load is quick.

Fulfils ``ports.Warmer``. The work is done in a thread of its own, at the lowest priority for disk and CPU, and stops at
the next step when it is canceled or memory gets short. It never holds memory: what it reads is the kernel's to drop.

The file is really read, into one buffer: ``posix_fadvise(WILLNEED)`` looks made for this, but reads only the first few
MiB of what it is asked for (8 of 64, measured), and does not say when.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

STEP_BYTES = 4 << 20
"""Between two steps everything is looked at again: 4 MiB take 1 ms from memory, 40 ms from a slow disk."""

KEEP_BYTES = 2 << 30
"""This much memory stays available beside what is read: whatever is started next must not wait for its pages."""

MEMORY = Path("/proc/meminfo")

# system calls that the C library has no functions for
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_CACHESTAT = 451
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13


class PageCache:
    """One file at a time: a new one takes the place of the one before.

    ``may`` is asked first, in the thread: whether this is wanted now, at this moment, on this machine.
    """

    def __init__(
        self, *, may: Callable[[], bool] = lambda: True, keep_bytes: int = KEEP_BYTES, memory: Path = MEMORY
    ) -> None:
        self._may = may
        self._keep_bytes = keep_bytes
        self._memory = memory
        self._stop = threading.Event()

    async def warm(self, path: str) -> None:
        """Returns when as much of the file as there is room for is in the page cache, or when it was canceled."""
        self.cancel()
        if not path:
            return
        stop = self._stop = threading.Event()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def work() -> None:
            try:
                self._work(path, stop)
            except Exception:
                log.exception("internal error: cannot read %s ahead of time", path)
            finally:
                # The loop may have ended meanwhile; then nobody waits.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_finish, done)

        # Not one of the loop's own threads: a file system that hangs must not keep the daemon from ending, and the
        # priority that the thread gives itself must end with it.
        threading.Thread(target=work, name="gpud-pagecache", daemon=True).start()
        try:
            await done
        finally:
            stop.set()

    def cancel(self) -> None:
        """Stop at the next step. What has been read stays in the cache."""
        self._stop.set()

    def _work(self, path: str, stop: threading.Event) -> None:
        if not self._may():
            log.debug("not reading %s ahead of time: it is turned off, or the machine runs on its battery", path)
            return
        _be_idle()

        def room() -> int:
            return available_bytes(self._memory) - self._keep_bytes

        limit = max(0, room())
        try:
            done = warm(path, limit, stop=lambda: stop.is_set() or room() <= 0)
        except OSError as error:
            log.debug("cannot read %s ahead of time: %s", path, error.strerror)
            return
        log.debug(
            "%d MiB of %s are in memory for its next load (there was room for %d MiB)", done >> 20, path, limit >> 20
        )


def warm(path: str, limit_bytes: int, *, stop: Callable[[], bool] = lambda: False) -> int:
    """Have the first ``limit_bytes`` of a model (of all its files, in their order) in the page cache.

    Returns how many of them are there now. ``stop`` is asked before each step. Raises OSError where a file cannot be
    read. Blocks for as long as the disk takes.
    """
    done = 0
    buffer = bytearray(STEP_BYTES)
    for part in parts(path):
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            offset = 0
            while offset < size:
                step = min(STEP_BYTES, size - offset, limit_bytes - done)
                if step <= 0 or stop():
                    return done
                if cached_bytes(fd, offset, step) != step:
                    step = os.preadv(fd, [memoryview(buffer)[:step]], offset)
                if step == 0:
                    break  # It was cut off meanwhile.
                offset += step
                done += step
        finally:
            os.close(fd)
    return done


def parts(path: str) -> tuple[str, ...]:
    """All files of a model that was split: ``x-00001-of-00003.gguf`` stands for three. Else the file alone.

    Raises OSError for the latest snapshot of what has none.
    """
    head, latest, tail = path.partition("/snapshots/latest/")
    if latest and not os.path.exists(path):  # noqa: PTH110
        # In a Hugging Face cache that means the newest snapshot that has the file.
        having = [snapshot for snapshot in Path(head, "snapshots").iterdir() if (snapshot / tail).exists()]
        if having:
            path = str(max(having, key=lambda snapshot: snapshot.stat().st_mtime_ns) / tail)
    match = re.fullmatch(r"(.*)-00001-of-([0-9]{5})\.gguf", path, re.DOTALL)
    if match is None:
        return (path,)
    return tuple(f"{match[1]}-{number:05}-of-{match[2]}.gguf" for number in range(1, int(match[2]) + 1))


def available_bytes(memory: Path = MEMORY) -> int:
    """What can be had without pushing anybody into swap, as the kernel estimates it; 0 where it does not say."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", memory.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def cached_bytes(fd: int, offset: int, length: int) -> int | None:
    """How much of this stretch of a file is in the page cache; None where the kernel does not say."""
    if length == 0:
        return 0
    import ctypes

    stretch = (ctypes.c_uint64 * 2)(offset, length)
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, being written, evicted, evicted lately
    if _syscall()(ctypes.c_long(_CACHESTAT), fd, stretch, counts, 0) != 0:
        return None
    return min(length, counts[0] * os.sysconf("SC_PAGE_SIZE"))


def _be_idle() -> None:
    """Let everybody else have disk and CPU first. Where that is not permitted, it is done all the same."""
    import ctypes

    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        _syscall()(ctypes.c_long(number), _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


@functools.cache
def _syscall() -> Any:
    import ctypes  # only those who read ahead pay for it

    return ctypes.CDLL(None, use_errno=True).syscall
