"""The same content in several places is one model; what did not change is not read again."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import trees
from gpud.catalog import copies, look
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Roots, Source


def test_one_model_everywhere_is_one_model(tmp_path: Path) -> None:
    """A file, a hard link, a link, a copy, the hub's cache, Ollama's store: folders first, each kind sorted."""
    folder, hub, store = tmp_path / "folder", tmp_path / "hub", tmp_path / "ollama"
    path = trees.gguf(folder / "m.gguf")
    os.link(path, folder / "hard.gguf")
    (folder / "soft.gguf").symlink_to("m.gguf")
    (folder / "sub").mkdir()
    shutil.copy(path, folder / "sub" / "copy.gguf")
    cached = trees.hub_file(hub, "org/repo", "0" * 40, "hub.gguf", path)
    blob = trees.ollama_blob(store, path.read_bytes())
    trees.ollama_manifest(store, "registry.ollama.ai/library/m/1", {"model": blob})
    found = trees.only(trees.look(folder, huggingface=(hub,), ollama=(store,)))
    assert [(place.source, place.path) for place in found.places] == [
        (Source.FOLDER, str(folder / "hard.gguf")),
        (Source.FOLDER, str(folder / "m.gguf")),
        (Source.FOLDER, str(folder / "soft.gguf")),
        (Source.FOLDER, str(folder / "sub" / "copy.gguf")),
        (Source.HUGGINGFACE, str(cached)),
        (Source.OLLAMA, str(store / "blobs" / blob.replace(":", "-"))),
    ]
    assert (found.digest, found.ollama_name) == (trees.sha256(path), "m:1")
    assert found.size_bytes == path.stat().st_size


def large(path: Path, name: str = "m") -> Path:
    """A model of 9 MB whose weights are no hole."""
    trees.gguf(path, name, rows=65536)
    start = path.stat().st_size - 65536 * 144
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(range(256)) * (65536 * 144 // 256))
    return path


def test_models_of_one_size_that_differ_are_two(tmp_path: Path) -> None:
    """In their names alone, or in their weights alone."""
    first, second = large(tmp_path / "a.gguf", "one"), large(tmp_path / "b.gguf", "two")
    third = tmp_path / "c.gguf"
    shutil.copy(first, third)
    with third.open("r+b") as file:
        file.seek(third.stat().st_size // 2)
        file.write(bytes(third.stat().st_size // 3))
    assert len({path.stat().st_size for path in (first, second, third)}) == 1
    assert len(trees.look(tmp_path).models) == 3


def test_split_models_are_compared_whole(tmp_path: Path) -> None:
    """Copies are one, and a copy with another last part is another."""
    for name in ("a", "b", "c"):
        trees.split(tmp_path / name, "m", 2)
    last = trees.split(tmp_path / "c", "m", 2)[1]
    with last.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x" * 100)
    assert sorted(len(found.places) for found in trees.look(tmp_path).models) == [1, 2]


def test_copies_that_stores_call_by_different_digests_are_two(tmp_path: Path) -> None:
    """What a sample cannot tell, a checksum can."""
    first, second = large(tmp_path / "made" / "a.gguf"), large(tmp_path / "made" / "b.gguf")
    with second.open("r+b") as file:
        file.seek(copies.SAMPLE_BYTES + 64 * 1024)
        file.write(b"x")
    for path in (first, second):
        trees.hub_file(tmp_path / "hub", f"org/{path.stem}", "0" * 40, path.name, path)
    assert len(trees.look(huggingface=(tmp_path / "hub",)).models) == 2


# What is known -------------------------------------------------------------------------------------------------------


def everything(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder, a cache and a store with something of each kind."""
    folder, hub, store = tmp_path / "folder", tmp_path / "hub", tmp_path / "ollama"
    for number in range(5):
        trees.gguf(folder / f"m{number}" / "m.gguf", f"m{number}")
    trees.projector(folder / "m0" / "mmproj.gguf")
    trees.gguf(folder / "m1" / "m-draft.gguf")
    trees.split(folder, "big", 3)
    shutil.copy(folder / "m2" / "m.gguf", folder / "copy.gguf")
    trees.safetensors(folder / "st", {"model_type": "x"})
    trees.hub_file(hub, "org/repo", "0" * 40, "x.gguf", trees.gguf(tmp_path / "made" / "x.gguf"))
    trees.hub_file(hub, "org/repo", "0" * 40, "m.gguf", folder / "m3" / "m.gguf")
    blob = trees.ollama_blob(store, (folder / "m4" / "m.gguf").read_bytes())
    eyes = trees.ollama_blob(store, trees.projector(tmp_path / "made" / "p.gguf").read_bytes())
    trees.ollama_manifest(store, "registry.ollama.ai/library/m/1", {"model": blob, "projector": eyes})
    return folder, hub, store


