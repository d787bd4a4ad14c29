"""What the files that a look has come across say: recognizes those that are known, and opens the others.

Decides what is told of each model; not where is looked, nor what belongs together.
"""

import os
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from gpud.catalog import names, safetensors
from gpud.catalog.glance import Glance, Role, Stretches, glance
from gpud.catalog.stream import BadModelFile
from gpud.catalog.walk import File, Item, Walk
from gpud.core.catalogue import Format, Found, Source
from gpud.core.record import Struct, field, replace

GROWING_NS = 60 * 10**9
"""A file that is incomplete and was written to within this time is being written: it is not there yet. What is
downloaded under its own name may stand still for some seconds."""

SETTLED_NS = 50_000_000
"""How long a file must have been left alone for its times to be believed: the kernel dates changes by its tick, and one
more change within the same tick would leave the same date."""

ORDER = {Source.FOLDER: 0, Source.HUGGINGFACE: 1, Source.OLLAMA: 2, Source.CONFIGURATION: 3}
"""Which of several places of a model is the one that engines are given."""


class _Seen(NamedTuple):
    """A file that no model is known by: a projector, a draft, a copy. ``copy_of`` are the files of the original."""

    files: tuple[File, ...]
    glance: Glance
    copy_of: tuple[File, ...]


class Memory(Struct):
    """What is kept from one look to the next, beside what whoever looks knows of the models themselves."""

    stretches: Stretches = field(default_factory=Stretches)
    seen: dict[str, _Seen] = field(default_factory=dict)
    unsettled: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    """Folders with files that are no models, which may belong to any model there."""
    sizes: "array[int]" = field(default_factory=lambda: array("Q"))
    """Of all that was found, in no order."""


class Look:
    """One look. ``together`` says of items, by ``id``, which of them were found to be the same before."""

    def __init__(self, walk: Walk, memory: Memory, now_ns: Callable[[], int]) -> None:
        self.together: dict[int, Hashable] = {}
        self.opened = 0
        self.growing = False
        self._walk = walk
        self._memory = memory
        self._now_ns = now_ns()
        # What lies at the same path was reached in two ways.
        self._by_path: dict[str, Item] = {}
        for item in walk.items:
            self._by_path.setdefault(item.path, item)
        self.items = list(self._by_path.values())

    def recognize(self, known: Mapping[str, Found]) -> None:
        """What is as it was is what was said of it then."""
        for found in {id(found): found for found in known.values()}.values():
            first = self._by_path.get(found.path)
            if first is None or not self._is_unchanged(found, first):
                continue
            first.glance, first.known = _told_by(found), found
            self.together[id(first)] = id(found)
            for place in found.places[1:]:
                other = self._by_path.get(place.path)
                if other is not None and other is not first and self._is_copy(other, first):
                    other.glance = first.glance
                    self.together[id(other)] = id(found)

    def _is_unchanged(self, found: Found, first: Item) -> bool:
        if found.problem or not found.stamp or first.path in self._memory.unsettled:
            return False
        belongings = []
        for path in (found.mmproj, found.draft_file):
            if path:
                file = self._belonging(found, path)
                if file is None:
                    return False
                belongings.append(file)
        stamp = stamp_of((*first.files, *first.described, *belongings))
        return stamp == found.stamp and all(file.public or os.access(file.path, os.R_OK) for file in first.files)

    def _belonging(self, found: Found, path: str) -> File | None:
        """What lies there, in a folder, or by the word of a store that has the same model."""
        for place in found.places:
            item = self._by_path.get(place.path)
            for file in (item.mmproj, item.draft) if item is not None else ():
                if file is not None and file.path == path:
                    return file
        return self._by_path[path].files[0] if path in self._by_path else None

    def _is_copy(self, item: Item, first: Item) -> bool:
        if [(file.device, file.inode) for file in item.files] == [(file.device, file.inode) for file in first.files]:
            return True
        seen = self._memory.seen.get(item.path)
        return seen is not None and seen.files == item.files and seen.copy_of == first.files

    # Reading ---------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Open what is not known. What is being written, or is gone by now, is not there."""
        self.items = [item for item in self.items if item.glance is not None or self._read(item)]

    def _read(self, item: Item) -> bool:
        self._walk.step()
        seen = self._memory.seen.get(item.path)
        if seen is not None and seen.files == item.files and not item.described:
            item.glance = seen.glance
            return True
        self.opened += 1
        told = Glance()
        try:
            if item.format is Format.SAFETENSORS:
                told, problem = safetensors.glance(item)
                item.problem = item.problem or problem
            else:
                told = self._glance(item)
        except BadModelFile as problem:
            if isinstance(problem.__cause__, FileNotFoundError):
                return False
            if problem.incomplete and self._is_being_written(item):
                self.growing = True
                return False
            if item.format is not Format.OTHER:  # What its engine takes is its own business.
                item.problem = item.problem or f"{problem.what}; {problem.hint}"
        item.glance = _with_name(told, item)
        return True

    def _glance(self, item: Item) -> Glance:
        """What its first file says, when the others agree with it; raises BadModelFile."""
        stretches = self._memory.stretches
        told = glance(item.files[0].path, stretches)
        if item.format is Format.OTHER:
            return replace(told, role=Role.MODEL)
        part = names.part_of(item.path.rpartition("/")[2])
        number, count = (part[1], part[2]) if part else (1, 1)
        if (told.part, told.parts) != (number - 1, count) and not item.problem:
            item.problem = (
                f"by its content it is part {told.part + 1} of {told.parts}, by its name part {number} of {count}; "
                "give all parts the names back that they had when they were published"
            )
        for file in item.files[1:]:
            glance(file.path, stretches)
        return told

    def _is_being_written(self, item: Item) -> bool:
        latest = max(file.ctime_ns for file in item.files)
        return -GROWING_NS < self._now_ns - latest < GROWING_NS

    # What is kept ----------------------------------------------------------------------------------------------------

    def memory(self, groups: Iterable[Sequence[Item]]) -> Memory:
        """What the next look needs to know of this one."""
        models = set[int]()
        copy_of: dict[int, tuple[File, ...]] = {}
        for group in groups:
            first = best(group)
            models.add(id(first))
            if len(group) > 1:
                copy_of |= {id(item): first.files for item in group if item is not first}
        seen = {
            item.path: _Seen(item.files, item.glance, copy_of.get(id(item), ()))
            for item in self.items
            if id(item) not in models and item.glance is not None and not item.problem
        }
        unsettled = self.unsettled()
        return Memory(
            self._memory.stretches,
            {path: one for path, one in seen.items() if path not in unsettled},
            unsettled,
            frozenset(
                item.path.rpartition("/")[0]
                for item in self.items
                if item.glance is not None and item.glance.role is not Role.MODEL
            ),
            array("Q", [item.size_bytes for item in self.items]),
        )

    def unsettled(self) -> frozenset[str]:
        """Where something was written to so lately that its times say nothing."""
        since_ns = self._now_ns - SETTLED_NS
        return frozenset(
            item.path
            for item in self.items
            if any(file.ctime_ns > since_ns for file in item.files)
            or any(file.ctime_ns > since_ns for file in item.described)
        )


