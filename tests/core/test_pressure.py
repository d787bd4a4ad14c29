"""Other programs need the memory: idle models go, busy ones are named, and everybody is told when it is nearly full."""

import pytest

from gpud.core import events
from gpud.core.errors import GpuTaken
from gpud.core.events import Kind, Level
from gpud.core.facts import HOST, BudgetLimits, EvictionLimits, JobResult, Limits, State
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, GPU1, Gpu, World, model

LIMITS = Limits(gpu=BudgetLimits(reserve_bytes=GIB), host=BudgetLimits(), memory_wait_s=5.0)


def world(*names: str, size: int = 2 * GIB, limits: Limits = LIMITS, **more: object) -> World:
    models = {name: model(name, idle_timeout_s=0.0) for name in names}
    return World(models, dict.fromkeys(names, size), limits=limits, **more)  # type: ignore[arg-type]


def loaded(*names: str, **more: object) -> World:
    w = world(*names, **more)
    for name in names:
        w.load(name)
        w.pass_time(1)
    return w


def looked(w: World) -> None:
    w.post(events.LookAsked())
    w.settle()


# Giving way


def test_an_idle_model_goes_when_others_take_of_the_reserve() -> None:
    """It is seen on the slow timer, with nobody's asking, and says who has the memory."""
    w = loaded("a", "b")
    w.gpus[GPU].programs["blender"] = 3 * GIB + GIB // 2
    w.pass_time(w.limits.watch_s + 1)
    assert (w.state("a"), w.state("b")) == (State.COLD, State.READY)
    message = w.notices(Kind.GAVE_WAY)[0].message
    assert message == (
        '"a", idle for 11 s and holding 2.0 GiB, gives way: 512 MiB are free on Test GPU, 1.0 GiB are to stay free; '
        "other programs: blender (pid 5000) 3.5 GiB"
    )
    assert w.notices(Kind.GAVE_WAY)[0].fields == {"engine": "llama_server", "freed_bytes": 2 * GIB, "device": GPU}
    assert w.notices(Kind.MODEL_UNLOADED)[0].message.endswith("other programs needed its memory")
    left = [change.reason for change in w.told if isinstance(change, events.ModelChanged) and change.model == "a"]
    assert left[-3:] == ["budget"] * 3


def test_as_few_go_as_are_needed_and_those_by_which_the_least_is_lost() -> None:
    """What is reloaded in a second goes before what takes a minute."""
    w = world("slow", "quick", load_s={"slow": 60.0, "quick": 1.0})
    for name in ("slow", "quick"):
        w.load(name)
        w.pass_time(61)
    w.gpus[GPU].programs["game"] = 3 * GIB + GIB // 2
    looked(w)
    assert (w.state("slow"), w.state("quick")) == (State.READY, State.COLD)


def test_nobody_goes_as_long_as_the_reserve_is_free() -> None:
    """The game fits beside them."""
    w = loaded("a", "b")
    w.gpus[GPU].programs["game"] = 3 * GIB
    w.pass_time(60)
    assert len(w.engines) == 2


def test_other_programs_are_named_by_what_they_hold() -> None:
    """The three that hold most, the largest first."""
    w = loaded("a")
    w.gpus[GPU].programs |= {"small": GIB, "large": 3 * GIB, "middle": 2 * GIB, "tiny": 1 << 20}
    looked(w)
    assert w.notices(Kind.GAVE_WAY)[0].message.endswith(
        "other programs: large (pid 5001) 3.0 GiB, middle (pid 5002) 2.0 GiB, small (pid 5000) 1.0 GiB"
    )


def test_what_is_dear_to_load_goes_when_nobody_has_asked_for_it_for_long() -> None:
    """Rather than what is loaded in a moment and was asked for a moment ago."""
    w = world("dear", "cheap", load_s={"dear": 10.0, "cheap": 2.0})
    w.load("dear", use=True)
    w.pass_time(11)
    w.post(events.UseEnded("dear"))
    w.pass_time(3600)
    w.load("cheap", use=True)
    w.pass_time(3)
    w.post(events.UseEnded("cheap"))
    w.gpus[GPU].programs["game"] = 3 * GIB + GIB // 2
    looked(w)
    assert (w.state("dear"), w.state("cheap")) == (State.COLD, State.READY)


