"""Who is served before whom, how long anybody waits, and what is told of it."""

import pytest

from gpud.core import events, queue
from gpud.core.errors import QueueFull, WaitedTooLong
from gpud.core.events import Kind
from gpud.core.facts import BudgetLimits, Caller, EvictionLimits, JobResult, Limits, Priority, QueueLimits, State
from gpud.core.queue import Ticket

from .world import ALICE, BOB, CAROL, GIB, GPU, Gpu, World, model

WIDE = QueueLimits(size=1000, timeout_s=100_000.0)


def limits(waiting: QueueLimits = WIDE, **more: object) -> Limits:
    return Limits(gpu=BudgetLimits(), host=BudgetLimits(), queue=waiting, **more)  # type: ignore[arg-type]


def one_at_a_time(*names: str, waiting: QueueLimits = WIDE, load_s: float = 0.0, **more: object) -> World:
    """Each fills the whole GPU."""
    return World(
        {name: model(name) for name in names},
        dict.fromkeys(names, 8 * GIB),
        limits=limits(waiting, **more),
        load_s=dict.fromkeys(names, load_s),
    )


def at_work(w: World, name: str) -> None:
    """A request is being answered."""
    w.load(name, use=True)
    w.settle()


class Client:
    """Asks, waits for its answer, thinks, and asks again."""

    def __init__(self, w: World, caller: Caller, names: list[str], *, service_s: float, think_s: float = 0.0) -> None:
        self.w = w
        self.caller = caller
        self.names = names
        self.service_s = service_s
        self.think_s = think_s
        self.waits: list[float] = []
        self.served: list[tuple[float, str]] = []
        self.results: list[JobResult] = []
        self._asked = 0.0
        self._job = 0
        self._ended = w.when_ended
        w.when_ended = self.ended

    def ask(self) -> None:
        self._asked = self.w.now
        # The answer may come at once, before the number of the job is known.
        self._job = -1
        self._job = self.w.load(self.names[0], self.caller, use=True)
        if self._job in self.w.jobs:
            self._answered(self.w.jobs[self._job])

    def ended(self, ended: events.JobEnded) -> None:
        if self._ended is not None:
            self._ended(ended)
        if ended.job == self._job:
            self._answered(ended)

    def _answered(self, ended: events.JobEnded) -> None:
        self._job = 0
        self.results.append(ended.result)
        if ended.result is JobResult.DONE:
            name = ended.model
            self.waits.append(self.w.now - self._asked)
            self.served.append((self.w.now, name))
            self.names.append(self.names.pop(0))
            self.w.at(self.w.now + self.service_s, lambda: self.w.post(events.UseEnded(name)))
            self.w.at(self.w.now + self.service_s + self.think_s, self.ask)


# The order


class Waiter:
    """One in the queue."""

    def __init__(self, name: str, sequence: int, parties: str, priority: Priority, since_s: float = 0.0) -> None:
        self.name = name
        self.ticket = Ticket(sequence, since_s)
        self.parties = parties.split()
        self.wanted_priority = priority
        self.served_per_second = 1.0


def order(*waiters: Waiter, now: float = 0.0, aging_s: float = 60.0) -> str:
    turns = queue.Turns()
    for place, waiter in enumerate(waiters):
        turns.give(waiter.ticket, waiter.parties, [other.ticket for other in waiters[:place]])
    return "".join(waiter.name for waiter in queue.in_order(waiters, now, QueueLimits(aging_s=aging_s)))


def test_of_one_turn_the_quickest_to_serve_many_comes_first_and_nobody_passes_the_overdue() -> None:
    """Three requests for a small model before one for a large one, until that has waited long enough."""
    large, small = Waiter("l", 1, "alice", Priority.NORMAL), Waiter("s", 2, "bob", Priority.NORMAL)
    large.served_per_second, small.served_per_second = 0.1, 3.0
    assert order(large, small) == "sl"
    large.ticket.overdue = True
    assert order(large, small) == "ls"


def test_higher_priorities_come_first_and_the_first_of_one_priority_before_the_second() -> None:
    """Whoever they are."""
    normal, high = Priority.NORMAL, Priority.HIGH
    waiters = (
        Waiter("a", 1, "alice", normal),
        Waiter("b", 2, "bob", high),
        Waiter("c", 3, "carol", normal),
        Waiter("d", 4, "dave", high),
    )
    assert order(*waiters) == "bdac"


