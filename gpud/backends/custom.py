"""Any program with an HTTP address as an engine, described by the configuration alone; or one that runs already.

With a ``command`` it is a child like every other engine. With a ``url`` alone it belongs to somebody else: gpud asks it
whether it works and to give its memory back, and never starts or stops it.
"""

import asyncio
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from gpud.backends import call, devices, files, listeners, runner
from gpud.backends.attached import AttachedRunner
from gpud.backends.custom_plan import Plan as Start
from gpud.backends.custom_plan import make_plan, unfit
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, Endpoint, Model
from gpud.core.plan import Plan
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Progress, Runner, RunnerRecord, Standing
from gpud.core.quote import Estimate
from gpud.core.record import replace

log = logging.getLogger(__name__)

PROBE_S = 1.0
"""One look at a starting engine. An answer that hangs counts as "not ready" and the look is repeated."""

ADOPT_S = 2.0

UNLOAD_S = 30.0
"""Giving many GiB back takes an engine seconds; one that needs longer than this is not going to."""


class Custom:
    """The backend."""

    name = "custom"

    def __init__(self, options: EngineOptions, launcher: Launcher) -> None:
        self._options = options
        self._launcher = launcher

    def check(self, model: Model) -> None:
        model = self._located(model)
        settings = model.settings
        plan = make_plan(model, self._options)
        if not settings.command:
            return
        if settings.directory and not Path(settings.directory).is_dir():
            raise unfit(model, f"directory {settings.directory} is not there", "correct or make it", "file-missing")
        program = plan.argv[0]
        # A relative program lies in the directory that the command runs in, as a shell would have it.
        place = Path(settings.directory, program) if "/" in program else Path(program)
        if shutil.which(str(place)) is None:
            why = "cannot be executed" if place.is_file() else "is not there"
            raise unfit(model, f'the program "{program}" of its command {why}', "correct the command", "binary-missing")
        if settings.file:
            _check_readable(model)

    def file_bytes(self, model: Model) -> int | None:
        return files.bytes_of(self._located(model))

    def fingerprint(self, model: Model) -> str:
        return files.fingerprint(self.name, self._options, self._located(model))

    def plan(self, model: Model, gpus: int) -> Plan | None:  # noqa: ARG002 - nothing is known of its memory
        return None

    def build(self) -> str:
        return ""

    async def probe(
        self,
        model: Model,  # noqa: ARG002 - it says nothing of its memory
        devices: tuple[str, ...],  # noqa: ARG002
        vendor: str,  # noqa: ARG002
        split: tuple[float, ...],  # noqa: ARG002
    ) -> Estimate | None:
        return None

    async def standing(self, model: Model) -> Standing | None:
        model = await asyncio.to_thread(self._located, model)
        if model.settings.command:
            return None
        plan = make_plan(model, self._options)
        try:
            answer = await call.request(plan.health_endpoint, "GET", plan.health or "/", timeout_s=PROBE_S)
        except call.Unreachable as problem:
            if problem.trouble is call.Trouble.REFUSED:
                raise _unusable(model, f"nothing answers: {problem}") from None
            return None
        if not _is_well(plan, answer):
            return None
        told = await _told(plan, PROBE_S)
        return Standing(sum(map(_works_on, told)), full=bool(told) and all(told))

    async def load(self, order: LoadOrder) -> Runner:
        model, fingerprint = await asyncio.to_thread(files.prepared, self.name, self._options, order.model)
        placed = replace(order, model=model)
        if not model.settings.command:
            return await self._attach(placed, fingerprint)
        return await runner.on_another_port(lambda: self._start(placed, fingerprint))

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        model = await asyncio.to_thread(self._located, model)
        at = record.endpoint
        plan = make_plan(model, self._options, socket_path=at.socket, port=at.port, key=at.key)
        plan = replace(plan, endpoint=at)
        child = None
        if record.child is not None:
            child = self._launcher.adopt(record.child)
            if child is None:
                return None
        if await _unhealthy(plan, ADOPT_S):
            return None
        if child is not None:
            return _child_runner(child, plan)
        return _attached(plan, await asyncio.to_thread(listeners.listener, plan.endpoint))

    async def close(self) -> None:
        """Nothing is shared between models."""

    async def _start(self, order: LoadOrder, fingerprint: str) -> Runner:
        model = order.model
        socket_path = self._launcher.socket_path(order.unit)
        port, key = runner.free_port(), runner.new_key()
        plan = make_plan(model, self._options, socket_path=socket_path, port=port, key=key)
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
            order.record(_record(order, fingerprint, plan.endpoint, child))
            order.report(Progress("starting"))
            await runner.until_ready(child, model, plan.argv[0], _Readiness(model, child, plan).look)
        return _child_runner(child, plan)

    async def _attach(self, order: LoadOrder, fingerprint: str) -> Runner:
        model = order.model
        plan = make_plan(model, self._options)
        trouble = await _unhealthy(plan, runner.ANSWER_S)
        if trouble:
            raise _unusable(model, trouble)
        order.record(_record(order, fingerprint, plan.endpoint, None))
        return _attached(plan, await asyncio.to_thread(listeners.listener, plan.endpoint))

    def _located(self, model: Model) -> Model:
        return files.located(model, self._options.models_dir)


