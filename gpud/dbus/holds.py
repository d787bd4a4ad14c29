"""What ends a hold, a claim or a wait from outside: whoever has it leaves the bus, or closes the descriptor that stands
for it.

Nobody is watched who holds nothing: a bus on which thousands of programs come and go does not wake the daemon.
"""

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from gpud.core.errors import LimitsExceeded
from gpud.dbus.connection import Connection, ConnectionGone, ReplyError
from gpud.dbus.wire import BUS_NAME, BUS_PATH, Message


class Watches:
    """One match rule on the bus for each holder, for as long as it holds something."""

    def __init__(
        self, connection: Callable[[], Connection], holds: Callable[[str], bool], on_gone: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._holds = holds
        self._on_gone = on_gone
        self._added: dict[str, asyncio.Future[None]] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._added)

    @contextlib.asynccontextmanager
    async def watching(self, owner: str) -> AsyncIterator[None]:
        """Inside, the owner's leaving is noticed; afterwards as well, if it holds something by then.

        Raises LimitsExceeded when the bus takes no more rules, ConnectionGone when it is lost.
        """
        self._users[owner] += 1
        try:
            await self._add(owner)
            yield
        finally:
            self._users[owner] -= 1
            if not self._users[owner]:
                del self._users[owner]
            self.prune(owner)

    async def _add(self, owner: str) -> None:
        # A second hold of the same owner waits for the first one's rule.
        while (adding := self._added.get(owner)) is not None:
            if adding.done():
                return
            await asyncio.wait((adding,))
        adding = self._added[owner] = asyncio.get_running_loop().create_future()
        try:
            await self._connection().call_bus("AddMatch", "s", [_rule(owner)])
        except BaseException as problem:
            if self._added.get(owner) is adding:
                del self._added[owner]
            if isinstance(problem, ReplyError):
                raise LimitsExceeded(
                    f"cannot hold for {owner}: the bus does not say when it leaves ({problem})",
                    hint="release other holds first",
                ) from None
            raise
        finally:
            adding.set_result(None)

    def prune(self, owner: str) -> None:
        """Stop watching an owner that holds nothing."""
        adding = self._added.get(owner)
        if adding is None or not adding.done() or owner in self._users or self._holds(owner):
            return
        del self._added[owner]
        with contextlib.suppress(ConnectionGone):
            self._connection().tell_bus("RemoveMatch", "s", [_rule(owner)])

    def signal(self, message: Message) -> None:
        """A signal from the bus; anybody may send us one, only the bus itself is believed."""
        if (message.sender, message.path, message.interface, message.member) != (
            BUS_NAME,
            BUS_PATH,
            BUS_NAME,
            "NameOwnerChanged",
        ) or message.signature != "sss":
            return
        name, _, successor = message.body
        if not successor and name in self._added:
            self._on_gone(name)
            self.prune(name)

    def clear(self) -> None:
        """The bus is gone, and its rules with it."""
        self._added.clear()


def _rule(owner: str) -> str:
    return (
        f"type='signal',sender='{BUS_NAME}',path='{BUS_PATH}',interface='{BUS_NAME}',"
        f"member='NameOwnerChanged',arg0='{owner}',arg2=''"
    )


class Waits:
    """Calls that wait for memory. They are canceled when their callers leave."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}

    @contextlib.contextmanager
    def by(self, owner: str) -> Iterator[None]:
        """Inside, the running task is one that this caller waits for."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.setdefault(owner, set()).add(task)
        try:
            yield
        finally:
            self._tasks[owner].discard(task)
            if not self._tasks[owner]:
                del self._tasks[owner]

    def cancel(self, owner: str) -> None:
        for task in self._tasks.get(owner, ()):
            task.cancel()

    def cancel_all(self) -> None:
        for owner in self._tasks:
            self.cancel(owner)


class Pipes:
    """Holds or claims that stand for an open pipe: the holder and whoever it gave copies to have the end for writing,
    we have the other, which tells when the last copy is closed. Each has a number, and an owner."""

    def __init__(self, on_closed: Callable[[int, str], None]) -> None:
        self._on_closed = on_closed
        self._numbers = itertools.count(1)
        self._pipes: dict[int, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._pipes)

    def new_owner(self, sender: str) -> str:
        """An owner of its own for each: it outlives its caller's connection, and other holds of that caller."""
        return f"{sender}/inhibitor-{next(self._numbers)}"

    def open_pipe(self) -> tuple[int, int]:
        """The end that we keep, and the holder's."""
        return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def keep(self, number: int, owner: str, fd: int) -> None:
        """From now on it ends with the pipe."""
        self._pipes[number] = (fd, owner)
        # It becomes readable when the last copy of the other end is closed. Somebody who writes into it instead has
        # misunderstood; that ends the hold too, where reading it away would let a holder keep us busy for nothing.
        asyncio.get_running_loop().add_reader(fd, self._closed, number)

    def _closed(self, number: int) -> None:
        _, owner = self._pipes[number]
        self.drop(number)
        self._on_closed(number, owner)

    def drop(self, number: int) -> None:
        """It has ended: close our end of its pipe. Does nothing for those that have none."""
        fd, _ = self._pipes.pop(number, (-1, ""))
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def close(self) -> None:
        for number in list(self._pipes):
            self.drop(number)
