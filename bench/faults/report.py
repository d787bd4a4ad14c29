"""The table of a campaign, for people and for programs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench.faults.campaign import LEAKS, Result


def lines(result: Result) -> Iterator[str]:
    head = f"{'fault':34}{'times':>6}{'cut':>6}{'refused':>8}{'lost':>6}"
    yield head + "".join(f"{kind:>13}" for kind in LEAKS) + f"{'recovery':>10}"
    for name, row in sorted(result.rows.items()):
        numbers = f"{row.times:6}{row.cut:6}{row.refused:8}{row.lost:6}"
        yield f"{name:34}{numbers}" + "".join(f"{row.leaked[kind]:13}" for kind in LEAKS) + f"{row.recovery_s:8.2f} s"
    yield ""
    counted = ", ".join(f"{count} {outcome}" for outcome, count in result.totals.items())
    yield f"{result.faults} faults in {result.took_s:.0f} s, seed {result.seed}; requests: {counted}"
    if result.reasons:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(result.reasons.items()))
        yield f"refused because of: {reasons}"
    if result.left_out:
        yield f"left out, since they need root or the real engines: {', '.join(result.left_out)}"


def write(result: Result, path: Path) -> None:
    path.write_text(json.dumps(asdict(result), indent=2) + "\n")
