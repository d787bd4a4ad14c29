"""One running process from its start (or adoption) to its end: its output, its stop ladder, its clearing away."""

import asyncio
import contextlib
import logging
import os
import select
import signal
from collections.abc import Awaitable, Callable, Coroutine

from gpud.core.facts import Exit, StopTimes
from gpud.core.ports import ChildRecord
from gpud.core.record import Struct
from gpud.processes.output import ChildLines, OutputReader
from gpud.processes.tree import Tree

log = logging.getLogger(__name__)


class Connections(Struct):
    """What a child gets from its launcher, and owns from then on. ``lease`` is -1 without one."""

    pidfd: int
    lease: int
    lines: ChildLines
    outputs: tuple[OutputReader, ...]
    lease_closed: Callable[[], None]


class RunningChild:
    """A process and everything that it forked. Fulfils :class:`gpud.core.ports.Child`."""

    def __init__(
        self,
        record: ChildRecord,
        tree: Tree,
        connections: Connections,
        *,
        oom_kills: Callable[[bool], bool],
        gone: Callable[["RunningChild"], None],
    ) -> None:
        """``oom_kills`` is asked once, at the end, whether the kernel killed it for lack of memory; the argument says
        whether it ended by a SIGKILL that was not ours. ``gone`` is called when nothing of it is left."""
        self._record = record
        self._tree = tree
        self._pidfd = connections.pidfd
        self._lease = connections.lease
        self._lease_closed = connections.lease_closed
        self._lines = connections.lines
        self._outputs = connections.outputs
        self._oom_kills = oom_kills
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._main_ended = asyncio.Event()
        self._killed = False
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._ladder: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._kill_listeners: list[Callable[[], None]] = []
        self._loop.add_reader(self._pidfd, self._on_main_ended)

    @property
    def pid(self) -> int:
        return self._record.pid

    @property
    def record(self) -> ChildRecord:
        return self._record

    def alive(self) -> bool:
        if self._main_ended.is_set() or self._pidfd < 0:
            return False
        look = select.poll()
        look.register(self._pidfd, select.POLLIN)
        return not look.poll(0)

    def tail(self) -> tuple[str, ...]:
        return self._lines.tail()

    def pids(self) -> frozenset[int]:
        return frozenset() if self._exit.done() else self._tree.pids()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def stop(
        self,
        times: StopTimes,
        *,
        ask: Callable[[], Awaitable[None]] | None = None,
        on_kill: Callable[[], None] | None = None,
    ) -> Exit:
        """``on_kill`` is called when the polite rungs were in vain and the tree is about to be killed.

        A second call joins the first, whose times hold. Canceling the call does not stop the ladder.
        """
        if on_kill is not None:
            self._kill_listeners.append(on_kill)
        if self._ladder is None and not self._main_ended.is_set():
            self._ladder = self._loop.create_task(self._walk_ladder(times, ask))
        return await self.wait()

    async def kill(self) -> Exit:
        self.kill_now()
        return await self.wait()

    def kill_now(self) -> None:
        """The kill alone, without waiting for its effect; a ladder that is under way ends by it."""
        if self._exit.done():
            return
        self._killed = True
        self._signal(signal.SIGKILL)
        self._tree.kill()

    def close_lease(self) -> None:
        if self._lease >= 0:
            os.close(self._lease)
            self._lease = -1
            self._lease_closed()

    # The ladder

    async def _walk_ladder(self, times: StopTimes, ask: Callable[[], Awaitable[None]] | None) -> None:
        if not await self._first_rung(times.term_s, ask):
            self._terminate()
            if not await self._ends_within(times.second_term_s):
                log.debug("%s did not end on two signals: it is killed", self._record.unit)
                # First the kill: nothing that goes wrong in whoever is told may keep it from happening.
                self.kill_now()
                for listener in self._kill_listeners:
                    listener()

    async def _first_rung(self, term_s: float, ask: Callable[[], Awaitable[None]] | None) -> bool:
        """Ask, or TERM; True when that was enough."""
        if ask is None:
            self._terminate()
            return await self._ends_within(term_s)
        asking = asyncio.ensure_future(self._ask(ask))
        try:
            return await self._ends_within(term_s)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, ask: Callable[[], Awaitable[None]]) -> None:
        try:
            await ask()
        except Exception as problem:
            log.debug("%s cannot be asked to stop (%s): it gets a signal instead", self._record.unit, problem)
            self._terminate()

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)
        # A stopped process acts on a signal only when it goes on.
        self._signal(signal.SIGCONT)
        # One that listens to its stdin ends when both have come: until then a llama-server waits for more lines.
        self.close_lease()

    def _signal(self, number: signal.Signals) -> None:
        if self._main_ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def _ends_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._main_ended.wait()
        except TimeoutError:
            return False
        return True

    # The end

    def _on_main_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._main_ended.set()
        self._finishing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        """What the main process left behind must end before its output can: it may hold the pipes open."""
        # The zombie is reaped only after the tree is gone: until then nobody else can be given its number.
        ended = await self._managed(self._tree.end())
        code = reap(self._pidfd)
        oom_killed = self._oom_kills(not self._killed and code == -signal.SIGKILL)
        for output in self._outputs:
            await self._managed(output.drain())
        self._lines.close()
        self.close_lease()
        if not ended:
            # The likeliest reason was a lack of descriptors, and some have just been given back.
            await self._managed(self._tree.end())
        await self._managed(self._tree.remove())
        os.close(self._pidfd)
        self._pidfd = -1
        try:
            self._gone(self)
        finally:
            # Whatever else fails: those who wait for the end must not wait for ever.
            self._exit.set_result(Exit(self._record.pid, code, self._lines.tail(), oom_killed))

    async def _managed(self, step: Coroutine[None, None, object]) -> bool:
        """Whatever goes wrong in one step, the steps after it are taken."""
        try:
            await step
        except Exception:
            log.exception("cannot clear away everything of %s", self._record.unit)
            return False
        return True


def reap(pidfd: int) -> int | None:
    """The exit status of a process that has ended, negative for a signal; None for somebody else's child."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
