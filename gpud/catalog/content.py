"""What of one folder is about models, by the names in it; which names are no models, or no models yet."""

import os

from gpud.catalog.walk import File, Walk
from gpud.core.record import Struct, field

IGNORED_FOLDERS = frozenset(("cache", "tmp", "lost+found"))
"""Folders with these names, and those that begin with a dot, have nothing that somebody put there to be used."""

PARTIAL_ENDINGS = frozenset(
    ("incomplete", "part", "partial", "tmp", "temp", "crdownload", "opdownload", "download", "aria2", "!qb", "!ut")
)
"""What programs that download append to a name for as long as they do."""

DESCRIPTIONS = frozenset(
    (
        "config.json",
        "adapter_config.json",
        "model.safetensors.index.json",
        "model_index.json",
        "modules.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
    )
)
"""What stands beside SafeTensors and says what they are."""


class Content(Struct):
    """By name: GGUF files; SafeTensors and what describes them; folders. ``links`` are the names of those that are
    links, ``partial`` of those that somebody is downloading.
    """

    ggufs: dict[str, File] = field(default_factory=dict)
    weights: dict[str, File] = field(default_factory=dict)
    described: dict[str, File] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    partial: set[str] = field(default_factory=set)


def content_of(walk: Walk, folder: str) -> Content:
    """What the folder has. Of its folders only those that are to be entered, and were not."""
    found = Content()
    for entry in walk.entries(folder):
        name = entry.name
        if name.startswith("."):
            continue
        stem, _, ending = name.rpartition(".")
        ending = ending.lower()
        if ending == "gguf":
            _sort(walk, entry, found.ggufs, found)
        elif ending == "safetensors":
            _sort(walk, entry, found.weights, found)
        elif ending in PARTIAL_ENDINGS:
            found.partial.add(stem)
        elif name in DESCRIPTIONS:
            _sort(walk, entry, found.described, found)
        elif name not in IGNORED_FOLDERS and walk.folder(entry):
            found.folders.append(name)
    for name in found.partial:
        found.ggufs.pop(name, None)
        found.weights.pop(name, None)
    return found


def _sort(walk: Walk, entry: os.DirEntry[str], kind: dict[str, File], found: Content) -> None:
    if _is_folder(entry):
        if walk.folder(entry):
            found.folders.append(entry.name)
        return
    file = walk.file(entry)
    if file is not None:
        kind[entry.name] = file
        if entry.is_symlink():
            found.links.add(entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
