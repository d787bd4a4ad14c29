"""The machine sleeps: whatever would not survive that is gone in time, and comes back when it is awake."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core import events
from gpud.core.errors import GpuUnavailable, ShuttingDown, Suspending
from gpud.core.events import Action, Kind, Level
from gpud.core.facts import HOST, BudgetLimits, EngineSettings, JobResult, Limits, LoadsMeanwhile, State
from gpud.core.quote import Share
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, World, model

WITHIN_S = 4.0


@dataclass
class Machine(World):
    """Engines in ``stubborn`` end only when they are killed, those in ``immortal`` not even then."""

    stubborn: set[str] = field(default_factory=set)
    immortal: set[str] = field(default_factory=set)
    killed: list[str] = field(default_factory=list)

    def do(self, action: Action) -> None:
        if isinstance(action, events.Stop):
            if action.kill:
                self.killed.append(action.model)
            if action.model in (self.immortal if action.kill else self.stubborn):
                self.pending.remove(action)
                return
        super().do(action)


def machine(*names: str, **more: object) -> Machine:
    return Machine({name: model(name) for name in names}, dict.fromkeys(names, 2 * GIB), **more)  # type: ignore[arg-type]


def sleep(w: Machine, **how: object) -> None:
    w.post(events.SuspendAsked(WITHIN_S, **how))  # type: ignore[arg-type]
    w.settle()


def wake(w: Machine, **how: object) -> None:
    w.post(events.WokeUp(**how))  # type: ignore[arg-type]
    w.settle()


def loaded(*names: str, **more: object) -> Machine:
    w = machine(*names, **more)
    for name in names:
        w.load(name)
    w.settle()
    return w


def test_what_is_loaded_goes_and_comes_back() -> None:
    """Idle models go at once, and are loaded again by themselves when the machine is awake."""
    w = loaded("a", "b")
    sleep(w)
    assert w.engines == {}
    assert w.scheduler.left_before_sleep() == 0
    assert w.scheduler.next_deadline() is None
    assert w.notices(Kind.SUSPENDING)[0].message == (
        "The machine is about to sleep: 2 models have to be unloaded within 4.0 s"
    )
    changed = [a for a in w.told if isinstance(a, events.ModelChanged) and a.new is State.DRAINING]
    assert {change.reason for change in changed} == {"suspend"}
    wake(w)
    assert {w.state("a"), w.state("b")} == {State.READY}
    assert w.notices(Kind.WOKE_UP)[0].message == "The machine is awake; a, b are loaded again"


def test_new_loads_are_refused_with_what_to_do() -> None:
    """Until the machine is awake, and the sentence says until when it is emptied."""
    w = machine("a")
    sleep(w)
    with pytest.raises(Suspending) as caught:
        w.load("a")
    assert caught.value.message == 'cannot load "a": the machine is about to sleep, within 4.0 s'
    assert caught.value.hint == "ask again once the machine is awake"
    w.now += 60
    with pytest.raises(Suspending, match="looks whether its GPUs work"):
        w.load("a")
    wake(w)
    w.load("a")
    w.settle()
    assert w.state("a") is State.READY


def test_a_running_answer_has_what_time_there_is() -> None:
    """It ends by itself where it can; the model is unloaded right after it."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    sleep(w)
    w.pass_time(2.0)
    assert w.state("a") is State.DRAINING
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD
    assert w.killed == []


