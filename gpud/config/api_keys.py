"""The file of API keys: how it is read, what is wrong with it, and how it is written. Never holds or shows a key.

A key is 43 random letters and digits (256 bits), so that its plain SHA-256 tells nothing: slow hashes protect what
people make up, and would cost every request a tenth of a second. The file is no secret for the same reason, but whoever
can write to it can let anybody in; that it be private as well costs nothing.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpud.config.kinds import PriorityName, Reading, Wrong, nearest, text_of
from gpud.config.network import rate
from gpud.config.source import Entry, Items, Node, Problem, Scalar, Table, Where, read
from gpud.core.errors import ConfigInvalid
from gpud.core.keys import EVERYTHING, ApiKey, Right

MAX_KEYS = 1000
"""Each request is compared with all of them."""

MAX_FILE_BYTES = 1 << 20

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
NAME_RULE = "at most 64 of a-z 0-9 . _ -, the first a letter or digit"

_PREFIX = "gpud_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LETTERS = 43

_FIELDS = ("name", "hash", "allow", "rate", "priority", "may")
_HASH = r"sha256:([0-9a-f]{64})"
_PATTERN = r"\*|[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\*?"

_HEAD = """\
# The keys that let clients into gpud (gpud.yaml: http.api_keys_file). "gpudctl key" writes this file; comments are not
# kept. A key itself is nowhere: whoever lost it gets a new one. "gpudctl reload" has gpud read it again.
"""


def make_key() -> str:
    """A new key. 43 of 62 letters and digits are 256 bits; the prefix lets scanners find one that leaked."""
    import secrets

    return _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LETTERS))


def digest_of(key: str) -> bytes:
    import hashlib

    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """Every key in the file. Raises ConfigInvalid with all that is wrong; nothing that could be a key is repeated."""
    problems: list[Problem] = []
    text = _text(path, problems)
    before = len(problems)
    node = None if text is None else read(text, str(path), problems)
    # What the reader of YAML quotes may be a key that somebody has put into the file.
    problems[before:] = [
        Problem(one.where, re.sub(r"[A-Za-z0-9+/_=-]{20,}", "…", one.text)) for one in problems[before:]
    ]
    keys = _keys(node, Reading(problems)) if node is not None else ()
    if problems:
        raise ConfigInvalid([str(one) for one in problems])
    return keys


def keys_text(keys: Iterable[ApiKey]) -> str:
    """The whole file."""
    lines = [_HEAD]
    for key in keys:
        lines.append(f'"{key.name}":\n  hash: sha256:{key.digest.hex()}\n')
        allow = ", ".join(f'"{pattern}"' for pattern in key.allow)
        lines.append(f"  allow: [{allow}]\n")
        if key.rate is not None:
            lines.append(f"  rate: {key.rate}\n")
        if key.priority is not None:
            lines.append(f"  priority: {key.priority.name.lower()}\n")
        lines.append(f"  may: [{', '.join(right for right in Right if right in key.may)}]\n")
    return "".join(lines)


def check_key_name(text: str) -> None:
    """Raises Wrong, without the name in it."""
    if not re.fullmatch(NAME, text) or text.startswith(_PREFIX):
        raise Wrong(f"is not allowed as the name of a key ({NAME_RULE})")


def check_allowed(text: str) -> None:
    """Raises Wrong for what is neither a model's name nor the beginning of one."""
    if not re.fullmatch(_PATTERN, text):
        raise Wrong("is neither the name of a model, nor the beginning of one with a * behind it, nor * for all")


# Reading -------------------------------------------------------------------------------------------------------------


def _text(path: Path, problems: list[Problem]) -> str | None:
    def wrong(text: str) -> None:
        problems.append(Problem(Where(str(path), 0), text))

    try:
        # Without O_NONBLOCK a pipe in the place of a file would hold up the start of the daemon for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                wrong("is not a file")
                return None
            if trouble := open_to_others(found):
                wrong(trouble)
                return None
            content = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        wrong("does not exist; gpudctl key add NAME makes it")
    except OSError as error:
        wrong(f"cannot be read: {error.strerror}")
    else:
        if len(content) > MAX_FILE_BYTES:
            wrong(f"is larger than {MAX_FILE_BYTES >> 20} MiB, the most that gpud reads")
        else:
            try:
                return content.decode("utf-8-sig")
            except UnicodeDecodeError:
                wrong("is not UTF-8")
    return None


def open_to_others(found: os.stat_result) -> str:
    """What is wrong with who may read and write the file; empty: nothing.

    Root may let a group read it: so gpud, which is not root, can read it and not write it.
    """
    mode = stat.S_IMODE(found.st_mode)
    mine = os.geteuid()
    if mine != 0 and found.st_uid not in (0, mine):
        return f"belongs to another user (uid {found.st_uid}), who could let anybody in; it must be root's or one's own"
    if mode & 0o022:
        return f"has the mode {mode:04o}: others may write to it and let anybody in; chmod 600 it"
    if mode & 0o007 or (mode & 0o070 and found.st_uid != 0):
        return f"has the mode {mode:04o}: others may read it; chmod 600 it (a file of root's may be 640)"
    return ""


