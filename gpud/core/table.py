"""What the parts of the scheduler share: every instance, the books, the holds, and what one event brings about."""

from collections.abc import Collection, Mapping, Sequence

from gpud.core import events, queue
from gpud.core.books import Books
from gpud.core.claims import Claim, Claims
from gpud.core.counts import plural
from gpud.core.errors import NoSuchModel
from gpud.core.facts import Limits, Model, Session, State, Suspension, YieldStatus
from gpud.core.holds import Holds
from gpud.core.instance import Instance
from gpud.core.lifecycle import Trigger
from gpud.core.looks import Looks
from gpud.core.naming import those_there
from gpud.core.outbox import Outbox
from gpud.core.statuses import Patience
from gpud.core.stock import Stock
from gpud.core.verdict import Device

# A look at the devices takes so long at most, as a rule: files are read, and an engine may be asked what it needs.
LOOK_S = 5.0

GPUD = ""
"""The party of what gpud brings back by itself."""


class Table:
    """Everything that the scheduler knows. Only its parts write here, while they handle one event at ``now``.

    ``stock`` are all models, ``instances`` the lives of those that anybody has wished for; all others rest.
    ``look``: somebody waits for memory, and the devices are to be looked at after this event. ``gpus_held``: drivers
    may be open since a look that was allowed to wake them. ``yielded``: the GPUs are given away. ``suspended``: the
    machine is about to sleep. ``with_gpus`` and ``after_sleep`` are the models that went for these and come back by
    themselves. ``sessions``: those that live, with when they began. ``alerts`` are the devices that are nearly full,
    ``giving_way`` those of which it was told that others need what busy models hold.
    """

    def __init__(self, models: Mapping[str, Model], limits: Limits) -> None:
        self.stock = Stock.of(models)
        self.instances: dict[str, Instance] = {}
        self._lively: dict[str, Instance] = {}
        self._line: dict[int, Instance | Claim] = {}
        self.limits = limits
        self.books = Books(limits)
        self.holds = Holds()
        self.claims = Claims()
        self.yielded: YieldStatus | None = None
        self.suspended: Suspension | None = None
        self.after_sleep: dict[str, None] = {}
        self.with_gpus: dict[str, None] = {}
        self.sessions: dict[str, tuple[Session, float]] = {}
        self.alerts: set[str] = set()
        self.giving_way: set[str] = set()
        self.looked_s = 0.0
        self.out = Outbox()
        self.now = 0.0
        self.closing = False
        self.look = False
        self.gpus_held = False
        self.idle_override_s: float | None = None
        self.battery_idle_s: float | None = None
        self.looks = Looks()
        self._turns = queue.Turns()
        self._sequence = 0

    def enqueue(self, entry: Instance | Claim) -> None:
        """It stands in the queue, and its parties are counted."""
        others = [other.ticket for other in self.waiting() if other.ticket is not None and other is not entry]
        if entry.ticket is None:
            self._sequence += 1
            entry.ticket = queue.Ticket(self._sequence, self.now, "waiting for a look at the devices")
            self._line[self._sequence] = entry
        self._turns.give(entry.ticket, entry.parties or (GPUD,), others)
        self.look = True
        if isinstance(entry, Instance):
            self._tell_why_not_yet(entry, entry.ticket)

    def _tell_why_not_yet(self, instance: Instance, ticket: queue.Ticket) -> None:
        if instance.state is State.BACKOFF and not self.may_start(instance):
            ticket.waits_for = f"backing off after {plural(instance.attempts, 'failed attempt')}"
        elif instance.state in (State.DRAINING, State.STOPPING, State.KILLING):
            ticket.waits_for = "waiting until it is unloaded"

    def say_why(self, ticket: queue.Ticket, text: str) -> None:
        if ticket.waits_for != text:
            ticket.waits_for = text
            self.out.touch()

    def wait_until(self, wait_s: float | None) -> float:
        """When one who would wait so long gives up; None: as configured. Who would not wait at all still waits for the
        look at the devices, and for memory that is on its way back.
        """
        limits = self.limits
        hasty_s = max(LOOK_S, limits.memory_wait_s)
        return self.now + (limits.queue.timeout_s if wait_s is None else wait_s or hasty_s)

    def used(self, instance: Instance, session: str) -> None:
        """By this session, or by somebody who is in none that is known. The end of others is no reason to go then."""
        instance.leave_at_s = None
        user = self.user_of(session)
        if user not in instance.users:
            instance.users.add(user)
            if self.sessions:
                self.out.add(events.SessionsChanged())

    def user_of(self, session: str) -> str:
        return session if session in self.sessions else ""

    def find(self, name: str) -> Instance:
        """Its life, which begins here if need be."""
        instance = self.instances.get(name)
        if instance is None:
            model = self.stock.get(name)
            if model is None:
                raise NoSuchModel(f'there is no model "{name}"', hint=those_there(self.stock))
            instance = self.instances[name] = Instance(
                model, idle_timeout_s=self.idle_override_s, battery_idle_s=self.battery_idle_s
            )
        return instance

    @property
    def patience(self) -> Patience:
        """With those that rest."""
        return Patience(self.idle_override_s, self.battery_idle_s)

    def forget_untouched(self) -> None:
        """Those of whom nothing is remembered rest like all others."""
        for name, instance in list(self.instances.items()):
            if instance.is_untouched() and name in self.stock and not self.holds.count(name):
                del self.instances[name]

    def current(self, name: str, generation: int) -> Instance | None:
        """The instance that an answer is about, or None when it is about an engine of the past."""
        instance = self.instances.get(name)
        return instance if instance is not None and instance.generation == generation else None

    def move(self, instance: Instance, trigger: Trigger, reason: str) -> None:
        """The only way from state to state: the transition is taken, and told."""
        self.out.move(instance, trigger, reason)
        if instance.state in (State.COLD, State.FAILED):
            self._lively.pop(instance.model.name, None)
        else:
            self._lively[instance.model.name] = instance

    def lively(self) -> list[Instance]:
        """Those that have an engine, or back off: of very many models the few that time passes for."""
        return list(self._lively.values())

    def with_engine(self) -> list[Instance]:
        return [instance for instance in self._lively.values() if instance.state.has_engine()]

    def queue(self) -> Sequence[Instance | Claim]:
        """Those that may be admitted as soon as there is memory, in the order in which they are served."""
        return queue.in_order(self._servable(), self.now, self.limits.queue)

    def somebody_could_be_served(self) -> bool:
        return any(isinstance(entry, Claim) or self.may_start(entry) for entry in self.waiting())

    def _servable(self) -> list[Instance | Claim]:
        return [entry for entry in self.waiting() if isinstance(entry, Claim) or self.may_start(entry)]

    def may_start(self, instance: Instance) -> bool:
        """Whether nothing but memory is missing."""
        if self.suspended is not None or instance.kept_off:
            return False
        return instance.state in (State.COLD, State.FAILED) or (
            instance.state is State.BACKOFF and (instance.retry_at_s or 0.0) <= self.now
        )

    def waiting(self) -> Collection[Instance | Claim]:
        """Everyone with a ticket, also who cannot start yet."""
        gone = [n for n, entry in self._line.items() if entry.ticket is None or entry.ticket.sequence != n]
        for sequence in gone:
            del self._line[sequence]
        return self._line.values()

    def queued(self) -> int:
        """How many have been told to wait for memory."""
        return sum(1 for entry in self.waiting() if entry.ticket is not None and entry.ticket.queued)

    # Who may make room for others

    def may_go(self, instance: Instance) -> bool:
        """It is neither pinned nor held: it may make room for others, sooner or later."""
        return not instance.model.pinned and not self.holds.held(instance.model.name, "evict")

    def occupied(self, instance: Instance) -> bool:
        """It has to answer somebody first, or has only just been loaded for somebody."""
        return (
            instance.in_flight > 0
            or instance.busy_until_s > self.now
            or (instance.for_request and self.resident_until(instance) > self.now)
        )

    def resident_until(self, instance: Instance) -> float:
        return (instance.ready_since_s or 0.0) + self.limits.eviction.residence_s

    def devices(self, *, asleep_is_empty: bool = False) -> Sequence[Device]:
        """Every device as admission wants to see it."""
        return self.books.devices(
            self.with_engine(),
            self.claims.granted(),
            self.may_go,
            self.occupied,
            asleep_is_empty=asleep_is_empty,
        )

    def sample(self, delay_s: float = 0.0) -> None:
        """Have the devices looked at, unless a look that is under way will do."""
        if not self.looks.ask(self.now, delay_s):
            return
        waiting = self._servable()
        engines = self.with_engine()
        settling = frozenset(i.model.name for i in engines if i.state is State.READY)
        check = tuple(entry.launchable() for entry in waiting if isinstance(entry, Instance))
        claims = {claim.id: claim.caller.pid for claim in self.claims.all()}
        wake = bool(waiting) or bool(engines) or bool(claims)
        self.gpus_held = self.gpus_held or wake
        self.out.add(events.Sample(wake, delay_s, check, settling, claims, self._sequence))

    def drop_if_removed(self, instance: Instance) -> None:
        if instance.removed and not instance.state.has_engine():
            self.instances.pop(instance.model.name, None)
            self._lively.pop(instance.model.name, None)
