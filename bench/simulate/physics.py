"""The machine that every policy is run on: one GPU's memory, engines with slots, and a clock that jumps from event to
event. It decides nothing, and insists that nobody breaks its rules.

- A load takes the model's own ``load_s``; its bytes are taken from the beginning.
- An unload takes :data:`UNLOAD_S`; the bytes are back after it. Only an engine without a request may be unloaded.
- An engine answers in ``slots`` slots; whoever comes when all are taken waits in the engine, first come, first served.
- Engines do not slow each other down, neither loading nor answering.
- A request has waited from its arrival until it has a slot: for memory, for a load, for a turn, for a slot.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from bench.simulate.trace import Request, SimulatedModel

UNLOAD_S = 0.5
"""From the wish until the memory is measured free: an engine that is asked to end, and its driver, take about that."""


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(slots=True)
class Engine:
    """A model that holds memory. ``last_used_s`` is the latest arrival, begin or end of a request in it."""

    model: SimulatedModel
    phase: Phase
    last_used_s: float
    running: int = 0
    inside: deque[Request] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        return self.phase is Phase.READY and not self.running and not self.inside


class Policy(Protocol):
    """Decides on a :class:`Machine`. It is told of everything that may allow the next decision."""

    def arrived(self, request: Request, /) -> None: ...

    def ready(self, model: str, /) -> None: ...

    def finished(self, request: Request, /) -> None: ...

    def gone(self, model: str, /) -> None: ...


class Machine:
    """Owns the clock, the memory and the engines, and keeps what happened to each request."""

    def __init__(self, models: Mapping[str, SimulatedModel], vram_bytes: int, slots: int = 1) -> None:
        self.models = models
        self.vram_bytes = vram_bytes
        self.slots = slots
        self.now = 0.0
        self.free_bytes = vram_bytes
        self.engines: dict[str, Engine] = {}
        self.waits: list[tuple[Request, float]] = []
        self.refused: list[Request] = []
        self.loads: dict[str, int] = {}
        self.evictions = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._policy: Policy | None = None

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Have it called when the clock is there; what is due at one moment happens in the order of asking."""
        self._sequence += 1
        heapq.heappush(self._due, (max(when_s, self.now), self._sequence, what))

    def begin(self, policy: Policy) -> None:
        self._policy = policy

    def run(self, trace: Sequence[Request], policy: Policy) -> None:
        """Play the whole trace, and on until the last request is served."""
        self.begin(policy)
        for request in trace:
            self.at(request.t, lambda request=request: policy.arrived(request))  # type: ignore[misc]
        self.until(float("inf"))
        answered = len(self.waits) + len(self.refused)
        assert answered == len(trace), f"{len(trace) - answered} of {len(trace)} requests were forgotten"

    def until(self, when_s: float) -> None:
        """Let everything happen that is due by then."""
        while self._due and self._due[0][0] <= when_s:
            self.now, _, what = heapq.heappop(self._due)
            what()

    # What a policy may do

    def refuse(self, request: Request) -> None:
        self.refused.append(request)

    def load(self, name: str) -> None:
        model = self.models[name]
        assert name not in self.engines, f"{name} is loaded twice"
        assert model.bytes <= self.free_bytes, f"{name} needs {model.bytes} bytes, {self.free_bytes} are free"
        self.free_bytes -= model.bytes
        self.loads[name] = self.loads.get(name, 0) + 1
        engine = self.engines[name] = Engine(model, Phase.LOADING, self.now)
        self.at(self.now + model.load_s, lambda: self._ready(engine))

    def unload(self, name: str) -> None:
        engine = self.engines[name]
        assert engine.idle, f"{name} is unloaded while it is {engine.phase.value} with {engine.running} running"
        engine.phase = Phase.LEAVING
        self.evictions += 1
        self.at(self.now + UNLOAD_S, lambda: self._gone(engine))

    def serve(self, request: Request) -> None:
        """Give the request to its engine, which must be ready."""
        engine = self.engines[request.model]
        assert engine.phase is Phase.READY, f"{request.model} is {engine.phase.value}, not ready"
        engine.inside.append(request)
        engine.last_used_s = self.now
        self._fill(engine)

    # What happens by itself

    def _fill(self, engine: Engine) -> None:
        while engine.inside and engine.running < self.slots:
            request = engine.inside.popleft()
            engine.running += 1
            engine.last_used_s = self.now
            self.waits.append((request, self.now - request.t))
            self.at(self.now + request.service_s, lambda request=request: self._finished(engine, request))  # type: ignore[misc]

    def _finished(self, engine: Engine, request: Request) -> None:
        assert self._policy is not None
        engine.running -= 1
        engine.last_used_s = self.now
        self._fill(engine)
        self._policy.finished(request)

    def _ready(self, engine: Engine) -> None:
        assert self._policy is not None
        engine.phase = Phase.READY
        engine.last_used_s = self.now
        self._policy.ready(engine.model.name)

    def _gone(self, engine: Engine) -> None:
        assert self._policy is not None
        del self.engines[engine.model.name]
        self.free_bytes += engine.model.bytes
        self._policy.gone(engine.model.name)
