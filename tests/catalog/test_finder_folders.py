"""Models in folders: what is found, what is left alone, and what belongs together."""

import fnmatch
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import gguf_writer, trees
from gpud.catalog import content, look, walk
from gpud.catalog.finder import ModelFinder
from gpud.catalog.folders import Patterns
from gpud.core.catalogue import Format, Purpose, Roots, Source
from gpud.core.errors import Canceled
from gpud.core.ports import Finder

# What is found -------------------------------------------------------------------------------------------------------


def test_a_file_is_found_with_what_it_says_of_itself(tmp_path: Path) -> None:
    """Its architecture, quantization, context, size and template, by its name and its path."""
    path = trees.gguf(
        tmp_path / "Qwen3-8B-Q4_K_M.gguf",
        architecture="qwen3",
        general__size_label="8B",
        tokenizer__chat_template="{% if tools %}{{ tools }}{% endif %}",
    )
    finder: Finder = ModelFinder(trees.later)
    finding = finder.scan(Roots(folders=(str(tmp_path),)), {})
    found = trees.only(finding)
    assert (found.path, found.places[0].source, found.places[0].name) == (str(path), Source.FOLDER, "Qwen3-8B-Q4_K_M")
    assert (found.format, found.architecture, found.quantization) == (Format.GGUF, "qwen3", "Q4_K_M")
    assert (found.parameters, found.trained_context) == ("8B", 8192)
    assert found.purpose is Purpose.COMPLETION
    assert found.template and found.tools and not found.problem
    assert found.size_bytes == path.stat().st_size and found.parts == 1
    assert (finding.files, finding.read, finding.troubles, finding.unreachable) == (1, 1, (), ())


def test_what_a_file_does_not_say_its_name_says(tmp_path: Path) -> None:
    """An older file names neither its size nor its recipe."""
    values = {"general.architecture": "llama"}
    gguf_writer.write(tmp_path / "llama-2-13b-chat.Q5_K_M.gguf", values, [("t", (256, 4), "Q5_K")])
    found = trees.only(trees.look(tmp_path))
    assert (found.parameters, found.quantization, found.trained_context) == ("13B", "Q5_K_M", None)


def test_models_are_found_at_any_depth(tmp_path: Path) -> None:
    """The same name in two folders is two models."""
    trees.gguf(tmp_path / "one" / "a.gguf", "first")
    trees.gguf(tmp_path / "two" / "three" / "a.gguf", "second")
    assert [found.path for found in trees.look(tmp_path).models] == [
        str(tmp_path / "one" / "a.gguf"),
        str(tmp_path / "two" / "three" / "a.gguf"),
    ]


@pytest.mark.parametrize(
    ("values", "purpose"),
    [
        ({"architecture": "llama"}, Purpose.COMPLETION),
        ({"architecture": "bert"}, Purpose.EMBEDDING),
        ({"architecture": "nomic-bert", "nomic-bert__pooling_type": 1}, Purpose.EMBEDDING),
        ({"architecture": "gemma-embedding"}, Purpose.EMBEDDING),
        ({"architecture": "qwen3", "qwen3__pooling_type": 3}, Purpose.EMBEDDING),
        ({"architecture": "qwen3", "qwen3__pooling_type": 0}, Purpose.COMPLETION),
        ({"architecture": "qwen3", "qwen3__pooling_type": 4}, Purpose.RERANKING),
        ({"architecture": "bert", "bert__pooling_type": 4}, Purpose.RERANKING),
        ({"architecture": "qwen3", "qwen3__classifier__output_labels": ["yes", "no"]}, Purpose.RERANKING),
        ({"architecture": "llama", "general__type": "adapter"}, Purpose.ADAPTER),
        ({"architecture": "llama", "adapter__type": "lora"}, Purpose.ADAPTER),
    ],
)
def test_the_purpose_follows_from_what_the_file_says(
    tmp_path: Path, values: dict[str, object], purpose: Purpose
) -> None:
    """By the architecture, by the kind of pooling, by a classifier."""
    trees.gguf(tmp_path / "m.gguf", **values)  # type: ignore[arg-type]
    assert trees.only(trees.look(tmp_path)).purpose is purpose