def test_a_long_answer_is_cut_so_that_its_engine_can_end() -> None:
    """By the time that an engine takes to end there is no more waiting."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    sleep(w)
    w.pass_time(2.6)
    assert w.state("a") is State.COLD
    text = w.notices(Kind.STILL_BUSY)[0].message
    assert text == '"a" is still busy (1 request in flight) after 2.5 s and is stopped: the machine is about to sleep'


def test_the_time_that_an_engine_took_to_end_is_kept_free_for_it() -> None:
    """What was measured the last time is what an answer does not get."""
    w = machine("a", stubborn={"a"})
    w.load("a")
    w.settle()
    w.unload("a")
    w.settle()
    w.pass_time(1.5)
    w.end("a")
    w.settle()
    w.stubborn.clear()
    w.load("a", use=True)
    w.settle()
    sleep(w)
    w.pass_time(1.9)
    assert w.state("a") is State.DRAINING
    w.pass_time(0.2)
    assert w.state("a") is State.COLD


def test_an_engine_that_does_not_end_is_killed_within_the_time() -> None:
    """Told with its name; the machine does not wait for it."""
    w = loaded("a", stubborn={"a"})
    sleep(w)
    assert w.state("a") is State.STOPPING
    w.pass_time(WITHIN_S)
    assert w.killed == ["a"]
    assert w.engines == {}
    assert "has not ended and is killed: the machine cannot wait longer" in w.notices(Kind.ENGINE_KILLED)[0].message


def test_a_load_under_way_is_called_off_and_taken_up_again() -> None:
    """Who waits for it is told why, and it is there after the sleep."""
    w = machine("a", load_s={"a": 30.0})
    job = w.load("a")
    w.settle()
    assert w.state("a") is State.LOADING
    sleep(w)
    assert w.state("a") is State.COLD
    assert w.result(job) is JobResult.FAILED
    assert "the machine is about to sleep" in w.jobs[job].message
    wake(w)
    assert w.state("a") is State.LOADING


def test_who_waits_for_memory_is_told_and_waits_no_longer() -> None:
    """Nothing of the queue is served while the machine sleeps."""
    w = machine("a", "b", "c", "d", "e")
    for name in "abcd":
        w.load(name, use=True)
    w.settle()
    job = w.load("e")
    w.settle()
    assert w.queue()
    sleep(w)
    assert w.result(job) is JobResult.FAILED
    assert w.queue() == ()


def test_a_second_warning_only_sets_the_time_anew() -> None:
    """PrepareForSleep may come twice; what was loaded before the first one comes back."""
    w = loaded("a")
    sleep(w)
    sleep(w)
    wake(w)
    assert w.state("a") is State.READY


def test_waking_up_without_having_been_told_of_the_sleep_changes_nothing() -> None:
    """gpud was started in between."""
    w = loaded("a")
    wake(w)
    assert w.state("a") is State.READY
    assert w.notices(Kind.WOKE_UP) == []


def test_a_sleep_that_is_called_off_finds_what_still_answers() -> None:
    """It stays as it is."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    sleep(w)
    wake(w)
    assert w.state("a") is State.READY
    assert w.status("a").in_flight == 1
    assert w.notices(Kind.WOKE_UP)[0].message == "The machine is awake"


def test_nothing_comes_back_where_that_is_not_wanted() -> None:
    """An option; asked for, it is loaded all the same."""
    w = loaded("a")
    sleep(w)
    wake(w, restore=False)
    assert w.state("a") is State.COLD
    w.load("a")
    w.settle()
    assert w.state("a") is State.READY


def test_what_is_held_comes_back_first() -> None:
    """Somebody waits for it; of the others nobody knows."""
    w = loaded("a", "b", "c")
    w.post(events.HoldAsked(1, "c", BOB, "", "app", frozenset(("unload", "evict"))))
    sleep(w)
    before = len(w.launches())
    wake(w)
    assert w.launches()[before:] == ["c", "a", "b"]


def test_what_survives_a_sleep_is_kept_where_that_is_wished() -> None:
    """Its driver keeps its memory; it still answers, and no other is loaded."""
    w = loaded("a")
    sleep(w, keep=True)
    assert w.state("a") is State.READY
    assert w.scheduler.left_before_sleep() == 0
    w.post(events.UseBegan("a"))
    w.post(events.UseEnded("a"))
    assert w.notices(Kind.SUSPENDING)[0].message == "The machine is about to sleep: nothing has to go, 1 kept"
    wake(w)
    assert w.state("a") is State.READY
    assert w.launches() == ["a"]


def test_what_a_driver_does_not_preserve_goes_and_that_is_said() -> None:
    """On a GPU whose memory does not survive; what is in the machine's own memory stays."""
    w = Machine({"a": model("a"), "h": model("h", gpu=HOST)}, {"a": 2 * GIB, "h": GIB})
    w.load("a")
    w.load("h")
    w.settle()
    sleep(w, keep=True, lost={"nvidia": "NVIDIA's driver is not set to preserve memory"})
    assert w.state("a") is State.COLD
    assert w.state("h") is State.READY
    text = w.notices(Kind.SUSPENDING)[0].message
    assert text.endswith("1 kept; not kept, because NVIDIA's driver is not set to preserve memory")


