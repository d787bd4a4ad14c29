"""The D-Bus library of gpudctl: dbus-next, or dbus-fast, which has the same names, where dbus-next does not load."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbus_next.aio.message_bus import MessageBus
    from dbus_next.constants import MessageFlag, MessageType
    from dbus_next.message import Message
    from dbus_next.signature import Variant
else:
    try:
        from dbus_next.aio.message_bus import MessageBus
        from dbus_next.constants import MessageFlag, MessageType
        from dbus_next.message import Message
        from dbus_next.signature import Variant
    except (ImportError, AttributeError):
        # AttributeError: dbus-next decorates with typing.no_type_check_decorator, which Python 3.15 drops.
        from dbus_fast.aio.message_bus import MessageBus
        from dbus_fast.constants import MessageFlag, MessageType
        from dbus_fast.message import Message
        from dbus_fast.signature import Variant

__all__ = ["Message", "MessageBus", "MessageFlag", "MessageType", "Variant"]
