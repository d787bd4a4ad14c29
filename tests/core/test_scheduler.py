"""The scheduler's decisions, one behaviour a test. Times are the world's, nothing waits."""

import pytest

from gpud.core import events
from gpud.core.errors import BackendFailed, Busy, NoSuchJob, NoSuchModel, NotLoaded, ShuttingDown
from gpud.core.events import Kind, ModelChanged
from gpud.core.facts import HOST, BudgetLimits, EngineSettings, GpuSample, JobResult, Limits, Priority, State, StopTimes
from gpud.core.quote import Share

from .world import ALICE, BOB, GIB, GPU, Gpu, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    models = {name: model(name) for name in names}
    return World(models, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def loaded(*names: str, **more: object) -> World:
    made = world(*names, **more)
    for name in names:
        made.load(name)
        made.settle()
        made.now += 1
    return made


# Loading


def test_a_load_starts_the_engine_and_ends_its_job() -> None:
    """cold, loading, ready, done."""
    w = world("a")
    job = w.load("a")
    w.settle()

    assert w.state("a") is State.READY
    assert w.result(job) is JobResult.DONE
    assert [(c.old, c.new) for c in w.told if isinstance(c, ModelChanged)] == [
        (State.COLD, State.LOADING),
        (State.LOADING, State.READY),
    ]


def test_nothing_is_launched_before_the_devices_have_been_looked_at() -> None:
    """Measured, not assumed."""
    w = world("a")
    w.load("a")

    assert w.launches() == []
    assert [type(a) for a in w.pending] == [events.Sample]
    assert w.status("a").waiting


def test_two_loads_of_one_model_join() -> None:
    """One engine, two jobs done."""
    w = world("a")
    first, second = w.load("a"), w.load("a", BOB)
    w.settle()
    third = w.load("a")

    assert w.launches() == ["a"]
    assert [w.result(j) for j in (first, second, third)] == [JobResult.DONE] * 3


def test_an_unknown_model_is_refused_with_what_there_is() -> None:
    """The hint names the configured ones."""
    w = world("a", "b")
    with pytest.raises(NoSuchModel) as caught:
        w.load("c")
    assert "a, b" in caught.value.hint


def test_a_missing_file_fails_the_load_before_anybody_is_evicted() -> None:
    """A good model does not go for one that cannot start."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.sizes["b"] = 6 * GIB
    w.unfit["b"] = events.Unfit("model file not found: /b.gguf", "put it there", "missing")
    job = w.load("b")
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert "not found: /b.gguf; put it there" in w.jobs[job].message
    assert w.state("b") is State.FAILED
    assert w.state("a") is State.READY


def test_after_a_missing_file_was_mended_the_next_load_works() -> None:
    """What costs nothing to try is tried again."""
    w = world("a")
    w.unfit["a"] = events.Unfit("model file not found")
    w.load("a")
    w.settle()
    del w.unfit["a"]
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.DONE
    assert w.status("a").error == ""


def test_another_context_than_the_loaded_one_is_refused() -> None:
    """The caller learns which it has and what to do."""
    w = loaded("a")
    with pytest.raises(Busy, match="not 8192"):
        w.load("a", context=8192)


def test_a_callers_context_lasts_for_one_load() -> None:
    """The next load is as configured."""
    w = world("a")
    w.load("a", context=8192)
    w.settle()
    w.unload("a")
    w.settle()
    w.load("a")
    w.settle()
    contexts = [a.model.settings.context for a in w.told if isinstance(a, events.Launch)]

    assert contexts == [8192, None]


# Budget


def test_what_a_caller_wants_of_a_load_outlives_the_end_of_the_engine_before() -> None:
    """Asked for while the old engine still stops: the new one has the context and the idle time-out."""
    w = loaded("a")
    w.unload("a", force=True)
    w.load("a", context=8192, idle_timeout_s=7.0)
    w.settle()

    assert w.status("a").model.settings.context == 8192
    w.pass_time(8)
    assert w.state("a") is State.COLD


def test_a_load_is_admitted_with_what_its_own_context_needs() -> None:
    """Also when the wish comes while a look for an earlier one is under way."""
    w = world("a", size=3 * GIB)
    w.load("a")
    job = w.load("a", context=6 * GIB)
    w.settle()

    assert w.launches() == []
    assert w.result(job) is JobResult.FAILED and "needs 9.0 GiB" in w.jobs[job].message


def test_an_idle_time_out_that_was_asked_of_a_refused_load_does_not_stay() -> None:
    """The next one, which asks for nothing, has what is configured."""
    w = world("a", size=3 * GIB, gpus={GPU: Gpu(foreign_bytes=7 * GIB)})
    w.load("a", idle_timeout_s=7.0)
    w.settle()
    w.gpus[GPU].foreign_bytes = 0
    w.load("a")
    w.settle()

    w.pass_time(8)
    assert w.state("a") is State.READY


def test_what_does_not_fit_is_refused_with_need_and_available() -> None:
    """Numbers and a hint."""
    w = world("a", size=9 * GIB)
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert "needs 9.0 GiB, the whole budget of Test GPU is 8.0 GiB" in w.jobs[job].message
    assert w.state("a") is State.COLD


def test_other_programs_memory_is_never_promised() -> None:
    """A game counts."""
    w = world("a", gpus={GPU: Gpu(foreign_bytes=6 * GIB)})
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert "2.0 GiB are available" in w.jobs[job].message
    assert "other programs" in w.jobs[job].message


def test_a_look_that_began_before_a_wish_does_not_decide_it() -> None:
    """The game has ended between two looks that were under way together; the wish made since then waits for its own."""
    w = world("a", gpus={GPU: Gpu(foreign_bytes=6 * GIB)})
    first = w.load("a")
    asked = next(a for a in w.pending if isinstance(a, events.Sample))
    stale = events.Sampled(w.sample(), {}, {"a": w.quote(w.models["a"])}, checked=asked.check, tickets=asked.tickets)
    w.settle()
    assert w.result(first) is JobResult.FAILED

    w.gpus[GPU].foreign_bytes = 0
    second = w.load("a")
    w.post(stale)
    assert second not in w.jobs
    w.settle()

    assert w.result(second) is JobResult.DONE


def test_the_least_recently_used_idle_model_makes_room() -> None:
    """a is older than b, so a goes."""
    w = loaded("a", "b", "c", size=3 * GIB, gpus={GPU: Gpu(7 * GIB)})

    assert w.state("a") is State.COLD
    assert w.state("b") is State.READY
    assert w.state("c") is State.READY
    assert '"a", idle for' in w.notices(Kind.EVICTED)[0].message


def test_a_busy_model_is_never_evicted() -> None:
    """The request in flight protects it; the newcomer waits until it is answered, and then it goes."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.sizes["b"] = 6 * GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.post(events.UseBegan("a"))
    job = w.load("b")
    w.settle()

    assert job not in w.jobs
    assert w.state("a") is State.READY
    assert 'waiting until "a" has answered' in w.status("b").waits_for

    w.post(events.UseEnded("a"))
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert w.state("a") is State.COLD


def test_a_model_whose_engine_says_it_is_busy_is_not_evicted() -> None:
    """Somebody may talk to the engine past gpud."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.sizes["b"] = 6 * GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.busy.add("a")
    job = w.load("b")
    w.settle()
    assert job not in w.jobs
    assert w.state("a") is State.READY

    w.busy.clear()
    w.pass_time(3)
    assert w.result(job) is JobResult.DONE


@pytest.mark.parametrize("protection", ["hold", "pinned", "inhibit"])
def test_held_and_pinned_models_are_never_evicted(protection: str) -> None:
    """Promises are kept."""
    w = world("a", "b", size=6 * GIB)
    if protection == "pinned":
        w.models["a"] = model("a", pinned=True)
        w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("a")
    w.settle()
    if protection != "pinned":
        name = "a" if protection == "hold" else ""
        w.post(events.HoldAsked(7, name, BOB, "why", "app", frozenset(("unload", "evict"))))
    job = w.load("b")
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert w.state("a") is State.READY


def test_a_load_waits_for_models_that_are_loading_and_can_go_afterwards() -> None:
    """Many at once: all are served one after the other, nobody is refused because the others are not up yet."""
    w = world("a", "b", "c", "d", size=5 * GIB)
    jobs = [w.load(name) for name in ("a", "b", "c", "d")]
    w.settle()

    assert [w.result(job) for job in jobs] == [JobResult.DONE] * 4
    assert w.launches() == ["a", "b", "c", "d"]


def test_a_load_does_not_wait_for_a_loading_model_that_is_held() -> None:
    """It will not be able to go."""
    w = world("a", "b", size=5 * GIB)
    w.post(events.HoldAsked(7, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    w.load("a")
    job = w.load("b")
    w.settle()

    assert w.result(job) is JobResult.FAILED


def test_a_load_that_may_not_evict_is_refused_and_says_what_would_help() -> None:
    """evict false."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.sizes["b"] = 6 * GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    job = w.load("b", evict=False)
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert "allow eviction: idle models hold 6.0 GiB" in w.jobs[job].message


def test_the_next_engine_waits_until_the_memory_is_measured_free() -> None:
    """An exit alone frees nothing."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.sizes["b"] = 6 * GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.gpus[GPU].late_bytes = 6 * GIB
    w.load("b")
    w.settle()
    assert w.state("a") is State.COLD
    assert w.launches() == ["a"]

    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.05)
    assert w.state("b") is State.READY


def test_memory_that_never_comes_back_ends_in_a_refusal() -> None:
    """The wait is bounded."""
    w = loaded("a", size=6 * GIB)
    w.models["b"] = model("b")
    w.sizes["b"] = 6 * GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.gpus[GPU].late_bytes = 6 * GIB
    job = w.load("b")
    w.settle()
    w.pass_time(w.limits.memory_wait_s + 1)

    assert w.result(job) is JobResult.FAILED
    assert "6.0 GiB on Test GPU have not come back within 5 s" in w.notices(Kind.MEMORY_LATE)[0].message


def test_a_model_without_a_gpu_goes_to_host_memory() -> None:
    """No GPU is a normal machine."""
    w = world("a", gpus={})
    w.load("a")
    w.settle()

    assert w.status("a").device == HOST


def test_a_model_that_names_a_missing_gpu_is_refused() -> None:
    """The message lists the GPUs there are."""
    w = world("a")
    w.models["a"] = model("a", gpu="7")
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    job = w.load("a")
    w.settle()

    assert 'GPU "7" is not there (GPUs: 0 (GPU-0))' in w.jobs[job].message


def test_a_declared_size_of_nothing_needs_no_room() -> None:
    """Attached engines."""
    w = world("a", size=0, gpus={GPU: Gpu(foreign_bytes=8 * GIB)})
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.DONE


def test_what_was_measured_is_learned_and_takes_the_place_of_the_reservation() -> None:
    """The rest of the reservation is free again once the load has settled."""
    w = world("a", size=6 * GIB, real_sizes={"a": 2 * GIB})
    w.load("a")
    w.settle()

    assert w.status("a").used_bytes == 2 * GIB
    assert w.learned == {"a": 2 * GIB}
    gpu = next(g for g in w.scheduler.gpu_statuses() if g.sample.uuid == GPU)
    assert gpu.committed_bytes == 2 * GIB
    assert gpu.available_bytes == 6 * GIB


def test_holding_more_than_was_reserved_is_a_warning_with_both_numbers() -> None:
    """Too low an estimate is said."""
    w = world("a", size=GIB, real_sizes={"a": 2 * GIB})
    w.load("a")
    w.settle()

    assert "holds 2.0 GiB, more than the 1.0 GiB reserved" in w.notices(Kind.OVER_ESTIMATE)[0].message


def test_a_higher_priority_is_served_first() -> None:
    """Among those that wait at the same moment: while the look for z is under way."""
    w = world("a", "b", "z", size=GIB)
    w.models["b"] = model("b", priority=Priority.HIGH)
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("z")
    w.load("a")
    w.load("b")
    w.settle()

    assert w.launches() == ["z", "b", "a"]


def test_nobody_overtakes_who_waits_for_memory() -> None:
    """A small model behind a large one does not take what was freed for the large one."""
    w = loaded("a", size=6 * GIB)
    for name, size in (("big", 7 * GIB), ("small", 2 * GIB)):
        w.models[name] = model(name)
        w.sizes[name] = size
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("big")
    w.load("small")
    w.settle()

    assert w.launches()[1] == "big"


# Unloading


def test_unload_waits_for_running_requests() -> None:
    """Never a cut answer."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    job = w.unload("a")
    w.settle()
    assert w.state("a") is State.DRAINING
    assert job not in w.jobs

    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD
    assert w.jobs[job].message == "unloaded 1 model, freed 3.0 GiB"


def test_unload_asks_the_engine_before_it_stops_it() -> None:
    """A busy engine is asked again at half a hertz, then stopped."""
    w = loaded("a")
    w.busy.add("a")
    w.unload("a")
    w.settle()
    assert w.state("a") is State.DRAINING
    assert [a.delay_s for a in w.pending if isinstance(a, events.AskBusy)] == [2.0]

    w.busy.clear()
    w.pass_time(2.1)
    assert w.state("a") is State.COLD


def test_an_unload_that_takes_too_long_gives_up_and_the_model_stays() -> None:
    """The bound ends the job, not the answer."""
    w = world("a")
    w.models["a"] = model("a", stop=StopTimes(drain_s=30))
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("a")
    w.settle()
    w.post(events.UseBegan("a"))
    job = w.unload("a")
    w.pass_time(31)

    assert w.result(job) is JobResult.TIMEOUT
    assert "still busy after 30 s (1 request in flight)" in w.jobs[job].message
    assert w.state("a") is State.READY


def test_a_drain_without_any_time_still_hears_the_engine() -> None:
    """Whoever is not known to be busy is asked first: an idle model goes, and only a busy one stays."""
    w = world("a")
    w.models["a"] = model("a", stop=StopTimes(drain_s=0))
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("a")
    w.settle()
    w.busy.add("a")
    job = w.unload("a")
    w.post(events.TimePassed())
    assert w.state("a") is State.DRAINING, "its bound has come, its answer has not"
    w.pass_time(0.1)
    assert w.result(job) is JobResult.TIMEOUT
    assert w.state("a") is State.READY

    w.busy.clear()
    job = w.unload("a")
    w.post(events.TimePassed())
    w.pass_time(2.1)
    assert w.result(job) is JobResult.DONE
    assert w.state("a") is State.COLD


def test_who_waits_for_another_context_is_not_served_by_the_one_that_stays() -> None:
    """It turned out to be busy: those who take it as it is are done, the other is told what it has."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    unload = w.unload("a")
    any_context, other_context = w.load("a"), w.load("a", context=8192)
    w.post(events.CancelAsked(unload))

    assert w.state("a") is State.READY
    assert w.result(any_context) is JobResult.DONE
    assert w.result(other_context) is JobResult.FAILED
    assert "not 8192" in w.jobs[other_context].message


def test_force_stops_a_busy_model_at_once() -> None:
    """Whoever says force means it."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    job = w.unload("a", force=True)
    w.settle()

    assert w.state("a") is State.COLD
    assert w.result(job) is JobResult.DONE


def test_force_hurries_a_drain_that_is_under_way() -> None:
    """The second wish joins the first and speeds it up."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    patient = w.unload("a")
    hasty = w.unload("a", force=True)
    w.settle()

    assert w.result(patient) is w.result(hasty) is JobResult.DONE


def test_unload_while_loading_cancels_at_once() -> None:
    """The load's job is superseded, the unload's is done."""
    w = world("a")
    load = w.load("a")
    w.do(w.pending[0])
    assert w.state("a") is State.LOADING
    unload = w.unload("a")
    w.do(next(a for a in w.pending if isinstance(a, events.CancelLaunch)))
    w.settle()

    assert w.state("a") is State.COLD
    assert w.result(load) is JobResult.SUPERSEDED
    assert w.result(unload) is JobResult.DONE


def test_load_while_draining_waits_its_turn() -> None:
    """It starts anew once the old engine is gone."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    w.unload("a")
    again = w.load("a")
    w.settle()
    assert again not in w.jobs

    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.READY
    assert w.result(again) is JobResult.DONE
    assert w.launches() == ["a", "a"]


def test_unloading_what_is_not_loaded_is_refused() -> None:
    """Nothing happens in silence."""
    w = world("a")
    with pytest.raises(NotLoaded):
        w.unload("a")


def test_unload_all_is_one_job_with_the_sum() -> None:
    """What the user reads is the sum."""
    w = loaded("a", "b", size=2 * GIB)
    job = w.unload()
    w.settle()

    assert w.jobs[job].message == "unloaded 2 models, freed 4.0 GiB"
    assert w.unload() in w.jobs


def test_unload_all_with_nothing_loaded_says_so() -> None:
    """And is no error."""
    w = world("a")
    job = w.unload()

    assert w.jobs[job].message == "nothing loaded"


def test_what_others_hold_is_not_unloaded() -> None:
    """Busy, by name; the manager may."""
    w = loaded("a", "b", size=2 * GIB)
    w.post(events.HoldAsked(7, "a", BOB, "training", "app", frozenset(("unload", "evict"))))
    with pytest.raises(Busy, match="held by app"):
        w.unload("a")
    job = w.unload()
    w.settle()
    assert w.state("a") is State.READY
    assert w.jobs[job].message == 'unloaded 1 model, freed 2.0 GiB; "a" is held by app'

    w.unload("a", others=True)
    w.settle()
    assert w.state("a") is State.COLD


def test_ones_own_hold_does_not_stand_in_the_way() -> None:
    """Who holds it may unload it."""
    w = loaded("a")
    w.post(events.HoldAsked(7, "a", ALICE, "", "", frozenset(("unload", "evict"))))
    w.unload("a")
    w.settle()

    assert w.state("a") is State.COLD


# Idleness


def test_an_idle_model_is_unloaded_after_its_time_and_not_before() -> None:
    """299 s: still there; 300 s: gone, and the journal says why."""
    w = loaded("a")
    w.now = w.status("a").ready_since_s or 0.0
    w.pass_time(299)
    assert w.state("a") is State.READY

    w.pass_time(1.5)
    assert w.state("a") is State.COLD
    assert "has been idle for 300 s" in w.notices(Kind.IDLE)[0].message
    assert "given back: it was idle" in w.notices(Kind.MODEL_UNLOADED)[0].message


def test_zero_means_never() -> None:
    """No deadline at all."""
    w = world("a")
    w.models["a"] = model("a", idle_timeout_s=0)
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.load("a")
    w.settle()

    assert w.status("a").unload_at_s is None
    w.pass_time(5_000)
    assert w.state("a") is State.READY


def test_a_request_in_flight_is_not_idleness_however_long_it_takes() -> None:
    """Idle means no request in flight; the time begins after the last byte."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    w.pass_time(10_000)
    assert w.state("a") is State.READY

    w.post(events.UseEnded("a"))
    w.pass_time(299)
    assert w.state("a") is State.READY
    w.pass_time(2)
    assert w.state("a") is State.COLD


def test_an_engine_that_says_it_works_is_not_idle() -> None:
    """It is asked once at the deadline, and then left for another whole time."""
    w = loaded("a")
    w.busy.add("a")
    w.pass_time(301)
    assert w.state("a") is State.READY
    asked = sum(isinstance(a, events.AskBusy) for a in w.told)
    w.pass_time(200)
    assert sum(isinstance(a, events.AskBusy) for a in w.told) == asked

    w.busy.clear()
    w.pass_time(200)
    assert w.state("a") is State.COLD


def test_a_hold_stops_the_clock_and_its_end_starts_it_anew() -> None:
    """Who held it has just finished with it."""
    w = loaded("a")
    w.post(events.HoldAsked(7, "a", BOB, "", "", frozenset(("unload", "evict"))))
    w.pass_time(1000)
    assert w.state("a") is State.READY

    w.post(events.HoldDropped(7, "released"))
    w.pass_time(299)
    assert w.state("a") is State.READY
    w.pass_time(2)
    assert w.state("a") is State.COLD


def test_the_devices_are_let_go_when_nothing_is_loaded() -> None:
    """No driver is kept awake for nothing."""
    w = loaded("a")
    assert w.released == 0
    w.unload("a")
    w.settle()
    w.pass_time(10)

    assert w.released == 1


def test_the_drivers_are_let_go_after_a_load_that_was_refused() -> None:
    """The look that said no has woken the GPU: nothing keeps it awake afterwards."""
    w = world("a", size=9 * GIB)
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.FAILED
    assert w.released == 1
    assert w.pending == []
    assert w.scheduler.next_deadline() is None


# Crashes


def test_a_crashed_engine_comes_back_after_its_back_off() -> None:
    """5 s after the first crash."""
    w = loaded("a")
    w.end("a", code=-9)
    w.settle()
    assert w.state("a") is State.BACKOFF
    assert "was ended by signal 9" in w.notices(Kind.ENGINE_CRASHED)[0].message
    assert w.status("a").retries
    w.pass_time(4.9)
    assert w.state("a") is State.BACKOFF

    w.pass_time(0.2)
    assert w.state("a") is State.READY
    assert w.status("a").restarts == 1


def test_an_engine_that_ended_with_status_0_stays_away() -> None:
    """Somebody stopped it on purpose."""
    w = loaded("a")
    w.end("a", code=0)
    w.settle()

    assert w.state("a") is State.COLD
    assert "ended from outside with status 0" in w.notices(Kind.MODEL_UNLOADED)[0].message


def failed(*names: str, **more: object) -> World:
    """A world whose engines exit at once and have done so as often as is allowed."""
    w = world(*names, **more)
    w.broken = set(names)
    for _ in range(w.limits.backoff_attempts):
        for name in names:
            w.load(name)
        w.pass_time(61)
    return w


def test_a_failed_load_ends_its_jobs_with_the_reason() -> None:
    """It is not repeated by itself, and the next wish waits for the back-off."""
    w = world("a", broken={"a"})
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert "exited with status 1" in w.jobs[job].message
    assert w.state("a") is State.BACKOFF
    assert w.notices(Kind.LOAD_FAILED)[0].detail == ("last line",)
    assert not w.status("a").retries
    w.load("a")
    w.settle()
    assert w.status("a").retries


def test_fifty_loads_of_an_engine_that_exits_at_once_are_bounded_by_the_back_off() -> None:
    """5, 10, 20, 40 s, then it has failed and says what to do."""
    w = world("a", broken={"a"})
    refused = 0
    for _ in range(50):
        try:
            w.load("a")
        except BackendFailed as error:
            refused += 1
            assert "gpudctl reset a" in error.hint
            continue
        w.pass_time(61)
    assert len(w.launches()) == w.limits.backoff_attempts
    assert refused == 50 - w.limits.backoff_attempts
    assert w.state("a") is State.FAILED
    assert "has failed 5 times in a row" in w.notices(Kind.ENGINE_GIVEN_UP)[0].message


def test_back_off_grows_and_is_capped() -> None:
    """First 5, then twice as long each time, never above the cap."""
    limits = Limits(gpu=BudgetLimits(), host=BudgetLimits(), backoff_attempts=9, backoff_max_s=30)
    w = world("a", limits=limits, broken={"a"})
    waits = []
    w.load("a")
    for _ in range(6):
        w.settle()
        waits.append((w.status("a").retry_at_s or 0) - w.now)
        w.load("a")
        w.now = w.status("a").retry_at_s or w.now
        w.post(events.TimePassed())

    assert waits == [5, 10, 20, 30, 30, 30]


def test_unloading_a_failed_model_clears_the_count() -> None:
    """Then it is tried again."""
    w = failed("a")
    assert w.state("a") is State.FAILED
    w.broken.clear()
    w.unload("a")
    job = w.load("a")
    w.settle()

    assert w.result(job) is JobResult.DONE


def test_a_failure_that_nobody_waits_for_is_forgotten_on_request() -> None:
    """Its back-off is over and it is cold, but the failures still count until somebody forgives them."""
    w = world("a", broken={"a"})
    w.load("a")
    w.pass_time(100)
    assert (w.state("a"), w.status("a").attempts) == (State.COLD, 1)
    job = w.unload("a")

    assert w.status("a").attempts == 0
    assert w.status("a").error == ""
    assert w.jobs[job].message == 'nothing loaded; "a" no longer waits and its failures are forgotten'


def test_success_for_a_while_forgives_earlier_crashes() -> None:
    """A crash an hour later waits 5 s again, not 40."""
    w = loaded("a")
    for _ in range(3):
        w.end("a", code=1)
        w.settle()
        w.pass_time(61)
        assert w.state("a") is State.READY
    assert w.status("a").attempts == 1
    w.end("a", code=1)

    assert (w.status("a").retry_at_s or 0) - w.now == 5


def test_a_crash_right_after_ready_counts_on() -> None:
    """Ready for a moment is no success: no restart for ever."""
    w = world("a")
    w.load("a")
    w.settle()
    for _ in range(5):
        w.end("a", code=1)
        w.settle()
        if w.state("a") is State.FAILED:
            break
        w.now = w.status("a").retry_at_s or w.now
        w.post(events.TimePassed())
        w.settle()

    assert w.state("a") is State.FAILED


# Jobs


def test_a_canceled_load_stops_the_engine_when_nobody_else_waits() -> None:
    """One of two: it goes on. Both: it ends."""
    w = world("a")
    first, second = w.load("a"), w.load("a", BOB)
    w.do(w.pending[0])
    w.post(events.CancelAsked(first))
    assert w.state("a") is State.LOADING
    w.post(events.CancelAsked(second))
    w.do(next(a for a in w.pending if isinstance(a, events.CancelLaunch)))
    w.settle()

    assert w.state("a") is State.COLD
    assert [w.result(j) for j in (first, second)] == [JobResult.CANCELED] * 2


def test_a_canceled_unload_brings_the_model_back_to_work() -> None:
    """While it still drains."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    job = w.unload("a")
    w.post(events.CancelAsked(job))

    assert w.state("a") is State.READY
    assert w.result(job) is JobResult.CANCELED


def test_an_unknown_job_cannot_be_canceled() -> None:
    """It may have ended."""
    with pytest.raises(NoSuchJob):
        world("a").post(events.CancelAsked(99))


# Configuration and the end


def test_a_reload_does_not_touch_an_unchanged_model() -> None:
    """Not a single state changes."""
    w = loaded("a")
    before = len([c for c in w.told if isinstance(c, ModelChanged)])
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.settle()

    assert len([c for c in w.told if isinstance(c, ModelChanged)]) == before


def test_a_changed_model_goes_when_its_answers_are_through() -> None:
    """The next load has the new settings."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    w.models["a"] = model("a", idle_timeout_s=60)
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset(("a",))))
    w.settle()
    assert w.state("a") is State.READY

    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD


def test_one_that_stays_after_all_has_not_become_what_is_configured_now() -> None:
    """It changed while it was on its way out for somebody, who gave up; it goes after the answer."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    job = w.unload("a")
    w.models["a"] = model("a", settings=EngineSettings(context=512))
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset(("a",))))
    w.pass_time(301)
    assert (w.state("a"), w.result(job)) == (State.READY, JobResult.TIMEOUT)
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.state("a") is State.COLD


