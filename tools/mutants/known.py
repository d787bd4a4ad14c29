"""What each test does: which lines of the core it executes, and so which tests can see a mistake in which line."""

import ast
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import campaign
import pytest
import suite
from campaign import say
from mutations import Mutant
from tree import TOP, Tree

LINES = TOP / "build" / "mutants-lines.json"

LONGEST_S = 300.0
"""Of the clock, for whoever waits for ever."""

QUICK_S = 1.0
"""Tests that take longer of the processor while they are watched are a hundredth of all and half of the time: they are
left out, and what nobody else sees has survived."""

LOOKING_AT_ALL = "tests/core/test_records.py"
"""Looks at all records there are, and names few of them."""


@dataclass
class Test:
    """One test: where it is, what the processor needs for it, the lines it executes."""

    name: str
    took_s: float
    lines: dict[str, list[int]]

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


@dataclass
class Known:
    """What tests do, and who uses what by name."""

    tests: list[Test]
    executing: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    mentions: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    words: dict[str, set[str]] = field(default_factory=dict)

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
        """The tests that execute it, or that execute whatever uses what it defines."""
        where = mutant.where
        lines = range(where.first, where.last + 1)
        if where.place or not where.names:
            return sorted(self.of_lines(mutant.module, lines))
        chosen = set()
        for name in where.names:
            for file, line in self.mentions.get(name, ()):
                chosen |= self.of_lines(file, range(line, line + 1))
            for number, test in enumerate(self.tests):
                if name in self.words[test.file] or test.file == LOOKING_AT_ALL:
                    chosen.add(number)
        return sorted(chosen)


def mentions(syntax: Mapping[str, ast.Module]) -> dict[str, set[tuple[str, int]]]:
    """Where each name is used in the core; who is named by something that is defined there counts for its uses too."""
    used: dict[str, set[tuple[str, int]]] = defaultdict(set)
    defined: dict[str, set[str]] = defaultdict(set)
    for file, tree in syntax.items():
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


def completed(tree: Tree, tests: list[Test]) -> Known:
    """With who uses what by name."""
    return Known(tests, mentions=mentions(tree.syntax), words={test.file: tree.words_of(test.file) for test in tests})


def watched(tree: Tree, items: Sequence[pytest.Item], jobs: int, examples: int) -> Known:
    """From the last time where neither the core nor a test has changed, else by running them."""

    def lines_of(some: Sequence[pytest.Item]) -> list[dict[str, Any]]:
        suite.quietly()
        watch = suite.Lines([tree.path(name) for name in tree.sources])
        found = []
        for item, following in zip(some, [*some[1:], None], strict=True):
            passed, took_s, lines = watch.of(item, following)
            named = {os.path.relpath(file, tree.top): seen for file, seen in lines.items()}
            found.append({"name": item.nodeid, "passed": passed, "took_s": took_s, "lines": named})
        return found

    files = defaultdict(list)
    for item in items:
        files[item.nodeid.partition("::")[0]].append(item)
    base = f"{tree.digest()} {examples}"
    kept = json.loads(LINES.read_text()) if LINES.exists() else {}
    marks = {name: f"{base} {tree.digest_of(name)}" for name in files}
    found = {name: kept[name] for name in files if kept.get(name, {}).get("mark") == marks[name]}
    missing = [part for name in files if name not in found for part in parts(files[name])]
    say(f"{len(items)} tests in {len(files)} files; {len(missing)} pieces of them are watched")
    fresh: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in campaign.each(missing, lines_of, jobs, lambda _: LONGEST_S):
        if answer.said is None:
            raise SystemExit(f"cannot watch {answer.task[0].nodeid} and what follows it: {answer.status}")
        for said in answer.said:
            fresh[said["name"].partition("::")[0]].append(said)
    for name, seen in fresh.items():
        found[name] = {"mark": marks[name], "tests": seen}
    if fresh:
        LINES.parent.mkdir(exist_ok=True)
        LINES.write_text(json.dumps({**kept, **found}))
    failed = [test["name"] for file in found.values() for test in file["tests"] if not test["passed"]]
    if failed:
        raise SystemExit(f"{len(failed)} tests fail without any mutant: {', '.join(failed[:5])}")
    order = {item.nodeid: number for number, item in enumerate(items)}
    tests = [Test(t["name"], t["took_s"], t["lines"]) for file in found.values() for t in file["tests"]]
    quick = [test for test in tests if test.took_s <= QUICK_S]
    say(f"{len(tests) - len(quick)} tests take more than {QUICK_S:g} s and are left out")
    return completed(tree, sorted(quick, key=lambda test: order[test.name]))


def parts(items: list[pytest.Item], most: int = 25) -> Iterator[list[pytest.Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
