"""Where models are looked for, and by which engines those that are found are served."""

import os
from pathlib import Path
from typing import Any

import pytest

from gpud import config
from gpud.backends import EngineOptions
from gpud.core.catalogue import Entry, Format, Found, Place, Source
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import Model
from gpud.engines import Engines, is_here
from gpud.shelves import roots, shelf

LAUNCHER: Any = None
"""Nothing is started here."""


def parsed(text: str = "") -> config.Config:
    return config.parse(text, "/etc/gpud/gpud.yaml")


def test_the_service_looks_below_the_base_directory() -> None:
    """And at nobody's home; models of the configuration are looked at wherever they lie."""
    text = "storage: {base_directory: /srv/ml}\nmodels: {a: {engine: embedded, file: /elsewhere/a.gguf}}"
    found = roots(parsed(text), {"HOME": "/root", "HF_HOME": "/root/hf"}, user=False)
    below = ("llamacpp/models", "gguf", "vllm", "tgi", "custom")
    assert found.folders == tuple(f"/srv/ml/{name}" for name in below)
    assert found.huggingface == ("/srv/ml/huggingface/hub",)
    assert found.ollama[0] == "/srv/ml/ollama/models" and not any("/root" in place for place in found.all())
    assert found.files == ("/elsewhere/a.gguf",)


@pytest.mark.parametrize(
    ("environment", "folder", "hub", "store"),
    [
        (
            {"HOME": "/home/me"},
            "/home/me/.local/share/gpud/models",
            "/home/me/.cache/huggingface/hub",
            "/home/me/.ollama/models",
        ),
        (
            {"HOME": "/home/me", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/c", "OLLAMA_MODELS": "/o"},
            "/d/gpud/models",
            "/c/huggingface/hub",
            "/o",
        ),
        (
            {"HOME": "/home/me", "HF_HOME": "/hf"},
            "/home/me/.local/share/gpud/models",
            "/hf/hub",
            "/home/me/.ollama/models",
        ),
        (
            {"HOME": "/home/me", "HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"},
            "/home/me/.local/share/gpud/models",
            "/cache",
            "/home/me/.ollama/models",
        ),
    ],
)
def test_a_users_own_places_are_looked_at(environment: dict[str, str], folder: str, hub: str, store: str) -> None:
    """Where their programs keep models, as those find them."""
    found = roots(parsed(), environment, user=True)
    assert folder in found.folders and hub in found.huggingface and store in found.ollama


def test_without_a_home_there_are_the_machines_places(tmp_path: Path) -> None:
    """A user's gpud that is started from nowhere."""
    found = roots(parsed(f"storage: {{base_directory: {tmp_path}}}"), {}, user=True)
    assert all(place.startswith((str(tmp_path), "/usr/share/ollama")) for place in found.all())


def test_what_is_configured_takes_the_place_of_what_is_known() -> None:
    """Each kind by itself, an empty one means none, and Ollama's store follows the engine."""
    found = roots(parsed("registry: {paths: [/m], huggingface: [], include: ['*.gguf']}"), {}, user=False)
    assert (found.folders, found.huggingface, found.include) == (("/m",), (), ("*.gguf",))
    text = "engines: {ollama: {models_dir: /srv/ollama}}"
    assert roots(parsed(text), {}, user=False).ollama[0] == "/srv/ollama"


def test_nothing_is_looked_for_where_that_is_not_wanted() -> None:
    """The configured models stay."""
    text = "registry: {enable: false}\nmodels: {a: {engine: embedded, file: /a.gguf}}"
    off = shelf(parsed(text), lambda: (), {}, user=False)
    assert list(off.configured) == ["a"] and not off.roots.all()


def test_engines_are_asked_for_once_for_each_look() -> None:
    """Thousands of models are made by one answer."""
    asked = []

    def here() -> tuple[str, ...]:
        asked.append(1)
        return ("embedded",)

    makes = shelf(parsed(), here, {}, user=False).makes()
    for name in ("a", "b"):
        place = Place(f"/m/{name}.gguf", Source.FOLDER, name)
        made = makes(Entry(1, name, Found((place,), Format.GGUF, "1", 1)))
        assert isinstance(made, Model) and made.engine == "embedded"
    assert len(asked) == 1


def test_an_engine_is_here_when_its_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PATH, or where the configuration says; a server at a url is here."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_here("ollama", EngineOptions()) and not is_here("llama_server", EngineOptions())
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert is_here("ollama", EngineOptions()) and not is_here("vllm", EngineOptions())
    assert is_here("llama_server", EngineOptions(binary=str(program)))
    assert is_here("vllm", EngineOptions(url="http://127.0.0.1:8000"))
    assert is_here("embedded", EngineOptions())
    assert not is_here("custom", EngineOptions())


def test_backends_are_made_when_they_are_needed_and_kept_while_they_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of configured models at once; another configuration takes over what it does not change."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first = Engines(parsed("models: {a: {engine: embedded, file: /a.gguf}}"), LAUNCHER, service=True)
    assert list(first) == ["embedded"] and "llama_server" in first and "nothing" not in first
    embedded, server = first["embedded"], first["llama_server"]
    assert list(first) == ["embedded", "llama_server"]
    text = "engines: {llama_server: {binary: /opt/llama-server}}"
    second = Engines(parsed(text), LAUNCHER, service=True, before=first)
    assert second["embedded"] is embedded and second["llama_server"] is not server
    with pytest.raises(KeyError):
        second["nothing"]


def test_only_engines_of_the_order_that_are_here_serve_found_models() -> None:
    """In the order of the configuration."""
    engines = Engines(parsed("scheduler: {backend_order: [embedded, tgi]}"), LAUNCHER, service=True)
    assert engines.here() == ("embedded",)


def test_an_engine_that_cannot_be_made_refuses_the_configuration() -> None:
    """With the words of whoever could not make it."""
    broken = parsed("models: {a: {engine: outside, size: 1GiB}}")
    with pytest.raises(ConfigInvalid, match='there is no engine "outside"'):
        Engines(broken, LAUNCHER, service=True)
