"""The check that a test leaves nothing behind, itself checked: each kind of leftover is found."""

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

Leftovers = Callable[[], list[str]]


def test_a_socket_left_open_is_found(leftovers: Leftovers) -> None:
    """An open socket is reported, and no longer once it is closed."""
    left = socket.socket()
    assert any("socket" in text for text in leftovers())
    left.close()
    assert leftovers() == []


def test_a_child_left_running_is_found(leftovers: Leftovers) -> None:
    """A child that lives is reported with its command line."""
    child = subprocess.Popen(["sleep", "60"])
    assert f"process {child.pid}: sleep 60" in leftovers()
    child.kill()
    child.wait()
    assert leftovers() == []


def test_a_pipe_left_open_is_found(leftovers: Leftovers) -> None:
    """Both ends of a pipe are reported."""
    ends = os.pipe()
    assert sum("pipe" in text for text in leftovers()) == 2
    for end in ends:
        os.close(end)


def test_a_thread_left_running_is_found(leftovers: Leftovers) -> None:
    """A thread that waits for ever is reported by name."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="forgotten")
    thread.start()
    assert "thread forgotten" in leftovers()
    done.set()
    thread.join()


async def forget_a_task() -> None:
    forget_a_task.task = asyncio.create_task(asyncio.sleep(60))  # type: ignore[attr-defined]


def test_a_task_left_running_fails(run: Callable[..., Any]) -> None:
    """Neither ``run`` nor ``asyncio.run`` lets a forgotten task pass."""
    for runner in (run, asyncio.run):
        with pytest.raises(pytest.fail.Exception, match="1 asyncio tasks"):
            runner(forget_a_task())


def test_a_task_that_was_canceled_passes(run: Callable[..., Any]) -> None:
    """A task that was canceled has a few turns of the loop to end."""

    async def cancel() -> str:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        return "done"

    assert run(cancel()) == "done"


def test_a_stuck_coroutine_is_bounded(run: Callable[..., Any]) -> None:
    """What never ends is ended."""
    with pytest.raises(TimeoutError):
        run(asyncio.Event().wait(), timeout_s=0.05)
