"""How one model is written in the lists of models, for the clients of each API. Pure."""

from datetime import UTC, datetime
from typing import Any

from gpud.core.facts import ModelStatus, State
from gpud.http.known_models import Known

Body = dict[str, Any]


def for_openai(status: ModelStatus, known: Known, began_s: float) -> Body:
    """One model for the clients of OpenAI, llama-server and llama-swap. ``began_s`` is when gpud started: what has no
    file has no other age.
    """
    model = status.model
    size = known.size_bytes or model.size_bytes or status.need_bytes
    failed = {"failed": True, "error": status.error} if status.error else {}
    progress = {} if status.progress is None else {"progress": status.progress}
    meta = {"size": size, "n_ctx": model.settings.context, "n_ctx_train": known.trained_context}
    return {
        "id": model.name,
        "object": "model",
        "created": int(began_s if known.modified_s is None else known.modified_s),
        "owned_by": "local",
        "aliases": list(model.aliases),
        "loaded": status.state in (State.READY, State.DRAINING),
        "state": status.state.value,
        "status": {"value": _word(status), **progress, **failed},
        "size": size,
        "context": model.settings.context or known.trained_context,
        "engine": model.engine,
        "format": known.format,
        "architecture": known.architecture,
        "quantization": known.quantization,
        "parameters": known.parameters,
        "purpose": known.purpose.value,
        "digest": known.entry.found.digest,
        "estimate": status.need_bytes or known.entry.estimate_bytes,
        "meta": meta,
    }


def _word(status: ModelStatus) -> str:
    """A state in llama-server's words."""
    match status.state:
        case State.READY:
            return "loaded"
        case State.LOADING:
            return "loading"
        case State.DRAINING | State.STOPPING | State.KILLING:
            return "unloading"
        case _:
            return "loading" if status.waiting else "unloaded"


def for_anthropic(known: Known, began_s: float) -> Body:
    moment = datetime.fromtimestamp(began_s if known.modified_s is None else known.modified_s, UTC)
    name = known.model.name
    return {"type": "model", "id": name, "display_name": name, "created_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}


def for_llama(known: Known) -> Body:
    """One model as llama-server lists it a second time, for the clients of Ollama."""
    name = known.model.name
    modified_s = known.modified_s
    return {
        "name": name,
        "model": name,
        "modified_at": "" if modified_s is None else datetime.fromtimestamp(modified_s, UTC).isoformat(),
        "size": str(known.size_bytes or known.model.size_bytes or ""),
        "digest": known.entry.found.digest,
        "type": "model",
        "description": "",
        "tags": [""],
        "capabilities": [known.purpose.value],
        "parameters": "",
        "details": {
            "parent_model": "",
            "format": known.format if known.format in ("gguf", "safetensors") else "",
            "family": known.architecture,
            "families": [known.architecture],
            "parameter_size": known.parameters,
            "quantization_level": known.quantization,
        },
    }
