"""A look at the head of a file says what reading all of its header says, and costs a fraction of it."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import gguf_writer
from catalog.gguf_writer import pair, string, tensor_info
from catalog.test_gguf_hostile import CORPUS
from gpud.catalog import gguf, kinds
from gpud.catalog.glance import WALKED_AT_LEAST, Glance, Role, Stretches, glance
from gpud.catalog.stream import INCOMPLETE, BadModelFile
from gpud.core.catalogue import Purpose

VALUES = {"general.architecture": "llama", "llama.context_length": 4096, "general.file_type": 15}


def look(path: Path | str) -> Glance:
    return glance(str(path), Stretches())


def refusal(path: Path | str) -> BadModelFile:
    with pytest.raises(BadModelFile) as refused:
        look(path)
    return refused.value


def vocabulary(count: int, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    return ["x" * chance.randint(0, 12) for _ in range(count)]


# Stretches --------------------------------------------------------------------------------------------------------


def test_what_stands_behind_a_vocabulary_is_known(tmp_path: Path) -> None:
    """The template and the recipe, which come last."""
    values = {
        **{key: value for key, value in VALUES.items() if key != "general.file_type"},
        "tokenizer.ggml.tokens": vocabulary(5000),
        "tokenizer.ggml.merges": vocabulary(7000, 2),
        "tokenizer.chat_template": "{{ tools }}" + "x" * 100_000,
        "general.file_type": 18,
    }
    seen = glance(str(gguf_writer.write(tmp_path / "a.gguf", values, [("t", (256, 4), "Q4_K")])), Stretches())
    assert (seen.template, seen.tools, seen.quantization) == (True, True, "Q6_K")


def family(folder: Path, name: str, tokens: list[str], recipe: int) -> str:
    values = {
        "general.architecture": "llama",
        "general.name": name,
        "tokenizer.ggml.tokens": tokens,
        "general.file_type": recipe,
    }
    return str(gguf_writer.write(folder / f"{name}.gguf", values, [("t", (256, 4), "Q4_K")]))


def test_stretches_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Of the same number of tokens and the same beginning: one was changed in the middle, in length or in content."""
    tokens = vocabulary(4 * WALKED_AT_LEAST)
    longer, other = [*tokens], [*tokens]
    longer[3000] += "abc"
    other[3000] = "y" * len(other[3000])
    stretches = Stretches()
    for _ in range(2):
        for number, variant in enumerate((tokens, longer, other)):
            path = family(tmp_path, f"m{number}", variant, 15 + number)
            assert glance(path, stretches).quantization == kinds.FILE_TYPES[15 + number]


def test_a_vocabulary_that_was_seen_is_not_read(tmp_path: Path) -> None:
    """What stands in its place does not count: only its beginning and what follows are looked at."""
    tokens = ["abcdefg"] * 100_000
    paths = [family(tmp_path, f"m{number}", tokens, 15) for number in range(2)]
    stretches = Stretches()
    glance(paths[0], stretches)
    with open(paths[1], "r+b") as file:
        file.seek(500_000)
        file.write(b"\xff" * 100_000)
    assert glance(paths[1], stretches).quantization == "Q4_K_M"
    refusal(paths[1])  # Walked string by string it makes no sense.


def test_a_table_as_long_as_one_that_was_seen_is_not_walked(tmp_path: Path) -> None:
    """Its last line is this file's own: another quantization of the same model ends elsewhere."""
    stretches = Stretches()
    for number, kind in enumerate(("Q4_0", "Q8_0", "F32")):
        infos = [(f"blk.{index}.weight", (32, 16), kind) for index in range(100)]
        path = gguf_writer.write(tmp_path / f"{number}.gguf", VALUES, infos)
        glance(str(path), stretches)
        size = path.stat().st_size
        os.truncate(path, size - 1)
        with pytest.raises(BadModelFile) as refused:
            glance(str(path), stretches)
        assert f"its weights reach to byte {size:,}, and the file has {size - 1:,}" in refused.value.what


