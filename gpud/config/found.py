"""What a model that was found on disk is loaded with: what the configuration says, over what is right for its kind."""

from collections import OrderedDict
from collections.abc import Sequence

from gpud.config.kinds import Reading, Wrong
from gpud.config.models import Models
from gpud.config.sections import Found as Given
from gpud.config.sections import Values
from gpud.config.source import Scalar, Where
from gpud.core.catalogue import Entry, Format, Purpose
from gpud.core.facts import Model
from gpud.core.record import replace

LEAST_CONTEXT = 2048
"""A model is rather loaded with so few tokens than not at all."""

UNKNOWN_CONTEXT = 4096
"""Of a model that does not say what it was trained for."""

KINDS_KEPT = 64

_NOWHERE = Where("the registry", 0)


class FoundModels:
    """Makes models of entries. Thousands may differ in nothing but their files: all else is worked out once."""

    def __init__(self, models: Models, most_context: int) -> None:
        self._models = models
        self._most_context = most_context
        self._kinds: OrderedDict[tuple[object, ...], Model] = OrderedDict()

    def make(self, entry: Entry, engines: Sequence[str]) -> Model | str:
        """``engines`` are those that are there. For any one thread at a time. A text says why there is no way."""
        found = entry.found
        kind = (
            *(found.format, found.purpose, bool(found.ollama_name), self._context(entry), tuple(engines)),
            *(bool(found.mmproj), bool(found.draft_file), self._models.matching(entry.name)),
        )
        model = self._kinds.get(kind)
        if model is None:
            try:
                model = self._model(entry, engines)
            except Wrong as wrong:
                return str(wrong)
            self._kinds[kind] = model
            if len(self._kinds) > KINDS_KEPT:
                self._kinds.popitem(last=False)
        others = tuple(self._with_files(other, entry, found.ollama_name) for other in model.alternatives)
        return replace(self._with_files(model, entry, found.ollama_name), alternatives=others)

    def _with_files(self, model: Model, entry: Entry, ollama_name: str) -> Model:
        settings, found = model.settings, entry.found
        if settings.file:
            settings = replace(
                settings,
                file=found.path,
                mmproj=found.mmproj if settings.mmproj == _MMPROJ else settings.mmproj,
                draft_file=found.draft_file if settings.draft_file == _DRAFT else settings.draft_file,
            )
        elif settings.ollama_name:
            settings = replace(settings, ollama_name=ollama_name)
        return replace(model, name=entry.name, settings=settings)

    def _context(self, entry: Entry) -> int:
        return min(entry.found.trained_context or UNKNOWN_CONTEXT, self._most_context)

    def _model(self, entry: Entry, engines: Sequence[str]) -> Model:
        found = entry.found
        own: Values = {}
        if found.format in (Format.GGUF, Format.SAFETENSORS):
            own["file"] = _given(_FILES[found.format])
        if found.ollama_name:
            own["model"] = _given(found.ollama_name)
        context = self._context(entry)
        layer: Values = {"context": _given(context)}
        if found.purpose is Purpose.EMBEDDING:
            layer["embeddings"] = _given(True)
        elif found.purpose is Purpose.RERANKING:
            layer["reranking"] = _given(True)
        else:
            layer["least_context"] = _given(min(LEAST_CONTEXT, context))
        if found.mmproj:
            layer["mmproj"] = _given(_MMPROJ)
        if found.draft_file:
            layer["draft_file"] = _given(_DRAFT)
        reading = Reading([], known_engines=None)
        model = self._models.reading_into(reading).of_found(entry.name, own, layer, engines)
        if reading.problems:
            raise Wrong(reading.problems[0].text)
        return model


# Stand for the files of whichever model it will be: nothing lies there.
_FILES = {Format.GGUF: "/found.gguf", Format.SAFETENSORS: "/found"}
_MMPROJ = "/found-mmproj.gguf"
_DRAFT = "/found-draft.gguf"


def _given(value: object) -> Given:
    return Given(value, _NOWHERE, Scalar(_NOWHERE, str(value)))
