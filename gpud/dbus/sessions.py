"""The methods of org.kernelcore.GpuD about sessions: shells that register, and what is held for as long as they live.

A session is a shell rather than a login: of two terminals of one login each has its own. logind is asked for those who
have no terminal, and for what is shown.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

from gpud.core.errors import NoSession
from gpud.core.facts import Caller, Process, Session
from gpud.dbus.connection import ConnectionGone
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.limits import checked_model, checked_options, checked_text
from gpud.dbus.logind import Logind
from gpud.dbus.polkit import Permission
from gpud.dbus.shown import Shown
from gpud.dbus.wire import Variant

log = logging.getLogger(__name__)

_ATTACH_OPTIONS = {"pid": "u"}
_SELECT = 'name a model; "gpudctl models" lists them'


class ShellsApi(Protocol):
    """Who is at work on this machine, by processes. What raises, raises GpudError."""

    def all(self) -> tuple[Session, ...]: ...

    def find(self, pid: int) -> Session | None:
        """The session that a process works in."""

    def shell_of(self, pid: int, uid: int, named: int = 0) -> Process:
        """The shell on whose behalf a process calls. Raises NoSession."""

    def enclosing(self, shell: Process, uid: int) -> Session | None:
        """The session that this shell is part of."""

    def terminal_of(self, pid: int) -> Process | None:
        """The first process of the terminal that a process works on."""

    def process(self, pid: int) -> Process | None: ...

    def begin(self, process: Process, *, login: str = "", session_id: str = "") -> Session:
        """Watch it from now on; raises NoSession for one that has ended."""

    def begin_login(self, process: Process, login: str) -> Session:
        """The same for a login session, by the process that logged in."""

    def end(self, session: Session, reason: str) -> None: ...

    async def kept(self) -> None:
        """Returns when a gpud that is started anew would know what this one knows."""


class SessionMethods:
    """The table of handlers, and what follows from what logind says."""

    def __init__(
        self, engine: EngineApi, *, gate: Gate, shown: Shown, shells: ShellsApi, logind: Logind | None
    ) -> None:
        """Without ``logind`` (on a session bus) only processes count."""
        self._engine = engine
        self._gate = gate
        self._shown = shown
        self._shells = shells
        self._logind = logind
        self._checking: asyncio.Task[None] | None = None
        self._again = False

    def table(self) -> Mapping[str, Handler]:
        return {
            "AttachSession": self.attach_session,
            "HoldSession": self.hold_session,
            "ReleaseSession": self.release_session,
            "ListSessions": self.list_sessions,
        }

    # Registering: no permission is needed, for it gives nothing ------------------------------------------------------

    async def attach_session(self, request: Request, options: dict[str, Variant]) -> Reply:
        named = checked_options(options, _ATTACH_OPTIONS).get("pid", 0)
        caller = await self._gate.identify(request)
        if not caller.pid:
            raise NoSession("cannot register a shell: the bus does not say which process asked for it")
        # As soon as may be: whoever asks ends when it likes.
        shell = self._shells.shell_of(caller.pid, caller.uid, named)
        session = self._shells.enclosing(shell, caller.uid)
        if session is None:
            login = await self._login_of(shell.pid)
            # Meanwhile it may have registered by another call.
            session = self._shells.enclosing(shell, caller.uid) or self._begin(shell, login)
            await self._shells.kept()
        return Reply((session.id,))

    async def _login_of(self, pid: int) -> str:
        login = None if self._logind is None else await self._logind.session_of(pid)
        return login.id if login is not None else ""

    def _begin(self, process: Process, login: str) -> Session:
        session = self._shells.begin(process, login=login)
        self._engine.session_began(session)
        log.debug("%s has registered on %s", session.label, session.terminal or "no terminal")
        return session

    def list_sessions(self, _request: Request) -> Reply:
        return Reply(encoded=self._shown.sessions())

    # Holding ---------------------------------------------------------------------------------------------------------

    async def hold_session(self, request: Request, model: str, reason: str) -> Reply:
        checked_model(model, empty=_SELECT)
        reason = checked_text("reason", reason)
        caller = await self._gate.identify(request)
        self._gate.check_holds(caller)
        self._engine.resolve(model)
        await self._gate.allow(caller, request, Permission.HOLD, model)
        session = await self._session_of(caller, model)
        self._gate.check_holds(caller)
        holder = Caller(session.owner, caller.uid, session.pid, label=session.label, session=session.id)
        return Reply((self._engine.hold(model, holder, reason=reason, application=session.label),))

    async def _session_of(self, caller: Caller, model: str) -> Session:
        """The shell's that has registered; else that of the caller's terminal; else the caller's login session."""
        session = self._shells.find(caller.pid)
        if session is not None:
            return session
        terminal = self._shells.terminal_of(caller.pid) if caller.pid else None
        if terminal is not None:
            login = await self._login_of(terminal.pid)
            return self._shells.find(terminal.pid) or self._begin(terminal, login)
        session = await self._login_session(caller.pid)
        if session is None:
            raise NoSession(
                f'cannot hold "{model}" for the session of {caller.label}: it has no terminal and no login',
                hint="use Hold from a program that stays on the bus, or Inhibit and keep its descriptor open",
            )
        return session

    async def _login_session(self, pid: int) -> Session | None:
        login = None if self._logind is None or not pid else await self._logind.session_of(pid)
        if login is None or self._logind is None:
            return None
        leader = self._shells.process(login.leader)
        if leader is None:
            return None
        await self._logind.watch()
        session = self._shells.find(pid)
        if session is None:
            session = self._shells.begin_login(leader, login.id)
            self._engine.session_began(session)
        return session

    async def release_session(self, request: Request) -> Reply:
        """A closing shell must not be told of an error: nothing is held where nobody is known."""
        caller = await self._gate.identify(request)
        session = self._shells.find(caller.pid)
        if session is not None:
            for hold in self._engine.snapshot().holds:
                if hold.caller.owner == session.owner and caller.uid in (hold.caller.uid, 0):
                    self._engine.release(hold.cookie, session.owner)
        return Reply()

    # What logind says ------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a bus, another one perhaps: what ended meanwhile was not told."""
        if self._logins():
            self.check()

    def check(self) -> None:
        """Login sessions may have ended: ask which there are. One question at a time, whoever makes us ask."""
        self._again = True
        if self._checking is None:
            self._checking = asyncio.get_running_loop().create_task(self._check())

    async def _check(self) -> None:
        try:
            while self._again and self._logind is not None:
                self._again = False
                with contextlib.suppress(ConnectionGone):
                    await self._logind.watch()
                    living = await self._logind.living()
                    for session in self._logins():
                        if living is not None and session.login not in living:
                            self._shells.end(session, "its user has logged out")
                    if not self._logins():
                        self._logind.unwatch()
        finally:
            self._checking = None

    def _logins(self) -> list[Session]:
        return [session for session in self._shells.all() if session.id.startswith("login-")]

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
