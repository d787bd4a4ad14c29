"""What a model is asked by Ollama's clients: answers, embeddings, to be loaded, to be gone.

It finds the model, says how the client would have it loaded and kept, and sends the question on its way; what is said
then is not its business.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf, sqrt
from typing import Any

from gpud.core.errors import Busy, GpudError, NotLoaded
from gpud.core.events import LoadOptions
from gpud.core.facts import State
from gpud.core.keys import Right
from gpud.core.naming import ollamas_own_name
from gpud.core.record import Record, replace
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.exchange import Exchange
from gpud.http.gateway import Gateway
from gpud.http.ollama_answers import NANO, Reading, chat_value, created_at, generate_value
from gpud.http.ollama_models import find, ways
from gpud.http.ollama_passage import OLLAMA, OllamaPassage, Question
from gpud.http.ollama_relay import Original
from gpud.http.ollama_requests import Chat, Embed, Embeddings, Generate, Wish, chat_body, generate_request, read
from gpud.http.relaying import Call, RelaySettings
from gpud.http.shapes import HttpError
from gpud.http.waiting import status_of

GOES_S = 0.001
"""keep_alive 0: the model goes as soon as nobody uses it, as one that was idle for too long."""


class OllamaSettings(Record):
    """``attached``: the Ollama is one that somebody else runs."""

    attached: bool = False


class Asking:
    """The handlers, and what they share. ``settings`` may be replaced at any time."""

    def __init__(
        self, engine: Engine, pool: Pool, gateway: Gateway, original: Original, settings: OllamaSettings
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._gateway = gateway
        self._original = original
        self.settings = settings

    async def find(self, exchange: Exchange, name: str) -> str:
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

    async def generate(self, exchange: Exchange) -> None:
        async with self.body(exchange) as body:
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

    async def chat(self, exchange: Exchange) -> None:
        async with self.body(exchange) as body:
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

    async def embed(self, exchange: Exchange) -> None:
        async with self.body(exchange) as body:
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

    async def embeddings(self, exchange: Exchange) -> None:
        async with self.body(exchange) as body:
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
        model = await self.find(exchange, asked.model)
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
        use = self._engine.use(model, exchange.caller, self._wishes(exchange, model, asked))
        async with use:
            if use.waited_s is not None:
                exchange.tell_load(use.waited_s)

    async def _load_or_unload(self, exchange: Exchange, asked: Wish, value: dict[str, Any]) -> None:
        """A request that asks nothing is about the model alone."""
        if asked.keep_s == 0:
            await self._unload(exchange, asked)
            await exchange.answer(value | {"done": True, "done_reason": "unload"})
            return
        model = await self.find(exchange, asked.model)
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
        model = await self.find(exchange, asked.model) if asked.model else ""
        try:
            self._engine.unload(model, exchange.caller)
        except NotLoaded:
            return
        except Busy as problem:
            raise HttpError(409, "busy", problem.message, hint="ask them to release it") from None

    # Bodies ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def body(self, exchange: Exchange) -> AsyncIterator[bytes]:
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
