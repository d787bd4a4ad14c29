"""One file on its way: locked against a second download of it, resumable, and never under its own name before it is
whole.
"""

import errno
import fcntl
import hashlib
import json
import os
import pwd
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from msgspec import to_builtins

from gpud.core.counts import plural
from gpud.core.record import Record
from gpud.pulling.problems import DownloadFailed, NoSpace, NotAllowed

BLOCK_BYTES = 1 << 20

MODE = 0o644
"""Of what has arrived: the daemon, which is somebody else, has to read it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Checksum(Record):
    """What the content must come to. ``kind`` is ``sha256``, or ``git``: how git names a file's content."""

    kind: str
    hex: str


class Origin(Record):
    """What a part is a part of. ``validator`` is the server's word for this very content (an ETag, or a date); what has
    the same checksum is the same without it. ``source`` is the address, in a form that gives no secret away.
    """

    source: str = ""
    validator: str = ""
    size_bytes: int | None = None
    checksum: str = ""


class Sum:
    """Counts what goes by."""

    def __init__(self, kind: str, size_bytes: int | None) -> None:
        self._kind = kind
        self._sha256 = hashlib.sha256()
        # Git's name for content; it protects against nothing but accidents, and is all that the hub has of small files.
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        if kind == "git":
            self._sha1.update(b"blob %d\0" % (size_bytes or 0))

    def add(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._kind == "git":
            self._sha1.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def is_that(self, wanted: Checksum) -> bool:
        return (self._sha1 if wanted.kind == "git" else self._sha256).hexdigest() == wanted.hex


class Part:
    """An unfinished file, ours alone while this is open. A context manager."""

    def __init__(self, final: Path, fd: int) -> None:
        self.final = final
        self._fd = fd
        self._path = path_of(final)
        self._meta = final.with_name(f"{final.name}.part.json")
        self.size_bytes = os.fstat(fd).st_size
        self.origin = self._read_origin()

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    # What it is a part of --------------------------------------------------------------------------------------------

    def _read_origin(self) -> Origin:
        try:
            value = json.loads(self._meta.read_bytes()[:65536])
            return Origin(**value)
        except (OSError, ValueError, TypeError, RecursionError):
            return Origin()

    def comes_from(self, origin: Origin) -> None:
        """Remember it before the first byte: what is not known to belong together is never put together."""
        if origin == self.origin and self._meta.exists():
            return
        self.origin = origin
        fresh = self._meta.with_name(f"{self._meta.name}.new")
        try:
            with suppress(FileNotFoundError):
                fresh.unlink()
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            with os.fdopen(fd, "w") as file:
                json.dump(to_builtins(origin), file)
            fresh.replace(self._meta)
        except OSError as problem:
            raise self._cannot_write(problem, None) from None

    # Its content -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes, total_bytes: int | None) -> None:
        """At its end. Raises NoSpace, which keeps what fits, and DownloadFailed."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, self.size_bytes)
                self.size_bytes += written
                view = view[written:]
        except OSError as problem:
            raise self._cannot_write(problem, total_bytes) from None

    def begin_anew(self) -> None:
        """Nothing of what is there can be used."""
        os.ftruncate(self._fd, 0)
        self.size_bytes = 0

    def count(self, into: Sum, moved: Callable[[int], None]) -> None:
        """Read all of it again: what lies on a disk since yesterday is not what was counted yesterday."""
        at = 0
        while at < self.size_bytes:
            try:
                block = os.pread(self._fd, min(BLOCK_BYTES, self.size_bytes - at), at)
            except OSError as problem:
                raise DownloadFailed(
                    f"cannot read {self._path} again: {problem.strerror}", hint="check the disk, or delete it"
                ) from None
            if not block:
                raise DownloadFailed(f"{self._path} was cut while it was read", hint="let nobody else touch it")
            into.add(block)
            at += len(block)
            moved(at)

    # Its end ---------------------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        """It is whole: on the disk, and then under its name."""
        try:
            os.fsync(self._fd)
            os.fchmod(self._fd, MODE)
            self._path.replace(self.final)
            sync_folder(self.final.parent)
        except OSError as problem:
            raise self._cannot_write(problem, self.size_bytes) from None
        with suppress(OSError):
            self._meta.unlink()

    def throw_away(self) -> None:
        for path in (self._path, self._meta):
            with suppress(FileNotFoundError):
                path.unlink()

    def check_space(self, total_bytes: int | None, reserve_bytes: int) -> None:
        """Raises NoSpace when what is missing, and what has to stay free, have no room."""
        check_space(self.final.parent, max(0, (total_bytes or 0) - self.size_bytes), reserve_bytes, self.final.name)

    def _cannot_write(self, problem: OSError, total_bytes: int | None) -> Exception:
        if problem.errno in _FULL:
            rest = "" if total_bytes is None else f", {_missing(total_bytes - self.size_bytes, total_bytes)}"
            what = "your quota is used up" if problem.errno == errno.EDQUOT else "no space is left"
            return NoSpace(
                f'cannot save "{self.final.name}": {what} in {self.final.parent}{rest}',
                hint="make room and run the same command again: it goes on from where it is",
            )
        return DownloadFailed(
            f'cannot save "{self.final.name}" in {self.final.parent}: {problem.strerror} (errno {problem.errno})',
            hint="what has come is kept; choose another folder with --to, or mend this one",
        )


def path_of(final: Path) -> Path:
    return final.with_name(f"{final.name}.part")


def open_part(final: Path, follow: Callable[[int], None]) -> Part | None:
    """The part of this file, locked. While another process has it, ``follow`` is called with its size, again and again;
    None: it has arrived meanwhile. Raises NotAllowed, NoSpace, DownloadFailed.
    """
    path = path_of(final)
    before = _identity(final)
    followed = False
    while True:
        if followed and _identity(final) not in (None, before):
            return None
        fd, may_write = _opened(path, final)
        try:
            if not _locked(fd):
                _follow(fd, follow)
                followed = True
            elif not _is(path, fd):
                # It has arrived, or was thrown away, between the opening and the lock.
                followed = True
            elif not may_write:
                raise _somebody_elses(path, fd)
            else:
                kept, fd = fd, -1
                return Part(final, kept)
        finally:
            if fd >= 0:
                os.close(fd)


FOLLOW_S = 0.25
"""How often the size of another's download is looked at while it is waited for: nothing tells of a file that grows."""


def _follow(fd: int, follow: Callable[[int], None]) -> None:
    while not _locked(fd):
        follow(os.fstat(fd).st_size)
        time.sleep(FOLLOW_S)


def _opened(path: Path, final: Path) -> tuple[int, bool]:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd, may_write = os.open(path, os.O_RDWR | os.O_CREAT | flags, MODE), True
    except PermissionError as problem:
        try:
            # Somebody else's: it can be waited for, if it is going on.
            fd, may_write = os.open(path, os.O_RDONLY | flags), False
        except OSError:
            raise NotAllowed(
                f'cannot save "{final.name}" in {final.parent}: {problem.strerror}',
                hint="choose a folder that you may write with --to",
            ) from None
    except OSError as problem:
        if problem.errno in _FULL:
            raise NoSpace(f'cannot save "{final.name}": no space is left in {final.parent}', hint="make room") from None
        link = problem.errno == errno.ELOOP
        raise DownloadFailed(
            f'cannot save "{final.name}": {path} {"is a link" if link else problem.strerror}',
            hint="remove it, or choose another folder with --to",
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DownloadFailed(f'cannot save "{final.name}": {path} is no regular file', hint="remove it")
    return fd, may_write


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return there.st_dev, there.st_ino


def _is(path: Path, fd: int) -> bool:
    mine = os.fstat(fd)
    return _identity(path) == (mine.st_dev, mine.st_ino)


def _somebody_elses(path: Path, fd: int) -> NotAllowed:
    uid = os.fstat(fd).st_uid
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return NotAllowed(
        f"{path} is a download that {name} has not finished",
        hint="let them finish it, have it removed, or choose another folder with --to",
    )


def _missing(missing_bytes: int, total_bytes: int) -> str:
    are = "is" if missing_bytes == 1 else "are"
    return f"{missing_bytes:,} of {plural(total_bytes, 'byte', grouped=True)} {are} missing"


def check_space(folder: Path, need_bytes: int, reserve_bytes: int, what: str) -> None:
    """Raises NoSpace."""
    space = os.statvfs(folder)
    free_bytes = space.f_bavail * space.f_frsize
    if free_bytes < need_bytes + reserve_bytes:
        short = need_bytes + reserve_bytes - free_bytes
        come = plural(need_bytes, "byte is", "bytes are", grouped=True)
        raise NoSpace(
            f'cannot save "{what}" in {folder}: {come} to come, {free_bytes:,} are free, and '
            f"{reserve_bytes:,} of them stay so",
            hint=f"make room for {plural(short, 'byte', grouped=True)} more, or choose another folder with --to",
        )


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
