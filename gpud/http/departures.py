"""Notices that a client is gone whose sending has ended already, or is not being read: asyncio no longer looks then.

A nested epoll watches such sockets for nothing but errors and hang-ups, so that nobody has to look again and again. It
exists only while there is one to watch.
"""

import asyncio
import select
from collections.abc import Callable


class Departures:
    """Watches descriptors of one loop; each is told of once, and must be forgotten before it is closed."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        if fd in self._watched:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        # No event is asked for: hang-ups (both directions have ended) and errors (a reset) are told of in any case.
        self._epoll.register(fd, 0)
        self._watched[fd] = gone

    def forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is None or self._epoll is None:
            return
        self._epoll.unregister(fd)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0):
            gone = self._watched.get(fd)
            self.forget(fd)
            if gone is not None:
                gone()
            if self._epoll is None:
                break
