"""What is wrong before anything runs: configurations, model files, directories without space."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import CallFailed, Place, embedded, engine, gone, settle, tiny

# Configurations ----------------------------------------------------------------------------------------------------


def test_an_invalid_configuration_is_refused_with_every_problem(place: Place) -> None:
    """Exit status 78, and one line for each problem with file, line and key."""
    place.config.write_text(
        "models:\n  a:\n    engine: embeded\n    file: /x.gguf\n  b:\n    engine: custom\n    idle_timeout: soon\n"
        "gpu:\n  budjet: 5GiB\n"
    )
    daemon = place.start(wait=False)
    assert daemon.wait_exit() == 78
    for words in ("embeded", "idle_timeout", "budjet", "gpud.yaml:3", "gpud.yaml:7", "gpud.yaml:9"):
        assert words in daemon.log()
    place.check_empty()


@pytest.mark.parametrize("content", ["models: [", "- a\n", "a: 1\na: 2\n", "\0", "models: {a: {engine: custom}}"])
def test_what_is_no_configuration_is_refused(place: Place, content: str) -> None:
    """Exit status 78 and a sentence, never a traceback."""
    place.config.write_text(content)
    daemon = place.start(wait=False)
    assert daemon.wait_exit() == 78
    assert "the configuration is invalid" in daemon.log() and "Traceback" not in daemon.log()


def test_a_configuration_that_cannot_be_read_is_refused(place: Place) -> None:
    """A directory in the place of the file."""
    place.config.mkdir()
    daemon = place.start(wait=False)
    assert daemon.wait_exit() == 78
    assert str(place.config) in daemon.log() and "Traceback" not in daemon.log()


def test_a_reload_of_a_broken_file_keeps_the_old_configuration(place: Place) -> None:
    """The caller gets the problems, the log too; models, engines and the next good reload are not touched by it."""
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    good = place.config.read_text()
    place.config.write_text(good + "bananas: 3\nidle: {timeout: blue}\n")
    with pytest.raises(CallFailed) as refused:
        daemon.reload()
    assert refused.value.name == "ConfigInvalid"
    assert "bananas" in refused.value.text and "idle.timeout" in refused.value.text
    daemon.wait_log("The configuration was not reloaded, the old one stays: 2 problems")
    assert daemon.state("model") == "ready"
    assert place.records()["model"] == record
    place.config.write_text(good)
    daemon.reload()
    assert place.records()["model"] == record
    daemon.aftermath()


def test_a_reload_without_a_file_keeps_the_old_configuration(place: Place) -> None:
    """Somebody moved it away."""
    place.configure({"spare": engine()})
    daemon = place.start()
    place.config.rename(place.root / "elsewhere")
    with pytest.raises(CallFailed) as refused:
        daemon.reload()
    assert refused.value.name == "ConfigInvalid"
    (place.root / "elsewhere").rename(place.config)
    daemon.aftermath()


def test_a_reload_touches_only_what_has_changed(place: Place) -> None:
    """Unchanged engines keep their process; changed and removed ones go, changed ones come back as configured when they
    are wanted; added ones can be loaded."""
    place.configure({"same": engine(), "changed": engine(), "removed": engine(), "spare": engine()})
    daemon = place.start()
    before = {name: daemon.loaded(name)["child"]["pid"] for name in ("same", "changed", "removed")}
    place.configure(
        {"same": engine(idle_timeout="77s"), "changed": engine("--busy", "0"), "added": engine(), "spare": engine()}
    )
    daemon.reload()
    daemon.wait_state("changed", "unloaded")
    settle(lambda: set(place.records()) == {"same"}, "only the unchanged one is left")
    assert place.records()["same"]["child"]["pid"] == before["same"]
    assert gone(before["changed"]) and gone(before["removed"])
    assert {r["Id"][1] for r in daemon.call("ListModels")} == {"same", "changed", "added", "spare"}
    with pytest.raises(CallFailed) as refused:
        daemon.ask_load("removed")
    assert refused.value.name == "NoSuchModel"
    assert daemon.load("added").result == "done"
    assert daemon.load("changed").result == "done"
    assert daemon.state("same") == "ready"
    daemon.aftermath()


def test_a_reload_while_a_changed_model_loads_gives_it_as_configured_now(place: Place) -> None:
    """Who waits for it gets the new one."""
    place.configure({"model": engine("--never-healthy"), "spare": engine()})
    daemon = place.start()
    job = daemon.ask_load("model")
    settle(lambda: "model" in place.records(), "it is written down")
    place.configure({"model": engine(), "spare": engine()})
    daemon.reload()
    assert daemon.wait_job(job).result == "done"
    daemon.aftermath()


def test_a_reload_while_a_removed_model_loads_ends_its_load(place: Place) -> None:
    """Canceled, with the reason; the engine is gone."""
    place.configure({"model": engine("--never-healthy"), "spare": engine()})
    daemon = place.start()
    job = daemon.ask_load("model")
    settle(lambda: "model" in place.records(), "it is written down")
    place.configure({"spare": engine()})
    daemon.reload()
    ended = daemon.wait_job(job)
    assert ended.result == "canceled" and "no longer there" in ended.message
    daemon.aftermath()


def test_a_reload_keeps_a_removed_model_that_answers(place: Place) -> None:
    """A running answer is never cut: the model goes when it has ended, and is not offered meanwhile."""
    busy = engine("--stream-every", "0.02", busy={"get": "/queue", "any": ["queue_running"]})
    place.configure({"model": busy, "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    with place.stream(record, "GET", "/stream") as stream:
        assert stream.read()
        place.configure({"spare": engine()})
        daemon.reload()
        for _ in range(50):
            assert stream.read(), "the answer was cut"
        with pytest.raises(CallFailed) as refused:
            daemon.ask_load("model")
        assert refused.value.name == "NoSuchModel"
    settle(lambda: gone(record["child"]["pid"]), "it is gone after its answer")
    daemon.aftermath()


# Model files -------------------------------------------------------------------------------------------------------


BROKEN = {
    "empty": "is empty",
    "wrong-magic": "GGUF",
    "truncated-header": "ends within its header",
    "truncated-tensors": "ends before",
    "unknown-architecture": "does not know the architecture",
    "missing-tensor": "lacks a tensor",
}


def test_a_broken_model_file_is_named_with_what_is_wrong(place: Place) -> None:
    """The real embedded engine's own words, as a sentence and a hint."""
    models = {kind: embedded(tiny(place.root / f"{kind}.gguf", broken=kind), size="64MiB") for kind in BROKEN}
    place.configure({**models, "spare": engine()})
    daemon = place.start()
    for kind, words in BROKEN.items():
        ended = daemon.load(kind)
        assert ended.result == "failed"
        assert words in ended.message, ended.message
        assert daemon.model(kind)["Error"] and daemon.model(kind)["ErrorHint"]
        daemon.unload(kind)
    daemon.aftermath()


