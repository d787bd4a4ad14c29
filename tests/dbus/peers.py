"""Everybody else on the test's bus: gpud's service itself, clients of an independent library, tools, a polkit."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageFlag, MessageType, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import DBusConnection, DBusRouter

from gpud.core.events import Notice
from gpud.dbus.bus import load_library
from gpud.dbus.connection import Connection
from gpud.dbus.frame import FIXED_HEADER_BYTES, parse_header, sizes
from gpud.dbus.limits import CallerLimits
from gpud.dbus.service import Service
from gpud.dbus.wire import Kind, Message
from gpud.shells import Shells

from .fake_engine import FakeEngine
from .private_bus import NOBODY

NAME = "org.kernelcore.GpuD"
PATH = "/org/kernelcore/GpuD"
BOUND_S = 50.0


class Failed(Exception):
    """An error reply."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


def nobody() -> Shells:
    """On this machine nobody is at work."""
    return Shells(Path("/nowhere"), lambda _session, _reason: None)


@contextlib.asynccontextmanager
async def serving(
    address: str,
    engine: FakeEngine,
    *,
    library: str = "dbus_next",
    user_mode: bool = False,
    limits: CallerLimits | None = None,
    notices: list[Notice] | None = None,
    shells: Shells | None = None,
) -> AsyncIterator[Service]:
    """gpud's service, as the daemon runs it. Without ``shells`` nobody's session is watched."""
    service = Service(
        engine,
        shells=shells or nobody(),
        user_mode=user_mode,
        limits=limits or CallerLimits(),
        version="1.2.3",
        library=library,
        address=address,
        on_bus=(notices if notices is not None else []).append,
    )
    await service.start()
    running = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        await service.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Peer:
    """A client with a connection of its own."""

    def __init__(self, router: DBusRouter) -> None:
        self.router = router
        self.name = router.unique_name

    async def call(
        self,
        member: str,
        signature: str | None = None,
        *values: Any,
        interface: str | None = NAME,
        path: str = PATH,
        flags: MessageFlag | None = None,
        bound_s: float = BOUND_S,
    ) -> Any:
        """The first value of the reply; raises Failed."""
        message = new_method_call(DBusAddress(path, NAME, interface), member, signature, values)
        if interface is None:
            message.header.fields.pop(HeaderFields.interface, None)
        if flags is not None:
            message.header.flags = flags
        reply = await asyncio.wait_for(self.router.send_and_get_reply(message), bound_s)
        if reply.header.message_type is MessageType.error:
            raise Failed(reply.header.fields[HeaderFields.error_name], reply.body[0] if reply.body else "")
        return reply.body[0] if reply.body else None

    async def get(self, name: str, bound_s: float = BOUND_S) -> Any:
        where = "org.freedesktop.DBus.Properties"
        return (await self.call("Get", "ss", NAME, name, interface=where, bound_s=bound_s))[1]

    async def refused(self, member: str, signature: str | None = None, *values: Any, **where: Any) -> Failed:
        """The error that the call must end with."""
        try:
            got = await self.call(member, signature, *values, **where)
        except Failed as problem:
            return problem
        raise AssertionError(f"{member} was not refused but gave {got!r}")

    @contextlib.asynccontextmanager
    async def signals(self) -> AsyncIterator["Signals"]:
        """All signals of gpud's object from here on."""
        rule = MatchRule(type="signal", path=PATH)
        assert (await self.router.send_and_get_reply(message_bus.AddMatch(rule))).body == ()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        with self.router.filter(rule, queue=queue):
            yield Signals(queue)


class Signals:
    """What came, in order."""

    def __init__(self, queue: "asyncio.Queue[Any]") -> None:
        self._queue = queue

    async def next(self, *members: str) -> tuple[str, Any]:
        """The next signal with one of these names (any, when none is given)."""
        while True:
            message = await asyncio.wait_for(self._queue.get(), BOUND_S)
            member = message.header.fields[HeaderFields.member]
            if not members or member in members:
                return member, message.body

    def waiting(self) -> list[str]:
        """The names of those that have come and were not taken."""
        names = []
        while not self._queue.empty():
            names.append(self._queue.get_nowait().header.fields[HeaderFields.member])
        return names


def connected_socket(address: str, uid: int = 0) -> socket.socket:
    """An authenticated socket of another user: the kernel tells the bus who connected."""
    sock = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        sock.connect(address.removeprefix("unix:path="))
        sock.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
        assert sock.recv(100).startswith(b"OK")
        sock.sendall(b"BEGIN\r\n")
    finally:
        os.seteuid(0)
    return sock


