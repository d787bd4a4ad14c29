"""A copy of this process looks for models, and everything that it has come to know is known here."""

import asyncio
import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog import trees
from gpud.aside import Aside
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Finding, Roots
from gpud.core.ports import Line

BOUND_S = 20.0


def scanned_there(finder: ModelFinder, roots: Roots, meanwhile: Callable[[], None] = lambda: None) -> Finding:
    """``meanwhile`` is called here when the copy has seen everything, and before that is known here."""

    def work(line: Line) -> None:
        finder.in_copy()
        finding = finder.scan(roots, {}, line.is_cut)
        line.send((finder.kept(), finding))

    def serve(line: Line) -> tuple[object, Finding]:
        said: tuple[object, Finding] = line.receive()
        return said

    finder.lend()
    kept: object = None
    try:
        kept, finding = Aside()(work, serve, lambda: False, finder.descriptors())
        meanwhile()
    finally:
        finder.take_back(kept)
    return finding


class Told:
    def __init__(self, roots: Roots) -> None:
        self.finder = ModelFinder(trees.later)
        self._called = asyncio.Event()
        self.finder.watch(roots, self._called.set)

    async def called(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self._called.wait()
        self._called.clear()

    def until_read(self) -> None:
        """Until the loop has read all that the kernel has told, where it knows no folder of it yet."""
        poll = select.poll()
        poll.register(self.finder.descriptors()[0], select.POLLIN)
        while poll.poll(0):
            pass


def test_a_file_that_comes_before_the_copy_has_told_of_its_folder_is_not_missed(tmp_path: Path) -> None:
    """The folder is watched before it is listed; what the kernel tells of it is kept until somebody knows it."""
    trees.gguf(tmp_path / "models" / "new" / "a.gguf")
    roots = Roots(folders=(str(tmp_path / "models"),))
    late = tmp_path / "models" / "new" / "late.gguf"

    async def run() -> None:
        told = Told(roots)

        def comes() -> None:
            trees.gguf(late)
            told.until_read()

        finding = await asyncio.to_thread(scanned_there, told.finder, roots, comes)
        assert trees.names(finding) == ["a"]
        await told.called()
        assert told.finder.noticed() == {str(late)}
        # It is watched from now on, as after a look here.
        late.unlink()
        await told.called()
        assert told.finder.noticed() == {str(late)}
        told.finder.close()

    asyncio.run(run())


def test_a_folder_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """By the copy, and it is told here."""
    roots = Roots(folders=(str(tmp_path / "later"),))

    async def run() -> None:
        told = Told(roots)
        finding = await asyncio.to_thread(scanned_there, told.finder, roots)
        assert finding.unreachable == (str(tmp_path / "later"),)
        (tmp_path / "later").mkdir()
        await told.called()
        told.finder.close()

    asyncio.run(run())


def test_a_folder_that_has_gone_is_watched_no_more(tmp_path: Path) -> None:
    """What the copy did not enter again is let go of here."""
    trees.gguf(tmp_path / "models" / "kept" / "a.gguf")
    roots = Roots(folders=(str(tmp_path / "models"),))
    moved = tmp_path / "models" / "moved"
    trees.gguf(moved / "b.gguf")

    async def run() -> None:
        told = Told(roots)
        await asyncio.to_thread(scanned_there, told.finder, roots)
        moved.rename(tmp_path / "elsewhere")
        await told.called()
        await asyncio.to_thread(scanned_there, told.finder, roots)
        assert told.finder.noticed() == frozenset()
        # Of the one that is gone nothing is told: what is told next is of the one that stayed.
        trees.gguf(tmp_path / "elsewhere" / "c.gguf")
        trees.gguf(tmp_path / "models" / "kept" / "d.gguf")
        await told.called()
        assert told.finder.noticed() == {str(tmp_path / "models" / "kept" / "d.gguf")}
        told.finder.close()

    asyncio.run(run())


def test_a_single_file_is_compared_with_what_the_copy_has_seen(tmp_path: Path) -> None:
    """One of a size that there is already may be the same model: that cannot be told by looking at it alone."""
    folder = tmp_path / "models"
    trees.gguf(folder / "a.gguf", rows=8)
    roots = Roots(folders=(str(folder),))
    finder = ModelFinder(trees.later)
    scanned_there(finder, roots)
    same, other = trees.gguf(folder / "b.gguf", rows=8), trees.gguf(folder / "c.gguf", rows=16)
    assert finder.look_at(roots, {str(same)}, {}) is None
    found = finder.look_at(roots, {str(other)}, {})
    assert found is not None and trees.names(found) == ["c"]


def test_after_a_copy_that_has_failed_a_look_here_is_as_ever(tmp_path: Path) -> None:
    """What it has entered is known to nobody, and is entered again."""
    trees.gguf(tmp_path / "models" / "new" / "a.gguf")
    roots = Roots(folders=(str(tmp_path / "models"),))

    async def run() -> None:
        told = Told(roots)

        def dies(line: Line) -> None:
            told.finder.in_copy()
            told.finder.scan(roots, {}, line.is_cut)
            os._exit(1)

        told.finder.lend()
        with pytest.raises(EOFError):
            await asyncio.to_thread(
                Aside(), dies, lambda line: line.receive(), lambda: False, told.finder.descriptors()
            )
        told.finder.take_back(None)
        assert trees.names(await asyncio.to_thread(told.finder.scan, roots, {})) == ["a"]
        trees.gguf(tmp_path / "models" / "new" / "b.gguf")
        await told.called()
        assert told.finder.noticed() == {str(tmp_path / "models" / "new" / "b.gguf")}
        told.finder.close()

    asyncio.run(run())
