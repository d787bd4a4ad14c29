"""Where one gpud keeps its files, and that it is alone there. Decides nothing about what is in them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpud.core.errors import GpudError
from gpud.core.record import Record


class Directories(Record):
    """Where gpud keeps what: systemd's directories, else the user's, else the system's."""

    runtime: Path
    state: Path

    @classmethod
    def find(cls, environment: Mapping[str, str], *, user: bool) -> "Directories":
        runtime = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        state = environment.get("STATE_DIRECTORY", "").split(":")[0]
        if not user:
            return cls(Path(runtime or "/run/gpud"), Path(state or "/var/lib/gpud"))
        # Anybody may make a folder in /tmp: "alone" sees to it that this one was not made by somebody else.
        base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/gpud-{os.geteuid()}"  # noqa: S108
        place = Path(runtime or Path(base) / "gpud")
        home = environment.get("HOME")
        kept = environment.get("XDG_STATE_HOME") or (f"{home}/.local/state" if home else "")
        # Without a home what was measured is forgotten with the runtime directory, and measured anew.
        return cls(place, Path(state or (Path(kept) / "gpud" if kept else place / "state")))


class AlreadyRunning(GpudError):
    """Another gpud works in the same runtime directory."""

    code = "already-running"


@contextlib.contextmanager
def alone(runtime: Path) -> Iterator[None]:
    """Nobody else adopts, ends or starts engines in this runtime directory while we do. Let go even by kill -9.

    Nobody else may have made it, either: what its records name is adopted and ended, and they hold the engines' keys.
    """
    try:
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        _insist_on_ours(runtime.absolute())
        lock = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise GpudError(
            f"cannot use the runtime directory {runtime}: {error.strerror}",
            hint="run gpud --user as a user, or as root for the whole system",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AlreadyRunning(
                f"org.kernelcore.GpuD is already owned by another gpud (process {owner}), which uses {runtime}",
                hint="use that one, or stop it first",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def _insist_on_ours(directory: Path) -> None:
    """Raises GpudError when a part of the path lies where anybody may write and was made by another user."""
    for place in (directory, *directory.parents):
        owner = place.lstat().st_uid
        if place.parent.stat().st_mode & 0o002 and owner not in (0, os.geteuid()):
            raise GpudError(
                f"cannot use the runtime directory {directory}: {place} was made by user {owner}, gpud runs as user "
                f"{os.geteuid()}",
                hint="set XDG_RUNTIME_DIR to a directory of your own, or have that one removed",
            )
