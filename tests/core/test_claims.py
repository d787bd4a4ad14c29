"""Memory for programs that are no engines: granted, waited for, refused, given back."""

import pytest

from gpud.core import events
from gpud.core.errors import (
    BudgetExceeded,
    GpuUnavailable,
    InvalidArguments,
    NoSuchClaim,
    QueueFull,
    ShuttingDown,
    WaitedTooLong,
)
from gpud.core.events import Kind
from gpud.core.facts import HOST, BudgetLimits, JobResult, Limits, Priority, QueueLimits, State

from .world import ALICE, BOB, CAROL, GIB, GPU, GPU1, Gpu, World, model


def world(*names: str, size: int = 3 * GIB, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def test_a_claim_that_fits_is_granted_with_its_device() -> None:
    """And told: how much of what to whom."""
    w = world()
    claim = w.claim(5 * GIB)
    assert claim not in w.granted, "nothing is given before the devices were looked at"
    w.settle()
    assert w.granted[claim] == events.ClaimGranted(claim, GPU, "nvidia")
    assert w.notices(Kind.CLAIM_GRANTED)[0].message == "5.0 GiB of Test GPU are given to train.py"
    status = w.claim_status(claim)
    assert (status.device, status.granted, status.used_bytes, status.waits_for) == (GPU, True, 0, "")


def test_what_is_claimed_is_nobody_elses_before_it_is_used() -> None:
    """The model that would fit into what is still free is refused, with the claim named."""
    w = world("a", size=4 * GIB)
    w.claim(5 * GIB)
    w.settle()
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert "3.0 GiB are available on Test GPU (budget 8.0 GiB, own models 0 MiB, claims 5.0 GiB" in w.jobs[job].message
    assert "wait until a claim is given back" in w.jobs[job].message


@pytest.mark.parametrize(("used", "counted"), [(2, 5), (5, 5), (6, 6)])
def test_the_larger_of_what_is_claimed_and_what_is_used_counts(used: int, counted: int) -> None:
    """And it is seen that it is not other programs that hold it."""
    w = world()
    claim = w.claim(5 * GIB)
    w.settle()
    w.programs[claim].used_bytes = used * GIB
    w.post(events.LookAsked())
    w.settle()
    device = w.device()
    assert device.committed_bytes == counted * GIB
    assert device.available_bytes == (8 - counted) * GIB
    assert device.foreign_bytes == 0
    assert w.claim_status(claim).used_bytes == used * GIB


def test_idle_models_go_for_a_claim() -> None:
    """They are told for whom."""
    w = world("a", size=6 * GIB)
    w.load("a")
    w.settle()
    claim = w.claim(5 * GIB)
    w.settle()
    assert claim in w.granted
    assert w.state("a") is State.COLD
    assert "makes room for train.py (needs 5.0 GiB, 2.0 GiB available" in w.notices(Kind.EVICTED)[0].message


def test_a_claim_waits_until_a_busy_model_has_answered() -> None:
    """It stands in the queue like everybody else, and is told how long it waited."""
    w = world("a", size=6 * GIB)
    w.load("a", use=True)
    w.settle()
    claim = w.claim(5 * GIB)
    w.pass_time(4)
    assert claim not in w.granted
    assert 'waiting until "a" has answered' in w.claim_status(claim).waits_for
    assert w.queue()[0].claim == claim
    w.post(events.UseEnded("a"))
    w.settle()
    assert claim in w.granted
    assert w.notices(Kind.CLAIM_GRANTED)[0].message.endswith("are given to train.py, after 4 s in the queue")


def test_a_second_claim_waits_until_the_first_is_given_back() -> None:
    """Two trainings, one after the other."""
    w = world()
    first = w.claim(6 * GIB, who="first.py")
    w.settle()
    w.programs[first].used_bytes = 6 * GIB
    second = w.claim(6 * GIB, BOB, who="second.py", wait_s=600.0)
    w.pass_time(500)
    assert second not in w.granted and second not in w.over
    assert "programs have claimed 6.0 GiB; waiting until they give it back" in w.claim_status(second).waits_for
    w.drop(first)
    w.settle()
    assert second in w.granted


def test_models_that_fit_beside_both_claims_are_loaded_meanwhile() -> None:
    """And no others."""
    w = world("small", "large", size=2 * GIB)
    w.sizes["large"] = 3 * GIB
    first = w.claim(5 * GIB)
    w.settle()
    w.claim(6 * GIB, BOB)
    small, large = w.load("small", use=True), w.load("large", use=True)
    w.settle()
    assert w.result(small) is JobResult.DONE
    assert large not in w.jobs or w.result(large) is JobResult.FAILED
    assert w.state("large") is State.COLD
    assert first in w.granted


def test_what_can_never_fit_is_refused_with_numbers() -> None:
    """At once, and nobody goes for it."""
    w = world("a")
    w.load("a")
    w.settle()
    claim = w.claim(9 * GIB)
    w.settle()
    over = w.over[claim]
    assert isinstance(over.error, BudgetExceeded)
    assert over.error.message == (
        "cannot give 9.0 GiB to train.py: it needs 9.0 GiB, the whole budget of Test GPU is 8.0 GiB"
    )
    assert over.error.hint == "ask for less, or raise gpu.budget"
    assert w.state("a") is State.READY
    assert w.notices(Kind.CLAIM_REFUSED)[0].fields["claim"] == claim


def test_what_others_hold_is_not_waited_for() -> None:
    """Nobody knows when a game ends."""
    w = world(gpus={GPU: Gpu(programs={"game": 5 * GIB})})
    claim = w.claim(4 * GIB)
    w.settle()
    assert isinstance(w.over[claim].error, BudgetExceeded)
    assert "other programs hold the memory" in w.over[claim].error.hint


@pytest.mark.parametrize("pinned_or_held", ["pinned", "held"])
def test_a_model_that_is_promised_to_stay_does_not_go_for_a_claim(pinned_or_held: str) -> None:
    """Refused, not waited for."""
    w = world("a", size=6 * GIB)
    if pinned_or_held == "pinned":
        w.configure(model("a", pinned=True))
    else:
        w.post(events.HoldAsked(1, "a", BOB, "", "app", frozenset(("unload", "evict"))))
    w.load("a")
    w.settle()
    claim = w.claim(5 * GIB)
    w.settle()
    assert isinstance(w.over[claim].error, BudgetExceeded)
    assert "held or pinned" in w.over[claim].error.hint


def test_a_claim_that_has_waited_too_long_is_over_with_the_reason() -> None:
    """As configured, or as asked for."""
    w = world("a", size=6 * GIB)
    w.load("a", use=True)
    w.settle()
    claim = w.claim(5 * GIB, wait_s=20.0)
    w.pass_time(19)
    assert claim not in w.over
    w.pass_time(1.5)
    error = w.over[claim].error
    assert isinstance(error, WaitedTooLong)
    assert error.message.startswith("cannot give 5.0 GiB to train.py: it has waited 20 s, at last waiting until")
    assert w.queue() == ()
    assert w.scheduler.claim_statuses() == ()


def test_a_claim_that_would_not_wait_is_over_at_once() -> None:
    """For a busy model, or for another claim."""
    w = world("a", size=6 * GIB)
    w.load("a", use=True)
    w.settle()
    claim = w.claim(5 * GIB, wait_s=0.0)
    w.settle()
    assert isinstance(w.over[claim].error, WaitedTooLong)
    assert w.over[claim].error.message.startswith("cannot give 5.0 GiB to train.py at once: needs 5.0 GiB")


def test_a_claim_dropped_while_it_waits_leaves_nothing() -> None:
    """Those behind it have what was kept for it."""
    w = world("a", "b", size=5 * GIB)
    w.sizes["b"] = 3 * GIB
    w.load("a", use=True)
    w.settle()
    claim = w.claim(8 * GIB)
    job = w.load("b", BOB)
    w.settle()
    assert job not in w.jobs
    w.drop(claim)
    w.settle()
    assert w.over[claim] == events.ClaimOver(claim, None, "its program has ended")
    assert w.result(job) is JobResult.DONE
    assert w.notices(Kind.CLAIM_ENDED)[0].message == ("train.py no longer waits for 8.0 GiB: its program has ended")


def test_a_claim_given_back_is_free_when_that_is_measured() -> None:
    """Who comes at that moment waits for the driver instead of being refused."""
    w = world("a", size=6 * GIB)
    claim = w.claim(5 * GIB)
    w.settle()
    w.programs[claim].used_bytes = 5 * GIB
    w.post(events.LookAsked())
    w.settle()
    w.pass_time(30)
    w.gpus[GPU].late_bytes = 5 * GIB
    w.drop(claim)
    w.settle()
    text = w.notices(Kind.CLAIM_ENDED)[0].message
    assert text == "5.0 GiB of Test GPU are given back by train.py after 30 s: its program has ended"
    job = w.load("a")
    w.pass_time(0.5)
    assert job not in w.jobs
    w.gpus[GPU].late_bytes = 0
    w.pass_time(0.05)
    assert w.result(job) is JobResult.DONE


def test_a_program_that_keeps_what_it_gave_back_is_one_of_the_others() -> None:
    """After the usual time it is told, and counts as theirs."""
    w = world("a", size=6 * GIB)
    claim = w.claim(5 * GIB)
    w.settle()
    w.programs[claim].used_bytes = 5 * GIB
    w.post(events.LookAsked())
    w.settle()
    w.drop(claim)
    w.gpus[GPU].programs["python"] = 5 * GIB
    job = w.load("a")
    w.pass_time(6)
    assert w.result(job) is JobResult.FAILED
    assert "within 5 s after their claim was given back" in w.notices(Kind.MEMORY_LATE)[0].message
    assert w.device().foreign_bytes == 5 * GIB


def test_a_claim_goes_to_the_gpu_that_it_names() -> None:
    """By index; a GPU that is not there is said so."""
    w = world(gpus={GPU: Gpu(8 * GIB), GPU1: Gpu(6 * GIB)})
    first, second, third = w.claim(5 * GIB, gpu="1"), w.claim(5 * GIB), w.claim(GIB, gpu="7")
    w.settle()
    assert (w.granted[first].device, w.granted[second].device) == (GPU1, GPU)
    assert isinstance(w.over[third].error, GpuUnavailable)
    assert 'GPU "7" is not there (GPUs: 0 (GPU-0), 1 (GPU-1))' in w.over[third].error.message


def test_without_a_gpu_it_is_the_machines_memory() -> None:
    """A machine without a GPU is a normal one."""
    w = world(gpus={})
    claim = w.claim(5 * GIB)
    w.settle()
    assert w.granted[claim] == events.ClaimGranted(claim, HOST, "host")


def test_a_higher_priority_is_granted_before_who_waits_longer() -> None:
    """Claims and models stand in one queue."""
    w = world("z", "a", size=6 * GIB)
    w.load("z", use=True)
    w.settle()
    job = w.load("a", BOB, use=True)
    claim = w.claim(6 * GIB, CAROL, priority=Priority.HIGH)
    w.settle()
    w.post(events.UseEnded("z"))
    w.settle()
    assert claim in w.granted
    assert w.result(job) is JobResult.FAILED


def test_a_full_queue_refuses_claims_too() -> None:
    """With the numbers."""
    limits = Limits(gpu=BudgetLimits(), host=BudgetLimits(), queue=QueueLimits(size=1))
    w = world("z", size=6 * GIB, limits=limits)
    w.load("z", use=True)
    w.settle()
    first, second = w.claim(5 * GIB), w.claim(5 * GIB, BOB)
    w.settle()
    assert first not in w.over
    assert isinstance(w.over[second].error, QueueFull)
    assert "1 waits for memory already, the limit is 1" in w.over[second].error.message


def test_the_end_of_gpud_ends_every_claim() -> None:
    """Granted or waiting; new ones are refused."""
    w = world()
    granted, waiting = w.claim(5 * GIB), w.claim(5 * GIB, BOB)
    w.settle()
    w.post(events.ShutdownAsked())
    w.settle()
    assert {w.over[claim].reason for claim in (granted, waiting)} == {"gpud is shutting down"}
    assert w.finished
    with pytest.raises(ShuttingDown):
        w.claim(GIB)


def test_nonsense_is_refused_at_once() -> None:
    """Nothing, less than nothing, and claims that are not there."""
    w = world()
    for size in (0, -1):
        with pytest.raises(InvalidArguments):
            w.claim(size)
    with pytest.raises(NoSuchClaim):
        w.drop(99)


def test_the_drivers_are_let_go_when_the_last_claim_is_given_back() -> None:
    """Not before: its real use is looked at."""
    w = world()
    claim = w.claim(5 * GIB)
    w.settle()
    w.pass_time(60)
    assert w.released == 0
    w.drop(claim)
    w.pass_time(1)
    assert w.released == 1
    assert w.scheduler.next_deadline() is None


def test_claims_by_two_users_take_turns() -> None:
    """Each asks again as soon as it has given back."""
    w = world()
    order: list[str] = []
    waiting = {w.claim(6 * GIB, caller, wait_s=1e6): caller for caller in (ALICE, ALICE, ALICE, BOB, BOB)}
    for _ in range(5):
        w.settle()
        (claim,) = [claim for claim in w.granted if claim not in w.over]
        order.append(waiting[claim].owner)
        w.drop(claim)
        w.pass_time(1)
    assert order == ["alice", "bob", "alice", "bob", "alice"]


def test_a_claim_waits_for_no_program_on_another_gpu() -> None:
    """What is claimed there does not come back here: it is refused at once."""
    w = world(gpus={GPU: Gpu(8 * GIB), GPU1: Gpu(8 * GIB, foreign_bytes=4 * GIB)})
    w.claim(6 * GIB, gpu="0")
    w.settle()
    claim = w.claim(6 * GIB, gpu="1")
    w.settle()
    assert isinstance(w.over[claim].error, BudgetExceeded)
