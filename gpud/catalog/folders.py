"""Looks for models in the folders that people keep them in, and at single ones that a configuration names."""

import re
from collections.abc import Iterable
from fnmatch import translate
from pathlib import Path

from gpud.catalog import huggingface, names, parts, safetensors
from gpud.catalog.content import Content, content_of
from gpud.catalog.stream import visible
from gpud.catalog.walk import File, Walk
from gpud.core.catalogue import Source
from gpud.core.record import Record

DEEPEST = 32
"""So many folders below a root are entered; links can make a way of any length."""


class Patterns:
    """Which paths below a folder are wanted. ``*`` also stands for slashes; a pattern without a slash is also compared
    with the name alone. One that fits a folder counts for all that is in it.
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        self._include = _AnyOf.of(include)
        self._exclude = _AnyOf.of(exclude)

    def enters(self, below: str) -> bool:
        """Whether a folder may have something that is wanted."""
        return self._exclude is None or not (self._exclude.fits(below) or self._exclude.fits(f"{below}/"))

    def takes(self, below: str) -> bool:
        """Whether a file is wanted that no folder above it rules out."""
        if self._exclude is not None and self._exclude.fits(below):
            return False
        return self._include is None or self._include.fits(below)


class _AnyOf(Record):
    """Some patterns: all of them for whole paths, those without a slash for names."""

    whole: re.Pattern[str]
    named: re.Pattern[str] | None

    @classmethod
    def of(cls, patterns: Iterable[str]) -> "_AnyOf | None":
        listed = tuple(patterns)
        if not listed:
            return None
        named = [translate(pattern) for pattern in listed if "/" not in pattern]
        return cls(re.compile("|".join(map(translate, listed))), re.compile("|".join(named)) if named else None)

    def fits(self, below: str) -> bool:
        if self.whole.match(below):
            return True
        return self.named is not None and self.named.match(below.rpartition("/")[2]) is not None


def look_into(walk: Walk, root: str, patterns: Patterns) -> None:
    """Everything below a root."""
    waiting = [(root, "", 0, False)]
    while waiting:
        folder, below, depth, inside = waiting.pop()
        content = content_of(walk, folder)
        _select(content, below, patterns)
        walk.items += parts.models_of(content, Source.FOLDER, folder)
        if not inside:
            name = visible(folder.rpartition("/")[2])
            inside = safetensors.look(walk, folder, content, Source.FOLDER, name)
        for name in content.folders:
            path, here = _join(folder, name), f"{below}/{name}" if below else name
            if not patterns.enters(here):
                continue
            if huggingface.is_repository(name):
                huggingface.look_into_repository(walk, path)
            elif depth < DEEPEST:
                waiting.append((path, here, depth + 1, inside))
            else:
                walk.trouble(path, f"it lies more than {DEEPEST} folders below {visible(root)}: it was not looked into")


def _join(folder: str, name: str) -> str:
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"


def _select(content: Content, below: str, patterns: Patterns) -> None:
    """Leave out what the patterns do not want."""
    prefix = f"{below}/" if below else ""
    for kind in (content.ggufs, content.weights):
        for name in [name for name in kind if not patterns.takes(prefix + name)]:
            del kind[name]


def look_at(walk: Walk, path: str) -> None:
    """One model that somebody named: a GGUF file with its other parts, or a folder of SafeTensors."""
    walk.step()
    folder, _, name = path.rpartition("/")
    try:
        status = Path(path).stat()
        path.encode()
    except (OSError, ValueError):
        return  # Whoever loads it says what is wrong with it.
    walk.enter(folder or "/")
    if Path(path).is_dir():
        walk.enter(path)
        safetensors.look(walk, path, content_of(walk, path), Source.CONFIGURATION, visible(name))
        return
    if not Path(path).is_file():
        return
    walk.files += 1
    part = names.part_of(name)
    content = Content({name: File.of(path, status)})
    if part is not None:
        stem, _, count = part
        for number in range(1, min(count, 1000) + 1):
            other = names.part_name(stem, number, count)
            try:
                content.ggufs[other] = File.of(f"{folder}/{other}", Path(f"{folder}/{other}").stat())
            except OSError:
                continue
    for item in parts.models_of(content, Source.CONFIGURATION, ""):
        walk.items.append(item)