def stamp_of(files: Iterable[File]) -> str:
    """Another one whenever a file is another one, or was written to."""
    text = ";".join([f"{file.device}:{file.inode}:{file.size_bytes}:{file.mtime_ns}" for file in files])
    return blake2b(text.encode(), digest_size=12).hexdigest()


def best(group: Sequence[Item]) -> Item:
    """The one that engines are given. A copy that comes later does not take the place of what may be loaded."""
    return min(group, key=lambda item: (ORDER[item.places[0].source], item.known is None, item.path))


def found_of(group: Sequence[Item]) -> Found:
    """What is told of a model that lies in so many places: the very record that is known, where it says the same."""
    first = best(group)
    if len(group) == 1 and first.known is not None and _says_the_same(first.known, first):
        return first.known
    told = first.glance or Glance()
    digest = next((item.digest for item in group if item.digest), "")
    mmproj = first.mmproj or next((item.mmproj for item in group if item.mmproj), None)
    draft = first.draft or next((item.draft for item in group if item.draft), None)
    belongings = [file for file in (mmproj, draft) if file is not None]
    places = {place: None for item in group for place in item.places}
    found = Found(
        places=tuple(
            sorted(places, key=lambda place: (ORDER[place.source], place.path != first.path, place.path, place.name))
        ),
        format=first.format,
        stamp=stamp_of((*first.files, *first.described, *belongings)),
        size_bytes=first.size_bytes + sum(file.size_bytes for file in belongings),
        digest=digest,
        architecture=told.architecture,
        quantization=told.quantization,
        parameters=told.parameters,
        trained_context=told.trained_context,
        purpose=told.purpose,
        parts=len(first.files),
        mmproj=mmproj.path if mmproj is not None else "",
        draft_file=draft.path if draft is not None else "",
        template=told.template or any(item.template for item in group),
        tools=told.tools or any(item.tools for item in group),
        ollama_name=next((item.ollama_name for item in group if item.ollama_name), ""),
        problem=first.problem,
    )
    return first.known if first.known == found else found


def _says_the_same(known: Found, item: Item) -> bool:
    """Of an item whose files are as they were: whether nothing else is told of it."""
    return (
        known.places == item.places
        and known.mmproj == (item.mmproj.path if item.mmproj is not None else "")
        and known.draft_file == (item.draft.path if item.draft is not None else "")
        and known.digest == item.digest
        and known.ollama_name == item.ollama_name
    )


def _told_by(found: Found) -> Glance:
    return Glance(
        Role.MODEL,
        found.architecture,
        found.quantization,
        found.parameters,
        found.trained_context,
        found.purpose,
        found.template,
        found.tools,
    )


def _with_name(told: Glance, item: Item) -> Glance:
    """What a file does not say of itself its name may say."""
    if told.quantization and told.parameters:
        return told
    name = item.places[0].name
    return replace(
        told,
        quantization=told.quantization or names.quantization(name),
        parameters=told.parameters or names.parameters(name),
    )
