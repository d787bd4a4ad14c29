"""Engines are found by name, imported when they are made, and may come from other packages."""

import subprocess
import sys
from pathlib import Path

import pytest
from place import Journal, NoFdStore

from gpud.backends import BACKENDS, EngineOptions, make
from gpud.config.records import EngineConfig
from gpud.core.engines import BUILT_IN
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model
from gpud.core.ports import Command, Launcher
from gpud.processes.launcher import ProcessLauncher


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return ProcessLauncher(runtime_dir=tmp_path, fd_store=NoFdStore(), sink=Journal(), cgroup=None)


@pytest.fixture
def package(tmp_path: Path) -> str:
    """A package as an installer leaves it: a module, and a dist-info with entry points."""
    (tmp_path / "acme_engine.py").write_text(
        "class Turbo:\n"
        "    name = 'turbo'\n"
        "    def __init__(self, options, launcher):\n"
        "        self.options, self.launcher = options, launcher\n"
        "def fail(options, launcher):\n"
        "    raise ValueError('no license')\n"
    )
    info = tmp_path / "acme_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gpud.backends]\nturbo = acme_engine:Turbo\nbroken = acme_missing:Nothing\nfailing = acme_engine:fail\n"
    )
    return str(tmp_path)


def test_every_engine_that_others_know_of_has_its_backend() -> None:
    """One row for what they know, one line for the code, in the same order."""
    assert tuple(BACKENDS) == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_engine_is_made_under_its_name(name: str, launcher: Launcher) -> None:
    """The name in the configuration is the name of the backend."""
    assert make(name, EngineOptions(), launcher).name == name


def test_an_engine_is_imported_when_it_is_made() -> None:
    """The daemon pays at its start for no engine that it does not use, and for no metadata."""
    code = (
        "import sys, gpud.backends\n"
        "late = [name for name in sys.modules if name.startswith('gpud.backends.') or name == 'importlib.metadata']\n"
        "print(late)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_root())
    assert found.stdout.strip() == "['gpud.backends.options']"


def test_a_package_brings_an_engine(package: str, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point in the group gpud.backends is all that it takes."""
    monkeypatch.syspath_prepend(package)
    options = EngineOptions(binary="/opt/turbo")
    backend = make("turbo", options, launcher)
    assert backend.name == "turbo"
    assert (backend.options, backend.launcher) == (options, launcher)  # type: ignore[attr-defined]


def test_a_broken_package_is_named(package: str, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is there and cannot be imported."""
    monkeypatch.syspath_prepend(package)
    with pytest.raises(
        BackendFailed, match='its package "acme-engine" cannot be imported: ModuleNotFoundError'
    ) as failure:
        make("broken", EngineOptions(), launcher)
    assert failure.value.preflight


def test_a_package_that_cannot_make_its_engine_is_named(
    package: str, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises becomes a sentence: it must not end the daemon."""
    monkeypatch.syspath_prepend(package)
    with pytest.raises(BackendFailed, match=r'cannot use engine "failing": .* ValueError: no license') as failure:
        make("failing", EngineOptions(), launcher)
    assert failure.value.preflight


def test_no_environment_shows_in_a_message() -> None:
    """It may hold keys."""
    environment = (("HF_TOKEN", "secret"),)
    command = Command("tiny-1", "tiny", "custom", ("/bin/true",), dict(environment))
    model = Model("tiny", "custom", EngineSettings(environment=environment))
    for shown in (EngineOptions(environment=environment), EngineConfig(environment=environment), command, model):
        assert "secret" not in repr(shown)


def test_an_unknown_engine_names_those_that_exist(
    package: str, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built in and installed ones."""
    monkeypatch.syspath_prepend(package)
    with pytest.raises(BackendFailed) as failure:
        make("tubro", EngineOptions(), launcher)
    assert failure.value.message == (
        f'there is no engine "tubro"; engines are {", ".join(BUILT_IN)}, broken, failing, turbo'
    )


def _root() -> Path:
    return Path(__file__).parent.parent.parent
