"""The doors: where gpud listens for HTTP, who is let in, and which route answers.

Owns the servers. What a route does is not its business, and a door that cannot be opened keeps nothing else from
working.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from gpud.core.errors import GpudError
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import Caller
from gpud.core.record import Record, field, replace
from gpud.engine import Engine
from gpud.http.access import NOBODY, Access, Admitted, Rules
from gpud.http.exchange import Exchange
from gpud.http.keys import Keys
from gpud.http.limits import ServerLimits
from gpud.http.listening import Address, Listening, PassedSocket, TcpAddress, Tls, UnixAddress, shown
from gpud.http.message import Peer, Reply, Request
from gpud.http.metrics import RequestSeen
from gpud.http.rates import Rates
from gpud.http.requests import Requests
from gpud.http.routing import Match, NotAllowed, Route, Router
from gpud.http.server import Server
from gpud.http.shapes import Api, HttpError, error_body
from gpud.http.work import in_task

log = logging.getLogger(__name__)

_SEE = "see with ss -ltnp who listens there and stop it"

_NOBODY = Admitted(Caller("", NOBODY), frozenset())
"""Who asks, until that is known."""

CLIENT_LEFT = 499
"""How a request counts whose client has gone before it was answered."""


_KNOWN = "door"


class _Known(Record):
    """What a door found out about a request: it holds for the next one of the same head and the same client for as long
    as the rules and the routes are the same. 25 µs a request.
    """

    access: Access
    router: Router
    found: Match
    headers: tuple[tuple[str, str], ...]
    admitted: Admitted


class Opening(Record):
    """One door as it is configured. ``api`` is how its clients read what no route answers."""

    name: str
    addresses: tuple[Address, ...]
    rules: Rules = field(default_factory=Rules)
    limits: ServerLimits = field(default_factory=ServerLimits)
    tls: Tls | None = None
    api: Api = Api.OPENAI


class Door:
    """One server with its rules and its routes. Both may be replaced while it is open."""

    def __init__(
        self,
        opening: Opening,
        engine: Engine,
        router: Router,
        observe: Callable[[RequestSeen], None],
        rates: Rates,
        keys: Keys | None,
        requests: Requests,
        session_of: Callable[[Peer], str],
    ) -> None:
        self._session_of = session_of
        self.opening = opening
        self.router = router
        self._engine = engine
        self._observe = observe
        self._rates = rates
        self._requests = requests
        self.admit(opening.rules, keys)
        self.server = Server(self._answer, opening.limits, words=self._words, at_once=True)

    def admit(self, rules: Rules, keys: Keys | None) -> None:
        """From now on by these rules, with these keys."""
        self.access = Access(rules, keys, self._rates)

    def _words(self, status: int, message: str) -> tuple[str, bytes]:
        error = HttpError(status, "invalid_request" if status < 500 else "unavailable", message)
        return "application/json", error_body(self.opening.api, error)

    async def _answer(self, request: Request, reply: Reply) -> None:
        """
        1. A browser asks whether a page may come in: 204, or refused.
        2. Who asks is not let in: 401, 403, 421, 429. A stranger does not learn which routes there are.
        3. No route has this path, or not for this method: 404, 405.
        4. Else the route answers; what it raises is told in the shape of its API.
        """
        known: _Known | None = request.kept.get(_KNOWN)
        if known is not None and known.access is self.access and known.router is self.router:
            # As the last request of this connection, to the byte: it is decided already, but for how often that was.
            found: Match | NotAllowed | None = known.found
            route = known.found.route
            exchange = Exchange(
                request, reply, route, known.found.parameters, self._engine, known.admitted, headers=known.headers
            )
        else:
            known = None
            found = self.router.find(request.method, request.segments)
            route = found.route if isinstance(found, Match) else _nowhere(found, self.opening.api)
            exchange = Exchange(request, reply, route, {}, self._engine, _NOBODY)
        number = self._requests.began(self.opening.name, exchange)
        try:
            if known is None:
                allowed = self.access.preflight(request.method, request.headers, request.peer)
                if allowed is not None:
                    await reply.send(204, allowed)
                    return
                self._admit(exchange, is_route=isinstance(found, Match))
            if not route.open:
                self.access.count(exchange.admitted, exchange.began_s)
            if not isinstance(found, Match):
                raise _no_route(request, found)
            if known is None:
                exchange.parameters = found.parameters
                request.kept[_KNOWN] = _Known(self.access, self.router, found, exchange.headers, exchange.admitted)
            if not route.passes:
                await in_task()
            await route.handler(exchange)
        except GpudError as error:
            if reply.begun:
                log.debug("%s %s was begun and fails: %s", request.method, exchange.route.path, error.message)
                reply.abort()
            else:
                await exchange.fail(error)
        finally:
            self._requests.ended(number)
            self._seen(exchange)

    def _admit(self, exchange: Exchange, *, is_route: bool) -> None:
        """Who asks, if they may. Raises Denied."""
        request, route = exchange.request, exchange.route
        exchange.headers = self.access.reply_headers(request.headers)
        exchange.admitted = self.access.admit(
            request.method,
            request.headers,
            request.peer,
            changes_state=is_route and route.changes,
            needs_model=is_route and route.uses_model,
            is_open=is_route and route.open,
        )
        session = self._session_of(request.peer) if is_route and route.uses_model else ""
        if session:
            admitted = exchange.admitted
            exchange.admitted = replace(admitted, caller=replace(admitted.caller, session=session))

    def _seen(self, exchange: Exchange) -> None:
        status = exchange.reply.status or CLIENT_LEFT
        if exchange.request.is_gone and not exchange.reply.ended:
            status = CLIENT_LEFT
        self._observe(
            RequestSeen(
                door=self.opening.name,
                route=exchange.route.path,
                model=exchange.model,
                status=status,
                duration_s=time.monotonic() - exchange.began_s,
                first_byte_s=exchange.first_byte_s,
                prompt_tokens=exchange.prompt_tokens,
                generated_tokens=exchange.generated_tokens,
            )
        )


async def _no_handler(exchange: Exchange) -> None:
    raise AssertionError(f"{exchange.route.path} has no handler")


def _nowhere(found: Match | NotAllowed | None, api: Api) -> Route:
    """What a request counts as that no route answers."""
    return Route("", "", _no_handler, found.api if isinstance(found, NotAllowed) else api)


def _by_nobody(_: RequestSeen) -> None:
    """Requests are not counted."""


def _in_no_session(_peer: Peer) -> str:
    return ""


def _nobody_known(_port: int) -> str:
    return ""


def _no_route(request: Request, found: Match | NotAllowed | None) -> HttpError:
    if isinstance(found, NotAllowed):
        methods = ", ".join(found.allowed)
        return HttpError(
            405,
            "method_not_allowed",
            f"{request.method} is not for {request.path[:200]}",
            hint=f"it answers {methods}",
            headers={"Allow": methods},
        )
    return HttpError(
        404,
        "not_found",
        f"nothing answers {request.method} {request.path[:200]}",
        hint="the routes are in /usr/share/doc/gpud/docs/http.md, or docs/http.md of the source",
    )


class Doors:
    """All of them. :meth:`apply` opens, changes and closes them until they are as configured."""

    def __init__(
        self,
        engine: Engine,
        routers: Mapping[str, Router],
        *,
        say: Callable[[Notice], None],
        observe: Callable[[RequestSeen], None] = _by_nobody,
        requests: Requests | None = None,
        who_listens: Callable[[int], str] = _nobody_known,
        session_of: Callable[[Peer], str] = _in_no_session,
    ) -> None:
        """``who_listens`` tells, in a thread, which program has a TCP port; empty where that cannot be seen.
        ``session_of`` tells, at once, in which session a client works; empty where it is in none.
        """
        self._session_of = session_of
        self._engine = engine
        self._routers = routers
        self._who_listens = who_listens
        self._say = say
        self._observe = observe
        self._requests = requests or Requests()
        self._rates = Rates()
        self._doors: dict[str, Door] = {}
        self._handed_over = False

    @property
    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Where each door listens now."""
        return {name: tuple(at.describe() for at in door.server.listening) for name, door in self._doors.items()}

    async def apply(self, openings: Sequence[Opening], keys: Keys | None, *, drain_s: float = 20.0) -> None:
        """A door that listens as it did keeps its connections; only its rules and keys are replaced."""
        wanted = {opening.name: opening for opening in openings}
        closing = [
            self._doors.pop(name) for name, door in list(self._doors.items()) if not _stays(door, wanted.get(name))
        ]
        # Its successor may want the same port: that is free as soon as nobody is accepted there.
        for door in closing:
            for listening in door.server.listening:
                door.server.stop_listening(listening)
        for opening in openings:
            kept = self._doors.get(opening.name)
            if kept is not None:
                kept.opening = opening
                kept.admit(opening.rules, keys)
            else:
                await self._open(opening, keys)
        await asyncio.gather(*(door.server.close(drain_s) for door in closing))

    async def _open(self, opening: Opening, keys: Keys | None) -> None:
        router = self._routers[opening.name]
        door = Door(opening, self._engine, router, self._observe, self._rates, keys, self._requests, self._session_of)
        self._doors[opening.name] = door
        opened: list[Listening] = []
        for address in opening.addresses:
            if self._handed_over and isinstance(address, PassedSocket):
                continue
            try:
                opened.append(await door.server.listen(address, door=opening.name, tls=opening.tls))
            except OSError as problem:
                self._failed(opening, address, problem, await self._holder(address, problem))
        if opened:
            where = " and ".join(listening.describe() for listening in opened)
            self._say(
                Notice(Kind.DOOR_OPENED, f"Listens on {where} (door {opening.name})", fields={"door": opening.name})
            )

    async def _holder(self, address: Address, problem: OSError) -> str:
        """Who has an address that is taken, as far as that can be seen."""
        if problem.errno != errno.EADDRINUSE or not isinstance(address, TcpAddress):
            return ""
        return await asyncio.to_thread(self._who_listens, address.port)

    def _failed(self, opening: Opening, address: Address, problem: OSError, holder: str) -> None:
        where = _shown(address)
        # The layer names the address too.
        reason = (problem.strerror or str(problem)).removeprefix(f"cannot listen on {where}: ")
        self._say(
            Notice(
                Kind.DOOR_FAILED,
                f"Cannot listen on {where} (door {opening.name}): {reason}" + (f", by {holder}" if holder else ""),
                level=Level.ERROR,
                fields={"door": opening.name, "address": where},
                detail=(
                    f"What to do: {'stop it' if holder else _SEE}, or set http.{opening.name}.port and reload gpud",
                ),
            )
        )

    def hand_over(self) -> None:
        """gpud is going to end. Nobody else is accepted on sockets that were passed: whoever comes waits there for the
        next gpud instead of being refused by this one.
        """
        self._handed_over = True
        for door in self._doors.values():
            if any(isinstance(address, PassedSocket) for address in door.opening.addresses):
                door.server.retire()

    async def close(self, drain_s: float) -> None:
        """Running requests may end within this time."""
        await asyncio.gather(*(door.server.close(drain_s) for door in self._doors.values()))
        self._doors.clear()


def _stays(door: Door, wanted: Opening | None) -> bool:
    """Whether the server can stay as it is: only its rules differ. One that does not listen is tried anew."""
    if wanted is None or not door.server.listening:
        return False
    return replace(door.opening, rules=wanted.rules) == wanted


def _shown(address: Address) -> str:
    """As the layer writes it in its own messages."""
    if isinstance(address, TcpAddress):
        return shown((address.host, address.port))
    return f'"{address.path}"' if isinstance(address, UnixAddress) else f"the passed descriptor {address.fd}"
