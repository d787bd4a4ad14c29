"""The log: what the journal gets, what a terminal gets, and that neither is ever waited for."""

import logging
import os
import pty
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpud import log as gpud_log
from gpud.core.events import Kind, Level, Notice
from gpud.core.ports import Stream
from gpud.log import MESSAGE_IDS, Journal, RecordHandler, engine_identifier, is_journal, setup
from gpud.log.outlets import JournalSocket, PlainLines

STUCK_S = 30.0
"""What waits for a reader that never reads takes longer, however slow the machine is."""

CATALOG = Path(__file__).parents[2] / "units" / "gpud.catalog"


class Journald:
    """A datagram socket where journald's would be, that understands its protocol."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.open()

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(10)

    def close(self) -> None:
        self.socket.close()
        os.unlink(self.path)

    def entry(self) -> dict[str, str]:
        """The next message."""
        data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        for fd in fds:
            with open(fd, "rb") as file:
                assert os.fstat(fd).st_mode & stat.S_IFREG
                file.seek(0)
                data = file.read()
        return parse(data)


def parse(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if separator:
            fields[name.decode()], data = value.decode(), rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            fields[name.decode()], data = rest[8 : 8 + size].decode(), rest[8 + size + 1 :]
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    server = Journald(tmp_path / "journal")
    yield server
    server.close()


@pytest.fixture
def journal(journald: Journald) -> Iterator[Journal]:
    sink = Journal(JournalSocket(journald.path))
    yield sink
    sink.close()


@pytest.fixture
def root() -> Iterator[None]:
    """Takes away what a test put on Python's root logger."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if isinstance(handler, RecordHandler)]:
        root.removeHandler(handler)
        handler.close()


def test_every_kind_has_its_own_id_and_an_explanation() -> None:
    """No kind of message is without an id, no two share one, and the catalog explains exactly these."""
    assert set(MESSAGE_IDS) == set(Kind)
    assert len(set(MESSAGE_IDS.values())) == len(Kind)
    assert all(len(bytes.fromhex(text)) == 16 for text in MESSAGE_IDS.values())
    entries = CATALOG.read_text().split("\n-- ")[1:]
    assert {entry.split("\n", 1)[0] for entry in entries} == set(MESSAGE_IDS.values())
    for entry in entries:
        header, _, explanation = entry.partition("\n\n")
        assert "Subject: " in header
        assert "Defined-By: gpud" in header
        assert len(explanation) > 60


def test_the_ids_never_change() -> None:
    """People search for them: some of each day on which any were given out are still what they were."""
    assert MESSAGE_IDS[Kind.MODEL_LOADED] == "b6f3d10ce1df40e687a6f7f0d60cba0e"
    assert MESSAGE_IDS[Kind.LEFTOVER_ENDED] == "16894722ee5340e1a36d1b74ee214f94"
    assert MESSAGE_IDS[Kind.VRAM_HIGH] == "159866f38b3e470998c27b60e0961c08"


