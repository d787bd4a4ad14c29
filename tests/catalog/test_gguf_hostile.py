"""What the reader makes of files that are damaged, or made to do harm: an error that says what is wrong, soon."""

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_model

from catalog import gguf_writer
from catalog.gguf_writer import As, pair, string, tensor_info
from gpud.catalog import gguf, stream
from gpud.core.errors import BackendFailed

BOUND_S = 60.0
"""No file takes more of a processor; the reader takes a quarter of this at worst, and the machine may be busy."""

HUGE = 2**64 - 1
VALUES = {"general.architecture": "llama", "llama.block_count": 2}


def head(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def key(name: str, kind: int) -> bytes:
    return string(name) + struct.pack("<I", kind)


def array(kind: int, count: int) -> bytes:
    return key("a", gguf_writer.ARRAY) + struct.pack("<IQ", kind, count)


def table(*infos: bytes, values: bytes = b"", pairs: int = 0) -> bytes:
    return head(len(infos), pairs) + values + b"".join(infos) + bytes(4096)


F32, Q4_0 = gguf_writer.KINDS["F32"][0], gguf_writer.KINDS["Q4_0"][0]

CORPUS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "three bytes": (b"GGU", "it has 3 bytes"),
    "another format": (b"PK\x03\x04" + bytes(100), r'it begins with "PK\x03\x04"'),
    "the magic alone": (b"GGUF", "it ends inside the header: 4 bytes are to follow at byte 4, and the file has 4"),
    "version 0": (head(0, 0, 0), "it has version 0 of the format; 2 and 3 are known"),
    "version 1": (head(0, 0, 1), "it has version 1 of the format"),
    "version 4": (head(0, 0, 4), "it has version 4 of the format"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is big-endian"),
    "a billion tensors": (head(10**9, 0) + bytes(64), "1,000,000,000 tensors; a model may have 65,536"),
    "a billion entries": (head(0, 10**9) + bytes(64), "1,000,000,000 entries of metadata; a model may have 65,536"),
    "counts of 2^64": (head(HUGE, HUGE), "18,446,744,073,709,551,615 tensors"),
    "more entries than bytes": (head(0, 1000), "1,000 entries of metadata and 0 tensors: 13,000 bytes"),
    "one entry and no byte": (head(0, 1), "the table of 1 entry of metadata and 0 tensors: 13 bytes are to follow"),
    "one tensor and no byte": (head(1, 0), "the table of 0 entries of metadata and 1 tensor: 24 bytes are to follow"),
    "one byte too few": (head(0, 0)[:-1], ": 8 bytes are to follow"),
    "more tensors than bytes": (head(1000, 0) + bytes(99), "24,000 bytes are to follow"),
    "a key past the end": (head(0, 1) + struct.pack("<QI", 2**40, 0) + b"\0", "1,099,511,627,776 bytes are to follow"),
    "a key of 2^64": (head(0, 1) + struct.pack("<QI", HUGE, 0) + b"\0", "18,446,744,073,709,551,615 bytes"),
    "a long key": (head(0, 1) + pair("k" * 1025, 1), "a key of 1,025 bytes; 1,024 are allowed"),
    "a key that is not UTF-8": (head(0, 1) + pair(b"k\xff", 1), r'the key "k\xff", which is not UTF-8'),
    "a key twice": (head(0, 2) + pair("k", 1) + pair("k", 2), 'the key "k" is there twice'),
    "a key twice, left out": (head(0, 2) + pair("k", [1] * 5000) + pair("k", 2), 'the key "k" is there twice'),
    "an unknown type of value": (head(0, 1) + key("k", 13) + bytes(9), 'value of "k" has the unknown type 13; 0 to 12'),
    "a text past the end": (head(0, 1) + key("k", 8) + struct.pack("<Q", 10**6), 'value of "k": 1,000,000 bytes'),
    "a text of 2^64": (head(0, 1) + key("k", 8) + struct.pack("<Q", HUGE), 'ends inside the value of "k"'),
    "an array past the end": (head(0, 1) + array(4, 1000) + bytes(99), 'value of "a": 4,000 bytes'),
    "a long array past the end": (head(0, 1) + array(4, 10**6) + bytes(99), 'value of "a": 4,000,000 bytes'),
    "an array of 2^64": (head(0, 1) + array(12, HUGE), 'the value of "a": 147,573,952,589,676,412,920 bytes'),
    "strings past the end": (head(0, 1) + array(8, 1000) + bytes(99), 'value of "a": 8,000 bytes'),
    "2^64 strings": (head(0, 1) + array(8, HUGE) + bytes(99), 'ends inside the value of "a"'),
    "a string of 2^64": (head(0, 1) + array(8, 2) + struct.pack("<QQ", HUGE, 1), "a string reaches to byte"),
    "a string past the end": (
        (head(0, 1) + array(8, 99) + (struct.pack("<Q", 3) + b"abc") * 99)[:-1],
        "a string reaches to byte",
    ),
    "an array of arrays": (head(0, 1) + array(9, 1) + struct.pack("<IQ", 4, 0), "is an array of arrays"),
    "an array of an unknown type": (head(0, 1) + array(77, 0), "is an array of the unknown type 77"),
    "no alignment": (table(values=pair("general.alignment", 0), pairs=1), '"general.alignment" is 0'),
    "an odd alignment": (table(values=pair("general.alignment", 24), pairs=1), "24, and has to be a power of two"),
    "a word for alignment": (table(values=pair("general.alignment", "x" * 999), pairs=1), '"general.alignment" is xxx'),
    "a huge alignment": (
        table(tensor_info("t", (8,), F32, 0), values=pair("general.alignment", 2**63), pairs=1),
        'tensor "t" reaches to byte 9,223,372,036,854,775,840',
    ),
    "a number for architecture": (table(values=pair("general.architecture", 7), pairs=1), "is no text"),
    "a tensor with five dimensions": (table(tensor_info("t", (1,) * 5, F32, 0)), 'tensor "t" has 5 dimensions; 4 are'),
    "a tensor with 2^32 dimensions": (
        head(1, 0) + string("t") + struct.pack("<IQQQ", 2**32 - 1, 1, 1, 1),
        "4,294,967,295 dimensions",
    ),
    "a dimension of 0": (table(tensor_info("t", (32, 0), F32, 0)), "a dimension of 0: its shape is 32 × 0"),
    "dimensions of 2^64": (table(tensor_info("t", (HUGE,) * 4, F32, 0)), 'tensor "t" reaches to byte'),
    "dimensions whose product is 0 in 64 bits": (table(tensor_info("t", (2**32, 2**32), F32, 0)), "reaches to byte"),
    "an unknown type of tensor": (table(tensor_info("t", (32,), 99, 0)), 'tensor "t" has type 99, which is not known'),
    "a removed type of tensor": (table(tensor_info("t", (32,), 31, 0)), 'tensor "t" has type 31 (Q4_0_4_4), which'),
    "a row that is no whole block": (table(tensor_info("t", (33,), Q4_0, 0)), "rows of 33 elements, and Q4_0 has"),
    "a tensor past the end": (table(tensor_info("t", (10**6,), F32, 0)), "reaches to byte 4,000,"),
    "an offset of 2^64": (table(tensor_info("t", (8,), F32, HUGE)), 'tensor "t" reaches to byte'),
    "tensors over each other": (
        table(tensor_info("t", (64,), F32, 0), tensor_info("u", (64,), F32, 32)),
        'the tensors "t" and "u" lie over each other',
    ),
    "a tensor twice": (table(tensor_info("t", (8,), F32, 0), tensor_info("t", (8,), F32, 32)), '"t" is there twice'),
    "a tensor that is not UTF-8": (table(tensor_info(b"t\xfe", (8,), F32, 0)), r'the name "t\xfe", which is not UTF-8'),
    "a name that rings": (table(tensor_info("\x1b[2J\a", (0,), F32, 0)), r'tensor "\x1b[2J\x07" has'),
    "a tensor with a long name": (table(tensor_info("t" * 2000, (8,), F32, 0)), "a name of 2,000 bytes"),
}
"""What is in a file, and what is said about it."""


def refusal(path: Path | str) -> BackendFailed:
    began = time.process_time()
    with pytest.raises(BackendFailed) as refused:
        gguf.read(path)
    assert time.process_time() - began < BOUND_S
    problem = refused.value
    assert problem.preflight and problem.kind == "bad-file" and problem.hint
    assert problem.message.startswith(f'cannot read model file "{path}": '.encode("utf-8", "backslashreplace").decode())
    return problem


@pytest.mark.parametrize("name", CORPUS)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    """The file, what is wrong with it, the number and its limit."""
    content, words = CORPUS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    problem = refusal(path)
    assert words in problem.message
    assert len(problem.text) < 1000


@pytest.mark.parametrize("kind", ["empty", "wrong-magic", "truncated-header", "truncated-tensors"])
def test_the_broken_models_that_engines_get_are_refused(tmp_path: Path, kind: str) -> None:
    """As the tests of the engines break them."""
    refusal(tiny_model.write_broken(tmp_path / "bad.gguf", kind))


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """At every byte, from nothing to all but the last that is needed."""
    values = {**VALUES, "tokenizer.ggml.tokens": ["a", "bc"], "x": [1, 2], "y": 0.5}
    whole = gguf_writer.write(tmp_path / "a.gguf", values, [("t", (32,), "Q4_0"), ("u", (8,), "F32")]).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    gguf.read(path)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        refusal(path)


# Costs ---------------------------------------------------------------------------------------------------------------


def sparse(path: Path, start: bytes, size_bytes: int) -> Path:
    path.write_bytes(start)
    os.truncate(path, size_bytes)
    return path


def test_a_terabyte_of_empty_strings_is_refused_at_once(tmp_path: Path) -> None:
    """A hole is full of strings of no length; only so many are visited."""
    count = stream.STRINGS_LIMIT + 1
    path = sparse(tmp_path / "bad.gguf", head(0, 1) + array(8, count), 2**40)
    assert "has 4,194,305 strings, and all arrays of a model may have 4,194,304 together" in refusal(path).message


def test_as_many_strings_as_are_allowed_are_read(tmp_path: Path) -> None:
    """The worst that passes."""
    path = sparse(tmp_path / "a.gguf", head(0, 1) + array(8, stream.STRINGS_LIMIT), 2**30)
    assert gguf.read(path).values == {"a": stream.STRINGS_LIMIT}


def test_strings_scattered_over_a_terabyte_are_refused(tmp_path: Path) -> None:
    """Each may be long, and all of them must be near the beginning of the file."""
    path = sparse(tmp_path / "bad.gguf", head(0, 1) + array(8, 10_000), 2**40)
    with path.open("r+b") as file:
        at = len(head(0, 1) + array(8, 0))
        for _ in range(600):
            file.seek(at)
            file.write(struct.pack("<Q", 500_000))
            at += 500_008
    assert "its metadata takes more than 268,435,456 bytes" in refusal(path).message


def test_values_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """Each is small enough to be kept; all together are not."""
    values = {f"key.{number}": [1] * gguf.ARRAY_KEPT for number in range(200)}
    path = gguf_writer.write(tmp_path / "bad.gguf", values, [])
    assert "its names and values take more than 16,777,216 bytes of memory" in refusal(path).message


def test_what_one_model_may_cost_is_not_multiplied_by_its_parts(tmp_path: Path) -> None:
    """The limits hold for all parts together."""
    tensors = [
        [(f"{part}.{number}", (1,), "F32") for number in range(stream.TENSORS_LIMIT // 2 + 1)] for part in range(2)
    ]
    (path, _) = gguf_writer.write_parts(tmp_path, "m", VALUES, tensors)
    with pytest.raises(BackendFailed, match=r"32,769 tensors; a model may have 65,536, all parts together"):
        gguf.read(path)


MEASURE = """
import sys
from pathlib import Path
from gpud.catalog import gguf
from gpud.core.errors import BackendFailed
def memory_kib(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])
Path("/proc/self/clear_refs").write_text("5")  # The peak is counted from here.
before = memory_kib("VmRSS")
try:
    gguf.read(sys.argv[1])
except BackendFailed:
    pass
print(memory_kib("VmHWM") - before)
"""


@pytest.mark.parametrize(
    "make",
    [
        lambda path: gguf_writer.write(path, {"tokenizer.ggml.tokens": ["a token"] * 1_000_000}, []),
        lambda path: sparse(path, head(0, 1) + key("k", 8) + struct.pack("<Q", 2**30), 2**31),
        lambda path: sparse(path, head(0, 1) + array(10, 2**27), 2**31),
        lambda path: gguf_writer.write(path, {f"{n}": [1] * 4096 for n in range(200)}, []),
    ],
    ids=["a vocabulary of 15 MB", "a text of 1 GiB", "an array of 1 GiB", "many arrays"],
)
def test_memory_stays_bounded(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """In a process of its own: whatever the file, a few windows and what is kept."""
    path = make(tmp_path / "a.gguf")
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < stream.KEPT_LIMIT_BYTES + 4 * 1024 * 1024


# What is no file -----------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    """A FIFO would wait for a writer, and a device may do something when it is opened."""
    fifo, folder, nowhere = tmp_path / "fifo", tmp_path / "folder", tmp_path / "nowhere"
    os.mkfifo(fifo)
    folder.mkdir()
    assert "it is a FIFO, not a file" in refusal(fifo).message
    assert "it is a folder" in refusal(folder).message
    assert "it is a device, not a file" in refusal("/dev/zero").message
    # A container may have put a FIFO in its place. Whoever opened either would wait.
    assert re.search("it is empty|it is a FIFO, not a file", refusal("/proc/kmsg").message)
    assert "there is no such file" in refusal(nowhere).message
    nowhere.symlink_to(nowhere)
    assert "Too many levels of symbolic links" in refusal(nowhere).message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "it is a socket, not a file" in refusal(tmp_path / "socket").message


def test_names_that_no_file_can_have_are_refused() -> None:
    """And shown without what a terminal would obey."""
    with pytest.raises(BackendFailed, match=r'"/a\\x00b": no file can have this name'):
        gguf.read("/a\0b")
    with pytest.raises(BackendFailed, match=r'"/\\ud800\\x1b": '):
        gguf.read("/\ud800\x1b")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """Seen by a process without root's rights, where the test has them."""
    path = gguf_writer.write(tmp_path / "a.gguf", VALUES, [])
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from gpud.catalog import gguf\n"
        "from gpud.core.errors import BackendFailed\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "try:\n    gguf.read(sys.argv[1])\n"
        "except BackendFailed as problem:\n    print(problem.text)\n"
    )
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f'cannot read model file "{path}": gpud may not read it; let the user that gpud runs')


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A process that had it mapped would be ended by SIGBUS; a short read is an error like others."""
    values = {"tokenizer.ggml.tokens": ["a token"] * 100_000, "after": 1}
    path = gguf_writer.write(tmp_path / "a.gguf", values, [])
    with stream.opened(str(path), stream.Allowance()) as file:
        assert file.take(4) == b"GGUF"
        os.truncate(path, 100_000)
        file.skip(24 - 4 + len("tokenizer.ggml.tokens") + 8 + 4 + 4 + 8)
        with pytest.raises(
            BackendFailed, match=r"it shrank while it was read: it had 1,500,\d+ bytes, and now ends at"
        ):
            file.skip_strings(100_000)


def test_a_tensor_of_every_shape_up_to_four_dimensions_is_read(tmp_path: Path) -> None:
    """Also one without any, which is a single number."""
    shapes: list[tuple[int, ...]] = [(), (3,), (3, 2), (3, 2, 5), (3, 2, 5, 7)]
    infos = [tensor_info(f"{len(shape)}", shape, F32, 1024 * len(shape)) for shape in shapes]
    path = tmp_path / "a.gguf"
    path.write_bytes(head(len(infos), 1) + pair("x", As(4, 1)) + b"".join(infos) + bytes(8192))
    assert [(tensor.shape, tensor.bytes) for tensor in gguf.read(path).tensors] == [
        ((), 4), ((3,), 12), ((3, 2), 24), ((3, 2, 5), 120), ((3, 2, 5, 7), 840)
    ]  # fmt: skip
