"""Whatever happens in whatever order: promises keep within the budget, every wish ends once, nothing stays behind."""

from collections.abc import Callable
from contextlib import suppress

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpud.core import events
from gpud.core.errors import GpudError
from gpud.core.events import ModelChanged
from gpud.core.facts import (
    HOST,
    BudgetLimits,
    Caller,
    EvictionLimits,
    JobResult,
    Limits,
    LoadsMeanwhile,
    Priority,
    QueueLimits,
    Session,
    State,
    StopTimes,
)
from gpud.core.quote import ANY_GPU, Offer, Quote, Share, Source
from gpud.core.record import replace

from .world import ALICE, BOB, CAROL, GIB, GPU, GPU1, Gpu, World, model

NAMES = ("a", "b", "c", "d", "e")
names = st.sampled_from(NAMES)
SHELLS = tuple(Session(f"shell-{number}", 1000, 4711 + number, "bash") for number in range(2))
callers = st.sampled_from((ALICE, BOB, CAROL, *(Caller(s.id, s.uid, s.pid, "bash", session=s.id) for s in SHELLS)))
priorities = st.sampled_from((None, *Priority))
waits = st.sampled_from((None, None, None, 0.0, 3.0))
seldom = st.sampled_from((False, False, False, False, True))

TIMEOUT_S = 60.0
LIMITS = Limits(
    gpu=BudgetLimits(budget_bytes=5 * GIB, reserve_bytes=GIB // 2),
    host=BudgetLimits(budget_bytes=5 * GIB),
    memory_wait_s=5.0,
    queue=QueueLimits(size=3, timeout_s=TIMEOUT_S, turn_s=5.0, aging_s=10.0),
    eviction=EvictionLimits(residence_s=1.0),
)


def quoted(size: int, way: str) -> Quote:
    """As a whole, split over two GPUs where that is needed, or smaller where that helps."""
    whole = Offer((Share(ANY_GPU, size * GIB), Share(HOST, GIB // 4)), Source.FORMULA)
    if way == "split":
        half = size * GIB // 2
        shares = (Share(GPU, half), Share(GPU1, half), Share(HOST, GIB // 4))
        return Quote((whole, Offer(shares, Source.FORMULA, split=(0.5, 0.5))))
    if way == "reduced":
        smaller = Offer((Share(ANY_GPU, size * GIB // 2),), Source.FORMULA, context=4096, reduced="a context of 4096")
        off = Offer((Share(HOST, size * GIB),), Source.FORMULA, layers=0, reduced="no layers on the GPU")
        return Quote((whole, smaller, off))
    return Quote.simple(size * GIB)


class Anything(RuleBasedStateMachine):
    """Users, engines, other programs and the clock do as they like."""

    @initialize(
        sizes=st.lists(st.integers(0, 6), min_size=5, max_size=5),
        real=st.lists(st.none() | st.integers(0, 6), min_size=5, max_size=5),
        ways=st.lists(st.sampled_from(("simple", "split", "reduced")), min_size=5, max_size=5),
        load_s=st.lists(st.sampled_from((0.0, 0.0, 2.0)), min_size=5, max_size=5),
        gpus=st.integers(0, 2),
        linger=st.booleans(),
        budget=st.sampled_from((None, 5 * GIB)),
        idle=st.sampled_from((0.0, 30.0)),
        meanwhile=st.sampled_from(tuple(LoadsMeanwhile)),
        without=st.sampled_from((LoadsMeanwhile.CPU, LoadsMeanwhile.REFUSE)),
    )
    def begin(
        self,
        sizes: list[int],
        real: list[int | None],
        ways: list[str],
        load_s: list[float],
        gpus: int,
        linger: bool,
        budget: int | None,
        idle: float,
        meanwhile: LoadsMeanwhile,
        without: LoadsMeanwhile,
    ) -> None:
        models = {
            name: model(name, idle_timeout_s=idle, stop=StopTimes(drain_s=60), pinned=name == "d") for name in NAMES
        }
        models["e"] = replace(models["e"], priority=Priority.LOW)
        self.world = World(
            models,
            {name: size * GIB for name, size in zip(NAMES, sizes, strict=True)},
            {uuid: Gpu(8 * GIB) for uuid in (GPU, GPU1)[:gpus]},
            replace(
                LIMITS,
                gpu=replace(LIMITS.gpu, budget_bytes=budget),
                loads_during_game=meanwhile,
                loads_without_gpu=without,
            ),
            quotes={n: quoted(s, way) for n, s, way in zip(NAMES, sizes, ways, strict=True) if way != "simple"},
            real_sizes={name: size * GIB for name, size in zip(NAMES, real, strict=True) if size is not None},
            load_s=dict(zip(NAMES, load_s, strict=True)),
            drivers_linger=linger,
        )
        self.configured = self.world.models
        self.closing = False
        self.cookies = 0
        self.asked: set[int] = set()
        self.claims: set[int] = set()

    # Wishes

    def wish(self, what: Callable[..., object], *args: object, **more: object) -> object:
        with suppress(GpudError):
            return what(*args, **more)
        return None

    def job(self, job: object) -> None:
        if isinstance(job, int):
            self.asked.add(job)

    @rule(
        name=names,
        caller=callers,
        evict=st.booleans(),
        use=st.booleans(),
        context=st.sampled_from((None, None, 512)),
        priority=priorities,
        wait_s=waits,
    )
    def load(self, name: str, caller: object, **options: object) -> None:
        self.job(self.wish(self.world.load, name, caller, **options))

    @rule(use=st.booleans(), game=st.sampled_from((None, 3, 4)))
    def everybody_at_once(self, use: bool, game: int | None) -> None:
        """All are wished for, and admitted while none of the others has come up, perhaps beside a game."""
        if game is not None and GPU in self.world.gpus:
            self.world.gpus[GPU].programs["game"] = game * GIB
        for name in NAMES:
            self.job(self.wish(self.world.load, name, BOB, use=use))
        for _ in range(8):
            looks = [a for a in self.world.pending if isinstance(a, events.Sample) and not a.delay_s]
            if not looks:
                break
            self.world.do(looks[0])

    @rule(name=st.sampled_from((*NAMES, "")), caller=callers, force=st.booleans(), others=st.booleans())
    def unload(self, name: str, caller: object, force: bool, others: bool) -> None:
        self.job(self.wish(self.world.unload, name, caller, force=force, others=others))

    @rule(wanted=st.lists(st.tuples(names, callers, st.booleans()), min_size=1, max_size=6))
    def a_busy_hour(self, wanted: list[tuple[str, object, bool]]) -> None:
        """One after the other, as it comes; some of the answers before are through."""
        for name, caller, through in wanted:
            if through:
                for status in self.world.scheduler.model_statuses():
                    if status.in_flight:
                        self.world.post(events.UseEnded(status.model.name))
            self.job(self.wish(self.world.load, name, caller, use=True))
            self.world.pass_time(2.5)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_jobs = [job.id for job in self.world.scheduler.job_statuses()]
        if open_jobs:
            self.world.post(events.CancelAsked(data.draw(st.sampled_from(open_jobs))))

    @rule(size=st.integers(1, 6), caller=callers, gpu=st.sampled_from(("", "", "0", "1")), wait_s=waits)
    def claim(self, size: int, caller: object, gpu: str, wait_s: float | None) -> None:
        claim = self.wish(self.world.claim, size * GIB, caller, gpu=gpu, wait_s=wait_s)
        if isinstance(claim, int):
            self.claims.add(claim)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.world.programs:
            self.world.drop(data.draw(st.sampled_from(sorted(self.world.programs))))

    @rule(data=st.data(), used=st.integers(0, 6))
    def use_what_was_claimed(self, data: st.DataObject, used: int) -> None:
        granted = [program for program in self.world.programs.values() if program.device]
        if granted:
            program = data.draw(st.sampled_from(granted))
            program.used_bytes = 0
            program.used_bytes = min(used * GIB, program.bytes, self.world.free(program.device))

    @rule(name=names)
    def use(self, name: str) -> None:
        self.wish(self.world.post, events.UseBegan(name))

    @rule(name=names)
    def stop_using(self, name: str) -> None:
        self.world.post(events.UseEnded(name))

    @rule(
        name=st.sampled_from((*NAMES, "")),
        caller=callers,
        what=st.sampled_from((*("unload evict",) * 5, "load", "game")),
    )
    def hold(self, name: str, caller: object, what: str) -> None:
        self.cookies += 1
        held = name if what == "unload evict" else ""
        self.wish(self.world.post, events.HoldAsked(self.cookies, held, caller, "", "", frozenset(what.split())))  # type: ignore[arg-type]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holds = [hold.cookie for hold in self.world.scheduler.hold_statuses()]
        if holds:
            self.world.post(events.HoldDropped(data.draw(st.sampled_from(holds)), "released"))

    @rule(for_s=st.sampled_from((None, 5.0)), really=seldom)
    def give_the_gpus_away(self, for_s: float | None, really: bool) -> None:
        if really:
            self.world.post(events.YieldAsked(ALICE, "", for_s))

    @rule()
    def take_the_gpus_back(self) -> None:
        self.world.post(events.ResumeAsked(BOB))

    @rule(session=st.sampled_from(SHELLS), ends=st.booleans())
    def a_shell_begins_or_ends(self, session: Session, ends: bool) -> None:
        lives = any(status.session == session for status in self.world.scheduler.session_statuses())
        if ends:
            self.world.post(events.SessionEnded(session.id, "it exited"))
        elif not lives:
            self.world.post(events.SessionBegan(session))

    # The world

    @rule(keep=st.booleans(), lost=st.booleans(), shutdown=seldom, within_s=st.sampled_from((1.0, 4.0)), really=seldom)
    def the_machine_is_about_to_sleep(
        self, keep: bool, lost: bool, shutdown: bool, within_s: float, really: bool
    ) -> None:
        if really:
            self.world.post(
                events.SuspendAsked(within_s, shutdown, keep, {"nvidia": "it does not preserve memory"} if lost else {})
            )

    @rule(restore=st.booleans(), problem=seldom, vendor=st.sampled_from(("", "nvidia", "amd")))
    def the_machine_is_awake(self, restore: bool, problem: bool, vendor: str) -> None:
        self.world.post(events.WokeUp(restore, "no GPU answers" if problem else "", vendor=vendor))

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
        for place in self.world.queue():
            assert place.until_s is None or place.until_s >= self.world.now, f"{place} waits past its time"

    @rule(name=names, broken=seldom)
    def breaks_or_is_mended(self, name: str, broken: bool) -> None:
        self.world.broken.discard(name)
        if broken:
            self.world.broken.add(name)

    @rule(name=names, size=st.sampled_from((0, 3, 9)))
    def runs_out_of_memory(self, name: str, size: int) -> None:
        self.world.oom[name] = size * GIB

    @rule(name=names, size=st.none() | st.integers(1, 6))
    def says_what_it_takes(self, name: str, size: int | None) -> None:
        self.world.says.pop(name, None)
        if size is not None:
            self.world.says[name] = size * GIB

    @rule(name=names)
    def works_past_gpud(self, name: str) -> None:
        self.world.busy ^= {name}

    @rule(data=st.data(), code=st.sampled_from((0, 1, -9, None)))
    def dies(self, data: st.DataObject, code: int | None) -> None:
        if self.world.engines:
            self.world.end(data.draw(st.sampled_from(sorted(self.world.engines))), code)

    @rule(uuid=st.sampled_from((GPU, GPU1)), size=st.integers(0, 8))
    def another_program(self, uuid: str, size: int) -> None:
        if uuid in self.world.gpus:
            self.world.gpus[uuid].programs["game"] = size * GIB

    @rule(uuid=st.sampled_from((GPU, GPU1)), size=st.sampled_from((0, 0, 3)))
    def memory_is_late(self, uuid: str, size: int) -> None:
        if uuid in self.world.gpus:
            self.world.gpus[uuid].late_bytes = size * GIB

    @rule(uuid=st.sampled_from((GPU, GPU1)), how=st.sampled_from(("health", "asleep", "tells", *("well",) * 6)))
    def a_gpu_is_ill_or_well(self, uuid: str, how: str) -> None:
        if uuid in self.world.gpus:
            gpu = self.world.gpus[uuid]
            gpu.health = "lost" if how == "health" else ""
            gpu.asleep = how == "asleep"
            gpu.tells = how != "tells"

    @rule(name=names, how=st.sampled_from(("changed", "gone", "back")), look=st.booleans(), really=seldom)
    def other_models(self, name: str, how: str, look: bool, really: bool) -> None:
        """By another configuration, or by a look at the disks."""
        if not really:
            return
        world, before = self.world, self.world.models
        world.models = {n: m for n, m in self.configured.items() if n in before or n == name}
        if how == "gone":
            del world.models[name]
        changed = frozenset((name,) if how == "changed" else ())
        if look:
            world.post(events.CatalogueTaken(world.models, changed))
        else:
            world.post(events.Reconfigured(world.models, world.limits, 30.0, changed))

    @rule(size=st.sampled_from((0, 0, 3, 8)))
    def set_budget(self, size: int) -> None:
        self.world.post(events.BudgetSet(size * GIB))

    @precondition(lambda self: not self.closing)
    @rule(really=seldom)
    def shutdown(self, really: bool) -> None:
        if really:
            self.closing = True
            self.world.post(events.ShutdownAsked())

    # What always holds, beside what the world checks with each event

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

    @invariant()
    def the_dead_reserve_nothing(self) -> None:
        world = self.world
        alive = {a.model.name for a in world.pending if isinstance(a, events.Launch)} | set(world.engines)
        claimed = any(program.device for program in world.programs.values())
        if not alive and not claimed:
            assert all(gpu.committed_bytes == 0 for gpu in world.scheduler.gpu_statuses())

    @invariant()
    def every_engine_is_somebodys(self) -> None:
        for name in self.world.engines:
            state = self.world.state(name)
            assert state is not None and state.has_engine(), f"the engine of {name} runs, which is {state}"

    @invariant()
    def who_comes_back_by_itself_is_on_its_way(self) -> None:
        for status in self.world.scheduler.model_statuses():
            assert status.waiting or not status.retries or status.state is not State.COLD, f"{status.model.name}"

    @invariant()
    def only_living_sessions_use_models(self) -> None:
        living = {status.session.id for status in self.world.scheduler.session_statuses()} | {""}
        assert all(users <= living for users in self.world.scheduler.users().values())

    @invariant()
    def looks_do_not_pile_up(self) -> None:
        assert sum(isinstance(a, events.Sample) for a in self.world.pending) <= 5

    # The end

    def teardown(self) -> None:
        if hasattr(self, "world"):
            if not self.closing:
                self._everybody_is_served_or_told()
            self._everything_ends()

    def _everybody_is_served_or_told(self) -> None:
        """When all is answered and given back, nobody waits any longer, and the books are empty."""
        world = self.world
        world.busy.clear()
        world.models = self.configured
        world.configure()
        world.post(events.WokeUp())
        for hold in world.scheduler.hold_statuses():
            world.post(events.HoldDropped(hold.cookie, "released"))
        world.post(events.ResumeAsked(BOB))
        for claim in list(world.programs):
            world.drop(claim)
        for gpu in world.gpus.values():
            gpu.programs, gpu.late_bytes, gpu.health, gpu.asleep = {}, 0, "", False
        world.drivers_linger = False
        for _ in range(30):
            # Whatever is loaded for a request is answered in a second.
            for status in world.scheduler.model_statuses():
                for _ in range(status.in_flight):
                    world.post(events.UseEnded(status.model.name))
            world.pass_time(1)
        world.pass_time(TIMEOUT_S + 61)
        assert not [job for job in world.scheduler.job_statuses() if job.kind == "load"]
        for status in world.scheduler.model_statuses():
            for _ in range(status.in_flight):
                world.post(events.UseEnded(status.model.name))
        world.broken.clear()
        self.job(world.unload())
        world.pass_time(world.limits.memory_wait_s + 1)
        assert self.asked <= set(world.jobs)
        assert self.claims <= set(world.over)
        assert world.queue() == ()
        assert not world.engines
        for gpu in world.scheduler.gpu_statuses():
            assert (gpu.committed_bytes, gpu.reserved_bytes) == (0, 0)
        assert not world.pending
        assert world.scheduler.next_deadline() is None

    def _everything_ends(self) -> None:
        """No job is left open, no engine, no deadline, no pending look."""
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
        assert self.asked <= set(world.jobs)
        assert self.claims <= set(world.over)
        assert all(ended.result in JobResult for ended in world.jobs.values())


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
