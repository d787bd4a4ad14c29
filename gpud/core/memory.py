"""What a look at the devices brings: engines and claims are measured, late memory is told, and the rest is asked."""

from collections.abc import Sequence

from gpud.core import events
from gpud.core.admitting import Admitting
from gpud.core.budget import MIB, describe
from gpud.core.engines import Family, family
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import HOST, GpuSample, State
from gpud.core.instance import Instance
from gpud.core.loading import Loading
from gpud.core.pressure import Pressure
from gpud.core.quote import Share
from gpud.core.record import replace
from gpud.core.returning import Expected
from gpud.core.table import Table

# How soon to look again for memory that an ended engine gives back while somebody waits for it.
MEMORY_LOOK_S = 0.02
# The same when nobody waits: it is only for the books.
MEMORY_LOOK_IDLE_S = 0.25
# An engine that loads on a GPU is looked at so often: it fills some hundred MiB meanwhile.
LOADING_LOOK_S = 0.1
# What a driver rounds up to is not more than was promised.
TOLERANCE_BYTES = 64 * MIB

READ_BY_LAYERS = (Family.LLAMA_CPP, Family.OLLAMA)
"""Engines that put on the GPU what they can, and are silent about the rest."""
NEXT_TO_NOTHING_BYTES = 100 * MIB
"""What less of it holds on a GPU is no model: a context alone takes as much."""
LEAST_TELLING_BYTES = 256 * MIB
"""Of what less was promised, the whole device does not tell whether it is there: other programs come and go."""


