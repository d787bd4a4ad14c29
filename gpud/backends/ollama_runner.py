"""One model that an Ollama server holds: sees it go, asks whether it works, unloads it by name.

Unloading never cuts an answer: Ollama lets a model go when the last request that uses it has ended. Only
:meth:`OllamaRunner.kill` ends the process that holds it.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress

from gpud.backends import failures, ollama_api
from gpud.backends.call import Unreachable, describe
from gpud.backends.ollama_processes import ProcessWatch, RunnerProcess, watch_runner
from gpud.backends.ollama_server import Server
from gpud.backends.ollama_store import Name
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Exit, StopTimes
from gpud.core.record import replace

log = logging.getLogger(__name__)

FIRST_LOOK_S = 0.005
SLOWEST_LOOK_S = 0.5
"""Between looks at the list of loaded models while one is awaited to leave it: an idle model leaves within
milliseconds, one that works when its request ends."""

RELOAD_GRACE_S = 6.0
"""A request with other options (a longer context) makes Ollama end the runner and start another, after waiting up to
5 s for the GPU's memory. Until then the model still counts as loaded: its memory is about to be used again."""

CRASH_LOOK_S = 0.5
"""A model that Ollama still lists this long after its runner has ended has crashed."""

UNSEEN_LOOK_S = 30.0
"""How often a server whose processes cannot be seen (another machine, another user) is asked whether it still holds
the model; where they can be seen, their end is an event and nothing is asked."""

KILL_TIMEOUT_S = 5.0
"""A process with gigabytes on a GPU takes a second or two to be torn down; after this the kernel or driver hangs."""


