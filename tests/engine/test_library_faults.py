"""What there is stays in order whatever happens to files, disks and the configuration, in whichever order."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.errors import InvalidOption
from gpud.core.facts import EngineSettings, Model, State
from gpud.core.record import replace
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf
from gpud.store import FileStore

from .catalogue import ROOTS, MemoryRegistry, Shelves, found
from .test_library import CALLER, House, house, makes, shelf


def at(name: str, path: str, *aliases: str, context: int | None = None) -> Model:
    """A configured model whose file lies there."""
    given = EngineSettings(file=path, context=context)
    return Model(name, "fake", size_bytes=1 << 30, settings=given, aliases=aliases)


def state(place: Any, name: str) -> State:
    return next(one.state for one in place.engine.snapshot().models if one.model.name == name)


def test_the_first_look_at_a_configured_file_disturbs_nobody(run: Any) -> None:
    """It may have been loaded before gpud looked for the first time: that its file is seen makes it no other."""

    async def scenario() -> None:
        async with house(found("file"), configured=[at("mine", "/models/file.gguf")]) as place:
            await place.engine.wait(place.engine.load("mine", CALLER))
            scanned = await place.library.scan()
            assert scanned.changed == ("mine",), "what its file says is news"
            assert (await place.library.entry("mine")).found.architecture == "llama"
            async with asyncio.timeout(50), place.engine.use("mine", CALLER):
                assert [one.unloads for one in place.bench.backend.runners.values()] == [0]

    run(scenario())


def test_a_configured_file_that_cannot_be_seen_for_a_moment_stays_loaded(run: Any) -> None:
    """Its engine has it; another file in its place is another model."""

    async def scenario() -> None:
        async with house(found("file"), configured=[at("mine", "/models/file.gguf")]) as place:
            await place.library.scan()
            await place.engine.wait(place.engine.load("mine", CALLER))
            for models in ([], [found("file")]):
                place.shelves.models[:] = models
                await place.library.scan()
                assert state(place, "mine") is State.READY
            place.shelves.models.clear()
            await place.library.scan()
            place.shelves.models.append(found("file", stamp="another"))
            await place.library.scan()
            await place.until(lambda: state(place, "mine") is State.COLD)

    run(scenario())


def test_what_is_known_of_a_configured_file_on_a_disk_that_is_away_stays(run: Any) -> None:
    """As of those that were found there."""

    async def scenario() -> None:
        async with house(found("file", "/models/usb"), configured=[at("mine", "/models/usb/file.gguf")]) as place:
            await place.library.scan()
            place.shelves.models.clear()
            place.shelves.unreachable = ("/models/usb",)
            scanned = await place.library.scan()
            assert (scanned.changed, scanned.gone) == (("mine",), ()), "that it cannot be reached is news"
            entry = await place.library.entry("mine")
            assert entry.found.architecture == "llama" and "/models/usb" in entry.found.problem

    run(scenario())


def test_a_model_with_a_place_within_reach_is_there_once(run: Any) -> None:
    """Its other place is on a disk that is away: it was found, and is not kept besides."""

    async def scenario() -> None:
        usb, here = (found("m", folder).places[0] for folder in ("/models/usb", "/models/zz"))
        both = replace(found("m"), places=(usb, here))
        async with house(both) as place:
            await place.library.scan()
            place.shelves.models[:] = [replace(both, places=(here,))]
            place.shelves.unreachable = ("/models/usb",)
            assert (await place.library.scan()).new == ()
            assert place.names() == ["m"]

    run(scenario())


def test_what_is_no_longer_configured_is_a_found_model_at_once(run: Any) -> None:
    """With its name and its past, before anybody looks; what only the configuration knew of is gone at once."""

    async def scenario() -> None:
        only = Model("served", "fake", settings=EngineSettings(ollama_name="served:1"))
        away = at("away", "/home/me/away.gguf")
        elsewhere = found("away", "/home/me")
        async with house(found("file"), elsewhere, configured=[at("mine", "/models/file.gguf"), only, away]) as place:
            await place.library.scan()
            await place.library.annotate("mine", notes="for Anna")
            place.shelves.go.clear()
            await place.configure(shelf())
            assert place.names() == ["mine"]
            entry = await place.library.entry("mine")
            assert (entry.notes, entry.configured) == ("for Anna", False)
            place.shelves.go.set()

    run(scenario())


def test_two_configured_models_may_have_one_file(run: Any) -> None:
    """Both can be asked for; when one goes, and then the other, the file is still a model."""

    async def scenario() -> None:
        first, second = at("short", "/models/file.gguf"), at("long", "/models/file.gguf")
        async with house(found("file"), configured=[first, second]) as place:
            await place.library.scan()
            assert place.names() == ["long", "short"]
            for configured, names in (((first,), 1), ((), 1)):
                await place.configure(shelf(*configured))
                await place.library.scan()
                assert len(place.names()) == names
            assert place.engine.resolve("file") == place.names()[0]

    run(scenario())


def test_what_is_said_by_command_outlives_a_reload(run: Any) -> None:
    """Of found and of configured models; the configuration's own name wins where both call something the same."""

    async def scenario() -> None:
        async with house(found("file"), found("other"), configured=[at("mine", "/models/file.gguf")]) as place:
            await place.library.scan()
            await place.library.annotate("mine", priority="high")
            await place.library.annotate("other", priority="critical", aliases=("best",))
            await place.configure(shelf(at("mine", "/models/file.gguf", "me")))
            priorities = {one.model.name: one.model.priority.name for one in place.engine.snapshot().models}
            assert priorities == {"mine": "HIGH", "other": "CRITICAL"}
            assert place.engine.resolve("best") == "other" and place.engine.resolve("me") == "mine"
            await place.configure(shelf(at("best", "/models/file.gguf")))
            assert place.engine.resolve("best") == "best"
            assert all("best" not in one.model.aliases for one in place.engine.snapshot().models)

    run(scenario())


