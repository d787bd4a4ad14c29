"""Objects that the tray offers on a connection: their properties, their methods and their description, from tables.

Answers every call that comes in, also those that make no sense, and knows nothing of what the objects are for.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from gpud.cli.library import Message, MessageFlag, MessageType, Variant
from gpud.core.record import Record, field

log = logging.getLogger(__name__)

DBUS = "org.freedesktop.DBus"
PROPERTIES = f"{DBUS}.Properties"
INTROSPECTABLE = f"{DBUS}.Introspectable"
PEER = f"{DBUS}.Peer"


class Refused(Exception):
    """A call is answered with this error."""

    def __init__(self, text: str, name: str = f"{DBUS}.Error.InvalidArgs") -> None:
        super().__init__(text)
        self.name = name


class Method(Record):
    """What it takes and gives, as ``name:type`` each, and what it does: it returns the values of the reply."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]
    call: Callable[..., tuple[Any, ...]]

    @property
    def signature(self) -> str:
        return "".join(argument.partition(":")[2] for argument in self.takes)

    @property
    def reply_signature(self) -> str:
        return "".join(argument.partition(":")[2] for argument in self.gives)


class Interface(Record):
    """One interface of one object. A property is its type and what reads it; a signal is what it carries."""

    path: str
    name: str
    properties: Mapping[str, tuple[str, Callable[[], Any]]]
    methods: Mapping[str, Method]
    signals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def values(self) -> dict[str, Variant]:
        return {name: Variant(signature, read()) for name, (signature, read) in self.properties.items()}

    def signal(self, name: str, *values: Any) -> Message:
        signature = "".join(argument.partition(":")[2] for argument in self.signals[name])
        return Message(
            message_type=MessageType.SIGNAL,
            path=self.path,
            interface=self.name,
            member=name,
            signature=signature,
            body=list(values),
        )


class Served:
    """Several objects with one interface each; :meth:`take` is a message handler of the library's."""

    def __init__(self, *interfaces: Interface) -> None:
        self._by_path = {interface.path: interface for interface in interfaces}

    def take(self, message: Message) -> Message | bool:
        """The answer to a call; False for what is none."""
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        try:
            signature, body = self._answer(message)
            reply = Message.new_method_return(message, signature, body)
        except Refused as refusal:
            reply = Message.new_error(message, refusal.name, str(refusal))
        except Exception as problem:
            log.exception("internal error while %s was answered", message.member)
            reply = Message.new_error(message, f"{DBUS}.Error.Failed", f"internal error in gpud-tray: {problem!r}")
        # True: it is dealt with, and nobody wants to hear.
        return True if message.flags & MessageFlag.NO_REPLY_EXPECTED else reply

    def _answer(self, message: Message) -> tuple[str, list[Any]]:
        if message.interface == PEER and message.member == "Ping":
            return "", []
        if message.interface == INTROSPECTABLE and message.member == "Introspect":
            return "s", [self._describe(message.path)]
        interface = self._by_path.get(message.path)
        if interface is None:
            raise Refused(f'there is no object "{message.path}"', f"{DBUS}.Error.UnknownObject")
        if message.interface == PROPERTIES:
            return _property(interface, message)
        method = interface.methods.get(message.member) if message.interface in (None, "", interface.name) else None
        if method is None:
            text = f'"{message.path}" has no method {message.member} of {message.interface or "any interface"}'
            raise Refused(text, f"{DBUS}.Error.UnknownMethod")
        _check_signature(message, method.signature)
        return method.reply_signature, list(method.call(*message.body))

    def _describe(self, path: str) -> str:
        interface = self._by_path.get(path)
        if interface is not None:
            return f"<node>{_described(interface)}</node>"
        below = sorted({child.strip("/").partition("/")[0] for child in self._by_path if path == "/"})
        return "<node>" + "".join(f"<node name={quoteattr(name)}/>" for name in below) + "</node>"


def _property(interface: Interface, message: Message) -> tuple[str, list[Any]]:
    wanted = {"Get": "ss", "GetAll": "s", "Set": "ssv"}.get(message.member)
    if wanted is None:
        raise Refused(f"{PROPERTIES} has no method {message.member}", f"{DBUS}.Error.UnknownMethod")
    _check_signature(message, wanted)
    if message.body[0] not in ("", interface.name):
        text = f'"{message.path}" has no interface {message.body[0]}'
        raise Refused(text, f"{DBUS}.Error.UnknownInterface")
    if message.member == "GetAll":
        return "a{sv}", [interface.values()]
    name = message.body[1]
    if name not in interface.properties:
        raise Refused(f"{interface.name} has no property {name}", f"{DBUS}.Error.UnknownProperty")
    if message.member == "Set":
        raise Refused(f"{name} can only be read", f"{DBUS}.Error.PropertyReadOnly")
    signature, read = interface.properties[name]
    return "v", [Variant(signature, read())]


def _check_signature(message: Message, wanted: str) -> None:
    if message.signature != wanted:
        raise Refused(f'{message.member} takes the types "{wanted}", not "{message.signature}"')


def _described(interface: Interface) -> str:
    def arguments(items: tuple[str, ...], direction: str) -> str:
        pairs = (item.partition(":") for item in items)
        return "".join(f'<arg name="{name}" type="{kind}"{direction}/>' for name, _, kind in pairs)

    parts = [f'<interface name="{interface.name}">']
    for name, (signature, _) in interface.properties.items():
        parts.append(f'<property name="{name}" type="{signature}" access="read"/>')
    for name, method in interface.methods.items():
        inside = arguments(method.takes, ' direction="in"') + arguments(method.gives, ' direction="out"')
        parts.append(f'<method name="{name}">{inside}</method>')
    for name, carried in interface.signals.items():
        parts.append(f'<signal name="{name}">{arguments(carried, "")}</signal>')
    return "".join(parts) + "</interface>"
