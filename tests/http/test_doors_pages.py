"""docs/http.md and docs/ollama.md have every route of their doors; docs/management.md has a test of its own."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from house import house

from gpud.core.facts import Model
from gpud.http.client import Pool
from gpud.http.gateway import Gateway
from gpud.http.ollama import OllamaFront
from gpud.http.requests import Requests
from gpud.http.routing import Route

Run = Callable[..., Any]
DOCS = Path(__file__).parents[2] / "docs"


def named(page: str) -> set[str]:
    """The paths that stand in code in a document, each name in braces as ``{}`` and an open end as ``…``."""
    spans = re.findall(r"`(?:[A-Z]+ )?(/[^`\s?]*)", page)
    return {re.sub(r"\{[^}]*\}", "{}", span.removesuffix("/")) or "/" for span in spans}


def untold(routes: Iterable[Route], page: str) -> list[str]:
    """The routes of which neither the path, nor it or its beginning with an open end, nor its end "below" is there."""
    told = named(page)
    missing = []
    for route in routes:
        path = re.sub(r"\{[^}]*\}", "{}", route.path)
        beginning, _, last = path.rpartition("/")
        whole = not told.isdisjoint((path, f"{path}/…", f"{beginning}/…"))
        if not whole and not (f"/{last}" in told and "below" in page):
            missing.append(f"{route.method} {route.path}")
    return missing


def test_every_route_of_both_doors_is_told(run: Run, tmp_path: Path) -> None:
    """The front door's in docs/http.md, the other one's in docs/ollama.md; what is below /v1 is the front door's."""

    async def work() -> None:
        async with house(tmp_path, Model("tiny", "fake")) as (found, _):
            gateway = Gateway(found.engine, Pool())
            front = (*gateway.routes(), *Requests().routes())
            assert untold(front, (DOCS / "http.md").read_text()) == []
            own = [one for one in OllamaFront(found.engine, Pool(), gateway).routes() if "/v1/" not in one.path]
            assert untold(own, (DOCS / "ollama.md").read_text()) == []

    run(work())


@pytest.mark.parametrize("path", ["/v1/wonder", "/api/wonder/{name}", "/wonder"])
def test_a_route_that_is_not_told_is_found(path: str) -> None:
    """The rule catches what it is there to catch."""
    page = "| `GET /v1/models`, `/models/{id}` | `/upstream/{model}/…`, and `/count_tokens` below both |"

    async def nothing(_: object) -> None:
        """Never called here."""

    routes = [Route("GET", one, nothing, "x") for one in ("/v1/models", "/models/{x...}", "/upstream/{a}/{b...}", path)]  # type: ignore[arg-type]
    assert untold(routes, page) == [f"GET {path}"]
