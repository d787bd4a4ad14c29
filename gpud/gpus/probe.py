"""``python -m gpud.gpus.probe``: whether NVIDIA's GPUs can be used, found out by using them for a moment.

A program of its own: a driver that did not survive a sleep fails new processes, and may hang them; CUDA, once it has
failed in a process, fails in it for ever. Says an empty line when it begins to use them. Ends with status 0 where all
is well, or where there is no such GPU; else with status 1 and one sentence.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

from gpud.gpus.nvml_calls import load_nvml

CUDA = "libcuda.so.1"
TRIAL_BYTES = 1 << 20
"""Is taken on each GPU and given back: an allocation is what fails first after a sleep."""

CUDA_NO_DEVICE = 100
"""There is a driver and no GPU for it, or all of them are hidden."""


def problem() -> str:
    """Empty where all is well."""
    nvml = load_nvml()
    if nvml is None:
        return ""
    print(flush=True)  # noqa: T201 -- its starter gives it so long from here on
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        for index in range(count):
            nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return f"NVIDIA's driver does not answer: {error}"
    return _cuda_problem() if count else ""


def _cuda_problem() -> str:
    try:
        cuda: Any = ctypes.CDLL(CUDA)
    except OSError:
        # No engine of gpud's could use CUDA either.
        return ""
    code = cuda.cuInit(0)
    if code == CUDA_NO_DEVICE:
        return ""
    if code:
        return f"CUDA cannot be started: {_name(cuda, code)}"
    count = ctypes.c_int()
    code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"CUDA cannot count its GPUs: {_name(cuda, code)}"
    for index in range(count.value):
        failed = _try(cuda, index)
        if failed:
            return failed
    return ""


def _try(cuda: Any, index: int) -> str:
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    steps: tuple[tuple[str, Callable[[], int]], ...] = (
        ("found", lambda: cuda.cuDeviceGet(ctypes.byref(device), index)),
        ("opened", lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)),
        ("opened", lambda: cuda.cuCtxSetCurrent(context)),
        ("given memory", lambda: cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(TRIAL_BYTES))),
        ("given memory back", lambda: cuda.cuMemFree_v2(pointer)),
        ("closed", lambda: cuda.cuDevicePrimaryCtxRelease_v2(device)),
    )
    for what, step in steps:
        code = step()
        if code:
            return f"GPU {index} cannot be {what} by CUDA: {_name(cuda, code)}"
    return ""


def _name(cuda: Any, code: int) -> str:
    """``CUDA_ERROR_UNKNOWN (999)``."""
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(code, ctypes.byref(name)) or not name.value:
        return f"error {code}"
    return f"{name.value.decode()} ({code})"


if __name__ == "__main__":
    found = problem()
    if found:
        print(found)  # noqa: T201 -- whoever started this reads it
    sys.exit(1 if found else 0)
