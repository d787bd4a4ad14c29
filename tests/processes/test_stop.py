"""The stop ladder, and what a main process leaves behind."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from process_parts import BOUND_S, PATIENT, SHORT, Lines, command, is_running, shell

from gpud.core.facts import Exit, StopTimes
from gpud.processes.launcher import ProcessLauncher

Run = Callable[..., Any]

DEAF = "trap '' TERM; echo ready; exec sleep 1000"


async def told(sink: Lines, text: str = "ready") -> None:
    await sink.until(lambda line: line == text)


def test_first_term_is_enough_for_a_good_child(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """It ends in its own way, with its own code, and nothing is killed."""

    async def scene() -> None:
        began: list[str] = []
        child = await launcher.spawn(shell("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done"))
        await told(sink)
        ended = await child.stop(PATIENT, on_kill=lambda: began.append("kill"))
        assert ended.code == 4 and ended.tail == ("ready", "bye")
        assert not began and not child.alive()

    run(scene())


def test_second_term_is_sent_to_a_busy_child(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """llama-server ignores the first TERM while it works, and leaves on the second."""

    async def scene() -> Exit:
        script = "trap 'trap \"exit 6\" TERM' TERM; echo ready; while :; do read x; done"
        child = await launcher.spawn(shell(script, lease=True))
        await told(sink)
        # Long enough for the first to arrive on a machine that is busy: two that wait are one.
        return await child.stop(StopTimes(term_s=3.0, second_term_s=60.0))

    assert run(scene()).code == 6


def test_a_child_that_reads_its_stdin_to_the_end_when_told_to_go_need_not_be_told_twice(
    launcher: ProcessLauncher, sink: Lines, run: Run
) -> None:
    """A llama-server waits for the thread that reads its stdin: the lease ends with the first TERM."""

    async def scene() -> Exit:
        script = "trap 'cat >/dev/null; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
        child = await launcher.spawn(shell(script, lease=True))
        await told(sink)
        return await child.stop(StopTimes(term_s=60.0, second_term_s=60.0))

    assert run(scene()).code == 7


def test_child_that_ignores_term_is_killed_and_it_is_told(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Both rungs pass, ``on_kill`` is called once, the exit is a SIGKILL."""

    async def scene() -> None:
        child = await launcher.spawn(shell(DEAF))
        await told(sink)
        began: list[float] = []
        start = time.monotonic()
        ended = await child.stop(SHORT, on_kill=lambda: began.append(time.monotonic() - start))
        assert ended.code == -signal.SIGKILL and not ended.oom_killed
        assert len(began) == 1 and began[0] >= SHORT.term_s + SHORT.second_term_s

    run(scene())