def test_what_comes_back_by_itself_does_so_as_it_is_configured_now() -> None:
    """Its configuration changes while it loads, after a crash."""
    w = loaded("a")
    w.load_s["a"] = 5.0
    w.end("a", code=1)
    w.pass_time(6)
    assert w.state("a") is State.LOADING
    w.models["a"] = model("a", settings=EngineSettings(context=512))
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset(("a",))))
    w.pass_time(6)
    assert w.state("a") is State.READY
    assert w.last_launch("a").model.settings.context == 512


def test_a_removed_model_is_unloaded_and_forgotten() -> None:
    """Nothing of it stays behind."""
    w = loaded("a", "b", size=2 * GIB)
    del w.models["a"]
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.settle()

    assert w.scheduler.state_of("a") is None
    assert list(w.engines) == ["b"]


def test_a_reload_clears_what_had_failed() -> None:
    """The user has mended something."""
    w = failed("a")
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))

    assert w.state("a") is State.COLD


def test_who_answers_on_its_way_out_is_seen_to_go_for_the_end_of_gpud() -> None:
    """Whoever looks is told that there is something new: it was to go for somebody else until then."""
    w = world("a")
    w.load("a", use=True)
    w.settle()
    w.post(events.YieldAsked(ALICE, "", None))
    w.settle()
    assert (w.state("a"), w.status("a").reason) == (State.DRAINING, "user")
    w.told.clear()
    w.post(events.ShutdownAsked())
    assert w.status("a").reason == "shutdown"
    assert any(isinstance(action, events.Touched) for action in w.told)


