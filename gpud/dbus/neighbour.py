"""Whether this machine has a gpud of its own beside one that a user wants to run: asked once, before it starts."""

import logging
import os

from gpud.dbus.address import BusUnavailable, bus_address
from gpud.dbus.bus import load_library
from gpud.dbus.connection import Connection, ReplyError
from gpud.dbus.interface import INTERFACE
from gpud.dbus.wire import Kind, Message

log = logging.getLogger(__name__)

ANSWER_S = 3.0
"""For the system bus and for systemd together with it; both answer within milliseconds."""

UNIT = "gpud.service"
SYSTEMD = "org.freedesktop.systemd1"


async def gpud_of_the_machine(address: str | None = None) -> str:
    """Words for the gpud that runs for the whole machine, or will at its next boot; empty where there is none.

    Without a system bus there is none: nobody could talk to it.
    """
    try:
        connection = await Connection.open(
            load_library(None), address or bus_address(os.environ, session=False), lambda _message: None, ANSWER_S
        )
    except BusUnavailable as problem:
        log.debug("no gpud of the machine is looked for: %s", problem)
        return ""
    try:
        return await _running(connection) or await _enabled(connection)
    finally:
        connection.close()


async def _running(connection: Connection) -> str:
    try:
        owner = str(await connection.call_bus("GetNameOwner", "s", [INTERFACE]))
        pid = await connection.call_bus("GetConnectionUnixProcessID", "s", [owner])
    except (ReplyError, OSError, TimeoutError):
        return ""
    return f"runs as process {pid}"


async def _enabled(connection: Connection) -> str:
    """At boot a user's gpud may be there first."""
    ask = Message(
        Kind.CALL,
        destination=SYSTEMD,
        path="/org/freedesktop/systemd1",
        interface=f"{SYSTEMD}.Manager",
        member="GetUnitFileState",
        signature="s",
        body=[UNIT],
    )
    try:
        (state,) = (await connection.call(ask, ANSWER_S)).body
    except (ReplyError, OSError, TimeoutError, ValueError):
        return ""
    return f"is started at boot ({UNIT} is enabled)" if state == "enabled" else ""
