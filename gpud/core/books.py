"""The account of every device: the last look, what is promised, what is on its way back. Decides nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence

from gpud.core import budget, eviction
from gpud.core.claims import Claim
from gpud.core.facts import HOST, BudgetLimits, GpuSample, GpuStatus, Limits, State
from gpud.core.instance import Instance
from gpud.core.record import replace
from gpud.core.returning import Expected, Returning
from gpud.core.verdict import Device

GOING = (State.DRAINING, State.STOPPING, State.KILLING)
NOBODY: frozenset[int] = frozenset()
AFTER_ENGINE = "their engine ended"

RELOAD_FIXED_S = 1.0
RELOAD_BYTES_PER_S = 2 << 30
"""What a load takes of which nothing was measured yet: an engine's start, and its weights from a disk."""


class Books:
    """Kept by the scheduler. ``override_bytes`` is a budget that was set at run time; 0 is none."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.override_bytes = 0
        self.samples: tuple[GpuSample, ...] = ()
        self._own: Mapping[str, frozenset[int]] = {}
        self._claimed: Mapping[int, frozenset[int]] = {}
        self._returning = Returning()
        self._noted: set[tuple[str, str]] = set()
        """Models and devices whose memory is expected back before anybody has said that their engine is gone."""

    # The last look

    def seen(
        self,
        samples: tuple[GpuSample, ...],
        own: Mapping[str, frozenset[int]],
        claimed: Mapping[int, frozenset[int]],
        now: float,
    ) -> Sequence[Expected]:
        """Take a look into the books. Returns what is late in coming back, once."""
        self._note_ends(samples, own, now)
        self.samples = samples
        self._own = own
        self._claimed = claimed
        return self._returning.seen({sample.uuid: self._free_and_ours(sample) for sample in samples}, now)

    def sample_of(self, uuid: str) -> GpuSample | None:
        return next((sample for sample in self.samples if sample.uuid == uuid), None)

    def device_name(self, uuid: str) -> str:
        sample = self.sample_of(uuid)
        return uuid if sample is None else sample.name

    def pids_of(self, model: str) -> frozenset[int]:
        """The model's processes as of the last look."""
        return self._own.get(model, NOBODY)

    def measured(self, instance: Instance) -> Mapping[str, int]:
        """What its engine holds on each of its devices by the last look, as far as they say."""
        found = {}
        for share in instance.shares:
            sample = self.sample_of(share.device)
            size = None if sample is None else budget.measured(sample, self.pids_of(instance.model.name))
            if size is not None:
                found[share.device] = size
        return found

    def used_by_all(self, instance: Instance) -> int | None:
        """What is in use of its devices by the last look, by whomever, or None where one of them does not say."""
        used = [sample.used_bytes for share in instance.main_shares if (sample := self.sample_of(share.device))]
        known = [size for size in used if size is not None]
        return sum(known) if len(known) == len(instance.main_shares) else None

    def is_listed(self, instance: Instance) -> bool:
        """Whether one of its devices knows one of its processes, with what it holds or without."""
        pids = self.pids_of(instance.model.name)
        samples = [self.sample_of(share.device) for share in instance.main_shares]
        return any(process.pid in pids for sample in samples if sample for process in sample.processes)

    def measured_claim(self, claim: Claim) -> int | None:
        """What its processes hold; nothing yet, while the device does not know them."""
        sample = self.sample_of(claim.device)
        if sample is None:
            return None
        pids = self._claimed.get(claim.id, NOBODY)
        known = {process.pid for process in sample.processes}
        return budget.measured(sample, pids) if pids & known else 0

    @property
    def own_pids(self) -> frozenset[int]:
        """The processes of every model and claim."""
        return NOBODY.union(*self._own.values(), *self._claimed.values())

    def foreign_bytes(self, sample: GpuSample) -> int | None:
        return budget.foreign(sample, self.own_pids)

    def others(self, sample: GpuSample) -> str:
        """Who else holds memory there, the largest first: ``blender (pid 4711) 3.1 GiB``."""
        own = self.own_pids
        others = [process for process in sample.processes if process.pid not in own and process.used_bytes]
        others.sort(key=lambda process: -(process.used_bytes or 0))
        return ", ".join(f"{p.name} (pid {p.pid}) {budget.describe(p.used_bytes)}" for p in others[:3])

    # What is on its way back

    def _note_ends(self, samples: tuple[GpuSample, ...], own: Mapping[str, frozenset[int]], now: float) -> None:
        """An engine that the last look saw and this one does not has ended before anybody said so: what it held is on
        its way back since then, or is back already."""
        known = self._own
        for before in self.samples:
            after = next((sample for sample in samples if sample.uuid == before.uuid), None)
            if before.uuid == HOST or after is None or after.free_bytes is None:
                continue
            there = {process.pid for process in after.processes}
            for name, pids in known.items():
                if there & (pids | own.get(name, NOBODY)):
                    self._noted.discard((name, before.uuid))
                elif held_bytes := budget.measured(before, pids):
                    self._leaves(before, pids)
                    self._own = {**self._own, name: NOBODY}
                    self._expect(before, held_bytes, AFTER_ENGINE, now)
                    self._noted.add((name, before.uuid))

    def expect_back(self, instance: Instance, now: float) -> None:
        """Its engine is gone. Host memory is back at once; a GPU's comes back when its driver has cleaned up."""
        name = instance.model.name
        loaded = instance.ready_since_s is not None
        pids = self.pids_of(name)
        self._own = {other: theirs for other, theirs in self._own.items() if other != name}
        for share in instance.shares:
            sample = self.sample_of(share.device)
            if (name, share.device) in self._noted:
                self._noted.discard((name, share.device))
            elif sample is not None:
                self._leaves(sample, pids)
                held = instance.bytes_on(share.device) if loaded else instance.used.get(share.device, 0)
                self._expect(sample, held, AFTER_ENGINE, now)

    def expect_claim_back(self, claim: Claim, now: float) -> None:
        """It is given back: what its processes were seen to hold is theirs no longer."""
        pids = self._claimed.get(claim.id, NOBODY)
        self._claimed = {number: theirs for number, theirs in self._claimed.items() if number != claim.id}
        sample = self.sample_of(claim.device)
        if sample is not None:
            self._leaves(sample, pids)
            self._expect(sample, claim.used_bytes or 0, "their claim was given back", now)

    def _leaves(self, sample: GpuSample, pids: frozenset[int]) -> None:
        """These processes' memory no longer counts as ours there."""
        self._returning.left(sample.uuid, budget.measured(sample, pids) or 0)

    def _expect(self, sample: GpuSample, size_bytes: int, after: str, now: float) -> None:
        """``sample`` is the look in which it was still held."""
        if sample.uuid != HOST:
            until_s = now + self.limits.memory_wait_s
            self._returning.expect(Expected(sample.uuid, size_bytes, after, self._free_and_ours(sample), until_s))

    def _free_and_ours(self, sample: GpuSample) -> int | None:
        """What is free together with what engines and claims hold."""
        if sample.free_bytes is None:
            return None
        return sample.free_bytes + (budget.measured(sample, self.own_pids) or 0)

    def anything_back(self) -> bool:
        return self._returning.pending()

    # Accounts

    def account(self, sample: GpuSample, instances: Collection[Instance], claims: Collection[Claim]) -> budget.Account:
        charges = [charge for instance in instances for charge in instance.charges()]
        charges += [claim.charge() for claim in claims]
        return budget.account(sample, self.limits_of(sample), charges, self._override_of(sample))

    def devices(
        self,
        instances: Collection[Instance],
        claims: Collection[Claim],
        may_go: Callable[[Instance], bool],
        occupied: Callable[[Instance], bool],
        *,
        asleep_is_empty: bool,
    ) -> Sequence[Device]:
        """Every device as admission wants to see it. ``instances`` are those with an engine; ``may_go`` says of one
        whether it may make room for others at all, ``occupied`` whether it has to answer somebody first. A device that
        sleeps has nothing of ours and tells nothing; ``asleep_is_empty``: for a question that shall not wake it, all of
        it is free.
        """
        devices = []
        for seen in self.samples:
            sample = seen
            if asleep_is_empty and seen.asleep and seen.total_bytes:
                sample = replace(seen, free_bytes=seen.total_bytes, used_bytes=0)
            here = [instance for instance in instances if any(s.device == sample.uuid for s in instance.shares)]
            coming = sum(i.bytes_on(sample.uuid) for i in here if i.state in GOING)
            ready = [
                self._candidate(i, sample.uuid, busy=occupied(i)) for i in here if i.state is State.READY and may_go(i)
            ]
            starting = [
                self._candidate(i, sample.uuid, busy=False) for i in here if i.state is State.LOADING and may_go(i)
            ]
            devices.append(
                Device(
                    sample,
                    self.account(sample, here, claims),
                    coming + self._returning.bytes(sample.uuid),
                    tuple(candidate for candidate in ready if not candidate.busy),
                    tuple(candidate for candidate in ready if candidate.busy),
                    tuple(starting),
                    sum(claim.charge().bytes for claim in claims if claim.device == sample.uuid),
                    self._taken_by(sample),
                )
            )
        return devices

    @staticmethod
    def _candidate(instance: Instance, device: str, *, busy: bool) -> eviction.Candidate:
        size_bytes = instance.bytes_on(device)
        reload_s = instance.reload_s
        if reload_s is None:
            reload_s = RELOAD_FIXED_S + size_bytes / RELOAD_BYTES_PER_S
        return eviction.Candidate(
            instance.model.name,
            instance.idle_since(),
            size_bytes,
            int(instance.model.priority),
            reload_s=reload_s,
            usage=instance.usage,
            busy=busy,
        )

    def _taken_by(self, sample: GpuSample) -> str:
        limit_bytes = self.limits.external_busy_bytes
        if limit_bytes is None or sample.is_host:
            return ""
        foreign_bytes = self.foreign_bytes(sample)
        if foreign_bytes is None or foreign_bytes < limit_bytes:
            return ""
        who = self.others(sample)
        return (
            f"{budget.describe(foreign_bytes)} of {sample.name} are held by other programs, the limit is "
            f"{budget.describe(limit_bytes)}" + (f" ({who})" if who else "")
        )

    def statuses(
        self, instances: Collection[Instance], claims: Collection[Claim], alerts: Collection[str]
    ) -> tuple[GpuStatus, ...]:
        statuses = []
        own = self.own_pids
        for sample in self.samples:
            account = self.account(sample, instances, claims)
            statuses.append(
                GpuStatus(
                    sample=sample,
                    budget_bytes=account.capacity_bytes,
                    committed_bytes=account.committed_bytes,
                    reserved_bytes=account.unseen_bytes,
                    available_bytes=account.available_bytes,
                    foreign_bytes=budget.foreign(sample, own),
                    reserve_bytes=self.limits_of(sample).reserve_bytes,
                    alert=sample.uuid in alerts,
                    own_pids=own & {process.pid for process in sample.processes},
                )
            )
        return tuple(statuses)

    def limits_of(self, sample: GpuSample) -> BudgetLimits:
        """The GPUs' budget is the host's where there is no GPU, unless the host has one of its own."""
        host, gpu = self.limits.host, self.limits.gpu
        if not sample.is_host:
            return gpu
        if not self.is_for_gpus(sample) or host.budget_bytes is not None or host.budget_percent is not None:
            return host
        return replace(host, budget_bytes=gpu.budget_bytes, budget_percent=gpu.budget_percent)

    def _override_of(self, sample: GpuSample) -> int:
        """A budget that was set at run time is for the GPUs, or for the host where there is none."""
        return self.override_bytes if self.is_for_gpus(sample) else 0

    def is_for_gpus(self, sample: GpuSample) -> bool:
        """Whether what is said of the GPUs holds for this device."""
        return not sample.is_host or all(other.is_host for other in self.samples)
