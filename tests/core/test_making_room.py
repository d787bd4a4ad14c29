"""Who goes when somebody needs the memory, and when the next one is started."""

import pytest

from gpud.core import events
from gpud.core.books import Books
from gpud.core.events import Kind, ModelChanged
from gpud.core.facts import (
    AUTO_IDLE,
    BudgetLimits,
    EvictionLimits,
    EvictionPolicy,
    GpuSample,
    JobResult,
    Limits,
    Priority,
    State,
)
from gpud.core.instance import Instance
from gpud.core.quote import Share

from .world import ALICE, BOB, GIB, GPU, Gpu, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def limits(**eviction: object) -> Limits:
    return Limits(gpu=BudgetLimits(), host=BudgetLimits(), eviction=EvictionLimits(**eviction))  # type: ignore[arg-type]


# Who


@pytest.mark.parametrize("doing", ["answering", "held", "pinned", "loading"])
def test_who_cannot_go_does_not(doing: str) -> None:
    """The idle one beside it does, although it was used last."""
    w = world("a", "idle", "b", size=3 * GIB, load_s={"a": 60.0} if doing == "loading" else {})
    w.configure(model("a", pinned=doing == "pinned"))
    w.load("a", use=doing == "answering")
    w.pass_time(1)
    if doing == "held":
        w.post(events.HoldAsked(1, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    w.load("idle")
    w.pass_time(2)
    before = w.state("a")
    job = w.load("b")
    w.pass_time(1)
    assert w.result(job) is JobResult.DONE
    assert w.state("a") is before
    assert w.state("idle") is State.COLD


@pytest.mark.parametrize(
    ("policy", "victim"),
    [(EvictionPolicy.LRU, "high"), (EvictionPolicy.PRIORITY, "low"), (EvictionPolicy.HYBRID, "low")],
)
def test_the_policy_is_what_is_configured(policy: EvictionPolicy, victim: str) -> None:
    """The older one, or the less important one."""
    w = world("high", "low", "b", limits=limits(policy=policy))
    w.configure(model("high", priority=Priority.HIGH), model("low", priority=Priority.LOW))
    for name in ("high", "low"):
        w.load(name)
        w.pass_time(1)
    w.load("b")
    w.settle()
    assert [name for name in ("high", "low") if w.state(name) is State.COLD] == [victim]


def test_why_it_went_is_told_with_the_numbers_and_who_was_spared() -> None:
    """For a program and for a reader."""
    w = world("a", "c", "b")
    for name in ("a", "c"):
        w.load(name)
        w.pass_time(5)
    w.load("b")
    w.settle()
    notice = w.notices(Kind.EVICTED)[0]
    assert notice.message == (
        '"a", idle for 10 s and holding 3.0 GiB, makes room for "b" (needs 3.0 GiB, 2.0 GiB available on Test GPU)'
    )
    assert (notice.fields["for_model"], notice.fields["freed_bytes"]) == ("b", 3 * GIB)
    assert str(notice.fields["spared"]).startswith("c ")
    assert [change.reason for change in w.told if isinstance(change, ModelChanged) and change.model == "a"][-1] == (
        "budget"
    )


def test_who_is_on_its_way_out_is_waited_for_rather_than_send_another_away() -> None:
    """Somebody has unloaded it; it only finishes an answer."""
    w = world("a", "idle", "b")
    w.load("a", use=True)
    w.load("idle")
    w.settle()
    w.unload("a")
    job = w.load("b")
    w.settle()
    assert job not in w.jobs
    w.post(events.UseEnded("a"))
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert w.state("idle") is State.READY


def test_nobody_is_evicted_for_what_would_not_fit_all_the_same() -> None:
    """A game has the rest."""
    w = world("a", "b", size=3 * GIB, gpus={GPU: Gpu(foreign_bytes=4 * GIB)})
    w.sizes["b"] = 5 * GIB
    w.load("a")
    w.settle()
    job = w.load("b")
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert w.state("a") is State.READY


def test_a_model_that_says_it_is_busy_stays_and_another_goes() -> None:
    """Somebody talks to it past gpud."""
    w = world("a", "c", "b")
    for name in ("a", "c"):
        w.load(name)
        w.pass_time(1)
    w.busy.add("a")
    job = w.load("b")
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert (w.state("a"), w.state("c")) == (State.READY, State.COLD)


# When


def test_the_next_is_started_when_the_memory_is_measured_free_and_not_before() -> None:
    """Looked for every 20 ms while somebody waits for it."""
    w = world("a", "b", size=6 * GIB, drivers_linger=True)
    w.load("a")
    w.settle()
    job = w.load("b")
    w.pass_time(0.5)
    assert w.state("a") is State.COLD
    assert job not in w.jobs
    looks = sum(isinstance(a, events.Sample) for a in w.told)
    w.pass_time(1)
    assert 45 <= sum(isinstance(a, events.Sample) for a in w.told) - looks <= 55
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.03)
    assert w.result(job) is JobResult.DONE


def test_the_return_of_one_is_not_taken_for_the_return_of_two() -> None:
    """Both have gone, the memory of one is late: who needs both waits for it instead of being refused."""
    w = world("a", "c", "b", size=4 * GIB, drivers_linger=True)
    w.sizes["b"] = 8 * GIB
    for name in ("a", "c"):
        w.load(name)
        w.settle()
    job = w.load("b")
    w.pass_time(0.1)
    assert w.gpus[GPU].late_bytes == 8 * GIB
    w.gpus[GPU].late_bytes = 4 * GIB
    w.pass_time(0.1)
    assert job not in w.jobs
    assert "4.0 GiB to come back" in w.status("b").waits_for
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.1)
    assert w.result(job) is JobResult.DONE
    assert w.notices(Kind.MEMORY_LATE) == []


