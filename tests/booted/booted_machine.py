"""A booted Debian with gpud installed as the README says: real systemd, journald, dbus-daemon, polkitd and logind.

The tree of ``tests/provision debian`` stays as it is: the machine lives in an overlay over it that is thrown away. It
has no network but its own loopback; what pip needs is handed in as wheels.
"""

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]

BOOT_S = 180.0
"""A boot takes two seconds on an idle machine."""

COMMAND_S = 240.0
WAIT_S = 180.0

MODELS = {"tiny": 1, "small": 2}
"""The embedded engine's models and the seeds they are made from; each is half a megabyte."""

CONFIGURATION = """\
defaults:
  # Two threads that wait for each other are slow on a machine that also does other things.
  threads: 1
models:
  tiny:
    engine: embedded
    file: /var/lib/ml-models/llamacpp/models/tiny.gguf
    context: 32768
  small:
    engine: embedded
    file: /var/lib/ml-models/llamacpp/models/small.gguf
  stubborn:
    engine: custom
    command: [/usr/bin/python3, /var/lib/ml-models/custom/stubborn.py, "${port}"]
    health: /
    size: 64MiB
stop:
  term: 0.3
  second_term: 0.3
"""

STUBBORN = """\
# An engine that no polite word ends: it ignores TERM, does not look at its stdin, and has a child that does the same.
import http.server, os, signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    while True:
        signal.pause()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""

NORMAL = "systemctl reset-failed gpud gpud-reap; systemctl start gpud"
"""Brings the service back to where every test begins."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cgroup2() -> Path:
    """Where the one tree of control groups is mounted."""
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return Path(next(fields[1] for fields in lines if fields[2] == "cgroup2"))


def within(group: Path) -> list[str]:
    """What to put before a command that is to run in that control group."""
    return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group)]


def name_of(folder: Path) -> str:
    """What nspawn calls the machine: no two that are up may have one name, and a name has no underscore."""
    return folder.name.replace("_", "0")


