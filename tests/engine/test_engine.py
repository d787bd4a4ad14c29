"""The one writer with parts handed in: what is told, what is waited for, and what happens when parts misbehave."""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gpud.core.errors import BackendFailed, NoSuchHold, NoSuchJob, NoSuchModel
from gpud.core.events import JobEnded, LoadOptions, ModelChanged, Notice, Outcome
from gpud.core.facts import Caller, Endpoint, GpuSample, JobResult, Model, State
from gpud.core.ports import ChildRecord, LoadOrder, Runner, RunnerRecord
from gpud.core.quote import Share
from gpud.core.record import replace
from gpud.engine.endings import KEPT
from gpud.engine.writer import FRESH_S

from .catalogue import configured
from .parts import GIB, Bench, FakeBackend, FakeRunner, MemoryStore, OneGpu

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")
BOB = Caller("bob", 1001, label="bob")
A = Model("a", "fake", aliases=("first",))
B = Model("b", "fake")


async def until(bench: Bench, name: str, state: State) -> None:
    """Returns when the model is in the state; woken by what the engine tells."""
    reached = asyncio.Event()

    def look(_: tuple[Outcome, ...]) -> None:
        if bench.engine._scheduler.state_of(name) is state:
            reached.set()

    stop = bench.engine.subscribe(look)
    look(())
    await asyncio.wait_for(reached.wait(), 50)
    stop()


def test_a_load_is_told_step_by_step(run: Run) -> None:
    """Every listener sees the states, the notices and the end of the job."""

    async def work() -> None:
        async with Bench(A) as bench:
            told: list[Outcome] = []
            bench.engine.subscribe(told.extend)
            job = bench.engine.load("a", ALICE)
            ended = await bench.engine.wait(job)

            assert ended.result is JobResult.DONE
            assert [c.new for c in told if isinstance(c, ModelChanged)] == [State.LOADING, State.READY]
            assert [n.kind.value for n in told if isinstance(n, Notice)][:2] == ["load-started", "model-loaded"]
            assert [j.job for j in told if isinstance(j, JobEnded)] == [job]

    run(work())


def test_a_job_that_has_ended_can_still_be_waited_for(run: Run) -> None:
    """Whoever loads what is loaded already gets a job that is over when it comes to wait."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            job = bench.engine.load("a", BOB)
            await asyncio.sleep(0)
            assert (await bench.engine.wait(job)).message == '"a" is already loaded'
            with pytest.raises(NoSuchJob):
                await bench.engine.wait(job + 1)

    run(work())


def test_what_is_too_long_to_be_a_name_is_compared_with_none(run: Run) -> None:
    """That would take minutes of everybody's time; the error says how long it is, and repeats its begin alone."""

    async def work() -> None:
        async with Bench(A) as bench:
            with pytest.raises(NoSuchModel) as caught:
                bench.engine.resolve("a" * 1_000_000)
            assert caught.value.message == f'there is no model "{"a" * 128}…"'
            assert caught.value.hint == "its name has 1000000 characters, the limit is 128"

    run(work())


@pytest.mark.parametrize("name", ["a", "a.gguf", "first", "first.gguf"])
def test_a_model_goes_by_its_name_its_aliases_and_with_its_suffix(name: str, run: Run) -> None:
    """Clients send all of these."""

    async def work() -> None:
        async with Bench(A) as bench:
            assert bench.engine.resolve(name) == "a"

    run(work())


def test_an_unknown_name_gets_the_nearest(run: Run) -> None:
    """A typing error is answered with what was meant."""

    async def work() -> None:
        async with Bench(Model("qwen3-8b", "fake"), B) as bench:
            with pytest.raises(NoSuchModel) as caught:
                bench.engine.load("qwen3-8", ALICE)
            assert caught.value.hint == 'did you mean "qwen3-8b"?'

    run(work())


