"""NVML call by call: each is counted, and each error becomes a missing value or a sentence about its GPU."""

import logging
from typing import Any

log = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"
UNKNOWN_BYTES = 2**64 - 1
"""What the driver says where it does not know: NVML_VALUE_NOT_AVAILABLE."""
UNKNOWN_NUMBER = 2**32 - 1
"""The same in its 32-bit figures."""


def load_nvml() -> Any | None:
    """The module ``pynvml``, or None where NVIDIA's library is not installed. The import takes tens of milliseconds."""
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    import pynvml

    return pynvml


class Unwell(Exception):
    """One GPU cannot be used; the text says why and what to do.

    ``is_lost``: only a reset or a reboot brings it back. A reset is refused while anybody has the GPU open: NVML must
    be let go for it, and begun anew to see what came of it.
    """

    def __init__(self, message: str, *, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_lost = is_lost


class Calls:
    """The bindings, as one session of a probe uses them. ``count`` is what NVML was asked.

    ``is_void``: NVML was shut down by somebody else in this process, or the driver was reloaded; no handle is good any
    more.
    """

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.count = 0
        self.is_void = False

    def ask(self, name: str, *arguments: Any) -> Any:
        """What NVML answers; raises the bindings' own NVMLError."""
        self.count += 1
        return getattr(self.nvml, name)(*arguments)

    def get(self, index: int, name: str, *arguments: Any) -> Any:
        """A value without which the GPU is of no use."""
        try:
            return self.ask(name, *arguments)
        except self.nvml.NVMLError as error:
            raise self.unwell(index, name, error) from error

    def value(self, index: int, name: str, *arguments: Any) -> Any | None:
        """A value that this GPU may not have: then None."""
        try:
            return self.ask(name, *arguments)
        except self.nvml.NVMLError as error:
            self.check(index, name, error)
            return None

    def number(self, index: int, name: str, *arguments: Any) -> int | None:
        return figure(self.value(index, name, *arguments))

    def check(self, index: int, name: str, error: Any) -> None:
        """Raise when the error concerns the whole GPU and not only this value."""
        nvml = self.nvml
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_UNINITIALIZED):
            raise self.unwell(index, name, error) from error
        log.debug("GPU %d: %s: %s", index, name, error)

    def unwell(self, index: int, name: str, error: Any) -> Unwell:
        nvml = self.nvml
        if error.value == nvml.NVML_ERROR_UNINITIALIZED:
            self.is_void = True
        if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
            return Unwell(
                f"GPU {index} has fallen off the bus or no longer answers the driver; reboot, "
                "and look for its Xid at: journalctl -k | grep Xid",
                is_lost=True,
            )
        if error.value == nvml.NVML_ERROR_RESET_REQUIRED:
            return Unwell(f"GPU {index} must be reset before it can be used again; {reset_hint(index)}", is_lost=True)
        return Unwell(
            f"NVML does not answer {name} for GPU {index}: {error} (error {error.value}); "
            "look at: journalctl -k | grep NVRM"
        )


def reset_hint(index: int) -> str:
    return f"stop what uses it and run nvidia-smi --gpu-reset -i {index}, or reboot"


def known_bytes(value: Any) -> int | None:
    return None if value is None or value == UNKNOWN_BYTES else int(value)


def figure(value: Any) -> int | None:
    return None if value is None or value == UNKNOWN_NUMBER else int(value)
