"""NVIDIA's GPUs, asked through nvidia-ml-py: never CUDA, never a GPU that sleeps, nothing held when not needed.

Any call to NVML, and even reading /proc/driver/nvidia/gpus, wakes a suspended GPU or puts off its sleep; only sysfs is
read before it is known that this is wanted.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpud.core.facts import GpuProcess, GpuSample
from gpud.gpus.host import machine_memory
from gpud.gpus.sysfs import PciDevice, display_devices, process_name, read_text

log = logging.getLogger(__name__)

VENDOR = "nvidia"
PCI_VENDOR = "0x10de"
LIBRARY = "libnvidia-ml.so.1"
UNKNOWN_BYTES = 2**64 - 1
"""What the driver says where it does not know: NVML_VALUE_NOT_AVAILABLE."""
UNKNOWN_NUMBER = 2**32 - 1
"""The same in its 32-bit figures."""

RELOAD_HINT = "reboot, or stop every program that uses the GPU and reload the driver (modprobe -r nvidia_uvm nvidia)"


def load_nvml() -> Any | None:
    """The module ``pynvml``, or None where NVIDIA's library is not installed. The import takes tens of milliseconds."""
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    import pynvml

    return pynvml


@dataclass(frozen=True, slots=True)
class Known:
    """What stays true of a GPU while it is left alone."""

    uuid: str
    name: str
    index: int
    address: str
    total_bytes: int | None = None

    def left_alone(self, *, asleep: bool = False, health: str = "") -> GpuSample:
        return GpuSample(
            uuid=self.uuid,
            name=self.name,
            index=self.index,
            vendor=VENDOR,
            total_bytes=self.total_bytes,
            asleep=asleep,
            health=health,
        )


class _Failed(Exception):
    """NVML cannot be used; the text says why and what to do. ``is_plain_absence``: quite usual without a GPU."""

    def __init__(self, message: str, *, is_plain_absence: bool = False) -> None:
        super().__init__(message)
        self.is_plain_absence = is_plain_absence


class _Unwell(Exception):
    """One GPU cannot be used; the text says why and what to do."""


