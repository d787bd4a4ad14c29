"""``python tools/mutants [MODULE...] [--sample N --seed S] [--again]``: how many small mistakes in gpud/core tests see.

Each mutant is one mistake in one statement. It runs in a process of its own, forked after tests and core were imported,
against those tests that execute its line: the quick ones first, and before them those that saw mistakes nearby.
What stands in a function is replaced there; anything else (constants, defaults, fields) is imported anew with all that
uses it. Tests run in a copy of the tree, so the tree may be worked in meanwhile; property tests try the same few
examples each time. ``--again`` tries what survived the last time, with the tests of files that have changed since, and
counts all of that time together. A mutant that no test sees, or whose line no test executes, has survived and is
shown; one that runs in a circle is seen.

Exit status 0: at least ``--least`` percent were seen. 1: fewer. 2: it could not be found out.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import campaign
import hypothesis.stateful  # noqa: F401 - so that no forked process has to import it
import mutations
import psutil  # noqa: F401 - as before
import pytest
import suite
from mutations import Mutant

ANEW = "anew"
"""What a process answers that cannot put the mutant into its place."""

TOP = Path(__file__).resolve().parents[2]
CORE = "gpud/core"
TESTS = ("tests/core",)
RESULTS = TOP / "build" / "mutants.json"
LINES = TOP / "build" / "mutants-lines.json"

LEAST_PERCENT = 85.0
EXAMPLES = 20
"""So many examples of a property are tried. More would see a little more, in as much more time."""

SLOW_CPU_S = 2.0
PLENTY = 2.0
"""A mutant may take so many times what its tests take while they are watched, and ``SLOW_CPU_S``, of the processor."""

LONGEST_S = 300.0
"""Of the clock, for whoever waits for ever."""

IMPORT_CPU_S = 6.0
"""What a process that imports everything anew may take for that."""


@dataclass
class Test:
    """One test: where it is, what the processor needs for it, the lines it executes."""

    name: str
    took_s: float
    lines: dict[str, list[int]]


@dataclass
class Known:
    """What tests do, and who uses what by name."""

    tests: list[Test]
    executing: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    mentions: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    words: dict[str, set[str]] = field(default_factory=dict)
    tried: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        found = defaultdict(list)
        for number, test in enumerate(self.tests):
            for file, lines in test.lines.items():
                for line in lines:
                    found[file, line].append(number)
        self.executing = dict(found)

    def of_lines(self, file: str, lines: range) -> set[int]:
        return {number for line in lines for number in self.executing.get((file, line), ())}

    def of(self, mutant: Mutant) -> list[int]:
        """The tests that execute it, or that execute whatever uses what it defines; but none that was tried before."""
        return [number for number in self._of(mutant) if self.tests[number].name.partition("::")[0] not in self.tried]

    def _of(self, mutant: Mutant) -> list[int]:
        where = mutant.where
        lines = range(where.first, where.last + 1)
        if where.place or not where.names:
            return sorted(self.of_lines(mutant.module, lines))
        chosen = set()
        for name in where.names:
            for file, line in self.mentions.get(name, ()):
                chosen |= self.of_lines(file, range(line, line + 1))
            for number, test in enumerate(self.tests):
                if name in self.words[test.name.partition("::")[0]]:
                    chosen.add(number)
        return sorted(chosen)


def mentions(trees: dict[str, Any]) -> dict[str, set[tuple[str, int]]]:
    """Where each name is used in the core; who is named by something that is defined there counts for its uses too."""
    used: dict[str, set[tuple[str, int]]] = defaultdict(set)
    defined: dict[str, set[str]] = defaultdict(set)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute | ast.keyword):
                name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
                if name:
                    used[name].add((file, node.lineno))
        for statement in tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for name in (target.id for target in targets if isinstance(target, ast.Name)):
                    for node in ast.walk(statement.value):
                        if isinstance(node, ast.Name):
                            defined[node.id].add(name)
    for name, others in defined.items():
        for other in others:
            used[name] |= used[other]
    return used


def copied(top: Path) -> Path:
    """A copy of the tree as it is, with what is not committed yet and without what is made in it."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        sys.exit(f"cannot copy the tree: git ls-files says {listed.stderr.strip()}")
    for name in listed.stdout.splitlines():
        if (TOP / name).is_file():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, top / name)
    for name in TESTS:
        if not (top / name / "conftest.py").exists():
            (top / name / "conftest.py").write_text(suite.WITHOUT_LEFTOVERS)
    return top


def digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:20]


class Here:
    """The copy, what is in it, and the work in processes that were forked from one that has imported it."""

    def __init__(self, top: Path, given: argparse.Namespace) -> None:
        self.top = top
        self.given = given
        self.sources: dict[str, str] = {}
        self.trees: dict[str, Any] = {}
        self.mutants: list[Mutant] = []
        self.digests: dict[str, str] = {}
        self.before: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for path in sorted((top / CORE).rglob("*.py")):
            name = str(path.relative_to(top))
            self.sources[name] = path.read_text()
            self.trees[name], found = mutations.mutants_of(name, self.sources[name])
            self.mutants += found

    def before_of(self, mutant: Mutant) -> int:
        """How many tests had not seen it the last time, where that time counts."""
        known = self.before.get("mutants", {}) if self.given.again else {}
        return int(known.get(mutant.key, {}).get("tests", 0))

    def path(self, module: str) -> str:
        return str(self.top / module)

    # What each test executes

    def _lines_of(self, items: Sequence[pytest.Item]) -> list[dict[str, Any]]:
        suite.quietly()
        watch = suite.Lines([self.path(name) for name in self.sources])
        found = []
        for item, following in zip(items, [*items[1:], None], strict=True):
            passed, took_s, lines = watch.of(item, following)
            named = {os.path.relpath(file, self.top): seen for file, seen in lines.items()}
            found.append({"name": item.nodeid, "passed": passed, "took_s": took_s, "lines": named})
        return found

    def known(self, items: Sequence[pytest.Item]) -> Known:
        """From the last time where neither the core nor a test has changed, else by running them."""
        files = defaultdict(list)
        for item in items:
            files[item.nodeid.partition("::")[0]].append(item)
        base = digest([self.top / name for name in self.sources]) + f" {self.given.examples}"
        kept = json.loads(LINES.read_text()) if LINES.exists() else {}
        marks = {name: f"{base} {self.digest_of(name)}" for name in files}
        found = {name: kept[name] for name in files if kept.get(name, {}).get("mark") == marks[name]}
        missing = [part for name in files if name not in found for part in parts(files[name])]
        say(f"{len(items)} tests in {len(files)} files; {len(missing)} pieces of them are watched")
        fresh: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for answer in campaign.each(missing, self._lines_of, self.given.jobs, lambda _: LONGEST_S):
            if answer.said is None:
                raise SystemExit(f"cannot watch {answer.task[0].nodeid} and what follows it: {answer.status}")
            for said in answer.said:
                fresh[said["name"].partition("::")[0]].append(said)
        for name, seen in fresh.items():
            found[name] = {"mark": marks[name], "tests": seen}
        failed = [test["name"] for file in found.values() for test in file["tests"] if not test["passed"]]
        if fresh and not failed:
            LINES.parent.mkdir(exist_ok=True)
            LINES.write_text(json.dumps({**kept, **found}))
        if failed:
            raise SystemExit(f"{len(failed)} tests fail without any mutant: {', '.join(failed[:5])}")
        order = {item.nodeid: number for number, item in enumerate(items)}
        tests = [Test(t["name"], t["took_s"], t["lines"]) for file in found.values() for t in file["tests"]]
        return self.completed(sorted(tests, key=lambda test: order[test.name]))

    def digest_of(self, name: str) -> str:
        """Of a file with tests, and of what lies beside it and is named in it."""
        file = self.top / name
        words = set(re.findall(r"\w+", file.read_text()))
        beside = [one for one in sorted(file.parent.iterdir()) if one.stem in words and one.is_file()]
        return digest([file, *beside])

    def completed(self, tests: list[Test]) -> Known:
        files = {test.name.partition("::")[0] for test in tests}
        known = Known(tests)
        known.mentions = mentions(self.trees)
        known.words = {name: set(re.findall(r"\w+", (self.top / name).read_text())) for name in files}
        self.digests = {name: self.digest_of(name) for name in files}
        if self.given.again:
            known.tried = frozenset(
                name for name in files if self.before.get("tests", {}).get(name) == self.digests[name]
            )
        return known

    # Mutants in functions

    def functions(self) -> dict[tuple[str, str, int], list[FunctionType]]:
        files = {self.path(name): name for name in self.sources}
        found = defaultdict(list)
        gc.unfreeze()  # What is frozen is not listed.
        for function in gc.get_objects():
            if isinstance(function, FunctionType) and function.__code__.co_filename in files:
                code = function.__code__
                found[files[code.co_filename], code.co_qualname, code.co_firstlineno].append(function)
        return found