def test_shutdown_drains_within_its_bound_and_ends() -> None:
    """The idle one at once, the busy one after the bound, the loading one canceled."""
    w = loaded("a", "b", size=GIB)
    w.models["c"] = model("c")
    w.sizes["c"] = GIB
    w.post(events.Reconfigured(w.models, w.limits, 300.0, frozenset()))
    w.post(events.UseBegan("a"))
    waiting = w.load("c")
    w.do(next(a for a in w.pending if isinstance(a, events.Sample)))
    w.post(events.ShutdownAsked())
    w.settle()
    assert w.state("b") is State.COLD
    assert w.state("a") is State.DRAINING
    assert w.result(waiting) is JobResult.CANCELED
    assert not w.finished
    with pytest.raises(ShuttingDown):
        w.load("b")

    w.pass_time(w.limits.shutdown_drain_s + 1)
    assert w.finished
    assert "is still busy" in w.notices(Kind.STILL_BUSY)[0].message


def test_what_would_have_come_back_is_seen_not_to_at_the_end_of_gpud() -> None:
    """It backs off, and nothing else is there: somebody may look all the same."""
    w = loaded("a")
    w.end("a", code=1)
    w.settle()
    told = len(w.told)
    assert w.status("a").retries
    w.post(events.ShutdownAsked())
    assert not w.status("a").retries
    assert events.Touched() in w.told[told:]


