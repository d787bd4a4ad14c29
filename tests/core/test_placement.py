"""On which devices a model is loaded, whole, split or reduced, and what is said of it."""

from gpud.core import events
from gpud.core.errors import BudgetExceeded, GpuUnavailable
from gpud.core.events import Kind
from gpud.core.facts import HOST, JobResult, State
from gpud.core.quote import ANY_GPU, Offer, Part, Quote, Share, Source
from gpud.core.record import replace

from .world import ALICE, BOB, GIB, GPU, GPU1, Gpu, World, model


def offer(*gibs: float, on: tuple[str, ...] = (ANY_GPU,), source: Source = Source.FORMULA, **more: object) -> Offer:
    shares = tuple(Share(device, int(gib * GIB)) for device, gib in zip(on, gibs, strict=True))
    return Offer(shares, source, **more)  # type: ignore[arg-type]


def world(*names: str, size: int = 3 * GIB, gpus: tuple[int, ...] = (8, 8), **more: object) -> World:
    devices = {f"GPU-{index}": Gpu(gib * GIB) for index, gib in enumerate(gpus)}
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), devices, **more)  # type: ignore[arg-type]


BOTH = (GPU, GPU1, HOST)
SPLIT = Quote((offer(9), offer(5, 5, 1, on=BOTH, split=(0.5, 0.5))))


def test_models_fill_the_gpu_with_the_most_room() -> None:
    """One after the other; nobody is evicted while another GPU has room."""
    w = world("a", "b", "c", size=5 * GIB)
    for name in "ab":
        w.load(name)
        w.settle()
    assert {w.status("a").device, w.status("b").device} == {GPU, GPU1}
    assert w.notices(Kind.EVICTED) == []
    w.load("c")
    w.settle()
    assert len(w.notices(Kind.EVICTED)) == 1


def test_two_loads_at_once_go_to_two_gpus() -> None:
    """The second knows what the first has been promised."""
    w = world("a", "b", size=5 * GIB, load_s={"a": 5.0, "b": 5.0})
    jobs = [w.load("a"), w.load("b")]
    w.pass_time(6)
    assert [w.result(job) for job in jobs] == [JobResult.DONE] * 2
    assert {w.status("a").device, w.status("b").device} == {GPU, GPU1}


def test_a_model_that_fits_no_gpu_is_split_over_two() -> None:
    """Every surface knows its shares; both GPUs' books have theirs."""
    w = world("a", quotes={"a": SPLIT})
    w.load("a")
    w.settle()
    status = w.status("a")
    assert status.shares == ((GPU, 5 * GIB), (GPU1, 5 * GIB), (HOST, GIB))
    assert (status.device, status.need_bytes, status.used_bytes) == (GPU, 10 * GIB, 10 * GIB)
    assert w.last_launch("a").offer.split == (0.5, 0.5)
    assert [w.device(uuid).committed_bytes for uuid in (GPU, GPU1, HOST)] == [5 * GIB, 5 * GIB, GIB]
    assert 'Loading "a" with llama_server on Test GPU and Test GPU 1, 10.0 GiB reserved (calculated from its file)' in (
        w.notices(Kind.LOAD_STARTED)[0].message
    )
    assert w.learned["a"] == 10 * GIB


def test_room_for_a_split_model_is_made_on_both_gpus() -> None:
    """By those that are idle there."""
    w = world("a", "x", "y", size=5 * GIB, quotes={"a": SPLIT})
    for name in "xy":
        w.load(name)
        w.settle()
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE
    assert (w.state("x"), w.state("y")) == (State.COLD, State.COLD)


def test_a_split_model_makes_room_on_either_gpu_and_gives_both_back() -> None:
    """When it goes, it goes from both."""
    w = world("a", "b", size=5 * GIB, quotes={"a": SPLIT})
    w.load("a")
    w.settle()
    w.load("b")
    w.settle()
    assert w.state("a") is State.COLD
    assert sum(w.device(uuid).committed_bytes for uuid in (GPU, GPU1)) == 5 * GIB


