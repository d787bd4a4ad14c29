"""Parts to hand to the engine: engines that do what a test says, a store in memory, a machine with one GPU."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from gpud.core.errors import BackendFailed
from gpud.core.events import Logged
from gpud.core.facts import HOST, Endpoint, Exit, GpuProcess, GpuSample, Limits, Model, StopTimes
from gpud.core.learning import Measured, Residual
from gpud.core.modelfile import ModelFile
from gpud.core.plan import Plan
from gpud.core.ports import Child, ChildRecord, Command, LineReader, LoadOrder, Programs, Progress, Runner, RunnerRecord
from gpud.core.quote import Estimate
from gpud.engine import Engine
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf

from .catalogue import configured, nothing_found

GIB = 1 << 30


class FakeRunner:
    """An engine that is there until it is told to go, or until the test ends it."""

    def __init__(self, pid: int, *, is_busy: bool | None = False) -> None:
        self.pid = pid
        self.is_busy = is_busy
        self.unloads = 0
        self.kills = 0
        self.refuses_to_unload = False
        self.cannot_be_killed = False
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(socket=f"/sockets/{self.pid}", key="secret")

    def pids(self) -> frozenset[int]:
        return frozenset((self.pid,))

    async def gone(self) -> Exit:
        return await asyncio.shield(self.ended)

    async def busy(self) -> bool | None:
        return self.is_busy

    async def unload(self, times: StopTimes, on_kill: Callable[[], None] | None = None) -> None:
        self.unloads += 1
        if self.refuses_to_unload:
            raise RuntimeError("it will not")
        self.end(0)

    async def kill(self) -> None:
        self.kills += 1
        if self.cannot_be_killed:
            self.end(None)
            raise RuntimeError("it cannot")
        self.end(-9)

    def tail(self) -> tuple[str, ...]:
        return ()

    def crash_hint(self, ended: Exit) -> str:
        return "mend it" if ended.code else ""

    def end(self, code: int | None) -> None:
        if not self.ended.done():
            self.ended.set_result(Exit(self.pid, code))


class FakeBackend:
    """Loads at once, or when :attr:`gate` is set; fails with :attr:`failure`."""

    name = "fake"

    def __init__(self) -> None:
        self.runners: dict[str, FakeRunner] = {}
        self.orders: list[LoadOrder] = []
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.unfit: BackendFailed | None = None
        self.adoptable: dict[str, FakeRunner] = {}
        self.version = "1"
        self.canceled = 0
        self.entered = asyncio.Event()
        self.closed = False
        self.plans: dict[str, Plan] = {}
        self.probes = 0
        self.counts: Estimate | None = None

    def check(self, model: Model) -> None:
        if self.unfit is not None:
            raise self.unfit

    def file_bytes(self, model: Model) -> int | None:
        return GIB

    def fingerprint(self, model: Model) -> str:
        return f"{self.version}-{model.settings.context}"

    def plan(self, model: Model, gpus: int) -> Plan | None:
        return self.plans.get(model.name)

    def build(self) -> str:
        return "fake 1"

    async def probe(
        self, model: Model, devices: tuple[str, ...], vendor: str, split: tuple[float, ...]
    ) -> Estimate | None:
        self.probes += 1
        return self.counts

    async def load(self, order: LoadOrder) -> Runner:
        self.orders.append(order)
        self.entered.set()
        order.report(Progress("text_model", 0.5))
        child = ChildRecord(order.unit, order.model.name, "fake", 100 + len(self.orders), 1)
        order.record(
            RunnerRecord(order.unit, order.model.name, "fake", self.fingerprint(order.model), Endpoint(), child=child)
        )
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        if self.failure is not None:
            raise self.failure
        runner = FakeRunner(100 + len(self.orders))
        self.runners[order.model.name] = runner
        return runner

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:
        return self.adoptable.get(record.unit)

    async def close(self) -> None:
        self.closed = True


@dataclass
class MemoryStore:
    """What would be on disk."""

    problem: str = ""
    next_problem: str = ""
    kept: dict[str, RunnerRecord] = field(default_factory=dict)
    sizes: dict[str, Measured] = field(default_factory=dict)
    residuals: dict[str, Residual] = field(default_factory=dict)
    probes: dict[str, Estimate] = field(default_factory=dict)
    entries: list[Logged] = field(default_factory=list)
    closed: bool = False
    learned_something: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    def records(self) -> tuple[RunnerRecord, ...]:
        return tuple(self.kept.values())

    def keep(self, record: RunnerRecord) -> None:
        self.kept[record.unit] = record

    def forget(self, unit: str) -> None:
        self.kept.pop(unit, None)

    def learn(self, key: str, measured: Measured) -> None:
        self.sizes[key] = measured
        self.problem = self.next_problem
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.learned_something.set)

    def learned(self, key: str) -> Measured | None:
        return self.sizes.get(key)

    def learn_residual(self, place: str, residual_bytes: int) -> None:
        self.residuals[place] = self.residuals.get(place, Residual()).with_one_more(residual_bytes)

    def residual(self, place: str) -> Residual | None:
        return self.residuals.get(place)

    def keep_probe(self, key: str, estimate: Estimate) -> None:
        self.probes[key] = estimate

    def probed(self, key: str) -> Estimate | None:
        return self.probes.get(key)

    def log(self, entries: Sequence[Logged]) -> None:
        self.entries += entries

    def logged(self, model: str = "", limit: int = 100) -> tuple[Logged, ...]:
        found = [entry for entry in reversed(self.entries) if model in ("", entry.notice.model)]
        return tuple(found[:limit])

    def close(self) -> None:
        self.closed = True


class ModelFiles:
    """Model files by their path, as if they were on a disk."""

    def __init__(self) -> None:
        self.by_path: dict[str, ModelFile] = {}

    def read(self, path: str) -> ModelFile:
        if path not in self.by_path:
            raise BackendFailed(f"cannot read {path}", preflight=True)
        return self.by_path[path]


@dataclass
class OneGpu:
    """A GPU of 8 GiB on which every engine holds 1 GiB."""

    looks: int = 0
    releases: int = 0
    woken: int = 0
    problems: tuple[str, ...] = ()

    async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        self.looks += 1
        self.woken += wake
        processes = tuple(GpuProcess(pid, "engine", GIB) for pid in sorted(own))
        used = len(own) * GIB
        return (
            GpuSample("GPU-0", "Test GPU", 0, "nvidia", 8 * GIB, used, 8 * GIB - used, processes=processes),
            GpuSample(HOST, "host memory", 0, HOST, 16 * GIB, 0, 16 * GIB),
        )

    async def release(self) -> None:
        self.releases += 1


class NoLauncher:
    """Backends here start no processes; what is to be ended is written down."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def spawn(self, command: Command, on_line: LineReader | None = None) -> Child:
        raise AssertionError("no process is started here")

    def adopt(self, record: ChildRecord, on_line: LineReader | None = None) -> Child | None:
        return None

    async def end(self, record: ChildRecord) -> None:
        self.ended.append(record.unit)

    async def end_strangers(self, known_units: Collection[str]) -> tuple[str, ...]:
        return ()

    def family(self, pid: int) -> frozenset[int]:
        return frozenset((pid,))

    def socket_path(self, unit: str) -> str:
        return f"/sockets/{unit}"


