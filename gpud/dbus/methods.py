"""The methods of org.kernelcore.GpuD: check the arguments, ask who may, call the engine. One function a method."""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gpud.core.errors import (
    AccessDenied,
    GpudError,
    InvalidArguments,
    InvalidOption,
    LimitsExceeded,
    NoSession,
    NoSuchJob,
)
from gpud.core.events import Kind as NoticeKind
from gpud.core.events import Level, LoadOptions, Notice
from gpud.core.facts import Caller
from gpud.dbus.callers import Callers
from gpud.dbus.connection import Connection, ReplyError
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.holds import Inhibitors, Watches
from gpud.dbus.limits import CallerLimits, checked_model, checked_text
from gpud.dbus.polkit import Authority, Permission
from gpud.dbus.shown import Shown
from gpud.dbus.wire import Variant

log = logging.getLogger(__name__)

_SELECT = 'name a model; "gpudctl models" lists them'
# Ten years: more is a mistake in the unit, and would not fit into every clock.
MAX_IDLE_TIMEOUT_S = 10 * 366 * 86400.0
MAX_BUDGET_BYTES = 1 << 50

_LOAD_OPTIONS = {"idle-timeout-usec": "t", "context-size": "u", "hold": "b", "evict": "b"}
_UNLOAD_OPTIONS = {"force": "b"}
_INHIBITABLE = frozenset({"unload", "evict"})
# A caller that is refused over and over is written down once in this time, lest it fill the journal.
_DENIED_QUIET_S = 10.0


