"""Finds and reads the files of a configuration, lays them over each other and hands back a Config or every problem."""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from gpud.config.kinds import Reading
from gpud.config.records import Config
from gpud.config.resolve import build
from gpud.config.schema import ROOT, ours, places
from gpud.config.source import MAX_FILE_BYTES, Node, Problem, Scalar, Table, Where, overlay, read, shown
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid

_SYSTEM = Path("/etc/gpud/gpud.yaml")
SMALLEST = "models: {NAME: {engine: embedded, file: /path/to/model.gguf}}"

MAX_PROBLEMS = 500
"""More than this many sentences help nobody; a last one says how many there are besides."""


def default_path(user: bool) -> Path:
    """Where the configuration is looked for when nobody says: the system's, or the user's own. A service may have no
    home: then it is at a place where nothing is.
    """
    if not user:
        return _SYSTEM
    base = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 — Path.home() raises where there is none
    return (Path(base) if base.startswith("/") else home / ".config") / "gpud" / "gpud.yaml"


def may_be_missing(path: Path) -> bool:
    """A user's own gpud begins with nothing written: then everything has its default."""
    return path == default_path(user=True)


def load(path: Path, *, known_engines: Collection[str] | None = None) -> Config:
    """The configuration in ``path`` with the ``gpud.d/*.yaml`` beside it, in the order of their names, laid over it.

    A user's own need not be there at its usual place. Raises ConfigInvalid with every problem in every file.
    ``known_engines`` None: the names of engines are not checked.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 — resolve() would follow links, and messages name what was given
    reading = _reading(path, known_engines)
    documents: list[tuple[str, Node | None]] = []
    complete = True
    missing = may_be_missing(path) and not os.path.exists(path)  # noqa: PTH110 - Path.exists() may raise
    for file in [*([] if missing else [path]), *_drop_ins(path, reading)]:
        text = _text(file, reading, main=file == path)
        before = len(reading.problems)
        node = None if text is None else read(text, str(file), reading.problems)
        complete = complete and text is not None and (node is not None or len(reading.problems) == before)
        documents.append((str(file), node))
    return _finish(documents, reading, complete, missing=str(path) if missing else "")


def parse(text: str, name: str, *, known_engines: Collection[str] | None = None, home: str | None = None) -> Config:
    """The configuration in ``text``; ``name`` stands for the file in messages, and relative paths start beside it.

    ``home`` is what ``~/`` stands for; without it, the home of whoever asks.
    """
    reading = _reading(Path(name), known_engines)
    if home is not None:
        reading.home = home
    node = read(text, name, reading.problems)
    return _finish([(name, node)], reading, node is not None or not reading.problems)


def _reading(path: Path, known_engines: Collection[str] | None) -> Reading:
    # The daemon of the system has no home that an administrator would mean by "~/".
    home = "" if path.is_relative_to("/etc") else os.path.expanduser("~")  # noqa: PTH111 — Path.home() may raise
    return Reading([], "" if home == "~" else home.rstrip("/"), known_engines, places, ours)


def _finish(documents: list[tuple[str, Node | None]], reading: Reading, complete: bool, *, missing: str = "") -> Config:
    merged: Node = Table(Where(missing or documents[0][0], 1), {}, 1)
    for _, node in documents:
        if node is None or (isinstance(node, Scalar) and node.is_null):
            continue
        if not isinstance(node, Table):
            reading.wrong(node.where, "", f"the file holds {shown(node)}; a configuration is a map, like {SMALLEST}")
            continue
        if len(documents) > 1:
            # Each file by itself first: what a later file replaces must be right too.
            ROOT.read(node, "", reading)
        merged = overlay(merged, node)
    sources = tuple(file for file, _ in documents)
    config = build(merged, reading, complete=complete, sources=sources, missing=missing)
    if config is None:
        raise ConfigInvalid(_sentences(reading.problems, sources))
    return config


def _sentences(problems: list[Problem], files: tuple[str, ...]) -> list[str]:
    """Each problem once, in the order of the files and lines."""
    position = {file: index for index, file in enumerate(files)}
    ordered = sorted(set(problems), key=lambda one: (position.get(one.where.file, -1), one.where.line, one.text))
    sentences = [str(one) for one in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        sentences.append(f"… and {plural(len(ordered) - MAX_PROBLEMS, 'more problem')}; mend these first")
    return sentences


def _drop_ins(path: Path, reading: Reading) -> list[Path]:
    directory = path.parent / "gpud.d"
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 — names are sorted as names
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reading.problems.append(Problem(Where(str(directory), 0), f"cannot be listed: {error.strerror}"))
        return []
    return [directory / name for name in names if name.endswith(".yaml") and not name.startswith(".")]


def _text(file: Path, reading: Reading, *, main: bool) -> str | None:
    def wrong(text: str, line: int = 0) -> None:
        reading.problems.append(Problem(Where(str(file), line), text))

    try:
        # Without O_NONBLOCK a pipe in the place of a file would hold up the start of the daemon for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        hint = f"; write one, for example: {SMALLEST}" if main else ""
        wrong(f"does not exist{hint}")
        return None
    except OSError as error:
        wrong(f"cannot be read: {error.strerror}")
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            wrong("is not a file; a configuration is read from plain files only")
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        wrong(f"cannot be read: {error.strerror}")
        return None
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        wrong(f"is larger than {MAX_FILE_BYTES >> 20} MiB, the most that gpud reads; split it over files in gpud.d")
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        wrong(f"is not UTF-8 (byte 0x{byte:02x} here); save it as UTF-8", content.count(b"\n", 0, error.start) + 1)
        return None
