"""The description of the management API: true, complete, and readable without anything from elsewhere."""

import inspect
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from house import house
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from sparse_model import write_llama

from gpud.core.facts import EngineSettings, Model
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.gateway import Gateway
from gpud.http.management import management_routes
from gpud.http.openapi import document, plain_path
from gpud.http.page import STYLE
from gpud.http.routing import Route

Run = Callable[..., Any]
A = Model("Alpha-8B", "fake")


def described(found: Any) -> tuple[tuple[Route, ...], dict[str, Any]]:
    """All routes of the door, with /v1 as the daemon puts them together, and their description."""
    engine: Engine = found.engine
    v1 = Gateway(engine, Pool()).v1_routes()
    routes = (*management_routes(found.parts, v1), *v1)
    return routes, document(routes, "1.2.3")


def test_the_description_is_openapi(run: Run, tmp_path: Path) -> None:
    """As the standard has it, every reference resolved; with /v1 and without."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            OpenAPIV31SpecValidator((await found.ask("GET /openapi.json")).value).validate()
            OpenAPIV31SpecValidator(described(found)[1]).validate()

    run(work())


def test_every_route_is_described_once(run: Run, tmp_path: Path) -> None:
    """With a summary, a tag and a name of its own."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            routes, told = described(found)
            asked = {(route.method.lower(), plain_path(route.path)) for route in routes}
            assert asked == {(method, path) for path, methods in told["paths"].items() for method in methods}
            operations = [one for methods in told["paths"].values() for one in methods.values()]
            names = [one["operationId"] for one in operations]
            assert len(names) == len(set(names))
            assert all(one["summary"] and one["tags"] for one in operations)
            tags = {tag["name"] for tag in told["tags"]}
            assert {tag for one in operations for tag in one["tags"]} == tags

    run(work())


def test_every_parameter_that_is_read_is_described(run: Run, tmp_path: Path) -> None:
    """And none is described that nothing reads. Which handler reads what is in the source of its module."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            own = [route for route in found.routes["management"] if not route.path.startswith("/v1")]
            described = {query.name for route in own for query in route.asks}
            modules = {inspect.getmodule(route.handler) for route in own}
            source = "".join(inspect.getsource(module) for module in modules if module is not None)
            read = set(re.findall(r'(?:parameter\(|number\(exchange, |choice\(exchange, )"([\w-]+)"', source))
            read |= set(re.findall(r'"([\w-]+)" in exchange\.request\.query', source))
            assert described == read

    run(work())


def test_every_route_of_gpuds_own_is_typed(run: Run, tmp_path: Path) -> None:
    """What answers JSON says which, what answers anything else says what; a WebSocket answers neither."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            untyped = {route.path for route in found.routes["management"] if route.answer is None and not route.content}
            assert untyped == {"/ws", "/openapi.json"}

    run(work())


ANSWERS = (
    "GET /",
    "GET /health",
    "GET /api/health",
    "GET /api/backend/info",
    "GET /backends",
    "GET /models",
    "GET /models/1",
    "GET /status",
    "GET /vram",
    "GET /vram/status",
    "GET /vram/budget?model_id=1",
    "GET /queue",
    "GET /jobs",
    "GET /jobs/1",
    "GET /explain",
    "GET /claims",
    "GET /api/stats",
    "GET /models/status",
    "POST /models/scan",
    "POST /models/load",
    "POST /models/unload",
    "POST /schedule",
    "POST /switch",
    "POST /unload",
    "POST /yield",
    "POST /resume",
    "POST /reload",
)


@pytest.mark.parametrize("what", ANSWERS)
def test_answers_are_as_described(run: Run, tmp_path: Path, what: str) -> None:
    """Each real answer is valid by the schema that is given for it, with no field beyond it."""

    async def work() -> None:
        big = Model("big", "fake", EngineSettings(file=write_llama(tmp_path / "big.gguf")))
        async with house(tmp_path, A, big) as (found, _):
            told = (await found.ask("GET /openapi.json")).value
            await found.ask("POST /load", {"model_id": 1})
            method, _, target = what.partition(" ")
            path = re.sub(r"^(/models|/jobs)/1$", r"\1/{id}", target.partition("?")[0])
            body = {"/schedule": {"model_id": 1}, "/switch": {"model_id": 1}, "/models/load": {"model": "big"}}.get(
                path
            )
            answer = await found.ask(what, body)
            assert answer.status in (200, 202)
            responses = told["paths"][path][method.lower()]["responses"]
            schema = responses["200"]["content"]["application/json"]["schema"]
            strict = _closed(told["components"])
            Draft202012Validator({**schema, "components": strict}).validate(answer.value)

    run(work())


def _closed(components: dict[str, Any]) -> dict[str, Any]:
    schemas = {name: {**one, "additionalProperties": False} for name, one in components["schemas"].items()}
    return {**components, "schemas": schemas}


def test_errors_are_as_described(run: Run, tmp_path: Path) -> None:
    """One shape for all of them."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            told = (await found.ask("GET /openapi.json")).value
            schema = told["components"]["responses"]["Error"]["content"]["application/json"]["schema"]
            validator = Draft202012Validator({**schema, "components": _closed(told["components"])})
            for what in ("GET /nothing", "GET /load", "GET /models/x", "POST /load", "GET /jobs/7"):
                answer = await found.ask(what)
                assert answer.status >= 400
                validator.validate(answer.value)

    run(work())


class Outside(HTMLParser):
    """Finds what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "srcset", "action", "style") or name.startswith("on"):
                self.found.append(f"{tag} {name}={value}")
            if name == "href" and value != "/openapi.json":
                self.found.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
            self.found.append(tag)


def test_the_page_needs_nothing_from_elsewhere(run: Run, tmp_path: Path) -> None:
    """No script, no font, no style but its own, and a policy that would allow none."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            told = await found.ask("GET /docs")
            assert told.headers["content-type"] == "text/html; charset=utf-8"
            policy = told.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            outside = Outside()
            outside.feed(told.body.decode())
            assert outside.found == [] and "url(" not in STYLE and "@import" not in STYLE
            document = (await found.ask("GET /openapi.json")).value
            names = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
            assert sorted(outside.ids) == sorted(names)

    run(work())


def test_the_page_is_escaped() -> None:
    """Whatever a summary has in it is text."""

    class Record(msgspec.Struct):
        """With <b>markup</b> & more."""

        field: str

    async def never() -> None:
        """Never called."""

    from gpud.http.page import page
    from gpud.http.shapes import Api

    route = Route("GET", "/x", lambda _: never(), Api.MANAGEMENT, summary="<script>x</script>", answer=Record, tag="t")
    text = page(document([route], "1"))
    assert "<script>" not in text and "<b>" not in text and "&lt;script&gt;" in text
