"""Where gpud's words go: the journal with fields, or standard error as plain lines. It never blocks and never decides.

The journal is spoken to in its own protocol over a non-blocking socket. libsystemd's sender waits when the journal
does not take messages (it is being restarted, or somebody floods it), and with it the whole daemon would wait. Here
what cannot be sent at once is kept, within a bound, and sent by a thread that lives only until all of it is gone.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from gpud.core.events import Kind, Level, Notice
from gpud.core.ports import Stream
from gpud.log.outlets import (
    BACKLOG_BYTES,
    DEBUG,
    ERROR,
    IDENTIFIER,
    INFO,
    JOURNAL_SOCKET,
    WARNING,
    Entry,
    JournalSocket,
    Outbox,
    Outlet,
    PlainLines,
)

PRIORITIES = {Level.ERROR: ERROR, Level.WARNING: WARNING, Level.INFO: INFO, Level.DEBUG: DEBUG}
PYTHON_LEVELS = {
    Level.ERROR: logging.ERROR,
    Level.WARNING: logging.WARNING,
    Level.INFO: logging.INFO,
    Level.DEBUG: logging.DEBUG,
}

MESSAGE_IDS: Mapping[Kind, str] = {
    Kind.STARTED: "7906eb49000642948dbd866c8ce27250",
    Kind.STOPPED: "d584dedd7dd043a1927747a70b5be426",
    Kind.MODEL_LOADED: "b6f3d10ce1df40e687a6f7f0d60cba0e",
    Kind.MODEL_UNLOADED: "88955610325d40bebca7cb095165a971",
    Kind.MODEL_ADOPTED: "00f986d543eb456ca5e509daa8b37dc9",
    Kind.LOAD_STARTED: "ac624dd42d1c4240be9600e9b58af3bb",
    Kind.LOAD_FAILED: "fbb1fc71e0e34873a35f0224dfc19dbc",
    Kind.LOAD_CANCELED: "ea43ea59845c409ea44bdebc1d80a92c",
    Kind.LOAD_REFUSED: "94ae1ebe64104844bf6f7bb15f98fc14",
    Kind.LOAD_WAITS: "9c3c206a3a6f4adf9fd08cc3b8548275",
    Kind.LOAD_TIMED_OUT: "808deee190154c86b5cb046a77703bca",
    Kind.OUTGREW: "838f6c13bf61463facb79ac186edf92e",
    Kind.EVICTED: "3f4cb0a27fcd4634ada5e15fb3d809e1",
    Kind.GAVE_WAY: "f91ba9c4d1eb44538e05c46b6850b3d5",
    Kind.CLAIM_GRANTED: "f0053016b34144bb90aa3daf8ba6a1db",
    Kind.CLAIM_REFUSED: "f51a3bddd5da4c219a32d1bfd0202e85",
    Kind.CLAIM_ENDED: "82bf937fea274eb08379161dba7f7a01",
    Kind.YIELDED: "294477e9860747e19bd7f368a0bdbc70",
    Kind.RESUMED: "2dcedee863834b428512c8cecee38965",
    Kind.SUSPENDING: "9b1264284e1e4fe8abb457e982a6e65a",
    Kind.WOKE_UP: "fcf06df31bd140f6bf150248738f284a",
    Kind.VRAM_HIGH: "159866f38b3e470998c27b60e0961c08",
    Kind.VRAM_NORMAL: "b3f71d2e2bf34cb9b7383031882972a7",
    Kind.DOOR_OPENED: "5d0b7a4c1f6e4d0f9f0c3f1d8a52e6b1",
    Kind.DOOR_FAILED: "c2a98e3370d14be6a7f1b65c09e4d873",
    Kind.IDLE: "a797fa5eec954e1594328e0c00c8282d",
    Kind.SESSION_ENDED: "5f24ccbf16014074824415a2cfd3c336",
    Kind.ENGINE_CRASHED: "d09b3a9e89c34f8e84f4b5154f67c920",
    Kind.ENGINE_GIVEN_UP: "fc185662d0b04fd8a854b69faf375397",
    Kind.ENGINE_KILLED: "d2486619d06a47fe93265af20bf8e6ea",
    Kind.STILL_BUSY: "6ae5c94a7e124b76a466de3fe429a1ec",
    Kind.MEMORY_LATE: "4a17e2173a1544e0a97f26ba5a4f1174",
    Kind.OVER_ESTIMATE: "9fd6fdf537254c4bb6edc61dec085f3d",
    Kind.ON_PROCESSOR: "a68cd30c4d4f42088f89a77c4cbe8a7c",
    Kind.GPU_PROBLEM: "7870875839a84431a8cc943a1f32612f",
    Kind.CONFIG_RELOADED: "0e3e5370900542f1a2250ed8b6971fda",
    Kind.CONFIG_REJECTED: "1b1026bb821a41fc9914564ea5ea5e8a",
    Kind.CATALOGUE_CHANGED: "9ce3a88549c9468e9e11d36ced835b8e",
    Kind.CATALOGUE_PROBLEM: "47535bc2667f4d4a9746c2176ddb2dc3",
    Kind.BUS_LOST: "1671c0404e3a48c5b543be14ff4d0852",
    Kind.BUS_OWNED: "637636bcefff41d79654e6e05b6eca35",
    Kind.DENIED: "96ff5c41f207412a837ebc1d5e55a28f",
    Kind.STORE_PROBLEM: "1549111c14f94c28a950751451d658b6",
    Kind.LEFTOVER_ENDED: "16894722ee5340e1a36d1b74ee214f94",
}
"""One id for each kind of message, for ever: people search the journal for them, and units/gpud.catalog explains them.
A new kind gets a new one (``systemd-id128 new``); none is ever changed or used again."""


def field_name(name: str) -> str:
    """A name as the journal takes it: ``need-bytes`` becomes ``GPUD_NEED_BYTES``."""
    return ("GPUD_" + re.sub(r"[^A-Z0-9_]", "_", name.upper()))[:64]


def field_value(value: str | int | float) -> str:
    return str(round(value, 3)) if isinstance(value, float) else str(value)


def engine_identifier(engine: str) -> str:
    """The identifier of an engine's own lines, for ``journalctl -t``: ``gpud-llama-server``."""
    return f"{IDENTIFIER}-{re.sub(r'[^A-Za-z0-9.-]', '-', engine) or 'engine'}"


