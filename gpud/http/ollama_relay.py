"""What only Ollama itself can do: its store. Passed on to the real server, byte for byte, either way.

It starts no server: it is handed something that has one running for as long as it is needed.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, runtime_checkable

import msgspec

from gpud.core import statuses
from gpud.core.facts import Endpoint, State
from gpud.core.naming import ollamas_own_name
from gpud.core.record import replace
from gpud.engine import Engine
from gpud.http.asking import Body
from gpud.http.client import Pool
from gpud.http.crossing import passed_on
from gpud.http.exchange import SMALL_BODY_BYTES, Exchange
from gpud.http.ollama_passage import OLLAMA, PASSED_BACK, SENT_ON
from gpud.http.relay import relay
from gpud.http.shapes import HttpError
from gpud.http.upstream import UpstreamFailed

LOOK_BYTES = 16 << 20
"""The longest list of models that is read."""

LOOK_S = 2.0
"""How long Ollama is waited for where its answer is only a part of gpud's."""


@runtime_checkable
class OllamaServer(Protocol):
    """Ollama's own server, whoever runs it."""

    def serving(self) -> AbstractAsyncContextManager[Endpoint]:
        """It answers while this lasts: started if need be. Raises GpudError."""

    async def stored(self) -> Sequence[Mapping[str, object]]:
        """What its store has, as ``/api/tags`` tells it, without starting it for that."""


class Original:
    """The real Ollama: ``server`` has one running, None where nobody can; then it is the one that runs anyhow."""

    def __init__(self, engine: Engine, pool: Pool, server: OllamaServer | None) -> None:
        self._engine = engine
        self._pool = pool
        self.server = server

    def running(self) -> Endpoint | None:
        """Where one answers now, because gpud has a model in it."""
        for status in statuses.lively(self._engine.snapshot().models):
            if status.model.engine == OLLAMA and status.endpoint is not None and status.state is State.READY:
                return status.endpoint
        return None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Endpoint]:
        if self.server is not None:
            async with self.server.serving() as started:
                yield started
            return
        endpoint = self.running()
        if endpoint is None:
            raise HttpError(
                501,
                "not_implemented",
                "only Ollama itself can do that, and no Ollama runs under gpud now",
                hint="load one of its models first, or configure a model with engine: ollama",
            )
        yield endpoint

    async def passed(self, exchange: Exchange, endpoint: Endpoint, body: Body, *, length: int | None = None) -> None:
        """Ask it what the client asks, and answer what it answers."""
        request, reply = exchange.request, exchange.reply
        limits = replace(self._pool.limits, stall_s=None)
        target = request.raw_path + (f"?{request.raw_query}" if request.raw_query else "")
        headers = passed_on(request.headers, SENT_ON)
        try:
            async with self._pool.request(
                endpoint, request.method, target, headers=headers, body=body, length=length, limits=limits
            ) as response:
                fields = [*passed_on(response.headers, PASSED_BACK), *exchange.headers]
                await reply.begin(response.status, fields, response.length)
                await relay(response, reply)
        except UpstreamFailed as problem:
            if not reply.begun:
                raise HttpError(502, "bad_gateway", f"Ollama gave no proper answer: {problem}") from None
            reply.abort()

    async def asked(self, endpoint: Endpoint, method: str, target: str, value: object = None) -> Any:
        """Something small that gpud itself wants to know; None where it is not told."""
        body = None if value is None else msgspec.json.encode(value)
        limits = replace(self._pool.limits, connect_s=LOOK_S, header_s=LOOK_S, stall_s=LOOK_S)
        headers = [("Content-Type", "application/json")]
        try:
            async with self._pool.request(
                endpoint, method, target, headers=headers, body=body, limits=limits, repeatable=True
            ) as response:
                content = await response.read(LOOK_BYTES)
                return msgspec.json.decode(content) if response.status == 200 else None
        except (UpstreamFailed, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    async def tags(self) -> dict[str, dict[str, Any]]:
        """What is in its store, by its own full names; nothing where no server runs and nobody reads its store."""
        endpoint = self.running()
        value = await self.asked(endpoint, "GET", "/api/tags") if endpoint is not None else None
        entries: Sequence[object] = []
        if isinstance(value, dict) and isinstance(value.get("models"), list):
            entries = value["models"]
        elif self.server is not None:
            entries = await self._stored(self.server)
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                found[ollamas_own_name(entry["name"])] = entry
        return found

    @staticmethod
    async def _stored(server: OllamaServer) -> Sequence[object]:
        try:
            return await asyncio.wait_for(server.stored(), LOOK_S)
        except TimeoutError:
            return []


async def small_body(exchange: Exchange) -> bytes:
    return await exchange.request.body(SMALL_BODY_BYTES)
