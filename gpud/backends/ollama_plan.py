"""How Ollama will place a model, from its store and from what gpud tells it. Asks no server anything."""

import os
from pathlib import Path

from gpud.backends.ollama_settings import load_options
from gpud.backends.ollama_store import BadManifest, Name, Store
from gpud.core.facts import Model
from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.record import replace

CONTEXT_WITHOUT_GPU = 4096
"""Ollama's own choice there. With GPUs it chooses by their memory (4k, 32k, 256k), which only it knows."""

BATCH = 512
EMBEDDING_BATCH = 2048


def make_plan(model: Model, name: Name, store: Store | None, gpus: int, *, attached: bool) -> Plan | None:
    """None where the model's file cannot be read, or where its context is Ollama's choice."""
    settings = model.settings
    file, projector, adapters, draft = _files(name, store)
    context = settings.context or (0 if gpus or attached else CONTEXT_WITHOUT_GPU)
    if not file or not context:
        return None
    # A model that embeds has one slot; an attached server has as many as it was started with, by default one.
    parallel = 1 if settings.embeddings or attached else max(settings.parallel or 1, 1)
    batch = min(EMBEDDING_BATCH, context) if settings.embeddings else BATCH
    layers = load_options(model, attached=attached).get("num_gpu", ALL_LAYERS)
    kind = (settings.cache_type_k or "f16") if not attached else "f16"
    plan = Plan(
        context=context * parallel,
        parallel=parallel,
        unified=False,
        batch=batch,
        micro_batch=batch,
        type_k=kind,
        type_v=kind,
        flash_attention=settings.flash_attention or "auto",
        layers=layers if isinstance(layers, int) else ALL_LAYERS,
        gpus=gpus,
        embeddings=settings.embeddings,
        file=file,
        mmproj=projector,
        adapters=adapters,
    )
    if not draft:
        return plan
    drafting = Plan(
        context=plan.context, parallel=parallel, unified=False, batch=batch, micro_batch=batch, gpus=gpus, file=draft
    )
    return replace(plan, draft=drafting)


def _files(name: Name, store: Store | None) -> tuple[str, str, tuple[str, ...], str]:
    """Model, projector, adapters and draft model as paths; an empty model where any of it cannot be read."""
    nothing: tuple[str, str, tuple[str, ...], str] = ("", "", (), "")
    try:
        manifest = store.find(name) if store is not None else None
    except BadManifest:
        return nothing
    if store is None or manifest is None or not manifest.weights:
        return nothing
    blobs = store.folder / "blobs"

    def path(digest: str) -> str:
        return str(blobs / f"sha256-{digest}") if digest else ""

    found = (
        path(manifest.weights),
        path(manifest.projector),
        tuple(path(digest) for digest in manifest.adapters),
        path(manifest.draft),
    )
    needed = [file for file in (found[0], found[1], *found[2], found[3]) if file]
    return found if all(Path(file).is_file() and os.access(file, os.R_OK) for file in needed) else nothing