@pytest.mark.parametrize("how", ["unload", "shutdown"])
def test_a_load_is_canceled_in_the_turn_in_which_it_was_ordered(how: str, run: Run) -> None:
    """Before it took its first step: its end is heard of all the same."""

    async def work() -> None:
        async with Bench(A) as bench:

            def at_once(outcomes: tuple[Outcome, ...]) -> None:
                if any(isinstance(o, Notice) and o.kind.value == "load-started" for o in outcomes):
                    if how == "unload":
                        bench.engine.unload("a", BOB)
                    else:
                        bench.engine.shutdown()

            bench.engine.subscribe(at_once)
            ended = await bench.engine.wait(bench.engine.load("a", ALICE))
            assert ended.result is (JobResult.SUPERSEDED if how == "unload" else JobResult.CANCELED)
            await until(bench, "a", State.COLD)
            assert bench.backend.orders == []

    run(work(), timeout_s=50)


def test_a_replaced_backend_is_closed_when_its_last_model_has_gone(run: Run) -> None:
    """Not before: what answers is not cut by a reload."""

    async def work() -> None:
        async with Bench(A) as bench:
            old, new = bench.backend, FakeBackend()
            new.version = "2"
            async with bench.engine.use("a", ALICE):
                await bench.engine.apply(
                    shelf=configured(bench.models), limits=bench.limits, idle_timeout_s=300.0, backends={"fake": new}
                )
                assert not old.closed
            await until(bench, "a", State.COLD)
            await asyncio.sleep(0)
            assert old.closed and not new.closed
            await bench.engine.wait(bench.engine.load("a", ALICE))
            assert list(new.runners) == ["a"]

    run(work(), timeout_s=50)


def test_use_loads_the_model_and_keeps_it_while_it_lasts(run: Run) -> None:
    """An unload waits until the block is left."""

    async def work() -> None:
        async with Bench(A) as bench:
            async with bench.engine.use("a", ALICE) as endpoint:
                assert endpoint.key == "secret"
                job = bench.engine.unload("a", BOB)
                await until(bench, "a", State.DRAINING)
                assert bench.backend.runners["a"].unloads == 0
                ended = asyncio.ensure_future(bench.engine.wait(job))
            assert (await ended).result is JobResult.DONE
            assert bench.backend.runners["a"].unloads == 1

    run(work())


def test_a_use_that_is_given_up_leaves_the_queue(run: Run) -> None:
    """Its load is canceled, since nobody else waits for it."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.backend.gate = asyncio.Event()

            async def use() -> None:
                async with bench.engine.use("a", ALICE):
                    pytest.fail("it never became ready")

            task = asyncio.create_task(use())
            await bench.backend.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(bench, "a", State.COLD)
            assert bench.backend.canceled == 1
            assert bench.store.kept == {}

    run(work())


def test_a_use_that_is_given_up_as_it_begins_counts_no_longer(run: Run) -> None:
    """However many wait with it: what is told of their ends is forgotten before this one is through."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.backend.gate = asyncio.Event()
            over = asyncio.Event()

            async def use() -> None:
                async with bench.engine.use("a", ALICE):
                    await over.wait()

            tasks = [asyncio.create_task(use()) for _ in range(KEPT + 44)]
            await bench.backend.entered.wait()

            def gives_up(outcomes: tuple[Outcome, ...]) -> None:
                if any(isinstance(outcome, JobEnded) for outcome in outcomes):
                    tasks[0].cancel()

            stop = bench.engine.subscribe(gives_up)
            bench.backend.gate.set()
            await asyncio.gather(tasks[0], return_exceptions=True)
            stop()
            assert tasks[0].cancelled()
            assert bench.engine.snapshot().models[0].in_flight == len(tasks) - 1
            over.set()
            await asyncio.gather(*tasks[1:])
            assert bench.engine.snapshot().models[0].in_flight == 0

    run(work(), timeout_s=50)


