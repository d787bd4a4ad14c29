"""The reader that remembers: what did not change is not read again, what changed is."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog import gguf_writer
from gpud.catalog.reader import SETTLED_NS, FileReader
from gpud.core.errors import BackendFailed
from gpud.core.modelfile import ModelFile
from gpud.core.ports import Files

TENSORS = [("a", (256, 4), "Q4_K"), ("b", (256,), "F32")]


def later() -> int:
    """A second from now: what was written a moment ago has been left alone for long enough."""
    return time.time_ns() + 1_000_000_000


def write(path: Path, layers: int = 2) -> str:
    return str(gguf_writer.write(path, {"general.architecture": "llama", "llama.block_count": layers}, TENSORS))


def parts(folder: Path) -> list[Path]:
    return gguf_writer.write_parts(folder, "m", {"general.architecture": "llama"}, [TENSORS[:1], TENSORS[1:]])


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    """The very same record is given."""
    files: Files = FileReader(now_ns=later)
    path = write(tmp_path / "a.gguf")
    assert files.read(path) is files.read(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Written over with as many bytes, and its time set back: its change is still seen."""
    files, path = FileReader(now_ns=later), write(tmp_path / "a.gguf", layers=2)
    before = os.stat(path)
    assert files.read(path).values["llama.block_count"] == 2
    while os.stat(path).st_ctime_ns == before.st_ctime_ns:
        write(tmp_path / "a.gguf", layers=3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert files.read(path).values["llama.block_count"] == 3


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path) -> None:
    """Its next change could have the same date as the last: it is remembered once it has been left alone."""
    path = write(tmp_path / "a.gguf")
    changed_ns = os.stat(path).st_ctime_ns
    now_ns = [changed_ns]
    files = FileReader(now_ns=lambda: now_ns[0])
    assert files.read(path) is not files.read(path)
    now_ns[0] += SETTLED_NS
    assert files.read(path) is files.read(path)


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """Another inode under the same name, and a link that leads elsewhere."""
    files, path, link = FileReader(now_ns=later), write(tmp_path / "a.gguf", layers=2), tmp_path / "link.gguf"
    link.symlink_to("a.gguf")
    assert files.read(path).values["llama.block_count"] == files.read(str(link)).values["llama.block_count"] == 2
    os.replace(write(tmp_path / "b.gguf", layers=3), path)
    assert files.read(path).values["llama.block_count"] == 3
    write(tmp_path / "c.gguf", layers=4)
    link.unlink()
    link.symlink_to("c.gguf")
    assert files.read(str(link)).values["llama.block_count"] == 4


def test_a_change_of_any_part_is_seen(tmp_path: Path) -> None:
    """A part that is gone is an error, and when it is back the model is too."""
    files, (first, second) = FileReader(now_ns=later), parts(tmp_path)
    model = files.read(str(first))
    assert model.parts == 2 and files.read(str(first)) is model
    second.rename(tmp_path / "away")
    with pytest.raises(BackendFailed, match="its part 2 of 2 is missing"):
        files.read(str(first))
    (tmp_path / "away").rename(second)
    assert files.read(str(first)) == model


def test_an_error_is_not_remembered(tmp_path: Path) -> None:
    """A file that is repaired is read."""
    files, path = FileReader(now_ns=later), tmp_path / "a.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(BackendFailed):
        files.read(str(path))
    assert files.read(write(path)).architecture == "llama"


def test_a_file_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    """What was known of it is not given any more."""
    files, path = FileReader(now_ns=later), write(tmp_path / "a.gguf")
    files.read(path)
    os.unlink(path)
    with pytest.raises(BackendFailed, match="there is no such file"):
        files.read(path)


def kept(files: FileReader, known: dict[str, ModelFile]) -> list[str]:
    """Which of the files are still known. Asking in the order of their age changes nothing that is asked later."""
    return [Path(path).stem for path, model in known.items() if files.read(path) is model]


def test_the_file_not_asked_for_the_longest_goes_first(tmp_path: Path) -> None:
    """Two are kept of three: the one that was asked for again, and the last."""
    files = FileReader(files_kept=2, now_ns=later)
    one, two, three = (write(tmp_path / f"{name}.gguf") for name in ("one", "two", "three"))
    known = {one: files.read(one), two: files.read(two)}
    assert files.read(one) is known[one]
    known = {one: known[one], three: files.read(three), two: known[two]}
    assert kept(files, known) == ["one", "three"]


def test_files_with_many_tensors_make_room_for_each_other(tmp_path: Path) -> None:
    """What is kept is bounded by tensors as well; the last is always kept."""
    files = FileReader(tensors_kept=len(TENSORS) * 2, now_ns=later)
    paths = [write(tmp_path / f"{number}.gguf") for number in range(3)]
    known = {path: files.read(path) for path in paths}
    assert kept(files, {path: known[path] for path in reversed(paths)}) == ["2", "1"]
    small = FileReader(tensors_kept=1, now_ns=later)
    assert small.read(paths[0]) is small.read(paths[0])


def test_many_threads_at_once_read_a_file_once(tmp_path: Path) -> None:
    """All of them get the same record: the first one reads, the others wait for it."""
    files, count = FileReader(now_ns=later), 16
    values = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a token"] * 200_000}
    path = str(gguf_writer.write(tmp_path / "a.gguf", values, TENSORS))
    together = threading.Barrier(count)

    def read() -> ModelFile:
        together.wait(timeout=30)
        return files.read(path)

    with ThreadPoolExecutor(count) as threads:
        models = [work.result(timeout=30) for work in [threads.submit(read) for _ in range(count)]]
    assert len({id(model) for model in models}) == 1


def test_threads_that_read_write_and_fail_at_once_get_what_is_there(tmp_path: Path) -> None:
    """Many files, few kept, one of them changed all the time: each answer is one of the states that were there."""
    files = FileReader(files_kept=3)
    paths = [write(tmp_path / f"{number}.gguf", layers=number) for number in range(6)]
    changing, missing = str(tmp_path / "changing.gguf"), str(tmp_path / "missing.gguf")
    write(Path(changing), layers=100)

    def work(seed: int) -> None:
        for step in range(60):
            number = (seed + step) % len(paths)
            assert files.read(paths[number]).values["llama.block_count"] == number
            with pytest.raises(BackendFailed):
                files.read(missing)
            if seed == 0:
                os.replace(write(tmp_path / "new.gguf", layers=100 + step), changing)
            assert files.read(changing).values["llama.block_count"] in range(100, 160)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, seed) for seed in range(6)]:
            done.result(timeout=60)
    assert files.read(changing).values["llama.block_count"] == 159