def test_an_encoder_with_a_classifier_ranks(tmp_path: Path) -> None:
    """Older conversions say so by nothing but a tensor."""
    tensors = [("token_embd.weight", (256, 4), "F16"), ("cls.weight", (256, 4), "F16"), ("cls.bias", (256,), "F32")]
    gguf_writer.write(tmp_path / "bge-reranker.gguf", {"general.architecture": "bert"}, tensors)
    assert trees.only(trees.look(tmp_path)).purpose is Purpose.RERANKING


# What is left alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".a.gguf", ".hidden/a.gguf", "cache/a.gguf", "x/tmp/a.gguf", "lost+found/a.gguf"])
def test_hidden_and_passing_things_are_left_alone(tmp_path: Path, name: str) -> None:
    """Whatever they are."""
    trees.gguf(tmp_path / name)
    assert trees.look(tmp_path).models == ()


@pytest.mark.parametrize("ending", sorted(content.PARTIAL_ENDINGS))
def test_a_file_that_somebody_downloads_is_left_alone(tmp_path: Path, ending: str) -> None:
    """By its own name, and where only the name beside it tells."""
    whole = trees.gguf(tmp_path / "a.gguf")
    (tmp_path / f"b.gguf.{ending}").write_bytes(whole.read_bytes())
    assert trees.names(trees.look(tmp_path)) == ["a"]
    (tmp_path / f"a.gguf.{ending}").touch()
    finding = trees.look(tmp_path)
    assert finding.models == () and finding.troubles == ()


def test_a_file_that_is_written_is_not_there_yet(tmp_path: Path) -> None:
    """Neither as a model nor as a broken one, at whatever byte its writer is; when it is complete, it is."""
    whole = trees.gguf(tmp_path / "a.gguf", rows=64).read_bytes()
    target, finder = tmp_path / "b" / "a.gguf", ModelFinder()
    target.parent.mkdir()
    for length in (0, 3, 4, 20, 100, len(whole) // 2, len(whole) - 1):
        target.write_bytes(whole[:length])
        assert trees.look(target.parent, finder=finder).models == (), length
    target.write_bytes(bytes(len(whole)))  # Its place was made, and nothing written.
    assert trees.look(target.parent, finder=finder).models == ()
    target.write_bytes(whole)
    assert trees.only(trees.look(target.parent, finder=finder)).problem == ""


def test_a_file_that_stays_incomplete_is_a_broken_one(tmp_path: Path) -> None:
    """When nobody has written to it for a while: what there is, and what there should be."""
    path = trees.gguf(tmp_path / "a.gguf", rows=64)
    size = path.stat().st_size
    os.truncate(path, size - 100)
    now_ns = [path.stat().st_ctime_ns + look.GROWING_NS - 1]
    finder = ModelFinder(lambda: now_ns[0])
    assert trees.look(tmp_path, finder=finder).models == ()
    now_ns[0] += 2
    found = trees.only(trees.look(tmp_path, finder=finder))
    assert f"and the file has {size - 100:,}" in found.problem and "download or copy it again" in found.problem


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGML and so on", "where a GGUF file begins with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"GGUF\x09\0\0\0" + bytes(16), "it has version 9 of the format"),
    ],
)
def test_what_is_no_model_is_listed_with_what_is_wrong(tmp_path: Path, start: bytes, words: str) -> None:
    """A user who has put it there finds it in the list, and why it is of no use."""
    (tmp_path / "a.gguf").write_bytes(start.ljust(64, b"x"))
    found = trees.only(trees.look(tmp_path))
    assert words in found.problem and found.places[0].name == "a"


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    """llama.cpp's own tests are made of them."""
    gguf_writer.write(tmp_path / "ggml-vocab-x.gguf", {"general.architecture": "llama"}, [], 32)
    assert "no tensors" in trees.only(trees.look(tmp_path)).problem


def test_an_importance_matrix_is_no_model(tmp_path: Path) -> None:
    """It lies beside models that were quantized with it."""
    trees.gguf(tmp_path / "imatrix.gguf", general__type="imatrix")
    finding = trees.look(tmp_path)
    assert finding.models == () and finding.troubles == ()


# Patterns ------------------------------------------------------------------------------------------------------------


def test_only_what_is_included_is_found(tmp_path: Path) -> None:
    """By path, and by name where the pattern has no slash."""
    for name in ("a.gguf", "big/b.gguf", "big/c-Q4_K_M.gguf", "small/d-Q4_K_M.gguf"):
        trees.gguf(tmp_path / name)
    assert trees.names(trees.look(tmp_path, include=("big/*",))) == ["b", "c-Q4_K_M"]
    assert trees.names(trees.look(tmp_path, include=("*Q4_K_M*", "a.gguf"))) == ["a", "c-Q4_K_M", "d-Q4_K_M"]
    assert trees.names(trees.look(tmp_path, include=("?.gguf",))) == ["a", "b"]


