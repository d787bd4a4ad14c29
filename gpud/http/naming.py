"""Which model a request means, and whether it wants a stream: read off its body, its query or its path. A body is never
taken apart further than that, and never changed but for the one value that an engine wants to be another.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec

from gpud.core import statuses
from gpud.core.errors import NoSuchModel
from gpud.core.facts import State
from gpud.engine import Engine
from gpud.http.shapes import UNREADABLE, HttpError, why_unreadable

PLACEHOLDERS = frozenset(("default", "local-model"))
"""What clients write who do not care which model answers. A configured model of such a name goes before."""

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_KEY = re.compile(rb"[ \t\r\n]*+" + _STRING + rb"[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_AFTER = re.compile(rb"[ \t\r\n]*+(?:,|\}[ \t\r\n]*+\Z)")
_NAME = b'"model"'
_ESCAPE = rb"\u00"
_ESCAPED_LETTERS = (rb"\u006", rb"\u007")
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_FIELD_NAME = re.compile(rb';\s*name="([^"]*)"', re.IGNORECASE)


class Asked(msgspec.Struct, frozen=True):
    """What a body says. ``model`` is empty where it names none."""

    model: str = ""
    stream: bool = False


class _Body(msgspec.Struct):
    model: str | None = None
    stream: Any = None


_decode = msgspec.json.Decoder(_Body).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

SLICE_BYTES = 1 << 20
"""So much is looked through at once: about a millisecond."""

MOST_FIELDS = 1000
"""No form that means something to an engine has as many; to read on for ever would stop everybody else."""


def read_body(body: bytes, content_type: str) -> Asked:
    """What a body says. Raises HttpError(400)."""
    if content_type[:19].lower() == "multipart/form-data":
        return read_form(body, boundary_of(content_type))
    return read_json(body)


async def read_large(body: bytes, content_type: str) -> Asked:
    """As :func:`read_body`, with the loop free now and then: of the 0.3 s that 100 MB of pictures take, 70 ms are left
    in one piece.
    """
    if content_type[:19].lower() != "multipart/form-data":
        found = _decoded(body)
        for doubt in _doubts(body):
            if doubt:
                break
            await asyncio.sleep(0)
        else:
            return Asked(found.model or "", found.stream is True)
    return read_body(body, content_type)


def read_json(body: bytes) -> Asked:
    """An object; nothing at all says nothing. Raises HttpError(400) also where it names two models."""
    found = _decoded(body)
    # What most are is looked through at once: six times as fast as slice by slice.
    if _is_doubtful(body) if len(body) <= SLICE_BYTES else any(_doubts(body)):
        _model_span(body)
    return Asked(found.model or "", found.stream is True)


def _decoded(body: bytes) -> "_Body":
    try:
        return _decode(body)
    except UNREADABLE as problem:
        if not body.strip():
            return _Body()
        raise _unreadable(f"cannot read the body: {why_unreadable(problem)}", "send a JSON object") from None


def _is_doubtful(body: bytes) -> bool:
    """Whether the text may name the model twice, or in letters that are written as numbers.

    Which of two would be taken depends on the reader, and there are two of them: gpud and the engine.
    """
    if body.find(_ESCAPE) >= 0 and any(body.find(each) >= 0 for each in _ESCAPED_LETTERS):
        return True
    return body.count(_NAME) > 1


def _doubts(body: bytes) -> Iterator[bool]:
    """As :func:`_is_doubtful`, slice by slice of the text so far."""
    named = 0
    for start in range(0, len(body), SLICE_BYTES):
        end = start + SLICE_BYTES
        # What begins in a slice is found in it, and in no other.
        named += body.count(_NAME, start, end + len(_NAME) - 1)
        yield named > 1 or any(body.find(each, start, end + len(each) - 1) >= 0 for each in _ESCAPED_LETTERS)


def read_form(body: bytes, boundary: bytes) -> Asked:
    """The fields of a form. Raises HttpError(400)."""
    model, stream, named = "", False, False
    for name, start, end in _form_fields(body, boundary):
        if name == b"model":
            if named:
                raise _unreadable('the form has "model" more than once', "name one model")
            named = True
            try:
                model = body[start:end].decode()
            except UnicodeDecodeError:
                raise _unreadable('cannot read the field "model": it is not UTF-8', "send UTF-8") from None
        elif name == b"stream":
            stream = body[start:end].strip().lower() in (b"true", b"1")
    return Asked(model, stream)


def boundary_of(content_type: str) -> bytes:
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise _unreadable("cannot read the form: its Content-Type names no boundary", "let your client set it")
    return (found[1] or found[2]).encode("latin-1")


def with_model(body: bytes, content_type: str, name: str) -> bytes:
    """The body with another value for "model"; every other byte stays where it is. The body was read before."""
    if content_type[:19].lower() == "multipart/form-data":
        for field, start, end in _form_fields(body, boundary_of(content_type)):
            if field == b"model":
                return body[:start] + name.encode() + body[end:]
        mark = b"--" + boundary_of(content_type)
        return mark + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + name.encode() + b"\r\n" + body
    if not body.strip():
        return body
    value = msgspec.json.encode(name)
    found = _model_span(body)
    if found is not None:
        start, end = found
        return body[:start] + value + body[end:]
    opening = body.index(b"{") + 1
    comma = b"" if body[opening:].lstrip()[:1] == b"}" else b","
    return body[:opening] + b'"model":' + value + comma + body[opening:]


def without_own(query: str) -> str:
    """The query without what is meant for gpud."""
    if not query:
        return ""
    kept = [part for part in query.split("&") if part.partition("=")[0] not in ("model", "load", "progress")]
    return "&".join(kept)


def resolved(engine: Engine, name: str, default: str, allowed: Callable[[], Collection[str] | None]) -> str:
    """The configured model that is meant. Raises NoSuchModel.

    Where none is named it is the default one, else the one that was used last, else the first of the configuration;
    the last two only of those that are ``allowed``.
    """
    if name:
        try:
            return engine.resolve(name)
        except NoSuchModel:
            if name not in PLACEHOLDERS:
                raise
    if default:
        return engine.resolve(default)
    names = allowed()
    models = engine.snapshot().models
    first = next((one for one in statuses.names_of(models) if names is None or one in names), None)
    if first is None:
        raise NoSuchModel("there is no model to choose from", hint="add one under models: in gpud.yaml, or name one")
    moving = [one for one in statuses.lively(models) if names is None or one.model.name in names]
    used = [one for one in moving if one.last_used_s is not None]
    if used:
        return max(used, key=lambda one: one.last_used_s or 0.0).model.name
    ready = [one for one in moving if one.state is State.READY]
    return ready[0].model.name if ready else first


def _model_span(body: bytes) -> tuple[int, int] | None:
    """Where in an object's text the value of "model" stands. The text was found to be JSON before.

    Raises HttpError(400) where a key comes twice: the members are read by a reader that keeps the last of each name,
    and held against the text, which then does not match. That costs little however the text is made.
    """
    found = None
    members = _members(body)
    if not members:
        return None
    at = body.index(b"{") + 1
    for name, value in members.items():
        key = _KEY.match(body, at)
        text = bytes(value)
        if key is None or not body.startswith(text, key.end()):
            raise _twice(name)
        at = key.end() + len(text)
        if name == "model":
            found = (key.end(), at)
        after = _AFTER.match(body, at)
        if after is None:
            raise _twice(name)
        at = after.end()
    if at < len(body):
        raise _twice("model")
    return found


def _twice(name: str) -> HttpError:
    return _unreadable(f'the body has "{name[:60]}" or another key more than once', "say each thing once")


def _form_fields(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The fields of a form that are no files: name, and where the value begins and ends."""
    mark = b"--" + boundary
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise _unreadable("cannot read the form: its boundary does not occur", "let your client set the Content-Type")
    parts = 0
    while body[at + len(mark) : at + len(mark) + 2] != b"--":
        parts += 1
        if parts > MOST_FIELDS:
            raise _unreadable(f"the form has more than {MOST_FIELDS} fields", "send fewer")
        head_at = at + len(mark)
        head_end = body.find(b"\r\n\r\n", head_at)
        end = body.find(b"\r\n" + mark, head_end + 2)
        if head_end < 0 or end < 0:
            raise _unreadable("cannot read the form: it is cut off", "send it whole")
        for line in body[head_at : min(head_end, head_at + 4096)].split(b"\r\n"):
            if line[:20].lower() == b"content-disposition:" and b"filename" not in line.lower():
                name = _FIELD_NAME.search(line)
                if name is not None:
                    yield name[1], min(head_end + 4, end), end
        at = end + 2


def _unreadable(message: str, hint: str) -> HttpError:
    return HttpError(400, "invalid_request_error", message, hint=hint)
