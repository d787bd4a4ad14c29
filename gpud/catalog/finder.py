"""Finds the models that are on disk: looks through the roots, compares with what was known, and puts together.

Writes nothing, so that a look that is ended has lost nothing. Of what did not change it opens no file.
"""

from collections.abc import Callable, Collection, Mapping
from threading import Lock
from time import monotonic, time_ns
from typing import NamedTuple

from gpud.catalog import belongings, folders, huggingface, ollama, single
from gpud.catalog.copies import Copies
from gpud.catalog.folders import Patterns
from gpud.catalog.look import Look, Memory, found_of
from gpud.catalog.walk import Walk
from gpud.catalog.watch import Seen, Watch
from gpud.core.catalogue import Finding, Found, Roots


class _Kept(NamedTuple):
    """What one scan leaves to the next."""

    memory: Memory
    copies: Copies
    manifests: dict[str, ollama.Manifests]
    seen: Seen | None


class ModelFinder:
    """Fulfils :class:`gpud.core.ports.Finder`. ``watch`` and ``close`` are for the loop, the others for a thread."""

    def __init__(self, now_ns: Callable[[], int] = time_ns) -> None:
        self._now_ns = now_ns
        self._scanning = Lock()
        self._watch: Watch | None = None
        self._lent: Watch | None = None
        self._memory = Memory()
        self._copies = Copies()
        self._manifests: dict[str, ollama.Manifests] = {}

    def scan(self, roots: Roots, known: Mapping[str, Found], stop: Callable[[], bool] = lambda: False) -> Finding:
        """Everything below the roots. Raises Canceled when ``stop`` says so."""
        with self._scanning:
            began_s = monotonic()
            watch = self._watch
            if watch is not None:
                watch.begin()
            walk = Walk(stop, watch.enter if watch is not None else lambda _: None)
            self._walk(walk, roots)
            look = Look(walk, self._memory, self._now_ns)
            look.recognize(known)
            look.read()
            groups = self._copies.groups(belongings.give(walk, look.items), look.together)
            found = sorted((found_of(group) for group in groups), key=lambda one: one.path)
            self._memory = look.memory(groups)
            if watch is not None:
                self._watched(watch, walk, look.growing)
            return Finding(
                tuple(found),
                walk.troubles,
                _as_given(roots, walk.unreachable),
                walk.files,
                look.opened,
                monotonic() - began_s,
            )

    def lend(self) -> None:
        self._scanning.acquire()
        self._lent = self._watch
        if self._lent is not None:
            self._lent.lend()

    def take_back(self, kept: object) -> None:
        lent, self._lent = self._lent, None
        try:
            seen = None
            if isinstance(kept, _Kept):
                self._memory, self._copies, self._manifests, seen = kept
            if lent is not None:
                lent.take_back(seen)
        finally:
            self._scanning.release()

    def in_copy(self) -> None:
        # Who held it there does not go on here.
        self._scanning = Lock()
        if self._watch is not None:
            self._watch.in_copy()

    def kept(self) -> object:
        seen = self._watch.seen() if self._watch is not None else None
        return _Kept(self._memory, self._copies, self._manifests, seen)

    def descriptors(self) -> tuple[int, ...]:
        return (self._watch.fd,) if self._watch is not None else ()

    def noticed(self) -> frozenset[str] | None:
        """The files that are all that has changed since the last look, as far as the kernel has told, or None."""
        return self._watch.files() if self._watch is not None else None

    def look_at(self, roots: Roots, paths: Collection[str], known: Mapping[str, Found]) -> Finding | None:
        """These files alone: those that are there now. None: what they are depends on others, look at everything.

        ``known`` are the models that lie there, as far as they were there at the last look.
        """
        with self._scanning:
            began_s = monotonic()
            walk = Walk(lambda: False, lambda _: None)
            if not single.items_at(walk, roots, paths, self._memory):
                return None
            look = Look(walk, self._memory, self._now_ns)
            look.recognize(known)
            look.read()
            if walk.troubles or not single.are_models_alone(look, known, self._memory):
                return None
            single.remember(look, paths, known, self._memory)
            if look.growing and self._watch is not None:
                self._watch.look_again()
            found = sorted((found_of((item,)) for item in look.items), key=lambda one: one.path)
            return Finding(tuple(found), (), (), walk.files, look.opened, monotonic() - began_s)

    def _watched(self, watch: Watch, walk: Walk, growing: bool) -> None:
        watch.end()
        if growing:
            watch.look_again()
        for root, why in watch.unwatched.items():
            if why:
                walk.trouble(root, why)

    def watch(self, roots: Roots, changed: Callable[[], None]) -> tuple[str, ...]:
        """Call ``changed`` on the loop when something below the roots has changed; returns those that have to be looked
        at from time to time as well.

        Folders below the roots are watched from the next scan on, which has to come after this. Called again with the
        same roots nothing is lost, and the answer is what the last scan has come to know: there may be more folders
        than the kernel watches.
        """
        if self._watch is not None and self._watch.roots == roots:
            self._watch.changed = changed
            return tuple(root for root in roots.all() if root in self._watch.unwatched)
        self.close()
        try:
            self._watch = Watch(roots, changed)
        except OSError:
            return roots.all()
        return tuple(root for root in roots.all() if root in self._watch.unwatched)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _walk(self, walk: Walk, roots: Roots) -> None:
        """Stores first: what a folder has of them is not looked at as a folder."""
        for root in map(_plain, roots.huggingface):
            if walk.root(root):
                huggingface.look_into(walk, root)
        manifests = {}
        for root in map(_plain, roots.ollama):
            if walk.root(root):
                manifests[root] = ollama.look_into(walk, root, self._manifests.get(root, {}))
        self._manifests = manifests
        patterns = Patterns(roots.include, roots.exclude)
        for root in map(_plain, roots.folders):
            if walk.root(root):
                folders.look_into(walk, root, patterns)
        for path in roots.files:
            folders.look_at(walk, path)


def _as_given(roots: Roots, unreachable: Collection[str]) -> tuple[str, ...]:
    """Roots as they are configured, and then what lies below others."""
    tops = {_plain(root) for root in roots.all()}
    return (
        *(root for root in roots.all() if _plain(root) in unreachable),
        *(folder for folder in unreachable if folder not in tops),
    )


def _plain(root: str) -> str:
    return root.rstrip("/") or "/"
