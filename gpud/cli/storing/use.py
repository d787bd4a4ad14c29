"""What files take on the disk. Follows no link, counts each file once however often it is linked, changes nothing."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpud.core.record import Struct, field

BLOCK = 512
"""What ``st_blocks`` counts in."""


class Use(Struct):
    """One file or folder with all that is in it. ``taken_bytes`` is what the disk has given for it."""

    name: str
    path: Path
    taken_bytes: int = 0
    files: int = 0
    is_folder: bool = False
    leads_to: str = ""
    inside: list["Use"] = field(default_factory=list)


def measured(paths: Sequence[Path], unread: Callable[[OSError], None]) -> list[Use]:
    """The whole trees. What cannot be read is told and left out; a file that is in several of them is in the first."""
    seen: set[tuple[int, int]] = set()
    return [_use(path, path.name or str(path), seen, unread) for path in paths]


def _use(path: Path, name: str, seen: set[tuple[int, int]], unread: Callable[[OSError], None]) -> Use:
    use = Use(name, path)
    try:
        status = path.lstat()
    except OSError as problem:
        unread(problem)
        return use
    if stat.S_ISLNK(status.st_mode):
        use.leads_to = str(path.readlink())
    if stat.S_ISDIR(status.st_mode):
        use.is_folder = True
    elif (status.st_dev, status.st_ino) in seen:
        return use
    else:
        seen.add((status.st_dev, status.st_ino))
        use.files = 1
    use.taken_bytes = status.st_blocks * BLOCK
    if use.is_folder:
        try:
            names = sorted(os.listdir(path))  # noqa: PTH208 -- names in any bytes
        except OSError as problem:
            unread(problem)
            return use
        for each in names:
            part = _use(path / each, each, seen, unread)
            use.inside.append(part)
            use.taken_bytes += part.taken_bytes
            use.files += part.files
    return use


def files_below(path: Path, unread: Callable[[OSError], None]) -> Iterator[tuple[Path, os.stat_result]]:
    """Every plain file, without following links."""
    for folder, _, names in os.walk(path, onerror=unread):
        for name in names:
            file = Path(folder) / name
            try:
                status = file.lstat()
            except OSError as problem:
                unread(problem)
                continue
            if stat.S_ISREG(status.st_mode):
                yield file, status


def open_files() -> set[tuple[int, int]]:
    """Device and inode of what processes have open or mapped, as far as this user may look."""
    found: set[tuple[int, int]] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            found |= _opened(process) | _mapped(process)
    return found


def _opened(process: Path) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    try:
        for descriptor in (process / "fd").iterdir():
            status = descriptor.stat()
            found.add((status.st_dev, status.st_ino))
    except OSError:
        # It has ended, or belongs to somebody else.
        return found
    return found


def _mapped(process: Path) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    try:
        lines = (process / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] != "0":
            major, _, minor = fields[3].partition(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    return found
