"""What Ollama's store has, told as ``/api/tags`` tells it, without a server. Reads small files only; for threads."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from gpud.backends.ollama_store import LARGEST_MANIFEST_BYTES, BadName, Store, parse_name

MOST_LISTED = 10_000
"""A store has some hundreds of models; a folder with more files than this is none."""


def listing(store: Store) -> list[dict[str, object]]:
    """The models, the latest first, as Ollama has them. What cannot be read is left out."""
    entries = []
    for count, path in enumerate((store.folder / "manifests").glob("*/*/*/*")):
        if count == MOST_LISTED:
            break
        host, namespace, model, tag = path.parts[-4:]
        try:
            name = str(parse_name(f"{host}/{namespace}/{model}:{tag}"))
            entries.append(_entry(name, path, store.folder / "blobs"))
        except (BadName, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return sorted(entries, key=lambda entry: str(entry["modified_at"]), reverse=True)


def _entry(name: str, path: Path, blobs: Path) -> dict[str, object]:
    content = _read(path)
    manifest = json.loads(content)
    config = manifest["config"]
    about = json.loads(_read(blobs / str(config["digest"]).replace(":", "-")))
    layers = manifest["layers"] or ()
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "name": name,
        "model": name,
        "modified_at": modified.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "size": sum(int(layer["size"]) for layer in (*layers, config)),
        "digest": hashlib.sha256(content).hexdigest(),
        "details": {
            "parent_model": "",
            "format": _text(about.get("model_format")),
            "family": _text(about.get("model_family")),
            "families": [_text(family) for family in _list(about.get("model_families"))],
            "parameter_size": _text(about.get("model_type")),
            "quantization_level": _text(about.get("file_type")),
        },
    }


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_MANIFEST_BYTES + 1)
    if len(content) > LARGEST_MANIFEST_BYTES:
        raise ValueError
    return content


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()
