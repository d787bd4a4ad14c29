"""Where models are kept: one directory for the machine, and what follows from it."""

import subprocess
import sys
from pathlib import Path

import pytest
from daemon.harness import TOP

from gpud.config import load, render
from gpud.core.engines import BUILT_IN
from gpud.directories import Directories
from gpud.engines import engine_options


def of_ollama(tmp_path: Path, text: str, *, service: bool) -> str:
    path = tmp_path / "gpud.yaml"
    path.write_text(f"models: {{m: {{engine: ollama}}}}\n{text}")
    return engine_options(load(path, known_engines=BUILT_IN), "ollama", service=service).models_dir


def test_the_base_directory_is_shown(tmp_path: Path) -> None:
    """Also where the configuration does not mention it."""
    path = tmp_path / "gpud.yaml"
    path.write_text("models: {}\n")
    assert render(load(path, known_engines=BUILT_IN), "storage.base_directory") == "/var/lib/ml-models\n"
    path.write_text("models: {}\nstorage: {base_directory: /srv/models}\n")
    assert render(load(path, known_engines=BUILT_IN), "storage.base_directory") == "/srv/models\n"


def test_the_machines_ollama_keeps_its_models_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless another place is named, or the server is somebody else's; a user's own gpud has the user's own store."""
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    assert of_ollama(tmp_path, "", service=True) == "/var/lib/ml-models/ollama/models"
    assert of_ollama(tmp_path, "storage: {base_directory: /srv}", service=True) == "/srv/ollama/models"
    assert of_ollama(tmp_path, "engines: {ollama: {models_dir: /mine}}", service=True) == "/mine"
    assert of_ollama(tmp_path, "engines: {ollama: {url: 'http://127.0.0.1:11434'}}", service=True) == ""
    assert of_ollama(tmp_path, "", service=False) == ""
    monkeypatch.setenv("OLLAMA_MODELS", "/from/the/unit")
    assert of_ollama(tmp_path, "", service=True) == ""


def test_that_store_is_made_by_the_installation() -> None:
    """With the service's user as its owner."""
    assert "d /var/lib/ml-models/ollama/models          0775 gpud gpud -" in (TOP / "units/gpud.tmpfiles").read_text()


def test_the_service_keeps_its_state_in_a_directory_of_its_own() -> None:
    """Without systemd's word the same place is meant as with it."""
    assert str(Directories.find({}, user=False).state) == "/var/lib/gpud"
    assert "StateDirectory=gpud\n" in (TOP / "units/gpud.service").read_text()


def test_gpud_needs_no_web_framework() -> None:
    """Nothing of fastapi, uvicorn, pydantic or aiohttp is asked for or imported by the daemon."""
    code = "import sys, gpud.daemon, gpud.cli; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True).stdout
    assert not {"fastapi", "uvicorn", "pydantic", "aiohttp", "flask", "torch"} & set(loaded.split())


def test_the_top_level_is_as_people_expect_it() -> None:
    """The folders that were asked for are there."""
    there = {path.name for path in TOP.iterdir()}
    assert {"pyproject.toml", "gpud", "units", "dbus-policy", "config", "tests", "README.md", "docs"} <= there
