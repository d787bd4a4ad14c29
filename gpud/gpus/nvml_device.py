"""One NVIDIA GPU, read call by call: who it is, its memory, its processes, and its parts where it is divided (MIG)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpud.core.facts import GpuProcess, GpuSample
from gpud.core.record import Record, replace
from gpud.core.vendors import NVIDIA
from gpud.gpus.host import machine_memory
from gpud.gpus.nvml_calls import Calls, Unwell, figure, known_bytes
from gpud.gpus.nvml_trouble import check_advice
from gpud.gpus.sysfs import process_name

SHARING = "shares the machine's memory"
MOST_READS = 3
"""What fills its memory is never found at rest: after so many tries the last one holds."""


class Known(Record):
    """What stays true of a GPU, or of a part of one, while it is left alone. ``index`` is how NVML counts its GPU.

    ``is_shared``: it has no memory of its own (GB10) and works in the machine's; its name says so. ``whole`` is the
    uuid of the GPU that this is a part of.
    """

    uuid: str
    name: str
    index: int
    address: str
    total_bytes: int | None = None
    is_shared: bool = False
    whole: str = ""

    def left_alone(self, *, asleep: bool = False, health: str = "") -> GpuSample:
        return GpuSample(
            uuid=self.uuid,
            name=f"{self.name} ({SHARING})" if self.is_shared else self.name,
            index=self.index,
            vendor=NVIDIA.name,
            total_bytes=self.total_bytes,
            asleep=asleep,
            health=health,
        )


Reading = tuple[Known, GpuSample]


class Device:
    """One GPU in one session, with what was learnt of the questions that it does not answer."""

    def __init__(self, calls: Calls, root: Path, known: Known) -> None:
        """Raises :class:`Unwell` where the GPU does not even say who it is."""
        self._calls = calls
        self._root = root
        self._is_divisible = True
        self._advises = True
        index = known.index
        self.handle = calls.get(index, "nvmlDeviceGetHandleByIndex", index)
        uuid = str(calls.get(index, "nvmlDeviceGetUUID", self.handle))
        name = str(calls.value(index, "nvmlDeviceGetName", self.handle) or known.name)
        place = calls.value(index, "nvmlDeviceGetPciInfo_v3", self.handle)
        # NVML writes 00000000:01:00.0 where sysfs has 0000:01:00.0.
        address = known.address if place is None else f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.0"
        self.known = Known(uuid, name, index, address)

    def measure(self) -> list[Reading]:
        """One reading, or one for each part that has memory of its own; raises :class:`Unwell`."""
        if self._advises:
            self._advises = check_advice(self._calls, self.known.index, self.handle)
        if self._is_divided():
            return self._measure_parts()
        return [self._measure_whole()]

    def _measure_whole(self) -> Reading:
        calls, index, handle = self._calls, self.known.index, self.handle
        self.known, sample = self._measure(self.known, handle)
        rates = calls.value(index, "nvmlDeviceGetUtilizationRates", handle)
        return self.known, replace(
            sample,
            temperature_c=self._temperature(),
            utilization_percent=figure(getattr(rates, "gpu", None)),
            power_mw=calls.number(index, "nvmlDeviceGetPowerUsage", handle),
        )

    def _measure(self, known: Known, handle: Any) -> Reading:
        """Memory and processes: of a whole GPU or of a part alike. NVML tells them one after the other, and who starts
        or ends in between is in one alone: both are of one moment when the memory is the same before and after."""
        total_bytes, free_bytes, is_shared = self._memory(handle)
        processes = self._processes(handle)
        for _ in range(0 if is_shared else MOST_READS):
            before_bytes, (total_bytes, free_bytes, _) = free_bytes, self._memory(handle)
            if free_bytes == before_bytes:
                break
            processes = self._processes(handle)
        used_bytes = None
        if total_bytes is not None and free_bytes is not None:
            free_bytes = min(free_bytes, total_bytes)
            # Not NVML's own "used": that leaves out what the driver keeps for itself, and would not add up.
            used_bytes = total_bytes - free_bytes
        known = replace(known, total_bytes=total_bytes, is_shared=is_shared)
        return known, replace(known.left_alone(), used_bytes=used_bytes, free_bytes=free_bytes, processes=processes)

    def _temperature(self) -> int | None:
        sensor = self._calls.nvml.NVML_TEMPERATURE_GPU
        return self._calls.number(self.known.index, "nvmlDeviceGetTemperature", self.handle, sensor)

    # Parts.

    def _is_divided(self) -> bool:
        """Asked at each look of a GPU that can be divided: parts come and go without the driver's being reloaded."""
        if self._is_divisible:
            mode = self._calls.value(self.known.index, "nvmlDeviceGetMigMode", self.handle)
            self._is_divisible = mode is not None
            return mode is not None and mode[0] == self._calls.nvml.NVML_DEVICE_MIG_ENABLE
        return False

    def _measure_parts(self) -> list[Reading]:
        """Each part in place of the whole, which no program can use any more. One that cannot be read hides none."""
        temperature_c = self._temperature()
        readings = []
        for number, part in enumerate(self._parts()):
            known = self._identify_part(number, part)
            try:
                known, sample = self._measure(known, part)
                sample = replace(sample, temperature_c=temperature_c)
            except Unwell as unwell:
                if unwell.is_lost:
                    raise
                sample = known.left_alone(health=str(unwell))
            readings.append((known, sample))
        return readings

    def _identify_part(self, number: int, part: Any) -> Known:
        whole = self.known
        uuid = self._calls.get(whole.index, "nvmlDeviceGetUUID", part)
        name = self._calls.value(whole.index, "nvmlDeviceGetName", part) or f"{whole.name} (part {number})"
        return replace(whole, uuid=str(uuid), name=str(name), whole=whole.uuid)

    def _parts(self) -> list[Any]:
        """The parts that have memory of their own: of several that share theirs, the first."""
        calls, nvml, index = self._calls, self._calls.nvml, self.known.index
        found, shares = [], set()
        for number in range(calls.get(index, "nvmlDeviceGetMaxMigDeviceCount", self.handle)):
            try:
                part = calls.ask("nvmlDeviceGetMigDeviceHandleByIndex", self.handle, number)
            except nvml.NVMLError as error:
                calls.check(index, "nvmlDeviceGetMigDeviceHandleByIndex", error)
                if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                    raise Unwell(
                        f"GPU {index} is divided (MIG), and gpud may not see its parts; "
                        "run gpud as root, or let its user read /dev/nvidia-caps"
                    ) from error
                continue  # Numbers need not be without gaps.
            share = calls.number(index, "nvmlDeviceGetGpuInstanceId", part)
            if share is None or share not in shares:
                shares.add(share)
                found.append(part)
        if not found:
            raise Unwell(
                f"GPU {index} is divided (MIG) and has no part; make one (nvidia-smi mig -i {index} -cgi PROFILE -C), "
                f"or use it whole (nvidia-smi -i {index} -mig 0)"
            )
        return found

    # Memory.

    def _memory(self, handle: Any) -> tuple[int | None, int | None, bool]:
        """Total, free, and whether both are the machine's."""
        calls, nvml = self._calls, self._calls.nvml
        name = "nvmlDeviceGetMemoryInfo"
        try:
            try:
                info = calls.ask(name, handle, nvml.nvmlMemory_v2)
            except nvml.NVMLError as error:
                if error.value not in (nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
                    raise
                info = calls.ask(name, handle)  # A driver from before version 2 of this call.
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
                raise calls.unwell(self.known.index, name, error) from error
            info = None
        if info is None or info.total == 0:
            memory = machine_memory(self._root)
            return memory.total_bytes, memory.free_bytes, True
        return known_bytes(info.total), known_bytes(info.free), False

    # Processes.

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...]:
        """Compute and graphics lists as one. A process in both says the same total in both; one that has several
        parts of a divided GPU is listed once for each of them."""
        held: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            listed: dict[int, int | None] = {}
            for process in self._process_list(kind, handle):
                _merge(listed, int(process.pid), known_bytes(process.usedGpuMemory), lambda one, two: one + two)
            for pid, size in listed.items():
                _merge(held, pid, size, max)
        return tuple(GpuProcess(pid, process_name(self._root, pid), held[pid]) for pid in sorted(held))

    def _process_list(self, kind: str, handle: Any) -> list[Any]:
        calls, nvml = self._calls, self._calls.nvml
        for version in ("_v3", "_v2"):
            name = f"nvmlDeviceGet{kind}RunningProcesses{version}"
            # The list may outgrow the room between the two calls that it takes: then it is asked for once more.
            for _ in range(2):
                try:
                    return list(calls.ask(name, handle))
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                        break
                    if error.value != nvml.NVML_ERROR_INSUFFICIENT_SIZE:
                        calls.check(self.known.index, name, error)
                        return []
        return []


def _merge(held: dict[int, int | None], pid: int, size: int | None, join: Callable[[int, int], int]) -> None:
    """A size that is not known takes nothing from one that is."""
    earlier = held.get(pid)
    held[pid] = size if earlier is None else earlier if size is None else join(earlier, size)
