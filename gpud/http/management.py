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
from gpud.http.routing import Route
from gpud.http.shapes import Api
from gpud.http.state_api import State
from gpud.http.streams import Streams
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
    follow = "The log of one model, of gpud (proxy) or of all engines (upstream)"
    return (
        *models,
        Route("GET", "/metrics", admin.metrics, api, summary="For Prometheus", tag=tag),
        Route("GET", "/events", streams.events, api, summary="What happens, as it happens", tag=tag),
        Route("GET", "/api/events", streams.events, api, summary="As /events", tag=tag),
        Route("GET", "/logs", streams.logs, api, summary="The last lines of the log", tag=tag),
        Route("GET", "/logs/stream", streams.follow, api, summary="The log as it is written", tag=tag),
        Route("GET", "/logs/stream/{model...}", streams.follow, api, summary=follow, tag=tag),
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