def test_a_use_of_what_cannot_be_loaded_raises_the_reason(run: Run) -> None:
    """The client gets a sentence, not a hang."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.backend.failure = BackendFailed("no such tensor", hint="get the file again")
            with pytest.raises(BackendFailed, match="no such tensor") as raised:
                async with bench.engine.use("a", ALICE):
                    pytest.fail("it cannot be used")
            assert raised.value.hint == "get the file again"

    run(work())


def test_an_unforeseen_error_of_a_backend_fails_the_load_and_nothing_else(run: Run) -> None:
    """The daemon goes on, the message says that it is a bug."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            bench.backend.failure = ZeroDivisionError("oops")
            ended = await bench.engine.wait(bench.engine.load("a", ALICE))
            assert ended.result is JobResult.FAILED
            assert "internal error: ZeroDivisionError" in ended.message
            bench.backend.failure = None
            ended = await bench.engine.wait(bench.engine.load("b", ALICE))
            assert ended.result is JobResult.DONE

    run(work())


def test_an_engine_that_will_not_unload_is_killed(run: Run) -> None:
    """The memory comes back one way or the other."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            bench.backend.runners["a"].refuses_to_unload = True
            ended = await bench.engine.wait(bench.engine.unload("a", ALICE))
            assert ended.result is JobResult.DONE
            assert bench.backend.runners["a"].kills == 1

    run(work())


def test_a_backend_that_fails_to_kill_does_not_leave_the_model_in_between(run: Run) -> None:
    """The error is logged, the model is cold once its engine is gone."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            runner = bench.backend.runners["a"]
            runner.refuses_to_unload = runner.cannot_be_killed = True
            ended = await bench.engine.wait(bench.engine.unload("a", ALICE))
            assert ended.result is JobResult.DONE
            assert bench.engine.snapshot().models[0].state is State.COLD

    run(work())


def test_a_process_that_adopted_models_share_is_not_ended_for_another(run: Run) -> None:
    """One server, two models: one is still loaded, the other is not."""

    async def work() -> None:
        kept = {"a-1": record("a-1"), "b-1": record("b-1", "b")}
        bench = Bench(A, B, store=MemoryStore(kept=kept))
        bench.backend.adoptable["a-1"] = FakeRunner(4242)
        async with bench:
            assert bench.engine.snapshot().models[0].state is State.READY
            assert bench.launcher.ended == []
            assert list(bench.store.kept) == ["a-1"]

    run(work())


def test_a_crashed_engine_is_started_again_and_forgotten_in_the_store(run: Run) -> None:
    """The record always names the engine that runs."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            first = set(bench.store.kept)
            bench.backend.runners["a"].end(-11)
            await until(bench, "a", State.BACKOFF)
            assert not bench.store.kept
            await until(bench, "a", State.READY)
            assert len(bench.store.kept) == 1
            assert first.isdisjoint(bench.store.kept)
            assert bench.engine.snapshot().models[0].restarts == 1

    run(work())


def test_cancel_reaches_the_backend_at_once(run: Run) -> None:
    """Unload while loading."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.backend.gate = asyncio.Event()
            load = bench.engine.load("a", ALICE)
            await bench.backend.entered.wait()
            loading = asyncio.ensure_future(bench.engine.wait(load))
            await asyncio.sleep(0)
            unload = await bench.engine.wait(bench.engine.unload("a", BOB))
            assert unload.result is JobResult.DONE
            assert (await loading).result is JobResult.SUPERSEDED
            assert bench.backend.canceled == 1

    run(work())


def test_a_load_that_becomes_ready_in_the_moment_it_is_canceled_is_stopped(run: Run) -> None:
    """No engine is left that nobody knows."""

    class Ready(FakeBackend):
        """It is, although it was told to give up."""

        async def load(self, order: LoadOrder) -> Runner:
            try:
                return await super().load(order)
            except asyncio.CancelledError:
                self.gate = None
                return await super().load(order)

    async def work() -> None:
        async with Bench(A, backend=Ready()) as bench:
            bench.backend.gate = asyncio.Event()
            load = bench.engine.load("a", ALICE)
            await bench.backend.entered.wait()
            bench.engine.cancel(load, ALICE)
            await until(bench, "a", State.COLD)
            assert bench.backend.canceled == 1
            assert bench.backend.runners["a"].ended.done()
            assert not bench.store.kept

    run(work())


