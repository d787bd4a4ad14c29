"""The models as Ollama's clients see them: by which names they go, what is told of their files, how long they stay.

It asks no engine, and changes nothing.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import prod
from typing import Any

from gpud.core.catalogue import Purpose
from gpud.core.errors import NoSuchModel
from gpud.core.facts import HOST, Model, ModelStatus, Snapshot, State
from gpud.core.naming import LATEST, listed_name, ollamas_own_name
from gpud.engine import Engine
from gpud.http.exchange import Exchange
from gpud.http.known_models import Known
from gpud.http.naming import PLACEHOLDERS, resolved
from gpud.http.ollama_passage import OLLAMA
from gpud.http.shapes import HttpError

FOR_EVER = timedelta(days=36500)
"""When a model goes that stays until it is told to go: the ollama command calls this Forever."""

GOING = timedelta(seconds=1)
"""A time in the past: the ollama command calls this Stopping."""

NEVER = datetime(1, 1, 1, tzinfo=UTC)

_LOADED = (State.READY, State.DRAINING, State.STOPPING, State.KILLING)


# Names ---------------------------------------------------------------------------------------------------------------


def ways(model: Model) -> tuple[Model, ...]:
    """By which engines a model may be served, in the order of its configuration."""
    return (model, *model.alternatives)


def is_ollamas(model: Model) -> bool:
    return any(way.engine == OLLAMA for way in ways(model))


def ollama_name(model: Model) -> str:
    """What Ollama calls a configured model."""
    way = next((way for way in ways(model) if way.engine == OLLAMA), model)
    return way.settings.ollama_name or model.name


def find(engine: Engine, name: str, exchange: Exchange, default: str = "") -> str:
    """The configured name of the model that a client of Ollama means. Raises HttpError, in Ollama's words."""
    if not name:
        raise HttpError(400, "invalid_request", "model is required")
    found = _find(engine, name, exchange, default)
    exchange.check_model(found)
    exchange.model = found
    return found


def _find(engine: Engine, name: str, exchange: Exchange, default: str) -> str:
    for candidate in (name, name.removesuffix(LATEST)):
        try:
            if candidate in PLACEHOLDERS:
                return resolved(engine, candidate, default, lambda: exchange.allowed_models)
            return engine.resolve(candidate)
        except NoSuchModel as problem:
            missing = problem
    wanted = ollamas_own_name(name)
    for status in engine.snapshot().models:
        if is_ollamas(status.model) and ollamas_own_name(ollama_name(status.model)) == wanted:
            return status.model.name
    raise HttpError(404, "model_not_found", f"model '{name[:200]}' not found", hint=missing.hint) from None


# What is known of them ----------------------------------------------------------------------------------------------


