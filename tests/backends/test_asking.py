"""Programs that are asked one thing: they answer, or they are ended, with all that they forked."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from place import is_gone

from gpud.backends.asking import LARGEST_ANSWER_BYTES, Said, ask_program, ask_program_now

Run = Callable[..., Any]


def shell(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


def test_what_it_says_on_both_streams_is_its_answer(run: Run) -> None:
    """With its status; it sees the variables that it is given and no GPU."""
    said = ask_program_now(shell("echo one; echo two >&2; echo $A$CUDA_VISIBLE_DEVICES; exit 3"), {"A": "x"}, 10)
    assert (said.code, sorted(said.text.split())) == (3, ["one", "two", "x"])
    assert run(ask_program(shell("echo hello"), {}, 10)) == Said(0, "hello\n")


def test_one_that_leaves_something_behind_is_not_waited_for(tmp_path: Path) -> None:
    """What it forked holds its output open, and is ended."""
    started_s = time.monotonic()
    said = ask_program_now(shell(f"sleep 60 & echo $! > {tmp_path / 'pid'}; echo done"), {}, 10)
    assert (said.code, said.text) == (0, "done\n")
    assert time.monotonic() - started_s < 30
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("text", ["sleep 60", "sleep 60 & wait", "exec >&- 2>&-; sleep 60", "trap '' TERM; sleep 60"])
def test_one_that_hangs_is_ended_in_time(run: Run, text: str) -> None:
    """Also when it closed its output first."""
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        ask_program_now(shell(text), {}, 0.3)
    with pytest.raises(TimeoutError):
        run(ask_program(shell(text), {}, 0.3))
    assert time.monotonic() - started_s < 30


def test_one_that_floods_is_ended() -> None:
    """After a few MiB, which are kept."""
    said = ask_program_now(("yes",), {}, 30)
    assert said.code != 0
    assert LARGEST_ANSWER_BYTES <= len(said.text) < LARGEST_ANSWER_BYTES + (1 << 20)


def test_one_that_cannot_be_started_is_an_error(run: Run, tmp_path: Path) -> None:
    """Of the system, as it says it."""
    with pytest.raises(FileNotFoundError):
        run(ask_program((str(tmp_path / "none"),), {}, 10))


def test_a_caller_that_is_canceled_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """However often, and the program is gone when the cancellation arrives."""

    async def work() -> None:
        pids = tmp_path / "pids"
        os.mkfifo(pids)
        asking = asyncio.ensure_future(ask_program(shell(f"echo $$ > {pids}; sleep 60"), {}, 60))
        pid = int(await asyncio.to_thread(pids.read_text))
        asking.cancel()
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert is_gone(pid)

    run(work())
