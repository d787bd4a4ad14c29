"""Reads a file that nobody vouches for, a window at a time: bounded in memory, in time, and never past its end.

The file is read with ``pread`` and not mapped: whoever truncates a mapped file ends the process that reads it with
SIGBUS, and a short read is only a short read. It costs nothing: the same loop took 58 ms for 15 MB of vocabulary in
windows and 58 ms mapped, and the windows take 0.3 MB of memory instead of all that was touched.
"""

import os
import re
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from gpud.core.counts import plural
from gpud.core.errors import BackendFailed
from gpud.core.record import Record, Struct

FIRST_WINDOW_BYTES = 64 * 1024
WINDOW_BYTES = 256 * 1024
"""What is read at once: enough that system calls do not count, so little that it stays in the processor's cache."""

HEADER_LIMIT_BYTES = 256 * 1024 * 1024
"""How far into its files a model's metadata may reach, all parts together; the largest known takes 16 MB."""

STRINGS_LIMIT = 1 << 22
"""How many strings the arrays of a model may have together: each has to be visited, which takes 0.3 s for these. The
largest known vocabulary and its merges are 0.8 million."""

PAIRS_LIMIT = 1 << 16
"""How many entries of metadata a model may have, all parts together; real ones have fewer than a hundred in each."""

TENSORS_LIMIT = 1 << 16
"""How many tensors a model may have, all parts together; the largest known, with each expert apart, has 45,000."""

KEPT_LIMIT_BYTES = 16 * 1024 * 1024
"""What names and values that are kept may take in memory, all parts together."""

INCOMPLETE = "it is incomplete or damaged: download or copy it again"
SUSPECT = "it is damaged, or was made to do harm: get it anew from who published it"

_BATCH = 64
_SHORT = 64
_USUAL = 9
"""The length that strings of a vocabulary most often have: what is tried first."""

_LONGEST_PAUSE = 1024
"""So many strings are stepped over one by one, at most, before the next try at a batch of short ones."""

_LENGTH = struct.Struct("<Q")
_DIMENSIONS = struct.Struct("<I")

NAME_LIMIT_BYTES = 1024
"""How long a key or the name of a tensor may be; engines take 63 bytes of a tensor's."""

DIMENSIONS_LIMIT = 4

TENSOR_MOST_BYTES = 8 + NAME_LIMIT_BYTES + 4 + 8 * DIMENSIONS_LIMIT + 4 + 8
"""What the line of one tensor takes at most."""


@cache
def _short_strings() -> re.Pattern[bytes]:
    """Matches :data:`_BATCH` strings, all shorter than :data:`_SHORT`, one after the other.

    To walk a vocabulary is a loop of three quarters of a million steps. The regular expression engine makes them faster
    than a loop of ``unpack_from`` (51 instead of 58 ms for 15 MB, 42 instead of 56 where lengths vary less), and as
    exactly: every alternative is a length, all eight bytes of it, and that many bytes of anything.
    """
    lengths = sorted(range(_SHORT), key=lambda length: abs(length - _USUAL))
    choices = (re.escape(bytes([length])) + rb"\x00{7}" + b".{%d}" % length for length in lengths)
    return re.compile(b"(?s:" + b"|".join(choices) + b"){%d}+" % _BATCH)


class Allowance(Struct):
    """What is left of what reading one model may cost, all of its parts together."""

    header_bytes: int = HEADER_LIMIT_BYTES
    pairs: int = PAIRS_LIMIT
    tensors: int = TENSORS_LIMIT
    strings: int = STRINGS_LIMIT
    kept_bytes: int = KEPT_LIMIT_BYTES


