"""From waits to figures, and from figures to tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.simulate.physics import Machine


@dataclass(frozen=True, slots=True)
class Figures:
    """What one policy made of one trace. Waits are those of all requests that were served."""

    mean_wait_s: float
    p50_wait_s: float
    p95_wait_s: float
    p99_wait_s: float
    max_wait_s: float
    loads: int
    reload_bytes: int
    evictions: int
    refused: int
    makespan_s: float
    max_wait_s_by_model: dict[str, float]

    def as_json(self) -> dict[str, object]:
        return {
            "mean_wait_s": round(self.mean_wait_s, 4),
            "p50_wait_s": round(self.p50_wait_s, 4),
            "p95_wait_s": round(self.p95_wait_s, 4),
            "p99_wait_s": round(self.p99_wait_s, 4),
            "max_wait_s": round(self.max_wait_s, 4),
            "loads": self.loads,
            "reload_bytes": self.reload_bytes,
            "evictions": self.evictions,
            "refused": self.refused,
            "makespan_s": round(self.makespan_s, 3),
            "max_wait_s_by_model": {name: round(wait, 4) for name, wait in sorted(self.max_wait_s_by_model.items())},
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share does not exceed (nearest rank); 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures(machine: Machine) -> Figures:
    """``reload_bytes`` counts every load of a model but its first."""
    waits = sorted(wait for _, wait in machine.waits)
    by_model: dict[str, float] = {}
    for request, wait in machine.waits:
        by_model[request.model] = max(wait, by_model.get(request.model, 0.0))
    return Figures(
        mean_wait_s=sum(waits) / len(waits) if waits else 0.0,
        p50_wait_s=percentile(waits, 0.50),
        p95_wait_s=percentile(waits, 0.95),
        p99_wait_s=percentile(waits, 0.99),
        max_wait_s=waits[-1] if waits else 0.0,
        loads=sum(machine.loads.values()),
        reload_bytes=sum((count - 1) * machine.models[name].bytes for name, count in machine.loads.items()),
        evictions=machine.evictions,
        refused=len(machine.refused),
        makespan_s=machine.now,
        max_wait_s_by_model=by_model,
    )
