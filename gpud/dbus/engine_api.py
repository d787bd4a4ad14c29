"""What this edge needs of the engine, as a protocol."""

from collections.abc import Callable
from typing import Protocol

from gpud.core.events import LoadOptions, Outcome
from gpud.core.facts import Caller, JobStatus, Snapshot


class EngineApi(Protocol):
    """The engine as the bus sees it. Plain functions act at once, on the loop; they raise GpudError."""

    def snapshot(self) -> Snapshot: ...

    def is_fresh(self) -> bool:
        """Whether the figures of the snapshot may be shown as they are."""

    async def refresh(self) -> None:
        """Returns when the devices have been looked at again, or take too long."""

    def load(self, model: str, caller: Caller, options: LoadOptions = ...) -> int:
        """Returns the job. Raises for what is known at once."""

    def unload(self, model: str, caller: Caller, *, force: bool = False, others: bool = False) -> int:
        """Returns the job; an empty model means all."""

    def cancel(self, job: int, caller: Caller, *, any_owner: bool = False) -> None: ...

    def job(self, job: int) -> JobStatus | None: ...

    def hold(self, model: str, caller: Caller, *, reason: str, application: str) -> int:
        """Returns the cookie."""

    def inhibit(self, what: frozenset[str], caller: Caller, *, who: str, why: str) -> int:
        """Returns the cookie."""

    def release(self, cookie: int, owner: str) -> None:
        """Raises NoSuchHold when there is none of this owner."""

    def release_owner(self, owner: str) -> None: ...

    def held_by_others(self, model: str, owner: str) -> bool: ...

    def set_idle_timeout(self, timeout_s: float) -> None: ...

    def set_budget(self, budget_bytes: int) -> None: ...

    async def reload(self) -> None:
        """Raises ConfigInvalid; nothing has changed then."""

    def subscribe(self, listener: Callable[[tuple[Outcome, ...]], None]) -> Callable[[], None]:
        """The listener is called on the loop after each event with what is to be told; returns how to stop it."""
