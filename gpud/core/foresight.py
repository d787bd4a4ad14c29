"""Which model is likely to be wanted next, so that its file can be read ahead of that. Loads nothing."""

from gpud.core import events
from gpud.core.facts import State
from gpud.core.instance import Instance
from gpud.core.table import Table

HORIZON_S = 600.0
"""What is read ahead stays in memory for about so long on a machine that works."""

LEAST_CHANCE = 0.25
"""Below this a file is read in vain more often than it is worth the disk's time."""

AGAIN_S = 300.0
"""The same file is not read ahead again so soon: it is still there."""


class Foresight:
    """Asked when a load is over: the disk has nothing to do then, and what was evicted for it may be wanted back."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._read: dict[str, float] = {}

    def loaded(self) -> None:
        """Have the file of the likeliest model read, if one is likely enough and nobody waits for another."""
        now = self._table.now
        if self._table.waiting():
            return
        cold = [i for i in self._table.instances.values() if i.state is State.COLD and i.usage.last_s is not None]
        likely = max(cold, key=self._worth, default=None)
        if likely is None or likely.usage.chance(now, HORIZON_S) < LEAST_CHANCE:
            return
        name = likely.model.name
        if now - self._read.get(name, -AGAIN_S) < AGAIN_S:
            return
        self._read[name] = now
        self._table.out.add(events.Warm(likely.model))

    def _worth(self, instance: Instance) -> float:
        return instance.usage.chance(self._table.now, HORIZON_S) * (instance.reload_s or 1.0)
