"""The values of one section as they were given, with the defaults behind them; and what is said of unused ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpud.config.kinds import BROKEN, Reading
from gpud.config.sections import Found, Key, Section, Values
from gpud.config.source import shown
from gpud.core.engines import BUILT_IN
from gpud.core.record import Struct


class Unset:
    """Stands for a value that nobody gave and that has no default."""


UNSET = Unset()


class Given:
    """The values of one section with its defaults behind them; a refused value reads as its default."""

    def __init__(self, section: Section, values: Values, reading: Reading, path: str = "") -> None:
        self._section = section
        self._reading = reading
        self._keys = {key.name: key for key in section.keys}
        self.values = values
        self.path = path

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        return None if value is UNSET else value

    def get(self, name: str) -> Any:
        found = self.values.get(name)
        if found is not None and found.value is not None and found.value is not BROKEN:
            return found.value
        key = self._keys[name]
        return UNSET if key.default is None else key.default_value(self._reading)

    def is_refused(self, *names: str) -> bool:
        """Whether one of these keys has a value that was refused: what it is compared with is not to blame then."""
        return any(name in self.values and self.values[name].value is BROKEN for name in names)

    def section(self, name: str) -> "Given":
        kind = self._keys[name].kind
        found = self.values.get(name)
        values = found.value if found is not None and isinstance(found.value, dict) else {}
        section = kind if isinstance(kind, Section) else Section(())
        return Given(section, values, self._reading, f"{self.path}.{name}" if self.path else name)

    def fields(self, of: type[Struct] | None = None) -> dict[str, Any]:
        """What the record of this section is made with, or one of several; what is unset is left to the record."""
        pairs = ((key.field or key.name, self.get(key.name)) for key in self._section.keys)
        return {
            name: value for name, value in pairs if value is not UNSET and (of is None or name in of.__struct_fields__)
        }

    def given(self, *names: str) -> Found:
        """The first of these keys that was given: what a message about all of them points at."""
        return next(self.values[name] for name in names if name in self.values)


def unused(key: Key, found: Found, path: str, engines: Sequence[str], reading: Reading) -> None:
    """Note that a key was given that none of these engines takes."""
    if found.value is None:
        return
    users = " ".join(name for name in BUILT_IN if key.used_by(name))
    hints = {
        ("custom", "context"): "; put it into its command",
        ("custom", "extra_flags"): "; put them into its command",
        ("ollama", "environment"): "; all models share one server: set it under engines.ollama.environment",
        ("ollama", "file"): '; name the model in Ollama\'s store with "model"',
    }
    value = "a map" if key.name == "environment" else shown(found.node)
    hint = hints.get((engines[0], key.name), "; remove it") if len(engines) == 1 else "; remove it"
    whom = " or ".join(f'"{engine}"' for engine in engines)
    text = f"{value}: means nothing to the engine {whom} (only to: {users}){hint}"
    reading.wrong(found.where, f"{path}.{key.name}", text)


def is_given(values: Mapping[str, Found], name: str) -> bool:
    """True also for a value that was refused: it is not missing."""
    return name in values and values[name].value is not None


def is_good(found: Found | None) -> bool:
    return found is not None and found.value is not None and found.value is not BROKEN
