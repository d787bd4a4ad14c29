"""What one decision costs with very many models: how long ``Scheduler.handle`` takes, event by event."""

import argparse
import cProfile
import io
import pstats
import statistics
import time
from collections.abc import Sequence

from bench.simulate.driver import LIMITS, Gpud
from bench.simulate.physics import Machine
from bench.simulate.trace import GIB, Request, SimulatedModel
from gpud.core import events
from gpud.core.record import replace

MIB = GIB >> 10
BAR_S = 0.001
ROUNDS = 200


class Stopwatch:
    """Stands before the scheduler and keeps how long each kind of event took."""

    def __init__(self, gpud: Gpud) -> None:
        self._scheduler = gpud.scheduler
        self.times: dict[str, list[float]] = {}

    def handle(self, event: events.Event, now: float) -> tuple[events.Action, ...]:
        begun = time.perf_counter()
        try:
            return self._scheduler.handle(event, now)
        finally:
            self.times.setdefault(type(event).__name__, []).append(time.perf_counter() - begun)

    def next_deadline(self) -> float | None:
        begun = time.perf_counter()
        try:
            return self._scheduler.next_deadline()
        finally:
            self.times.setdefault("next_deadline()", []).append(time.perf_counter() - begun)

    def __getattr__(self, name: str) -> object:
        return getattr(self._scheduler, name)


def crowd(models: int, loaded: int, waiting: int) -> tuple[Machine, Gpud]:
    """A machine that is full of ``loaded`` models, all of them busy, with ``waiting`` others in the queue."""
    size = 100 * MIB
    table = {f"model{n:04d}": SimulatedModel(f"model{n:04d}", size, 2.0) for n in range(models)}
    names = list(table)
    machine = Machine(table, loaded * size)
    gpud = Gpud(machine, replace(LIMITS, queue=replace(LIMITS.queue, turn_s=1e9)))
    machine.begin(gpud)
    for name in names[:loaded]:
        gpud.arrived(Request(0.0, name, 1e6, f"caller{hash(name) % 7}"))
    machine.until(10.0)
    for number, name in enumerate(names[loaded : loaded + waiting]):
        gpud.arrived(Request(machine.now, name, 1.0, f"caller{number % 7}"))
    return machine, gpud


def run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.simulate cost", description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--loaded", type=int, default=40)
    parser.add_argument("--waiting", type=int, default=200)
    parser.add_argument("--profile", action="store_true", help="also show where the time goes")
    options = parser.parse_args(arguments)
    machine, gpud = crowd(options.models, options.loaded, options.waiting)
    stopwatch = Stopwatch(gpud)
    gpud.scheduler = stopwatch  # type: ignore[assignment]
    names = [name for name, engine in machine.engines.items() if engine.running]
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    for number in range(ROUNDS):
        # A request comes and goes in a loaded model, and somebody joins those who wait.
        name = names[number % len(names)]
        gpud.arrived(Request(machine.now, name, 0.0))
        gpud.finished(Request(machine.now, name, 0.0))
        gpud.arrived(Request(machine.now, f"model{options.loaded + number % options.waiting:04d}", 1.0))
        machine.now += 0.01
    profile.disable()
    print(
        f"{options.models} models, {options.loaded} loaded and busy, {options.waiting} waiting; bar: "
        f"{BAR_S * 1e3:g} ms a decision"
    )
    for kind, times in sorted(stopwatch.times.items()):
        middle, worst = statistics.median(times) * 1e3, max(times) * 1e3
        print(f"{kind:<18} median {middle:.3f} ms, worst {worst:.3f} ms (n={len(times)})")
    if options.profile:
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(18)
        print(text.getvalue())
