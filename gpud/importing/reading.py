"""Reads the files of other programs as nodes that know their line and column: YAML, JSON, and lists of variables.

Whatever is in them, it ends: bytes, depth and the number of values are bounded, and a value that is given twice is an
error. What cannot be read raises :class:`~gpud.core.errors.ConfigInvalid` with ``FILE:LINE:COLUMN: …``.
"""

import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]

from gpud.config.source import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_NODES,
    Entry,
    Items,
    Node,
    Problem,
    Scalar,
    Table,
    Where,
    read,
)
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid
from gpud.core.record import Record

MAX_SHOWN = 20
"""More sentences than these about one file help nobody."""


def place(where: Where) -> str:
    """``FILE:LINE:COLUMN``, as editors and compilers write it."""
    return f"{where}:{where.column}" if where.line and where.column else str(where)


def unreadable(where: Where, text: str) -> ConfigInvalid:
    """The error for one thing that is wrong."""
    return ConfigInvalid([plain(f"{place(where)}: {text}")])


def plain(text: str) -> str:
    """One line, and nothing in it that a terminal or a reader of YAML would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def decode(content: bytes, file: str) -> str:
    """The text of a file. Raises ConfigInvalid for what is too large, or no UTF-8."""
    whole = Where(file, 0)
    if len(content) > MAX_FILE_BYTES:
        raise unreadable(whole, f"is larger than {MAX_FILE_BYTES >> 20} MiB, the most that is read; give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        where = Where(file, line, column)
        raise unreadable(where, f"is not UTF-8 (byte 0x{content[error.start]:02x} here); save it as UTF-8") from None


def read_yaml(text: str, file: str) -> Node:
    """The one document of a YAML file. Raises ConfigInvalid."""
    problems: list[Problem] = []
    node = read(text, file, problems)
    if problems:
        shown = [_with_column(one) for one in problems[:MAX_SHOWN]]
        if len(problems) > MAX_SHOWN:
            shown.append(f"… and {plural(len(problems) - MAX_SHOWN, 'more problem')}; mend these first")
        raise ConfigInvalid(shown)
    if node is None:
        raise unreadable(Where(file, 0), "is empty")
    return node


def _with_column(problem: Problem) -> str:
    return plain(f"{place(problem.where)}: {re.sub(r'^column [0-9]+: ', '', problem.text)}")


def top(node: Node, file: str, what: str) -> Table:
    """The map that a file is. Raises ConfigInvalid for anything else."""
    if isinstance(node, Table):
        return node
    found = "a list" if isinstance(node, Items) else "nothing" if node.is_null else "one value"
    raise unreadable(Where(file, node.where.line, node.where.column), f"holds {found}; {what}")


# JSON -----------------------------------------------------------------------------------------------------------------


def read_json(text: str, file: str) -> Node:
    """A JSON document, strictly as the standard has it. Raises ConfigInvalid."""
    return _Json(text, file).document()


class _Json:
    """Reads JSON from a text, one value after the other; depth and number of values are bounded."""

    _BLANK = re.compile(r"[ \t\n\r]*")
    _NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
    _WORD = re.compile(r"[A-Za-z_]+")

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._at = 0
        self._count = 0
        self._line, self._line_starts_at = 1, 0
        self._known_to = 0

    def document(self) -> Node:
        self._skip()
        if self._at == len(self._text):
            raise unreadable(Where(self._file, 0), "is empty")
        node = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise self._wrong(self._at, f"{self._shown(self._at)} after the end of the document; remove it")
        return node

    def _where(self, at: int) -> Where:
        """Asked for ever later places, so that counting the lines costs one pass in all; and for one earlier one."""
        if at < self._known_to:
            line = self._text.count("\n", 0, at) + 1
            return Where(self._file, line, at - self._text.rfind("\n", 0, at))
        newlines = self._text.count("\n", self._known_to, at)
        if newlines:
            self._line += newlines
            self._line_starts_at = self._text.rfind("\n", 0, at) + 1
        self._known_to = at
        return Where(self._file, self._line, at - self._line_starts_at + 1)

    def _wrong(self, at: int, text: str) -> ConfigInvalid:
        return unreadable(self._where(at), text)

    def _shown(self, at: int) -> str:
        return f'"{self._text[at]}"' if at < len(self._text) else "the end of the file"

    def _skip(self) -> None:
        match = self._BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        if self._text.startswith(("//", "/*", "#"), self._at):
            raise self._wrong(self._at, "a comment stands here, and JSON has none; remove it")

    def _value(self, depth: int) -> Node:
        self._count += 1
        at, where = self._at, self._where(self._at)
        if self._count > MAX_NODES:
            raise unreadable(where, f"holds more than {MAX_NODES:,} values; give a part of it")
        if depth > MAX_DEPTH:
            raise unreadable(where, f"lists and maps are nested more than {MAX_DEPTH} deep; give a part of it")
        first = self._text[at : at + 1]
        if first == "{":
            return self._table(where, depth)
        if first == "[":
            return self._items(where, depth)
        if first == '"':
            return Scalar(where, self._string(), plain=False)
        if match := self._NUMBER.match(self._text, at):
            self._at = match.end()
            return Scalar(where, match[0])
        if (match := self._WORD.match(self._text, at)) and match[0] in ("true", "false", "null"):
            self._at = match.end()
            return Scalar(where, match[0])
        hint = '; text stands in double quotes: "…"' if match or first == "'" else ""
        raise unreadable(where, f"{self._shown(at)} stands where a value is expected{hint}")

    def _string(self) -> str:
        at = self._at
        try:
            value, self._at = scanstring(self._text, at + 1, True)
        except ValueError as error:
            place = getattr(error, "pos", at)
            said = getattr(error, "msg", "is no string").removesuffix(" at").removesuffix(" starting")
            raise self._wrong(place, f"{said[:1].lower()}{said[1:]}") from None
        return str(value)

    def _table(self, where: Where, depth: int) -> Table:
        entries: dict[str, Entry] = {}
        weight = 1
        for _ in self._members("}"):
            if self._text[self._at : self._at + 1] != '"':
                raise self._wrong(self._at, f"{self._shown(self._at)} stands where a key in double quotes is expected")
            key_where = self._where(self._at)
            key = self._string()
            self._skip()
            if self._text[self._at : self._at + 1] != ":":
                raise self._wrong(self._at, f'{self._shown(self._at)} stands where ":" is expected, after a key')
            self._at += 1
            self._skip()
            node = self._value(depth + 1)
            if key in entries:
                first = entries[key].where.line
                text = f'the key "{key[:60]}" is given twice, first in line {first}; keep one of them'
                raise unreadable(key_where, text)
            entries[key] = Entry(key_where, node)
            weight += node.weight
        return Table(where, entries, weight)

    def _items(self, where: Where, depth: int) -> Items:
        nodes = [self._value(depth + 1) for _ in self._members("]")]
        return Items(where, tuple(nodes), 1 + sum(node.weight for node in nodes))

    def _members(self, end: str) -> Iterator[None]:
        """Stands before each member of a list or a map in turn; and after its end, when there are no more."""
        opened = self._where(self._at).line
        self._at += 1
        self._skip()
        if self._text.startswith(end, self._at):
            self._at += 1
            return
        while True:
            yield
            self._skip()
            at = self._at
            if self._text.startswith(end, at):
                self._at += 1
                return
            if not self._text.startswith(",", at):
                what = f'{self._shown(at)} stands where "," or "{end}" is expected'
                raise self._wrong(at, f"{what}, for what was opened in line {opened}")
            self._at += 1
            self._skip()
            if self._text.startswith(end, self._at):
                raise self._wrong(at, f'a comma stands before "{end}", and JSON has nothing after the last; remove it')


# Lists of variables ---------------------------------------------------------------------------------------------------


class Variable(Record):
    """One variable and where it was set. Without a value it was to be taken from the environment of a caller."""

    where: Where
    name: str
    value: str | None


_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"(?:export\s+)?({_NAME})=(.*)", re.DOTALL)
_SECTION = re.compile(r"\[[A-Za-z0-9 _-]+\]")
_SYSTEMD = re.compile(r"([A-Za-z]+)\s*=\s*(.*)")
MAX_VARIABLES = 5_000


def looks_like_variables(text: str) -> bool:
    """Whether this is a list of variables rather than YAML: by the first line that says something."""
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped and not stripped.startswith(("#", ";")):
            return bool(_ASSIGNMENT.fullmatch(stripped) or re.fullmatch(_NAME, stripped) or _SECTION.match(stripped))
    return True


def read_variables(text: str, file: str) -> tuple[list[Variable], list[tuple[Where, str]]]:
    """The variables of an environment file, a unit of systemd or a drop-in, ``systemctl show -p Environment``, or
    /proc/PID/environ; of several values of one name the last. And what else there was, to be mentioned.

    Raises ConfigInvalid for a line that is none of these.
    """
    if "\0" in text:
        found = _of_process(text, file)
        aside: list[tuple[Where, str]] = []
    elif _is_unit(text):
        found, aside = _of_unit(text, file)
    else:
        found, aside = _of_lines(text, file), []
    last = {one.name: one for one in found}
    if len(last) > MAX_VARIABLES:
        raise unreadable(Where(file, 0), f"sets {len(last):,} variables; more than {MAX_VARIABLES:,} are none of ours")
    return list(last.values()), aside


def _is_unit(text: str) -> bool:
    lines = [line.strip() for line in text.split("\n")]
    said = [line for line in lines if line and not line.startswith(("#", ";"))]
    return bool(said) and (
        any(_SECTION.fullmatch(line) for line in said)
        or all(line.startswith(("Environment=", "EnvironmentFile", "PassEnvironment=")) for line in said)
    )


def _of_process(text: str, file: str) -> list[Variable]:
    pairs = (one.partition("=") for one in text.split("\0") if "=" in one)
    return [Variable(Where(file, 0), name, value) for name, _, value in pairs if re.fullmatch(_NAME, name)]


def _of_lines(text: str, file: str) -> list[Variable]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        where = Where(file, number, len(line) - len(line.lstrip()) + 1)
        match = _ASSIGNMENT.fullmatch(stripped)
        if match is not None:
            found.append(Variable(where, match[1], unquoted(match[2], where)))
        elif re.fullmatch(_NAME, stripped):
            found.append(Variable(where, stripped, None))
        else:
            # What stands there may be half of a secret: it is not repeated.
            raise unreadable(where, "is neither NAME=value nor a comment; each line sets one variable")
    return found


def unquoted(value: str, where: Where) -> str:
    """A value without the quotes around it. Raises ConfigInvalid where they are not closed."""
    if value[:1] not in ("'", '"'):
        return re.sub(r"\s+#.*$", "", value)
    quote = value[0]
    pattern = r"'([^']*)'" if quote == "'" else r'"((?:[^"\\]|\\.)*)"'
    match = re.match(pattern, value)
    if match is None:
        raise unreadable(where, f"a quote ({quote}) is opened and not closed in this line")
    rest = value[match.end() :].strip()
    if rest and not rest.startswith("#"):
        raise unreadable(where, "something stands after the closing quote; quote the whole value")
    return match[1] if quote == "'" else re.sub(r"\\(.)", r"\1", match[1])


def _of_unit(text: str, file: str) -> tuple[list[Variable], list[tuple[Where, str]]]:
    """``Environment=`` of a unit: several assignments a line, quoted each as a whole; an empty one forgets them all."""
    found: list[Variable] = []
    aside: list[tuple[Where, str]] = []
    for where, line in _joined(text, file):
        match = _SYSTEMD.fullmatch(line)
        if match is None:
            if not _SECTION.fullmatch(line):
                raise unreadable(where, "is neither KEY=value nor a [Section] nor a comment, as a unit has them")
            continue
        key, value = match[1], match[2].strip()
        if key == "Environment":
            if not value:
                found.clear()
            for word in _words(value, where):
                name, equals, assigned = word.partition("=")
                if not equals or not re.fullmatch(_NAME, name):
                    raise unreadable(where, "Environment= has a word that is not NAME=value; quote the whole of it")
                found.append(Variable(where, name, assigned))
        elif key in ("EnvironmentFile", "EnvironmentFiles", "PassEnvironment") and value:
            aside.append((where, f"{key}={value}"))
    return found, aside


def _joined(text: str, file: str) -> Iterator[tuple[Where, str]]:
    """The lines of a unit, continued ones as one."""
    begun: list[str] = []
    start = 1
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped.startswith(("#", ";")) or (not stripped and not begun):
            continue
        start = start if begun else number
        begun.append(stripped.removesuffix("\\"))
        if not stripped.endswith("\\"):
            yield Where(file, start, 1), " ".join(begun).strip()
            begun = []
    if begun:
        yield Where(file, start, 1), " ".join(begun).strip()


def _words(text: str, where: Where) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError:
        raise unreadable(where, "a quote is opened and not closed in this line") from None
