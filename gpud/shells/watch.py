"""Shells that have registered, and the processes that belong to them; watched by pidfd, known again after a restart.

Owns the pidfds and one file in the runtime directory. It decides nothing: what ends with a session is the engine's.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from msgspec import to_builtins

from gpud.core.errors import LimitsExceeded, NoSession
from gpud.core.facts import Process, Session
from gpud.core.record import Record
from gpud.shells.cgroups import Group, cgroup_of, members
from gpud.shells.proc import ancestry, look, read, terminal_name, uid_of
from gpud.shells.sockets import cgroup_of_client

log = logging.getLogger(__name__)

FILE = "sessions"

SESSIONS_PER_USER = 256
"""Each costs a descriptor. Nobody has so many terminals; a program that registers in a loop does."""

ENDED = "its process is gone"

_HINT = 'the hook that "gpudctl shell-hook" prints calls it as it must be called: from the shell itself'


def login_id(login: str) -> str:
    """What a session is called that is a login session, and not a shell."""
    return f"login-{login}"


class Client(Protocol):
    """Who is at the other end of a connection: on a Unix socket a process, else an address, reached at ``at``."""

    @property
    def pid(self) -> int | None: ...

    @property
    def is_loopback(self) -> bool: ...

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def at(self) -> tuple[str, int]: ...


class _Watched(Record):
    session: Session
    started: int
    tty: int
    fd: int
    group: Group | None


class Shells:
    """Every session that lives, by the process that it ends with. ``on_end`` is called on the loop when one ends."""

    def __init__(self, runtime_dir: Path, on_end: Callable[[Session, str], None]) -> None:
        self._path = runtime_dir / FILE
        self._on_end = on_end
        self._watched: dict[int, _Watched] = {}
        self._users: Mapping[str, frozenset[str]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._dirty = False

    def all(self) -> tuple[Session, ...]:
        return tuple(watched.session for watched in self._watched.values())

    # Whose is a process ----------------------------------------------------------------------------------------------

    def find(self, pid: int) -> Session | None:
        """The session that a process works in: that of its nearest ancestor which has one, itself included. A process
        whose parents have ended is known by its terminal, or by its login session.
        """
        if not self._watched or not pid:
            return None
        first = look(pid)
        if first is None:
            return None
        watched = self._above(first)
        leader = self._watched.get(first.leader)
        if watched is None and leader is not None and first.tty == leader.tty:
            watched = leader
        return watched.session if watched is not None else self._by_login(pid)

    def _above(self, process: Process) -> _Watched | None:
        for ancestor in ancestry(process):
            watched = self._watched.get(ancestor.pid)
            if watched is not None and watched.started == ancestor.started:
                return watched
        return None

    def _by_login(self, pid: int) -> Session | None:
        logins = [w.session for w in self._watched.values() if w.session.id == login_id(w.session.login)]
        if not logins:
            return None
        groups = read(pid, "cgroup").replace("\n", "/")
        return next((session for session in logins if f"/session-{session.login}.scope/" in groups), None)

    def of_client(self, client: Client) -> str:
        """The id of the session whose process this client is; empty where it is of none, or nobody can tell."""
        if not self._watched:
            return ""
        if client.pid:
            session = self.find(client.pid)
        elif client.is_loopback and client.port:
            session = self._behind(client)
        else:
            session = None
        return "" if session is None else session.id

    def _behind(self, client: Client) -> Session | None:
        """The kernel tells of a TCP client which control group it is of, not which process. That is enough where all
        processes of the group work in one session, as after a login by SSH, and in terminals that give each shell a
        group of its own.
        """
        number = cgroup_of_client((client.address, client.port), client.at)
        group = next((w.group for w in self._watched.values() if w.group and w.group.number == number), None)
        if not number or group is None:
            return None
        found: Session | None = None
        for pid in members(group):
            session = self.find(pid)
            # The terminal itself, or the SSH server, stands above the shell, and is no client of its own.
            if session is None and pid not in self._above_shells():
                return None
            if session is not None and found not in (None, session):
                return None
            found = session or found
        return found

    def _above_shells(self) -> set[int]:
        """The processes that have started the shells."""
        shells = [look(pid) for pid in self._watched]
        return {above.pid for shell in shells if shell is not None for above in ancestry(shell)}

    # Beginning -------------------------------------------------------------------------------------------------------

    def shell_of(self, pid: int, uid: int, named: int = 0) -> Process:
        """The shell on whose behalf a process calls: its parent, or the one that it names. Raises NoSession."""
        caller = look(pid)
        if caller is None:
            raise NoSession(f"cannot register a shell: process {pid}, which asked for it, has ended", hint=_HINT)
        shell = look(named or caller.parent)
        if shell is None or shell.pid <= 1 or shell.leader != caller.leader:
            # Children of what has ended are given to init, or to whoever collects them in its place. A shell that calls
            # from a subshell, which ends at once, names itself; both are of one terminal session.
            which = f"process {named}" if named else f"the shell that started process {pid}"
            raise NoSession(f"cannot register {which}: it has ended, or has not asked for it", hint=_HINT)
        owner = uid_of(shell.pid)
        if owner != uid:
            raise NoSession(f"cannot register process {shell.pid} ({shell.name}): it belongs to uid {owner}, not {uid}")
        return shell

    def enclosing(self, shell: Process, uid: int) -> Session | None:
        """The session that a shell is part of rather than one of its own: that of a shell on the same terminal that has
        started it, and under sudo or su that of the user's.
        """
        outer = self._above(shell)
        if outer is None or not (outer.tty == shell.tty or outer.session.uid != uid):
            return None
        return outer.session

    def terminal_of(self, pid: int) -> Process | None:
        """The first process of the terminal on which a process works: mostly a shell. None without a terminal."""
        process = look(pid)
        if process is None or not process.tty or process.leader == pid:
            return None
        return look(process.leader)

    def begin(self, process: Process, *, login: str = "", session_id: str = "") -> Session:
        """Watch it; the session is its process's. Raises NoSession for one that has ended, LimitsExceeded."""
        uid = uid_of(process.pid)
        if uid is None:
            raise NoSession(f"cannot register process {process.pid} ({process.name}): it has ended")
        count = sum(watched.session.uid == uid for watched in self._watched.values())
        if count >= SESSIONS_PER_USER:
            raise LimitsExceeded(f"uid {uid} has {count} sessions, the limit is {SESSIONS_PER_USER}")
        session = Session(
            session_id or f"{process.pid}-{process.started}",
            uid,
            process.pid,
            f"{process.name} (pid {process.pid})",
            terminal_name(process.tty),
            login,
        )
        if not self._watch(session, process.started, process.tty):
            raise NoSession(f"cannot register process {process.pid} ({process.name}): it has ended")
        return session

    def process(self, pid: int) -> Process | None:
        """What is known of a process, or None for one that has ended."""
        return look(pid)

    def begin_login(self, process: Process, login: str) -> Session:
        """As :meth:`begin`, for a login session, by the process that logged in."""
        return self.begin(process, login=login, session_id=login_id(login))

    def _watch(self, session: Session, started: int, tty: int) -> bool:
        try:
            fd = os.pidfd_open(session.pid)
        except OSError as error:
            log.debug("cannot watch process %d: %s", session.pid, error)
            return False
        # From here on the pid cannot be another's: was it still this one's?
        process = look(session.pid)
        if process is None or process.started != started:
            os.close(fd)
            return False
        self._watched[session.pid] = _Watched(session, started, tty, fd, cgroup_of(session.pid))
        asyncio.get_running_loop().add_reader(fd, self._gone, session.pid)
        return True

    # Ending ----------------------------------------------------------------------------------------------------------

    def _gone(self, pid: int) -> None:
        self._end(pid, ENDED)

    def end(self, session: Session, reason: str) -> None:
        """It is over although its process may live. Nothing happens when it has ended already."""
        watched = self._watched.get(session.pid)
        if watched is not None and watched.session == session:
            self._end(session.pid, reason)

    def _end(self, pid: int, reason: str) -> None:
        watched = self._watched.pop(pid)
        self._let_go(watched)
        self._on_end(watched.session, reason)

    @staticmethod
    def _let_go(watched: _Watched) -> None:
        asyncio.get_running_loop().remove_reader(watched.fd)
        os.close(watched.fd)

    async def close(self) -> None:
        """Watch nobody any more; what is written stays for the next daemon."""
        await self.kept()
        for watched in self._watched.values():
            self._let_go(watched)
        self._watched.clear()

    # Over a restart --------------------------------------------------------------------------------------------------

    def keep(self, users: Mapping[str, frozenset[str]]) -> None:
        """Write down who lives, and who has used which model; soon, and in a thread."""
        self._users = users
        self._dirty = True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def kept(self) -> None:
        """Returns when what is to be kept is written."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        try:
            while self._dirty:
                self._dirty = False
                data = {
                    "sessions": [
                        {**to_builtins(w.session), "started": w.started, "tty": w.tty} for w in self._watched.values()
                    ],
                    "users": {model: sorted(users) for model, users in self._users.items()},
                }
                await asyncio.to_thread(_replace, self._path, json.dumps(data))
        except OSError as error:
            log.warning("cannot write %s: %s; a restarted gpud will not know who is at work", self._path, error)
        finally:
            self._writing = None

    async def restore(self) -> tuple[tuple[Session, ...], tuple[Session, ...], dict[str, frozenset[str]]]:
        """What an earlier daemon has written: the sessions that live and are watched again, those that have ended
        since, and who has used which model.
        """
        try:
            data = await asyncio.to_thread(_read_file, self._path)
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("cannot read %s: %s; shells that had registered are not known any more", self._path, error)
            return (), (), {}
        living: list[Session] = []
        ended: list[Session] = []
        for session, started, tty in data[0]:
            (living if self._watch(session, started, tty) else ended).append(session)
        return tuple(living), tuple(ended), data[1]


# The file ------------------------------------------------------------------------------------------------------------


def _replace(path: Path, text: str) -> None:
    """All of it or nothing."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(0o600, exist_ok=False)
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _read_file(path: Path) -> tuple[list[tuple[Session, int, int]], dict[str, frozenset[str]]]:
    """Raises ValueError for a file that is not ours."""
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    try:
        sessions = []
        for entry in data["sessions"]:
            started, tty = int(entry.pop("started")), int(entry.pop("tty"))
            sessions.append((Session(**entry), started, tty))
        return sessions, {str(model): frozenset(map(str, users)) for model, users in data["users"].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it has another shape: {error!r}") from None
