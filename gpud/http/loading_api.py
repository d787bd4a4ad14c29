"""The management API's routes that load, unload and switch models, and those about the queue and the jobs.

What may be changed for one load is its context and its priority; the rest is configured, and said to be.
"""

import re
from typing import Any

from gpud.core.engine_wish import check_served, engines_wished
from gpud.core.errors import InvalidArguments, InvalidOption, NoSuchJob, NoSuchModel
from gpud.core.events import JobEnded, LoadOptions
from gpud.core.facts import JobStatus, Model, State
from gpud.http import queries
from gpud.http.admin_shapes import UnloadError
from gpud.http.changing import Unloaded, begin_load, is_there, load, status_of, unload
from gpud.http.exchange import Exchange
from gpud.http.loading_shapes import (
    JobError,
    JobInfo,
    JobUnload,
    LoadAnswer,
    LoadBody,
    LoadParams,
    ParamsUsed,
    Queue,
    QueueEntry,
    Scheduled,
    SwitchAnswer,
    SwitchBody,
    UnloadAnswer,
    UnloadBody,
)
from gpud.http.models_api import serves
from gpud.http.own import (
    Parts,
    asked,
    backend_name,
    engines_of,
    gb,
    may_see,
    model_of,
    seen,
    wished_priority,
)
from gpud.http.routing import Route
from gpud.http.shapes import Api, HttpError, error_value

ALL = "all"

JOB_DIGITS = 15
"""No job has a number as long."""


