"""What a repository has, from the names and sizes of its files alone."""

import pytest

from gpud.pulling.choices import HubFile, Listing, listing, matching
from gpud.pulling.names import base_name, checked_path, quantization_of
from gpud.pulling.problems import DownloadFailed


def files(*paths: str) -> list[HubFile]:
    """Each larger than the one before."""
    return [HubFile(path, 1000 + number, "sha256", "0" * 64) for number, path in enumerate(paths)]


def listed(*paths: str) -> Listing:
    return listing("org/repo", "main", "c" * 40, files(*paths))


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("Qwen3-8B-Q4_K_M", "Q4_K_M"),
        ("qwen3-8b-q4_k_m", "Q4_K_M"),
        ("gemma-3-4b-it.Q8_0", "Q8_0"),
        ("Llama-3.2-3B-Instruct-IQ3_XXS", "IQ3_XXS"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("UD-IQ1_S/DeepSeek-R1-0528-UD-IQ1_S", "UD-IQ1_S"),
        ("Q6_K/model", "Q6_K"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-f16", "F16"),
        ("model-BF16", "BF16"),
        ("bitnet-tq2_0", "TQ2_0"),
        ("stories260K", ""),
        ("Q-7B-chat", ""),
        ("model.q4_0.imat", "Q4_0"),
    ],
)
def test_a_quantization_is_read_from_a_name(stem: str, label: str) -> None:
    """As publishers write it, in any case, and where only its folder says it."""
    assert quantization_of(stem) == label


def test_parts_are_one_model() -> None:
    """In their order, whatever the order of the listing, with the size of all."""
    found = listed("m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q4_K_M.gguf").choices
    assert [(choice.label, choice.missing) for choice in found] == [("Q4_K_M", 0), ("Q8_0", 0)]
    assert [file.path for file in found[1].files] == ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    assert found[1].size_bytes == 2001


def test_a_part_that_is_missing_is_counted() -> None:
    """An upload that goes on, or was given up."""
    (choice,) = listed("m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf").choices
    assert (choice.missing, len(choice.files)) == (1, 2)


def test_equal_names_in_folders_are_different_models() -> None:
    """As large repositories have them."""
    found = listed("Q4_K_M/m.gguf", "Q8_0/m.gguf").choices
    assert [(choice.label, choice.stem) for choice in found] == [("Q4_K_M", "Q4_K_M/m"), ("Q8_0", "Q8_0/m")]


def test_projectors_and_counts_are_no_models() -> None:
    """Projectors stand apart, the usual one first; what was counted for a quantization is left out."""
    found = listed("m-Q4_0.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf")
    assert [choice.stem for choice in found.choices] == ["m-Q4_0"]
    assert [file.path for file in found.projectors] == ["mmproj-m-f16.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf"]


def test_a_model_in_safetensors_is_its_weights_and_what_is_read_beside_them() -> None:
    """No second copy of the weights in another format, in a folder, or for the publisher's own program."""
    found = listed(
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
        ".gitattributes",
        "README.md",
    )
    assert [file.path for file in found.safetensors] == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    assert found.choices == ()


@pytest.mark.parametrize("paths", [(), ("README.md",), ("model.safetensors",), ("config.json", "pytorch_model.bin")])
def test_what_no_engine_reads_is_nothing(paths: tuple[str, ...]) -> None:
    """Weights without a description, or in a format that can run code when it is loaded."""
    found = listed(*paths)
    assert (found.choices, found.safetensors) == ((), ())


@pytest.mark.parametrize(
    ("wish", "stems"),
    [
        ("q4_k_m", ["m-Q4_K_M"]),
        ("Q4_K_XL", ["m-UD-Q4_K_XL"]),
        ("UD-Q4_K_XL", ["m-UD-Q4_K_XL"]),
        ("m-Q8_0-00001-of-00002.gguf", ["m-Q8_0"]),
        ("Q8_0", ["m-Q8_0"]),
        ("F16", ["F16/a", "F16/b"]),
        ("F16/b.gguf", ["F16/b"]),
        ("b.gguf", ["F16/b"]),
        ("f16/b", ["F16/b"]),
        ("Q2_K", []),
        ("Q4", []),
    ],
)
def test_what_is_meant_by_a_word(wish: str, stems: list[str]) -> None:
    """A quantization in any case, a file by its path or name; a part stands for all; half a word for nothing."""
    found = listed(
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
        "F16/a.gguf",
        "F16/b.gguf",
    )
    assert [choice.stem for choice in matching(found.choices, wish)] == stems


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up.gguf",
        "a/../../up.gguf",
        "a//b.gguf",
        "./a.gguf",
        "..",
        "a\\..\\b.gguf",
        "a\0b.gguf",
        "a\nb.gguf",
        "\x1b[2Ja.gguf",
        "\udcff.gguf",
        "x" * 256,
        "a/" * 600 + "b",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(path: str) -> None:
    """Whatever a server calls its files: none lies outside of the folder, and no message moves a terminal's cursor."""
    with pytest.raises(DownloadFailed, match="nothing is downloaded") as raised:
        checked_path(path)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("path", ["a.gguf", "dir/a b (1).gguf", "ü/ネ.gguf", "-rf.gguf", "x" * 255])
def test_other_names_are_taken(path: str) -> None:
    """What is merely unusual is left as it is."""
    assert checked_path(path) == path


def test_a_name_without_room_for_its_ending_is_refused() -> None:
    """While it comes, more stands behind it."""
    assert base_name("dir/" + "x" * 245) == "x" * 245
    with pytest.raises(DownloadFailed, match="246 bytes, and a download's name may have 245"):
        base_name("x" * 246)