def test_a_gpu_that_did_not_wake_up_is_said_and_what_needs_none_goes_on() -> None:
    """Once; when it can be used again, what was loaded comes back."""
    w = Machine({"a": model("a"), "h": model("h", gpu=HOST)}, {"a": 2 * GIB, "h": GIB})
    w.load("a")
    w.load("h")
    w.settle()
    sleep(w)
    wake(w, problem="the GPUs do not answer since the machine woke up", hint="reload nvidia_uvm")
    wake(w, problem="the GPUs do not answer since the machine woke up", hint="reload nvidia_uvm")
    assert w.state("h") is State.READY
    assert w.state("a") is State.COLD
    with pytest.raises(GpuUnavailable) as caught:
        w.load("a")
    assert caught.value.hint == "reload nvidia_uvm"
    assert len(w.notices(Kind.GPU_PROBLEM)) == 1
    assert w.scheduler.gpu_problem() == "the GPUs do not answer since the machine woke up"
    wake(w)
    assert w.state("a") is State.READY
    assert w.notices(Kind.WOKE_UP)[-1].message == "The GPUs can be used again; a is loaded again"


def kept(**real: int) -> Machine:
    """Two on the GPU and one in the machine's own memory, all of which sleep does not send away."""
    names = {"a": 2 * GIB, "b": GIB, "h": GIB}
    models = {name: model(name, **({"gpu": HOST} if name == "h" else {})) for name in names}
    w = Machine(models, names, real_sizes=real)
    for name in names:
        w.load(name)
    w.settle()
    sleep(w, keep=True)
    return w


def test_what_was_kept_on_a_gpu_that_does_not_wake_up_goes_and_comes_back_with_it() -> None:
    """Nobody waits for answers that never come, its driver can be mended, and the one error names all that is lost.
    What needs no GPU, or is on another vendor's, stays.
    """
    w = kept()
    w.post(events.UseBegan("a"))
    wake(w, problem="the GPUs do not answer", hint="reload nvidia_uvm", vendor="amd")
    assert {w.state(name) for name in "abh"} == {State.READY}
    wake(w)
    w.told.clear()
    wake(w, problem="the GPUs do not answer", hint="reload nvidia_uvm", vendor="nvidia")
    assert (w.state("a"), w.state("b"), w.state("h")) == (State.COLD, State.COLD, State.READY)
    (notice,) = w.notices(Kind.GPU_PROBLEM)
    assert notice.message == "The GPUs do not answer; a, b had been kept and are unloaded"
    assert notice.fields["hint"] == "reload nvidia_uvm"
    assert {told.message.partition(": ")[2] for told in w.notices(Kind.MODEL_UNLOADED)} == {
        "its GPU did not keep it over the sleep"
    }
    wake(w)
    assert {w.state(name) for name in "abh"} == {State.READY}
    assert w.notices(Kind.WOKE_UP)[-1].message == "The GPUs can be used again; a, b are loaded again"


def test_what_was_kept_does_not_come_back_where_that_is_not_wanted() -> None:
    """suspend.restore: false is about what came to be lost, too."""
    w = kept()
    wake(w, problem="the GPUs do not answer", restore=False)
    wake(w, restore=False)
    assert (w.state("a"), w.state("h")) == (State.COLD, State.READY)


def test_an_engine_whose_memory_did_not_survive_is_loaded_anew() -> None:
    """Its process lives and says that it is well; the look after the waking says that it holds next to nothing."""
    w = kept()
    engine = w.engines["a"]
    engine.real = dict.fromkeys(engine.real, 64 << 20)
    wake(w)
    assert {w.state(name) for name in "abh"} == {State.READY}
    assert w.engines["a"].pid != engine.pid
    assert w.launches() == ["a", "b", "h", "a"]
    (notice,) = w.notices(Kind.GPU_PROBLEM)
    assert notice.message == (
        '"a" was kept over the sleep and has lost its memory: it holds 64 MiB of 2.0 GiB; it is loaded anew'
    )