class Loading:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> tuple[Route, ...]:
        def change(path: str, handler: Any, summary: str, body: Any, answer: Any, method: str = "POST") -> Route:
            return Route(
                method,
                path,
                handler,
                Api.MANAGEMENT,
                changes=True,
                summary=summary,
                body=body,
                answer=answer,
                tag="loading",
            )

        def look(path: str, handler: Any, summary: str, answer: Any, *asks: queries.Query) -> Route:
            return Route("GET", path, handler, Api.MANAGEMENT, summary=summary, answer=answer, asks=asks, tag="loading")

        wait = queries.truth("wait", "answer when it has ended")
        return (
            change("/load", self._load, "Load a model", LoadBody, LoadAnswer),
            change("/unload", self._unload, "Unload a model, a backend's models, or all", UnloadBody, UnloadAnswer),
            change("/switch", self._switch, "Unload a backend's models and load another", SwitchBody, SwitchAnswer),
            change("/schedule", self._schedule, "Queue a load; answers at once", LoadBody, Scheduled),
            look("/queue", self._queue, "Who waits for memory, in the order of service", Queue),
            look("/jobs", self._jobs, "Loads, unloads and downloads under way", list[JobInfo]),
            look("/jobs/{id}", self._job, "One job, also after its end", JobInfo, wait),
            change("/jobs/{id}", self._cancel, "Call a job off", None, JobInfo, "DELETE"),
        )

    # Loading ---------------------------------------------------------------------------------------------------------

    async def _load(self, exchange: Exchange) -> None:
        body = await asked(exchange, LoadBody)
        name, options = self._wish(exchange, body)
        if body.wait:
            job = (await load(self._parts.engine, name, exchange.caller, options)).job
        else:
            job = begin_load(self._parts.engine, name, exchange.caller, options)
        answer = self._loaded(exchange, name, job, options)
        await exchange.answer(answer, 200 if answer.status == "loaded" else 202, _job_location(job))

    def _wish(self, exchange: Exchange, body: LoadBody) -> tuple[str, LoadOptions]:
        """The model, and what is asked of its load. Raises GpudError."""
        parts, params = self._parts, body.params or LoadParams()
        engines = _wished(parts, body)
        said = body.model or body.model_id
        name = model_of(exchange, parts, said, body.model_path)
        model = status_of(parts.engine, name).model
        _check_backend(model, body.backend, engines)
        _check_layers(model, body.gpu_layers if body.gpu_layers is not None else params.gpu_layers)
        _check_configured(model, params)
        if params.context_length is not None and params.context_length < 1:
            raise InvalidOption(f"context_length is {params.context_length}", hint="it is at least 1")
        if body.wait_seconds is not None and not 0 <= body.wait_seconds <= 86400:
            raise InvalidOption(f"wait_seconds is {body.wait_seconds:g}", hint="it is from 0 to 86400")
        return name, LoadOptions(
            context=params.context_length,
            evict=body.evict,
            priority=wished_priority(exchange, body.priority),
            wait_s=body.wait_seconds,
            engines=engines,
        )

    def _loaded(self, exchange: Exchange, name: str, job: int, options: LoadOptions) -> LoadAnswer:
        id_, status = next((id_, one) for id_, one in seen(exchange) if one.model.name == name)
        settings = status.model.settings
        is_ready = status.state is State.READY
        backend = backend_name(status.model.engine)
        if is_ready:
            message = f'"{name}" is loaded'
        else:
            message = f'"{name}" is being loaded' + (f": {status.waits_for}" if status.waits_for else "")
        return LoadAnswer(
            success=True,
            status="loaded" if is_ready else "queued" if status.waiting else "loading",
            message=message,
            model=name,
            model_id=id_,
            backend=backend,
            job=job,
            vram_usage_gb=gb(status.need_bytes if status.used_bytes is None else status.used_bytes),
            load_time_seconds=status.load_seconds if is_ready else None,
            estimated_time_seconds=None if is_ready else status.load_seconds,
            params_used=ParamsUsed(
                context_length=options.context or settings.context,
                gpu_layers=settings.layers,
                kv_cache_type=settings.cache_type_k,
                flash_attention=settings.flash_attention,
                threads=settings.threads,
            ),
            reduced=status.reduced,
        )

    async def _schedule(self, exchange: Exchange) -> None:
        body = await asked(exchange, LoadBody)
        name, options = self._wish(exchange, body)
        engine = self._parts.engine
        job = begin_load(engine, name, exchange.caller, options)
        snapshot = engine.snapshot()
        status = status_of(engine, name)
        entry = next((one for one in snapshot.queue if one.model == name), None)
        is_ready = status.state is State.READY
        answer = Scheduled(
            status="loaded" if is_ready else "queued",
            job=job,
            model=name,
            priority=(options.priority if options.priority is not None else status.model.priority).name.lower(),
            position=None if entry is None else entry.position,
            estimated_time_seconds=None if is_ready else status.load_seconds,
        )
        await exchange.answer(answer, 202, _job_location(job))

    async def _switch(self, exchange: Exchange) -> None:
        body = await asked(exchange, SwitchBody)
        parts, engine = self._parts, self._parts.engine
        engines = _wished(parts, body)
        name = model_of(exchange, parts, body.model or body.model_id, body.model_path)
        model = status_of(engine, name).model
        _check_backend(model, body.backend, engines)
        _check_layers(model, body.gpu_layers)
        priority = wished_priority(exchange, body.priority)
        # What cannot be started at all unloads nobody: this raises why.
        await engine.quote(name)
        family = engines or engines_of(parts, backend_name(model.engine))
        gone = await self._away(exchange, [one for one in self._there(exchange, family) if one != name], body.force)
        ended = await load(engine, name, exchange.caller, LoadOptions(priority=priority, engines=engines))
        status = status_of(engine, name)
        await exchange.answer(
            SwitchAnswer(
                success=True,
                status="switched",
                model=name,
                backend=body.backend or backend_name(status.model.engine),
                unloaded=gone.names,
                vram_freed_gb=gb(gone.freed_bytes),
                load_time_seconds=status.load_seconds,
                job=ended.job,
            )
        )

    async def _away(self, exchange: Exchange, names: list[str], force: bool) -> Unloaded:
        """All of these. Raises why, when one of them stays."""
        gone = await unload(self._parts.engine, names, exchange.caller, force=force)
        for error in gone.errors.values():
            raise error
        return gone

    # Unloading -------------------------------------------------------------------------------------------------------

    async def _unload(self, exchange: Exchange) -> None:
        body = await asked(exchange, UnloadBody)
        names, backend = self._meant(exchange, body)
        found = await unload(self._parts.engine, names, exchange.caller, force=body.force)
        if found.errors and not found.names:
            raise next(iter(found.errors.values()))
        errors = [
            UnloadError(name, str(error_value(Api.MANAGEMENT, error)["error"]["message"]))
            for name, error in found.errors.items()
        ]
        status = "partly" if errors else "unloaded" if found.names else "not_loaded"
        freed = gb(found.freed_bytes)
        called = found.called_off, found.stay_away
        await exchange.answer(UnloadAnswer(not errors, status, backend, found.names, freed, errors, *called))

    def _meant(self, exchange: Exchange, body: UnloadBody) -> tuple[list[str], str]:
        """The models that are to go, and the backend's name for the answer."""
        parts, said = self._parts, body.model or body.model_id
        backend = "" if body.backend == ALL else body.backend
        if said == ALL or not (said or body.model_path):
            return self._there(exchange, engines_of(parts, backend)), backend or ALL
        try:
            name = model_of(exchange, parts, said, body.model_path)
        except NoSuchModel:
            # A backend may stand where a model could: all of its models then.
            try:
                engines = engines_of(parts, str(said))
            except InvalidArguments:
                engines = ()
            if not engines:
                raise
            return self._there(exchange, engines), str(said)
        model = status_of(parts.engine, name).model
        _check_backend(model, backend, engines_of(parts, backend))
        return [name], backend or backend_name(model.engine)

    def _there(self, exchange: Exchange, engines: tuple[str, ...]) -> list[str]:
        return [
            one.model.name for _, one in seen(exchange) if is_there(one) and (not engines or serves(one.model, engines))
        ]

    # The queue and the jobs ------------------------------------------------------------------------------------------

    async def _queue(self, exchange: Exchange) -> None:
        entries = queue_entries(exchange)
        await exchange.answer(Queue(len(entries), entries))

    async def _jobs(self, exchange: Exchange) -> None:
        jobs = self._parts.engine.snapshot().jobs
        await exchange.answer([self._running(job) for job in jobs if may_see(exchange, job.model)])

    async def _job(self, exchange: Exchange) -> None:
        number = _job_number(exchange)
        status = self._parts.engine.job(number)
        wait = exchange.request.parameter("wait").lower() in ("1", "true", "yes")
        if status is not None and not wait:
            if not may_see(exchange, status.model):
                raise NoSuchJob(f"there is no job {number}", hint="GET /jobs lists those under way")
            await exchange.answer(self._running(status))
            return
        await exchange.answer(await self._ended(exchange, number))

    async def _ended(self, exchange: Exchange, number: int) -> JobInfo:
        ended = await self._parts.engine.wait(number)
        if not may_see(exchange, ended.model):
            raise NoSuchJob(f"there is no job {number}", hint="GET /jobs lists those under way")
        return _over(ended)

    async def _cancel(self, exchange: Exchange) -> None:
        number = _job_number(exchange)
        engine = self._parts.engine
        status = engine.job(number)
        if status is None or not may_see(exchange, status.model):
            ended = None if status is not None else await self._ended(exchange, number)
            told = "has ended already" if ended is not None else "is not there"
            raise NoSuchJob(f"job {number} {told}", hint="GET /jobs lists those under way")
        engine.cancel(number, exchange.caller, any_owner=True)
        await exchange.answer(await self._ended(exchange, number))

    def _running(self, status: JobStatus) -> JobInfo:
        snapshot = self._parts.engine.snapshot()
        return JobInfo(
            id=status.id,
            kind=status.kind.value,
            model=status.model or ALL,
            state="running",
            stage=status.stage or None,
            progress=status.progress,
            since=self._parts.time_of_day(snapshot, status.since_s),
        )


