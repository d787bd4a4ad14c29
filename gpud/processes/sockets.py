"""Finds a place for the private sockets of engines: short enough for the kernel, closed to everybody else."""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from gpud.core.errors import BackendFailed
from gpud.processes.names import safe_name

log = logging.getLogger(__name__)

PATH_LIMIT_BYTES = 107
"""The longest path of a Unix socket."""

SUFFIX = ".sock"
NAME_BYTES = 24 + len(SUFFIX)
"""The length of the name that a socket gets when its unit's own name does not fit."""


class SocketDirectory:
    """A directory that only the daemon's user may enter: engines make their sockets with the mode they like.

    It lies in the runtime directory; where the path of that is too long, in the user's own runtime directory or in the
    one for temporary files.
    """

    def __init__(self, runtime_dir: Path, environment: Mapping[str, str]) -> None:
        self._runtime_dir = runtime_dir
        self._environment = environment
        self._directory: Path | None = None
        self._paths: dict[str, Path] = {}

    def path(self, unit: str) -> str:
        try:
            if self._directory is None:
                self._directory = self._find()
            path = self._directory / f"{safe_name(unit)}{SUFFIX}"
            if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
                path = self._directory / f"{_checksum(unit)}{SUFFIX}"
            path.unlink(missing_ok=True)
        except OSError as problem:
            raise BackendFailed(
                f'cannot make a place for engines\' sockets in "{self._runtime_dir}": {problem.strerror}',
                hint="make room there, or correct its permissions",
                kind="no-resources",
                preflight=True,
            ) from problem
        self._paths[unit] = path
        return str(path)

    def forget(self, unit: str) -> None:
        """The engine is gone: so is its socket."""
        path = self._paths.pop(unit, None)
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as problem:
                log.debug('the socket "%s" is left to the next start: %s', path, problem)

    def sweep(self, known_units: Collection[str]) -> None:
        """Remove what killed engines of an earlier daemon left: the sockets of all units but these."""
        known = {name for unit in known_units for name in (f"{safe_name(unit)}{SUFFIX}", f"{_checksum(unit)}{SUFFIX}")}
        for directory in self._places():
            for path in directory.glob(f"*{SUFFIX}") if _is_private(directory) else ():
                if path.name not in known:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        for unit in tuple(self._paths):
            self.forget(unit)
        if self._directory is not None:
            try:
                self._directory.rmdir()
            except OSError as problem:
                log.debug('"%s" is left behind: %s', self._directory, problem)
            self._directory = None

    def _places(self) -> tuple[Path, ...]:
        """Where sockets may lie. The same after a restart, so that nothing piles up."""
        below = self._runtime_dir.absolute() / "engines"
        if _fits(below):
            return (below,)
        name = f"gpud-{os.geteuid()}-{_checksum(str(below))}"
        parents = (self._environment.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir())
        return tuple(Path(parent, name) for parent in parents if parent and _fits(Path(parent, name)))

    def _find(self) -> Path:
        below = self._runtime_dir.absolute() / "engines"
        if _fits(below):
            below.mkdir(mode=0o700, parents=True, exist_ok=True)
            below.chmod(0o700)
            return below
        for place in self._places():
            if _make_private(place):
                return place
        raise BackendFailed(
            f'cannot make a place for engines\' sockets: the path "{below}" has {len(os.fsencode(below))} bytes, '
            f"{PATH_LIMIT_BYTES - NAME_BYTES - 1} are possible, and no other directory can be used",
            hint="choose a runtime directory with a shorter path",
            kind="internal",
            preflight=True,
        )


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory)) + 1 + NAME_BYTES <= PATH_LIMIT_BYTES


def _make_private(directory: Path) -> bool:
    """In a directory where anybody may write: what is there already must be ours, and closed to others."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return _is_private(directory)


def _is_private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[: NAME_BYTES - len(SUFFIX)]
