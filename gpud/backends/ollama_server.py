"""One Ollama server and who uses it: started and stopped by gpud, or somebody else's (attached).

A server that gpud runs is stopped when its last model is gone, and never while one of its models works: at the first
TERM Ollama cuts every connection.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from gpud.backends import ollama_api
from gpud.backends.call import Unreachable
from gpud.backends.ollama_processes import RunnerProcess, find_runners, listens
from gpud.backends.ollama_store import BadName, Name, parse_name
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Exit, StopTimes
from gpud.core.ports import Child, Command, Launcher
from gpud.core.record import Record, Struct

log = logging.getLogger(__name__)

ENGINE = "ollama"

START_TIMEOUT_S = 60.0
"""From the start of the process to its first answer: it listens at once, but looks for GPUs before it serves, and a
sleeping or confused driver takes long over that."""

FIRST_LOOK_S = 0.002
SLOWEST_LOOK_S = 0.02
"""A server that has just begun to listen is noticed after 20 ms at the latest."""

PORT_ATTEMPTS = 3
"""Somebody else may take a free port between our choice and Ollama's bind; three times in a row is no accident."""

LINGER_S = 3.0
"""How long a server outlives its last model. When one model makes room for another, the second comes within this time
and is spared the start of a server; an idle ``ollama serve`` holds no GPU memory."""

QUIET_TIMEOUT_S = 300.0
"""How long a server that nobody uses any more is given to finish what it still works on before it is stopped."""

CLOSE_TIMEOUT_S = 5.0
"""The same when gpud ends: the engine has drained and unloaded before, only strangers' requests can be left."""

STOP_TIMES = StopTimes(term_s=5.0, second_term_s=2.0)
"""Ollama ends its runners at the first TERM and then itself, within a second."""


class ServerKey(Record):
    """What models must have in common to share a server: the devices, and the settings that are the server's own."""

    devices: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Claim(Struct):
    """A model on this server. ``model`` names it: two claims never share one.

    ``on_child`` is called when the server's process exists, ``on_exit`` when it has ended; while the model is still
    being loaded nobody needs the latter, its request fails then.
    """

    model: str
    on_child: Callable[[], None]
    on_exit: Callable[[Exit], None] | None = None


