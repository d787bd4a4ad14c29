"""A front door with everything behind it: a real Engine whose engines are real processes, a real Server on a Unix
socket, and the routes of the gateway found as the doors find them.
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
from engine.parts import GIB, MemoryStore, ModelFiles, OneGpu
from layer.raw import connected

from gpud.backends.custom import Custom
from gpud.backends.llama_server import LlamaServer
from gpud.backends.options import EngineOptions
from gpud.backends.vllm import vllm
from gpud.core.facts import EngineSettings, Limits, Model, QueueLimits, StopTimes
from gpud.core.keys import ApiKey
from gpud.core.record import replace
from gpud.engine import Engine
from gpud.http.client import Pool
from gpud.http.doors import Doors, Opening
from gpud.http.exchange import Exchange
from gpud.http.gateway import Gateway, GatewaySettings
from gpud.http.keys import Keys
from gpud.http.listening import Address, TcpAddress, UnixAddress
from gpud.http.routing import Handler, Router
from gpud.processes.launcher import ProcessLauncher

TALKER = Path(__file__).parent / "talking_engine.py"
QUICK = StopTimes(drain_s=0.2, term_s=0.5, second_term_s=0.5)
KEY = "a-key-of-the-tests"
QUICK_BEATS = GatewaySettings(first_s=0.05, heartbeat_s=0.05)


def talker(name: str = "tiny", *switches: str, notes: Path | None = None, **changes: Any) -> Model:
    """A model whose engine is the talking one, with a key of its own."""
    command = (str(TALKER), "--host", "${socket}", *switches, *(("--notes", str(notes)) if notes else ()))
    settings = EngineSettings(command=command, health="/health", environment=(("ENGINE_KEY", "${key}"),))
    model = Model(name, "custom", settings, size_bytes=GIB, load_timeout_s=50.0, stop=QUICK)
    return replace(model, **changes)


class Front:
    """Use it as ``async with``; nothing may be left at its end."""

    def __init__(
        self,
        folder: Path,
        *models: Model,
        settings: GatewaySettings = QUICK_BEATS,
        allowed: tuple[str, ...] | None = None,
        binary: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.folder = folder
        self.path = str(folder / "front.sock")
        self.exchanges: list[Exchange] = []
        self.served = asyncio.Event()
        self.keys = None
        if allowed is not None:
            self.keys = Keys([ApiKey("test", hashlib.sha256(KEY.encode()).digest(), allow=allowed)])
        self.journal = Journal()
        self.launcher = ProcessLauncher(
            runtime_dir=folder / "run", fd_store=NoFdStore(), sink=self.journal, cgroup=None, burst_lines=100_000
        )
        (folder / "run").mkdir(exist_ok=True)
        store = MemoryStore()
        store.loop = asyncio.get_running_loop()
        self.engine = Engine(
            shelf=configured({model.name: model for model in models}),
            library=nothing_found(),
            limits=limits or Limits(backoff_first_s=0.05, backoff_max_s=0.1, queue=QueueLimits(turn_s=0.2)),
            idle_timeout_s=300.0,
            backends={
                "custom": Custom(EngineOptions(), self.launcher),
                "vllm": vllm(EngineOptions(), self.launcher),
                "llama_server": LlamaServer(EngineOptions(binary=binary), self.launcher),
            },
            gpus=OneGpu(),
            store=store,
            launcher=self.launcher,
            files=ModelFiles(),
            version="0",
        )
        self.pool = Pool()
        self.gateway = Gateway(self.engine, self.pool, settings)
        routes = (replace(route, handler=self._noting(route.handler)) for route in self.gateway.routes())
        self.doors = Doors(self.engine, {"front": Router(routes)}, say=lambda notice: None)

    async def __aenter__(self) -> Self:
        await self.engine.start()
        addresses: tuple[Address, ...] = (UnixAddress(self.path), TcpAddress("127.0.0.1", 0))
        await self.doors.apply((Opening("front", addresses),), self.keys)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.doors.close(0.0)
        self.engine.shutdown()
        self.engine.shutdown()
        await self.engine.finished()
        await self.engine.close()
        await self.pool.close()
        left = await self.launcher.close()
        if error is None:
            assert left == (), f"children were left: {left}"

    def _noting(self, handler: Handler) -> Handler:
        async def note(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            try:
                await handler(exchange)
            finally:
                self.served.set()

        return note

    @property
    def url(self) -> str:
        """Where it answers on TCP."""
        return next(f"http://{where}" for where in self.doors.addresses["front"] if ":" in where)

    async def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> "Told":
        """One question on a connection of its own, and the whole answer."""
        async with connected(self.path) as client:
            await client.send(question(path, body, method=method, headers=headers, raw=raw))
            async with asyncio.timeout(50):
                answer = await client.answer(method or "POST")
        return Told(answer.status, answer.headers, answer.body)

    def state(self, name: str = "tiny") -> str:
        return next(one.state.value for one in self.engine.snapshot().models if one.model.name == name)

    def in_flight(self, name: str = "tiny") -> int:
        return next(one.in_flight for one in self.engine.snapshot().models if one.model.name == name)


class Told:
    """An answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, str]]:
        """The events of a stream: name (empty: none) and data. Comments have the name ``:``."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = block.split("\n")
            if block.startswith(":"):
                found.append((":", block[1:].strip()))
                continue
            name = "".join(line[7:] for line in lines if line.startswith("event: "))
            data = "\n".join(line[6:] for line in lines if line.startswith("data: "))
            if name or data:
                found.append((name, data))
        return found


def question(
    path: str,
    body: object = None,
    *,
    method: str = "",
    headers: Mapping[str, str] | None = None,
    raw: bytes | None = None,
) -> bytes:
    """A request as bytes."""
    if raw is None:
        raw = b"" if body is None else json.dumps(body).encode()
    method = method or ("POST" if raw else "GET")
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if raw or method == "POST":
        lines.append(f"Content-Length: {len(raw)}")
    given = {"Content-Type": "application/json", **(headers or {})}
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + raw


def noted(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
