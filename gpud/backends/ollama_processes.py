"""Finds the processes in which Ollama runs its models, and sees them end; never starts one.

Ollama starts a child of its own for each loaded model, ``… --model STORE/blobs/sha256-HEX --port N …``: its memory is
the model's memory, and it answers ``/slots`` on its port.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

from gpud.backends import listeners
from gpud.backends.ollama_store import Name, same_name
from gpud.core.record import Record

_BLOB = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


class RunnerProcess(Record):
    """A runner as its argv tells: ``weights`` is a hex digest, or ``model`` a name (runners of tensor models)."""

    pid: int
    parent: int
    model: str
    weights: str
    port: int

    def serves(self, weights: str, name: Name) -> bool:
        """Whether this runner holds the model of that weight file, or of that name where it has no single file."""
        if weights and self.weights:
            return weights == self.weights
        return not self.weights and same_name(self.model, name)


def find_runners(pids: Iterable[int] | None = None) -> list[RunnerProcess]:
    """Reads /proc (blocking); ``None`` looks at every process that may be seen."""
    if pids is None:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [runner for pid in pids if (runner := read_runner(pid)) is not None]


def read_runner(pid: int) -> RunnerProcess | None:
    """None for what is gone, may not be seen, or is not a runner."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    model, port = _value(argv, "--model"), _value(argv, "--port")
    if not model or not port.isdecimal():
        return None
    # The command name stands in parentheses and may contain anything; the state and the parent follow the last one.
    state, parent = stat.rpartition(")")[2].split()[:2]
    if state in "ZX":
        return None
    blob = _BLOB.search(model)
    return RunnerProcess(pid, int(parent), model, blob[1].lower() if blob else "", int(port))


def _value(argv: list[str], flag: str) -> str:
    for position, word in enumerate(argv[:-1]):
        if word == flag:
            return argv[position + 1]
    return ""


def listens(pid: int, port: int) -> bool | None:
    """Whether that process owns a listening TCP socket on ``port``; None where that may not be seen (blocking)."""
    sockets = listeners.sockets_at(port, f"/proc/{pid}/net")
    try:
        return any(_target(entry) in sockets for entry in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return None
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


class ProcessWatch:
    """Sees one process end, without asking again and again, whosever child it is.

    Made in the event loop; :meth:`close` must be called.
    """

    def __init__(self, pid: int) -> None:
        """Raises OSError when there is no such process or the kernel has no pidfds."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._fd, self._saw_end)

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the process has ended; canceled when the watch was closed before."""
        return self._ended

    def send_kill(self) -> None:
        """Kill exactly this process, never another one that was given its PID later."""
        if self._fd >= 0 and not self._ended.done():
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        self._release()
        self._ended.cancel()

    def _saw_end(self) -> None:
        self._release()
        if not self._ended.done():
            self._ended.set_result(None)

    def _release(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def watch_runner(process: RunnerProcess) -> ProcessWatch:
    """Watch this very runner. Raises OSError when it is gone, or when its number belongs to another process by now."""
    watch = ProcessWatch(process.pid)
    # The descriptor first, then the look: from here on the number cannot come to mean another process unnoticed.
    again = read_runner(process.pid)
    if again is None or (again.model, again.port) != (process.model, process.port):
        watch.close()
        raise ProcessLookupError(f"process {process.pid} is not the runner any more")
    return watch
