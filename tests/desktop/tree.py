"""A tree of ``tests/provision`` in a container of its own, in which a test starts a desktop's programs.

Nothing boots in it. The tree stays as it is: the container has an overlay over it that is thrown away, and what was
started in it ends with it. It has no network; the directories that are shared have the same path inside as outside, so
that a bus is reached from both sides by one address.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

TOP = Path(__file__).resolve().parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

START_S = 240.0
COMMAND_S = 120.0
WAIT_S = 120.0
"""For what takes a moment on an idle machine: those that run this are small and shared, and draw without a GPU."""


def missing_parts() -> str:
    """Why no desktop can be run here; empty when one can."""
    if os.geteuid() != 0:
        return "a container with a desktop needs root"
    lacking = [name for name in ("systemd-nspawn", "nsenter", "mount") if not shutil.which(name)]
    return f"a container with a desktop needs {', '.join(lacking)}" if lacking else ""


def provision(name: str) -> Path:
    done = subprocess.run([str(TOP / "tests" / "provision"), name], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])


class Tree:
    """Use it with ``with``. ``shared``: directories that are there at the same path, to be written to."""

    def __init__(self, tree: Path, *, shared: Iterable[Path] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gpud-desktop-"))
        # Programs inside put their logs and pictures here, and read what the test writes.
        self.shared = self.folder / "shared"
        self.root = self.folder / "root"
        self.environment = {
            "PATH": PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": "/run/user/0",
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "NO_AT_BRIDGE": "1",
        }
        self._tree = tree
        self._shared = (self.shared, *shared)
        self._leader = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._programs: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Tree":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        for name in ("upper", "work", "root", "shared"):
            (self.folder / name).mkdir()
        overlay = f"lowerdir={self._tree},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", overlay, str(self.root)], check=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self.folder / "notify"))
            ready.settimeout(START_S)
            options = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--as-pid2", "--console=pipe"]
            options += [f"--bind={path}" for path in self._shared]
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--directory", str(self.root), *options, "sleep", "infinity"],
                env={"PATH": PATH, "NOTIFY_SOCKET": str(self.folder / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while not self._leader:
                if match := re.search(r"X_NSPAWN_LEADER_PID=(\d+)", ready.recv(4096).decode()):
                    self._leader = int(match[1])
        self.run("mkdir --parents --mode=700 $XDG_RUNTIME_DIR")

    def command(self, *argv: str, **environment: str) -> list[str]:
        """How to run something inside from outside."""
        values = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        return [
            *("nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid"),
            *("env", "--chdir=/", "-i", *values, *argv),
        ]

    def run(self, script: str, *, timeout_s: float = COMMAND_S, **environment: str) -> str:
        """A line of shell inside, to its end; what it said. Fails with all of that when it fails."""
        done = subprocess.run(
            self.command("bash", "-c", script, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{script!r} ended with status {done.returncode}:\n{done.stdout}"
        return done.stdout.strip()

    def start(self, log: str, *argv: str, **environment: str) -> "Program":
        """A program that runs inside meanwhile; what it says goes to ``shared/log``."""
        path = self.shared / log
        with path.open("ab") as file:
            process = subprocess.Popen(
                self.command(*argv, **environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        self._programs.append(process)
        return Program(process, path)

    def close(self) -> None:
        """Whatever still runs inside ends with the container's first process."""
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
        if self._nspawn is not None:
            if not self._leader:
                self._nspawn.kill()
            self._nspawn.wait(START_S)
        for process in self._programs:
            process.wait(START_S)
        if os.path.ismount(self.root):
            subprocess.run(["umount", "--lazy", str(self.root)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class Program:
    """A program inside: ``log`` is what it has said."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self._process = process
        self._path = path

    def processes(self) -> list[psutil.Process]:
        """The program and what it has started, as this side of the wall sees them; the first is the program."""
        # nsenter has to fork into the container's processes.
        return psutil.Process(self._process.pid).children(recursive=True) if self.running else []

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return self._path.read_text(errors="replace")

    def stop(self) -> None:
        """kill -9 of it and of what it has started, and wait until it has ended."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(START_S)


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], *, within_s: float = WAIT_S) -> None:
    """For what a desktop has no event for on this side of the wall. Fails with ``what``, which may be called."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within_s:g} s: {what() if callable(what) else what}")
        time.sleep(0.05)


@contextlib.contextmanager
def desktop_tree(name: str, *shared: Path, **environment: str) -> Iterator[Tree]:
    """``name``: desktop or desktop-12 of tests/provision."""
    with Tree(provision(name), shared=shared) as tree:
        tree.environment |= environment
        yield tree


def session_bus(tree: Tree) -> str:
    """A session bus inside, with services that it starts; its address is good on both sides, and the tree knows it."""
    address = f"unix:path={tree.shared}/session"
    tree.environment["DBUS_SESSION_BUS_ADDRESS"] = address
    tree.start("session-bus.log", "dbus-daemon", "--session", f"--address={address}", "--nofork", "--nopidfile")
    wait_until((tree.shared / "session").exists, "the session bus did not start")
    return address
