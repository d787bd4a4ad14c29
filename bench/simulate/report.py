"""From waits to figures, and from figures to tables."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.simulate.physics import Machine
from bench.simulate.trace import GIB


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


def _row(name: str, *cells: object) -> str:
    return f"{name:<12}" + "".join(f"{cell!s:>10}" for cell in cells)


def as_text(found: Mapping[str, Figures], requests: int) -> str:
    """A line for each policy, and the longest wait for each model below."""
    lines = [
        f"{requests} requests; waits in seconds, from arrival to the beginning of service",
        "",
        _row("policy", "mean", "p50", "p95", "p99", "longest", "loads", "evicted", "reloaded", "refused"),
    ]
    for name, one in found.items():
        waits = (one.mean_wait_s, one.p50_wait_s, one.p95_wait_s, one.p99_wait_s, one.max_wait_s)
        reloaded = f"{one.reload_bytes / GIB:.0f} GiB"
        lines.append(_row(name, *(f"{wait:.2f}" for wait in waits), one.loads, one.evictions, reloaded, one.refused))
    models = sorted({model for one in found.values() for model in one.max_wait_s_by_model})
    wide = max([len(model) for model in models], default=0) + 2
    lines += ["", "longest wait for each model", "", " " * wide + "".join(f"{name:>13}" for name in found)]
    for model in models:
        longest = [one.max_wait_s_by_model.get(model) for one in found.values()]
        lines.append(f"{model:<{wide}}" + "".join("            -" if s is None else f"{s:>13.2f}" for s in longest))
    return "\n".join(lines)


def as_markdown(title: str, found: Mapping[str, Sequence[Figures]]) -> str:
    """The mean over several traces, beside LRU's, and how far the traces are apart."""
    lines = [
        f"| {title} | mean wait | to lru | seed by seed | p95 | to lru | p99 | longest | loads | to lru | reloaded |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = found["lru"]
    for name, several in found.items():
        ratios = [_less(one.mean_wait_s, other.mean_wait_s) for one, other in zip(several, base, strict=True)]
        cells = [
            name,
            f"{_mean(several, 'mean_wait_s'):.2f} s",
            _percent(_less(_mean(several, "mean_wait_s"), _mean(base, "mean_wait_s"))),
            "" if name == "lru" else f"{_percent(min(ratios))} to {_percent(max(ratios))}",
            f"{_mean(several, 'p95_wait_s'):.1f} s",
            _percent(_less(_mean(several, "p95_wait_s"), _mean(base, "p95_wait_s"))),
            f"{_mean(several, 'p99_wait_s'):.1f} s",
            f"{max(one.max_wait_s for one in several):.0f} s",
            f"{_mean(several, 'loads'):.0f}",
            _percent(_less(_mean(several, "loads"), _mean(base, "loads"))),
            f"{_mean(several, 'reload_bytes') / GIB:.0f} GiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _mean(several: Sequence[Figures], name: str) -> float:
    return statistics.mean(float(getattr(one, name)) for one in several)


def _less(value: float, other: float) -> float:
    return value / other - 1 if other else 0.0


def _percent(share: float) -> str:
    rounded = round(100 * share)
    return f"{rounded:+d} %" if rounded else "0 %"
