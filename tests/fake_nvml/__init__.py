"""Builds the stand-in for NVIDIA's library and writes its configuration; ``nvml.c`` says what it can do.

A program sees it when it is started with :func:`environment`; this process never loads it. A test that wants a machine
with GPUs, and processes that hold their memory, takes :class:`fake_nvml.gpu.FakeGpus`, which stands on this.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared")


@dataclass(frozen=True)
class FakeProcess:
    """A process of somebody else: it need not exist. ``mib`` None: the driver does not say. ``kind`` "leaving": it ends
    between a call for memory and the list of processes."""

    pid: int
    mib: int | None
    kind: str = "compute"


@dataclass(frozen=True)
class FakeInstance:
    """A part of a divided GPU (MIG). Those with the same ``gpu_instance`` share their memory."""

    uuid: str = "MIG-33333333-2222-3333-4444-555555555555"
    name: str = "NVIDIA Fake H100 MIG 1g.10gb"
    total_mib: int = 9856
    used_mib: int = 0
    gpu_instance: int = 7
    processes: Sequence[FakeProcess] = ()
    errors: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        lines = ["[instance]", f"uuid = {self.uuid}", f"name = {self.name}", f"gpu_instance = {self.gpu_instance}"]
        lines += [f"total_mib = {self.total_mib}", f"used_mib = {self.used_mib}"]
        return lines + _process_lines(self.processes) + _error_lines(self.errors)


@dataclass(frozen=True)
class FakeRule:
    """Processes whose command line contains ``part`` hold memory while they live: ``first_bytes``, and once they are
    ``after_ms`` old ``held_bytes``; one figure for each GPU that they see."""

    part: str
    held_bytes: Sequence[int]
    first_bytes: Sequence[int] = (0,)
    after_ms: int = 0

    def line(self) -> str:
        held, first = (",".join(f"{size}B" for size in sizes) for sizes in (self.held_bytes, self.first_bytes))
        return f"rule = {held} {first} {self.after_ms} {self.part}"


@dataclass(frozen=True)
class FakeGpu:
    """One GPU. ``errors`` maps a function of NVML (empty: all of them) to the name of the error that it gives, or
    ``hang``. ``total_bytes``, where it is given, holds in place of ``total_mib``. ``xids`` are told once each, in this
    order; ``recovery`` is the driver's word for what the GPU needs (0: nothing; None: the driver is too old to say)."""

    uuid: str = "GPU-11111111-2222-3333-4444-555555555555"
    name: str = "NVIDIA Fake 4090"
    pci: str = "0000:01:00.0"
    total_mib: int = 24576
    total_bytes: int | None = None
    reserved_mib: int = 0
    used_mib: int = 0
    memory_unknown: bool = False
    temperature_c: int = 41
    power_mw: int = 23500
    utilization_percent: int = 3
    processes: Sequence[FakeProcess] = ()
    xids: Sequence[int] = ()
    recovery: int | None = 0
    mig: bool = False
    instances: Sequence[FakeInstance] = ()
    errors: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        numbers = ("reserved_mib", "used_mib", "temperature_c", "power_mw", "utilization_percent")
        lines = ["[gpu]", f"uuid = {self.uuid}", f"name = {self.name}", f"pci = {self.pci}"]
        lines.append(f"total_mib = {self.total_mib if self.total_bytes is None else f'{self.total_bytes}B'}")
        lines += [f"{name} = {getattr(self, name)}" for name in numbers]
        lines += _process_lines(self.processes)
        lines += [f"xid = {serial} {number}" for serial, number in enumerate(self.xids, start=1)]
        lines.append(f"recovery = {'-' if self.recovery is None else self.recovery}")
        if self.mig or self.instances:
            lines.append("mig = on")
        if self.memory_unknown:
            lines.append("memory = unknown")
        lines += _error_lines(self.errors)
        return lines + [line for instance in self.instances for line in instance.lines()]


def _process_lines(processes: Sequence[FakeProcess]) -> list[str]:
    return [f"process = {one.pid} {'-' if one.mib is None else one.mib} {one.kind}" for one in processes]


def _error_lines(errors: Mapping[str, str]) -> list[str]:
    return [f"error.{function} = {error}" if function else f"error = {error}" for function, error in errors.items()]


def build(directory: Path | None = None) -> Path:
    """The directory that holds the library, compiled unless this very source was compiled there before."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpud"
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = (directory or cache) / f"fake-nvml-{digest}"
    if not (target / LIBRARY).exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            made = Path(scratch) / LIBRARY
            subprocess.run([os.environ.get("CC", "cc"), *FLAGS, "-o", str(made), str(SOURCE)], check=True)
            made.replace(target / LIBRARY)
    return target


def environment(config_file: Path) -> dict[str, str]:
    """What a program's environment must say for it to find the stand-in in place of NVIDIA's library."""
    paths = [str(build()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": ":".join(paths), "GPUD_FAKE_NVML": str(config_file)}


def write_config(
    path: Path,
    gpus: Sequence[FakeGpu] = (FakeGpu(),),
    *,
    driver: str = "580.65.06",
    call_log: Path | None = None,
    claims: Path | None = None,
    linger_ms: int = 0,
    state: Path | None = None,
    device: Path | None = None,
    overflow: Path | None = None,
    rules: Sequence[FakeRule] = (),
    live: bool = True,
    errors: Mapping[str, str] | None = None,
) -> Path:
    """Replace the configuration in one step: a running program sees the old or the new one. Returns ``path``."""
    settings: dict[str, object] = {"driver": driver, "linger_ms": linger_ms}
    settings |= {"call_log": call_log, "claims": claims, "state": state, "device": device, "overflow": overflow}
    settings |= {} if live else {"live": "no"}
    lines = [f"{key} = {value}" for key, value in settings.items() if value is not None]
    lines += [rule.line() for rule in rules]
    lines += _error_lines(errors or {})
    for gpu in gpus:
        lines += gpu.lines()
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(path)
    return path


def claim(claims: Path, pid: int, *sizes: int | str) -> None:
    """Let a process hold so many MiB (or ``1024B`` bytes) of each GPU, in the order of the configuration, while it
    lives."""
    claims.mkdir(exist_ok=True)
    fresh = claims / f"new-{pid}"
    fresh.write_text(" ".join(map(str, sizes)))
    fresh.replace(claims / str(pid))


def calls(call_log: Path) -> list[str]:
    """The names of the functions that were called, oldest first."""
    return call_log.read_text().splitlines() if call_log.exists() else []
