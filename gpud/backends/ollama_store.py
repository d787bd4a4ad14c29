"""Reads Ollama's model store and its model names as Ollama itself does; never writes, never asks a server.

A store is a folder with ``manifests/HOST/NAMESPACE/MODEL/TAG`` (JSON) and ``blobs/sha256-HEX``.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from gpud.core.record import Record

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# Every part begins with a letter, a digit or "_": so none of them can be "..", and a name is safe as a path.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_OR_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")

_LAYER = "application/vnd.ollama.image."
_SINGLE = ("model", "projector", "adapter", "draft")
_HELD_IN_MEMORY = frozenset(_LAYER + kind for kind in (*_SINGLE, "tensor"))
"""The layers that a runner loads; templates, parameters and licenses are the others."""

LARGEST_MANIFEST_BYTES = 4 << 20
"""A model of thousands of tensor layers stays far below it; what is larger is no manifest."""


class BadName(ValueError):
    """A text that Ollama would not take for a model's name."""


class BadManifest(ValueError):
    """A manifest that cannot be read; ``str()`` says which file and why."""


class Name(Record):
    """A model's full name. Ollama compares names without regard to case."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def identity(self) -> str:
        """The same for every spelling of one name."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}".casefold()

    def __str__(self) -> str:
        """The shortest spelling that Ollama shows; the tag is always there."""
        shown = f"{self.model}:{self.tag}"
        if self.host.casefold() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        if self.namespace.casefold() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{shown}"
        return shown


def parse_name(text: str) -> Name:
    """``[HOST/][NAMESPACE/]MODEL[:TAG]`` with Ollama's defaults filled in; raises BadName."""
    rest = text.split("://", 1)[-1]
    tag = DEFAULT_TAG
    if rest.rfind(":") > rest.rfind("/"):
        rest, tag = rest.rsplit(":", 1)
    parts = rest.rsplit("/", 2)
    model = parts[-1]
    namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
    for pattern, part, what in (
        (_HOST, host, "host"),
        (_NAMESPACE, namespace, "namespace"),
        (_MODEL_OR_TAG, model, "model"),
        (_MODEL_OR_TAG, tag, "tag"),
    ):
        if not pattern.fullmatch(part):
            raise BadName(f'"{text}" is not a model name for Ollama: its {what} is {part!r}')
    return Name(host, namespace, model, tag)


def same_name(text: str, name: Name) -> bool:
    """Whether ``text``, as Ollama wrote it, names that model."""
    try:
        return parse_name(text).identity == name.identity
    except BadName:
        return False


class Manifest(Record):
    """What a store says of one model.

    ``weights`` is the hex digest of the file that a runner is started with, empty for models of many tensor files and
    for cloud models, which have no weights here at all. ``missing`` are the digests that the manifest names and the
    store lacks. ``projector``, ``adapters`` and ``draft`` are digests too.
    """

    name: Name
    weights: str
    held_bytes: int
    missing: tuple[str, ...]
    projector: str = ""
    adapters: tuple[str, ...] = ()
    draft: str = ""

    @property
    def has_weights(self) -> bool:
        return self.held_bytes > 0


class Store:
    """One folder of models, read anew at every question: ``ollama pull`` may have changed it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def readable(self) -> bool:
        try:
            next((self.folder / "manifests").iterdir(), None)
        except OSError:
            return False
        return True

    def names(self) -> tuple[Name, ...]:
        """Every model in the store, in no order."""
        return tuple(name for name, _ in self._manifests())

    def find(self, name: Name) -> Manifest | None:
        """None when the model is not there; raises BadManifest when it is and cannot be read."""
        path = self.folder / "manifests" / name.host / name.namespace / name.model / name.tag
        if path.is_file():
            return self._read(path, name)
        for other, elsewhere in self._manifests():
            if other.identity == name.identity:
                return self._read(elsewhere, other)
        return None

    def nearest(self, name: Name, count: int = 3) -> tuple[str, ...]:
        """The names in the store that ``name`` may have been meant for."""
        shown = {str(other): None for other in self.names()}
        close = difflib.get_close_matches(str(name), list(shown), n=count, cutoff=0.6)
        kin = sorted(text for text in shown if text.split(":")[0].casefold() == str(name).split(":")[0].casefold())
        return tuple(dict.fromkeys([*close, *kin]))[:count]

    def _manifests(self) -> Iterator[tuple[Name, Path]]:
        for path in (self.folder / "manifests").glob("*/*/*/*"):
            host, namespace, model, tag = path.parts[-4:]
            try:
                yield parse_name(f"{host}/{namespace}/{model}:{tag}"), path
            except BadName:
                continue

    def _read(self, path: Path, name: Name) -> Manifest:
        try:
            with path.open("rb") as file:
                content = file.read(LARGEST_MANIFEST_BYTES + 1)
        except OSError as problem:
            raise BadManifest(f'cannot read "{path}": {problem.strerror or problem}') from None
        if len(content) > LARGEST_MANIFEST_BYTES:
            raise BadManifest(f'"{path}" is no manifest: it is larger than {LARGEST_MANIFEST_BYTES >> 20} MiB')
        try:
            document = json.loads(content)
            layers = [_layer(layer) for layer in document["layers"] or ()]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise BadManifest(f'"{path}" is no manifest: it is not the JSON that Ollama writes') from None
        held = [(digest, size, kind) for kind, digest, size in layers if kind in _HELD_IN_MEMORY]
        digests = {kind: [digest for digest, _, other in held if other == _LAYER + kind] for kind in _SINGLE}
        blobs = self.folder / "blobs"
        missing = tuple(digest for digest, _, _ in held if not (blobs / f"sha256-{digest}").exists())
        return Manifest(
            name,
            weights=next(iter(digests["model"]), ""),
            held_bytes=sum(size for _, size, _ in held),
            missing=missing,
            projector=next(iter(digests["projector"]), ""),
            adapters=tuple(digests["adapter"]),
            draft=next(iter(digests["draft"]), ""),
        )


def _layer(layer: dict[str, object]) -> tuple[str, str, int]:
    """Media type, digest in hex, size; raises ValueError or LookupError for what is no layer."""
    digest, size = layer["digest"], layer["size"]
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None or not isinstance(size, int) or size < 0:
        raise ValueError
    return str(layer["mediaType"]), match[1].lower(), size