def missing_parts() -> str:
    """Why no machine can be booted here; empty when one can."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    lacking = [name for name in ("systemd-nspawn", "nsenter", "mount") if not shutil.which(name)]
    return f"booting a machine needs {', '.join(lacking)}" if lacking else ""


class Machine:
    """A running container with an init of its own."""

    def __init__(self, folder: Path, tree: Path, wheels: Path) -> None:
        self.folder, self.tree, self.wheels = folder, tree, wheels
        self.root = folder / "root"
        self.leader = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir()
        overlay = f"lowerdir={self.tree},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", overlay, str(self.root)], check=True)
        # nspawn tells by the same protocol as every service when the machine has booted, and which PID its init has.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self.folder / "notify"))
            nspawn = self._nspawn = self._start()
            with open(os.pidfd_open(nspawn.pid), "rb", buffering=0) as ended:
                while True:
                    heard, _, _ = select.select([ready.fileno(), ended.fileno()], [], [], BOOT_S)
                    assert ready.fileno() in heard, f"no machine has booted: {(self.folder / 'console').read_text()}"
                    text = ready.recv(4096).decode()
                    if match := re.search(r"X_NSPAWN_LEADER_PID=(\d+)", text):
                        self.leader = int(match[1])
                    if "READY=1" in text.splitlines():
                        return

    def _start(self) -> "subprocess.Popen[bytes]":
        options = ["--boot", "--notify-ready=yes", "--register=no", "--keep-unit", "--console=read-only"]
        options += [f"--machine={name_of(self.folder)}"]
        options += ["--private-network", f"--bind-ro={TOP}:/src", f"--bind-ro={self.wheels}:/wheels"]
        environment = {"NOTIFY_SOCKET": str(self.folder / "notify"), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        # Machines that are up at the same time must not see each other's control groups.
        own = cgroup2() / self.folder.name
        own.mkdir(exist_ok=True)
        with (self.folder / "console").open("wb") as console:
            return subprocess.Popen(
                [*within(own), "systemd-nspawn", "--quiet", "--directory", str(self.root), *options],
                env={"PATH": PATH, **environment},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )

    def command(self, *argv: str) -> list[str]:
        """How to run something inside from outside."""
        return [
            # Debian 13's logind does nothing for a process that is in none of the machine's control groups.
            *within(cgroup2() / self.folder.name / "payload" / "init.scope"),
            *("nsenter", "--target", str(self.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"),
            *("env", "--chdir=/", "-i", f"PATH={PATH}", "LANG=C.UTF-8", "HOME=/root", *argv),
        ]

    def run(self, script: str, *, check: bool = True, user: str = "", timeout_s: float = COMMAND_S) -> "Result":
        """Run a line of shell inside and return what it said. ``user``: as that user, without a login."""
        if user:
            home = 'export HOME=$(getent passwd "$(id -u)" | cut -d: -f6); '
            argv = ["runuser", "-u", user, "--", "bash", "-c", home + script]
        else:
            argv = ["bash", "-c", script]
        with subprocess.Popen(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                # Its children too: they keep the pipes open, stopped ones for ever.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        result = Result(script, process.returncode, out.strip(), err.strip())
        assert not check or result.code == 0, result.explain()
        return result

    @contextlib.contextmanager
    def start(self, script: str) -> Iterator[subprocess.Popen[str]]:
        """A line of shell that runs inside meanwhile; its output is the caller's to read."""
        with subprocess.Popen(
            self.command("bash", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def call(self, method: str, *arguments: str, user: str = "", check: bool = True) -> "Result":
        """One call to gpud with busctl, as anybody would make it."""
        target = "org.kernelcore.GpuD /org/kernelcore/GpuD org.kernelcore.GpuD"
        words = " ".join(shlex.quote(word) for word in (method, *arguments))
        return self.run(f"busctl --json=short call {target} {words}", user=user, check=check)

    def load(self, *models: str) -> None:
        for model in models:
            self.run(f"gpudctl load {model}")

    def states(self) -> dict[str, str]:
        """Every model and its state, as the bus tells."""
        status = json.loads(self.call("ListModels").out)["data"][0]
        return {model["Id"]["data"]: model["State"]["data"] for model in status}

    def engines(self) -> dict[int, str]:
        """The processes in the control groups of engines: PID and control group."""
        script = "cd /sys/fs/cgroup/system.slice/gpud.service && grep -H . engine-*/cgroup.procs"
        lines = self.run(script, check=False).out.splitlines()
        return {int(line.rpartition(":")[2]): line.partition("/")[0] for line in lines}

    def of_gpud(self) -> list[str]:
        """Every process that runs as gpud, wherever it may be."""
        return self.run("ps --user gpud -o pid=,args=", check=False).out.splitlines()

    def main_pid(self) -> int:
        return int(self.show("gpud", "MainPID"))

    def show(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --value --property={name} {unit}").out

    def wait(self, what: str, script: str, *, within_s: float = WAIT_S) -> float:
        """Ask again until the line of shell succeeds; how long it took. For what systemd has no event for."""
        began = time.monotonic()
        while True:
            result = self.run(script, check=False)
            took = time.monotonic() - began
            if result.code == 0:
                return took
            assert took < within_s, f"{what}: not within {within_s:g} s\n{result.explain()}\n{self.journal()}"
            time.sleep(0.05)

    def journal(self, arguments: str = "--unit=gpud --unit=gpud-reap --lines=60") -> str:
        return self.run(f"journalctl --sync; journalctl --no-pager --output=short-precise {arguments}", check=False).out

    def entries(self, arguments: str) -> list[dict[str, str]]:
        # What was said a moment ago may not be written yet.
        out = self.run(f"journalctl --sync; journalctl --no-pager --output=json {arguments}").out
        return [json.loads(line) for line in out.splitlines()]

    def warnings(self, since: str, matches: str) -> str:
        """What the journal has from a moment on (see :meth:`now`) that is a warning or worse."""
        return self.run(
            f"journalctl --sync; journalctl --no-pager --quiet --priority=warning --since={since} {matches}"
        ).out

    def now(self) -> str:
        return "@" + self.run("date +%s.%6N").out

    def halt(self) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            if self.leader:
                # SIGRTMIN+4 asks an init for a power-off, as a virtual machine's button does.
                os.kill(self.leader, signal.SIGRTMIN + 4)
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        clear(self.folder)


class Result:
    """What a command inside said, and how to tell about it when it was not what was expected."""

    def __init__(self, script: str, code: int, out: str, err: str) -> None:
        self.script, self.code, self.out, self.err = script, code, out, err

    def explain(self) -> str:
        return f"{self.script!r} ended with status {self.code}\n{self.out}\n{self.err}".rstrip()


def new_folder() -> Path:
    """Where a machine of this process lives. Machines that killed test runs have left behind are taken away first."""
    for folder in Path(tempfile.gettempdir()).glob("gpud-booted-*"):
        owner = folder.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(FileNotFoundError):
                (cgroup2() / folder.name / "cgroup.kill").write_text("1")
            clear(folder)
    return Path(tempfile.mkdtemp(prefix=f"gpud-booted-{os.getpid()}-"))


def clear(folder: Path) -> None:
    """Take away the folder, the overlay and the control groups of a machine that has ended."""
    for left in sorted((cgroup2() / folder.name).glob("**/"), reverse=True):
        # A group that somebody is still in stays; the machine has ended with all that was in it.
        with contextlib.suppress(OSError):
            left.rmdir()
    # nspawn takes the second away itself from version 256 on, if it is not killed.
    for mounted in (folder / "root", Path("/run/systemd/nspawn/unix-export", name_of(folder))):
        if os.path.ismount(mounted):
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def provision(name: str) -> Path:
    done = subprocess.run([str(TOP / "tests" / "provision"), name], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])
