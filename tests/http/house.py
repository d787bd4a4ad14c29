"""The management door and the admin routes of the front door, open on Unix sockets, over a real engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.catalogue import configured, nothing_found
from engine.parts import Bench, FakeBackend, FakeRunner
from layer.raw import Raw, connected

from gpud.catalog.kinds import quantization
from gpud.core.events import Notice
from gpud.core.facts import Endpoint, Model
from gpud.core.keys import ApiKey
from gpud.core.ports import Files, LoadOrder, Runner
from gpud.engine import Engine
from gpud.http.access import Rules
from gpud.http.admin import admin_routes
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.engine_texts import EngineTexts
from gpud.http.feed import Feed
from gpud.http.keys import Keys
from gpud.http.known_models import KnownModels
from gpud.http.lines import Lines
from gpud.http.listening import UnixAddress
from gpud.http.management import management_routes
from gpud.http.metrics import Metrics
from gpud.http.own import OwnSettings, Parts
from gpud.http.routing import Router
from gpud.http.server import Handler, Server
from gpud.http.shapes import Api

BOUND_S = 50.0


@dataclass
class Told:
    """One whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, type and message of an error in the management API's shape."""
        error = self.value["error"]
        assert set(self.value) == {"error"}
        return self.status, error["type"], error["message"]


class House:
    """Two doors over one engine: ``front`` and ``management``."""

    def __init__(self, engine: Engine, folder: Path, settings: OwnSettings, keys: Keys | None, files: Files) -> None:
        self.engine = engine
        self.folder = folder
        self.lines = Lines()
        self.feed = Feed(engine, lines=self.lines)
        self.metrics = Metrics(engine)
        self.pool = Pool()
        known = KnownModels(engine, files, quantization)
        texts = EngineTexts(engine, self.pool)
        self.parts = Parts(engine, self.pool, self.feed, self.lines, self.metrics, files, known, texts, settings)
        self.keys = keys
        self.notices: list[Notice] = []
        self.routes = {"front": admin_routes(self.parts), "management": management_routes(self.parts)}
        routers = {name: Router(routes) for name, routes in self.routes.items()}
        self.doors = Doors(engine, routers, say=self.notices.append, observe=self.metrics.observe)
        for listener in (self.feed.listen, self.lines.listen, self.metrics.listen):
            engine.subscribe(listener)

    def socket(self, door: str) -> str:
        return str(self.folder / f"{door}.sock")

    async def __aenter__(self) -> Self:
        await self.doors.apply(
            [
                Opening("front", (UnixAddress(self.socket("front")),), Rules(), api=Api.OPENAI),
                Opening("management", (UnixAddress(self.socket("management")),), Rules(), api=Api.MANAGEMENT),
            ],
            self.keys,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.feed.close()
        self.lines.close()
        await self.doors.close(0.0)
        await self.pool.close()

    async def ask(
        self, what: str, body: object = None, *, door: str = "management", key: str = "", raw: bytes | None = None
    ) -> Told:
        """``GET /path`` or ``POST /path`` with a body, on a connection of its own."""
        method = what.partition(" ")[0]
        async with connected(self.socket(door)) as client:
            await client.send(question(what, body, key=key, raw=raw))
            async with asyncio.timeout(BOUND_S):
                answer = await client.answer(method)
        return Told(answer.status, answer.headers, answer.body)

    async def front(self, what: str, body: object = None, **more: Any) -> Told:
        return await self.ask(what, body, door="front", **more)

    @asynccontextmanager
    async def listening(self, what: str, *, door: str = "management", **headers: str) -> AsyncIterator[Raw]:
        """A stream, with its head already asked for."""
        async with connected(self.socket(door)) as client:
            await client.send(question(what, headers=headers))
            yield client


def question(
    what: str, body: object = None, *, key: str = "", raw: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    method, _, path = what.partition(" ")
    content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join((*lines, "", "")).encode() + content


class ChattingRunner(FakeRunner):
    """An engine that really answers, where ``where`` says."""

    where = Endpoint()

    @property
    def endpoint(self) -> Endpoint:
        return self.where


class ChattingBackend(FakeBackend):
    """Its engines all answer at one place."""

    def __init__(self, where: Endpoint) -> None:
        super().__init__()
        self.where = where

    async def load(self, order: LoadOrder) -> Runner:
        await super().load(order)
        runner = ChattingRunner(100 + len(self.orders))
        runner.where = self.where
        self.runners[order.model.name] = runner
        return runner


class ChattingBench(Bench):
    def __init__(self, where: Endpoint, *models: Model) -> None:
        super().__init__(*models)
        self.backend = ChattingBackend(where)
        self.engine = Engine(
            shelf=configured(self.models),
            library=nothing_found(),
            limits=self.limits,
            idle_timeout_s=300.0,
            backends={"fake": self.backend},
            gpus=self.gpus,
            store=self.store,
            launcher=self.launcher,
            files=self.files,
            version="0",
        )


@asynccontextmanager
async def chatting_house(folder: Path, handler: Handler, *models: Model) -> AsyncIterator[tuple[House, Bench]]:
    """Both doors over an engine that is a server in this process, asked with a key."""
    server = Server(handler)
    path = str(folder / "engine.sock")
    await server.listen(UnixAddress(path), door="engine")
    try:
        async with ChattingBench(Endpoint(socket=path, key="engine-key"), *models) as bench:
            await bench.engine.refresh()
            async with House(bench.engine, folder, OwnSettings(), None, bench.files) as found:
                yield found, bench
    finally:
        await server.close()


@asynccontextmanager
async def house(
    folder: Path,
    *models: Model,
    settings: OwnSettings | None = None,
    keys: Mapping[str, ApiKey] | None = None,
) -> AsyncIterator[tuple[House, Bench]]:
    """Both doors over engines that do what a test says."""
    async with Bench(*models) as bench:
        await bench.engine.refresh()
        known = Keys(keys.values()) if keys is not None else None
        async with House(bench.engine, folder, settings or OwnSettings(), known, bench.files) as found:
            yield found, bench
