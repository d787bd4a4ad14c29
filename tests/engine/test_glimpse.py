"""A single new file is looked at alone, and comes to the same as if everything had been looked at."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from catalog import trees

from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Entry, Roots
from gpud.core.events import CatalogueChanged
from gpud.store import FileStore

from .test_library import House, shelf


class NamedChanges(ModelFinder):
    """Finds models on the disk; which files have changed is told by the test, in place of the kernel."""

    def __init__(self) -> None:
        super().__init__(trees.later)
        self.files: frozenset[str] | None = frozenset()
        self.changed: Callable[[], None] = lambda: None
        self.alone = 0

    def watch(self, roots: Roots, changed: Callable[[], None]) -> tuple[str, ...]:
        self.changed = changed
        return ()

    def noticed(self) -> frozenset[str] | None:
        files, self.files = self.files, frozenset()
        return files

    def look_at(self, roots: Roots, paths: Any, known: Any) -> Any:
        finding = super().look_at(roots, paths, known)
        self.alone += finding is not None
        return finding


class Disk:
    """A folder of models, an engine that knows them, and a registry on a disk."""

    def __init__(self, top: Path, **more: Any) -> None:
        self.models = top / "models"
        self.models.mkdir()
        self.finder = NamedChanges()
        (top / "run").mkdir(mode=0o700)
        self.store = FileStore(runtime_dir=top / "run", state_dir=top / "state", on_problem=self._problem)
        self.problems: list[Any] = []
        self.roots = Roots(folders=(str(self.models),), **more)
        self.house = House(self.finder, self.store.registry)  # type: ignore[arg-type]
        self.library = self.house.library

    def _problem(self, *problem: Any) -> None:
        self.problems.append(problem)

    async def told(self, *paths: Path) -> None:
        """The kernel names these files; returns when they have been looked at."""
        self.finder.files = frozenset(map(str, paths))
        self.finder.changed()
        # To join the look that the call has begun, not to ask for another one.
        await asyncio.wait_for(self.library._running or asyncio.sleep(0), 20)

    async def entries(self) -> list[tuple[Any, ...]]:
        listed = await self.library.entries(everything=True)
        return sorted((one.name, one.found, one.present, one.aliases, one.usage_count) for one in listed)


@asynccontextmanager
async def disk(top: Path, **more: Any) -> Any:
    one = Disk(top, **more)
    try:
        async with one.house.bench:
            await one.house.configure(shelf(roots=one.roots))
            one.library.begin()
            await one.library.scan()
            yield one
    finally:
        one.store.close()


async def agrees(one: Disk) -> None:
    """What is known is what a look at everything would find."""
    before = await one.entries()
    scanned = await one.library.scan()
    assert (scanned.new, scanned.gone, scanned.changed) == ((), (), ())
    assert await one.entries() == before and not one.problems


def test_one_new_file_among_many_is_looked_at_alone(run: Any, tmp_path: Path) -> None:
    """Of the others nothing is opened, and nobody is told of them."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            for number in range(5):
                trees.gguf(one.models / f"m-{number}.gguf", rows=8 * (number + 1))
            await one.library.scan()
            new = trees.gguf(one.models / "new.gguf", rows=800)
            await one.told(new)
            last = one.library.last_scan
            assert (last.new, last.gone, last.changed, last.models) == (("new",), (), (), 6)
            assert (last.files, last.read) == (1, 1)
            assert CatalogueChanged(("new",)) in one.house.told
            assert "new" in one.house.names()
            await agrees(one)

    run(scenario())


def test_one_file_that_is_gone_is_missed_alone_and_has_its_name_when_it_comes_back(run: Any, tmp_path: Path) -> None:
    """So does one that is renamed, whose number in the registry stays."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            path = trees.gguf(one.models / "a.gguf")
            trees.gguf(one.models / "b.gguf", rows=16)
            await one.library.scan()
            number = one.library.number_of("a")
            path.rename(tmp_path / "a.gguf")
            await one.told(path)
            assert one.library.last_scan.gone == ("a",) and one.house.names() == ["b"]
            (tmp_path / "a.gguf").rename(path)
            await one.told(path)
            assert one.library.last_scan.new == ("a",) and one.library.number_of("a") == number
            other = path.rename(one.models / "renamed.gguf")
            await one.told(path, other)
            assert one.house.names() == ["a", "b"] and one.library.number_of("a") == number
            assert (await one.library.entry("a")).found.path == str(other)
            assert one.finder.alone == 3
            await agrees(one)

    run(scenario())


def test_a_file_that_is_another_one_now_is_seen_alone(run: Any, tmp_path: Path) -> None:
    """Its name stays, what it says does not."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            path = trees.gguf(one.models / "a.gguf")
            await one.library.scan()
            trees.gguf(path, "another", rows=400, architecture="qwen3")
            await one.told(path)
            assert one.library.last_scan.changed == ("a",) and one.finder.alone == 1
            assert (await one.library.entry("a")).found.architecture == "qwen3"
            await agrees(one)

    run(scenario())


def _part(models: Path) -> list[Path]:
    return trees.split(models, "big", 2)


def _projector(models: Path) -> list[Path]:
    return [trees.projector(models / "mmproj-a.gguf")]


def _draft(models: Path) -> list[Path]:
    return [trees.gguf(models / "a-draft.gguf", rows=40)]


def _copy(models: Path) -> list[Path]:
    return [Path(shutil.copy(models / "a.gguf", models / "copy.gguf"))]


