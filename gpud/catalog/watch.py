"""Notices when something changes below the models' folders, without looking: the kernel tells.

Each folder is watched by itself, so the thread that looks through them adds it right before it is listed: what comes
after that is told of, what was there before is in the list. Calls ``changed`` and decides nothing else.
"""

import asyncio
import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from gpud.catalog import inotify, mounts
from gpud.catalog.content import DESCRIPTIONS, IGNORED_FOLDERS, PARTIAL_ENDINGS
from gpud.catalog.inotify import Event, Inotify
from gpud.core.catalogue import Roots

QUIET_S = 0.2
"""So long nothing more may happen before it is told: a folder that is copied is one change. Whoever copies a single
file waits for it, and should not notice."""

LONGEST_S = 1.0
"""So late it is told at the latest, whatever goes on."""

AGAIN_FIRST_S = 30.0
AGAIN_LONGEST_S = 600.0
"""When a file was left alone because somebody writes it, it is looked at again after this time, doubled each time until
something happens: its end is told of, but not that its writer was killed a moment before it was looked at."""

FILES_MOST = 64
"""So many files that have changed are remembered by name: to look at all of more folders is as fast by then."""

_APPEARS = inotify.CREATE | inotify.MOVED_TO
_GOES = inotify.DELETE | inotify.MOVED_FROM
_ITSELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT
_MASK = (
    inotify.CLOSE_WRITE
    | inotify.ATTRIB
    | _APPEARS
    | _GOES
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ONLY_FOLDERS
)
_WAITING_MASK = _APPEARS | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLY_FOLDERS | inotify.ADD_TO_MASK


EARLY_MOST = 1000
"""So many events of folders that only a copy of this process knows yet are remembered until it has told of them."""


class Seen(NamedTuple):
    """What a copy of this process has come to watch, by the same instance, and what it would have called."""

    folders: dict[int, str]
    awaited: dict[int, set[str]]
    noted: dict[str, str]
    has_come: bool
    is_growing: bool