def test_only_the_owner_cancels_a_job(run: Run) -> None:
    """Somebody else's job is not even admitted to exist."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.backend.gate = asyncio.Event()
            job = bench.engine.load("a", ALICE)
            with pytest.raises(NoSuchJob):
                bench.engine.cancel(job, BOB)
            assert bench.engine.job(job) is not None
            bench.engine.cancel(job, BOB, any_owner=True)
            assert (await bench.engine.wait(job)).result is JobResult.CANCELED

    run(work())


def test_holds_end_with_their_owner(run: Run) -> None:
    """And nobody releases another's."""

    async def work() -> None:
        async with Bench(A) as bench:
            cookie = bench.engine.hold("a", ALICE, reason="work", application="editor")
            bench.engine.hold("a", ALICE, reason="more", application="editor")
            others = bench.engine.hold("a", BOB, reason="work", application="shell")
            with pytest.raises(NoSuchHold):
                bench.engine.release(cookie, "bob")
            assert len(bench.engine.snapshot().holds) == 3
            bench.engine.release_owner("alice")
            assert [hold.cookie for hold in bench.engine.snapshot().holds] == [others]

    run(work())


def record(unit: str, model: str = "a", fingerprint: str = "1-None") -> RunnerRecord:
    child = ChildRecord(unit, model, "fake", 4242, 1)
    return RunnerRecord(unit, model, "fake", fingerprint, Endpoint(), ("GPU-0",), (Share("GPU-0", GIB),), child=child)


def test_an_engine_of_an_earlier_daemon_is_taken_over(run: Run) -> None:
    """Nothing is loaded, nothing is ended."""

    async def work() -> None:
        bench = Bench(A, store=MemoryStore(kept={"a-1": record("a-1")}))
        bench.backend.adoptable["a-1"] = FakeRunner(4242)
        async with bench:
            assert bench.engine.snapshot().models[0].state is State.READY
            assert bench.backend.orders == []
            assert bench.launcher.ended == []
            await bench.look()
            assert bench.engine.snapshot().models[0].pids == (4242,)

    run(work())


def test_what_does_not_answer_any_more_is_ended(run: Run) -> None:
    """A record without an engine, and an engine without a model."""

    async def work() -> None:
        kept = {"a-1": record("a-1"), "gone-1": record("gone-1", "gone")}
        async with Bench(A, store=MemoryStore(kept=kept)) as bench:
            assert sorted(bench.launcher.ended) == ["a-1", "gone-1"]
            assert bench.store.kept == {}

    run(work())


def test_an_engine_with_old_settings_is_taken_over_and_goes_when_it_is_not_busy(run: Run) -> None:
    """Its running answers are not cut by a restart with another configuration."""

    async def work() -> None:
        bench = Bench(A, store=MemoryStore(kept={"a-1": record("a-1", fingerprint="0-None")}))
        runner = bench.backend.adoptable["a-1"] = FakeRunner(4242)
        async with bench:
            await until(bench, "a", State.COLD)
            assert runner.unloads == 1
            assert runner.kills == 0

    run(work())


