"""Ollama's names and its store, read as Ollama reads them and without a server."""

import json
from pathlib import Path

import pytest
from fake_ollama import write_model

from gpud.backends.ollama_store import BadManifest, BadName, Store, parse_name, same_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:3b", "llama3.2:3b"),
        ("someone/thing", "someone/thing:latest"),
        ("hf.co/user/Repo-GGUF:Q4_K_M", "hf.co/user/Repo-GGUF:Q4_K_M"),
        ("localhost:5000/user/thing", "localhost:5000/user/thing:latest"),
        ("https://hf.co/user/thing", "hf.co/user/thing:latest"),
        ("registry.ollama.ai/library/llama3.2:latest", "llama3.2:latest"),
    ],
)
def test_a_name_is_shown_as_ollama_shows_it(text: str, shown: str) -> None:
    """Defaults are filled in, the default host and namespace are left out, the tag never."""
    assert str(parse_name(text)) == shown


@pytest.mark.parametrize(
    "text", ["", ":", "a b", "../../etc/passwd", "a/b/c/d", "a//b", "model:", "model:..", "-x", "a\n", "model:a/b:"]
)
def test_what_ollama_would_refuse_is_no_name(text: str) -> None:
    """An empty name above all: asked to unload it, Ollama answers "not found" and unloads nothing."""
    with pytest.raises(BadName):
        parse_name(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("LLAMA3.2", True),
        ("library/llama3.2:LATEST", True),
        ("registry.ollama.ai/library/llama3.2", True),
        ("llama3.2:3b", False),
        ("someone/llama3.2", False),
        ("", False),
    ],
)
def test_names_are_compared_as_ollama_compares_them(text: str, same: bool) -> None:
    """Spelled in full or in short, in any case, it is the same model."""
    assert same_name(text, parse_name("llama3.2")) is same


def test_a_manifest_tells_weights_and_what_is_held_in_memory(tmp_path: Path) -> None:
    """Weights, projector and adapter are loaded; a template is not."""
    digest = write_model(
        tmp_path, "seer:7b", model=b"w" * 1000, projector=b"p" * 200, adapter=b"a" * 30, template=b"t" * 4000
    )
    manifest = Store(tmp_path).find(parse_name("seer:7b"))
    assert manifest is not None
    assert (manifest.weights, manifest.held_bytes, manifest.missing) == (digest, 1230, ())


def test_a_model_is_found_in_any_case(tmp_path: Path) -> None:
    """Ollama keeps the case in which a model was pulled and finds it in every other."""
    write_model(tmp_path, "seer:7b")
    folder = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "seer"
    (folder / "7b").rename(folder / "7B")
    manifest = Store(tmp_path).find(parse_name("SEER:7b"))
    assert manifest is not None and str(manifest.name) == "seer:7B"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A download that was broken off leaves a manifest without its blobs."""
    digest = write_model(tmp_path, "seer")
    (tmp_path / "blobs" / f"sha256-{digest}").unlink()
    manifest = Store(tmp_path).find(parse_name("seer"))
    assert manifest is not None and manifest.missing == (digest,)


def test_a_cloud_model_has_no_weights(tmp_path: Path) -> None:
    """Its manifest names nothing that is held in memory."""
    write_model(tmp_path, "vast:cloud", template=b"t")
    manifest = Store(tmp_path).find(parse_name("vast:cloud"))
    assert manifest is not None and not manifest.has_weights


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"layers": 3}',
        b'{"layers": [{"digest": "sha256:../../x", "size": 1, "mediaType": "x"}]}',
        b'{"layers": [{"digest": "sha256-' + b"0" * 64 + b'", "size": "1", "mediaType": "x"}]}',
        b"[" * 100000,
        b" " * (5 << 20),
    ],
)
def test_a_damaged_manifest_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    """Whatever lies there, the answer is a sentence with the file's path."""
    write_model(tmp_path, "seer")
    path = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "seer" / "latest"
    path.write_bytes(content)
    with pytest.raises(BadManifest, match="latest"):
        Store(tmp_path).find(parse_name("seer"))


def test_the_nearest_names_come_first(tmp_path: Path) -> None:
    """A typing mistake, or another tag of the same model."""
    for name in ("llama3.2:3b", "llama3.2:1b", "qwen3:8b", "user/mistral"):
        write_model(tmp_path, name)
    store = Store(tmp_path)
    assert store.nearest(parse_name("lama3.2:3b"))[0] == "llama3.2:3b"
    assert set(store.nearest(parse_name("llama3.2"))) == {"llama3.2:3b", "llama3.2:1b"}
    assert store.nearest(parse_name("zzzzzz")) == ()


def test_a_store_that_is_not_there_is_empty_and_unreadable(tmp_path: Path) -> None:
    """Nothing raises: Ollama may never have been used on this machine."""
    store = Store(tmp_path / "absent")
    assert not store.readable()
    assert store.names() == ()
    assert store.find(parse_name("x")) is None
    (tmp_path / "absent" / "manifests").mkdir(parents=True)
    assert store.readable()


def test_files_that_are_no_manifests_are_passed_over(tmp_path: Path) -> None:
    """Names on disk are judged like typed ones."""
    write_model(tmp_path, "seer")
    odd = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "seer" / ".part ial"
    odd.write_text(json.dumps({}))
    assert [str(name) for name in Store(tmp_path).names()] == ["seer:latest"]
