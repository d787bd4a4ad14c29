"""Where the bus listens, and how a connection to it is opened and greeted; never reads a message."""

import asyncio
import os
import socket
from collections.abc import Mapping
from urllib.parse import unquote

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"


class BusUnavailable(OSError):
    """The bus cannot be reached, or does not speak as it should."""


def bus_address(environment: Mapping[str, str], *, session: bool) -> str:
    """The address of the wanted bus. Raises BusUnavailable when the environment does not name a session bus."""
    if not session:
        return environment.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    if given := environment.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return f"unix:path={runtime}/bus"
    raise BusUnavailable("cannot find the session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")


def socket_addresses(address: str) -> list[str]:
    """The Unix sockets that a D-Bus address names, in its order; an abstract one begins with NUL."""
    found = []
    for entry in filter(None, address.split(";")):
        transport, _, rest = entry.partition(":")
        options = {key: unquote(value) for key, _, value in (item.partition("=") for item in rest.split(","))}
        if transport == "unix" and "path" in options:
            found.append(options["path"])
        elif transport == "unix" and "abstract" in options:
            found.append("\0" + options["abstract"])
    if not found:
        raise BusUnavailable(f'cannot use the bus address "{address}": only unix:path= and unix:abstract= are known')
    return found


async def open_socket(address: str) -> socket.socket:
    """A connected, authenticated, non-blocking socket. Raises BusUnavailable. Bound it in time from outside."""
    problems = []
    for path in socket_addresses(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            # A full backlog makes asyncio's connect raise BlockingIOError, an OSError as well: the caller tries again.
            await asyncio.get_running_loop().sock_connect(sock, path)
            await _greet(sock)
            return sock
        except BaseException as problem:
            sock.close()
            if not isinstance(problem, OSError):
                raise
            problems.append(f'"{path.replace(chr(0), "@")}": {problem.strerror or problem}')
    raise BusUnavailable(f"cannot connect to the bus at {', '.join(problems)}")


async def _greet(sock: socket.socket) -> None:
    """The SASL exchange: the kernel vouches for our uid, and descriptors may be passed."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
    answer = await _line(sock)
    if not answer.startswith(b"OK "):
        raise BusUnavailable(f"the bus does not accept uid {os.geteuid()}: it answers {answer[:80]!r}")
    await loop.sock_sendall(sock, b"NEGOTIATE_UNIX_FD\r\n")
    answer = await _line(sock)
    if answer != b"AGREE_UNIX_FD":
        raise BusUnavailable(f"the bus passes no file descriptors: it answers {answer[:80]!r}")
    await loop.sock_sendall(sock, b"BEGIN\r\n")


async def _line(sock: socket.socket) -> bytes:
    # One byte at a time: nothing of what follows the line may be taken from the socket. It is three short lines.
    line = b""
    while not line.endswith(b"\r\n"):
        byte = await asyncio.get_running_loop().sock_recv(sock, 1)
        if not byte or len(line) > 1024:
            raise BusUnavailable("the bus ended the connection while it was greeted")
        line += byte
    return line[:-2]