def test_everybodys_first_wish_comes_before_anybodys_second() -> None:
    """Who asks for many things does not keep others from their one."""
    normal = Priority.NORMAL
    alices = [Waiter(name, number, "alice", normal) for number, name in enumerate("abc")]
    bobs = [Waiter("x", 3, "bob", normal), Waiter("y", 4, "bob", normal)]
    assert order(*alices, *bobs) == "axbyc"


def test_a_wish_of_several_has_the_best_place_of_any() -> None:
    """Bob's first wish is Alice's second."""
    normal = Priority.NORMAL
    waiters = (
        Waiter("a", 1, "alice", normal),
        Waiter("b", 2, "alice", normal),
        Waiter("c", 3, "alice bob", normal),
    )
    assert order(*waiters) == "acb"


def test_who_waits_rises_and_so_is_not_starved() -> None:
    """One priority for each so many seconds, to the highest; 0 never."""
    low = Waiter("l", 1, "alice", Priority.LOW, since_s=0.0)
    critical = Waiter("c", 2, "bob", Priority.CRITICAL, since_s=179.0)
    assert order(critical, low, now=179.0) == "cl"
    assert order(critical, low, now=180.0) == "lc"
    assert order(critical, low, now=10_000.0, aging_s=0.0) == "cl"


def test_a_stream_of_urgent_wishes_does_not_starve_a_low_one() -> None:
    """It waits three times as long as makes one priority, and for what runs then."""
    w = one_at_a_time("low", *(f"m{n}" for n in range(8)), waiting=QueueLimits(1000, 1e6, 10.0, 60.0), load_s=2.0)
    urgent = [
        Client(w, Caller(f"u{n}", 2000 + n), [f"m{n}", f"m{(n + 4) % 8}"], service_s=3.0, think_s=1.0) for n in range(4)
    ]
    for name in [f"m{n}" for n in range(8)]:
        w.configure(model(name, priority=Priority.CRITICAL))
    for client in urgent:
        client.ask()
    w.pass_time(20)
    w.configure(model("low", priority=Priority.LOW))
    job = w.load("low", ALICE)
    asked = w.now
    while job not in w.jobs:
        w.pass_time(1)
    assert w.result(job) is JobResult.DONE
    assert 180 - 60 <= w.now - asked <= 180 + 5 * (10 + 2 + 3)
    assert all(result is JobResult.DONE for client in urgent for result in client.results)


# Fairness


def test_a_caller_with_many_wishes_does_not_hold_up_one_with_one() -> None:
    """By user, unless a session or a key tells them apart."""
    w = one_at_a_time("z", "a", "b", "c", "x", "y")
    at_work(w, "z")
    for name in "abc":
        w.load(name, ALICE)
    w.load("x", BOB)
    w.load("y", Caller("alice too", 1000, party="session 7"))
    w.settle()
    w.post(events.UseEnded("z"))
    w.settle()
    assert w.launches() == ["z", "a", "x", "y", "b", "c"]


def test_two_callers_fight_for_one_slot_for_ten_minutes_and_are_served_in_turn() -> None:
    """Neither has two turns while the other waits, and each wait is bounded by the turn of the other."""
    w = one_at_a_time("a", "b", load_s=3.0)
    alice = Client(w, ALICE, ["a"], service_s=4.0, think_s=0.5)
    bob = Client(w, BOB, ["b"], service_s=4.0, think_s=0.5)
    alice.ask()
    bob.ask()
    w.pass_time(600)
    served = sorted((*((at, "alice") for at, _ in alice.served), *((at, "bob") for at, _ in bob.served)))
    turns = [who for position, (_, who) in enumerate(served) if position == 0 or served[position - 1][1] != who]
    assert abs(turns.count("alice") - turns.count("bob")) <= 1
    assert min(len(alice.served), len(bob.served)) >= 30
    bound = w.limits.queue.turn_s + 4.0 + 3.0 + 3.0 + 1.0
    assert max(alice.waits) <= bound and max(bob.waits) <= bound


