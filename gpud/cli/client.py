"""A connection to the daemon over D-Bus: calls that end in time, signals that none is lost of, and the daemon's going.

Whatever goes wrong comes out as a GpudError: NotRunning when nobody answers, BusError for what the daemon says.
"""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from gpud.cli import agent
from gpud.cli.exits import BusError, NotRunning, Usage
from gpud.cli.library import Message, MessageBus, MessageFlag, MessageType, Variant
from gpud.core.errors import GpudError, NoSuchModel

log = logging.getLogger(__name__)

NAME = "org.kernelcore.GpuD"
PATH = "/org/kernelcore/GpuD"
PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"

BUS_NAMES = {"system": "system bus", "user": "session bus"}

CONNECT_S = 5.0
"""To reach a bus and be greeted by it, which takes milliseconds unless the bus hangs."""

CALL_S = 10.0
"""For the answer to a call. The daemon answers all of them at once, also those that start something long."""

ASK_S = 120.0
"""For the answer to a call for which polkit may ask a person for a password."""

LISTS = frozenset(("ListModels", "ListCatalog", "Status"))
LIST_S = 120.0
"""For answers that name all models: of tens of thousands they have tens of megabytes, which a busy machine needs more
than a moment for.
"""

NEVER = float("inf")
"""As a bound: wait for the answer for as long as the daemon lives. A wait for memory, or for a look at disks, ends when
the daemon says so.
"""

START_S = 30.0
"""For the bus to start the daemon; systemd itself gives up earlier when the unit cannot start."""

T = TypeVar("T")


class Signal(NamedTuple):
    """One signal of the daemon's."""

    member: str
    body: list[Any]


