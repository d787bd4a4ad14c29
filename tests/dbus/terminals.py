"""Real interactive shells on terminals of their own, as somebody at a keyboard has them."""

import contextlib
import os
import pty
import re
import select
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from .private_bus import TOP

HOOKS = TOP / "shell" / "hooks"
BOUND_S = 60.0

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "gpud.sh"),
    "sh": (["dash", "-i"], "gpud.sh"),
    "zsh": (["zsh", "-f", "-i"], "gpud.zsh"),
    "fish": (["fish", "--no-config", "-i"], "gpud.fish"),
}
"""How each is started without its user's files, and its hook."""


class Terminal:
    """One shell. What is typed is answered by what it prints."""

    def __init__(self, argv: list[str], address: str, **environment: str) -> None:
        self._home = tempfile.TemporaryDirectory()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(
                argv[0],
                argv,
                {
                    "PATH": os.environ["PATH"],
                    "TERM": "dumb",
                    "HOME": self._home.name,
                    "DBUS_SYSTEM_BUS_ADDRESS": address,
                    "LANG": "C.UTF-8",
                    **environment,
                },
            )
        self._said = ""
        self._news = threading.Condition()
        # As a terminal does, whether or not somebody looks: a shell waits until its last words are taken.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (fd := self._fd) >= 0:
                if select.select([fd], [], [], 0.05)[0]:
                    text = os.read(fd, 4096).decode("utf-8", "replace").replace("\r", "")
                    with self._news:
                        self._said += text
                        self._news.notify_all()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode() + b"\n")

    def read_until(self, pattern: str) -> str:
        """What it says until that matches, the match included; since the last call."""
        with self._news:
            found = self._news.wait_for(lambda: re.search(pattern, self._said), BOUND_S)
            assert found, f"{pattern!r} was not said; but {self._said!r}"
            said, self._said = self._said[: found.end()], self._said[found.end() :]
        return said

    def run(self, command: str) -> str:
        """One command, until it has ended; what is said meanwhile, beginning with the echo of what was typed."""
        # The echo must not be taken for the word itself.
        self.type(f"{command}; echo do''ne")
        return self.read_until("done\\n")

    def close(self) -> None:
        """The terminal is closed, as by a click: who is on it gets SIGHUP."""
        fd, self._fd = self._fd, -1
        self._reader.join()
        if fd >= 0:
            os.close(fd)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.close()
        self._home.cleanup()


@contextlib.contextmanager
def terminal(name: str, address: str, **environment: str) -> Iterator[Terminal]:
    """A shell that has not read the hook yet."""
    made = Terminal(SHELLS[name][0], address, **environment)
    try:
        yield made
    finally:
        made.end()


def source(name: str, hook: Path | None = None) -> str:
    """What is typed to read the hook."""
    return f"{'source' if name in ('zsh', 'fish') else '.'} {hook or HOOKS / SHELLS[name][1]}"
