"""Somebody who types ``gpudctl pull``: with a home, a hub, and a bus on which a daemon may be."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from daemon.harness import TOP, Place

BOUND_S = 60.0


class Running:
    """One gpudctl beside the test, read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: dict[str, list[str]] = {"out": [], "err": []}
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=("out", process.stdout)),
            threading.Thread(target=self._read, args=("err", process.stderr)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            with self._news:
                self._lines[name].append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def text(self, name: str = "err") -> str:
        with self._news:
            return "".join(self._lines[name])

    def until(self, text: str, name: str = "err") -> None:
        """Return when this was printed."""
        with self._news:
            found = self._news.wait_for(
                lambda: any(text in line for line in self._lines[name]) or not any(r.is_alive() for r in self._readers),
                BOUND_S,
            )
            assert found and any(text in line for line in self._lines[name]), (text, self._lines)

    def puller(self) -> int:
        """The process that downloads, which is its only child."""
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def kill9(self) -> None:
        self.process.kill()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its status."""
        try:
            self.process.wait(BOUND_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join(BOUND_S)
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        return int(self.process.returncode)


class User:
    """``folder`` is where this user's gpud looks for models."""

    def __init__(self, place: Place, hub: str) -> None:
        self.place = place
        self.folder = place.root / ".local" / "share" / "gpud" / "models"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place.root),
            "XDG_RUNTIME_DIR": str(place.runtime),
            "XDG_STATE_HOME": str(place.state),
            "DBUS_SESSION_BUS_ADDRESS": place.address,
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={place.root / 'no-system-bus'}",
            "HF_ENDPOINT": hub,
            "PYTHONPATH": str(TOP),
            "LANG": "C.UTF-8",
            "NO_PROXY": "*",
        }
        # The file that gpudctl looks at is the one that the daemon was given.
        config = place.root / ".config" / "gpud"
        config.mkdir(parents=True)
        (config / "gpud.yaml").symlink_to(place.config)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "gpud.cli", *words]

    def gpudctl(self, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words),
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )

    @contextmanager
    def running(self, *words: str, **more: str) -> Iterator[Running]:
        """At the end of the block it has ended, whatever happened."""
        made = Running(
            subprocess.Popen(
                self.command(*words),
                env=self.environment | more,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        try:
            yield made
        finally:
            if made.process.poll() is None:
                made.process.kill()
            with suppress(ValueError):
                made.end()

    def objects(self, *words: str, **more: str) -> tuple[int, list[dict[str, Any]]]:
        done = self.gpudctl("--json", *words, **more)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def at_terminal(self, *words: str, typed: str = "") -> tuple[int, str]:
        """Its status, and all that a terminal was shown."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            self.command(*words),
            env=self.environment | {"TERM": "xterm", "COLUMNS": "160"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        shown, answered = b"", False
        try:
            while select.select([ours], [], [], BOUND_S)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:
                    break
                if not data:
                    break
                shown += data
                if b"which one?" in shown and not answered:
                    answered = True
                    os.write(ours, typed.encode())
            return process.wait(BOUND_S), shown.decode()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(ours)
