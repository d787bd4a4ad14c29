"""The methods of org.kernelcore.GpuD about models, holds and settings; ``memory.py`` and others
have the rest.

They check the arguments, ask who may, and call the engine. One function a method.
"""

import os
from collections.abc import Awaitable, Callable, Mapping

from gpud.core.engine_wish import engines_wished
from gpud.core.errors import InvalidArguments, NoSuchHold, NoSuchJob
from gpud.core.events import LoadOptions
from gpud.core.facts import Caller, HoldStatus, session_owner
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.holds import Pipes, Watches
from gpud.dbus.limits import (
    MAX_BUDGET_BYTES,
    checked_model,
    checked_options,
    checked_priority,
    checked_seconds,
    checked_text,
)
from gpud.dbus.overview import Choice
from gpud.dbus.polkit import Permission
from gpud.dbus.render import ended_job_record
from gpud.dbus.shown import Shown
from gpud.dbus.wire import Variant

_SELECT = 'name a model; "gpudctl models" lists them'

_LOAD_OPTIONS = {
    "idle-timeout-usec": "t",
    "context-size": "u",
    "hold": "b",
    "evict": "b",
    "priority": "s",
    "wait-usec": "t",
    "engines": "as",
}
_UNLOAD_OPTIONS = {"force": "b"}
OVERVIEW_MOST = 500
"""So many models an overview may have beside those that are there; so many names may be asked for."""

_INHIBITABLE = frozenset({"unload", "evict", "load", "game"})


