"""Places for the private sockets of engines."""

import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_parts import command, shell

from gpud.core.errors import BackendFailed
from gpud.processes.launcher import ProcessLauncher
from gpud.processes.sockets import SocketDirectory

Run = Callable[..., Any]


def usable(path: str) -> bool:
    """The kernel takes it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    return True


def test_socket_lies_in_a_directory_of_the_daemons_own() -> None:
    """Below the runtime directory, which others may enter, in one that they may not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # A test's own folder has too long a name.
        _socket_lies_below(Path(place))


def _socket_lies_below(place: Path) -> None:
    sockets = SocketDirectory(place, {})
    path = Path(sockets.path("tiny-1"))
    assert path == place / "engines" / "tiny-1.sock" and usable(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    sockets.close()
    assert not path.parent.exists()


def test_stale_socket_is_removed(tmp_path: Path) -> None:
    """An engine cannot bind where another has left its socket."""
    sockets = SocketDirectory(tmp_path, {})
    assert usable(sockets.path("tiny-1"))
    assert usable(sockets.path("tiny-1"))
    sockets.close()


def test_socket_that_cannot_be_removed_keeps_nobody_waiting(
    make_launcher: Callable[..., ProcessLauncher], run: Run
) -> None:
    """The end of an engine is told all the same."""

    async def scene() -> None:
        launcher = make_launcher()
        path = Path(launcher.socket_path("tiny-1"))
        path.mkdir()
        child = await launcher.spawn(shell("exit 3"))
        assert (await child.wait()).code == 3
        path.rmdir()
        await launcher.close()

    run(scene())


def test_only_sockets_of_known_units_stay(tmp_path: Path) -> None:
    """Killed engines leave theirs behind; those that were taken over, with whatever name, keep them."""
    sockets = SocketDirectory(tmp_path, {})
    long = "m" * 200
    paths = {unit: Path(sockets.path(unit)) for unit in ("taken-over", long, "killed", "n" * 200)}
    for path in paths.values():
        path.touch()
    record = paths["killed"].with_name("killed.json")
    record.touch()
    sockets.sweep(("taken-over", long))
    assert [unit for unit, path in paths.items() if path.exists()] == ["taken-over", long]
    assert record.exists()


def test_long_unit_gets_a_short_socket(tmp_path: Path) -> None:
    """Units that differ at their ends only still get sockets of their own."""
    sockets = SocketDirectory(tmp_path, {})
    paths = [sockets.path("x" * 90 + end) for end in ("-1", "-2")]
    assert len(set(paths)) == 2 and all(map(usable, paths))
    sockets.close()


def test_long_runtime_directory_is_left_for_a_short_one(tmp_path: Path) -> None:
    """The user's runtime directory is next, and the place is the same after a restart."""
    deep = tmp_path / ("d" * 90)
    short = Path("/tmp", f"gpud-test-{os.getpid()}")
    short.mkdir(mode=0o700)
    sockets = SocketDirectory(deep, {"XDG_RUNTIME_DIR": str(short)})
    path = Path(sockets.path("tiny-1"))
    assert path.parent.parent == short and usable(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert SocketDirectory(deep, {"XDG_RUNTIME_DIR": str(short)}).path("tiny-1") == str(path)
    sockets.close()
    short.rmdir()


def test_directory_that_somebody_else_prepared_is_not_trusted(tmp_path: Path) -> None:
    """In a place where anybody may write, a link or an open directory with our name is a trap."""
    deep = tmp_path / ("d" * 90)
    short = Path("/tmp", f"gpud-test-{os.getpid()}")
    short.mkdir(mode=0o700)
    environment = {"XDG_RUNTIME_DIR": str(short)}
    trap = Path(SocketDirectory(deep, environment).path("tiny-1")).parent
    trap.chmod(0o777)
    other = SocketDirectory(deep, environment)
    assert Path(other.path("tiny-1")).parent.parent == Path("/tmp")
    other.close()
    trap.rmdir()
    trap.symlink_to(tmp_path)
    other = SocketDirectory(deep, environment)
    assert Path(other.path("tiny-1")).parent.parent == Path("/tmp")
    other.close()
    trap.unlink()
    short.rmdir()


def test_no_place_at_all_is_an_error_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the path is and how long it may be."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(BackendFailed, match=r"has \d+ bytes, 77 are possible") as caught:
        SocketDirectory(deep, {}).path("tiny-1")
    assert caught.value.hint


def test_socket_goes_with_its_engine(launcher: ProcessLauncher, run: Run) -> None:
    """Also when the engine was killed and could not remove it, or never started."""

    async def scene() -> None:
        path = launcher.socket_path("tiny-1")
        child = await launcher.spawn(shell(f": >{path}; exec sleep 1000"))
        await child.kill()
        assert not Path(path).exists()
        launcher.socket_path("tiny-1")
        Path(path).touch()
        with pytest.raises(BackendFailed):
            await launcher.spawn(command("/nonexistent"))
        assert not Path(path).exists()
        await launcher.close()
        assert not Path(path).parent.exists()

    run(scene())
