"""What is said of model files before anything is started."""

import errno
import os
from pathlib import Path

import pytest
import tiny_model

from gpud.backends import files
from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model


def model(file: str = "", **settings: str) -> Model:
    return Model("tiny", "llama_server", EngineSettings(file=file, **settings))


def refused(what: Model) -> BackendFailed:
    with pytest.raises(BackendFailed) as failure:
        files.check(what)
    assert failure.value.preflight
    assert failure.value.hint
    return failure.value


def test_a_good_file_passes(tiny: str) -> None:
    """With nothing but its first bytes read."""
    files.check(model(tiny, mmproj=tiny, draft_file=tiny))


def test_a_missing_file_is_named_with_its_path_and_errno(tmp_path: Path) -> None:
    """The words of the system."""
    failure = refused(model(str(tmp_path / "none.gguf")))
    assert failure.kind == "file-missing"
    assert failure.message == (
        f'cannot load "tiny": model file {tmp_path}/none.gguf: No such file or directory (errno {errno.ENOENT})'
    )


SERVICE = "systemd-private-108832e6b6a44b609f641334848b1f44-gpud.service-6qdL9q"


@pytest.mark.parametrize(
    ("path", "folder"),
    [("/tmp/a.gguf", "/tmp"), ("/var/tmp/m/a.gguf", "/var/tmp"), ("/tmpfoo/a.gguf", ""), ("/models/a.gguf", "")],
)
def test_a_file_where_the_service_has_a_folder_of_its_own(tmp_path: Path, path: str, folder: str) -> None:
    """Whoever put the file there sees it, and gpud does not: the hint says why, and where to put it."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "188 187 0:43 / /run rw,nosuid - tmpfs tmpfs rw\n"
        f"233 188 0:43 /{SERVICE}/tmp /tmp rw,nosuid,nodev shared:24 master:2 - tmpfs tmpfs rw\n"
        f"237 187 0:39 /var/tmp/{SERVICE}/tmp /var/tmp rw shared:63 master:1 - ext4 /dev/sda1 rw\n"
    )
    missing = FileNotFoundError(errno.ENOENT, "not there")
    failure = files.unreadable("tiny", Path(path), "model file", missing, mounts)
    assert failure.kind == "file-missing"
    assert failure.hint
    assert failure.hint.startswith(f"the service has a {folder} of its own" if folder else "correct the path")


@pytest.mark.parametrize("setting", ["mmproj", "draft_file"])
def test_the_other_files_are_looked_at_too(tiny: str, tmp_path: Path, setting: str) -> None:
    """A missing projector fails a load as surely as a missing model."""
    failure = refused(model(tiny, **{setting: str(tmp_path / "none.gguf")}))
    assert failure.kind == "file-missing"
    assert {"mmproj": "projector (mmproj)", "draft_file": "draft model"}[setting] in failure.message


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    """Often meant: the file inside."""
    failure = refused(model(str(tmp_path)))
    assert failure.kind == "file-unreadable"
    assert f"errno {errno.EISDIR}" in failure.message
    assert failure.hint == "name the .gguf file inside the folder"


def test_an_unreadable_file_says_who_may_not(tmp_path: Path) -> None:
    """Shown by a loop of links, which not even root can read."""
    (tmp_path / "a.gguf").symlink_to(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "a.gguf")
    failure = refused(model(str(tmp_path / "a.gguf")))
    assert failure.kind == "file-unreadable"
    assert f"{os.strerror(errno.ELOOP)} (errno {errno.ELOOP})" in failure.message


def test_another_format_says_what_the_file_starts_with(tmp_path: Path) -> None:
    """An HTML page that was saved as a model."""
    (tmp_path / "page.gguf").write_bytes(b"<!DOCTYPE html>")
    failure = refused(model(str(tmp_path / "page.gguf")))
    assert failure.kind == "not-a-model"
    assert "it starts with b'<!DO', not with b'GGUF'" in failure.message


def test_an_empty_file_is_a_broken_download(tmp_path: Path) -> None:
    """Nothing in it at all."""
    failure = refused(model(str(tiny_model.write_broken(tmp_path / "a.gguf", "empty"))))
    assert (failure.kind, failure.hint) == ("truncated", "download it again")


def test_no_file_is_said_to_be_missing_in_the_configuration() -> None:
    """Not "is a directory", which an empty path would be."""
    assert refused(model()).message == 'cannot load "tiny": no model file is configured'


def test_a_model_in_parts_needs_all_of_them(tmp_path: Path) -> None:
    """The first part names the others."""
    first = tmp_path / "big-00001-of-00003.gguf"
    for number in (1, 2, 3):
        (tmp_path / f"big-0000{number}-of-00003.gguf").write_bytes(b"GGUF" + b"x" * 10 * number)
    assert files.bytes_of(model(str(first))) == 14 + 24 + 34
    files.check(model(str(first)))
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    assert "big-00002-of-00003.gguf" in refused(model(str(first))).message
    assert files.bytes_of(model(str(first))) is None


def test_the_size_counts_every_file(tiny: str) -> None:
    """Projector and draft model lie in memory as well."""
    size = Path(tiny).stat().st_size
    assert files.bytes_of(model(tiny)) == size
    assert files.bytes_of(model(tiny, mmproj=tiny, draft_file=tiny)) == 3 * size
    assert files.bytes_of(model("/nonexistent")) is None
    assert files.bytes_of(model()) is None


def test_a_relative_name_lies_in_the_models_folder() -> None:
    """An absolute one lies where it says; a tilde is a home."""
    assert files.located(model("a/b.gguf"), "/var/lib/ml-models").settings.file == "/var/lib/ml-models/a/b.gguf"
    assert files.located(model("/m/b.gguf"), "/var/lib/ml-models").settings.file == "/m/b.gguf"
    assert files.located(model("~/b.gguf"), "/x").settings.file == str(Path.home() / "b.gguf")
    assert files.located(model(""), "/x").settings.file == ""


def test_the_latest_snapshot_is_the_newest_that_has_the_file(tmp_path: Path) -> None:
    """As a Hugging Face cache has them: one folder a revision."""
    snapshots = tmp_path / "models--acme--tiny" / "snapshots"
    for name, age in (("aaa", 30), ("bbb", 10), ("ccc", 0)):
        (snapshots / name).mkdir(parents=True)
        if name != "ccc":
            (snapshots / name / "x.gguf").write_bytes(b"GGUF")
        os.utime(snapshots / name, (1_000_000 - age, 1_000_000 - age))
    asked = str(snapshots / "latest" / "x.gguf")
    assert files.resolve(asked) == snapshots / "bbb" / "x.gguf"
    assert files.resolve(str(snapshots / "latest" / "y.gguf")) == snapshots / "latest" / "y.gguf"
    (snapshots / "latest").symlink_to("aaa")
    assert str(files.resolve(asked)) == asked


def test_a_fingerprint_follows_what_an_engine_is_started_with(tiny: str, tmp_path: Path) -> None:
    """Settings, the engine's own options, the file: each of them changes it; how a model is treated does not."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(tiny).read_bytes())
    base = model(str(copy))

    def mark(what: Model, options: EngineOptions | None = None) -> str:
        return files.fingerprint("llama_server", options or EngineOptions(), what)

    first = mark(base)
    assert mark(base) == first
    assert mark(Model("tiny", "llama_server", base.settings, idle_timeout_s=5, pinned=True, aliases=("t",))) == first
    assert mark(Model("other", "llama_server", base.settings)) != first
    assert mark(Model("tiny", "llama_server", base.settings, gpu="GPU-1")) != first
    assert mark(model(str(copy), chat_template="chatml")) != first
    assert mark(base, EngineOptions(binary="/opt/llama-server")) != first
    copy.write_bytes(Path(tiny).read_bytes() + b"\0")
    assert mark(base) != first
    copy.unlink()
    assert mark(base) not in ("", first)
