"""Other settings, other models, other power: what becomes of what is loaded then. Reads no configuration."""

from collections.abc import Collection, Mapping

from gpud.core import events
from gpud.core.facts import JobResult, Model, State
from gpud.core.instance import Instance
from gpud.core.leaving import Leaving
from gpud.core.stock import Stock
from gpud.core.table import Table


class Reconfiguring:
    """Brings the table to what is configured and there now."""

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving
        self._on_battery = False

    def reconfigured(self, event: events.Reconfigured) -> None:
        """Unchanged models are not touched; what is changed or gone is unloaded as soon as it is not busy."""
        self._table.limits = self._table.books.limits = event.limits
        self._table.books.override_bytes = 0
        self._table.idle_override_s = None
        for instance in self._table.instances.values():
            instance.idle_timeout_s = None
            if not event.limits.sessions.unload_on_exit:
                instance.leave_at_s = None
        self.catalogue_taken(event.models, event.changed, forgive=True)

    def catalogue_taken(self, models: Mapping[str, Model], others: Collection[str], *, forgive: bool) -> None:
        """``others`` have engines that no longer match. What failed is forgiven where its settings are others, too."""
        self._table.stock = Stock.of(models)
        self._table.forget_untouched()
        for name, instance in list(self._table.instances.items()):
            model = self._table.stock.get(name)
            if model is None:
                self._remove(instance)
                continue
            changed = name in others or model.engine != instance.model.engine
            forgiven = forgive or changed or model != instance.model
            instance.model = model
            instance.removed = False
            if (instance.state is State.FAILED and forgiven) or (instance.state is State.BACKOFF and changed):
                instance.leave_queue()
                self._leaving.forgive(instance, "config")
                self._table.out.end_load_jobs(instance, JobResult.CANCELED, "the configuration has changed")
            elif changed and instance.state is State.LOADING:
                # Those who wait for it get it as it is configured now.
                self._leaving.cancel_launch(instance, "config", "its file or its configuration has changed")
                if instance.load_jobs or instance.wanted:
                    self._table.enqueue(instance)
            elif changed and instance.state in (State.READY, State.DRAINING):
                instance.stale = True
                if instance.state is State.READY and not instance.in_flight:
                    self._leaving.drain(instance, "config", model.stop.drain_s)
        self._apply_power()
        self._table.look = True
        self._table.out.touch()

    def _remove(self, instance: Instance) -> None:
        instance.removed = True
        instance.stale = True
        instance.wanted = False
        instance.leave_queue()
        self._table.out.end_load_jobs(instance, JobResult.CANCELED, f'"{instance.model.name}" is no longer there')
        if instance.state is State.LOADING:
            self._leaving.cancel_launch(instance, "config", "it is no longer there")
        elif instance.state is State.READY and not instance.in_flight:
            self._leaving.drain(instance, "config", instance.model.stop.drain_s)
        self._table.drop_if_removed(instance)

    def power_seen(self, *, on_battery: bool) -> None:
        self._on_battery = on_battery
        self._apply_power()
        self._table.out.touch()

    def _apply_power(self) -> None:
        """On battery nobody is idle for longer than is configured for that."""
        idle_s = self._table.battery_idle_s = self._table.limits.battery_idle_s if self._on_battery else None
        for instance in self._table.instances.values():
            instance.battery_idle_s = idle_s
