"""``gpudctl ps``: what runs, for whom, how long, and how fast. Models by D-Bus, their requests by HTTP."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from gpud.cli.arguments import Parser
from gpud.cli.output import Output, since, size, span, table
from gpud.cli.status import STATE_COLORS, as_data, memory
from gpud.cli.unload import LOADED
from gpud.core.counts import plural
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud
    from gpud.cli.http import Door

DESCRIPTION = """\
Show the loaded and loading models and their current requests, with the caller,
the duration, the size of the answer so far and the tokens per second. Models
come from gpud over D-Bus, requests over HTTP; with --url, both over HTTP."""

EXAMPLES = (
    "gpudctl ps",
    "gpudctl ps --json | jq -r '.requests[] | select(.state == \"waiting\") | .caller'",
    "gpudctl ps --url https://gpu.example.org:8080 --key-file ~/.config/gpud/key",
)

Record = dict[str, Any]

STATES = {
    "cold": "unloaded",
    "backoff": "failed",
    "draining": "unloading",
    "stopping": "unloading",
    "killing": "unloading",
}
"""Models' states by HTTP that D-Bus has other words for."""


def add_arguments(parser: Parser) -> None:
    from gpud.cli.http import add_door_arguments

    add_door_arguments(parser)


def run(arguments: Namespace, output: Output) -> int:
    activity = look(arguments)
    output.result("\n".join(rows(activity, output) or ["nothing runs"]), data_of(activity))
    if activity.problem is not None and not output.wants_json:
        output.note(f"requests are not shown: {activity.problem.message}")
    return 0


# What there is -------------------------------------------------------------------------------------------------------


class Activity(NamedTuple):
    """``status`` is what D-Bus says of everything, None where gpud was asked by HTTP alone; ``problem`` is why there
    are no requests. ``served`` is by model, since gpud started.
    """

    models: list[Record]
    requests: list[Record]
    served: dict[str, Record]
    status: Record | None = None
    problem: GpudError | None = None


def look(arguments: Namespace) -> Activity:
    """Raises GpudError where gpud answers neither over D-Bus nor over HTTP."""
    from gpud.cli import client
    from gpud.cli.exits import NotRunning

    async def ask(gpud: "Gpud") -> Record:
        return await gpud.overview()

    if arguments.url:
        return by_http(arguments)
    try:
        status = client.run(ask, arguments.bus)
    except NotRunning as absent:
        try:
            return by_http(arguments)
        except NotRunning:
            raise absent from None
    return with_requests(status, arguments)


def by_http(arguments: Namespace) -> Activity:
    from gpud.cli.http import Door

    door = Door.of(arguments)
    requests, served = requests_of(door)
    models = [
        {
            "Id": one.get("id", ""),
            "Backend": one.get("engine", ""),
            "State": STATES.get(str(one.get("state")), str(one.get("state"))),
            "ContextSize": one.get("context") or 0,
            "NeedBytes": one.get("size") or 0,
        }
        for one in door.ask("/v1/models").get("data", [])
    ]
    return Activity(models, requests, served)


def with_requests(status: Record, arguments: Namespace) -> Activity:
    """What D-Bus has said, and what HTTP says beside it, if it does."""
    from gpud.cli.http import Door

    try:
        requests, served = requests_of(Door.of(arguments))
    except GpudError as problem:
        return Activity(status["Models"], [], {}, status, problem)
    return Activity(status["Models"], requests, served, status)


def requests_of(door: "Door") -> tuple[list[Record], dict[str, Record]]:
    answer = door.ask("/api/requests")
    return list(answer.get("requests", [])), dict(answer.get("served", {}))


# For programs --------------------------------------------------------------------------------------------------------


def data_of(activity: Activity) -> Record:
    problem = activity.problem
    return {
        "models": [as_data(one) for one in activity.models if _runs(one)],
        "requests": activity.requests,
        "served": activity.served,
        "problem": None if problem is None else problem.text,
    }


def _runs(model: Record) -> bool:
    return model["State"] in LOADED


# For a person --------------------------------------------------------------------------------------------------------


def rows(activity: Activity, output: Output) -> list[str]:
    """A line for each request, and one for each model that has none."""
    found = []
    by_model: dict[str, list[Record]] = {}
    for request in activity.requests:
        if request["model"]:
            by_model.setdefault(request["model"], []).append(request)
    for model in activity.models:
        mine = by_model.pop(model["Id"], [])
        if mine:
            found += [_request(model["Id"], one, memory_of(model)) for one in mine]
        elif _runs(model):
            found.append(_model(model))
    for name, mine in by_model.items():  # whose model is no longer configured
        found += [_request(name, one, "") for one in mine]
    head = ("MODEL", "STATE", "MEMORY", "FOR", "SINCE", "TOKENS/S", "SENT", "ROUTE", "WAITS FOR")
    return table(output, head, found) if found else []


def memory_of(model: Record) -> str:
    if "VramBytes" in model:
        return memory(model)
    return f"~{size(model['NeedBytes'])}" if model["NeedBytes"] else ""


def _model(model: Record) -> list[tuple[str, str]]:
    """Where requests are not known, their number is."""
    state = model["State"]
    in_flight = model.get("InFlight", 0)
    last = since(model["LastUsedUSec"]) if model.get("LastUsedUSec") and not in_flight else ""
    return [
        (model["Id"], "bold"),
        ("idle" if state == "ready" and not in_flight else state, STATE_COLORS.get(state, "")),
        (memory_of(model), ""),
        (plural(in_flight, "request") if in_flight else "nobody", ""),
        (last, "dim"),
        ("", ""),
        ("", ""),
        ("", ""),
        (model.get("WaitsFor", ""), ""),
    ]


def _request(model: str, request: Record, held: str) -> list[tuple[str, str]]:
    speed = request.get("tokens_per_s")
    return [
        (model, "bold"),
        (request["state"], "yellow" if request["state"] == "waiting" else "green"),
        (held, ""),
        (request["caller"], ""),
        (f"{span(request['duration_s'])} ago", ""),
        ("" if speed is None else f"{speed:.1f}", ""),
        (size(request["sent_bytes"]) if request["sent_bytes"] else "", ""),
        (request["route"], "dim"),
        (request["message"].removeprefix(f'"{model}": '), ""),
    ]
