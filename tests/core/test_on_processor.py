"""A model that was to be on a GPU and is not there says so, once, with the numbers; whatever is there does not."""

import pytest

from gpud.core import events
from gpud.core.events import Kind, Level
from gpud.core.facts import EngineSettings, State
from gpud.core.quote import Offer, Quote, Share

from .world import GIB, GPU, GPU1, MIB, Engine, Gpu, World, model


def world(*names: str, size: int, **more: object) -> World:
    return World({name: model(name) for name in names}, dict.fromkeys(names, size), **more)  # type: ignore[arg-type]


def warned(w: World) -> list[str]:
    return [notice.message for notice in w.notices(Kind.ON_PROCESSOR)]


def test_a_model_of_which_the_driver_knows_no_process_is_told_of() -> None:
    """The build has no GPU: the numbers, the device and what to do are said, once, and the status has it, too."""
    w = world("a", size=5 * GIB, real_sizes={"a": 0})
    w.load("a")
    w.settle()

    (notice,) = w.notices(Kind.ON_PROCESSOR)
    assert notice.message == (
        '"a" runs on the processor: it holds 0 MiB of the 5.0 GiB that it was to have on Test GPU; it answers slowly'
    )
    assert notice.level is Level.WARNING
    assert "gpudctl doctor" in notice.detail[0]
    assert "layers 0" in notice.detail[0]
    assert (notice.fields["used_bytes"], notice.fields["need_bytes"]) == (0, 5 * GIB)
    assert w.status("a").reduced == "the processor: it holds 0 MiB of the 5.0 GiB that it was to have on Test GPU"
    assert w.learned == {}, "what it holds elsewhere is not what it needs on a GPU"
    w.load("a")
    w.settle()
    assert len(warned(w)) == 1, "one load, one word"


def test_a_context_without_a_model_is_told_of() -> None:
    """The driver knows its process, which holds less than a tenth of what was promised and less than 100 MiB."""
    w = world("a", size=5 * GIB, real_sizes={"a": 99 * MIB})
    w.load("a")
    w.settle()

    assert warned(w)[0].startswith('"a" runs on the processor: it holds 99 MiB of the 5.0 GiB')


def test_what_is_there_is_not_told_of() -> None:
    """Neither one that holds less than was expected, nor a small one."""
    for size, real in ((5 * GIB, 100 * MIB), (200 * MIB, 20 * MIB), (5 * GIB, 6 * GIB)):
        w = world("a", size=size, real_sizes={"a": real})
        w.load("a")
        w.settle()
        assert warned(w) == []
        assert w.learned == {"a": real}


def test_the_whole_device_tells_of_large_models_only() -> None:
    """Other programs come and go meanwhile: what less was promised could be missed among them."""
    for size, told in ((255 * MIB, 0), (256 * MIB, 1)):
        w = world("a", size=size, real_sizes={"a": 0})
        w.load("a")
        w.settle()
        assert len(warned(w)) == told


def test_of_one_that_was_taken_over_only_its_processes_tell() -> None:
    """Nobody knows what was in use before an earlier gpud started it."""
    for listed in (0, 20 * MIB):
        w = world("a", size=5 * GIB)
        w.engines["a"] = Engine("a", 1, 77, {GPU: 5 * GIB}, {GPU: listed}, ready=True)
        w.post(events.Adopted("a", 1, (Share(GPU, 5 * GIB),)))
        w.settle()
        assert w.status("a").state is State.READY
        assert len(warned(w)) == (1 if listed else 0)


def test_a_driver_that_does_not_tell_of_processes_accuses_nobody() -> None:
    """The model is there, and nobody says whose the memory is."""
    w = world("a", size=5 * GIB, real_sizes={"a": 20 * MIB}, gpus={GPU: Gpu(tells=False)})
    w.load("a")
    w.settle()

    assert warned(w) == []


def test_processes_that_go_by_other_numbers_accuse_nobody() -> None:
    """As seen from another container: what is in use has grown by the model, although no process of it is known."""
    w = world("a", size=5 * GIB, real_sizes={"a": 0}, load_s={"a": 1.0})
    w.load("a")
    w.pass_time(0.5)
    w.gpus[GPU].programs["llama-server"] = 5 * GIB
    w.pass_time(1)

    assert w.status("a").state is State.READY
    assert warned(w) == []


def test_what_others_had_before_is_not_the_models() -> None:
    """What the device has more in use than before counts, and nothing else."""
    w = world("a", size=5 * GIB, real_sizes={"a": 0}, gpus={GPU: Gpu(foreign_bytes=2 * GIB)})
    w.load("a")
    w.settle()
    assert len(warned(w)) == 1


@pytest.mark.parametrize(("held_bytes", "told"), [(20 * MIB, 0), (20 * MIB - 1, 1)])
def test_a_tenth_of_what_was_promised_is_there(held_bytes: int, told: int) -> None:
    """A byte less is not."""
    w = world("a", size=200 * MIB, real_sizes={"a": held_bytes})
    w.load("a")
    w.settle()
    assert len(warned(w)) == told


@pytest.mark.parametrize("second", ["ill", "away"])
def test_a_gpu_that_does_not_tell_accuses_nobody(second: str) -> None:
    """One of the two on which it was to be: nobody knows what it has there."""
    halves = (Share(GPU, 3 * GIB), Share(GPU1, 3 * GIB))
    w = world("a", size=6 * GIB, real_sizes={"a": 0}, gpus={GPU: Gpu(), GPU1: Gpu()}, load_s={"a": 1.0})
    w.quotes["a"] = Quote((Offer(halves, split=(0.5, 0.5)),))
    w.load("a")
    w.settle()
    w.engines["a"].real = {}
    if second == "ill":
        w.gpus[GPU1].health = "it has fallen off the bus"
    else:
        del w.gpus[GPU1]
    w.pass_time(2)
    assert w.state("a") is State.READY
    assert warned(w) == []


def test_what_is_to_be_on_the_processor_is_not_told_of() -> None:
    """No layers were wanted on the GPU, or the model is in the machine's memory, or its engine is no llama.cpp."""
    w = world("a", "b", "c", size=5 * GIB, real_sizes={"a": 0, "b": 0, "c": 0})
    w.models["a"] = model("a", settings=EngineSettings(layers="0"))
    w.models["b"] = model("b", gpu="host")
    w.models["c"] = model("c", engine="custom")
    w.configure()
    for name in "abc":
        w.load(name)
        w.settle()
        w.unload(name)
        w.settle()
    assert warned(w) == []


def test_few_layers_count_as_much_as_was_promised_for_them() -> None:
    """Of what was reduced to a few layers, those are looked for, and the next load is told of anew."""
    w = world("a", size=9 * GIB, real_sizes={"a": 0})
    few = Offer((Share("", GIB),), layers=4, reduced="4 layers on the GPU")
    w.quotes["a"] = Quote((few,))
    for loads in (1, 2):
        w.load("a")
        w.settle()
        assert len(warned(w)) == loads
        assert "0 MiB of the 1.0 GiB" in warned(w)[-1]
        w.unload("a")
        w.settle()