class Memory:
    """Takes each look into the books, then has the pressure and the queue looked after."""

    def __init__(self, table: Table, loading: Loading, pressure: Pressure, admitting: Admitting) -> None:
        self._table = table
        self._loading = loading
        self._pressure = pressure
        self._admitting = admitting
        self._books = table.books
        self._out = table.out

    def sampled(self, event: events.Sampled) -> None:
        self._table.looks.came()
        self._table.looked_s = self._table.now
        self.report_health(event.gpus)
        granted = {claim.id for claim in self._table.claims.granted()}
        claimed = {claim: pids for claim, pids in event.claimed.items() if claim in granted}
        # Who has ended since the look began is in it, and holds nothing for us any more.
        engines = {instance.model.name for instance in self._table.with_engine()}
        own = {name: pids for name, pids in event.own.items() if name in engines}
        for late in self._books.seen(event.gpus, own, claimed, self._table.now):
            self.tell_late(late)
        self.measure(event.settling)
        for claim in self._table.claims.granted():
            claim.used_bytes = self._books.measured_claim(claim)
        self._out.touch()
        self._pressure.looked()
        self._admitting.serve(event)
        self._look_again()

    def _look_again(self) -> None:
        """Soon, while memory is on its way back, or while an engine that loads may take more than it was promised."""
        if self._table.looks.take_again():
            self._table.sample()
        elif self._books.anything_back():
            self._table.sample(MEMORY_LOOK_S if self._table.waiting() else MEMORY_LOOK_IDLE_S)
        elif any(i.state is State.LOADING and not i.on_host for i in self._table.with_engine()):
            self._table.sample(LOADING_LOOK_S)

    def tell_late(self, late: Expected) -> None:
        name = self._books.device_name(late.device)
        self._out.add(
            Notice(
                Kind.MEMORY_LATE,
                f"{describe(late.bytes)} on {name} have not come back within {self._table.limits.memory_wait_s:g} s "
                f"after {late.after}; they do not count as free",
                level=Level.WARNING,
                fields={"device": late.device, "late_bytes": late.bytes},
                detail=(f"What to do: see in gpudctl status or nvidia-smi which process holds the memory of {name}",),
            )
        )

    def measure(self, settling: frozenset[str]) -> None:
        """Set what each engine is measured to hold; the first time after it became ready, the load has settled."""
        for instance in self._table.with_engine():
            if instance.state is State.LOADING:
                self._watch_load(instance)
            elif instance.state in (State.READY, State.DRAINING):
                if self._books.sample_of(instance.device) is None:
                    continue
                # What a device does not tell any more stays as it was told last.
                instance.used = {**instance.used, **self._books.measured(instance)}
                if not instance.settled and instance.model.name in settling:
                    self._settle(instance)

    def _watch_load(self, instance: Instance) -> None:
        """An engine that takes more than it was promised is ended before others lose what they were promised."""
        used = self._books.measured(instance)
        instance.used = used
        promised = {share.device: share.bytes for share in instance.shares}
        if all(device == HOST or size <= promised[device] + TOLERANCE_BYTES for device, size in used.items()):
            return
        shares = tuple(Share(s.device, max(s.bytes, used.get(s.device, 0))) for s in instance.shares)
        if not self._loading.promise(instance, shares):
            self._loading.outgrown(instance, shares, "it holds")

    def _settle(self, instance: Instance) -> None:
        """The load is over, and what it took can be seen."""
        instance.settled = True
        name, used_bytes = instance.model.name, instance.used_bytes
        held_bytes = self._if_on_processor(instance)
        if held_bytes is not None:
            # What it holds elsewhere says nothing about what it would hold on the GPU.
            self._tell_on_processor(instance, held_bytes)
            return
        if used_bytes is None:
            return
        instance.growth = 1.0
        # Of one that ran already nothing was reserved.
        reserved = instance.offer is None or not instance.offer.resident
        # It may have been promised more since, as it was seen to take more.
        first_bytes = instance.first_need_bytes
        if reserved and used_bytes > first_bytes:
            self._out.tell(
                Kind.OVER_ESTIMATE,
                f'"{name}" holds {describe(used_bytes)}, more than the {describe(first_bytes)} reserved '
                "for it; the next load reserves what was measured",
                instance,
                level=Level.WARNING,
                used_bytes=used_bytes,
                need_bytes=first_bytes,
            )
        if not instance.on_host or used_bytes > first_bytes:
            shares = tuple(Share(share.device, instance.used.get(share.device, 0)) for share in instance.main_shares)
            self._out.add(events.Learn(name, shares, instance.load_seconds or 0.0))

    def _if_on_processor(self, instance: Instance) -> int | None:
        """What it holds of its GPUs, if that is next to nothing although layers of it were to be there; else None.

        A device that lists none of its processes may not know them (as from another container): there it counts by how
        much more is in use than before it was started.
        """
        promised_bytes = instance.need_bytes
        if instance.on_host or family(instance.launchable().engine) not in READ_BY_LAYERS:
            return None
        if self._books.is_listed(instance):
            held_bytes = instance.used_bytes
        else:
            now_bytes, before_bytes = self._books.used_by_all(instance), instance.before_bytes
            if now_bytes is None or before_bytes is None or promised_bytes < LEAST_TELLING_BYTES:
                return None
            held_bytes = max(0, now_bytes - before_bytes)
        if held_bytes is None or held_bytes >= NEXT_TO_NOTHING_BYTES or held_bytes * 10 >= promised_bytes:
            return None
        return held_bytes

    def _tell_on_processor(self, instance: Instance, held_bytes: int) -> None:
        names = " and ".join(self._books.device_name(share.device) for share in instance.main_shares)
        text = f"{describe(held_bytes)} of the {describe(instance.need_bytes)} that it was to have on {names}"
        if instance.offer is not None:
            instance.offer = replace(instance.offer, reduced=f"the processor: it holds {text}")
        self._out.tell(
            Kind.ON_PROCESSOR,
            f'"{instance.model.name}" runs on the processor: it holds {text}; it answers slowly',
            instance,
            level=Level.WARNING,
            hint=(
                "give it an engine that was built for this GPU (gpudctl doctor says which devices a llama-server has), "
                "or have it without the GPU on purpose: layers 0"
            ),
            used_bytes=held_bytes,
            need_bytes=instance.need_bytes,
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
