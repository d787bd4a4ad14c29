"""The events that go out: their types, and what each says. Pure: outcomes and snapshots in, plain values out.

No caller, key or prompt is in them; lines of engines have lost their secrets before they come here.
"""

import time
from collections.abc import Mapping
from enum import StrEnum

from gpud.core.events import Alert, CatalogueChanged, ClaimGranted, ClaimOver, JobEnded, Notice
from gpud.core.facts import GpuStatus, JobKind, JobStatus, ModelStatus, QueueStatus, Snapshot, State
from gpud.core.record import Record
from gpud.http.lines import Line
from gpud.http.redaction import redacted

Body = Mapping[str, object]


class Type(StrEnum):
    """What an event is about. ``REQUEST`` comes only to those who ask for it by name."""

    SNAPSHOT = "snapshot"
    GAP = "gap"
    MODEL_STATE = "model_state"
    PROGRESS = "progress"
    QUEUE = "queue"
    VRAM = "vram"
    ALERT = "alert"
    DOWNLOAD = "download"
    JOB = "job"
    CLAIM = "claim"
    CATALOG = "catalog"
    NOTICE = "notice"
    LOG = "log"
    REQUEST = "request"


NAMED = 100
"""Of the models that have come, gone or changed together so many of each are named; the counts are of all."""

USUAL = frozenset(Type) - {Type.REQUEST}
"""What comes to those who name no types."""


class Event(Record):
    """``number`` grows through all types. ``text`` is all of it in JSON, ``body`` what it says beyond the head."""

    number: int
    id: str
    at_s: float
    type: Type
    body: Body
    text: str

    @property
    def size_bytes(self) -> int:
        return 2 * len(self.text) + 300