def test_a_single_byte_of_the_reserve_is_enough() -> None:
    """As long as exactly the reserve is free nobody goes."""
    w = loaded("a")
    w.gpus[GPU].programs["game"] = 5 * GIB
    looked(w)
    assert w.state("a") is State.READY
    w.gpus[GPU].programs["game"] = 5 * GIB + 1
    looked(w)
    assert w.state("a") is State.COLD


def test_a_gpu_that_does_not_tell_is_passed_over() -> None:
    """Those behind it give way all the same."""
    w = world("a", gpus={GPU: Gpu(), GPU1: Gpu()})
    w.configure(model("a", gpu="1", idle_timeout_s=0.0))
    w.load("a")
    w.settle()
    w.gpus[GPU].health = "it does not answer"
    w.gpus[GPU1].programs["game"] = 6 * GIB
    looked(w)
    assert w.state("a") is State.COLD


def test_nobody_more_goes_while_memory_is_on_its_way_back() -> None:
    """The one that goes is enough."""
    w = loaded("a", "b")
    w.drivers_linger = True
    w.gpus[GPU].programs["game"] = 3 * GIB + GIB // 2
    w.pass_time(13)
    assert w.gpus[GPU].late_bytes == 2 * GIB
    assert (w.state("a"), w.state("b")) == (State.COLD, State.READY)


