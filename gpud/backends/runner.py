"""A loaded model that is a process of ours: waiting until it is ready, and what can be asked of it afterwards.

Knows no engine: what a backend has to say comes in as functions. Leaves no process, task or socket file behind,
whenever a load is canceled.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from gpud.backends import call, failures, listeners
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Exit, Model, StopTimes
from gpud.core.ports import Child, Command, Launcher, LineReader
from gpud.core.record import Struct, replace

T = TypeVar("T")

Probe = Callable[[], Awaitable[bool]]

FIRST_LOOK_S = 0.001
"""The first looks at a starting engine: a tiny model answers within 30 ms of its exec."""

LONGEST_LOOK_S = 0.01
"""No look comes later than this after the one before: with the look itself, an engine is known to be ready within
20 ms. A look costs a fraction of a millisecond, and only engines that announce nothing are looked at."""

BELT_LOOK_S = 1.0
"""Between looks at an engine that announces itself: only for the case that the announcement is lost."""

PORT_TRIES = 3

ANSWER_S = 3.0
"""How long a loaded engine may take to answer a control question; it is asked seldom and never on a user's path."""


def new_key() -> str:
    """The key of one start: who does not have it from gpud cannot use the engine."""
    return secrets.token_urlsafe(32)


def free_port() -> int:
    """A loopback port that nobody listens on now. Whoever takes it meanwhile is found out by the key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a piece of cleaning up to its end, however often the caller is canceled; then pass the cancellation on."""
    task = asyncio.ensure_future(work)
    canceled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as again:
            if task.cancelled():
                raise
            canceled = again
        except Exception:
            break
    if canceled is not None:
        with contextlib.suppress(Exception):
            task.result()
        raise canceled
    return task.result()


async def spawn(launcher: Launcher, command: Command, on_line: LineReader | None = None) -> Child:
    """Start a process; a cancellation meanwhile waits for it, and ends it."""
    starting = asyncio.ensure_future(launcher.spawn(command, on_line))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await to_its_end(_end_start(starting))
        raise


async def _end_start(starting: "asyncio.Future[Child]") -> None:
    with contextlib.suppress(Exception):
        child = await starting
        await child.kill()


@asynccontextmanager
async def ended_unless_ready(
    child: Child, endpoint: Endpoint, times: StopTimes, *, at_once: bool = False
) -> AsyncIterator[None]:
    """Ends the child, whatever it was that did not let the block come to its end; ``at_once`` without asking first."""
    try:
        yield
    except BaseException:
        await to_its_end(_kill(child, endpoint) if at_once else _stop(child, endpoint, times))
        raise


async def _stop(child: Child, endpoint: Endpoint, times: StopTimes) -> None:
    await child.stop(times)
    remove_socket(endpoint)


async def _kill(child: Child, endpoint: Endpoint) -> None:
    await child.kill()
    remove_socket(endpoint)


def remove_socket(endpoint: Endpoint) -> None:
    """Engines leave their socket behind, and the next one could not bind to it."""
    if endpoint.socket:
        with contextlib.suppress(OSError):
            Path(endpoint.socket).unlink()


async def answers_to_its_key(model: Model, endpoint: Endpoint, path: str, timeout_s: float) -> bool:
    """Whether the engine that was started answers at a TCP address: False while nobody does.

    A port can be taken by a stranger between our choice and the engine's bind. Only ours knows the key, and only one
    that refuses others has one. Raises BackendFailed when a stranger answers.
    """
    try:
        ours = await call.request(endpoint, "GET", path, timeout_s=timeout_s)
        others = await call.request(replace(endpoint, key=""), "GET", path, timeout_s=timeout_s)
    except call.Unreachable as problem:
        if problem.trouble is call.Trouble.GARBAGE:
            raise _stranger(model, endpoint) from None
        return False
    if ours.status == 200 and others.status in (401, 403):
        return True
    if ours.status == 503:
        return False
    raise _stranger(model, endpoint)