def timestamp(at_s: float) -> str:
    """The time of day as events and reports have it: UTC, with milliseconds."""
    whole, milliseconds = divmod(round(at_s * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def known(body: Mapping[str, object]) -> Body:
    """Without what is not known: it is left out, and never zero."""
    return {name: value for name, value in body.items() if value is not None}


# Models --------------------------------------------------------------------------------------------------------------


def model_state(status: ModelStatus | None, model: str, old: State, new: State, reason: str) -> Body:
    body: dict[str, object] = {
        "model": model,
        "state": new.word(),
        "was": old.word(),
        "phase": new.value,
        "reason": reason,
    }
    if status is not None:
        body |= known(
            {
                "engine": status.model.engine,
                "device": status.device or None,
                "need_bytes": status.need_bytes or None,
                "used_bytes": status.used_bytes,
                "load_seconds": status.load_seconds if new is State.READY else None,
                "error": status.error or None,
                "error_code": status.error_code or None,
                "hint": status.error_hint or None,
            }
        )
    return body


def model_now(status: ModelStatus) -> Body:
    """One model as it stands, in a picture of the whole."""
    return known(
        {
            "model": status.model.name,
            "aliases": list(status.model.aliases),
            "engine": status.model.engine,
            "state": status.state.word(),
            "phase": status.state.value,
            "in_flight": status.in_flight,
            "waiting": status.waiting,
            "waits_for": status.waits_for or None,
            "progress": status.progress,
            "need_bytes": status.need_bytes or None,
            "used_bytes": status.used_bytes,
            "error": status.error or None,
        }
    )


def progress(status: ModelStatus, snapshot: Snapshot) -> Body:
    name = status.model.name
    stage = next((job.stage for job in snapshot.jobs if job.model == name and job.stage), None)
    share = None if status.progress is None else round(status.progress, 2)
    return known({"model": name, "progress": share, "stage": stage, "engine": status.model.engine})


# Memory --------------------------------------------------------------------------------------------------------------


def vram(snapshot: Snapshot) -> Body:
    host = next((device(gpu) for gpu in snapshot.gpus if gpu.sample.is_host), None)
    return known({"gpus": [device(gpu) for gpu in snapshot.gpus if not gpu.sample.is_host], "host": host})


def device(status: GpuStatus) -> Body:
    sample = status.sample
    return known(
        {
            "gpu": None if sample.is_host else sample.index,
            "uuid": sample.uuid,
            "name": sample.name,
            "total_bytes": sample.total_bytes,
            "used_bytes": sample.used_bytes,
            "free_bytes": sample.free_bytes,
            "foreign_bytes": status.foreign_bytes,
            "committed_bytes": status.committed_bytes,
            "reserved_bytes": status.reserved_bytes,
            "available_bytes": status.available_bytes,
            "utilization_percent": sample.utilization_percent,
            "temperature_c": sample.temperature_c,
            "power_watts": None if sample.power_mw is None else sample.power_mw / 1000,
            "asleep": sample.asleep,
            "alert": status.alert,
            "health": sample.health or None,
        }
    )


def queue(snapshot: Snapshot) -> Body:
    return {"depth": len(snapshot.queue), "entries": [waiting(entry, snapshot.now_s) for entry in snapshot.queue]}


def waiting(entry: QueueStatus, now_s: float) -> Body:
    return known(
        {
            "position": entry.position,
            "model": entry.model or None,
            "claim": entry.claim or None,
            "priority": entry.priority.name.lower(),
            "need_bytes": entry.need_bytes,
            "requests": entry.requests,
            "waited_seconds": round(max(0.0, now_s - entry.since_s), 1),
            "until_seconds": None if entry.until_s is None else round(max(0.0, entry.until_s - now_s), 1),
            "overdue": entry.overdue,
            "waits_for": entry.waits_for,
        }
    )


def alert(told: Alert) -> Body:
    return {
        "gpu": told.index,
        "uuid": told.device,
        "name": told.name,
        "raised": told.raised,
        "used_bytes": told.used_bytes,
        "total_bytes": told.total_bytes,
        "limit_percent": told.limit_percent,
        "message": told.message,
    }


def download(status: JobStatus) -> Body:
    """One that is under way; its end is a job's."""
    return known(
        {
            "job": status.id,
            "what": status.model,
            "stage": status.stage,
            "done_bytes": status.done_bytes,
            "total_bytes": status.total_bytes,
            "progress": None if status.progress is None else round(status.progress, 3),
        }
    )


# The rest ------------------------------------------------------------------------------------------------------------


def job(ended: JobEnded) -> Body:
    return known(
        {
            "job": ended.job,
            "kind": ended.kind.value,
            "model": ended.model,
            "result": ended.result.value,
            "message": redacted(ended.message),
            "error_code": None if ended.error is None else ended.error.code,
            "hint": None if ended.error is None else ended.error.hint or None,
        }
    )


def claim(told: ClaimGranted | ClaimOver) -> Body:
    if isinstance(told, ClaimGranted):
        return {"claim": told.claim, "state": "granted", "uuid": told.device}
    if told.error is None:
        return {"claim": told.claim, "state": "ended", "reason": told.reason}
    return {
        "claim": told.claim,
        "state": "refused",
        "reason": told.error.message,
        "error_code": told.error.code,
        "hint": told.error.hint,
    }


def catalog(told: CatalogueChanged, models: int) -> Body:
    """``models`` is how many there are now."""
    body: dict[str, object] = {"models": models}
    for key, names in (("new", told.new), ("gone", told.gone), ("changed", told.changed)):
        body |= {key: list(names[:NAMED]), f"{key}_count": len(names)}
    return body


def notice(told: Notice) -> Body:
    return {
        "kind": told.kind.value,
        "level": told.level.value,
        "model": told.model,
        "message": redacted(told.message),
        "detail": [redacted(line) for line in told.detail],
        "fields": dict(told.fields),
    }


def log(line: Line) -> Body:
    return {"model": line.model, "engine": line.engine, "stream": line.stream, "text": line.text}


def picture(snapshot: Snapshot) -> Body:
    """Everything as it stands, for whoever begins, or has missed something."""
    return {
        "version": snapshot.version,
        "state": snapshot.state,
        "degraded": snapshot.degraded,
        "yielded": snapshot.yielded is not None,
        "models": [model_now(status) for status in snapshot.models],
        "downloads": [download(job) for job in snapshot.jobs if job.kind is JobKind.DOWNLOAD],
        "queue": queue(snapshot),
        "vram": vram(snapshot),
    }