def queue_entries(exchange: Exchange) -> list[QueueEntry]:
    """Those who wait, as far as the caller may know of them."""
    snapshot = exchange.engine.snapshot()
    return [
        QueueEntry(
            position=one.position,
            model=one.model or None,
            claim=one.claim or None,
            priority=one.priority.name.lower(),
            need_gb=gb(one.need_bytes),
            requests=one.requests,
            waited_seconds=round(max(0.0, snapshot.now_s - one.since_s), 1),
            until_seconds=None if one.until_s is None else round(max(0.0, one.until_s - snapshot.now_s), 1),
            overdue=one.overdue,
            waits_for=one.waits_for,
        )
        for one in snapshot.queue
        if may_see(exchange, one.model)
    ]


def _over(ended: JobEnded) -> JobInfo:
    error = None
    if ended.error is not None:
        value = error_value(Api.MANAGEMENT, ended.error)["error"]
        error = JobError(value["type"], value["message"])
    unload = None
    if (what := ended.unload) is not None:
        stay = [UnloadError(name, why) for name, why in what.left.items()]
        freed = gb(sum(what.unloaded.values()))
        unload = JobUnload([*what.unloaded, *what.called_off], freed, stay, list(what.called_off), list(what.stay_away))
    return JobInfo(
        id=ended.job,
        kind=ended.kind.value,
        model=ended.model or ALL,
        state=ended.result.value,
        message=ended.message,
        error=error,
        unload=unload,
    )


