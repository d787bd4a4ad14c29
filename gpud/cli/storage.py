"""``gpudctl storage``: the place where models are kept. Works with or without gpud."""

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from gpud.cli.arguments import Parser, some_path, whole
from gpud.cli.arguments import size as size_of
from gpud.cli.exits import DONE, FAILED, Usage
from gpud.cli.output import GIB, Output, size
from gpud.core.counts import plural
from gpud.core.errors import GpudError
from gpud.core.naming import shown_path

DESCRIPTION = """\
init: create the folders for models, with their modes and owners; what is
already right stays as it is.
ls: show the contents of the folders, with sizes, two levels deep.
du: show how much disk space each folder takes; with --duplicates, show files
that exist more than once; with --link, turn the copies into one file. With
your own gpud, ls and du include your model folder, your Hugging Face cache and
your Ollama store.
clean-cache: empty the folder "cache", except for files in use; links are not
followed.
check: warn when the disk is nearly full; the timer ml-storage-monitor runs it
weekly."""

EXAMPLES = (
    "sudo gpudctl storage init",
    "gpudctl storage ls",
    "gpudctl storage du --duplicates",
    "gpudctl storage clean-cache --dry-run",
    "gpudctl storage check --least 20GiB",
)

LEAST_BYTES = 50 * GIB
"""With less room than this one more model may not fit."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=tuple(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("--base", type=some_path, metavar="DIR", help="base folder, instead of storage.base_directory")
    parser.add_argument(
        "--root",
        type=some_path,
        metavar="DIR",
        default="/",
        help="prefix to the base folder, for images of other machines",
    )
    parser.add_argument("--depth", type=whole(1, 99), metavar="N", default=2, help="ls: levels to show (default: 2)")
    parser.add_argument("--duplicates", action="store_true", help="du: show files that exist more than once")
    parser.add_argument("--link", action="store_true", help="du --duplicates: turn the copies into one file")
    parser.add_argument("--dry-run", action="store_true", help="clean-cache: only show what would be removed")
    parser.add_argument("--yes", "-y", action="store_true", help="clean-cache, --link: do not ask for confirmation")
    parser.add_argument(
        "--least", type=size_of, metavar="SIZE", default=LEAST_BYTES, help="check: warn below SIZE (default: 50GiB)"
    )
    parser.add_argument("--fail", action="store_true", help="check: end with status 1 below SIZE")


def run(arguments: Namespace, output: Output) -> int:
    if arguments.link and not arguments.duplicates:
        raise Usage("storage: --link needs --duplicates", hint="gpudctl storage du --duplicates --link")
    if arguments.duplicates and arguments.action != "du":
        raise Usage("storage: --duplicates belongs to du", hint="gpudctl storage du --duplicates")
    return ACTIONS[arguments.action](arguments, output)


def place(arguments: Namespace) -> Path:
    """The base, with the root before it."""
    return Path(arguments.root).absolute() / base(arguments).relative_to("/")


def base(arguments: Namespace) -> Path:
    if arguments.base:
        return Path(arguments.base).absolute()
    from gpud.cli.config import chosen_path
    from gpud.config import Config, load
    from gpud.core.errors import ConfigInvalid

    path = chosen_path(arguments.bus)
    try:
        return Path(load(path).base_directory)
    except ConfigInvalid:
        if os.access(path, os.R_OK):
            raise
        # Nothing is configured on this machine yet, or not for the eyes of whoever asks.
        return Path(os.environ.get("ML_MODELS_BASE") or Config().base_directory).absolute()


def _there(arguments: Namespace) -> Path:
    found = place(arguments)
    if not found.is_dir():
        raise _missing(found)
    return found


def _missing(place: Path) -> GpudError:
    return GpudError(
        f"there is no folder {place}", hint='"sudo gpudctl storage init" creates it; or name one with --base'
    )


def _all_there(arguments: Namespace) -> list[Path]:
    """The configured place first. Of a user's own gpud also the places that are theirs."""
    from gpud.cli.storing.places import apart, is_users, users_own

    found = place(arguments)
    theirs = not arguments.base and arguments.root == "/" and is_users(arguments.bus)
    there = apart([one for one in (found, *(users_own() if theirs else ())) if one.is_dir()])
    if not there:
        raise _missing(found)
    return there


def _unread(output: Output) -> "_Unread":
    return _Unread(output)


