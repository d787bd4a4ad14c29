"""The folders below ``storage.base_directory``: which there are, and whose; makes those that are missing."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from gpud.core.errors import GpudError
from gpud.core.record import Record

OWNER = "gpud"
"""The service's user and its group: whoever is to put models there is a member of the group."""


class Folder(Record):
    """``path`` below the base; ``shared``: the group may write there."""

    path: str
    shared: bool

    @property
    def mode(self) -> int:
        return 0o775 if self.shared else 0o755

    @property
    def owner(self) -> str:
        return OWNER if self.shared else "root"


TREE = (
    Folder("", shared=False),
    Folder("llamacpp", shared=False),
    Folder("llamacpp/models", shared=True),
    Folder("ollama", shared=False),
    Folder("ollama/models", shared=True),
    Folder("huggingface", shared=True),
    Folder("huggingface/hub", shared=True),
    Folder("huggingface/datasets", shared=True),
    Folder("gguf", shared=True),
    Folder("vllm", shared=True),
    Folder("tgi", shared=True),
    Folder("custom", shared=True),
    Folder("conversion", shared=True),
    Folder("cache", shared=True),
)
"""As ``units/gpud.tmpfiles`` has it."""


def init(base: Path, *, root: Path) -> Iterator[str]:
    """Make what is missing and mend what is otherwise; a sentence for each change. Raises GpudError where it cannot.

    ``root`` is put before the base. Owners are set where root asks and the user is there; nothing inside is touched.
    """
    top = root / base.relative_to("/")
    owners = _owners() if os.geteuid() == 0 else {}
    for folder in TREE:
        path = top / folder.path
        try:
            yield from _mended(path, folder, owners)
        except OSError as problem:
            raise GpudError(
                f"cannot create {path}: {problem.strerror}",
                hint="run it with sudo, or name a folder of your own with --base",
            ) from problem


def _owners() -> dict[str, tuple[int, int]]:
    """The numbers of the owners that there are on this machine."""
    found = {"root": (0, 0)}
    try:
        found[OWNER] = (pwd.getpwnam(OWNER).pw_uid, grp.getgrnam(OWNER).gr_gid)
    except KeyError:
        return found
    return found


def _mended(path: Path, folder: Folder, owners: dict[str, tuple[int, int]]) -> Iterator[str]:
    if path.is_symlink() and not folder.path:
        # Somebody keeps the models on another disk: what the link leads to is theirs to look after.
        path = path.resolve()
    is_new = not path.is_dir()
    if is_new:
        path.mkdir(parents=not folder.path)
        yield f"created {path}"
    now = path.lstat()
    if stat.S_ISLNK(now.st_mode):
        return
    wanted = owners.get(folder.owner)
    if wanted is not None and (now.st_uid, now.st_gid) != wanted:
        os.chown(path, *wanted, follow_symlinks=False)
        if not is_new:
            yield f"changed {path}: it belongs to {folder.owner} now, not to user {now.st_uid}, group {now.st_gid}"
    mode = stat.S_IMODE(now.st_mode)
    # A set-group bit is somebody's good idea, and stays.
    if mode & 0o777 != folder.mode:
        path.chmod(folder.mode | (mode & 0o7000))
        if not is_new:
            yield f"changed {path}: mode {mode & 0o777:04o} to {folder.mode:04o}"