def test_a_gpu_that_is_ill_or_asleep_takes_no_part() -> None:
    """The other one is used; what needs both is refused with the reason."""
    for ill in (Gpu(health="it has fallen off the bus"), Gpu(asleep=True)):
        w = world("a", "b", quotes={"b": SPLIT})
        w.gpus[GPU] = ill
        w.load("a")
        job = w.load("b")
        w.settle()
        assert w.status("a").device == GPU1
        assert isinstance(w.jobs[job].error, BudgetExceeded | GpuUnavailable)


def test_a_gpu_that_falls_ill_is_told_once() -> None:
    """And its models keep what was measured last."""
    w = world("a", gpus=(8,))
    w.load("a")
    w.settle()
    w.gpus[GPU].health = "it has fallen off the bus"
    for _ in range(3):
        w.post(events.LookAsked())
        w.settle()
    assert [notice.message for notice in w.notices(Kind.GPU_PROBLEM)] == ["Test GPU: it has fallen off the bus"]
    assert w.status("a").used_bytes == 3 * GIB


# Less than was configured


SMALLER = (
    offer(6),
    offer(4, context=8192, reduced="a context of 8192"),
    offer(3, context=4096, reduced="a context of 4096"),
    offer(2, 3, on=(ANY_GPU, HOST), layers=20, context=4096, reduced="20 of 33 layers on the GPU"),
)


def reduced(**more: object) -> World:
    w = world("a", "x", gpus=(8,), quotes={"a": Quote(SMALLER)}, **more)
    w.sizes["x"] = 5 * GIB
    return w


def test_as_much_as_fits_is_loaded_and_said_everywhere() -> None:
    """Because something stands in the way that stays."""
    w = reduced()
    w.configure(model("x", pinned=True))
    w.load("x")
    w.settle()
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.DONE
    status = w.status("a")
    assert (status.reduced, status.need_bytes, status.source) == ("a context of 4096", 3 * GIB, "formula")
    assert status.model.settings.context == 4096
    assert "3.0 GiB reserved (calculated from its file), a context of 4096" in w.notices(Kind.LOAD_STARTED)[-1].message
    assert w.notices(Kind.LOAD_STARTED)[-1].fields["reduced"] == "a context of 4096"


def test_fewer_layers_leave_the_rest_in_the_machines_memory() -> None:
    """That counts there."""
    w = reduced()
    w.gpus[GPU].foreign_bytes = 6 * GIB
    w.load("a")
    w.settle()
    status = w.status("a")
    assert status.shares == ((GPU, 2 * GIB), (HOST, 3 * GIB))
    assert (status.model.settings.layers, status.model.settings.context) == ("20", 4096)
    assert status.need_bytes == 2 * GIB
    assert w.device(HOST).committed_bytes == 3 * GIB


def test_nothing_is_given_up_while_idle_or_busy_models_can_make_room() -> None:
    """It waits for the busy one rather than be loaded smaller."""
    w = reduced()
    w.load("x", use=True)
    w.settle()
    job = w.load("a")
    w.settle()
    assert job not in w.jobs
    w.post(events.UseEnded("x"))
    w.settle()
    assert w.status("a").reduced == ""
    assert w.status("a").need_bytes == 6 * GIB


def test_the_next_load_is_as_configured_again() -> None:
    """Less was for that one."""
    w = reduced()
    w.gpus[GPU].foreign_bytes = 4 * GIB
    w.load("a")
    w.settle()
    assert w.status("a").reduced == "a context of 8192"
    w.unload("a")
    w.gpus[GPU].foreign_bytes = 0
    w.settle()
    w.load("a")
    w.settle()
    assert w.status("a").reduced == ""
    assert w.status("a").model.settings.context is None


def test_what_is_larger_than_the_machine_is_refused_at_once_with_what_would_fit() -> None:
    """Before anybody is unloaded."""
    less = (offer(7, context=4096, reduced="a context of 4096"),)
    w = world("a", "x", gpus=(8,), quotes={"a": Quote((offer(12),), less=less)})
    w.load("x")
    w.settle()
    job = w.load("a")
    w.settle()
    assert w.result(job) is JobResult.FAILED
    assert w.jobs[job].message == (
        'cannot load "a": it needs 12.0 GiB, the whole budget of Test GPU is 8.0 GiB; it fits with a context of 4096'
    )
    assert w.state("x") is State.READY


