"""Empties the folder ``cache`` of the store: never what is in use, never anything outside of it."""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from gpud.cli.storing.use import BLOCK
from gpud.core.errors import GpudError
from gpud.core.record import Struct, field


class Cleaned(Struct):
    """``freed_bytes`` counts a file when the last of its links goes. ``kept`` are paths, each with why."""

    removed: int = 0
    freed_bytes: int = 0
    kept: list[tuple[Path, str]] = field(default_factory=list)


def clean(top: Path, in_use: Collection[tuple[int, int]], *, really: bool) -> Cleaned:
    """Remove what is below ``top``; links are removed, not followed, and other disks that are mounted there are left.

    Works on descriptors of folders, so that nobody can put a link in the place of one meanwhile.
    """
    cleaned = Cleaned()
    try:
        folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return cleaned
    except OSError as problem:
        raise GpudError(
            f"cannot clean {top}: {problem.strerror}", hint="it must be a folder, not a link to one, and readable"
        ) from problem
    try:
        _clean(folder, top, os.fstat(folder).st_dev, in_use, cleaned, really=really)
    finally:
        os.close(folder)
    return cleaned


def _clean(
    folder: int, path: Path, device: int, in_use: Collection[tuple[int, int]], cleaned: Cleaned, *, really: bool
) -> bool:
    """Returns whether it is empty now (or would be)."""
    empty = True
    for name in _names(folder, path, cleaned):
        try:
            empty &= _remove(folder, name, path / name, device, in_use, cleaned, really=really)
        except OSError as problem:
            cleaned.kept.append((path / name, f"cannot be removed: {problem.strerror}"))
            empty = False
    return empty


def _names(folder: int, path: Path, cleaned: Cleaned) -> Iterator[str]:
    try:
        yield from sorted(os.listdir(folder))
    except OSError as problem:
        cleaned.kept.append((path, f"cannot be read: {problem.strerror}"))


def _remove(
    folder: int,
    name: str,
    path: Path,
    device: int,
    in_use: Collection[tuple[int, int]],
    cleaned: Cleaned,
    *,
    really: bool,
) -> bool:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if status.st_dev != device:
        cleaned.kept.append((path, "is on another disk that is mounted there"))
        return False
    if stat.S_ISDIR(status.st_mode):
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not _clean(inner, path, device, in_use, cleaned, really=really):
                return False
        finally:
            os.close(inner)
        if really:
            os.rmdir(name, dir_fd=folder)
        cleaned.freed_bytes += status.st_blocks * BLOCK
        return True
    if (status.st_dev, status.st_ino) in in_use:
        cleaned.kept.append((path, "is in use"))
        return False
    if really:
        os.unlink(name, dir_fd=folder)
    cleaned.removed += 1
    if status.st_nlink == 1:
        cleaned.freed_bytes += status.st_blocks * BLOCK
    return True