def _job_number(exchange: Exchange) -> int:
    text = exchange.parameters["id"]
    if not re.fullmatch(f"[0-9]{{1,{JOB_DIGITS}}}", text):
        raise HttpError(404, "not_found", f"there is no job {text[:64]!a}", hint="a job's name is its number")
    return int(text)


def _job_location(job: int) -> tuple[str, str]:
    return "Location", f"/jobs/{job}"


def _wished(parts: Parts, body: LoadBody | SwitchBody) -> tuple[str, ...]:
    """The engines that are asked for. Raises GpudError."""
    if not body.engines:
        return engines_of(parts, body.backend)
    if body.backend:
        raise InvalidOption('both "backend" and "engines" are given', hint="say one of them")
    return engines_wished(body.engines)


def _check_backend(model: Model, backend: str, engines: tuple[str, ...]) -> None:
    if not backend:
        check_served(model, engines)
    elif engines and not serves(model, engines):
        served = ", ".join(dict.fromkeys(backend_name(one.engine) for one in (model, *model.alternatives)))
        raise InvalidOption(f'"{model.name}" is not served by "{backend}"', hint=f"it is served by {served}")


def _check_layers(model: Model, layers: int | str | None) -> None:
    if layers is None:
        return
    if isinstance(layers, int) and abs(layers) >= 1 << 31:
        raise InvalidOption("gpu_layers is too large a number", hint='it is a number, "auto" or "all"')
    meant = "all" if str(layers) == "-1" else str(layers)
    configured = model.settings.layers or "auto"
    if meant != configured:
        raise InvalidOption(
            f'gpu_layers is {meant[:16]!a}, and "{model.name}" is configured with {configured}',
            hint="how many layers go to the GPU is configured: layers: of the model in gpud.yaml",
        )


def _check_configured(model: Model, params: LoadParams) -> None:
    """Raises InvalidOption for what would have to be configured."""
    settings = model.settings
    for name, wanted, configured, key in (
        ("kv_cache_type", params.kv_cache_type, settings.cache_type_k, "cache_type_k"),
        ("flash_attention", _switch_word(params.flash_attention), settings.flash_attention, "flash_attention"),
        ("rope_freq_scale", params.rope_freq_scale, None, "extra_flags"),
    ):
        if wanted is not None and wanted != configured:
            raise InvalidOption(
                f'{name} cannot be chosen for one load of "{model.name}"', hint=f"set {key}: of the model in gpud.yaml"
            )


def _switch_word(value: bool | str | None) -> str | None:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value
