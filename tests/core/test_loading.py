"""How models come: which wishes go together, what is shown meanwhile, and what is left of a load that failed."""

import pytest

from gpud.core import events
from gpud.core.errors import BackendFailed, BudgetExceeded, Busy, NoSuchModel
from gpud.core.events import Kind, ModelChanged
from gpud.core.facts import HOST, EngineSettings, JobResult, State
from gpud.core.instance import without_gpu
from gpud.core.quote import Share

from .world import ALICE, BOB, GIB, GPU, Gpu, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def two_ways(**more: object) -> World:
    made = model("a", alternatives=(model("a", engine="ollama"),))
    return World({"a": made, "z": model("z")}, {"a": 3 * GIB, "z": 6 * GIB}, **more)  # type: ignore[arg-type]


def sized(w: World) -> tuple[str, int | None]:
    """By which engine, and with which context, the last look that was wanted is to tell the size of a model."""
    wished = [wish for action in w.told if isinstance(action, events.Sample) for wish in action.check][-1]
    return wished.engine, wished.settings.context


# Wishes


def test_what_is_no_longer_there_and_only_answers_is_not_loaded() -> None:
    """It is on its way out for good."""
    w = world("a", "b")
    w.load("a", use=True)
    w.settle()
    del w.models["a"]
    w.configure()
    with pytest.raises(NoSuchModel, match='"a": it is no longer there and is being unloaded'):
        w.load("a")


@pytest.mark.parametrize("state", [State.LOADING, State.READY])
def test_a_wish_for_what_is_there_joins_if_it_is_what_was_asked_for(state: State) -> None:
    """The same context and an engine of those named will do; else both are said."""
    w = two_ways(load_s={"a": 10.0})
    first = w.load("a", context=4096)
    w.pass_time(1.0 if state is State.LOADING else 11.0)
    assert w.state("a") is state
    same = w.load("a", BOB, context=4096, engines=("ollama", "llama_server"))
    with pytest.raises(Busy, match=f'"a" is {state} with a context of 4096, not 8192'):
        w.load("a", BOB, context=8192)
    with pytest.raises(Busy, match=f'"a" is {state} with llama_server, not ollama'):
        w.load("a", BOB, engines=("ollama",))
    w.pass_time(11)
    assert w.result(first) is w.result(same) is JobResult.DONE
    assert w.launches() == ["a"]


@pytest.mark.parametrize("state", [State.LOADING, State.READY])
def test_the_last_word_on_how_long_it_may_be_idle_holds(state: State) -> None:
    """Also of who joins; who says nothing leaves it as it is."""
    w = world("a", load_s={"a": 10.0})
    w.load("a", idle_timeout_s=50.0)
    w.pass_time(1.0 if state is State.LOADING else 11.0)
    w.load("a", BOB, idle_timeout_s=20.0)
    w.load("a", BOB)
    assert w.status("a").idle_timeout_s == 20.0
    w.pass_time(40)
    assert w.state("a") is State.COLD


def test_of_those_who_wait_for_one_load_the_last_says_how_long_it_may_be_idle() -> None:
    """Until its engine is started."""
    w = world("a")
    for idle_s in (50.0, 7.0, None):
        w.load("a", idle_timeout_s=idle_s)
    w.settle()
    assert w.status("a").idle_timeout_s == 7.0


def test_a_load_of_what_is_ready_is_a_use_of_it() -> None:
    """Its idleness begins anew."""
    w = world("a")
    w.load("a")
    w.pass_time(200)
    w.load("a", BOB)
    w.pass_time(200)
    assert w.state("a") is State.READY
    assert w.status("a").uses == 2


