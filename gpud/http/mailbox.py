"""What waits for one reader: bounded, in order, and never holding up whoever puts something in.

A reader that is too slow loses the oldest and can ask how many those were.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """For one reader, on the event loop's thread. ``limit_bytes`` counts what :meth:`put` is told of each size."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._lost = 0
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, size_bytes: int) -> None:
        """Returns at once. What does not fit goes, the oldest first; one that is too large by itself is kept alone."""
        if self._closed:
            return
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        while len(self._items) > self._limit or (self._bytes > self._limit_bytes and len(self._items) > 1):
            self._bytes -= self._items.popleft()[1]
            self._lost += 1
        self._wake()

    def take(self) -> T | None:
        """The oldest, or None when there is nothing now."""
        if not self._items:
            return None
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        return item

    def take_lost(self) -> int:
        """How many were lost since this was last asked."""
        lost, self._lost = self._lost, 0
        return lost

    async def wait(self) -> None:
        """Returns when there is something to take, or when it has been closed."""
        while not self._items and not self._closed:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None

    def close(self) -> None:
        """Nothing comes any more; what is there can still be taken."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
