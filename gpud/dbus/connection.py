"""One connection to the bus: whole messages in and out, calls that are answered or time out, and nothing about gpud.

dbus-next's own connection (and dbus-fast's) is not fit for a daemon that strangers may call: a full socket buffer ends
it, it reads as long as there is something to read and starves every timer meanwhile, its queue of answers has no end,
it keeps whatever a peer sends, its calls have no time-out, and descriptors that it receives leak into children. This
one never blocks the loop and gives it air, is bounded in memory in both directions, and is ended by the bus or by us,
never by a peer.
"""

import array
import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gpud.dbus.address import BusUnavailable, open_socket
from gpud.dbus.bus import Library
from gpud.dbus.frame import FIXED_HEADER_BYTES, MalformedMessage, parse_header, parse_long_header, sizes
from gpud.dbus.outbox import Outbox, close_all
from gpud.dbus.wire import BUS_NAME, BUS_PATH, Flag, Kind, Message

log = logging.getLogger(__name__)

# How long connecting, the greeting and Hello may take together. A bus that is up answers within milliseconds; one that
# is stopped or swapped out is better tried again than waited for.
CONNECT_TIMEOUT_S = 5.0
# How long a call of ours waits unless it says otherwise: the time that every D-Bus library uses.
CALL_TIMEOUT_S = 25.0
# One turn of the loop handles so many messages, or as many as fit into this time, then timers and others get theirs.
TURN_MESSAGES = 32
TURN_S = 0.01
READ_BYTES = 64 << 10
# What waits to be written may grow to this; above it nothing more is read, so that no more answers are made.
OUT_PAUSE_BYTES = 4 << 20
OUT_RESUME_BYTES = 1 << 20
# No call of gpud's interface needs more than a few KiB. A larger body is passed over without being kept.
MAX_BODY_BYTES = 256 << 10
MAX_HEADER_BYTES = 64 << 10
# Of a longer header only its end is kept, where the bus put the sender: who called can still be told what was wrong.
_TAIL_BYTES = 1 << 10
# The kernel passes at most 253 descriptors at once.
_ANCILLARY_BYTES = socket.CMSG_SPACE(253 * array.array("i").itemsize)


