"""A room of its own for what kills processes and fills disks: another list of processes, another table of mounts.

Whatever way it ends, even by ``kill -9``, the kernel ends every process that was started in it and takes its mounts
away. Without the right to make one (root has it) the work is done where it is, and :func:`is_apart` says so.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
MARK = "GPUD_BENCH_APART"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_apart() -> bool:
    return MARK in os.environ


def run_apart(work: Callable[[], int]) -> int:
    """Does the work in such a room and returns its exit status. Call it before there are threads."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID):
        return work()
    first = os.fork()
    if not first:
        _exit_with(lambda: _be_first(libc, work))
    _tell(first)
    return _status(first)


def _be_first(libc: ctypes.CDLL, work: Callable[[], int]) -> int:
    """The room's process 1: it takes in who lost its parent. The room ends with it."""
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a killed parent leaves the room behind.
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if libc.mount(b"proc", b"/proc", b"proc", 0, None):
        print(f"cannot mount /proc: {os.strerror(ctypes.get_errno())}")
        return 2
    os.environ[MARK] = "1"
    worker = os.fork()
    if not worker:
        _exit_with(work)
    _tell(worker)
    while True:
        with contextlib.suppress(InterruptedError):
            pid, status = os.wait()
            if pid == worker:
                return _code(status)


def _tell(pid: int) -> None:
    """Who is told to end tells the one that works, which tidies up. A terminal tells all of them by itself."""

    def pass_on(number: int, _frame: object) -> None:
        if number != signal.SIGINT or not os.isatty(0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in ENDING:
        signal.signal(number, pass_on)


def _status(pid: int) -> int:
    while True:
        with contextlib.suppress(InterruptedError):
            return _code(os.waitpid(pid, 0)[1])


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _exit_with(work: Callable[[], int]) -> None:
    """As a process of its own: nothing of what the parent had to do at its end is done twice."""
    code = 1
    try:
        for number in ENDING:
            signal.signal(number, signal.default_int_handler)
        code = work()
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import sys

        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
