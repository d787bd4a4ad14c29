"""A finder that finds what a test puts there, and a registry in memory."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from gpud.core.catalogue import Entry, Finding, Format, Found, Place, Roots, Source, Trouble
from gpud.core.facts import Model
from gpud.core.record import replace
from gpud.engine.library import Library
from gpud.engine.shelf import Shelf

ROOTS = Roots(folders=("/models",))


def found(name: str, folder: str = "/models", *, stamp: str = "", size_bytes: int = 1 << 30, **more: object) -> Found:
    place = Place(f"{folder}/{name}.gguf", Source.FOLDER, name)
    made = Found((place,), Format.GGUF, stamp or f"first of {place.path}", size_bytes, architecture="llama")
    return replace(made, **more)  # type: ignore[arg-type]


class Shelves:
    """Fulfils ``Finder``. What is in ``models`` is found; ``reached`` is set when a scan has begun, which then waits
    for ``go``."""

    def __init__(self, *models: Found) -> None:
        self.models = list(models)
        self.troubles: list[Trouble] = []
        self.unreachable: tuple[str, ...] = ()
        self.unwatched: tuple[str, ...] = ()
        self.scans = 0
        self.known: Mapping[str, Found] = {}
        self.watched: Roots | None = None
        self.changed: Callable[[], None] | None = None
        self.reached = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.closed = False
        self._counting = threading.Condition()

    def until(self, scans: int) -> None:
        """For a thread: returns when so many scans have begun."""
        with self._counting:
            assert self._counting.wait_for(lambda: self.scans >= scans, 30)

    def scan(self, roots: Roots, known: Mapping[str, Found], stop: Callable[[], bool] = lambda: False) -> Finding:
        models = tuple(self.models)
        with self._counting:
            self.scans += 1
            self._counting.notify_all()
        self.known = known
        self.reached.set()
        assert self.go.wait(30), "the test has forgotten to let the scan go on"
        return Finding(
            models if roots.folders else (), tuple(self.troubles), self.unreachable, len(models), len(models)
        )

    def watch(self, roots: Roots, changed: Callable[[], None]) -> tuple[str, ...]:
        self.watched, self.changed = roots, changed
        return self.unwatched

    def noticed(self) -> frozenset[str] | None:
        """Nobody knows which files have changed: everything is looked at."""
        return None

    def look_at(self, roots: Roots, paths: Collection[str], known: Mapping[str, Found]) -> Finding | None:
        raise AssertionError("nobody has said that only these have changed")

    def close(self) -> None:
        self.closed = True


class MemoryRegistry:
    """Fulfils ``Registry``; what survives a restart is one that is handed on."""

    def __init__(self) -> None:
        self.kept: dict[int, Entry] = {}
        self._last = 0

    def entries(self, names: Collection[str] | None = None) -> tuple[Entry, ...]:
        return tuple(one for one in self.kept.values() if names is None or one.name in names)

    def take(self, entries: Sequence[Entry], at_us: int) -> tuple[Entry, ...]:
        here = set()
        for entry in entries:
            if not entry.id:
                self._last += 1
                entry = replace(entry, id=self._last)
            self.kept[entry.id] = replace(entry, last_scanned_us=at_us)
            here.add(entry.id)
        for id_, entry in self.kept.items():
            if id_ not in here:
                self.kept[id_] = replace(entry, present=False)
        names = [entry.name for entry in self.kept.values()]
        assert len(names) == len(set(names)), "two entries have one name"
        return self.entries()

    def annotate(self, entry: Entry) -> None:
        said = {"aliases": entry.aliases, "priority": entry.priority, "tags": entry.tags, "notes": entry.notes}
        self.kept[entry.id] = replace(self.kept[entry.id], **said)  # type: ignore[arg-type]

    def estimated(self, sizes: Mapping[int, tuple[int, str]]) -> None:
        for id_, (size, of) in sizes.items():
            if id_ in self.kept:
                self.kept[id_] = replace(self.kept[id_], estimate_bytes=size, estimate_of=of)

    def used(self, uses: Mapping[int, tuple[int, int, float | None]]) -> None:
        for id_, (count, at_us, load_s) in uses.items():
            entry = self.kept[id_]
            self.kept[id_] = replace(
                entry, usage_count=entry.usage_count + count, last_used_us=at_us, load_s=load_s or entry.load_s
            )

    def forget(self, id_: int) -> None:
        del self.kept[id_]


def nothing_found() -> Library:
    """For engines with nothing but what is configured."""
    return Library(Shelves(), MemoryRegistry())


def configured(models: Mapping[str, Model]) -> Shelf:
    return Shelf(configured=models)