def test_what_is_excluded_is_not_found(tmp_path: Path) -> None:
    """A folder with all that is in it, and single names; exclusion has the last word."""
    for name in ("a.gguf", "old/b.gguf", "old/deep/c.gguf", "new/d.gguf", "new/e-draft.gguf"):
        trees.gguf(tmp_path / name)
    assert trees.names(trees.look(tmp_path, exclude=("old",))) == ["a", "d", "e-draft"]
    assert trees.names(trees.look(tmp_path, exclude=("old/*", "*draft*"))) == ["a", "d"]
    assert trees.names(trees.look(tmp_path, include=("new/*",), exclude=("d.gguf",))) == ["e-draft"]


WORDS = st.text("ab.*?[]-", min_size=1, max_size=5)


@given(
    st.lists(WORDS, max_size=3),
    st.lists(WORDS, max_size=3),
    st.lists(st.text("ab.-", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_patterns_mean_what_fnmatch_means(include: list[str], exclude: list[str], parts: list[str]) -> None:
    """Of whole paths, and of names for patterns without a slash."""
    below, name = "/".join(parts), parts[-1]

    def fits(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(below, one) or fnmatch.fnmatchcase(name, one) for one in patterns)

    assert Patterns(include, exclude).takes(below) == ((not include or fits(include)) and not fits(exclude))


# Parts ---------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_model_are_one(tmp_path: Path) -> None:
    """Its first part is its path, and its size is that of all."""
    parts = trees.split(tmp_path, "Big-70B-Q4_K_M", 3)
    found = trees.only(trees.look(tmp_path))
    assert (found.path, found.places[0].name, found.parts) == (str(parts[0]), "Big-70B-Q4_K_M", 3)
    assert found.size_bytes == sum(part.stat().st_size for part in parts)
    assert (found.problem, found.trained_context) == ("", 4096)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(tmp_path: Path, number: int) -> None:
    """Also the first, which says what the model is."""
    missing = trees.split(tmp_path, "m", 3)[number]
    missing.unlink()
    found = trees.only(trees.look(tmp_path))
    assert f'its part {number + 1} of 3 is missing: there is no "{missing.name}" beside it' in found.problem


def test_a_model_of_which_a_part_is_downloaded_is_not_there_yet(tmp_path: Path) -> None:
    """Whoever downloads it has named the part."""
    missing = trees.split(tmp_path, "m", 3)[1]
    missing.rename(f"{missing}.part")
    finding = trees.look(tmp_path)
    assert finding.models == () and finding.troubles == ()


def test_parts_of_other_models_are_not_mixed(tmp_path: Path) -> None:
    """By the number of parts, which is in the name."""
    trees.split(tmp_path, "m", 2)
    trees.split(tmp_path, "m", 3)
    trees.split(tmp_path / "other", "n", 2)
    assert sorted(found.parts for found in trees.look(tmp_path).models) == [2, 2, 3]


def test_a_file_whose_name_hides_that_it_is_a_part_is_a_broken_one(tmp_path: Path) -> None:
    """Engines find the others by name."""
    first = trees.split(tmp_path, "m", 2)[0]
    first.rename(tmp_path / "renamed.gguf")
    problems = [found.problem for found in trees.look(tmp_path).models]
    assert any("by its content it is part 1 of 2, by its name part 1 of 1" in problem for problem in problems)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.dictionaries(st.tuples(st.sampled_from("xyz"), st.integers(2, 4)), st.sets(st.integers(1, 4)), max_size=4))
def test_every_part_belongs_to_exactly_one_model(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, int], set[int]]
) -> None:
    """Whichever are there: as many models as names, all bytes counted once, a problem exactly where one is missing."""
    folder = tmp_path_factory.mktemp("parts")
    expected, total = {}, 0
    for (stem, count), numbers in tree.items():
        parts = trees.split(folder, stem, count)
        for number, part in enumerate(parts, 1):
            if number not in numbers:
                part.unlink()
            else:
                total += part.stat().st_size
        there = {number for number in numbers if number <= count}
        if there:
            expected[str(parts[min(there) - 1])] = len(there) == count
    models = trees.look(folder).models
    assert {found.path: not found.problem for found in models} == expected
    assert sum(found.size_bytes for found in models) == total


