"""The extension's own modules in gjs, the language of GNOME Shell, as each release of the shell loads them."""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
GNOME = TOP / "desktop" / "gnome"

BOUND_S = 60.0


class Program:
    """A program of this folder with a build's modules: lines of JSON go in and come out."""

    def __init__(self, build: Path, release: str, name: str, environment: Mapping[str, str] | None = None) -> None:
        loader = [str(HERE / "imports.js")] if release == "43" else ["-m", str(HERE / "modules.js")]
        self._process = subprocess.Popen(
            ["gjs", *loader, str(build), str(HERE / f"{name}.js")],
            env={**os.environ, "LANG": "C.UTF-8", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = (
            threading.Thread(target=self._read, args=(self._process.stdout, self._lines.put)),
            threading.Thread(target=self._read, args=(self._process.stderr, self._errors.append)),
        )
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, keep: Callable[[str], None]) -> None:
        for line in stream:
            keep(line)
        keep("")

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, *values: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The next line."""
        try:
            line = self._lines.get(timeout=BOUND_S)
        except queue.Empty:
            raise AssertionError(f"gjs said nothing within {BOUND_S:g} s\n{''.join(self._errors)}") from None
        assert line, f"gjs has ended:\n{''.join(self._errors)}"
        return json.loads(line)

    def wait(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first line that is wanted."""
        while True:
            said: dict[str, Any] = self.hear()
            if wanted(said):
                return said

    def errors(self) -> str:
        return "".join(self._errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(BOUND_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