class Bench:
    """An engine with its parts, made inside a running loop."""

    def __init__(
        self,
        *models: Model,
        store: MemoryStore | None = None,
        library: Library | None = None,
        shelf: Shelf | None = None,
        programs: Programs | None = None,
        slept: Callable[[], float] = lambda: 0.0,
        gpus: OneGpu | None = None,
        backend: FakeBackend | None = None,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.gpus = gpus or OneGpu()
        self.store = store or MemoryStore()
        self.store.loop = asyncio.get_running_loop()
        self.launcher = NoLauncher()
        self.files = ModelFiles()
        self.models = {model.name: model for model in models}
        self.limits = Limits(backoff_first_s=0.01, backoff_max_s=0.02)
        self.engine = Engine(
            shelf=shelf or configured(self.models),
            library=library or nothing_found(),
            limits=self.limits,
            idle_timeout_s=300.0,
            backends={"fake": self.backend},
            gpus=self.gpus,
            store=self.store,
            launcher=self.launcher,
            files=self.files,
            version="0",
            programs=programs,
            slept=slept,
        )

    async def __aenter__(self) -> "Bench":
        await self.engine.start()
        return self

    async def look(self) -> None:
        """Returns when the devices have been looked at since it was called, however long that takes."""
        asked_s = self.engine.snapshot().now_s
        while self.engine.looked_at_s is None or self.engine.looked_at_s < asked_s:
            await self.engine.refresh()

    async def __aexit__(self, *_: object) -> None:
        self.engine.shutdown()
        self.engine.shutdown()
        await self.engine.finished()
        await self.engine.close()