def test_what_did_not_change_is_not_opened(tmp_path: Path) -> None:
    """The very same records come back."""
    folder, hub, store = everything(tmp_path)
    finder = ModelFinder(trees.later)
    before = trees.look(folder, huggingface=(hub,), ollama=(store,), finder=finder)
    assert len(before.models) == 8 and before.read > 8 and before.troubles == ()
    again = trees.look(folder, huggingface=(hub,), ollama=(store,), finder=finder, known=before)
    assert again.read == 0
    assert all(one is other for one, other in zip(again.models, before.models, strict=True))


def test_a_daemon_that_starts_again_opens_what_no_model_is_known_by(tmp_path: Path) -> None:
    """Projectors, drafts and copies: what is known of models is kept elsewhere."""
    folder, hub, store = everything(tmp_path)
    before = trees.look(folder, huggingface=(hub,), ollama=(store,))
    again = trees.look(folder, huggingface=(hub,), ollama=(store,), known=before)
    assert again.models == before.models
    assert again.read == 5  # A projector, a draft, and the copies in the folder, the cache and the store.


def test_a_file_that_was_written_to_is_read_again(tmp_path: Path) -> None:
    """Its stamp is another, and only it was opened."""
    finder = ModelFinder(trees.later)
    for name in ("a", "b"):
        trees.gguf(tmp_path / f"{name}.gguf")
    before = trees.look(tmp_path, finder=finder)
    trees.gguf(tmp_path / "a.gguf", "another", architecture="qwen3")
    after = trees.look(tmp_path, finder=finder, known=before)
    assert after.read == 1
    assert [found.architecture for found in after.models] == ["qwen3", "llama"]
    assert after.models[0].stamp != before.models[0].stamp and after.models[1] is before.models[1]


def test_a_file_that_was_cut_off_is_broken(tmp_path: Path) -> None:
    """After it had been found whole."""
    finder, path = ModelFinder(trees.later), trees.gguf(tmp_path / "a.gguf")
    before = trees.look(tmp_path, finder=finder)
    os.truncate(path, path.stat().st_size - 1)
    assert "and the file has" in trees.only(trees.look(tmp_path, finder=finder, known=before)).problem


def test_a_link_or_a_mode_changes_no_stamp(tmp_path: Path) -> None:
    """A model that is loaded is not another one because somebody linked its file."""
    finder, path = ModelFinder(trees.later), trees.gguf(tmp_path / "a.gguf")
    before = trees.look(tmp_path, finder=finder)
    path.chmod(0o600)
    os.link(path, tmp_path / "b.gguf")
    after = trees.only(trees.look(tmp_path, finder=finder, known=before))
    assert after.stamp == before.models[0].stamp and len(after.places) == 2


def test_a_projector_that_comes_later_belongs_to_its_model(tmp_path: Path) -> None:
    """Of what is known of the model nothing is read again; and when it goes, it is gone."""
    finder = ModelFinder(trees.later)
    trees.gguf(tmp_path / "a.gguf")
    before = trees.look(tmp_path, finder=finder)
    eyes = trees.projector(tmp_path / "mmproj.gguf")
    after = trees.look(tmp_path, finder=finder, known=before)
    assert trees.only(after).mmproj == str(eyes) and after.read == 1
    assert trees.only(after).stamp != before.models[0].stamp
    eyes.unlink()
    assert trees.look(tmp_path, finder=finder, known=after).models == before.models


