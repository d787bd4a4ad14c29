"""Changes the file of API keys: the whole of it or nothing, one change at a time, and for nobody else to read."""

import fcntl
import os
import pwd
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from gpud.config.api_keys import keys_text, load_keys
from gpud.core.errors import GpudError
from gpud.core.keys import ApiKey


def service_group() -> int | None:
    """The group that may read what root writes: gpud's, which runs as a user of its own. None: for oneself alone."""
    try:
        return pwd.getpwnam("gpud").pw_gid if os.geteuid() == 0 else None
    except KeyError:
        return None


def change(
    path: Path,
    edit: Callable[[Sequence[ApiKey]], Sequence[ApiKey]],
    *,
    group: Callable[[], int | None] = service_group,
) -> None:
    """Write what ``edit`` makes of the keys. A file that is there keeps owner and mode, ``group`` may read a new one.

    Raises GpudError, and what ``edit`` and reading raise; the file is as it was then.
    """
    # A link is followed: the file behind it is replaced, not the link.
    file = Path(os.path.realpath(path))
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise _cannot(path, problem) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = file.stat() if file.exists() else None
        keys = load_keys(file) if before is not None else ()
        text = keys_text(edit(keys))
        _replace(file, text, before, group() if before is None else None)
        os.fsync(folder)
    except OSError as problem:
        raise _cannot(path, problem) from None
    finally:
        os.close(folder)


def _replace(file: Path, text: str, before: os.stat_result | None, group: int | None) -> None:
    # Only its owner may read the new file, from its first byte on.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if before is not None:
                os.fchown(stream.fileno(), before.st_uid, before.st_gid)
                os.fchmod(stream.fileno(), before.st_mode & 0o777)
            elif group is not None:
                os.fchown(stream.fileno(), -1, group)
                os.fchmod(stream.fileno(), 0o640)
            os.fsync(stream.fileno())
        os.replace(name, file)  # noqa: PTH105 - Path(name).replace(file) is the same
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise


def _cannot(path: Path, problem: OSError) -> GpudError:
    hint = "run it as root" if isinstance(problem, PermissionError) else ""
    return GpudError(f'cannot change "{path}": {problem.strerror}', hint=hint)
