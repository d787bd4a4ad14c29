"""Anything that may happen to what is remembered of models, in any order, on a disk that comes and goes."""

import sqlite3
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.core.record import replace
from gpud.store.database import Database
from gpud.store.models import ModelRegistry
from gpud.store.problems import Problems
from store.model_entries import entry, found, query

KNOWN = 5


@dataclass
class Expected:
    """By id: how often it was used, what was said, and whether it is there."""

    used: dict[int, int] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    there: dict[int, str] = field(default_factory=dict)
    ids_given: set[int] = field(default_factory=set)

    def forget(self, id_: int) -> None:
        for part in (self.used, self.notes, self.there):
            part.pop(id_, None)


class Bench:
    """A registry whose disk another program may lock, which is never waited for."""

    def __init__(self, top: Path) -> None:
        self.path = top / "registry.db"
        self._other: sqlite3.Connection | None = None
        self.expected = Expected()
        self.models: dict[int, int] = {}
        """The id of each model that somebody has put there."""
        self.now = 0
        self.open()

    def open(self) -> None:
        self.database = Database(self.path, Problems(lambda problem: None), busy_s=0.0)
        self.registry = ModelRegistry(self.database, nullcontext)

    def lock(self) -> None:
        if self._other is None and self.path.exists():
            self._other = sqlite3.connect(self.path, isolation_level=None)
            self._other.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None

    def restart(self) -> None:
        self.unlock()
        self.registry.close()
        self.database.close()
        self.open()

    def look(self, names: dict[int, int]) -> None:
        """These models are there, each with the name and the path of that number."""
        self.now += 1
        looked = []
        by_id = {one.id: one for one in self.registry.entries()}
        for model, name in names.items():
            known = by_id.get(self.models.get(model, 0))
            one = replace(known or entry("x"), name=f"n{name}", present=True)
            looked.append(replace(one, found=found(f"n{name}", stamp=f"{model}")))
        taken = {one.found.stamp: one for one in self.registry.take(looked, self.now) if one.present}
        assert len(taken) == len(names)
        self.expected.there = {}
        for model, name in names.items():
            id_ = taken[f"{model}"].id
            if self.models.get(model) != id_:
                assert model not in self.models and id_ not in self.expected.ids_given
                self.models[model] = id_
                self.expected.ids_given.add(id_)
                self.expected.used[id_], self.expected.notes[id_] = 0, ""
            self.expected.there[id_] = f"n{name}"

    def use(self, model: int) -> None:
        id_ = self.models.get(model, 999)
        self.registry.used({id_: (1, self.now, None)})
        if id_ in self.expected.used:
            self.expected.used[id_] += 1

    def say(self, model: int, words: str) -> None:
        for one in self.registry.entries():
            if one.id == self.models.get(model):
                self.registry.annotate(replace(one, notes=words))
                self.expected.notes[one.id] = words

    def forget(self, model: int) -> None:
        id_ = self.models.pop(model, 999)
        self.registry.forget(id_)
        self.expected.forget(id_)

    def check(self) -> None:
        entries = self.registry.entries()
        assert {one.id: one.usage_count for one in entries} == self.expected.used
        assert {one.id: one.notes for one in entries} == self.expected.notes
        assert {one.id: one.name for one in entries if one.present} == self.expected.there
        assert len({one.name for one in entries}) == len({one.found.path for one in entries}) == len(entries)


models = st.integers(0, KNOWN - 1)
looks = st.permutations(range(KNOWN)).flatmap(
    lambda order: st.sets(models).map(lambda there: {model: order[model] for model in sorted(there)})
)
steps = st.one_of(
    st.tuples(st.just("look"), looks),
    st.tuples(st.just("use"), models),
    st.tuples(st.just("say"), models, st.sampled_from(("a", "b", ""))),
    st.tuples(st.just("forget"), models),
    st.tuples(st.sampled_from(("lock", "unlock", "restart"))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=6, max_size=30))
def test_anything_may_happen_in_any_order(happens: list[tuple[object, ...]]) -> None:
    """Nothing is lost, nothing is counted twice, no id is given twice, no name is there twice; and in the end all of it
    is on the disk.
    """
    with tempfile.TemporaryDirectory() as top:
        bench = Bench(Path(top))
        for what, *values in happens:
            getattr(bench, str(what))(*values)
            bench.check()
        bench.restart()
        bench.check()
        bench.database.close()
        if bench.expected.ids_given:
            kept = query(bench.path, "SELECT id, usage_count FROM models ORDER BY id")
            assert dict(kept) == bench.expected.used
            assert query(bench.path, "PRAGMA integrity_check") == [("ok",)]