@pytest.mark.skipif(not shutil.which("journalctl"), reason="journalctl is not installed")
def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    """``journalctl --update-catalog`` reads every entry of it, and names the model in the subject."""
    for folder in ("usr/lib/systemd/catalog", "var/lib/systemd/catalog"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    command = ["journalctl", f"--root={tmp_path}"]
    done = subprocess.run(
        [*command, "--update-catalog"],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Found {len(Kind)} items in catalog." in done.stderr
    listed = subprocess.run([*command, "--list-catalog"], capture_output=True, text=True, check=True).stdout
    assert f"{MESSAGE_IDS[Kind.MODEL_LOADED]} gpud: Model @GPUD_MODEL@ is loaded" in listed


def test_a_notice_becomes_a_message_with_fields(journald: Journald, journal: Journal) -> None:
    """Words, importance, id, kind, model and numbers arrive as fields of their own."""
    journal.notice(
        Notice(
            Kind.LOAD_REFUSED,
            'cannot load "tiny": needs 5.1 GiB, 3.2 GiB are free',
            "tiny",
            Level.WARNING,
            {"need_bytes": 5476083302, "took_s": 1.23456, "device": "GPU-1"},
            detail=('"big" holds 4.0 GiB', "and is busy"),
        )
    )
    assert journald.entry() == {
        "MESSAGE": 'cannot load "tiny": needs 5.1 GiB, 3.2 GiB are free\n"big" holds 4.0 GiB\nand is busy',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "gpud",
        "MESSAGE_ID": MESSAGE_IDS[Kind.LOAD_REFUSED],
        "GPUD_KIND": "load-refused",
        "GPUD_MODEL": "tiny",
        "GPUD_NEED_BYTES": "5476083302",
        "GPUD_TOOK_S": "1.235",
        "GPUD_DEVICE": "GPU-1",
    }


def test_a_line_of_an_engine_is_found_by_engine_and_by_model(journald: Journald, journal: Journal) -> None:
    """An engine's line has an identifier of its own and says which model and process it came from."""
    journal.line(model="tiny", engine="llama_server", stream=Stream.ERR, pid=77, text="loading tensors\x1b[0m")
    assert journald.entry() == {
        "MESSAGE": "loading tensors\x1b[0m",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "gpud-llama-server",
        "GPUD_ENGINE": "llama_server",
        "GPUD_PID": "77",
        "GPUD_STREAM": "err",
        "GPUD_MODEL": "tiny",
    }


def test_identifiers_hold_only_what_journalctl_takes() -> None:
    """Whatever an engine is called, ``journalctl -t`` can name it."""
    assert engine_identifier("ollama") == "gpud-ollama"
    assert engine_identifier("a b/c") == "gpud-a-b-c"
    assert engine_identifier("") == "gpud-engine"


def test_broken_text_does_not_break_the_protocol(journald: Journald, journal: Journal) -> None:
    """A line break inside a field and bytes that are no text arrive as one message, with nothing forged."""
    journal.line(model="x\nPRIORITY=0", engine="custom", stream=Stream.OUT, pid=1, text="\udcff end")
    entry = journald.entry()
    assert entry["GPUD_MODEL"] == "x\nPRIORITY=0"
    assert entry["PRIORITY"] == "6"
    assert entry["MESSAGE"] == "\\udcff end"


def test_a_message_too_large_for_a_datagram_arrives_whole(journald: Journald, journal: Journal) -> None:
    """What does not fit into a datagram is handed over as a memory file."""
    text = "x" * 3_000_000
    journal.say(Level.INFO, text)
    assert journald.entry()["MESSAGE"] == text


def test_less_important_messages_are_left_out(journald: Journald, journal: Journal) -> None:
    """Below the level nothing is written, engine lines included; raising it takes effect at once."""
    journal.level = Level.WARNING
    journal.notice(Notice(Kind.IDLE, "idle", "tiny"))
    journal.line(model="tiny", engine="custom", stream=Stream.OUT, pid=1, text="chatter")
    journal.notice(Notice(Kind.ENGINE_CRASHED, "crashed", "tiny", Level.ERROR))
    journal.level = Level.DEBUG
    journal.say(Level.DEBUG, "detail")
    assert [journald.entry()["MESSAGE"] for _ in range(2)] == ["crashed", "detail"]


def test_a_stuck_journal_is_not_waited_for(journald: Journald, journal: Journal) -> None:
    """With a journal that takes nothing, writing returns at once, and all of it arrives in order later."""
    began = time.monotonic()
    for number in range(3000):
        journal.say(Level.INFO, f"line {number}")
    assert time.monotonic() - began < STUCK_S
    assert [journald.entry()["MESSAGE"] for _ in range(3000)] == [f"line {number}" for number in range(3000)]


def test_what_was_lost_is_counted(journald: Journald) -> None:
    """Beyond the bound messages are dropped, and the journal is told how many as soon as it listens again."""
    sink = Journal(JournalSocket(journald.path), backlog_bytes=20_000)
    for number in range(3000):
        sink.say(Level.INFO, f"line {number}")
    messages = []
    while not messages or "were lost" not in messages[-1]:
        messages.append(journald.entry()["MESSAGE"])
    assert messages[:-1] == [f"line {number}" for number in range(len(messages) - 1)]
    assert messages[-1].startswith(f"{3000 - len(messages) + 1} messages were lost here")
    sink.close()


def test_a_restarted_journal_is_found_again(journald: Journald, journal: Journal) -> None:
    """When the journal comes back with a new socket, what was said meanwhile arrives there."""
    journal.say(Level.INFO, "before")
    assert journald.entry()["MESSAGE"] == "before"
    journald.close()
    journal.say(Level.INFO, "meanwhile")
    journald.open()
    assert journald.entry()["MESSAGE"] == "meanwhile"
    journal.say(Level.INFO, "after")
    assert journald.entry()["MESSAGE"] == "after"


def test_pythons_logging_goes_the_same_way(journald: Journald, root: None) -> None:
    """Records of any logger carry their place and their traceback."""
    setup(Level.INFO, journal=True, path=journald.path)
    logger = logging.getLogger("gpud.somewhere")
    logger.debug("not this")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception('cannot read "%s"', "x", extra={"model": "tiny"})
    entry = journald.entry()
    assert entry["MESSAGE"].startswith('cannot read "x"\nTraceback')
    assert entry["MESSAGE"].endswith("ValueError: wrong")
    assert entry["PRIORITY"] == "3"
    assert entry["GPUD_LOGGER"] == "gpud.somewhere"
    assert entry["GPUD_MODEL"] == "tiny"
    assert entry["CODE_FILE"] == __file__


def test_setting_up_again_replaces_the_first(journald: Journald, root: None) -> None:
    """A second set-up does not write everything twice."""
    setup(Level.INFO, journal=True, path=journald.path)
    sink = setup(Level.INFO, journal=True, path=journald.path)
    logging.getLogger("gpud").info("once")
    sink.say(Level.INFO, "end")
    assert [journald.entry()["MESSAGE"] for _ in range(2)] == ["once", "end"]


def test_the_level_of_both_changes_together(journald: Journald, root: None) -> None:
    """A reload that sets another level reaches Python's logging too."""
    sink = setup(Level.INFO, journal=True, path=journald.path)
    gpud_log.set_level(sink, Level.DEBUG)
    logging.getLogger("gpud").debug("now")
    assert journald.entry()["PRIORITY"] == "7"


def test_the_journal_is_recognised(journald: Journald) -> None:
    """Under systemd, or with standard error led there; not in a terminal that inherited the variable."""
    with open(os.devnull) as file:
        status = os.fstat(file.fileno())
        own = f"{status.st_dev}:{status.st_ino}"
        assert is_journal(file.fileno(), {"JOURNAL_STREAM": own}, journald.path)
        assert is_journal(file.fileno(), {"NOTIFY_SOCKET": "/run/x"}, journald.path)
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": "1:2"}, journald.path)
        assert not is_journal(file.fileno(), {}, journald.path)
        assert not is_journal(file.fileno(), {"NOTIFY_SOCKET": "/run/x"}, journald.path + "-gone")


def test_outside_systemd_plain_lines_go_to_standard_error(root: None) -> None:
    """One line says so first; further lines of a message are indented, engine lines name their model, no colors."""
    read, write = os.pipe()
    sink = setup(Level.INFO, journal=False, fd=write)
    sink.notice(Notice(Kind.LOAD_FAILED, 'cannot load "tiny"', "tiny", Level.ERROR, detail=("last words",)))
    sink.line(model="tiny", engine="ollama", stream=Stream.OUT, pid=1, text="\rclear\x1b[2J")
    os.close(write)
    lines = os.read(read, 4096).decode().splitlines()
    os.close(read)
    assert [line[9:] for line in lines] == [
        "not under systemd: logging to standard error",
        'error: cannot load "tiny"',
        "last words",
        "[tiny] \\x0dclear\\x1b[2J",
    ]
    assert lines[0][2] == lines[0][5] == ":"


def test_colors_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is colored on a terminal, unless NO_COLOR is set."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert b"\x1b[33m" in shown_on_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b" not in shown_on_terminal()


def shown_on_terminal() -> bytes:
    ours, theirs = pty.openpty()
    sink = Journal(PlainLines(theirs))
    sink.say(Level.WARNING, "careful")
    text = os.read(ours, 4096)
    sink.close()
    os.close(theirs)
    os.close(ours)
    return text


def test_a_full_pipe_is_not_waited_for() -> None:
    """A reader that does not read stops nobody; it gets all of it, in order, when it reads again."""
    read, write = os.pipe()
    sink = Journal(PlainLines(write))
    expected = [f"line {number} " + "x" * 5000 for number in range(200)]
    began = time.monotonic()
    for line in expected:
        sink.say(Level.INFO, line)
    assert time.monotonic() - began < STUCK_S
    text = b""
    while text.count(b"\n") < len(expected):
        text += os.read(read, 65536)
    assert [line[9:] for line in text.decode().splitlines()] == expected
    sink.close()
    os.close(write)
    os.close(read)


def test_the_end_does_not_wait_for_a_stuck_reader() -> None:
    """Closing gives up on a reader that never reads, within its bound."""
    read, write = os.pipe()
    sink = Journal(PlainLines(write))
    for _ in range(100):
        sink.say(Level.INFO, "x" * 5000)
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < STUCK_S
    os.close(write)
    os.close(read)


def test_a_reader_that_left_is_no_error() -> None:
    """Nobody reads standard error any more: writing goes on without an exception."""
    read, write = os.pipe()
    os.close(read)
    sink = Journal(PlainLines(write))
    sink.say(Level.ERROR, "unheard")
    sink.close()
    os.close(write)


def test_importing_the_log_costs_little() -> None:
    """None of the slow modules that libsystemd's binding pulls in is imported on the way to the first line; what
    records are made of does not count.
    """
    before = "import sys, asyncio, msgspec; before = set(sys.modules)"
    code = f"{before}; import gpud.log; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"systemd", "uuid", "json"} & set(done.stdout.split())
