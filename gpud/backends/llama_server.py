"""llama-server as an engine: one process for each model, on a private Unix socket, with a key of its own.

Starts it, knows when it is ready, asks it whether it works, stops it. Never relays a request.
"""

import asyncio
import itertools
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from gpud.backends import call, devices, files, llama_flags, llama_probe, runner
from gpud.backends.llama_build import Installed, Program
from gpud.backends.llama_flags import Flags, Place
from gpud.backends.llama_output import Listener
from gpud.backends.llama_plan import plan_of
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed, InvalidArguments
from gpud.core.facts import HOST, Endpoint, Model
from gpud.core.plan import Plan
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Runner, RunnerRecord
from gpud.core.quote import Estimate
from gpud.core.record import replace

log = logging.getLogger(__name__)

PROBE_S = 1.0
"""One look at a starting engine. An answer that hangs counts as "not ready" and the look is repeated."""

ADOPT_S = 2.0
"""An engine of an earlier daemon answers a question about its models at once, even while it generates."""

_GAUGE = re.compile(rb"^llamacpp:(requests_processing|requests_deferred)(?:\{[^}]*\})? +([0-9.eE+-]+)", re.MULTILINE)


class LlamaServer:
    """The backend. Also drives what takes the same flags and speaks the same protocol (see ``embedded.py``)."""

    def __init__(
        self, options: EngineOptions, launcher: Launcher, *, name: str = "llama_server", program: Program | None = None
    ) -> None:
        self.name = name
        self._options = options
        self._launcher = launcher
        self._program = program or Program("llama-server", self._find)
        self._installed = Installed(name, self._program, dict(options.environment))
        self._probes = itertools.count(1)

    # What can be known before a start

    def check(self, model: Model) -> None:
        llama_flags.check_settings(model)
        llama_flags.check_environment(model, self._options.environment)
        self._program.argv(model)
        files.check(self._located(model))

    def file_bytes(self, model: Model) -> int | None:
        return files.bytes_of(self._located(model))

    def fingerprint(self, model: Model) -> str:
        return files.fingerprint(self.name, self._options, self._located(model))

    def plan(self, model: Model, gpus: int) -> Plan | None:
        program = self._program.argv(model)
        flags = self._installed.flags_now(model, program)
        model = self._located(model)
        place = Place(socket="plan.sock", on_gpu=gpus > 0)
        argv = llama_flags.command_line(program, model, model.settings.file, place, flags)
        given = {**dict(self._options.environment), **dict(model.settings.environment)}
        try:
            plan = plan_of(argv, gpus, given)
        except InvalidArguments as problem:
            raise BackendFailed(
                f'cannot load "{model.name}": {problem.message}',
                hint=f'correct extra_flags of "{model.name}"',
                kind="bad-flag",
                preflight=True,
            ) from None
        if not (self._program.widens and plan.embeddings):
            return plan
        settings = model.settings
        batch = max(settings.micro_batch or Plan().micro_batch, min(settings.batch or Plan().batch, plan.context))
        return replace(plan, batch=batch, micro_batch=batch)

    def build(self) -> str:
        try:
            argv = self._program.argv(Model("", self.name))
        except BackendFailed:
            return ""
        return self._installed.version(argv)

    # Asking

    async def probe(
        self, model: Model, devices: tuple[str, ...], vendor: str, split: tuple[float, ...]
    ) -> Estimate | None:
        try:
            return await self._probe(model, devices, vendor, split)
        except BackendFailed as failure:
            # A load would meet the same, and is the one to tell it.
            log.debug('"%s" is not sized by its engine: %s', model.name, failure.message)
            return None

    async def _probe(self, model: Model, devices: tuple[str, ...], vendor: str, split: tuple[float, ...]) -> Estimate:
        program = await asyncio.to_thread(self._program.argv, model)
        flags = await self._installed.flags(model, program)
        model = await asyncio.to_thread(self._readable, model)
        gpus = _gpus(devices)
        plan = await asyncio.to_thread(self.plan, model, len(gpus))
        assert plan is not None
        # No model's name begins like this: the engine of a load never has this place.
        unit = f"probe:{model.name}:{next(self._probes)}"
        socket_path = self._socket_for(unit, flags)
        key = runner.new_key()
        # Where no socket can be had the kernel chooses a port, and none that a load was about to take.
        place = Place(socket=socket_path, port=0, on_gpu=bool(gpus), split=split, tells=True)
        argv = llama_flags.command_line(program, model, model.settings.file, place, flags)
        command = Command(
            unit=unit,
            model=model.name,
            engine=self.name,
            argv=llama_probe.telling(argv, flags),
            environment=self._environment(model, gpus, vendor, key),
            lease=True,
        )
        reader = await asyncio.to_thread(llama_probe.reader_for, plan)
        return await llama_probe.through(self._launcher, command, Endpoint(socket=socket_path, key=key), reader)

    def _readable(self, model: Model) -> Model:
        model = self._located(model)
        files.check(model)
        return model

    # Loading

    async def load(self, order: LoadOrder) -> Runner:
        argv = await asyncio.to_thread(self._program.argv, order.model)
        flags = await self._installed.flags(order.model, argv)
        model, fingerprint = await asyncio.to_thread(files.prepared, self.name, self._options, order.model)
        placed = replace(order, model=model)
        return await runner.on_another_port(lambda: self._start(placed, fingerprint, argv, flags))

    async def _start(self, order: LoadOrder, fingerprint: str, program: tuple[str, ...], flags: Flags) -> Runner:
        model = order.model
        socket_path = self._socket_for(order.unit, flags)
        key = runner.new_key()
        endpoint = (
            Endpoint(socket=socket_path, key=key)
            if socket_path
            else Endpoint(host="127.0.0.1", port=runner.free_port(), key=key)
        )
        gpus = _gpus(order.devices)
        place = Place(
            socket=endpoint.socket,
            port=endpoint.port,
            on_gpu=bool(gpus),
            split=order.split,
            tells=order.unproven and order.sized is not None,
        )
        command = Command(
            unit=order.unit,
            model=model.name,
            engine=self.name,
            argv=llama_flags.command_line(program, model, model.settings.file, place, flags),
            environment=self._environment(model, gpus, order.vendor, key),
            lease=True,
        )
        listener = await self._listener(order, command.argv, len(gpus)) if place.tells else Listener(order.report)
        child = await runner.spawn(self._launcher, command, listener.line)
        # What was canceled for its size must be gone before it has what it asked for.
        async with runner.ended_unless_ready(child, endpoint, model.stop, at_once=place.tells):
            record = RunnerRecord(
                unit=order.unit,
                model=model.name,
                engine=self.name,
                fingerprint=fingerprint,
                endpoint=endpoint,
                devices=order.devices,
                child=child.record,
            )
            order.record(record)
            await runner.until_ready(
                child, model, self._program.title, lambda: self._is_ready(model, endpoint), listener.announcement
            )
        return self._runner(child, endpoint)

    async def _listener(self, order: LoadOrder, argv: tuple[str, ...], gpus: int) -> Listener:
        given = {**dict(self._options.environment), **dict(order.model.settings.environment)}
        try:
            record = await asyncio.to_thread(lambda: llama_probe.reader_for(plan_of(argv, gpus, given)))
        except InvalidArguments:
            # The engine will say so.
            return Listener(order.report)
        return Listener(order.report, record, order.sized)

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:  # noqa: ARG002 - the record says it all
        if record.child is None:
            return None
        child = self._launcher.adopt(record.child, Listener().line)
        if child is None:
            return None
        try:
            answer = await call.request(record.endpoint, "GET", "/v1/models", timeout_s=ADOPT_S)
        except call.Unreachable:
            return None
        if answer.status != 200:
            return None
        return self._runner(child, record.endpoint)

    async def close(self) -> None:
        """Nothing is shared between models."""

    # Inside

    def _find(self, model: Model) -> tuple[str, ...]:
        wanted = self._options.binary or "llama-server"
        found = shutil.which(wanted)
        if found is not None:
            return (found,)
        path = Path(wanted).expanduser()
        if "/" in wanted and path.is_file():
            found = shutil.which(path)
            if found is not None:
                return (found,)
            what, hint = f"{path} cannot be executed (errno 13: Permission denied)", f"chmod +x {path}"
        elif "/" in wanted:
            what, hint = f"{path} is not there (errno 2: No such file or directory)", "correct the engine's binary"
        else:
            what = f'no program "{wanted}" in {os.environ.get("PATH", "an empty PATH")}'
            hint = 'install llama.cpp, set the binary of engine "llama_server", or use engine "embedded"'
        raise BackendFailed(f'cannot load "{model.name}": {what}', hint=hint, kind="binary-missing", preflight=True)

    def _located(self, model: Model) -> Model:
        return files.located(model, self._options.models_dir)

    def _socket_for(self, unit: str, flags: Flags) -> str:
        """A path for a private socket, or empty where the build cannot listen at one."""
        path = self._launcher.socket_path(unit)
        return path if flags.says("--host", ".sock") and path.endswith(".sock") else ""

    def _environment(self, model: Model, gpus: tuple[str, ...], vendor: str, key: str) -> Mapping[str, str]:
        return {
            **dict(self._options.environment),
            **dict(model.settings.environment),
            **devices.visible(gpus, vendor),
            "LLAMA_API_KEY": key,
            # Any value makes it report the progress of its load on stdout and end itself when stdin ends.
            "LLAMA_SERVER_ROUTER_PORT": "1",
            # Else a crash starts a debugger on the dying process, which then keeps its GPU memory.
            "GGML_NO_BACKTRACE": "1",
        }

    async def _is_ready(self, model: Model, endpoint: Endpoint) -> bool:
        try:
            if (await call.request(endpoint, "GET", "/health", timeout_s=PROBE_S)).status != 200:
                return False
        except call.Unreachable:
            return False
        # Nobody else can have bound a socket in gpud's own folder; a port can be taken by a stranger.
        return bool(endpoint.socket) or await runner.answers_to_its_key(model, endpoint, "/v1/models", PROBE_S)

    def _runner(self, child: Child, endpoint: Endpoint) -> ProcessRunner:
        return ProcessRunner(
            child=child,
            endpoint=endpoint,
            ask_busy=lambda: busy(endpoint),
        )


async def busy(endpoint: Endpoint) -> bool | None:
    """Whether requests are processed or wait, by the engine's own gauges. One request; never wakes or blocks it."""
    try:
        answer = await call.request(endpoint, "GET", "/metrics", timeout_s=runner.ANSWER_S)
    except call.Unreachable:
        return None
    gauges = {name: float(value) for name, value in _GAUGE.findall(answer.body)}
    if answer.status != 200 or b"requests_processing" not in gauges:
        return None
    return sum(gauges.values()) > 0


def _gpus(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name != HOST)
