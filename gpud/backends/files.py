"""Model files as an engine needs them: where they are, that they can be read, how large they are, which they are.

Reads four bytes at most; what is inside a file is the catalogue's affair.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from msgspec import to_builtins

from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.record import replace

GGUF_MAGIC = b"GGUF"

MOUNTS = Path("/proc/self/mountinfo")

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def located(model: Model, models_dir: str) -> Model:
    """The model with the files of its settings as paths that can be opened."""

    def full(name: str) -> str:
        return str(resolve(name, models_dir)) if name else ""

    settings = model.settings
    return replace(
        model,
        settings=replace(
            settings, file=full(settings.file), mmproj=full(settings.mmproj), draft_file=full(settings.draft_file)
        ),
    )


def prepared(engine: str, options: EngineOptions, model: Model) -> tuple[Model, str]:
    """The located model and its fingerprint. Files may lie on a disk that sleeps or a server that hangs: for a thread,
    like everything here.
    """
    placed = located(model, options.models_dir)
    return placed, fingerprint(engine, options, placed)


def check(model: Model) -> None:
    """Raises BackendFailed(preflight) when a file that a located model names cannot be what it is meant to be."""
    settings = model.settings
    if not settings.file:
        raise BackendFailed(
            f'cannot load "{model.name}": no model file is configured',
            hint=f'set "file" of "{model.name}"',
            kind="file-missing",
            preflight=True,
        )
    check_gguf(model.name, Path(settings.file))
    if settings.mmproj:
        check_gguf(model.name, Path(settings.mmproj), "projector (mmproj)")
    if settings.draft_file:
        check_gguf(model.name, Path(settings.draft_file), "draft model")


def bytes_of(model: Model) -> int | None:
    """The size of all files of a located model, or None when one cannot be found."""
    sizes = [size_bytes(Path(name)) for name in _names(model)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def fingerprint(engine: str, options: EngineOptions, model: Model) -> str:
    """Everything that an engine is started with for a located model, and which files it reads.

    Of a program only the path counts: an upgrade shall not end what runs well; the next start has the new one.
    """
    content = {
        "engine": engine,
        "options": to_builtins(options),
        "name": model.name,
        "gpu": model.gpu,
        "settings": to_builtins(model.settings),
        "files": [identity(Path(name)) for name in _names(model)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _names(model: Model) -> list[str]:
    settings = model.settings
    return [name for name in (settings.file, settings.mmproj, settings.draft_file) if name]


def resolve(file: str, models_dir: str = "") -> Path:
    """The path that a configured name means: ``~`` is a home, a relative name lies in ``models_dir``, and
    ``snapshots/latest`` is the newest snapshot of a Hugging Face cache."""
    path = Path(file).expanduser()
    if not path.is_absolute() and models_dir:
        path = Path(models_dir).expanduser() / path
    return _newest_snapshot(path)


def _newest_snapshot(path: Path) -> Path:
    parts = path.parts
    for index in range(1, len(parts)):
        if parts[index - 1 : index + 1] != ("snapshots", "latest"):
            continue
        snapshots = Path(*parts[:index])
        if (snapshots / "latest").exists():
            return path
        rest = parts[index + 1 :]
        try:
            candidates = [entry for entry in snapshots.iterdir() if entry.joinpath(*rest).exists()]
            return max(candidates, key=lambda entry: entry.stat().st_mtime_ns).joinpath(*rest)
        except (OSError, ValueError):
            return path
    return path


def shards(path: Path) -> tuple[Path, ...]:
    """All files of a model that was split: ``x-00001-of-00003.gguf`` names two more. Else the file alone."""
    match = _SHARD.match(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    return tuple(
        path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf") for number in range(1, count + 1)
    )


def size_bytes(path: Path) -> int | None:
    """The size on disk of a model with all its shards, or None when any of them cannot be found."""
    try:
        return sum(shard.stat().st_size for shard in shards(path))
    except OSError:
        return None


def identity(path: Path) -> str:
    """Changes when another file lies at the path, or when the file was written to."""
    marks: list[str] = []
    for shard in shards(path):
        try:
            found = shard.stat()
        except OSError:
            marks.append("absent")
        else:
            marks.append(f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}")
    return ",".join(marks)


def check_gguf(model: str, path: Path, what: str = "model file") -> None:
    """Raises BackendFailed(preflight) when ``path`` is not a readable GGUF file with all its shards."""
    for shard in shards(path):
        _check_one(model, shard, what)


def _check_one(model: str, path: Path, what: str) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(GGUF_MAGIC))
    except OSError as problem:
        raise unreadable(model, path, what, problem) from None
    if start == GGUF_MAGIC:
        return
    if not start:
        raise BackendFailed(
            f'cannot load "{model}": {what} {path} is empty',
            hint="download it again",
            kind="truncated",
            preflight=True,
        )
    raise BackendFailed(
        f'cannot load "{model}": {what} {path} is not a GGUF file: it starts with {start!r}, not with {GGUF_MAGIC!r}',
        hint="point it at a .gguf file; safetensors and PyTorch files have to be converted first",
        kind="not-a-model",
        preflight=True,
    )


def unreadable(model: str, path: Path, what: str, problem: OSError, mounts: Path = MOUNTS) -> BackendFailed:
    """What to say of a file that cannot be opened."""
    reason = os.strerror(problem.errno) if problem.errno else str(problem)
    kind, hint = (
        "file-unreadable",
        f"see to it that the user gpud runs as may read {path} and enter every folder above it",
    )
    if isinstance(problem, FileNotFoundError):
        kind, hint = "file-missing", "correct the path in the configuration, or put the file there"
        if own := _folder_of_its_own(path, mounts):
            hint = (
                f"the service has a {own} of its own (PrivateTmp=), in which nobody else's files are: "
                "put the file elsewhere, such as /var/lib/ml-models/gguf, and correct the path"
            )
    elif isinstance(problem, IsADirectoryError):
        hint = "name the .gguf file inside the folder"
    return BackendFailed(
        f'cannot load "{model}": {what} {path}: {reason} (errno {problem.errno})', hint=hint, kind=kind, preflight=True
    )


def _folder_of_its_own(path: Path, mounts: Path) -> str:
    """The folder above the path that systemd has laid an empty one over, for this service alone; "" when none is."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for _, _, _, root, point, *_ in (line.split() for line in lines):
        if "/systemd-private-" in root and path.is_relative_to(point):
            return point
    return ""
