"""Makes a Report of a Draft: what gpud's own reader would refuse is taken out and said, until it refuses nothing."""

import re
from collections.abc import Collection

from gpud.config import parse
from gpud.config.schema import MODEL
from gpud.config.source import MAX_FILE_BYTES
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, GpudError
from gpud.importing.report import Draft, Fate, Path, Report
from gpud.importing.writing import write

_NAME = "/gpud.yaml"
"""What the draft is called in messages that only this module reads; all paths in it are absolute."""

MAX_ROUNDS = 40
"""What is refused may be hidden behind what was refused before; but not so many times."""


def settle(draft: Draft, known_engines: Collection[str] | None = None) -> Report:
    """The report, with a configuration that gpud takes as it is. Raises GpudError where none can be made."""
    draft.forget_aliases_of_names()
    draft.forget_secrets()
    for _ in range(MAX_ROUNDS):
        text, paths = write(_ordered(draft), draft.comments, _header(draft))
        if len(text.encode()) > MAX_FILE_BYTES:
            raise GpudError(
                f"cannot import {draft.given.file}: the result is larger than {MAX_FILE_BYTES >> 20} MiB, the most "
                "that gpud reads as one file",
                hint="import it in parts, and put them into gpud.d beside gpud.yaml",
            )
        try:
            parse(text, _NAME, known_engines=known_engines, home=draft.given.home)
        except ConfigInvalid as invalid:
            _take_out(draft, invalid, paths)
            continue
        notes = sorted(
            draft.notes, key=lambda note: (note.where.file != draft.given.file, note.where.file, note.where.line)
        )
        return Report(draft.kind, draft.given.file, text, _ordered(draft), tuple(notes))
    raise GpudError(
        f"cannot import {draft.given.file}: after {MAX_ROUNDS} tries to leave out what gpud does not take, some of it "
        "is still refused",
        hint="import it in parts",
    )


_ORDER = ("models", "defaults", "engines", "idle", "storage", "registry", "gpu", "queue", "eviction", "alerts", "stop")


def _ordered(draft: Draft) -> dict[str, object]:
    first = {key: draft.config[key] for key in _ORDER if key in draft.config}
    whole = {**first, **draft.config}
    order = {key.name: index for index, key in enumerate(MODEL.keys)}
    if "models" in whole:
        whole["models"] = {
            name: dict(sorted(model.items(), key=lambda pair: order.get(pair[0], len(order))))
            for name, model in whole["models"].items()
        }
    return whole


def _header(draft: Draft) -> str:
    what = f'Made by "gpudctl import {draft.kind}" of {draft.given.file}.'
    left = sum(note.fate is Fate.DROPPED for note in draft.notes)
    if not left:
        return f"{what}\nEvery setting was carried over, or is none that gpud needs."
    count = plural(left, "setting was", "settings were")
    return f"{what}\n{count} not carried over: the same command with --check says which and why."


def _take_out(draft: Draft, invalid: ConfigInvalid, paths: dict[int, Path]) -> None:
    blamed: dict[Path, str] = {}
    for problem in invalid.problems:
        if problem.startswith("… and "):
            continue  # There are more; the next round has them.
        match = re.fullmatch(rf"{re.escape(_NAME)}:([0-9]+): (.*)", problem, re.DOTALL)
        path = paths.get(int(match[1])) if match else None
        if match is None or path is None or path == ("models",):
            raise GpudError(
                f"cannot import {draft.given.file}: gpud would not take the result: {problem}",
                hint="import a part of it, or write gpud.yaml by hand; gpud.yaml(5) has every key",
            )
        blamed.setdefault(path, match[2])
    for path, text in blamed.items():
        if draft.get(path) is None:
            continue
        where, setting = draft.origin(path)
        draft.discard(path)
        said = re.sub(rf"^{re.escape('.'.join(path))}(\[[0-9]+\])?: ", "", text)
        draft.leave(where, setting, f"gpud does not take it: {said}", _instead(path))


def _instead(path: Path) -> str:
    return f"mend it, and write it as {'.'.join(path)}" if len(path) != 2 or path[0] != "models" else "mend it first"
