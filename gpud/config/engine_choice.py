"""The kinds of values that name engines: which one serves a model, which ones may, and in what order they are tried."""

from collections.abc import Mapping
from typing import Any

from gpud.config.kinds import BROKEN, Reading, Wrong, text_of
from gpud.config.sections import Section, Values
from gpud.config.source import Items, Node, Scalar, Table, shown
from gpud.config.texts import OTHER_NAMES, check_engine
from gpud.core.engines import BUILT_IN
from gpud.core.record import Record, field

AUTO = "auto"


class Chosen(Record):
    """The engines of a model, in the order in which they are tried; none: by ``scheduler.backend_order``.

    ``own`` has the keys that were given for one of them alone.
    """

    names: tuple[str, ...]
    own: Mapping[str, Values] = field(default_factory=dict)


def _name(node: Node, reading: Reading) -> str:
    text = text_of(node)
    text = OTHER_NAMES.get(text, text)
    check_engine(text, reading)
    return text


def _names(node: Items, path: str, reading: Reading) -> tuple[str, ...] | None:
    """What is wrong with one of them is noted; ``None`` then."""
    if not node.nodes:
        raise Wrong("is empty")
    good: list[str] = []
    for index, item in enumerate(node.nodes):
        try:
            name = _name(item, reading)
            if name in good:
                raise Wrong("stands here twice")
            good.append(name)
        except Wrong as wrong:
            reading.wrong(item.where, f"{path}[{index}]", f"{shown(item)}: {wrong}")
    return tuple(good) if len(good) == len(node.nodes) else None


class EngineOrder:
    """A list of engines, each once."""

    allowed: str = "a list of engines, each once"

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if not isinstance(node, Items):
            raise Wrong("is not a list")
        names = _names(node, path, reading)
        return BROKEN if names is None else names

    def write(self, value: Any) -> object:
        return list(value)


class EngineChoice:
    """One engine, a list of them, a map of each to the keys that hold for it alone, or ``auto``."""

    allowed: str = (
        f"{' '.join(BUILT_IN)}, or what an installed package adds; "
        "a list of them; a map of them to keys for each alone; or auto"
    )

    def __init__(self, section: Section) -> None:
        self.section = section

    def read(self, node: Node, path: str, reading: Reading) -> Any:
        if isinstance(node, Scalar):
            return Chosen(()) if node.text == AUTO else Chosen((_name(node, reading),))
        if isinstance(node, Items):
            names = _names(node, path, reading)
            return BROKEN if names is None else Chosen(names)
        return self._map(node, path, reading)

    def _map(self, node: Table, path: str, reading: Reading) -> Any:
        if not node.entries:
            raise Wrong("is empty")
        own: dict[str, Values] = {}
        for text, entry in node.entries.items():
            full = f"{path}.{text}"
            try:
                name = _name(Scalar(entry.where, text), reading)
                if name in own:
                    raise Wrong("stands here twice")
                own[name] = self.section.read(entry.node, full, reading)
            except Wrong as wrong:
                reading.wrong(entry.where, full, str(wrong))
        return Chosen(tuple(own), own) if len(own) == len(node.entries) else BROKEN

    def write(self, value: Any) -> object:
        return value
