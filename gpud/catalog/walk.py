"""One look at the places where models are, as far as all kinds of places share it: what was seen, what is told of it.

Lists folders and asks what a file is; never opens one.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gpud.catalog import names
from gpud.catalog.glance import Glance
from gpud.catalog.stream import visible
from gpud.core.catalogue import Format, Found, Place, Trouble
from gpud.core.errors import Canceled
from gpud.core.record import Struct

ASKED_EVERY = 64
"""After so many names it is asked whether to stop."""

NAMES_LIMIT = 1_000_000
"""So many names are looked at below all roots; what a link to the top of a file system would lead to has more."""

TROUBLES_LIMIT = 200
"""So many are told; of the others there is the number. Each takes a line in a list that somebody reads."""

_NOTHING_THERE = frozenset((errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOENT))
"""With these the kernel says that there is nothing, whoever asks."""


class File(NamedTuple):
    """A file that was seen, and in which state. ``public``: every user may read it."""

    path: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    public: bool

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> "File":
        return cls(
            path,
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode & 0o444 == 0o444,
        )


class Item(Struct):
    """A model that lies somewhere, before anything is compared.

    ``files`` are its parts; ``described`` what stands beside them and says what they are, where they do not say it.
    ``known`` is what was said of it by an earlier look, if it is the first place of that and nothing has changed.
    ``home`` is where what belongs to it lies; nothing does where it is empty. ``glance`` is filled in later, as is
    ``mmproj`` and ``draft`` but in Ollama's store, whose manifests name them. ``template`` and ``tools``: the store has
    a chat template of its own for it.
    """

    places: tuple[Place, ...]
    files: tuple[File, ...]
    format: Format = Format.GGUF
    described: tuple[File, ...] = ()
    home: str = ""
    digest: str = ""
    mmproj: File | None = None
    draft: File | None = None
    ollama_name: str = ""
    template: bool = False
    tools: bool = False
    problem: str = ""
    glance: Glance | None = None
    known: Found | None = None

    @property
    def path(self) -> str:
        return self.places[0].path

    @property
    def stem(self) -> str:
        """The name of its file, without what makes it a GGUF file and a part."""
        return names.stem_of(self.path.rpartition("/")[2])

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Walk:
    """What one look has come across. ``enter`` is told of each folder before it is listed."""

    def __init__(self, stop: Callable[[], bool], enter: Callable[[str], None]) -> None:
        self.items: list[Item] = []
        self.unreachable: list[str] = []
        self.files = 0
        self.visited: set[tuple[int, int]] = set()
        self._troubles: list[Trouble] = []
        self._untold = 0
        self._names = 0
        self._stop = stop
        self._enter = enter
        self._unreal = _unreal()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        if not self._untold:
            return tuple(self._troubles)
        return (*self._troubles, Trouble("", f"{self._untold:,} more could not be used; these are the first"))

    def trouble(self, path: str, text: str) -> None:
        if len(self._troubles) < TROUBLES_LIMIT:
            self._troubles.append(Trouble(visible(path), text))
        else:
            self._untold += 1

    def step(self) -> None:
        """Once for each file. Raises Canceled when nobody wants to know any more."""
        self._names += 1
        if self._names % ASKED_EVERY == 0 and self._stop():
            raise Canceled("looking for models was stopped", hint="look again: gpudctl models scan")

    def root(self, path: str) -> bool:
        """Whether the root is there and was not looked at yet."""
        self._enter(path)
        try:
            with os.scandir(path):
                status = Path(path).stat()
        except FileNotFoundError:
            self.unreachable.append(path)
            return False
        except (OSError, ValueError) as problem:
            self.unreachable.append(path)
            self.trouble(path, unlisted(problem))
            return False
        return self.visit(status)

    def out_of_reach(self, folder: str, problem: OSError | None = None) -> None:
        """What is below this folder cannot be seen: it is not gone for that."""
        nothing_there = problem is not None and problem.errno in _NOTHING_THERE
        if not nothing_there and folder not in self.unreachable:
            self.unreachable.append(folder)

    def visit(self, status: os.stat_result) -> bool:
        """Whether nobody was in this folder before, by whatever name."""
        mark = status.st_dev, status.st_ino
        if mark in self.visited:
            return False
        self.visited.add(mark)
        return True

    def enter(self, folder: str) -> None:
        """Something in this folder decides what there is, although nobody lists it."""
        self._enter(folder)

    def entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """What a folder has. One that is gone meanwhile has nothing."""
        self._enter(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.step()
                    if self._names > NAMES_LIMIT:
                        if self._names == NAMES_LIMIT + 1:
                            self.trouble(
                                folder,
                                f"there are more than {NAMES_LIMIT:,} names below the models' folders; the rest was "
                                "not looked at: exclude what has no models",
                            )
                        return
                    yield entry
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as problem:
            self.trouble(folder, unlisted(problem))
            self.out_of_reach(folder, problem)

    def folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether it is a folder that is to be looked into, which each is once."""
        try:
            if not entry.is_dir() or not named_in_text(self, entry):
                return False
            status = entry.stat()
            return status.st_dev not in self._unreal and self.visit(status)
        except FileNotFoundError:
            return False
        except OSError as problem:
            self.trouble(entry.path, unlisted(problem))
            self.out_of_reach(entry.path, problem)
            return False

    def file(self, entry: os.DirEntry[str]) -> File | None:
        """A regular file, or a link to one; of everything else that is called like a model it is told what it is."""
        self.files += 1
        try:
            status = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                self.trouble(entry.path, "it is a link to what is not there: remove it, or bring back what it leads to")
            return None
        except OSError as problem:
            self.trouble(entry.path, f"it cannot be looked at: {problem.strerror} (errno {problem.errno})")
            self.out_of_reach(entry.path.rpartition("/")[0] or "/", problem)
            return None
        if not stat.S_ISREG(status.st_mode):
            self.trouble(
                entry.path, f"it is {kind_of(status.st_mode)}, which is called like a model: it was not opened"
            )
            return None
        return File.of(entry.path, status) if named_in_text(self, entry) else None