class About:
    """One model, as Ollama tells of it. With its file's head it is told all; without it what the registry knows."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.model = known.model
        self.file = known.file

    @property
    def size_bytes(self) -> int:
        return self.known.size_bytes or self.model.size_bytes or 0

    @property
    def digest(self) -> str:
        """Its SHA-256 where a store has it; else what changes with the model, as Ollama's does: to hash the weights
        they would have to be read.
        """
        found = self.known.entry.found
        if found.digest:
            return found.digest
        facts = (self.model.name, self.model.engine, self.model.settings.file)
        stamp = (self.known.size_bytes, self.known.modified_s)
        return hashlib.sha256(repr((*facts, *stamp)).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def modified_at(self) -> str:
        modified_s = self.known.modified_s
        return rfc3339(NEVER if modified_s is None else datetime.fromtimestamp(modified_s, UTC))

    def value(self, name: str) -> Any:
        """One entry of the file's metadata, of those that its architecture has."""
        return None if self.file is None else self.file.values.get(f"{self.file.architecture}.{name}")

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.file.tensors) if self.file is not None else 0

    def details(self) -> dict[str, Any]:
        known = self.known
        lengths = {"context_length": known.trained_context, "embedding_length": self.value("embedding_length")}
        counted = human_number(self.parameters) if self.parameters else known.parameters
        return {
            "parent_model": "",
            "format": known.format if known.format in ("gguf", "safetensors") else "",
            "family": known.architecture,
            "families": [known.architecture] if known.architecture else None,
            "parameter_size": known.entry.found.parameters or counted,
            "quantization_level": known.quantization,
        } | {name: number for name, number in lengths.items() if isinstance(number, int)}

    def capabilities(self) -> list[str]:
        if self.known.purpose is Purpose.EMBEDDING:
            return ["embedding"]
        if self.known.purpose is not Purpose.COMPLETION:
            return []
        found = ["completion"]
        if self.known.tools:
            found.append("tools")
        values: Mapping[str, Any] = self.file.values if self.file is not None else {}
        if any(f"tokenizer.ggml.{name}_token_id" in values for name in ("fim_pre", "prefix")):
            found.append("insert")
        if self.model.settings.mmproj:
            found.append("vision")
        template = self.known.template
        if "enable_thinking" in template or "<think>" in template or "reasoning_content" in template:
            found.append("thinking")
        return found

    def tag(self) -> dict[str, Any]:
        """One entry of /api/tags."""
        name = listed_name(self.model.name)
        return {
            "name": name,
            "model": name,
            "modified_at": self.modified_at,
            "size": self.size_bytes,
            "digest": self.digest,
            "details": self.details(),
            "capabilities": self.capabilities(),
        }

    def show(self) -> dict[str, Any]:
        """/api/show."""
        settings, file = self.model.settings, self.file
        values = {} if file is None else dict(file.values)
        template = settings.chat_template or str(values.pop("tokenizer.chat_template", ""))
        if file is not None:
            values["general.architecture"] = file.architecture
            values["general.parameter_count"] = self.parameters
        parameters = "" if settings.context is None else f"num_ctx {settings.context}"
        lines = [f"# {self.model.name}, as gpud has it", f"FROM {settings.file or self.model.name}"]
        lines += [f"PARAMETER {parameters}"] if parameters else []
        told = {
            "modelfile": "\n".join(lines) + "\n",
            "parameters": parameters,
            "template": template,
            "details": self.details(),
            "model_info": values,
            "capabilities": self.capabilities(),
            "modified_at": self.modified_at,
        }
        license_text = values.get("general.license")
        return told | ({"license": license_text} if isinstance(license_text, str) else {})


def human_number(number: int) -> str:
    """8.0B, 134.52M, as Ollama writes how many parameters a model has."""
    for unit, letter, places in ((1_000_000_000, "B", 1), (1_000_000, "M", 2), (1_000, "K", 0)):
        if number >= unit:
            return f"{number // unit}{letter}" if number % unit == 0 else f"{number / unit:.{places}f}{letter}"
    return str(number)


# What is loaded ------------------------------------------------------------------------------------------------------


def is_loaded(status: ModelStatus) -> bool:
    return status.state in _LOADED


def running(status: ModelStatus, about: About, snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    """One entry of /api/ps."""
    name = listed_name(status.model.name)
    total = sum(size for _, size in status.shares) or status.need_bytes
    on_gpu = sum(size for device, size in status.shares if device != HOST)
    if status.used_bytes and total:
        total, on_gpu = status.used_bytes, round(on_gpu * status.used_bytes / total)
    return {
        "name": name,
        "model": name,
        "size": total,
        "digest": about.digest,
        "details": about.details(),
        "expires_at": rfc3339(_expires(status, snapshot, now)),
        "size_vram": on_gpu,
        "context_length": status.model.settings.context or about.known.trained_context or 0,
    }


def _expires(status: ModelStatus, snapshot: Snapshot, now: datetime) -> datetime:
    if status.state is not State.READY:
        return now - GOING
    if status.unload_at_s is not None:
        return now + timedelta(seconds=max(0.0, status.unload_at_s - snapshot.now_s))
    # It works, and its time begins when it is done; or something keeps it.
    if status.in_flight and not status.model.pinned and status.idle_timeout_s > 0:
        return now + timedelta(seconds=status.idle_timeout_s)
    return now + FOR_EVER


def rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ").zfill(27)
