"""A model as a row of table ``model``, and back. Knows no database.

What was changed by hand, or damaged, is read as far as it makes sense: no row is lost for one bad value.
"""

import json
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from gpud.core.catalogue import Entry, Format, Found, Place, Purpose, Source
from gpud.core.record import replace

Stored = str | bytes
"""A text as it is kept: as bytes where these are no UTF-8, as names of files may be."""

INTEGER_MOST = 2**63 - 1
"""No column holds more. A file may claim that it was trained for more tokens than that."""


class Row(NamedTuple):
    """The columns of the table, in their order."""

    id: int
    name: Stored
    path: Stored
    format: str
    purpose: str
    size_bytes: int
    architecture: Stored
    quantization: Stored
    parameters: Stored
    trained_context: int | None
    parts: int
    mmproj: Stored
    draft_file: Stored
    template: int
    tools: int
    ollama_name: Stored
    problem: Stored
    digest: Stored
    stamp: Stored
    places: str
    compatible: str
    present: int
    configured: int
    estimate_bytes: int | None
    aliases: str
    priority: Stored
    tags: str
    notes: Stored
    usage_count: int
    first_seen_us: int
    last_seen_us: int | None
    last_used_us: int | None
    load_s: float | None
    estimate_of: Stored


COLUMNS = ", ".join(Row._fields)

FOUND = slice(Row._fields.index("name"), Row._fields.index("estimate_bytes"))
"""What a look says; the rest is what became of it, or was said about it."""


def found_of(row: Row) -> tuple[Any, ...]:
    return tuple(row)[FOUND]


# Into a row ----------------------------------------------------------------------------------------------------------


def found_columns(entry: Entry) -> tuple[Any, ...]:
    """Those of ``FOUND``."""
    found = entry.found
    return (
        stored(entry.name),
        stored(found.path),
        found.format.value,
        found.purpose.value,
        _bounded(found.size_bytes),
        stored(found.architecture),
        stored(found.quantization),
        stored(found.parameters),
        None if found.trained_context is None else _bounded(found.trained_context),
        _bounded(found.parts),
        stored(found.mmproj),
        stored(found.draft_file),
        int(found.template),
        int(found.tools),
        stored(found.ollama_name),
        stored(found.problem),
        stored(found.digest),
        stored(found.stamp),
        places_text(found.places),
        texts_text(entry.compatible),
        int(entry.present),
        int(entry.configured),
    )


def new_row(id_: int, entry: Entry, at_us: int) -> Row:
    """With everything that it brings along."""
    past = (
        None if entry.estimate_bytes is None else _bounded(entry.estimate_bytes),
        texts_text(entry.aliases),
        stored(entry.priority),
        texts_text(entry.tags),
        stored(entry.notes),
        entry.usage_count,
        entry.first_seen_us or at_us,
        None if entry.present else at_us,
        entry.last_used_us,
        entry.load_s,
        stored(entry.estimate_of),
    )
    return Row._make((id_, *found_columns(entry), *past))


def with_found(row: Row, columns: tuple[Any, ...]) -> Row:
    return Row._make((row.id, *columns, *row[FOUND.stop :]))


def stored(value: str) -> Stored:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            # Half a character, out of somebody's JSON: nothing on a disk has that name.
            return value.encode(errors="backslashreplace").decode()
    return value


@lru_cache(256)
def texts_text(values: tuple[str, ...]) -> str:
    return _json_text(values, lambda: list(values)) if values else "[]"


def places_text(places: tuple[Place, ...]) -> str:
    return _json_text(places, lambda: [msgspec.to_builtins(place) for place in places])


def json_text(value: str) -> str:
    """As it stands in the text of its place."""
    return _json_text(value, lambda: value)


_encode = msgspec.json.Encoder().encode


def _json_text(value: object, plain: Callable[[], object]) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        # Bytes that are no text become escapes, which come back as they were.
        return json.dumps(plain(), separators=(",", ":"))


def _bounded(value: int) -> int:
    return max(-INTEGER_MOST, min(value, INTEGER_MOST))


# Out of a row --------------------------------------------------------------------------------------------------------


def entry_of(row: Row, looked_us: int, like: Entry | None = None) -> Entry:
    """``looked_us`` is the time of the last look. ``like`` is what was found just now: it is not made a second time."""
    return Entry(
        row.id,
        text(row.name) if like is None else like.name,
        _found(row) if like is None else like.found,
        texts(row.aliases),
        text(row.priority),
        texts(row.tags),
        text(row.notes),
        number(row.estimate_bytes),
        texts(row.compatible) if like is None else like.compatible,
        bool(row.present),
        bool(row.configured),
        number(row.usage_count) or 0,
        number(row.first_seen_us) or 0,
        looked_us if row.last_seen_us is None else number(row.last_seen_us) or 0,
        number(row.last_used_us),
        row.load_s if isinstance(row.load_s, (int, float)) else None,
        sys.intern(text(row.estimate_of)),
    )


# Faster than to call the enumeration, five thousand times. What thousands have in common is in memory once.
_FORMATS = {kind.value: kind for kind in Format}
_PURPOSES = {kind.value: kind for kind in Purpose}


def _found(row: Row) -> Found:
    return Found(
        places(row),
        _FORMATS.get(row.format, Format.OTHER),
        text(row.stamp),
        number(row.size_bytes) or 0,
        text(row.digest),
        sys.intern(text(row.architecture)),
        sys.intern(text(row.quantization)),
        sys.intern(text(row.parameters)),
        number(row.trained_context),
        _PURPOSES.get(row.purpose, Purpose.COMPLETION),
        number(row.parts) or 1,
        text(row.mmproj),
        text(row.draft_file),
        bool(row.template),
        bool(row.tools),
        text(row.ollama_name),
        text(row.problem),
    )


def text(value: object) -> str:
    if isinstance(value, str):
        return value
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else ""


@lru_cache(256)
def texts(value: object) -> tuple[str, ...]:
    if value == "[]":
        return ()
    try:
        found = json.loads(value) if isinstance(value, (str, bytes)) else None
    except (ValueError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


_decode_places = msgspec.json.Decoder(tuple[Place, ...]).decode


def places(row: Row) -> tuple[Place, ...]:
    """The first one is that of its path, whatever else was damaged."""
    try:
        found = _decode_places(row.places)
    except (msgspec.MsgspecError, UnicodeError, TypeError, RecursionError):
        found = _plain_places(row.places)
    path = text(row.path)
    if found and found[0].path == path:
        return found
    return (replace(found[0], path=path), *found[1:]) if found else (Place(path, Source.FOLDER, text(row.name)),)


def _plain_places(value: object) -> tuple[Place, ...]:
    try:
        listed = json.loads(value) if isinstance(value, (str, bytes)) else ()
        return tuple(Place(str(one["path"]), Source(one["source"]), str(one["name"])) for one in listed)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def number(value: object) -> int | None:
    return value if isinstance(value, int) else None
