"""Brings one process to life, held at a gate until everything around it is in place; it knows nothing of what follows.

The process begins as a shell of a few lines that waits at the gate. While it waits it is put into its cgroup, its
descriptors go to safety, and only then is it let go to become the program: nothing that it forks can escape, and if the
daemon dies before that, the gate closes and nothing has run. The shell also makes an exec on a file system that hangs
hold up itself, not the daemon.
"""

import asyncio
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from gpud.core.errors import BackendFailed
from gpud.core.ports import Command
from gpud.core.record import Struct
from gpud.processes import identity
from gpud.processes.tree import readable

log = logging.getLogger(__name__)

SHELL = "/bin/sh"
SHELL_NAME = "gpud-start"

# The braces make every shell set its copy of the gate aside as close-on-exec, so that the gate closes exactly when the
# program has been executed, or when the shell has ended because it could not be. A shell passes on only environment
# variables whose names it could have set itself.
SCRIPT = f"""\
IFS= read -r {identity.MARKER} <&3 || exit 125
export {identity.MARKER}
cd -- "$1" || exit 125
shift
{{ exec "$@"; }} 3>&-
"""
GATE = 3
FAILED_CODES = (125, 126, 127)
"""How a shell ends that could not change the directory, execute the program, or find it."""

START_LIMIT_S = 30.0
"""How long an exec may take. A millisecond is usual; only a file system that does not answer takes longer."""

PIPE_BYTES = 256 << 10
"""What a child can print while nobody reads (the daemon restarts) before it has to wait. The kernel's own is 64 KiB."""

CHILD_OOM_SCORE = 500
"""When memory runs out the kernel is to end an engine, which can be started again, before anything else."""

_MACHINES = {3: "i386", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}


_LOADER = re.compile(rb"/[!-~]+/ld[!-~]+(?=\0)")
"""The dynamic loader that an ELF file names, near its beginning."""


class Started(Struct):
    """A process that waits at its gate, and our ends of what connects it. ``lease`` is -1 without one.

    ``said`` is what had to be read of its errors to see how the start went.
    """

    pid: int
    pidfd: int
    start_time: int
    out: int
    err: int
    lease: int
    gate: socket.socket
    said: bytes = b""

    def close(self) -> None:
        """Let go of everything that nobody has taken over; the process at the gate ends by that."""
        self.gate.close()
        for fd in (self.pidfd, self.out, self.err, self.lease):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.out = self.err = self.lease = -1


def start_at_gate(command: Command, environment: Mapping[str, str], *, prefix: Sequence[str]) -> Started:
    """``prefix`` is a program that executes the rest of its arguments (setpriv). Raises OSError."""
    argv = (*prefix, SHELL, "-c", SCRIPT, SHELL_NAME, command.directory or "/", *command.argv)
    with ExitStack() as theirs, ExitStack() as ours:
        out, out_write = _pipe(theirs, ours, child_writes=True)
        err, err_write = _pipe(theirs, ours, child_writes=True)
        if command.lease:
            lease, stdin = _pipe(theirs, ours, child_writes=False)
        else:
            lease, stdin = -1, _held(theirs, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        gate, gate_end = socket.socketpair()
        ours.callback(gate.close)
        theirs.callback(gate_end.close)
        ends = [_out_of_the_way(theirs, fd) for fd in (stdin, out_write, err_write, gate_end.fileno())]
        _seal_descriptors()
        pid = os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(ends)],
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        ours.pop_all()
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
        stat = identity.stat_of(pid)
        if stat is None:
            raise OSError(errno.ESRCH, "the new process is gone already: something reaps children of gpud")
    except OSError:
        Started(pid, pidfd, 0, out, err, lease, gate).close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return Started(pid, pidfd, stat.start_time, out, err, lease, gate)


