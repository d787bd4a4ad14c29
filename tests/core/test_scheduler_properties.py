"""Whatever happens in whatever order: promises keep within the budget, every job ends once, nothing stays behind."""

from contextlib import suppress

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpud.core import events
from gpud.core.errors import GpudError
from gpud.core.events import ModelChanged
from gpud.core.facts import BudgetLimits, Limits, State, StopTimes

from .world import ALICE, BOB, GIB, GPU, Gpu, World, model

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
callers = st.sampled_from((ALICE, BOB))


class Anything(RuleBasedStateMachine):
    """Users, engines, other programs and the clock do as they like."""

    @initialize(
        sizes=st.lists(st.integers(0, 4), min_size=4, max_size=4),
        real=st.lists(st.integers(0, 4), min_size=4, max_size=4),
        gpu=st.sampled_from((None, 8 * GIB)),
        idle=st.sampled_from((0.0, 30.0)),
    )
    def begin(self, sizes: list[int], real: list[int], gpu: int | None, idle: float) -> None:
        models = {
            name: model(name, idle_timeout_s=idle, stop=StopTimes(drain_s=60), pinned=name == "d") for name in NAMES
        }
        limits = Limits(gpu=BudgetLimits(budget_bytes=5 * GIB), host=BudgetLimits(budget_bytes=5 * GIB))
        self.world = World(
            models,
            {name: size * GIB for name, size in zip(NAMES, sizes, strict=True)},
            real_sizes={name: size * GIB for name, size in zip(NAMES, real, strict=True)},
            gpus={} if gpu is None else {GPU: Gpu(gpu)},
            limits=limits,
        )
        self.closing = False
        self.cookie = 0

    def wish(self, what: object, *args: object, **more: object) -> None:
        with suppress(GpudError):
            what(*args, **more)  # type: ignore[operator]

    @rule(name=names, caller=callers, evict=st.booleans(), context=st.sampled_from((None, None, 512)))
    def load(self, name: str, caller: object, evict: bool, context: int | None) -> None:
        self.wish(self.world.load, name, caller, evict=evict, context=context)

    @rule()
    def everybody_at_once(self) -> None:
        """All are wished for, and admitted while none of the others has come up."""
        for name in NAMES:
            self.wish(self.world.load, name, BOB)
        for _ in range(8):
            looks = [a for a in self.world.pending if isinstance(a, events.Sample) and not a.delay_s]
            if not looks:
                break
            self.world.do(looks[0])

    @rule(name=st.sampled_from((*NAMES, "")), caller=callers, force=st.booleans(), others=st.booleans())
    def unload(self, name: str, caller: object, force: bool, others: bool) -> None:
        self.wish(self.world.unload, name, caller, force=force, others=others)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_jobs = [job.id for job in self.world.scheduler.job_statuses()]
        if open_jobs:
            self.world.post(events.CancelAsked(data.draw(st.sampled_from(open_jobs))))

    @rule(name=names)
    def use(self, name: str) -> None:
        self.wish(self.world.post, events.UseBegan(name))

    @rule(name=names)
    def stop_using(self, name: str) -> None:
        self.world.post(events.UseEnded(name))

    @rule(name=st.sampled_from((*NAMES, "")), caller=callers)
    def hold(self, name: str, caller: object) -> None:
        self.cookie += 1
        what = frozenset(("unload", "evict"))
        self.wish(self.world.post, events.HoldAsked(self.cookie, name, caller, "", "", what))  # type: ignore[arg-type]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holds = [hold.cookie for hold in self.world.scheduler.hold_statuses()]
        if holds:
            self.world.post(events.HoldDropped(data.draw(st.sampled_from(holds)), "released"))

    @rule(data=st.data())
    def carry_out(self, data: st.DataObject) -> None:
        if self.world.pending:
            self.world.do(data.draw(st.sampled_from(self.world.pending)))

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @rule(seconds=st.sampled_from((0.01, 1.0, 7.0, 100.0)))
    def time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(name=names)
    def breaks_or_is_mended(self, name: str) -> None:
        self.world.broken ^= {name}

    @rule(name=names)
    def works_past_gpud(self, name: str) -> None:
        self.world.busy ^= {name}

    @rule(data=st.data(), code=st.sampled_from((0, 1, -9, None)))
    def dies(self, data: st.DataObject, code: int | None) -> None:
        if self.world.engines:
            self.world.end(data.draw(st.sampled_from(sorted(self.world.engines))), code)

    @rule(size=st.integers(0, 8))
    def another_program(self, size: int) -> None:
        if GPU in self.world.gpus:
            self.world.gpus[GPU].foreign_bytes = size * GIB

    @rule(size=st.integers(0, 3))
    def memory_is_late(self, size: int) -> None:
        if GPU in self.world.gpus:
            self.world.gpus[GPU].late_bytes = size * GIB

    @rule(name=names, changed=st.booleans())
    def reconfigure(self, name: str, changed: bool) -> None:
        models = dict(self.world.models)
        if changed:
            models.pop(name)
        self.world.post(
            events.Reconfigured(models, self.world.limits, 30.0, frozenset((name,)) if not changed else frozenset())
        )
        self.world.post(events.Reconfigured(self.world.models, self.world.limits, 30.0, frozenset()))

    @rule(size=st.integers(0, 8))
    def set_budget(self, size: int) -> None:
        # A smaller budget than what is loaded is not a promise that was broken: only a larger one keeps the invariant.
        self.world.post(events.BudgetSet(0 if size < 5 else size * GIB))

    @precondition(lambda self: not self.closing)
    @rule(seldom=st.integers(0, 9))
    def shutdown(self, seldom: int) -> None:
        if seldom == 0:
            self.closing = True
            self.world.post(events.ShutdownAsked())

    @invariant()
    def generations_never_run_two_engines_of_one_model(self) -> None:
        for name in NAMES:
            pending = [a for a in self.world.pending if isinstance(a, events.Launch) and a.model.name == name]
            assert len(pending) + (name in self.world.engines) <= 1

    @invariant()
    def states_follow_each_other(self) -> None:
        last: dict[str, State] = {}
        for change in self.world.told:
            if isinstance(change, ModelChanged):
                assert change.old is last.get(change.model, State.COLD) or change.old is State.COLD
                last[change.model] = change.new

    def teardown(self) -> None:
        """In the end everything can be ended: no job is left open, no engine, no deadline, no pending look."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.busy.clear()
        world.post(events.ShutdownAsked())
        world.settle()
        world.pass_time(world.limits.shutdown_drain_s + 1)
        world.post(events.ShutdownAsked())
        world.settle()
        world.pass_time(world.limits.memory_wait_s + 1)
        assert world.finished
        assert not world.engines
        assert not world.pending
        assert not world.scheduler.job_statuses()
        assert set(world.jobs) >= {a.job for a in world.told if isinstance(a, events.JobEnded)}


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
