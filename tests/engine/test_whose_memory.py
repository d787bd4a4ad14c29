"""Whose memory a look at the devices shows: engines start and end while it is under way."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from gpud.core.facts import Caller, GpuProcess, GpuSample, JobResult, Model

from .parts import GIB, Bench, FakeBackend, OneGpu

Run = Callable[..., Any]
ALICE = Caller("alice", 1000, label="alice")
A = Model("a", "fake")
STARTED_PID = 101
ADMISSION = 2
"""The first look is for the model's check, this one lets it be loaded, the next one is under way while it starts."""


class Started(OneGpu):
    """The look after the admission waits until an engine has been started, and sees what that holds."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = threading.Event()
        self.started = asyncio.Event()
        self.told: list[int | None] = []
        self.bench: Bench

    async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        gpu, host = await super().sample(own, wake=wake)
        if self.looks <= ADMISSION:
            return gpu, host
        if self.looks == ADMISSION + 1:
            self.under_way.set()
            await self.started.wait()
        else:
            self.told += [
                status.foreign_bytes for status in self.bench.engine.snapshot().gpus if status.sample == self.seen
            ]
        process = GpuProcess(STARTED_PID, "engine", GIB)
        self.seen = GpuSample(gpu.uuid, gpu.name, 0, gpu.vendor, 8 * GIB, GIB, 7 * GIB, processes=(process,))
        return self.seen, host


class StartsLater(FakeBackend):
    """Its engine is started once a look is under way."""

    gpu: Started

    def fingerprint(self, model: Model) -> str:
        assert self.gpu.looks < ADMISSION or self.gpu.under_way.wait(10)
        return super().fingerprint(model)


def test_what_is_started_during_a_look_is_no_stranger_in_it(run: Run) -> None:
    """Its memory is ours from the first look on that shows it: nobody gives way to it, nobody is told of it."""

    async def work() -> None:
        gpu, backend = Started(), StartsLater()
        backend.gpu, backend.gate, gpu.started = gpu, asyncio.Event(), backend.entered
        async with Bench(A, gpus=gpu, backend=backend) as bench:
            gpu.bench = bench
            job = bench.engine.load("a", ALICE)
            while not gpu.told:
                await asyncio.sleep(0.01)
            backend.gate.set()
            assert (await bench.engine.wait(job)).result is JobResult.DONE
            assert gpu.told[0] == 0

    run(work())
