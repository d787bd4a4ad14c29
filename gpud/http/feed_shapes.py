"""How an event is written, for the listeners that there are: gpud's own, llama-swap's, and those of the management API.

Pure, apart from asking the feed how things stand where a shape tells the whole each time. docs/metrics.md has the table
of names.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from gpud.core import statuses
from gpud.core.counts import plural
from gpud.core.facts import ModelStatus, State
from gpud.http.feed_events import Body, Event, Type, timestamp
from gpud.http.lines import Origin

if TYPE_CHECKING:
    from gpud.http.feed import Feed

MIB = 1 << 20
HISTORY_LINES = 200


class Shape(StrEnum):
    """``EVENTS``: server-sent events, resumable. ``JSON``: the same as bare objects, for a WebSocket.
    ``LLAMA_SWAP``: its server-sent events. ``MANAGEMENT``: bare objects with the names of the management API's ``/ws``.
    """

    EVENTS = "events"
    JSON = "json"
    LLAMA_SWAP = "llama-swap"
    MANAGEMENT = "management"


Encoder = Callable[[Event, "Feed"], Iterator[bytes]]


def encoder(shape: Shape) -> Encoder:
    return _ENCODERS[shape]


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# gpud's own ----------------------------------------------------------------------------------------------------------


def _events(event: Event, _feed: "Feed") -> Iterator[bytes]:
    # A gap has no id: until something has been read, the last one that was read stays the last one.
    head = "" if event.type is Type.GAP else f"id: {event.id}\n"
    yield f"{head}event: {event.type}\ndata: {event.text}\n\n".encode("utf-8", "backslashreplace")


def _json(event: Event, _feed: "Feed") -> Iterator[bytes]:
    yield event.text.encode("utf-8", "backslashreplace")


# llama-swap's --------------------------------------------------------------------------------------------------------

_SWAP_STATES = {
    State.COLD: "stopped",
    State.LOADING: "starting",
    State.READY: "ready",
    State.DRAINING: "stopping",
    State.STOPPING: "stopping",
    State.KILLING: "stopping",
    State.BACKOFF: "stopped",
    State.FAILED: "stopped",
}


def swap_state(state: State) -> str:
    """A model's state in llama-swap's words."""
    return _SWAP_STATES[state]


def _llama_swap(event: Event, feed: "Feed") -> Iterator[bytes]:
    if event.type is Type.SNAPSHOT:
        if feed.lines is not None:
            for source, origin in (("proxy", Origin.GPUD), ("upstream", Origin.ENGINE)):
                lines = feed.lines.tail(limit=HISTORY_LINES, origin=origin)
                yield _swap_log(source, "".join(f"{line.shown(named=True)}\n" for line in lines))
        yield _swap_models(feed)
    elif event.type in (Type.MODEL_STATE, Type.CATALOG):
        yield _swap_models(feed)
    elif event.type is Type.NOTICE:
        yield _swap_log("proxy", f"{event.body['message']}\n")
    elif event.type is Type.LOG:
        yield _swap_log("upstream", f"[{event.body['model'] or event.body['engine']}] {event.body['text']}\n")


def _swap_models(feed: "Feed") -> bytes:
    statuses = sorted(feed.engine.snapshot().models, key=lambda status: status.model.name)
    return _swap_message("modelStatus", [_swap_model(status) for status in statuses])


def _swap_model(status: ModelStatus) -> Body:
    model = status.model
    return {
        "id": model.name,
        "name": "",
        "description": "",
        "state": swap_state(status.state),
        "unlisted": False,
        "peerID": "",
        "aliases": list(model.aliases),
    }


def _swap_log(source: str, text: str) -> bytes:
    return _swap_message("logData", {"source": source, "data": text})


def _swap_message(kind: str, data: object) -> bytes:
    """The data are JSON within JSON: a text, as its clients expect."""
    envelope = _compact({"type": kind, "data": _compact(data)})
    return f"event:message\ndata:{envelope}\n\n".encode("utf-8", "backslashreplace")


# The management API's ------------------------------------------------------------------------------------------------


_WISHES = {
    "vram_update": "vram_updates",
    "model_load_progress": "model_events",
    "model_loaded": "model_events",
    "model_unloaded": "model_events",
    "models_changed": "model_events",
    "backend_status": "backend_status",
    "inference_complete": "inference_events",
}
"""What a client of ``/ws`` wishes for, by the names of the messages; errors come to everybody."""

WISHED = frozenset({"vram_updates", "model_events", "backend_status"})
"""What comes to one who wishes for nothing: all but the end of each request."""


def wishes_of(said: Mapping[str, object]) -> frozenset[str]:
    """The wishes after such a message of a client: ``{"vram_updates": false, "inference_events": true}``."""
    return frozenset(wish for wish in _WISHES.values() if said.get(wish, wish in WISHED))


def management_kinds(wishes: frozenset[str]) -> frozenset[Type]:
    """The types of events that messages for these wishes are made of."""
    kinds = {Type.ALERT, Type.NOTICE, Type.SNAPSHOT}
    if "vram_updates" in wishes:
        kinds.add(Type.VRAM)
    if "model_events" in wishes:
        kinds |= {Type.MODEL_STATE, Type.PROGRESS, Type.CATALOG}
    if "backend_status" in wishes:
        kinds.add(Type.MODEL_STATE)
    if "inference_events" in wishes:
        kinds.add(Type.REQUEST)
    return frozenset(kinds)


def management(wishes: frozenset[str] = WISHED) -> Encoder:
    """The shape :attr:`Shape.MANAGEMENT` for one who has other wishes."""

    def encode(event: Event, feed: "Feed") -> Iterator[bytes]:
        for kind, body in _named(event, feed):
            if _WISHES.get(kind) in (None, *wishes):
                message = {"type": kind, "timestamp": timestamp(event.at_s), **body}
                yield _compact(message).encode("utf-8", "backslashreplace")

    return encode


def _named(event: Event, feed: "Feed") -> Iterator[tuple[str, Body]]:
    body = event.body
    match event.type:
        case Type.SNAPSHOT:
            yield "vram_update", _vram(_mapping(body["vram"]))
            for status in feed.engine.snapshot().models:
                yield "backend_status", _backend(status.model.engine, status.state, status.model.name)
        case Type.VRAM:
            yield "vram_update", _vram(body)
        case Type.PROGRESS:
            yield "model_load_progress", _progress(body, feed)
        case Type.MODEL_STATE:
            yield from _model(body)
        case Type.CATALOG:
            yield "models_changed", body
        case Type.NOTICE:
            yield from _notice(body)
        case Type.REQUEST:
            yield "inference_complete", _inference(body)
        case Type.ALERT if body["raised"]:
            yield "error", {"error": "vram_alert", "message": body["message"], "gpu_id": body["gpu"]}
        case Type.GAP:
            yield "error", {"error": "events_lost", "message": _gap_text(body), "lost": body.get("lost")}
        case _:
            return


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _gap_text(body: Body) -> str:
    lost = body.get("lost")
    if isinstance(lost, int) and lost:
        return f"{plural(lost, 'event was', 'events were')} not read in time"
    return f"earlier events are missing ({body['reason']})"


def _model(body: Body) -> Iterator[tuple[str, Body]]:
    model = {"model_id": body["model"], "model_name": body["model"], "backend": body.get("engine", "")}
    state = State(str(body["phase"]))
    if state is State.READY and body["was"] != "unloading":
        yield (
            "model_loaded",
            {
                **model,
                "vram_usage_gb": _gb(body.get("used_bytes", body.get("need_bytes"))),
                "load_time_seconds": body.get("load_seconds"),
            },
        )
    elif state is State.FAILED or state is State.BACKOFF:
        yield "error", {**model, "error": body.get("error_code", "failed"), "message": body.get("error", "")}
    if state in (State.READY, State.COLD, State.FAILED, State.BACKOFF):
        yield "backend_status", _backend(str(body.get("engine", "")), state, str(body["model"]))


def _backend(engine: str, state: State, model: str) -> Body:
    status = "error" if state in (State.FAILED, State.BACKOFF) else "active" if state.has_engine() else "inactive"
    loaded = model if state in (State.READY, State.DRAINING) else None
    return {"backend": engine, "status": status, "model_id": model, "loaded_model": loaded}


def _notice(body: Body) -> Iterator[tuple[str, Body]]:
    fields = _mapping(body["fields"])
    if body["kind"] == "model-unloaded":
        yield (
            "model_unloaded",
            {
                "model_id": body["model"],
                "model_name": body["model"],
                "backend": fields.get("engine", ""),
                "vram_freed_gb": _gb(fields.get("freed_bytes")),
            },
        )
    elif body["level"] == "error":
        yield "error", {"error": body["kind"], "message": body["message"], "model_id": body["model"] or None}


def _progress(body: Body, feed: "Feed") -> Body:
    """What is left is reckoned from how long the last load took, where there was one."""
    done = body.get("progress")
    share = float(done) if isinstance(done, int | float) else 0.0
    status = statuses.status_of(feed.engine.snapshot().models, str(body["model"]))
    took_s = None if status is None else status.load_seconds
    return {
        "model_id": body["model"],
        "model_name": body["model"],
        "progress_percent": round(100 * share, 1),
        "stage": body.get("stage", ""),
        "estimated_seconds_remaining": None if took_s is None else round(took_s * (1 - share), 1),
    }


def _inference(body: Body) -> Body:
    return {
        "model_id": body["model"],
        "model_name": body["model"],
        "status": body["status"],
        "duration_seconds": body["duration_seconds"],
        "prompt_tokens": body.get("prompt_tokens"),
        "completion_tokens": body.get("generated_tokens"),
    }


def _vram(body: Mapping[str, object]) -> Body:
    """As the management API's ``/vram`` has it: sums over the GPUs, GB of 1024 MiB; null where something is unknown."""
    devices = body.get("gpus")
    gpus = [_mapping(device) for device in devices] if isinstance(devices, list) else []
    total, used, free = (_sum(gpus, name) for name in ("total_bytes", "used_bytes", "free_bytes"))
    return {
        "total_gb": _gb(total),
        "used_gb": _gb(used),
        "free_gb": _gb(free),
        "utilization_percent": round(100 * used / total, 1) if used is not None and total else None,
        "gpus": [
            {
                "id": gpu["gpu"],
                "gpu_id": gpu["gpu"],
                "name": gpu["name"],
                "total_mb": _mb(gpu.get("total_bytes")),
                "used_mb": _mb(gpu.get("used_bytes")),
                "free_mb": _mb(gpu.get("free_bytes")),
                "utilization_percent": gpu.get("utilization_percent"),
                "temperature_c": gpu.get("temperature_c"),
            }
            for gpu in gpus
        ],
    }


def _sum(gpus: list[Mapping[str, object]], name: str) -> int | None:
    values = [gpu.get(name) for gpu in gpus]
    numbers = [value for value in values if isinstance(value, int)]
    return sum(numbers) if len(numbers) == len(values) else None


def _mb(value: object) -> int | None:
    return value // MIB if isinstance(value, int) else None


def _gb(value: object) -> float | None:
    return round(value / MIB / 1024, 2) if isinstance(value, int | float) else None


_ENCODERS: Mapping[Shape, Encoder] = {
    Shape.EVENTS: _events,
    Shape.JSON: _json,
    Shape.LLAMA_SWAP: _llama_swap,
    Shape.MANAGEMENT: management(),
}