class Watch:
    """Watches roots until it is closed. Made and closed on the loop; ``begin``, ``enter`` and ``end`` are for the
    thread that looks. Raises OSError where the kernel gives no more instances.

    Where a copy of this process looks, what it enters is watched by this instance, as the kernel sees it. Which folders
    these are is told here at its end: until then events of unknown folders are kept.
    """

    def __init__(self, roots: Roots, changed: Callable[[], None]) -> None:
        self.roots = roots
        self.changed = changed
        self.unwatched: dict[str, str] = {}
        """Roots that are not watched, or not wholly, as of the last whole look; and what there is to do about it."""
        self._noted: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        mounted = mounts.read()
        self._kernel = Inotify()
        try:
            self._mount_changes = mounts.Changes()
        except OSError:
            self._kernel.close()
            raise
        self._closed = False
        self._lock = Lock()
        self._tops = tuple(root.rstrip("/") or "/" for root in roots.all())
        self._manifests = tuple(f"{root.rstrip('/')}/manifests/" for root in roots.ollama)
        self._folders: dict[int, str] = {}
        self._awaited: dict[int, set[str]] = {}
        self._entered: set[int] = set()
        self._files: set[str] | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._looking_again: asyncio.TimerHandle | None = None
        self._again_s = AGAIN_FIRST_S
        self._early: list[Event] | None = None
        self._is_copy = self._has_come = self._is_growing = False
        self._loop.add_reader(self._kernel.fd, self._happened)
        self._loop.add_reader(self._mount_changes.fd, self._mounted)
        self._mounts = mounts.about(self._tops, mounted)
        for given, top in zip(roots.all(), self._tops, strict=True):
            # A server that does not answer must not be asked here: the loop would wait for it.
            if mounts.is_remote(top, mounted):
                self._noted[given] = ""
            else:
                self._add(top)
        self.unwatched = self._noted

    def close(self) -> None:
        with self._lock:
            for handle in (self._telling, self._looking_again):
                if handle is not None:
                    handle.cancel()
            if not self._closed:
                self._closed = True
                self._loop.remove_reader(self._kernel.fd)
                self._kernel.close()
                self._loop.remove_reader(self._mount_changes.fd)
                self._mount_changes.close()

    # For the thread that looks ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A look at everything begins: what it enters is watched, and nothing else."""
        self._entered = set()
        self._noted = {}
        with self._lock:
            self._files = set()

    def files(self) -> frozenset[str] | None:
        """Files called like models that are all that has changed since this was asked, or a look at everything began;
        None: there is more to look at than files.
        """
        with self._lock:
            files, self._files = self._files, set() if self._files is not None else None
            return None if files is None else frozenset(files)

    def enter(self, folder: str) -> None:
        """Watch this folder. One that is not there is waited for, if it is a root."""
        folder = folder.rstrip("/") or "/"
        if self._kernel.remote(folder):  # It may take its time: nobody else may have to wait for it.
            self._noted[self._top_of(folder)] = ""
        else:
            self._add(folder)

    def _add(self, folder: str) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                watch = self._kernel.add(folder, _MASK)
            except OSError as problem:
                self._not_watched(folder, problem)
                return
            self._folders[watch] = folder
            self._entered.add(watch)

    def end(self) -> None:
        """A look has seen everything: what it did not enter is watched no more."""
        with self._lock:
            self.unwatched = self._noted
            if self._closed:
                return
            for watch in (self._folders.keys() | self._awaited.keys()) - self._entered:
                self._kernel.remove(watch)
                self._folders.pop(watch, None)
                self._awaited.pop(watch, None)

    def look_again(self) -> None:
        """Something was left alone that may be left as it is: call ``changed`` in a while."""
        self._is_growing = True
        self._soon(self._arm)

    def _soon(self, call: Callable[[], None]) -> None:
        if self._is_copy:
            return
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # The loop is closed: nobody wants to know any more.

    # For a copy of this process that looks ---------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        return self._kernel.fd

    def lend(self) -> None:
        """Here, before there is the copy. What it enters has to be told with ``take_back``."""
        self.begin()
        with self._lock:
            self._early = []

    def in_copy(self) -> None:
        """There: it knows no folder but those that it enters."""
        self._lock = Lock()
        self._is_copy, self._has_come, self._is_growing = True, False, False
        self._folders, self._awaited = {}, {}

    def seen(self) -> Seen:
        """There, after the look."""
        return Seen(self._folders, self._awaited, self._noted, self._has_come, self._is_growing)

    def take_back(self, seen: Seen | None) -> None:
        """Here, after the look. None: nobody knows what the copy has entered, a look here has to follow."""
        if seen is None:
            with self._lock:
                self._early = self._files = None
            return
        with self._lock:
            self._folders |= seen.folders
            self._awaited |= seen.awaited
            self._entered |= seen.folders.keys() | seen.awaited.keys()
            self._noted = seen.noted
        self.end()
        self._soon(self._take_early)
        if seen.has_come:
            self._soon(self._all_changed)
        if seen.is_growing:
            self._soon(self._arm)

    def _take_early(self) -> None:
        with self._lock:
            early, self._early = self._early, None
        self._take(early or ())

    def _not_watched(self, folder: str, problem: OSError) -> None:
        if problem.errno in (errno.ENOENT, errno.ENOTDIR):
            if folder in self._tops:
                self._wait_for(folder)
        elif problem.errno == errno.ENOSPC:
            limit = _limit()
            self._noted[self._top_of(folder)] = (
                f"not all of its folders can be watched: all programs of this user together may watch {limit}; raise "
                "fs.inotify.max_user_watches; until then it is looked at from time to time"
            )
        elif folder in self._tops:
            self._noted[self._top_of(folder)] = f"it cannot be watched: {problem.strerror}"

    def _wait_for(self, root: str) -> None:
        """Watch the nearest folder above that is there for the next one on the way to the root."""
        way = Path(root)
        for parent in way.parents:
            try:
                watch = self._kernel.add(str(parent), _WAITING_MASK)
            except OSError as problem:
                if problem.errno != errno.ENOENT:  # Whether it comes cannot be seen from here.
                    self._noted[self._top_of(root)] = ""
                    return
                way = parent
                continue
            self._entered.add(watch)
            self._awaited.setdefault(watch, set()).add(way.name)
            if way.is_dir():  # It has come between the two calls, and nobody was told.
                self._has_come = True
                self._soon(self._all_changed)
            return

    def _top_of(self, folder: str) -> str:
        """The root that a folder lies in, as it was given."""
        for given, top in zip(self.roots.all(), self._tops, strict=True):
            if folder == top or folder.startswith(f"{top.rstrip('/')}/"):
                return given
        return folder

    # On the loop -----------------------------------------------------------------------------------------------------

    def _happened(self) -> None:
        if self._closed:
            return
        self._take(event for event in self._kernel.read() if not self._is_early(event))

    def _is_early(self, event: Event) -> bool:
        """Whether only the copy that looks can know what it is about. It is kept; so is what may mean more there."""
        with self._lock:
            if self._early is None or event.watch in self._folders or event.mask & inotify.OVERFLOW:
                return False
            if len(self._early) < EARLY_MOST:
                self._early.append(event)
                return event.watch not in self._awaited
        self._all_changed()
        return True

    def _take(self, events: Iterable[Event]) -> None:
        matters = False
        for event in events:
            if self._matters(event):
                matters = True
                self._remember(event)
        if matters:
            self._again_s = AGAIN_FIRST_S
            self._notice()

    def _mounted(self) -> None:
        """A disk has come or gone: of that inotify says nothing."""
        self._mount_changes.taken()
        before, self._mounts = self._mounts, mounts.about(self._tops, mounts.read())
        if self._mounts != before:
            self._all_changed()

    def _matters(self, event: Event) -> bool:
        """Whether there may be another model, or one less, or another one, after this."""
        mask, name = event.mask, event.name
        if mask & inotify.OVERFLOW:
            return True
        with self._lock:
            folder = self._folders.get(event.watch)
            awaited = self._awaited.get(event.watch, set())
            if mask & inotify.IGNORED:
                self._folders.pop(event.watch, None)
                self._awaited.pop(event.watch, None)
                return False
        if name in awaited or (awaited and mask & _ITSELF):
            return True
        if folder is None:
            return False
        if mask & _ITSELF:
            return True
        if f"{folder}/".startswith(self._manifests):
            return True
        return is_about_models(folder, name, mask)

    def _remember(self, event: Event) -> None:
        """Which file it is about, if it is about one of a folder that anybody keeps models in."""
        with self._lock:
            folder = self._folders.get(event.watch)
            if self._files is None:
                return
            name = model_name(event.name)
            whose_place = folder is None or f"{folder}/".startswith(self._manifests)
            if whose_place or not name or event.mask & (inotify.OVERFLOW | inotify.IS_FOLDER | _ITSELF):
                self._files = None
            elif len(self._files) < FILES_MOST:
                self._files.add(f"{'' if folder == '/' else folder}/{name}")
            else:
                self._files = None

    def _all_changed(self) -> None:
        with self._lock:
            self._files = None
        self._notice()

    def _notice(self) -> None:
        """Gather what happens together, and then tell."""
        if self._closed:
            return
        now = self._loop.time()
        if self._telling is None:
            self._since = now
        else:
            self._telling.cancel()
        self._telling = self._loop.call_at(min(now + QUIET_S, self._since + LONGEST_S), self._tell)

    def _tell(self) -> None:
        self._telling = None
        self.changed()

    def _arm(self) -> None:
        if not self._closed and self._looking_again is None:
            self._looking_again = self._loop.call_later(self._again_s, self._again)

    def _again(self) -> None:
        self._looking_again = None
        self._again_s = min(2 * self._again_s, AGAIN_LONGEST_S)
        with self._lock:
            self._files = None
        self.changed()


