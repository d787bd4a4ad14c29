"""The two places that take log lines, the journal and a plain stream, and the queue that never blocks before them."""

import array
import errno
import fcntl
import os
import re
import select
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from gpud.core.counts import plural
from gpud.core.record import Record, field

IDENTIFIER = "gpud"
JOURNAL_SOCKET = "/run/systemd/journal/socket"

BACKLOG_BYTES = 4 << 20
"""What is kept while the journal or the terminal takes nothing: some ten thousand lines. What comes beyond is
counted."""

RETRY_S = 0.5
"""Between two tries to reach a journal whose socket is gone: it is back within a second when it is restarted."""

CLOSE_S = 1.0
"""How long the end of the daemon waits for lines that were not taken yet; a stuck terminal must not keep it alive."""

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7
"""syslog's priorities, as far as they are used."""


class Entry(Record):
    """One message with its fields, before it has a form."""

    priority: int
    message: str
    identifier: str = IDENTIFIER
    fields: Mapping[str, str] = field(default_factory=dict)


class Outlet(Protocol):
    """Takes bytes without ever waiting, unless it is told to."""

    def encode(self, entry: Entry) -> bytes: ...

    def send(self, data: bytes) -> int:
        """How many bytes were taken now; 0 when none can be."""

    def wait(self) -> None:
        """Returns when :meth:`send` is worth another try. Blocks: for the thread only."""

    def close(self) -> None: ...


# The journal ---------------------------------------------------------------------------------------------------------


def native(fields: Mapping[str, str]) -> bytes:
    """Fields in the journal's own protocol; a value with a line break carries its length instead."""
    out = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            out += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)


class JournalSocket:
    """journald's datagram socket; what is too large for a datagram goes into a sealed memory file."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._connect()

    def encode(self, entry: Entry) -> bytes:
        return native(
            {
                "MESSAGE": entry.message,
                "PRIORITY": str(entry.priority),
                "SYSLOG_IDENTIFIER": entry.identifier,
                **entry.fields,
            }
        )

    def send(self, data: bytes) -> int:
        for _ in range(2):
            if self._socket is None and not self._connect():
                return 0
            assert self._socket is not None
            try:
                self._socket.send(data)
                return len(data)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                    return self._send_file(data)
                # The journal was restarted and made its socket anew: connect to the new one, once.
                self.close()
        return 0

    def wait(self) -> None:
        connection = self._socket
        # A writer may replace the socket at any moment: its number is then -1, or no longer ours for half a second.
        fd = -1 if connection is None else connection.fileno()
        if fd < 0:
            time.sleep(RETRY_S)
            return
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.poll(RETRY_S * 1000)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return False
        self._socket = connection
        return True

    def _send_file(self, data: bytes) -> int:
        assert self._socket is not None
        fd = os.memfd_create("gpud-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            self._socket.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        except BlockingIOError:
            return 0
        finally:
            os.close(fd)
        return len(data)


# Standard error ------------------------------------------------------------------------------------------------------

COLORS = {ERROR: "\x1b[31m", WARNING: "\x1b[33m", DEBUG: "\x1b[2m"}
RESET = "\x1b[0m"
WORDS = {ERROR: "error: ", WARNING: "warning: "}
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainLines:
    """A terminal, a pipe or a file: one line for each line of a message, the following ones indented."""

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self._color = os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._fd, self._own = fd, False
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            # Non-blocking belongs to the open file, which the shell and other programs share: open it once more.
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self._own = True
            except OSError:
                self._fd = fd

    def encode(self, entry: Entry) -> bytes:
        # A child's escape sequences and a carriage return would write over other lines of the terminal.
        text = UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", entry.message)
        prefix = WORDS.get(entry.priority, "")
        if entry.identifier != IDENTIFIER:
            prefix = f"[{entry.fields.get('GPUD_MODEL') or entry.identifier}] "
        lines = (prefix + text).split("\n")
        text = "\n".join([f"{time.strftime('%H:%M:%S')} {lines[0]}", *(f"         {line}" for line in lines[1:])])
        color = COLORS.get(entry.priority) if self._color else None
        if color:
            text = f"{color}{text}{RESET}"
        return (text + "\n").encode("utf-8", "backslashreplace")

    def send(self, data: bytes) -> int:
        # Four kilobytes are what a pipe that is ready takes without blocking, where it could not be opened once more.
        if not self._own and not self._ready(0):
            return 0
        try:
            return os.write(self._fd, data[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # Nobody reads it any more: there is nowhere to say so.

    def wait(self) -> None:
        self._ready(RETRY_S * 1000)

    def close(self) -> None:
        if self._own:
            os.close(self._fd)
            self._own = False

    def _ready(self, timeout_ms: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(timeout_ms))


# The queue -----------------------------------------------------------------------------------------------------------


class Outbox:
    """Keeps order and bounds: straight through while the outlet takes everything, else by way of a backlog.

    Any thread may write; the lock is held for as long as one non-blocking send takes.
    """

    def __init__(self, outlet: Outlet, backlog_bytes: int) -> None:
        self._outlet = outlet
        self._limit = backlog_bytes
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, entry: Entry) -> None:
        data = self._outlet.encode(entry)
        with self._lock:
            if self._closed:
                return
            if not self._backlog:
                data = self._send(data)
            if data:
                self._keep(data)

    def close(self) -> None:
        """Waits a moment for what was not taken yet, then lets go."""
        thread = self._thread
        if thread is not None:
            thread.join(CLOSE_S)
        with self._lock:
            self._closed = True
            self._backlog.clear()
            self._outlet.close()
        if thread is not None:
            thread.join()

    def _send(self, data: bytes) -> bytes:
        """The rest of ``data`` that was not taken."""
        while data:
            taken = self._outlet.send(data)
            if not taken:
                break
            data = data[taken:]
        return data

    def _keep(self, data: bytes) -> None:
        if self._backlog and self._backlog_bytes + len(data) > self._limit:
            self._lost += 1
            return
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="gpud-log", daemon=True)
            self._thread.start()

    def _drain(self) -> None:
        while self._take():
            self._outlet.wait()

    def _take(self) -> bool:
        """Send what can be sent; False when nothing is left and the thread may end."""
        with self._lock:
            while self._backlog:
                data = self._backlog[0]
                rest = self._send(data)
                self._backlog_bytes -= len(data) - len(rest)
                if rest:
                    self._backlog[0] = rest
                    return True
                self._backlog.popleft()
                if not self._backlog and self._lost:
                    message = f"{plural(self._lost, 'message was', 'messages were')} lost here: "
                    message += "what reads gpud's log did not take them in time"
                    self._lost = 0
                    self._backlog.append(self._outlet.encode(Entry(WARNING, message)))
                    self._backlog_bytes += len(self._backlog[0])
            self._thread = None
            return False
