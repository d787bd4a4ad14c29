"""Looks for models in Ollama's stores: ``manifests/HOST/NAMESPACE/MODEL/TAG`` and ``blobs/sha256-HEX``.

A manifest is JSON that names blobs by digest. What does not is told of and never followed. What no other engine can
take (weights in many pieces, a model with an adapter) is listed as Ollama's own.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpud.catalog.stream import visible
from gpud.catalog.walk import File, Item, Walk, small_file
from gpud.core.catalogue import Format, Place, Source
from gpud.core.record import Record

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"

MANIFEST_LIMIT_BYTES = 4 << 20
"""A model of thousands of layers stays far below it; what is larger is no manifest."""

TEMPLATE_LIMIT_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
"""Every part begins with a letter, a digit or "_": none of them can be ".."."""

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LAYER = "application/vnd.ollama.image."
_HELD = ("model", "projector", "adapter", "draft", "tensor")
"""The layers that are loaded; templates, parameters and licenses are the others."""

_TOOLS = re.compile(rb"\.Tools\b|\btools\b")


class Manifest(Record):
    """What a manifest says: digests in hex by the kind of layer; and what its template does."""

    layers: dict[str, tuple[str, ...]]
    template: bool = False
    tools: bool = False

    def first(self, kind: str) -> str:
        return next(iter(self.layers.get(kind, ())), "")


Manifests = dict[str, tuple[File, Manifest]]
"""Those of one store that were read, by path: what did not change is not read again."""


class _Wrong(ValueError):
    """What is wrong with a manifest, and what to do."""


def look_into(walk: Walk, root: str, known: Manifests) -> Manifests:
    """Every model of a store. Returns the manifests, to be given as ``known`` the next time."""
    seen: dict[str, Item] = {}
    manifests: Manifests = {}
    top = f"{root}/manifests"
    for name, file in _files(walk, top):
        walk.files += 1
        try:
            before = known.get(file.path)
            manifest = before[1] if before is not None and before[0] == file else _read(walk, root, file)
            manifests[file.path] = file, manifest
            _add(walk, root, name, file, manifest, seen)
        except _Wrong as problem:
            walk.trouble(file.path, str(problem))
    if any(f"{folder}/".startswith(f"{top}/") for folder in walk.unreachable):
        walk.out_of_reach(root)  # What a manifest that nobody may read names lies elsewhere in the store.
    return manifests


def _files(walk: Walk, top: str) -> Iterator[tuple[str, File]]:
    """Every manifest, and the name by which Ollama shows its model."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        inner: list[tuple[str, tuple[str, ...]]] = []
        for entry in walk.entries(folder):
            if not _NAME.fullmatch(entry.name):
                continue
            path = (*above, entry.name)
            try:
                status = entry.stat()
            except OSError as problem:
                walk.out_of_reach(folder, problem)
                continue
            if len(path) == 4:
                if not stat.S_ISREG(status.st_mode):
                    continue
                yield _shown(*path), File.of(entry.path, status)
            elif stat.S_ISDIR(status.st_mode) and walk.visit(status):
                inner.append((entry.path, path))
        waiting += inner


def _shown(host: str, namespace: str, model: str, tag: str) -> str:
    """The shortest name that Ollama shows; the tag is always there."""
    name = f"{model}:{tag}"
    if host.casefold() != DEFAULT_HOST:
        return f"{host}/{namespace}/{name}"
    return name if namespace.casefold() == DEFAULT_NAMESPACE else f"{namespace}/{name}"


def _read(walk: Walk, root: str, file: File) -> Manifest:
    try:
        content = small_file(file.path, MANIFEST_LIMIT_BYTES)
    except PermissionError:
        walk.out_of_reach(root)  # What it names lies elsewhere in the store, and is not gone.
        raise _Wrong("gpud may not read this manifest: let the user that gpud runs as read it") from None
    except OSError as problem:
        walk.out_of_reach(root, problem)
        raise _Wrong(f"this manifest cannot be read: {problem.strerror} (errno {problem.errno})") from None
    except ValueError as problem:
        raise _Wrong(f"this is no manifest: {problem}; pull the model again, or remove it with ollama rm") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    layers = _layers(document)
    template, tools = _template(root, next(iter(layers.get("template", ())), ""))
    return Manifest(layers, template, tools)


def _layers(document: Any) -> dict[str, tuple[str, ...]]:
    listed = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(layer, dict) for layer in listed):
        raise _Wrong("this is no manifest: it is not the JSON that Ollama writes; pull the model again")
    layers: dict[str, tuple[str, ...]] = {}
    for layer in listed:
        kind, digest = layer.get("mediaType"), layer.get("digest")
        found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if found is None or not isinstance(kind, str):
            raise _Wrong(
                f'it names a layer by "{visible(str(digest)[:80])}", which is no SHA-256: it was not followed; '
                "pull the model again"
            )
        if kind.startswith(_LAYER):
            kind = kind.removeprefix(_LAYER)
            layers[kind] = (*layers.get(kind, ()), found[1].lower())
    return layers


def _add(walk: Walk, root: str, name: str, file: File, manifest: Manifest, seen: dict[str, Item]) -> None:
    models = manifest.layers.get("model", ())
    held = [digest for kind in _HELD for digest in manifest.layers.get(kind, ())]
    if not models and "tensor" not in manifest.layers:
        return  # It runs elsewhere: there is nothing of it here.
    blobs = {digest: _blob(walk, root, digest) for digest in dict.fromkeys(held)}
    missing = next((digest for digest, blob in blobs.items() if blob is None), "")
    if missing:
        raise _Wrong(f'there is no "blobs/sha256-{missing}", which it needs; pull it again: ollama pull {name}')
    there = {digest: blob for digest, blob in blobs.items() if blob is not None}
    if len(models) != 1 or "adapter" in manifest.layers:
        place = Place(file.path, Source.OLLAMA, name)
        item = Item((), tuple(there.values()), Format.OTHER, (file,))
    else:
        place = Place(there[models[0]].path, Source.OLLAMA, name)
        item = seen.setdefault(models[0], Item((), (there[models[0]],), digest=models[0]))
    if not item.places:
        walk.items.append(item)
    item.places = tuple(sorted((*item.places, place), key=lambda one: one.name))
    item.ollama_name = item.places[0].name
    if item.format is Format.GGUF:
        item.mmproj = item.mmproj or there.get(manifest.first("projector"))
        item.draft = item.draft or there.get(manifest.first("draft"))
    item.template, item.tools = item.template or manifest.template, item.tools or manifest.tools


def _blob(walk: Walk, root: str, digest: str) -> File | None:
    path = f"{root}/blobs/sha256-{digest}"
    walk.step()
    try:
        status = Path(path).stat()
    except PermissionError:
        walk.out_of_reach(root)
        raise _Wrong(
            f'gpud may not look into "{root}/blobs", where its files are: let the user that gpud runs as enter it'
        ) from None
    except OSError:
        return None
    return File.of(path, status) if stat.S_ISREG(status.st_mode) else None


def _template(root: str, digest: str) -> tuple[bool, bool]:
    if not digest:
        return False, False
    try:
        content = small_file(f"{root}/blobs/sha256-{digest}", TEMPLATE_LIMIT_BYTES)
    except (OSError, ValueError):
        return False, False
    return True, _TOOLS.search(content) is not None