# Belongings ----------------------------------------------------------------------------------------------------------


def test_a_projector_belongs_to_the_model_in_its_folder(tmp_path: Path) -> None:
    """By name or by content; it is no model, and its size counts."""
    for number, name in enumerate(("mmproj-F16.gguf", "eyes.gguf", "gemma-3-4b-it-mmproj.gguf")):
        folder = tmp_path / str(number)
        model, eyes = trees.gguf(folder / "gemma-3-4b-it-Q4_K_M.gguf"), trees.projector(folder / name)
        found = trees.only(trees.look(folder))
        assert (found.path, found.mmproj) == (str(model), str(eyes))
        assert found.size_bytes == model.stat().st_size + eyes.stat().st_size


def test_a_projector_belongs_to_all_quantizations_of_its_model(tmp_path: Path) -> None:
    """Of several precisions the half one is taken."""
    for kind in ("Q4_K_M", "Q8_0"):
        trees.gguf(tmp_path / f"gemma-3-4b-it-{kind}.gguf")
    for kind in ("BF16", "F16", "F32"):
        trees.projector(tmp_path / f"mmproj-{kind}.gguf")
    finding = trees.look(tmp_path)
    assert [Path(found.mmproj).name for found in finding.models] == ["mmproj-F16.gguf"] * 2
    assert finding.troubles == ()


def test_projectors_in_a_folder_of_many_belong_by_name(tmp_path: Path) -> None:
    """The one that names most of the model; a model without one has none."""
    for name in ("Qwen2.5-VL-7B-Q4_K_M", "Qwen2.5-VL-3B-Q4_K_M", "llama-3-8b-Q4_K_M"):
        trees.gguf(tmp_path / f"{name}.gguf")
    for name in ("mmproj-Qwen2.5-VL-7B-f16", "Qwen2.5-VL-3B-mmproj-f16"):
        trees.projector(tmp_path / f"{name}.gguf")
    given_to = {found.places[0].name: Path(found.mmproj).name for found in trees.look(tmp_path).models}
    assert given_to == {
        "Qwen2.5-VL-7B-Q4_K_M": "mmproj-Qwen2.5-VL-7B-f16.gguf",
        "Qwen2.5-VL-3B-Q4_K_M": "Qwen2.5-VL-3B-mmproj-f16.gguf",
        "llama-3-8b-Q4_K_M": "",
    }


def test_a_projector_that_could_be_anybodys_is_nobodys(tmp_path: Path) -> None:
    """It is said, and what to do."""
    trees.gguf(tmp_path / "one-7b.gguf")
    trees.gguf(tmp_path / "two-8b.gguf")
    eyes = trees.projector(tmp_path / "mmproj-model-f16.gguf")
    finding = trees.look(tmp_path)
    assert [found.mmproj for found in finding.models] == ["", ""]
    (trouble,) = finding.troubles
    assert trouble.path == str(eyes) and "MODEL-mmproj.gguf" in trouble.text


def test_a_draft_belongs_to_its_model_when_its_name_says_so(tmp_path: Path) -> None:
    """A small model of the same family is a model of its own, whatever it could be used for."""
    model, draft = trees.gguf(tmp_path / "Qwen3-32B-Q4_K_M.gguf"), trees.gguf(tmp_path / "Qwen3-32B-draft-Q8_0.gguf")
    small = trees.gguf(tmp_path / "Qwen3-0.6B-Q8_0.gguf")
    first, second = trees.look(tmp_path).models
    assert {first.path: first.draft_file, second.path: second.draft_file} == {str(model): str(draft), str(small): ""}


def test_a_draft_without_a_model_is_a_model(tmp_path: Path) -> None:
    """It is a whole one."""
    trees.gguf(tmp_path / "Qwen3-draft-Q8_0.gguf")
    assert trees.names(trees.look(tmp_path)) == ["Qwen3-draft-Q8_0"]


def test_an_adapter_is_listed_as_one(tmp_path: Path) -> None:
    """Beside its model, to which it does not belong without being asked for."""
    trees.gguf(tmp_path / "a.gguf")
    trees.gguf(tmp_path / "a-lora.gguf", general__type="adapter", adapter__type="lora")
    assert {found.places[0].name: found.purpose for found in trees.look(tmp_path).models} == {
        "a": Purpose.COMPLETION,
        "a-lora": Purpose.ADAPTER,
    }


