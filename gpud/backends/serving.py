"""Servers of models in SafeTensors as engines: one process for each model, or one that somebody else runs.

What vLLM and text-generation-inference have in common is here; how each is told, and what it says, is in a
:class:`Dialect`. Never relays a request.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gpud.backends import budget, call, devices, files, hub, listeners, runner, serving_api
from gpud.backends.attached import AttachedRunner
from gpud.backends.budget import Budget
from gpud.backends.custom_plan import endpoint_of, unfit
from gpud.backends.dialect import Dialect, Listener, Start
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.backends.serving_api import Talk
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, Endpoint, Model
from gpud.core.plan import Plan
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Progress, Runner, RunnerRecord, Standing
from gpud.core.quote import Estimate
from gpud.core.record import replace

PROBE_S = 1.0
"""One look at a server. An answer that hangs counts as "not ready" and the look is repeated."""


class HubServer:
    """The backend."""

    def __init__(self, dialect: Dialect, options: EngineOptions, launcher: Launcher) -> None:
        self.name = dialect.name
        self._dialect = dialect
        self._talk = Talk(dialect)
        self._options = options
        self._launcher = launcher

    # What can be known before a start

    def check(self, model: Model) -> None:
        url = self._url(model)
        if url:
            endpoint_of(model, url)
            return
        self._program(model)
        for flag in model.settings.extra_flags:
            name = flag.partition("=")[0]
            if name in self._dialect.own_flags:
                raise unfit(model, f"extra_flags has {name}, which gpud sets itself", "remove it")
        self._found(self._located(model))

    def file_bytes(self, model: Model) -> int | None:
        if self._url(model):
            return None
        try:
            found = self._found(self._located(model))
        except BackendFailed:
            return None
        return None if found is None else found.weights_bytes

    def fingerprint(self, model: Model) -> str:
        return files.fingerprint(self.name, self._options, self._located(model))

    def plan(self, model: Model, gpus: int) -> Plan | None:  # noqa: ARG002 - it is no llama.cpp
        return None

    def build(self) -> str:
        found = None if self._options.url else shutil.which(self._options.binary or self._dialect.program)
        try:
            mark = Path(found).stat() if found else None
        except OSError:
            mark = None
        # Its own word for its version takes it many seconds: it loads all its libraries first.
        return "" if mark is None else f"{self.name} {mark.st_size}:{mark.st_mtime_ns}"

    async def probe(
        self,
        model: Model,  # noqa: ARG002 - there is no dry run
        devices: tuple[str, ...],  # noqa: ARG002
        vendor: str,  # noqa: ARG002
        split: tuple[float, ...],  # noqa: ARG002
    ) -> Estimate | None:
        return None

    def need(self, model: Model, *, on_gpu: bool) -> Estimate | None:
        if self._url(model):
            return None
        return self._budget(self._located(model), on_gpu=on_gpu).estimate(on_gpu=on_gpu)

    # Asking one that runs

    async def standing(self, model: Model) -> Standing | None:
        url = self._url(model)
        if not url:
            return None
        endpoint = endpoint_of(model, url)
        try:
            if await serving_api.is_asleep(endpoint, PROBE_S):
                return None
            endpoint = await self._talk.named(model, endpoint, PROBE_S)
            running, waiting = await self._talk.requests(endpoint, PROBE_S) or (0, 0)
        except call.Unreachable as problem:
            if problem.trouble is call.Trouble.REFUSED:
                raise self._talk.unusable(model, f"nothing answers: {problem}") from None
            return None
        return Standing(running + waiting, full=waiting > 0, resident=True)

    # Loading

    async def load(self, order: LoadOrder) -> Runner:
        model, fingerprint = await asyncio.to_thread(files.prepared, self.name, self._options, order.model)
        placed = replace(order, model=model)
        if self._url(model):
            return await self._attach(placed, fingerprint)
        return await runner.on_another_port(lambda: self._start(placed, fingerprint))

    async def _start(self, order: LoadOrder, fingerprint: str) -> Runner:
        model, dialect = order.model, self._dialect
        start = await asyncio.to_thread(self._made, order)
        gpus = tuple(device for device in order.devices if device != HOST)
        command = Command(
            unit=order.unit,
            model=model.name,
            engine=self.name,
            argv=dialect.command(start),
            environment={
                **dict(self._options.environment),
                **dict(model.settings.environment),
                **devices.visible(gpus, order.vendor),
                **dialect.environment(start),
            },
        )
        listener = Listener(dialect, order.report)
        child = await runner.spawn(self._launcher, command, listener.line)
        try:
            async with runner.ended_unless_ready(child, start.endpoint, model.stop):
                order.record(_record(order, fingerprint, start.endpoint, child, {"scratch": start.scratch}))
                order.report(Progress("starting"))
                await runner.until_ready(
                    child,
                    model,
                    dialect.title,
                    lambda: self._is_ready(model, start.endpoint, child),
                    listener.announcement,
                )
        except BaseException:
            _remove_scratch(start.scratch)
            raise
        return self._child_runner(child, start.endpoint, start.scratch)

    def _made(self, order: LoadOrder) -> Start:
        """Blocking: looks at the model's files again, they decide what the server is told."""
        model = order.model
        gpu = next((sample for sample in order.gpus if sample.uuid in order.devices), None)
        on_gpu = any(device != HOST for device in order.devices)
        found = self._found(model)
        socket_path = self._launcher.socket_path(order.unit)
        key = runner.new_key()
        name = model.name if self._dialect.names_model else ""
        return Start(
            program=self._program(model),
            model=model,
            target=model.settings.hub_name if found is None else str(found.folder),
            budget=budget.of(model, found, self._dialect.title, on_gpu=on_gpu),
            gpu=gpu,
            endpoint=Endpoint(socket=socket_path, key=key, model=name)
            if self._dialect.on_socket
            else Endpoint(host="127.0.0.1", port=runner.free_port(), key=key, model=name),
            scratch="" if self._dialect.on_socket else f"{socket_path}-shard",
        )

    async def _is_ready(self, model: Model, endpoint: Endpoint, child: Child) -> bool:
        try:
            answer = await call.request(endpoint, "GET", "/health", timeout_s=PROBE_S)
        except call.Unreachable:
            return False
        if endpoint.socket or answer.status != 200:
            return answer.status == 200
        # Its health has no key that would tell it from a stranger, but the kernel knows who listens.
        await runner.insist_on_ours(
            model.name,
            child,
            endpoint,
            call.describe(endpoint),
            hint="nothing needs to be done when it happens once: another port is taken at the next start",
        )
        return True

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        endpoint = record.endpoint
        if record.child is None:
            if not self._url(model) or await serving_api.slept(endpoint):
                return None
            return None if await self._talk.health(endpoint, PROBE_S) else await self._attached_runner(model, endpoint)
        child = self._launcher.adopt(record.child)
        if child is None or await self._talk.health(endpoint, PROBE_S):
            return None
        return self._child_runner(child, endpoint, record.extra.get("scratch", ""))

    async def close(self) -> None:
        """Nothing is shared between models."""

    def _child_runner(self, child: Child, endpoint: Endpoint, scratch: str) -> ProcessRunner:
        return ProcessRunner(
            child=child,
            endpoint=endpoint,
            ask_busy=lambda: self._talk.busy(endpoint),
            clean_up=lambda: _remove_scratch(scratch),
        )

    # One that somebody else runs

    async def _attach(self, order: LoadOrder, fingerprint: str) -> Runner:
        model = order.model
        endpoint = endpoint_of(model, self._url(model))
        woken = False
        try:
            if await serving_api.is_asleep(endpoint, runner.ANSWER_S):
                order.report(Progress("waking up"))
                woken = True
                await self._talk.wake(model, endpoint)
            trouble = await self._talk.health(endpoint)
            if trouble:
                raise self._talk.unusable(model, trouble)
            endpoint = await self._talk.named(model, endpoint, runner.ANSWER_S)
        except BaseException as problem:
            if woken:
                await runner.to_its_end(self._talk.put_to_sleep(model, endpoint))
            if isinstance(problem, call.Unreachable):
                raise self._talk.unusable(model, f"nothing answers: {problem}") from None
            raise
        order.record(_record(order, fingerprint, endpoint, None, {}))
        return await self._attached_runner(model, endpoint)

    async def _attached_runner(self, model: Model, endpoint: Endpoint) -> AttachedRunner:
        return AttachedRunner(
            endpoint,
            await asyncio.to_thread(listeners.listener, endpoint),
            ask_busy=lambda: self._talk.busy(endpoint),
            give_back=lambda: self._talk.put_to_sleep(model, endpoint),
        )

    # Inside

    def _url(self, model: Model) -> str:
        return model.settings.url or self._options.url

    def _located(self, model: Model) -> Model:
        return files.located(model, self._options.models_dir)

    def _found(self, model: Model) -> hub.HubModel | None:
        """The located model as it lies on this machine; None when its engine would have to download it."""
        given = {**dict(self._options.environment), **dict(model.settings.environment)}
        folder = hub.folder_of(model, {**_homes(), **given})
        return None if folder is None else hub.read(model, folder)

    def _budget(self, model: Model, *, on_gpu: bool) -> Budget:
        return budget.of(model, self._found(model), self._dialect.title, on_gpu=on_gpu)

    def _program(self, model: Model) -> str:
        wanted = self._options.binary or self._dialect.program
        found = shutil.which(str(Path(wanted).expanduser()) if "/" in wanted else wanted)
        if found is not None:
            return found
        raise BackendFailed(
            f'cannot load "{model.name}": there is no program "{wanted}"' + ("" if "/" in wanted else " in PATH"),
            hint=f'install {self._dialect.title}, or set its path as the binary of engine "{self.name}"',
            kind="binary-missing",
            preflight=True,
        )


def _homes() -> Mapping[str, str]:
    """What engines see of gpud's own environment that says where models lie."""
    return {name: os.environ[name] for name in ("HF_HOME", "HOME", "XDG_CACHE_HOME") if name in os.environ}


def _record(
    order: LoadOrder, fingerprint: str, endpoint: Endpoint, child: Child | None, extra: Mapping[str, str]
) -> RunnerRecord:
    return RunnerRecord(
        unit=order.unit,
        model=order.model.name,
        engine=order.model.engine,
        fingerprint=fingerprint,
        endpoint=endpoint,
        devices=order.devices,
        child=None if child is None else child.record,
        extra=extra,
    )


def _remove_scratch(path: str) -> None:
    """What a server leaves of the sockets between its own processes, each with a number behind the path."""
    if path:
        for left in Path(path).parent.glob(f"{Path(path).name}-*"):
            left.unlink(missing_ok=True)
