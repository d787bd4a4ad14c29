"""Model files that vanish, are cut off, replaced or hostile; a registry that is deleted, damaged, or has no disk."""

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

from daemon.harness import CallFailed, plain

from bench.faults.clients import put
from bench.faults.fault import Cuts, Over, Scene, fault
from bench.faults.service import _killed_and_started
from gpud.store.file_store import DATABASE


def _found(scene: Scene) -> tuple[str, Path]:
    """A model that is there because its file is, and that answers."""
    name = f"file-{scene.chance.randrange(1 << 30):x}"
    path = scene.system.folder / f"{name}.gguf"
    put(scene.system.place.root / "real.gguf", path)
    with path.open("ab") as file:
        file.write(os.urandom(scene.chance.randrange(1, 4096)))
    _scan(scene)
    return name, path


def _scan(scene: Scene) -> None:
    with scene.client() as client:
        client.call("Scan")


def _gone(scene: Scene, name: str, path: Path) -> Over:
    """Afterwards: the file is away, so is the model, and its engine with it."""

    def over() -> None:
        path.unlink(missing_ok=True)
        _scan(scene)
        told = scene.ask(name)
        if told.status != 404:
            raise AssertionError(f"{name} was removed and answers {told.status}: {told.body[:200]!r}")
        scene.until(lambda: not scene.system.pid_of(name), f"the engine of {name} is gone")
        scene.answers()

    return over


@fault(needs_real=True)
def model_file_vanishes(scene: Scene) -> Over:
    """The file of a model is removed, loaded or not."""
    name, path = _found(scene)
    if scene.chance.random() < 0.4:
        scene.ask(name, max_tokens=2)
    path.unlink()
    return _gone(scene, name, path)


@fault(needs_real=True)
def model_file_cut_off(scene: Scene) -> Over:
    """A file is truncated after it was listed: it is a model no more, until it is whole again."""
    name, path = _found(scene)
    os.truncate(path, scene.chance.choice((0, 100, 1000)))
    _scan(scene)
    told = scene.ask(name)
    if told.status == 200:
        raise AssertionError(f"{name} answers from a file that was cut off")
    return _gone(scene, name, path)


@fault(needs_real=True)
def model_file_replaced(scene: Scene) -> Over:
    """A file is replaced by another one in one step."""
    name, path = _found(scene)
    put(scene.system.place.root / "real.gguf", path)
    _scan(scene)
    return _gone(scene, name, path)


HOSTILE = (
    b"",
    b"GGUF",
    b"GGUF\3\0\0\0" + b"\xff" * 16,
    b"GGUF\3\0\0\0" + bytes(8) + b"\xff" * 8 + b"x" * 100,
    b"GGUF\xff\0\0\0" + b"\x01" * 64,
    b"\0" * 100_000,
)


@fault()
def hostile_files(scene: Scene) -> Over:
    """Files that are no models, a loop of links, a pipe and names that are no text come into the folder, and go."""
    folder = scene.system.folder / "hostile"
    folder.mkdir(exist_ok=True)
    try:
        for number, content in enumerate(HOSTILE):
            (folder / f"h{number}.gguf").write_bytes(content)
        (folder / "loop.gguf").symlink_to("loop.gguf")
        (folder / "up").symlink_to("..")
        os.mkfifo(folder / "pipe.gguf")
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.gguf")).write_bytes(b"GGUF")
        _scan(scene)
    finally:
        shutil.rmtree(folder)

    def over() -> None:
        _scan(scene)
        with scene.client() as client:
            names = {plain(record)["Id"] for record in client.call("ListModels")}
        bad = sorted(name for name in names if name.startswith(("h0", "h1", "h2", "h3", "h4", "h5", "loop", "pipe")))
        if bad:
            raise AssertionError(f"these are listed as models: {bad}")
        scene.answers()

    return over


@fault(kinds=("look",))
def model_folder_vanishes(scene: Scene) -> Over:
    """The folder with all found models is moved away, and comes back."""
    folder = scene.system.folder
    away = folder.with_name("away")
    folder.rename(away)
    try:
        with contextlib.suppress(CallFailed):
            _scan(scene)
        scene.answers()
    finally:
        folder.mkdir(exist_ok=True)
        for path in away.iterdir():
            path.rename(folder / path.name)
        away.rmdir()

    def over() -> None:
        _scan(scene)
        scene.answers()

    return over


# The registry ---------------------------------------------------------------------------------------------------------


def _database(scene: Scene) -> Path:
    return scene.system.state / DATABASE


