"""The methods of org.kernelcore.GpuD that are about memory as such: claims, the queue, giving the GPUs away, and what
was or would be decided. One function a method.
"""

import os
from collections.abc import Mapping

from gpud.core.errors import InvalidArguments
from gpud.core.facts import Priority
from gpud.dbus.dispatch import Handler, Reply, Request
from gpud.dbus.engine_api import EngineApi
from gpud.dbus.gate import Gate
from gpud.dbus.holds import Pipes, Waits, Watches
from gpud.dbus.limits import (
    checked_gpu,
    checked_model,
    checked_options,
    checked_priority,
    checked_seconds,
    checked_size,
    checked_text,
)
from gpud.dbus.polkit import Permission
from gpud.dbus.render import considered_record, logged_record, quote_record
from gpud.dbus.shown import Shown
from gpud.dbus.wire import Variant

_CLAIM_OPTIONS = {"gpu": "s", "priority": "s", "wait-usec": "t"}
_CONSIDER_OPTIONS = {"gpu": "s"}
_QUOTE_OPTIONS = {"context-size": "u", "layers": "u"}
EXPLAIN_LIMIT = 20
EXPLAIN_MOST = 500

# polkit's own sentence for this action speaks of a model.
_CLAIM_MESSAGE = "Authentication is required to reserve $(size) of GPU memory for $(who)"


class MemoryMethods:
    """The table of handlers, and what they share."""

    def __init__(
        self, engine: EngineApi, *, gate: Gate, shown: Shown, watches: Watches, waits: Waits, claims: Pipes
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._shown = shown
        self._watches = watches
        self._waits = waits
        self._claims = claims

    def table(self) -> Mapping[str, Handler]:
        return {
            "Claim": self.claim,
            "ListQueue": self.list_queue,
            "Yield": self.yield_gpus,
            "Resume": self.resume,
            "Explain": self.explain,
            "Consider": self.consider,
            "Quote": self.quote,
        }

    async def claim(self, request: Request, size_bytes: int, who: str, why: str, options: dict[str, Variant]) -> Reply:
        checked_size(size_bytes)
        who, why = checked_text("who", who), checked_text("why", why)
        if not who:
            raise InvalidArguments("who is empty", hint="name the program that is going to use the memory")
        values = checked_options(options, _CLAIM_OPTIONS)
        gpu = checked_gpu(values.get("gpu", ""))
        priority = checked_priority(values["priority"]) if "priority" in values else Priority.NORMAL
        wait_s = checked_seconds("wait-usec", values["wait-usec"]) if "wait-usec" in values else None
        caller = await self._gate.identify(request)
        self._gate.check_claims(caller)
        details = {"polkit.message": _CLAIM_MESSAGE, "size": f"{size_bytes / (1 << 20):.0f} MiB", "who": who}
        async with self._watches.watching(request.sender):
            await self._gate.allow(caller, request, Permission.LOAD, details=details)
            await self._gate.check_present(caller)
            self._gate.check_claims(caller)
            # The pipe is there before the claim: whatever ends the claim from here on finds it.
            ours, theirs = self._claims.open_pipe()
            try:
                number = self._engine.claim(
                    size_bytes, caller, who=who, why=why, gpu=gpu, priority=priority, wait_s=wait_s
                )
            except BaseException:
                os.close(ours)
                os.close(theirs)
                raise
            self._claims.keep(number, caller.owner, ours)
            try:
                with self._waits.by(request.sender):
                    await self._engine.claimed(number)
            except BaseException:
                self._claims.drop(number)
                os.close(theirs)
                self._engine.drop_claim(number, "nobody waits for it any longer")
                raise
        # A caller that has left never takes the descriptor: the bus closes it, and with it the claim ends.
        return Reply((number, 0), [theirs])

    def list_queue(self, _request: Request) -> Reply:
        return Reply(encoded=self._shown.queue())

    async def yield_gpus(self, request: Request, usec: int, why: str) -> Reply:
        for_s = checked_seconds("usec", usec) if usec else None
        why = checked_text("why", why)
        self._engine.yield_gpus(await self._gate.manage(request), why=why, for_s=for_s)
        return Reply()

    async def resume(self, request: Request) -> Reply:
        self._engine.resume(await self._gate.manage(request))
        return Reply()

    # Seeing: everybody may ------------------------------------------------------------------------------------------

    async def explain(self, _request: Request, model: str, limit: int) -> Reply:
        entries = await self._engine.explain(checked_model(model), min(limit or EXPLAIN_LIMIT, EXPLAIN_MOST))
        return Reply(([logged_record(entry) for entry in entries],))

    def consider(self, _request: Request, size_bytes: int, options: dict[str, Variant]) -> Reply:
        checked_size(size_bytes)
        gpu = checked_gpu(checked_options(options, _CONSIDER_OPTIONS).get("gpu", ""))
        return Reply((considered_record(self._engine.consider(size_bytes, gpu=gpu)),))

    async def quote(self, _request: Request, model: str, options: dict[str, Variant]) -> Reply:
        checked_model(model, empty='name a model; "gpudctl models" lists them')
        values = checked_options(options, _QUOTE_OPTIONS)
        quote = await self._engine.quote(model, context=values.get("context-size"), layers=values.get("layers"))
        return Reply((quote_record(quote),))
