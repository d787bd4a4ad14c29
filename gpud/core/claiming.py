"""Claims: memory for programs that are no engines. They wait in the same queue, and are granted from the same books."""

from gpud.core import events
from gpud.core.budget import describe
from gpud.core.claims import Claim
from gpud.core.errors import GpudError, InvalidArguments, NoSuchClaim, ShuttingDown, WaitedTooLong
from gpud.core.events import Kind, Level, Notice
from gpud.core.quote import Quote, Source
from gpud.core.spans import span
from gpud.core.table import Table
from gpud.core.verdict import Granted, Wish


class Claiming:
    """Everything about claims but when they are granted."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._out = table.out

    def asked(self, event: events.ClaimAsked) -> None:
        if self._table.closing:
            raise ShuttingDown(f"cannot give {describe(event.bytes)} to {event.who}: gpud is shutting down")
        if event.bytes <= 0:
            raise InvalidArguments(f"cannot give {event.bytes} bytes to {event.who}: a claim is for more than nothing")
        claim = Claim(
            event.claim,
            event.bytes,
            event.caller,
            event.who,
            event.why,
            event.gpu,
            event.priority,
            self._table.now,
            self._table.wait_until(event.wait_s),
            hasty=event.wait_s == 0,
        )
        self._table.claims.add(claim)
        self._table.enqueue(claim)
        self._out.touch()

    def wish(self, claim: Claim, *, overdue: bool) -> Wish:
        subject = f"give {describe(claim.bytes)} to {claim.who}"
        quote = Quote.simple(claim.bytes, Source.DECLARED)
        return Wish(subject, quote, claim.gpu, overdue=overdue, awaits_claims=True)

    def grant(self, claim: Claim, granted: Granted) -> None:
        waited_s = self._table.now - claim.since_s
        claim.ticket = None
        claim.device, claim.vendor = granted.shares[0].device, granted.vendor
        name = self._table.books.device_name(claim.device)
        text = f"{describe(claim.bytes)} of {name} are given to {claim.who}"
        if claim.why:
            text += f" ({claim.why})"
        if waited_s >= 1.0:
            text += f", after {waited_s:.0f} s in the queue"
        self._tell(Kind.CLAIM_GRANTED, text, claim)
        self._out.add(events.ClaimGranted(claim.id, claim.device, claim.vendor))
        self._table.sample()

    def refuse(self, claim: Claim, error: GpudError) -> None:
        self._table.claims.drop(claim.id)
        text = error.message[:1].upper() + error.message[1:]
        detail = (f"What to do: {error.hint}",) if error.hint else ()
        self._tell(Kind.CLAIM_REFUSED, text, claim, Level.WARNING, detail)
        self._out.add(events.ClaimOver(claim.id, error, error.code))
        self._table.look = True

    def waited_too_long(self, claim: Claim) -> None:
        reason = claim.ticket.waits_for if claim.ticket is not None else ""
        self.refuse(
            claim,
            WaitedTooLong(
                f"cannot give {describe(claim.bytes)} to {claim.who}: it has waited "
                f"{self._table.now - claim.since_s:.0f} s" + (f", at last {reason}" if reason else ""),
                hint="allow it to wait longer, or see gpudctl queue for who is before it",
            ),
        )

    def dropped(self, event: events.ClaimDropped) -> None:
        claim = self._table.claims.drop(event.claim)
        if claim is None:
            raise NoSuchClaim(f"there is no claim {event.claim}", hint="it may have been given back already")
        if claim.granted:
            self._table.books.expect_claim_back(claim, self._table.now)
            self._table.sample()
            name = self._table.books.device_name(claim.device)
            held_s = self._table.now - claim.since_s
            text = (
                f"{describe(claim.bytes)} of {name} are given back by {claim.who} after {span(held_s)}: {event.reason}"
            )
        else:
            text = f"{claim.who} no longer waits for {describe(claim.bytes)}: {event.reason}"
        self._tell(Kind.CLAIM_ENDED, text, claim)
        self._out.add(events.ClaimOver(claim.id, None, event.reason))
        self._table.look = True
        self._out.touch()

    def _tell(
        self, kind: Kind, message: str, claim: Claim, level: Level = Level.INFO, detail: tuple[str, ...] = ()
    ) -> None:
        fields: dict[str, str | int | float] = {
            "claim": claim.id,
            "need_bytes": claim.bytes,
            "who": claim.who,
            "uid": claim.caller.uid,
        }
        if claim.device:
            fields["device"] = claim.device
        self._out.add(Notice(kind, message, level=level, fields=fields, detail=detail))
