"""Files with the same content, and what they cost; may make them one file."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpud.cli.storing.use import files_below
from gpud.core.record import Record

LEAST_BYTES = 1 << 20
"""Smaller files cost nothing worth a question."""

PIECE_BYTES = 4 << 20
HEAD_BYTES = 64 << 10


class Same(Record):
    """Files with one content. Each of ``copies`` is one on a disk, with all its names: hard links cost nothing."""

    digest: str
    size_bytes: int
    copies: tuple[tuple[Path, ...], ...]

    @property
    def wasted_bytes(self) -> int:
        """What all but one take."""
        return self.size_bytes * (len(self.copies) - 1)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for copy in self.copies for file in copy)


def duplicates(tops: Sequence[Path], unread: Callable[[OSError], None]) -> Iterator[Same]:
    """Those below all of these folders. Of files of one size the beginnings are compared, then the whole."""
    by_size: dict[int, dict[tuple[int, int], list[Path]]] = {}
    for top in tops:
        for file, status in files_below(top, unread):
            if status.st_size >= LEAST_BYTES:
                names = by_size.setdefault(status.st_size, {}).setdefault((status.st_dev, status.st_ino), [])
                if file not in names:
                    names.append(file)
    for size_bytes, copies in sorted(by_size.items(), reverse=True):
        for alike in _by([tuple(sorted(names)) for names in copies.values()], _beginning, unread).values():
            for digest, same in _by(alike, _digest, unread).items():
                yield Same(digest, size_bytes, tuple(sorted(same)))


Copy = tuple[Path, ...]


def _by(copies: Sequence[Copy], key: Callable[[Path], str], unread: Callable[[OSError], None]) -> dict[str, list[Copy]]:
    """Those that have the same key as another one."""
    groups: dict[str, list[Copy]] = {}
    for copy in copies if len(copies) > 1 else ():
        try:
            groups.setdefault(key(copy[0]), []).append(copy)
        except OSError as problem:
            unread(problem)
    return {found: group for found, group in groups.items() if len(group) > 1}


def _beginning(file: Path) -> str:
    return _read_digest(file, HEAD_BYTES)


def _digest(file: Path) -> str:
    """In the words of a store whose names are digests, else by reading all of it."""
    named = re.fullmatch(r"(?:sha256-)?([0-9a-f]{64})", file.name)
    if named is not None and file.parent.name == "blobs":
        return named[1]
    return _read_digest(file, None)


def _read_digest(file: Path, most_bytes: int | None) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        left = most_bytes
        while piece := stream.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES)):
            digest.update(piece)
            if left is not None:
                left -= len(piece)
    return digest.hexdigest()


def link(same: Same) -> Iterator[tuple[Path, str]]:
    """Make all of them one file, where they are on one disk; tells of each what has come of it (empty: done).

    Each copy is replaced in one step: whoever has it open keeps reading what it had.
    """
    first, *others = (copy[0] for copy in same.copies)
    names = {copy[0]: copy for copy in same.copies}
    for file in (name for other in others for name in names[other]):
        beside = file.with_name(f".{file.name[:200]}.gpud-link")
        try:
            its, mine = file.stat(), first.stat()
            if its.st_dev != mine.st_dev:
                yield file, f"is on another disk than {first}"
                continue
            if (its.st_uid, its.st_gid, its.st_mode) != (mine.st_uid, mine.st_gid, mine.st_mode):
                # One file has one owner: whoever may read this one might not be able to any more.
                yield file, f"has another owner or other rights than {first}: make them the same first"
                continue
            if _digest(first) != _read_digest(file, None):
                yield file, "has changed meanwhile"
                continue
            os.link(first, beside)
            beside.replace(file)
            yield file, ""
        except OSError as problem:
            beside.unlink(missing_ok=True)
            yield file, f"cannot be linked: {problem.strerror}"
