"""The queue is served: against one look at the devices, in order, each gets what is left by those before it."""

from collections.abc import Iterable, Mapping, Sequence

from gpud.core import events, eviction
from gpud.core.admission import Admission
from gpud.core.budget import describe
from gpud.core.claiming import Claiming
from gpud.core.claims import Claim
from gpud.core.counts import plural
from gpud.core.errors import GpudError, QueueFull, WaitedTooLong
from gpud.core.events import Kind, Level
from gpud.core.facts import HOST, JobResult, Model, State
from gpud.core.instance import Instance
from gpud.core.leaving import TURN, Leaving
from gpud.core.loading import Loading
from gpud.core.queue import Ticket
from gpud.core.quote import Quote, Share
from gpud.core.record import replace
from gpud.core.table import Table
from gpud.core.verdict import Evicts, Granted, Refused, Waits, Wish

Entry = Instance | Claim


class Admitting:
    """Grants, keeps waiting, has others go, refuses. Nobody waits past its time."""

    def __init__(self, table: Table, loading: Loading, leaving: Leaving, claiming: Claiming) -> None:
        self._table = table
        self._loading = loading
        self._leaving = leaving
        self._claiming = claiming
        self._out = table.out
        self._waits: dict[int, Waits] = {}

    def serve(self, event: events.Sampled) -> None:
        """Go through the queue once. What those who wait will need, nobody behind them takes."""
        before, self._waits = self._waits, {}
        checked = {model.name: model for model in event.checked}
        order = self._table.queue()
        overdue = max((place for place, entry in enumerate(order) if _is_overdue(entry)), default=-1)
        found: Admission | None = None
        for place, entry in enumerate(order):
            ticket = entry.ticket
            if ticket is None:
                continue
            if found is None:
                found = self._admission(self._waits.values())
            told = before.get(ticket.sequence)
            if told is not None and found.still_behind(told):
                if not self._hasty_go(entry, told.text):
                    self._waits[ticket.sequence] = told
                continue
            # Who stands before one whose turn has come has its turn as well: else that one would wait for it.
            wish = self._wish(entry, event, checked, overdue=place <= overdue, before=told)
            if wish is None:
                # This look says nothing of it; what it was promised the last time stays promised.
                if told is not None and entry.ticket is ticket:
                    self._waits[ticket.sequence] = told
                    found.keep(told)
                continue
            verdict = found.decide(wish)
            match verdict:
                case Granted():
                    self._grant(entry, verdict)
                    found = None
                case Waits():
                    if self._keep_waiting(entry, verdict):
                        found.keep(verdict)
                case Evicts(shares, victims, _, text):
                    text = f"waiting until {_names([victim.model for victim in victims])} is unloaded: {text}"
                    if self._keep_waiting(entry, Waits(shares, text, "eviction")):
                        self._evict(entry, verdict)
                        found = None
                case Refused(error):
                    self._refuse(entry, error)

    def behind_all(self) -> Admission:
        """What one more would find behind all who wait; a device that sleeps is taken to be empty."""
        standing = {entry.ticket.sequence for entry in self._table.waiting() if entry.ticket is not None}
        ahead = [waits for sequence, waits in self._waits.items() if sequence in standing]
        return self._admission(ahead, asleep_is_empty=True)

    def _admission(self, ahead: Iterable[Waits], *, asleep_is_empty: bool = False) -> Admission:
        """The devices as they are at this moment, with all that those need who were told to wait."""
        policy = self._table.limits.eviction.policy
        devices = self._table.devices(asleep_is_empty=asleep_is_empty)
        return Admission(devices, ahead=ahead, policy=policy, now=self._table.now)

    def _wish(
        self,
        entry: Entry,
        event: events.Sampled,
        checked: Mapping[str, Model],
        *,
        overdue: bool,
        before: Waits | None,
    ) -> Wish | None:
        """What it wants, or None when that is not known by this look, or known to be in vain."""
        if isinstance(entry, Claim):
            if entry.id not in event.claimed:
                self._table.look = True
                return None
            return self._claiming.wish(entry, overdue=overdue)
        name = entry.model.name
        wanted, known = entry.launchable(), checked.get(name)
        late = entry.ticket is not None and entry.ticket.sequence > event.tickets
        if late or (known is not wanted and known != wanted):
            # It came, or another context or engine was wished for, after the look had begun.
            self._table.look = True
            return None
        if name in event.unfit:
            self._loading.refuse_unfit(entry, event.unfit[name])
            return None
        if name not in event.quotes:
            self._table.look = True
            return None
        quote = event.quotes[name]
        if entry.reload_s is None:
            entry.reload_s = quote.load_s
        may_evict = entry.wanted or any(job.evict for job in entry.load_jobs)
        wish = Wish.load(wanted, grown(quote, entry.growth), may_evict=may_evict, overdue=overdue, before=before)
        if entry.ticket is not None and wish.quote.offers:
            entry.expects_bytes = wish.quote.offers[0].need_bytes
        return wish

    def _grant(self, entry: Entry, verdict: Granted) -> None:
        if isinstance(entry, Claim):
            self._claiming.grant(entry, verdict)
        else:
            self._loading.launch(entry, verdict)

    def _refuse(self, entry: Entry, error: GpudError) -> None:
        if isinstance(entry, Claim):
            self._claiming.refuse(entry, error)
        else:
            self._loading.refuse(entry, error)

    # Waiting

    def _keep_waiting(self, entry: Entry, waits: Waits) -> bool:
        """It stays in the queue for this reason, unless the queue is full or it would not wait: then it is told so."""
        ticket = entry.ticket
        if ticket is None:
            return False
        limits = self._table.limits.queue
        by_itself = isinstance(entry, Instance) and entry.wanted
        if not ticket.queued and not by_itself and self._table.queued() >= limits.size:
            self._refuse(
                entry,
                QueueFull(
                    f"cannot {self._subject(entry)}: {plural(self._table.queued(), 'waits', 'wait')} for memory "
                    f"already, the limit is {limits.size} ({waits.text})",
                    hint="ask again later, see gpudctl queue, or raise queue.size",
                ),
            )
            return False
        moved = ticket.cause != waits.cause
        ticket.queued = True
        ticket.waits_for, ticket.cause = waits.text, waits.cause
        if waits.cause not in ("coming", "eviction") and self._hasty_go(entry, waits.text):
            return False
        self._waits[ticket.sequence] = waits
        if moved and waits.cause != "coming":
            self._tell_waiting(entry, waits.text)
        return True

    def _hasty_go(self, entry: Entry, text: str) -> bool:
        """Those who would not wait for others are told why they would have to. True when nobody is left."""
        if isinstance(entry, Claim):
            if entry.hasty:
                self._refuse(entry, WaitedTooLong(f"cannot {self._subject(entry)} at once: {text}", hint="let it wait"))
            return entry.hasty
        for job in [job for job in entry.load_jobs if job.hasty]:
            entry.load_jobs.remove(job)
            error = WaitedTooLong(f"cannot {self._subject(entry)} at once: {text}", hint="let it wait")
            self._out.end_job(job, JobResult.TIMEOUT, error.text, error)
        return self._nobody_waits(entry)

    def _nobody_waits(self, instance: Instance) -> bool:
        if instance.load_jobs or instance.wanted:
            return False
        instance.leave_queue()
        self._table.look = True
        return True

    def _tell_waiting(self, entry: Entry, text: str) -> None:
        message = f"{self._subject(entry)[:1].upper()}{self._subject(entry)[1:]}: {text}"
        if isinstance(entry, Claim):
            self._out.add(
                events.Notice(Kind.LOAD_WAITS, message, fields={"claim": entry.id, "need_bytes": entry.bytes})
            )
        else:
            self._out.tell(Kind.LOAD_WAITS, message, entry, need_bytes=entry.expects_bytes)

    @staticmethod
    def _subject(entry: Entry) -> str:
        if isinstance(entry, Claim):
            return f"give {describe(entry.bytes)} to {entry.who}"
        return f'load "{entry.model.name}"'

    # Time

    def time_passed(self) -> None:
        """Whose turn has come, and whose time is over."""
        now, limits = self._table.now, self._table.limits.queue
        for entry in list(self._table.waiting()):
            ticket = entry.ticket
            if ticket is None:
                continue
            # Whatever the time was for, somebody may be able to go now who could not before.
            self._table.look = True
            if ticket.queued and not ticket.overdue and now >= ticket.since_s + limits.turn_s:
                ticket.overdue = True
                self._out.touch()
            if isinstance(entry, Claim):
                if entry.until_s is not None and entry.until_s <= now:
                    self._claiming.waited_too_long(entry)
            else:
                self._expire(entry, ticket)

    def _expire(self, instance: Instance, ticket: Ticket) -> None:
        late = [job for job in instance.load_jobs if job.until_s is not None and job.until_s <= self._table.now]
        for job in late:
            instance.load_jobs.remove(job)
            error = WaitedTooLong(
                f'cannot load "{instance.model.name}": it has waited {self._table.now - job.since_s:.0f} s, at last '
                f"{ticket.waits_for}",
                hint="let it wait longer (queue.timeout), or see gpudctl queue for who is before it",
            )
            self._out.end_job(job, JobResult.TIMEOUT, error.text, error)
            self._out.tell(
                Kind.LOAD_TIMED_OUT,
                error.message[:1].upper() + error.message[1:],
                instance,
                level=Level.WARNING,
                hint=error.hint,
                waited_seconds=round(self._table.now - job.since_s),
            )
        if late:
            self._nobody_waits(instance)
            self._out.touch()

    def deadlines(self) -> list[float]:
        """When :meth:`time_passed` has something to do."""
        found: list[float] = []
        now, limits = self._table.now, self._table.limits
        waiting = self._table.waiting()
        for entry in waiting:
            ticket = entry.ticket
            if ticket is None:
                continue
            if ticket.queued and not ticket.overdue:
                found.append(ticket.since_s + limits.queue.turn_s)
            if isinstance(entry, Claim):
                if entry.until_s is not None:
                    found.append(entry.until_s)
            else:
                found += [job.until_s for job in entry.load_jobs if job.until_s is not None]
        if waiting:
            found += [until for until in self._next_free() if until > now]
        return found

    def _next_free(self) -> list[float]:
        """When models that must not go yet may."""
        ready = [i for i in self._table.with_engine() if i.state is State.READY and not i.in_flight]
        return [max(i.busy_until_s, self._table.resident_until(i) if i.for_request else 0.0) for i in ready]

    # Making room

    def _evict(self, entry: Entry, verdict: Evicts) -> None:
        for candidate in verdict.victims:
            victim = self._table.instances[candidate.model]
            self.make_room(victim, self._subject_name(entry), candidate, verdict)

    @staticmethod
    def _subject_name(entry: Entry) -> str:
        return entry.who if isinstance(entry, Claim) else f'"{entry.model.name}"'

    def make_room(self, victim: Instance, wanting: str, candidate: eviction.Candidate, verdict: Evicts) -> None:
        now = self._table.now
        idle = (
            f"{plural(victim.in_flight, 'request')} in flight"
            if victim.in_flight
            else f"idle for {now - victim.idle_since():.0f} s"
        )
        spared = ", ".join(f"{c.model} {eviction.loss(c, now):.2f}" for c in verdict.spared[:8])
        self._out.tell(
            Kind.EVICTED,
            f'"{victim.model.name}", {idle} and holding {describe(candidate.bytes)}, makes room for {wanting} '
            f"({verdict.text})",
            victim,
            for_model=wanting.strip('"'),
            freed_bytes=candidate.bytes,
            loss_seconds=round(eviction.loss(candidate, now), 3),
            spared=spared,
        )
        self._leaving.drain(victim, TURN if candidate.busy else "evict", victim.model.stop.drain_s)


def _is_overdue(entry: Entry) -> bool:
    return entry.ticket is not None and entry.ticket.overdue


def grown(quote: Quote, growth: float) -> Quote:
    """The quote for an engine that was seen to take more than it was promised."""
    if growth == 1.0:
        return quote
    offers = []
    for offer in quote.offers:
        on_host = all(share.device == HOST for share in offer.shares)
        shares = tuple(
            Share(share.device, int(share.bytes * growth)) if on_host or share.device != HOST else share
            for share in offer.shares
        )
        offers.append(replace(offer, shares=shares))
    return replace(quote, offers=tuple(offers))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