def test_an_engine_that_has_its_memory_is_left_alone() -> None:
    """Also when it gave some of it back meanwhile, and when that was later."""
    w = kept()
    engine = w.engines["a"]
    engine.real = {device: size // 2 for device, size in engine.real.items()}
    wake(w)
    w.pass_time(60)
    engine.real = dict.fromkeys(engine.real, 1 << 20)
    w.pass_time(60)
    assert w.engines["a"] is engine
    assert w.notices(Kind.GPU_PROBLEM) == []


def test_a_driver_that_shows_no_gpu_any_more_keeps_nobody_else_away() -> None:
    """What needs no GPU is loaded although only the machine's own memory is seen; the rest comes back with the GPU."""
    w = Machine({"a": model("a"), "h": model("h", gpu=HOST)}, {"a": 2 * GIB, "h": GIB})
    w.load("a")
    w.load("h")
    w.settle()
    gpus, w.gpus = w.gpus, {}
    sleep(w)
    wake(w, problem="the driver does not answer")
    assert w.state("h") is State.READY
    with pytest.raises(GpuUnavailable, match="the driver does not answer"):
        w.load("a")
    w.gpus = gpus
    wake(w)
    assert w.state("a") is State.READY


def test_without_a_gpu_loads_run_on_the_processor_where_that_is_configured() -> None:
    """Those that somebody asks for; what was loaded on the GPU waits for it, and the next load has it again."""
    limits = Limits(gpu=BudgetLimits(), host=BudgetLimits(), loads_without_gpu=LoadsMeanwhile.CPU)
    w = machine("a", "b", limits=limits)
    w.load("b")
    w.settle()
    sleep(w)
    wake(w, problem="the GPUs do not answer")
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert [share.device for share in w.last_launch("a").shares] == [HOST]
    assert w.state("b") is State.COLD
    wake(w)
    assert (w.state("a"), w.state("b")) == (State.READY, State.READY)
    assert w.last_launch("b").shares[0].device == GPU
    w.unload("a")
    w.settle()
    w.load("a")
    w.settle()
    assert w.last_launch("a").shares[0].device == GPU


def test_what_comes_back_waits_for_gpus_that_are_given_away() -> None:
    """Somebody took them before the sleep, and has them after it."""
    w = loaded("a")
    sleep(w)
    w.post(events.YieldAsked(ALICE, "a game"))
    wake(w)
    assert w.state("a") is State.COLD
    w.post(events.ResumeAsked(ALICE))
    w.settle()
    assert w.state("a") is State.READY


@pytest.mark.parametrize("loads", [LoadsMeanwhile.REFUSE, LoadsMeanwhile.CPU])
@pytest.mark.parametrize("how", ["crashed", "given back", "waited"])
def test_nothing_comes_up_on_gpus_that_do_not_work(how: str, loads: LoadsMeanwhile) -> None:
    """Not what has crashed, not what comes back when the GPUs are taken back, and not what waited for memory: it is
    told what for, or does without a GPU where that is configured.
    """
    w = machine("a")
    w.configure(model("a", pinned=True), limits=replace(w.limits, loads_without_gpu=loads))
    if how == "waited":
        w.load("a")
    else:
        w.load("a")
        w.settle()
    if how == "crashed":
        w.end("a", code=1)
    elif how == "given back":
        w.post(events.YieldAsked(ALICE, ""))
        w.settle()
    before = len(w.launches())
    wake(w, problem="no GPU answers")
    w.post(events.ResumeAsked(ALICE))
    w.settle()
    w.pass_time(60)
    if loads is LoadsMeanwhile.CPU:
        assert w.last_launch("a").shares[0].device == HOST
        return
    assert len(w.launches()) == before
    assert w.queue()[0].waits_for == "waiting until GPUs can be used: no GPU answers"
    wake(w)
    assert (w.state("a"), w.last_launch("a").shares[0].device) == (State.READY, GPU)


def test_a_machine_that_shuts_down_loses_all_and_says_so() -> None:
    """Nothing is kept; a shutdown that is called off brings it back."""
    w = loaded("a")
    sleep(w, shutdown=True, keep=True)
    assert w.engines == {}
    with pytest.raises(ShuttingDown, match="the machine is shutting down"):
        w.load("a")
    wake(w)
    assert w.state("a") is State.READY


def test_a_crashed_engine_does_not_come_back_into_a_sleep() -> None:
    """Its back-off ends while the machine is about to sleep; it comes back afterwards."""
    w = loaded("a")
    w.end("a", code=1)
    w.settle()
    assert w.state("a") is State.BACKOFF
    sleep(w)
    w.pass_time(30)
    assert w.engines == {}
    wake(w)
    assert w.state("a") is State.READY


def test_unload_while_the_machine_goes_to_sleep_joins() -> None:
    """Whoever asks for it hears that it is gone, and it does not come back."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    sleep(w)
    job = w.unload("a")
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.result(job) is JobResult.DONE
    wake(w)
    assert w.state("a") is State.COLD


@pytest.mark.parametrize("why", ["sleep", "yield"])
def test_who_unloads_what_goes_for_a_while_waits_no_longer_than_ever_once_that_is_over(why: str) -> None:
    """No answer is cut, and after the time for it the model stays and who asked is told."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    if why == "sleep":
        sleep(w)
    else:
        w.post(events.YieldAsked(ALICE, ""))
    job = w.unload("a")
    w.post(events.WokeUp() if why == "sleep" else events.ResumeAsked(ALICE))
    w.pass_time(299)
    assert w.state("a") is State.DRAINING
    w.pass_time(2)
    assert (w.state("a"), w.result(job)) == (State.READY, JobResult.TIMEOUT)


@settings(max_examples=150, deadline=None)
@given(
    used=st.sets(st.sampled_from("abcd")),
    slow=st.sets(st.sampled_from("abcd")),
    stubborn=st.sets(st.sampled_from("abcd")),
    busy=st.sets(st.sampled_from("abcd")),
    within_s=st.floats(0.2, 60),
    wait_s=st.floats(0, 3),
    keep=st.booleans(),
)
def test_whatever_runs_is_gone_within_the_time(
    used: set[str], slow: set[str], stubborn: set[str], busy: set[str], within_s: float, wait_s: float, keep: bool
) -> None:
    """Idle, busy, loading, busy past gpud, deaf to TERM: no engine lives past the bound, and none is started."""
    w = machine("a", "b", "c", "d", stubborn=stubborn, busy=busy, load_s=dict.fromkeys(slow, 100.0))
    for name in "abcd":
        w.load(name, use=name in used)
    w.settle()
    w.pass_time(wait_s)
    lost = {"nvidia": "it forgets"} if keep else {}
    w.post(events.SuspendAsked(within_s, keep=keep, lost=lost))
    started = len(w.launches())
    w.settle()
    w.pass_time(within_s)
    assert w.engines == {}
    assert w.scheduler.left_before_sleep() == 0
    assert len(w.launches()) == started
    w.pass_time(1000)
    assert w.scheduler.next_deadline() is None
    w.load_s = {}
    wake(w)
    w.settle()
    assert {w.state(name) for name in "abcd"} == {State.READY}


# What is there when it sleeps, and what is said of it


def test_one_model_is_one_model() -> None:
    """In the sentence before the sleep, in that after it, and where its GPU is lost."""
    w = loaded("a")
    sleep(w)
    assert "sleep: 1 model has to be unloaded within 4.0 s" in w.notices(Kind.SUSPENDING)[0].message
    wake(w)
    assert w.notices(Kind.WOKE_UP)[0].message == "The machine is awake; a is loaded again"
    assert w.scheduler.gpu_problem_hint() == ""
    assert w.scheduler.left_before_sleep() == 0
    sleep(w, keep=True)
    wake(w, problem="the GPUs do not answer")
    assert w.notices(Kind.GPU_PROBLEM)[0].message == "The GPUs do not answer; a had been kept and is unloaded"


def test_a_second_warning_that_keeps_nothing_sends_away_what_the_first_kept() -> None:
    """The machine shuts down instead."""
    w = loaded("a")
    sleep(w, keep=True)
    assert w.state("a") is State.READY
    sleep(w, shutdown=True)
    assert w.engines == {}
    assert w.notices(Kind.MODEL_UNLOADED)[0].fields["reason"] == "shutdown"


def test_what_somebody_has_unloaded_before_the_waking_stays_away() -> None:
    """One of them while it still answers, or all that there is."""
    for name in ("a", ""):
        w = machine("a", "b")
        w.load("a", use=True)
        w.load("b")
        w.settle()
        sleep(w)
        w.unload(name)
        w.post(events.UseEnded("a"))
        w.settle()
        wake(w)
        assert (w.state("a"), w.state("b")) == (State.COLD, State.READY if name else State.COLD)


def test_what_was_on_its_way_out_for_good_does_not_come_back() -> None:
    """Its configuration has changed, or it is no longer there, and it only finished an answer."""
    w = machine("a", "b", "c")
    for name in "abc":
        w.load(name, use=True)
    w.settle()
    w.models = {"a": w.models["a"], "b": model("b", idle_timeout_s=7.0)}
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset(("b",))))
    sleep(w)
    for name in "abc":
        w.post(events.UseEnded(name))
    w.settle()
    wake(w)
    assert (w.state("a"), w.state("b"), w.state("c")) == (State.READY, State.COLD, None)
    assert w.notices(Kind.WOKE_UP)[0].message == "The machine is awake; a is loaded again"


