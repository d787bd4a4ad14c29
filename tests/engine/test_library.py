"""What models there are: found, named, kept, handed to the engine, and told of."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gpud.core.catalogue import Entry, Place, Purpose, Roots, Source, Trouble
from gpud.core.errors import InvalidOption, NoSuchModel
from gpud.core.events import CatalogueChanged, Kind, Notice, Outcome
from gpud.core.facts import Caller, EngineSettings, Model, Priority, State
from gpud.core.record import replace
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf

from .catalogue import ROOTS, MemoryRegistry, Shelves, found
from .parts import Bench

CALLER = Caller("uid:1000", 1000, label="a test")
A = Model("a", "fake", size_bytes=1 << 30)


def makes() -> Callable[[Entry], Model | str]:
    return lambda entry: Model(entry.name, "fake", size_bytes=entry.found.size_bytes)


def shelf(*configured: Model, roots: Roots = ROOTS, interval_s: float = 3600.0) -> Shelf:
    return Shelf({model.name: model for model in configured}, roots, makes, interval_s)


class House:
    """An engine with a library, and what it has told."""

    def __init__(self, shelves: Shelves, registry: MemoryRegistry, *configured: Model) -> None:
        self.shelves, self.registry = shelves, registry
        self.library = Library(shelves, registry)
        self.shelf = shelf(*configured)
        self.bench = Bench(library=self.library, shelf=self.shelf)
        self.engine = self.bench.engine
        self.told: list[Outcome] = []
        self.heard = asyncio.Event()
        self.engine.subscribe(self._listen)

    def _listen(self, outcomes: tuple[Outcome, ...]) -> None:
        self.told += outcomes
        self.heard.set()

    async def until(self, seen: Callable[[], bool]) -> None:
        while not seen():
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), 50)

    def looks_again(self) -> bool:
        """Whether a look is planned."""
        scheduled = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        return any("_time_to_look" in repr(timer) for timer in scheduled)

    def names(self) -> list[str]:
        return sorted(one.model.name for one in self.engine.snapshot().models)

    def of(self, kind: Kind) -> list[Notice]:
        return [one for one in self.told if isinstance(one, Notice) and one.kind is kind]

    async def configure(self, new: Shelf) -> None:
        await self.engine.apply(
            shelf=new, limits=self.bench.limits, idle_timeout_s=300.0, backends={"fake": self.bench.backend}
        )


@asynccontextmanager
async def house(*models: Any, configured: Sequence[Model] = (), registry: MemoryRegistry | None = None) -> Any:
    one = House(Shelves(*models), registry or MemoryRegistry(), *configured)
    async with one.bench:
        yield one


def test_what_is_found_can_be_loaded_by_name(run: Any) -> None:
    """Beside what is configured; it is told of once."""

    async def scenario() -> None:
        async with house(found("qwen"), found("phi"), configured=[A]) as place:
            scanned = await place.library.scan()
            assert place.names() == ["a", "phi", "qwen"]
            assert (scanned.models, scanned.new, scanned.gone, scanned.changed) == (3, ("phi", "qwen"), (), ())
            assert CatalogueChanged(("phi", "qwen")) in place.told
            (notice,) = place.of(Kind.CATALOGUE_CHANGED)
            assert notice.message == "There are 3 models now; found: phi, qwen"
            async with place.engine.use("qwen", CALLER) as endpoint:
                assert endpoint.socket
            again = await place.library.scan()
            assert (again.new, again.gone, again.changed) == ((), (), ())
            assert len(place.of(Kind.CATALOGUE_CHANGED)) == 1

    run(scenario())


def test_a_new_file_is_seen_because_the_finder_says_so(run: Any) -> None:
    """Nothing polls: no timer is set where everything can be watched."""

    async def scenario() -> None:
        async with house() as place:
            place.library.begin()
            await asyncio.to_thread(place.shelves.until, 1)
            place.shelves.models.append(found("late"))
            assert place.shelves.changed is not None
            place.shelves.changed()
            await place.until(lambda: "late" in place.names())
            assert not place.looks_again()

    run(scenario())


class Asked(list[str]):
    """Names that are asked for, and how often they were gone through to find one."""

    searched = 0

    def __contains__(self, name: object) -> bool:
        self.searched += 1
        return super().__contains__(name)


def test_whoever_asks_for_some_of_very_many_is_not_compared_with_all(run: Any) -> None:
    """Lists are made of some hundred at a time: were each compared with all, ten times as many would take a hundred
    times as long.
    """

    async def scenario() -> None:
        async with house(*(found(f"m{number}") for number in range(2000)), configured=[A]) as place:
            await place.library.scan()
            names = Asked((*(f"m{number}" for number in range(100)), "a"))
            entries = await place.library.entries(names)
            assert {entry.name for entry in entries} == set(names)
            # The fake registry goes through them once for each that it keeps; nobody else does.
            assert names.searched == len(place.registry.kept) == 2001

    run(scenario())


def test_what_changes_during_a_look_is_seen_by_another(run: Any) -> None:
    """Whoever asks while one runs gets the answer of one that has begun afterwards; several share it."""

    async def scenario() -> None:
        async with house(found("a1")) as place:
            place.shelves.go.clear()
            first = asyncio.create_task(place.library.scan())
            await asyncio.to_thread(place.shelves.reached.wait)
            place.shelves.models.append(found("b1"))
            second, third = (asyncio.create_task(place.library.scan()) for _ in range(2))
            await asyncio.sleep(0)
            place.shelves.go.set()
            assert (await first).new == ("a1",)
            assert (await second).new == (await third).new == ("b1",)
            assert place.shelves.scans == 2

    run(scenario())


def test_a_loaded_model_whose_file_goes_is_unloaded_when_it_is_idle(run: Any) -> None:
    """And one that is replaced in place answers to the end, then the new one is loaded."""

    async def scenario() -> None:
        async with house(found("gone"), found("new")) as place:
            await place.library.scan()
            engine = place.engine
            for name in ("gone", "new"):
                await engine.wait(engine.load(name, CALLER))
            async with engine.use("new", CALLER):
                place.shelves.models[:] = [found("new", stamp="2")]
                scanned = await place.library.scan()
                assert (scanned.gone, scanned.changed) == (("gone",), ("new",))
                await place.until(lambda: place.names() == ["new"])
                assert engine.snapshot().models[0].state is State.READY
            await place.until(lambda: engine.snapshot().models[0].state is State.COLD)

    run(scenario())


def test_models_of_a_root_that_cannot_be_reached_stay(run: Any) -> None:
    """A disk that is unmounted for a moment loses nobody their model."""

    async def scenario() -> None:
        async with house(found("here"), found("away", "/models/usb")) as place:
            await place.library.scan()
            place.shelves.models = [found("here")]
            place.shelves.unreachable = ("/models/usb",)
            assert (await place.library.scan()).gone == ()
            assert place.names() == ["away", "here"]
            place.shelves.unreachable = ()
            assert (await place.library.scan()).gone == ("away",)

    run(scenario())


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble("/models/inner", "gpud may not look into it: let it"), "gpud may not look into it: let it"),
        (Trouble("/models/inner/manifest", "gpud may not read it"), "/models/inner/manifest: gpud may not read it"),
        (Trouble("/models/other", "gpud may not"), "it is not there; if it is on a disk of its own, mount that"),
    ],
)
def test_a_model_in_a_folder_that_may_no_longer_be_read_says_so_and_comes_back(
    run: Any, trouble: Trouble, said: str
) -> None:
    """It is neither gone nor unknown: whoever asks is told why nobody can look at it, and both changes are told. Of a
    store one file in it may be the reason.
    """

    async def scenario() -> None:
        def at_its_file() -> Callable[[Entry], Model | str]:
            return lambda entry: Model(entry.name, "fake", settings=EngineSettings(file=entry.found.path))

        async with house(found("here"), found("away", "/models/inner")) as place:
            await place.configure(Shelf(roots=ROOTS, makes=at_its_file))
            await place.library.scan()
            place.shelves.models = [found("here")]
            place.shelves.unreachable = ("/models/inner",)
            place.shelves.troubles = [trouble]
            scanned = await place.library.scan()
            assert (scanned.new, scanned.gone, scanned.changed) == ((), (), ("away",))
            assert place.names() == ["away", "here"]
            problem = (await place.library.entry("away")).found.problem
            assert problem == f"cannot be reached now: /models/inner: {said}"
            assert not (await place.library.entry("here")).found.problem
            assert (await place.library.scan()).changed == (), "nothing has changed since"
            place.shelves.models = [found("here"), found("away", "/models/inner")]
            place.shelves.unreachable, place.shelves.troubles = (), []
            assert (await place.library.scan()).changed == ("away",)
            assert not (await place.library.entry("away")).found.problem

    run(scenario())


def test_what_a_reload_takes_away_and_brings_is_told(run: Any) -> None:
    """Whoever shows the catalogue hears of a configuration that no longer looks for models, and of one that does."""

    async def scenario() -> None:
        async with house(found("qwen"), found("phi"), configured=[A]) as place:
            await place.configure(shelf(A))
            await place.library.scan()
            place.told.clear()
            await place.configure(Shelf(configured={"a": A}))
            assert CatalogueChanged((), ("phi", "qwen"), ()) in place.told and place.names() == ["a"]
            place.told.clear()
            await place.configure(Shelf(configured={"b": replace(A, name="b")}))
            assert CatalogueChanged(("b",), ("a",), ()) in place.told
            place.told.clear()
            await place.configure(Shelf(configured={"b": replace(A, name="b", size_bytes=2 << 30)}))
            assert CatalogueChanged((), (), ("b",)) in place.told
            place.told.clear()
            await place.configure(Shelf(configured={"b": replace(A, name="b", size_bytes=2 << 30)}))
            assert not [one for one in place.told if isinstance(one, CatalogueChanged)]

    run(scenario())


def test_a_restarted_engine_knows_what_was_found_before_it_looks(run: Any) -> None:
    """Engines that outlived the daemon are taken over; nobody waits for a scan."""

    async def scenario() -> None:
        registry = MemoryRegistry()
        async with house(found("qwen"), registry=registry) as place:
            await place.library.scan()
        async with house(registry=registry) as place:
            assert place.names() == ["qwen"]
            assert (await place.library.scan()).gone == ("qwen",)
            assert place.names() == []

    run(scenario())


def test_what_is_known_is_not_read_again(run: Any) -> None:
    """The finder is told every place with its stamp."""

    async def scenario() -> None:
        async with house(found("qwen")) as place:
            await place.library.scan()
            await place.library.scan()
            assert {path: one.stamp for path, one in place.shelves.known.items()} == {
                "/models/qwen.gguf": "first of /models/qwen.gguf"
            }

    run(scenario())


def test_what_somebody_says_of_a_model_counts_at_once_and_stays(run: Any) -> None:
    """Aliases, priority, tags and notes, of found and of configured models; taken back with nothing."""

    async def scenario() -> None:
        async with house(found("qwen"), configured=[A]) as place:
            await place.library.scan()
            await place.library.annotate(
                "qwen", aliases=("best",), priority="high", tags=("chat",), notes="the good one"
            )
            assert place.engine.resolve("best") == "qwen"
            (entry,) = await place.library.entries(("qwen",))
            assert (entry.tags, entry.notes, entry.priority) == (("chat",), "the good one", "high")
            await place.library.annotate("a", priority="low", aliases=("first",))
            await place.library.scan()
            by_name = {one.model.name: one.model for one in place.engine.snapshot().models}
            assert (by_name["qwen"].priority, by_name["a"].priority) == (Priority.HIGH, Priority.LOW)
            assert by_name["a"].aliases == ("first",)
            await place.library.annotate("a", priority="", aliases=())
            assert {one.model for one in place.engine.snapshot().models if one.model.name == "a"} == {A}

    run(scenario())


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"aliases": ("no spaces",)}, '"no spaces" cannot be an alias'),
        ({"aliases": ("scan",)}, '"scan" cannot be an alias'),
        ({"aliases": ("a",)}, '"a" is what "a" is called already'),
        ({"priority": "urgent"}, '"urgent" is no priority'),
        ({"tags": ("x",) * 33}, "33 tags are more than a model may have, 32"),
        ({"notes": "x" * 4001}, "notes of 4001 characters are longer than 4000"),
    ],
)
def test_what_cannot_be_said_is_refused(run: Any, said: dict[str, Any], problem: str) -> None:
    """With what is allowed; what was said before stays."""

    async def scenario() -> None:
        async with house(found("qwen"), configured=[A]) as place:
            await place.library.scan()
            with pytest.raises(InvalidOption) as caught:
                await place.library.annotate("qwen", **said)
            assert caught.value.message == problem and caught.value.hint
            (entry,) = await place.library.entries(("qwen",))
            assert not (entry.aliases or entry.priority or entry.tags or entry.notes)

    run(scenario())


def test_uses_are_counted_once(run: Any) -> None:
    """Whenever they are kept, and when the engine ends."""

    async def scenario() -> None:
        registry = MemoryRegistry()
        async with house(found("qwen"), registry=registry) as place:
            await place.library.scan()
            for _ in range(3):
                async with place.engine.use("qwen", CALLER):
                    pass
            await place.engine.keep_uses()
            (entry,) = registry.entries()
            assert entry.usage_count == 3 and entry.last_used_us
            await place.engine.keep_uses()
            async with place.engine.use("qwen", CALLER):
                pass
        assert registry.entries()[0].usage_count == 4

    run(scenario())


def test_of_a_model_that_has_gone_no_count_is_held_against_it(run: Any) -> None:
    """It comes back, and is counted from nothing: of its uses each one is kept."""

    async def scenario() -> None:
        registry = MemoryRegistry()
        async with house(found("qwen"), registry=registry) as place:
            await place.library.scan()
            await place.library.count({"qwen": (3, 1.0, None)}, 1.0)
            await place.library.count({}, 2.0)
            await place.library.count({"qwen": (2, 3.0, None)}, 3.0)
            assert registry.entries()[0].usage_count == 5

    run(scenario())


def test_what_it_would_need_is_calculated_once(run: Any) -> None:
    """And again when its file is another."""

    async def scenario() -> None:
        registry = MemoryRegistry()
        async with house(found("qwen", size_bytes=5 << 30), registry=registry) as place:
            await place.library.scan()
            await place.library.sized()
            assert registry.entries()[0].estimate_bytes == 5 << 30
            place.shelves.models[:] = [found("qwen", stamp="2", size_bytes=6 << 30)]
            await place.library.scan()
            await place.library.sized()
            assert registry.entries()[0].estimate_bytes == 6 << 30

    run(scenario())


def test_what_is_no_model_is_told_once_with_its_reason(run: Any) -> None:
    """A broken file, a folder that cannot be read; adapters are listed and never loaded by themselves."""

    async def scenario() -> None:
        broken = found("broken", problem="part 2 of 3 is missing")
        async with house(broken, found("lora", purpose=Purpose.ADAPTER), found("good")) as place:
            place.shelves.troubles.append(Trouble("/models/locked", "cannot be read: permission denied"))
            await place.library.scan()
            scanned = await place.library.scan()
            assert place.names() == ["good"]
            assert {trouble.path for trouble in scanned.troubles} == {"/models/locked", "/models/broken.gguf"}
            (notice,) = place.of(Kind.CATALOGUE_PROBLEM)
            assert notice.detail == (
                "/models/broken.gguf: part 2 of 3 is missing",
                "/models/locked: cannot be read: permission denied",
            )
            listed = {entry.name for entry in await place.library.entries(everything=True)}
            assert listed == {"broken", "lora", "good"}

    run(scenario())


def test_only_what_is_gone_can_be_forgotten(run: Any) -> None:
    """With its past; what is there would only come back."""

    async def scenario() -> None:
        async with house(found("qwen")) as place:
            await place.library.scan()
            with pytest.raises(InvalidOption, match='"qwen" is still there'):
                await place.library.forget("qwen")
            place.shelves.models.clear()
            await place.library.scan()
            await place.library.forget("qwen")
            assert not place.registry.kept
            with pytest.raises(NoSuchModel, match='there is no model "qwen"'):
                await place.library.forget("qwen")

    run(scenario())


def test_another_configuration_takes_what_was_found_its_way(run: Any) -> None:
    """Without a new look; a folder that is no longer looked at loses its models with the next one."""

    async def scenario() -> None:
        async with house(found("qwen")) as place:
            await place.library.scan()
            pinned = replace(place.shelf, makes=lambda: lambda entry: Model(entry.name, "fake", pinned=True))
            await place.configure(pinned)
            assert [one.model.pinned for one in place.engine.snapshot().models] == [True]
            await place.configure(shelf(A, roots=Roots()))
            assert place.names() == ["a"]

    run(scenario())


def test_a_configured_file_has_its_configured_name_and_keeps_its_past(run: Any) -> None:
    """Whoever writes a found model down does not lose its counts."""

    async def scenario() -> None:
        async with house(found("qwen")) as place:
            await place.library.scan()
            await place.library.annotate("qwen", notes="mine")
            best = replace(A, name="best", settings=replace(A.settings, file="/models/qwen.gguf"))
            await place.configure(shelf(best))
            await place.library.scan()
            assert place.names() == ["best"]
            (entry,) = await place.library.entries()
            assert (entry.name, entry.notes, entry.configured, entry.id) == ("best", "mine", True, 1)

    run(scenario())


def test_a_configured_model_of_ollamas_is_the_one_in_its_store(run: Any) -> None:
    """By Ollama's name, however it is written: it is not listed a second time, and keeps its past."""

    async def scenario() -> None:
        places = (Place("/store/blobs/sha256-1", Source.OLLAMA, "llama3.2:latest"),)
        async with house(found("one", places=places), found("other")) as place:
            await place.library.scan()
            await place.library.annotate("llama3.2", notes="mine")
            for own in ("llama3.2", "library/llama3.2:latest"):
                chat = Model("chat", "fake", EngineSettings(ollama_name=own))
                await place.configure(shelf(chat))
                await place.library.scan()
                assert sorted(place.names()) == ["chat", "other"]
                entry = next(one for one in await place.library.entries() if one.name == "chat")
                assert (entry.notes, entry.configured, entry.found.places) == ("mine", True, places)

    run(scenario())


def test_what_cannot_be_watched_is_looked_at_from_time_to_time(run: Any) -> None:
    """Only that sets a timer, and not where the configuration forbids it."""

    async def scenario() -> None:
        async with house() as place:
            place.shelves.unwatched = ("/models",)
            await place.configure(shelf(interval_s=0.01))
            place.library.begin()
            assert place.looks_again()
            await asyncio.to_thread(place.shelves.until, 3)
            await place.configure(shelf(interval_s=0.0))
            assert not place.looks_again()

    run(scenario())


def test_the_name_of_a_model_that_is_away_means_no_other(run: Any) -> None:
    """Its file is being written anew, or its disk is not there: whoever asks for it does not get its namesake."""

    async def scenario() -> None:
        async with house(found("qwen"), found("qwen", "/models/sub")) as place:
            await place.library.scan()
            assert place.names() == ["qwen", "sub/qwen"]
            place.shelves.models = [found("qwen", "/models/sub")]
            await place.library.scan()
            assert place.names() == ["sub/qwen"]
            with pytest.raises(NoSuchModel) as caught:
                place.engine.resolve("qwen")
            assert caught.value.hint == 'did you mean "sub/qwen"?'

    run(scenario())
