"""A daemon's doors for a test: on ports that are free, asked by hand or by the packages that programs use."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ports import free_port

from .harness import BOUND_S, PYTHON, TOP, Place

TALKER = TOP / "tests" / "http" / "talking_engine.py"
NAMES = ("front", "management", "ollama")
HELLO = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Told:
    """A whole answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.value["error"])


@dataclass(frozen=True)
class Door:
    """Where one door is."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = BOUND_S,
    ) -> "Opened":
        """Ask, on a connection of its own, and wait for the header of the answer."""
        return Opened(self.port, method or ("GET" if body is None else "POST"), path, body, headers or {}, timeout_s)

    def ask(self, path: str, body: object = None, **more: Any) -> Told:
        """Ask, and wait for the whole answer."""
        with self.open(path, body, **more) as opened:
            return Told(opened.status, opened.headers, opened.rest())

    def chat(self, model: str, **body: object) -> Told:
        return self.ask("/v1/chat/completions", {"model": model, "messages": HELLO, **body})

    def raw(self, timeout_s: float = BOUND_S) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)


class Opened:
    """An answer that has begun. Leaving the ``with`` closes its connection."""

    def __init__(
        self, port: int, method: str, path: str, body: object, headers: Mapping[str, str], timeout_s: float
    ) -> None:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        kind = {"Content-Type": "application/json"} if data is not None else {}
        try:
            self._connection.request(method, path, data, {**kind, **headers})
            self._response = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.status = self._response.status
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}

    def line(self) -> bytes:
        """The next line that says something; empty at the end. Those who wait long for a load are sent comments."""
        while line := self._response.readline():
            if (line := line.strip()) and not line.startswith(b":"):
                return line
        return b""

    def read(self, most: int = 1 << 16) -> bytes:
        """What is there of the body; empty at the end."""
        return self._response.read1(most)

    def rest(self) -> bytes:
        return self._response.read()

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Doors:
    """The three of one daemon."""

    front: Door
    management: Door
    ollama: Door


def open_doors(place: Place, **http: object) -> Doors:
    """From its next :meth:`Place.configure` on, a daemon of this place listens, each door on a port of its own.

    ``http`` is more of that section.
    """
    ports = {name: free_port() for name in NAMES}
    doors = {name: {"port": port} for name, port in ports.items()}
    place.sections = {**place.sections, "http": {**doors, **http}}
    return Doors(**{name: Door(port) for name, port in ports.items()})


def talker(place: Place, *switches: str, notes: str = "", size: str = "10MiB", **settings: object) -> dict[str, object]:
    """A custom engine that does with a request what its "do" says; see the program itself. It wants its own key, and
    notes what it is asked in the place's file ``notes``.
    """
    command = [PYTHON, "-IS", str(TALKER), "--host", "${socket}", *switches]
    if notes:
        command += ["--notes", str(place.root / notes)]
    return {
        "engine": "custom",
        "command": command,
        "health": "/health",
        "environment": {"ENGINE_KEY": "${key}"},
        "size": size,
        **settings,
    }


def noted(place: Place, notes: str) -> list[dict[str, Any]]:
    """What an engine noted."""
    path = place.root / notes
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_noted(
    place: Place, notes: str, wanted: Callable[[dict[str, Any]], bool], *, count: int = 1, timeout_s: float = BOUND_S
) -> list[dict[str, Any]]:
    """Until it has noted so many of these. Nobody announces what another process writes, so it is looked for."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = [note for note in noted(place, notes) if wanted(note)]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"noted only {noted(place, notes)}"
        time.sleep(0.005)


def to_the_end(client: socket.socket) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            data += piece
    return bytes(data)


class Together:
    """Threads of one test, which fail it when they fail. Use it as ``with``."""

    def __init__(self, bound_s: float = BOUND_S) -> None:
        self._bound_s = bound_s
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, work: Callable[..., object], *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as failure:
                self._failures.append(failure)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        deadline = time.monotonic() + self._bound_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = sum(thread.is_alive() for thread in self._threads)
        if self._failures:
            raise self._failures[0]
        assert not alive, f"{alive} of {len(self._threads)} did not end within {self._bound_s} s"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.join()


def listening(pid: int) -> set[str]:
    """The TCP addresses on which a process listens, as ``ss -tln`` shows them; none where it has ended."""
    inodes = set()
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                name = os.readlink(f"/proc/{pid}/fd/{entry}")
                if name.startswith("socket:["):
                    inodes.add(name[8:-1])
    return {where for where, inode in _listeners() if inode in inodes}


def _listeners() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            address, port = fields[1].split(":")
            host = socket.inet_ntoa(int(address, 16).to_bytes(4, "little"))
            yield f"{host}:{int(port, 16)}", fields[9]
