"""Random files: what a writer wrote is what is read, and what damage does to it is never more than an error."""

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import gguf_writer
from catalog.gguf_writer import FORMATS, KINDS, STRING, As
from gpud.catalog import gguf, stream
from gpud.core.errors import BackendFailed

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DAMAGE_BOUND_S = 60.0
"""Of a processor: others may be using it as well."""


def scalars(kind: int) -> st.SearchStrategy[Any]:
    """Every value that a type can have. NaN is left out: it is equal to nothing."""
    form = FORMATS[kind]
    if form == "?":
        return st.booleans()
    if form in "fd":
        return st.floats(width=32 if form == "f" else 64, allow_nan=False)
    bits = {"B": 8, "H": 16, "I": 32, "Q": 64}[form.upper()]
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if form.islower() else st.integers(0, 2**bits - 1)


SCALARS = st.sampled_from(sorted(FORMATS)).flatmap(lambda kind: st.builds(As, st.just(kind), scalars(kind)))
NUMBERS = st.sampled_from(sorted(FORMATS)).flatmap(lambda kind: st.builds(As, st.just(kind), st.lists(scalars(kind))))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=100)
STRINGS = st.builds(As, st.just(STRING), st.lists(st.binary(max_size=80), max_size=300))
CONTENTS = st.one_of(SCALARS, NUMBERS, TEXTS, STRINGS)
SPECIAL = ("general.architecture", "general.alignment", "split.count", "split.no")
KEYS = st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda key: key not in SPECIAL)
VALUES = st.dictionaries(KEYS, CONTENTS, max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> list[gguf_writer.Info]:
    infos = []
    for name in draw(st.lists(KEYS, max_size=6, unique=True)):
        kind = draw(st.sampled_from(sorted(KINDS)))
        rows = draw(st.lists(st.integers(1, 200), max_size=3))
        infos.append((name, (draw(st.integers(1, 64)) * KINDS[kind][1], *rows), kind))
    return infos


def kept(content: Any) -> Any:
    """What the reader is to make of what was written."""
    if not isinstance(content, As):
        return content
    if content.kind == STRING:
        return len(content.value)
    return tuple(content.value) if isinstance(content.value, list) else content.value


@QUICK
@given(values=VALUES, infos=tensors(), alignment=st.sampled_from([None, 8, 32, 4096]), version=st.sampled_from([2, 3]))
def test_what_was_written_is_read(
    tmp_path: Path, values: dict[str, Any], infos: list[gguf_writer.Info], alignment: int | None, version: int
) -> None:
    """Every value, and every tensor with its exact size."""
    if alignment:
        values["general.alignment"] = alignment
    path = gguf_writer.write(tmp_path / "a.gguf", values, infos, version=version)
    model = gguf.read(path)
    assert model.values == {key: kept(content) for key, content in values.items()}
    assert [(tensor.name, tensor.shape, tensor.kind) for tensor in model.tensors] == infos
    assert [tensor.bytes for tensor in model.tensors] == [gguf_writer.tensor_bytes(info) for info in infos]
    assert model.size_bytes == path.stat().st_size


@QUICK
@given(values=VALUES, infos=tensors(), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_a_model_in_parts_is_the_same_model(
    tmp_path: Path, values: dict[str, Any], infos: list[gguf_writer.Info], cuts: list[int]
) -> None:
    """Wherever it is cut, also into parts without any tensor."""
    edges = [0, *sorted(min(cut, len(infos)) for cut in cuts), len(infos)]
    pieces = [infos[low:high] for low, high in pairwise(edges)]
    values.pop("split.tensors.count", None)
    whole = gguf.read(gguf_writer.write(tmp_path / "whole.gguf", values, infos))
    paths = gguf_writer.write_parts(tmp_path, "m", values, pieces)
    for path in paths:
        model = gguf.read(path)
        assert model.tensors == whole.tensors
        assert {key: value for key, value in model.values.items() if not key.startswith("split.")} == {
            key: value for key, value in whole.values.items() if not key.startswith("split.")
        }
        assert model.parts == max(1, len(pieces))


@QUICK
@given(lengths=st.lists(st.integers(0, 70) | st.integers(0, 1000), max_size=400), repeats=st.integers(1, 20))
def test_strings_are_stepped_over_as_a_plain_loop_does(tmp_path: Path, lengths: list[int], repeats: int) -> None:
    """The quick way ends where the obvious way ends."""
    strings = [bytes([length % 256]) * length for length in lengths * repeats]
    start = b"".join(map(gguf_writer.string, strings))
    path = tmp_path / "strings"
    path.write_bytes(start + b"and then")
    with stream.opened(str(path), stream.Allowance()) as file:
        file.skip_strings(len(strings))
        assert file.take(8) == b"and then"
        assert file.left_bytes == 0


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Where, as a part of the file, and what: bytes changed, put in, taken out, or all after them cut off.

    Numbers that are wrong by much, or by one, are what a reader stumbles over.
    """
    numbers = st.sampled_from([0, 1, 2, 8, 9, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]).map(
        lambda number: number.to_bytes(8, "little")
    )
    changes = st.tuples(
        st.sampled_from(["change", "insert", "remove", "cut"]),
        st.floats(0, 1, allow_nan=False),
        st.one_of(st.binary(min_size=1, max_size=9), numbers, numbers.map(lambda number: number[:4])),
    )
    return draw(st.lists(changes, min_size=1, max_size=4))


def damaged(whole: bytes, changes: list[tuple[str, float, bytes]], header_bytes: int) -> bytes:
    content = bytearray(whole)
    for how, where, piece in changes:
        at = int(where * min(len(content), header_bytes))
        if how == "change":
            content[at : at + len(piece)] = piece
        elif how == "insert":
            content[at:at] = piece
        elif how == "remove":
            del content[at : at + len(piece)]
        else:
            del content[at:]
    return bytes(content)


SOUND_VALUES = {
    "general.architecture": "llama",
    "general.file_type": 15,
    "llama.block_count": 2,
    "llama.attention.head_count_kv": [4, 2],
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": [f"token{number}" for number in range(200)],
    "tokenizer.ggml.add_bos_token": True,
    "split.count": 1,
}
SOUND_TENSORS = [("a.weight", (256, 3), "Q4_K"), ("b.weight", (32, 2, 2), "MXFP4"), ("c.bias", (7,), "F32")]


@settings(QUICK, max_examples=500)
@given(changes=damage())
def test_damage_is_an_error_or_goes_unnoticed(tmp_path: Path, changes: list[tuple[str, float, bytes]]) -> None:
    """Nothing but BackendFailed is ever raised, and soon."""
    path = gguf_writer.write(tmp_path / "a.gguf", SOUND_VALUES, SOUND_TENSORS)
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, changes, len(gguf_writer.header(SOUND_VALUES, SOUND_TENSORS))))
    check(path)


@settings(QUICK, max_examples=200)
@given(changes=damage(), which=st.integers(0, 1), given=st.integers(0, 1))
def test_damage_to_a_part_is_an_error_or_goes_unnoticed(
    tmp_path: Path, changes: list[tuple[str, float, bytes]], which: int, given: int
) -> None:
    """Whichever is damaged, and whichever is named."""
    values = {key: value for key, value in SOUND_VALUES.items() if not key.startswith("split.")}
    paths = gguf_writer.write_parts(tmp_path, "m", values, [SOUND_TENSORS[:1], SOUND_TENSORS[1:]])
    paths[which].write_bytes(damaged(paths[which].read_bytes(), changes, 700))
    check(paths[given])


@QUICK
@given(content=st.binary(max_size=300), begin=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0"]))
def test_noise_is_an_error_or_an_empty_model(tmp_path: Path, content: bytes, begin: bytes) -> None:
    """Any bytes at all."""
    path = tmp_path / "noise.gguf"
    path.write_bytes(begin + content)
    check(path)


def check(path: Path) -> None:
    began = time.process_time()
    try:
        model = gguf.read(path)
    except BackendFailed as problem:
        assert problem.preflight and problem.kind == "bad-file" and problem.hint
        assert str(path.parent) in problem.message
        assert problem.text.isprintable()
    else:
        assert sum(tensor.bytes for tensor in model.tensors) <= model.size_bytes
        assert all(math.prod(tensor.shape) > 0 for tensor in model.tensors)
    assert time.process_time() - began < DAMAGE_BOUND_S
