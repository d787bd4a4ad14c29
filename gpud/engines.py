"""Which engines one gpud drives: each one's backend is made when it is first needed, and kept as long as its options
stay the same. The part of the composition that is about engines; decides nothing about models.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from gpud import backends
from gpud.backends import EngineOptions
from gpud.config import Config
from gpud.core.engines import BUILT_IN, BY_NAME
from gpud.core.errors import BackendFailed, ConfigInvalid
from gpud.core.facts import Model
from gpud.core.ports import Backend, Launcher
from gpud.core.record import replace


class KnownEngines(Collection[str]):
    """The names that ``engine:`` may have; other packages are asked only for a name that gpud does not bring."""

    def __contains__(self, name: object) -> bool:
        if name in backends.BACKENDS:
            return True
        return name in self._outside()

    def __iter__(self) -> Iterator[str]:
        yield from BUILT_IN
        yield from self._outside()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @staticmethod
    def _outside() -> Collection[str]:
        from importlib.metadata import entry_points

        return entry_points(group=backends.GROUP).names


class Engines(Mapping[str, Backend]):
    """The backends of one configuration. To walk through them is to walk through those that were made."""

    def __init__(self, wanted: Config, launcher: Launcher, *, service: bool, before: "Engines | None" = None) -> None:
        """Those of ``before`` whose options have not changed are kept as they are. Raises ConfigInvalid when one that a
        configured model uses cannot be made.
        """
        self._wanted = wanted
        self._launcher = launcher
        self._service = service
        self._before = before
        self._made: dict[str, Backend] = {}
        try:
            for name in dict.fromkeys(one.engine for model in wanted.models.values() for one in _ways(model)):
                self._make(name)
        except BackendFailed as error:
            raise ConfigInvalid([error.text]) from error
        if before is not None:
            for name in before:
                # Its engines may run: it must not be retired only because nobody has asked for it since.
                self._make(name)
            before._before = None

    def __getitem__(self, name: str) -> Backend:
        if name not in self._made and name not in backends.BACKENDS:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._made or name in backends.BACKENDS

    def ollama(self) -> Backend | None:
        """Where there is an Ollama, whether or not a model of its is configured."""
        name = "ollama"
        return self[name] if name in self._made or is_here(name, self.options(name)) else None

    def options(self, name: str) -> EngineOptions:
        return engine_options(self._wanted, name, service=self._service)

    def here(self) -> tuple[str, ...]:
        """Those in the order of the configuration that can be started on this machine. Nothing is started for that."""
        return tuple(
            name for name in self._wanted.backend_order if name in self._made or is_here(name, self.options(name))
        )

    def _make(self, name: str) -> Backend:
        made = self._made.get(name)
        if made is None:
            before = self._before
            if before is not None and name in before._made and before.options(name) == self.options(name):
                made = before._made[name]
            else:
                made = backends.make(name, self.options(name), self._launcher)
            self._made[name] = made
        return made


def _ways(model: Model) -> tuple[Model, ...]:
    return (model, *model.alternatives)


def is_here(name: str, options: EngineOptions) -> bool:
    """Whether an engine that nobody configured could serve a model that was found."""
    if options.url:
        return True
    kind = BY_NAME.get(name)
    if kind is not None and kind.package:
        return bool(options.python) or find_spec(kind.package) is not None
    return kind is not None and bool(kind.program) and shutil.which(options.binary or kind.program) is not None


def engine_options(wanted: Config, name: str, *, service: bool) -> EngineOptions:
    """What a backend gets. The Ollama of the machine's own gpud keeps its models where the machine's models are."""
    engine = wanted.engines.get(name)
    options = EngineOptions()
    if engine is not None:
        options = EngineOptions(
            binary=engine.binary,
            environment=engine.environment,
            url=engine.url,
            host=engine.host,
            port=engine.port,
            models_dir=engine.models_dir,
            python=engine.python,
            keep_running=engine.keep_running,
        )
    said = options.url or options.models_dir or os.environ.get("OLLAMA_MODELS")
    if name == "ollama" and service and not said:
        return replace(options, models_dir=str(Path(wanted.base_directory) / "ollama" / "models"))
    return options
