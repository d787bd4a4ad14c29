"""Answers every call that reaches the connection, by the interface's XML and a table of handlers.

Each call gets exactly one answer (none when the caller wants none): the handler's result, an error with a name, or
"internal error", which is logged here and says nothing more to the peer. The standard interfaces are answered here.
"""

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gpud.core.errors import GpudError
from gpud.core.record import Record, Struct, field
from gpud.dbus import errors
from gpud.dbus.address import BusUnavailable
from gpud.dbus.errors import CallError, bus_error
from gpud.dbus.interface import INTERFACE, INTROSPECTABLE, PATH, PEER, PROPERTIES, ObjectTree
from gpud.dbus.limits import Meter
from gpud.dbus.shown import Encode, Shown
from gpud.dbus.wire import Flag, Kind, Message, Variant

log = logging.getLogger(__name__)


class Request(Struct):
    """One call as a handler sees it."""

    sender: str
    member: str
    interactive: bool = False


class Reply(Record):
    """What a handler returns: the values (or the bytes that they are), and descriptors that are closed once they are
    sent."""

    values: tuple[Any, ...] = ()
    fds: list[int] = field(default_factory=list)
    encoded: bytes = b""


Handler = Callable[..., "Reply | Awaitable[Reply]"]
"""Called with the request and the call's arguments. One that answers at once is a plain function."""