def test_two_who_wait_with_engines_that_differ_do_not_join() -> None:
    """The second is told who is first, and that another time or no wish will do."""
    w = two_ways()
    w.load("z", use=True)
    w.settle()
    w.load("a", engines=("ollama",))
    w.settle()
    with pytest.raises(Busy) as caught:
        w.load("a", BOB, engines=("llama_server",))
    assert caught.value.message == 'cannot load "a" with llama_server: somebody waits for it with ollama'
    joined = [w.load("a", BOB, engines=("ollama",)), w.load("a", BOB)]
    w.told.clear()
    w.post(events.UseEnded("z"))
    w.settle()
    assert sized(w) == ("ollama", None)
    assert [w.result(job) for job in joined] == [JobResult.DONE] * 2


def test_an_engine_that_comes_back_is_the_one_that_was_asked_for() -> None:
    """After a crash, until somebody unloads it: then it is as configured again, engine and context."""
    w = two_ways()
    w.load("a", engines=("ollama",), context=512)
    w.settle()
    assert sized(w) == ("ollama", 512)
    w.told.clear()
    w.end("a", code=1)
    w.pass_time(w.limits.backoff_first_s)
    assert (w.state("a"), sized(w)) == (State.READY, ("ollama", 512))
    w.unload("a")
    w.settle()
    w.told.clear()
    w.load("a")
    w.settle()
    assert (w.state("a"), sized(w)) == (State.READY, ("llama_server", None))


@pytest.mark.parametrize(("healthy_s", "attempts"), [(29.9, 2), (30.0, 1)])
def test_an_engine_that_was_healthy_for_long_enough_fails_for_the_first_time(healthy_s: float, attempts: int) -> None:
    """Half a minute is enough; before, it is one failure more in a row."""
    w = world("a")
    w.load("a")
    w.settle()
    w.end("a", code=1)
    w.pass_time(w.limits.backoff_first_s)
    assert w.state("a") is State.READY
    w.now += healthy_s
    w.end("a", code=1)
    assert w.status("a").attempts == attempts


def test_a_model_off_the_gpu_has_no_layers_there() -> None:
    """Where it says how many; so have its other ways. An engine that knows no layers is told of none."""
    wanted = model("a", gpu="1", alternatives=(model("a", settings=EngineSettings(layers="20")),))
    kept = without_gpu(wanted)
    assert (kept.gpu, kept.settings.layers) == (HOST, None)
    assert [(way.gpu, way.settings.layers) for way in kept.alternatives] == [(HOST, "0")]


def test_another_configuration_ends_the_idle_time_of_one_load() -> None:
    """What was asked for once is not to outlive it."""
    w = two_ways()
    w.load("a", idle_timeout_s=7.0)
    w.settle()
    w.configure()
    w.pass_time(20)
    assert w.state("a") is State.READY


# What is shown


def test_how_far_a_load_is_is_shown_while_it_loads() -> None:
    """And nothing of it afterwards."""
    w = world("a", load_s={"a": 10.0})
    job = w.load("a")
    w.settle()
    assert [one.stage for one in w.scheduler.job_statuses() if one.id == job] == ["starting"]
    w.post(events.Progressed("a", 1, "reading weights", 0.25))
    assert [(one.stage, one.progress) for one in w.scheduler.job_statuses()] == [("reading weights", 0.25)]
    assert w.status("a").progress == 0.25
    w.pass_time(11)
    assert (w.status("a").progress, w.status("a").load_seconds) == (None, 10.0)
    w.post(events.Progressed("a", 1, "too late", 0.5))
    unload = w.unload("a")
    assert [one.stage for one in w.scheduler.job_statuses() if one.id == unload] == ["draining"]


def test_who_has_waited_for_a_second_is_told_how_long() -> None:
    """Whoever was served sooner did not wait."""
    for waited_s, said in ((0.9, False), (1.0, True)):
        w = world("z", "a", size=6 * GIB)
        w.load("z", use=True)
        w.settle()
        w.load("a", BOB)
        w.pass_time(waited_s)
        w.post(events.UseEnded("z"))
        w.settle()
        notice = w.notices(Kind.LOAD_STARTED)[-1]
        assert ("after 1 s in the queue" in notice.message) is said
        assert notice.fields["waited_seconds"] == waited_s