def test_tables_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Of the same number of tensors: with another name in the middle, and with another at the end."""
    stretches = Stretches()
    for _ in range(2):
        for number, names in enumerate(
            (("aa", "bb", "cc"), ("aa", "bbb", "cc"), ("aa", "bb", "dd"), ("aa", "b", "ccc"))
        ):
            path = gguf_writer.write(tmp_path / f"{number}.gguf", VALUES, [(name, (32,), "F32") for name in names])
            glance(str(path), stretches)
            os.truncate(path, path.stat().st_size - 1)
            with pytest.raises(BadModelFile):
                glance(str(path), stretches)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    files=st.lists(
        st.tuples(
            st.sampled_from(("llama", "qwen3", "bert")),
            st.integers(0, 3),
            st.sampled_from((0, 10, WALKED_AT_LEAST, 3000)),
            st.booleans(),
            st.integers(0, 3),
            st.integers(1, 200),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_look_says_what_reading_says(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[Any, ...]]) -> None:
    """Whatever stands in the files, and in whatever order they are looked at with the same memory."""
    folder, stretches = tmp_path_factory.mktemp("files"), Stretches()
    for number, (architecture, recipe, count, template, pooling, tensors) in enumerate(files):
        values: dict[str, Any] = {"general.architecture": architecture, f"{architecture}.context_length": 100 + number}
        if count:
            values["tokenizer.ggml.tokens"] = vocabulary(count, seed=recipe % 2)
        if template:
            values["tokenizer.chat_template"] = "{{ x }}"
        if pooling:
            values[f"{architecture}.pooling_type"] = pooling
        values["general.file_type"] = recipe
        infos = [(f"blk.{index}.{'n' * (index % 90)}", (32, index + 1), "Q8_0") for index in range(tensors)]
        path = str(gguf_writer.write(folder / f"{number}.gguf", values, infos))
        seen, read = glance(path, stretches), gguf.read(path)
        assert seen.architecture == read.architecture
        assert seen.quantization == kinds.quantization(read)
        assert seen.trained_context == read.values[f"{architecture}.context_length"]
        assert seen.template == ("tokenizer.chat_template" in read.values)


# What is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    """In words that can be shown anywhere; what only an engine minds, for want of anything that says what it is."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(CORPUS[name][0])
    problem = refusal(path)
    assert problem.what and problem.preflight and len(problem.text) < 1000 and problem.text.isprintable()


def test_a_file_cut_off_anywhere_is_incomplete(tmp_path: Path) -> None:
    """At every byte: more of it would mend it."""
    values = {**VALUES, "tokenizer.ggml.tokens": ["a", "bc"], "x": [1, 2], "y": 0.5}
    whole = gguf_writer.write(tmp_path / "a.gguf", values, [("t", (32,), "Q4_0"), ("u", (8,), "F32")])
    look(whole)
    for length in reversed(range(whole.stat().st_size)):
        os.truncate(whole, length)
        problem = refusal(whole)
        assert problem.incomplete and problem.hint == INCOMPLETE, length


@pytest.mark.parametrize("kind", ["empty", "wrong-magic", "truncated-header", "truncated-tensors"])
def test_the_broken_models_that_engines_get_are_refused(tmp_path: Path, kind: str) -> None:
    """As the tests of the engines break them; which of them could be mended by more."""
    problem = refusal(tiny_model.write_broken(tmp_path / "bad.gguf", kind))
    assert problem.incomplete is (kind != "wrong-magic")


def test_a_model_without_a_name_for_what_it_is_is_refused(tmp_path: Path) -> None:
    """No engine knows how to read it."""
    gguf_writer.write(tmp_path / "a.gguf", {"x": 1}, [("t", (32,), "Q4_0")])
    assert 'no "general.architecture"' in refusal(tmp_path / "a.gguf").what


def test_values_of_the_wrong_kind_say_nothing(tmp_path: Path) -> None:
    """A number where a text belongs, a text where a number does, an answer that is longer than any."""
    values = {
        "general.architecture": "llama",
        "llama.context_length": "long",
        "llama.pooling_type": "rank",
        "general.file_type": 0.5,
        "general.size_label": 8,
        "general.type": [1, 2],
    }
    gguf_writer.write(tmp_path / "a.gguf", values, [("t", (32,), "Q4_0")])
    seen = look(tmp_path / "a.gguf")
    assert (seen.role, seen.purpose) == (Role.MODEL, Purpose.COMPLETION)
    assert (seen.trained_context, seen.quantization, seen.parameters) == (None, "", "")
    gguf_writer.write(tmp_path / "b.gguf", {"general.architecture": "x\x1b[2J"}, [("t", (32,), "Q4_0")])
    assert 'no "general.architecture"' in refusal(tmp_path / "b.gguf").what


def test_a_table_of_tensors_across_windows_is_walked(tmp_path: Path) -> None:
    """Thousands of lines, with names of all lengths that engines take and longer ones."""
    infos = [("n" * (1 + number % 130) + str(number), (32,), "Q4_0") for number in range(5000)]
    path = gguf_writer.write(tmp_path / "a.gguf", VALUES, infos)
    look(path)
    os.truncate(path, path.stat().st_size - gguf_writer.ALIGNMENT)
    assert "its weights reach to byte" in refusal(path).what


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (struct.pack("<Q", 2**63) + bytes(64), "ends inside"),
        (struct.pack("<Q", 2000) + bytes(2100), "a name of 2,000 bytes"),
        (string("t") + struct.pack("<I", 5) + bytes(64), "5 dimensions"),
        (tensor_info("t", (2**60, 2**60), 0, 2**63), "its weights reach to byte"),
    ],
)
def test_a_hostile_table_of_tensors_is_refused(tmp_path: Path, line: bytes, words: str) -> None:
    """Lengths, dimensions, sizes beyond any file."""
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pair("general.architecture", "llama")
    (tmp_path / "a.gguf").write_bytes(start + line)
    assert words in refusal(tmp_path / "a.gguf").what