def test_what_is_removed_while_the_machine_sleeps_is_not_missed() -> None:
    """The others come back."""
    w = loaded("a", "b")
    sleep(w)
    del w.models["a"]
    w.configure()
    wake(w)
    assert (w.state("a"), w.state("b")) == (None, State.READY)


def test_what_came_back_once_does_not_come_back_a_second_time_by_itself() -> None:
    """It has been idle since; GPUs that are looked at again are no reason."""
    w = loaded("a")
    sleep(w)
    wake(w)
    w.pass_time(400)
    assert w.state("a") is State.COLD
    wake(w)
    assert w.state("a") is State.COLD


def test_a_crashed_engine_stays_away_after_a_sleep_where_nothing_is_to_come_back() -> None:
    """Its back-off is over, and the sleep was the end of the wish."""
    w = loaded("a")
    w.end("a", code=1)
    w.settle()
    sleep(w)
    assert not w.status("a").retries
    wake(w, restore=False)
    w.pass_time(100)
    assert w.state("a") is State.COLD


def test_what_waits_for_gpus_that_are_given_away_is_not_told_to_be_loaded_again() -> None:
    """It is not."""
    w = loaded("a")
    sleep(w)
    w.post(events.YieldAsked(ALICE, "a game"))
    wake(w)
    assert w.notices(Kind.WOKE_UP)[0].message == "The machine is awake"


