"""``.venv/bin/python -m bench.soak [--seed N] [--minutes 20] [--json FILE]``: gpud under load for a while, with no
fault at all.

Exit status 0: every request was answered whole and right, or refused for one of the reasons that belong to turns; at
rest the descriptors are those of the beginning; the daemon's memory is as it was: the median of the last quarter of the
time is at most 2 % above that of the second. 1: something was found; it is told with the folder of the logs.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.faults.account import Account, Outcome
from bench.faults.apart import run_apart
from bench.faults.clients import Load
from bench.faults.system import System

GROWTH = 1.02
"""The most that memory may have grown from the second quarter to the last."""

LEAST_JUDGED_S = 300.0
"""In a shorter time the caches of a daemon that was just started still fill: memory is told and not judged."""

RESTS = 4
"""So often the load pauses and everything is unloaded, to see what is left over."""

SAMPLES = 400
"""How often memory is looked at, at equal distances."""


@dataclass
class Soaked:
    seed: int
    took_s: float = 0.0
    memory_kib: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    loads: int = 0
    growth: float = 1.0
    totals: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def grown(samples: Sequence[int]) -> float:
    """The median of the last quarter beside that of the second."""
    quarter = max(1, len(samples) // 4)
    return statistics.median(samples[-quarter:]) / statistics.median(samples[quarter : 2 * quarter] or samples[-1:])


def soak(system: System, load: Load, account: Account, seed: int, seconds: float) -> Soaked:
    result = Soaked(seed)
    began_s = time.monotonic()
    pause_s = seconds / SAMPLES
    _rest(system, load, result)
    for number in range(SAMPLES):
        time.sleep(max(0.0, began_s + number * pause_s - time.monotonic()))
        result.memory_kib.append(system.daemon.memory_kib())
        if (number + 1) % (SAMPLES // RESTS) == 0:
            _rest(system, load, result)
        if time.monotonic() - began_s > seconds + 60:
            break
    load.hold_back()
    result.took_s = time.monotonic() - began_s
    result.growth = grown(result.memory_kib)
    result.loads = system.daemon.log().count(" is ready after ")
    result.totals = {str(outcome): account.totals[outcome] for outcome in Outcome}
    result.reasons = dict(account.reasons)
    result.findings += [f"lost: {text}" for text in account.lost]
    result.findings += system.complaints()
    if account.waiting:
        result.findings.append(f"{account.waiting} requests have no end")
    if overflows := system.gpus.overflows():
        result.findings.append(f"more was held than there is: {overflows[:3]}")
    if seconds >= LEAST_JUDGED_S and result.growth > GROWTH:
        result.findings.append(f"memory grew by {(result.growth - 1) * 100:.1f} %, at most 2 % are allowed")
    return result


def _rest(system: System, load: Load, result: Soaked) -> None:
    """Nobody asks, nothing is loaded: what is there now is there for good."""
    try:
        load.pause()
        system.check_empty()
        result.descriptors.append(sum(system.daemon.descriptors().values()))
    except AssertionError as problem:
        result.findings.append(str(problem))
    finally:
        load.resume()


def tell(result: Soaked) -> None:
    quarter = max(1, len(result.memory_kib) // 4)
    mib = [statistics.median(result.memory_kib[at : at + quarter]) / 1024 for at in range(0, 4 * quarter, quarter)]
    print(f"{result.took_s:.0f} s, seed {result.seed}; {result.loads} loads")
    print(f"requests: {', '.join(f'{count} {outcome}' for outcome, count in result.totals.items())}")
    if result.reasons:
        print(f"refused because of: {', '.join(f'{name} {count}' for name, count in sorted(result.reasons.items()))}")
    print(
        f"memory by quarters: {', '.join(f'{each:.1f}' for each in mib)} MiB (last against second: {result.growth:.3f})"
    )
    print(f"descriptors at rest: {', '.join(map(str, result.descriptors))}")


def run(given: argparse.Namespace) -> int:
    seed = random.randrange(1 << 16) if given.seed is None else given.seed
    logs = Path(tempfile.mkdtemp(prefix=f"gpud-soak-{seed}-"))
    account = Account(logs / "requests.log")
    kept = True
    try:
        with System(logs, real=not given.without_engines) as system, Load(system, account, seed) as load:
            result = soak(system, load, account, seed, given.minutes * 60)
        tell(result)
        if given.json is not None:
            given.json.write_text(json.dumps(asdict(result)) + "\n")
        for finding in result.findings:
            print(f"FOUND: {finding}")
        kept = bool(result.findings)
        if kept:
            print(f"{len(result.findings)} findings; seed {seed}, logs in {logs}")
        return int(kept)
    finally:
        account.close()
        if not kept:
            shutil.rmtree(logs)


def main() -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="of what is asked (default: another each time)")
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: 20)")
    parser.add_argument("--without-engines", action="store_true", help="leave out the real engines, to be quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    given = parser.parse_args()
    return run_apart(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