def test_a_model_file_that_is_not_there_counts_no_attempt(place: Place) -> None:
    """Ten wishes, ten answers at once; once the file is there, the next wish loads it."""
    path = place.root / "late.gguf"
    place.configure({"late": embedded(path), "spare": engine()})
    daemon = place.start()
    for _ in range(10):
        ended = daemon.load("late")
        assert ended.result == "failed" and str(path) in ended.message, ended
    assert place.records() == {}
    tiny(path)
    assert daemon.load("late").result == "done", daemon.log()
    daemon.aftermath()


def test_a_directory_and_a_dead_link_are_no_model_files(place: Place) -> None:
    """Both are named."""
    (place.root / "dir.gguf").mkdir()
    (place.root / "link.gguf").symlink_to(place.root / "nowhere")
    place.configure(
        {"dir": embedded(place.root / "dir.gguf"), "link": embedded(place.root / "link.gguf"), "spare": engine()}
    )
    daemon = place.start()
    for name in ("dir", "link"):
        ended = daemon.load(name)
        assert ended.result == "failed" and f"{name}.gguf" in ended.message, ended
    daemon.aftermath()


def test_what_no_configuration_names_cannot_be_loaded(place: Place) -> None:
    """A name is a name: no path, no switch, nothing empty, nothing endless."""
    place.configure({"spare": engine()})
    daemon = place.start()
    for name in ("spar", "/etc/passwd", "../spare", "--help", "spare\n", "x" * 100_000, "\u202espare", ""):
        with pytest.raises(CallFailed) as refused:
            daemon.ask_load(name)
        assert len(refused.value.text) < 1000
    with pytest.raises(CallFailed, match='did you mean "spare"'):
        daemon.ask_load("spar")
    daemon.aftermath()


# Directories -------------------------------------------------------------------------------------------------------


@pytest.fixture
def full() -> Iterator[list[Path]]:
    """A function's worth of small file systems: each path that is added is unmounted at the end."""
    mounted: list[Path] = []
    yield mounted
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount_full(path: Path, mounted: list[Path], *, inodes: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    options = "size=64k,mode=700" + (f",nr_inodes={inodes}" if inodes else "")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "gpud-test", str(path)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.decode().strip()}")
    mounted.append(path)


