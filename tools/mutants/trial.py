"""Whether tests see a mutant: it is put into its place in a process of its own, and they run until one fails."""

import argparse
import ast
import gc
import importlib.machinery
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import campaign
import pytest
import suite
from known import LONGEST_S, Known
from mutations import Mutant
from results import Results
from tree import Tree

ANEW = "anew"
"""What a process answers that cannot put the mutant into its place."""

SLOW_CPU_S = 2.0
PLENTY = 2.0
"""A mutant may take so many times what its tests take while they are watched, and ``SLOW_CPU_S``, of the processor."""

IMPORT_CPU_S = 6.0
"""What a process that imports everything anew may take for that."""


def functions_of(tree: Tree) -> dict[tuple[str, str, int], list[FunctionType]]:
    """All functions of the core in this process, by module, name and line."""
    files = {tree.path(name): name for name in tree.sources}
    found = defaultdict(list)
    gc.unfreeze()  # What is frozen is not listed.
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename in files:
            code = function.__code__
            found[files[code.co_filename], code.co_qualname, code.co_firstlineno].append(function)
    return found


class Trial:
    """Whether mutants are seen."""

    def __init__(
        self, tree: Tree, known: Known, results: Results, given: argparse.Namespace, items: Sequence[pytest.Item] = ()
    ) -> None:
        self.tree = tree
        self.known = known
        self.results = results
        self.given = given
        self.items = {item.nodeid: item for item in items}
        self.functions = functions_of(tree) if items else {}
        self.seen_by: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def code(self, mutant: Mutant) -> CodeType | None:
        """What the function becomes, or None where it has to be imported anew."""
        where = mutant.where
        mutant.apply()
        try:
            syntax, path = self.tree.syntax[mutant.module], self.tree.path(mutant.module)
            code = suite.code_in(syntax, path, where.place, where.place_line)
        except (SyntaxError, ValueError):
            return None
        if code is None or any(code.co_freevars != own.__code__.co_freevars for own in self.own(mutant)):
            return None
        return code

    def own(self, mutant: Mutant) -> list[FunctionType]:
        where = mutant.where
        return self.functions.get((mutant.module, where.place, where.place_line), []) if where.place else []

    def tests(self, mutant: Mutant) -> list[int]:
        """Those that it was not tried with before: first those that saw mistakes nearby, then those of the file with
        its name, then the quick ones.
        """
        near, around = self.seen_by[mutant.where.scope], self.seen_by[mutant.module]
        file = f"/test_{Path(mutant.module).stem}.py::"

        def place(number: int) -> tuple[int, int, bool, float, int]:
            test = self.known.tests[number]
            return -near[number], -around[number], file not in test.name, test.took_s, number

        tried = self.results.tried(mutant)
        found = [number for number in self.known.of(mutant) if self.known.tests[number].file not in tried]
        return sorted(found, key=place)

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
                ast.fix_missing_locations(self.tree.syntax[mutant.module]),
                self.tree.path(mutant.module),
                "exec",
            )
        except (SyntaxError, ValueError) as error:
            return f"it is no Python: {error}"
        sys.meta_path.insert(0, Instead(mutant.module, self.tree.path(mutant.module), code))
        suite.bounded(self.cpu_s(mutant) + IMPORT_CPU_S)
        names = [self.known.tests[number].name for number in tests]
        return suite.in_new_process(names, self.tree.top, self.given.examples)

    def run(self, chosen: Sequence[Mutant], *, anew: bool) -> list[str]:
        """Try them, and tell which: those that cannot be replaced are left for the process that imports anew."""
        found: list[str] = []

        def tasks() -> Iterator[tuple[Mutant, list[int]]]:
            for mutant in chosen:
                if anew or self.own(mutant):
                    tests = self.tests(mutant)
                    if tests:
                        yield mutant, tests
                    else:
                        self.results.put(mutant, "survived", "", 0)
                        found.append(mutant.key)

        work = self.imported if anew else self.replaced
        for answer in campaign.each(tasks(), work, self.given.jobs, lambda _: LONGEST_S):
            mutant, tests = answer.task
            if answer.said == ANEW:
                continue
            how = "killed" if answer.said else "survived"
            if answer.said is None:
                how = "timed out" if answer.late or os.WIFSIGNALED(answer.status) else "killed"
            self.results.put(mutant, how, answer.said or "", len(tests))
            found.append(mutant.key)
            for number in tests:
                if self.known.tests[number].name == answer.said:
                    self.seen_by[mutant.where.scope][number] += 1
                    self.seen_by[mutant.module][number] += 1
        return found


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