def test_memory_that_another_model_takes_at_the_same_time_has_come_back_all_the_same() -> None:
    """No warning of late memory because it is used already."""
    w = world("a", "b", "c", size=6 * GIB, drivers_linger=True, load_s={"c": 0.5})
    w.sizes["c"] = 2 * GIB
    w.load("a")
    w.settle()
    w.load("b", use=True)
    w.load("c", BOB, use=True)
    w.pass_time(1)
    assert w.state("c") is State.READY
    w.gpus[GPU].late_bytes = 0
    w.pass_time(1)
    assert w.state("b") is State.READY
    w.pass_time(20)
    assert w.notices(Kind.MEMORY_LATE) == []


def test_late_memory_is_looked_for_slowly_when_nobody_waits_and_then_told() -> None:
    """Once; and the drivers are let go."""
    w = world("a", drivers_linger=True)
    w.load("a")
    w.settle()
    w.unload("a")
    looks = sum(isinstance(a, events.Sample) for a in w.told)
    w.pass_time(6)
    assert 15 <= sum(isinstance(a, events.Sample) for a in w.told) - looks <= 30
    assert len(w.notices(Kind.MEMORY_LATE)) == 1
    assert w.released == 1
    assert w.scheduler.next_deadline() is None and not w.pending


def test_a_crashed_models_place_is_given_to_who_waits() -> None:
    """It comes back when there is room."""
    w = world("a", "b", size=6 * GIB)
    w.load("a", use=True)
    w.settle()
    job = w.load("b", BOB)
    w.settle()
    w.end("a", code=-9)
    w.settle()
    assert w.result(job) is JobResult.DONE
    w.pass_time(10)
    assert w.state("a") is State.READY


# Idleness


@pytest.mark.parametrize(("load_s", "idle_s"), [(1.0, 60.0), (10.0, 200.0), (500.0, 1800.0)])
def test_by_itself_a_model_stays_as_long_as_a_reload_is_worth(load_s: float, idle_s: float) -> None:
    """Twenty times as long as it took to load, between a minute and half an hour."""
    w = world("a", load_s={"a": load_s})
    w.configure(model("a", idle_timeout_s=AUTO_IDLE))
    w.load("a")
    w.pass_time(load_s + 1)
    assert w.status("a").idle_timeout_s == idle_s
    assert w.status("a").unload_at_s == (w.status("a").ready_since_s or 0.0) + idle_s
    w.pass_time(idle_s - 2)
    assert w.state("a") is State.READY
    w.pass_time(2)
    assert w.state("a") is State.COLD


def test_a_request_that_follows_its_load_counts_from_the_moment_it_is_ready() -> None:
    """Nobody can be evicted between the two."""
    w = world("a")
    w.load("a", ALICE, use=True)
    w.settle()
    assert w.status("a").in_flight == 1
    w.pass_time(1000)
    assert w.state("a") is State.READY
    w.post(events.UseEnded("a"))
    w.pass_time(301)
    assert w.state("a") is State.COLD


@pytest.mark.parametrize(("size", "reload_s"), [(2 * GIB, 2.0), (8 * GIB, 5.0)])
def test_a_load_that_nobody_measured_is_taken_to_read_two_gib_a_second(size: int, reload_s: float) -> None:
    """After a second in which its engine starts: so much is lost with an engine that was taken over."""
    instance = Instance(model("a"), state=State.READY, shares=(Share(GPU, size),))
    books = Books(Limits())
    books.seen((GpuSample(GPU, "Test GPU", 0, "nvidia", 16 * GIB, size, 16 * GIB - size),), {}, {}, 0.0)
    (device,) = books.devices([instance], (), lambda _: True, lambda _: False, asleep_is_empty=False)
    assert [candidate.reload_s for candidate in device.movable] == [reload_s]
