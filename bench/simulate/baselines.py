"""How others choose and queue, on the same machine: what gpud is measured against.

All but llama-swap keep one queue in the order of arrival. Its first request, where it needs a load, holds up all behind
it, those for loaded models too, until its load has begun (with Ollama, until its engine is ready). They differ in whom
they send away. None unloads for idleness.
"""

from collections import deque
from collections.abc import Sequence

from bench.simulate.physics import Engine, Machine, Phase
from bench.simulate.trace import Request

OLLAMA_SHARE = 0.8
"""Ollama loads beside others only what it predicts to need at most this share of the free memory."""


class Fifo:
    """First come, first served. Sends away the idle engine with the least rank, and the next, until there is room.

    ``waits_for_loads``: those behind a load wait until it is complete.
    """

    waits_for_loads = False

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.queue: deque[Request] = deque()
        self._loading: dict[str, list[Request]] = {}

    def rank(self, engine: Engine) -> tuple[float | str, ...]:
        raise NotImplementedError

    def dispatched(self, request: Request) -> None:
        """The request goes to its engine."""

    def evicting(self, victim: Engine) -> None:
        """This engine is sent away."""

    def arrived(self, request: Request) -> None:
        if self.machine.models[request.model].bytes > self.machine.vram_bytes:
            self.machine.refuse(request)
            return
        self.queue.append(request)
        self._advance()

    def ready(self, model: str) -> None:
        for request in self._loading.pop(model, ()):
            self.machine.serve(request)
        self._advance()

    def finished(self, _request: Request, /) -> None:
        self._advance()

    def gone(self, _model: str, /) -> None:
        self._advance()

    def _advance(self) -> None:
        engines = self.machine.engines
        while self.queue:
            request = self.queue[0]
            if request.model not in engines:
                self.make_room(request.model)
            engine = engines.get(request.model)
            if engine is None or engine.phase is Phase.LEAVING:
                return
            if engine.phase is Phase.LOADING and self.waits_for_loads:
                return
            self.queue.popleft()
            self.dispatched(request)
            if engine.phase is Phase.LOADING:
                self._loading.setdefault(request.model, []).append(request)
            else:
                self.machine.serve(request)

    def make_room(self, wanted: str) -> None:
        """Load it if it fits; else send away those that are idle, once they are enough."""
        machine = self.machine
        missing = machine.models[wanted].bytes - machine.free_bytes
        if missing <= 0:
            machine.load(wanted)
            return
        engines = machine.engines.values()
        missing -= sum(engine.model.bytes for engine in engines if engine.phase is Phase.LEAVING)
        for victim in self._victims([engine for engine in engines if engine.idle], missing):
            self.evicting(victim)
            machine.unload(victim.model.name)

    def _victims(self, idle: Sequence[Engine], missing: int) -> Sequence[Engine]:
        if missing <= 0 or sum(engine.model.bytes for engine in idle) < missing:
            return ()
        victims: list[Engine] = []
        for engine in sorted(idle, key=self.rank):
            if missing <= 0:
                break
            victims.append(engine)
            missing -= engine.model.bytes
        return victims


class Lru(Fifo):
    """The least recently used goes."""

    def rank(self, engine: Engine) -> tuple[float | str, ...]:
        return (engine.last_used_s,)