def _unusable(model: Model, trouble: str) -> BackendFailed:
    return BackendFailed(
        f'cannot use "{model.name}": {trouble}',
        hint="start it, or correct its url; gpud did not start it and does not",
        kind="unreachable",
        preflight=True,
    )


def _record(order: LoadOrder, fingerprint: str, endpoint: Endpoint, child: Child | None) -> RunnerRecord:
    return RunnerRecord(
        unit=order.unit,
        model=order.model.name,
        engine=Custom.name,
        fingerprint=fingerprint,
        endpoint=endpoint,
        devices=order.devices,
        child=None if child is None else child.record,
    )


def _attached(plan: Start, pid: int | None) -> AttachedRunner:
    return AttachedRunner(
        plan.endpoint,
        pid,
        ask_busy=lambda: _busy(plan),
        give_back=lambda: _ask_to_unload(plan),
    )


async def _ask_to_unload(plan: Start) -> None:
    asked = plan.unload
    if asked is None:
        return
    try:
        answer = await call.request(plan.endpoint, asked.method, asked.path, body=asked.body, timeout_s=UNLOAD_S)
    except call.Unreachable as problem:
        if problem.trouble is not call.Trouble.REFUSED:
            log.warning('"%s" was asked to give its memory back and did not answer: %s', plan.model, problem)
        return
    if answer.status >= 400:
        log.warning(
            '"%s" refused to give its memory back: %s %s at %s answered with status %d',
            plan.model,
            asked.method,
            asked.path,
            call.describe(plan.endpoint),
            answer.status,
        )


def _child_runner(child: Child, plan: Start) -> ProcessRunner:
    asked = plan.unload

    async def ask_to_end() -> None:
        if asked is not None:
            await call.request(plan.endpoint, asked.method, asked.path, body=asked.body, timeout_s=runner.ANSWER_S)

    return ProcessRunner(
        child=child,
        endpoint=plan.endpoint,
        ask_busy=lambda: _busy(plan),
        ask_to_end=None if asked is None else ask_to_end,
    )


class _Readiness:
    """Whether an engine that was started answers as it should.

    Who it is that answers is looked up at the first answer of any kind, while the engine still loads: the look takes
    longer than a question, and at the last answer everybody would wait for it.
    """

    def __init__(self, model: Model, child: Child, plan: Start) -> None:
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
        child, at = self._child, self._plan.endpoint
        await runner.insist_on_ours(
            self._model.name,
            child,
            at,
            call.describe(self._plan.health_endpoint),
            hint="end it, or let the command use ${port} or ${socket}",
        )
        self._is_ours = True


async def _unhealthy(plan: Start, timeout_s: float) -> str:
    """Empty when the engine answers as it should: 2xx where a health path is configured, else anything below 500."""
    where = call.describe(plan.health_endpoint)
    try:
        answer = await call.request(plan.health_endpoint, "GET", plan.health or "/", timeout_s=timeout_s)
    except call.Unreachable as problem:
        return f"nothing answers: {problem}"
    if _is_well(plan, answer):
        return ""
    return f"GET {plan.health or '/'} at {where} answered with status {answer.status}"


def _is_well(plan: Start, answer: call.Answer) -> bool:
    return 200 <= answer.status < 300 if plan.health else answer.status < 500


async def _busy(plan: Start) -> bool | None:
    """What the configured fields say; None where there are none, or the engine does not answer with them."""
    found = await _told(plan, runner.ANSWER_S)
    return any(bool(value) for value in found) if found else None


async def _told(plan: Start, timeout_s: float) -> list[object]:
    """The values of all the configured fields, as far as the engine answers with them."""
    probe = plan.busy
    if probe is None:
        return []
    try:
        answer = await call.request(plan.endpoint, "GET", probe.path, timeout_s=timeout_s)
        told = answer.json() if answer.status == 200 else None
    except call.Unreachable:
        return []
    return [value for field in probe.fields for value in _reach(told, field)]


def _reach(value: object, field: str) -> list[object]:
    """What lies at a dotted path, in each item of the lists on the way; or nothing."""
    found = [value]
    for part in field.split("."):
        items = [item for one in found for item in (one if isinstance(one, list) else [one])]
        found = [item[part] for item in items if isinstance(item, Mapping) and part in item]
    return found


def _works_on(value: object) -> int:
    """How many requests a value of a field stands for."""
    if isinstance(value, (list, Mapping)):
        return len(value)
    return int(value) if isinstance(value, (int, float)) and value > 0 else int(bool(value))


async def _is_taken(endpoint: Endpoint) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(endpoint.host, endpoint.port), PROBE_S)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def _check_readable(model: Model) -> None:
    try:
        with Path(model.settings.file).open("rb"):
            return
    except IsADirectoryError:
        # Many engines are given a folder of files.
        return
    except OSError as problem:
        raise files.unreadable(model.name, Path(model.settings.file), "model file", problem) from None