def test_the_parts_of_what_it_holds_are_told() -> None:
    """How much of it is context."""
    part = Part("CUDA0", 0, weights_bytes=2 * GIB, kv_bytes=GIB, state_bytes=GIB // 2)
    w = world("a", gpus=(8,), quotes={"a": Quote((offer(4, source=Source.PROBE, parts=(part,)),))})
    w.load("a")
    w.settle()
    assert w.status("a").kv_bytes == GIB + GIB // 2
    assert w.status("a").source == "probe"


# Several engines


def test_the_first_engine_that_can_load_it_does() -> None:
    """Another one takes less, and comes second."""
    other = replace(model("a"), engine="ollama")
    quote = Quote((offer(9, engine="llama_server"), offer(4, engine="ollama")))
    w = world("a", gpus=(8,), quotes={"a": quote})
    w.configure(model("a", alternatives=(other,)))
    w.load("a")
    w.settle()
    assert w.last_launch("a").model.engine == "ollama"
    assert w.last_launch("a").model.name == "a"
    assert 'Loading "a" with ollama on Test GPU' in w.notices(Kind.LOAD_STARTED)[0].message
    assert w.status("a").model.engine == "ollama"


# Adoption


def test_an_adopted_engine_is_where_it_was_with_what_it_holds() -> None:
    """Over two GPUs, with fewer layers than configured."""
    w = world("a", "b", size=4 * GIB)
    w.adopt("a", Share(GPU, 5 * GIB), Share(GPU1, 4 * GIB))
    w.settle()
    assert w.status("a").used_bytes == 9 * GIB
    assert w.device(GPU1).committed_bytes == 4 * GIB
    w.load("b")
    w.settle()
    assert w.status("b").device == GPU1
    assert w.state("a") is State.READY
    w.post(events.UnloadAsked(99, "a", ALICE))
    w.settle()
    assert w.jobs[99].message == "unloaded 1 model, freed 9.0 GiB"


def test_what_an_adopted_engine_was_denied_is_still_said() -> None:
    """An earlier gpud loaded it with fewer layers."""
    w = world("a", gpus=(8,))
    w.post(events.Adopted("a", 1, (Share(GPU, 2 * GIB), Share(HOST, GIB)), context=4096, layers=20))
    status = w.status("a")
    assert status.reduced == "20 layers on the GPU"
    assert (status.model.settings.layers, status.model.settings.context) == ("20", 4096)


# What would be


def test_what_would_be_is_said_and_nothing_is_done() -> None:
    """It fits, waits, evicts, or never will; behind those who wait."""
    w = world("a", gpus=(8,), size=6 * GIB)
    w.load("a")
    w.settle()
    before = w.scheduler.model_statuses(), w.scheduler.gpu_statuses(), len(w.told)

    def considered(gib: int, gpu: str = "") -> tuple[str, tuple[str, ...]]:
        found = w.scheduler.consider(gib * GIB, gpu)
        return found.verdict, found.victims

    assert considered(2) == ("fits", ())
    assert considered(3) == ("evicts", ("a",))
    assert considered(9) == ("refused", ())
    assert considered(1, "5") == ("refused", ())
    assert (w.scheduler.model_statuses(), w.scheduler.gpu_statuses(), len(w.told)) == before
    w.post(events.UseBegan("a"))
    assert considered(3) == ("waits", ())
    w.claim(4 * GIB, BOB)
    w.settle()
    assert considered(2) == ("fits", ())
    assert considered(8) == ("waits", ())
    w.drop(1)
    assert considered(2) == ("fits", ())


def test_what_would_be_does_not_count_those_who_have_left() -> None:
    """Nobody is before it any more, although nobody has looked since."""
    w = world("a", "b", gpus=(8,), size=6 * GIB)
    w.sizes["b"] = 7 * GIB
    w.load("a", use=True)
    w.settle()
    job = w.load("b", BOB)
    w.settle()
    assert w.scheduler.consider(2 * GIB, "").verdict == "waits"
    w.post(events.CancelAsked(job))
    assert w.scheduler.consider(2 * GIB, "").verdict == "fits"