def _keys(node: Node, reading: Reading) -> tuple[ApiKey, ...]:
    entries = _entries(node, reading)
    if len(entries) > MAX_KEYS:
        reading.wrong(node.where, "", f"holds {len(entries)} keys; {MAX_KEYS} are allowed")
        return ()
    keys: list[ApiKey] = []
    seen: dict[bytes, str] = {}
    names: set[str] = set()
    for name, where, table in entries:
        if name in names:
            reading.wrong(where, name, "is there twice; rename one of them")
        names.add(name)
        key = _key(name, where, table, reading)
        if key is None:
            continue
        if (other := seen.setdefault(key.digest, name)) != name:
            reading.wrong(where, f"{name}.hash", f'is that of "{other}" too; make a key for each')
        keys.append(key)
    return tuple(keys)


_Named = tuple[str, Where, Table]


def _entries(node: Node, reading: Reading) -> list[_Named]:
    """Each key with its name: of a map, or of a list whose items have their names in them."""
    found: list[_Named] = []
    if isinstance(node, Scalar) and node.is_null:
        return found
    if isinstance(node, Table):
        for name, entry in node.entries.items():
            _entry(name, entry.where, entry.node, found, reading)
    elif isinstance(node, Items):
        for index, item in enumerate(node.nodes):
            given = item.entries.get("name") if isinstance(item, Table) else None
            if given is None or not isinstance(given.node, Scalar):
                _no_entry(item, f"entry {index + 1}", reading)
            else:
                _entry(given.node.text, item.where, item, found, reading)
    else:
        _no_entry(node, "", reading)
    return found


def _entry(name: str, where: Where, node: Node, found: list[_Named], reading: Reading) -> None:
    try:
        check_key_name(name)
    except Wrong as wrong:
        # The text may be a key that stands where its name should: it is not repeated.
        reading.wrong(where, "", f"what stands here {wrong}; keys themselves are never written down")
        return
    if isinstance(node, Table):
        found.append((name, where, node))
    else:
        _no_entry(node, name, reading, where)


def _no_entry(node: Node, name: str, reading: Reading, where: Where | None = None) -> None:
    text = "is not a map with a hash in it; keys themselves are never written down: gpudctl key add NAME makes one"
    reading.wrong(where or node.where, name, text)


def _key(name: str, where: Where, table: Table, reading: Reading) -> ApiKey | None:
    before = len(reading.problems)
    for field, entry in table.entries.items():
        if field not in _FIELDS:
            known = field if re.fullmatch("[a-z_]{1,16}", field) else "…"
            text = f"unknown key{nearest(known, _FIELDS)}; allowed: {' '.join(_FIELDS)}"
            reading.wrong(entry.where, f"{name}.{known}", text)
    digest = b""
    if "hash" not in table.entries:
        reading.wrong(where, name, "has no hash; gpudctl key add makes a key and its hash")
    elif match := re.fullmatch(_HASH, _word(table, "hash")):
        digest = bytes.fromhex(match[1])
    else:
        text = "is not sha256: and 64 digits of 0-9 a-f; what stands there is not shown, for it may be a key"
        reading.wrong(table.entries["hash"].where, f"{name}.hash", text)
    made = ApiKey(
        name,
        digest,
        _allow(name, table, reading),
        _value(name, "rate", table, reading),
        _value(name, "priority", table, reading),
        _may(name, table, reading),
    )
    return made if len(reading.problems) == before else None


def _word(table: Table, field: str) -> str:
    node = table.entries[field].node
    return node.text if isinstance(node, Scalar) else ""


_EXPECTED = {"rate": "like 60/min, 5/s, 1000/h, 10000/d", "priority": PriorityName.allowed}


def _value(name: str, field: str, table: Table, reading: Reading) -> Any:
    entry = table.entries.get(field)
    if entry is None or (isinstance(entry.node, Scalar) and entry.node.is_null):
        return None
    try:
        if field == "rate":
            return rate(text_of(entry.node))
        return PriorityName().read(entry.node, "", reading)
    except Wrong:
        reading.wrong(entry.where, f"{name}.{field}", f"is not what it has to be; allowed: {_EXPECTED[field]}")
        return None


def _allow(name: str, table: Table, reading: Reading) -> tuple[str, ...]:
    entry = table.entries.get("allow")
    if entry is None:
        return (EVERYTHING,)
    patterns = _words(entry)
    if patterns is None:
        text = 'is not a list of models; allowed: names, beginnings like "qwen*", "*" for all'
        reading.wrong(entry.where, f"{name}.allow", text)
        return ()
    for pattern in patterns:
        try:
            check_allowed(pattern)
        except Wrong as wrong:
            reading.wrong(entry.where, f"{name}.allow", f"one of them {wrong}")
    return tuple(dict.fromkeys(patterns))


def _may(name: str, table: Table, reading: Reading) -> frozenset[Right]:
    entry = table.entries.get("may")
    if entry is None:
        return frozenset({Right.USE})
    words = _words(entry)
    if not words or set(words) - set(Right):
        reading.wrong(entry.where, f"{name}.may", f"is not a list of what it may; allowed: {' '.join(Right)}")
        return frozenset()
    return frozenset(Right(word) for word in words)


def _words(entry: Entry) -> list[str] | None:
    """The texts of a list, or of one text that stands for a list of it."""
    node = entry.node
    items = node.nodes if isinstance(node, Items) else (node,)
    texts = [item.text for item in items if isinstance(item, Scalar) and not item.is_null]
    return texts if texts and len(texts) == len(items) else None
