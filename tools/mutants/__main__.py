"""``make mutants ARGS="[MODULE...] [--sample N --seed S] [--again | --rest]"``: which mistakes in the core are seen.

Each mutant is one mistake in one statement. It runs in a process of its own, forked after tests and core were imported,
against those tests that execute its line: the quick ones first, and before them those that saw mistakes nearby; the
few slow ones not at all.
What stands in a function is replaced there; anything else (constants, defaults, fields) is imported anew with all that
uses it. Tests run in a copy of the tree, so the tree may be worked in meanwhile; property tests try the same few
examples each time. ``--again`` tries what survived the last time, with the tests of files that have changed since;
``--rest`` what was not tried the last time. Both count with what came of the others then. A mutant that no test sees,
or whose line no test executes, has survived and is shown; one that runs in a circle is seen.

Exit status 0: at least ``--least`` percent were seen. 1: fewer. 2: it could not be found out.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import campaign
import hypothesis.stateful  # noqa: F401 - so that no forked process has to import it
import psutil  # noqa: F401 - as before
import pytest
import suite
from campaign import say
from known import Known, Test, completed, watched
from mutations import Mutant
from results import Results
from tree import TESTS, Tree, copied
from trial import Trial

LEAST_PERCENT = 85.0
EXAMPLES = 20
"""So many examples of a property are tried. More would see a little more, in as much more time."""

WHOLE_S = 4 * 3600.0
"""Of the clock, for all mutants in functions together."""


def chosen_of(tree: Tree, results: Results, given: argparse.Namespace) -> list[Mutant]:
    found = [m for m in tree.mutants if not given.modules or any(name in m.module for name in given.modules)]
    if given.again:
        found = [mutant for mutant in found if results.survived(mutant)]
    if given.rest:
        found = [mutant for mutant in found if mutant.key not in results.mutants]
    if given.sample and given.sample < len(found):
        places = sorted(random.Random(given.seed).sample(range(len(found)), given.sample))  # noqa: S311 - no secret
        found = [found[place] for place in places]
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/mutants", description="How many small mistakes in gpud/core tests see."
    )
    parser.add_argument("modules", nargs="*", help="of modules that have this in their path; all without it")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many of the mutants, chosen by the seed")
    parser.add_argument("--seed", type=int, default=1)
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--again", action="store_true", help="what survived the last time, against new tests")
    earlier.add_argument("--rest", action="store_true", help="what was not tried the last time, counted with that")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="so many at a time")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N", help=f"of each property; {EXAMPLES}")
    parser.add_argument("--least", type=float, default=LEAST_PERCENT, metavar="PERCENT", help="fails below it; 85")
    parser.add_argument("--count", action="store_true", help="only say how many mutants there are of each module")
    return parser


def main() -> int:
    given = arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    top = Path(tempfile.mkdtemp(prefix="gpud-mutants-"))
    try:
        return run(copied(top), given)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def run(top: Path, given: argparse.Namespace) -> int:
    begun_s = time.monotonic()
    os.chdir(top)
    sys.path.insert(0, str(top))
    tree = Tree(top)
    results = Results(keep=given.again or given.rest)
    chosen = chosen_of(tree, results, given)
    if given.count:
        for module in tree.sources:
            print(f"{sum(mutant.module == module for mutant in chosen):6} {module}")
        print(f"{len(chosen):6} all")
        return 0
    say(f"{len(chosen)} of {len(tree.mutants)} mutants, {given.jobs} at a time")
    found = in_functions(tree, results, chosen, given)
    if found is None:
        say("cannot try the mutants: see above")
        return 2
    known, tried = found
    results = Results(keep=True)
    results.tried_with({name: tree.digest_of(name) for name in known.words})
    rest = [mutant for mutant in chosen if mutant.key not in tried]
    say(f"{len(rest)} of them are not in functions: they are imported anew")
    Trial(tree, known, results, given).run(rest, anew=True)
    results.write()
    text, percent = results.table(tree.mutants)
    print(text)
    say(f"{len(chosen)} mutants in {time.monotonic() - begun_s:.0f} s")
    return 0 if percent >= given.least else 1


def in_functions(
    tree: Tree, results: Results, chosen: Sequence[Mutant], given: argparse.Namespace
) -> tuple[Known, set[str]] | None:
    """Try those that can be replaced; which these are, and what tests do. It is done in a process of its own: this one
    must stay without gpud, for those that import it anew.
    """

    def work(_: Any) -> Any:
        said: dict[str, Any] = {}
        output, printed = sys.stdout, io.StringIO()

        def then(items: list[pytest.Item]) -> None:
            known = watched(tree, items, given.jobs, given.examples)
            results.tried_with({name: tree.digest_of(name) for name in known.words})
            with contextlib.redirect_stdout(output):
                tried = Trial(tree, known, results, given, items).run(chosen, anew=False)
            results.write()
            said.update(tests=[vars(test) for test in known.tests], tried=tried)

        plugin = suite.Plugin(given.examples, then)
        with contextlib.redirect_stdout(printed):
            status = pytest.main([*suite.QUIET, "--rootdir", str(tree.top), *TESTS], plugins=[plugin])
        if not said:
            say(printed.getvalue())
            raise SystemExit(f"pytest ended with {status!s}")
        return said

    for answer in campaign.each([None], work, 1, lambda _: WHOLE_S):
        if answer.said is not None:
            return completed(tree, [Test(**test) for test in answer.said["tests"]]), set(answer.said["tried"])
    return None


if __name__ == "__main__":
    sys.exit(main())
