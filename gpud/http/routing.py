"""Which handler answers what: a table of routes, found by method and path. Answers nothing itself."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpud.core.record import Record, Struct, field
from gpud.http.queries import Query
from gpud.http.shapes import Api

if TYPE_CHECKING:
    from gpud.http.exchange import Exchange

Handler = Callable[["Exchange"], Awaitable[None]]


class Route(Record):
    """``path`` has names in braces for one part each (``/models/{name}``) and may end in one for all that is left
    (``/upstream/{model}/{rest...}``).

    ``changes``: it changes gpud's state, so it is never asked with GET and needs the right to manage. ``open``: anybody
    who reaches the door may ask, without a key. ``uses``: it has a model work, although it is a GET; every POST that
    changes nothing does so anyhow. ``passes``: it passes the request on, and is begun without a task.

    For the description of the API: ``body`` and ``answer`` are types, ``content`` is what an answer is that is no JSON,
    and ``asks`` are the parameters behind the question mark.
    """

    method: str
    path: str
    handler: Handler
    api: Api
    changes: bool = False
    open: bool = False
    summary: str = ""
    body: Any = None
    answer: Any = None
    content: str = ""
    asks: Sequence[Query] = ()
    tag: str = ""
    uses: bool = False
    passes: bool = False

    def __post_init__(self) -> None:
        if self.changes and self.method in ("GET", "HEAD"):
            raise ValueError(f"{self.method} {self.path} changes something: that is never asked with {self.method}")

    @property
    def uses_model(self) -> bool:
        """Whether it needs the right to use models."""
        return self.uses or (self.method not in ("GET", "HEAD") and not self.changes)


class Match(Record):
    """A route and what stands in its braces."""

    route: Route
    parameters: Mapping[str, str]


class NotAllowed(Record):
    """The path is there, but not for this method."""

    allowed: Sequence[str]
    api: Api


class _Node(Struct):
    """One part of a path. ``rest`` takes whatever is left."""

    parts: dict[str, "_Node"] = field(default_factory=dict)
    any_part: "_Node | None" = None
    routes: dict[str, Route] = field(default_factory=dict)
    rest: dict[str, Route] = field(default_factory=dict)


class Router:
    """Finds a route in the number of its parts, however many routes there are."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        self._fixed: dict[tuple[str, Sequence[str]], Match] = {}
        for route in self.routes:
            self._add(route)
            if "{" not in route.path:
                self._fixed[route.method, tuple(route.path.split("/")[1:])] = Match(route, {})

    def _add(self, route: Route) -> None:
        node = self._root
        parts = route.path.split("/")[1:]
        for part in parts:
            if part.endswith("...}"):
                found = node.rest
                break
            if part.startswith("{"):
                node.any_part = node.any_part or _Node()
                node = node.any_part
            else:
                node = node.parts.setdefault(part, _Node())
            found = node.routes
        if route.method in found:
            raise ValueError(f"two routes for {route.method} {route.path}")
        found[route.method] = route

    def find(self, method: str, segments: Sequence[str]) -> Match | NotAllowed | None:
        """The route for decoded parts of a path; None where nothing has this path. HEAD is served by GET."""
        fixed = self._fixed.get((method, tuple(segments)))
        if fixed is not None:
            # Nothing is more exact, and nearly every request is one of these.
            return fixed
        nodes = self._candidates(segments)
        allowed: dict[str, Route] = {}
        for routes in nodes:
            route = routes.get(method) or (routes.get("GET") if method == "HEAD" else None)
            if route is not None:
                return Match(route, _parameters(route, segments))
            allowed |= routes
        if not allowed:
            return None
        methods = sorted({*allowed, *(("HEAD",) if "GET" in allowed else ())})
        return NotAllowed(methods, next(iter(allowed.values())).api)

    def _candidates(self, segments: Sequence[str]) -> list[dict[str, Route]]:
        """The tables of routes that the path reaches, the most exact first."""
        exact: list[dict[str, Route]] = []
        rests: list[tuple[int, dict[str, Route]]] = []

        def walk(node: _Node, depth: int) -> None:
            if node.rest and depth <= len(segments):
                rests.append((depth, node.rest))
            if depth == len(segments):
                if node.routes:
                    exact.append(node.routes)
                return
            named = node.parts.get(segments[depth])
            if named is not None:
                walk(named, depth + 1)
            if node.any_part is not None and segments[depth]:
                walk(node.any_part, depth + 1)

        walk(self._root, 0)
        rests.sort(key=lambda pair: -pair[0])
        return [*exact, *(routes for _, routes in rests)]


def _parameters(route: Route, segments: Sequence[str]) -> dict[str, str]:
    found = {}
    for index, part in enumerate(route.path.split("/")[1:]):
        if part.endswith("...}"):
            found[part[1:-4]] = "/".join(segments[index:])
            break
        if part.startswith("{"):
            found[part[1:-1]] = segments[index]
    return found
