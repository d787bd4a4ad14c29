"""Finds which models are the same, wherever they lie and whatever they are called; never reads one wholly.

The same file by another name is the same, and what stores call by the same digest. Of others only those of one size are
compared: their beginnings, and where those are equal samples from all over them.
"""

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from hashlib import blake2b
from stat import S_ISREG
from zlib import crc32

from gpud.catalog.glance import HEAD_BYTES
from gpud.catalog.walk import File, Item

SAMPLES = 64
SAMPLE_BYTES = 4096
"""Two models of one size that differ at all differ nearly everywhere: weights are close to random."""


class Copies:
    """Remembers samples of files for as long as these stay as they were and are looked at. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[File, bytes] = {}
        self._used: dict[File, bytes] = {}

    def groups(self, items: Sequence[Item], together: dict[int, Hashable]) -> list[list[Item]]:
        """The items, those with the same content together. ``together`` says of some of them, by ``id``, what group
        they were found to belong to: those of different groups are not compared.
        """
        leaders = list(range(len(items)))

        def leader(index: int) -> int:
            while leaders[index] != index:
                leaders[index] = leaders[leaders[index]]
                index = leaders[index]
            return index

        seen: dict[Hashable, int] = {}
        for index, item in enumerate(items):
            for mark in _marks(item, together.get(id(item))):
                leaders[leader(index)] = leader(seen.setdefault(mark, index))
        alike: defaultdict[Hashable, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            if leader(index) == index and not item.problem:  # Of what is broken nobody knows what it was.
                alike[item.format, len(item.files), item.size_bytes].append(index)
        for indexes in alike.values():
            if len(indexes) > 1 and any(id(items[index]) not in together for index in indexes):
                for same in self._same(items, indexes):
                    for index in same[1:]:
                        leaders[leader(index)] = leader(same[0])
        groups: defaultdict[int, list[Item]] = defaultdict(list)
        for index, item in enumerate(items):
            groups[leader(index)].append(item)
        self._known, self._used = self._used, {}
        return list(groups.values())

    def _same(self, items: Sequence[Item], indexes: Iterable[int]) -> list[list[int]]:
        by_head: defaultdict[int | None, list[int]] = defaultdict(list)
        for index in indexes:
            by_head[_head(items[index])].append(index)
        found: list[list[int]] = []
        for head, same_head in by_head.items():
            if head is None or len(same_head) < 2:
                continue
            by_samples: defaultdict[tuple[bytes, ...], list[int]] = defaultdict(list)
            for index in same_head:
                samples = tuple(self._samples(file) for file in items[index].files)
                if all(samples):
                    by_samples[samples].append(index)
            found += [same for same in by_samples.values() if not _known_to_differ(items, same)]
        return found

    def _samples(self, file: File) -> bytes:
        """A mark of what all over the file stands; empty where it could not be read, or is another one by now."""
        known = self._known.get(file) or self._used.get(file) or _mark(file)
        if known:
            self._used[file] = known
        return known


def _marks(item: Item, group: Hashable | None) -> Iterable[Hashable]:
    yield item.format, tuple((file.device, file.inode) for file in item.files)
    if item.digest:
        yield item.format, item.digest
    if group is not None:
        yield item.format, "known", group


def _known_to_differ(items: Sequence[Item], indexes: Iterable[int]) -> bool:
    return len({items[index].digest for index in indexes} - {""}) > 1


def _head(item: Item) -> int | None:
    if item.glance is not None and item.glance.head:
        return item.glance.head
    try:
        with _Opened(item.files[0]) as fd:
            return crc32(os.pread(fd, HEAD_BYTES, 0))
    except OSError:
        return None


def _mark(file: File) -> bytes:
    last = max(file.size_bytes - SAMPLE_BYTES, 0)
    mark = blake2b(digest_size=16)
    try:
        with _Opened(file) as fd:
            for number in range(SAMPLES):
                mark.update(os.pread(fd, SAMPLE_BYTES, last * number // (SAMPLES - 1)))
            return mark.digest()
    except OSError:
        return b""


class _Opened:
    """The file, if it is the one that was seen."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._fd = -1

    def __enter__(self) -> int:
        self._fd = os.open(self._file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        status = os.fstat(self._fd)
        if not S_ISREG(status.st_mode) or File.of(self._file.path, status) != self._file:
            os.close(self._fd)
            raise OSError("it is another file by now")
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