class ReplyError(Exception):
    """A call of ours was answered with an error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class ConnectionGone(BusUnavailable):
    """The connection ended before the call was answered."""


class Connection:
    """Made by :meth:`open`. ``closed`` resolves to the reason when the connection has ended, whoever ended it."""

    def __init__(
        self,
        library: Library,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        admit: Callable[[Message], bool] = lambda _head: True,
    ) -> None:
        self._library = library
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._admit = admit
        self.unique_name = ""
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._serial = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[Message]]] = {}
        self._inbox = bytearray()
        self._in_fds: deque[int] = deque()
        self._skip_bytes = 0
        self._long_header: tuple[bytes, str] | None = None
        self._reading = False  # Whether messages are wanted; a turn is due or the socket is watched then.
        self._watched = False
        self._turn: asyncio.Handle | None = None
        self._outbox = Outbox(sock, self._written, self.close)
        self._start_reading()

    @classmethod
    async def open(
        cls,
        library: Library,
        address: str,
        on_message: Callable[[Message], None],
        timeout_s: float = CONNECT_TIMEOUT_S,
        *,
        admit: Callable[[Message], bool] = lambda _head: True,
    ) -> "Connection":
        """Connect and say Hello. Raises BusUnavailable. ``on_message`` sees calls and signals, on the loop.

        ``admit`` sees each call before that, without its body; False says that it has been dealt with: nothing more is
        made of it.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = cls(library, await open_socket(address), on_message, admit)
                try:
                    connection.unique_name = str(await connection.call_bus("Hello"))
                except BaseException:
                    connection.close("Hello was not answered")
                    raise
        except TimeoutError:
            raise BusUnavailable(
                f'cannot connect to the bus at "{address}": it does not answer within {timeout_s:g} s'
            ) from None
        except ReplyError as problem:
            raise BusUnavailable(f'cannot connect to the bus at "{address}": {problem}') from None
        return connection

    @property
    def unsent_bytes(self) -> int:
        """What waits to be written."""
        return self._outbox.unsent_bytes

    @property
    def open_calls(self) -> int:
        """How many calls of ours are not answered yet."""
        return len(self._waiting)

    # Calls of ours ---------------------------------------------------------------------------------------------------

    async def call(self, message: Message, timeout_s: float = CALL_TIMEOUT_S) -> Message:
        """Send a call and return its reply; descriptors in it are the caller's to close.

        Raises ReplyError, ConnectionGone, or TimeoutError; a reply that comes later is dropped.
        """
        if self.closed.done():
            raise ConnectionGone(f"cannot call {message.destination}: {self.closed.result()}")
        reply: asyncio.Future[Message] = self._loop.create_future()
        serial = self._next_serial()
        message.serial = serial
        self._waiting[serial] = (message.destination, reply)
        try:
            self.send(message)
            async with asyncio.timeout(timeout_s):
                answer = await reply
        except BaseException:
            # The reply may have come in the moment in which the wait for it was given up.
            if reply.done() and not reply.cancelled() and reply.exception() is None:
                close_all(reply.result().fds)
            raise
        finally:
            del self._waiting[serial]
        if answer.kind is Kind.ERROR:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            close_all(answer.fds)
            raise ReplyError(answer.error_name, text)
        return answer

    async def call_bus(
        self, member: str, signature: str = "", body: list[Any] | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Call the bus itself; returns the first value of its reply, or None."""
        reply = await self.call(
            Message(
                Kind.CALL,
                destination=BUS_NAME,
                path=BUS_PATH,
                interface=BUS_NAME,
                member=member,
                signature=signature,
                body=body or [],
            ),
            timeout_s,
        )
        # Newer buses put a descriptor of the peer's process among its credentials.
        close_all(reply.fds)
        return reply.body[0] if reply.body else None

    def tell_bus(self, member: str, signature: str, body: list[Any]) -> None:
        """Call the bus itself without waiting for a reply; for what can only fail when it no longer matters."""
        self.send(
            Message(
                Kind.CALL,
                flags=Flag.NO_REPLY_EXPECTED,
                destination=BUS_NAME,
                path=BUS_PATH,
                interface=BUS_NAME,
                member=member,
                signature=signature,
                body=body,
            )
        )

    # Writing ---------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message; its descriptors are taken over and closed once they are sent, or cannot be.

        Raises what the library raises for a body that does not fit its signature. Does nothing on a closed connection.
        """
        try:
            if self.closed.done():
                close_all(message.fds)
                return
            if not message.serial:
                message.serial = self._next_serial()
            data = self._library.encode(message)
        except BaseException:
            close_all(message.fds)
            raise
        self._outbox.put(data, message.fds)
        if self._outbox.unsent_bytes > OUT_PAUSE_BYTES:
            self._stop_reading()

    def _written(self) -> None:
        if self._outbox.unsent_bytes <= OUT_RESUME_BYTES and not self.closed.done():
            self._start_reading()

    # Reading ---------------------------------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        if not self._reading:
            self._reading = True
            # Through a turn, not by watching the socket: whole messages may be left in the inbox from before a pause.
            self._turn = self._loop.call_soon(self._take_turn)

    def _stop_reading(self) -> None:
        self._reading = False
        self._watch(False)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _watch(self, wanted: bool) -> None:
        if wanted and not self._watched:
            self._loop.add_reader(self._fd, self._read)
        elif self._watched and not wanted:
            self._loop.remove_reader(self._fd)
        self._watched = wanted

    def _read(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as problem:
            self.close(f"reading from the bus failed: {problem.strerror}")
            return
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                self._in_fds.extend(numbers)
        if not data:
            self.close("the bus ended the connection")
            return
        self._inbox += data
        self._take_turn()

    def _take_turn(self) -> None:
        """Hand on a bounded number of messages; what is left waits for the next turn, before more is read."""
        self._turn = None
        began = time.monotonic()
        position = 0
        try:
            with self._outbox.gathering():
                for _ in range(TURN_MESSAGES):
                    used = self._take_message(position)
                    if not used:
                        break
                    position += used
                    if not self._reading or time.monotonic() - began > TURN_S:
                        break
        except MalformedMessage as problem:
            self.close(f"the bus sent what is no message: {problem}")
            return
        except Exception as problem:
            # Never stand there with a connection that nobody reads: a new one will do.
            log.exception("internal error while messages from the bus were read")
            self.close(f"internal error: {problem!r}")
            return
        del self._inbox[:position]
        if not self._reading or self._turn is not None:
            return
        self._watch(not used)
        if used:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_message(self, position: int) -> int:
        """Take one message, or a part of one that is passed over, from the inbox; returns the bytes it used, 0: none
        is whole."""
        left = len(self._inbox) - position
        if self._skip_bytes:
            used = min(left, self._skip_bytes)
            self._skip_bytes -= used
            return used
        if self._long_header is not None:
            return self._end_long_header(position, left)
        if left < FIXED_HEADER_BYTES:
            return 0
        size = sizes(self._inbox, position)
        if size.header_bytes > MAX_HEADER_BYTES:
            # A path can be that long. It is longer than one read, so that no later message has come yet and every
            # descriptor that has is its own.
            close_all(self._in_fds)
            why = f"its header has {size.header_bytes} bytes, the limit is {MAX_HEADER_BYTES}"
            self._long_header = (bytes(self._inbox[position : position + FIXED_HEADER_BYTES]), why)
            self._skip_bytes = size.header_bytes - _TAIL_BYTES
            return self._take_message(position)
        if left < size.header_bytes:
            return 0
        oversize = size.body_bytes > MAX_BODY_BYTES
        whole = size.header_bytes if oversize else size.header_bytes + size.body_bytes
        if left < whole:
            return 0
        message, fd_count = parse_header(bytes(self._inbox[position : position + size.header_bytes]))
        if fd_count:
            message.fds = [self._in_fds.popleft() for _ in range(min(fd_count, len(self._in_fds)))]
        if oversize:
            self._skip_bytes = size.body_bytes
            message.oversize = f"its arguments have {size.body_bytes} bytes, the limit is {MAX_BODY_BYTES}"
        if not self._admitted(message):
            close_all(message.fds)
            return whole
        if message.signature and not oversize:
            body = bytes(self._inbox[position + size.header_bytes : position + whole])
            self._read_body(message, body, little_endian=size.little_endian)
        self._hand_on(message)
        return whole

    def _end_long_header(self, position: int, left: int) -> int:
        """The last bytes of a header that was passed over: its call is answered, its body passed over as well."""
        if left < _TAIL_BYTES:
            return 0
        assert self._long_header is not None
        (start, why), self._long_header = self._long_header, None
        message = parse_long_header(start, bytes(self._inbox[position : position + _TAIL_BYTES]))
        message.oversize = why
        self._skip_bytes = sizes(start).body_bytes
        if message.kind is Kind.CALL and message.sender and self._admitted(message):
            self._hand_on(message)
        return _TAIL_BYTES

    def _admitted(self, message: Message) -> bool:
        if message.kind is not Kind.CALL:
            return True
        try:
            return self._admit(message)
        except Exception:
            log.exception("internal error while a call from %s was looked at", message.sender)
            return False

    def _read_body(self, message: Message, body: bytes, *, little_endian: bool) -> None:
        try:
            message.body = self._library.decode_body(body, message.signature, little_endian=little_endian)
        except Exception as problem:
            # The library met something that it cannot read; the connection is none the worse for it.
            log.debug("the body of a message from %s cannot be read: %r", message.sender, problem)
            message.damaged = True

    def _hand_on(self, message: Message) -> None:
        if message.kind in (Kind.RETURN, Kind.ERROR):
            destination, reply = self._waiting.get(message.reply_serial, ("", None))
            from_bus = message.sender == BUS_NAME
            if reply is None or reply.done() or (destination == BUS_NAME and not from_bus) or message.damaged:
                close_all(message.fds)
            else:
                reply.set_result(message)
            return
        try:
            if message.kind is not Kind.OTHER:
                self._on_message(message)
        except Exception:
            log.exception("internal error while a message from %s was handled", message.sender)
        finally:
            close_all(message.fds)

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self, reason: str = "gpud closed it") -> None:
        """End the connection: what waits to be written is dropped, calls that wait fail with ConnectionGone."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._stop_reading()
        self._outbox.close()
        self._sock.close()
        close_all(self._in_fds)
        for destination, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionGone(f"{destination} did not answer: {reason}"))

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything queued is written, within the bound; for the last words before :meth:`close`."""
        await self._outbox.drain(timeout_s)

    def _next_serial(self) -> int:
        # Serials are 32 bits and never 0; a call still waiting after four thousand million others does not exist.
        self._serial = self._serial % 0xFFFFFFFF + 1
        return self._serial
