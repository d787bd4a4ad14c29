"""Work in a copy of the process: its answer comes back, and nothing else of it stays, however it ends."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpud.aside import Aside
from gpud.core.errors import Canceled
from gpud.core.ports import Line
from gpud.log import Journal, RecordHandler
from gpud.log.outlets import Entry

TOP = Path(__file__).resolve().parent.parent
BOUND_S = 60.0


def never() -> bool:
    return False


def answer(line: Line) -> Any:
    return line.receive()


def test_what_is_changed_there_stays_there() -> None:
    """It begins with everything that is here, and its answer comes back, however long it is."""
    here = ["a" * 100] * 1000

    def work(line: Line) -> None:
        here.append("changed")
        line.send((os.getpid(), here * 50))

    pid, said = Aside()(work, answer, never)
    assert pid != os.getpid()
    assert len(said) == 50 * 1001 and said[1000] == "changed"
    assert len(here) == 1000


def test_both_sides_talk() -> None:
    """In turns, and in their order."""

    def work(line: Line) -> None:
        while (number := line.receive()) is not None:
            line.send(2 * number)

    def serve(line: Line) -> list[int]:
        doubled = []
        for number in range(3):
            line.send(number)
            doubled.append(line.receive())
        line.send(None)
        return doubled

    assert Aside()(work, serve, never) == [0, 2, 4]


def test_who_says_nothing_is_not_waited_for_without_end() -> None:
    """As one that waits for a lock which nobody gives back in a copy."""

    def work(_line: Line) -> None:
        signal.pause()

    with pytest.raises(EOFError, match=r"does not answer within 0\.3 s"):
        Aside(silent_s=0.3)(work, answer, never)


class Held:
    """An outlet that keeps who writes, and with it what that one holds locked, until it is let go."""

    def __init__(self) -> None:
        self.holds, self.lets_go = threading.Event(), threading.Event()

    def encode(self, entry: Entry) -> bytes:
        return entry.message.encode()

    def send(self, data: bytes) -> int:
        self.holds.set()
        self.lets_go.wait(BOUND_S)
        return len(data)

    def wait(self) -> None:
        raise AssertionError("everything is taken at once")

    def close(self) -> None:
        pass


def test_who_has_to_say_something_there_does_not_wait_for_who_writes_here() -> None:
    """A thread is at writing into the log as the copy begins, and never comes to its end there: nothing is written."""
    outlet = Held()
    handler = RecordHandler(Journal(outlet))
    log = logging.getLogger("test_aside")
    writer = threading.Thread(target=log.warning, args=("here",))

    def work(line: Line) -> None:
        log.warning("there")
        line.send("said")

    log.addHandler(handler)
    try:
        writer.start()
        assert outlet.holds.wait(BOUND_S)
        assert Aside(silent_s=BOUND_S)(work, answer, never) == "said"
    finally:
        outlet.lets_go.set()
        writer.join()
        log.removeHandler(handler)
        handler.close()


def fail(_line: Line) -> None:
    raise ValueError("it cannot be done")


def die(_line: Line) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "why"), [(fail, "ValueError: it cannot be done"), (die, "ended before"), (lambda _: None, "ended before")]
)
def test_a_copy_that_fails_says_so(work: Callable[[Line], None], why: str) -> None:
    """An error there, a kill, and an end without an answer are told to who waits."""
    with pytest.raises(EOFError, match=why):
        Aside()(work, answer, never)


def test_nobody_waits_for_what_is_not_wanted_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is killed, whatever it is at."""
    monkeypatch.setattr("gpud.aside.GONE_S", BOUND_S)

    def work(line: Line) -> None:
        line.send(os.getpid())
        signal.pause()

    seen: list[int] = []

    def serve(line: Line) -> None:
        seen.append(line.receive())
        line.receive()

    with pytest.raises(Canceled):
        Aside()(work, serve, lambda: bool(seen))
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_the_copy_holds_nothing_open_but_what_it_is_told_to_keep(tmp_path: Path) -> None:
    """A lock, a socket or a pipe of the process must not outlive it there; nobody hears what it prints."""

    def work(line: Line) -> None:
        line.send(
            {int(path.name): os.readlink(path) for path in list(Path("/proc/self/fd").iterdir()) if path.exists()}
        )

    with (tmp_path / "lock").open("w") as lock, (tmp_path / "kept").open("w") as kept, socket.socket() as other:
        assert other.fileno() > 2 and lock.fileno() > 2
        found = Aside()(work, answer, never, [kept.fileno()])
        assert found.pop(kept.fileno()) == kept.name
    assert {found.pop(fd) for fd in (0, 1, 2)} == {os.devnull}
    (only,) = found.values()
    assert only.startswith("socket:")


def test_a_signal_ends_the_copy_and_not_what_it_was_about(tmp_path: Path) -> None:
    """What the process does on a signal is not done a second time by its copy."""
    handled = tmp_path / "handled"

    def work(line: Line) -> None:
        line.send(os.getpid())
        signal.pause()

    def serve(line: Line) -> None:
        os.kill(line.receive(), signal.SIGUSR2)
        line.receive()

    before = signal.signal(signal.SIGUSR2, lambda *_: handled.touch())
    try:
        with pytest.raises(EOFError, match="ended before"):
            Aside()(work, serve, never)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not handled.exists()


def test_a_signal_that_comes_as_the_copy_begins_ends_it(tmp_path: Path) -> None:
    """It is not told to the process by what both have in common, nor handled by the copy."""
    handled, begins = tmp_path / "handled", [True]

    def begun() -> None:
        if begins:
            os.kill(os.getpid(), signal.SIGUSR2)

    os.register_at_fork(after_in_child=begun)
    told, tells = socket.socketpair()
    told.setblocking(False)
    tells.setblocking(False)
    before = signal.signal(signal.SIGUSR2, lambda *_: handled.touch())
    woken = signal.set_wakeup_fd(tells.fileno())
    try:
        with pytest.raises(EOFError, match="ended before"):
            Aside()(lambda line: line.send("here"), answer, never)
    finally:
        begins.clear()
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGUSR2, before)
        with told, tells, pytest.raises(BlockingIOError):
            told.recv(1)
    assert not handled.exists()


ABANDONED = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from gpud.aside import Aside

def work(line):
    line.send("at work")
    while not line.is_cut():
        time.sleep(0.01)
    os.write(int(sys.argv[2]), b"given up")

def serve(line):
    print(line.receive(), flush=True)
    line.receive()

Aside()(work, serve, lambda: False, [int(sys.argv[2])])
"""


def test_a_copy_whose_process_is_gone_gives_up() -> None:
    """It finds the line cut."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", ABANDONED, str(TOP), str(write)], stdout=subprocess.PIPE, pass_fds=[write]
        )
        os.close(write)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"at work\n"
            process.kill()
        assert said.read() == b"given up"
