"""Runs many small pieces of work, each in a forked process of its own that ends with its answer."""

import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

PR_SET_PDEATHSIG = 1
"""Who forked it is gone: then nobody waits for the answer."""


@dataclass
class Child:
    task: Any
    pid: int
    pipe: int
    until_s: float
    said: bytes = b""


@dataclass
class Answer:
    """What came of a piece of work. ``said`` is None where its process was ended: it took too long, or it crashed."""

    task: Any
    said: Any
    status: int
    late: bool = False


def say(text: str) -> None:
    """How far it is, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def fork(task: Any, work: Callable[[Any], Any], bound_s: float) -> Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(task, pid, reading, time.monotonic() + bound_s)
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.close(reading)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        said = json.dumps(work(task)).encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(said)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def gone(pid: int, late: bool) -> int:
    """See a process off with all that it started, and tell how it ended."""
    if late:
        os.kill(pid, signal.SIGKILL)
    # Its number stays its own until it is waited for below.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def each(
    tasks: Iterable[Any], work: Callable[[Any], Any], jobs: int, bound: Callable[[Any], float]
) -> Iterator[Answer]:
    """The answers, as they come. A process whose time is over is ended with all that it started."""
    gc.collect()
    gc.freeze()
    waiting = iter(tasks)
    running: dict[int, Child] = {}
    more = True
    with selectors.DefaultSelector() as selector:
        try:
            while more or running:
                while more and len(running) < jobs:
                    try:
                        task = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    child = fork(task, work, bound(task))
                    running[child.pipe] = child
                    selector.register(child.pipe, selectors.EVENT_READ)
                if not running:
                    continue
                left_s = min(child.until_s for child in running.values()) - time.monotonic()
                ready = {key.fd for key, _ in selector.select(max(0.0, left_s))}
                for child in [*running.values()]:
                    late = child.until_s <= time.monotonic()
                    if child.pipe in ready:
                        part = os.read(child.pipe, 1 << 16)
                        child.said += part
                        if part:
                            continue
                        late = False
                    elif not late:
                        continue
                    selector.unregister(child.pipe)
                    os.close(child.pipe)
                    del running[child.pipe]
                    status = gone(child.pid, late)
                    said = json.loads(child.said) if status == 0 and child.said else None
                    yield Answer(child.task, said, status, late)
        finally:
            for child in running.values():
                gone(child.pid, True)
                os.close(child.pipe)