def test_waking_up_does_not_take_back_what_somebody_has_unloaded() -> None:
    """It only finishes an answer; of a sleep nobody had said anything."""
    w = machine("a")
    w.load("a", use=True)
    w.settle()
    w.unload("a")
    wake(w)
    assert w.state("a") is State.DRAINING


def test_without_a_gpu_models_of_no_layers_there_are_loaded_as_ever() -> None:
    """They need none."""
    w = Machine({"a": model("a", settings=EngineSettings(layers="0"))}, {"a": GIB})
    sleep(w)
    wake(w, problem="the GPUs do not answer")
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE


# The end of the time


def test_where_the_engine_ended_at_once_before_an_answer_has_all_of_the_time_but_the_kills() -> None:
    """It is cut then, and its engine killed in the same moment: there is no time to ask."""
    w = loaded("a")
    w.unload("a")
    w.settle()
    w.load("a", use=True)
    w.settle()
    sleep(w)
    w.pass_time(3.4)
    assert w.state("a") is State.DRAINING
    w.pass_time(0.2)
    assert w.state("a") is State.COLD
    assert w.killed == ["a"]
    assert w.notices(Kind.ENGINE_KILLED)[0].level is Level.WARNING


def test_an_engine_that_does_not_even_end_when_killed_is_killed_once() -> None:
    """There is nothing more to be done about it, and no time comes for it again; it counts as there."""
    w = loaded("a", "b", stubborn={"a", "b"}, immortal={"a"})
    sleep(w)
    w.pass_time(60)
    assert (w.state("a"), w.state("b")) == (State.KILLING, State.COLD)
    assert w.killed == ["a", "b"]
    assert w.scheduler.left_before_sleep() == 1


def test_an_engine_that_is_taken_over_while_the_machine_goes_to_sleep_goes_as_well() -> None:
    """At the end of the time: nobody had counted it."""
    w = machine("a")
    sleep(w)
    w.adopt("a", Share(GPU, 2 * GIB))
    w.settle()
    assert w.scheduler.left_before_sleep() == 1
    w.pass_time(WITHIN_S)
    assert w.engines == {}
    assert w.notices(Kind.MODEL_UNLOADED)[0].fields["reason"] == "suspend"


