"""llama-server as an engine: one process for each model, on a private Unix socket, with a key of its own.

Starts it, knows when it is ready, asks it whether it works, stops it. Never relays a request.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from gpud.backends import call, devices, failures, files, llama_flags, runner
from gpud.backends.llama_flags import Flags, Place
from gpud.backends.llama_output import Listener
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, Endpoint, Model
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Runner, RunnerRecord

HELP_S = 15.0
"""``--help`` takes 25 ms; a build that starts GPU drivers for it has been seen to take seconds."""

PROBE_S = 1.0
"""One look at a starting engine. An answer that hangs counts as "not ready" and the look is repeated."""

ADOPT_S = 2.0
"""An engine of an earlier daemon answers a question about its models at once, even while it generates."""

_GAUGE = re.compile(rb"^llamacpp:(requests_processing|requests_deferred)(?:\{[^}]*\})? +([0-9.eE+-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    """What is started: ``title`` for messages; ``argv`` finds it, or raises BackendFailed(preflight)."""

    title: str
    argv: Callable[[Model], tuple[str, ...]]


class LlamaServer:
    """The backend. Also drives what takes the same flags and speaks the same protocol (see ``embedded.py``)."""

    def __init__(
        self, options: EngineOptions, launcher: Launcher, *, name: str = "llama_server", program: Program | None = None
    ) -> None:
        self.name = name
        self._options = options
        self._launcher = launcher
        self._program = program or Program("llama-server", self._find)
        self._known: dict[tuple[object, ...], Flags] = {}

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

    # Loading

    async def load(self, order: LoadOrder) -> Runner:
        argv = await asyncio.to_thread(self._program.argv, order.model)
        flags = await self._flags(order.model, argv)
        model, fingerprint = await asyncio.to_thread(files.prepared, self.name, self._options, order.model)
        placed = replace(order, model=model)
        return await runner.on_another_port(lambda: self._start(placed, fingerprint, argv, flags))

    async def _start(self, order: LoadOrder, fingerprint: str, program: tuple[str, ...], flags: Flags) -> Runner:
        model = order.model
        socket_path = self._launcher.socket_path(order.unit)
        if not (flags.says("--host", ".sock") and socket_path.endswith(".sock")):
            socket_path = ""
        key = runner.new_key()
        endpoint = (
            Endpoint(socket=socket_path, key=key)
            if socket_path
            else Endpoint(host="127.0.0.1", port=runner.free_port(), key=key)
        )
        place = Place(socket=endpoint.socket, port=endpoint.port, on_gpu=bool(_gpus(order)))
        command = Command(
            unit=order.unit,
            model=model.name,
            engine=self.name,
            argv=llama_flags.command_line(program, model, model.settings.file, place, flags),
            environment=self._environment(order, key),
            lease=True,
        )
        listener = Listener(order.report)
        child = await runner.spawn(self._launcher, command, listener.line)
        async with runner.ended_unless_ready(child, endpoint, model.stop):
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
            if listener.sizes:
                order.record(replace(record, extra={"sizes": json.dumps(listener.sizes)}))
        return self._runner(child, endpoint, listener.sizes)

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
        return self._runner(child, record.endpoint, _sizes_of(record))

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

    async def _flags(self, model: Model, argv: tuple[str, ...]) -> Flags:
        """What the installed build understands; asked once for each build that is met."""
        identity = await asyncio.to_thread(_identity, argv)
        known = self._known.get(identity)
        if known is not None:
            return known
        shown = " ".join(argv)
        try:
            said = await runner.ask_program((*argv, "--help"), dict(self._options.environment), HELP_S)
        except TimeoutError:
            raise _unusable(model, f"{shown} --help did not end within {HELP_S:g} s", "", ()) from None
        except OSError as problem:
            raise _unusable(model, f"{shown} cannot be started: {problem.strerror}", "", ()) from None
        flags = Flags.parse(said.text)
        lines = tuple(said.text.splitlines()[-20:])
        if not flags.first("--model", "-m"):
            failure = failures.classify(lines)
            why = failure.sentence if failure else failures.last_line(lines) or "it printed nothing"
            hint = failure.hint if failure else ""
            raise _unusable(model, f"{shown} --help ended with status {said.code}: {why}", hint, lines)
        if not flags.says("--api-key", "LLAMA_API_KEY"):
            raise _unusable(model, f"{shown} does not read LLAMA_API_KEY", "install a newer build of llama.cpp", ())
        self._known = {identity: flags}
        return flags

    def _environment(self, order: LoadOrder, key: str) -> Mapping[str, str]:
        return {
            **dict(self._options.environment),
            **dict(order.model.settings.environment),
            **devices.visible(_gpus(order), order.vendor),
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

    def _runner(self, child: Child, endpoint: Endpoint, sizes: Mapping[str, int]) -> ProcessRunner:
        return ProcessRunner(
            child=child,
            endpoint=endpoint,
            ask_busy=lambda: busy(endpoint),
            ask_health=lambda: health(endpoint, self._program.title),
            sizes=MappingProxyType(dict(sizes)),
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


async def health(endpoint: Endpoint, title: str) -> str:
    """Empty when the engine answers as it should."""
    try:
        answer = await call.request(endpoint, "GET", "/health", timeout_s=runner.ANSWER_S)
    except call.Unreachable as problem:
        return f"{title} does not answer: {problem}"
    return "" if answer.status == 200 else f"{title} answers its health check with status {answer.status}"


def _gpus(order: LoadOrder) -> tuple[str, ...]:
    return tuple(device for device in order.devices if device != HOST)


def _identity(argv: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(_file_identity(part) for part in argv if part.startswith("/"))


def _file_identity(path: str) -> tuple[object, ...]:
    try:
        found = Path(path).stat()
    except OSError:
        return (path,)
    return (path, found.st_ino, found.st_mtime_ns, found.st_size)


def _sizes_of(record: RunnerRecord) -> Mapping[str, int]:
    try:
        sizes = json.loads(record.extra.get("sizes", "{}"))
        return {str(device): int(size) for device, size in sizes.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _unusable(model: Model, what: str, hint: str, tail: tuple[str, ...]) -> BackendFailed:
    return BackendFailed(
        f'cannot load "{model.name}": {what}',
        hint=hint or "install a working build of the engine, or correct the engine's binary",
        kind="binary-broken",
        tail=tail,
        preflight=True,
    )