class _Unread:
    """Says what could not be read, and remembers that there was something."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.any = False

    def __call__(self, problem: OSError) -> None:
        self.any = True
        name = _printable(str(problem.filename))
        self._output.note(f"gpudctl: cannot read {name}: {problem.strerror}; it is not counted")

    @property
    def status(self) -> int:
        return FAILED if self.any else DONE


# The actions ---------------------------------------------------------------------------------------------------------


def init(arguments: Namespace, output: Output) -> int:
    from gpud.cli.storing.tree import init as make

    changes = []
    for change in make(base(arguments), root=Path(arguments.root).absolute()):
        changes.append(change)
        if not output.wants_json:
            output.text(change)
    output.result("" if changes else "unchanged", {"base": str(place(arguments)), "changes": changes})
    return DONE


def show(arguments: Namespace, output: Output) -> int:
    from gpud.cli.storing.use import Use, measured

    unread = _unread(output)
    tops = measured(_all_there(arguments), unread)

    def data(use: Use, depth: int) -> dict[str, object]:
        found: dict[str, object] = {"name": _printable(use.name), "bytes": use.taken_bytes, "files": use.files}
        if use.leads_to:
            found["link"] = _printable(use.leads_to)
        if use.is_folder and depth:
            found["inside"] = [data(one, depth - 1) for one in use.inside]
        return found

    def lines(use: Use, before: str, depth: int) -> list[str]:
        if not depth:
            return []
        found = []
        for index, one in enumerate(use.inside):
            last = index == len(use.inside) - 1
            name = (
                _printable(one.name)
                + ("/" if one.is_folder else "")
                + (f" -> {_printable(one.leads_to)}" if one.leads_to else "")
            )
            found.append(f"{size(one.taken_bytes):>10}  {before}{'└── ' if last else '├── '}{name}")
            found += lines(one, before + ("    " if last else "│   "), depth - 1)
        return found

    text = []
    for top in tops:
        text += [f"{size(top.taken_bytes):>10}  {_printable(str(top.path))}", *lines(top, "", arguments.depth)]
    first, *also = ({"path": _printable(str(top.path)), **data(top, arguments.depth)} for top in tops)
    output.result("\n".join(text), {**first, "also": also})
    return unread.status


def used(arguments: Namespace, output: Output) -> int:
    if arguments.duplicates:
        return _duplicates(arguments, output)
    from gpud.cli.storing.use import measured

    unread = _unread(output)
    tops = measured(_all_there(arguments), unread)
    taken, files = sum(top.taken_bytes for top in tops), sum(top.files for top in tops)
    each = [one for top in tops for one in (top.inside if top.path == place(arguments) else (top,))]
    lines = [f"{size(one.taken_bytes):>10}  {_printable(str(one.path))}" for one in each]
    where = f"{_printable(str(tops[0].path))} in all" if len(tops) == 1 else "in all"
    lines.append(f"{size(taken):>10}  {where}, {plural(files, 'file')}")
    output.result(
        "\n".join(lines),
        {
            "path": _printable(str(tops[0].path)),
            "bytes": taken,
            "files": files,
            "each": [{"path": _printable(str(one.path)), "bytes": one.taken_bytes, "files": one.files} for one in each],
        },
    )
    return unread.status


def _duplicates(arguments: Namespace, output: Output) -> int:
    from gpud.cli.storing.duplicates import duplicates, link

    unread = _unread(output)
    found = list(duplicates(_all_there(arguments), unread))
    wasted = sum(same.wasted_bytes for same in found)
    if not output.wants_json:
        for same in found:
            copies = f"{len(same.copies)} copies of {size(same.size_bytes)}"
            output.text(f"{size(same.wasted_bytes):>10}  {copies}:")
            for file in same.files:
                output.text(f"            {_printable(str(file))}")
        output.text(f"{size(wasted):>10}  could be freed" if found else "no file of 1 MiB or more exists twice")
    linked: list[str] = []
    failed: dict[str, str] = {}
    if arguments.link and found:
        _ask(
            f"make {plural(sum(len(same.copies) - 1 for same in found), 'file')} hard links, for {size(wasted)}",
            arguments,
            output,
        )
        for same in found:
            for file, problem in link(same):
                if problem:
                    failed[_printable(str(file))] = problem
                    output.note(f"gpudctl: {_printable(f'{file} {problem}')}")
                else:
                    linked.append(_printable(str(file)))
        if not output.wants_json:
            output.text(f"linked {plural(len(linked), 'file')}")
    elif found and not output.wants_json:
        output.note("gpudctl storage du --duplicates --link makes them one file each; a change of one then changes all")
    if output.wants_json:
        groups = [
            {
                "digest": same.digest,
                "size_bytes": same.size_bytes,
                "files": [_printable(str(file)) for file in same.files],
            }
            for same in found
        ]
        output.json({"wasted_bytes": wasted, "duplicates": groups, "linked": linked, "failed": failed})
    return FAILED if failed else unread.status


def clean_cache(arguments: Namespace, output: Output) -> int:
    from gpud.cli.storing.cache import clean
    from gpud.cli.storing.use import open_files

    top = _there(arguments) / "cache"
    in_use = open_files() | _loaded(arguments, output)
    planned = clean(top, in_use, really=False)
    cleaned = planned
    if not arguments.dry_run and planned.removed:
        _ask(f"remove {plural(planned.removed, 'file')} below {top}, {size(planned.freed_bytes)}", arguments, output)
    if not arguments.dry_run:
        cleaned = clean(top, in_use, really=True)
    for path, why in cleaned.kept:
        output.note(f"kept {_printable(str(path))}: it {why}")
    word = "would remove" if arguments.dry_run else "removed"
    would = "would be freed" if arguments.dry_run else "freed"
    output.result(
        f"{word} {plural(cleaned.removed, 'file')} below {top}: {size(cleaned.freed_bytes)} {would}",
        {
            "removed": cleaned.removed,
            "freed_bytes": cleaned.freed_bytes,
            "dry_run": arguments.dry_run,
            "kept": [{"path": _printable(str(path)), "why": why} for path, why in cleaned.kept],
        },
    )
    return FAILED if any("cannot" in why for _, why in cleaned.kept) else DONE


def _loaded(arguments: Namespace, output: Output) -> set[tuple[int, int]]:
    """The files of models that a gpud has loaded, which may run as somebody whose processes cannot be looked at."""
    from gpud.cli import client
    from gpud.cli.models import known_models
    from gpud.cli.unload import LOADED

    found: set[tuple[int, int]] = set()

    async def work(gpud: client.Gpud) -> int:
        for one in await known_models(gpud, []):
            for path in one["paths"] if one["state"] in LOADED else ():
                try:
                    status = os.stat(path)  # noqa: PTH116 -- a path is not wanted
                except OSError:
                    continue
                found.add((status.st_dev, status.st_ino))
        return DONE

    try:
        client.run(work, arguments.bus)
    except GpudError as error:
        # Without gpud nothing of its is loaded; what other programs have open was looked for already.
        if error.code != "not-running":
            output.note(f"gpudctl: cannot ask gpud what is loaded: {error.message}")
    return found


def check(arguments: Namespace, output: Output) -> int:
    top = _all_there(arguments)[0]
    disk = shutil.disk_usage(top)
    low = disk.free < arguments.least
    data = {
        "path": str(top),
        "free_bytes": disk.free,
        "total_bytes": disk.total,
        "least_bytes": arguments.least,
        "low": low,
    }
    if not low:
        output.result(f"{size(disk.free)} of {size(disk.total)} free for models in {top}", data)
        return DONE
    text = f"WARNING: ML models storage low: {disk.free // GIB}GB remaining"
    more = f"{top} has {size(disk.free)} of {size(disk.total)} free, less than {size(arguments.least)}"
    advice = '"gpudctl storage du" shows what uses it, "gpudctl storage clean-cache" empties the cache'
    # For the journal: warning is level 4.
    level = "<4>" if os.environ.get("JOURNAL_STREAM") and not sys.stdout.isatty() else ""
    output.result(f"{level}{text}\n{level}{more}; {advice}", data)
    return FAILED if arguments.fail else DONE


def _ask(what: str, arguments: Namespace, output: Output) -> None:
    """Raises Usage unless whoever is there says yes."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise Usage(f"storage: there is no terminal to ask whether to {what}", hint="give --yes to skip the question")
    output.note(f"{what}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise GpudError("nothing was changed", hint="")


def _printable(name: str) -> str:
    text = shown_path(name)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


ACTIONS = {"init": init, "ls": show, "du": used, "clean-cache": clean_cache, "check": check}
