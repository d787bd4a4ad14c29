"""Speaking with a service manager: a real datagram socket stands in for it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpud.systemd import NoFdStore, Notifier, SystemdFdStore, notify, passed_descriptors, watchdog_interval_s


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def message(self) -> str:
        return self.socket.recv(4096).decode()

    def message_with_descriptors(self) -> tuple[str, list[int]]:
        text, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
        return text.decode(), fds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = tmp_path / "notify"
    manager = Manager(path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    yield manager
    manager.socket.close()


def test_notifier_says_what_systemd_understands(manager: Manager) -> None:
    """Each call is one message."""
    notifier = Notifier()
    notifier.ready("2 models,\n1 loaded")
    assert manager.message() == "READY=1\nSTATUS=2 models, 1 loaded"
    notifier.ready()
    assert manager.message() == "READY=1"
    notifier.status("idle")
    assert manager.message() == "STATUS=idle"
    notifier.status("")
    assert manager.message() == "STATUS="
    notifier.watchdog()
    assert manager.message() == "WATCHDOG=1"
    notifier.stopping("draining")
    assert manager.message() == "STOPPING=1\nSTATUS=draining"
    notifier.reloading()
    reloading, stamp = manager.message().split("\n")
    assert reloading == "RELOADING=1" and stamp.startswith("MONOTONIC_USEC=")


def test_outside_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no message, no error."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    Notifier().ready()


def test_manager_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on when nobody listens any more."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify("READY=1") is False


def test_outside_systemd_its_library_is_not_loaded() -> None:
    """What a foreground daemon does not need costs it nothing."""
    script = "import sys, gpud.systemd as s; s.notify('READY=1'); print('systemd.daemon' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_manager_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd in a container may listen under a name that is in no folder; it is written with an at sign."""
    name = f"gpud-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("READY=1") is True
        assert listener.recv(64) == b"READY=1"


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "7"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_is_that_of_this_process(environment: dict[str, str], interval_s: float | None) -> None:
    """In seconds, and only for the process that is watched."""
    assert watchdog_interval_s(environment, 7) == interval_s


@pytest.mark.parametrize(
    ("environment", "lasting"),
    [
        ({"NOTIFY_SOCKET": "/x", "FDSTORE": "64"}, True),
        ({"NOTIFY_SOCKET": "/x", "GPUD_FDSTORE": "64"}, True),
        ({"NOTIFY_SOCKET": "/x", "GPUD_FDSTORE": "0"}, False),
        ({"NOTIFY_SOCKET": "/x", "GPUD_FDSTORE": "yes"}, False),
        ({"NOTIFY_SOCKET": "/x"}, False),
        ({"FDSTORE": "64"}, False),
    ],
)
def test_store_lasts_only_where_systemd_keeps_descriptors(environment: dict[str, str], lasting: bool) -> None:
    """A child may outlive the daemon only if somebody else holds its pipes."""
    assert SystemdFdStore(environment).lasting is lasting
    assert not NoFdStore().lasting


def test_put_sends_a_duplicate_and_drop_takes_it_back(manager: Manager) -> None:
    """The descriptor arrives with its name; the daemon keeps its own."""
    store = SystemdFdStore({"NOTIFY_SOCKET": "x", "FDSTORE": "8"})
    read, write = os.pipe()
    store.put("tiny-1.out", read)
    text, fds = manager.message_with_descriptors()
    assert text == "FDSTORE=1\nFDNAME=tiny-1.out" and len(fds) == 1
    os.write(write, b"x")
    assert os.read(fds[0], 1) == b"x"
    store.drop("tiny-1.out")
    assert manager.message() == "FDSTOREREMOVE=1\nFDNAME=tiny-1.out"
    for fd in (read, write, *fds):
        os.close(fd)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "ü", "x" * 256, "a\n"])
def test_name_that_systemd_would_refuse_is_an_error(name: str) -> None:
    """systemd would store it under another name, and nobody would find it again."""
    with pytest.raises(ValueError, match="cannot name a stored descriptor"):
        SystemdFdStore({}).put(name, 0)


def test_store_that_does_not_last_sends_nothing(manager: Manager) -> None:
    """Nor does one that is no store at all."""
    for store in (SystemdFdStore({}), NoFdStore()):
        store.put("tiny-1.out", 0)
        store.drop("tiny-1.out")
        assert store.take("tiny-1.out") is None
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.message()


def test_refused_put_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The engine runs all the same; a human should know that it would not survive."""

    def deaf(state: str, fds: Sequence[int] = ()) -> bool:
        return False

    SystemdFdStore({"NOTIFY_SOCKET": "x", "FDSTORE": "8"}, send=deaf).put("tiny-1.out", 0)
    assert 'does not keep the descriptor "tiny-1.out"' in caplog.text


PASSED = """
import os, sys
sys.path[:0] = {path!r}
read, write = os.pipe()
os.write(write, b"first")
os.dup2(read, 3)
os.dup2(os.open("/dev/null", os.O_RDONLY), 4)
os.dup2(os.open("/dev/zero", os.O_RDONLY), 5)
os.dup2(5, 6)
os.dup2(5, 7)
os.closerange(8, 64)
names = "tiny-1.out:tiny-1.in:other:front:front:missing"
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="6", LISTEN_FDNAMES=names)
from gpud.systemd import SystemdFdStore
store = SystemdFdStore()
print(store.take_all("front"), store.take_all("front"))
fd = store.take("tiny-1.out")
print(os.read(fd, 10), os.get_inheritable(fd), os.get_inheritable(4), store.take("tiny-1.out"))
print(store.unclaimed(), sorted(name for name in os.environ if name.startswith("LISTEN_")))
store.drop("other")
print(os.path.exists("/proc/self/fd/4"), os.path.exists("/proc/self/fd/5"), store.unclaimed())
"""


def test_passed_descriptors_are_found_by_name_once() -> None:
    """Close-on-exec from the first moment, the variables gone, what nobody took can be dropped."""
    script = PASSED.format(path=sys.path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "(6, 7) ()",
        "b'first' False False None",
        "('tiny-1.in', 'other') []",
        "True False ('tiny-1.in',)",
    ]
    assert 'names a descriptor 8 ("missing") that is not there' in done.stderr


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, [("a", 3), ("b", 4)]),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, [("a", 3), ("unknown", 4)]),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, [("unknown", 3)]),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, []),
        ({}, []),
    ],
)
def test_descriptors_for_another_process_are_not_ours(environment: dict[str, str], found: list[object]) -> None:
    """Only what was passed to this very process counts; the variables go in any case."""
    assert passed_descriptors(environment, 7) == found
    assert not environment


def test_a_status_is_lost_rather_than_waited_for(manager: Manager) -> None:
    """While systemd reads nothing, its queue is full after a few messages, and gpud goes on."""
    notifier = Notifier()
    for number in range(2000):
        notifier.status(str(number))
    assert manager.message() == "STATUS=0"
    notifier.status("room again")
