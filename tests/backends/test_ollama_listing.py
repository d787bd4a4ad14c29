"""Ollama's store, listed without Ollama."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from backends.fake_ollama import full_name

from gpud.backends.ollama_listing import listing
from gpud.backends.ollama_store import Store


def put(folder: Path, name: str, about: Any, **changes: Any) -> Path:
    """A model as Ollama stores it; its weights are not there, and not needed."""
    content = json.dumps(about).encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / f"sha256-{digest}").write_bytes(content)
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64, "size": 1000}]
    manifest = {"config": {"digest": f"sha256:{digest}", "size": len(content)}, "layers": layers} | changes
    path = folder.joinpath("manifests", *full_name(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


ABOUT = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "8B",
    "file_type": "Q4_0",
}


def test_a_model_is_listed_as_ollama_lists_it(tmp_path: Path) -> None:
    """Name, size of all its parts, digest of its manifest, and what it is."""
    path = put(tmp_path, "someone/other:v1", ABOUT)
    (entry,) = listing(Store(tmp_path))
    assert entry["name"] == entry["model"] == "someone/other:v1"
    assert entry["size"] == 1000 + len(json.dumps(ABOUT))
    assert entry["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8B",
        "quantization_level": "Q4_0",
    }


@pytest.mark.parametrize(
    "changes",
    [{"config": None}, {"layers": 5}, {"layers": [{"size": "x"}]}, {"config": {"digest": "sha256:0", "size": 1}}],
)
def test_what_cannot_be_read_is_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The others are listed all the same."""
    put(tmp_path, "good", {})
    put(tmp_path, "bad", ABOUT, **changes)
    (tmp_path / "manifests" / "not-four-levels").touch()
    assert [entry["name"] for entry in listing(Store(tmp_path))] == ["good:latest"]


def test_no_store_is_an_empty_one(tmp_path: Path) -> None:
    """Nothing was ever pulled."""
    assert listing(Store(tmp_path / "nothing")) == []
