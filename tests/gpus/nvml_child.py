"""A program that asks the real nvidia-ml-py, started by test_nvml.py with the stand-in library in its environment.

One JSON command a line on stdin, one JSON answer a line on stdout: ``[name, arguments]``.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from msgspec import to_builtins

from gpud.gpus import AllGpus
from gpud.gpus.host import HostProbe
from gpud.gpus.nvml import NvmlProbe


class Warnings(logging.Handler):
    """What the journal is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Program:
    def __init__(self, root: Path, answer_s: float) -> None:
        self.probe = NvmlProbe(root)
        self.gpus = AllGpus([self.probe], HostProbe(root), answer_s=answer_s)
        self._warnings = Warnings()
        logging.getLogger("gpud").addHandler(self._warnings)

    def warnings(self) -> object:
        return self._warnings.lines

    async def sample(self, wake: bool) -> object:
        return [to_builtins(sample) for sample in await self.gpus.sample(frozenset(), wake=wake)]

    async def samples_at_once(self, count: int) -> object:
        return len(await asyncio.gather(*(self.gpus.sample(frozenset(), wake=True) for _ in range(count))))

    async def release(self) -> object:
        return await self.gpus.release()

    async def wait_for_end_of_thread(self) -> object:
        async with asyncio.timeout(50):
            while self.threads():
                await asyncio.sleep(0.01)  # The answer of a driver that hung: only the thread's end tells of it.
        return True

    def threads(self) -> object:
        return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]

    def links(self) -> object:
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        return links

    def problems(self) -> object:
        return self.gpus.problems

    def calls(self) -> object:
        return self.probe.calls

    def imported(self) -> object:
        return "pynvml" in sys.modules


async def main() -> None:
    program = Program(Path(sys.argv[1]), float(sys.argv[2]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer = getattr(program, name)(*arguments)
        if asyncio.iscoroutine(answer):
            answer = await answer
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.alarm(300)  # A test that fails must not leave this program behind.
    asyncio.run(main())