class Methods:
    """The table of handlers, and what they share."""

    def __init__(
        self,
        engine: EngineApi,
        *,
        limits: CallerLimits,
        shown: Shown,
        connection: Callable[[], Connection],
        callers: Callers,
        authority: Authority,
        watches: Watches,
        inhibitors: Inhibitors,
        asked_for: Callable[[int], None],
        notify: Callable[[Notice], None],
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._shown = shown
        self._connection = connection
        self._callers = callers
        self._authority = authority
        self._watches = watches
        self._inhibitors = inhibitors
        self._asked_for = asked_for
        self._notify = notify
        self._denied_at_s: dict[int, float] = {}

    def table(self) -> Mapping[str, Handler]:
        return {
            "Load": self.load,
            "LoadWithOptions": self.load_with_options,
            "Unload": self.unload,
            "UnloadWithOptions": self.unload_with_options,
            "UnloadAll": self.unload_all,
            "CancelJob": self.cancel_job,
            "Status": self.status,
            "ListModels": self.list_models,
            "ListGpus": self.list_gpus,
            "Hold": self.hold,
            "HoldSession": self.hold_session,
            "Release": self.release,
            "ReleaseSession": self.release_session,
            "Inhibit": self.inhibit,
            "SetIdleTimeout": self.set_idle_timeout,
            "SetVramBudget": self.set_vram_budget,
            "Reload": self.reload,
        }

    # Seeing: everybody may ------------------------------------------------------------------------------------------

    def status(self, _request: Request) -> Reply | Awaitable[Reply]:
        return self._fresh(self._shown.status)

    def list_models(self, _request: Request) -> Reply:
        return Reply(encoded=self._shown.models())

    def list_gpus(self, _request: Request) -> Reply | Awaitable[Reply]:
        return self._fresh(self._shown.gpus)

    def _fresh(self, show: Callable[[], bytes]) -> Reply | Awaitable[Reply]:
        """An answer with the figures of the devices: at once while they are fresh, else after a look."""
        return Reply(encoded=show()) if self._engine.is_fresh() else self._after_a_look(show)

    async def _after_a_look(self, show: Callable[[], bytes]) -> Reply:
        await self._engine.refresh()
        return Reply(encoded=show())

    # Loading and unloading ------------------------------------------------------------------------------------------

    async def load(self, request: Request, model: str) -> Reply:
        return await self._load(request, model, LoadOptions())

    async def load_with_options(self, request: Request, model: str, options: dict[str, Variant]) -> Reply:
        values = _checked_options(options, _LOAD_OPTIONS)
        usec = values.get("idle-timeout-usec")
        return await self._load(
            request,
            model,
            LoadOptions(
                idle_timeout_s=None if usec is None else _checked_seconds("idle-timeout-usec", usec),
                context=values.get("context-size"),
                hold=values.get("hold", False),
                evict=values.get("evict", True),
            ),
        )

    async def _load(self, request: Request, model: str, options: LoadOptions) -> Reply:
        checked_model(model, empty=_SELECT)
        caller = await self._callers.identify(request.sender)
        self._check_jobs(caller)
        await self._allow(caller, request, Permission.LOAD, model)
        if not options.hold:
            self._check_jobs(caller)
            return Reply((self._engine.load(model, caller, options),))
        self._check_holds(caller)
        async with self._watches.watching(request.sender):
            await self._allow(caller, request, Permission.HOLD, model)
            await self._check_present(caller)
            self._check_jobs(caller)
            self._check_holds(caller)
            return Reply((self._engine.load(model, caller, options),))

    async def unload(self, request: Request, model: str) -> Reply:
        return await self._unload(request, model, force=False)

    async def unload_with_options(self, request: Request, model: str, options: dict[str, Variant]) -> Reply:
        return await self._unload(request, model, force=_checked_options(options, _UNLOAD_OPTIONS).get("force", False))

    async def unload_all(self, request: Request) -> Reply:
        return await self._unload(request, "", force=False)

    async def _unload(self, request: Request, model: str, *, force: bool) -> Reply:
        model = "" if model == "all" else checked_model(model)
        caller = await self._callers.identify(request.sender)
        self._check_jobs(caller)
        await self._allow(caller, request, Permission.UNLOAD_OTHERS if force else Permission.UNLOAD, model)
        self._check_jobs(caller)
        return Reply((self._engine.unload(model, caller, force=force, others=force),))

    async def cancel_job(self, request: Request, job: int) -> Reply:
        caller = await self._callers.identify(request.sender)
        found = self._engine.job(job)
        if found is None:
            raise NoSuchJob(f"there is no job {job}", hint="it has ended, or was never there")
        if found.caller.uid != caller.uid:
            await self._allow(caller, request, Permission.MANAGE, found.model)
        self._engine.cancel(job, caller, any_owner=True)
        return Reply()

    # Holding --------------------------------------------------------------------------------------------------------

    async def hold(self, request: Request, model: str, reason: str, application: str) -> Reply:
        checked_model(model, empty=_SELECT)
        reason, application = checked_text("reason", reason), checked_text("application_id", application)
        caller = await self._callers.identify(request.sender)
        self._check_holds(caller)
        # Watch first, then ask, then look whether the caller is still there: however long polkit takes, a caller that
        # leaves before or after the look is noticed.
        async with self._watches.watching(request.sender):
            await self._allow(caller, request, Permission.HOLD, model)
            await self._check_present(caller)
            self._check_holds(caller)
            return Reply((self._engine.hold(model, caller, reason=reason, application=application),))

    def hold_session(self, _request: Request, model: str, reason: str) -> Reply:
        checked_model(model, empty=_SELECT)
        checked_text("reason", reason)
        raise NoSession(
            f'cannot hold "{model}" for your login session: this version of gpud does not follow sessions',
            hint="use Hold from a program that stays on the bus, or Inhibit and keep its descriptor open",
        )

    def release(self, request: Request, cookie: int) -> Reply:
        self._engine.release(cookie, request.sender)
        self._asked_for(cookie)
        self._watches.prune(request.sender)
        return Reply()

    def release_session(self, _request: Request) -> Reply:
        # No session holds anything (HoldSession), and a closing shell must not be told of an error.
        return Reply()

    async def inhibit(self, request: Request, what: str, who: str, why: str) -> Reply:
        wanted = frozenset(what.split(":"))
        if not wanted <= _INHIBITABLE:
            raise InvalidArguments(
                f"cannot inhibit {what[:64]!a}", hint='allowed are "unload", "evict" and "unload:evict"'
            )
        who, why = checked_text("who", who), checked_text("why", why)
        sender = await self._callers.identify(request.sender)
        self._check_holds(sender)
        await self._allow(sender, request, Permission.HOLD, "")
        self._check_holds(sender)
        caller = Caller(self._inhibitors.new_owner(request.sender), sender.uid, sender.pid, sender.label)
        ours, theirs = self._inhibitors.open_pipe()
        try:
            cookie = self._engine.inhibit(wanted, caller, who=who, why=why)
        except BaseException:
            os.close(ours)
            os.close(theirs)
            raise
        self._inhibitors.keep(cookie, caller.owner, ours)
        # A caller that has left never takes the descriptor: the bus closes it, and with it the inhibition ends.
        return Reply((0,), [theirs])

    # Managing -------------------------------------------------------------------------------------------------------

    async def set_idle_timeout(self, request: Request, usec: int) -> Reply:
        timeout_s = _checked_seconds("usec", usec)
        await self._manage(request)
        self._engine.set_idle_timeout(timeout_s)
        return Reply()

    async def set_vram_budget(self, request: Request, budget_bytes: int) -> Reply:
        if budget_bytes > MAX_BUDGET_BYTES:
            raise InvalidArguments(
                f"a budget of {budget_bytes} bytes is above the limit of {MAX_BUDGET_BYTES}", hint="give it in bytes"
            )
        await self._manage(request)
        self._engine.set_budget(budget_bytes)
        return Reply()

    async def reload(self, request: Request) -> Reply:
        await self._manage(request)
        await self._engine.reload()
        return Reply()

    async def _manage(self, request: Request) -> None:
        await self._allow(await self._callers.identify(request.sender), request, Permission.MANAGE, "")

    # What all of them check -----------------------------------------------------------------------------------------

    async def _allow(self, caller: Caller, request: Request, permission: Permission, model: str) -> None:
        try:
            await self._authority.check(
                caller, permission, sender=request.sender, interactive=request.interactive, model=model
            )
        except AccessDenied as problem:
            self._write_down(caller, permission, model, problem)
            raise

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
        self._notify(Notice(NoticeKind.DENIED, problem.text, model=model, level=Level.WARNING, fields=fields))

    async def _check_present(self, caller: Caller) -> None:
        try:
            present = await self._connection().call_bus("NameHasOwner", "s", [caller.owner])
        except ReplyError as problem:
            raise AccessDenied(f"cannot tell whether {caller.label} is still on the bus: {problem}") from None
        if not present:
            raise AccessDenied(f"{caller.label} left the bus before it was answered", hint="nothing is held")

    def _check_jobs(self, caller: Caller) -> None:
        count = sum(job.caller.uid == caller.uid for job in self._engine.snapshot().jobs)
        if count >= self._limits.jobs:
            raise LimitsExceeded(
                f"uid {caller.uid} has {count} loads and unloads under way, the limit is {self._limits.jobs}",
                hint="wait for one to end, or cancel one",
            )

    def _check_holds(self, caller: Caller) -> None:
        count = sum(hold.caller.uid == caller.uid for hold in self._engine.snapshot().holds)
        if count >= self._limits.holds:
            raise LimitsExceeded(
                f"uid {caller.uid} has {count} holds, the limit is {self._limits.holds}", hint="release one first"
            )


def _checked_options(options: dict[str, Variant], allowed: Mapping[str, str]) -> dict[str, Any]:
    """The plain values of known options of the right type. Raises InvalidOption."""
    names = ", ".join(f'"{name}"' for name in allowed)
    for name, value in options.items():
        if name not in allowed:
            raise InvalidOption(f"there is no option {name[:64]!a}", hint=f"allowed are {names}")
        if value.signature != allowed[name]:
            raise InvalidOption(
                f'the option "{name}" has the type "{value.signature[:16]}"', hint=f'its type is "{allowed[name]}"'
            )
    return {name: value.value for name, value in options.items()}


def _checked_seconds(name: str, usec: int) -> float:
    timeout_s = usec / 1_000_000
    if timeout_s > MAX_IDLE_TIMEOUT_S:
        raise InvalidArguments(
            f"{name} is {timeout_s:.0f} s, the limit is {MAX_IDLE_TIMEOUT_S:.0f} s", hint="give it in microseconds"
        )
    return timeout_s
