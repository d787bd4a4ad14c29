"""The description of an API, made from its routes and the records that they take and give: OpenAPI 3.1, and a page.

Nothing is written by hand that a route says itself, so that the two cannot part.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gpud.engine import Engine
from gpud.http.exchange import Exchange
from gpud.http.queries import TEXT
from gpud.http.routing import Route
from gpud.http.shapes import Api

Document = dict[str, Any]

TITLE = "gpud management API"
ABOUT = (
    "Models, the memory that they take, and who waits for it. Whatever changes something is asked with POST or DELETE. "
    "GB are 1024 MiB. What is not known is null."
)
REFS = "#/components/schemas/{name}"


class ErrorDetail(msgspec.Struct):
    """``type`` is for programs. Where memory is short, need and what is available are told in bytes."""

    type: str
    message: str
    need_bytes: int | None = None
    available_bytes: int | None = None


class Error(msgspec.Struct):
    error: ErrorDetail


class Description:
    """The two routes that describe the others. The document is made when it is first asked for."""

    def __init__(self, engine: Engine, described: Iterable[Route]) -> None:
        self._engine = engine
        own = (
            Route("GET", "/openapi.json", self._openapi, Api.MANAGEMENT, summary="This description", tag="about"),
            Route(
                "GET",
                "/docs",
                self._docs,
                Api.MANAGEMENT,
                summary="This description as a page",
                content="text/html",
                tag="about",
            ),
        )
        self._own = own
        self._described = (*described, *own)
        self._document: Document | None = None

    def routes(self) -> tuple[Route, ...]:
        return self._own

    def _made(self) -> Document:
        if self._document is None:
            self._document = document(self._described, self._engine.snapshot().version)
        return self._document

    async def _openapi(self, exchange: Exchange) -> None:
        await exchange.answer(self._made())

    async def _docs(self, exchange: Exchange) -> None:
        # Imported here: few read it, and none before everything else is loaded.
        from gpud.http.page import PAGE_HEADERS, page

        await exchange.send(page(self._made()).encode(), *PAGE_HEADERS)


def document(routes: Sequence[Route], version: str) -> Document:
    """The whole description."""
    kinds = [kind for route in routes for kind in (route.body, route.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components([*kinds, Error], ref_template=REFS)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(plain_path(route.path), {})
        operations[route.method.lower()] = _operation(route, by_kind)
    tags = dict.fromkeys(route.tag for route in routes if route.tag)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version, "description": ABOUT},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": {"description": "It was not done", "content": _json(schemas[-1])}},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        # Nothing, or either of the two: that depends on the door's configuration.
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def plain_path(path: str) -> str:
    return path.replace("...}", "}")


def _operation(route: Route, by_kind: Mapping[str, Any]) -> dict[str, Any]:
    path = plain_path(route.path)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"\{([^}]+)\}", path)
    ]
    parameters += [{"name": one.name, "in": "query", "schema": one.kind, "description": one.says} for one in route.asks]
    found: dict[str, Any] = {
        "operationId": operation_id(route),
        "summary": route.summary,
        "responses": {"200": _answer(route, by_kind), "default": {"$ref": "#/components/responses/Error"}},
    }
    if route.tag:
        found["tags"] = [route.tag]
    if parameters:
        found["parameters"] = parameters
    if route.body is not None:
        found["requestBody"] = {"content": _json(by_kind[repr(route.body)])}
    elif route.api is not Api.MANAGEMENT and route.method == "POST":
        found["requestBody"] = {"content": {"application/json": {"schema": {"type": "object"}}}}
    if route.open:
        found["security"] = [{}]
    return found


def _answer(route: Route, by_kind: Mapping[str, Any]) -> dict[str, Any]:
    if route.answer is not None:
        return {"description": "It was done", "content": _json(by_kind[repr(route.answer)])}
    if route.content:
        return {"description": "Text", "content": {route.content: {"schema": TEXT}}}
    return {"description": "What the engine answers" if route.api is not Api.MANAGEMENT else "It was done"}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def operation_id(route: Route) -> str:
    """One word for each, which stays as it is while the path does."""
    words = re.findall(r"[A-Za-z0-9]+", route.path)
    return "_".join([route.method.lower(), *(words or ["root"])])