def test_a_return_from_a_crash_is_told_and_counted_as_that() -> None:
    """A load that somebody asks for is not."""
    w = world("a")
    w.load("a")
    w.settle()
    w.end("a", code=1)
    w.pass_time(6)
    w.unload("a")
    w.settle()
    w.load("a")
    w.settle()
    starts = [c.reason for c in w.told if isinstance(c, ModelChanged) and c.new is State.LOADING]
    assert starts == ["user", "crash", "user"]
    assert w.status("a").restarts == 1


# Loads that fail


def test_a_load_that_ends_without_being_told_to_ends_its_jobs() -> None:
    """Nobody waits for ever."""
    w = world("a", load_s={"a": 10.0})
    job = w.load("a")
    w.settle()
    del w.engines["a"]
    w.post(events.LoadEnded("a", 1))
    w.settle()
    assert w.result(job) is JobResult.CANCELED
    assert w.jobs[job].message == 'the load of "a" was called off'
    ended = [change.reason for change in w.told if isinstance(change, ModelChanged) and change.old is State.LOADING]
    assert ended == ["user"]
    assert w.state("a") is State.COLD


def test_a_start_that_cannot_work_is_not_tried_again() -> None:
    """It has failed at once, keeps nothing of what it was promised, and the error says how."""
    w = world("a", "b", size=6 * GIB, load_s={"a": 10.0})
    job = w.load("a")
    w.settle()
    del w.engines["a"]
    w.post(events.LoadEnded("a", 1, "no such flag: -x", hint="correct llama_server.args", preflight=True))
    w.settle()
    shown = w.status("a")
    assert (w.state("a"), shown.retries, shown.error_code) == (State.FAILED, False, "failed")
    assert w.jobs[job].message == "no such flag: -x; correct llama_server.args"
    error = w.jobs[job].error
    assert isinstance(error, BackendFailed) and error.preflight
    assert w.device().committed_bytes == 0
    other = w.load("b")
    w.settle()
    assert w.result(other) is JobResult.DONE


def test_one_that_would_come_back_where_others_have_the_memory_by_now_is_cold() -> None:
    """Its return is refused with the reason, which is shown, and it is not tried again by itself."""
    w = world("a", size=6 * GIB)
    w.load("a")
    w.settle()
    w.end("a", code=1)
    w.gpus[GPU].foreign_bytes = 6 * GIB
    w.pass_time(20)
    shown = w.status("a")
    assert (w.state("a"), shown.retries, shown.attempts) == (State.COLD, False, 0)
    assert shown.error.startswith('cannot load "a": it needs 6.0 GiB, 2.0 GiB are available')
    assert shown.error_code == BudgetExceeded.code
    w.gpus[GPU].foreign_bytes = 0
    w.pass_time(1000)
    assert w.launches() == ["a"]


def test_a_missing_file_is_told_each_time_and_changes_the_state_once() -> None:
    """It has failed already; what costs nothing is tried again."""
    w = world("a")
    w.unfit["a"] = events.Unfit("model file not found")
    jobs = []
    for _ in range(2):
        jobs.append(w.load("a"))
        w.settle()
    assert [w.result(job) for job in jobs] == [JobResult.FAILED] * 2
    assert [(c.old, c.new) for c in w.told if isinstance(c, ModelChanged)] == [(State.COLD, State.FAILED)]
    assert [notice.fields["error"] for notice in w.notices(Kind.LOAD_FAILED)] == ["failed"] * 2
    assert (w.status("a").error_code, w.status("a").waiting) == ("failed", False)


# More and less than was promised


