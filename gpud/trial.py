"""Whether NVIDIA's GPUs can be used, tried by a fresh process each time: this one never uses them."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia")

TRIAL_S = 10.0
"""For one try to use the GPUs. Waking one takes 3 s; a process that hangs in the driver hangs for ever."""

BEGIN_S = 60.0
"""Until it begins to try them: a machine that has just woken up has much to do before it has started a program."""

PROGRAM = (sys.executable, "-m", "gpud.gpus.probe")


class Trial:
    """Call it for why the GPUs cannot be used; empty where they can, or where there is none of NVIDIA's."""

    def __init__(
        self,
        nvidia: Path = NVIDIA,
        program: Sequence[str] = PROGRAM,
        *,
        begin_s: float = BEGIN_S,
        within_s: float = TRIAL_S,
    ) -> None:
        """``program`` says a line, which may be empty, as soon as it has nothing left to do but to try them."""
        self._nvidia = nvidia
        self._program = program
        self._begin_s = begin_s
        self._within_s = within_s
        self._stuck: asyncio.subprocess.Process | None = None
        self._stuck_since_s = 0.0

    async def __call__(self) -> str:
        """Raises OSError when no process can be started: nothing is known of the GPUs then."""
        if not await asyncio.to_thread(self._nvidia.exists):
            return ""
        if self._stuck is not None and self._stuck.returncode is None:
            # Another one would hang beside it, and so on for each try.
            hung_s = time.monotonic() - self._stuck_since_s
            return f"process {self._stuck.pid}, which tried them, hangs in the driver since {hung_s:.0f} s"
        self._stuck = None
        child = await asyncio.create_subprocess_exec(
            *self._program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert child.stdout is not None
        began_s = time.monotonic()
        first = b""
        try:
            async with asyncio.timeout(self._begin_s):
                first = await child.stdout.readline()
            began_s = time.monotonic()
            async with asyncio.timeout(self._within_s):
                said, _ = await child.communicate()
        except TimeoutError:
            child.kill()
            # In the kernel it cannot be killed, and is not waited for.
            self._stuck, self._stuck_since_s = child, began_s
            if not first:
                return f"a process that is to use the GPUs has not begun within {self._begin_s:g} s"
            return f"a process that uses the GPUs hangs for {self._within_s:g} s"
        except asyncio.CancelledError:
            child.kill()
            self._stuck, self._stuck_since_s = child, began_s
            raise
        if child.returncode == 0:
            return ""
        lines = (first + said).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"a process that uses the GPUs ends with status {child.returncode}"
