"""The machine sleeps while the loop stands still, and games have the GPUs: deadlines go on, who waits is told."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.errors import Suspending
from gpud.core.facts import Caller, JobResult, Model, State
from gpud.core.ports import OtherProgram
from gpud.core.record import replace
from gpud.engine.clock import LEAST_SLEEP_S, Clock

from .parts import Bench
from .test_engine import until

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")
A = Model("a", "fake")


class Nap:
    """How long the machine has slept, as a test says."""

    def __init__(self) -> None:
        self.slept_s = 100.0

    def __call__(self) -> float:
        return self.slept_s


steps = st.lists(
    st.one_of(
        st.tuples(st.just("runs"), st.floats(0, 1e5)),
        st.tuples(st.just("sleeps"), st.floats(LEAST_SLEEP_S, 1e6)),
        st.tuples(st.just("wavers"), st.floats(-0.1, 0.1)),
    ),
    max_size=30,
)


@given(steps)
def test_a_deadline_comes_when_so_much_time_has_passed_asleep_or_awake(taken: list[tuple[str, float]]) -> None:
    """It never goes back, is never late by more than what is no sleep, and the loop is told how long it is still."""
    loop_s, nap, real_s = 5000.0, Nap(), 0.0
    clock = Clock(lambda: loop_s, nap)
    began = last = clock.now()
    for what, length_s in taken:
        if what == "runs":
            loop_s += length_s
            real_s += length_s
        elif what == "sleeps":
            nap.slept_s += length_s
            real_s += length_s
        else:
            # Two clocks are read one after the other, and the second was interrupted.
            nap.slept_s += min(0.0, length_s)
            clock.now()
            nap.slept_s -= min(0.0, length_s)
        now = clock.now()
        assert now >= last
        assert real_s == pytest.approx(now - began, abs=LEAST_SLEEP_S + 1e-3)
        assert clock.on_loop(now + 60) == pytest.approx(loop_s + 60, abs=1e-3)
        last = now


def test_a_model_that_was_kept_has_been_idle_while_the_machine_slept(run: Run) -> None:
    """Its time was over in the sleep: it goes as soon as the machine is awake, not minutes later."""

    async def work() -> None:
        nap = Nap()
        async with Bench(replace(A, idle_timeout_s=300.0), slept=nap) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            await bench.engine.suspend(4.0, keep=True)
            before = bench.engine.snapshot()
            assert before.state == "suspending"
            nap.slept_s += 3600
            bench.engine.woke_up()
            assert bench.engine.snapshot().now_s >= before.now_s + 3600
            await until(bench, "a", State.COLD)

    run(work())


def test_whoever_waits_for_an_empty_machine_is_told_when_it_is(run: Run) -> None:
    """Not before the engine has ended; loads are refused from the start."""

    async def work() -> None:
        async with Bench(A) as bench:
            async with bench.engine.use("a", ALICE):
                waiting = asyncio.create_task(bench.engine.suspend(20.0))
                await until(bench, "a", State.DRAINING)
                assert not waiting.done()
                with pytest.raises(Suspending):
                    bench.engine.load("a", ALICE)
            await asyncio.wait_for(waiting, 50)
            assert bench.engine.snapshot().models[0].state is State.COLD
            bench.engine.woke_up()
            await until(bench, "a", State.READY)

    run(work())


def test_an_empty_machine_may_sleep_at_once(run: Run) -> None:
    """There is nothing to wait for."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.suspend(4.0)
            assert bench.engine.snapshot().state == "suspending"
            bench.engine.woke_up()
            assert bench.engine.snapshot().state == "idle"

    run(work())


def test_gpus_that_did_not_wake_up_are_told_as_degraded(run: Run) -> None:
    """Until they can be used."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.engine.woke_up(problem="the GPUs do not answer", hint="reload nvidia_uvm")
            assert bench.engine.snapshot().degraded == "gpu-unavailable"
            assert bench.engine.snapshot().state == "unavailable"
            bench.engine.woke_up()
            assert bench.engine.snapshot().degraded == ""

    run(work())


class Games:
    """Programs that run until the test ends them."""

    def __init__(self) -> None:
        self.running: dict[OtherProgram, asyncio.Event] = {}

    def start(self, name: str, pid: int) -> asyncio.Event:
        self.running[OtherProgram(pid, name)] = asyncio.Event()
        return self.running[OtherProgram(pid, name)]

    def wanted(self) -> bool:
        return True

    def look(self) -> Sequence[OtherProgram]:
        return [program for program, ended in self.running.copy().items() if not ended.is_set()]

    async def ended(self, program: OtherProgram) -> None:
        await self.running[program].wait()


def test_a_program_of_the_list_has_the_gpus_from_the_next_look_to_its_end(run: Run) -> None:
    """It is seen before the look that it comes with decides anything; a second one of it keeps them."""

    async def work() -> None:
        games = Games()
        async with Bench(A, programs=games) as bench:
            first, second = games.start("doom", 4711), games.start("doom", 4712)
            job = bench.engine.load("a", ALICE)
            # The look with which the engine began may have seen one of them alone.
            while len(bench.engine.snapshot().holds) < 2:
                await bench.engine.refresh()
            (hold, other) = bench.engine.snapshot().holds
            assert {hold.what, other.what} == {frozenset({"game"})}
            assert hold.caller.label == "doom"
            assert bench.engine.snapshot().models[0].state is State.COLD
            assert bench.engine.job(job) is not None
            first.set()
            second.set()
            assert (await asyncio.wait_for(bench.engine.wait(job), 50)).result is JobResult.DONE
            assert bench.engine.snapshot().holds == ()

    run(work())
