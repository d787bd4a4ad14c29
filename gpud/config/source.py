"""Turns YAML text into nodes that know their file and line, and lays one file over another.

It works on libyaml's event stream, not on Python values: a scalar keeps the text that was written (``on`` stays
``on``), duplicate keys are seen, and no input can make it recurse or grow without a bound.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from gpud.core.record import Record, Struct, field, same_without

# The C parser is twenty times faster; a PyYAML that was built without libyaml yields the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32

_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null", "map", "seq"))
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "WEBHOOK")
_NULLS = ("", "~", "null", "Null", "NULL")
_FLAG = r"(?i:true|false|yes|no|on|off)"
_NUMBER = r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?"


class Where(Record):
    """A place in a file, as it is printed: ``/etc/gpud/gpud.yaml:12``. Line 0 is the file as a whole.

    ``column`` is 0 where it is not known; whoever wants it prints it.
    """

    file: str
    line: int
    column: int = 0

    def __eq__(self, other: object) -> bool:
        return same_without(self, other, "column")

    def __hash__(self) -> int:
        return hash((self.file, self.line))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Problem(Record):
    """One thing that is wrong, and where."""

    where: Where
    text: str

    def __str__(self) -> str:
        """One line, and nothing that a terminal would obey: keys and values are quoted in it."""
        line = f"{self.where}: {self.text}"
        return line if line.isprintable() else "".join(map(_visible, line))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


class Scalar(Record):
    """One value as it was written. ``plain`` is False for what stood in quotes or in a block: that is always text."""

    where: Where
    text: str
    plain: bool = True

    weight = 1

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS

    @property
    def looks_like(self) -> str:
        """What YAML takes it for: ``null``, ``flag``, ``number`` or ``text``."""
        if self.is_null:
            return "null"
        if self.plain and re.fullmatch(_FLAG, self.text):
            return "flag"
        if self.plain and re.fullmatch(_NUMBER, self.text):
            return "number"
        return "text"


class Items(Record):
    """A list."""

    where: Where
    nodes: tuple["Node", ...]
    weight: int


class Entry(Record):
    """A key's value and the place of the key, which is what a message points at."""

    where: Where
    node: "Node"


class Table(Record):
    """A map. ``weight`` is the number of nodes in it with every alias written out."""

    where: Where
    entries: dict[str, Entry]
    weight: int


Node = Scalar | Items | Table


def is_secret(name: str) -> bool:
    """Whether a name says that its value is not for everybody's eyes."""
    return any(word in name.upper() for word in _SECRET_WORDS)


def shown(node: Node, name: str = "") -> str:
    """A value as a message quotes it: short, and without what is secret by ``name``, in a flag or in an address."""
    if isinstance(node, Table):
        return "a map"
    if isinstance(node, Items):
        return "a list"
    if node.is_null:
        return "nothing"
    if is_secret(name):
        return "a secret"
    text = re.sub(r"//[^/@\s]*@", "//…@", node.text)
    flag, equals, _ = text.partition("=")
    if equals and flag.startswith("-") and is_secret(flag):
        text = f"{flag}=…"
    text = text if len(text) <= 60 else text[:57] + "…"
    return text if node.looks_like in ("flag", "number") else f'"{text}"'


def overlay(base: Node, over: Node) -> Node:
    """``over`` wins key by key: maps are merged to any depth, all else is replaced. An empty map changes nothing."""
    if isinstance(base, Table):
        if isinstance(over, Scalar) and over.is_null:
            return base
        if isinstance(over, Table):
            entries = dict(base.entries)
            for key, entry in over.entries.items():
                if key in entries:
                    entry = Entry(entry.where, overlay(entries[key].node, entry.node))
                entries[key] = entry
            return Table(over.where, entries, base.weight + over.weight)
    return over


class _Stop(Exception):
    """Reading this file further makes no sense; the reason has been noted."""


class _Open(Struct):
    """A list or map whose end has not been seen."""

    where: Where
    is_map: bool
    anchor: str | None
    nodes: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    key: str | None = None
    key_where: Where | None = None
    key_is_merge: bool = False
    merges: list[tuple[Where, Node]] = field(default_factory=list)
    weight: int = 1