class Methods:
    """The table of handlers, and what they share."""

    def __init__(
        self,
        engine: EngineApi,
        *,
        gate: Gate,
        shown: Shown,
        watches: Watches,
        inhibitors: Pipes,
        asked_for: Callable[[int], None],
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._shown = shown
        self._watches = watches
        self._inhibitors = inhibitors
        self._asked_for = asked_for

    def table(self) -> Mapping[str, Handler]:
        return {
            "Load": self.load,
            "LoadWithOptions": self.load_with_options,
            "Unload": self.unload,
            "UnloadWithOptions": self.unload_with_options,
            "UnloadAll": self.unload_all,
            "CancelJob": self.cancel_job,
            "Job": self.job,
            "Status": self.status,
            "Overview": self.overview,
            "ListModels": self.list_models,
            "ListGpus": self.list_gpus,
            "Hold": self.hold,
            "Release": self.release,
            "Inhibit": self.inhibit,
            "SetIdleTimeout": self.set_idle_timeout,
            "SetVramBudget": self.set_vram_budget,
            "Reload": self.reload,
        }

    # Seeing: everybody may ------------------------------------------------------------------------------------------

    def status(self, _request: Request) -> Reply | Awaitable[Reply]:
        return self._fresh(self._shown.status)

    def overview(self, _request: Request, most: int, search: str, names: list[str]) -> Reply | Awaitable[Reply]:
        if max(most, len(names)) > OVERVIEW_MOST:
            raise InvalidArguments(
                f"{max(most, len(names))} models are more than the limit of {OVERVIEW_MOST}", hint="ListModels has all"
            )
        choice = Choice(most, checked_text("search", search), frozenset(names))
        return self._fresh(lambda: self._shown.overview(choice), bounded=True)

    def list_models(self, _request: Request) -> Reply | Awaitable[Reply]:
        return Reply(encoded=self._shown.models()) if self._shown.is_ready() else self._prepared(self._shown.models)

    def list_gpus(self, _request: Request) -> Reply | Awaitable[Reply]:
        return self._fresh(self._shown.gpus)

    def _fresh(self, show: Callable[[], bytes], *, bounded: bool = False) -> Reply | Awaitable[Reply]:
        """An answer with the figures of the devices: at once while they are fresh, else after a look. ``bounded``: few
        models are in it, and nothing has to be prepared.
        """
        fresh = self._engine.is_fresh() and (bounded or self._shown.is_ready())
        return Reply(encoded=show()) if fresh else self._after_a_look(show, bounded=bounded)

    async def _after_a_look(self, show: Callable[[], bytes], *, bounded: bool) -> Reply:
        if not self._engine.is_fresh():
            await self._engine.refresh()
        return Reply(encoded=show()) if bounded else await self._prepared(show)

    async def _prepared(self, show: Callable[[], bytes]) -> Reply:
        if not self._shown.is_ready():
            await self._shown.prepare()
        return Reply(encoded=show())

    async def job(self, _request: Request, job: int) -> Reply:
        running = self._engine.job(job)
        if running is not None:
            return Reply((self._shown.job(running),))
        return Reply((ended_job_record(await self._engine.wait(job)),))

    # Loading and unloading ------------------------------------------------------------------------------------------

    async def load(self, request: Request, model: str) -> Reply:
        return await self._load(request, model, LoadOptions())

    async def load_with_options(self, request: Request, model: str, options: dict[str, Variant]) -> Reply:
        values = checked_options(options, _LOAD_OPTIONS)
        usec, wait_usec, priority = (values.get(name) for name in ("idle-timeout-usec", "wait-usec", "priority"))
        return await self._load(
            request,
            model,
            LoadOptions(
                idle_timeout_s=None if usec is None else checked_seconds("idle-timeout-usec", usec),
                context=values.get("context-size"),
                hold=values.get("hold", False),
                evict=values.get("evict", True),
                priority=None if priority is None else checked_priority(priority),
                wait_s=None if wait_usec is None else checked_seconds("wait-usec", wait_usec),
                engines=engines_wished(values.get("engines", ())),
            ),
        )

    async def _load(self, request: Request, model: str, options: LoadOptions) -> Reply:
        checked_model(model, empty=_SELECT)
        caller = await self._gate.identify(request)
        self._gate.check_jobs(caller)
        await self._gate.allow(caller, request, Permission.LOAD, model)
        if not options.hold:
            self._gate.check_jobs(caller)
            return Reply((self._engine.load(model, caller, options),))
        self._gate.check_holds(caller)
        async with self._watches.watching(request.sender):
            await self._gate.allow(caller, request, Permission.HOLD, model)
            await self._gate.check_present(caller)
            self._gate.check_jobs(caller)
            self._gate.check_holds(caller)
            return Reply((self._engine.load(model, caller, options),))

    async def unload(self, request: Request, model: str) -> Reply:
        return await self._unload(request, model, force=False)

    async def unload_with_options(self, request: Request, model: str, options: dict[str, Variant]) -> Reply:
        return await self._unload(request, model, force=checked_options(options, _UNLOAD_OPTIONS).get("force", False))

    async def unload_all(self, request: Request) -> Reply:
        return await self._unload(request, "", force=False)

    async def _unload(self, request: Request, model: str, *, force: bool) -> Reply:
        model = "" if model == "all" else checked_model(model)
        caller = await self._gate.identify(request)
        self._gate.check_jobs(caller)
        await self._gate.allow(caller, request, Permission.UNLOAD_OTHERS if force else Permission.UNLOAD, model)
        self._gate.check_jobs(caller)
        return Reply((self._engine.unload(model, caller, force=force, others=force),))

    async def cancel_job(self, request: Request, job: int) -> Reply:
        caller = await self._gate.identify(request)
        found = self._engine.job(job)
        if found is None:
            raise NoSuchJob(f"there is no job {job}", hint="it has ended, or was never there")
        if found.caller.uid != caller.uid:
            await self._gate.allow(caller, request, Permission.MANAGE, found.model)
        self._engine.cancel(job, caller, any_owner=True)
        return Reply()

    # Holding --------------------------------------------------------------------------------------------------------

    async def hold(self, request: Request, model: str, reason: str, application: str) -> Reply:
        checked_model(model, empty=_SELECT)
        reason, application = checked_text("reason", reason), checked_text("application_id", application)
        caller = await self._gate.identify(request)
        self._gate.check_holds(caller)
        # Watch first, then ask, then look whether the caller is still there: however long polkit takes, a caller that
        # leaves before or after the look is noticed.
        async with self._watches.watching(request.sender):
            await self._gate.allow(caller, request, Permission.HOLD, model)
            await self._gate.check_present(caller)
            self._gate.check_holds(caller)
            return Reply((self._engine.hold(model, caller, reason=reason, application=application),))

    def release(self, request: Request, cookie: int) -> Reply | Awaitable[Reply]:
        hold = next((hold for hold in self._engine.snapshot().holds if hold.cookie == cookie), None)
        if hold is not None and hold.caller.owner == session_owner(hold.caller.session):
            return self._release_of_session(request, hold)
        self._engine.release(cookie, request.sender)
        self._asked_for(cookie)
        self._watches.prune(request.sender)
        return Reply()

    async def _release_of_session(self, request: Request, hold: HoldStatus) -> Reply:
        """Whoever works in the session can, if it is the same user, or root."""
        caller = await self._gate.identify(request)
        if caller.session != hold.caller.session or caller.uid not in (hold.caller.uid, 0):
            raise NoSuchHold(f"there is no hold {hold.cookie} of yours", hint="only its own session can release it")
        self._engine.release(hold.cookie, hold.caller.owner)
        return Reply()

    async def inhibit(self, request: Request, what: str, who: str, why: str) -> Reply:
        wanted = frozenset(what.split(":"))
        if not wanted <= _INHIBITABLE:
            raise InvalidArguments(
                f"cannot inhibit {what[:64]!a}",
                hint='allowed are "unload", "evict", "load", "game", and several with a colon between: "unload:evict"',
            )
        who, why = checked_text("who", who), checked_text("why", why)
        sender = await self._gate.identify(request)
        self._gate.check_holds(sender)
        if "load" in wanted:
            await self._gate.allow(sender, request, Permission.MANAGE)
        if "game" in wanted:
            await self._gate.allow(sender, request, Permission.UNLOAD)
        if wanted - {"load", "game"}:
            await self._gate.allow(sender, request, Permission.HOLD)
        self._gate.check_holds(sender)
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
        timeout_s = checked_seconds("usec", usec)
        await self._gate.manage(request)
        self._engine.set_idle_timeout(timeout_s)
        return Reply()

    async def set_vram_budget(self, request: Request, budget_bytes: int) -> Reply:
        if budget_bytes > MAX_BUDGET_BYTES:
            raise InvalidArguments(
                f"a budget of {budget_bytes} bytes is above the limit of {MAX_BUDGET_BYTES}", hint="give it in bytes"
            )
        await self._gate.manage(request)
        self._engine.set_budget(budget_bytes)
        return Reply()

    async def reload(self, request: Request) -> Reply:
        await self._gate.manage(request)
        await self._engine.reload()
        return Reply()
