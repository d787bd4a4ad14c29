"""What a look at the devices brings: engines are measured, those who wait are admitted, or others go for them."""

from collections.abc import Sequence

from gpud.core import admission, events
from gpud.core.budget import describe
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import (
    GpuSample,
    State,
)
from gpud.core.instance import Instance
from gpud.core.leaving import Leaving
from gpud.core.loading import Loading
from gpud.core.table import Table

# How soon to look again for memory that an ended engine gives back while somebody waits for it.
MEMORY_LOOK_S = 0.02
# The same when nobody waits: it is only for the books.
MEMORY_LOOK_IDLE_S = 0.25


class Memory:
    """Grants the queue in order, against a look that was begun after the wish."""

    def __init__(self, table: Table, loading: Loading, leaving: Leaving) -> None:
        self._table = table
        self._loading = loading
        self._leaving = leaving
        self._books = table.books
        self._holds = table.holds
        self._out = table.out

    def sampled(self, event: events.Sampled) -> None:
        self._table.sample_pending = False
        self.report_health(event.gpus)
        for device, late_bytes in self._books.seen(event.gpus, event.own, self._table.now):
            self.tell_late(device, late_bytes)
        self.measure(event.settling)
        self._out.touch()
        self.admit(event)
        if self._table.sample_again:
            self._table.sample_again = False
            self._table.sample()
        elif self._books.anything_back():
            someone = any(instance.waiting for instance in self._table.instances.values())
            self._table.sample(MEMORY_LOOK_S if someone else MEMORY_LOOK_IDLE_S)

    def tell_late(self, device: str, late_bytes: int) -> None:
        name = self._books.device_name(device)
        self._out.add(
            Notice(
                Kind.MEMORY_LATE,
                f"{describe(late_bytes)} on {name} have not come back within {self._table.limits.memory_wait_s:g} s "
                "after their engine ended; they do not count as free",
                level=Level.WARNING,
                fields={"device": device, "late_bytes": late_bytes},
                detail=(f"What to do: see in gpudctl status or nvidia-smi which process holds the memory of {name}",),
            )
        )

    def measure(self, settling: frozenset[str]) -> None:
        """Set what each engine is measured to hold; the first time after it became ready, the load has settled."""
        for instance in self._table.instances.values():
            if instance.state not in (State.READY, State.DRAINING):
                continue
            sample = self._books.sample_of(instance.device)
            name = instance.model.name
            if sample is None or not (instance.settled or name in settling):
                continue
            used_bytes = self._books.measured(instance)
            if used_bytes is not None:
                instance.used_bytes = used_bytes
            if instance.settled:
                continue
            instance.settled = True
            if used_bytes is None:
                continue
            if used_bytes > instance.need_bytes:
                self._out.tell(
                    Kind.OVER_ESTIMATE,
                    f'"{name}" holds {describe(used_bytes)}, more than the {describe(instance.need_bytes)} reserved '
                    "for it; the next load reserves what was measured",
                    instance,
                    level=Level.WARNING,
                    used_bytes=used_bytes,
                    need_bytes=instance.need_bytes,
                )
            if not sample.is_host or used_bytes > instance.need_bytes:
                self._out.add(events.Learn(name, used_bytes))

    def admit(self, event: events.Sampled) -> None:
        """Grant the queue in order; whoever waits for memory on a device keeps those behind off that device."""
        blocked: set[str] = set()
        contexts = {model.name: model.settings.context for model in event.checked}
        for instance in self._table.queue():
            name = instance.model.name
            if name in event.unfit:
                self._loading.refuse_unfit(instance, event.unfit[name])
                continue
            model = instance.launchable()
            if name not in event.sizes or contexts.get(name) != model.settings.context:
                # It came, or another context was wished for, after the look had begun.
                self._table.look = True
                continue
            need_bytes = event.sizes[name]
            may_evict = instance.wanted or any(job.evict for job in instance.load_jobs)
            verdict = admission.decide(
                model,
                need_bytes,
                self._books.devices(self._table.with_engine(), self.movable),
                may_evict=may_evict,
                taken=blocked,
            )
            if isinstance(verdict, admission.Granted):
                self._loading.launch(instance, verdict, need_bytes)
            elif isinstance(verdict, admission.Waits):
                instance.waits_for = verdict.text
                blocked.add(verdict.device)
            elif isinstance(verdict, admission.Evicts):
                instance.waits_for = f"waiting until {_names(verdict.victims)} is unloaded: {verdict.text}"
                blocked.add(verdict.device)
                for victim in verdict.victims:
                    self.evict(self._table.instances[victim], instance, verdict.text)
            else:
                self._loading.refuse(instance, verdict.error)

    def evict(self, victim: Instance, wanting: Instance, text: str) -> None:
        idle_s = self._table.now - victim.idle_since()
        self._out.tell(
            Kind.EVICTED,
            f'"{victim.model.name}", idle for {idle_s:.0f} s and holding {describe(victim.charge().bytes)}, makes room '
            f'for "{wanting.model.name}" ({text})',
            victim,
            for_model=wanting.model.name,
            freed_bytes=victim.charge().bytes,
        )
        self._leaving.drain(victim, "evict", victim.model.stop.drain_s)

    def movable(self, instance: Instance) -> bool:
        return (
            not instance.in_flight
            and not instance.model.pinned
            and not self._holds.held(instance.model.name, "evict")
            and instance.busy_until_s <= self._table.now
        )

    def report_health(self, samples: Sequence[GpuSample]) -> None:
        before = {sample.uuid: sample.health for sample in self._books.samples}
        for sample in samples:
            if sample.health and sample.health != before.get(sample.uuid):
                self._out.add(
                    Notice(
                        Kind.GPU_PROBLEM,
                        f"{sample.name}: {sample.health}",
                        level=Level.ERROR,
                        fields={"device": sample.uuid},
                    )
                )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
