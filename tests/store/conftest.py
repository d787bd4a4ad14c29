"""A place for a store, and small file systems that can be filled."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def small(tmp_path: Path, place: Place) -> Iterator[Callable[[Path], None]]:
    """``small(path)`` puts a file system of 400 KiB there."""
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "gpud-test", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        mounted.append(path)

    yield mount
    place.close()
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)
