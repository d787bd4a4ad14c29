"""The one place where a D-Bus library is chosen and touched: dbus-next, or dbus-fast where dbus-next does not load.

What is used of it is what both have in common and do well: turning values into bytes and back. Headers are our own
(``frame.py``), and so is the connection (see ``connection.py`` for what theirs do to a daemon); their service classes
hide the caller.
"""

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from gpud.core.record import Record
from gpud.dbus.frame import enclose_body, frame
from gpud.dbus.wire import Message, Variant
from gpud.dbus.writing import SIGNATURES, write

LIBRARIES = ("dbus_next", "dbus_fast")


class Library(Record):
    """One D-Bus library, reduced to a codec."""

    name: str
    _variant: Callable[[str, Any], Any]
    _variant_type: type
    _writer: Callable[[str, list[Any]], Any]
    _reader: Callable[[io.BytesIO], Any]

    def encode(self, message: Message) -> bytes:
        """The bytes of a message. Raises whatever the library raises for a body that does not fit the signature."""
        return frame(message, message.encoded or self.encode_body(message.signature, message.body))

    def encode_body(self, signature: str, values: Iterable[Any]) -> bytes:
        """The bytes of these values, in little-endian order.

        Raises whatever the library raises for values that do not fit the signature.
        """
        if signature in SIGNATURES:
            return write(signature, tuple(values), clean_text)
        return bytes(self._writer(signature, [self._outward(value) for value in values]).marshall())

    def decode_body(self, body: bytes, signature: str, *, little_endian: bool) -> list[Any]:
        """The values of a body. Raises whatever the library raises for bytes that do not fit the signature."""
        if not signature:
            return []
        reader = self._reader(io.BytesIO(enclose_body(body, signature, little_endian=little_endian)))
        made = reader.unmarshall()
        if made is None:
            raise ValueError(f'the body ends before its signature "{signature}" does')
        return [self._inward(value) for value in made.body]

    def _outward(self, value: Any) -> Any:
        if isinstance(value, str):
            return clean_text(value)
        if isinstance(value, Variant):
            return self._variant(value.signature, self._outward(value.value))
        if isinstance(value, dict):
            return {self._outward(key): self._outward(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._outward(item) for item in value]
        return value

    def _inward(self, value: Any) -> Any:
        if isinstance(value, self._variant_type):
            return Variant(value.signature, self._inward(value.value))  # type: ignore[attr-defined]
        if isinstance(value, dict):
            return {key: self._inward(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._inward(item) for item in value]
        return value


def clean_text(text: str) -> str:
    """A text that the bus accepts: one NUL or half a surrogate pair in a message, and the bus closes the connection."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def load_library(name: str | None = None) -> Library:
    """The named library, or the first that loads. Raises ImportError when there is none."""
    problems = []
    for candidate in (name,) if name else LIBRARIES:
        try:
            return _wrap(candidate)
        except (ImportError, AttributeError) as problem:
            # AttributeError: dbus-next decorates with typing.no_type_check_decorator, which Python 3.15 drops.
            problems.append(f"{candidate}: {problem}")
    raise ImportError(f"cannot load a D-Bus library: {'; '.join(problems)}; install dbus-next or dbus-fast")


@cache
def _wrap(name: str) -> Library:
    # Not so for dbus-fast: compiled modules cannot be loaded twice.
    with _without_the_rest(name) if name == "dbus_next" else nullcontext():
        # In this order: they import each other, and this is the one that can be first.
        importlib.import_module(f"{name}.errors")
        variant = importlib.import_module(f"{name}.signature").Variant
        writer = importlib.import_module(f"{name}._private.marshaller").Marshaller
        reader = importlib.import_module(f"{name}._private.unmarshaller").Unmarshaller
    return Library(name=name, _variant=variant, _variant_type=variant, _writer=writer, _reader=reader)


@contextmanager
def _without_the_rest(name: str) -> Iterator[None]:
    """Import modules of a package without the package itself, which would bring what nobody here uses: two event loops'
    buses, proxies and services, 10 ms and 0.7 MiB. Whoever imports the package afterwards gets all of it.
    """
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f'there is no module "{name}"', name=name)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[name]