class Identity(Record):
    """Which file it was and in which state. Another content has another identity."""

    path: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> "Identity":
        return cls(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def holds(self) -> bool:
        """Whether the file is still there and unchanged."""
        try:
            return Identity.of(self.path, Path(self.path).stat()) == self
        except (OSError, ValueError):
            return False


class BadModelFile(BackendFailed):
    """``what`` is wrong with it, without its path. ``incomplete``: more of it could mend it."""

    def __init__(self, path: str, what: str, hint: str) -> None:
        message = f'cannot read model file "{visible(path)}": {what}'
        super().__init__(message, hint=hint, kind="bad-file", preflight=True)
        self.what = what
        self.incomplete = hint is INCOMPLETE


def bad_file(path: str, what: str, hint: str) -> BadModelFile:
    """The error for a file that cannot be used. The path is shown whatever bytes it has."""
    return BadModelFile(path, what, hint)


def quoted(text: bytes | str) -> str:
    """A name out of a file as a message can carry it: short, and without anything that a terminal would obey."""
    raw = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
    return f'"{visible(raw if len(raw) <= 80 else raw[:77] + "...")}"'


def visible(text: str) -> str:
    """The text without anything that a terminal would obey, or that is no character at all: bytes of a name that are no
    text are written as such.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return repr(char)[1:-1]


class Stream:
    """A place in an open file that moves forward. ``doing`` says what is being read, for messages."""

    __slots__ = (
        "_base",
        "_fd",
        "_pos",
        "_window",
        "_window_bytes",
        "allowance",
        "doing",
        "identity",
        "path",
        "size_bytes",
    )

    def __init__(
        self, path: str, fd: int, status: os.stat_result, allowance: Allowance, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self.path = path
        self._window_bytes = window_bytes
        self.size_bytes = status.st_size
        self.identity = Identity.of(path, status)
        self.allowance = allowance
        self.doing = "the header"
        self._fd = fd
        self._base = 0
        self._pos = 0
        self._window = b""

    @property
    def at(self) -> int:
        return self._base + self._pos

    @property
    def left_bytes(self) -> int:
        return self.size_bytes - self.at

    def bad(self, what: str, hint: str = SUSPECT) -> BadModelFile:
        return bad_file(self.path, what, hint)

    def ends(self, need_bytes: int) -> BadModelFile:
        follow = plural(need_bytes, "byte is", "bytes are", grouped=True)
        return self.bad(
            f"it ends inside {self.doing}: {follow} to follow at byte {self.at:,}, "
            f"and the file has {self.size_bytes:,}",
            INCOMPLETE,
        )

    def unpack(self, form: struct.Struct) -> tuple[int | float | bool, ...]:
        pos = self._need(form.size)
        self._pos = pos + form.size
        return form.unpack_from(self._window, pos)

    def integer(self, form: struct.Struct) -> int:
        (value,) = self.unpack(form)
        return int(value)

    def take(self, count: int) -> bytes:
        """The next bytes; for counts that the caller has bounded."""
        pos = self._need(count)
        self._pos = pos + count
        return self._window[pos : pos + count]

    def peek(self, count: int) -> bytes:
        """What comes next, at most so many bytes, without going on."""
        count = min(count, self.left_bytes)
        pos = self._need(count)
        return self._window[pos : pos + count]

    def back_to(self, at: int) -> None:
        """Go on at an earlier place."""
        self.allowance.header_bytes -= at - self._base
        self._window, self._base, self._pos = b"", at, 0

    def skip(self, count: int) -> None:
        """Go on after so many bytes, which are not read."""
        if count > self.left_bytes:
            raise self.ends(count)
        self._pos += count

    def keep(self, count: int) -> None:
        """Account for what is kept in memory."""
        self.allowance.kept_bytes -= count
        if self.allowance.kept_bytes < 0:
            raise self.bad(
                f"its names and values take more than {KEPT_LIMIT_BYTES:,} bytes of memory, reached at {self.doing}"
            )

    def skip_strings(self, count: int) -> None:
        """Go on after so many strings. Each begins with its length, so that there is no way around visiting all."""
        if count * _LENGTH.size > self.left_bytes:
            raise self.ends(count * _LENGTH.size)
        self.allowance.strings -= count
        if self.allowance.strings < 0:
            raise self.bad(
                f"{self.doing} has {count:,} strings, and all arrays of a model may have {STRINGS_LIMIT:,} together"
            )
        match, unpack = _short_strings().match, _LENGTH.unpack_from
        pause = _BATCH
        while count:
            pos = self._need(_LENGTH.size)
            window, before = self._window, count
            while count >= _BATCH and (batch := match(window, pos)):
                pos = batch.end()
                count -= _BATCH
            # The window ends here, or one of the next strings is long; where many are, a try is made ever less often.
            pause = _BATCH if before - count >= _BATCH else min(2 * pause, _LONGEST_PAUSE)
            turns = done = min(count, pause)
            try:
                for done in range(turns):  # noqa: B007 - it tells how many there were when the window ended
                    pos += unpack(window, pos)[0] + _LENGTH.size
                done = turns
            except (struct.error, OverflowError):
                pass
            count -= done
            self._pos = pos
            if self.left_bytes < 0:
                raise self.bad(
                    f"it ends inside {self.doing}: a string reaches to byte {self.at:,}, and the file has "
                    f"{self.size_bytes:,}",
                    INCOMPLETE,
                )

    def last_tensor(self, count: int, wanted: Collection[bytes] = ()) -> tuple[int, bytes, frozenset[bytes]]:
        """Go on after the lines of so many tensors. Returns where the last one begins and that line, and which of the
        ``wanted`` names there are. Each line begins with the length of its name: all have to be visited.
        """
        number_of, integer_of = _LENGTH.unpack_from, _DIMENSIONS.unpack_from
        last_at, last, found = self.at, b"", set[bytes]()
        while count:
            pos = begin = before = self._need(min(TENSOR_MOST_BYTES, max(self.left_bytes, 1)))
            window = self._window
            try:
                while count:
                    (length,) = number_of(window, pos)
                    (dimensions,) = integer_of(window, pos + 8 + length)
                    if length > NAME_LIMIT_BYTES or dimensions > DIMENSIONS_LIMIT:
                        raise self.bad(
                            f"{self.doing} has a name of {length:,} bytes and {dimensions:,} dimensions; "
                            f"{NAME_LIMIT_BYTES:,} and {DIMENSIONS_LIMIT} are allowed"
                        )
                    end = pos + 24 + length + 8 * dimensions
                    if end > len(window):
                        break
                    before, pos = pos, end
                    count -= 1
            except (struct.error, OverflowError):
                pass  # The window ends inside of this one.
            if pos == begin:
                raise self.ends(TENSOR_MOST_BYTES)
            last_at, last = self._base + before, window[before:pos]
            found.update(name for name in wanted if window.find(_LENGTH.pack(len(name)) + name, begin, pos) >= 0)
            self._pos = pos
        return last_at, last, frozenset(found)

    def _need(self, count: int) -> int:
        """Make sure that so many bytes are in the window; returns where in it they begin."""
        if self._pos + count > len(self._window):
            self._fill(count)
        return self._pos

    def _fill(self, count: int) -> None:
        at = self.at
        if count > self.size_bytes - at:
            raise self.ends(count)
        self.allowance.header_bytes -= at - self._base
        if self.allowance.header_bytes < 0:
            raise self.bad(f"its metadata takes more than {HEADER_LIMIT_BYTES:,} bytes, reached at {self.doing}")
        wanted = max(count, self._window_bytes if at else min(FIRST_WINDOW_BYTES, self._window_bytes))
        window = self._pread(wanted, at)
        while len(window) < count:
            more = self._pread(wanted - len(window), at + len(window))
            if not more:
                raise self.bad(
                    f"it shrank while it was read: it had {self.size_bytes:,} bytes, and now ends at byte "
                    f"{at + len(window):,}",
                    "wait until whatever writes it is done",
                )
            window += more
        self._window, self._base, self._pos = window, at, 0

    def _pread(self, count: int, at: int) -> bytes:
        try:
            return os.pread(self._fd, count, at)
        except OSError as problem:
            raise self.bad(
                f"reading {count:,} bytes at byte {at:,} failed: {problem.strerror} (errno {problem.errno})",
                "check the disk that it is on",
            ) from problem


@contextmanager
def opened(path: str, allowance: Allowance, window_bytes: int = WINDOW_BYTES) -> Iterator[Stream]:
    """Open a regular file for reading.

    What it is, is asked before it is opened: to open a device can already do something, and a FIFO waits.
    """
    try:
        _must_be_a_file(path, os.stat(path))  # noqa: PTH116 - thousands of files are opened one after the other
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as problem:
        raise _cannot_open(path, problem) from problem
    try:
        status = os.fstat(fd)
        _must_be_a_file(path, status)
        yield Stream(path, fd, status, allowance, window_bytes)
    finally:
        os.close(fd)


def _must_be_a_file(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise bad_file(path, "it is a folder", "name the GGUF file in it")
    if not stat.S_ISREG(status.st_mode):
        kind = (
            "a FIFO" if stat.S_ISFIFO(status.st_mode) else "a socket" if stat.S_ISSOCK(status.st_mode) else "a device"
        )
        raise bad_file(path, f"it is {kind}, not a file", "name a GGUF file")
    if status.st_size == 0:
        raise bad_file(path, "it is empty", INCOMPLETE)


def _cannot_open(path: str, problem: OSError | ValueError) -> BadModelFile:
    if isinstance(problem, FileNotFoundError):
        return bad_file(path, "there is no such file", "check its name, and that its disk is mounted")
    if isinstance(problem, PermissionError):
        return bad_file(
            path, "gpud may not read it", "let the user that gpud runs as read it and enter the folders above it"
        )
    if isinstance(problem, OSError):
        return bad_file(
            path, f"{problem.strerror} (errno {problem.errno})", "check its name and the disk that it is on"
        )
    return bad_file(path, f"no file can have this name: {problem}", "check its name")