def parts(items: list[pytest.Item], most: int = 25) -> Iterator[list[pytest.Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Trial:
    """Whether mutants are seen."""

    def __init__(self, here: Here, known: Known, items: Sequence[pytest.Item] = ()) -> None:
        self.here = here
        self.known = known
        self.items = {item.nodeid: item for item in items}
        self.functions = here.functions() if items else {}
        self.seen_by: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def code(self, mutant: Mutant) -> CodeType | None:
        """What the function becomes, or None where it has to be imported anew."""
        where = mutant.where
        mutant.apply()
        try:
            tree, path = self.here.trees[mutant.module], self.here.path(mutant.module)
            code = suite.code_in(tree, path, where.place, where.place_line)
        except (SyntaxError, ValueError):
            return None
        if code is None or any(code.co_freevars != own.__code__.co_freevars for own in self.own(mutant)):
            return None
        return code

    def own(self, mutant: Mutant) -> list[FunctionType]:
        where = mutant.where
        return self.functions.get((mutant.module, where.place, where.place_line), []) if where.place else []

    def tests(self, mutant: Mutant) -> list[int]:
        """Those that saw mistakes nearby first, then those of the file with its name, then the quick ones."""
        near, around = self.seen_by[mutant.where.scope], self.seen_by[mutant.module]
        file = f"/test_{Path(mutant.module).stem}.py::"

        def place(number: int) -> tuple[int, int, bool, float, int]:
            test = self.known.tests[number]
            return -near[number], -around[number], file not in test.name, test.took_s, number

        return sorted(self.known.of(mutant), key=place)

    def cpu_s(self, mutant: Mutant) -> float:
        return SLOW_CPU_S + PLENTY * sum(self.known.tests[number].took_s for number in self.known.of(mutant))

    def replaced(self, task: tuple[Mutant, list[int]]) -> str:
        mutant, tests = task
        suite.quietly()
        code = self.code(mutant)
        if code is None:
            return ANEW
        for function in self.own(mutant):
            function.__code__ = code
        suite.bounded(self.cpu_s(mutant))
        return suite.first_failure([self.items[self.known.tests[number].name] for number in tests])

    def imported(self, task: tuple[Mutant, list[int]]) -> str:
        mutant, tests = task
        suite.quietly()
        mutant.apply()
        try:
            code = compile(
                ast.fix_missing_locations(self.here.trees[mutant.module]),
                self.here.path(mutant.module),
                "exec",
            )
        except (SyntaxError, ValueError) as error:
            return f"it is no Python: {error}"
        sys.meta_path.insert(0, Instead(mutant.module, self.here.path(mutant.module), code))
        suite.bounded(self.cpu_s(mutant) + IMPORT_CPU_S)
        names = [self.known.tests[number].name for number in tests]
        return suite.in_new_process(names, self.here.top, self.here.given.examples)

    def run(self, chosen: Sequence[Mutant], anew: bool) -> dict[str, dict[str, Any]]:
        """How each fares. Where they cannot be replaced they are left for the process that imports anew."""
        found: dict[str, dict[str, Any]] = {}

        def tasks() -> Iterator[tuple[Mutant, list[int]]]:
            for mutant in chosen:
                if anew or self.own(mutant):
                    tests = self.tests(mutant)
                    if tests:
                        yield mutant, tests
                    else:
                        found[mutant.key] = told(mutant, "survived", "", self.here.before_of(mutant))

        work = self.imported if anew else self.replaced
        begun_s = time.monotonic()
        for answer in campaign.each(tasks(), work, self.here.given.jobs, lambda _: LONGEST_S):
            mutant, tests = answer.task
            if answer.said == ANEW:
                continue
            how = "killed" if answer.said else "survived"
            if answer.said is None:
                how = "timed out" if answer.late or os.WIFSIGNALED(answer.status) else "killed"
            found[mutant.key] = told(mutant, how, answer.said or "", len(tests))
            for number in tests:
                if self.known.tests[number].name == answer.said:
                    self.seen_by[mutant.where.scope][number] += 1
                    self.seen_by[mutant.module][number] += 1
            if len(found) % 100 == 0:
                lived = sum(result["how"] == "survived" for result in found.values())
                say(f"{len(found)} of {len(chosen)} after {time.monotonic() - begun_s:.0f} s, {lived} survived")
        return found


def told(mutant: Mutant, how: str, by: str, tests: int) -> dict[str, Any]:
    """What came of a mutant; one that survived is shown at once."""
    if how == "survived":
        before, after = mutant.texts()
        count = f"{tests} tests tried" if tests else "no test executes it"
        print(f"{mutant.module}:{mutant.line} {mutant.where.scope} ({mutant.kind}, {count})", flush=True)
        print(f"  - {before}\n  + {after}", flush=True)
    return {"how": how, "by": by, "tests": tests}


class Instead(importlib.machinery.SourceFileLoader):
    """Imports one module as the mutant is."""

    def __init__(self, module: str, path: str, code: CodeType) -> None:
        name = module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - it is of one module
        return self.code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002 - the protocol's
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)


def chosen_of(here: Here, given: argparse.Namespace) -> list[Mutant]:
    found = [m for m in here.mutants if not given.modules or any(name in m.module for name in given.modules)]
    if given.again:
        known = here.before.get("mutants", {})
        found = [m for m in found if known.get(m.key, {}).get("how") == "survived"]
    if given.sample and given.sample < len(found):
        places = sorted(random.Random(given.seed).sample(range(len(found)), given.sample))  # noqa: S311 - no secret
        found = [found[place] for place in places]
    return found


def table(mutants: Sequence[Mutant], results: dict[str, Any]) -> tuple[str, float]:
    """A row a module, and what was seen of all, in percent."""
    rows: dict[str, dict[str, int]] = {}
    for mutant in mutants:
        if mutant.key in results:
            row = rows.setdefault(mutant.module, {"killed": 0, "timed out": 0, "survived": 0})
            row[results[mutant.key]["how"]] += 1
    total = {how: sum(row[how] for row in rows.values()) for how in ("killed", "timed out", "survived")}
    text = ["| module | mutants | killed | timed out | survived | seen |", "|---|---|---|---|---|---|"]
    percent = 100.0
    for name, row in [*rows.items(), ("all", total)]:
        count = sum(row.values())
        percent = 100.0 * (count - row["survived"]) / max(1, count)
        cells = (name, count, row["killed"], row["timed out"], row["survived"], f"{percent:.1f} %")
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(text), percent


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/mutants", description="How many small mistakes in gpud/core tests see."
    )
    parser.add_argument("modules", nargs="*", help="of modules that have this in their path; all without it")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many of the mutants, chosen by the seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="what survived the last time, against new tests")
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
    here = Here(top, given)
    chosen = chosen_of(here, given)
    if given.count:
        for module in here.sources:
            print(f"{sum(mutant.module == module for mutant in chosen):6} {module}")
        print(f"{len(chosen):6} all")
        return 0
    say(f"{len(chosen)} of {len(here.mutants)} mutants, {given.jobs} at a time")
    passed_on = top / "known.json"

    def in_functions(_: Any) -> Any:
        """In a process of its own: this one must stay without gpud, for those that import it anew."""
        said: dict[str, Any] = {}

        def then(items: list[pytest.Item]) -> None:
            known = here.known(items)
            passed_on.write_text(json.dumps([vars(test) for test in known.tests]))
            with contextlib.redirect_stdout(output):
                said.update(Trial(here, known, items).run(chosen, anew=False))

        plugin = suite.Plugin(given.examples, then)
        output, printed = sys.stdout, io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = pytest.main([*suite.QUIET, "--rootdir", str(top), *TESTS], plugins=[plugin])
        if not passed_on.exists():
            say(printed.getvalue())
            raise SystemExit(f"pytest ended with {status!s}")
        return said

    results: dict[str, Any] = {}
    for answer in campaign.each([None], in_functions, 1, lambda _: 4 * 3600.0):
        if answer.said is None:
            say("cannot try the mutants: see above")
            return 2
        results.update(answer.said)
    known = here.completed([Test(**test) for test in json.loads(passed_on.read_text())])
    rest = [mutant for mutant in chosen if mutant.key not in results]
    say(f"{len(rest)} of them are not in functions: they are imported anew")
    results.update(Trial(here, known).run(rest, anew=True))
    kept = here.before.get("mutants", {}) if given.again else {}
    results = {**kept, **results}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"tests": here.digests, "mutants": results}, indent=0))
    text, percent = table(here.mutants, results)
    print(text)
    say(f"{len(chosen)} mutants in {time.monotonic() - begun_s:.0f} s")
    return 0 if percent >= given.least else 1


if __name__ == "__main__":
    sys.exit(main())
