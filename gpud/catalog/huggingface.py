"""Looks for models in caches of the Hugging Face hub: ``models--ORG--REPO`` with ``refs``, ``snapshots`` and ``blobs``.

A snapshot has links to blobs, or the files themselves where links cannot be made. What an older revision has and the
current one has too is the same file in an older state: it is not listed.
"""

import re
from pathlib import Path

from gpud.catalog import parts, safetensors
from gpud.catalog.content import Content, content_of
from gpud.catalog.stream import visible
from gpud.catalog.walk import Walk, small_file
from gpud.core.catalogue import Source

PREFIX = "models--"

REVISION_LIMIT_BYTES = 256
"""What ``refs/main`` holds: the 40 digits of a commit."""

DEEPEST = 8
"""So many folders inside of a snapshot are entered; repositories have one or two."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_repository(folder_name: str) -> bool:
    return folder_name.startswith(PREFIX) and len(folder_name) > len(PREFIX)


def look_into(walk: Walk, root: str) -> None:
    """Every repository of a cache."""
    for entry in walk.entries(root):
        if is_repository(entry.name) and walk.folder(entry):
            look_into_repository(walk, entry.path)


def look_into_repository(walk: Walk, path: str) -> None:
    """The current revision first: what it has, the others do not have any more."""
    name = path.rpartition("/")[2].removeprefix(PREFIX).replace("--", "/", 1)
    walk.enter(path)
    listed: set[str] = set()
    for snapshot in _snapshots(walk, path):
        waiting = [(snapshot, "", 0)]
        inside = False
        while waiting:
            folder, below, depth = waiting.pop()
            content = content_of(walk, folder)
            _forget_older(content, below, listed)
            for item in parts.models_of(content, Source.HUGGINGFACE, path):
                if len(item.files) == 1 and item.path.rpartition("/")[2] in content.links:
                    item.digest = _digest(item.path)
                walk.items.append(item)
            if not inside:
                inside = safetensors.look(walk, folder, content, Source.HUGGINGFACE, visible(f"{name}{below}"))
            if depth < DEEPEST:
                waiting += [(f"{folder}/{one}", f"{below}/{one}", depth + 1) for one in content.folders]


def _snapshots(walk: Walk, repository: str) -> list[str]:
    """The folders of the revisions, the current one first, then the others by age; ``latest`` is a second name."""
    found: list[tuple[bool, bool, int, str, str]] = []
    entries = [entry for entry in walk.entries(f"{repository}/snapshots") if not entry.name.startswith(".")]
    current = _current(walk, repository) if len(entries) > 1 else ""
    for entry in entries:
        try:
            if entry.is_dir():
                age = -entry.stat().st_mtime_ns
                found.append((entry.name != current, entry.name == "latest", age, entry.name, entry.path))
        except OSError:
            continue
    # Whoever is first here is the one that is listed: only then it counts as visited.
    return [path for *_, path in sorted(found) if _is_new(walk, path)]


def _is_new(walk: Walk, path: str) -> bool:
    try:
        path.encode()
        return walk.visit(Path(path).stat())
    except (OSError, UnicodeEncodeError):
        return False


def _current(walk: Walk, repository: str) -> str:
    refs = f"{repository}/refs"
    walk.enter(refs)
    try:
        return small_file(f"{refs}/main", REVISION_LIMIT_BYTES).decode("ascii", "replace").strip()
    except (OSError, ValueError):
        return ""


def _forget_older(content: Content, below: str, listed: set[str]) -> None:
    for kind in (content.ggufs, content.weights):
        for name in list(kind):
            path = f"{below}/{name}"
            if path in listed:
                del kind[name]
            else:
                listed.add(path)


def _digest(path: str) -> str:
    """The SHA-256 of the content, where the link leads to a blob that is called by it."""
    try:
        target = Path(path).readlink().name
    except OSError:
        return ""
    return target if _DIGEST.fullmatch(target) else ""