def test_two_callers_of_the_same_two_models_are_served_together() -> None:
    """They wait for one load, not for two."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    jobs = [w.load("a", ALICE, use=True), w.load("a", BOB, use=True)]
    w.settle()
    assert w.queue()[0].requests == 2
    assert w.queue()[0].callers == ("alice", "bob")
    w.post(events.UseEnded("z"))
    w.settle()
    assert [w.result(job) for job in jobs] == [JobResult.DONE] * 2
    assert w.launches() == ["z", "a"]
    assert w.status("a").in_flight == 2


# Requests for what is loaded, and its bound


def test_requests_for_a_model_that_is_ready_do_not_wait_for_those_in_the_queue() -> None:
    """They are what is grouped: it is loaded anyway."""
    w = one_at_a_time("a", "b")
    at_work(w, "a")
    w.load("b", BOB)
    w.settle()
    job = w.load("a", CAROL, use=True)
    assert w.result(job) is JobResult.DONE
    assert w.status("a").in_flight == 2


def test_a_steady_trickle_on_one_model_keeps_another_waiting_for_a_turn_at_most() -> None:
    """Then the first takes no new requests, answers what it has, and goes; afterwards it is served again."""
    w = one_at_a_time("a", "b", load_s=1.0)
    first = Client(w, ALICE, ["a"], service_s=6.0)
    second = Client(w, CAROL, ["a"], service_s=6.0)
    first.ask()
    w.pass_time(4)
    second.ask()
    w.pass_time(20)
    assert len(first.served) > 3, "always one of both is answered"
    asked = w.now
    job = w.load("b", BOB, use=True)
    w.pass_time(5)
    assert job not in w.jobs
    assert 'waiting until "a" has answered' in w.status("b").waits_for
    w.pass_time(15)
    assert w.result(job) is JobResult.DONE
    assert "2 requests in flight" in w.notices(Kind.EVICTED)[0].message
    ready_at = w.status("b").ready_since_s or 0.0
    assert ready_at - asked <= w.limits.queue.turn_s + 6.0 + 1.0 + 0.1
    w.post(events.UseEnded("b"))
    before = len(first.served)
    w.pass_time(30)
    assert len(first.served) > before
    assert set(first.results) | set(second.results) == {JobResult.DONE}


def test_an_answer_is_not_cut_however_long_somebody_is_overdue() -> None:
    """It goes on; the bound of a drain brings it back to work, and later it is asked again."""
    w = one_at_a_time("a", "b")
    at_work(w, "a")
    job = w.load("b", BOB)
    w.pass_time(2_000)
    assert job not in w.jobs
    assert w.status("a").in_flight == 1
    assert w.queue()[0].overdue
    w.post(events.UseEnded("a"))
    w.pass_time(1)
    assert w.result(job) is JobResult.DONE


def test_who_stands_before_one_that_is_overdue_has_its_turn_too() -> None:
    """Else the one behind would wait for both turns."""
    w = one_at_a_time("a", "b", "c", waiting=QueueLimits(1000, 1e6, 10.0, 0.0), load_s=1.0)
    first = Client(w, ALICE, ["a"], service_s=3.0)
    second = Client(w, Caller("x", 1), ["a"], service_s=3.0)
    first.ask()
    w.pass_time(2)
    second.ask()
    w.pass_time(10)
    w.load("b", BOB)
    w.pass_time(8)
    urgent = w.load("c", CAROL, priority=Priority.HIGH)
    asked = w.now
    w.pass_time(8)
    assert w.result(urgent) is JobResult.DONE
    assert (w.status("c").load_seconds or 0) == 1.0
    assert w.notices(Kind.MODEL_LOADED)[-2].model == "c" or w.now - asked <= 8


def test_what_was_loaded_for_a_request_stays_for_its_residence() -> None:
    """Two that take turns do not evict each other after every answer."""
    w = one_at_a_time("a", "b", eviction=EvictionLimits(residence_s=5.0))
    at_work(w, "a")
    w.post(events.UseEnded("a"))
    job = w.load("b", BOB)
    w.pass_time(4.5)
    assert job not in w.jobs
    w.pass_time(1)
    assert w.result(job) is JobResult.DONE


# The bounds of waiting


def test_the_eleventh_is_told_that_the_queue_is_full() -> None:
    """With numbers, at once; the ten keep their places."""
    names = [f"m{number}" for number in range(11)]
    w = one_at_a_time("z", *names, waiting=QueueLimits())
    at_work(w, "z")
    jobs = []
    for name in names:
        jobs.append(w.load(name, BOB))
        w.settle()
    assert [job in w.jobs for job in jobs] == [False] * 10 + [True]
    ended = w.jobs[jobs[-1]]
    assert ended.result is JobResult.FAILED
    assert isinstance(ended.error, QueueFull)
    assert "10 wait for memory already, the limit is 10" in ended.message
    assert [place.position for place in w.queue()] == list(range(1, 11))
    assert w.state("m10") is State.COLD


def test_a_full_queue_takes_one_more_for_a_model_that_waits_already() -> None:
    """It is one load."""
    w = one_at_a_time("z", "a", waiting=QueueLimits(size=1))
    at_work(w, "z")
    first, second = w.load("a", ALICE), w.load("a", BOB)
    w.settle()
    assert first not in w.jobs and second not in w.jobs


def test_who_has_waited_too_long_is_told_for_what_and_leaves_nothing() -> None:
    """Its job ends, and the queue is empty."""
    w = one_at_a_time("z", "a", waiting=QueueLimits(timeout_s=30.0, turn_s=1e6))
    at_work(w, "z")
    job = w.load("a", BOB)
    w.pass_time(29)
    assert job not in w.jobs
    assert w.queue()[0].until_s == 1030.0
    w.pass_time(1.5)
    ended = w.jobs[job]
    assert ended.result is JobResult.TIMEOUT and isinstance(ended.error, WaitedTooLong)
    assert ended.message.startswith('cannot load "a": it has waited 30 s, at last needs 8.0 GiB, 0 MiB available on')
    assert w.queue() == ()
    assert len(w.notices(Kind.LOAD_TIMED_OUT)) == 1
    w.post(events.UseEnded("z"))
    w.settle()
    assert w.launches() == ["z"]


def test_of_two_who_wait_for_a_model_only_the_impatient_one_leaves() -> None:
    """The other keeps the place."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    hurried, patient = w.load("a", ALICE, wait_s=5.0), w.load("a", BOB)
    w.pass_time(6)
    assert w.result(hurried) is JobResult.TIMEOUT
    w.post(events.UseEnded("z"))
    w.settle()
    assert w.result(patient) is JobResult.DONE


