"""Where gpud keeps its files, and that nobody else has made that place."""

import os
from pathlib import Path

import pytest

from gpud.core.errors import GpudError
from gpud.directories import AlreadyRunning, Directories, alone

STRANGER = 65534


def test_the_service_manager_says_where_and_else_the_user_and_else_the_system() -> None:
    """In this order; without a home what is kept goes with the runtime directory."""
    given = {"RUNTIME_DIRECTORY": "/r/gpud:/other", "STATE_DIRECTORY": "/s/gpud", "HOME": "/home/ann"}
    own = {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/ann"}
    temporary = f"/tmp/gpud-{os.geteuid()}/gpud"
    found = [
        Directories.find(given, user=False),
        Directories.find(given, user=True),
        Directories.find({}, user=False),
        Directories.find(own, user=True),
        Directories.find(own | {"XDG_STATE_HOME": "/state"}, user=True),
        Directories.find({}, user=True),
    ]
    assert [(str(one.runtime), str(one.state)) for one in found] == [
        ("/r/gpud", "/s/gpud"),
        ("/r/gpud", "/s/gpud"),
        ("/run/gpud", "/var/lib/gpud"),
        ("/run/user/7/gpud", "/home/ann/.local/state/gpud"),
        ("/run/user/7/gpud", "/state/gpud"),
        (temporary, f"{temporary}/state"),
    ]


def test_only_one_daemon_works_in_a_runtime_directory(tmp_path: Path) -> None:
    """The second one is told which process has it; afterwards it is free again, and nobody else may look inside."""
    runtime = tmp_path / "gpud"
    with alone(runtime):
        assert runtime.stat().st_mode & 0o777 == 0o700
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"), alone(runtime):
            pass
    with alone(runtime):
        pass


@pytest.mark.parametrize("planted", ["folder", "folder above", "link"])
def test_a_directory_that_a_stranger_has_made_where_all_may_write_is_refused(tmp_path: Path, planted: str) -> None:
    """Whoever made it could name processes for gpud to end, and read the engines' keys."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a folder to another user")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    place = shared / "gpud-0"
    if planted == "link":
        (tmp_path / "own").mkdir()
        place.symlink_to(tmp_path / "own")
    else:
        place.mkdir()
    os.chown(place, STRANGER, STRANGER, follow_symlinks=False)
    runtime = place if planted == "folder" else place / "gpud"
    with pytest.raises(GpudError, match=f"{place} was made by user {STRANGER}"), alone(runtime):
        pass
    assert not (runtime / "lock").exists()


def test_a_directory_of_ones_own_where_all_may_write_is_good(tmp_path: Path) -> None:
    """As the one in /tmp is for a user without a runtime directory."""
    tmp_path.chmod(0o1777)
    folder = tmp_path / "gpud-0" / "gpud"
    with alone(folder):
        assert folder.is_dir()