def test_a_reload_touches_only_what_has_changed(run: Run) -> None:
    """The other keeps its process."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            for name in ("a", "b"):
                await bench.engine.wait(bench.engine.load(name, ALICE))
            changed = Model("a", "fake", settings=A.settings.__class__(context=8192))
            await bench.engine.apply(
                shelf=configured({"a": changed, "b": B}),
                limits=bench.limits,
                idle_timeout_s=300.0,
                backends={"fake": bench.backend},
            )
            await until(bench, "a", State.COLD)
            assert bench.backend.runners["b"].unloads == 0
            await bench.engine.wait(bench.engine.load("a", ALICE))
            assert bench.backend.orders[-1].model.settings.context == 8192

    run(work())


def test_what_becomes_ready_while_a_reload_asks_about_another_is_not_forgotten(run: Run) -> None:
    """It was started with the old settings, and goes."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        asked, answer = asyncio.Event(), threading.Event()

        class Slow(FakeBackend):
            def fingerprint(self, model: Model) -> str:
                if model.name == "a" and "b" in [order.model.name for order in self.orders]:
                    loop.call_soon_threadsafe(asked.set)
                    answer.wait(50)
                return super().fingerprint(model)

        async with Bench(A, B, backend=Slow()) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            bench.backend.entered.clear()
            bench.backend.gate = asyncio.Event()
            job = bench.engine.load("b", ALICE)
            await bench.backend.entered.wait()
            changed = replace(B, settings=replace(B.settings, context=8192))
            reload = asyncio.create_task(
                bench.engine.apply(
                    shelf=configured({"a": A, "b": changed}),
                    limits=bench.limits,
                    idle_timeout_s=300.0,
                    backends={"fake": bench.backend},
                )
            )
            await asked.wait()
            bench.backend.gate.set()
            await bench.engine.wait(job)
            answer.set()
            await reload
            await until(bench, "b", State.COLD)
            assert bench.backend.runners["a"].unloads == 0

    run(work(), timeout_s=60)


def test_the_measured_size_is_what_the_next_load_reserves(run: Run) -> None:
    """Learned by the fingerprint of the settings."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            await bench.look()
            await bench.store.learned_something.wait()
            measured = bench.store.sizes["1-None|Test GPU"]
            assert measured.gpu_bytes == GIB
            await bench.engine.wait(bench.engine.unload("a", ALICE))
            await bench.engine.wait(bench.engine.load("a", ALICE))
            assert bench.engine.snapshot().models[0].need_bytes == GIB

    run(work())


def test_a_measurement_that_cannot_be_kept_is_seen_at_once(run: Run) -> None:
    """The disk is written to in a thread; whoever watches is told when that went wrong."""

    async def work() -> None:
        async with Bench(A) as bench:
            bench.store.next_problem = "the disk is full"
            degraded = asyncio.Event()

            def look(_: tuple[Outcome, ...]) -> None:
                if bench.engine.snapshot().degraded == "state-not-kept":
                    degraded.set()

            bench.engine.subscribe(look)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            await degraded.wait()

    run(work())


def test_models_that_are_to_be_there_from_the_start_are_loaded(run: Run) -> None:
    """preload and pinned."""

    async def work() -> None:
        async with Bench(Model("p", "fake", preload=True), Model("q", "fake", pinned=True), B) as bench:
            await until(bench, "p", State.READY)
            await until(bench, "q", State.READY)
            assert bench.engine._scheduler.state_of("b") is State.COLD

    run(work())


def test_with_nothing_loaded_nothing_is_armed_and_the_devices_are_let_go(run: Run) -> None:
    """Idle costs nothing: no timer, no task, no driver."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE, LoadOptions(idle_timeout_s=100)))
            assert bench.engine._timer is not None
            await bench.engine.wait(bench.engine.unload("a", ALICE))
            while bench.engine._work._tasks:
                await asyncio.wait(bench.engine._work._tasks)
            assert bench.engine._timer is None
            assert bench.gpus.releases >= 1

    run(work())


async def grown_old(bench: Bench) -> None:
    """Returns when the figures are no longer fresh; nobody tells."""
    while bench.engine.is_fresh():
        await asyncio.sleep(FRESH_S / 10)


async def made_fresh(bench: Bench) -> None:
    """Returns when they are, also where a second passes before anybody can look at them."""
    while not bench.engine.is_fresh():
        await bench.engine.refresh()


def test_figures_are_fresh_for_a_while(run: Run) -> None:
    """Before the first look they are not; they grow old within a second, whether a model is loaded or not."""

    async def work() -> None:
        bench = Bench(A)
        assert not bench.engine.is_fresh()
        async with bench:
            await made_fresh(bench)
            await grown_old(bench)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            await made_fresh(bench)
            # The watch over the load looks once more, a moment after it was ready.
            await grown_old(bench)
            await made_fresh(bench)
            await bench.engine.wait(bench.engine.unload("a", ALICE))

    run(work())


