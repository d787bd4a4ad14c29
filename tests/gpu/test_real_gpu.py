"""On a real NVIDIA GPU: gpud's figures are nvidia-smi's, a model that is loaded holds its memory, and gives it back.

``GPUD_CUDA_LLAMA_SERVER`` names a llama-server that was built with CUDA; without it only the figures are compared.
"""

import csv
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from daemon.harness import Place

from gpud import gpus

pytestmark = pytest.mark.gpu

MIB = 1 << 20
NEAR_BYTES = 64 * MIB
"""The desktop and the driver change a little between two looks."""

MEDIAN_LOOK_S = 0.02
"""While memory is waited for, a look is made every 20 ms."""


def nvidia_smi(what: str, *fields: str) -> list[dict[str, str]]:
    """One of nvidia-smi's tables."""
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [dict(zip(fields, (cell.strip() for cell in row), strict=True)) for row in csv.reader(lines)]


def test_the_figures_are_those_of_nvidia_smi(run: Callable[..., Any]) -> None:
    """Identity and memory of every GPU."""

    async def work() -> None:
        found = gpus.build()
        try:
            samples = {sample.uuid: sample for sample in await found.sample(frozenset(), wake=True)}
        finally:
            await found.release()
        rows = nvidia_smi("gpu", "uuid", "name", "memory.total", "memory.free", "driver_version")
        assert rows
        for row in rows:
            sample = samples[row["uuid"]]
            assert sample.name == row["name"]
            assert sample.health == ""
            assert sample.driver == row["driver_version"]
            assert sample.total_bytes is not None
            assert sample.free_bytes is not None
            assert abs(sample.total_bytes - int(row["memory.total"]) * MIB) <= NEAR_BYTES
            assert abs(sample.free_bytes - int(row["memory.free"]) * MIB) <= NEAR_BYTES

    run(work())


def test_a_look_is_short_and_nothing_is_held_after_it(run: Callable[..., Any]) -> None:
    """The driver answers in milliseconds while it is kept open; once it is let go, no device is open any more."""

    async def work() -> None:
        found = gpus.build()
        try:
            await found.sample(frozenset(), wake=True)
            took_s = []
            for _ in range(20):
                began = time.monotonic()
                await found.sample(frozenset(), wake=True)
                took_s.append(time.monotonic() - began)
            assert devices()
        finally:
            await found.release()
        assert sorted(took_s)[10] < MEDIAN_LOOK_S, took_s
        assert not devices()

    run(work())


def devices() -> list[str]:
    """NVIDIA's devices that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # The listing's own.
    return [link for link in found if link.startswith("/dev/nvidia")]


def test_a_loaded_model_holds_gpu_memory_and_gives_it_back(place: Place, tmp_path: Path) -> None:
    """VramBytes is what nvidia-smi says of the engine's process; after the unload the process is gone from its list."""
    server = os.environ.get("GPUD_CUDA_LLAMA_SERVER")
    if not server:
        pytest.skip("no GPU here that a llama-server can use: set GPUD_CUDA_LLAMA_SERVER to one built with CUDA")
    model = tmp_path / "tiny.gguf"
    tiny_model.write(model)
    place.configure(
        {"tiny": {"engine": "llama_server", "file": str(model), "layers": "all"}},
        engines={"llama_server": {"binary": server}},
    )
    daemon = place.start()
    assert daemon.load("tiny").result == "done", daemon.log()
    daemon.status()
    record = daemon.model("tiny")
    assert record["Device"].startswith("GPU-")
    held = {int(row["pid"]): int(row["used_memory"]) for row in nvidia_smi("compute-apps", "pid", "used_memory")}
    assert record["Pid"] in held
    assert abs(record["VramBytes"] - held[record["Pid"]] * MIB) <= NEAR_BYTES

    assert daemon.unload("tiny").result == "done"
    left = {int(row["pid"]) for row in nvidia_smi("compute-apps", "pid")}
    assert record["Pid"] not in left
    assert daemon.stop() == 0
