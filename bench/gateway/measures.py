"""What is measured. Every figure is taken of each arm in turn, again and again; a row has their medians."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway.arms import Arm, Models, Started, forget_peak, used
from bench.gateway.ends import LARGE_BYTES, SMALL_BYTES, Clients, Source, Upstream, question

DIRECT = "direct"

SHAPES = ((1, SMALL_BYTES), (16, SMALL_BYTES), (1, LARGE_BYTES), (16, LARGE_BYTES))
"""Clients, and bytes of question and answer."""

STREAMS = ((1, 0), (1, 1000), (32, 0), (32, 5000))
"""Streams, and microseconds between two chunks of one; 0: as fast as they are taken."""

AFTER_REQUESTS = 10_000
"""Memory is looked at after so many."""

LOADS_S = (0.0, 0.3, 1.0, 1.3)
"""How long engines take to load."""


@dataclass(frozen=True)
class Row:
    """``figures`` by arm. ``bar``: what is to be reached, of the ratio gpud to the peer or of gpud's figure."""

    what: str
    unit: str
    figures: dict[str, float]
    bar: str = ""
    places: int = 0


@dataclass
class Figure:
    """One row while it is being measured."""

    what: str
    unit: str
    bar: str = ""
    places: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, arm: str, value: float) -> None:
        self.values.setdefault(arm, []).append(value)

    def row(self) -> Row:
        medians = {arm: statistics.median(values) for arm, values in self.values.items()}
        return Row(self.what, self.unit, medians, self.bar, self.places)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    repeats: int
    seconds: int
    chunks: int
    rounds: int


SHORT = Extent(repeats=2, seconds=1, chunks=600, rounds=1)
LONG = Extent(repeats=7, seconds=3, chunks=2000, rounds=5)


def idle(arms: Sequence[Arm]) -> Iterator[Row]:
    yield Row("resident, nothing loaded", "MiB", {arm.name: used(arm.pid).resident_mib for arm in arms}, places=1)


def requests(arms: Sequence[Arm], upstream: Upstream, clients: Clients, extent: Extent) -> Iterator[Row]:
    """What a request takes beyond going to the upstream directly, and how many of them pass."""
    passed = dict.fromkeys((arm.name for arm in arms), 0.0)
    for count, size in SHAPES:
        name = f"{count} client{'s' * (count > 1)}, {size} B"
        is_small, target = size == SMALL_BYTES, upstream.target(size)
        added = {
            "p50_us": Figure(f"{name}: p50, added", "µs", "<= 0.35 ×" if is_small and count == 1 else ""),
            "p99_us": Figure(f"{name}: p99, added", "µs", "<= 0.35 ×" if is_small and count == 1 else ""),
        }
        rate = Figure(f"{name}: requests", "/s", ">= 3 ×" if is_small and count > 1 else "")
        cpu = Figure(f"{name}: processor time a request", "µs")
        for _ in range(extent.repeats):
            direct = clients.ask(upstream.port, target, count, extent.seconds, size)
            rate.add(DIRECT, direct["requests"] / direct["seconds"])
            for key, figure in added.items():
                figure.add(DIRECT, direct[key])
            for arm in arms:
                before = used(arm.pid)
                found = clients.ask(arm.port, target, count, extent.seconds, size)
                served = found["requests"] + found.get("warm_up", 0)
                cpu.add(arm.name, (used(arm.pid).cpu_s - before.cpu_s) / served * 1e6)
                rate.add(arm.name, found["requests"] / found["seconds"])
                for key, figure in added.items():
                    figure.add(arm.name, found[key] - direct[key])
                passed[arm.name] += found["requests"]
        yield from (figure.row() for figure in (*added.values(), rate, cpu))
    for arm in arms:
        while passed[arm.name] < AFTER_REQUESTS:
            passed[arm.name] += clients.ask(arm.port, upstream.target(SMALL_BYTES), 16, 1, SMALL_BYTES)["requests"]
    after = {arm.name: used(arm.pid).resident_mib for arm in arms}
    yield Row(f"resident, after {AFTER_REQUESTS:,} requests or more", "MiB", after, places=1)


def streams(arms: Sequence[Arm], source: Source, clients: Clients, extent: Extent) -> Iterator[Row]:
    """What a chunk takes, and how long it is on its way."""
    peaks = Figure("resident at most, 32 streams as fast as they go", "MiB", places=1)
    for count, every_us in STREAMS:
        name = f"{count} stream{'s' * (count > 1)}, " + (
            f"a chunk every {every_us / 1000:g} ms" if every_us else "unpaced"
        )
        chunks = extent.chunks * (1 if every_us else 20) // (4 if count > 1 else 1)
        cpu = Figure(f"{name}: processor time of 1,000 chunks", "ms", "<= 0.5 ×", 2)
        late = {
            "p50_us": Figure(f"{name}: a chunk is late by, p50", "µs"),
            "p99_us": Figure(f"{name}: a chunk is late by, p99", "µs", "<= 0.5 ×"),
        }
        for _ in range(extent.repeats):
            direct = clients.listen(source.port, count, chunks, every_us)
            for key, figure in late.items():
                figure.add(DIRECT, direct[key])
            for arm in arms:
                forget_peak(arm.pid)
                before = used(arm.pid)
                found = clients.listen(arm.port, count, chunks, every_us)
                after = used(arm.pid)
                cpu.add(arm.name, (after.cpu_s - before.cpu_s) / found["events"] * 1e6)
                for key, figure in late.items():
                    figure.add(arm.name, found[key])
                if count > 1 and not every_us:
                    peaks.add(arm.name, after.peak_mib)
        yield cpu.row()
        if every_us:
            yield from (figure.row() for figure in late.values())
    yield peaks.row()


def loads(make: Callable[[Models], Sequence[Arm]], engine: Path, root: Path, extent: Extent) -> Iterator[Row]:
    """From the moment at which an engine is ready to the first byte of its answer, and what a request that takes the
    place of another model takes beyond the stop of that one and the load of its own.
    """
    for load_s in LOADS_S:
        models = {name: Started(engine, root / f"{name}-{load_s:g}.log", load_s) for name in ("one", "two")}
        name = f"engine that loads in {load_s:g} s"
        lag = Figure(f"{name}: ready to first byte", "ms", "<= 20 ms", 1)
        swap = Figure(f"{name}: swap beyond stop and load", "ms", "<= 50 ms", 1)
        for arm in make(dict(models)):
            try:
                question(arm.port, "one")
                for _ in range(extent.rounds):
                    for old, new in (("one", "two"), ("two", "one")):
                        asked = time.monotonic()
                        answered = question(arm.port, new)
                        stopped, started = _times(models[old].log), _times(models[new].log)
                        lag.add(arm.name, (answered - max(started["ready"], started["exec"])) * 1000)
                        own_s = stopped["exit"] - stopped["term"] + load_s
                        swap.add(arm.name, (answered - asked - own_s) * 1000)
            finally:
                arm.close()
        yield lag.row()
        yield swap.row()


def _times(log: Path) -> dict[str, float]:
    """The last time of each event that an engine wrote down."""
    return {name: float(at) for name, at in (line.split() for line in log.read_text().splitlines())}
