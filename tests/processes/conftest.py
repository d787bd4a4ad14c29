"""Launchers with and without a cgroup. The cgroups are real: a cgroup v2 mount of the tests' own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_parts import Lines, MemoryFdStore

from gpud.processes.cgroup import Cgroup
from gpud.processes.launcher import ProcessLauncher


@pytest.fixture(scope="session")
def cgroup_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The machine's cgroup v2 tree, mounted where the tests may find it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a cgroup v2 tree and make cgroups in it")
    mount = tmp_path_factory.mktemp("cgroup2")
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", str(mount)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.fail(f"cannot mount cgroup v2 though the tests run as root: {mounted.stderr.strip()}; allow it here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def cgroup_root(cgroup_mount: Path) -> Iterator[Path]:
    """A cgroup of the test's own, as systemd would delegate it; the test must leave it as empty as it was."""
    root = cgroup_mount / f"gpud-test-{os.getpid()}"
    root.mkdir()
    try:
        yield root
        left = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    finally:
        for leaf in [entry for entry in root.iterdir() if entry.is_dir()]:
            (leaf / "cgroup.kill").write_text("1")
        _remove(root)
    assert not left, f"the test left the cgroups {left} behind"


def _remove(root: Path) -> None:
    """Killed processes take a moment to be gone."""
    again = 'until find "$0" -depth -type d -exec rmdir {} +; do sleep 0.05; done'
    subprocess.run(["timeout", "30", "sh", "-c", again, str(root)], check=True, stderr=subprocess.DEVNULL)


@pytest.fixture
def sink() -> Lines:
    return Lines()


@pytest.fixture
def store() -> Iterator[MemoryFdStore]:
    """A store that lasts: children are not tied to the life of the test's process."""
    store = MemoryFdStore()
    yield store
    assert not store.kept, f"the test left {sorted(store.kept)} in the descriptor store"


MakeLauncher = Callable[..., ProcessLauncher]


@pytest.fixture
def make_launcher(tmp_path: Path, sink: Lines, store: MemoryFdStore) -> MakeLauncher:
    """Makes launchers; options go over the usual ones."""

    def make(**options: object) -> ProcessLauncher:
        usual: dict[str, object] = {
            "runtime_dir": tmp_path / "run",
            "fd_store": store,
            "sink": sink,
            "cgroup": None,
        }
        return ProcessLauncher(**{**usual, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture(params=["session", "cgroup"])
def launcher(request: pytest.FixtureRequest, make_launcher: MakeLauncher) -> ProcessLauncher:
    """Each test runs twice: with a session for each child, and with a cgroup leaf."""
    if request.param == "session":
        return make_launcher()
    return make_launcher(cgroup=Cgroup(request.getfixturevalue("cgroup_root")))
