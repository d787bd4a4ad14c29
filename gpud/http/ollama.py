"""The front door for the clients of Ollama: all models are Ollama's to them, whichever engine serves them.

What stays loaded, and for how long, is gpud's to decide; a client's keep_alive is a wish. What only Ollama itself can
do is passed on to it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gpud.core.facts import ModelStatus
from gpud.core.naming import listed_name, ollamas_own_name
from gpud.core.statuses import lively, only
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.exchange import JSON, Exchange
from gpud.http.gateway import Gateway
from gpud.http.kept_list import KeptList, written
from gpud.http.known_models import KnownModels
from gpud.http.ollama_asking import Asking, OllamaSettings
from gpud.http.ollama_models import (
    About,
    is_loaded,
    is_ollamas,
    ollama_name,
    running,
)
from gpud.http.ollama_passage import OLLAMA
from gpud.http.ollama_relay import OllamaServer, Original, small_body
from gpud.http.ollama_requests import read_named
from gpud.http.routing import Handler, Route
from gpud.http.shapes import UNREADABLE, Api, HttpError, why_unreadable
from gpud.http.waiting import status_of

__all__ = ["OllamaFront", "OllamaServer", "OllamaSettings"]

API_VERSION = "0.33.0"
"""The release of Ollama whose API this is: clients ask for it to learn what they may use."""

GREETING = "Ollama is running"


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
        known: KnownModels | None = None,
        server: OllamaServer | None = None,
        settings: OllamaSettings | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._gateway = gateway
        self._known = known or KnownModels(engine)
        self._listed = KeptList(engine, self._known, lambda _, one: msgspec.json.encode(About(one).tag()))
        self._original = Original(engine, pool, server)
        self._asking = Asking(engine, pool, gateway, self._original, settings or OllamaSettings())

    @property
    def settings(self) -> OllamaSettings:
        return self._asking.settings

    @settings.setter
    def settings(self, settings: OllamaSettings) -> None:
        self._asking.settings = settings

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
            _route("POST", "/api/generate", self._asking.generate, "Complete a text; load or unload a model"),
            _route("POST", "/api/chat", self._asking.chat, "Chat"),
            _route("POST", "/api/embed", self._asking.embed, "Embeddings"),
            _route("POST", "/api/embeddings", self._asking.embeddings, "An embedding, as older clients ask for it"),
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
        stored = await self._original.tags()
        if not stored:
            await exchange.send_parts(written(b'{"models":', await self._listed.of(statuses), b"}"), JSON)
            return
        known = await self._known.of([status.model for status in statuses])
        found = []
        for about in map(About, known):
            entry = stored.pop(ollamas_own_name(ollama_name(about.model)), None) if is_ollamas(about.model) else None
            name = listed_name(about.model.name)
            found.append(about.tag() if entry is None else entry | {"name": name, "model": name})
        if exchange.allowed_models is None:
            found += stored.values()
        await exchange.answer({"models": found})

    async def _running(self, exchange: Exchange) -> None:
        statuses = [status for status in lively(self._visible(exchange)) if is_loaded(status)]
        has_ollamas = any(status.model.engine == OLLAMA for status in statuses)
        stored = await self._original.tags() if has_ollamas else {}
        known = await self._known.of([status.model for status in statuses])
        snapshot, now = self._engine.snapshot(), datetime.now(UTC)
        told = []
        for status, about in zip(statuses, map(About, known), strict=True):
            entry = stored.get(ollamas_own_name(ollama_name(status.model))) if status.model.engine == OLLAMA else None
            own = {} if entry is None else {name: entry[name] for name in ("digest", "details") if name in entry}
            told.append(running(status, about, snapshot, now) | own)
        await exchange.answer({"models": told})

    async def _show(self, exchange: Exchange) -> None:
        asked = read_named(await small_body(exchange))
        model = await self._asking.find(exchange, asked.model or asked.name)
        status = status_of(self._engine, model)
        assert status is not None
        if is_ollamas(status.model):
            told = await self._shown_by_ollama(ollama_name(status.model), verbose=asked.verbose)
            if told is not None:
                await exchange.answer(told)
                return
        (known,) = await self._known.of([status.model], heads=True)
        await exchange.answer(About(known).show())

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

    def _visible(self, exchange: Exchange) -> Sequence[ModelStatus]:
        return only(self._engine.snapshot().models, exchange.allowed_models)

    # Ollama's store --------------------------------------------------------------------------------------------------

    async def _store(self, exchange: Exchange) -> None:
        async with self._asking.body(exchange) as body:
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
        except UNREADABLE as problem:
            raise HttpError(400, "invalid_request", f"cannot read the body: {why_unreadable(problem)}") from None
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


def _route(
    method: str, path: str, handler: Handler, summary: str, *, changes: bool = False, is_open: bool = False
) -> Route:
    return Route(method, path, handler, Api.OLLAMA, changes=changes, open=is_open, summary=summary, tag="ollama")
