"""Ollama's door with everything behind it: a real Engine whose engines are real processes, among them a real or a fake
Ollama, and the doors as the daemon opens them.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends.place import Journal, NoFdStore
from engine.catalogue import configured, nothing_found
from engine.parts import GIB, MemoryStore, OneGpu
from gateway_place import QUICK, Told, question
from layer.raw import connected

from gpud.backends.custom import Custom
from gpud.backends.llama_server import LlamaServer
from gpud.backends.ollama import Ollama
from gpud.backends.options import EngineOptions
from gpud.catalog.kinds import quantization
from gpud.catalog.reader import FileReader
from gpud.core.facts import EngineSettings, Limits, Model, ModelStatus, QueueLimits
from gpud.core.keys import BOTH, ApiKey, Right
from gpud.core.record import replace
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.exchange import Exchange
from gpud.http.gateway import Gateway, GatewaySettings
from gpud.http.keys import Keys
from gpud.http.known_models import KnownModels
from gpud.http.listening import Address, TcpAddress, UnixAddress
from gpud.http.ollama import OllamaFront
from gpud.http.routing import Handler, Router
from gpud.http.shapes import Api
from gpud.processes.launcher import ProcessLauncher

ENGINE = Path(__file__).parent / "scripted_engine.py"
KEY = "a-key-of-the-tests"


def scripted(folder: Path, name: str = "tiny", **changes: Any) -> Model:
    """A model whose engine answers what ``folder/NAME.script`` says, and notes in ``folder/NAME.notes`` what it was
    asked.
    """
    files = ("--script", str(folder / f"{name}.script"), "--notes", str(folder / f"{name}.notes"))
    settings = EngineSettings(command=(str(ENGINE), "--host", "${socket}", *files), health="/health")
    embeddings = changes.pop("embeddings", False)
    model = Model(name, "custom", replace(settings, embeddings=embeddings), size_bytes=GIB, stop=QUICK)
    return replace(model, load_timeout_s=50.0, **changes)


def script(folder: Path, *events: object, name: str = "tiny", **more: object) -> None:
    """What the engine says next: these events, or ``answer=…`` as a whole, with ``status=…``; ``then="die"`` after
    that.
    """
    (folder / f"{name}.script").write_text(json.dumps({"events": events, **more}))


def chunk(**delta: object) -> dict[str, object]:
    """An event of a chat's stream."""
    finish = delta.pop("finish", None)
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def asked_of_engine(folder: Path, name: str = "tiny") -> list[dict[str, Any]]:
    """Path and body of each request that the engine had."""
    notes = folder / f"{name}.notes"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


class OllamaDoor:
    """Use it as ``async with``; nothing may be left at its end."""

    def __init__(
        self,
        folder: Path,
        *models: Model,
        llama_server: str = "",
        ollama: EngineOptions | None = None,
        allowed: tuple[str, ...] | None = None,
        rights: frozenset[Right] | None = None,
        can_serve: bool = False,
    ) -> None:
        self.folder = folder
        self.path = str(folder / "ollama.sock")
        self.exchanges: list[Exchange] = []
        self.journal = Journal()
        (folder / "run").mkdir(exist_ok=True)
        self.launcher = ProcessLauncher(
            runtime_dir=folder / "run", fd_store=NoFdStore(), sink=self.journal, cgroup=None, burst_lines=100_000
        )
        self.keys = None
        if allowed is not None or rights is not None:
            digest = hashlib.sha256(KEY.encode()).digest()
            self.keys = Keys([ApiKey("test", digest, allow=allowed or ("*",), may=rights or BOTH)])
        self.ollama = Ollama(ollama or EngineOptions(), self.launcher, linger_s=0.0)
        store = MemoryStore()
        store.loop = asyncio.get_running_loop()
        files = FileReader()
        self.engine = Engine(
            shelf=configured({model.name: model for model in models}),
            library=nothing_found(),
            limits=Limits(backoff_first_s=0.05, backoff_max_s=0.1, queue=QueueLimits(turn_s=0.2)),
            idle_timeout_s=300.0,
            backends={
                "custom": Custom(EngineOptions(), self.launcher),
                "llama_server": LlamaServer(EngineOptions(binary=llama_server), self.launcher),
                "ollama": self.ollama,
            },
            gpus=OneGpu(),
            store=store,
            launcher=self.launcher,
            files=files,
            version="0",
        )
        self.pool = Pool()
        self.gateway = Gateway(self.engine, self.pool, GatewaySettings(first_s=0.05, heartbeat_s=0.05))
        self.front = OllamaFront(
            self.engine, self.pool, self.gateway, known=KnownModels(self.engine, files, quantization)
        )
        if can_serve:
            self.front.server = self.ollama
        routes = (replace(route, handler=self._noting(route.handler)) for route in self.front.routes())
        self.doors = Doors(self.engine, {"ollama": Router(routes)}, say=lambda notice: None)

    async def __aenter__(self) -> Self:
        await self.engine.start()
        addresses: tuple[Address, ...] = (UnixAddress(self.path), TcpAddress("127.0.0.1", 0))
        await self.doors.apply((Opening("ollama", addresses, api=Api.OLLAMA),), self.keys)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.doors.close(0.0)
        self.engine.shutdown()
        self.engine.shutdown()
        await self.engine.finished()
        await self.engine.close()
        await self.ollama.close()
        await self.pool.close()
        left = await self.launcher.close()
        if error is None:
            assert left == (), f"children were left: {left}"

    def _noting(self, handler: Handler) -> Handler:
        async def note(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            await handler(exchange)

        return note

    @property
    def url(self) -> str:
        return next(f"http://{where}" for where in self.doors.addresses["ollama"] if ":" in where)

    async def ask(
        self, path: str, body: object = None, *, method: str = "", headers: Mapping[str, str] | None = None
    ) -> "Said":
        """One question on a connection of its own, and the whole answer."""
        async with connected(self.path) as client:
            await client.send(question(path, body, method=method, headers=headers))
            async with asyncio.timeout(50):
                answer = await client.answer(method or "POST")
        return Said(answer.status, answer.headers, answer.body)

    def status(self, name: str = "tiny") -> ModelStatus:
        return next(one for one in self.engine.snapshot().models if one.model.name == name)

    async def until(self, name: str, *states: str) -> None:
        """Wait until a model is in one of these states."""
        reached = asyncio.Event()

        def look(_: object) -> None:
            if self.status(name).state in states:
                reached.set()

        unsubscribe = self.engine.subscribe(look)
        try:
            look(())
            await asyncio.wait_for(reached.wait(), 50)
        finally:
            unsubscribe()


class Said(Told):
    """An answer of Ollama's kind."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines() if line]


def with_key() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}
