"""What the reader makes of files as they should be."""

import math
from pathlib import Path

import pytest
import tiny_model

from catalog import gguf_writer
from catalog.gguf_writer import As
from gpud.catalog import gguf, stream
from gpud.catalog.kinds import quantization
from gpud.core.errors import BackendFailed
from gpud.core.modelfile import ModelFile, Tensor

LLAMA = {"general.architecture": "llama", "llama.block_count": 2}
TENSORS = [("token_embd.weight", (256, 1000), "Q4_K"), ("output_norm.weight", (256,), "F32")]


def refusal(path: Path) -> BackendFailed:
    with pytest.raises(BackendFailed) as refused:
        gguf.read(path)
    assert refused.value.preflight and refused.value.kind == "bad-file" and refused.value.hint
    return refused.value


def test_a_file_tells_its_values_tensors_and_sizes(tmp_path: Path) -> None:
    """Architecture, metadata, vocabulary, the type, shape and bytes of each tensor, and the size on disk."""
    path = gguf_writer.write(tmp_path / "a.gguf", LLAMA, TENSORS, 1000)
    model = gguf.read(path)
    assert model == ModelFile(
        architecture="llama",
        values={**LLAMA, "tokenizer.ggml.model": "none", "llama.vocab_size": 1000},
        tensors=(
            Tensor("token_embd.weight", (256, 1000), "Q4_K", 144_000),
            Tensor("output_norm.weight", (256,), "F32", 1024),
        ),
        vocabulary=1000,
        size_bytes=path.stat().st_size,
    )


def test_a_hole_counts_as_the_bytes_it_stands_for(tmp_path: Path) -> None:
    """A sparse file of 16 GiB takes kilobytes and is read as 16 GiB."""
    path = gguf_writer.write(tmp_path / "a.gguf", LLAMA, [("a", (2**16, 2**16), "F32")])
    assert path.stat().st_blocks * 512 < 64 * 1024
    model = gguf.read(path)
    assert model.size_bytes >= model.tensors[0].bytes == 2**34


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_of_the_format_are_read(tmp_path: Path, version: int) -> None:
    """Version 2 has the same layout."""
    assert gguf.read(gguf_writer.write(tmp_path / "a.gguf", LLAMA, TENSORS, version=version)).architecture == "llama"


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    """The extremes of all thirteen types, alone and in arrays."""
    extremes = {
        gguf_writer.UINT8: (0, 2**8 - 1),
        gguf_writer.INT8: (-(2**7), 2**7 - 1),
        gguf_writer.UINT16: (0, 2**16 - 1),
        gguf_writer.INT16: (-(2**15), 2**15 - 1),
        gguf_writer.UINT32: (0, 2**32 - 1),
        gguf_writer.INT32: (-(2**31), 2**31 - 1),
        gguf_writer.FLOAT32: (0.5, -math.inf),
        gguf_writer.BOOL: (True, False),
        gguf_writer.UINT64: (0, 2**64 - 1),
        gguf_writer.INT64: (-(2**63), 2**63 - 1),
        gguf_writer.FLOAT64: (0.1, math.inf),
    }
    alone = {f"{kind}.{index}": (kind, value) for kind, pair in extremes.items() for index, value in enumerate(pair)}
    arrays = {f"{kind}.array": pair for kind, pair in extremes.items()}
    path = gguf_writer.write(
        tmp_path / "a.gguf",
        {
            **{key: As(kind, value) for key, (kind, value) in alone.items()},
            **{f"{kind}.array": As(kind, pair) for kind, pair in extremes.items()},
            "text": "größer\n",
            "nothing": As(gguf_writer.INT32, []),
        },
        [],
    )
    values = gguf.read(path).values
    assert values == {**{key: value for key, (_, value) in alone.items()}, **arrays, "text": "größer\n", "nothing": ()}
    assert values["7.0"] is True


def test_of_a_vocabulary_only_its_length_is_kept(tmp_path: Path) -> None:
    """Tokens and merges become numbers; scores and token types, which are as long, are left out."""
    values = {
        **LLAMA,
        "tokenizer.ggml.tokens": [f"token{number}" for number in range(5000)],
        "tokenizer.ggml.scores": [0.5] * 5000,
        "tokenizer.ggml.merges": ["a b"] * 70,
        "llama.attention.head_count_kv": [8, 4] * 40,
        "llama.attention.sliding_window_pattern": [True, False] * 40,
        "llama.vocab_size": 7,
    }
    model = gguf.read(gguf_writer.write(tmp_path / "a.gguf", values, TENSORS))
    assert model.vocabulary == 5000
    assert model.values["tokenizer.ggml.tokens"] == 5000
    assert model.values["tokenizer.ggml.merges"] == 70
    assert "tokenizer.ggml.scores" not in model.values
    assert model.values["llama.attention.head_count_kv"] == (8, 4) * 40
    assert model.values["llama.attention.sliding_window_pattern"] == (True, False) * 40