def test_who_would_not_wait_is_told_at_once_why_it_would_have_to() -> None:
    """A wait of 0 is now or never."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    job = w.load("a", BOB, wait_s=0.0)
    w.settle()
    assert w.result(job) is JobResult.TIMEOUT
    assert w.jobs[job].message.startswith('cannot load "a" at once: needs 8.0 GiB')
    assert w.queue() == ()


def test_who_would_not_wait_and_joins_one_who_does_is_told_at_once() -> None:
    """Also when nothing has changed for that one."""
    w = one_at_a_time("z", "a", "b")
    at_work(w, "z")
    for _ in range(3):
        w.load("a", ALICE)
    patient = w.load("b", BOB)
    w.settle()
    hasty = w.load("b", CAROL, wait_s=0.0)
    w.settle()
    assert w.result(hasty) is JobResult.TIMEOUT
    assert w.jobs[hasty].message.startswith('cannot load "b" at once: waiting for those before it')
    assert patient not in w.jobs


def test_who_would_not_wait_has_idle_models_unloaded_all_the_same() -> None:
    """That is part of the load."""
    w = one_at_a_time("z", "a")
    w.load("z")
    w.settle()
    job = w.load("a", BOB, wait_s=0.0)
    w.settle()
    assert w.result(job) is JobResult.DONE


def test_who_would_not_wait_does_not_wait_for_a_model_that_somebody_else_has_sent_away() -> None:
    """It still answers; for longer than memory takes to come back nobody in a hurry waits."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    w.unload("z")
    w.settle()
    job = w.load("a", BOB, wait_s=0.0)
    w.pass_time(11)
    assert w.result(job) is JobResult.TIMEOUT


@pytest.mark.parametrize("how", ["cancel", "unload"])
def test_a_canceled_waiter_leaves_nothing_to_those_behind_it(how: str) -> None:
    """What was kept for it is theirs at once."""
    w = World(
        {name: model(name) for name in ("z", "big", "small")},
        {"z": 6 * GIB, "big": 8 * GIB, "small": 2 * GIB},
        limits=limits(),
    )
    at_work(w, "z")
    big, small = w.load("big", BOB), w.load("small", CAROL)
    w.settle()
    assert "behind" not in w.status("small").waits_for
    assert small not in w.jobs
    if how == "cancel":
        w.post(events.CancelAsked(big))
    else:
        w.unload("big")
    w.settle()
    assert w.result(small) is JobResult.DONE
    assert [place.model for place in w.queue()] == []


# Nobody waits for what it does not need


def test_loads_that_fit_beside_each_other_run_at_the_same_time() -> None:
    """The second is asked for while the first fills its memory."""
    w = World({name: model(name) for name in "ab"}, {"a": 5 * GIB, "b": 2 * GIB}, load_s={"a": 10.0, "b": 2.0})
    w.load("a")
    w.pass_time(8)
    job = w.load("b")
    w.pass_time(0.5)
    assert w.state("b") is State.LOADING
    w.pass_time(1.6)
    assert w.result(job) is JobResult.DONE