def test_busy_models_are_named_once_and_not_cut() -> None:
    """Again only after there was enough in between."""
    w = loaded("a", "b")
    for name in "ab":
        w.post(events.UseBegan(name))
    w.gpus[GPU].programs["game"] = 3 * GIB + GIB // 2
    w.pass_time(100)
    assert len(w.notices(Kind.GAVE_WAY)) == 1
    assert w.notices(Kind.GAVE_WAY)[0].message == (
        "512 MiB are free on Test GPU, 1.0 GiB are to stay free; other programs: game (pid 5000) 3.5 GiB; idle models "
        'are not enough, and "a", "b" will not be interrupted'
    )
    assert w.notices(Kind.GAVE_WAY)[0].level is Level.WARNING
    assert w.notices(Kind.GAVE_WAY)[0].fields == {"device": GPU, "missing_bytes": GIB // 2}
    w.gpus[GPU].programs.clear()
    looked(w)
    w.gpus[GPU].programs["game"] = 3 * GIB + GIB // 2
    looked(w)
    assert len(w.notices(Kind.GAVE_WAY)) == 2


def test_idle_ones_go_and_busy_ones_are_named_when_both_are_needed() -> None:
    """The warning does not wait for a look at which nobody idle is left."""
    w = world("a", "b", size=GIB // 2)
    w.sizes["b"] = 3 * GIB
    for name in "ab":
        w.load(name)
    w.settle()
    w.post(events.UseBegan("b"))
    w.gpus[GPU].programs["game"] = 4 * GIB + GIB // 2
    looked(w)
    assert w.state("a") is State.COLD
    assert ['"b" will not be interrupted' in notice.message for notice in w.notices(Kind.GAVE_WAY)] == [False, True]


def test_a_busy_model_goes_as_soon_as_it_has_answered() -> None:
    """The next look sees that it is idle."""
    w = loaded("a")
    w.post(events.UseBegan("a"))
    w.gpus[GPU].programs["game"] = 6 * GIB
    looked(w)
    w.post(events.UseEnded("a"))
    w.pass_time(w.limits.watch_s + 1)
    assert w.state("a") is State.COLD


def test_held_and_pinned_models_do_not_give_way() -> None:
    """They were promised."""
    w = loaded("a", "b")
    w.configure(model("a", pinned=True, idle_timeout_s=0.0))
    w.post(events.HoldAsked(1, "b", BOB, "", "app", frozenset(("unload", "evict"))))
    w.gpus[GPU].programs["game"] = 6 * GIB
    w.pass_time(30)
    assert len(w.engines) == 2


def test_each_gpu_gives_way_for_itself() -> None:
    """What is on the other one stays."""
    w = world("a", "b", gpus={GPU: Gpu(), GPU1: Gpu()})
    w.configure(model("a", gpu="0", idle_timeout_s=0.0), model("b", gpu="1", idle_timeout_s=0.0))
    for name in "ab":
        w.load(name)
    w.settle()
    w.gpus[GPU1].programs["game"] = 6 * GIB
    looked(w)
    assert (w.state("a"), w.state("b")) == (State.READY, State.COLD)


def test_above_a_configured_share_idle_models_go_until_it_is_below_the_lower_one() -> None:
    """Without anybody's asking; and no further."""
    rules = EvictionLimits(above_percent=70.0, below_percent=60.0)
    w = loaded("a", "b", size=2 * GIB, limits=replace(LIMITS, eviction=rules))
    w.gpus[GPU].foreign_bytes = GIB
    w.pass_time(30)
    assert len(w.engines) == 2, "62 % is not above 70 %"
    w.gpus[GPU].foreign_bytes = 2 * GIB
    w.pass_time(11)
    assert len(w.engines) == 1
    assert "75% of Test GPU are in use, the limit is 70%" in w.notices(Kind.GAVE_WAY)[0].message


@pytest.mark.parametrize(("used_percent", "stays"), [(84.5, True), (85.5, False)])
def test_as_many_go_as_bring_it_below_the_lower_share(used_percent: float, stays: bool) -> None:
    """With one of two gone, which have a quarter each, it is just below 60 %, or just above."""
    rules = EvictionLimits(above_percent=70.0, below_percent=60.0)
    w = loaded("a", "b", size=2 * GIB, limits=replace(LIMITS, eviction=rules))
    w.gpus[GPU].foreign_bytes = int(used_percent / 100 * 8 * GIB) - 4 * GIB
    looked(w)
    assert len(w.engines) == stays


# Alerts


def alerts(w: World) -> list[events.Alert]:
    return [action for action in w.told if isinstance(action, events.Alert)]


def test_an_alert_is_given_once_and_taken_back_once() -> None:
    """At 90 %; over below 85 %; and the next time again."""
    w = world()

    def used(gib: float) -> None:
        w.gpus[GPU].programs["game"] = int(gib * GIB)
        looked(w)

    for gib in (7.1, 7.3, 7.4, 7.1, 7.3, 6.9):
        used(gib)
    assert [alert.raised for alert in alerts(w)] == [True]
    used(6.7)
    assert [alert.raised for alert in alerts(w)] == [True, False]
    used(7.3)
    assert [alert.raised for alert in alerts(w)] == [True, False, True]
    first, second = alerts(w)[:2]
    assert first.message == (
        "vram usage 91% >= 90% on Test GPU: 7.3 GiB of 8.0 GiB are in use, by other programs: game (pid 5000) 7.3 GiB"
    )
    assert second.message == "vram usage 84% < 85% on Test GPU: 6.7 GiB of 8.0 GiB are in use"
    assert (first.device, first.total_bytes, first.limit_percent) == (GPU, 8 * GIB, 90.0)
    assert w.device().alert
    assert [notice.level for notice in w.notices(Kind.VRAM_HIGH)] == [Level.WARNING] * 2


def test_an_alert_begins_at_the_limit_and_is_over_below_the_lower_one() -> None:
    """18 of 20 GiB are 90 %, 17 are 85 %."""
    w = world(gpus={GPU: Gpu(20 * GIB)})
    for used_bytes, raised in (
        (18 * GIB - 1, []),
        (18 * GIB, [True]),
        (17 * GIB, [True]),
        (17 * GIB - 1, [True, False]),
    ):
        w.gpus[GPU].foreign_bytes = used_bytes
        looked(w)
        assert [alert.raised for alert in alerts(w)] == raised
    assert w.notices(Kind.VRAM_HIGH)[0].fields == {
        "device": GPU,
        "used_bytes": 18 * GIB,
        "total_bytes": 20 * GIB,
        "limit_percent": 90.0,
    }
    assert w.notices(Kind.VRAM_NORMAL)[0].level is Level.INFO


def test_alerts_can_be_turned_off() -> None:
    """And one that was given is forgotten."""
    w = world()
    w.gpus[GPU].foreign_bytes = 8 * GIB
    looked(w)
    w.configure(limits=replace(LIMITS, alert_percent=None))
    looked(w)
    assert len(alerts(w)) == 1
    assert not w.device().alert


def test_the_machines_memory_is_watched_where_there_is_no_gpu() -> None:
    """Beside a GPU it is nobody's business here."""
    w = loaded("a", size=15 * GIB, limits=Limits(gpu=BudgetLimits(), host=BudgetLimits()), gpus={})
    looked(w)
    assert [alert.device for alert in alerts(w)] == [HOST]
    assert alerts(w)[0].message.startswith("memory usage 94% >= 90% on host memory: 15.0 GiB of 16.0 GiB")
    beside = world("a", size=15 * GIB, limits=Limits(gpu=BudgetLimits(), host=BudgetLimits()))
    beside.configure(model("a", gpu=HOST))
    beside.load("a")
    beside.settle()
    looked(beside)
    assert alerts(beside) == []


# When to look


def test_without_anything_loaded_there_is_no_timer() -> None:
    """Nothing wakes an idle machine."""
    w = world("a")
    assert w.scheduler.next_deadline() is None
    w.load("a")
    w.settle()
    looked_at = w.now + 0.1
    w.pass_time(1)
    assert w.scheduler.next_deadline() == looked_at + w.limits.watch_s
    w.unload("a")
    w.pass_time(1)
    assert w.scheduler.next_deadline() is None


def test_the_timer_can_be_turned_off() -> None:
    """Then the devices are looked at when something happens."""
    w = loaded("a", limits=replace(LIMITS, watch_s=0.0))
    assert w.scheduler.next_deadline() is None


# Too many others


def test_nothing_is_loaded_where_others_hold_too_much() -> None:
    """By name and number; what is loaded stays, and is used."""
    limits = replace(LIMITS, external_busy_bytes=3 * GIB)
    w = loaded("a", size=GIB, limits=limits)
    w.configure(model("b"), b=GIB)
    w.gpus[GPU].programs["blender"] = 3 * GIB
    job = w.load("b")
    w.settle()
    assert isinstance(w.jobs[job].error, GpuTaken)
    assert w.jobs[job].message.startswith(
        'cannot load "b": other programs use the GPU: 3.0 GiB of Test GPU are held by other programs, the limit is '
        "3.0 GiB (blender (pid 5000) 3.0 GiB)"
    )
    assert w.result(w.load("a")) is JobResult.DONE
    w.gpus[GPU].programs["blender"] = 2 * GIB
    job = w.load("b")
    w.settle()
    assert w.result(job) is JobResult.DONE


def test_what_was_claimed_is_not_held_by_others() -> None:
    """Their processes are known."""
    w = world("a", size=GIB, limits=replace(LIMITS, external_busy_bytes=3 * GIB))
    claim = w.claim(4 * GIB, ALICE)
    w.settle()
    w.programs[claim].used_bytes = 4 * GIB
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE


def test_what_is_only_asked_for_is_held_by_others() -> None:
    """A program that waits for its claim holds what it holds on its own account."""
    w = world("a", size=3 * GIB, limits=replace(LIMITS, external_busy_bytes=3 * GIB))
    w.load("a", use=True)
    w.settle()
    w.configure(model("b"), b=GIB)
    claim = w.claim(6 * GIB, ALICE)
    w.settle()
    w.programs[claim].device, w.programs[claim].used_bytes = GPU, 3 * GIB
    job = w.load("b")
    w.settle()
    assert isinstance(w.jobs[job].error, GpuTaken)


def test_another_gpu_that_others_leave_alone_is_used() -> None:
    """The one that they use is passed over."""
    limits = replace(LIMITS, external_busy_bytes=3 * GIB)
    w = world("a", limits=limits, gpus={GPU: Gpu(16 * GIB, programs={"game": 4 * GIB}), GPU1: Gpu()})
    w.load("a")
    w.settle()
    assert w.status("a").device == GPU1