def test_an_array_of_numbers_is_kept_up_to_its_limit(tmp_path: Path) -> None:
    """The longest that is kept, and one more."""
    values = {"kept": [1] * gguf.ARRAY_KEPT, "left.out": [1] * (gguf.ARRAY_KEPT + 1), "after": 7}
    found = gguf.read(gguf_writer.write(tmp_path / "a.gguf", values, [])).values
    assert found == {"kept": (1,) * gguf.ARRAY_KEPT, "after": 7}


def test_a_text_is_kept_up_to_its_limit(tmp_path: Path) -> None:
    """A chat template stays, a book does not; what comes after it is read all the same."""
    values = {"kept": "a" * gguf.TEXT_KEPT_BYTES, "left.out": "a" * (gguf.TEXT_KEPT_BYTES + 1), "after": 7}
    found = gguf.read(gguf_writer.write(tmp_path / "a.gguf", values, [])).values
    assert found == {"kept": "a" * gguf.TEXT_KEPT_BYTES, "after": 7}


@pytest.mark.parametrize(
    "lengths",
    [
        [0] * 5000,
        [9] * 5000,
        [63] * 64,
        [64] * 65,
        [255, 256, 65535, 65536] * 3,
        [3] * 63 + [64] + [3] * 64 + [stream.WINDOW_BYTES * 3] + [3] * 200,
        list(range(300)) * 3,
    ],
    ids=lambda lengths: f"{len(lengths)} strings, up to {max(lengths)}",
)
@pytest.mark.parametrize("fill", [b"\0", b"\x09\0\0\0\0\0\0\0", b"a"], ids=["zeros", "lengths", "letters"])
def test_strings_of_any_length_are_stepped_over(tmp_path: Path, lengths: list[int], fill: bytes) -> None:
    """Short and long ones, at the ends of windows and of batches, whatever is in them."""
    strings = [(fill * (length // len(fill) + 1))[:length] for length in lengths]
    values = {"before": 1, "strings": As(gguf_writer.STRING, strings), "after": 2}
    found = gguf.read(gguf_writer.write(tmp_path / "a.gguf", values, TENSORS))
    assert found.values == {"before": 1, "strings": len(lengths), "after": 2}
    assert len(found.tensors) == 2


@pytest.mark.parametrize(("values", "vocabulary"), [({}, 0), ({"llama.vocab_size": 32000}, 32000)])
def test_a_vocabulary_without_tokens_is_as_large_as_it_says(
    tmp_path: Path, values: dict[str, int], vocabulary: int
) -> None:
    """A file without tokens states a size, or has no vocabulary (a projector, an adapter)."""
    assert gguf.read(gguf_writer.write(tmp_path / "a.gguf", {**LLAMA, **values}, [])).vocabulary == vocabulary


def test_data_may_be_aligned_otherwise(tmp_path: Path) -> None:
    """The file says how its data is aligned, and where that ends is counted so."""
    path = gguf_writer.write(tmp_path / "a.gguf", {**LLAMA, "general.alignment": 4096}, TENSORS)
    assert len(gguf.read(path).tensors) == 2
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    assert "reaches to byte" in refusal(path).message


def test_a_value_that_is_not_utf8_is_read_as_well_as_it_can_be(tmp_path: Path) -> None:
    """An engine does not mind a name in Latin-1."""
    path = gguf_writer.write(tmp_path / "a.gguf", {"general.name": As(gguf_writer.STRING, b"M\xfcller")}, [])
    assert gguf.read(path).values["general.name"] == "M\N{REPLACEMENT CHARACTER}ller"


def test_what_was_read_cannot_be_changed(tmp_path: Path) -> None:
    """Many share it."""
    model = gguf.read(gguf_writer.write(tmp_path / "a.gguf", LLAMA, TENSORS))
    with pytest.raises(TypeError):
        model.values["llama.block_count"] = 3  # type: ignore[index]


# Parts ---------------------------------------------------------------------------------------------------------------

PARTS = [[("a", (256,), "F32")], [("b", (32, 4), "Q8_0"), ("c", (32,), "F16")], [("d", (32,), "F32")]]


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_stands_for_all(tmp_path: Path, given: int) -> None:
    """Values come from the first part, tensors from all, in order."""
    paths = gguf_writer.write_parts(tmp_path, "a model", LLAMA, PARTS, 77)
    model = gguf.read(paths[given])
    assert (model.architecture, model.vocabulary, model.parts) == ("llama", 77, 3)
    assert [tensor.name for tensor in model.tensors] == ["a", "b", "c", "d"]
    assert model.size_bytes == sum(path.stat().st_size for path in paths)


def test_parts_are_found_beside_the_name_and_not_beside_the_content(tmp_path: Path) -> None:
    """Stores keep content under its hash; what has a name is a link to it."""
    blobs, names = tmp_path / "blobs", tmp_path / "names"
    blobs.mkdir()
    names.mkdir()
    for number, path in enumerate(gguf_writer.write_parts(tmp_path, "m", LLAMA, PARTS)):
        path.rename(blobs / f"sha256-{number}")
        (names / path.name).symlink_to(f"../blobs/sha256-{number}")
    assert len(gguf.read(names / "m-00002-of-00003.gguf").tensors) == 4


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """The error says which part of how many, and what its name would be."""
    paths = gguf_writer.write_parts(tmp_path, "m", LLAMA, PARTS)
    paths[1].unlink()
    problem = refusal(paths[0])
    assert problem.message.startswith(f'cannot read model file "{paths[0]}": its part 2 of 3 is missing')
    assert problem.message.endswith('there is no "m-00002-of-00003.gguf" beside it')
    assert problem.hint == "download the missing part into the same folder"


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    """Without its name the others cannot be found."""
    (path, *_) = gguf_writer.write_parts(tmp_path, "m", LLAMA, PARTS)
    assert 'does not end in "-00001-of-00003.gguf"' in refusal(path.rename(tmp_path / "m.gguf")).message


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    """By their count of tensors, their numbers, or a tensor that two of them have."""
    paths = gguf_writer.write_parts(tmp_path, "m", LLAMA, PARTS)
    gguf_writer.write_parts(tmp_path, "other", LLAMA, [PARTS[0], [("b", (32,), "F32")], PARTS[2]])
    (tmp_path / "other-00002-of-00003.gguf").rename(paths[1])
    assert "3 parts have 4 tensors, and there are 3" in refusal(paths[0]).message
    paths[2].replace(paths[1])
    assert "by its name it is part 2 of 3, by its content part 3 of 3" in refusal(paths[0]).message
    paths = gguf_writer.write_parts(tmp_path, "m", LLAMA, [PARTS[0], PARTS[0], PARTS[2]])
    assert 'its tensor "a" is also in "m-00001-of-00003.gguf"' in refusal(paths[0]).message


@pytest.mark.parametrize(
    ("number", "count", "words"),
    [
        (3, 3, "part 4 of 3"),
        (-1, 3, "part 0 of 3"),
        (0, 1001, "one of 1,001 parts; a model may have 1,000"),
        (0, "three", '"split.count" is no whole number'),
        (0.5, 3, '"split.no" is no whole number'),
    ],
)
def test_a_part_with_an_impossible_number_is_refused(tmp_path: Path, number: object, count: object, words: str) -> None:
    """Numbers outside their range, and what is no number."""
    path = tmp_path / "m-00001-of-00003.gguf"
    gguf_writer.write(path, {**LLAMA, "split.no": number, "split.count": count}, TENSORS)
    assert words in refusal(path).message


def test_a_name_like_a_parts_does_not_make_one(tmp_path: Path) -> None:
    """What counts is what the file says."""
    path = gguf_writer.write(tmp_path / "m-00001-of-00003.gguf", LLAMA, TENSORS)
    assert gguf.read(path).parts == 1


# Names of quantizations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"general.file_type": 15}, "Q4_K_M"),
        ({"general.file_type": 1024 + 17}, "Q5_K_M"),
        ({"general.file_type": 0}, "F32"),
        ({"general.file_type": 999}, "Q4_K"),
        ({"general.file_type": "Q4"}, "Q4_K"),
        ({}, "Q4_K"),
    ],
)
def test_a_quantization_has_the_name_of_its_recipe_or_of_most_of_its_bytes(
    tmp_path: Path, values: dict[str, object], name: str
) -> None:
    """A recipe where the file names one that is known."""
    assert quantization(gguf.read(gguf_writer.write(tmp_path / "a.gguf", {**LLAMA, **values}, TENSORS))) == name


def test_a_file_without_weights_has_no_quantization(tmp_path: Path) -> None:
    """A vocabulary alone."""
    assert quantization(gguf.read(gguf_writer.write(tmp_path / "a.gguf", LLAMA, []))) == ""


def test_the_tiny_model_is_read(tmp_path: Path) -> None:
    """The one that every engine loads."""
    model = gguf.read(tiny_model.write(tmp_path / "tiny.gguf"))
    assert (model.architecture, model.vocabulary, len(model.tensors)) == ("llama", len(tiny_model.vocabulary()[0]), 21)
    assert quantization(model) == "F16"
