"""Memory for those who are no engines: who asked for how much, and where they have it. Decides nothing."""

from collections.abc import Collection

from gpud.core.budget import Charge
from gpud.core.facts import Caller, ClaimStatus, Priority
from gpud.core.queue import Ticket
from gpud.core.record import Struct


class Claim(Struct):
    """One claim's life: it waits (``ticket``), then it has ``device``, then it is dropped from :class:`Claims`."""

    id: int
    bytes: int
    caller: Caller
    who: str
    why: str
    gpu: str
    priority: Priority
    since_s: float
    until_s: float | None
    ticket: Ticket | None = None
    device: str = ""
    vendor: str = ""
    used_bytes: int | None = None
    hasty: bool = False

    @property
    def granted(self) -> bool:
        return bool(self.device)

    @property
    def wanted_priority(self) -> Priority:
        return self.priority

    @property
    def parties(self) -> Collection[str]:
        return (self.caller.stands_for,)

    @property
    def served_per_second(self) -> float:
        """It takes no time to grant; one program is served."""
        return 1.0

    def charge(self) -> Charge:
        return Charge(self.device, self.bytes, self.used_bytes, settled=True, grows=True)

    def status(self) -> ClaimStatus:
        return ClaimStatus(
            id=self.id,
            caller=self.caller,
            who=self.who,
            why=self.why,
            bytes=self.bytes,
            since_s=self.since_s,
            priority=self.priority,
            device=self.device,
            vendor=self.vendor,
            used_bytes=self.used_bytes,
            waits_for="" if self.ticket is None else self.ticket.waits_for,
        )


class Claims:
    """All claims by their id."""

    def __init__(self) -> None:
        self._claims: dict[int, Claim] = {}

    def add(self, claim: Claim) -> None:
        self._claims[claim.id] = claim

    def drop(self, claim: int) -> Claim | None:
        dropped = self._claims.pop(claim, None)
        if dropped is not None:
            dropped.ticket = None
        return dropped

    def all(self) -> Collection[Claim]:
        return tuple(self._claims.values())

    def granted(self) -> Collection[Claim]:
        return [claim for claim in self._claims.values() if claim.device]

    def statuses(self) -> tuple[ClaimStatus, ...]:
        return tuple(claim.status() for claim in self._claims.values())