def model_name(name: str) -> str:
    """The GGUF file that an event with this name in it is about; empty where it is about something else."""
    stem, _, ending = name.rpartition(".")
    if ending.lower() in PARTIAL_ENDINGS:
        name, ending = stem, stem.rpartition(".")[2]
    return name if ending.lower() == "gguf" else ""


def is_about_models(folder: str, name: str, mask: int) -> bool:
    """By its name, for events in an ordinary folder."""
    if not name:
        return bool(mask & inotify.ATTRIB)  # The folder's own mode.
    if name.startswith("."):
        return False
    if mask & inotify.IS_FOLDER:
        return name not in IGNORED_FOLDERS
    _, dot, ending = name.rpartition(".")
    ending = ending.lower()
    if ending in ("gguf", "safetensors") or name in DESCRIPTIONS:
        return True
    if ending in PARTIAL_ENDINGS and dot:
        return bool(mask & _GOES)
    # Links to folders have any name; a link that was removed cannot be asked any more what it was.
    if not dot:
        return bool(mask & (_APPEARS | _GOES | inotify.CLOSE_WRITE))
    return bool(mask & _APPEARS) and Path(folder, name).is_symlink()


def _limit() -> str:
    try:
        return f"{int(Path('/proc/sys/fs/inotify/max_user_watches').read_text()):,} folders"
    except (OSError, ValueError):
        return "only so many"