class _Builder:
    """Builds the nodes of one document from events, with a stack of its own."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None
        self._documents = 0

    def build(self, events: Iterator[Any]) -> Node | None:
        for event in events:
            where = Where(self._file, event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._stop(where, 'a second document begins here ("---"); gpud reads one document a file')
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, where)
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                self._open(event, where)
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                self._close()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event, where)
        return self._root

    def _problem(self, where: Where, text: str) -> None:
        self._problems.append(Problem(where, text))

    def _stop(self, where: Where, text: str) -> None:
        self._problem(where, text)
        raise _Stop

    def _scalar(self, event: Any, where: Where) -> None:
        plain = bool(event.implicit[0]) or event.tag in _PLAIN_TAGS
        if not event.implicit[0] and not event.implicit[1]:
            self._check_tag(event.tag, where)
        if event.tag in _TEXT_TAGS:
            plain = False
        if self._expects_key():
            self._key(event.value, plain, where)
            return
        self._add(Scalar(where, event.value, plain), event.anchor)

    def _check_tag(self, tag: str | None, where: Where) -> None:
        if tag is not None and tag not in _TEXT_TAGS and tag not in _PLAIN_TAGS:
            shorter = tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(where, f'the YAML tag "{shorter}" means nothing to gpud; remove it')

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].is_map and self._stack[-1].key is None

    def _key(self, text: str, plain: bool, where: Where) -> None:
        top = self._stack[-1]
        top.key, top.key_where = text, where
        top.key_is_merge = plain and text == "<<"

    def _open(self, event: Any, where: Where) -> None:
        if self._expects_key():
            self._stop(where, "a list or a map stands where a key is expected; a key is one word")
        self._check_tag(event.tag, where)
        if len(self._stack) >= MAX_DEPTH:
            self._stop(where, f"lists and maps are nested more than {MAX_DEPTH} deep")
        self._stack.append(_Open(where, isinstance(event, yaml.MappingStartEvent), event.anchor))

    def _alias(self, event: Any, where: Where) -> None:
        node = self._anchors.get(event.anchor)
        if node is None:
            if any(one.anchor == event.anchor for one in self._stack):
                self._stop(where, f'"*{event.anchor}" stands inside of what it stands for')
            self._stop(
                where, f'"*{event.anchor}" refers to an anchor that does not exist; write "&{event.anchor}" first'
            )
        elif self._expects_key():
            if not isinstance(node, Scalar):
                self._stop(where, f'"*{event.anchor}" is a list or a map and cannot be a key; a key is one word')
            else:
                self._key(node.text, False, where)
        else:
            self._add(node, None)

    def _close(self) -> None:
        done = self._stack.pop()
        node: Node
        if done.is_map:
            self._apply_merges(done)
            node = Table(done.where, done.entries, done.weight)
        else:
            node = Items(done.where, tuple(done.nodes), done.weight)
        self._add(node, done.anchor)

    def _apply_merges(self, done: _Open) -> None:
        """Fill in what ``<<`` names: what the map says itself wins, then the first of several."""
        for where, merged in done.merges:
            for one in merged.nodes if isinstance(merged, Items) else (merged,):
                if not isinstance(one, Table):
                    self._problem(where, f'"<<" takes a map or a list of maps, not {shown(one)}')
                    continue
                for key, entry in one.entries.items():
                    done.entries.setdefault(key, entry)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        top.weight += node.weight
        if top.weight > MAX_NODES:
            self._stop(node.where, f"holds more than {MAX_NODES:,} values once its aliases are written out")
        if not top.is_map:
            top.nodes.append(node)
            return
        assert top.key is not None and top.key_where is not None
        if top.key_is_merge:
            top.merges.append((top.key_where, node))
        elif top.key in top.entries:
            path = [one.key for one in self._stack if one.key is not None]
            first = top.entries[top.key].where
            self._problem(
                top.key_where,
                f"{'.'.join(path)}: {shown(node, top.key)}: given twice, first in line {first.line}; keep one of them",
            )
        else:
            top.entries[top.key] = Entry(top.key_where, node)
        top.key = None


def read(text: str, file: str, problems: list[Problem]) -> Node | None:
    """The document in ``text``; ``None`` when it is empty or cannot be read (then ``problems`` says why)."""
    try:
        return _Builder(file, problems).build(yaml.parse(text, Loader=_LOADER))
    except _Stop:
        return None
    except yaml.reader.ReaderError as error:
        place = error.position if isinstance(error.position, int) else 0
        problems.append(
            Problem(
                Where(file, text.count("\n", 0, place) + 1),
                f"holds the control character {_code(error.character)}; YAML allows none but tab and line end",
            )
        )
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax(error, text, file))
    return None


def _code(character: object) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """What the parser says, at the line where somebody has to look."""
    lines = text.splitlines()
    mark, said = error.problem_mark or error.context_mark, error.problem or "is not YAML"
    if error.context_mark and mark and mark.line >= len(lines):
        # The file ended in the middle of something: its end says nothing, its beginning does.
        mark = error.context_mark
        said = f"{said} ({error.context} that begins here, up to the end of the file)"
    elif error.context_mark and mark and error.context_mark.line != mark.line:
        said = f"{said} ({error.context} that began in line {error.context_mark.line + 1})"
    elif error.context:
        said = f"{said} ({error.context})"
    line = mark.line if mark else 0
    written = lines[line] if line < len(lines) else ""
    hint = ""
    if "\t" in written[: len(written) - len(written.lstrip())] or "tab" in said:
        hint = "; indent with spaces, not with tabs"
    elif "mapping values are not allowed" in said:
        hint = "; check the indentation of this line and of the one before, and put text with a colon in quotes"
    elif "did not find expected" in said:
        hint = "; check the indentation and that every bracket and quote is closed"
    column = f"column {mark.column + 1}: " if mark else ""
    return Problem(Where(file, line + 1, mark.column + 1 if mark else 0), f"{column}{said}{hint}")
