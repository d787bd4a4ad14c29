"""What this edge needs of the engine, as a protocol."""

from collections.abc import Callable, Collection
from typing import Protocol

from gpud.core.admission import Considered
from gpud.core.catalogue import Entry, Scanned
from gpud.core.events import JobEnded, LoadOptions, Logged, Outcome
from gpud.core.facts import Caller, ClaimStatus, JobResult, JobStatus, Priority, Session, Snapshot
from gpud.core.quote import Quote
from gpud.engine.shelf import Past


class LibraryApi(Protocol):
    """What models there are, as the bus asks for it."""

    @property
    def version(self) -> int:
        """Another one whenever something else may be known of a model but how it was used."""

    @property
    def uses_kept(self) -> int:
        """Another one whenever it was kept that models were used."""

    def need_of(self, name: str) -> int | None:
        """What a model would need as it is configured; None: that was not calculated."""

    def past_of(self, name: str) -> Past | None:
        """How it was used before gpud started; None: never."""

    async def entries(self, names: Collection[str] | None = None, *, everything: bool = False) -> tuple[Entry, ...]: ...

    async def scan(self) -> Scanned: ...

    async def annotate(
        self,
        name: str,
        *,
        aliases: tuple[str, ...] | None = None,
        priority: str | None = None,
        tags: tuple[str, ...] | None = None,
        notes: str | None = None,
    ) -> Entry:
        """Raises NoSuchModel and InvalidOption."""

    async def forget(self, name: str) -> None:
        """Raises NoSuchModel, and InvalidOption for one that is there."""


class EngineApi(Protocol):
    """The engine as the bus sees it. Plain functions act at once, on the loop; they raise GpudError."""

    def snapshot(self) -> Snapshot: ...

    def is_fresh(self) -> bool:
        """Whether the figures of the snapshot may be shown as they are."""

    async def refresh(self) -> None:
        """Returns when the devices have been looked at again, or take too long."""

    @property
    def library(self) -> LibraryApi: ...

    def resolve(self, name: str) -> str:
        """The name of the model that is meant. Raises NoSuchModel."""

    async def keep_uses(self) -> None:
        """The library knows then how often each model was used until now."""

    def load(self, model: str, caller: Caller, options: LoadOptions = ...) -> int:
        """Returns the job. Raises for what is known at once."""

    def unload(self, model: str, caller: Caller, *, force: bool = False, others: bool = False) -> int:
        """Returns the job; an empty model means all."""

    def cancel(self, job: int, caller: Caller, *, any_owner: bool = False) -> None: ...

    def job(self, job: int) -> JobStatus | None: ...

    async def wait(self, job: int) -> JobEnded:
        """How a job ended, or will end. Raises NoSuchJob when there is none, or it ended long ago."""

    def hold(self, model: str, caller: Caller, *, reason: str, application: str) -> int:
        """Returns the cookie."""

    def inhibit(self, what: frozenset[str], caller: Caller, *, who: str, why: str) -> int:
        """Returns the cookie."""

    def release(self, cookie: int, owner: str) -> None:
        """Raises NoSuchHold when there is none of this owner."""

    def release_owner(self, owner: str) -> None: ...

    def session_began(self, session: Session) -> None:
        """What its callers use, and what is held for it, counts as its own from now on."""

    def claim(
        self,
        size_bytes: int,
        caller: Caller,
        *,
        who: str,
        why: str,
        gpu: str = "",
        priority: Priority = Priority.NORMAL,
        wait_s: float | None = None,
    ) -> int:
        """Returns its number. Raises for what is known at once."""

    async def claimed(self, claim: int) -> ClaimStatus:
        """Returns when it is granted, raises when it is refused. Whoever no longer waits drops the claim."""

    def drop_claim(self, claim: int, reason: str) -> None:
        """Does nothing for one that has ended."""

    def yield_gpus(self, caller: Caller, *, why: str, for_s: float | None = None) -> None: ...

    def resume(self, caller: Caller) -> None:
        """Does nothing where the GPUs are not given away."""

    async def explain(self, model: str, limit: int = 20) -> tuple[Logged, ...]:
        """The newest first; an empty model means everything."""

    def consider(self, size_bytes: int, *, gpu: str = "") -> Considered: ...

    async def quote(self, model: str, *, context: int | None = None, layers: int | None = None) -> Quote:
        """What the model would need; ``context`` and ``layers`` in place of the configured ones."""

    def begin_download(self, caller: Caller, what: str, total_bytes: int | None) -> int:
        """Returns the job. It ends with :meth:`release_owner` at the latest."""

    def download_progress(self, job: int, caller: Caller, done_bytes: int, total_bytes: int | None) -> None:
        """Raises NoSuchJob for one that is over, or somebody else's."""

    def end_download(self, job: int, caller: Caller, result: JobResult, message: str) -> None:
        """Raises NoSuchJob likewise."""

    def set_idle_timeout(self, timeout_s: float) -> None: ...

    def set_budget(self, budget_bytes: int) -> None: ...

    async def reload(self) -> None:
        """Raises ConfigInvalid; nothing has changed then."""

    def subscribe(self, listener: Callable[[tuple[Outcome, ...]], None]) -> Callable[[], None]:
        """The listener is called on the loop after each event with what is to be told; returns how to stop it."""
