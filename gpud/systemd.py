"""Speaks with the service manager that started gpud: readiness, watchdog, descriptors kept across a restart.

Outside systemd every call does nothing. It never waits for an answer.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

log = logging.getLogger(__name__)

FIRST_PASSED_FD = 3
"""systemd passes descriptors from here on."""

STORE_VARIABLES = ("FDSTORE", "GPUD_FDSTORE")
"""How many descriptors systemd keeps for the service. systemd says so itself since 254; before that the unit has to,
beside its FileDescriptorStoreMax=, because there is no other way to know."""

_NAME = re.compile(r"[!-9;-~]{1,255}")


class Send(Protocol):
    """Hands one message, and descriptors with it, to the service manager; False when there is none."""

    def __call__(self, state: str, fds: Sequence[int] = ()) -> bool: ...


def notify(state: str, fds: Sequence[int] = ()) -> bool:
    """Assignments such as ``READY=1``, one a line. False when nobody listens, or the message could not be delivered."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    # Imported only here: what runs outside systemd needs no libsystemd.
    from systemd import daemon

    try:
        return bool(daemon.notify(state, fds=list(fds)) if fds else daemon.notify(state))
    except OSError as problem:
        log.warning("cannot tell systemd %s: %s", state.replace("\n", " "), problem)
        return False


def notify_if_room(state: str, fds: Sequence[int] = ()) -> bool:  # noqa: ARG001 - it takes the place of notify
    """Like :func:`notify` for what may be lost: never waits. libsystemd's own call waits while the manager is busy (it
    reloads its units, say) and ten messages are in its queue, and with it the whole daemon would.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as manager:
        try:
            manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as problem:
            log.debug("systemd was not told %s: %s", state.replace("\n", " "), problem)
            return False
    return True


class Notifier:
    """What the daemon tells systemd about itself."""

    def __init__(self, send: Send = notify, send_if_room: Send = notify_if_room) -> None:
        self._send = send
        self._send_if_room = send_if_room

    def ready(self, status: str = "") -> None:
        self._send(_with_status("READY=1", status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; lost when systemd is busy, since the next one replaces it."""
        self._send_if_room(_with_status("", text))

    def reloading(self) -> None:
        """To be followed by :meth:`ready`. The time stamp is what newer systemd asks for."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        self._send(_with_status("STOPPING=1", status))

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")


def watchdog_interval_s(environment: Mapping[str, str] | None = None, pid: int | None = None) -> float | None:
    """After how long without :meth:`Notifier.watchdog` systemd gives up on the daemon; None when nobody watches it."""
    environment = os.environ if environment is None else environment
    pid = os.getpid() if pid is None else pid
    try:
        limit_us = int(environment.get("WATCHDOG_USEC", ""))
        watched = int(environment.get("WATCHDOG_PID", "") or pid)
    except ValueError:
        return None
    if limit_us <= 0 or watched != pid:
        return None
    return limit_us / 1e6


def passed_descriptors(environment: MutableMapping[str, str], pid: int) -> list[tuple[str, int]]:
    """The descriptors that systemd passed to this process, with their names, in order.

    The variables are removed: a child must not take them for its own.
    """
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    for_whom = environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_PIDFDID", None)
    if not count.isdecimal() or for_whom != str(pid):
        return []
    fds = range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count))
    named = names.split(":") if names else []
    return [(named[index] if index < len(named) else "unknown", fd) for index, fd in enumerate(fds)]


class SystemdFdStore:
    """Keeps descriptors in the service manager. Fulfils :class:`gpud.core.ports.FdStore`.

    To be made once, at the start of the daemon: it takes the descriptors that systemd passed.
    """

    def __init__(
        self,
        environment: MutableMapping[str, str] | None = None,
        *,
        send: Send = notify,
    ) -> None:
        environment = os.environ if environment is None else environment
        self._send = send
        self._lasting = bool(environment.get("NOTIFY_SOCKET")) and any(
            environment.get(name, "").isdecimal() and int(environment[name]) > 0 for name in STORE_VARIABLES
        )
        self._passed: dict[str, list[int]] = {}
        for name, fd in passed_descriptors(environment, os.getpid()):
            try:
                os.set_inheritable(fd, False)
            except OSError as problem:
                log.warning('systemd names a descriptor %d ("%s") that is not there: %s', fd, name, problem)
                continue
            self._passed.setdefault(name, []).append(fd)

    @property
    def lasting(self) -> bool:
        return self._lasting

    def put(self, name: str, fd: int) -> None:
        """systemd takes a duplicate, and lets go of it by itself once the other end has gone."""
        if not _NAME.fullmatch(name):
            raise ValueError(f'"{name}" cannot name a stored descriptor: 1 to 255 printable characters without a colon')
        if self._lasting and not self._send(f"FDSTORE=1\nFDNAME={name}", (fd,)):
            log.warning(
                'systemd does not keep the descriptor "%s": what it belongs to is cut off if gpud crashes', name
            )

    def drop(self, name: str) -> None:
        for fd in self._passed.pop(name, ()):
            os.close(fd)
        if self._lasting:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def take(self, name: str) -> int | None:
        """systemd goes on keeping its duplicate, for the next crash."""
        fds = self._passed.get(name)
        if not fds:
            return None
        fd = fds.pop(0)
        if not fds:
            del self._passed[name]
        return fd

    def take_all(self, name: str) -> tuple[int, ...]:
        """All that were passed under this name, as a socket unit with several addresses does."""
        return tuple(self._passed.pop(name, ()))

    def unclaimed(self) -> tuple[str, ...]:
        """The names of descriptors that were passed and not taken: what nobody knows any more may be dropped."""
        return tuple(self._passed)


class NoFdStore:
    """Outside systemd nothing is kept: children have to die with the daemon."""

    @property
    def lasting(self) -> bool:
        return False

    def put(self, name: str, fd: int) -> None:
        """Nobody is there to keep it."""

    def drop(self, name: str) -> None:
        """Nothing was kept."""

    def take(self, name: str) -> int | None:  # noqa: ARG002
        return None


def _with_status(state: str, status: str) -> str:
    line = f"STATUS={' '.join(status.split())}" if status else ""
    return "\n".join(part for part in (state, line) if part) or "STATUS="
