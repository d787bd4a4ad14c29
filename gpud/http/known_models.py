"""What is known of models beside how they stand, for every door: from the registry, and of files that nobody has looked
at yet from their heads. It asks no engine, and changes nothing.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from gpud.core.catalogue import Entry, Purpose
from gpud.core.engines import Family, family, of_family
from gpud.core.errors import BackendFailed
from gpud.core.facts import Model
from gpud.core.modelfile import ModelFile
from gpud.core.ports import Files
from gpud.core.record import Record, replace
from gpud.engine import Engine
from gpud.engine.shelf import unseen

LLAMA_CPP_ENGINES = of_family(Family.LLAMA_CPP)
"""They read GGUF, and nothing else."""

LOOK_S = 5.0
"""How long a look at the disk may take: after it models are told of without what only their files say."""

SINGLY = 500
"""So many models are looked up by name; of more than that all are read."""


class Known(Record):
    """One model. ``file`` is its head, where that was read; ``problem`` says why it could not be. Empty and None are
    what is not known.
    """

    model: Model
    entry: Entry
    file: ModelFile | None = None
    quantization: str = ""
    problem: str = ""
    modified_s: float | None = None

    @property
    def size_bytes(self) -> int:
        """Of its files."""
        return self.entry.found.size_bytes or (0 if self.file is None else self.file.size_bytes)

    @property
    def architecture(self) -> str:
        return self.entry.found.architecture or ("" if self.file is None else self.file.architecture)

    @property
    def parameters(self) -> str:
        """As people say it: ``8.0B``."""
        return self.entry.found.parameters or ("" if self.file is None else parameters_of(self.file))

    @property
    def trained_context(self) -> int | None:
        found = self.entry.found.trained_context
        if found is not None or self.file is None:
            return found
        value = self.file.values.get(f"{self.file.architecture}.context_length")
        return value if isinstance(value, int) else None

    @property
    def purpose(self) -> Purpose:
        """As it is loaded: the configuration may have an embedding made of any model."""
        if self.model.settings.embeddings:
            return Purpose.EMBEDDING
        return Purpose.RERANKING if self.model.settings.reranking else self.entry.found.purpose

    @property
    def template(self) -> str:
        """The chat template, where the file was read."""
        text = self.file.values.get("tokenizer.chat_template") if self.file is not None else None
        return text if isinstance(text, str) else ""

    @property
    def tools(self) -> bool:
        return self.entry.found.tools or "tools" in self.template or "tool_calls" in self.template

    @property
    def format(self) -> str:
        """``gguf``, ``safetensors``, ``ollama``, ``other``: by what is given to its engine."""
        return format_of(self.model)


class KnownModels:
    """``quantization`` says how the model of a file is quantized. Without ``files`` only the registry is asked."""

    def __init__(
        self, engine: Engine, files: Files | None = None, quantization: Callable[[ModelFile], str] | None = None
    ) -> None:
        self._engine = engine
        self._files = files
        self._quantization = quantization

    async def of(self, models: Sequence[Model], *, heads: bool = False) -> list[Known]:
        """What is known of each, in their order. ``heads``: with their files' heads, which may be large."""
        names = [model.name for model in models] if len(models) <= SINGLY else None
        entries = {entry.name: entry for entry in await self._engine.library.entries(names)}
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._look, models, entries, heads), LOOK_S)
        except TimeoutError:
            return [_known(model, entries) for model in models]

    def _look(self, models: Sequence[Model], entries: Mapping[str, Entry], heads: bool) -> list[Known]:
        """For a thread: a disk may be slow."""
        return [self._with_file(_known(model, entries), heads=heads) for model in models]

    def _with_file(self, known: Known, *, heads: bool) -> Known:
        path = known.model.settings.file
        if not path:
            return known
        with suppress(OSError):  # What is wrong with it is told by whoever reads it.
            known = replace(known, modified_s=os.stat(path).st_mtime)  # noqa: PTH116 - a path is not wanted
        if self._files is None or format_of(known.model) != "gguf" or (known.entry.found.stamp and not heads):
            return known
        try:
            file = self._files.read(path)
        except BackendFailed as problem:
            return replace(known, problem=problem.text)
        quantization = known.quantization
        if not quantization and self._quantization is not None:
            quantization = self._quantization(file)
        return replace(known, file=file, quantization=quantization)


def _known(model: Model, entries: Mapping[str, Entry]) -> Known:
    # One that has gone meanwhile is told of once more, without what is known of it.
    entry = entries.get(model.name) or unseen(model, configured=False)
    return Known(model, entry, quantization=entry.found.quantization)


def format_of(model: Model, file: str | None = None) -> str:
    """``file``: instead of the model's own."""
    file = model.settings.file if file is None else file
    if family(model.engine) is Family.OLLAMA:
        return "ollama"
    # Ollama calls its files after their digest.
    if file.endswith(".gguf") or (file and model.engine in LLAMA_CPP_ENGINES):
        return "gguf"
    return "safetensors" if family(model.engine) is Family.HUB else "other"


def parameters_of(file: ModelFile) -> str:
    """As people say it (``8.0B``): what the file says of itself, else counted."""
    label = file.values.get("general.size_label")
    if isinstance(label, str) and label:
        return label
    count = 0
    for tensor in file.tensors:
        size = 1
        for dimension in tensor.shape:
            size *= dimension
        count += size
    for unit, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count) if count else ""
