"""The half of a service manager that a crash of gpud is survived with: it keeps the descriptors that gpud hands to it,
and gives them to the next one.
"""

import array
import contextlib
import os
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FIRST_FD = 3
BOUND_S = 60.0

# Descriptors keep their numbers from one program to the next: they are put where the next one looks for them.
_HAND_OVER = """
import os, sys
given = [int(number) for number in sys.argv[1].split(",") if number]
spare = [os.dup2(fd, 200 + index) for index, fd in enumerate(given)]
for fd in given:
    os.close(fd)
for index, fd in enumerate(spare):
    os.dup2(fd, 3 + index)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Use it as ``with``; hand ``environment`` and ``command`` to the place whose daemons it keeps."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "notify"
        self._kept: dict[str, int] = {}
        self._lock = threading.Lock()
        self._ready = threading.Semaphore(0)
        self._heard = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say(b"END=1")
        self._reader.join()
        self._socket.close()
        for fd in self._kept.values():
            os.close(fd)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self._path), "FDSTORE": "100"}

    def command(self, command: list[str]) -> dict[str, Any]:
        """How the next daemon is started."""
        # What the one before it has said may still be on its way.
        self._heard.clear()
        self._say(b"HEARD=1")
        assert self._heard.wait(BOUND_S), "nobody reads what daemons say"
        with self._lock:
            kept = dict(self._kept)
        numbers = ",".join(map(str, kept.values()))
        environment = {"LISTEN_FDS": str(len(kept)), "LISTEN_FDNAMES": ":".join(kept)}
        words = ["/usr/bin/env", *(f"{name}={value}" for name, value in environment.items())]
        return {"args": [*words, sys.executable, "-c", _HAND_OVER, numbers, *command], "pass_fds": kept.values()}

    def wait_ready(self, timeout_s: float) -> None:
        """Until a daemon says that it is ready; each does once, and once more after each reload."""
        assert self._ready.acquire(timeout=timeout_s), "the daemon did not become ready"

    def forget_ready(self) -> None:
        """What was said until now was said by one that has ended."""
        while self._ready.acquire(blocking=False):
            pass

    def _read(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(16 * array.array("i").itemsize))
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            said = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if said.get("END"):
                return
            if said.get("HEARD"):
                self._heard.set()
            if said.get("READY"):
                self._ready.release()
            with self._lock:
                if said.get("FDSTORE") and fds:
                    self._drop(said["FDNAME"])
                    self._kept[said["FDNAME"]] = fds.pop()
                elif said.get("FDSTOREREMOVE"):
                    self._drop(said["FDNAME"])
            for fd in fds:
                os.close(fd)

    def _say(self, what: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(what, str(self._path))

    def _drop(self, name: str) -> None:
        if name in self._kept:
            with contextlib.suppress(OSError):
                os.close(self._kept.pop(name))
