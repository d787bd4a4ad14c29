"""A copy of this process makes entries of what is known here; what comes back is written wholly, or not at all."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpud.aside import Aside
from gpud.core.catalogue import Entry
from gpud.core.ports import Line
from gpud.core.record import replace
from gpud.store import FileStore
from store.model_entries import by_name, entry, found, names
from store.place import Place

MANY = [entry(f"model-{number:03}") for number in range(350)]


def as_it_is(line: Line) -> Line:
    return line


def taken_there(
    store: FileStore, entries: Sequence[Entry], at_us: int, line_of: Callable[[Line], Line] = as_it_is
) -> Any:
    """What a copy takes, as it says; None where the registry could not have it done there."""

    def work(line: Line) -> None:
        borrowed = store.registry.borrowed(line_of(line))
        known = borrowed.entries()
        line.send((known, borrowed.take(entries, at_us)))

    return Aside()(work, lambda line: line.receive() if store.registry.lend(line) else None, lambda: False)


def test_what_a_copy_takes_is_what_would_be_taken_here(tmp_path: Path) -> None:
    """New ones, such that are otherwise, and such that are gone, with what became of them before."""
    stores = [FileStore(runtime_dir=tmp_path / name, state_dir=tmp_path / name) for name in ("here", "there")]
    second = [*MANY[100:], entry("model-000", found=found("model-000", size_bytes=7)), entry("another")]
    for store in stores:
        known = store.registry.take(MANY, 1)
        store.registry.used({known[5].id: (3, 10, 2.0)})
        store.registry.annotate(replace(known[7], aliases=("seven",), notes="größe"))
    here, there = stores
    now = [replace(one, id=by_name(here.registry.entries()).get(one.name, one).id) for one in second]
    expected = here.registry.take(now, 20)
    known, taken = taken_there(there, now, 20)
    assert names(known) == names(MANY)
    assert taken == expected
    assert there.registry.entries() == here.registry.entries() == expected
    for store in stores:
        store.close()


def test_a_look_that_finds_nothing_new_is_remembered(place: Place) -> None:
    """When it was, and nothing else."""
    store = place.store()
    known = store.registry.take(MANY, 1)
    _, taken = taken_there(store, known, 30)
    assert {one.last_scanned_us for one in taken} == {30}
    assert place.again().registry.entries() == taken


class Meanwhile:
    """A line on which something happens before the first answer is heard."""

    def __init__(self, line: Line, happens: Callable[[], object]) -> None:
        self._line = line
        self._happens: Callable[[], object] | None = happens

    def send(self, message: object) -> None:
        self._line.send(message)

    def receive(self, within_s: float | None = None) -> Any:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return self._line.receive(within_s)

    def is_cut(self) -> bool:
        return self._line.is_cut()


def test_what_becomes_of_a_model_meanwhile_is_not_lost(place: Place) -> None:
    """It was used, and somebody said something, after the copy was told what is known."""
    store = place.store()
    known = store.registry.take(MANY, 1)

    def happens() -> None:
        store.registry.used({known[3].id: (2, 15, 1.5)})
        store.registry.annotate(replace(known[4], tags=("night",)))

    def work(line: Line) -> None:
        borrowed = store.registry.borrowed(line)
        looked = borrowed.entries()
        line.send(borrowed.take(looked[:10], 40))

    taken = Aside()(
        work,
        lambda line: line.receive() if store.registry.lend(Meanwhile(line, happens)) else None,
        lambda: False,
    )
    assert taken[3].usage_count == 2 and taken[4].tags == ("night",)
    assert store.registry.entries() == taken
    assert [one.present for one in taken] == [True] * 10 + [False] * 340


class Killed:
    """A line whose process is killed before it has sent so many messages."""

    def __init__(self, line: Line, messages: int) -> None:
        self._line = line
        self._left = messages

    def send(self, message: object) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        self._line.send(message)

    def receive(self, within_s: float | None = None) -> Any:
        return self._line.receive(within_s)

    def is_cut(self) -> bool:
        return self._line.is_cut()


@pytest.mark.parametrize("messages", range(6))
def test_a_copy_that_is_killed_changes_nothing(place: Place, messages: int) -> None:
    """Before it wants to say anything, between two pieces, and before the end: 350 rows are four pieces."""
    store = place.store()
    known = store.registry.take([entry("old")], 1)
    with pytest.raises(EOFError):
        taken_there(store, MANY, 50, lambda line: Killed(line, messages))
    assert store.registry.entries() == known
    # Nothing is left open or locked: the next one is kept.
    assert len(taken_there(store, MANY, 60)[1]) == 351
    assert len(place.again().registry.entries()) == 351
    assert place.told == []


def test_two_of_one_name_are_refused_as_here(place: Place) -> None:
    """A defect of who looks: it is told, and nothing is changed."""
    store = place.store()
    with pytest.raises(EOFError, match="two of them have the name"):
        taken_there(store, [entry("a"), entry("a", found=found("b"))], 1)
    assert store.registry.entries() == ()


def test_while_the_disk_takes_nothing_it_is_not_done_there(tmp_path: Path) -> None:
    """What is known then is in memory here alone."""
    (tmp_path / "state").write_text("a file where the directory should be")
    store = FileStore(runtime_dir=tmp_path / "run", state_dir=tmp_path / "state", on_problem=lambda _: None)
    store.registry.take([entry("a")], 1)
    assert taken_there(store, MANY, 2) is None
    assert names(store.registry.entries()) == ["a"]
    store.close()
