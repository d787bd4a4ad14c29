"""Work that is done in a copy of this process: what it takes of memory and of the interpreter's time goes with it.

The copy has everything that the process had when it began, costs no start, and shares nothing that it changes. Of the
threads it has the one that made it, and whatever the others held locked then stays locked there: work for it takes no
lock that it did not make itself, opens no database that is open here, imports nothing, logs nothing, and knows no loop.
That is what Python warns of from 3.12 on, though only who asks for such warnings sees it.
"""

import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gpud.core.errors import Canceled
from gpud.core.ports import Line

T = TypeVar("T")

BEGINS_S = 10.0
"""How long a copy may take to say that it is there. It takes milliseconds, and more where nothing is left to run on."""

SILENT_S = 600.0
"""For so long a copy may say nothing: a disk may be slow, but one that waits for a lock of ours would wait for ever."""

SENT_S = 60.0
"""How long the other side may take to take what is sent, or to answer where somebody waits for that."""

ASKED_EVERY_S = 0.25
"""While nothing comes it is asked so often whether anybody still wants it."""

GONE_S = 2.0
"""How long it is waited for a copy that was killed. One that waits for a disk in the kernel ends when that answers."""

_LENGTH = struct.Struct("=Q")
_PIECE_BYTES = 1 << 18


class Aside:
    """Fulfils :class:`gpud.core.ports.Aside`. For threads."""

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self._silent_s = silent_s
        self._left: set[int] = set()
        """Copies that were killed, and had not ended yet when they were last waited for."""

    def __call__(
        self,
        work: Callable[[Line], None],
        serve: Callable[[Line], T],
        stop: Callable[[], bool],
        keep: Collection[int] = (),
    ) -> T:
        self._left = {pid for pid in self._left if not _is_gone(pid, 0.0)}
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # One that came to the copy before it has let go of this process's handlers would be told here, too.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                try:
                    pid = os.fork()
                    if pid == 0:
                        _live(theirs, work, {theirs.fileno(), *keep})
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
            line = _Line(ours, stop, self._silent_s)
            try:
                line.receive(BEGINS_S)
                return serve(line)
            finally:
                ours.close()
                # It has said everything, or nobody wants to hear it.
                os.kill(pid, signal.SIGKILL)
                if not _is_gone(pid, GONE_S):
                    self._left.add(pid)
        finally:
            ours.close()


class _Line:
    """One end of the connection between both. Fulfils :class:`gpud.core.ports.Line`."""

    def __init__(self, end: socket.socket, stop: Callable[[], bool], silent_s: float | None) -> None:
        self._end = end
        self._silent_s = silent_s
        self._end.settimeout(SENT_S)
        self._stop = stop

    def send(self, message: object) -> None:
        content = pickle.dumps((message, ""), pickle.HIGHEST_PROTOCOL)
        self._send(content)

    def send_failure(self, text: str) -> None:
        self._send(pickle.dumps((None, text)))

    def receive(self, within_s: float | None = None) -> Any:
        wait_s = self._silent_s if within_s is None else within_s
        until_s = None if wait_s is None else time.monotonic() + wait_s
        try:
            (length,) = _LENGTH.unpack(self._received(_LENGTH.size, until_s))
            content = self._received(length, until_s)
        except TimeoutError:
            raise EOFError(f"the copy of this process does not answer within {wait_s:g} s") from None
        message, failure = pickle.loads(content)  # noqa: S301 -- written by a copy of ourselves
        if failure:
            raise EOFError(f"the copy of this process has failed: {failure}")
        return message

    def is_cut(self) -> bool:
        """Whether the other side has gone. Nobody says anything to who is at work."""
        return _has_come(self._end.fileno(), 0.0)

    def _send(self, content: bytes) -> None:
        try:
            self._end.sendall(_LENGTH.pack(len(content)))
            self._end.sendall(content)
        except OSError as problem:
            raise EOFError(f"the other process does not take what it is told: {problem}") from None

    def _received(self, length: int, until_s: float | None) -> bytearray:
        content = bytearray()
        while len(content) < length:
            while not _has_come(self._end.fileno(), ASKED_EVERY_S):
                if self._stop():
                    raise Canceled("the work was stopped", hint="ask for it again")
                if until_s is not None and time.monotonic() > until_s:
                    raise TimeoutError
            try:
                piece = self._end.recv(min(length - len(content), _PIECE_BYTES))
            except OSError as problem:
                raise EOFError(f"the other process has gone: {problem}") from None
            if not piece:
                raise EOFError("the copy of this process has ended before it was done")
            content += piece
        return content


# In the copy ---------------------------------------------------------------------------------------------------------


def _live(end: socket.socket, work: Callable[[Line], None], keep: Collection[int]) -> NoReturn:
    """Never returns to what the process was about, nor lets anything of it end as if it were this one."""
    try:
        _let_go(keep)
        line = _Line(end, lambda: False, None)
        line.send("begun")
        try:
            work(line)
        except BaseException:
            line.send_failure(traceback.format_exc())
    finally:
        os._exit(0)


def _let_go(keep: Collection[int]) -> None:
    """Of everything that would be held for the process: garbage whose end closes something, signals, descriptors."""
    gc.disable()
    gc.freeze()
    logging.disable()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        if fd > 2 and fd not in keep:
            # The one that the list itself was read by is closed already.
            with contextlib.suppress(OSError):
                os.close(fd)


# Of a copy -----------------------------------------------------------------------------------------------------------


def _is_gone(pid: int, within_s: float) -> bool:
    """Waits for its end, and takes note of it."""
    with contextlib.suppress(ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            _has_come(pidfd, within_s)
        finally:
            os.close(pidfd)
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _has_come(fd: int, within_s: float) -> bool:
    """Whether there is something to read: content, or that there will be no more."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))