def test_who_fits_beside_what_the_first_waits_for_is_loaded_at_once() -> None:
    """And who does not, is not."""
    sizes = {"z": 5 * GIB, "first": 6 * GIB, "fits": 2 * GIB, "not": 1 * GIB}
    w = World({name: model(name) for name in sizes}, sizes, limits=limits())
    at_work(w, "z")
    first, fits, not_any_more = w.load("first", ALICE), w.load("fits", BOB, use=True), w.load("not", CAROL)
    w.settle()
    assert first not in w.jobs
    assert w.result(fits) is JobResult.DONE
    assert not_any_more not in w.jobs
    w.post(events.UseEnded("z"))
    w.settle()
    assert w.result(first) is JobResult.DONE


def test_a_look_that_knows_nothing_of_a_wish_gives_nothing_of_it_away() -> None:
    """Another context is wished for while the look is under way: those behind do not get what was kept."""
    sizes = {"z": 6 * GIB, "first": 8 * GIB, "second": 2 * GIB}
    w = World({name: model(name) for name in sizes}, sizes, limits=limits())
    at_work(w, "z")
    w.load("first", ALICE)
    w.settle()
    second = w.load("second", BOB)
    w.load("first", CAROL, context=-1)
    w.look()
    assert w.launches() == ["z"]
    assert second not in w.jobs


def test_a_claim_is_not_granted_on_a_look_that_began_before_it() -> None:
    """The next one is asked for."""
    w = one_at_a_time("a")
    w.load("a")
    claim = w.claim(GIB)
    w.look()
    assert claim not in w.granted
    assert any(isinstance(a, events.Sample) for a in w.pending)


# What is told


def test_the_queue_tells_of_everybody_in_the_order_of_service() -> None:
    """Who, how much, since when, until when, and for what."""
    w = one_at_a_time("z", "a", "b")
    at_work(w, "z")
    w.load("a", ALICE)
    w.settle()
    w.now += 5
    w.load("b", BOB, priority=Priority.HIGH, wait_s=60.0)
    w.claim(2 * GIB, CAROL)
    w.settle()
    first, second, third = w.queue()
    assert (first.model, first.position, first.priority, first.callers) == ("b", 1, Priority.HIGH, ("bob",))
    assert (first.since_s, first.until_s, first.need_bytes) == (1005.0, 1065.0, 8 * GIB)
    assert (second.model, second.since_s) == ("a", 1000.0)
    assert second.waits_for == "waiting for those before it on Test GPU"
    assert (third.model, third.claim, third.callers, third.need_bytes) == ("", 1, ("carol",), 2 * GIB)


def test_a_wait_is_told_once_and_again_only_when_its_cause_changes() -> None:
    """Not with every look."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    w.load("a", BOB)
    w.pass_time(9)
    assert [notice.message for notice in w.notices(Kind.LOAD_WAITS)] == [
        'Load "a": needs 8.0 GiB, 0 MiB available on Test GPU; waiting until "z" has answered'
    ]
    w.pass_time(2)
    assert [n.message for n in w.notices(Kind.LOAD_WAITS)][1:] == [
        'Load "a": waiting until "z" is unloaded: needs 8.0 GiB, 0 MiB available on Test GPU'
    ]


def test_who_waited_is_told_how_long_when_it_is_loaded() -> None:
    """In the notice of the load."""
    w = one_at_a_time("z", "a")
    at_work(w, "z")
    w.load("a", BOB)
    w.pass_time(7)
    w.post(events.UseEnded("z"))
    w.settle()
    assert w.notices(Kind.LOAD_STARTED)[-1].message == (
        'Loading "a" with llama_server on Test GPU, 8.0 GiB reserved (as configured), after 7 s in the queue'
    )


def test_a_hundred_loads_at_once_each_end_once() -> None:
    """Some are loaded, the rest is told that the queue is full."""
    names = [f"m{number}" for number in range(100)]
    w = World({name: model(name) for name in names}, dict.fromkeys(names, 2 * GIB), gpus={GPU: Gpu()})
    jobs = [w.load(name) for name in names]
    w.pass_time(400)
    results = [w.result(job) for job in jobs]
    assert results.count(JobResult.DONE) >= 10
    assert {type(w.jobs[job].error) for job in jobs if w.result(job) is not JobResult.DONE} <= {QueueFull}
