"""All devices of the machine behind :class:`gpud.core.ports.Gpus`: one probe a vendor, the host's memory last.

A vendor is one file with a :class:`Probe` and one line in :data:`PROBES`. A probe's failure is a sentence on its own
samples, or in ``problems`` where it has none; it never hides the others. Nothing here uses CUDA or opens a GPU by
itself.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from gpud.core.facts import GpuSample
from gpud.core.record import replace
from gpud.gpus.amdgpu import AmdGpuProbe
from gpud.gpus.host import HostProbe
from gpud.gpus.nvml import NvmlProbe
from gpud.gpus.worker import Unanswered, Worker

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long a driver may take for one look. Waking a GPU takes up to 3 s; while a driver hangs, every load waits for
this, and nothing else does."""


class Probe(Protocol):
    """One vendor. ``look`` and ``release`` may block: they run one at a time in a thread that the facade owns."""

    source: str
    """What is asked, as it is named in a sentence: ``NVML has not answered for 5 s``."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last look found that belongs to no sample."""

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]: ...

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        """The devices as last known, without figures. Never blocks, and may be called while ``look`` does."""

    def holding(self) -> bool:
        """True while the driver is kept open: the probe's thread stays for as long."""

    def release(self) -> None: ...


PROBES: tuple[Callable[[Path], Probe], ...] = (
    NvmlProbe,
    AmdGpuProbe,
)


class _Lane:
    """A probe with its thread: whatever the driver does, an answer comes in time."""

    def __init__(self, probe: Probe, answer_s: float) -> None:
        self.probe = probe
        self.problems: tuple[str, ...] = ()
        self._worker = Worker(f"gpud-{probe.source.split()[-1]}", probe.holding)
        self._answer_s = answer_s
        self._told = ""

    async def sample(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:
        try:
            samples = await self._worker.call(partial(self.probe.look, own, wake), self._answer_s)
        except Unanswered:
            # The same words for as long as it lasts: a changing sentence would be news each time.
            return self._unwell(
                f"{self.probe.source} has not answered for {self._answer_s:g} s; look at the kernel's log "
                "(journalctl -k), and reboot if it does not recover"
            )
        except Exception as error:
            if repr(error) != self._told:
                self._told = repr(error)
                log.exception("cannot look at the devices of %s", self.probe.source)
            return self._unwell(
                f"{self.probe.source} cannot be read: {error!r}; please report this with gpud's journal"
            )
        self.problems = self.probe.problems
        return samples

    async def release(self) -> None:
        if not self._worker.active:
            return
        try:
            await self._worker.call(self.probe.release, self._answer_s)
        except Unanswered as late:
            log.warning(
                "cannot let go of %s: it has not answered for %.0f s; it will be let go when it does",
                self.probe.source,
                late.since_s,
            )
            self._worker.afterwards(self.probe.release)

    def _unwell(self, health: str) -> tuple[GpuSample, ...]:
        samples = self.probe.recall(health)
        self.problems = () if samples else (health,)
        return samples


class _Wish:
    """A look that nobody has begun yet. Whoever asks before it begins shares it."""

    def __init__(self) -> None:
        self.own: frozenset[int] = frozenset()
        self.wake = False
        self.samples: tuple[GpuSample, ...] | None = None


class AllGpus:
    """Fulfils :class:`gpud.core.ports.Gpus` with the probes it is given; belongs to one event loop.

    One look is under way at a time, and answers come in the order of the looks: however slow a look is and however many
    ask, no more than one waits for its turn, and nobody is told of a moment before the one that was told last.
    """

    def __init__(self, probes: Sequence[Probe], host: Probe, *, answer_s: float = ANSWER_S) -> None:
        self._lanes = [_Lane(probe, answer_s) for probe in (*probes, host)]
        self._one_at_a_time = asyncio.Lock()
        self._wish = _Wish()

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last sample found that belongs to no device of it, one sentence each."""
        return tuple(problem for lane in self._lanes for problem in lane.problems)

    async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        """A look that begins after this call, at all vendors at once; takes at most ``answer_s``, and at most as long
        again where another one is under way.

        ``asleep`` is said of a device that was left alone: it is suspended, or its driver has been let go and ``wake``
        is False. Devices are numbered through all vendors, NVIDIA's as the driver numbers them, the host last.
        """
        wish = self._wish
        wish.own |= own
        wish.wake |= wake
        async with self._one_at_a_time:
            if self._wish is wish:
                self._wish = _Wish()
            if wish.samples is None:
                wish.samples = await self._look(wish.own, wake=wish.wake)
        return wish.samples

    async def _look(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        looks = await asyncio.gather(*(lane.sample(own, wake) for lane in self._lanes))
        samples = (sample for look in looks for sample in look)
        return tuple(replace(sample, index=index) for index, sample in enumerate(samples))

    async def release(self) -> None:
        """Close the drivers and end the threads; the next sample that may wake begins anew."""
        await asyncio.gather(*(lane.release() for lane in self._lanes))


def build(*, root: Path = Path("/"), answer_s: float = ANSWER_S) -> AllGpus:
    """The devices of this machine. ``root`` is where /sys and /proc are looked for."""
    return AllGpus([probe(root) for probe in PROBES], HostProbe(root), answer_s=answer_s)
