"""The tests, in this process: which there are, which lines of the core each executes, whether chosen ones fail."""

import ast
import io
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest
from _pytest.runner import runtestprotocol
from _pytest.unittest import TestCaseFunction

UNUSED = ("cacheprovider", "xdist", "logging", "doctest", "junitxml", "pastebin", "stepwise", "faulthandler", "nose")
"""Of pytest, what only takes time here."""

QUIET = ("-q", "--capture=no", "--assert=plain", *(word for name in UNUSED for word in ("-p", f"no:{name}")))
OURS = ("nothing_left", "no_task_left")
"""What every test gets: whether a process, a descriptor or a task is left, of which tests of values have none."""

FIRST_FILES = 3
"""To import tests takes longer than to run most of them."""

MEMORY_BYTES = 3 << 30
"""A mutant that allocates without end gets a MemoryError."""


def fewer_examples(items: Iterable[pytest.Item], most: int) -> None:
    """Property tests try the same few examples each time, and look for no smaller one when one fails."""
    for item in items:
        state_machine: Any = getattr(item, "cls", None)
        if isinstance(getattr(state_machine, "settings", None), hypothesis.settings):
            state_machine.settings = fewer(state_machine.settings, most)
        test: Any = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        if getattr(test, "is_hypothesis_test", False):
            own: Any = getattr(test, "_hypothesis_internal_use_settings", None) or hypothesis.settings.default
            test._hypothesis_internal_use_settings = fewer(own, most)


def fewer(own: hypothesis.settings, most: int) -> hypothesis.settings:
    return hypothesis.settings(
        own,
        max_examples=min(own.max_examples, most),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),
    )


WITHOUT_LEFTOVERS = """
import pytest


@pytest.fixture(autouse=True)
def nothing_left():
    pass
"""
"""Values leave no process and no descriptor behind: looking for them is most of what such a test takes."""


class Plugin:
    """Hands the collected tests to whoever wants them, instead of running them."""

    def __init__(self, examples: int, then: Callable[[list[pytest.Item]], None] | None = None) -> None:
        self.examples = examples
        self.then = then

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        fewer_examples(items, self.examples)

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if self.then is None or session.testsfailed:
            return None
        self.then(session.items)
        return True


def quietly() -> None:
    """Nothing that tests print reaches the terminal."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as this process lives


def bounded(cpu_s: float) -> None:
    """From now on this process has so much of the processor: whoever runs in a circle is ended by SIGPROF."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fails(item: pytest.Item) -> bool:
    """Whether a test fails. One that only takes what it is parametrized with is called, in half of the time."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    plain = isinstance(item, pytest.Function) and not isinstance(item, TestCaseFunction)
    if plain and set(getattr(item, "fixturenames", ())) <= {*given, *OURS}:
        try:
            item.obj(**given)  # type: ignore[attr-defined]
        except pytest.skip.Exception:
            return False
        except (Exception, pytest.fail.Exception):
            return True
        return False
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def first_failure(items: Sequence[pytest.Item]) -> str:
    """Run these tests until one fails, and tell which."""
    return next((item.nodeid for item in items if fails(item)), "")


def in_new_process(names: Sequence[str], top: Path, examples: int) -> str:
    """The same where nothing of gpud has been imported yet: a few files first, since most need no more than them."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))
    for some in filter(None, (files[:FIRST_FILES], files[FIRST_FILES:])):
        failed = _imported([name for name in names if name.partition("::")[0] in some], top, examples)
        if failed:
            return failed
    return ""


def _imported(names: Sequence[str], top: Path, examples: int) -> str:
    failed: list[str] = []

    def then(items: list[pytest.Item]) -> None:
        place = {name: number for number, name in enumerate(names)}
        failed.append(first_failure(sorted(items, key=lambda item: place[item.nodeid])))

    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        status = pytest.main([*QUIET, "--rootdir", str(top), *names], plugins=[Plugin(examples, then)])
    # A module that cannot be imported any more is seen at once.
    return failed[0] if failed else f"pytest ended with {status!s}"


class Lines:
    """Which lines of some files are executed."""

    def __init__(self, files: Collection[str]) -> None:
        self.seen: dict[str, set[int]] = {file: set() for file in files}
        self._local = {file: self._tracer(lines) for file, lines in self.seen.items()}

    @staticmethod
    def _tracer(lines: set[int]) -> Callable[[FrameType, str, Any], Any]:
        add = lines.add

        def local(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001 - the protocol's
            add(frame.f_lineno)
            return local

        return local

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        local = self._local.get(frame.f_code.co_filename)
        if local is not None:
            local(frame, event, argument)
        return local

    def of(self, item: pytest.Item, following: pytest.Item | None) -> tuple[bool, float, dict[str, list[int]]]:
        """Whether a test passes, how long the processor needs for it while it is watched, and what it executes."""
        for lines in self.seen.values():
            lines.clear()
        threading.settrace(self._called)
        sys.settrace(self._called)
        begun_s = time.process_time()
        try:
            reports = runtestprotocol(item, log=False, nextitem=following)
        finally:
            sys.settrace(None)
            threading.settrace(None)
        took_s = time.process_time() - begun_s
        passed = not any(report.failed for report in reports)
        return passed, took_s, {file: sorted(lines) for file, lines in self.seen.items() if lines}


def code_in(tree: ast.Module, path: str, place: str, line: int) -> CodeType | None:
    """The code of one function of a changed module."""
    waiting = [compile(ast.fix_missing_locations(tree), path, "exec")]
    while waiting:
        code = waiting.pop()
        if code.co_qualname == place and code.co_firstlineno == line:
            return code
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
    return None
