"""Fills in llama-swap's macros: a model's before those of all, macros in macros, variables; within bounds."""

import re
from collections.abc import Iterable, Mapping

from gpud.config.source import Entry, Items, Node, Scalar, Table, Where
from gpud.core.record import Struct, field
from gpud.importing.reading import unreadable
from gpud.importing.report import Draft
from gpud.importing.secrets import names_secret

MAX_EXPANDED = 1 << 16
"""Characters that one value may have once its macros are filled in: a command line is shorter by far."""

MAX_IN_ALL = 1 << 20
"""Characters that all values of a file may have then."""

MAX_DEPTH = 40
"""Macros in macros in macros: more than these are a mistake, or malice."""

PORT = "${PORT}"
_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]{1,64}|env\.[A-Za-z_][A-Za-z0-9_]*)\}")
_RESERVED = ("PORT", "PID", "MODEL_ID")


class Macros(Struct):
    """The macros that hold for one model. ``${PORT}`` and ``${PID}`` stay: they are known when something is started."""

    draft: Draft
    known: Mapping[str, Scalar]
    model: str = ""
    left: list[int] = field(default_factory=lambda: [MAX_IN_ALL])
    _filled: dict[str, str] = field(default_factory=dict)

    def of_model(self, model: str, own: Mapping[str, Scalar]) -> "Macros":
        return Macros(self.draft, {**self.known, **own}, model, self.left)

    def expand(self, node: Scalar, setting: str) -> str:
        """The text with its macros filled in. Raises ConfigInvalid for one that is not there, or is part of itself."""
        return self._expand(node.text, node.where, setting, ())

    def _expand(self, text: str, where: Where, setting: str, within: tuple[str, ...]) -> str:
        parts: list[str] = []
        length = position = 0
        for match in _MACRO.finditer(text):
            filled = self._value(match[1], where, setting, within)
            parts += [text[position : match.start()], filled]
            length += match.start() - position + len(filled)
            position = match.end()
            if length > MAX_EXPANDED:
                raise unreadable(
                    where, f"{setting}: has more than {MAX_EXPANDED:,} characters with its macros filled in"
                )
        self.left[0] -= length
        if self.left[0] < 0:
            raise unreadable(where, f"{setting}: macros make more than {MAX_IN_ALL:,} characters of this file by here")
        return "".join([*parts, text[position:]])

    def _value(self, name: str, where: Where, setting: str, within: tuple[str, ...]) -> str:
        if name == "MODEL_ID" and self.model:
            return self.model
        if name in _RESERVED:
            return f"${{{name}}}"
        if name.startswith("env."):
            return self._variable(name.removeprefix("env."), where, setting)
        if name in within:
            circle = " → ".join([*within[within.index(name) :], name])
            raise unreadable(where, f"{setting}: the macro {name} is part of itself ({circle}); break the circle")
        found = self.known.get(name)
        if found is None:
            from difflib import get_close_matches

            near = get_close_matches(name, list(self.known), 1, 0.6)
            hint = f"; did you mean ${{{near[0]}}}?" if near else ""
            raise unreadable(where, f"{setting}: there is no macro {name}{hint}")
        if len(within) >= MAX_DEPTH:
            raise unreadable(where, f"{setting}: macros stand in macros more than {MAX_DEPTH} deep")
        if name not in self._filled:
            self._filled[name] = self._expand(found.text, found.where, setting, (*within, name))
        return self._filled[name]

    def _variable(self, name: str, where: Where, setting: str) -> str:
        value = self.draft.given.variables.get(name)
        if value is None:
            hint = "give its variables with --environment FILE, or set it where gpudctl is run"
            raise unreadable(where, f"{setting}: the variable {name} is not set here; {hint}")
        if names_secret(name):
            self.draft.secrets.hide(value)
        return value

    def expand_node(self, node: Node, setting: str) -> Node:
        """A node with all macros in its values filled in."""
        if isinstance(node, Scalar):
            return Scalar(node.where, self.expand(node, setting), node.plain)
        if isinstance(node, Items):
            return Items(node.where, tuple(self.expand_node(one, setting) for one in node.nodes), node.weight)
        entries = {key: Entry(one.where, self.expand_node(one.node, setting)) for key, one in node.entries.items()}
        return Table(node.where, entries, node.weight)


def read_macros(node: Node | None, setting: str) -> dict[str, Scalar]:
    """The macros of a section. Raises ConfigInvalid for what cannot be one."""
    if node is None:
        return {}
    return {name: _checked(name, where, value, setting) for name, where, value in _listed(node, setting)}


def _listed(node: Node, setting: str) -> Iterable[tuple[str, Where, Node]]:
    """They are a map, or a list of maps with one key each."""
    if isinstance(node, Table):
        return [(name, entry.where, entry.node) for name, entry in node.entries.items()]
    if isinstance(node, Items) and all(isinstance(one, Table) for one in node.nodes):
        tables = [one for one in node.nodes if isinstance(one, Table)]
        return [(name, entry.where, entry.node) for one in tables for name, entry in one.entries.items()]
    raise unreadable(node.where, f"{setting}: macros are a map of names to values")


def _checked(name: str, where: Where, node: Node, setting: str) -> Scalar:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name):
        raise unreadable(where, f"{setting}: the name of a macro is at most 63 of A-Z a-z 0-9 _ -")
    if name in _RESERVED:
        raise unreadable(where, f"{setting}.{name}: the name belongs to llama-swap itself; choose another")
    if isinstance(node, Scalar):
        return node
    # A map can stand for a whole value only, and those are for filters, which are not carried over.
    return Scalar(node.where, "", plain=False)
