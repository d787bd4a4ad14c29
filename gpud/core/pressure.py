"""Others need the memory: idle models go when little is left, and everybody is told when a device is nearly full."""

from gpud.core import events, eviction
from gpud.core.budget import describe
from gpud.core.events import Kind, Level, Notice
from gpud.core.facts import GpuSample
from gpud.core.leaving import Leaving
from gpud.core.table import Table
from gpud.core.verdict import Device

ALERT_OVER_PERCENT = 5.0
"""An alert is over when a device is so much below the limit: it does not come and go with every request."""


class Pressure:
    """Looks at each sample for what gpud did not cause itself."""

    def __init__(self, table: Table, leaving: Leaving) -> None:
        self._table = table
        self._leaving = leaving
        self._books = table.books
        self._out = table.out

    def looked(self) -> None:
        for sample in self._books.samples:
            if sample.free_bytes is None or not sample.total_bytes:
                continue
            if self._books.is_for_gpus(sample):
                self._watch(sample)
            self._give_way(sample)

    # Alerts

    def _watch(self, sample: GpuSample) -> None:
        limit = self._table.limits.alert_percent
        if limit is None or sample.used_bytes is None or not sample.total_bytes:
            self._table.alerts.discard(sample.uuid)
            return
        percent = 100.0 * sample.used_bytes / sample.total_bytes
        if percent >= limit and sample.uuid not in self._table.alerts:
            self._table.alerts.add(sample.uuid)
            self._alert(sample, percent, limit, raised=True)
        elif percent < limit - ALERT_OVER_PERCENT and sample.uuid in self._table.alerts:
            self._table.alerts.discard(sample.uuid)
            self._alert(sample, percent, limit, raised=False)

    def _alert(self, sample: GpuSample, percent: float, limit: float, *, raised: bool) -> None:
        used_bytes, total_bytes = sample.used_bytes or 0, sample.total_bytes or 0
        what = "memory" if sample.is_host else "vram"
        sign = ">=" if raised else "<"
        bound = limit if raised else limit - ALERT_OVER_PERCENT
        text = (
            f"{what} usage {percent:.0f}% {sign} {bound:g}% on {sample.name}: {describe(used_bytes)} of "
            f"{describe(total_bytes)} are in use"
        )
        others = self._books.others(sample)
        if raised and others:
            text += f", by other programs: {others}"
        self._out.add(
            Notice(
                Kind.VRAM_HIGH if raised else Kind.VRAM_NORMAL,
                text,
                level=Level.WARNING if raised else Level.INFO,
                fields={
                    "device": sample.uuid,
                    "used_bytes": used_bytes,
                    "total_bytes": total_bytes,
                    "limit_percent": limit,
                },
            )
        )
        self._out.add(
            events.Alert(sample.uuid, sample.index, sample.name, raised, used_bytes, total_bytes, limit, text)
        )

    # Giving way

    def _give_way(self, sample: GpuSample) -> None:
        """
        1. Free memory is under the reserve: idle models go until it is not, those first by which the least is lost.
        2. Use is above the configured limit: the same, until it is below the lower one.
        """
        limits = self._books.limits_of(sample)
        free_bytes, total_bytes = sample.free_bytes or 0, sample.total_bytes or 0
        missing = limits.reserve_bytes - free_bytes
        why = f"{describe(free_bytes)} are free on {sample.name}, {describe(limits.reserve_bytes)} are to stay free"
        rules = self._table.limits.eviction
        if missing <= 0 and rules.above_percent is not None:
            used = total_bytes - free_bytes
            if used > total_bytes * rules.above_percent / 100:
                missing = used - int(total_bytes * rules.below_percent / 100)
                percent = 100 * used / total_bytes
                why = f"{percent:.0f}% of {sample.name} are in use, the limit is {rules.above_percent:g}%"
        if missing <= 0:
            self._table.giving_way.discard(sample.uuid)
            return
        device = next((d for d in self._table.devices() if d.uuid == sample.uuid), None)
        if device is None:
            return
        missing -= device.coming_bytes
        others = self._books.others(sample)
        if others:
            why += f"; other programs: {others}"
        policy, now = self._table.limits.eviction.policy, self._table.now
        victims = eviction.choose(device.movable, missing, policy=policy, now=now)
        for candidate in device.movable if victims is None else victims:
            self._go(candidate, why)
        if victims is None and sample.uuid not in self._table.giving_way:
            self._tell_short(device, missing, why)

    def _tell_short(self, device: Device, missing: int, why: str) -> None:
        """Idle models are not enough, and no running answer is cut: that is told once, with those who are at work."""
        working = ", ".join(f'"{candidate.model}"' for candidate in (*device.occupied, *device.starting))
        if working:
            self._table.giving_way.add(device.uuid)
            self._out.add(
                Notice(
                    Kind.GAVE_WAY,
                    f"{why}; idle models are not enough, and {working} will not be interrupted",
                    level=Level.WARNING,
                    fields={"device": device.uuid, "missing_bytes": missing},
                )
            )

    def _go(self, candidate: eviction.Candidate, why: str) -> None:
        victim = self._table.instances[candidate.model]
        idle_s = self._table.now - victim.idle_since()
        self._out.tell(
            Kind.GAVE_WAY,
            f'"{candidate.model}", idle for {idle_s:.0f} s and holding {describe(candidate.bytes)}, gives way: {why}',
            victim,
            freed_bytes=candidate.bytes,
            device=victim.device,
        )
        self._leaving.drain(victim, "give-way", victim.model.stop.drain_s)
