"""Deletes the files of a model: as the user who asks, after gpud has let go of it. Nothing else is touched."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpud.cli.exits import DONE, FAILED, Usage
from gpud.cli.output import Output, plural, size
from gpud.cli.unload import LOADED
from gpud.core.errors import GpudError

if TYPE_CHECKING:
    from gpud.cli.client import Gpud


def parts_of(path: Path) -> list[Path]:
    """The file, or all parts of the model that it is the first of."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", path.name)
    if match is None:
        return [path]
    count = int(match[3])
    return [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}") for number in range(1, count + 1)]


def blobs_only_for(links: list[Path]) -> Iterator[Path]:
    """What links of a hub cache lead to, where no other link of that repository leads there, too."""
    for link in links:
        if not link.is_symlink():
            continue
        blob = link.resolve()
        snapshots = next((parent for parent in link.parents if parent.name == "snapshots"), None)
        if snapshots is None or blob.parent != snapshots.parent / "blobs":
            continue
        others = (one for one in snapshots.rglob("*") if one.is_symlink() and one not in links)
        if not any(one.resolve() == blob for one in others):
            yield blob


def files_of(one: dict[str, Any]) -> list[Path]:
    """Everything that is deleted with a model. Raises Usage for what is another program's to delete."""
    if "ollama" in one["sources"]:
        raise Usage(
            f'"{one["name"]}" is in Ollama\'s store, and its layers may belong to other models, too',
            hint=f"let Ollama remove it: ollama rm {one['name']}",
        )
    if one["format"] == "safetensors":
        folders = ", ".join(one["paths"])
        raise Usage(
            f'"{one["name"]}" is a whole folder', hint=f"see what else is in it, and remove it by hand: {folders}"
        )
    found: list[Path] = []
    for path in one["paths"]:
        parts = parts_of(Path(path))
        found += [part for part in parts if part.is_symlink() or part.exists()]
        found += blobs_only_for(parts)
    if not found:
        raise Usage(f'"{one["name"]}" has no file', hint="it is only configured: take it out of gpud.yaml")
    return list(dict.fromkeys(found))


async def remove_model(gpud: "Gpud", one: dict[str, Any], output: Output, *, yes: bool) -> int:
    files = files_of(one)
    freed = sum(file.lstat().st_size for file in files if not file.is_symlink())
    if not yes:
        if not sys.stdin.isatty():
            raise Usage("models: rm deletes files, and nobody is there to be asked", hint="say --yes to do it without")
        for file in files:
            output.note(f"  {file}")
        output.note(f'delete {plural(len(files), "file")} of "{one["name"]}", {size(freed)}? [y/N] ')
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            output.note("nothing was deleted")
            return FAILED
    await _let_go(gpud, one)
    for file in files:
        try:
            file.unlink()
        except OSError as problem:
            raise GpudError(
                f"cannot delete {file}: {problem.strerror}",
                hint="its folder belongs to somebody else: run it as them, or with sudo",
            ) from problem
    await gpud.call("Scan", asks=True)
    if one["configured"]:
        output.note(f'"{one["name"]}" is still configured: take it out of gpud.yaml')
    output.result(
        f'deleted "{one["name"]}": {plural(len(files), "file")}, {size(freed)}',
        {"name": one["name"], "files": [str(file) for file in files], "freed_bytes": freed},
    )
    return DONE


async def _let_go(gpud: "Gpud", one: dict[str, Any]) -> None:
    """Raises what keeps it loaded."""
    if one["state"] not in LOADED:
        return
    from gpud.cli import jobs

    await gpud.subscribe()
    (job,) = await gpud.call("Unload", "s", one["name"], asks=True)
    for ended in await jobs.finish(gpud, {job: one["name"]}):
        if not ended.done:
            raise GpudError(
                f'"{one["name"]}" is still in use: {ended.sentence("unloading")}', hint="nothing was deleted"
            )
