"""``gpudctl models rm``: deletes the files of a model, as the user who asks and after gpud has let go of it.

Nothing is deleted that another model has as well, that lies in another program's store, or that a link only leads to.
Whoever names one copy of a model that is there several times has that copy deleted, and no other.
"""

import os
import re
import stat
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpud.cli.exits import DONE, FAILED, BusError, Usage
from gpud.cli.output import Output, size, visible
from gpud.cli.unload import LOADED
from gpud.core.counts import plural
from gpud.core.errors import GpudError, NoSuchModel
from gpud.core.naming import usable
from gpud.core.record import Record

if TYPE_CHECKING:
    from gpud.cli.client import Gpud


class Undeletable(GpudError):
    """A file stays, whoever else may delete it."""

    code = "access-denied"


class Doomed(Record):
    """What is deleted, links before what they lead to; and what could be expected to be, and stays, as sentences.
    ``left`` are the places in which the model is still there afterwards.
    """

    files: tuple[Path, ...]
    freed_bytes: int
    stays: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def remove(arguments: Namespace, output: Output) -> int:
    """What is asked, is asked while nobody waits for the daemon."""
    from gpud.cli import client

    one, others = client.run(lambda gpud: _known(gpud, arguments.model), arguments.bus)
    doomed = doomed_with(one, others, places_meant(one, arguments.model))
    check_deletable(doomed.files)
    if not arguments.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise Usage("models: rm deletes files, and there is no terminal to ask", hint="give --yes to skip the question")
    if not output.wants_json or not arguments.yes:
        _show(doomed, output)
    if not arguments.yes and not _agreed(one, doomed):
        output.result("nothing was deleted", {"name": one["name"], "files": [], "freed_bytes": 0, "left": one["paths"]})
        return FAILED
    return client.run(lambda gpud: _remove(gpud, one, doomed, output), arguments.bus)


async def _known(gpud: "Gpud", asked: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The model, and all others, with those that cannot be loaded."""
    from gpud.cli.models import catalog, joined

    everything = [joined(known, {}) for known in await catalog(gpud, [])]
    file = file_meant(asked)
    one = next((known for known in everything if file is not None and place_of(known, file)), None)
    if one is None and asked.startswith(PATHS):
        raise NoSuchModel(
            f"no model that gpud knows is in {visible(asked)}",
            hint='"gpudctl models info NAME" shows where a model is, and rm deletes no other files',
        )
    if one is None:
        one = joined((await catalog(gpud, [asked]))[0], {})
    return one, [other for other in everything if other["name"] != one["name"]]


# What is meant -------------------------------------------------------------------------------------------------------

PATHS = ("/", "./", "../", "~/")
"""What begins so is a file, and not the name of a model."""


def file_meant(asked: str) -> Path | None:
    """The file that is named, whether as a path or as one that lies here."""
    return Path(asked).expanduser().absolute() if asked.startswith(PATHS) or os.path.lexists(asked) else None


def place_of(one: dict[str, Any], file: Path) -> str:
    """The place of a model that this file is, or is a part of; empty: none. Of links only those of folders count."""
    places = [place for place in one["paths"] if place.startswith("/") and Path(place).suffix == file.suffix]
    parts = ((place, part) for place in places for part in parts_of(Path(place)) if part.name == file.name)
    return next((place for place, part in parts if part == file or _place(part) == _place(file)), "")


def places_meant(one: dict[str, Any], asked: str) -> list[str]:
    """Of a model that is there several times, the copy of this path or with a name of its own; else all places."""
    file = file_meant(asked)
    if file is not None and (place := place_of(one, file)):
        return [place]
    if asked in (one["name"], *one["aliases"]):
        return list(one["paths"])
    wanted = asked.removesuffix(".gguf")
    return [place for place in one["paths"] if _called(place) == wanted] or list(one["paths"])


def _called(place: str) -> str:
    """What a model would be called after this place."""
    name = Path(place).name.removesuffix(".gguf")
    return usable(re.sub(r"-\d{5}-of-\d{5}$", "", name))


# What goes -----------------------------------------------------------------------------------------------------------


def doomed_with(one: dict[str, Any], others: Collection[dict[str, Any]], meant: Collection[str]) -> Doomed:
    """What goes with the places that are ``meant``. Raises Usage for what is not ours to delete."""
    name = one["name"]
    left = tuple(place for place in one["paths"] if place not in meant)
    if "ollama" in one["sources"] and (not left or any(Path(place).name.startswith("sha256-") for place in meant)):
        raise Usage(
            f'"{name}" is in Ollama\'s store, and its layers may belong to other models, too',
            hint='let Ollama remove it: "ollama list" shows its name there, "ollama rm NAME" removes it',
        )
    if one["format"] == "safetensors":
        folders = ", ".join(map(visible, one["paths"]))
        raise Usage(f'"{name}" is a whole folder', hint=f"see what else is in it, and remove it yourself: {folders}")
    places = [path for path in meant if path.startswith("/")]
    for path in places:
        if re.search(r"\\x[0-9a-f]{2}", path):
            # The bus carries text alone: another file may be called just like what it shows of this one.
            raise Usage(
                f'"{name}" has a file whose name is not valid text: {visible(path)}',
                hint="remove it yourself, and then scan",
            )
    links = [part for path in places for part in parts_of(Path(path))]
    stays = []
    if (projector := one["mmproj"]) and not left:
        users = [other["name"] for other in others if other["mmproj"] == projector]
        if users:
            stays.append(f'its projector stays, "{users[0]}" has it, too: {visible(projector)}')
        elif projector.startswith("/") and "\\x" not in projector:
            links.append(Path(projector))
    links = [link for link in dict.fromkeys(links) if link.is_symlink() or link.exists()]
    if not links:
        raise Usage(
            f'"{name}" has no file',
            hint="it is only configured: remove it from gpud.yaml"
            if one["configured"]
            else "scan: gpudctl models scan",
        )
    files = tuple(dict.fromkeys((*links, *blobs_only_of(links))))
    return Doomed(files, freed_by(files), tuple(stays), left)


def parts_of(path: Path) -> list[Path]:
    """The file, or all parts of the model that it is the first of."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", path.name)
    if match is None:
        return [path]
    count = int(match[3])
    return [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}") for number in range(1, count + 1)]


