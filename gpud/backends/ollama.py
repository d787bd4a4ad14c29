"""Ollama as an engine: a private ``ollama serve`` that gpud runs, or one that somebody else runs (attached).

Models are loaded and unloaded by name; an attached server itself is never started, stopped or signaled.
"""

import asyncio
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

from gpud.backends import ollama_api
from gpud.backends.call import Trouble, Unreachable
from gpud.backends.ollama_listing import listing
from gpud.backends.ollama_plan import make_plan
from gpud.backends.ollama_processes import watch_runner
from gpud.backends.ollama_runner import RELOAD_GRACE_S, UNSEEN_LOOK_S, OllamaRunner
from gpud.backends.ollama_server import CLOSE_TIMEOUT_S, ENGINE, LINGER_S, Claim, Server, ServerKey
from gpud.backends.ollama_settings import (
    allowed,
    check_in_store,
    endpoint_of,
    load_options,
    name_of,
    server_base,
    server_environment,
    store_of,
    visible,
)
from gpud.backends.ollama_store import BadManifest, Name
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Model
from gpud.core.plan import Plan
from gpud.core.ports import Launcher, LoadOrder, Progress, Runner, RunnerRecord, Standing
from gpud.core.quote import Estimate

log = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 5.0
"""How long Ollama is given to end a load that was canceled, before the process that loads is killed."""

ADOPT_WINDOW_S = 5.0
"""How long an adopted server without a model waits for the next record that names it: all are read at the start."""


