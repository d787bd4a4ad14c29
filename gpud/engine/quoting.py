"""What is asked about a model before it is loaded: whether it can be, by which engine, and what it would need.

Files, programs and engines answer, each within its time; what does not answer is a sentence. Loads nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from gpud.core import events
from gpud.core.errors import GpudError
from gpud.core.facts import HOST, Model
from gpud.core.ports import Backend, Standing, TellsStanding
from gpud.core.quote import Quote
from gpud.engine.checks import Checks, Unanswered
from gpud.engine.choice import Way, chosen
from gpud.engine.sizing import Ground, Machine, Sizer

log = logging.getLogger(__name__)

T = TypeVar("T")

# A look at a few files takes milliseconds, from a disk that has to spin up ten seconds.
CHECK_S = 20.0

# A dry run takes some 30 ms, and on a GPU that has to be woken some seconds.
DRY_RUN_S = 15.0

# An engine of somebody else's that takes longer than this over a question or two is taken for one that says nothing.
STANDING_S = 3.0

Refuses = Callable[[str], tuple[str, str] | None]
"""Asked about an engine before a load: why it is not to be started now and what to do, or None where it may be."""


class Quoting:
    """``backend`` knows those of now: they may change with the configuration."""

    def __init__(self, sizer: Sizer, backend: Callable[[str], Backend | None], refuses: Refuses | None) -> None:
        self._sizer = sizer
        self._backend = backend
        self._refuses = refuses
        self._checks = Checks(CHECK_S)

    async def ask(self, model: str, question: Callable[[], T]) -> T:
        """In a thread, within its time. Raises Unanswered."""
        return await self._checks.ask(model, question)

    async def quote(self, model: Model, machine: Machine) -> Quote | events.Unfit:
        """Look at a model's files and programs, and find what it needs, by each engine that may serve it."""
        ways: list[Way] = []
        problems: list[events.Unfit] = []
        for candidate in (model, *model.alternatives):
            answer = await self._check_one(candidate, machine)
            if isinstance(answer, Way):
                ways.append(answer)
            else:
                problems.append(answer)
        return chosen(ways) if ways else problems[0]

    async def _check_one(self, model: Model, machine: Machine) -> Way | events.Unfit:
        backend = self._backend(model.engine)
        if backend is None:
            return events.Unfit(f'the engine "{model.engine}" is not available')
        if self._refuses is not None and (refused := self._refuses(model.engine)) is not None:
            why, hint = refused
            return events.Unfit(f'cannot load "{model.name}": {why}', hint, "engine-stopped")
        try:
            ground = await self.ask(model.name, partial(self._sizer.ground, backend, model, machine))
            standing = await self._standing(backend, model)
            if await self.ask(model.name, partial(self._sizer.wants_probe, ground)):
                await self._dry_run(ground)
            return Way(await self.ask(model.name, partial(self._sizer.quote, ground)), standing)
        except Unanswered:
            return events.Unfit(
                f'cannot load "{model.name}": a look at its files and programs has not ended within {CHECK_S:g} s',
                "see whether the file systems that they lie on answer (df)",
                "timeout",
            )
        except GpudError as error:
            return events.Unfit(error.message, error.hint, getattr(error, "kind", error.code))
        except Exception as error:
            log.exception("internal error: checking %r failed", model.name)
            return events.Unfit(f"internal error: {error!r}", kind="internal")

    async def _standing(self, backend: Backend, model: Model) -> Standing | None:
        """Whether somebody else's engine has the model already. Raises the GpudError that says that it cannot."""
        if not isinstance(backend, TellsStanding):
            return None
        try:
            return await asyncio.wait_for(backend.standing(model), STANDING_S)
        except TimeoutError:
            log.debug("%r does not say how it stands with %r", model.engine, model.name)
            return None

    async def _dry_run(self, ground: Ground) -> None:
        """Ask the engine itself. What it does not say stays a guess."""
        model, gpus = ground.model, ground.gpus[:1]
        vendor = gpus[0].vendor if gpus else HOST
        try:
            counted = await asyncio.wait_for(
                ground.backend.probe(model, tuple(gpu.uuid for gpu in gpus), vendor, ()), DRY_RUN_S
            )
        except TimeoutError:
            log.warning("A dry run of %r has not ended within %g s", model.name, DRY_RUN_S)
            return
        if counted is not None:
            await asyncio.to_thread(self._sizer.probed, ground, counted)

    async def identify(self, backend: Backend, model: Model) -> tuple[str, str]:
        """The fingerprint of the settings, and the engine's build."""
        fingerprint = await self.fingerprint(backend, model)
        try:
            return fingerprint, await self.ask(model.name, backend.build)
        except Unanswered:
            return fingerprint, ""

    async def fingerprint(self, backend: Backend, model: Model) -> str:
        """Of the settings as they are now; empty, which matches any, while the files do not answer: an engine that runs
        is not ended for that.
        """
        try:
            return await self.ask(model.name, partial(backend.fingerprint, model))
        except Unanswered:
            log.warning("The files of %r have not answered within %g s", model.name, CHECK_S)
            return ""
