"""NVIDIA's GPUs, asked through nvidia-ml-py: never CUDA, never a GPU that sleeps, nothing held when not needed.

Any call to NVML, and even reading /proc/driver/nvidia/gpus, wakes a suspended GPU or puts off its sleep; only sysfs is
read before it is known that this is wanted.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpud.core.facts import GpuSample
from gpud.core.record import replace
from gpud.core.vendors import NVIDIA
from gpud.gpus.nvml_calls import LIBRARY, Calls, Unwell, load_nvml
from gpud.gpus.nvml_device import Device, Known
from gpud.gpus.nvml_trouble import XidWatch
from gpud.gpus.sysfs import PciDevice, display_devices, read_text

log = logging.getLogger(__name__)

RELOAD_HINT = "reboot, or stop every program that uses the GPU and reload the driver (modprobe -r nvidia_uvm nvidia)"


class _Failed(Exception):
    """NVML cannot be used; the text says why and what to do. ``is_plain_absence``: quite usual without a GPU."""

    def __init__(self, message: str, *, is_plain_absence: bool = False) -> None:
        super().__init__(message)
        self.is_plain_absence = is_plain_absence


class NvmlProbe:
    """All NVIDIA GPUs that the driver shows. ``calls`` counts what NVML was asked.

    NVML is initialised by the first look that may wake the GPUs, and kept until :meth:`release`. A look that may not
    leaves alone what sleeps, and everything while NVML is let go, because each question puts off the sleep of a GPU
    that could fall asleep. It asks and lets go again only where no GPU is ever suspended, and once where all are awake
    and nothing was learnt yet, so that a machine is known from the start.

    While a GPU is lost, each look begins NVML anew and lets it go at its end: a reset is refused as long as we have the
    GPU open, and only a new beginning sees what came of it.
    """

    source = "NVML"

    def __init__(self, root: Path = Path("/"), load: Callable[[], Any | None] = load_nvml) -> None:
        self.problems: tuple[str, ...] = ()
        self._root = root
        self._load = load
        self._calls: Calls | None = None
        self._xids: XidWatch | None = None
        self._devices: dict[int, Device] = {}
        self._count = 0
        self._watches = False
        self._is_open = False
        self._is_held = False
        self._has_lost = False
        self._asked = False
        self._failure = ""
        self._is_plain_absence = False
        self._driver = ""
        self._told: dict[int, str] = {}
        self._cards: tuple[PciDevice, ...] = ()
        self._known: tuple[Known, ...] = ()

    @property
    def calls(self) -> int:
        return self._calls.count if self._calls is not None else 0

    # What the facade calls: all in this probe's own thread, except recall.

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:  # noqa: ARG002 — the driver lists everybody
        self._cards = tuple(display_devices(self._root, NVIDIA.pci))
        self._driver = self._driver or read_text(self._root / "sys/module/nvidia/version") or ""
        sleeping = frozenset(card.address for card in self._cards if card.suspended)
        if not wake and not self._is_held and (sleeping or (self._asked and not self._stay_awake())):
            return self._with_driver(self._left_alone())
        try:
            self._begin(watch=wake or self._is_held)
            self._is_held = self._is_held or wake
            samples = self._measure(frozenset() if wake else sleeping)
            if self._calls is not None and self._calls.is_void:
                self._begin(watch=self._is_held)
                samples = self._measure(frozenset() if wake else sleeping)
        except _Failed as failed:
            self._failure = str(failed)
            self._is_plain_absence = failed.is_plain_absence
            samples = self._failing()
        finally:
            if not self._is_held or self._has_lost:
                self._close()
        return self._with_driver(samples)

    def _stay_awake(self) -> bool:
        """True where there are GPUs and no look can do harm to the sleep of any."""
        return bool(self._cards) and all(card.stays_awake for card in self._cards)

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        return self._with_driver(known.left_alone(health=health) for known in self._known or self._provisional())

    def holding(self) -> bool:
        return self._is_held

    def release(self) -> None:
        self._is_held = self._has_lost = False
        self._close()

    def _close(self) -> None:
        self._devices.clear()
        if not self._is_open or self._calls is None or self._xids is None:
            return
        self._xids.close()
        self._is_open = False
        if self._calls.is_void:
            return
        try:
            self._calls.ask("nvmlShutdown")
        except self._calls.nvml.NVMLError as error:
            log.debug("nvmlShutdown: %s", error)

    def _with_driver(self, samples: Iterable[GpuSample]) -> tuple[GpuSample, ...]:
        return tuple(replace(sample, driver=self._driver) for sample in samples)

    # Beginning.

    def _begin(self, *, watch: bool) -> None:
        self._asked = True
        self.problems = tuple(self._unusable())
        if self._is_open and self._calls is not None and self._calls.is_void:
            self._close()
        if self._is_open:
            return
        if self._calls is None:
            nvml = self._load()
            if nvml is None:
                raise _Failed(
                    f"NVIDIA's library {LIBRARY} is not installed; install the one that belongs to the driver",
                    is_plain_absence=True,
                )
            self._calls = Calls(nvml)
            self._xids = XidWatch(self._calls)
        calls, nvml = self._calls, self._calls.nvml
        calls.is_void = False
        try:
            calls.ask("nvmlInit")
            self._is_open = True
            self._count = int(calls.ask("nvmlDeviceGetCount"))
        except nvml.NVMLError as error:
            self._close()
            absent = error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED
            raise _Failed(self._explain_start(nvml, error), is_plain_absence=absent) from error
        try:
            self._driver = str(calls.ask("nvmlSystemGetDriverVersion"))
        except nvml.NVMLError as error:
            log.debug("nvmlSystemGetDriverVersion: %s", error)  # What sysfs says of it holds.
        self._watches = watch
        self._failure = ""

    def _explain_start(self, nvml: Any, error: Any) -> str:
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
            for device in self._cards
            if device.driver != NVIDIA.driver and not device.driver.startswith("vfio")
        ]

    # Samples without NVML.

    def _provisional(self) -> tuple[Known, ...]:
        """GPUs that NVML was never asked about, as sysfs has them. NVML counts in the order of the addresses too."""
        served = (device.address for device in self._cards if device.driver == NVIDIA.driver)
        return tuple(Known(address, f"NVIDIA GPU {address}", i, address) for i, address in enumerate(served))

    def _left_alone(self) -> tuple[GpuSample, ...]:
        if self._failure:
            return self._failing()
        return tuple(known.left_alone(asleep=True) for known in self._known or self._provisional())

    def _failing(self) -> tuple[GpuSample, ...]:
        # Without the library no engine can use a GPU either: this is a machine without one, which says why.
        samples = self.recall(self._failure) if self._calls is not None else ()
        if not samples and (self._provisional() or not self._is_plain_absence):
            self.problems = (*self._unusable(), self._failure)
        return samples

    # Samples with NVML.

    def _measure(self, sleeping: frozenset[str]) -> tuple[GpuSample, ...]:
        """A look at each GPU; no call at all is made for those that sleep."""
        before: dict[int, list[Known]] = {}
        for known in self._known or self._provisional():
            before.setdefault(known.index, []).append(known)
        if self._xids is not None and not all(known.address in sleeping for known in self._known):
            self._xids.read()
        had_lost, self._has_lost = self._has_lost, False
        readings: list[tuple[Known, GpuSample]] = []
        for index in range(self._count):
            earlier = before.get(index) or [Known(f"nvidia-{index}", f"NVIDIA GPU {index}", index, "")]
            if earlier[0].address in sleeping:
                readings += [(known, known.left_alone(asleep=True)) for known in earlier]
            else:
                readings += self._measure_one(index, earlier)
        readings += self._missing(readings) if had_lost else []
        self._known = tuple(known for known, _ in readings)
        return tuple(sample for _, sample in readings)

    def _measure_one(self, index: int, earlier: list[Known]) -> list[tuple[Known, GpuSample]]:
        """Whatever happens to one GPU stays with it: it is told of the GPU, or of each part that was known of it."""
        assert self._calls is not None and self._xids is not None
        try:
            if index not in self._devices:
                device = Device(self._calls, self._root, earlier[0])
                if self._watches:
                    self._xids.watch(index, device.known.address, device.handle)
                self._devices[index] = device
            readings = self._devices[index].measure()
            self._xids.is_well(self._devices[index].known.address)
            return readings
        except Unwell as unwell:
            self._has_lost = self._has_lost or unwell.is_lost
            health = f"{unwell}{self._xids.last(earlier[0].address)}"
        except Exception as error:  # Bindings that lack something, or a driver that says what is no text.
            health = f"GPU {index} cannot be read: {error!r}; please report this with gpud's journal"
            if self._told.get(index) != health:
                self._told[index] = health
                log.exception("cannot read GPU %d", index)
        if index in self._devices:
            whole = self._devices.pop(index).known
            earlier = [known for known in earlier if whole.uuid in (known.uuid, known.whole)] or [whole]
        return [(known, known.left_alone(health=health)) for known in earlier]

    def _missing(self, readings: list[tuple[Known, GpuSample]]) -> list[tuple[Known, GpuSample]]:
        """GPUs that were lost and that a new beginning does not show: they are named until NVML is let go."""
        assert self._xids is not None
        shown = {known.address for known, _ in readings}
        missing = [known for known in self._known if known.address and known.address not in shown]
        self._has_lost = self._has_lost or bool(missing)
        return [
            (
                known,
                known.left_alone(
                    health=f"the GPU at {known.address} is no longer shown by its driver; reboot, or plug it in again, "
                    "and look for its Xid at: journalctl -k | grep Xid"
                    f"{self._xids.last(known.address)}"
                ),
            )
            for known in missing
        ]
