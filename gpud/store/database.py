"""One SQLite file: opened when it is first needed, brought up to date, checked, begun anew when it is damaged. Knows
nothing of what is in it.

Never raises for what a disk, a file system or another program does: it says so, reads answer None, and changes wait
in memory for the next one that succeeds. For one caller at a time; which thread that is does not matter.

A new table is one more file in ``migrations``, with the next number: ``0004_sessions.sql``. A file that was released is
never changed.
"""

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gpud.store.problems import Problems

log = logging.getLogger(__name__)

T = TypeVar("T")

TOPIC = "database"

MIGRATIONS = Path(__file__).parent / "migrations"

BUSY_S = 2.0
"""How long a call waits while another program (somebody who looks with sqlite3) keeps the file locked. Only threads
wait."""

WAITING_MOST = 1000
"""So many changes wait for a disk that takes none: a few hundred KiB. The oldest are given up first."""

PRAGMAS = (
    # The file is small and seldom read: an idle daemon shall not hold it in memory.
    "PRAGMA cache_size = -256",
    "PRAGMA mmap_size = 0",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA wal_autocheckpoint = 256",
    "PRAGMA journal_size_limit = 1048576",
)

ADVICE = {
    sqlite3.SQLITE_FULL: "make room on that disk",
    sqlite3.SQLITE_BUSY: "close the program that keeps it locked",
    sqlite3.SQLITE_LOCKED: "close the program that keeps it locked",
    sqlite3.SQLITE_READONLY: "let gpud write there",
    sqlite3.SQLITE_PERM: "let gpud write there",
    sqlite3.SQLITE_CANTOPEN: "let gpud write there, or make room on that disk",
    sqlite3.SQLITE_IOERR: "look for errors of that disk with journalctl -k, and whether it is full",
}
OTHER_ADVICE = "stop gpud, move that file away and start gpud again, which begins a new one"

DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

# With these the connection is as good as before, and can at least read. After any other error it is opened again.
STAYS_OPEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY}


# The file by which programs share the database cannot be made or mapped: the disk is full, or knows no such thing. The
# database can still be read, by one alone.
NOT_SHARED = {sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMMAP}

OS_ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EIO: "look for errors of that disk with journalctl -k",
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "move away what is in its place"),
}
OTHER_OS_ADVICE = "let gpud write there"

CONSEQUENCE = "Until then loads go on, and what is learnt is kept in memory only"


class Change(NamedTuple):
    """One statement that changes something, and what its question marks stand for."""

    sql: str
    values: tuple[Any, ...] = ()


class _Unusable(Exception):
    """The file is sound, but not for this gpud."""


class _Damaged(Exception):
    """What the check found."""


