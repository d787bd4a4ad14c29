"""The beginning of a model file on a server: enough to say what it needs, and no more."""

import struct
from pathlib import Path
from typing import Any

import pytest
from catalog import gguf_writer

from gpud.catalog import gguf
from gpud.pulling import header
from gpud.pulling.header import copy_header
from gpud.pulling.problems import Broken, DownloadFailed, NotAllowed
from gpud.pulling.web import Web

from .hub_server import Fault, Hub, cut

REPO, NAME = "org/repo", "model.gguf"
VALUES: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 8192,
    "llama.block_count": 1,
    "tokenizer.ggml.scores": [0.5] * 20_000,
    "tokenizer.ggml.merges": [f"a {number}" for number in range(20_000)],
}
TENSORS = [("token_embd.weight", (64, 1000), "F32"), ("blk.0.ffn_up.weight", (4096, 4096), "F32")]


def model(folder: Path) -> tuple[Path, bytes]:
    path = Path(gguf_writer.write(folder / "real.gguf", VALUES, TENSORS, 1000))
    return path, path.read_bytes()


def copied(hub: Hub, data: bytes, into: Path, size: int | None = None) -> int:
    hub.add(REPO, NAME, data)
    return copy_header(Web(silence_s=5.0), hub.file_url(REPO, NAME), into, len(data) if size is None else size)


def test_what_was_copied_reads_like_the_whole(hub: Hub, tmp_path: Path) -> None:
    """The reader of model files finds the same in it as in the file itself, and only the header has come."""
    path, data = model(tmp_path)
    into = tmp_path / NAME
    come = copied(hub, data, into)
    assert gguf.read(into) == gguf.read(path)
    assert come < len(data) // 50
    assert into.stat().st_size == len(data) and into.stat().st_blocks * 512 < len(data) // 10
    assert [seen.headers["Range"] for seen in hub.asked(NAME)] == [f"bytes=0-{min(len(data), header.LIMIT_BYTES) - 1}"]


def test_a_server_without_ranges_is_left_when_enough_has_come(hub: Hub, tmp_path: Path) -> None:
    """It would send gigabytes."""
    path, data = model(tmp_path)
    hub.faults[NAME] = [Fault(whole=True)]
    assert copied(hub, data, tmp_path / NAME) < len(data) // 50
    assert gguf.read(tmp_path / NAME) == gguf.read(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>not found</html>", "does not begin like one"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "value of the type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "array of the type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 5), "5 dimensions"),
    ],
)
def test_what_is_no_model_is_told_of(hub: Hub, tmp_path: Path, data: bytes, says: str) -> None:
    """Whatever a server sends."""
    with pytest.raises(DownloadFailed, match=says):
        copied(hub, data, tmp_path / NAME)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60),
        struct.pack("<IQQ", 3, 1 << 60, 0),
    ],
)
def test_a_header_without_end_is_not_read_for_ever(
    hub: Hub, tmp_path: Path, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many bytes it is none."""
    data = b"GGUF" + head + bytes(70 << 20)
    with pytest.raises((DownloadFailed, Broken), match=r"longer than 64 MiB|broke off in the header"):
        copied(hub, data, tmp_path / NAME)
    assert (tmp_path / NAME).stat().st_size <= header.LIMIT_BYTES + header.CHUNK_BYTES


def test_a_header_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    """It is not taken for whole."""
    _, data = model(tmp_path)
    hub.faults[NAME] = [cut(5000)]
    with pytest.raises(Broken, match="broke off in the header"):
        copied(hub, data, tmp_path / NAME)


@pytest.mark.parametrize("size", [0, -1, 1 << 62])
def test_sizes_that_no_file_has_are_refused(hub: Hub, tmp_path: Path, size: int) -> None:
    """Before anything is asked for."""
    with pytest.raises(DownloadFailed, match="says that it has"):
        copied(hub, b"GGUF", tmp_path / NAME, size)
    assert hub.seen == []


def test_a_header_that_is_not_given(hub: Hub, tmp_path: Path) -> None:
    """As of the whole file."""
    hub.faults[NAME] = [Fault(status=403)]
    with pytest.raises(NotAllowed, match="does not give"):
        copied(hub, b"GGUF", tmp_path / NAME)
