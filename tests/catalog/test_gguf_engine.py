"""The reader beside the engine itself: the same files, the same numbers."""

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import gguf_writer
from catalog.test_gguf_properties import tensors
from gpud.catalog import gguf
from gpud.catalog.kinds import FILE_TYPES, KINDS, REMOVED
from gpud.core.modelfile import ModelFile

pytestmark = pytest.mark.engines


class Parameters(ctypes.Structure):
    """``gguf_init_params``: read the header alone."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class Ggml:
    """The functions of the installed build that know types and files."""

    def __init__(self, folder: Path) -> None:
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"))
        self.llama = ctypes.CDLL(str(folder / "libllama.so"))
        pointer, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
        for library, name, result, arguments in (
            (self.base, "ggml_type_size", ctypes.c_size_t, [ctypes.c_int]),
            (self.base, "ggml_blck_size", number, [ctypes.c_int]),
            (self.base, "ggml_type_name", text, [ctypes.c_int]),
            (self.base, "gguf_init_from_file", pointer, [text, Parameters]),
            (self.base, "gguf_free", None, [pointer]),
            (self.base, "gguf_get_n_kv", number, [pointer]),
            (self.base, "gguf_get_n_tensors", number, [pointer]),
            (self.base, "gguf_get_tensor_name", text, [pointer, number]),
            (self.base, "gguf_get_tensor_type", ctypes.c_int, [pointer, number]),
            (self.base, "gguf_get_tensor_size", ctypes.c_size_t, [pointer, number]),
            (self.base, "gguf_get_tensor_ne", ctypes.POINTER(number), [pointer, number]),
            (self.llama, "llama_ftype_name", text, [ctypes.c_int]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        file = self.base.gguf_init_from_file(str(path).encode(), Parameters(True, None))
        assert file, f"the engine does not read {path}"
        try:
            yield file
        finally:
            self.base.gguf_free(file)

    def table(self, path: Path) -> list[tuple[str, tuple[int, ...], str, int]]:
        """Name, shape (always four), type and bytes of every tensor."""
        with self.opened(path) as file:
            return [
                (
                    self.base.gguf_get_tensor_name(file, index).decode(),
                    tuple(self.base.gguf_get_tensor_ne(file, index)[:4]),
                    KINDS[self.base.gguf_get_tensor_type(file, index)].name,
                    self.base.gguf_get_tensor_size(file, index),
                )
                for index in range(self.base.gguf_get_n_tensors(file))
            ]

    def entries(self, path: Path) -> int:
        with self.opened(path) as file:
            return int(self.base.gguf_get_n_kv(file))


@pytest.fixture(scope="session")
def ggml(site: Path) -> Ggml:
    return Ggml(site / "lib")


def table(model: ModelFile) -> list[tuple[str, tuple[int, ...], str, int]]:
    return [
        (tensor.name, (*tensor.shape, *(1,) * (4 - len(tensor.shape))), tensor.kind, tensor.bytes)
        for tensor in model.tensors
    ]


def test_every_type_of_tensor_has_the_size_that_the_engine_gives_it(ggml: Ggml) -> None:
    """Names, blocks and bytes of all types that the build knows; what it removed is removed, what it has is here."""
    for number in range(max(KINDS) + 1):
        size, name = ggml.base.ggml_type_size(number), ggml.base.ggml_type_name(number).decode()
        if size == 0:
            assert number in REMOVED and number not in KINDS
        else:
            kind = KINDS[number]
            assert (kind.name, kind.block, kind.bytes) == (name.upper(), ggml.base.ggml_blck_size(number), size)


def test_the_writer_of_the_tests_has_the_same_types() -> None:
    """Written down apart from the reader's."""
    assert {name: (number, kind.block, kind.bytes) for number, kind in KINDS.items() for name in [kind.name]} == (
        gguf_writer.KINDS
    )