# Bad folders and names -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    """Its disk may come back: that is no trouble, and the others are looked at."""
    trees.gguf(tmp_path / "here" / "a.gguf")
    finding = trees.look(tmp_path / "gone", tmp_path / "here")
    assert finding.unreachable == (str(tmp_path / "gone"),)
    assert trees.names(finding) == ["a"] and finding.troubles == ()


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    """It is no root."""
    path = trees.gguf(tmp_path / "a.gguf")
    finding = trees.look(path)
    assert finding.unreachable == (str(path),)
    assert "it is no folder" in finding.troubles[0].text


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """Each folder is looked into once, by whichever name comes first."""
    trees.gguf(tmp_path / "a" / "b" / "m.gguf")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "one.gguf").symlink_to("two.gguf")
    (tmp_path / "two.gguf").symlink_to("one.gguf")
    finding = trees.look(tmp_path)
    assert trees.names(finding) == ["m"]
    assert {Path(trouble.path).name for trouble in finding.troubles} == {"one.gguf", "two.gguf", "loop"}


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    """Models on another disk; what is no disk is not entered."""
    trees.gguf(tmp_path / "disk" / "m.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "big").symlink_to(tmp_path / "disk")
    (tmp_path / "models" / "system").symlink_to("/proc")
    finding = trees.look(tmp_path / "models")
    assert trees.only(finding).path == str(tmp_path / "models" / "big" / "m.gguf")
    assert finding.troubles == ()


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """A FIFO would wait for ever, a device may do anything."""
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    (tmp_path / "folder.gguf").mkdir()
    trees.gguf(tmp_path / "folder.gguf" / "a.gguf")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.gguf"))
        finding = trees.look(tmp_path)
    assert trees.names(finding) == ["a"]
    told = {Path(trouble.path).name: trouble.text for trouble in finding.troubles}
    assert told.keys() == {"fifo.gguf", "device.gguf", "socket.gguf"}
    assert all("it was not opened" in text for text in told.values())


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    """It looks like a model, and is none."""
    (tmp_path / "a.gguf").symlink_to("gone.gguf")
    finding = trees.look(tmp_path)
    assert finding.models == () and "a link to what is not there" in finding.troubles[0].text


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Neither a bus nor a database can carry it; what is told of it can be shown anywhere."""
    trees.gguf(tmp_path / "a.gguf")
    os.rename(tmp_path / "a.gguf", os.fsencode(tmp_path) + b"/m\xff.gguf")
    os.mkdir(os.fsencode(tmp_path) + b"/d\xfe")
    finding = trees.look(tmp_path)
    assert finding.models == ()
    assert len(finding.troubles) == 2
    for trouble in finding.troubles:
        assert "not UTF-8" in trouble.text
        trouble.path.encode()
    assert {trouble.path.rpartition("/")[2] for trouble in finding.troubles} == {r"m\xff.gguf", r"d\xfe"}


def test_long_and_strange_names_are_found(tmp_path: Path) -> None:
    """255 bytes; a line break, which is not in the name that is shown; other scripts."""
    strange = ("x" * 250 + ".gguf", "a\nb\x1b[2J.gguf", "模型-7B-Q4_K_M.gguf", "with space.gguf", "a.b.c.GGUF")
    for number, name in enumerate(strange):
        trees.gguf(tmp_path / name, f"m{number}")
    finding = trees.look(tmp_path)
    assert {found.path for found in finding.models} == {str(tmp_path / name) for name in strange}
    assert all(found.places[0].name.isprintable() and not found.problem for found in finding.models)


def test_a_folder_that_vanishes_meanwhile_is_nothing(tmp_path: Path) -> None:
    """It was listed, and is gone when it is looked into."""
    for number in range(100):
        trees.gguf(tmp_path / f"d{number}" / "a.gguf", f"m{number}")
    asked = []

    def stop() -> bool:
        if not asked:
            for number in range(100):
                (tmp_path / f"d{number}" / "a.gguf").unlink()
                (tmp_path / f"d{number}").rmdir()
        asked.append(True)
        return False

    finding = ModelFinder(trees.later).scan(Roots(folders=(str(tmp_path),)), {}, stop)
    assert asked and finding.models == () and finding.troubles == () and finding.unreachable == ()


def test_files_that_vanish_meanwhile_are_nothing(tmp_path: Path) -> None:
    """They were seen, and are gone when they are opened."""
    for number in range(3 * walk.ASKED_EVERY):
        trees.gguf(tmp_path / f"m{number}.gguf", f"m{number}")
    asked = []

    def stop() -> bool:
        asked.append(True)
        if len(asked) == 4:  # All were seen.
            for path in tmp_path.iterdir():
                path.unlink()
        return False

    finding = ModelFinder(trees.later).scan(Roots(folders=(str(tmp_path),)), {}, stop)
    assert len(asked) > 4 and len(finding.models) < 3 * walk.ASKED_EVERY and finding.troubles == ()
    assert all(not found.problem for found in finding.models)


def test_a_look_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    """It is asked at least once for a hundred names."""
    for number in range(150):
        (tmp_path / f"{number}.txt").touch()
    asked = []
    with pytest.raises(Canceled):
        ModelFinder().scan(Roots(folders=(str(tmp_path),)), {}, lambda: asked.append(True) is None)
    assert len(asked) == 1 and walk.ASKED_EVERY <= 100


def test_fifty_thousand_names_are_looked_at(tmp_path: Path) -> None:
    """Most are no models."""
    for number in range(50_000):
        os.close(os.open(tmp_path / f"{number}.txt", os.O_CREAT | os.O_WRONLY))
    trees.gguf(tmp_path / "a.gguf")
    assert trees.names(trees.look(tmp_path)) == ["a"]


def test_ten_thousand_models_in_one_folder_are_found(tmp_path: Path) -> None:
    """Real files, each of its own: all of them are there with what they say, and another look opens none."""
    trees.many(tmp_path / "many", 10_000)
    finder = ModelFinder(now_ns=trees.later)
    first = finder.scan(Roots(folders=(str(tmp_path),)), {})
    assert trees.names(first) == [f"m{number:05}" for number in range(10_000)]
    assert {(found.architecture, found.trained_context, found.problem) for found in first.models} == {
        ("llama", 8192, "")
    }
    assert (first.files, first.read, first.troubles) == (10_000, 10_000, ())
    (tmp_path / "many" / "m00007.gguf").unlink()
    again = finder.scan(Roots(folders=(str(tmp_path),)), {found.path: found for found in first.models})
    assert (len(again.models), again.read) == (9_999, 0)


def test_a_folder_that_may_not_be_read_is_told(open_folder: Path) -> None:
    """It is unreachable, as a root and below one: what is known of it stays."""
    root, inner = open_folder / "root", open_folder / "other" / "inner"
    for folder in (root, inner):
        trees.gguf(folder / "m.gguf", folder.name)
        os.chmod(folder, 0)
    told = trees.as_anybody(root, open_folder / "other")
    for folder in (root, inner):
        os.chmod(folder, 0o755)
    assert told["unreachable"] == [str(root), str(inner)]
    assert [path for path, _ in told["troubles"]] == [str(root), str(inner)]
    assert all("gpud may not look into it" in text for _, text in told["troubles"])


def test_a_file_that_may_not_be_read_is_listed_with_its_problem(open_folder: Path) -> None:
    """Whoever put it there finds it in the list."""
    path = trees.gguf(open_folder / "m.gguf")
    path.chmod(0)
    ((found, problem),) = trees.as_anybody(open_folder)["models"]
    assert found == str(path) and "gpud may not read it" in problem


# Single ones that are configured -------------------------------------------------------------------------------------


def test_a_configured_file_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """Whatever patterns say; a folder that has it as well has the better name for it."""
    path = trees.gguf(tmp_path / "a.gguf")
    trees.gguf(tmp_path / "b.gguf")
    found = trees.only(trees.look(files=(path, tmp_path / "gone.gguf"), include=("x",)))
    assert (found.path, found.places[0].source) == (str(path), Source.CONFIGURATION)
    both = trees.look(tmp_path, files=(path,))
    assert [[place.source for place in found.places] for found in both.models] == [[Source.FOLDER]] * 2


def test_a_configured_file_brings_its_parts(tmp_path: Path) -> None:
    """They are known by their names."""
    parts = trees.split(tmp_path, "m", 3)
    found = trees.only(trees.look(files=(parts[0],)))
    assert (found.path, found.parts, found.problem) == (str(parts[0]), 3, "")
