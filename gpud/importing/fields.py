"""Takes a map apart key by key: what has the wrong type, and what nobody asked for, is noted and never guessed."""

import re

from gpud.config.kinds import DECIMAL
from gpud.config.source import Node, Scalar, Table, Where
from gpud.importing.report import Draft, shown
from gpud.importing.secrets import names_secret

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Fields:
    """The keys of one map. ``path`` is what a note calls it."""

    def __init__(self, draft: Draft, node: Table, path: str = "") -> None:
        self.draft = draft
        self.where = node.where
        self.path = path
        self._entries = node.entries
        self._used: set[str] = set()

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return key in self._entries

    def at(self, key: str) -> Where:
        return self._entries[key].where if key in self._entries else self.where

    def node(self, key: str) -> Node | None:
        """A value whatever it is; null counts as absent."""
        self._used.add(key)
        entry = self._entries.get(key)
        if entry is None or (isinstance(entry.node, Scalar) and entry.node.is_null and entry.node.plain):
            return None
        return entry.node

    def wrong(self, key: str, wanted: str) -> None:
        node = self._entries[key].node
        if isinstance(node, Scalar):
            found = "a secret" if names_secret(key) else shown(node.text)
        else:
            found = "a map" if isinstance(node, Table) else "a list"
        self.draft.leave(self.at(key), self.name(key), f"it is {found}, and {wanted} is expected", "mend it")

    def text(self, key: str) -> str | None:
        node = self.node(key)
        if node is None or isinstance(node, Scalar):
            return None if node is None else node.text
        self.wrong(key, "one value")
        return None

    def whole(self, key: str) -> int | None:
        """A whole number, also one that is written as text or as 4096.0."""
        number = self.number(key)
        if number is None:
            return None
        if number != int(number):
            self.wrong(key, "a whole number")
            return None
        return int(number)

    def number(self, key: str) -> float | None:
        text = self.text(key)
        if text is None:
            return None
        if not re.fullmatch(f"-?{DECIMAL}", text.strip()):
            self.wrong(key, "a number")
            return None
        value = float(text)
        if abs(value) > 1e18:
            self.wrong(key, "a number below 1e18")
            return None
        return value

    def flag(self, key: str) -> bool | None:
        text = self.text(key)
        if text is None:
            return None
        if text.lower() not in _WORDS:
            self.wrong(key, "true or false")
            return None
        return _WORDS[text.lower()]

    def texts(self, key: str) -> list[tuple[Where, str]]:
        """A list of single values; one alone counts as a list of one."""
        node = self.node(key)
        if node is None:
            return []
        if isinstance(node, Scalar):
            return [(node.where, node.text)]
        if isinstance(node, Table):
            self.wrong(key, "a list")
            return []
        good = []
        for item in node.nodes:
            if isinstance(item, Scalar):
                good.append((item.where, item.text))
            else:
                text = "one of its items is no single value"
                self.draft.leave(item.where, self.name(key), text, "mend it")
        return good

    def table(self, key: str) -> "Fields | None":
        node = self.node(key)
        if node is None:
            return None
        if isinstance(node, Table):
            return Fields(self.draft, node, self.name(key))
        self.wrong(key, "a map")
        return None

    def tables(self, key: str) -> "list[tuple[str, Fields]]":
        """A map of names to maps."""
        inner = self.table(key)
        if inner is None:
            return []
        return [(name, fields) for name in inner.names() if (fields := inner.table(name)) is not None]

    def names(self) -> list[str]:
        return list(self._entries)

    def left(self) -> list[tuple[str, Where, Node]]:
        """What nobody asked for so far: name, place, value."""
        return [
            (self.name(key), entry.where, entry.node) for key, entry in self._entries.items() if key not in self._used
        ]

    def drop(self, key: str, why: str, instead: str = "") -> None:
        """Note a key that has no counterpart, if it is there."""
        if self.node(key) is not None:
            self.draft.leave(self.at(key), self.name(key), why, instead)

    def spare(self, key: str, why: str) -> None:
        """Note a key that gpud has no need of, if it is there."""
        if self.node(key) is not None:
            self.draft.spare(self.at(key), self.name(key), why)

    def drop_left(self, why: str) -> None:
        for name, where, _ in self.left():
            self.draft.leave(where, name, why)
