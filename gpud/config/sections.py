"""How a map of keys is read: what a key is, what a section is, and the messages for what does not belong there."""

from collections.abc import Callable
from typing import Any

from gpud.config.kinds import BROKEN, Kind, Reading, Wrong, nearest
from gpud.config.source import Items, Node, Scalar, Table, Where, shown
from gpud.core.engines import BY_NAME, ENGINES, Family, of_family
from gpud.core.record import Record, replace

LLAMA = frozenset(of_family(Family.LLAMA_CPP))
LLAMA_SERVERS = frozenset(kind.name for kind in ENGINES if kind.all_flags)
OLLAMA = frozenset(of_family(Family.OLLAMA))
CUSTOM = frozenset(of_family(Family.CUSTOM))
VLLM = frozenset({"vllm"})
HUB = frozenset(of_family(Family.HUB))
"""Those that serve models as Hugging Face lays them out."""


class Key(Record):
    """One key.

    ``default`` is written as in a file; ``None`` means unset, and then null is allowed and says so explicitly.
    ``absent`` says what happens then. ``engines`` are the built-in engines that use the key (``None``: all; engines
    from outside packages may use every key), ``default_engines`` those for which the default holds. ``shared``: it
    makes sense in ``defaults`` too. ``field`` is the record's field where that has another name, ``model_field`` says
    that it is one of Model rather than of EngineSettings. ``also`` are names that other programs use for it.
    ``example`` is for the manual.
    """

    name: str
    kind: Kind
    says: str
    default: str | None = None
    absent: str = ""
    required: bool = False
    engines: frozenset[str] | None = None
    default_engines: frozenset[str] | None = None
    shared: bool = False
    field: str = ""
    model_field: bool = False
    also: tuple[str, ...] = ()
    example: str = ""

    def default_value(self, reading: Reading) -> Any:
        assert self.default is not None
        nowhere = Where("", 0)
        if self.default.startswith("["):
            items = tuple(Scalar(nowhere, one) for one in self.default[1:-1].split(", ") if one)
            # Nobody wrote it: that an engine in it is not installed is no mistake of theirs.
            return self.kind.read(Items(nowhere, items, len(items)), self.name, replace(reading, known_engines=None))
        return self.kind.read(Scalar(nowhere, self.default), self.name, reading)

    def used_by(self, engine: str) -> bool:
        return self.engines is None or engine in self.engines or engine not in BY_NAME

    def allowed_text(self) -> str:
        default = f" (default {self.default})" if self.default is not None else ""
        return f"allowed: {self.kind.allowed}{default}"


class Found(Record):
    """A value that was given: ``value`` is None for an explicit null, BROKEN for one that was refused."""

    value: Any
    where: Where
    node: Node


Values = dict[str, Found]


class Section:
    """A map with known keys. Reads to :data:`Values`, and finds every problem inside before it returns."""

    allowed = "a map"

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self.keys = keys

    def read(self, node: Node, path: str, reading: Reading) -> Values:
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, Table):
            raise Wrong(f"is not a map; its keys are: {' '.join(key.name for key in self.keys)}")
        by_name = {key.name: key for key in self.keys}
        values: Values = {}
        for name, entry in node.entries.items():
            full = f"{path}.{name}" if path else name
            if name not in by_name:
                reading.wrong(
                    entry.where, full, f"{shown(entry.node, name)}: unknown key{self._suggest(name, reading)}"
                )
                continue
            values[name] = Found(
                read_key(by_name[name], entry.node, full, entry.where, reading), entry.where, entry.node
            )
        return values

    def _suggest(self, name: str, reading: Reading) -> str:
        names = [key.name for key in self.keys]
        plain = name.lower().replace("-", "_")
        for key in self.keys:
            if plain == key.name or plain in key.also:
                return f'; did you mean "{key.name}"?'
        if near := nearest(plain, names):
            return near
        if places := reading.places(name):
            return f'; "{name}" belongs in {" or ".join(places[:3])}'
        if ours := reading.ours(plain):
            return f'; did you mean "{ours}"?'
        return f"; allowed: {' '.join(names)}" if names else "; no keys are allowed here"

    def write(self, value: Any) -> object:
        return value


class Named:
    """A map whose keys are names that the user chooses, each with the same section."""

    allowed = "a map of names to maps"

    def __init__(self, section: Section, what: str, check_name: Callable[[str, Reading], None]) -> None:
        self.section = section
        self.what = what
        self.check_name = check_name

    def read(self, node: Node, path: str, reading: Reading) -> Values:
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, Table):
            raise Wrong(f"is not a map of {self.what} names")
        values: Values = {}
        for name, entry in node.entries.items():
            full = f"{path}.{name}"
            try:
                self.check_name(name, reading)
            except Wrong as wrong:
                reading.wrong(entry.where, full, f'the name "{name[:140]}" {wrong}')
                continue
            value: Any = BROKEN
            if isinstance(entry.node, Table):
                value = self.section.read(entry.node, full, reading)
            else:
                keys = " ".join(key.name for key in self.section.keys if key.required) or self.section.keys[0].name
                given = "has no settings" if _is_null(entry.node) else f"{shown(entry.node)}: is not a map"
                reading.wrong(entry.where, full, f"{given}; write its keys below it, indented, first: {keys}")
            values[name] = Found(value, entry.where, entry.node)
        return values

    def write(self, value: Any) -> object:
        return value


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def read_key(key: Key, node: Node, path: str, where: Where, reading: Reading) -> Any:
    """The value of one key; a problem is noted, not raised."""
    if _is_null(node) and not isinstance(key.kind, (Section, Named)):
        if key.default is None and not key.required:
            return None
        default = f" (default {key.default})" if key.default is not None else ""
        reading.wrong(where, path, f"has no value; write one or remove the line{default}; allowed: {key.kind.allowed}")
        return BROKEN
    try:
        return key.kind.read(node, path, reading)
    except Wrong as wrong:
        reading.wrong(where, path, f"{shown(node, key.name)}: {wrong}; {key.allowed_text()}")
        return BROKEN
