"""Which of several engines serves a model: by what they have, what fits, who has room, and what a request wants."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gpud.core.errors import BackendFailed, Busy, InvalidOption
from gpud.core.events import LoadOptions
from gpud.core.facts import HOST, Caller, Endpoint, JobResult, Model, State
from gpud.core.ports import RunnerRecord, Standing
from gpud.core.quote import ANY_GPU, Estimate, Offer, Part, Quote, Share, Source
from gpud.core.record import replace
from gpud.engine.choice import Way, chosen

from .parts import GIB, Bench, FakeBackend, FakeRunner, MemoryStore

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")
BOB = Caller("bob", 1001, label="bob")


class Attached(FakeBackend):
    """Also uses engines that somebody else runs, and says how they stand."""

    def __init__(self, stands: Standing | BackendFailed | None = None) -> None:
        super().__init__()
        self.stands = stands
        self.hangs = False

    async def standing(self, model: Model) -> Standing | None:
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.stands, BackendFailed):
            raise self.stands
        return self.stands


class Measuring(FakeBackend):
    """Decides itself what its engine takes."""

    def need(self, model: Model, *, on_gpu: bool) -> Estimate | None:
        return Estimate("", (Part("GPU0", 0, 2 * GIB, GIB), Part("Host", None, GIB)), Source.FORMULA)


def by(*engines: str, size_bytes: int | None = GIB) -> Model:
    """A model that these engines serve, the first choice first."""
    first, *others = [Model("a", engine, size_bytes=size_bytes) for engine in engines]
    return replace(first, alternatives=tuple(others))


def bench(model: Model, **backends: FakeBackend) -> Bench:
    made = Bench(model)
    made.engine._work.backends = dict(backends)
    return made


async def loaded_by(place: Bench, **backends: FakeBackend) -> str:
    """The engine that was told to load it."""
    ended = await place.engine.wait(place.engine.load("a", ALICE))
    assert ended.result is JobResult.DONE, ended.message
    (name,) = [name for name, backend in backends.items() if backend.orders]
    (status,) = place.engine.snapshot().models
    assert status.model.engine == name
    return name


def quote(*needs: tuple[int, str]) -> Quote:
    return Quote(tuple(Offer((Share(ANY_GPU, size),), reduced=reduced) for size, reduced in needs))


# The order, by values ------------------------------------------------------------------------------------------------


def test_without_anything_that_runs_the_configured_order_holds() -> None:
    """And what gives up context or layers comes after what does not, whichever engine it is."""
    ways = [Way(quote((1, ""), (2, "less"))), Way(quote((3, ""), (4, "less")))]
    assert [offer.need_bytes for offer in chosen(ways).offers] == [1, 3, 2, 4]


def test_what_runs_and_has_room_comes_first_the_less_busy_before_the_busier() -> None:
    """One with a queue has no room: it stays where the configuration has it."""
    ways = [
        Way(quote((1, ""))),
        Way(quote((2, "")), Standing(working=5, full=True)),
        Way(quote((3, "")), Standing(working=2)),
        Way(quote((4, "")), Standing(working=1)),
    ]
    assert [offer.need_bytes for offer in chosen(ways).offers] == [4, 3, 1, 2]


def test_what_holds_its_memory_already_needs_none() -> None:
    """On the same devices, and marked as such."""
    (offer,) = chosen([Way(Quote((Offer((Share("GPU-0", 5), Share(HOST, 7))),)), Standing(resident=True))]).offers
    assert offer.shares == (Share("GPU-0", 0), Share(HOST, 0))
    assert offer.resident


# On the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        (Standing(0), Standing(0), "one"),
        (Standing(1), Standing(0), "two"),
        (Standing(3, full=True), Standing(2), "two"),
        (Standing(3, full=True), None, "one"),
        (None, Standing(4), "two"),
        (None, None, "one"),
    ],
)
def test_the_engine_with_idle_slots_wins(first: Standing | None, second: Standing | None, wins: str, run: Run) -> None:
    """Before the order of the configuration, which decides between equals."""

    async def work() -> None:
        one, two = Attached(first), Attached(second)
        async with bench(by("one", "two"), one=one, two=two) as place:
            assert await loaded_by(place, one=one, two=two) == wins

    run(work())


def test_an_engine_that_does_not_have_the_model_is_passed_over(run: Run) -> None:
    """It is said only when no other has it either; then the first one's reason."""

    async def work() -> None:
        absent = BackendFailed("nothing answers", kind="unreachable", preflight=True)
        one, two = Attached(absent), FakeBackend()
        async with bench(by("one", "two"), one=one, two=two) as place:
            assert await loaded_by(place, one=one, two=two) == "two"
        two = FakeBackend()
        two.unfit = BackendFailed("no such file", preflight=True)
        async with bench(by("one", "two"), one=one, two=two) as place:
            ended = await place.engine.wait(place.engine.load("a", ALICE))
            assert (ended.result, ended.message) == (JobResult.FAILED, "nothing answers")

    run(work())