def _fill(path: Path) -> None:
    with (path / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_full_runtime_directory_does_not_keep_models_from_loading(place: Place, full: list[Path]) -> None:
    """What cannot be written down is said, once, and in Degraded; the model works, and all is well again when there is
    space."""
    _mount_full(place.runtime / "gpud", full)
    place.configure({"model": engine(), "spare": engine()})
    daemon = place.start()
    place.engines.mkdir(mode=0o700, exist_ok=True)
    _fill(place.runtime / "gpud")
    assert daemon.load("model").result == "done", daemon.log()
    line = daemon.wait_log("annot write .*engines/")
    assert "No space left on device" in line
    assert daemon.property("Degraded") == "state-not-kept"
    assert daemon.unload("model").result == "done"
    (place.runtime / "gpud" / "ballast").unlink()
    assert daemon.load("model").result == "done"
    assert place.records()["model"]["child"]["pid"]
    assert daemon.property("Degraded") == ""
    daemon.aftermath()


def test_a_runtime_directory_without_inodes_fails_a_load_with_a_sentence(place: Place, full: list[Path]) -> None:
    """Not even a directory for sockets can be made: that is an answer, not an internal error."""
    _mount_full(place.runtime / "gpud", full, inodes=8)
    place.configure({"spare": engine()})
    daemon = place.start()
    while True:
        try:
            (place.runtime / "gpud" / f"ballast-{len(os.listdir(place.runtime / 'gpud'))}").touch()
        except OSError:
            break
    ended = daemon.load("spare")
    assert ended.result == "failed"
    assert "No space left on device" in ended.message and "internal error" not in ended.message, ended.message
    for path in (place.runtime / "gpud").glob("ballast-*"):
        path.unlink()
    daemon.unload()
    daemon.aftermath()


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_state_directory_that_takes_nothing_stops_no_load(place: Place, full: list[Path], kind: str) -> None:
    """Measured sizes are for the next time: a file in the place of the directory, or no space, is said and no more."""
    if kind == "file":
        place.state.write_text("in the way")
    else:
        _mount_full(place.state / "gpud", full)
        _fill(place.state / "gpud")
    # Holds more than it declares, which is a measurement worth keeping.
    place.configure({"model": engine(size="1MiB"), "spare": engine()})
    daemon = place.start()
    assert daemon.load("model").result == "done", daemon.log()
    daemon.wait_log("annot use .*registry.db")
    assert daemon.property("Degraded") == "state-not-kept"
    daemon.aftermath()


def test_a_runtime_directory_that_cannot_be_made_is_named(place: Place) -> None:
    """Exit status 1, with the path and what to do."""
    shutil.rmtree(place.runtime)
    place.runtime.write_text("in the way")
    place.configure({"spare": engine()})
    daemon = place.start(wait=False)
    assert daemon.wait_exit() == 1
    assert "cannot use the runtime directory" in daemon.log() and "Traceback" not in daemon.log()


def test_a_damaged_database_is_set_aside_and_begun_anew(place: Place) -> None:
    """Whatever stands in the file."""
    (place.state / "gpud").mkdir(parents=True)
    file = place.state / "gpud" / "registry.db"
    place.configure({"model": engine(size="1MiB"), "spare": engine()})
    for content in (b"{" * 600, b"\0" * 4096, b"SQLite format 3\0" + b"x" * 4096):
        file.write_bytes(content)
        daemon = place.start()
        assert daemon.load("model").result == "done"
        daemon.wait_log("was damaged .* is begun anew")
        assert daemon.stop() == 0
        assert file.with_name("registry.db.damaged").read_bytes() == content
    place.check_empty()


def test_two_reloads_at_once_end_with_the_newer_file(place: Place) -> None:
    """The first one still works through a long file when it is replaced and the second one is asked for: what was read
    first does not win because it took longer."""
    place.configure({"spare": engine()})
    daemon = place.start()
    place.configure({f"m{number}": engine() for number in range(400)} | {"spare": engine()})
    client = place.client()
    client.send("Reload")
    done = "The configuration was reloaded"
    settle(lambda: daemon.is_working() or done in daemon.log(), "the first reload is under way, or over already")
    place.configure({"spare": engine(), "added": engine()})
    client.send("Reload")
    daemon.wait_log(done, count=2)
    assert {record["Id"][1] for record in daemon.call("ListModels")} == {"spare", "added"}
    daemon.aftermath()