def test_a_copy_that_becomes_another_model_is_one(tmp_path: Path) -> None:
    """It was the same, and is not any more."""
    finder = ModelFinder(trees.later)
    shutil.copy(trees.gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf")
    before = trees.look(tmp_path, finder=finder)
    assert len(trees.only(before).places) == 2
    trees.gguf(tmp_path / "b.gguf", "b", rows=16)
    assert len(trees.look(tmp_path, finder=finder, known=before).models) == 2


def test_a_file_that_was_just_written_is_read_once_more(tmp_path: Path) -> None:
    """Its next change could have the same date as the last."""
    now_ns = [trees.gguf(tmp_path / "a.gguf").stat().st_ctime_ns]
    finder = ModelFinder(lambda: now_ns[0])
    before = trees.look(tmp_path, finder=finder)
    now_ns[0] += look.SETTLED_NS + 1
    assert trees.look(tmp_path, finder=finder, known=before).read == 1
    assert trees.look(tmp_path, finder=finder, known=before).read == 0


@pytest.mark.parametrize("first", [True, False])
def test_when_one_place_goes_the_other_stays(tmp_path: Path, first: bool) -> None:
    """Whichever it was."""
    finder = ModelFinder(trees.later)
    paths = [trees.gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf"]
    shutil.copy(*paths)
    before = trees.look(tmp_path, finder=finder)
    paths[0 if first else 1].unlink()
    after = trees.only(trees.look(tmp_path, finder=finder, known=before))
    assert after.path == str(paths[1 if first else 0]) and after.architecture == "llama"


def test_a_copy_that_comes_later_takes_nobodys_place(tmp_path: Path) -> None:
    """An engine may have the first: it stays the one, with its stamp, however the copy is called."""
    finder = ModelFinder(trees.later)
    path = trees.gguf(tmp_path / "m.gguf")
    before = trees.look(tmp_path, finder=finder)
    shutil.copy(path, tmp_path / "a.gguf")
    second = trees.look(tmp_path, finder=finder, known=before)
    for after in (trees.only(second), trees.only(trees.look(tmp_path, finder=finder, known=second))):
        assert [place.path for place in after.places] == [str(path), str(tmp_path / "a.gguf")]
        assert after.stamp == trees.only(before).stamp
    path.unlink()
    third = trees.look(tmp_path, finder=finder, known=second)
    assert [place.path for place in trees.only(third).places] == [str(tmp_path / "a.gguf")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(("copy", "hard", "soft"))), max_size=10), st.data())
def test_places_are_as_many_as_files_and_models_as_contents(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[int, str]], data: st.DataObject
) -> None:
    """However they are linked; also when it is looked again after some have gone."""
    folder = tmp_path_factory.mktemp("copies")
    finder, content = ModelFinder(trees.later), {}
    sources = [trees.gguf(tmp_path_factory.mktemp("made") / f"{number}.gguf") for number in range(4)]
    for number, (which, how) in enumerate(files):
        path = folder / f"f{number}.gguf"
        {"copy": shutil.copy, "hard": os.link, "soft": os.symlink}[how](sources[which], path)
        content[str(path)] = which
    before = finder.scan(Roots(folders=(str(folder),)), {})
    kept = data.draw(st.sets(st.sampled_from(sorted(content)))) if content else set()
    for finding, there in ((before, content), (None, kept)):
        if finding is None:
            for path in content.keys() - kept:
                os.unlink(path)
            finding = finder.scan(Roots(folders=(str(folder),)), trees.by_path(before))
        groups = {frozenset(place.path for place in found.places) for found in finding.models}
        expected = {frozenset(path for path in there if content[path] == which) for which in range(4)} - {frozenset()}
        assert groups == expected
