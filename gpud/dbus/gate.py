"""What is asked before anything is done for a caller: who it is, whether it may, whether it has too much already."""

import logging
import time
from collections.abc import Callable, Mapping

from gpud.core.counts import plural
from gpud.core.errors import AccessDenied, GpudError, InteractionRequired, LimitsExceeded
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import Caller, JobKind
from gpud.dbus.callers import Callers
from gpud.dbus.connection import Connection, ReplyError
from gpud.dbus.dispatch import Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.limits import CallerLimits
from gpud.dbus.polkit import Authority, Permission

log = logging.getLogger(__name__)

# A caller that is refused over and over is written down once in this time, lest it fill the journal.
_DENIED_QUIET_S = 10.0


class Gate:
    """Every check raises a GpudError that says what is wrong with this caller's wish."""

    def __init__(
        self,
        engine: EngineApi,
        *,
        limits: CallerLimits,
        connection: Callable[[], Connection],
        callers: Callers,
        authority: Authority,
        notify: Callable[[Notice], None],
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._connection = connection
        self._callers = callers
        self._authority = authority
        self._notify = notify
        self._denied_at_s: dict[int, float] = {}

    async def identify(self, request: Request) -> Caller:
        return await self._callers.identify(request.sender)

    async def allow(
        self,
        caller: Caller,
        request: Request,
        permission: Permission,
        model: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Ask polkit; a refusal is written down. ``details`` may hold a message of its own for polkit's dialog."""
        try:
            await self._authority.check(
                caller,
                permission,
                sender=request.sender,
                interactive=request.interactive,
                details={"model": model or "all models"} if details is None else details,
            )
        except (AccessDenied, InteractionRequired) as problem:
            self._write_down(caller, permission, model, problem)
            raise

    async def manage(self, request: Request) -> Caller:
        """Whoever this is may manage."""
        caller = await self.identify(request)
        await self.allow(caller, request, Permission.MANAGE)
        return caller

    def _write_down(self, caller: Caller, permission: Permission, model: str, problem: GpudError) -> None:
        now_s = time.monotonic()
        if now_s - self._denied_at_s.get(caller.uid, -_DENIED_QUIET_S) < _DENIED_QUIET_S:
            log.debug("denied again: %s", problem)
            return
        for uid in [uid for uid, at_s in self._denied_at_s.items() if now_s - at_s >= _DENIED_QUIET_S]:
            del self._denied_at_s[uid]
        self._denied_at_s[caller.uid] = now_s
        fields: dict[str, str | int | float] = {
            "CALLER_UID": caller.uid,
            "CALLER_PID": caller.pid,
            "ACTION": permission.action,
        }
        self._notify(Notice(Kind.DENIED, problem.text, model=model, level=Level.WARNING, fields=fields))

    async def check_present(self, caller: Caller) -> None:
        """However long polkit took: a caller that has left gets nothing."""
        try:
            present = await self._connection().call_bus("NameHasOwner", "s", [caller.owner])
        except ReplyError as problem:
            raise AccessDenied(f"cannot tell whether {caller.label} is still on the bus: {problem}") from None
        if not present:
            raise AccessDenied(f"{caller.label} left the bus before it was answered", hint="nothing is held")

    def check_jobs(self, caller: Caller) -> None:
        self._check_jobs(caller, ("load or unload", "loads and unloads"), (JobKind.LOAD, JobKind.UNLOAD))

    def check_downloads(self, caller: Caller) -> None:
        """Apart from loads, which would otherwise wait for hours of downloads."""
        self._check_jobs(caller, ("download", "downloads"), (JobKind.DOWNLOAD,))

    def _check_jobs(self, caller: Caller, what: tuple[str, str], kinds: tuple[JobKind, ...]) -> None:
        jobs = self._engine.snapshot().jobs
        count = sum(job.caller.uid == caller.uid and job.kind in kinds for job in jobs)
        if count >= self._limits.jobs:
            raise LimitsExceeded(
                f"uid {caller.uid} has {plural(count, *what)} under way, the limit is {self._limits.jobs}",
                hint="wait for one to end, or cancel one",
            )

    def check_holds(self, caller: Caller) -> None:
        count = sum(hold.caller.uid == caller.uid for hold in self._engine.snapshot().holds)
        if count >= self._limits.holds:
            raise LimitsExceeded(
                f"uid {caller.uid} has {plural(count, 'hold')}, the limit is {self._limits.holds}",
                hint="release one first",
            )

    def check_claims(self, caller: Caller) -> None:
        """Those that wait count like those that were granted."""
        count = sum(claim.caller.uid == caller.uid for claim in self._engine.snapshot().claims)
        if count >= self._limits.claims:
            raise LimitsExceeded(
                f"uid {caller.uid} has {plural(count, 'claim')}, the limit is {self._limits.claims}",
                hint="give one back first",
            )
