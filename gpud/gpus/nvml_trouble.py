"""What the driver tells of a GPU's trouble, asked when a look is made anyway: no thread waits for it.

The driver's advice (reset, reboot) is a state and decides whether a GPU is well. An Xid is an event: it is told once in
the journal and named in the sentence about a GPU that is not well; most are the fault of the program that ran.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from gpud.gpus.nvml_calls import Calls, Unwell, reset_hint

log = logging.getLogger(__name__)

MOST_EVENTS = 64
"""Read in one look: a GPU in real trouble says the same thing over and over."""

EXPLAINS_S = 60.0
"""How long after an Xid a GPU's trouble is put down to it: the driver tells of the Xid first, and gives up on the GPU a
little later."""


def check_advice(calls: Calls, index: int, handle: Any) -> bool:
    """Raise :class:`Unwell` when the driver says that the GPU must be recovered; False where it never says."""
    nvml = calls.nvml
    try:
        (answer,) = calls.ask("nvmlDeviceGetFieldValues", handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    except nvml.NVMLError as error:
        calls.check(index, "nvmlDeviceGetFieldValues", error)
        return False
    if answer.nvmlReturn != nvml.NVML_SUCCESS:
        return False
    advice = {
        nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: f"must be reset; {reset_hint(index)}",
        nvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "needs a reboot of this machine",
        nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "waits for all traffic between GPUs to end; stop what uses them",
        nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: (
            f"must be reset once no program moves data between GPUs; {reset_hint(index)}"
        ),
        nvml.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: "waits for its IMEX domain; look at: nvidia-imex-ctl -N",
        nvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: "needs a reset of its PCIe bus; reboot if you cannot give it one",
        nvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "needs a reboot of the whole system",
    }
    action = int(answer.value.uiVal)
    if action != nvml.NVML_GPU_RECOVERY_ACTION_NONE:
        asked = advice.get(action, f"needs to be recovered (its driver says: action {action}); reboot")
        raise Unwell(f"after an error GPU {index} {asked}", is_lost=True)
    return True


class XidWatch:
    """The Xids of the GPUs that are watched. What happened before is told by nobody but the kernel's log."""

    def __init__(self, calls: Calls, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls = calls
        self._clock = clock
        self._events: Any = None
        self._is_blind = False
        self._watched: dict[int, tuple[int, str]] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._named: set[str] = set()

    def watch(self, index: int, address: str, handle: Any) -> None:
        """From now on; does nothing where the GPU or the driver has no such events."""
        nvml = self._calls.nvml
        try:
            if self._events is None and not self._is_blind:
                self._events = self._calls.ask("nvmlEventSetCreate")
            if self._events is not None:
                self._calls.ask("nvmlDeviceRegisterEvents", handle, nvml.nvmlEventTypeXidCriticalError, self._events)
                self._watched[_place(handle)] = (index, address)
        except nvml.NVMLError as error:
            self._is_blind = self._events is None
            log.debug("GPU %d tells of no Xid: %s", index, error)

    def read(self) -> None:
        """Tell the journal what has happened since the last look; never waits."""
        nvml = self._calls.nvml
        for _ in range(MOST_EVENTS if self._watched else 0):
            try:
                event = self._calls.ask("nvmlEventSetWait_v2", self._events, 0)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_TIMEOUT:
                    log.debug("nvmlEventSetWait_v2: %s", error)
                return
            index, address = self._watched.get(_place(event.device), (None, ""))
            if index is None:
                continue
            number = int(event.eventData)
            self._last[address] = number, self._clock()
            log.warning(
                "GPU %d reported Xid %d; the kernel's log says which process it was, and NVIDIA's list of Xids what it "
                "means: journalctl -k | grep Xid",
                index,
                number,
            )

    def last(self, address: str) -> str:
        """For a sentence about a GPU that is not well: `` (Xid 79)``, or nothing. Once named, it is named until the GPU
        is well."""
        number, at = self._last.get(address, (0, 0.0))
        if not number or (address not in self._named and self._clock() - at > EXPLAINS_S):
            return ""
        self._named.add(address)
        return f" (Xid {number})"

    def is_well(self, address: str) -> None:
        """The GPU has recovered from what its Xid was named for. One that was not named yet may still show its harm."""
        if address in self._named:
            self._named.discard(address)
            self._last.pop(address, None)

    def close(self) -> None:
        """The events went with their session; what they told is still true."""
        self._events = None
        self._is_blind = False
        self._watched.clear()


def _place(handle: Any) -> int:
    """A handle is a pointer, and a fresh object each time: only where it points tells whose it is."""
    # Imported here: by then NVML has done so. Machines without it do not need it.
    import ctypes

    return ctypes.cast(handle, ctypes.c_void_p).value or 0