def test_aliases_have_an_end(run: Any) -> None:
    """Each is looked for with every request."""

    async def scenario() -> None:
        async with house(found("m")) as place:
            await place.library.scan()
            many = tuple(f"alias-{number}" for number in range(33))
            with pytest.raises(InvalidOption, match="33 aliases are more than a model may have, 32"):
                await place.library.annotate("m", aliases=many)
            assert (await place.library.annotate("m", aliases=many[:32])).aliases == many[:32]

    run(scenario())


def test_a_load_goes_on_whatever_its_model_is_called(run: Any) -> None:
    """An alias, a priority or a copy elsewhere is nothing to the engine that starts."""

    async def scenario() -> None:
        async with house(found("m")) as place:
            await place.library.scan()
            backend = place.bench.backend
            backend.gate = asyncio.Event()
            job = place.engine.load("m", CALLER)
            await asyncio.wait_for(backend.entered.wait(), 50)
            await place.library.annotate("m", aliases=("best",), priority="high")
            copy = found("m").places + found("copy").places
            place.shelves.models[:] = [replace(found("m"), places=copy)]
            assert (await place.library.scan()).changed == ("m",)
            backend.gate.set()
            await place.engine.wait(job)
            assert (len(backend.orders), backend.canceled) == (1, 0)
            assert place.engine.resolve("best") == place.engine.resolve("copy") == "m"

    run(scenario())


def test_an_alias_is_never_taken_by_a_file_that_comes_later(run: Any) -> None:
    """That one is called after its folder as well, until the alias is taken back."""

    async def scenario() -> None:
        async with house(found("first")) as place:
            await place.library.scan()
            await place.library.annotate("first", aliases=("best",))
            place.shelves.models.append(found("best"))
            assert (await place.library.scan()).new == ("models/best",)
            assert place.engine.resolve("best") == "first"
            await place.library.annotate("first", aliases=())
            assert place.engine.resolve("best") == "models/best"

    run(scenario())