def test_an_engine_that_could_never_hold_it_is_passed_over(run: Run) -> None:
    """The GPU has 8 GiB."""

    async def work() -> None:
        one, two = FakeBackend(), FakeBackend()
        model = by("one", "two")
        large = replace(model, size_bytes=40 * GIB)
        async with bench(large, one=one, two=two) as place:
            assert await loaded_by(place, one=one, two=two) == "two"
        both = replace(large, alternatives=(replace(model.alternatives[0], size_bytes=50 * GIB),))
        async with bench(both, one=one, two=two) as place:
            ended = await place.engine.wait(place.engine.load("a", ALICE))
            assert ended.error is not None and ended.error.code == "budget-exceeded"
            assert "it needs 40.0 GiB" in ended.message

    run(work())


def test_an_engine_that_holds_the_model_is_used_however_full_the_gpu_is(run: Run) -> None:
    """Its memory is among what is used: it is not asked for a second time, nor told to have taken too much."""

    async def work() -> None:
        one = Attached(Standing(resident=True))
        async with bench(by("one", size_bytes=40 * GIB), one=one) as place:
            assert await loaded_by(place, one=one) == "one"
            await place.engine.refresh()
            (status,) = place.engine.snapshot().models
            assert status.need_bytes == 0
            assert not any("more than the 0" in entry.notice.message for entry in place.store.entries)

    run(work())


def test_an_engine_that_hangs_is_one_that_says_nothing(run: Run) -> None:
    """Nobody waits long for its answer; it is then as good as one that has to be loaded."""

    async def work() -> None:
        one, two = Attached(), FakeBackend()
        one.hangs = True
        async with bench(by("one", "two"), one=one, two=two) as place:
            assert await loaded_by(place, one=one, two=two) == "one"

    run(work(), timeout_s=50)


def test_what_a_backend_decides_to_take_is_what_is_reserved(run: Run) -> None:
    """With what every process has beside it, on the GPU and in host memory."""

    async def work() -> None:
        one = Measuring()
        async with bench(by("one", size_bytes=None), one=one) as place:
            offered = (await place.engine.quote("a")).offers[0]
            assert offered.source is Source.FORMULA
            assert 3 * GIB < offered.gpu_bytes < 4 * GIB
            assert GIB < offered.host_bytes < 1.2 * GIB
            assert offered.kv_bytes == GIB
            await loaded_by(place, one=one)
            (order,) = one.orders
            assert [gpu.total_bytes for gpu in order.gpus] == [8 * GIB]

    run(work())


# An order per request ------------------------------------------------------------------------------------------------


