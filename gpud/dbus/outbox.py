"""What waits to be written to the bus: never blocks, never grows unseen, and looks at no message."""

import array
import asyncio
import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence

# One system call takes so many messages to the bus.
_GATHER_MESSAGES = 64


class Outbox:
    """The writing half of a connection. ``on_written`` is told that something went out, ``on_failed`` why no more
    will."""

    def __init__(self, sock: socket.socket, on_written: Callable[[], None], on_failed: Callable[[str], None]) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._on_written = on_written
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._bytes = 0
        self._waiting = False  # For room in the socket's buffer.
        self._gathering = False
        self._drained: list[asyncio.Future[None]] = []

    @property
    def unsent_bytes(self) -> int:
        return self._bytes

    def put(self, data: bytes, fds: list[int]) -> None:
        """Queue a message; its descriptors are taken over and closed once they are sent, or cannot be."""
        self._queue.append((memoryview(data), fds))
        self._bytes += len(data)
        # What waits for room goes when there is some.
        if not self._waiting and not self._gathering:
            self._write()

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """What is put inside goes out together at the end."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            if self._queue and not self._waiting:
                self._write()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything queued is written, within the bound."""
        if self._queue:
            drained = self._loop.create_future()
            self._drained.append(drained)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drained, timeout_s)

    def close(self) -> None:
        """Drop what waits; to be called before the socket is closed."""
        self._loop.remove_writer(self._fd)
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()
        self._bytes = 0
        self._end_drains()

    def _write(self) -> None:
        try:
            while self._queue:
                self._written(self._send())
        except (BlockingIOError, InterruptedError):
            # The buffer is full because somebody floods the bus, or the bus is slow: wait, it is no failure.
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._fd, self._write)
            self._on_written()
            return
        except OSError as problem:
            self._on_failed(f"writing to the bus failed: {problem.strerror}")
            return
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
        self._end_drains()
        self._on_written()

    def _send(self) -> int:
        """Give the socket what it takes: one message with its descriptors, or several without any."""
        data, fds = self._queue[0]
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            close_all(fds)
            return sent
        plain = itertools.takewhile(lambda item: not item[1], itertools.islice(self._queue, _GATHER_MESSAGES))
        return self._sock.sendmsg([data for data, _ in plain], (), socket.MSG_NOSIGNAL)

    def _written(self, count: int) -> None:
        self._bytes -= count
        while count:
            data, _ = self._queue[0]
            if count < len(data):
                self._queue[0] = (data[count:], [])
                return
            count -= len(data)
            self._queue.popleft()

    def _end_drains(self) -> None:
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._drained.clear()


def close_all(fds: MutableSequence[int]) -> None:
    """Close each descriptor once: the list is emptied."""
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())