# What was kept, and whether it is still there


def lose(w: Machine, name: str) -> int:
    """Its process lives on, and holds next to nothing; its number."""
    engine = w.engines[name]
    engine.real = dict.fromkeys(engine.real, 1 << 20)
    return engine.pid


def test_what_has_lost_its_memory_is_found_by_the_second_look_at_the_latest() -> None:
    """The first may have begun before; what is given back later is the engine's own doing."""
    w = kept()
    w.post(events.WokeUp())
    w.look()
    first = lose(w, "a")
    w.post(events.LookAsked())
    w.settle()
    assert w.engines["a"].pid != first
    second = lose(w, "b")
    w.post(events.LookAsked())
    w.settle()
    assert w.engines["b"].pid == second
    assert [notice.level for notice in w.notices(Kind.GPU_PROBLEM)] == [Level.WARNING]


@pytest.mark.parametrize(("left_bytes", "lost"), [(2 * GIB // 10, True), (2 * GIB // 10 + 1, False)])
def test_an_engine_that_holds_a_tenth_of_what_it_held_has_lost_it(left_bytes: int, lost: bool) -> None:
    """More may be a model that gave something back, and the next one is looked at all the same."""
    w = kept()
    w.engines["a"].real = {GPU: left_bytes}
    b = lose(w, "b")
    wake(w)
    assert w.launches().count("a") == 1 + lost
    assert w.engines["b"].pid != b


@pytest.mark.parametrize("how", ["unloaded", "removed"])
def test_what_was_kept_and_has_gone_before_the_look_is_not_missed(how: str) -> None:
    """The next one is looked at all the same."""
    w = kept()
    b = lose(w, "b")
    if how == "removed":
        del w.models["a"]
        w.configure()
    else:
        w.unload("a", force=True)
    w.settle()
    wake(w)
    assert w.state("a") is (None if how == "removed" else State.COLD)
    assert w.engines["b"].pid != b


def test_an_engine_that_answers_on_a_lost_gpu_is_ended_at_once() -> None:
    """Also one that was going already; what is in the machine's own memory is left alone."""
    w = kept()
    for name in "ab":
        w.post(events.UseBegan(name))
    w.unload("a")
    wake(w, problem="the GPUs do not answer")
    assert set(w.engines) == {"h"}
    told = {notice.model: notice.message.partition(": ")[2] for notice in w.notices(Kind.MODEL_UNLOADED)}
    assert told == dict.fromkeys("ab", "its GPU did not keep it over the sleep")
    wake(w)
    assert set(w.engines) == {"b", "h"}, "somebody has unloaded the other"


def test_an_engine_without_its_memory_that_was_to_go_is_ended_and_stays_away() -> None:
    """Somebody has it unloaded, and it answers as if it still had it."""
    w = kept()
    w.post(events.UseBegan("a"))
    job = w.unload("a")
    lose(w, "a")
    wake(w)
    assert (w.state("a"), w.result(job)) == (State.COLD, JobResult.DONE)
    assert w.notices(Kind.GPU_PROBLEM)[0].message.endswith("it holds 1 MiB of 2.0 GiB; it is ended")


def test_what_is_not_on_the_lost_gpus_stands_in_nobodys_way() -> None:
    """It was there before what is."""
    w = Machine({"h": model("h", gpu=HOST), "a": model("a")}, {"h": GIB, "a": 2 * GIB})
    for name in "ha":
        w.load(name)
    w.settle()
    wake(w, problem="the GPUs do not answer")
    assert set(w.engines) == {"h"}


def test_what_is_given_back_after_two_looks_is_the_engines_own_doing() -> None:
    """Nothing is held against what it had before the sleep any more."""
    w = kept()
    wake(w)
    w.post(events.LookAsked())
    w.settle()
    b = lose(w, "b")
    w.post(events.LookAsked())
    w.settle()
    assert w.engines["b"].pid == b


def test_one_that_is_being_killed_keeps_no_other_from_it() -> None:
    """Its time to end by itself was over before the machine's."""
    w = loaded("a", "b", stubborn={"a", "b"}, immortal={"a"})
    sleep(w)
    w.post(events.KillBegan("a", 1))
    w.pass_time(WITHIN_S)
    assert (w.killed, set(w.engines)) == (["b"], {"a"})