def test_what_an_engine_says_that_it_does_not_need_is_for_those_who_wait() -> None:
    """At once, and not when it is ready."""
    w = world("a", "b", size=5 * GIB, says={"a": 2 * GIB}, load_s={"a": 10.0})
    w.load("a", use=True)
    job = w.load("b", BOB)
    w.pass_time(1)
    assert w.state("a") is State.LOADING
    assert w.result(job) is JobResult.DONE


def test_an_engine_that_wants_more_than_there_is_is_tried_once_more_for_who_waits() -> None:
    """Both numbers are said; where nobody waits for it any more it is not tried again."""
    w = world("a", says={"a": 9 * GIB}, load_s={"a": 10.0}, gpus={GPU: Gpu(8 * GIB)})
    job = w.load("a")
    w.pass_time(30)
    tried, given_up = w.notices(Kind.OUTGREW)
    assert tried.message == (
        '"a" is ended while it loads: its engine is about to take 9.0 GiB on Test GPU, it was promised 3.0 GiB and no '
        "more is free; it is tried once more with what is known now"
    )
    assert given_up.message.endswith("; it is not tried again")
    assert (tried.fields["need_bytes"], tried.fields["promised_bytes"]) == (9 * GIB, 3 * GIB)
    error = w.jobs[job].error
    assert isinstance(error, BudgetExceeded)
    assert (error.need_bytes, error.available_bytes) == (9 * GIB, 3 * GIB)
    assert (w.state("a"), w.status("a").error_code, w.status("a").retries) == (State.COLD, error.code, False)


def test_an_engine_that_runs_out_of_memory_for_ever_has_failed_in_the_end() -> None:
    """Each wish is two tries, the second with a quarter more; the failures count on."""
    w = world("a", oom={"a": 100 * GIB})
    job = w.load("a")
    w.settle()
    assert [round(sum(s.bytes for s in a.shares) / GIB, 2) for a in w.told if isinstance(a, events.Launch)] == [3, 3.75]
    assert w.result(job) is JobResult.FAILED
    assert w.status("a").attempts == 1
    while w.state("a") is State.BACKOFF:
        w.pass_time(61)
        w.load("a")
        w.settle()
        assert w.status("a").attempts <= w.limits.backoff_attempts
        if w.status("a").attempts == w.limits.backoff_attempts:
            break
    assert w.state("a") is State.FAILED


# Taken over


def test_an_engine_that_is_taken_over_is_shown_as_it_runs() -> None:
    """With its own context, layers and engine; how long it has been idle is counted from now."""
    w = two_ways()
    w.engines.clear()
    w.post(events.Adopted("a", 4, (Share(GPU, GIB),), context=2048, layers=20, engine="ollama"))
    shown = w.status("a")
    assert (shown.model.engine, shown.model.settings.context, shown.model.settings.layers) == ("ollama", 2048, "20")
    assert (shown.reduced, shown.need_bytes, shown.device) == ("20 layers on the GPU", GIB, GPU)
    assert (shown.ready_since_s, shown.last_used_s, shown.idle_timeout_s) == (w.now, w.now, 300.0)
    assert w.scheduler.users() == {"a": frozenset({""})}
    w.post(events.Adopted("z", 4, (Share(GPU, GIB),), context=512))
    assert (w.status("z").reduced, w.status("z").model.settings.context) == ("", 512)
    assert [notice.model for notice in w.notices(Kind.MODEL_ADOPTED)] == ["a", "z"]
    with pytest.raises(Busy, match="with ollama, not llama_server"):
        w.load("a", ALICE, engines=("llama_server",))


def test_one_that_runs_out_of_memory_as_it_comes_back_is_tried_again_as_it_was() -> None:
    """With the context that was asked of the first."""
    w = world("a")
    w.load("a", context=4096)
    w.settle()
    w.end("a", code=1)
    w.oom["a"] = 3 * GIB + 4097
    w.pass_time(10)
    contexts = [a.model.settings.context for a in w.told if isinstance(a, events.Launch)]
    assert contexts == [4096, 4096, 4096]
