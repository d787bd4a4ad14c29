"""What every test gets: the check that it leaves nothing behind, and ``run`` for coroutines.

A test fails when it leaves a task, a child process, a thread or a descriptor (a socket, a pipe, a file) behind.
Fixtures of a module or the session may keep theirs: they are set up before the count is taken.

With ``CI`` in the environment everything has to be there: a test that skips itself fails, with its reason.
"""

import asyncio
import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest

T = TypeVar("T")

BOUND_S = 60.0
"""No single coroutine of a test takes longer; what does is stuck, and its stack is worth more than its patience."""

SETTLE_S = 60.0
"""How long a child that was told to end, or a thread that was let go, may take to be gone after its test."""

TURNS = 5
"""Turns of the loop that a canceled task may need to end after its test's coroutine has."""

asyncio_run = asyncio.run

# Who starts the tests in the background of a script has SIGINT ignored, and so has every program that they start:
# Ctrl-C would be typed in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No example has a deadline: a machine may be slow. With CI set, hypothesis's own profile for it stays below.
hypothesis.settings.register_profile("gpud", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("gpud")


@pytest.fixture(scope="session")
def localhost_pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, signed by itself, and its key, in one file."""
    folder = tmp_path_factory.mktemp("localhost")
    key, certificate, both = (folder / name for name in ("key.pem", "certificate.pem", "both.pem"))
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", "req", "-x509", *curve, *subject, *files], check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    return both


async def settled(work: Coroutine[Any, Any, T], bound_s: float | None) -> T:
    """Await the work within its bound, then insist that it left no task."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(bound_s):
        result = await work
    for _ in range(TURNS):
        left = asyncio.all_tasks() - before
        if not left:
            return result
        await asyncio.sleep(0)
    names = ", ".join(sorted(str(task.get_coro()) for task in left))
    pytest.fail(f"the test left {len(left)} asyncio tasks behind: {names}")


@pytest.fixture
def run() -> Callable[..., Any]:
    """``run(coroutine, timeout_s=60)``: a loop of its own, a bound, and no task left behind."""

    def run(work: Coroutine[Any, Any, T], timeout_s: float = BOUND_S) -> T:
        return asyncio_run(settled(work, timeout_s))

    return run


@pytest.fixture(autouse=True)
def no_task_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that call ``asyncio.run`` themselves are held to the same: it would cancel what is left in silence."""

    def run(work: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
        return asyncio_run(settled(work, None), debug=debug)

    monkeypatch.setattr(asyncio, "run", run)


def descriptors() -> dict[int, str]:
    """Every open descriptor and what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The listing's own.
    return found


def descendants(pid: int) -> Iterator[int]:
    """From the kernel's own lists: to read the parent of every process there is takes milliseconds, twice a test."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = task.read_text().split()
        except OSError:
            continue  # The thread, or the process, has just ended.
        for child in map(int, found):
            yield child
            yield from descendants(child)


def children() -> dict[tuple[int, float], str]:
    """Every living descendant, by what makes it unique."""
    found = {}
    for pid in descendants(os.getpid()):
        try:
            child = psutil.Process(pid)
            if child.status() != psutil.STATUS_ZOMBIE:
                found[pid, child.create_time()] = " ".join(child.cmdline()) or child.name()
        except psutil.NoSuchProcess:
            continue
    return found


def snapshot() -> tuple[dict[Any, str], dict[Any, str], dict[Any, str]]:
    return children(), descriptors(), {thread.ident: thread.name for thread in threading.enumerate()}


def new_since(before: tuple[dict[Any, str], dict[Any, str], dict[Any, str]]) -> list[str]:
    """What is here now and was not before, as sentences."""
    after = snapshot()
    # A process that was here may have become another program since.
    found = [f"process {pid}: {text}" for (pid, began), text in after[0].items() if (pid, began) not in before[0]]
    found += [f"descriptor {fd}: {target}" for fd, target in after[1].items() - before[1].items()]
    found += [f"thread {name}" for _, name in after[2].items() - before[2].items()]
    return sorted(found)


@pytest.fixture
def leftovers() -> Callable[[], list[str]]:
    """A function that tells what has come into being since the fixture was set up and is still there."""
    before = snapshot()
    return lambda: new_since(before)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a descriptor behind."""
    before = snapshot()
    yield
    found = new_since(before)
    if found:
        # Only now: an object that waits for the collector may close what it holds, and a child may be on its way out.
        gc.collect()
        deadline = time.monotonic() + SETTLE_S
        while (found := new_since(before)) and time.monotonic() < deadline:
            time.sleep(0.02)
    if found:
        pytest.fail("the test left behind: " + "; ".join(found))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers ``tests/workers.py`` says who gets what, in the order in which it was collected."""
    from workers import Sharing

    config.option.loadscopereorder = False
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        from workers import in_order

        items[:] = in_order(items)


MAY_BE_MISSING = (
    "no GPU here",
    "this machine has no journal",
    "this machine has no nginx",
    "this machine is an aarch64",
    "pandoc",
    "xmllint",
)
"""Of these the tests have others that show the same, or the machine decides."""


def _insist(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Turn a skip into a failure where nothing may be missing."""
    if not report.skipped or not os.environ.get("CI") or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(words in reason for words in MAY_BE_MISSING):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason}: with CI set nothing may be missing; see tools/packages test"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _insist(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _insist(report)
    return report