@contextlib.asynccontextmanager
async def peer(address: str, uid: int = 0) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_unix_connection(sock=connected_socket(address, uid))
    connection = DBusConnection(reader, writer)
    router = DBusRouter(connection)
    try:
        reply = await router.send_and_get_reply(message_bus.Hello())
        connection.unique_name = reply.body[0]
        yield Peer(router)
    finally:
        # The bus may have been killed by the test: then the router's receiver has ended with EOFError.
        with contextlib.suppress(EOFError, ConnectionError):
            await router.__aexit__(None, None, None)
        with contextlib.suppress(ConnectionError):
            await connection.close()


async def busctl(address: str, *arguments: str, uid: int = 0) -> tuple[int, str, str]:
    """systemd's own client: status, output, complaint."""
    return await tool("busctl", f"--address={address}", *arguments, uid=uid)


async def tool(*argv: str, uid: int = 0) -> tuple[int, str, str]:
    before = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
    return await asyncio.to_thread(_run, [*before, *argv])


def _run(argv: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BOUND_S, check=False)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


class Overheard:
    """Stands between gpud and the bus, passes every byte on, and keeps what the bus says."""

    def __init__(self, address: str, directory: Path) -> None:
        self._bus = address.removeprefix("unix:path=")
        self._path = f"{directory}/overheard"
        self.address = f"unix:path={self._path}"
        self._heard = bytearray()
        self._changed = asyncio.Event()

    def messages(self) -> list[Message]:
        """The headers of all messages that the bus has sent."""
        # The bus's part of the greeting ends with the line that allows descriptors.
        data = bytes(self._heard).partition(b"AGREE_UNIX_FD\r\n")[2]
        found = []
        while len(data) >= FIXED_HEADER_BYTES and len(data) >= (whole := sum(sizes(data)[1:])):
            found.append(parse_header(data)[0])
            data = data[whole:]
        return found

    async def until(self, predicate: Callable[[list[Message]], bool]) -> list[Message]:
        async with asyncio.timeout(BOUND_S):
            while not predicate(self.messages()):
                self._changed.clear()
                await self._changed.wait()
        return self.messages()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Overheard"]:
        gone: asyncio.Queue[None] = asyncio.Queue()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
            while data := await reader.read(1 << 16):
                kept += data
                self._changed.set()
                writer.write(data)
                await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            bus_reader, bus_writer = await asyncio.open_unix_connection(self._bus)
            await asyncio.gather(pass_on(reader, bus_writer, bytearray()), pass_on(bus_reader, writer, self._heard))
            await asyncio.gather(writer.wait_closed(), bus_writer.wait_closed(), return_exceptions=True)
            gone.put_nowait(None)

        server = await asyncio.start_unix_server(serve, self._path)
        try:
            yield self
            await asyncio.wait_for(gone.get(), BOUND_S)
        finally:
            server.close()
            await server.wait_closed()


class Polkit:
    """A polkit that says what the test wants, when it wants."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Message] = asyncio.Queue()
        self.withdrawn: asyncio.Queue[str] = asyncio.Queue()
        self.answer: tuple[bool, bool] | None = (True, False)
        self._connection: Connection | None = None

    def answer_to(self, question: Message, allowed: bool, challenge: bool = False) -> None:
        assert self._connection is not None
        self._connection.send(
            Message(
                Kind.RETURN,
                destination=question.sender,
                reply_serial=question.serial,
                signature="(bba{ss})",
                body=[[allowed, challenge, {}]],
            )
        )

    def _message(self, message: Message) -> None:
        if message.kind is Kind.CALL and message.member == "CheckAuthorization":
            self.asked.put_nowait(message)
            if self.answer is not None:
                self.answer_to(message, *self.answer)
        elif message.kind is Kind.CALL:
            self.withdrawn.put_nowait(message.body[0])

    @contextlib.asynccontextmanager
    async def on(self, address: str) -> AsyncIterator["Polkit"]:
        self._connection = await Connection.open(load_library(), address, self._message)
        assert await self._connection.call_bus("RequestName", "su", ["org.freedesktop.PolicyKit1", 4]) == 1
        try:
            yield self
        finally:
            self._connection.close()

    def leave(self) -> None:
        assert self._connection is not None
        self._connection.close()


__all__ = ["NOBODY", "Failed", "Peer", "Polkit", "Signals", "busctl", "peer", "serving", "tool"]