class Database:
    """``given`` counts the changes that were ever given to wait; the first ``saved`` of them wait no more.

    One connection writes. Others may read the file meanwhile for as long as they like; one that writes, or keeps it
    locked, is waited for up to ``busy_s``.
    """

    def __init__(
        self, path: Path, problems: Problems, *, migrations: Path = MIGRATIONS, busy_s: float = BUSY_S
    ) -> None:
        self._path = path
        self._problems = problems
        self._migrations = migrations
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._lock_fd = -1
        self._tried = False
        self._closed = False
        self._begun_anew = False
        self._waiting: deque[Change] = deque(maxlen=WAITING_MOST)
        self.given = 0
        self.saved = 0

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any] | None:
        """The rows, or None when they cannot be read now."""
        return self.read_each(sql, values, lambda rows: list(rows))

    def read_each(self, sql: str, values: Sequence[Any], take: Callable[[Iterable[Any]], T]) -> T | None:
        """What is made of the rows while they are read, without holding them all. ``take`` may be called again, from
        the first row on.
        """
        if self._closed or (self._connection is None and self._tried):
            return None
        return self._try(lambda connection: _read(connection, sql, _storable(values), take))

    def write(self, *changes: Change) -> bool:
        """All of them or none, after those that wait. False: they wait now. A place that could not be used is tried
        again, also where nothing is to be written; that alone proves nothing of the disk.
        """
        self.given += len(changes)
        self._waiting.extend(Change(sql, _storable(values)) for sql, values in changes)
        if self._closed or not self._try(self._apply):
            return False
        if self._waiting:
            self._wait_no_more()
            self._problems.solved(TOPIC)
        return True

    @property
    def begun_anew(self) -> bool:
        """Whether the file was damaged since the start: what was read before is not in it any more."""
        return self._begun_anew

    def write_now(self, changes: Sequence[Change]) -> bool:
        """All of these or none, after what waits. False: nothing of them was written, and they do not wait."""

        def work(connection: sqlite3.Connection) -> bool:
            return _transaction(connection, (Change(sql, _storable(values)) for sql, values in changes))

        if self._closed or (self._waiting and not self.write()) or not self._try(work):
            return False
        self._problems.solved(TOPIC)
        return True

    def write_each(self, changes: Iterable[Change]) -> bool:
        """As :meth:`write_now` for changes that come one after the other, which are never all in memory. What fails
        while they come leaves everything as it was.
        """
        each = iter(changes)
        begun = False

        def work(connection: sqlite3.Connection) -> bool:
            nonlocal begun
            if begun:
                # The file was damaged, and another one was begun: those that came for the first one are gone.
                return False
            begun = True
            return _transaction(connection, (Change(sql, _storable(values)) for sql, values in each))

        if self._closed or (self._waiting and not self.write()) or not self._try(work):
            return False
        self._problems.solved(TOPIC)
        return True

    def close(self) -> None:
        """What waits is tried once more. What is given afterwards is not written any more."""
        if self._waiting:
            self.write()
        self._closed = True
        self._disconnect()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _wait_no_more(self) -> None:
        self._waiting.clear()
        self.saved = self.given

    def _apply(self, connection: sqlite3.Connection) -> bool:
        try:
            return _transaction(connection, self._waiting)
        except Exception as error:
            if not _from_outside(error):
                # A defect of ours, which no disk will ever cure: it must not keep all others waiting.
                self._wait_no_more()
            raise

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Again on a new file where the first try shows that the old one is damaged."""
        try:
            try:
                return work(self._connected())
            except (_Damaged, UnicodeDecodeError) as error:
                # A complaint of SQLite that quotes what is damaged cannot even be read.
                found = str(error)
            except sqlite3.DatabaseError as error:
                if _code(error) not in DAMAGED:
                    raise
                found = str(error)
            self._begin_anew(found)
            return work(self._connected())
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            self._say(f"{where}{error.strerror or error}", OS_ADVICE.get(error.errno or 0, OTHER_OS_ADVICE))
        except (_Unusable, _Damaged) as error:
            self._say(str(error))
        except sqlite3.DatabaseError as error:
            if not _from_outside(error):
                raise
            if _code(error) not in STAYS_OPEN:
                self._disconnect()
            self._say(str(error), ADVICE.get(_code(error), OTHER_ADVICE))
        return None

    def _say(self, *why: str) -> None:
        # The same words whether it was read or written: they are told once.
        self._problems.say(TOPIC, f"cannot use {self._path}: {'; '.join(why)}. {CONSEQUENCE}")

    # Opening ---------------------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self._tried = True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._be_alone()
        # Made here for its mode, which SQLite gives to the files beside it, too. Whether its group gets this far is the
        # directory's business: one that is made here opens to nobody else, the service's does.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640))
        try:
            self._connection = self._prepared(exclusive=False)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in NOT_SHARED:
                raise
            self._connection = self._prepared(exclusive=True)
        return self._connection

    def _prepared(self, *, exclusive: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            if exclusive:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _be_alone(self) -> None:
        """Another gpud with the same state directory must not find its file renamed when it is damaged."""
        if self._lock_fd >= 0:
            return
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise _Unusable(
                    "another gpud uses it; give this one a state directory of its own (STATE_DIRECTORY)"
                ) from None
            raise
        self._lock_fd = lock

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in PRAGMAS:
            connection.execute(pragma)
        found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            raise _Damaged(str(found[0]))
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        steps = numbered(self._migrations)
        if version > len(steps):
            raise _Unusable(
                f"it was written by a newer gpud (version {version}, this one knows up to {len(steps)}); install that "
                "one again, or move the file away"
            )
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
            # A power cut may take the last changes, never the file. The other modes need SQLite's own default for that.
            connection.execute("PRAGMA synchronous = NORMAL")
        for number, path in enumerate(steps[version:], version + 1):
            try:
                connection.executescript(
                    f"BEGIN IMMEDIATE;\n{path.read_text()};\nPRAGMA user_version = {number};\nCOMMIT;"
                )
            except BaseException:
                connection.rollback()
                raise
            log.debug("%s was brought to version %d by %s", self._path, number, path.name)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _begin_anew(self, found: str) -> None:
        """Once in a run: a disk that damages one file after the other would else be filled with them."""
        self._disconnect()
        if self._begun_anew:
            self._closed = True
            raise _Unusable(
                f"it is damaged again ({found}); look for errors of that disk with journalctl -k, then restart gpud"
            )
        aside = Path(f"{self._path}.damaged")
        with contextlib.suppress(FileNotFoundError):
            Path(f"{self._path}-wal").replace(f"{aside}-wal")
        self._path.replace(aside)
        self._begun_anew = True
        Path(f"{self._path}-shm").unlink(missing_ok=True)
        self._problems.mention(
            f"{self._path} was damaged ({found}) and is begun anew: models are found and measured again, how often "
            "they were used and what was said about them (aliases, priorities, tags, notes) is lost, the event log "
            f"starts here; what was in it is in {aside}, delete that when nobody needs it; if this happens again, look "
            "for errors of the disk with journalctl -k"
        )


def numbered(directory: Path) -> list[Path]:
    """The migrations in their order; number one is the first. Raises ValueError for one that is missing or doubled."""
    paths = sorted(directory.glob("*.sql"))
    for number, path in enumerate(paths, 1):
        if not path.name.startswith(f"{number:04d}_"):
            raise ValueError(f"{path} is in the place of migration {number:04d}: numbers grow by one, from 0001")
    return paths


def _transaction(connection: sqlite3.Connection, changes: Iterable[Change]) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
        for change in changes:
            connection.execute(change.sql, change.values)
        connection.execute("COMMIT")
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.rollback()
    return True


def _read(connection: sqlite3.Connection, sql: str, values: Sequence[Any], take: Callable[[Iterable[Any]], T]) -> T:
    with contextlib.closing(connection.cursor()) as cursor:
        try:
            return take(cursor.execute(sql, values))
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
        # Python could not read a text. Words that are damaged are still words; a record that is damaged is found out by
        # whoever reads it.
        connection.text_factory = lambda text: text.decode(errors="replace")
        try:
            return take(cursor.execute(sql, values))
        finally:
            connection.text_factory = str


def _storable(values: Sequence[Any]) -> tuple[Any, ...]:
    """Names of files and an engine's words may hold bytes that are no text, which SQLite does not take."""
    return tuple(
        value.encode(errors="backslashreplace").decode() if isinstance(value, str) and not value.isascii() else value
        for value in values
    )


def _from_outside(error: Exception) -> bool:
    """Whether the disk, the file or another program is to blame, and not the statement that was tried."""
    return type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError)


def _code(error: sqlite3.Error) -> int:
    """The primary result code, without its extension."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
