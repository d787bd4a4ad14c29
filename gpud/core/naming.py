"""How models that were found get their names. A name that somebody may have written down stays with its model."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice

from gpud.core.catalogue import Entry, Found, Source
from gpud.core.counts import NONE_THERE
from gpud.core.record import Record

LONGEST = 128
"""As in a configuration: more is cut."""

COMMANDS = frozenset(("all", "default", "status", "scan", "load", "unload"))
"""Words that surfaces use for themselves below a path where names stand, too."""

LATEST = ":latest"
"""The tag that Ollama's clients add to a name without one."""


_SHOWN = 10


class Named(Record):
    """A model that was found, what it is called, and what was known of it before."""

    name: str
    found: Found
    known: Entry | None = None


def usable(text: str) -> str:
    """The nearest name that is allowed: what clients type must survive a URL, a shell and a log line."""
    text = re.sub(r"[^A-Za-z0-9._:/@+-]+", "-", text).strip("-")
    text = re.sub(r"^[^A-Za-z0-9]+", "", text)[:LONGEST]
    return text or "model"


def brief(text: str) -> str:
    """For a message about what somebody took for a name; it may be a whole file."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def those_there(names: Collection[str]) -> str:
    """For whoever asked for a model that is not among them; few are named, of thousands."""
    shown = ", ".join(islice(names, _SHOWN))
    match len(names):
        case 0:
            return NONE_THERE
        case 1:
            return f'the only one is "{shown}"'
        case number:
            return f"there are {shown}" + (f" and {number - _SHOWN} more" if number > _SHOWN else "")


def listed_name(name: str) -> str:
    """As Ollama writes it: with a tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + LATEST


def ollamas_own_name(name: str) -> str:
    """One writing for each of Ollama's names, in which its defaults are spelled out."""
    text = name.split("://", 1)[-1].casefold()
    for default in ("registry.ollama.ai/", "library/"):
        text = text.removeprefix(default)
    return listed_name(text)


def shown_path(path: str) -> str:
    """A path as text can carry it: bytes that are no text are written as such."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_all(
    found: Sequence[Found],
    known: Sequence[Entry],
    configured: Mapping[str, str],
    taken: Collection[str],
    reserved: Collection[str] = (),
) -> tuple[Named, ...]:
    """Every model under a name of its own.

    ``known`` are the entries of earlier times: what lies where one of them lay has its name again, wherever it was
    found first. ``configured`` are the paths that the configuration names, with the names there; such a model is that
    one. ``taken`` are names and aliases that the configuration or somebody by command has given to others, ``reserved``
    the names of those that are away and not among the ``known``.
    """
    by_path = {place.path: entry for entry in known for place in reversed(entry.found.places)}
    by_name = {entry.name: entry for entry in known}
    by_digest = {entry.found.digest: entry for entry in known if entry.found.digest}
    by_stamp = {entry.found.stamp: entry for entry in known if entry.found.stamp}
    by_likeness = {_likeness(entry.found): entry for entry in known}
    pasts_by: tuple[Callable[[Found], Entry | None], ...] = (
        lambda one: next((by_path[place.path] for place in one.places if place.path in by_path), None),
        lambda one: by_digest.get(one.digest) if one.digest else None,
        # It was renamed: the very same file.
        lambda one: by_stamp.get(one.stamp) if one.stamp else None,
        # It was moved: the same name, the same size, the same kind.
        lambda one: by_likeness.get(_likeness(one)),
    )
    names: dict[int, str] = {}
    pasts: dict[int, Entry] = {}
    used = set(taken) | COMMANDS
    claimed: set[int] = set()
    for index, one in enumerate(found):
        mine = next((configured[place.path] for place in one.places if place.path in configured), None)
        if mine is not None:
            names[index] = mine
            used.add(mine)
            entry = by_name.get(mine) or pasts_by[0](one)
            if entry is not None and entry.id not in claimed:
                claimed.add(entry.id)
                pasts[index] = entry
    for past_of in pasts_by:
        for index, one in enumerate(found):
            if index in names:
                continue
            entry = past_of(one)
            if entry is None or entry.id in claimed or entry.name in used:
                continue
            claimed.add(entry.id)
            pasts[index] = entry
            names[index] = entry.name
            used.add(entry.name)
    # What is gone keeps its name for when it comes back, as long as nobody else has to have it.
    avoided = {*reserved, *(entry.name for entry in known if entry.id not in claimed)}
    for index, one in enumerate(found):
        if index not in names:
            names[index] = _free(one, used, avoided)
            used.add(names[index])
    return tuple(Named(names[index], one, pasts.get(index)) for index, one in enumerate(found))


def other_names(entries: Sequence[Entry], taken: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What each may be called besides, after its other places: only what nobody else is called. Most have none."""
    used = {*taken, *COMMANDS}
    for entry in entries:
        used.add(entry.name)
        used.update(entry.aliases)
    found = {entry.name: tuple(_others(entry.found, used)) for entry in entries}
    return {name: others for name, others in found.items() if others}


def _likeness(one: Found) -> tuple[str, int, str, str]:
    return usable(one.places[0].name), one.size_bytes, one.architecture, one.quantization


def _free(one: Found, used: Collection[str], reserved: Collection[str]) -> str:
    candidates = list(_candidates(one))
    for taken in ((used, reserved), (used,)):
        for name in candidates:
            if not any(name in names for names in taken):
                return name
    number = 2
    while f"{candidates[0][: LONGEST - 8]}-{number}" in used:
        number += 1
    return f"{candidates[0][: LONGEST - 8]}-{number}"


def _candidates(one: Found) -> Iterator[str]:
    """The short name first, then with as much of its path as tells it from others."""
    for place in one.places:
        yield _short(place.name, place.source)
    folders = [part for part in one.path.split("/")[:-1] if part]
    short = _short(one.places[0].name, one.places[0].source).rsplit("/", 1)[-1]
    for count in range(1, len(folders) + 1):
        yield usable("/".join((*folders[-count:], short)))


def _short(name: str, source: Source) -> str:
    if source is Source.OLLAMA:
        name = name.removesuffix(LATEST)
    return usable(name)


def _others(one: Found, used: set[str]) -> Iterator[str]:
    for place in one.places:
        for alias in (_short(place.name, place.source), usable(place.name)):
            if alias not in used:
                used.add(alias)
                yield alias