def test_every_recipe_has_the_name_that_the_engine_gives_it(ggml: Ggml) -> None:
    """The engine writes them out ("Q4_K - Medium"); three have another name with those who publish files."""
    sizes = {"Small": "_S", "Medium": "_M", "Large": "_L"}
    published = {"all F32": "F32", "Q2_K - Medium": "Q2_K", "IQ3_S mix - 3.66 bpw": "IQ3_M"}
    for number in range(max(FILE_TYPES) + 1):
        told = ggml.llama.llama_ftype_name(number).decode()
        base, _, size = told.partition(" - ")
        name = published.get(told, base.split()[0] + sizes.get(size, ""))
        assert FILE_TYPES.get(number) == (None if told.startswith("unknown") else name)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(infos=tensors(), version=st.sampled_from([2, 3]))
def test_random_files_are_read_as_the_engine_reads_them(
    tmp_path: Path, ggml: Ggml, infos: list[gguf_writer.Info], version: int
) -> None:
    """Every tensor of random files: name, shape, type and bytes."""
    infos = [(f"{number}.weight", shape, kind) for number, (_, shape, kind) in enumerate(infos)]
    path = gguf_writer.write(tmp_path / "a.gguf", {"general.architecture": "llama"}, infos, 32, version=version)
    model = gguf.read(path)
    assert table(model) == ggml.table(path)
    assert len(model.values) == ggml.entries(path)


def first_words(server: subprocess.Popen[str], last: str) -> str:
    """What a server says about the file, up to the line that has the word."""
    said = []
    assert server.stdout
    for line in server.stdout:
        said.append(line)
        if last in line:
            return "".join(said)
    pytest.fail(f'llama-server ended without saying "{last}": {"".join(said)[-2000:]}')


def test_a_file_that_llama_server_loads_is_read_as_it_reads_it(tmp_path: Path, site: Path) -> None:
    """The numbers of its entries and tensors, its types, its size, its layers and heads, as it prints them."""
    path = tiny_model.write(tmp_path / "tiny.gguf")
    argv = [site / "bin/llama-server", "-m", path, "-lv", "5", "--host", str(tmp_path / "server.sock"), "-c", "256"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            said = first_words(server, "n_head_kv  ")
        finally:
            server.kill()
    model = gguf.read(path)
    weights_bytes = sum(tensor.bytes for tensor in model.tensors)
    count = {kind: sum(tensor.kind == kind for tensor in model.tensors) for kind in ("F32", "F16")}
    values: dict[str, Any] = dict(model.values)
    for words in (
        f"loaded meta data with {len(values)} key-value pairs and {len(model.tensors)} tensors from",
        f"tokenizer.ggml.tokens arr[str,{model.vocabulary}]",
        f"type  f32: {count['F32']:4} tensors",
        f"type  f16: {count['F16']:4} tensors",
        f"file size   = {weights_bytes / 2**20:.2f} MiB",
        f"arch                  = {model.architecture}",
        f"n_layer               = {values['llama.block_count']}",
        f"n_head                = {values['llama.attention.head_count']}",
        f"n_head_kv             = {values['llama.attention.head_count_kv']}",
    ):
        assert words in said


def test_a_model_that_was_split_is_read_as_the_whole(tmp_path: Path, site: Path, ggml: Ggml) -> None:
    """By llama.cpp's own tool."""
    path = tiny_model.write(tmp_path / "tiny.gguf")
    argv = [site / "bin/llama-gguf-split", "--split", "--split-max-tensors", "8", path, tmp_path / "parts"]
    subprocess.run(argv, check=True, capture_output=True)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) == 3
    whole = gguf.read(path)
    for part in parts:
        model = gguf.read(part)
        assert (model.parts, model.vocabulary, model.architecture) == (3, whole.vocabulary, whole.architecture)
        assert sorted(table(model)) == sorted(table(whole)) == sorted(row for part in parts for row in ggml.table(part))
        assert {key: value for key, value in model.values.items() if not key.startswith("split.")} == whole.values
