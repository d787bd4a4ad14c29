"""What is measured. Arms take turns, so that whatever else the machine does meets all of them. Loads come first: the
first start of a model under gpud says more than any later one, and it is the later ones that answer."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway.arms import used
from bench.peers.arms import NAMES, Arm, Direct, is_alive, until_gone
from bench.peers.client import Asker, Broken, Stream, first_byte_s, rate

CLIENTS = 16
WARM_UP = 10
"""Questions to each arm before any is timed."""

LONG_ANSWER = 1200
"""Tokens of the answer that is under way when another model is asked for: a second or some."""

ORPHANED_S = 2.0
"""Whoever is alive so long after its manager was killed has been left behind."""


@dataclass
class Figure:
    """One row: ``values`` of each arm, or ``words`` where there is nothing to count."""

    key: str
    what: str
    unit: str = ""
    places: int = 1
    values: dict[str, list[float]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def add(self, arm: Arm, value: float) -> None:
        self.values.setdefault(arm.name, []).append(value)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    questions: int
    rate_s: float
    repeats: int
    idle_s: float


FULL = Extent(questions=400, rate_s=2.0, repeats=5, idle_s=10.0)
QUICK = Extent(questions=20, rate_s=0.2, repeats=1, idle_s=0.5)

Arms = Sequence[Arm]


def idle(arms: Arms, extent: Extent) -> Iterator[Figure]:
    """What each manager holds and does while nothing is loaded and nobody asks; all of them in the same seconds."""
    memory = Figure("resident_mib", "resident, nothing loaded", "MiB")
    woken = Figure("switches_per_s", "context switches of its own threads, nothing loaded", "/s", 2)
    managers = [arm for arm in arms if not isinstance(arm, Direct)]
    for arm in managers:
        for name in NAMES:
            first_byte_s(arm.port, name)
        arm.unloaded(NAMES[-1])
    # What an unload and the last request leave to be done is none of being idle: connections are kept for seconds.
    time.sleep(min(6.0, extent.idle_s))
    before = {arm.name: _switches(arm.pid) for arm in managers}
    time.sleep(extent.idle_s)
    for arm in managers:
        woken.add(arm, (_switches(arm.pid) - before[arm.name]) / extent.idle_s)
        memory.add(arm, used(arm.pid).resident_mib)
    yield memory
    yield woken


def _switches(pid: int) -> int:
    """Of all its threads, whether they waited or were preempted: both cost a processor its sleep."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split(":")[1])
    return total


def questions(arms: Arms, extent: Extent) -> Iterator[Figure]:
    """Short chats, one to each arm in turn; and as many as sixteen clients can have answered."""
    askers = [(arm, Asker(arm.port)) for arm in arms]
    took: dict[str, list[float]] = {arm.name: [] for arm in arms}
    processor = Figure("processor_ms", "processor time of the manager itself for a short chat", "ms", 2)
    used_s: dict[str, float] = {}
    try:
        for number in range(WARM_UP + extent.questions):
            if number == WARM_UP:
                used_s = {arm.name: used(arm.pid).cpu_s for arm in arms}
            shift = number % len(askers)
            for arm, asker in (*askers[shift:], *askers[:shift]):
                seconds = asker.seconds(NAMES[0])
                if number >= WARM_UP:
                    took[arm.name].append(seconds * 1000)
        for arm in arms:
            if not isinstance(arm, Direct):
                processor.add(arm, (used(arm.pid).cpu_s - used_s[arm.name]) / extent.questions * 1000)
    finally:
        for _, asker in askers:
            asker.close()
    yield from _added(arms, took)
    yield processor
    answered = Figure("rate_per_s", f"answers of one token, {CLIENTS} clients", "/s", 0)
    for number in range(extent.repeats):
        shift = number % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            answered.add(arm, rate(arm.port, NAMES[0], CLIENTS, extent.rate_s))
    yield answered


