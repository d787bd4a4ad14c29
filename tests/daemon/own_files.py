"""A daemon that sees other files than this machine has below /proc and /sys: a mount namespace of its own."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .harness import Place


def show(place: Place, files: Mapping[str, Path]) -> None:
    """Daemons that are started from now on see these folders in place of those, and whatever changes in them."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("a mount namespace is made by root alone")
    binds = " && ".join(f"mount --bind {shlex.quote(str(here))} {there}" for there, here in files.items())
    enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{binds} && exec "$@"', "sh"]

    def command(words: list[str]) -> dict[str, Any]:
        return {"args": [*enter, *words]}

    place.command = command


def nvidia_driver(place: Place, **settings: int) -> None:
    """As /proc/driver/nvidia is where NVIDIA's driver is loaded, with these of its settings."""
    folder = place.root / "proc-driver"
    (folder / "nvidia").mkdir(parents=True)
    lines = ["ResmanDebugLevel: 4294967295", *(f"{name}: {value}" for name, value in settings.items())]
    (folder / "nvidia" / "params").write_text("\n".join(lines) + "\n")
    show(place, {"/proc/driver": folder})
