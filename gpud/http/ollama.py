"""The front door for the clients of Ollama: all models are Ollama's to them, whichever engine serves them.

What stays loaded, and for how long, is gpud's to decide; a client's keep_alive is a wish. What only Ollama itself can
do is passed on to it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import inf, sqrt
from typing import Any

import msgspec

from gpud.core.errors import Busy, GpudError, NotLoaded
from gpud.core.events import LoadOptions
from gpud.core.facts import ModelStatus, State
from gpud.core.keys import Right
from gpud.core.modelfile import ModelFile
from gpud.core.ports import Files
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.exchange import Exchange
from gpud.http.gateway import Gateway
from gpud.http.ollama_answers import NANO, Reading, chat_value, created_at, generate_value
from gpud.http.ollama_models import (
    Library,
    find,
    is_loaded,
    is_ollamas,
    listed_name,
    ollama_name,
    ollamas_own_name,
    running,
    ways,
)
from gpud.http.ollama_passage import OLLAMA, OllamaPassage, Question
from gpud.http.ollama_relay import OllamaServer, Original, small_body
from gpud.http.ollama_requests import (
    Chat,
    Embed,
    Embeddings,
    Generate,
    Wish,
    chat_body,
    generate_request,
    read,
    read_named,
)
from gpud.http.relaying import Call, RelaySettings
from gpud.http.routing import Handler, Route
from gpud.http.shapes import Api, HttpError
from gpud.http.waiting import status_of

API_VERSION = "0.33.0"
"""The release of Ollama whose API this is: clients ask for it to learn what they may use."""

GREETING = "Ollama is running"

GOES_S = 0.001
"""keep_alive 0: the model goes as soon as nobody uses it, as one that was idle for too long."""


@dataclass(frozen=True, slots=True)
class OllamaSettings:
    """``attached``: the Ollama is one that somebody else runs."""

    attached: bool = False


class OllamaFront:
    """The routes, and what they share. ``settings`` and ``server`` may be replaced at any time; the size of bodies, the
    default model and how long an engine may be silent are the gateway's.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        gateway: Gateway,
        *,
        files: Files | None = None,
        quantization: Callable[[ModelFile], str] | None = None,
        server: OllamaServer | None = None,
        settings: OllamaSettings | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._gateway = gateway
        self._library = Library(files, quantization)
        self._original = Original(engine, pool, server)
        self.settings = settings or OllamaSettings()

    @property
    def server(self) -> OllamaServer | None:
        return self._original.server

    @server.setter
    def server(self, server: OllamaServer | None) -> None:
        self._original.server = server

    # The routes ------------------------------------------------------------------------------------------------------

    def routes(self) -> tuple[Route, ...]:
        """Everything on Ollama's door."""
        return (
            _route("GET", "/", self._greet, "Whether somebody is there", is_open=True),
            _route("GET", "/api/version", self._version, "The release of Ollama whose API this is", is_open=True),
            _route("GET", "/api/status", self._status, "Whether models may run in Ollama's cloud"),
            _route("GET", "/api/tags", self._tags, "Every model"),
            _route("GET", "/api/ps", self._running, "The models that are loaded"),
            _route("POST", "/api/show", self._show, "What there is to know of a model"),
            _route("POST", "/api/generate", self._generate, "Complete a text; load or unload a model"),
            _route("POST", "/api/chat", self._chat, "Chat"),
            _route("POST", "/api/embed", self._embed, "Embeddings"),
            _route("POST", "/api/embeddings", self._embeddings, "An embedding, as older clients ask for it"),
            _route("POST", "/api/pull", self._store, "Have Ollama fetch a model", changes=True),
            _route("POST", "/api/push", self._store, "Have Ollama publish a model", changes=True),
            _route("POST", "/api/create", self._store, "Have Ollama make a model", changes=True),
            _route("POST", "/api/copy", self._store, "Have Ollama copy a model", changes=True),
            _route("DELETE", "/api/delete", self._store, "Have Ollama delete a model", changes=True),
            _route("HEAD", "/api/blobs/{digest}", self._blob, "Whether Ollama has a file"),
            _route("POST", "/api/blobs/{digest}", self._blob, "Give Ollama a file", changes=True),
            *self._gateway.v1_routes(),
        )

    async def _greet(self, exchange: Exchange) -> None:
        await exchange.text(GREETING)

    async def _version(self, exchange: Exchange) -> None:
        await exchange.answer({"version": API_VERSION})

    async def _status(self, exchange: Exchange) -> None:
        await exchange.answer({"cloud": {"disabled": True, "source": "config"}})

    # The models ------------------------------------------------------------------------------------------------------

    async def _tags(self, exchange: Exchange) -> None:
        """Those of the configuration, then what else Ollama has, which nobody can use before it is configured."""
        statuses = self._visible(exchange)
        abouts, stored = await asyncio.gather(
            self._library.describe([status.model for status in statuses]), self._original.tags()
        )
        found = []
        for about in abouts:
            entry = stored.pop(ollamas_own_name(ollama_name(about.model)), None) if is_ollamas(about.model) else None
            name = listed_name(about.model.name)
            found.append(about.tag() if entry is None else entry | {"name": name, "model": name})
        if exchange.allowed_models is None:
            found += stored.values()
        await exchange.answer({"models": found})

    async def _running(self, exchange: Exchange) -> None:
        statuses = [status for status in self._visible(exchange) if is_loaded(status)]
        has_ollamas = any(status.model.engine == OLLAMA for status in statuses)
        stored = await self._original.tags() if has_ollamas else {}
        abouts = await self._library.describe([status.model for status in statuses])
        snapshot, now = self._engine.snapshot(), datetime.now(UTC)
        told = []
        for status, about in zip(statuses, abouts, strict=True):
            entry = stored.get(ollamas_own_name(ollama_name(status.model))) if status.model.engine == OLLAMA else None
            own = {} if entry is None else {name: entry[name] for name in ("digest", "details") if name in entry}
            told.append(running(status, about, snapshot, now) | own)
        await exchange.answer({"models": told})

    async def _show(self, exchange: Exchange) -> None:
        asked = read_named(await small_body(exchange))
        model = await self._find(exchange, asked.model or asked.name)
        status = status_of(self._engine, model)
        assert status is not None
        if is_ollamas(status.model):
            told = await self._shown_by_ollama(ollama_name(status.model), verbose=asked.verbose)
            if told is not None:
                await exchange.answer(told)
                return
        (about,) = await self._library.describe([status.model])
        await exchange.answer(about.show())

    async def _shown_by_ollama(self, name: str, *, verbose: bool) -> Any:
        """In its own words; None where it does not know, or does not run and nobody starts it for that."""
        endpoint = self._original.running()
        question = {"model": name, "verbose": verbose}
        if endpoint is not None:
            return await self._original.asked(endpoint, "POST", "/api/show", question)
        if self._original.server is None:
            return None
        async with self._original.serving() as endpoint:
            return await self._original.asked(endpoint, "POST", "/api/show", question)

    def _visible(self, exchange: Exchange) -> list[ModelStatus]:
        allowed = exchange.allowed_models
        return [one for one in self._engine.snapshot().models if allowed is None or one.model.name in allowed]

    async def _find(self, exchange: Exchange, name: str) -> str:
        """The configured model that is meant. One that only Ollama has is refused with what to do about it."""
        try:
            return find(self._engine, name, exchange, self._gateway.settings.default_model)
        except HttpError as problem:
            if problem.status != 404 or exchange.allowed_models is not None:
                raise
            if ollamas_own_name(name) not in await self._original.tags():
                raise
        raise HttpError(
            404,
            "model_not_found",
            f"model '{name[:200]}' not found in gpud's configuration, though Ollama has it",
            hint=f'add it to gpud.yaml, under models: "{name[:200].removesuffix(":latest")}": {{engine: ollama}}',
        )

    # What a model is asked -------------------------------------------------------------------------------------------

    async def _generate(self, exchange: Exchange) -> None:
        async with self._body(exchange) as body:
            asked = read(body, Generate)
            if asked.asks_nothing:
                value = {"model": asked.model, "created_at": created_at(), "response": ""}
                await self._load_or_unload(exchange, asked, value)
                return
            model = await self._model(exchange, asked, "generate")
            question = Question(
                asked.model,
                "/api/generate",
                body,
                partial(generate_request, asked),
                generate_value,
                asked.streams,
                attached=self.settings.attached,
            )
            await self._ask(exchange, model, asked, question)

    async def _chat(self, exchange: Exchange) -> None:
        async with self._body(exchange) as body:
            asked = read(body, Chat)
            if asked.asks_nothing:
                message = {"role": "assistant", "content": ""}
                value = {"model": asked.model, "created_at": created_at(), "message": message}
                await self._load_or_unload(exchange, asked, value)
                return
            model = await self._model(exchange, asked, "chat")
            question = Question(
                asked.model,
                "/api/chat",
                body,
                lambda: ("/v1/chat/completions", chat_body(asked)),
                chat_value,
                asked.streams,
                attached=self.settings.attached,
            )
            await self._ask(exchange, model, asked, question)

    async def _embed(self, exchange: Exchange) -> None:
        async with self._body(exchange) as body:
            asked = read(body, Embed)
            if asked.input is None:
                raise HttpError(400, "invalid_request", 'cannot embed: there is no "input"', hint="send texts")
            model = await self._model(exchange, asked)
            if not asked.texts:
                await self._loaded(exchange, model, asked)
                await exchange.answer({"model": asked.model, "embeddings": []})
                return

            def told(value: dict[str, Any], reading: Reading) -> dict[str, Any]:
                found = [shortened(vector, asked.dimensions) for vector in _vectors(value, model)]
                usage = value.get("usage")
                tokens = usage.get("prompt_tokens", 0) if isinstance(usage, dict) else 0
                exchange.prompt_tokens = tokens
                now_s, load_s = reading.figures()["total_duration"], reading.engine_s - reading.began_s
                return {
                    "model": asked.model,
                    "embeddings": found,
                    "total_duration": now_s,
                    "load_duration": int(load_s * NANO),
                    "prompt_eval_count": tokens,
                }

            await self._ask(exchange, model, asked, self._embedding("/api/embed", asked, body, asked.texts, told))

    async def _embeddings(self, exchange: Exchange) -> None:
        async with self._body(exchange) as body:
            asked = read(body, Embeddings)
            model = await self._model(exchange, asked)
            if not asked.prompt:
                await self._loaded(exchange, model, asked)
                await exchange.answer({"embedding": []})
                return

            def told(value: dict[str, Any], _: Reading) -> dict[str, Any]:
                return {"embedding": next(iter(_vectors(value, model)), [])}

            question = self._embedding("/api/embeddings", asked, body, [asked.prompt], told)
            await self._ask(exchange, model, asked, question)

    def _embedding(
        self,
        path: str,
        asked: Wish,
        body: bytes,
        texts: list[str],
        told: Callable[[dict[str, Any], Reading], dict[str, Any]],
    ) -> Question:
        value = {"input": texts, "encoding_format": "float"}
        translated = ("/v1/embeddings", value)
        return Question(
            asked.model,
            path,
            body,
            lambda: translated,
            None,
            streams=False,
            answered=told,
            attached=self.settings.attached,
        )

    async def _model(self, exchange: Exchange, asked: Wish, doing: str = "") -> str:
        """Raises HttpError where there is none, or it is not made for this."""
        model = await self._find(exchange, asked.model)
        status = status_of(self._engine, model)
        settings = status.model.settings if status is not None else None
        if doing and settings is not None and (settings.embeddings or settings.reranking):
            raise HttpError(
                400, "invalid_request", f'"{asked.model}" does not support {doing}', hint="ask it for embeddings"
            )
        return model

    async def _ask(self, exchange: Exchange, model: str, asked: Wish, question: Question) -> None:
        status = status_of(self._engine, model)
        if status is not None and all(way.engine != OLLAMA for way in ways(status.model)):
            # What cannot be done is refused before anything is loaded for it.
            translated = question.translated()
            question = replace(question, translated=lambda: translated)
        call = Call(model, "POST", question.path, question.body, options=self._wishes(exchange, model, asked))
        settings = self._gateway.settings
        limits = replace(self._pool.limits, stall_s=settings.stall_s)
        relaying = RelaySettings(settings.first_s, settings.heartbeat_s, limits)
        passage = OllamaPassage(self._engine, self._pool, exchange, call, relaying)
        await passage.ask(question).run()

    # Loading and unloading -------------------------------------------------------------------------------------------

    def _wishes(self, exchange: Exchange, model: str, asked: Wish) -> LoadOptions:
        """What the client wishes of a load. Of a model that is loaded already only the idle time is changed, and only
        for whoever may manage; it keeps its context.
        """
        keep_s = asked.keep_s
        idle_s = None if keep_s is None else 0.0 if keep_s == inf else max(keep_s, GOES_S)
        if Right.MANAGE not in exchange.admitted.may:
            idle_s = None
        status = status_of(self._engine, model)
        context = asked.context
        if status is not None:
            configured = status.model.settings.context
            if status.state in (State.READY, State.LOADING) or (
                configured is not None and (context or 0) <= configured
            ):
                context = None
            if status.state is State.READY and idle_s is not None:
                # A wish that cannot be heard is no reason not to answer; what is, is told by the use that follows.
                with suppress(GpudError):
                    self._engine.load(model, exchange.caller, LoadOptions(idle_timeout_s=idle_s))
        priority = exchange.admitted.priority_for(None)
        return LoadOptions(idle_timeout_s=idle_s, context=context, priority=priority)

    async def _loaded(self, exchange: Exchange, model: str, asked: Wish) -> None:
        """Have it loaded."""
        async with self._engine.use(model, exchange.caller, self._wishes(exchange, model, asked)):
            pass

    async def _load_or_unload(self, exchange: Exchange, asked: Wish, value: dict[str, Any]) -> None:
        """A request that asks nothing is about the model alone."""
        if asked.keep_s == 0:
            await self._unload(exchange, asked)
            await exchange.answer(value | {"done": True, "done_reason": "unload"})
            return
        model = await self._find(exchange, asked.model)
        reading = Reading()
        await self._loaded(exchange, model, asked)
        reading.engine_found()
        figures = {
            name: number for name, number in reading.figures().items() if name in ("total_duration", "load_duration")
        }
        await exchange.answer(value | {"done": True, "done_reason": "load"} | figures)

    async def _unload(self, exchange: Exchange, asked: Wish) -> None:
        """It goes when its running requests are done. One that somebody else holds stays: Busy."""
        if Right.MANAGE not in exchange.admitted.may:
            raise HttpError(
                403,
                "permission_denied",
                f'cannot unload "{asked.model}": this key may use models, and not unload them',
                hint="use a key that may manage",
            )
        # The shell alias that came with the first gpud-like set-ups names no model and means all of them.
        model = await self._find(exchange, asked.model) if asked.model else ""
        try:
            self._engine.unload(model, exchange.caller)
        except NotLoaded:
            return
        except Busy as problem:
            raise HttpError(409, "busy", problem.message, hint="ask them to release it") from None

    # Ollama's store --------------------------------------------------------------------------------------------------

    async def _store(self, exchange: Exchange) -> None:
        async with self._body(exchange) as body:
            meant = self._by_its_names(exchange, body)
            async with self._original.serving() as endpoint:
                await self._original.passed(exchange, endpoint, meant)

    async def _blob(self, exchange: Exchange) -> None:
        """Of any size: it is passed on as it comes."""
        request = exchange.request
        async with self._original.serving() as endpoint:
            body = None if request.method == "HEAD" else request.chunks()
            await self._original.passed(exchange, endpoint, body, length=request.content_length)

    def _by_its_names(self, exchange: Exchange, body: bytes) -> bytes:
        """The body with Ollama's name for a model of Ollama's. Raises HttpError for one that is not Ollama's at all."""
        if exchange.route.path not in ("/api/delete", "/api/copy", "/api/push"):
            return body
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise HttpError(400, "invalid_request", f"cannot read the body: {problem}") from None
        for name in fields:
            if name.casefold() not in ("model", "name", "source"):
                continue
            meant = msgspec.json.decode(fields[name])
            status = self._configured(meant) if isinstance(meant, str) else None
            if status is None:
                continue
            if not is_ollamas(status.model):
                raise HttpError(
                    400,
                    "invalid_request",
                    f"\"{meant}\" is a model of gpud's configuration, and not in Ollama's store",
                    hint="change gpud.yaml instead",
                )
            fields[name] = msgspec.Raw(msgspec.json.encode(ollama_name(status.model)))
        return msgspec.json.encode(fields)

    def _configured(self, name: str) -> ModelStatus | None:
        wanted = (name, name.removesuffix(":latest"))
        for status in self._engine.snapshot().models:
            if status.model.name in wanted or any(alias in wanted for alias in status.model.aliases):
                return status
        return None

    # Bodies ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _body(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """The whole body, counted as held while this lasts. Raises HttpError(503) where too much is held already."""
        request, gateway = exchange.request, self._gateway
        limit = gateway.settings.body_bytes
        # Of one that does not say how long it is, as much as it may have.
        size = min(limit, request.content_length if request.content_length is not None else limit)
        gateway.take_bytes(size)
        try:
            yield await request.body(limit)
        finally:
            gateway.give_bytes(size)


def shortened(vector: list[float], dimensions: int) -> list[float]:
    """Its first dimensions, again of length one; 0: as it is."""
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    length = sqrt(sum(number * number for number in cut))
    return [number / length for number in cut] if length else cut


def _vectors(value: dict[str, Any], model: str) -> list[list[float]]:
    try:
        entries = sorted(value["data"], key=lambda entry: entry["index"])
        return [entry["embedding"] for entry in entries]
    except (KeyError, TypeError):
        raise HttpError(
            502, "bad_gateway", f'the engine of "{model}" answered something that is no embedding'
        ) from None


def _route(
    method: str, path: str, handler: Handler, summary: str, *, changes: bool = False, is_open: bool = False
) -> Route:
    return Route(method, path, handler, Api.OLLAMA, changes=changes, open=is_open, summary=summary, tag="ollama")
