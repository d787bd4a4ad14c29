"""Starts a program that answers and ends, or is ended when it has said enough. Never an engine that is to stay.

Bounded in time and in what is kept; its session is killed at the end, so that nothing of it stays, whatever it forked.
"""

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from gpud.backends import devices
from gpud.core.record import Record

READ_BYTES = 64 << 10

LARGEST_ANSWER_BYTES = 8 << 20
"""No help is as long, and no log before a record; what says more is another program."""


class Said(Record):
    """What a short-lived program said: its exit status and all its output."""

    code: int
    text: str


def quiet_environment() -> dict[str, str]:
    """What a program that is only asked gets of gpud's own environment, and no GPU: it must not wake one up."""
    kept = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **devices.NOTHING_VISIBLE}


async def ask_program(argv: tuple[str, ...], environment: Mapping[str, str], timeout_s: float) -> Said:
    """Run a program that answers and ends (``--help``). Raises OSError, or TimeoutError after killing it."""
    stop, give_up = os.pipe()
    asking = asyncio.ensure_future(asyncio.to_thread(ask_program_now, argv, environment, timeout_s, stop=stop))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        os.write(give_up, b"!")
        while not asking.done():
            # However often it is canceled: the thread ends in a moment, and the pipe is its own until then.
            with contextlib.suppress(asyncio.CancelledError, OSError, TimeoutError):
                await asyncio.shield(asking)
        raise
    finally:
        os.close(stop)
        os.close(give_up)


def ask_program_now(
    argv: tuple[str, ...], environment: Mapping[str, str], timeout_s: float, *, stop: int | None = None
) -> Said:
    """Blocking: the same, for threads. It gives up when ``stop`` becomes readable."""
    heard: list[bytes] = []
    left_bytes = LARGEST_ANSWER_BYTES

    def hear(fd: int, data: bytes) -> bool:  # noqa: ARG001 - both of its streams are its answer
        nonlocal left_bytes
        heard.append(data)
        left_bytes -= len(data)
        return left_bytes < 0

    code = converse(argv, {**quiet_environment(), **environment}, hear, timeout_s, stop=stop)
    return Said(code, b"".join(heard).decode(errors="replace"))


def converse(
    argv: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[int, bytes], bool],
    timeout_s: float,
    *,
    lease: bool = False,
    stop: int | None = None,
) -> int:
    """Blocking: run a program until it ends, or until ``hear``, which gets each piece of its two streams, returns True.

    ``lease`` holds its stdin open for as long. Returns its exit status, that of the kill where it had to be ended.
    Raises OSError when it cannot be started, TimeoutError after killing it.
    """
    process: subprocess.Popen[bytes] | None = None
    pidfd = -1
    try:
        with _interrupts_wait():
            process = _start(argv, environment, lease=lease)
        pidfd = os.pidfd_open(process.pid)
        assert process.stdout is not None
        assert process.stderr is not None
        streams = (process.stdout.fileno(), process.stderr.fileno())
        in_time = _listen(streams, hear, (pidfd, stop), timeout_s)
    finally:
        if process is not None:
            _end(process)
        if pidfd >= 0:
            os.close(pidfd)
    if not in_time:
        raise TimeoutError
    assert process.returncode is not None
    return process.returncode


def _start(argv: Sequence[str], environment: Mapping[str, str], *, lease: bool) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if lease else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    # Before it is reaped: until then its number cannot come to mean another session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """A Ctrl-C in the middle of a start would leave a process that nobody knows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGINT)


def _listen(
    streams: tuple[int, int], hear: Callable[[int, bytes], bool], ends: tuple[int | None, ...], timeout_s: float
) -> bool:
    """Until one of ``ends`` is readable and nothing is left to read; False when time is over."""
    end_s = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        for end in ends:
            if end is not None:
                selector.register(end, selectors.EVENT_READ)
        while True:
            left_s = end_s - time.monotonic()
            ready = {key.fd for key, _ in selector.select(max(left_s, 0))} if left_s > 0 else set()
            if not ready:
                return False
            read = False
            for fd in ready.intersection(streams):
                data = _read(fd)
                if data:
                    read = True
                    if hear(fd, data):
                        return True
                else:
                    selector.unregister(fd)
            if not read and not ready.isdisjoint(ends):
                return True


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return b""