class Gpud:
    """The daemon, as reached over one bus. Made by :func:`connect`."""

    def __init__(self, bus: MessageBus, kind: str, owner: str) -> None:
        self.kind = kind
        """``system`` or ``user``."""
        self.owner = owner
        """The unique name of the daemon's connection."""
        self.has_desktop = False
        """Whether the caller sits on a desktop, whose own agent shows polkit's questions: no terminal is needed."""
        self._bus = bus
        self._signals: asyncio.Queue[Signal | None] = asyncio.Queue()
        """None stands for: it has gone."""
        self._watch = asyncio.ensure_future(self._watch_bus())
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def bus_name(self) -> str:
        return BUS_NAMES[self.kind]

    # Calls -----------------------------------------------------------------------------------------------------------

    async def call(
        self, member: str, signature: str = "", *body: Any, asks: bool = False, bounded: bool = True
    ) -> list[Any]:
        """Call a method of gpud's interface. ``asks``: polkit may have to ask the person at the terminal first. Not
        ``bounded``: the answer takes as long as the disk does.
        """
        flags = await self._flags(asks=asks)
        timeout_s = ASK_S if flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION else CALL_S
        if member in LISTS:
            timeout_s = LIST_S
        if not bounded:
            timeout_s = NEVER
        return await _call(self._bus, _to_gpud(member, signature, list(body), flags), timeout_s)

    async def _flags(self, *, asks: bool) -> MessageFlag:
        flags = MessageFlag.NO_AUTOSTART
        if asks and self.has_desktop:
            flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        elif asks and interactive():
            flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
            if self._agent is None and self.kind == "system" and os.geteuid() != 0:
                self._agent = await asyncio.to_thread(agent.start)
        return flags

    async def claim(self, size_bytes: int, who: str, why: str, options: Mapping[str, Variant]) -> tuple[int, int]:
        """Wait until memory is granted: the claim's number, and the descriptor that it lasts as long as.

        The connection must have been made with ``descriptors``.
        """
        flags = await self._flags(asks=True)
        message = _to_gpud("Claim", "tssa{sv}", [size_bytes, who, why, dict(options)], flags)
        reply = await _reply(self._bus, message, NEVER)
        number, index = reply.body
        descriptor: int = reply.unix_fds[index]
        # The library takes descriptors without the flag. A program that is started later must not have this one.
        os.set_inheritable(descriptor, False)
        return number, descriptor

    async def inhibit(self, what: str, who: str, why: str) -> int:
        """The descriptor that it lasts as long as. The connection must have been made with ``descriptors``."""
        flags = await self._flags(asks=False)
        reply = await _reply(self._bus, _to_gpud("Inhibit", "sss", [what, who, why], flags), CALL_S)
        descriptor: int = reply.unix_fds[reply.body[0]]
        os.set_inheritable(descriptor, False)
        return descriptor

    async def status(self) -> dict[str, Any]:
        """Everything at one moment, in plain values."""
        (status,) = await self.call("Status")
        return dict(status)

    async def models(self) -> list[dict[str, Any]]:
        (models,) = await self.call("ListModels")
        return list(models)

    async def overview(self, *names: str) -> dict[str, Any]:
        """As :meth:`status`, but of the models, of which there may be thousands, only those that have an engine, want
        one or have failed, and those with these names (no aliases; at most 500). In the order of their names.
        """
        (overview,) = await self.call("Overview", "usas", 0, "", list(names))
        return {**overview, "Models": sorted(overview["Models"], key=lambda record: record["Id"])}

    async def models_named(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Those with these names (no aliases; at most 500) and no others."""
        wanted = list(dict.fromkeys(names))
        models = (await self.overview(*wanted))["Models"] if wanted else ()
        return [record for record in models if record["Id"] in wanted]

    async def about(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The record of one model, by its name or an alias, and the overview that has it. Raises NoSuchModel."""
        if not name:
            raise Usage("the model's name is empty", hint='name a model; "gpudctl models" lists them')
        overview = await self.overview(name)
        if (record := named(overview["Models"], name)) is None:
            # An alias of a model that rests, or a mistake.
            overview = await self.overview(known := await self._meant(name))
            if (record := named(overview["Models"], known)) is None:
                hint = f'"gpudctl models info {known}" shows what it is'
                raise NoSuchModel(f'"{known}" is not a model that can be loaded', hint=hint)
        return record, overview

    async def _meant(self, name: str) -> str:
        try:
            ((known,),) = await self.call("ListCatalog", "as", [name])
        except BusError as error:
            if error.code != "no-such-model":
                raise
            raise NoSuchModel(error.message) from None
        return str(known["Id"])

    # Signals ---------------------------------------------------------------------------------------------------------

    async def subscribe(self) -> None:
        """From here on no signal of the daemon's is lost. Call it before what causes them."""
        self._bus.add_message_handler(self._take)
        watch = f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{NAME}'"
        for rule in (watch, f"type='signal',sender='{NAME}',path='{PATH}'"):
            await _call(self._bus, _to_bus("AddMatch", "s", rule), CALL_S)
        # It may have gone between the look at its name and the rule that tells of it.
        (owner,) = await _call(self._bus, _to_bus("GetNameOwner", "s", NAME), CALL_S)
        if owner != self.owner:
            raise _gone()

    async def next_signal(self, timeout_s: float | None = None) -> Signal:
        """The next signal. Raises TimeoutError, and NotRunning when the daemon or the bus has gone."""
        async with asyncio.timeout(timeout_s):
            signal = await self._signals.get()
        if signal is None:
            self._signals.put_nowait(None)
            raise _gone()
        return signal

    def waiting_signal(self) -> Signal | None:
        """The next signal of those that have come already. Raises NotRunning as :meth:`next_signal` does."""
        if self._signals.empty():
            return None
        signal = self._signals.get_nowait()
        if signal is None:
            self._signals.put_nowait(None)
            raise _gone()
        return signal

    def _take(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == DBUS and message.member == "NameOwnerChanged" and message.body[0] == NAME:
            if message.body[2] != self.owner:
                self._signals.put_nowait(None)
        elif message.sender == self.owner and message.path == PATH:
            self._signals.put_nowait(Signal(message.member, plain(message.body)))

    async def _watch_bus(self) -> None:
        try:
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception:  # Any reason is the same to us: nobody answers any longer.
            log.debug("The bus has gone", exc_info=True)
        self._signals.put_nowait(None)

    def forget(self) -> None:
        """Stop watching the connection, which is somebody else's."""
        self._watch.cancel()

    def close(self) -> None:
        if self._agent is not None:
            agent.stop(self._agent)
        self._watch.cancel()
        hang_up(self._bus)


def named(models: Iterable[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The one of them with this name or alias."""
    return next((record for record in models if name in (record["Id"], *record.get("Aliases", ()))), None)


def changed_models(signal: Signal) -> list[dict[str, Any]] | None:
    """The records of all models, where the signal brings them."""
    models: list[dict[str, Any]] | None = changed(signal, "Models")
    return models


def asks_for_models(signal: Signal) -> bool:
    """Whether they have changed, and are too many for the signal to bring them."""
    return signal.member == "PropertiesChanged" and signal.body[0] == NAME and "Models" in signal.body[2]


def changed(signal: Signal, name: str) -> Any:
    """The new value of a property, where the signal brings it; else None."""
    if signal.member != "PropertiesChanged" or signal.body[0] != NAME:
        return None
    return signal.body[1].get(name)


def interactive() -> bool:
    """Whether a person sits there who can be asked for a password."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def plain(value: Any) -> Any:
    """The value without the library's wrapping."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


# Connecting ----------------------------------------------------------------------------------------------------------


def wanted_buses(asked: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Which buses to look at, the first choice first. Raises Usage for a GPUD_BUS that is no bus."""
    if asked:
        return (asked,)
    chosen = environment.get("GPUD_BUS", "")
    if chosen in ("user", "system"):
        return (chosen,)
    if chosen in ("", "auto"):
        return ("system", "user")
    raise Usage(f'GPUD_BUS is "{chosen}"; it can be user, system or auto', hint="correct or unset it")


def bus_address(kind: str, environment: Mapping[str, str]) -> str:
    """Where a bus listens; empty for a session bus of which nothing is known."""
    if kind == "system":
        return environment.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
    if given := environment.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    runtime = environment.get("XDG_RUNTIME_DIR")
    return f"unix:path={runtime}/bus" if runtime else ""


async def connect(asked: str = "", *, start: bool = False, descriptors: bool = False) -> Gpud:
    """The daemon on the wanted bus. ``start`` lets the bus start it where it does not run; ``descriptors`` allows it to
    send some. Raises NotRunning.
    """
    kinds = wanted_buses(asked, os.environ)
    reached: list[tuple[str, MessageBus]] = []
    chosen: MessageBus | None = None
    problems: list[str] = []
    try:
        for kind in kinds:
            if len(kinds) > 1 and not bus_address(kind, os.environ):
                continue  # Nobody asked for that bus, and here is none.
            bus = await _open(kind, problems, descriptors=descriptors)
            if bus is None:
                continue
            reached.append((kind, bus))
            owner = await _owner(bus)
            if owner:
                chosen = bus
                return Gpud(bus, kind, owner)
        for kind, bus in reached if start else ():
            if await _started(bus, problems) and (owner := await _owner(bus)):
                chosen = bus
                return Gpud(bus, kind, owner)
    finally:
        for _, bus in reached:
            if bus is not chosen:
                hang_up(bus)
    raise _not_running(kinds, problems)


async def open_bus(kind: str) -> tuple[MessageBus | None, str]:
    """A connection to one bus, for those who look at the bus itself; or why there is none."""
    problems: list[str] = []
    return await _open(kind, problems), "; ".join(problems)


def hang_up(bus: MessageBus) -> None:
    """End a connection; one that has ended already is left as it is."""
    if bus.connected:
        bus.disconnect()  # type: ignore[no-untyped-call]


async def ask_bus(bus: MessageBus, member: str, signature: str = "", *body: Any) -> Any:
    """One call to the bus itself; its first value. Raises BusError."""
    values = await _call(bus, _to_bus(member, signature, *body), CALL_S)
    return values[0] if values else None


async def call_anyone(bus: MessageBus, message: Message, timeout_s: float) -> list[Any]:
    """Any call on a connection; the values of its reply. Raises GpudError."""
    return await _call(bus, message, timeout_s)


async def _open(kind: str, problems: list[str], *, descriptors: bool = False) -> MessageBus | None:
    address = bus_address(kind, os.environ)
    label = f"the {BUS_NAMES[kind]}"
    if not address:
        problems.append(f"{label} is unknown (no DBUS_SESSION_BUS_ADDRESS, no XDG_RUNTIME_DIR)")
        return None
    try:
        async with asyncio.timeout(CONNECT_S):
            return await MessageBus(bus_address=address, negotiate_unix_fd=descriptors).connect()
    except TimeoutError:
        problems.append(f"{label} does not answer")
    except Exception as problem:
        # The library raises OSError, EOFError, AuthError and errors of its own for an address that it cannot read.
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        problems.append(f"{label} cannot be reached ({reason})")
    return None


async def _owner(bus: MessageBus) -> str:
    try:
        (owner,) = await _call(bus, _to_bus("GetNameOwner", "s", NAME), CALL_S)
    except GpudError:
        return ""
    return str(owner)


async def _started(bus: MessageBus, problems: list[str]) -> bool:
    try:
        await _call(bus, _to_bus("StartServiceByName", "su", NAME, 0), START_S)
    except NotRunning:
        return False
    except BusError as error:
        problems.append(f"the bus could not start it: {error.message}")
        return False
    return True


def _to_bus(member: str, signature: str = "", *body: Any) -> Message:
    return Message(
        destination=DBUS, path=DBUS_PATH, interface=DBUS, member=member, signature=signature, body=list(body)
    )


def _to_gpud(member: str, signature: str, body: list[Any], flags: MessageFlag) -> Message:
    return Message(
        destination=NAME, path=PATH, interface=NAME, member=member, signature=signature, body=body, flags=flags
    )


async def _call(bus: MessageBus, message: Message, timeout_s: float) -> list[Any]:
    return list(plain((await _reply(bus, message, timeout_s)).body))


async def _reply(bus: MessageBus, message: Message, timeout_s: float) -> Message:
    try:
        async with asyncio.timeout(None if timeout_s == NEVER else timeout_s):
            reply = await bus.call(message)
    except TimeoutError:
        raise GpudError(
            f"cannot finish {message.member}: no answer within {timeout_s:g} s",
            hint='gpud may hang; "gpudctl log" shows its last messages',
        ) from None
    except (OSError, EOFError):
        raise _gone() from None
    except UnicodeEncodeError as error:
        hint = 'write it in UTF-8; "gpudctl models" lists the names of models'
        raise Usage(f'cannot tell gpud of "{error.object}": it is not valid UTF-8', hint=hint) from None
    if reply is None:
        raise _gone()
    if reply.message_type is MessageType.ERROR:
        raise _error(reply)
    return reply


# Errors --------------------------------------------------------------------------------------------------------------

_ABSENT = {f"{DBUS}.Error.{name}" for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")}


def error_code(name: str) -> str:
    """An error's name on the bus as the code that gpud.core.errors gives it: ``NoSuchModel`` is ``no-such-model``."""
    prefix, _, last = name.rpartition(".")
    if prefix == f"{NAME}.Error":
        return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in last).lstrip("-")
    return {
        f"{DBUS}.Error.AccessDenied": "access-denied",
        f"{DBUS}.Error.InteractiveAuthorizationRequired": "interaction-required",
        f"{DBUS}.Error.InvalidArgs": "invalid-arguments",
        f"{DBUS}.Error.LimitsExceeded": "limits-exceeded",
    }.get(name, "failed")


def _error(reply: Message) -> GpudError:
    text = str(reply.body[0]) if reply.body and isinstance(reply.body[0], str) else reply.error_name
    if reply.error_name in _ABSENT:
        return _gone()
    if reply.error_name in (f"{DBUS}.Error.UnknownMethod", f"{DBUS}.Error.UnknownInterface"):
        return GpudError(f"this gpud is too old for that: {text}", hint="update gpud and restart it")
    return BusError(error_code(reply.error_name), text)


def _gone() -> NotRunning:
    return NotRunning(
        "gpud ended before it answered",
        hint='if it does not restart by itself, "gpudctl log" shows why it ended',
    )


def _not_running(kinds: Sequence[str], problems: Sequence[str]) -> NotRunning:
    where = " nor ".join(f"on the {BUS_NAMES[kind]}" for kind in kinds)
    runs = f"runs neither {where}" if len(kinds) > 1 else f"does not run {where}"
    why = f" ({'; '.join(problems)})" if problems else ""
    hints = {"system": '"systemctl start gpud"', "user": '"systemctl --user start gpud" or "gpud --user"'}
    start = ", a gpud of your own with ".join(hints[kind] for kind in kinds)
    return NotRunning(f"gpud {runs}{why}", hint=f'start it with {start}; "gpudctl doctor" checks for problems')


# Running -------------------------------------------------------------------------------------------------------------


def run(work: Callable[[Gpud], Awaitable[T]], asked: str, *, start: bool = False, descriptors: bool = False) -> T:
    """Connect, do the work, disconnect. The first Ctrl-C cancels the work, which may clean up before it ends."""
    # The library tells of lost connections through logging; those come out as errors here, once.
    logging.disable(logging.CRITICAL)

    async def main() -> T:
        gpud = await connect(asked, start=start, descriptors=descriptors)
        try:
            return await work(gpud)
        finally:
            gpud.close()

    return asyncio.run(main())