def _remembers(scene: Scene) -> None:
    """What is said of a model is kept, and read again."""
    tag = f"t{scene.chance.randrange(1 << 30):x}"
    with scene.client() as client:
        client.call("Annotate", "sa{sv}", scene.model, {"tags": ("as", [tag])})
        (record,) = client.call("ListCatalog", "as", [scene.model])
    if plain(record)["Tags"] != [tag]:
        raise AssertionError(f"{scene.model} was given the tag {tag} and has {plain(record)['Tags']}")
    scene.answers()


def _set_aside(scene: Scene) -> Over:
    """Afterwards it remembers, and what was set aside is taken away as a person would."""

    def over() -> None:
        _remembers(scene)
        if not _database(scene).exists():
            raise AssertionError("there is no registry on the disk")
        for path in scene.system.state.glob(f"{DATABASE}.damaged*"):
            path.unlink()

    return over


@fault(Cuts.ALL)
def registry_deleted(scene: Scene) -> Over:
    """The registry is removed under gpud, which is killed then: the next one begins a new one."""
    for path in scene.system.state.glob(f"{DATABASE}*"):
        path.unlink(missing_ok=True)
    _remembers(scene)
    _killed_and_started(scene)
    return _set_aside(scene)


@fault(Cuts.ALL)
def registry_damaged(scene: Scene) -> Over:
    """gpud is killed, its registry filled with something else: it is set aside, told, and begun anew."""
    system = scene.system
    scene.load.hold_back()
    try:
        system.kill()
        path = _database(scene)
        content = path.read_bytes()
        path.write_bytes(scene.chance.choice((b"", b"no database at all" * 300, content[:5000], content[:-3000])))
        system.start()
    finally:
        scene.load.resume()
    return _set_aside(scene)


@fault()
def registry_locked(scene: Scene) -> Over:
    """Another program keeps the registry locked for longer than a call waits."""
    with contextlib.closing(sqlite3.connect(_database(scene), isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN EXCLUSIVE")
        scene.answers()
        other.execute("ROLLBACK")
    return lambda: _remembers(scene)


@fault(needs_disk=True)
def disk_full(scene: Scene) -> Over:
    """Not one byte is left where the registry lies: loads go on, and what was learnt is written later."""
    filler = scene.system.state / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        scene.forgive(scene.model)
        scene.answers()
        with contextlib.suppress(CallFailed):
            _remembers(scene)
    finally:
        filler.unlink()
    return lambda: _remembers(scene)


@fault(needs_disk=True)
def disk_read_only(scene: Scene) -> Over:
    """The file system of the registry becomes read-only, as after an error of its disk."""
    system = scene.system
    try:
        system.write_disk(False)
    except OSError:
        # Somebody is just writing: as with any disk, that one cannot be taken from him.
        return scene.answers
    try:
        scene.forgive(scene.model)
        scene.answers()
        with contextlib.suppress(CallFailed):
            _remembers(scene)
    finally:
        system.write_disk(True)
    return lambda: _remembers(scene)


@fault(Cuts.ALL)
def registry_of_a_newer_gpud(scene: Scene) -> Over:
    """gpud is replaced by an older one, which leaves a registry that it does not understand alone, and works."""
    system = scene.system
    scene.load.hold_back()
    try:
        system.kill()
        version = _set_version(scene, 999)
        system.start()
        scene.answers()
        system.kill()
        if _set_version(scene, version) != 999:
            raise AssertionError("a registry of a newer gpud was changed")
        system.start()
    finally:
        scene.load.resume()
    return lambda: _remembers(scene)


def _set_version(scene: Scene, version: int) -> int:
    """Returns what it was."""
    with contextlib.closing(sqlite3.connect(_database(scene), isolation_level=None, timeout=5)) as file:
        (before,) = file.execute("PRAGMA user_version").fetchone()
        file.execute(f"PRAGMA user_version = {version}")
        return int(before)


@fault()
def hostile_manifests(scene: Scene) -> Over:
    """Manifests of Ollama's that are no JSON, or that point out of the store."""
    folder = scene.system.place.root / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "evil"
    folder.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../../etc/passwd", "size": 1}
    contents = (b"", b"[" * 5000, b"{}", b"\0" * 1000, json.dumps({"schemaVersion": 2, "layers": [layer]}).encode())
    try:
        for number, content in enumerate(contents):
            (folder / f"v{number}").write_bytes(content)
        _scan(scene)
        with scene.client() as client:
            names = sorted(plain(record)["Id"] for record in client.call("ListModels"))
        if bad := [name for name in names if "evil" in name]:
            raise AssertionError(f"these are listed as models: {bad}")
    finally:
        shutil.rmtree(folder)
    return scene.answers
