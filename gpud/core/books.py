"""The account of every device: the last look, what is promised, what is on its way back. Decides nothing."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gpud.core import admission, budget, eviction
from gpud.core.facts import HOST, BudgetLimits, GpuSample, GpuStatus, Limits, State
from gpud.core.instance import Instance
from gpud.core.returning import Returning

GOING = (State.DRAINING, State.STOPPING, State.KILLING)
NOBODY: frozenset[int] = frozenset()


class Books:
    """Kept by the scheduler. ``override_bytes`` is a budget that was set at run time; 0 is none."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.override_bytes = 0
        self.samples: tuple[GpuSample, ...] = ()
        self._own: Mapping[str, frozenset[int]] = {}
        self._returning = Returning()

    # The last look

    def seen(
        self, samples: tuple[GpuSample, ...], own: Mapping[str, frozenset[int]], now: float
    ) -> tuple[tuple[str, int], ...]:
        """Take a look into the books. Returns device and bytes of memory that is late, once."""
        self.samples = samples
        self._own = own
        return self._returning.seen(samples, now)

    def sample_of(self, uuid: str) -> GpuSample | None:
        return next((sample for sample in self.samples if sample.uuid == uuid), None)

    def device_name(self, uuid: str) -> str:
        sample = self.sample_of(uuid)
        return uuid if sample is None else sample.name

    def pids_of(self, model: str) -> frozenset[int]:
        """The model's processes as of the last look."""
        return self._own.get(model, NOBODY)

    def measured(self, instance: Instance) -> int | None:
        """What its engine holds on its device by the last look."""
        sample = self.sample_of(instance.device)
        return None if sample is None else budget.measured(sample, self.pids_of(instance.model.name))

    # What is on its way back

    def expect_back(self, instance: Instance, now: float) -> None:
        """Its engine is gone. Host memory is back at once; a GPU's comes back when its driver has cleaned up."""
        if not instance.device or instance.device == HOST or instance.ready_since_s is None:
            return
        sample = self.sample_of(instance.device)
        self._returning.expect(
            instance.device,
            instance.charge().bytes,
            None if sample is None else sample.free_bytes,
            now + self.limits.memory_wait_s,
        )

    def anything_back(self) -> bool:
        return self._returning.pending()

    # Accounts

    def account(self, sample: GpuSample, instances: Iterable[Instance]) -> budget.Account:
        charges = [instance.charge() for instance in instances]
        return budget.account(sample, self._limits_of(sample), charges, self._override_of(sample))

    def devices(
        self, instances: Collection[Instance], movable: Callable[[Instance], bool]
    ) -> Sequence[admission.Device]:
        """Every device as admission wants to see it. ``instances`` are those with an engine; ``movable`` says of one
        that is ready whether it may go now, of one that is loading whether it may once it is ready.
        """
        devices = []
        for sample in self.samples:
            here = [instance for instance in instances if instance.device == sample.uuid]
            coming = sum(instance.charge().bytes for instance in here if instance.state in GOING)
            candidates = tuple(
                eviction.Candidate(i.model.name, i.idle_since(), i.charge().bytes, int(i.model.priority))
                for i in here
                if i.state is State.READY and movable(i)
            )
            starting = sum(i.charge().bytes for i in here if i.state is State.LOADING and movable(i))
            account = self.account(sample, here)
            devices.append(
                admission.Device(sample, account, coming + self._returning.bytes(sample.uuid), starting, candidates)
            )
        return devices

    def statuses(self, instances: Collection[Instance]) -> tuple[GpuStatus, ...]:
        own = NOBODY.union(*self._own.values())
        statuses = []
        for sample in self.samples:
            account = self.account(sample, instances)
            statuses.append(
                GpuStatus(
                    sample=sample,
                    budget_bytes=account.capacity_bytes,
                    committed_bytes=account.committed_bytes,
                    reserved_bytes=account.unseen_bytes,
                    available_bytes=account.available_bytes,
                    foreign_bytes=budget.foreign(sample, own),
                )
            )
        return tuple(statuses)

    def _limits_of(self, sample: GpuSample) -> BudgetLimits:
        """The GPUs' budget is the host's where there is no GPU, unless the host has one of its own."""
        host, gpu = self.limits.host, self.limits.gpu
        if not sample.is_host:
            return gpu
        if not self._is_for(sample) or host.budget_bytes is not None or host.budget_percent is not None:
            return host
        return replace(host, budget_bytes=gpu.budget_bytes, budget_percent=gpu.budget_percent)

    def _override_of(self, sample: GpuSample) -> int:
        """A budget that was set at run time is for the GPUs, or for the host where there is none."""
        return self.override_bytes if self._is_for(sample) else 0

    def _is_for(self, sample: GpuSample) -> bool:
        """Whether what is said of the GPUs holds for this device."""
        return not sample.is_host or all(other.is_host for other in self.samples)
