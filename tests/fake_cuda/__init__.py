"""Builds the stand-in for CUDA's library, which fails as a test says: ``cuda.c`` has what it can do.

It stands beside that for NVML (``fake_nvml``), without which no GPU is tried.
"""

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda.c")
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared")


class FakeCuda:
    """Works until :meth:`fail` is called. ``folder`` is made, and is this object's alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._file = folder / "fails"
        library = folder / "libcuda.so.1"
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, "-o", str(library), str(SOURCE)], check=True)
        self.work()

    def environment(self, other: dict[str, str]) -> dict[str, str]:
        """``other``, which says where further libraries are, with this one."""
        paths = [str(self._folder), *filter(None, [other.get("LD_LIBRARY_PATH", "")])]
        return {**other, "LD_LIBRARY_PATH": ":".join(paths), "GPUD_FAKE_CUDA": str(self._file)}

    def fail(self, function: str = "cuInit", how: int | str = 999) -> None:
        """From the next call on: with that code, or ``hang``."""
        self._say(f"{function} {how}\n")

    def work(self) -> None:
        self._say("")

    def _say(self, text: str) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._file)