class Ollama:
    """See :class:`gpud.core.ports.Backend`.

    ``linger_s`` is how long a server outlives its last model, ``reload_grace_s`` how long a model that Ollama let go by
    itself is expected back, ``unseen_look_s`` how often a server is asked whose processes cannot be seen.
    """

    name = ENGINE

    def __init__(
        self,
        options: EngineOptions,
        launcher: Launcher,
        *,
        linger_s: float = LINGER_S,
        reload_grace_s: float = RELOAD_GRACE_S,
        unseen_look_s: float = UNSEEN_LOOK_S,
    ) -> None:
        self._options = options
        self._launcher = launcher
        self._linger_s = linger_s
        self._reload_grace_s = reload_grace_s
        self._unseen_look_s = unseen_look_s
        self._servers: list[Server] = []
        self._runners: list[OllamaRunner] = []
        self._extra = allowed(options.environment)
        self._home = os.environ.get("HOME") or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        self._store = store_of(options, self._extra, self._home)

    # What can be known without a server ------------------------------------------------------------------------------

    def check(self, model: Model) -> None:
        name = name_of(model)
        if self._options.url:
            endpoint_of(self._options.url)
            return
        self._binary(model)
        store = self._store
        if store is None or not store.readable():
            return
        check_in_store(model, name, store)

    def file_bytes(self, model: Model) -> int | None:
        try:
            manifest = self._store.find(name_of(model)) if self._store is not None else None
        except (BackendFailed, BadManifest):
            return None
        return manifest.held_bytes if manifest is not None and manifest.has_weights else None

    def fingerprint(self, model: Model) -> str:
        settings = model.settings
        try:
            name = name_of(model)
            manifest = self._store.find(name) if self._store is not None else None
        except (BackendFailed, BadManifest):
            name, manifest = None, None
        facts = (
            self._options.url,
            self._options.binary,
            self._options.models_dir,
            sorted(self._extra.items()),
            name.identity if name is not None else settings.ollama_name,
            manifest.weights if manifest is not None else "",
            settings.embeddings,
            server_environment(model),
            sorted(load_options(model, attached=bool(self._options.url)).items()),
        )
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def plan(self, model: Model, gpus: int) -> Plan | None:
        try:
            return make_plan(model, name_of(model), self._store, gpus, attached=bool(self._options.url))
        except BackendFailed:
            return None

    def build(self) -> str:
        found = None if self._options.url else shutil.which(self._options.binary or "ollama")
        try:
            mark = os.stat(found) if found else None  # noqa: PTH116 - a path is not wanted
        except OSError:
            mark = None
        # Its own word for its version asks whatever listens on its port.
        return "" if mark is None else f"ollama {mark.st_size}:{mark.st_mtime_ns}"

    async def probe(
        self,
        model: Model,  # noqa: ARG002 - a server that loads nothing tells nothing
        devices: tuple[str, ...],  # noqa: ARG002
        vendor: str,  # noqa: ARG002
        split: tuple[float, ...],  # noqa: ARG002
    ) -> Estimate | None:
        return None

    async def standing(self, model: Model) -> Standing | None:
        """Of an attached server that holds the model already."""
        if not self._options.url:
            return None
        name, server = name_of(model), self._attached()
        try:
            if await ollama_api.find(server.endpoint, name) is None:
                return None
            holders = await server.runners(await ollama_api.weights(server.endpoint, name), name)
        except Unreachable as problem:
            if problem.trouble is not Trouble.REFUSED:
                return None
            raise BackendFailed(
                f'cannot use "{model.name}": {problem}',
                hint="start the Ollama that runs there, or correct its url",
                kind="unreachable",
                preflight=True,
            ) from None
        works = [await ollama_api.is_processing(holder.port) for holder in holders]
        return Standing(sum(work is True for work in works), resident=True)

    # Load ------------------------------------------------------------------------------------------------------------

    async def load(self, order: LoadOrder) -> Runner:
        model = order.model
        name = name_of(model)
        weights = await asyncio.to_thread(self._weights_in_store, name)
        fingerprint = await asyncio.to_thread(self.fingerprint, model)
        server = self._server_for(order, weights or name.identity)

        def record() -> None:
            order.record(_record(server, order, name, weights, fingerprint))

        server.claim(order.unit, Claim(weights or name.identity, record))
        asked = False
        try:
            if self._options.url:
                record()
            else:
                order.report(Progress("starting Ollama"))
                environment = {
                    **server_base(self._home, self._store),
                    **visible(server.key.devices, order.vendor),
                    **dict(server.key.environment),
                    **self._extra,
                }
                binary = await asyncio.to_thread(self._binary, model)
                host = self._options.host or "127.0.0.1"
                await server.ready(self._launcher, binary, environment, host, self._port())
            order.report(Progress("loading"))
            asked = True
            await self._ask_to_load(server, model, name)
            return await self._begin(server, order.unit, model, name, weights)
        except BaseException:
            await _to_the_end(self._abandon(server, order.unit, name, weights, asked=asked))
            raise

    async def _ask_to_load(self, server: Server, model: Model, name: Name) -> None:
        try:
            await ollama_api.load(
                server.endpoint,
                name,
                embeddings=model.settings.embeddings,
                options=load_options(model, attached=bool(self._options.url)),
                timeout_s=model.load_timeout_s,
            )
        except Unreachable as problem:
            raise await self._not_loaded(server, model, name, problem) from None
        except BackendFailed as problem:
            message = problem.message.replace(f'"{name}"', f'"{model.name}"', 1)
            raise BackendFailed(message, hint=problem.hint, kind=problem.kind, tail=server.tail()) from None

    async def _not_loaded(self, server: Server, model: Model, name: Name, problem: Unreachable) -> BackendFailed:
        if problem.trouble is Trouble.TIMED_OUT:
            return BackendFailed(
                f'cannot load "{model.name}": Ollama had not loaded "{name}" after {model.load_timeout_s:g} s',
                hint="raise its load_timeout, or see in Ollama's lines what it waited for",
                kind="timeout",
                tail=server.tail(),
            )
        if server.exited is not None:
            # A connection ends a moment before the process that held it.
            await asyncio.wait({server.exited}, timeout=1.0)
            if server.exited.done():
                outcome = server.exited.result()
                tail = outcome.tail or server.tail()
                memory = outcome.oom_killed or any(map(ollama_api.lacks_memory, tail))
                return BackendFailed(
                    f'cannot load "{model.name}": ollama serve {outcome.describe()} while it loaded "{name}"',
                    hint="lower its context or its layers, or unload another model" if memory else "see its last lines",
                    kind="oom" if memory else "exited",
                    tail=tail,
                )
        return BackendFailed(
            f'cannot load "{model.name}": {problem}',
            hint="see that Ollama runs there: ollama ps" if self._options.url else "see its last lines",
            kind="unreachable",
            tail=server.tail(),
        )

    async def _abandon(self, server: Server, unit: str, name: Name, weights: str, *, asked: bool) -> None:
        """After a load that failed or was canceled: nothing of it may stay, or come later."""
        if asked and server.usable:
            await self._abort(server, name, weights)
        if not server.claims.pop(unit, None) or server.claims or self._options.keep_running or self._options.url:
            return
        await server.stop(CLOSE_TIMEOUT_S)

    async def _abort(self, server: Server, name: Name, weights: str) -> None:
        """Ollama gives a load up when our connection closes; this waits until it has, and helps where it has not."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + ABORT_TIMEOUT_S
        look_s = 0.01
        weights = weights or await ollama_api.weights(server.endpoint, name)
        while server.usable:
            loading = await server.runners(weights, name)
            try:
                await ollama_api.expire(server.endpoint, name)
                if not loading and await ollama_api.find(server.endpoint, name) is None:
                    return
            except Unreachable as problem:
                if problem.trouble is Trouble.REFUSED and not loading:
                    return
            except BackendFailed as problem:
                log.debug("cannot make sure that %s is not loaded: %s", name, problem)
            if loop.time() >= end_s:
                break
            await asyncio.sleep(look_s)
            look_s = min(look_s * 1.6, 0.2)
        for process in await server.runners(weights, name):
            log.warning(
                "process %d still loads %s %g s after it was told to stop: killed", process.pid, name, ABORT_TIMEOUT_S
            )
            with suppress(OSError):
                watch = watch_runner(process)
                try:
                    watch.send_kill()
                    await asyncio.wait({watch.ended}, timeout=ABORT_TIMEOUT_S)
                finally:
                    watch.close()

    async def _begin(self, server: Server, unit: str, model: Model, name: Name, weights: str) -> OllamaRunner:
        """A runner for a loaded model; from now on it hears of its server's end, and of its own."""
        weights = weights or await ollama_api.weights(server.endpoint, name)
        runner = OllamaRunner(
            server,
            unit,
            model.name,
            name,
            weights,
            reload_grace_s=self._reload_grace_s,
            unseen_look_s=self._unseen_look_s,
        )
        server.claims[unit].on_exit = runner.finish_with
        await runner.watch()
        if server.exited is not None and server.exited.done():
            runner.finish_with(server.exited.result())
        self._runners = [known for known in self._runners if not known.is_gone]
        self._runners.append(runner)
        return runner

    # What only Ollama itself can do ----------------------------------------------------------------------------------

    async def stored(self) -> list[dict[str, object]]:
        """What its store has, as ``/api/tags`` tells it. An attached server is asked; nothing where it cannot be."""
        if self._options.url:
            try:
                return await ollama_api.tags(endpoint_of(self._options.url))
            except (Unreachable, BackendFailed) as problem:
                log.debug("what the Ollama at %s has is not known: %s", self._options.url, problem)
                return []
        return [] if self._store is None else await asyncio.to_thread(listing, self._store)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Endpoint]:
        """A server that answers while this lasts, for its store: one that runs, or else one that sees no device. No
        model is loaded for it. Raises BackendFailed.
        """
        if self._options.url:
            yield self._attached().endpoint
            return
        unit = f"ollama-store-{secrets.token_hex(4)}"
        running = (server for server in self._servers if server.usable and server.endpoint.port)
        server = next(running, None)
        if server is None:
            server = Server(ServerKey(), linger_s=self._linger_s, keep_running=self._options.keep_running)
            self._servers.append(server)
        server.claim(unit, Claim("", lambda: None))
        try:
            environment = {**server_base(self._home, self._store), **visible((), ""), **self._extra}
            binary = await asyncio.to_thread(self._binary, None)
            host = self._options.host or "127.0.0.1"
            await server.ready(self._launcher, binary, environment, host, self._port())
            yield server.endpoint
        finally:
            server.release(unit)

    # Adopt and close -------------------------------------------------------------------------------------------------

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        try:
            name = name_of(model)
        except BackendFailed:
            return None
        server = self._server_of(record)
        if server is None:
            return None
        weights = record.extra.get("weights", "")
        server.claim(record.unit, Claim(weights or name.identity, lambda: None))
        runner: OllamaRunner | None = None
        try:
            if record.extra.get("name") == name.identity and await ollama_api.find(server.endpoint, name) is not None:
                runner = await self._begin(server, record.unit, model, name, weights)
        except Unreachable as problem:
            log.debug('"%s" is not adopted: %s', model.name, problem)
        finally:
            if runner is None:
                server.release(record.unit, linger_s=max(ADOPT_WINDOW_S, self._linger_s))
        return runner

    def _server_of(self, record: RunnerRecord) -> Server | None:
        """The server of a record; one that several records name is adopted once."""
        if self._options.url:
            return self._attached() if record.child is None else None
        if record.child is None:
            return None
        for server in self._servers:
            if server.usable and server.child is not None and server.child.record == record.child:
                return server
        try:
            environment = _recorded_environment(record)
        except (ValueError, TypeError):
            return None
        child = self._launcher.adopt(record.child)
        if child is None:
            return None
        server = Server.adopted(
            ServerKey(record.devices, environment),
            child,
            record.endpoint,
            linger_s=self._linger_s,
            keep_running=self._options.keep_running,
        )
        self._servers.append(server)
        return server

    async def close(self) -> None:
        for runner in self._runners:
            runner.forget()
        if self._options.url:
            return
        await asyncio.gather(*(server.stop(CLOSE_TIMEOUT_S) for server in self._servers))
        self._servers.clear()

    # Which server, and how it is started -----------------------------------------------------------------------------

    def _server_for(self, order: LoadOrder, model: str) -> Server:
        if self._options.url:
            server = self._attached()
            if server.holds(model):
                raise BackendFailed(
                    f'cannot load "{order.model.name}": another configured model is the same model in the Ollama at '
                    f"{self._options.url} and is loaded",
                    hint="make it an alias of the other one, or unload that first",
                    kind="same-model",
                    preflight=True,
                )
            return server
        key = ServerKey(order.devices, server_environment(order.model))
        self._servers = [server for server in self._servers if server.usable or server.claims]
        for server in self._servers:
            # One Ollama holds a model once: a second entry for the same one, with other settings, gets its own server.
            if server.usable and server.key == key and not server.holds(model):
                return server
        server = Server(key, linger_s=self._linger_s, keep_running=self._options.keep_running)
        self._servers.append(server)
        return server

    def _attached(self) -> Server:
        if not self._servers:
            self._servers.append(Server.attached(endpoint_of(self._options.url)))
        return self._servers[0]

    def _port(self) -> int:
        """The configured port for the first server; further ones, and all without it, listen where there is room."""
        taken = any(server.usable and server.endpoint.port == self._options.port for server in self._servers)
        return 0 if taken else self._options.port

    def _binary(self, model: Model | None) -> str:
        wanted = self._options.binary or "ollama"
        found = shutil.which(wanted)
        if found is None:
            raise BackendFailed(
                ("cannot start Ollama" if model is None else f'cannot load "{model.name}"')
                + f': there is no program "{wanted}"'
                + ("" if "/" in wanted else " in PATH"),
                hint="install Ollama, or set its path as the engine's binary in the configuration",
                kind="binary-missing",
                preflight=True,
            )
        return found

    # The store and the record ----------------------------------------------------------------------------------------

    def _weights_in_store(self, name: Name) -> str:
        try:
            manifest = self._store.find(name) if self._store is not None else None
        except BadManifest:
            return ""
        return manifest.weights if manifest is not None else ""


def _record(server: Server, order: LoadOrder, name: Name, weights: str, fingerprint: str) -> RunnerRecord:
    return RunnerRecord(
        unit=order.unit,
        model=order.model.name,
        engine=ENGINE,
        fingerprint=fingerprint,
        endpoint=server.endpoint,
        devices=order.devices,
        child=server.child.record if server.child is not None else None,
        extra={"name": name.identity, "weights": weights, "environment": json.dumps(server.key.environment)},
    )


def _recorded_environment(record: RunnerRecord) -> tuple[tuple[str, str], ...]:
    """What the server of a record was started with; raises ValueError."""
    return tuple((str(key), str(value)) for key, value in json.loads(record.extra.get("environment", "[]")))


async def _to_the_end(work: Coroutine[object, object, None]) -> None:
    """Wait for ``work`` although the caller may be canceled (again) meanwhile: it leaves nothing half done."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled() and (problem := task.exception()) is not None:
        log.error("cannot clean up after a load that did not succeed: %s", problem)
