"""``.venv/bin/python -m bench.faults [--seed N] [--faults 500] [--minutes 20] [--only NAME] [--json FILE]``: everything
that can break does, in an order that the seed decides, under load.

Exit status 0: every request was answered whole and right, refused with a reason, or cut by the fault that says so, and
nothing is left over. 1: something was found; it is told with the seed and the folder of the logs.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench.faults.account import Account
from bench.faults.apart import run_apart
from bench.faults.campaign import CHECK_EVERY, Campaign, Result
from bench.faults.clients import Load
from bench.faults.fault import FAULTS
from bench.faults.report import lines, write
from bench.faults.system import System


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the order and of all that is drawn (default: another each time)")
    parser.add_argument("--faults", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--minutes", type=float, default=20, help="and no longer than this (default: 20)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="these alone; may be given again")
    parser.add_argument("--check-every", type=int, default=CHECK_EVERY, help="faults between looks for leaks")
    parser.add_argument("--without-engines", action="store_true", help="leave out the real engines, to be quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--list", action="store_true", help="tell what there is and end")
    return parser


def campaign(given: argparse.Namespace, seed: int, logs: Path) -> Result:
    account = Account(logs / "requests.log")
    try:
        with System(logs, real=not given.without_engines) as system, Load(system, account, seed) as load:
            made = Campaign(system, load, account, seed, lambda text: print(text, file=sys.stderr, flush=True))
            until_s = time.monotonic() + given.minutes * 60
            return made.run(given.faults, until_s, given.only, given.check_every)
    finally:
        account.close()


def run(given: argparse.Namespace) -> int:
    seed = random.randrange(1 << 16) if given.seed is None else given.seed
    logs = Path(tempfile.mkdtemp(prefix=f"gpud-faults-{seed}-"))
    kept = True
    try:
        result = campaign(given, seed, logs)
        print("\n".join(lines(result)))
        if given.json is not None:
            write(result, given.json)
        if result.faults < result.wanted:
            result.findings.append(f"only {result.faults} of {result.wanted} faults in {given.minutes:g} minutes")
        for finding in result.findings:
            print(f"FOUND: {finding}")
        kept = bool(result.findings)
        if kept:
            print(f"{len(result.findings)} findings; seed {seed}, logs in {logs}")
        return int(kept)
    finally:
        if not kept:
            shutil.rmtree(logs)


def main() -> int:
    parser = arguments()
    given = parser.parse_args()
    if unknown := set(given.only) - set(FAULTS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; --list tells which there are")
    if given.list:
        for name, one in sorted(FAULTS.items()):
            print(f"{name:34} {one.about}")
        return 0
    return run_apart(lambda: run(given))


if __name__ == "__main__":
    sys.exit(main())
