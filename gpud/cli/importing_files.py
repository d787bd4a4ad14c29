"""The files of ``gpudctl import``: reads them within bounds, and writes the result all or nothing."""

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.core.errors import ConfigInvalid, GpudError

if TYPE_CHECKING:
    from gpud.importing.ollama import Stored

STORES = (
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "~/.ollama/models",
    "/var/lib/ml-models/ollama/models",
)
"""Where Ollama keeps its models: as its installer, as distributions, as a user's own, and as gpud has it."""

MOST_MANIFESTS = 10_000
MOST_MANIFEST_BYTES = 1 << 20
MOST_PARAMETER_BYTES = 1 << 16


def read(file: str) -> bytes:
    """What a file, a pipe or standard input holds, as far as an import reads. Raises GpudError."""
    from gpud.config.source import MAX_FILE_BYTES

    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        with Path(file).open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GpudError(f'cannot read "{file}": {error.strerror}', hint="name a file that exists") from None


def write(path: Path, text: str, *, force: bool) -> None:
    """Write the file as a whole, or leave what was there. Raises GpudError."""
    target = Path(os.path.realpath(path))
    old = _status(target)
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise GpudError(f'cannot write "{path}": it is not a file', hint="name another")
    if old is not None and not force:
        raise GpudError(f'will not write "{path}": it already exists', hint="--force replaces it; or name another")
    mode = stat.S_IMODE(old.st_mode) if old else 0o644 & ~_umask()
    made = ""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as stream:
            made = stream.name
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if old is not None and os.geteuid() == 0:
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
            os.fsync(stream.fileno())
        if force:
            Path(made).replace(target)
        else:
            # Fails, rather than replaces, where somebody was faster.
            target.hardlink_to(made)
    except FileExistsError:
        raise GpudError(f'will not write "{path}": it already exists', hint="--force replaces it") from None
    except OSError as error:
        raise GpudError(f'cannot write "{path}": {error.strerror}', hint="choose a folder of your own") from None
    finally:
        with suppress(FileNotFoundError):
            if made:
                Path(made).unlink()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GpudError(f'cannot write "{path}": {error.strerror}', hint="choose a folder of your own") from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# Ollama's store -------------------------------------------------------------------------------------------------------


def find_store(named: str, *, asked: bool) -> str:
    """The store's folder in full; empty: there is none. Raises GpudError for one that was asked for and is none."""
    closed = ""
    for one in [named] if named else STORES:
        folder = os.path.abspath(os.path.expanduser(one))  # noqa: PTH100, PTH111 - links stay as they were written
        try:
            os.stat(f"{folder}/manifests/.")  # noqa: PTH116 - Path.is_dir() says no of what may not be looked at
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            closed = closed or f"{folder}: {error.strerror}"
            continue
        return folder
    if closed:
        raise GpudError(f"cannot read {closed}", hint="sudo gpudctl import ollama may; or name another with --models")
    if asked:
        raise GpudError(
            f'cannot import from "{named}": it has no folder "manifests", so it is not a store of Ollama',
            hint="name the folder with manifests and blobs in it",
        )
    return ""


def read_store(store: Path) -> "Sequence[Stored]":
    """Every model of a store, in the order of their names. Raises GpudError for a store that cannot be listed."""
    from gpud.importing.ollama import Stored, layers_of, name_of

    found: list[Stored] = []
    for count, path in enumerate(_manifests(store)):
        if count >= MOST_MANIFESTS:
            raise GpudError(
                f"cannot import from {store}: it has more than {MOST_MANIFESTS:,} models", hint="import less"
            )
        host, namespace, model, tag = path.parts[-4:]
        name, file = name_of(host, namespace, model, tag), str(path)
        try:
            layers = layers_of(_text(path, MOST_MANIFEST_BYTES), file)
        except (OSError, ConfigInvalid) as problem:
            said = problem.strerror if isinstance(problem, OSError) else "it is not an Ollama manifest"
            found.append(Stored(name, file, problem=f"its manifest cannot be read: {said}"))
            continue
        missing = [one for one in layers.get("model", ()) if not (store / "blobs" / f"sha256-{one}").is_file()]
        if missing:
            found.append(Stored(name, file, problem=f"its weights are missing: sha256-{missing[0][:12]}… in blobs"))
            continue
        parameters = ""
        for digest in layers.get("params", ())[:1]:
            with suppress(OSError, ConfigInvalid):
                parameters = _text(store / "blobs" / f"sha256-{digest}", MOST_PARAMETER_BYTES)
        found.append(Stored(name, file, layers, parameters))
    return found


_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")


def _manifests(store: Path) -> Iterator[Path]:
    def inside(folder: Path, depth: int) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names are sorted as names
        except NotADirectoryError:
            return
        except OSError as error:
            raise GpudError(
                f"cannot list {folder}: {error.strerror}", hint="sudo gpudctl import … may, or name another store"
            ) from None
        for name in names:
            if not _PART.fullmatch(name):
                continue
            if depth == 1:
                yield folder / name
            else:
                yield from inside(folder / name, depth - 1)

    yield from inside(store / "manifests", 4)


def _text(path: Path, most_bytes: int) -> str:
    """A small plain file. Raises OSError, and ConfigInvalid for one that is larger or no UTF-8."""
    from gpud.importing.reading import decode, unreadable

    # Without O_NONBLOCK a pipe in the place of a file would hold us up for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a file")
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        from gpud.config.source import Where

        raise unreadable(Where(str(path), 0), f"is larger than {most_bytes} bytes")
    return decode(content, str(path))