class Gdsf(Fifo):
    """Greedy-Dual-Size-Frequency: the one with the least ``L + uses x load time / bytes`` goes, where ``L`` is that sum
    of the last that went.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._floor = 0.0
        self._uses: dict[str, int] = {}
        self._worth: dict[str, float] = {}

    def dispatched(self, request: Request) -> None:
        model = self.machine.models[request.model]
        self._uses[model.name] = self._uses.get(model.name, 0) + 1
        self._worth[model.name] = self._floor + self._uses[model.name] * model.load_s / model.bytes

    def rank(self, engine: Engine) -> tuple[float | str, ...]:
        return (self._worth.get(engine.model.name, self._floor),)

    def evicting(self, victim: Engine) -> None:
        self._floor = max(self._floor, self._worth.pop(victim.model.name, self._floor))
        self._uses.pop(victim.model.name, None)


class Clairvoyant(Fifo):
    """Sends away whose next use is farthest in the future, which it reads from the trace. It queues as LRU does."""

    def __init__(self, machine: Machine, trace: Sequence[Request]) -> None:
        super().__init__(machine)
        self._coming: dict[str, deque[float]] = {name: deque() for name in machine.models}
        for request in trace:
            self._coming[request.model].append(request.t)

    def dispatched(self, request: Request) -> None:
        self._coming[request.model].popleft()

    def rank(self, engine: Engine) -> tuple[float | str, ...]:
        coming = self._coming[engine.model.name]
        return (-coming[0] if coming else float("-inf"),)


class Ollama(Fifo):
    """Loads one after the other, and only what needs at most 80 % of what is free, or when nothing else is loaded. Else
    the model with the shortest keep-alive goes, by name where they are equal, as they are here; one after the other,
    idle ones first. Its limit of three loaded models is lifted.
    """

    waits_for_loads = True

    def rank(self, engine: Engine) -> tuple[float | str, ...]:
        return (engine.model.name,)

    def make_room(self, wanted: str) -> None:
        machine = self.machine
        engines = machine.engines.values()
        if not engines or machine.models[wanted].bytes <= OLLAMA_SHARE * machine.free_bytes:
            machine.load(wanted)
            return
        if any(engine.phase is not Phase.READY for engine in engines):
            return
        idle = [engine for engine in engines if engine.idle]
        if idle:
            machine.unload(min(idle, key=self.rank).model.name)


class LlamaSwap:
    """Serves a loaded model at once, whoever waits. Else the request waits in a queue that is grouped by model, and a
    swap sends away the fewest models, by their order in the table where several sets are as good, as soon as none of
    them has a request; swaps that do not concern each other run at the same time.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._waiting: dict[str, list[Request]] = {}
        self._swapping: list[str] = []

    def arrived(self, request: Request) -> None:
        engine = self.machine.engines.get(request.model)
        if self.machine.models[request.model].bytes > self.machine.vram_bytes:
            self.machine.refuse(request)
        elif engine is not None and engine.phase is Phase.READY:
            self.machine.serve(request)
        else:
            self._waiting.setdefault(request.model, []).append(request)
            self._advance()

    def ready(self, model: str) -> None:
        for request in self._waiting.pop(model, ()):
            self.machine.serve(request)
        self._advance()

    def finished(self, _request: Request, /) -> None:
        self._advance()

    def gone(self, _model: str, /) -> None:
        self._advance()

    def _advance(self) -> None:
        machine = self.machine
        for name in list(self._swapping):
            if machine.models[name].bytes <= machine.free_bytes and name not in machine.engines:
                self._swapping.remove(name)
                machine.load(name)
        for name in list(self._waiting):
            if name not in machine.engines and name not in self._swapping:
                self._swap(name)

    def _swap(self, wanted: str) -> None:
        machine = self.machine
        engines = machine.engines.values()
        missing = machine.models[wanted].bytes - machine.free_bytes
        missing -= sum(engine.model.bytes for engine in engines if engine.phase is Phase.LEAVING)
        missing += sum(machine.models[name].bytes for name in self._swapping)
        loaded = [machine.engines[name] for name in machine.models if name in machine.engines]
        victims = fewest([engine for engine in loaded if engine.phase is Phase.READY], missing)
        if victims is None or not all(victim.idle for victim in victims):
            return
        for victim in victims:
            machine.unload(victim.model.name)
        if victims or machine.models[wanted].bytes > machine.free_bytes:
            self._swapping.append(wanted)
        else:
            machine.load(wanted)


def fewest(engines: Sequence[Engine], missing: int) -> Sequence[Engine] | None:
    """As few engines as cover the missing bytes; of several such sets the one whose members come first."""
    largest = sorted((engine.model.bytes for engine in engines), reverse=True)
    if missing > sum(largest):
        return None
    count, covered = 0, 0
    while covered < missing:
        covered += largest[count]
        count += 1
    chosen: list[Engine] = []
    for position, engine in enumerate(engines):
        left = count - len(chosen)
        if not left:
            break
        others = sorted((other.model.bytes for other in engines[position + 1 :]), reverse=True)[: left - 1]
        if engine.model.bytes + sum(others) >= missing:
            chosen.append(engine)
            missing -= engine.model.bytes
    return chosen