def test_a_second_shutdown_does_not_wait() -> None:
    """The user pressed Ctrl-C twice."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    w.post(events.ShutdownAsked())
    w.settle()
    w.post(events.ShutdownAsked())
    w.settle()

    assert w.finished


def test_an_adopted_engine_is_ready_and_measured() -> None:
    """Nothing is launched."""
    w = world("a")
    w.adopt("a", Share(GPU, 3 * GIB))
    w.settle()

    assert w.state("a") is State.READY
    assert w.launches() == []


def test_an_adopted_engine_with_old_settings_goes_when_idle() -> None:
    """It is not cut, but it does not stay."""
    w = world("a")
    w.busy.add("a")
    w.adopt("a", Share(GPU, 3 * GIB), stale=True)
    w.settle()
    assert w.state("a") is State.DRAINING

    w.busy.clear()
    w.pass_time(3)
    assert w.state("a") is State.COLD


def test_a_gpu_that_sleeps_is_taken_to_be_empty_by_a_question_that_does_not_wake_it() -> None:
    """Nothing of ours is on it; what a load would find is seen when it is woken for one."""
    w = world("a", size=3 * GIB)
    asleep = GpuSample(GPU, "Test GPU", 0, "nvidia", 8 * GIB, asleep=True)
    host = GpuSample(HOST, "host memory", 0, HOST, 16 * GIB, 0, 16 * GIB)
    w.post(events.LookAsked())
    w.pending.clear()
    w.post(events.Sampled((asleep, host), {}))

    assert w.scheduler.consider(7 * GIB, "").verdict == "fits"
    assert w.scheduler.consider(9 * GIB, "").verdict == "refused"


# What is shown


def test_a_model_that_nobody_wished_for_is_shown_as_it_is_configured() -> None:
    """And as somebody has said since of all; nothing is remembered of it, so two looks at thousands are compared by
    what they were made from."""
    w = world("a", "b")
    before = w.scheduler.model_statuses()
    w.load("a")
    w.settle()
    now = w.scheduler.model_statuses()
    assert list(now.lively) == ["a"] and now.lively["a"].state is State.READY
    assert now.same_rest(before) and now != before
    w.unload("a")
    w.settle()
    assert w.scheduler.model_statuses() != before
    w.scheduler.handle(events.IdleTimeoutSet(77.0), w.now)
    assert [status.idle_timeout_s for status in w.scheduler.model_statuses()] == [77.0, 77.0]
    assert not w.scheduler.model_statuses().same_rest(before)
    taken = {name: model(name, pinned=True) for name in ("a", "b")}
    w.scheduler.handle(events.CatalogueTaken(taken, frozenset()), w.now)
    assert [status.model for status in w.scheduler.model_statuses()] == [*taken.values()]


def test_one_that_is_wished_for_later_has_the_idle_time_that_was_set_for_all() -> None:
    """Its life begins with the wish, and what was said before holds for it as for those that lived already."""
    w = world("a", "b")
    w.load("a")
    w.settle()
    w.post(events.IdleTimeoutSet(77.0))
    w.post(events.PowerSeen(on_battery=True))
    w.load("b")
    w.settle()
    assert [status.idle_timeout_s for status in w.scheduler.model_statuses()] == [77.0, 77.0]


def test_those_of_whom_there_is_nothing_to_remember_rest_again() -> None:
    """Whoever was asked about once is held no longer than until the next look at what there is."""
    w = world("a", "b")
    w.load("a")
    with pytest.raises(NotLoaded):
        w.scheduler.handle(events.UnloadAsked(90, "b", ALICE, False, False), w.now)
    w.settle()
    assert set(w.scheduler.model_statuses().lively) == {"a", "b"}
    w.scheduler.handle(events.CatalogueTaken({name: model(name) for name in ("a", "b")}, frozenset()), w.now)
    assert set(w.scheduler.model_statuses().lively) == {"a"}


def test_of_very_many_models_the_first_are_named_to_who_asks_for_another() -> None:
    """And how many there are beside them."""
    names = [f"m{number:02}" for number in range(13)]
    w = World({name: model(name) for name in names}, dict.fromkeys(names, GIB))
    with pytest.raises(NoSuchModel) as refused:
        w.load("nobody")
    assert "m09 and 3 more" in refused.value.text
    assert "m10" not in refused.value.text
    ten = World({name: model(name) for name in names[:10]}, dict.fromkeys(names, GIB))
    with pytest.raises(NoSuchModel) as refused:
        ten.load("nobody")
    assert refused.value.text.endswith(f"there are {', '.join(names[:10])}")


def test_a_claim_is_granted_once_it_has_a_device() -> None:
    """Until then it waits."""
    w = World({"a": model("a")}, {"a": GIB})
    first = w.claim(6 * GIB)
    w.settle()
    second = w.claim(6 * GIB)
    w.settle()
    assert [w.claim_status(claim).granted for claim in (first, second)] == [True, False]