def _added(arms: Arms, took: dict[str, list[float]]) -> Iterator[Figure]:
    """Beyond what the engine alone took in the same round. The spread is that of quarters of the run."""
    zero = arms[0].name
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        figure = Figure(f"added_{name}_ms", f"a short chat, added, {name}", "ms", 2)
        for arm in arms:
            quarter = max(1, len(took[zero]) // 4)
            for begin in range(0, quarter * 4, quarter):
                part, direct = (took[each][begin : begin + quarter] for each in (arm.name, zero))
                if part:
                    own = 0.0 if arm.name == zero else _quantile(direct, share)
                    figure.add(arm, _quantile(part, share) - own)
        yield figure


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def loads(arms: Arms, extent: Extent) -> Iterator[Figure]:
    """From the request for a stream to its first byte: nothing loaded, and the other model loaded.

    The engine alone is started and ended for it by the bench, which looks at its health every millisecond.
    """
    cold = Figure("cold_ms", "first byte of a stream, nothing loaded, added", "ms", 0)
    swap = Figure("swap_ms", "first byte of a stream, the other model loaded, added", "ms", 0)
    one, two = NAMES
    for number in range(extent.repeats):
        shift = number % len(arms)
        took: dict[str, tuple[float, float]] = {}
        for arm in (*arms[shift:], *arms[:shift]):
            arm.unloaded(one if number == 0 else two)
            took[arm.name] = (_first_byte_ms(arm, one), _first_byte_ms(arm, two))
        zero = took[arms[0].name]
        for arm in arms:
            mine = took[arm.name]
            own = (0.0, 0.0) if arm is arms[0] else zero
            cold.add(arm, mine[0] - own[0])
            swap.add(arm, mine[1] - own[1])
    yield cold
    yield swap


def _first_byte_ms(arm: Arm, model: str) -> float:
    begun = time.perf_counter()
    if isinstance(arm, Direct):
        arm.load(model)
    first_byte_s(arm.port, model)
    return (time.perf_counter() - begun) * 1000


def crossing(arms: Arms) -> Iterator[Figure]:
    """What becomes of an answer that is under way when the other model is asked for."""
    figure = Figure("crossing", "an answer under way, and another model is asked for that does not fit beside it")
    one, two = NAMES
    for arm in arms:
        if isinstance(arm, Direct):
            continue
        first_byte_s(arm.port, one)
        running = Stream(arm.port, one, LONG_ANSWER)
        second: list[str] = []
        other = threading.Thread(target=lambda port=arm.port, said=second: said.append(_asked(port, two)))
        other.start()
        done = running.rest()
        other.join()
        figure.words[arm.name] = f"{done.ended}; the other one {second[0]}"
    yield figure


def _asked(port: int, model: str) -> str:
    try:
        done = Stream(port, model, 1).rest()
    except OSError as problem:
        return f"cut ({problem})"
    return done.ended if done.ended == "answered" else f"{done.ended} ({done.status})"


def crashes(arms: Arms) -> Iterator[Figure]:
    """kill -9 of the manager with a model loaded; then it is started again and asked for the same model."""
    engine = Figure("engine_after_kill", "the engine after `kill -9` of the manager")
    asked = Figure("request_after_kill", "the first request after the manager was started again")
    for arm in arms:
        if isinstance(arm, Direct):
            continue
        first_byte_s(arm.port, NAMES[0])
        there = arm.engines()
        if not there:
            raise Broken(f"no process of {arm.name} serves the model that has just answered")
        arm.strays = there
        arm.crash()
        is_left = not until_gone(there, ORPHANED_S)
        begun = time.perf_counter()
        arm.start()
        done = Stream(arm.port, NAMES[0], 1).rest()
        took_s = time.perf_counter() - begun
        fresh = [each.pid for each in arm.engines() if each not in there]
        if not is_left:
            engine.words[arm.name] = "ended"
        elif any(map(is_alive, there)) and not fresh and done.ended == "answered":
            engine.words[arm.name] = "taken over"
        else:
            engine.words[arm.name] = "orphaned" if any(map(is_alive, there)) else "ended by the next one"
        said = "answered" if done.ended == "answered" else f"{done.ended} (status {done.status})"
        asked.words[arm.name] = f"{said}, {took_s:.1f} s after the start"
    yield engine
    yield asked


Measure = Callable[[Arms, Extent], Iterator[Figure]]
MEASURES: tuple[Measure, ...] = (
    loads,
    questions,
    lambda arms, _: crossing(arms),
    idle,
    lambda arms, _: crashes(arms),
)
