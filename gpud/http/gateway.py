"""The front door for the clients of OpenAI, Anthropic and llama-server: each request goes to the engine of the model
that it means, which is loaded for it if need be.

It decides which model that is and how patient the client is; it never takes part in what the two say to each other.
"""

import time
from collections.abc import Iterator, Sequence

import msgspec

from gpud.core import statuses
from gpud.core.errors import NoSuchModel, NotLoaded
from gpud.core.events import LoadOptions
from gpud.core.facts import ModelStatus, State
from gpud.core.record import Record, replace
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.exchange import JSON, Exchange
from gpud.http.fields import Refused, shown
from gpud.http.kept_list import KeptList, written
from gpud.http.known_models import KnownModels
from gpud.http.message import Request
from gpud.http.model_list import for_anthropic, for_llama, for_openai
from gpud.http.naming import SLICE_BYTES, Asked, read_body, read_large, resolved, without_own
from gpud.http.relaying import Call, Passage, RelaySettings
from gpud.http.routing import Handler, Route
from gpud.http.shapes import Api, HttpError
from gpud.http.waiting import status_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

PROGRESS_HEADER = "X-Gpud-Progress"
"""With ``true`` a waiting stream is told events as well as comments."""

BODIES_AT_ONCE = 8
"""So many of the largest bodies may be held in memory together; who would be one more is asked to come again."""

_YES = frozenset(("1", "true", "yes"))


class GatewaySettings(Record):
    """``body_bytes`` is the largest body, ``default_model`` answers requests that name none (empty: the one that was
    used last, else the first). A client that waits for a stream is told nothing for ``first_s`` (what fails within it
    keeps its status), then something every ``heartbeat_s`` (0: never anything). ``stall_s`` is how long an engine may
    be silent in the middle of an answer (None: for ever).
    """

    body_bytes: int = 100 << 20
    heartbeat_s: float = 5.0
    default_model: str = ""
    stall_s: float | None = 600.0
    first_s: float = 1.0


