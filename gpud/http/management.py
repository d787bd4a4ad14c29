"""The management API: every route of the ml-offload API, and those of gpud's own that go beyond it.

It puts together what the other modules answer; /v1 is the gateway's.
"""

from collections.abc import Sequence

from gpud.core.record import replace
from gpud.http.admin import Admin
from gpud.http.admin_shapes import Reloaded
from gpud.http.inference import Inference
from gpud.http.loading_api import Loading
from gpud.http.models_api import Models
from gpud.http.openapi import Description
from gpud.http.own import Parts
from gpud.http.queries import Query
from gpud.http.routing import Handler, Route
from gpud.http.shapes import Api
from gpud.http.state_api import State
from gpud.http.streams import EVENTS, FOLLOW, FOLLOW_ONE, LOGS, Streams
from gpud.http.vram import Memory
from gpud.http.websocket import Live


def management_routes(parts: Parts, others: Sequence[Route] = ()) -> tuple[Route, ...]:
    """Everything on the management door but /v1. The last two describe all of them, and the ``others`` on that door."""
    routes = (
        *State(parts).routes(),
        *Models(parts).routes(),
        *Memory(parts).routes(),
        *Loading(parts).routes(),
        *Inference(parts).routes(),
        *Live(parts).routes(),
        *_shared_with_the_front(parts),
    )
    return (*routes, *Description(parts.engine, (*routes, *others)).routes())


def _shared_with_the_front(parts: Parts) -> tuple[Route, ...]:
    """What is the same on both doors."""
    streams, admin, api, tag = Streams(parts), Admin(parts), Api.MANAGEMENT, "watching"
    # What a workflow of the model orchestrator asks may come to either door.
    models = (replace(route, tag="models") for route in admin.routes() if route.path.startswith("/models/"))
    text, events = "text/plain", "text/event-stream"
    follow = "The log of one model, of gpud (proxy) or of all engines (upstream)"

    def watch(path: str, handler: Handler, summary: str, content: str, asks: Sequence[Query] = ()) -> Route:
        return Route("GET", path, handler, api, summary=summary, content=content, asks=asks, tag=tag)

    return (
        *models,
        watch("/metrics", admin.metrics, "For Prometheus", text),
        watch("/events", streams.events, "What happens, as it happens", events, EVENTS),
        watch("/api/events", streams.events, "As /events", events, EVENTS),
        watch("/logs", streams.logs, "The last lines of the log", text, LOGS),
        watch("/logs/stream", streams.follow, "The log as it is written", text, FOLLOW),
        watch("/logs/stream/{model...}", streams.follow, follow, text, FOLLOW_ONE),
        Route(
            "POST",
            "/reload",
            admin.reload,
            api,
            changes=True,
            summary="Read the configuration again",
            answer=Reloaded,
            tag="state",
        ),
    )
