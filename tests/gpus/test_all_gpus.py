"""The facade: all vendors at once, each in its thread, none able to hide or hold up another."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_trees import lay_out

from gpud.core.facts import GpuSample
from gpud.core.ports import Gpus
from gpud.core.record import replace
from gpud.gpus import PROBES, AllGpus, build
from gpud.gpus.host import HostProbe

NOBODY: frozenset[int] = frozenset()
Run = Callable[..., Any]


class Vendor:
    """A probe whose every look does what the test says."""

    def __init__(self, *uuids: str, act: Callable[[], object] = lambda: None, hold: bool = False) -> None:
        self.source = f"driver-of-{'-'.join(uuids) or 'nothing'}"
        self.problems: tuple[str, ...] = ()
        self.looks: list[tuple[frozenset[int], bool]] = []
        self.threads: set[int] = set()
        self.released = 0
        self._samples = tuple(GpuSample(uuid, uuid, 0, "test", free_bytes=1) for uuid in uuids)
        self._act = act
        self._hold = hold

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:
        self.looks.append((own, wake))
        self.threads.add(threading.get_ident())
        self._act()
        return self._samples

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        return tuple(GpuSample(sample.uuid, sample.name, 0, "test", health=health) for sample in self._samples)

    def holding(self) -> bool:
        return self._hold

    def release(self) -> None:
        self._hold = False
        self.released += 1


class Counted(Vendor):
    """As many bytes are free as there were looks."""

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:
        (sample,) = super().look(own, wake)
        return (replace(sample, free_bytes=len(self.looks)),)


@pytest.fixture
def host(tmp_path: Path) -> HostProbe:
    return HostProbe(lay_out("proc/meminfo: MemTotal: 1024 kB\\nMemAvailable: 512 kB", tmp_path))


def fail() -> None:
    raise OSError("no such driver")


def test_devices_are_numbered_through_with_the_host_last(run: Run, host: HostProbe) -> None:
    """A number names one device of the machine, whoever made it."""
    gpus = AllGpus([Vendor("a", "b"), Vendor(), Vendor("c")], host)
    samples = run(gpus.sample(NOBODY, wake=True))
    assert [(sample.uuid, sample.index) for sample in samples] == [("a", 0), ("b", 1), ("c", 2), ("host", 3)]


def test_a_probe_that_raises_hides_nothing(run: Run, host: HostProbe, caplog: pytest.LogCaptureFixture) -> None:
    """Its devices are unwell, the others are measured; the journal has the trace, once."""

    async def twice() -> tuple[GpuSample, ...]:
        await gpus.sample(NOBODY, wake=True)
        return await gpus.sample(NOBODY, wake=True)

    gpus = AllGpus([Vendor("a", act=fail), Vendor("b")], host)
    broken, well, last = run(twice())
    assert "no such driver" in broken.health
    assert (well.uuid, well.health, last.uuid) == ("b", "", "host")
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_failure_without_a_device_is_a_problem(run: Run, host: HostProbe) -> None:
    """And only for as long as it lasts."""
    acts = [fail, lambda: None]
    gpus = AllGpus([Vendor(act=lambda: acts.pop(0)())], host)

    async def look_twice() -> None:
        (last,) = await gpus.sample(NOBODY, wake=True)
        assert last.is_host
        assert "no such driver" in gpus.problems[0]
        await gpus.sample(NOBODY, wake=True)
        assert gpus.problems == ()

    run(look_twice())


def test_a_driver_that_hangs_delays_no_other_beyond_the_bound(run: Run, host: HostProbe) -> None:
    """One vendor hangs: it is unwell, the other is measured, and the loop keeps turning meanwhile."""
    lifted = threading.Event()
    gpus = AllGpus([Vendor("a", act=lambda: lifted.wait(30)), Vendor("b")], host, answer_s=2.0)

    async def look() -> None:
        turns = 0
        pending = asyncio.ensure_future(gpus.sample(NOBODY, wake=True))
        while not pending.done():
            await asyncio.sleep(0.01)
            turns += 1
        hanging, well, _ = await pending
        assert "driver-of-a has not answered for 2 s" in hanging.health
        assert well.health == ""
        assert turns > 5
        began = time.monotonic()
        for _ in range(100):
            await gpus.sample(NOBODY, wake=True)
        assert time.monotonic() - began < 100 * 2.0  # It is known to hang: nobody waits for it once more.
        lifted.set()
        while (await gpus.sample(NOBODY, wake=True))[0].health:
            await asyncio.sleep(0)

    run(look())


def test_a_look_begins_after_it_was_asked_for_and_one_at_a_time(run: Run, host: HostProbe) -> None:
    """A look under way is never handed out as fresh: it may have read the memory before it was freed."""
    under_way, release = threading.Event(), threading.Event()
    running = []

    def act() -> None:
        running.append(1)
        assert len(running) == 1
        under_way.set()
        assert release.wait(10)
        running.pop()

    vendor = Vendor("a", act=act)
    gpus = AllGpus([vendor], host)

    async def look() -> None:
        first = asyncio.ensure_future(gpus.sample(frozenset({1}), wake=False))
        await asyncio.to_thread(under_way.wait, 10)
        second = asyncio.ensure_future(gpus.sample(frozenset({2}), wake=True))
        await asyncio.sleep(0)
        release.set()
        assert all(sample.health == "" for sample in await first + await second)

    run(look())
    assert vendor.looks == [(frozenset({1}), False), (frozenset({2}), True)]


def test_all_who_ask_while_a_look_is_slow_share_the_next(run: Run, host: HostProbe) -> None:
    """However many there are: the driver is asked once more, for all their processes, and for the one who may wake."""
    under_way, release = threading.Event(), threading.Event()

    def act() -> None:
        under_way.set()
        assert release.wait(60)

    vendor = Vendor("a", act=act)
    gpus = AllGpus([vendor], host)

    async def look() -> None:
        first = asyncio.ensure_future(gpus.sample(frozenset({1}), wake=False))
        await asyncio.to_thread(under_way.wait, 60)
        others = [asyncio.ensure_future(gpus.sample(frozenset({pid}), wake=pid == 5)) for pid in range(2, 100)]
        await asyncio.sleep(0)
        release.set()
        answers = await asyncio.gather(first, *others)
        assert len({id(answer) for answer in answers[1:]}) == 1

    run(look())
    assert vendor.looks == [(frozenset({1}), False), (frozenset(range(2, 100)), True)]


def test_no_answer_is_of_a_moment_before_the_last_one(run: Run, host: HostProbe) -> None:
    """A vendor that is slow holds up what the quick one of the same look has read: a later look is not told before."""
    lifted = threading.Event()
    counted = Counted("quick")
    gpus = AllGpus([counted, Vendor("slow", act=lambda: lifted.wait(60))], host, answer_s=0.2)
    told: list[int] = []

    async def ask() -> None:
        free_bytes = (await gpus.sample(NOBODY, wake=True))[0].free_bytes
        if free_bytes is not None:  # Where the machine is so busy that the quick one is slow, too, it tells nothing.
            told.append(free_bytes)

    async def look() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(ask())
                if number % 5 == 0:
                    await asyncio.sleep(0.002)
        lifted.set()

    run(look())
    assert told == sorted(told)


def test_a_caller_that_gives_up_disturbs_nobody(run: Run, host: HostProbe) -> None:
    """Its look runs on in the thread; the next caller gets one of its own."""
    under_way, release = threading.Event(), threading.Event()

    def act() -> None:
        under_way.set()
        assert release.wait(10)

    vendor = Vendor("a", act=act)
    gpus = AllGpus([vendor], host)

    async def look() -> None:
        first = asyncio.ensure_future(gpus.sample(NOBODY, wake=True))
        await asyncio.to_thread(under_way.wait, 10)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        release.set()
        assert (await gpus.sample(NOBODY, wake=True))[0].health == ""

    run(look())
    assert len(vendor.looks) == 2


def test_a_thread_stays_only_while_its_driver_is_held(run: Run, host: HostProbe) -> None:
    """A probe that holds nothing leaves no thread; one that does keeps its one thread until it is let go."""
    free, holding = Vendor("a"), Vendor("b", hold=True)
    gpus = AllGpus([free, holding], host)
    before = threading.active_count()

    async def look() -> None:
        for _ in range(3):
            await gpus.sample(NOBODY, wake=True)
            assert threading.active_count() == before + 1
        await gpus.release()
        assert threading.active_count() == before
        await gpus.release()

    run(look())
    assert len(holding.threads) == 1
    assert (holding.released, free.released) == (1, 0)


def test_the_real_machine_fulfils_the_port(run: Run) -> None:
    """Whatever GPUs this machine has, the host is last, and nothing is left when the devices are let go."""

    async def look() -> tuple[GpuSample, ...]:
        gpus: Gpus = build()
        try:
            return await gpus.sample(NOBODY, wake=False)
        finally:
            await gpus.release()

    samples = run(look())
    assert samples[-1].is_host
    assert samples[-1].total_bytes
    assert len(PROBES) >= 2