def test_a_request_may_name_its_engines(run: Run) -> None:
    """Only these, in its own order; once it is loaded by another one, that has to go first."""

    async def work() -> None:
        one, two, three = FakeBackend(), FakeBackend(), FakeBackend()
        async with bench(by("one", "two", "three"), one=one, two=two, three=three) as place:
            wished = LoadOptions(engines=("three", "two"))
            assert (await place.engine.wait(place.engine.load("a", ALICE, wished))).result is JobResult.DONE
            assert [len(backend.orders) for backend in (one, two, three)] == [0, 0, 1]
            (status,) = place.engine.snapshot().models
            assert status.model.engine == "three"
            again = place.engine.load("a", BOB, LoadOptions(engines=("one", "three")))
            assert (await place.engine.wait(again)).message == '"a" is already loaded'
            with pytest.raises(Busy, match='"a" is ready with three, not one or two'):
                place.engine.load("a", BOB, LoadOptions(engines=("one", "two")))
            async with place.engine.use("a", BOB, LoadOptions(engines=("three",))):
                pass
            await place.engine.wait(place.engine.unload("a", ALICE))
            await place.engine.wait(place.engine.load("a", ALICE))
            assert len(one.orders) == 1

    run(work())


def test_an_engine_that_the_model_is_not_configured_for_is_refused(run: Run) -> None:
    """With those that it is configured for."""

    async def work() -> None:
        async with bench(by("one", "two"), one=FakeBackend(), two=FakeBackend()) as place:
            with pytest.raises(InvalidOption) as caught:
                place.engine.load("a", ALICE, LoadOptions(engines=("vllm",)))
            assert caught.value.message == 'cannot load "a" with vllm: it is configured for one, two'

    run(work())


def test_those_who_wait_do_not_get_another_engine_than_they_want(run: Run) -> None:
    """A second wish that contradicts the first is refused while the first waits."""

    async def work() -> None:
        one, two = FakeBackend(), FakeBackend()
        async with bench(by("one", "two"), one=one, two=two) as place:
            job = place.engine.load("a", ALICE, LoadOptions(engines=("two",)))
            with pytest.raises(Busy, match="somebody waits for it with two"):
                place.engine.load("a", BOB, LoadOptions(engines=("one",)))
            assert (await place.engine.wait(job)).result is JobResult.DONE
            assert len(two.orders) == 1

    run(work())


def test_a_wish_that_comes_while_others_are_being_looked_at_is_heeded(run: Run) -> None:
    """The look is made again with what is wanted now."""

    async def work() -> None:
        one, two = FakeBackend(), FakeBackend()
        async with bench(by("one", "two"), one=one, two=two) as place:
            first = place.engine.load("a", ALICE)
            second = place.engine.load("a", BOB, LoadOptions(engines=("two",)))
            for job in (first, second):
                assert (await place.engine.wait(job)).result is JobResult.DONE
            assert [len(one.orders), len(two.orders)] == [0, 1]

    run(work())


def test_a_context_that_is_asked_for_holds_for_every_engine(run: Run) -> None:
    """Whichever of them gets it."""

    async def work() -> None:
        one, two = FakeBackend(), FakeBackend()
        one.unfit = BackendFailed("no", preflight=True)
        async with bench(by("one", "two"), one=one, two=two) as place:
            await place.engine.wait(place.engine.load("a", ALICE, LoadOptions(context=99)))
            assert two.orders[0].model.settings.context == 99
            assert place.engine._scheduler.state_of("a") is State.READY

    run(work())


def test_an_engine_of_an_earlier_daemon_is_known_for_what_it_is(run: Run) -> None:
    """Also where it is not the first of the model's."""

    async def work() -> None:
        store = MemoryStore()
        store.keep(RunnerRecord("a-1", "a", "two", "1-None", Endpoint(), shares=(Share("GPU-0", GIB),)))
        one, two = FakeBackend(), FakeBackend()
        made = Bench(by("one", "two"), store=store)
        made.engine._work.backends = {"one": one, "two": two}
        two.adoptable["a-1"] = FakeRunner(7)
        async with made as place:
            (status,) = place.engine.snapshot().models
            assert (status.state, status.model.engine) == (State.READY, "two")
            with pytest.raises(Busy, match="is ready with two, not one"):
                place.engine.load("a", ALICE, LoadOptions(engines=("one",)))

    run(work())