def test_nothing_is_found_while_that_is_not_wanted(run: Any) -> None:
    """Not even after something was said about a configured one; when it is wanted again all are there, at once."""

    async def scenario() -> None:
        async with house(found("file"), configured=[at("mine", "/elsewhere.gguf")]) as place:
            await place.library.scan()
            await place.configure(Shelf({"mine": at("mine", "/elsewhere.gguf")}))
            assert place.names() == ["mine"]
            await place.library.annotate("mine", priority="high")
            assert place.names() == ["mine"]
            await place.configure(shelf(at("mine", "/elsewhere.gguf")))
            assert place.names() == ["file", "mine"]

    run(scenario())


def test_a_model_in_place_of_a_removed_one_of_its_name_is_another(run: Any) -> None:
    """One goes and one comes in the same moment, at another place: what was said of the first is not said of it."""

    async def scenario() -> None:
        async with house(found("m", "/models/a", size_bytes=1)) as place:
            await place.library.scan()
            await place.library.annotate("m", notes="the old one")
            await place.engine.wait(place.engine.load("m", CALLER))
            place.shelves.models[:] = [found("m", "/models/b", size_bytes=2)]
            scanned = await place.library.scan()
            assert (await place.library.entry("b/m")).notes == ""
            assert (scanned.new, scanned.gone) == (("b/m",), ("m",))
            await place.until(lambda: place.names() == ["b/m"])

    run(scenario())


def test_what_comes_while_others_are_calculated_is_calculated_too(run: Any) -> None:
    """A need is calculated one after the other, which may take minutes for thousands."""

    async def scenario() -> None:
        async with house(found("first")) as place:
            reached, go = asyncio.Event(), asyncio.Event()
            sized: list[str] = []

            async def size(model: Model) -> int:
                sized.append(model.name)
                reached.set()
                await go.wait()
                return 7

            library = place.library
            library.serve(place.engine._put, lambda _: None, size)
            await library.scan()
            await asyncio.wait_for(reached.wait(), 50)
            place.shelves.models.append(found("second"))
            await library.scan()
            go.set()
            await asyncio.wait_for(library.sized(), 50)
            assert sized == ["first", "second"]
            assert [one.estimate_bytes for one in await library.entries()] == [7, 7]

    run(scenario())


def test_what_is_configured_otherwise_is_calculated_anew(run: Any) -> None:
    """And nothing else; to be called otherwise needs nothing."""

    async def scenario() -> None:
        sizes = {"mine": 1, "other": 1}
        async with house(found("file"), found("other"), configured=[at("mine", "/models/file.gguf")]) as place:
            sized: list[str] = []

            async def size(model: Model) -> int:
                sized.append(model.name)
                return sizes[model.name]

            library = place.library
            library.serve(place.engine._put, lambda _: None, size)
            library.begin()
            await library.scan()
            await library.sized()
            sized.clear()
            sizes["mine"] = 2
            await place.configure(shelf(at("mine", "/models/file.gguf", "me", context=512)))
            await library.scan()
            await library.sized()
            assert sized == ["mine"]
            assert {one.name: one.estimate_bytes for one in await library.entries()} == sizes
            await place.configure(shelf(at("mine", "/models/file.gguf", "i", context=512)))
            await library.scan()
            await library.sized()
            assert sized == ["mine"]

    run(scenario())


def test_what_was_configured_otherwise_while_gpud_was_down_is_calculated_anew(run: Any) -> None:
    """And nothing else: what was calculated before holds where the settings are the same."""

    async def once(place: House) -> list[str]:
        sized: list[str] = []

        async def size(model: Model) -> int:
            sized.append(model.name)
            return len(sized)

        place.library.serve(place.engine._put, lambda _: None, size)
        place.library.begin()
        await place.library.scan()
        await place.library.sized()
        return sorted(sized)

    async def scenario() -> None:
        registry = MemoryRegistry()
        for context, wanted in ((None, ["mine", "other"]), (None, []), (512, ["mine"]), (512, [])):
            mine = at("mine", "/models/file.gguf", context=context)
            async with house(found("file"), found("other"), configured=[mine], registry=registry) as place:
                assert await once(place) == wanted, context
                assert place.library.need_of("mine")

    run(scenario())