class Gateway:
    """The routes, and what they share. ``settings`` may be replaced at any time; the next request has the new ones."""

    def __init__(
        self, engine: Engine, pool: Pool, settings: GatewaySettings | None = None, *, known: KnownModels | None = None
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._known = known or KnownModels(engine)
        self.settings = settings or GatewaySettings()
        self._held_bytes = 0
        self._began_s = time.time()
        self._listed = KeptList(
            engine, self._known, lambda one, known: msgspec.json.encode(for_openai(one, known, self._began_s))
        )
        self._listed_again = KeptList(engine, self._known, lambda _, known: msgspec.json.encode(for_llama(known)))

    @property
    def settings(self) -> GatewaySettings:
        return self._settings

    @settings.setter
    def settings(self, settings: GatewaySettings) -> None:
        self._settings = settings
        limits = replace(self._pool.limits, stall_s=settings.stall_s)
        self._relaying = RelaySettings(settings.first_s, settings.heartbeat_s, limits)

    # The routes ------------------------------------------------------------------------------------------------------

    def routes(self) -> tuple[Route, ...]:
        """Everything on the front door."""
        return (*self.v1_routes(), *self._bare_routes(), *self._upstream_routes())

    def v1_routes(self) -> tuple[Route, ...]:
        """What stands below /v1, for any door."""
        openai, tag = Api.OPENAI, "openai"
        return (
            _route("GET", "/v1/models", self._models, openai, "Every model, with its state"),
            _route("GET", "/v1/models/{id...}", self._model, openai, "One model"),
            self._asked("/v1/chat/completions", openai, "Chat", streams=True),
            self._asked("/v1/chat/completions/input_tokens", openai, "Count the tokens of a chat"),
            self._asked("/v1/completions", openai, "Complete a text", streams=True),
            self._asked("/v1/embeddings", openai, "Embeddings"),
            self._asked("/v1/responses", openai, "Responses", streams=True),
            self._asked("/v1/responses/input_tokens", openai, "Count the tokens of a response's input"),
            self._asked("/v1/rerank", openai, "Order documents by a query"),
            self._asked("/v1/reranking", openai, "Order documents by a query"),
            self._asked("/v1/messages", Api.ANTHROPIC, "Messages", streams=True),
            self._asked("/v1/messages/count_tokens", Api.ANTHROPIC, "Count the tokens of messages"),
            self._asked("/v1/audio/{rest...}", openai, "Speech, and what was said, by engines that can", tag="audio"),
            _route(
                "GET",
                "/v1/audio/{rest...}",
                self._by_query,
                openai,
                "What an engine tells of audio",
                "audio",
                uses=True,
            ),
            self._asked("/v1/images/{rest...}", openai, "Images, where the engine has them", tag="images"),
            self._unloaded("/v1/tokenize", openai, "Tokens of a text", to="/tokenize", tag=tag),
            self._unloaded("/v1/detokenize", openai, "The text of tokens", to="/detokenize", tag=tag),
        )

    def _bare_routes(self) -> Iterator[Route]:
        """What llama-server has without /v1."""
        llama, tag = Api.LLAMA, "llama"
        yield _route("GET", "/models", self._models, Api.OPENAI, "Every model, with its state", tag)
        # Where both names mean the same, the one that every engine knows is asked for.
        for name in ("chat/completions", "responses"):
            yield self._asked(f"/{name}", Api.OPENAI, f"As /v1/{name}", to=f"/v1/{name}", streams=True, tag=tag)
        for name in ("messages", "messages/count_tokens"):
            streams = name == "messages"
            yield self._asked(f"/{name}", Api.ANTHROPIC, f"As /v1/{name}", to=f"/v1/{name}", streams=streams, tag=tag)
        for name in ("completion", "completions", "infill"):
            yield self._asked(f"/{name}", llama, "llama-server's own completion", streams=True, tag=tag)
        for name in ("embedding", "embeddings", "rerank", "reranking"):
            yield self._asked(f"/{name}", llama, f"llama-server's own {name}", tag=tag)
        for name, what in (
            ("tokenize", "Tokens of a text"),
            ("detokenize", "The text of tokens"),
            ("apply-template", "A chat as the model reads it"),
        ):
            yield self._unloaded(f"/{name}", llama, what, tag=tag)
        for name, what in (
            ("props", "What a loaded model's server tells of itself"),
            ("slots", "What a loaded model's slots do"),
            ("lora-adapters", "The adapters of a loaded model"),
        ):
            yield _route("GET", f"/{name}", self._look, llama, what, tag, uses=True)
        for path in ("/props", "/lora-adapters", "/slots/{slot}"):
            yield self._unloaded(path, llama, "Change what a loaded model's server does", tag=tag, repeatable=False)

    def _upstream_routes(self) -> Iterator[Route]:
        for method in METHODS:
            for path in ("/upstream/{model}", "/upstream/{model}/{rest...}"):
                summary = "Ask one model's engine anything"
                yield _route(method, path, self._upstream, Api.OPENAI, summary, "upstream", uses=True)

    def _asked(
        self, path: str, api: Api, summary: str, *, to: str = "", streams: bool = False, tag: str = "openai"
    ) -> Route:
        """A question to a model, which is loaded for it."""

        async def answer(exchange: Exchange) -> None:
            with _Held(self) as held:
                body, asked = await held.read(exchange.request)
                model = self._resolve(exchange, asked.model or exchange.request.parameter("model"))
                await self._pass(exchange, model, _target(exchange, to), body, asked, streams=streams)

        return _route("POST", path, answer, api, summary, tag, passes=True)

    def _unloaded(
        self, path: str, api: Api, summary: str, *, to: str = "", tag: str = "llama", repeatable: bool = True
    ) -> Route:
        """A question that is not worth loading a model for, unless ``?load=true`` says so."""

        async def answer(exchange: Exchange) -> None:
            with _Held(self) as held:
                body, asked = await held.read(exchange.request)
                model = self._resolve(exchange, asked.model or exchange.request.parameter("model"))
                self._must_be_there(exchange, model)
                await self._pass(exchange, model, _target(exchange, to), body, asked, repeatable=repeatable)

        return _route("POST", path, answer, api, summary, tag)

    # What is relayed -------------------------------------------------------------------------------------------------

    async def _by_query(self, exchange: Exchange) -> None:
        model = self._resolve(exchange, exchange.request.parameter("model"))
        await self._pass(exchange, model, _target(exchange), None, Asked())

    async def _look(self, exchange: Exchange) -> None:
        """What somebody looks at again and again must not keep a model from being idle."""
        model = self._resolve(exchange, exchange.request.parameter("model"))
        status = status_of(self._engine, model)
        if status is not None and status.state is State.READY and status.endpoint is not None:
            call = Call(model, exchange.request.method, _target(exchange), None)
            await Passage(self._engine, self._pool, exchange, call, self._relaying).look(status.endpoint)
            return
        self._must_be_there(exchange, model)
        await self._pass(exchange, model, _target(exchange), None, Asked())

    async def _upstream(self, exchange: Exchange) -> None:
        request = exchange.request
        model = self._resolve(exchange, exchange.parameters["model"])
        # As it was sent, without its first two parts: an encoded slash stays one.
        rest = request.raw_path.split("/", 3)[3:]
        target = "/" + (rest[0] if rest else "") + (f"?{request.raw_query}" if request.raw_query else "")
        with _Held(self) as held:
            body = await held.body(request)
            call = Call(
                model,
                request.method,
                target,
                body or None,
                repeatable=request.method in ("GET", "HEAD"),
                options=_wishes(exchange),
            )
            await Passage(self._engine, self._pool, exchange, call, self._relaying).run()

    async def _pass(
        self,
        exchange: Exchange,
        model: str,
        target: str,
        body: bytes | None,
        asked: Asked,
        *,
        streams: bool = False,
        repeatable: bool = True,
    ) -> None:
        request = exchange.request
        streams = streams and asked.stream and self._settings.heartbeat_s > 0
        tells = streams and (
            request.headers.get(PROGRESS_HEADER).lower() in _YES or request.parameter("progress").lower() in _YES
        )
        call = Call(model, request.method, target, body, asked.model, streams, tells, repeatable, _wishes(exchange))
        await Passage(self._engine, self._pool, exchange, call, self._relaying).run()

    def _resolve(self, exchange: Exchange, name: str) -> str:
        model = resolved(self._engine, name, self._settings.default_model, lambda: exchange.allowed_models)
        exchange.check_model(model)
        exchange.model = model
        return model

    def _must_be_there(self, exchange: Exchange, model: str) -> None:
        """Raises NotLoaded unless the model is loaded, is being loaded, or may be."""
        if exchange.request.parameter("load").lower() in _YES:
            return
        status = status_of(self._engine, model)
        if status is None or status.state not in (State.READY, State.LOADING):
            raise NotLoaded(f'"{model}" is not loaded', hint="load it first, or ask with ?load=true")

    # What gpud itself tells ------------------------------------------------------------------------------------------

    async def _models(self, exchange: Exchange) -> None:
        found = self._allowed(exchange)
        if "anthropic-version" in exchange.request.headers:
            known = await self._known.of([status.model for status in found])
            data = [for_anthropic(one, self._began_s) for one in known]
            first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
            await exchange.answer({"data": data, "has_more": False, "first_id": first, "last_id": last})
            return
        data_parts, llama_parts = await self._listed.of(found), await self._listed_again.of(found)
        parts = written(b'{"object":"list","data":', data_parts, b',"models":', llama_parts, b"}")
        await exchange.send_parts(parts, JSON)

    async def _model(self, exchange: Exchange) -> None:
        default = self._settings.default_model
        name = resolved(self._engine, exchange.parameters["id"], default, lambda: exchange.allowed_models)
        status = statuses.status_of(self._allowed(exchange), name)
        if status is None:
            raise NoSuchModel(f'there is no model "{exchange.parameters["id"]}"', hint="GET /v1/models lists them")
        (known,) = await self._known.of([status.model])
        anthropic = "anthropic-version" in exchange.request.headers
        told = for_anthropic(known, self._began_s) if anthropic else for_openai(status, known, self._began_s)
        await exchange.answer(told)

    def _allowed(self, exchange: Exchange) -> Sequence[ModelStatus]:
        return statuses.only(self._engine.snapshot().models, exchange.allowed_models)

    # Bodies ----------------------------------------------------------------------------------------------------------

    def take_bytes(self, size: int) -> None:
        """So much of a body is held in memory. Raises HttpError(503) when that is too much in all."""
        limit = BODIES_AT_ONCE * self._settings.body_bytes
        if self._held_bytes + size > limit:
            raise HttpError(
                503,
                "overloaded",
                f"the requests in work hold {self._held_bytes >> 20} MiB; with {size >> 20} MiB more they would exceed "
                f"{limit >> 20} MiB",
                hint="ask again when some of them are done",
                headers={"Retry-After": "5"},
            )
        self._held_bytes += size

    def give_bytes(self, size: int) -> None:
        self._held_bytes -= size


class _Held:
    """The bodies of one request, counted while it lasts."""

    __slots__ = ("_bytes", "_gateway")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._bytes = 0

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.give_bytes(self._bytes)

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises HttpError(413) when it is too large, 503 when too much is held already."""
        limit = self._gateway.settings.body_bytes
        try:
            if request.content_length is not None:
                if request.content_length <= limit:
                    self._take(request.content_length)
                return await request.body(limit)
            pieces, total = [], 0
            async for piece in request.chunks():
                total += len(piece)
                if total > limit:
                    raise Refused(413, f"the body is longer than the {limit} bytes that are allowed")
                self._take(len(piece))
                pieces.append(piece)
            return b"".join(pieces)
        except Refused as problem:
            if problem.status != 413:
                raise
            raise HttpError(413, "request_too_large", problem.message, hint="see http.limits in gpud.yaml(5)") from None

    async def read(self, request: Request) -> tuple[bytes, Asked]:
        """The body and what it says. Raises HttpError."""
        coding = request.headers.lowered(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise HttpError(
                415, "unsupported_encoding", f"cannot read a body in {shown(coding)}", hint="send it uncompressed"
            )
        body = await self.body(request)
        kind = request.headers.get("content-type")
        return body, read_body(body, kind) if len(body) <= SLICE_BYTES else await read_large(body, kind)

    def _take(self, size: int) -> None:
        self._gateway.take_bytes(size)
        self._bytes += size


def _route(
    method: str,
    path: str,
    handler: Handler,
    api: Api,
    summary: str,
    tag: str = "openai",
    *,
    uses: bool = False,
    passes: bool = False,
) -> Route:
    return Route(method, path, handler, api, summary=summary, tag=tag, uses=uses, passes=passes)


def _wishes(exchange: Exchange) -> LoadOptions | None:
    """What the caller's key says of its loads."""
    priority = exchange.admitted.priority_for(None)
    return None if priority is None else LoadOptions(priority=priority)


def _target(exchange: Exchange, path: str = "") -> str:
    """What the engine is asked for: the same path, or the one that it knows, without what of the query is gpud's."""
    query = without_own(exchange.request.raw_query)
    path = path or exchange.request.raw_path
    return f"{path}?{query}" if query else path