class Journal:
    """Writes notices, the lines of children, and what Python's logging says. Fulfils ``ports.OutputSink``."""

    def __init__(self, outlet: Outlet, level: Level = Level.INFO, backlog_bytes: int = BACKLOG_BYTES) -> None:
        self._outbox = Outbox(outlet, backlog_bytes)
        self.level = level

    @property
    def level(self) -> Level:
        """The least important messages that are written; the lines of engines count as info."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._level = Level(level)
        self._threshold = PRIORITIES[self._level]

    def notice(self, notice: Notice) -> None:
        """Write one notice: its words, its message id, and its fields with the prefix ``GPUD_``."""
        fields = {"MESSAGE_ID": MESSAGE_IDS[notice.kind], "GPUD_KIND": notice.kind.value}
        if notice.model:
            fields["GPUD_MODEL"] = notice.model
        for name, value in notice.fields.items():
            fields.setdefault(field_name(name), field_value(value))
        self._write(Entry(PRIORITIES[notice.level], "\n".join((notice.message, *notice.detail)), fields=fields))

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        fields = {"GPUD_ENGINE": engine, "GPUD_PID": str(pid), "GPUD_STREAM": stream.value}
        if model:
            fields["GPUD_MODEL"] = model
        self._write(Entry(INFO, text, engine_identifier(engine), fields))

    def say(self, level: Level, message: str) -> None:
        """One line without a kind, for what happens before or beside the engine."""
        self._write(Entry(PRIORITIES[level], message))

    def record(self, record: logging.LogRecord) -> None:
        """One record of Python's logging. ``extra={"model": name}`` makes it findable by model."""
        if record.levelno >= logging.ERROR:
            priority = ERROR
        elif record.levelno >= logging.WARNING:
            priority = WARNING
        else:
            priority = INFO if record.levelno >= logging.INFO else DEBUG
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        fields = {"GPUD_LOGGER": record.name, "CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno)}
        if record.funcName:
            fields["CODE_FUNC"] = record.funcName
        model = getattr(record, "model", "")
        if isinstance(model, str) and model:
            fields["GPUD_MODEL"] = model
        self._write(Entry(priority, message, fields=fields))

    def close(self) -> None:
        self._outbox.close()

    def _write(self, entry: Entry) -> None:
        if entry.priority <= self._threshold:
            self._outbox.write(entry)


class RecordHandler(logging.Handler):
    """Hands what Python's logging says to the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.journal.record(record)
        except Exception:  # A broken log call must not break its caller: the module's own hook reports it.
            self.handleError(record)

    def close(self) -> None:
        super().close()
        self.journal.close()


def is_journal(fd: int, environment: Mapping[str, str], path: str = JOURNAL_SOCKET) -> bool:
    """Whether messages belong into the journal: ``fd`` leads there, or systemd started this process.

    A terminal opened from a desktop inherits JOURNAL_STREAM from the session; the numbers in it then name another file.
    """
    if not Path(path).exists():
        return False
    if environment.get("NOTIFY_SOCKET"):
        return True
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def setup(
    level: Level = Level.INFO, *, journal: bool | None = None, path: str = JOURNAL_SOCKET, fd: int | None = None
) -> Journal:
    """Open the journal, or standard error outside systemd, and lead Python's logging there; a second call replaces it.

    ``journal`` None finds out by itself which of the two.
    """
    fd = sys.stderr.fileno() if fd is None else fd
    if journal is None:
        journal = is_journal(fd, os.environ, path)
    sink = Journal(JournalSocket(path) if journal else PlainLines(fd), level)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, RecordHandler):
            root.removeHandler(handler)
            handler.close()
    root.addHandler(RecordHandler(sink))
    set_level(sink, level)
    if not journal:
        sink.say(Level.INFO, "not under systemd: logging to standard error")
    return sink


def set_level(journal: Journal, level: Level) -> None:
    """Change the level of the journal and of Python's logging together."""
    journal.level = level
    logging.getLogger().setLevel(PYTHON_LEVELS[journal.level])