class Server:
    """``endpoint`` and ``child`` are known once :meth:`start` has got far enough; an attached server has no child."""

    def __init__(self, key: ServerKey, *, linger_s: float, keep_running: bool) -> None:
        self.key = key
        self.endpoint = Endpoint()
        self.child: Child | None = None
        self.claims: dict[str, Claim] = {}
        self._linger_s = linger_s
        self._keep_running = keep_running
        self._starting: asyncio.Task[None] | None = None
        self._exit: asyncio.Task[Exit] | None = None
        self._farewell: asyncio.Task[None] | None = None
        self._ending = False

    @classmethod
    def attached(cls, endpoint: Endpoint) -> "Server":
        server = cls(ServerKey(), linger_s=0, keep_running=True)
        server.endpoint = endpoint
        return server

    @classmethod
    def adopted(
        cls, key: ServerKey, child: Child, endpoint: Endpoint, *, linger_s: float, keep_running: bool
    ) -> "Server":
        server = cls(key, linger_s=linger_s, keep_running=keep_running)
        server._take(child, endpoint)
        return server

    @property
    def usable(self) -> bool:
        """False once it has ended, or is about to."""
        return not self._ending and not (self._exit is not None and self._exit.done())

    def holds(self, model: str) -> bool:
        return any(claim.model == model for claim in self.claims.values())

    # Who uses it -----------------------------------------------------------------------------------------------------

    def claim(self, unit: str, claim: Claim) -> None:
        self.claims[unit] = claim
        if self.child is not None:
            claim.on_child()

    def release(self, unit: str, *, linger_s: float | None = None) -> None:
        """The model of ``unit`` is gone; after the last one the server is stopped, unless another comes in time."""
        if self.claims.pop(unit, None) is None and linger_s is None:
            return
        if self.claims or self._keep_running or self._farewell is not None or not self.usable:
            return
        wait_s = self._linger_s if linger_s is None else linger_s
        self._farewell = asyncio.create_task(self._leave(wait_s), name=f"ollama-leave-{self.endpoint.port}")

    async def _leave(self, linger_s: float) -> None:
        await asyncio.sleep(linger_s)
        if self.claims:
            self._farewell = None
            return
        await self.stop(QUIET_TIMEOUT_S)

    # Start -----------------------------------------------------------------------------------------------------------

    async def ready(
        self, launcher: Launcher, binary: str, environment: Mapping[str, str], host: str, port: int
    ) -> None:
        """Returns when it answers, starting it if need be. Several may wait; one of them going away ends nothing."""
        if self._starting is None:
            if self.endpoint.port:
                return
            self._starting = asyncio.create_task(
                self._start(launcher, binary, environment, host, port), name="ollama-start"
            )
            self._starting.add_done_callback(self._has_started)
        await asyncio.shield(self._starting)

    async def _start(
        self, launcher: Launcher, binary: str, environment: Mapping[str, str], host: str, port: int
    ) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            chosen = port or _free_port(host)
            address = f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"
            command = Command(
                unit=f"ollama-serve-{secrets.token_hex(4)}",
                model=ENGINE,
                engine=ENGINE,
                argv=(binary, "serve"),
                environment={**environment, "OLLAMA_HOST": address},
            )
            self._take(await launcher.spawn(command), Endpoint(host=_reachable(host), port=chosen))
            for claim in list(self.claims.values()):
                claim.on_child()
            problem = await self._answers()
            if problem is None:
                log.debug("ollama serve (pid %d) answers on %s", self._running.pid, address)
                return
            if problem.kind != "port-taken" or port or attempt == PORT_ATTEMPTS:
                raise problem
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _has_started(self, task: asyncio.Task[None]) -> None:
        # Asking for the exception also tells asyncio that it was seen, should everybody who waited have gone away.
        if task.cancelled() or task.exception() is not None:
            self._ending = True

    async def _answers(self) -> BackendFailed | None:
        """None once the server answers; else why it never will. The child has ended then."""
        child, exited = self._running, self._exit
        assert exited is not None
        look_s = FIRST_LOOK_S
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not exited.done():
                    if await self._is_ours():
                        return None
                    await asyncio.wait({exited}, timeout=look_s)
                    look_s = min(look_s * 1.5, SLOWEST_LOOK_S)
        except TimeoutError:
            await child.kill()
            return BackendFailed(
                f"ollama serve did not answer on port {self.endpoint.port} within {START_TIMEOUT_S:g} s",
                hint="its last lines say what it was waiting for; a GPU driver that hangs is the usual cause",
                kind="timeout",
                tail=child.tail(),
            )
        outcome = exited.result()
        tail = outcome.tail or child.tail()
        if any("address already in use" in line for line in tail):
            return BackendFailed(
                f"ollama serve cannot listen on port {self.endpoint.port}: another program does",
                hint="stop that program, or take the port out of the configuration: gpud then finds a free one",
                kind="port-taken",
                tail=tail,
            )
        return BackendFailed(
            f"ollama serve {outcome.describe()} before it answered",
            hint="its last lines say why",
            kind="exited",
            tail=tail,
        )

    async def _is_ours(self) -> bool:
        try:
            await ollama_api.version(self.endpoint, START_TIMEOUT_S)
        except Unreachable:
            return False
        # What answers on a port that was free a moment ago need not be the process that was told to listen there.
        pids = self._running.pids() | {self._running.pid}
        seen = [await asyncio.to_thread(listens, pid, self.endpoint.port) for pid in sorted(pids)]
        return any(answer is not False for answer in seen)

    # While it runs ---------------------------------------------------------------------------------------------------

    def tail(self) -> tuple[str, ...]:
        return self.child.tail() if self.child is not None else ()

    @property
    def exited(self) -> asyncio.Task[Exit] | None:
        """Done when the server and everything that it left behind have ended; None for an attached server."""
        return self._exit

    async def runners(self, weights: str, name: Name) -> list[RunnerProcess]:
        """The processes that hold this model, as far as they can be seen."""
        if self.child is not None:
            found = await asyncio.to_thread(find_runners, self.child.pids())
            return [runner for runner in found if runner.serves(weights, name)]
        if not _is_loopback(self.endpoint.host):
            return []
        return await asyncio.to_thread(self._attached_runners, weights, name)

    def _attached_runners(self, weights: str, name: Name) -> list[RunnerProcess]:
        return [
            runner
            for runner in find_runners()
            if runner.serves(weights, name) and listens(runner.parent, self.endpoint.port) is not False
        ]

    # End -------------------------------------------------------------------------------------------------------------

    async def stop(self, patience_s: float) -> None:
        """Let it finish what it works on, for that long, then end it. Does nothing to an attached server."""
        self._ending = True
        if self._farewell is not None and self._farewell is not asyncio.current_task():
            self._farewell.cancel()
            await asyncio.wait({self._farewell})
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        elif self.child is not None:
            await self._until_quiet(patience_s)
        if self.child is not None:
            await self.child.stop(STOP_TIMES)
        if self._exit is not None:
            await asyncio.wait({self._exit})

    async def _until_quiet(self, patience_s: float) -> None:
        assert self._exit is not None
        loop = asyncio.get_running_loop()
        end_s = loop.time() + patience_s
        look_s = FIRST_LOOK_S
        while not self._exit.done():
            try:
                still = await ollama_api.listed(self.endpoint)
                # Ollama may go on listing a model whose runner is dead and whose name was deleted.
                if not still or not await asyncio.to_thread(find_runners, self._running.pids()):
                    return
                for entry in still:
                    await ollama_api.expire(self.endpoint, parse_name(entry.name))
            except (Unreachable, BackendFailed, BadName) as problem:
                log.debug("ollama serve (pid %d) is about to be stopped: %s", self._running.pid, problem)
                still = ()
            if loop.time() >= end_s:
                names = ", ".join(f'"{entry.name}"' for entry in still) or "its models"
                log.warning("ollama serve is stopped although %s did not end within %g s", names, patience_s)
                return
            await asyncio.wait({self._exit}, timeout=look_s)
            look_s = min(look_s * 2, 1.0)

    @property
    def _running(self) -> Child:
        assert self.child is not None
        return self.child

    def _take(self, child: Child, endpoint: Endpoint) -> None:
        self.child, self.endpoint = child, endpoint
        self._exit = asyncio.create_task(child.wait(), name=f"ollama-exit-{child.pid}")
        self._exit.add_done_callback(self._has_exited)

    def _has_exited(self, task: asyncio.Task[Exit]) -> None:
        if task is not self._exit or task.cancelled() or task.exception() is not None:
            return
        for claim in list(self.claims.values()):
            if claim.on_exit is not None:
                claim.on_exit(task.result())


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _reachable(host: str) -> str:
    """The address at which a server that listens on ``host`` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
