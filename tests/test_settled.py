"""The checks that hold every test to account, themselves checked: leftovers are found, and so is what is missing."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Leftovers = Callable[[], list[str]]

OPTIONS = "-q -p conftest -p no:cacheprovider --continue-on-collection-errors"
PYTEST = (sys.executable, "-m", "pytest", *OPTIONS.split())


def test_a_socket_left_open_is_found(leftovers: Leftovers) -> None:
    """An open socket is reported, and no longer once it is closed."""
    left = socket.socket()
    assert any("socket" in text for text in leftovers())
    left.close()
    assert leftovers() == []


def test_a_child_left_running_is_found(leftovers: Leftovers) -> None:
    """A child that lives is reported with its command line."""
    child = subprocess.Popen(["sleep", "60"])
    while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
        pass  # Executed, as far as its parent is told, and without its words for an instant.
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


@pytest.mark.parametrize("in_ci", [True, False])
def test_nothing_is_skipped_in_silence_where_everything_has_to_be_there(tmp_path: Path, in_ci: bool) -> None:
    """With CI set a missing program or module fails its tests and is named; otherwise they are skipped."""
    (tmp_path / "test_program.py").write_text("import pytest\ndef test_it():\n    pytest.skip('no systemd-nspawn')\n")
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    (tmp_path / "test_machine.py").write_text(
        "import pytest\n@pytest.mark.skipif(True, reason='this machine has no journal')\ndef test_it(): pass\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    tests = Path(__file__).parent
    done = subprocess.run(
        [*PYTEST, f"--rootdir={tmp_path}", f"--confcutdir={tmp_path}", str(tmp_path)],
        env={**environment, "PYTHONPATH": str(tests), **({"CI": "true"} if in_ci else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if in_ci:
        assert "no systemd-nspawn: with CI set" in done.stdout and "no_such_module" in done.stdout
        assert "1 failed, 1 skipped, 1 error" in done.stdout, done.stdout
    else:
        assert "3 skipped" in done.stdout and done.returncode in (0, 5), done.stdout