def test_a_look_does_not_wake_a_device_when_nothing_is_loaded(run: Run) -> None:
    """Whoever only wants figures gets the last known ones."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.look()
            assert bench.gpus.looks >= 1
            assert bench.gpus.woken == 0

    run(work())


def test_a_look_that_fails_ends_neither_looks_nor_loads(run: Run) -> None:
    """Who waits for it is told; the next one is made all the same."""

    class Vanishes(FakeRunner):
        broken = False

        def pids(self) -> frozenset[int]:
            if self.broken:
                raise OSError("no such process")
            return super().pids()

    async def work() -> None:
        async with Bench(A, B) as bench:
            bench.backend.adoptable["a-1"] = Vanishes(1)
            bench.store.kept["a-1"] = RunnerRecord(
                "a-1", "a", "fake", "1-None", Endpoint(), shares=(Share("GPU-0", GIB),)
            )
            await bench.engine._work.take_over()
            await bench.look()
            Vanishes.broken = True
            ended = await bench.engine.wait(bench.engine.load("b", ALICE))
            assert ended.result is JobResult.FAILED
            assert "internal error: OSError('no such process')" in ended.message
            Vanishes.broken = False
            assert (await bench.engine.wait(bench.engine.load("b", ALICE))).result is JobResult.DONE

    run(work(), timeout_s=50)


def test_who_no_longer_waits_for_a_look_that_hangs_leaves_nothing(run: Run) -> None:
    """There may be one of them each second, for hours."""

    class Hangs(OneGpu):
        hangs, asked = asyncio.Event(), asyncio.Event()

        async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
            self.asked.set()
            await self.hangs.wait()
            return await super().sample(own, wake=wake)

    async def work() -> None:
        async with Bench(A, gpus=Hangs()) as bench:
            asking = asyncio.create_task(bench.engine.refresh())
            await Hangs.asked.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert not bench.engine._work.looks
            Hangs.hangs.set()

    run(work())


def test_it_ends_in_the_turn_in_which_its_work_has_ended(run: Run) -> None:
    """A look has been taken, and what follows the end of its task is still to come: that is not waited for in vain."""

    def spins(*_: object) -> None:
        raise AssertionError("it never lets go of the loop")

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.look()

    before = signal.signal(signal.SIGALRM, spins)
    signal.alarm(60)
    try:
        run(work())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_failing_listener_does_not_keep_the_others_from_being_told(run: Run) -> None:
    """A broken surface breaks itself only."""

    async def work() -> None:
        async with Bench(A) as bench:
            told: list[Outcome] = []

            def broken(_: tuple[Outcome, ...]) -> None:
                raise RuntimeError("broken surface")

            bench.engine.subscribe(broken)
            bench.engine.subscribe(told.extend)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            assert told

    run(work())


def test_keys_do_not_show_when_a_snapshot_is_printed(run: Run) -> None:
    """Debug output is read by others."""

    async def work() -> None:
        async with Bench(A) as bench:
            await bench.engine.wait(bench.engine.load("a", ALICE))
            (shown,) = bench.engine.snapshot().models
            assert shown.endpoint is not None and shown.endpoint.key == "secret"
            assert "secret" not in repr((bench.engine.snapshot(), shown))

    run(work())


def test_shutdown_in_the_middle_of_a_load_leaves_nothing(run: Run) -> None:
    """The load is canceled, its job ends, the backend is closed."""

    async def work() -> None:
        bench = Bench(A)
        async with bench:
            bench.backend.gate = asyncio.Event()
            job = asyncio.ensure_future(bench.engine.wait(bench.engine.load("a", ALICE)))
            await until(bench, "a", State.LOADING)
        assert (await job).result is JobResult.CANCELED
        assert bench.backend.closed
        assert bench.store.kept == {}

    run(work())