def _stranger(model: Model, endpoint: Endpoint) -> BackendFailed:
    return BackendFailed(
        f'cannot load "{model.name}": another program answers at {call.describe(endpoint)}',
        hint="nothing needs to be done when it happens once: another port is taken at the next start",
        kind="port-in-use",
    )


async def on_another_port(start: Callable[[], Awaitable[T]]) -> T:
    """Start again, with another port, when somebody took the first one in the milliseconds before the engine could."""
    for _ in range(PORT_TRIES - 1):
        try:
            return await start()
        except BackendFailed as failure:
            if failure.kind != "port-in-use":
                raise
    return await start()


class Announcement:
    """What an engine says of its own start, if it says anything: heard from its output, waited for by the load."""

    def __init__(self) -> None:
        self.heard = False
        self.ready = asyncio.Event()

    def hear(self, *, ready: bool) -> None:
        self.heard = True
        if ready:
            self.ready.set()


async def until_ready(
    child: Child, model: Model, engine: str, probe: Probe, announcement: Announcement | None = None
) -> None:
    """Returns as soon as ``probe`` is fulfilled. Raises BackendFailed when the child ends first, or time is over."""
    ended = asyncio.ensure_future(child.wait())
    looking = asyncio.ensure_future(_look(probe, announcement))
    try:
        await asyncio.wait({ended, looking}, timeout=model.load_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            # Whatever answers at its address now is not this engine.
            raise failures.load_failed(model, engine, ended.result())
        if not looking.done():
            raise failures.load_late(model, engine, child.tail())
        looking.result()
    finally:
        for task in (ended, looking):
            task.cancel()
        await asyncio.gather(ended, looking, return_exceptions=True)


async def _look(probe: Probe, announcement: Announcement | None) -> None:
    delay_s = FIRST_LOOK_S
    while not await probe():
        if announcement is None:
            await asyncio.sleep(delay_s)
        else:
            wait_s = BELT_LOOK_S if announcement.heard and not announcement.ready.is_set() else delay_s
            if announcement.ready.is_set():
                await asyncio.sleep(delay_s)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(announcement.ready.wait(), wait_s)
        delay_s = min(delay_s * 2, LONGEST_LOOK_S)


class ProcessRunner(Struct):
    """A model whose memory is that of one child.

    ``ask_to_end`` is a politer way than TERM, where the engine has one. ``clean_up`` removes what it leaves behind
    beside its socket. ``serial``: it answers one request at a time and must not get two.
    """

    child: Child
    endpoint: Endpoint
    ask_busy: Callable[[], Awaitable[bool | None]]
    ask_to_end: Callable[[], Awaitable[None]] | None = None
    clean_up: Callable[[], None] | None = None
    serial: bool = False

    def pids(self) -> frozenset[int]:
        return self.child.pids()

    async def gone(self) -> Exit:
        ended = await self.child.wait()
        self._clean_up()
        return ended

    async def busy(self) -> bool | None:
        return await self.ask_busy()

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:
        await self.child.stop(times, ask=self.ask_to_end, on_kill=on_kill)
        self._clean_up()

    async def kill(self) -> None:
        await self.child.kill()
        self._clean_up()

    def _clean_up(self) -> None:
        remove_socket(self.endpoint)
        if self.clean_up is not None:
            self.clean_up()

    def tail(self) -> tuple[str, ...]:
        return self.child.tail()

    def crash_hint(self, ended: Exit) -> str:
        """What to do about an end that nobody asked for, read from the engine's last words; may be empty."""
        return failures.crash_hint(ended)


async def insist_on_ours(model: str, child: Child, at: Endpoint, answered: str, *, hint: str) -> None:
    """Raises BackendFailed where another process than the engine's listens ``at`` an address: what was ``answered``
    came from that one.
    """
    other = await asyncio.to_thread(lambda: listeners.stranger(at, child.pids(), child.record.start_time))
    if other is not None:
        raise BackendFailed(
            f'cannot load "{model}": process {other}, which is not of this engine, answers at {answered}',
            hint=hint,
            kind="port-in-use",
        )