class Dispatcher:
    """Give it each call with the way back, first without its body (:meth:`admit`), then whole (:meth:`call`).

    Handlers that take time run as tasks, which are kept here.
    """

    def __init__(
        self,
        tree: ObjectTree,
        handlers: Mapping[str, Handler],
        shown: Shown,
        meter: Meter,
        clock: Callable[[], float],
        encode: Encode,
    ) -> None:
        self._tree = tree
        self._handlers = handlers
        self._shown = shown
        self._meter = meter
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        if self._handlers.keys() != tree.own.methods.keys():
            raise ValueError(
                f"the handlers do not fit the interface: {sorted(self._handlers.keys() ^ tree.own.methods.keys())}"
            )
        self._refusal_name, text = bus_error(meter.refusal)
        self._refusal_body = encode("s", (text,))

    def admit(self, head: Message, send: Callable[[Message], None]) -> bool:
        """Whether a call is to be answered by :meth:`call`; one too many is refused here.

        Everybody else waits behind a flood of calls, so that refusing one must cost next to nothing: no body is read,
        and the answer is bytes already but for whom it goes to.
        """
        if self._meter.admit(head.sender, self._clock()):
            return True
        if head.wants_reply:
            send(
                Message(
                    Kind.ERROR,
                    destination=head.sender,
                    reply_serial=head.serial,
                    error_name=self._refusal_name,
                    signature="s",
                    encoded=self._refusal_body,
                )
            )
        return False

    def call(self, message: Message, send: Callable[[Message], None]) -> None:
        """Answer one admitted call, now or later."""
        request = Request(
            sender=message.sender,
            member=message.member,
            interactive=bool(message.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION),
        )
        try:
            handler, gives = self._find(message)
            result = handler(request, *message.body)
            if isinstance(result, Reply):
                self._answer(message, gives, result, send)
                return
            try:
                self._meter.begin(message.sender)
            except GpudError:
                if inspect.iscoroutine(result):
                    result.close()
                raise
        except BaseException as problem:
            self._refuse(message, problem, send)
            if not isinstance(problem, Exception):
                raise
            return
        task = asyncio.ensure_future(self._finish(message, gives, result, send))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Returns when every call that has come is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what is still being answered; each caller gets an error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finish(
        self, message: Message, gives: str, result: Awaitable[Reply], send: Callable[[Message], None]
    ) -> None:
        try:
            self._answer(message, gives, await result, send)
        except BaseException as problem:
            self._refuse(message, problem, send)
            if not isinstance(problem, Exception):
                raise
        finally:
            self._meter.end(message.sender)

    # Answers ---------------------------------------------------------------------------------------------------------

    def _answer(self, message: Message, gives: str, reply: Reply, send: Callable[[Message], None]) -> None:
        if not message.wants_reply:
            for fd in reply.fds:
                os.close(fd)
            return
        send(
            Message(
                Kind.RETURN,
                destination=message.sender,
                reply_serial=message.serial,
                signature=gives,
                body=list(reply.values),
                fds=reply.fds,
                encoded=reply.encoded,
            )
        )

    def _refuse(self, message: Message, problem: BaseException, send: Callable[[Message], None]) -> None:
        if isinstance(problem, GpudError):
            name, text = bus_error(problem)
        elif isinstance(problem, CallError):
            name, text = problem.name, problem.text
        elif isinstance(problem, asyncio.CancelledError):
            name, text = errors.FAILED, f"cannot finish {message.member}: gpud stopped working on it; call again"
        elif isinstance(problem, BusUnavailable):
            name, text = errors.FAILED, str(problem)
        else:
            log.error("internal error in %s called by %s", message.member, message.sender, exc_info=problem)
            name = errors.FAILED
            text = f"internal error in {message.member}; the journal of gpud.service says more"
        if not message.wants_reply:
            return
        with contextlib.suppress(Exception):
            # Only a text that cannot be sent fails here, and those are cleaned before they are.
            send(
                Message(
                    Kind.ERROR,
                    destination=message.sender,
                    reply_serial=message.serial,
                    error_name=name,
                    signature="s",
                    body=[text],
                )
            )

    # Finding the handler ---------------------------------------------------------------------------------------------

    def _find(self, message: Message) -> tuple[Handler, str]:
        """The handler, and the signature of what it gives. Raises CallError for a call that does not fit."""
        if message.oversize:
            what = message.member or "a method"
            raise CallError(errors.LIMITS_EXCEEDED, f"cannot read a call of {what}: {message.oversize}")
        if message.damaged:
            raise CallError(errors.INVALID_ARGS, f"the arguments of {message.member} cannot be read")
        if not self._tree.has(message.path) and message.interface != PEER:
            raise CallError(errors.UNKNOWN_OBJECT, f'there is no object "{message.path}"; the only one is "{PATH}"')
        name = message.interface or self._interface_of(message)
        present = message.path == PATH or name in (INTROSPECTABLE, PEER)
        interface = self._tree.interfaces.get(name) if present else None
        if interface is None:
            raise CallError(errors.UNKNOWN_INTERFACE, f'the object "{message.path}" has no interface "{name}"')
        method = interface.methods.get(message.member)
        if method is None:
            raise CallError(errors.UNKNOWN_METHOD, f'the interface "{name}" has no method "{message.member}"')
        if message.signature != method.takes:
            raise CallError(
                errors.INVALID_ARGS,
                f'{message.member} was called with arguments "{message.signature}", it takes "{method.takes}"',
            )
        return self._handler(name, message), method.gives

    def _interface_of(self, message: Message) -> str:
        """A call may leave the interface out: the first that has the method, our own before the standard ones."""
        for name in (INTERFACE, PROPERTIES, INTROSPECTABLE, PEER):
            if message.member in self._tree.interfaces[name].methods:
                return name
        raise CallError(errors.UNKNOWN_METHOD, f'the object "{message.path}" has no method "{message.member}"')

    def _handler(self, interface: str, message: Message) -> Handler:
        if interface == INTERFACE:
            return self._handlers[message.member]
        if interface == INTROSPECTABLE:
            text = self._tree.introspection(message.path)
            return lambda _request: Reply((text,))
        standard: dict[str, Handler] = {
            "Ping": lambda _request: Reply(),
            "GetMachineId": lambda _request: Reply((_machine_id(),)),
            "Get": self._get,
            "GetAll": self._get_all,
            "Set": self._set,
        }
        return standard[message.member]

    # Properties ------------------------------------------------------------------------------------------------------

    def _get(self, _request: Request, interface: str, name: str) -> Reply:
        self._check_property(interface, name)
        return Reply((self._shown.properties()[name],))

    def _get_all(self, _request: Request, interface: str) -> Reply:
        if interface in ("", INTERFACE):
            return Reply(encoded=self._shown.all_properties())
        if interface not in self._tree.interfaces:
            raise CallError(errors.UNKNOWN_INTERFACE, f'the object "{PATH}" has no interface "{interface}"')
        return Reply(({},))

    def _set(self, _request: Request, interface: str, name: str, _value: Variant) -> Reply:
        self._check_property(interface, name)
        raise CallError(
            errors.PROPERTY_READ_ONLY, f'the property "{name}" cannot be set; SetIdleTimeout and SetVramBudget can'
        )

    def _check_property(self, interface: str, name: str) -> None:
        if interface and interface not in self._tree.interfaces:
            raise CallError(errors.UNKNOWN_INTERFACE, f'the object "{PATH}" has no interface "{interface}"')
        if interface not in ("", INTERFACE) or name not in self._tree.own.properties:
            raise CallError(
                errors.UNKNOWN_PROPERTY, f'the interface "{interface or INTERFACE}" has no property "{name}"'
            )


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            return Path(path).read_text(encoding="ascii").strip()
    raise CallError(errors.FAILED, "cannot tell the machine's id: there is no /etc/machine-id")