def _hard_link(models: Path) -> list[Path]:
    (models / "linked.gguf").hardlink_to(models / "a.gguf")
    return [models / "linked.gguf"]


def _link(models: Path) -> list[Path]:
    (models / "link.gguf").symlink_to("a.gguf")
    return [models / "link.gguf"]


def _broken(models: Path) -> list[Path]:
    path = models / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    os.utime(path, (trees.LONG_AGO, trees.LONG_AGO))
    return [path]


def _namesake(models: Path) -> list[Path]:
    return [trees.gguf(models / "inner" / "a.gguf", rows=40)]


def _same_size(models: Path) -> list[Path]:
    return [trees.gguf(models / "b.gguf", "z")]


def _beside_a_partial(models: Path) -> list[Path]:
    (models / "c.gguf.part").touch()
    return [trees.gguf(models / "c.gguf", rows=40)]


@pytest.mark.parametrize(
    "add",
    [
        _part,
        _projector,
        _draft,
        _copy,
        _hard_link,
        _link,
        _broken,
        _namesake,
        _same_size,
        _beside_a_partial,
    ],
)
def test_what_belongs_together_is_looked_at_together(
    add: Callable[[Path], list[Path]], run: Any, tmp_path: Path
) -> None:
    """A file alone does not tell what it is then."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            trees.gguf(one.models / "a.gguf")
            await one.library.scan()
            paths = add(one.models)
            await one.told(*paths)
            await agrees(one)
            for path in paths:
                path.unlink()
            await one.told(*paths)
            await agrees(one)

    run(scenario())


def test_where_a_projector_lies_everything_is_looked_at(run: Any, tmp_path: Path) -> None:
    """Whatever it is called: with a second model beside it nobody can tell any more whose it is."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            trees.gguf(one.models / "a.gguf")
            trees.projector(one.models / "eyes.gguf")
            await one.library.scan()
            assert (await one.library.entry("a")).found.mmproj
            await one.told(trees.gguf(one.models / "b.gguf", rows=40))
            assert one.finder.alone == 0
            await agrees(one)

    run(scenario())


def test_files_that_the_patterns_leave_out_are_left_out_alone(run: Any, tmp_path: Path) -> None:
    """As in a look at everything."""

    async def scenario() -> None:
        async with disk(tmp_path, exclude=("*-old.gguf", "attic/*")) as one:
            (one.models / "sub").mkdir()
            await one.library.scan()
            old, new = trees.gguf(one.models / "sub" / "a-old.gguf"), trees.gguf(one.models / "sub" / "a.gguf")
            await one.told(old, new)
            assert one.house.names() == ["a"] and one.finder.alone == 1
            await agrees(one)

    run(scenario())


def test_a_name_by_command_is_never_given_to_a_new_file(run: Any, tmp_path: Path) -> None:
    """The alias stays with whom it was given to."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            trees.gguf(one.models / "a.gguf")
            await one.library.scan()
            await one.library.annotate("a", aliases=("b",))
            await one.told(trees.gguf(one.models / "b.gguf", rows=40))
            assert "b" not in one.house.names() and len(one.house.names()) == 2
            await agrees(one)

    run(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_files_it_comes_to_the_same(seed: int, run: Any, tmp_path: Path) -> None:
    """Each time a few files change, and then what is known is what a look at everything would find."""
    chance = random.Random(seed)
    names = [
        "a.gguf",
        "b.gguf",
        "c-Q4_K_M.gguf",
        "sub/a.gguf",
        "sub/d.gguf",
        "mmproj-sub.gguf",
        "x-00001-of-00002.gguf",
    ]

    def happens(models: Path) -> set[Path]:
        path = models / chance.choice(names)
        path.parent.mkdir(exist_ok=True)
        what = chance.choice(("write", "write", "write", "remove", "move", "copy", "link", "cut"))
        if what == "write" or not path.exists():
            trees.gguf(path, chance.choice("pqr"), rows=8 * chance.randint(1, 40))
            return {path}
        other = models / chance.choice(names)
        other.parent.mkdir(exist_ok=True)
        if what == "remove" or other == path:
            path.unlink()
            return {path}
        if what == "cut":
            os.truncate(path, 100)
            return {path}
        other.unlink(missing_ok=True)
        if what == "move":
            path.rename(other)
        elif what == "copy":
            shutil.copy(path, other)
        else:
            other.hardlink_to(path)
        return {path, other}

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            (one.models / "sub").mkdir()
            await one.library.scan()
            for _ in range(12):
                touched: set[Path] = set()
                for _ in range(chance.randint(1, 2)):
                    touched |= happens(one.models)
                await one.told(*touched)
                await agrees(one)

    run(scenario())


def test_while_the_disk_takes_nothing_everything_is_looked_at(run: Any, tmp_path: Path) -> None:
    """What cannot be kept by itself is kept together, in memory."""

    async def scenario() -> None:
        async with disk(tmp_path) as one:
            trees.gguf(one.models / "a.gguf")
            await one.library.scan()
            database = next((tmp_path / "state").rglob("registry.db"))
            for path in database.parent.glob("registry.db*"):
                path.unlink()
            (database).mkdir()
            await one.told(trees.gguf(one.models / "b.gguf", rows=40))
            assert one.house.names() == ["a", "b"]
            listed: list[Entry] = list(await one.library.entries())
            assert {entry.name for entry in listed} == {"a", "b"}

    run(scenario())
