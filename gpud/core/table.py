"""What the parts of the scheduler share: every instance, the books, the holds, and what one event brings about."""

from collections.abc import Mapping

from gpud.core import events
from gpud.core.books import Books
from gpud.core.errors import NoSuchModel
from gpud.core.facts import Limits, Model, State
from gpud.core.holds import Holds
from gpud.core.instance import Instance
from gpud.core.outbox import Outbox


class Table:
    """Everything that the scheduler knows. Only its parts write here, while they handle one event at ``now``.

    ``look``: somebody waits for memory, and the devices are to be looked at after this event. ``gpus_held``: drivers
    may be open since a look that was allowed to wake them.
    """

    def __init__(self, models: Mapping[str, Model], limits: Limits) -> None:
        self.instances = {name: Instance(model) for name, model in models.items()}
        self.limits = limits
        self.books = Books(limits)
        self.holds = Holds()
        self.out = Outbox()
        self.now = 0.0
        self.closing = False
        self.look = False
        self.gpus_held = False
        self.idle_override_s: float | None = None
        self.sample_pending = False
        self.sample_delayed = False
        self.sample_again = False
        self._sequence = 0

    def enqueue(self, instance: Instance) -> None:
        if not instance.waiting:
            self._sequence += 1
            instance.waiting_since = self._sequence
        if instance.state is State.BACKOFF and instance.retry_at_s is not None:
            instance.waits_for = f"backing off after {instance.attempts} failed attempts"
        elif instance.state in (State.DRAINING, State.STOPPING, State.KILLING):
            instance.waits_for = "waiting until it is unloaded"
        else:
            instance.waits_for = "waiting for a look at the devices"
        self.look = True

    def find(self, name: str) -> Instance:
        instance = self.instances.get(name)
        if instance is None:
            raise NoSuchModel(f'there is no model "{name}"', hint=_configured(self.instances))
        return instance

    def current(self, name: str, generation: int) -> Instance | None:
        """The instance that an answer is about, or None when it is about an engine of the past."""
        instance = self.instances.get(name)
        return instance if instance is not None and instance.generation == generation else None

    def with_engine(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if instance.state.has_engine()]

    def queue(self) -> list[Instance]:
        """Those that may be admitted as soon as there is memory: higher priority first, then first come, first
        served.
        """
        ready = [
            i
            for i in self.instances.values()
            if i.waiting
            and (
                i.state in (State.COLD, State.FAILED)
                or (i.state is State.BACKOFF and (i.retry_at_s or 0.0) <= self.now)
            )
        ]
        return sorted(ready, key=lambda i: (-i.model.priority, i.waiting_since))

    def sample(self, delay_s: float = 0.0) -> None:
        """Have the devices looked at. One look at a time; a delayed one does not keep an urgent one waiting."""
        if self.sample_pending and not (self.sample_delayed and delay_s == 0.0):
            self.sample_again = self.sample_again or delay_s == 0.0
            return
        self.sample_pending = True
        self.sample_delayed = delay_s > 0.0
        settling = frozenset(i.model.name for i in self.with_engine() if i.state is State.READY)
        check = tuple(instance.launchable() for instance in self.queue())
        wake = bool(check) or bool(self.with_engine())
        self.gpus_held = self.gpus_held or wake
        self.out.add(events.Sample(wake, delay_s, check, settling))

    def drop_if_removed(self, instance: Instance) -> None:
        if instance.removed and not instance.state.has_engine():
            self.instances.pop(instance.model.name, None)


def _configured(instances: Mapping[str, Instance]) -> str:
    names = list(instances)
    if not names:
        return "no model is configured"
    shown = ", ".join(names[:10])
    return f"configured are {shown}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