async def let_go(started: Started, marker: str) -> bool:
    """Open the gate. True when the program runs, or has run; False when it could not be executed.

    What the shell complained about is then in ``said``. Raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    started.gate.setblocking(False)
    async with asyncio.timeout(START_LIMIT_S):
        try:
            await loop.sock_sendall(started.gate, marker.encode("utf-8", "surrogateescape") + b"\n")
            await loop.sock_recv(started.gate, 1)
        except (ConnectionResetError, BrokenPipeError):
            # It ended without having come to the gate: not even the shell could be executed.
            await readable(started.pidfd)
            started.said = _read(started.err)
            return False
    return _is_running(started.pid) or await _ran_and_ended(started)


def raise_oom_score(pid: int) -> None:
    """So that the kernel ends it first when memory runs out."""
    file = Path(f"/proc/{pid}/oom_score_adj")
    try:
        if int(file.read_text()) < CHILD_OOM_SCORE:
            file.write_text(str(CHILD_OOM_SCORE))
    except OSError as problem:
        log.debug("cannot raise the OOM score of process %d: %s", pid, problem)


def _is_running(pid: int) -> bool:
    """False once it is about to end: a process gives up its memory, and with it its program, before its files."""
    try:
        Path(f"/proc/{pid}/exe").readlink()
    except FileNotFoundError:
        return False
    except OSError:
        # Not ours to read, as with a program that has file capabilities: then it is that program that runs.
        return True
    return True


async def _ran_and_ended(started: Started) -> bool:
    """It has ended: as the program, or still as the shell? The shell says so with its name."""
    await readable(started.pidfd)
    try:
        status = os.waitid(os.P_PIDFD, started.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # noqa: ASYNC222
    except ChildProcessError:
        return True
    if status is None or status.si_code != os.CLD_EXITED or status.si_status not in FAILED_CODES:
        return True
    started.said = _read(started.err)
    return not started.said.startswith(SHELL_NAME.encode() + b": ")


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


def explain(command: Command, environment: Mapping[str, str], said: str) -> BackendFailed:
    """Why the program could not be executed. Looks at files that may lie anywhere: to be called in a thread."""
    program = command.argv[0]
    directory = command.directory or "/"
    start = f'cannot start "{program}" for "{command.model}"'
    if not Path(directory).is_dir():
        return _refused(f'{start}: its directory "{directory}" is not there', "create it, or correct it")
    path = environment.get("PATH", "")
    if "/" not in program:
        found = shutil.which(program, path=path)
        if found is None:
            return _refused(f"{start}: there is no such program in {path}", "install it, or give its full path")
    else:
        found = str(Path(directory, program))
    file = Path(found)
    if not file.exists():
        return _refused(f"{start}: there is no such file", "install it, or correct the path")
    if file.is_dir():
        return _refused(f"{start}: it is a directory", "give the path of the program in it")
    if not os.access(file, os.X_OK):
        hint = "make it executable (chmod +x); a file system mounted with noexec does not allow it"
        return _refused(f"{start}: it is not executable for user {os.geteuid()}", hint)
    reason = said.rpartition("exec: ")[2] or "the kernel refused to execute it"
    return _unfit(start, file) or _refused(f"{start}: {reason}", "start it by hand")


def _unfit(start: str, file: Path) -> BackendFailed | None:
    """What is wrong with a file that may be executed: built for another machine, or its interpreter is missing."""
    try:
        with file.open("rb") as opened:
            head = opened.read(4096)
    except OSError as problem:
        return _refused(f"{start}: it cannot be read: {problem.strerror}", "correct its permissions")
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
        if not os.access(interpreter, os.X_OK):
            return _refused(f'{start}: its interpreter "{interpreter}" cannot be executed', "install the interpreter")
    elif head.startswith(b"\x7fELF") and len(head) >= 20:
        order: Literal["little", "big"] = "little" if head[5] == 1 else "big"
        machine = int.from_bytes(head[18:20], order)
        built_for = _MACHINES.get(machine, f"machine type {machine}")
        if built_for != os.uname().machine:
            hint = "install the build for this machine"
            return _refused(f"{start}: it is built for {built_for}, this machine is {os.uname().machine}", hint)
        loader = _LOADER.search(head)
        if loader is not None and not Path(os.fsdecode(loader[0])).exists():
            hint = "it was built for another distribution: install the build for this one"
            return _refused(f'{start}: its loader "{os.fsdecode(loader[0])}" is not there', hint)
    else:
        return _refused(
            f"{start}: it is neither a program for this machine nor a script that names one", "reinstall it"
        )
    return None


def _refused(message: str, hint: str) -> BackendFailed:
    return BackendFailed(message, hint=hint, kind="not-executable", preflight=True)


def _pipe(theirs: ExitStack, ours: ExitStack, *, child_writes: bool) -> tuple[int, int]:
    """Our end and the child's."""
    read, write = os.pipe2(os.O_CLOEXEC)
    mine, other = (read, write) if child_writes else (write, read)
    ours.callback(os.close, mine)
    theirs.callback(os.close, other)
    os.set_blocking(mine, False)
    if child_writes:
        # A user may own only so many large pipes; the usual size does, too.
        with suppress(OSError):
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return mine, other


def _held(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _out_of_the_way(stack: ExitStack, fd: int) -> int:
    """Above the numbers that the child's descriptors get, so that putting one in place never hits another."""
    return fd if fd > GATE else _held(stack, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, GATE + 1))


def _seal_descriptors() -> None:
    """Some library may have opened a descriptor without close-on-exec; nothing of the daemon's is for a child."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            fd = int(entry.name)
            if fd > 2 and os.get_inheritable(fd):
                os.set_inheritable(fd, False)
