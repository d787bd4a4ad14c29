"""Makes the places where models lie: files, caches of the Hugging Face hub, Ollama's stores, folders of SafeTensors."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog import gguf_writer
from gpud.catalog.finder import ModelFinder
from gpud.core.catalogue import Finding, Found, Roots

LONG_AGO = 1_700_000_000
"""What was written then is no longer being written."""


def later() -> int:
    """Ten minutes from now: nobody has written anything for long enough."""
    return time.time_ns() + 600 * 10**9


def gguf(path: Path, name: str = "", *, rows: int = 8, architecture: str = "llama", **values: Any) -> Path:
    """A whole model file of some kilobytes. ``values`` are keys with "__" in place of dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": name or path.stem,
        f"{architecture}.context_length": 8192,
        "general.file_type": 15,
        **{key.replace("__", "."): value for key, value in values.items()},
    }
    return gguf_writer.write(path, everything, [("blk.0.ffn_down.weight", (256, rows), "Q4_K")])


def many(folder: Path, count: int) -> None:
    """So many models, whole and of a kilobyte, which differ in their names alone: ``m00000``, ``m00001``, ..."""
    content = gguf(folder / "template", "m?????").read_bytes()
    (folder / "template").unlink()
    for number in range(count):
        path = folder / f"m{number:05}.gguf"
        path.write_bytes(content.replace(b"m?????", path.stem.encode()))
        os.utime(path, (LONG_AGO, LONG_AGO))


def split(folder: Path, stem: str, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"general.architecture": "llama", "general.name": stem, "llama.context_length": 4096}
    return gguf_writer.write_parts(
        folder, stem, values, [[(f"t{number}", (256, 4), "Q4_K")] for number in range(count)]
    )


def projector(path: Path) -> Path:
    return gguf(path, architecture="clip", general__type="mmproj")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hub_file(hub: Path, repo: str, revision: str, name: str, source: Path, *, link: bool = True) -> Path:
    """Put a file into a cache as the hub's library does; returns its name in the snapshot."""
    top = hub / f"models--{repo.replace('/', '--')}"
    target = top / "snapshots" / revision / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (top / "blobs").mkdir(exist_ok=True)
    if link:
        blob = top / "blobs" / sha256(source)
        blob.write_bytes(source.read_bytes())
        target.symlink_to(os.path.relpath(blob, target.parent))
    else:
        target.write_bytes(source.read_bytes())
    return target


def hub_main(hub: Path, repo: str, revision: str) -> None:
    refs = hub / f"models--{repo.replace('/', '--')}" / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(revision)


def ollama_blob(store: Path, content: bytes) -> str:
    """Returns its digest as a manifest writes it."""
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def ollama_manifest(store: Path, name: str, layers: dict[str, str | list[str]]) -> Path:
    """``name`` is HOST/NAMESPACE/MODEL/TAG; ``layers`` has digests by the kind of layer."""
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}
        for kind, digests in layers.items()
        for digest in ([digests] if isinstance(digests, str) else digests)
    ]
    path.write_text(json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:" + "0" * 64}, "layers": listed}))
    return path


def safetensors(
    folder: Path, config: dict[str, Any] | None = None, names: tuple[str, ...] = ("model.safetensors",)
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    for name in names:
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + name.encode().ljust(16))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def look(*folders: Path, finder: ModelFinder | None = None, known: Finding | None = None, **more: Any) -> Finding:
    """One scan; ``more`` are fields of Roots, with paths or texts."""
    roots = Roots(
        folders=tuple(map(str, folders)), **{key: tuple(str(one) for one in value) for key, value in more.items()}
    )
    return (finder or ModelFinder(later)).scan(roots, by_path(known))


def by_path(finding: Finding | None) -> dict[str, Found]:
    return {place.path: found for found in finding.models for place in found.places} if finding else {}


def names(finding: Finding) -> list[str]:
    """What was found, as the names of its first places, in order."""
    return sorted(found.places[0].name for found in finding.models)


def only(finding: Finding) -> Found:
    """The one model that there is."""
    (found,) = finding.models
    return found


def as_anybody(*folders: Path, ollama: Sequence[Path] = ()) -> dict[str, Any]:
    """What a user without privileges finds there, in a child that has given them up."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            finding = look(*folders, ollama=tuple(ollama))
            told = {
                "models": [(found.path, found.problem) for found in finding.models],
                "troubles": [(trouble.path, trouble.text) for trouble in finding.troubles],
                "unreachable": finding.unreachable,
            }
            os.write(writer, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        told = file.read()
    os.waitpid(pid, 0)
    return dict(json.loads(told))
