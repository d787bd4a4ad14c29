"""The one place where a D-Bus library is chosen and touched: dbus-next, or dbus-fast where dbus-next does not load.

What is used of it is what both have in common and do well: turning values into bytes and back. Their connections are
not used (see ``connection.py`` for what they do to a daemon), nor are their service classes, which hide the caller.
"""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpud.dbus.wire import Message, Variant, enclose_body

LIBRARIES = ("dbus_next", "dbus_fast")


@dataclass(frozen=True, slots=True)
class Library:
    """One D-Bus library, reduced to a codec."""

    name: str
    _message: Callable[..., Any]
    _variant: Callable[[str, Any], Any]
    _variant_type: type
    _kinds: Callable[[int], Any]
    _flags: Callable[[int], Any]
    _reader: Callable[[io.BytesIO], Any]

    def encode(self, message: Message) -> bytes:
        """The bytes of a message. Raises whatever the library raises for a body that does not fit the signature."""
        made = self._message(
            message_type=self._kinds(message.kind.value),
            serial=message.serial,
            flags=self._flags(message.flags.value),
            destination=message.destination or None,
            path=message.path or None,
            interface=message.interface or None,
            member=message.member or None,
            error_name=message.error_name or None,
            reply_serial=message.reply_serial,
            signature=message.signature,
            body=[self._outward(value) for value in message.body],
            unix_fds=list(message.fds),
        )
        return bytes(made._marshall(True))

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


def _wrap(name: str) -> Library:
    package = importlib.import_module(name)
    unmarshaller = importlib.import_module(f"{name}._private.unmarshaller").Unmarshaller
    return Library(
        name=name,
        _message=package.Message,
        _variant=package.Variant,
        _variant_type=package.Variant,
        _kinds=package.MessageType,
        _flags=package.MessageFlag,
        _reader=unmarshaller,
    )