def blobs_only_of(links: Sequence[Path]) -> Iterator[Path]:
    """What of a hub's cache these links lead to, and no other link of their repository."""
    going = set(map(_place, links))
    for link in links:
        snapshots = next((parent for parent in link.parents if parent.name == "snapshots"), None)
        if snapshots is None or not link.is_symlink():
            continue
        blob = link.resolve()
        if blob.parent != snapshots.parent.resolve() / "blobs" or not blob.exists():
            continue
        others = (other for other in snapshots.rglob("*") if other.is_symlink() and _place(other) not in going)
        if not any(other.resolve() == blob for other in others):
            yield blob


def _place(link: Path) -> Path:
    """One writing of where a link itself lies."""
    return link.parent.resolve() / link.name


def freed_by(files: Collection[Path]) -> int:
    """What the disk has more without these: a file stays as long as it has a name."""
    names: Counter[tuple[int, int]] = Counter()
    found = {}
    for file in files:
        mark = file.lstat()
        if stat.S_ISREG(mark.st_mode):
            names[mark.st_dev, mark.st_ino] += 1
            found[mark.st_dev, mark.st_ino] = mark
    return sum(mark.st_size for key, mark in found.items() if names[key] >= mark.st_nlink)


def check_deletable(files: Collection[Path]) -> None:
    """Raises Undeletable before the first is deleted, where one of them would stay."""
    for file in files:
        folder = file.parent
        mark = folder.stat()
        allowed = os.access(folder, os.W_OK | os.X_OK)
        if allowed and mark.st_mode & stat.S_ISVTX:
            allowed = os.geteuid() in (0, mark.st_uid, file.lstat().st_uid)
        if not allowed:
            raise Undeletable(
                f"cannot delete {visible(str(file))}: you may not change what is in its folder, which belongs to "
                f"{_user(mark.st_uid)}",
                hint="nothing was deleted; run it as them, or with sudo",
            )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# How it goes ---------------------------------------------------------------------------------------------------------


def _show(doomed: Doomed, output: Output) -> None:
    """What goes, with what each takes, and what stays."""
    for file in doomed.files:
        mark = file.lstat()
        output.note(f"  {visible(str(file))}  {'a link' if stat.S_ISLNK(mark.st_mode) else size(mark.st_size)}")
    for sentence in doomed.stays:
        output.note(sentence)
    if doomed.left:
        output.note(f"the model stays, in {', '.join(map(visible, doomed.left))}")


def _agreed(one: dict[str, Any], doomed: Doomed) -> bool:
    what = "a copy of " if doomed.left else ""
    question = (
        f'delete {plural(len(doomed.files), "file")} of {what}"{one["name"]}", {size(doomed.freed_bytes)}? [y/N] '
    )
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _remove(gpud: "Gpud", one: dict[str, Any], doomed: Doomed, output: Output) -> int:
    name = one["name"]
    if one["path"] not in doomed.left:
        # It is what an engine is given.
        await _let_go(gpud, name)
    for count, file in enumerate(doomed.files):
        try:
            file.unlink(missing_ok=True)
        except OSError as problem:
            raise Undeletable(
                f"cannot delete {visible(str(file))}: {problem.strerror}",
                hint=f"{count} of {plural(len(doomed.files), 'file')} were deleted before it" if count else "",
            ) from problem
    try:
        await gpud.call("Scan", asks=True, bounded=False)
    except GpudError as error:
        # It is gone whatever becomes of this: gpud notices by itself, if later.
        output.note(f"gpudctl: not scanned again: {error.message}")
    if one["configured"] and not doomed.left:
        output.note(f'"{name}" is still configured: remove it from gpud.yaml')
    what = "a copy of " if doomed.left else ""
    output.result(
        f'deleted {what}"{name}": {plural(len(doomed.files), "file")}, {size(doomed.freed_bytes)}',
        {
            "name": name,
            "files": [str(file) for file in doomed.files],
            "freed_bytes": doomed.freed_bytes,
            "left": list(doomed.left),
        },
    )
    return DONE


async def _let_go(gpud: "Gpud", name: str) -> None:
    """Raises what keeps it loaded."""
    from gpud.cli import jobs

    await gpud.subscribe()
    state = next((record["State"] for record in await gpud.models_named({name})), "")
    if state not in LOADED:
        return
    try:
        (job,) = await gpud.call("Unload", "s", name, asks=True)
    except BusError as error:
        if error.code == "not-loaded":
            return
        raise BusError(error.code, error.message, hint="nothing was deleted") from None
    for ended in await jobs.finish(gpud, {job: name}):
        if not ended.done:
            raise BusError(
                "busy", f'"{name}" is still in use: {ended.sentence("unloading")}', hint="nothing was deleted"
            )
