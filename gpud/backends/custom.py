"""Any program with an HTTP address as an engine, described by the configuration alone; or one that runs already.

With a ``command`` it is a child like every other engine. With a ``url`` alone it belongs to somebody else: gpud asks it
whether it works and to give its memory back, and never starts or stops it.
"""

import asyncio
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from gpud.backends import call, devices, files, listeners, runner
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, BusyProbe, Endpoint, Exit, HttpCall, Model, StopTimes
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Progress, Runner, RunnerRecord

log = logging.getLogger(__name__)

PROBE_S = 1.0
"""One look at a starting engine. An answer that hangs counts as "not ready" and the look is repeated."""

ADOPT_S = 2.0

UNLOAD_S = 30.0
"""Giving many GiB back takes an engine seconds; one that needs longer than this is not going to."""

_NAME = re.compile(r"\$(?:\$|\{(\w*)\})")

NAMES = ("port", "socket", "key", "model", "file")


class Custom:
    """The backend."""

    name = "custom"

    def __init__(self, options: EngineOptions, launcher: Launcher) -> None:
        self._options = options
        self._launcher = launcher

    def check(self, model: Model) -> None:
        settings = model.settings
        plan = self._plan(model, "", 0, "")
        if not settings.command:
            return
        if settings.directory and not Path(settings.directory).is_dir():
            raise _unfit(model, f"directory {settings.directory} is not there", "correct or make it", "file-missing")
        program = plan.argv[0]
        # A relative program lies in the directory that the command runs in, as a shell would have it.
        place = Path(settings.directory, program) if "/" in program else Path(program)
        if shutil.which(str(place)) is None:
            why = "cannot be executed" if place.is_file() else "is not there"
            raise _unfit(
                model, f'the program "{program}" of its command {why}', "correct the command", "binary-missing"
            )
        if settings.file:
            _check_readable(files.located(model, self._options.models_dir))

    def file_bytes(self, model: Model) -> int | None:
        return files.bytes_of(files.located(model, self._options.models_dir))

    def fingerprint(self, model: Model) -> str:
        return files.fingerprint(self.name, self._options, files.located(model, self._options.models_dir))

    async def load(self, order: LoadOrder) -> Runner:
        if not order.model.settings.command:
            return await self._attach(order)
        return await runner.on_another_port(lambda: self._start(order))

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        plan = self._plan(model, record.endpoint.socket, record.endpoint.port, record.endpoint.key)
        plan = replace(plan, endpoint=record.endpoint)
        child = None
        if record.child is not None:
            child = self._launcher.adopt(record.child)
            if child is None:
                return None
        if await _unhealthy(plan, ADOPT_S):
            return None
        if child is not None:
            return _child_runner(child, plan)
        return AttachedRunner(plan, await asyncio.to_thread(_listener, plan.endpoint))

    async def close(self) -> None:
        """Nothing is shared between models."""

    async def _start(self, order: LoadOrder) -> Runner:
        model = order.model
        key = runner.new_key()
        socket_path = self._launcher.socket_path(order.unit)
        plan = self._plan(model, socket_path, runner.free_port(), key)
        if not plan.endpoint.socket and await _is_taken(plan.endpoint):
            raise BackendFailed(
                f'cannot load "{model.name}": something listens at {call.describe(plan.endpoint)} already',
                hint="end it, or take the command out of the configuration to use what runs there",
                kind="address-taken",
                preflight=True,
            )
        gpus = tuple(device for device in order.devices if device != HOST)
        command = Command(
            unit=order.unit,
            model=model.name,
            engine=self.name,
            argv=plan.argv,
            environment={**plan.environment, **devices.visible(gpus, order.vendor)},
            directory=model.settings.directory,
        )
        child = await runner.spawn(self._launcher, command)
        async with runner.ended_unless_ready(child, plan.endpoint, model.stop):
            order.record(self._record(order, plan.endpoint, child))
            order.report(Progress("starting"))
            await runner.until_ready(child, model, plan.argv[0], _Readiness(model, child, plan).look)
        return _child_runner(child, plan)

    async def _attach(self, order: LoadOrder) -> Runner:
        model = order.model
        plan = self._plan(model, "", 0, "")
        trouble = await _unhealthy(plan, runner.ANSWER_S)
        if trouble:
            raise BackendFailed(
                f'cannot use "{model.name}": {trouble}',
                hint="start it, or correct its url; gpud did not start it and does not",
                kind="unreachable",
                preflight=True,
            )
        order.record(self._record(order, plan.endpoint, None))
        return AttachedRunner(plan, await asyncio.to_thread(_listener, plan.endpoint))

    def _record(self, order: LoadOrder, endpoint: Endpoint, child: Child | None) -> RunnerRecord:
        return RunnerRecord(
            unit=order.unit,
            model=order.model.name,
            engine=self.name,
            fingerprint=self.fingerprint(order.model),
            endpoint=endpoint,
            devices=order.devices,
            child=None if child is None else child.record,
        )

    def _plan(self, model: Model, socket_path: str, port: int, key: str) -> "_Plan":
        """Everything with its names filled in. Raises BackendFailed(preflight) for a description that cannot work."""
        settings = files.located(model, self._options.models_dir).settings
        values = {
            "port": str(port),
            "socket": socket_path,
            "key": key,
            "model": model.name,
            "file": settings.file,
        }
        used: set[str] = set()

        def fill(text: str, where: str) -> str:
            def one(match: re.Match[str]) -> str:
                name = match[1]
                if match[0] == "$$":
                    return "$"
                if name not in values:
                    known = ", ".join(f"${{{known}}}" for known in NAMES)
                    raise _unfit(model, f"{where} uses ${{{name}}}, which is not known", f"known are {known}")
                used.add(name)
                return values[name]

            return _NAME.sub(one, text)

        argv = tuple(fill(part, "command") for part in settings.command)
        if "key" in used:
            raise _unfit(
                model, "command uses ${key}, and everybody may read command lines", "hand it over in environment"
            )
        url = settings.url or self._options.url
        environment = {
            name: fill(value, f"environment {name}")
            for name, value in (*self._options.environment, *settings.environment)
        }
        endpoint = _endpoint(model, fill(url, "url")) if url else None
        if endpoint is None:
            if "socket" in used:
                endpoint = Endpoint(socket=socket_path)
            elif "port" in used:
                endpoint = Endpoint(host="127.0.0.1", port=port)
            elif settings.command:
                hint = "use ${port} or ${socket} in it, or say with url where it listens"
                raise _unfit(model, "nothing says where its command listens", hint)
            else:
                raise _unfit(model, "it has neither a command nor a url", "set one of them")
        if "key" in used:
            endpoint = replace(endpoint, key=key)
        health = fill(settings.health, "health")
        asked = endpoint
        if "://" in health:
            asked = replace(_endpoint(model, health), key=endpoint.key)
            health, asked = asked.base_path or "/", replace(asked, base_path="")
        return _Plan(model.name, argv, environment, endpoint, asked, health, settings.unload, settings.busy)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One engine with every name filled in."""

    model: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    endpoint: Endpoint
    health_endpoint: Endpoint
    health: str
    unload: HttpCall | None
    busy: BusyProbe | None


class AttachedRunner:
    """A model in an engine that somebody else runs. It is gone when gpud let go of it, and never by itself."""

    def __init__(self, plan: _Plan, pid: int | None) -> None:
        self._plan = plan
        self._pid = pid
        self._let_go = asyncio.Event()
        self.endpoint = plan.endpoint

    def pids(self) -> frozenset[int]:
        return frozenset() if self._pid is None else listeners.family(self._pid)

    async def gone(self) -> Exit:
        await self._let_go.wait()
        return Exit(self._pid or 0, None)

    async def busy(self) -> bool | None:
        return await _busy(self._plan)

    async def health(self) -> str:
        return await _unhealthy(self._plan, runner.ANSWER_S)

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - not ours to kill
        await self._ask_to_unload()
        self._let_go.set()

    async def kill(self) -> None:
        await self.unload(StopTimes())

    def crash_hint(self, ended: Exit) -> str:  # noqa: ARG002 - nothing of it can be read
        return ""

    def tail(self) -> tuple[str, ...]:
        return ()

    async def _ask_to_unload(self) -> None:
        asked = self._plan.unload
        if asked is None:
            return
        try:
            answer = await call.request(self.endpoint, asked.method, asked.path, body=asked.body, timeout_s=UNLOAD_S)
        except call.Unreachable as problem:
            if problem.trouble is not call.Trouble.REFUSED:
                log.warning('"%s" was asked to give its memory back and did not answer: %s', self._plan.model, problem)
            return
        if answer.status >= 400:
            log.warning(
                '"%s" refused to give its memory back: %s %s at %s answered with status %d',
                self._plan.model,
                asked.method,
                asked.path,
                call.describe(self.endpoint),
                answer.status,
            )


def _child_runner(child: Child, plan: _Plan) -> ProcessRunner:
    asked = plan.unload

    async def ask_to_end() -> None:
        if asked is not None:
            await call.request(plan.endpoint, asked.method, asked.path, body=asked.body, timeout_s=runner.ANSWER_S)

    return ProcessRunner(
        child=child,
        endpoint=plan.endpoint,
        ask_busy=lambda: _busy(plan),
        ask_health=lambda: _unhealthy(plan, runner.ANSWER_S),
        ask_to_end=None if asked is None else ask_to_end,
    )


class _Readiness:
    """Whether an engine that was started answers as it should.

    Who it is that answers is looked up at the first answer of any kind, while the engine still loads: the look takes
    longer than a question, and at the last answer everybody would wait for it.
    """

    def __init__(self, model: Model, child: Child, plan: _Plan) -> None:
        self._model = model
        self._child = child
        self._plan = plan
        self._is_ours = bool(plan.endpoint.socket)

    async def look(self) -> bool:
        plan = self._plan
        try:
            answer = await call.request(plan.health_endpoint, "GET", plan.health or "/", timeout_s=PROBE_S)
        except call.Unreachable:
            return False
        if not self._is_ours:
            await self._insist_on_ours()
        if plan.endpoint.key and answer.status in (401, 403):
            raise BackendFailed(
                f'cannot load "{self._model.name}": what answers at {call.describe(plan.health_endpoint)} refuses the '
                f"key of this start ({answer.status})",
                hint="hand ${key} to the engine in environment, under the name that it reads its key from",
                kind="key-refused",
            )
        return _is_well(plan, answer)

    async def _insist_on_ours(self) -> None:
        stranger = await asyncio.to_thread(_stranger, self._plan.endpoint, self._child)
        if stranger is not None:
            raise BackendFailed(
                f'cannot load "{self._model.name}": process {stranger}, which is not of this engine, answers at '
                f"{call.describe(self._plan.health_endpoint)}",
                hint="end it, or let the command use ${port} or ${socket}",
                kind="port-in-use",
            )
        self._is_ours = True


def _stranger(endpoint: Endpoint, child: Child) -> int | None:
    """Blocking: the process that listens in the engine's stead, if it is certain that it is none of the engine's.

    An engine may be a client of a container that listens for it, so a process that started later is given the benefit
    of the doubt.
    """
    if not _is_local(endpoint):
        return None
    sockets = listeners.sockets_at(endpoint.port)
    if listeners.holder(child.pids(), sockets) is not None:
        return None
    other = listeners.holder(listeners.everybody(), sockets)
    started = None if other is None else listeners.started_at(other)
    return other if started is not None and started < child.record.start_time else None


async def _unhealthy(plan: _Plan, timeout_s: float) -> str:
    """Empty when the engine answers as it should: 2xx where a health path is configured, else anything below 500."""
    where = call.describe(plan.health_endpoint)
    try:
        answer = await call.request(plan.health_endpoint, "GET", plan.health or "/", timeout_s=timeout_s)
    except call.Unreachable as problem:
        return f"nothing answers: {problem}"
    if _is_well(plan, answer):
        return ""
    return f"GET {plan.health or '/'} at {where} answered with status {answer.status}"


def _is_well(plan: _Plan, answer: call.Answer) -> bool:
    return 200 <= answer.status < 300 if plan.health else answer.status < 500


async def _busy(plan: _Plan) -> bool | None:
    """What the configured fields say; None where there are none, or the engine does not answer with them."""
    probe = plan.busy
    if probe is None:
        return None
    try:
        answer = await call.request(plan.endpoint, "GET", probe.path, timeout_s=runner.ANSWER_S)
        told = answer.json() if answer.status == 200 else None
    except call.Unreachable:
        return None
    found = [value for field in probe.fields for value in _reach(told, field)]
    return any(bool(value) for value in found) if found else None


def _reach(value: object, field: str) -> list[object]:
    """What lies at a dotted path, or nothing."""
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return []
        value = value[part]
    return [value]


async def _is_taken(endpoint: Endpoint) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(endpoint.host, endpoint.port), PROBE_S)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def _endpoint(model: Model, url: str) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return Endpoint(socket=parts.path)
    try:
        port = parts.port
    except ValueError:
        raise _unfit(model, f'the port of url "{url}" is not a number up to 65535', "correct it") from None
    if parts.scheme != "http" or not parts.hostname:
        raise _unfit(model, f'url "{url}" cannot be used', "give it as http://HOST:PORT or unix:///PATH.sock")
    return Endpoint(host=parts.hostname, port=80 if port is None else port, base_path=parts.path.rstrip("/"))


def _unfit(model: Model, what: str, hint: str, kind: str = "bad-setting") -> BackendFailed:
    return BackendFailed(f'cannot load "{model.name}": {what}', hint=hint, kind=kind, preflight=True)


def _check_readable(model: Model) -> None:
    try:
        with Path(model.settings.file).open("rb"):
            return
    except IsADirectoryError:
        # Many engines are given a folder of files.
        return
    except OSError as problem:
        raise files.unreadable(model.name, Path(model.settings.file), "model file", problem) from None


def _listener(endpoint: Endpoint) -> int | None:
    """Blocking: the process of this machine that listens at an address, if it can be seen."""
    if not _is_local(endpoint):
        return None
    return listeners.holder(listeners.everybody(), listeners.sockets_at(endpoint.port))


def _is_local(endpoint: Endpoint) -> bool:
    return endpoint.host in ("localhost", "::1") or endpoint.host.startswith("127.")