def test_second_stop_joins_the_first(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Both callers get the same exit; both are told of the kill; canceling one does not stop the ladder."""

    async def scene() -> None:
        child = await launcher.spawn(shell(DEAF))
        await told(sink)
        began: list[int] = []
        canceled = asyncio.ensure_future(child.stop(SHORT))
        first = asyncio.ensure_future(child.stop(PATIENT, on_kill=lambda: began.append(1)))
        second = asyncio.ensure_future(child.stop(PATIENT, on_kill=lambda: began.append(2)))
        await asyncio.sleep(0)
        canceled.cancel()
        assert await first is await second is await child.wait() is await child.stop(SHORT) is await child.kill()
        assert began == [1, 2]

    run(scene())


def test_a_failure_of_whoever_is_told_does_not_spare_the_engine(
    launcher: ProcessLauncher, sink: Lines, run: Run
) -> None:
    """It is killed first, and told of then."""

    def fail() -> None:
        raise RuntimeError("a defect in the listener")

    async def scene() -> None:
        unheard: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        child = await launcher.spawn(shell(DEAF))
        await told(sink)
        ended = await asyncio.wait_for(child.stop(SHORT, on_kill=fail), BOUND_S)
        assert ended.code == -signal.SIGKILL

    run(scene())


def test_kill_cuts_the_ladder_short(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """A kill during a patient stop takes effect at once."""

    async def scene() -> None:
        child = await launcher.spawn(shell(DEAF))
        await told(sink)
        stopping = asyncio.ensure_future(child.stop(PATIENT))
        await asyncio.sleep(0)
        ended = await asyncio.wait_for(child.kill(), BOUND_S)
        assert ended.code == -signal.SIGKILL
        assert await stopping is ended

    run(scene())


def test_asking_replaces_the_first_term(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """The polite way alone is enough; no signal is sent."""

    async def scene() -> Exit:
        script = "trap 'echo signal' TERM; echo ready; read line; exit 8"
        child = await launcher.spawn(shell(script, lease=True))
        await told(sink)

        async def ask() -> None:
            child.close_lease()

        return await child.stop(PATIENT, ask=ask)

    ended = run(scene())
    assert ended.code == 8 and ended.tail == ("ready",)


def test_asking_in_vain_is_followed_by_a_term(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """An answer that never comes counts as the first rung, and does not hang the stop."""

    async def scene() -> Exit:
        child = await launcher.spawn(shell("trap 'exit 5' TERM; echo ready; while :; do read x; done", lease=True))
        await told(sink)
        times = StopTimes(term_s=0.1, second_term_s=60.0)
        return await child.stop(times, ask=asyncio.Event().wait)  # type: ignore[arg-type]

    assert run(scene()).code == 5


def test_asking_that_fails_becomes_a_term_at_once(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """The time of the first rung is not spent on nothing."""

    async def scene() -> Exit:
        child = await launcher.spawn(shell("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done"))
        await told(sink)

        async def ask() -> None:
            raise ConnectionRefusedError

        return await asyncio.wait_for(child.stop(PATIENT, ask=ask), BOUND_S)

    assert run(scene()).code == 4


def test_stopped_child_is_woken_to_end(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """A process under SIGSTOP acts on a signal only when it goes on."""

    async def scene() -> Exit:
        child = await launcher.spawn(command("sleep", "1000"))
        os.kill(child.pid, signal.SIGSTOP)
        return await asyncio.wait_for(child.stop(PATIENT), BOUND_S)

    assert run(scene()).code == -signal.SIGTERM


def test_what_holds_the_pipe_open_is_ended_with_the_main_process(
    launcher: ProcessLauncher, sink: Lines, run: Run
) -> None:
    """A worker that ignores TERM and has the pipes: the wait for the exit does not wait for their end."""

    async def scene() -> None:
        child = await launcher.spawn(shell("trap '' TERM; sleep 1000 & echo $!; exit 3"))
        worker = int(await sink.until(str.isdecimal))
        ended = await asyncio.wait_for(child.wait(), BOUND_S)
        assert ended.code == 3 and ended.tail == (str(worker),)
        assert not is_running(worker)

    run(scene())


def test_what_is_still_in_the_pipe_at_the_end_is_read(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """The last words of a child that fails are the ones that matter."""

    async def scene() -> Exit:
        script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; printf 'no newline'; exit 1"
        return await (await launcher.spawn(shell(script))).wait()

    assert run(scene()).tail[-2:] == ("line 1999", "no newline")


def test_child_that_makes_itself_a_daemon_is_ended_too(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """Twice a new session, no parent left. With a cgroup it cannot escape; without, its environment gives it away."""

    async def scene() -> None:
        script = "setsid -f setsid -f sh -c 'echo $$; exec sleep 1000'; read line; exit 0"
        child = await launcher.spawn(shell(script, lease=True))
        hidden = int(await sink.until(str.isdecimal))
        child.close_lease()
        ended = await asyncio.wait_for(child.wait(), BOUND_S)
        assert ended.code == 0
        assert not is_running(hidden)

    run(scene())


def test_fork_storm_is_ended(launcher: ProcessLauncher, sink: Lines, run: Run) -> None:
    """A tree that goes on forking while it is being killed does not win."""

    async def scene() -> None:
        storm = "echo ready; while :; do (setsid sh -c 'sleep 1000' &) ; sleep 0.02; done"
        child = await launcher.spawn(shell(storm))
        await told(sink)
        await asyncio.wait_for(child.kill(), BOUND_S)

    run(scene())


def test_close_ends_what_is_left_and_names_it(launcher: ProcessLauncher, run: Run) -> None:
    """The daemon's end is never an engine's escape."""

    async def scene() -> None:
        child = await launcher.spawn(command("sleep", "1000"))
        assert await launcher.close() == ("tiny-1",)
        assert not is_running(child.pid)

    run(scene())