class OllamaRunner:
    """See :class:`gpud.core.ports.Runner`."""

    def __init__(
        self,
        server: Server,
        unit: str,
        model: str,
        name: Name,
        weights: str,
        *,
        reload_grace_s: float = RELOAD_GRACE_S,
        unseen_look_s: float = UNSEEN_LOOK_S,
    ) -> None:
        self._server = server
        self._unit = unit
        self._model = model
        self._name = name
        self._weights = weights
        self._reload_grace_s = reload_grace_s
        self._unseen_look_s = unseen_look_s
        self._gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._process: RunnerProcess | None = None
        self._watches: list[ProcessWatch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._unloading = False
        self._forgotten = False

    # What the engine asks --------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> Endpoint:
        return replace(self._server.endpoint, model=str(self._name))

    def pids(self) -> frozenset[int]:
        if self._process is None or not self._watches or self._watches[0].ended.done():
            return frozenset()
        return frozenset({self._process.pid})

    def crash_hint(self, ended: Exit) -> str:
        return failures.crash_hint(ended)

    def tail(self) -> tuple[str, ...]:
        return self._server.tail()

    @property
    def is_gone(self) -> bool:
        return self._gone.done()

    async def gone(self) -> Exit:
        return await asyncio.shield(self._gone)

    async def busy(self) -> bool | None:
        if self._gone.done():
            return False
        if self._process is not None:
            return await ollama_api.is_processing(self._process.port)
        try:
            entry = await ollama_api.find(self.endpoint, self._name)
        except Unreachable:
            return None
        # A deadline that has passed stays in the list only while a request still uses the model.
        return True if entry is not None and entry.overdue else None

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:
        """As the protocol says. An idle model has the two TERM times to go, one that still works ``drain_s``; after
        that its process is killed."""
        if self._gone.done():
            return
        self._unloading = True
        try:
            problem = await self._ask_to_unload(times)
            if problem and not self._gone.done():
                log.warning('"%s" is killed: %s', self._model, problem)
                if on_kill is not None:
                    on_kill()
                await self._kill()
        finally:
            self._unloading = False

    async def kill(self) -> None:
        if self._gone.done():
            return
        self._unloading = True
        try:
            await self._kill()
        finally:
            self._unloading = False

    # Unload and kill -------------------------------------------------------------------------------------------------

    async def _ask_to_unload(self, times: StopTimes) -> str:
        """Empty once the model is gone, else a sentence that says why it is not."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        look_s, ask_again = FIRST_LOOK_S, True
        while not self._gone.done():
            why = "it is still in its list of loaded models"
            try:
                if ask_again:
                    known = await ollama_api.expire(self.endpoint, self._name)
                    ask_again = False
                    if not known and await ollama_api.find(self.endpoint, self._name) is not None:
                        return f'"{self._name}" was deleted from Ollama\'s store while it was loaded'
                if await ollama_api.find(self.endpoint, self._name) is None:
                    if self._process_ended():
                        self.finish(0)
                        break
                    why = "its process has not ended"
            except (Unreachable, BackendFailed) as problem:
                why = str(problem)
            waited_s = loop.time() - began_s
            if waited_s >= times.term_s + times.second_term_s:
                if waited_s >= times.drain_s or await self.busy() is not True:
                    return f'asked Ollama {waited_s:.1f} s ago to let "{self._name}" go, but {why}'
                # Another client may have given the model a new time to live since.
                ask_again = True
            await self._look_again(look_s)
            look_s = min(look_s * 1.6, SLOWEST_LOOK_S)
        return ""

    def _process_ended(self) -> bool:
        """After Ollama has crossed the model off: its memory is free once its process is gone."""
        return not self._watches or self._watches[0].ended.done()

    async def _look_again(self, after_s: float) -> None:
        """The next look is due: time has passed, or a process has ended."""
        waited: set[asyncio.Future[Exit] | asyncio.Future[None]] = {self._gone}
        waited.update(watch.ended for watch in self._watches if not watch.ended.done())
        await asyncio.wait(waited, timeout=after_s)

    async def _kill(self) -> None:
        """Ends the model's process; where that cannot be done, says so and stops answering for it."""
        watch = self._watches[0] if self._watches else None
        if watch is None and self._server.child is not None:
            # No process of its own is known: the memory is somewhere below the server.
            await self._server.child.kill()
            await self.gone()
            return
        problem = await self._kill_process(watch) if watch is not None else "its process cannot be seen from here"
        # Ollama keeps a dead runner in its list until it is told or asked for it.
        with suppress(Unreachable, BackendFailed):
            await ollama_api.expire(self.endpoint, self._name)
        if problem:
            log.error(
                'Cannot kill "%s", which is "%s" in the Ollama at %s: %s; restart that Ollama if the memory is needed',
                self._model,
                self._name,
                describe(self.endpoint),
                problem,
            )
        self.finish(None if problem else -signal.SIGKILL)

    async def _kill_process(self, watch: ProcessWatch) -> str:
        """Empty when it is dead, else why it is not."""
        try:
            watch.send_kill()
        except PermissionError:
            return f"its process {watch.pid} belongs to another user"
        except ProcessLookupError:
            return ""
        if not watch.ended.done():
            await asyncio.wait({watch.ended}, timeout=KILL_TIMEOUT_S)
        if watch.ended.done():
            return ""
        return f"its process {watch.pid} is still there {KILL_TIMEOUT_S:g} s after SIGKILL"

    # Seeing it go ----------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Find the process that holds the model and see its end; ask now and then where there is none to be seen."""
        for runner in await self._server.runners(self._weights, self._name):
            if self._watch_process(runner):
                return
        self._run(self._ask_now_and_then())

    def _watch_process(self, process: RunnerProcess) -> bool:
        self._close_watches()
        try:
            self._watches.append(watch_runner(process))
            if self._server.child is None:
                # Somebody else's server: when it is gone, so is the model for everyone who would ask for it.
                self._watches.append(ProcessWatch(process.parent))
                self._watches[1].ended.add_done_callback(self._server_ended)
        except OSError as problem:
            log.debug('cannot watch process %d of "%s": %s', process.pid, self._model, problem)
            self._close_watches()
            return False
        self._process = process
        self._watches[0].ended.add_done_callback(self._process_has_ended)
        return True

    def _process_has_ended(self, ended: asyncio.Future[None]) -> None:
        if not ended.cancelled() and not self._gone.done() and not self._forgotten:
            self._run(self._explain_end())

    def _server_ended(self, ended: asyncio.Future[None]) -> None:
        if not ended.cancelled():
            self.finish(None)

    async def _explain_end(self) -> None:
        """The process has ended: by our unload, by Ollama's own, by a crash, or to be started anew at once."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._reload_grace_s
        look_s = FIRST_LOOK_S
        listed_since: float | None = None
        let_go = False
        while not self._gone.done() and loop.time() < end_s:
            if self._unloading:
                end_s = loop.time() + self._reload_grace_s
            else:
                for runner in await self._server.runners(self._weights, self._name):
                    if not self._gone.done() and self._watch_process(runner):
                        log.info('"%s" was reloaded by Ollama (pid %d)', self._model, runner.pid)
                        return
                with suppress(Unreachable):
                    listed = await ollama_api.find(self.endpoint, self._name) is not None
                    listed_since = (listed_since or loop.time()) if listed else None
                    let_go = not listed
                if listed_since is not None and loop.time() - listed_since >= CRASH_LOOK_S:
                    with suppress(Unreachable, BackendFailed):
                        await ollama_api.expire(self.endpoint, self._name)
                    break
            await asyncio.wait({self._gone}, timeout=look_s)
            look_s = min(look_s * 1.6, SLOWEST_LOOK_S)
        # Status 0 says that somebody wanted it so: a client's "keep_alive: 0", "ollama stop".
        self.finish(0 if let_go else None)

    async def _ask_now_and_then(self) -> None:
        absent = 0
        answers = True
        while not self._gone.done():
            await asyncio.wait({self._gone}, timeout=self._unseen_look_s)
            if self._gone.done() or self._unloading:
                continue
            try:
                absent = 0 if await ollama_api.find(self.endpoint, self._name) is not None else absent + 1
                answers = True
            except Unreachable:
                absent += 1
                answers = False
            # A model that is being reloaded is not listed for a while; twice in a row it is gone.
            if absent >= 2:
                self.finish(0 if answers else None)

    def finish(self, code: int | None) -> None:
        """The model is no longer loaded."""
        pid = self._process.pid if self._process is not None else 0
        self.finish_with(Exit(pid, code))

    def finish_with(self, outcome: Exit) -> None:
        if self._gone.done():
            return
        self._gone.set_result(outcome)
        self._close_watches()
        self._server.release(self._unit)

    def forget(self) -> None:
        """Stop watching; the model stays where it is."""
        self._forgotten = True
        self._close_watches()
        for task in self._tasks:
            task.cancel()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name=f"ollama-watch-{self._unit}")
        self._tasks.add(task)
        task.add_done_callback(self._has_watched)

    def _has_watched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error('internal error: "%s" cannot be watched and counts as gone', self._model, exc_info=problem)
            self.finish(None)

    def _close_watches(self) -> None:
        for watch in self._watches:
            watch.close()
        self._watches.clear()