class NvmlProbe:
    """All NVIDIA GPUs that the driver shows. ``calls`` counts what NVML was asked.

    NVML is initialised by the first look that may wake the GPUs. A look that may not leaves alone what sleeps, and
    everything while NVML is let go, because each question puts off the sleep of a GPU that could fall asleep. It asks
    and lets go again only where no GPU is ever suspended, and once where all are awake and nothing was learnt yet, so
    that a machine is known from the start.
    """

    source = "NVML"

    def __init__(self, root: Path = Path("/"), load: Callable[[], Any | None] = load_nvml) -> None:
        self.calls = 0
        self.problems: tuple[str, ...] = ()
        self._root = root
        self._load = load
        self._nvml: Any = None
        self._ready = False
        self._asked = False
        self._failure = ""
        self._is_plain_absence = False
        self._devices: tuple[PciDevice, ...] = ()
        self._known: tuple[Known, ...] = ()
        self._handles: dict[int, Any] = {}
        self._count = 0

    # What the facade calls: all in this probe's own thread, except recall.

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:  # noqa: ARG002 — the driver lists everybody
        self._devices = tuple(display_devices(self._root, PCI_VENDOR))
        sleeping = frozenset(device.address for device in self._devices if device.suspended)
        if not wake and not self._ready and (sleeping or (self._asked and not self._stay_awake())):
            return self._left_alone()
        for_once = not wake and not self._ready
        try:
            self._begin()
            return self._measure(frozenset() if wake else sleeping)
        except _Failed as failed:
            self._failure = str(failed)
            self._is_plain_absence = failed.is_plain_absence
            return self._failing()
        finally:
            if for_once:
                self.release()

    def _stay_awake(self) -> bool:
        """True where there are GPUs and no look can do harm to the sleep of any."""
        return bool(self._devices) and all(device.stays_awake for device in self._devices)

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        return tuple(known.left_alone(health=health) for known in self._known or self._provisional())

    def holding(self) -> bool:
        return self._ready

    def release(self) -> None:
        if not self._ready:
            return
        self._ready = False
        self._handles.clear()
        try:
            self._ask("nvmlShutdown")
        except self._nvml.NVMLError as error:
            log.debug("nvmlShutdown: %s", error)

    # Beginning.

    def _begin(self) -> None:
        self._asked = True
        self.problems = tuple(self._unusable())
        if self._ready:
            return
        if self._nvml is None:
            self._nvml = self._load()
        if self._nvml is None:
            raise _Failed(
                f"NVIDIA's library {LIBRARY} is not installed; install the one that belongs to the driver",
                is_plain_absence=True,
            )
        try:
            self._ask("nvmlInit")
            self._ready = True
            self._count = int(self._ask("nvmlDeviceGetCount"))
        except self._nvml.NVMLError as error:
            self.release()
            absent = error.value == self._nvml.NVML_ERROR_DRIVER_NOT_LOADED
            raise _Failed(self._explain_start(error), is_plain_absence=absent) from error
        self._failure = ""

    def _explain_start(self, error: Any) -> str:
        nvml = self._nvml
        if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            version = read_text(self._root / "sys/module/nvidia/version")
            loaded = f" ({version})" if version else ""
            return f"the NVIDIA driver in the kernel{loaded} and its library differ in version; {RELOAD_HINT}"
        if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the NVIDIA driver is not loaded; load it (modprobe nvidia) and look at: journalctl -k | grep NVRM"
        if error.value == nvml.NVML_ERROR_NO_PERMISSION:
            return "NVML may not be used by this user; gpud needs to read and write /dev/nvidiactl and /dev/nvidia0"
        return f"NVML does not start: {error} (error {error.value}); look at: journalctl -k | grep NVRM"

    def _unusable(self) -> list[str]:
        """GPUs that no driver of NVIDIA's serves. One that is given to a virtual machine is meant to be so."""
        return [
            f"GPU {device.address} is not used: its driver is {device.driver or 'missing'}; install NVIDIA's driver"
            for device in self._devices
            if device.driver != VENDOR and not device.driver.startswith("vfio")
        ]

    # Samples without NVML.

    def _provisional(self) -> tuple[Known, ...]:
        """GPUs that NVML was never asked about, as sysfs has them. NVML counts in the order of the addresses too."""
        served = (device.address for device in self._devices if device.driver == VENDOR)
        return tuple(Known(address, f"NVIDIA GPU {address}", i, address) for i, address in enumerate(served))

    def _left_alone(self) -> tuple[GpuSample, ...]:
        if self._failure:
            return self._failing()
        return tuple(known.left_alone(asleep=True) for known in self._known or self._provisional())

    def _failing(self) -> tuple[GpuSample, ...]:
        # Without the library no engine can use a GPU either: this is a machine without one, which says why.
        samples = self.recall(self._failure) if self._nvml is not None else ()
        if not samples and (self._provisional() or not self._is_plain_absence):
            self.problems = (*self._unusable(), self._failure)
        return samples

    # Samples with NVML.

    def _measure(self, sleeping: frozenset[str]) -> tuple[GpuSample, ...]:
        """A look at each GPU; no call at all is made for those that sleep."""
        before = {known.index: known for known in self._known or self._provisional()}
        samples, kept = [], []
        for index in range(self._count):
            known = before.get(index) or Known(f"nvidia-{index}", f"NVIDIA GPU {index}", index, "")
            if known.address in sleeping:
                sample = known.left_alone(asleep=True)
            else:
                try:
                    known, sample = self._measure_one(known)
                except _Unwell as unwell:
                    sample = known.left_alone(health=str(unwell))
            samples.append(sample)
            kept.append(known)
        self._known = tuple(kept)
        return tuple(samples)

    def _measure_one(self, known: Known) -> tuple[Known, GpuSample]:
        index = known.index
        if index not in self._handles:
            handle = self._get(index, "nvmlDeviceGetHandleByIndex", index)
            known = self._identify(known, handle)
            self._handles[index] = handle
        handle = self._handles[index]
        total_bytes, free_bytes = self._memory(index, handle)
        used_bytes = None
        if total_bytes is not None and free_bytes is not None:
            free_bytes = min(free_bytes, total_bytes)
            # Not NVML's own "used": that leaves out what the driver keeps for itself, and would not add up.
            used_bytes = total_bytes - free_bytes
        known = replace(known, total_bytes=total_bytes)
        sample = replace(
            known.left_alone(),
            used_bytes=used_bytes,
            free_bytes=free_bytes,
            temperature_c=self._number(index, "nvmlDeviceGetTemperature", handle, self._nvml.NVML_TEMPERATURE_GPU),
            utilization_percent=_figure(
                getattr(self._value(index, "nvmlDeviceGetUtilizationRates", handle), "gpu", None)
            ),
            power_mw=self._number(index, "nvmlDeviceGetPowerUsage", handle),
            processes=self._processes(index, handle),
        )
        return known, sample

    def _identify(self, known: Known, handle: Any) -> Known:
        index = known.index
        uuid = self._get(index, "nvmlDeviceGetUUID", handle)
        name = self._value(index, "nvmlDeviceGetName", handle) or known.name
        place = self._value(index, "nvmlDeviceGetPciInfo_v3", handle)
        # NVML writes 00000000:01:00.0 where sysfs has 0000:01:00.0.
        address = known.address if place is None else f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.0"
        return Known(str(uuid), str(name), index, address, known.total_bytes)

    def _memory(self, index: int, handle: Any) -> tuple[int | None, int | None]:
        nvml = self._nvml
        name = "nvmlDeviceGetMemoryInfo"
        try:
            try:
                info = self._ask(name, handle, nvml.nvmlMemory_v2)
            except nvml.NVMLError as error:
                if error.value not in (nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
                    raise
                info = self._ask(name, handle)  # A driver from before version 2 of this call.
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                # The GPU has no memory of its own (GB10): it allocates from the machine's.
                memory = machine_memory(self._root)
                return memory.total_bytes, memory.free_bytes
            raise self._unwell(index, name, error) from error
        return _known_bytes(info.total), _known_bytes(info.free)

    def _processes(self, index: int, handle: Any) -> tuple[GpuProcess, ...]:
        """Compute and graphics lists as one. A process in both says the same total in both; one that has several
        parts of a divided GPU (MIG) is listed once for each of them."""
        held: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            listed: dict[int, int | None] = {}
            for process in self._process_list(index, kind, handle):
                pid, size = int(process.pid), _known_bytes(process.usedGpuMemory)
                earlier = listed.get(pid)
                listed[pid] = size if earlier is None else earlier + (size or 0)
            for pid, size in listed.items():
                earlier = held.get(pid)
                held[pid] = size if earlier is None else max(earlier, size or 0)
        return tuple(GpuProcess(pid, process_name(self._root, pid), held[pid]) for pid in sorted(held))

    def _process_list(self, index: int, kind: str, handle: Any) -> list[Any]:
        nvml = self._nvml
        for version in ("_v3", "_v2"):
            name = f"nvmlDeviceGet{kind}RunningProcesses{version}"
            # The list may outgrow the room between the two calls that it takes: then it is asked for once more.
            for _ in range(2):
                try:
                    return list(self._ask(name, handle))
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                        break
                    if error.value != nvml.NVML_ERROR_INSUFFICIENT_SIZE:
                        self._check(index, name, error)
                        return []
        return []

    # One call.

    def _ask(self, name: str, *arguments: Any) -> Any:
        self.calls += 1
        return getattr(self._nvml, name)(*arguments)

    def _get(self, index: int, name: str, *arguments: Any) -> Any:
        """A value without which the GPU is of no use."""
        try:
            return self._ask(name, *arguments)
        except self._nvml.NVMLError as error:
            raise self._unwell(index, name, error) from error

    def _value(self, index: int, name: str, *arguments: Any) -> Any | None:
        """A value that this GPU may not have: then None."""
        try:
            return self._ask(name, *arguments)
        except self._nvml.NVMLError as error:
            self._check(index, name, error)
            return None

    def _number(self, index: int, name: str, *arguments: Any) -> int | None:
        return _figure(self._value(index, name, *arguments))

    def _check(self, index: int, name: str, error: Any) -> None:
        """Raise when the error concerns the whole GPU and not only this value."""
        nvml = self._nvml
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_UNINITIALIZED):
            raise self._unwell(index, name, error) from error
        log.debug("GPU %d: %s: %s", index, name, error)

    def _unwell(self, index: int, name: str, error: Any) -> _Unwell:
        nvml = self._nvml
        self._handles.pop(index, None)
        self._lose_hold(error)
        if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
            return _Unwell(
                f"GPU {index} has fallen off the bus or no longer answers the driver; reboot, "
                "and look for its Xid at: journalctl -k | grep Xid"
            )
        if error.value == nvml.NVML_ERROR_RESET_REQUIRED:
            return _Unwell(
                f"GPU {index} must be reset before it can be used again; stop what uses it and "
                f"run nvidia-smi --gpu-reset -i {index}, or reboot"
            )
        return _Unwell(
            f"NVML does not answer {name} for GPU {index}: {error} (error {error.value}); "
            "look at: journalctl -k | grep NVRM"
        )

    def _lose_hold(self, error: Any) -> None:
        """Somebody else in this process shut NVML down, or the driver was reloaded: the next look begins anew."""
        if error.value == self._nvml.NVML_ERROR_UNINITIALIZED:
            self._ready = False
            self._handles.clear()


def _known_bytes(value: Any) -> int | None:
    return None if value is None or value == UNKNOWN_BYTES else int(value)


def _figure(value: Any) -> int | None:
    return None if value is None or value == UNKNOWN_NUMBER else int(value)