def _unreal() -> frozenset[int]:
    """What is no disk: a link to the top of everything leads there, too."""
    found = set()
    for path in ("/proc", "/sys", "/dev"):
        try:
            found.add(Path(path).stat().st_dev)
        except OSError:
            continue
    return frozenset(found - {Path("/").stat().st_dev})


def named_in_text(walk: Walk, entry: os.DirEntry[str]) -> bool:
    """Whether its name is text: what is not cannot be told on a bus, kept in a database or sent as JSON."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        walk.trouble(entry.path, "its name is not UTF-8: rename it")
        return False
    return True


def unlisted(problem: OSError | ValueError) -> str:
    """Why a folder could not be looked into, and what to do."""
    if isinstance(problem, PermissionError):
        return "gpud may not look into it: let the user that gpud runs as read and enter it"
    if isinstance(problem, NotADirectoryError):
        return "it is no folder: name the folder that models are in"
    if isinstance(problem, OSError):
        return f"it cannot be looked into: {problem.strerror} (errno {problem.errno}): check the disk that it is on"
    return f"no folder can have this name: {problem}"


def kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def small_file(path: str, limit_bytes: int) -> bytes:
    """The content of a regular file that has at most so many bytes. Raises OSError, or ValueError for what is none.

    Never waits: what a FIFO or a device would do when it is opened is not found out.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no regular file")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - it is a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        content = bytearray()
        while len(content) <= limit_bytes and (more := file.read(limit_bytes + 1 - len(content))):
            content += more
    if len(content) > limit_bytes:
        raise ValueError(f"it has more than {limit_bytes:,} bytes")
    return bytes(content)