def test_uses_are_counted_once(run: Any) -> None:
    """Those that this gpud has kept are not counted as ones from before, however often is looked."""

    async def scenario() -> None:
        registry = MemoryRegistry()
        async with house(found("qwen"), registry=registry) as place:
            await place.library.scan()
            registry.used({1: (4, 77, None)})
            await place.library.scan()
            assert place.library.past_of("qwen") == (4, 77)
            async with place.engine.use("qwen", CALLER):
                pass
            await place.engine.keep_uses()
            await place.library.scan()
            past, (status,) = place.library.past_of("qwen"), place.engine.snapshot().models
            assert past is not None and (past.uses, status.uses) == (4, 1)
            assert registry.kept[1].usage_count == 5

    run(scenario())


NAMES = st.sampled_from(("a", "b", "c"))
FOLDERS = st.sampled_from(("/models", "/models/usb"))
FILES = st.builds(
    lambda name, folder, stamp: found(name, folder, stamp=stamp and f"{folder}{name}{stamp}"),
    NAMES,
    FOLDERS,
    st.sampled_from(("", "2")),
)
STEPS = st.one_of(
    st.tuples(st.just("files"), st.lists(FILES, max_size=4, unique_by=lambda one: one.path), st.booleans()),
    st.tuples(st.just("configure"), st.dictionaries(NAMES, st.tuples(NAMES, FOLDERS), max_size=3)),
    st.tuples(st.just("alias"), NAMES, NAMES),
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(STEPS, max_size=8))
def test_every_name_means_one_model_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    """All that is there can be asked for, no two entries have one name, id or path, and no look fails."""

    problems: list[str] = []

    async def scenario() -> None:
        shelves = Shelves()
        library = Library(shelves, store.registry)
        told: dict[str, Model] = {}

        async def put(models: Any, _others: frozenset[str]) -> None:
            told.clear()
            told.update(models)

        async def size(_model: Model) -> None:
            return None

        library.serve(put, lambda _: None, size)
        configured: dict[str, Model] = {}
        await library.configure(Shelf({}, ROOTS, makes))
        for step in steps:
            match step:
                case ("files", files, away):
                    shelves.unreachable = ("/models/usb",) if away else ()
                    shelves.models = [one for one in files if not (away and "/usb/" in one.path)]
                case ("configure", wanted):
                    configured = {name: at(name, f"{folder}/{stem}.gguf") for name, (stem, folder) in wanted.items()}
                    await library.configure(Shelf(configured, ROOTS, makes))
                    await put(library.models, frozenset())
                case ("alias", name, alias):
                    if name in library.models and alias not in library.models:
                        known = {other for model in library.models.values() for other in model.aliases}
                        if alias not in known and library.number_of(name):
                            await library.annotate(name, aliases=(alias,))
            await library.scan()
            await library.sized()
            models = library.models
            assert configured.keys() <= models.keys()
            called = [*models, *(alias for model in models.values() for alias in model.aliases)]
            assert len(called) == len(set(called)), called
            entries = await library.entries()
            assert sorted(entry.name for entry in entries) == sorted(models)
            files = {path for entry in entries for path in (place.path for place in entry.found.places)}
            assert {one.path for one in shelves.models} <= files
            assert told == models
        await library.close()

    with TemporaryDirectory() as folder:
        store = FileStore(runtime_dir=Path(folder), state_dir=Path(folder), on_problem=problems.append)
        asyncio.run(scenario())
        store.close()
    assert problems == []
