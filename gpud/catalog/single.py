"""Looks at single files that have come, gone or changed, where nothing else has to be known to tell what they are.

A model whose parts, projector, draft or copies lie elsewhere is not looked at alone: whoever asks looks at everything.
"""

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from gpud.catalog import huggingface, names
from gpud.catalog.content import PARTIAL_ENDINGS
from gpud.catalog.folders import Patterns
from gpud.catalog.glance import Role
from gpud.catalog.look import Look, Memory
from gpud.catalog.stream import visible
from gpud.catalog.walk import File, Item, Walk
from gpud.core.catalogue import Found, Place, Roots, Source


def items_at(walk: Walk, roots: Roots, paths: Collection[str], memory: Memory) -> bool:
    """Add those of these files that are there. False: what they are depends on others."""
    patterns = Patterns(roots.include, roots.exclude)
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        if path in roots.files or path in memory.seen:
            return False
        folder, _, name = path.rpartition("/")
        wanted[folder or "/"].add(name)
    for folder, mine in wanted.items():
        below = _below(folder, roots)
        if below is None or folder in memory.shared or _says_role(folder):
            return False
        if not _add(walk, folder, below, mine, patterns):
            return False
    return True


def _add(walk: Walk, folder: str, below: str, mine: set[str], patterns: Patterns) -> bool:
    try:
        with os.scandir(folder) as entries:
            listed = [entry.name for entry in entries]
    except OSError:
        return False
    if any(map(_says_role, listed)):
        return False
    partial = {stem for stem, _, ending in (name.rpartition(".") for name in listed) if ending in PARTIAL_ENDINGS}
    for name in sorted(mine.intersection(listed)):
        if name in partial or (names.part_of(name) or ("", 1, 1))[2] > 1 or not _is_text(name):
            return False
        path = f"{'' if folder == '/' else folder}/{name}"
        try:
            status = Path(path).lstat()
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        if patterns.takes(f"{below}{name}"):
            walk.files += 1
            place = Place(path, Source.FOLDER, visible(names.stem_of(name)))
            walk.items.append(Item((place,), (File.of(path, status),), home=folder))
    return True


def _below(folder: str, roots: Roots) -> str | None:
    """The way from its root to a folder, for patterns; None where it lies in a store, or in more than one root."""
    if any(_holds(root, folder) for root in (*roots.huggingface, *roots.ollama)):
        return None
    tops = [root for root in roots.folders if _holds(root, folder)]
    if len(tops) != 1:
        return None
    below = folder[len(tops[0].rstrip("/")) :].strip("/")
    if any(huggingface.is_repository(part) for part in below.split("/")):
        return None
    return f"{below}/" if below else ""


def _holds(root: str, folder: str) -> bool:
    return f"{folder.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")


def _says_role(name: str) -> bool:
    """Whether what is called so may belong to others."""
    lower = name.lower()
    return "mmproj" in lower or "draft" in lower


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_models_alone(look: Look, known: Mapping[str, Found], memory: Memory) -> bool:
    """Whether each is a whole model, and none has a size that another one has: that may be the same."""
    if any(item.problem or (item.glance and item.glance.role is not Role.MODEL) for item in look.items):
        return False
    sizes = Counter(item.size_bytes for item in look.items)
    before = Counter(found.size_bytes for found in known.values())
    return all(count == 1 and memory.sizes.count(size) <= before[size] for size, count in sizes.items())


def remember(look: Look, paths: Collection[str], known: Mapping[str, Found], memory: Memory) -> None:
    """What the next look has to know of this one."""
    for found in known.values():
        if found.size_bytes in memory.sizes:
            memory.sizes.remove(found.size_bytes)
    memory.sizes.extend(item.size_bytes for item in look.items)
    memory.unsettled = (memory.unsettled - frozenset(paths)) | look.unsettled()
