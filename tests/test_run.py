"""What ``make run`` starts and prints, in a folder of its own."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.harness import TOP, settle

BOUND_S = 180


@pytest.fixture
def clone() -> Iterator[Path]:
    """The repository as the script sees it, and a folder that it may fill, with a name that a shell and YAML mind."""
    folder = Path(tempfile.mkdtemp(prefix="gpud it's #"))
    (folder / "tools").mkdir()
    (folder / "tools" / "run").symlink_to(TOP / "tools" / "run")
    for name in (".venv", "tests"):
        (folder / name).symlink_to(TOP / name)
    yield folder
    shutil.rmtree(folder)


def of(folder: Path) -> list[str]:
    """Every process that runs in or from the folder."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words = Path(entry.path, "environ").read_bytes() + Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in words:
                found.append(Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_what_works(clone: Path, number: signal.Signals) -> None:
    """gpud becomes ready on a tiny model of its own making; the printed commands, typed as they are, work, up to a chat
    that streams from curl; Ctrl-C ends everything that was started."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(clone), "LANG": "C.UTF-8"}
    with subprocess.Popen(
        [clone / "tools" / "run"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            printed = ""
            while not printed.endswith("READY\n"):
                line = process.stdout.readline()
                assert line, printed
                printed += line
            commands = re.findall(r"^  (\S.*)$", printed, re.M)
            assert [Path(shlex.split(command)[0]).name for command in commands] == [
                "export",
                "gpudctl",
                "gpudctl",
                "busctl",
                "gpudctl",
                "gpudctl",
                "curl",
            ]
            done = subprocess.run(
                ["bash", "-euxc", "\n".join(commands)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=BOUND_S,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert re.search(r"^tiny +embedded", done.stdout, re.M)
            assert "unloaded 1 model" in done.stdout + done.stderr
            assert len(re.findall(r'^data: \{"choices":.*"delta":\{"content":', done.stdout, re.M)) > 10
            assert done.stdout.endswith("data: [DONE]\n\n")
            process.send_signal(number)
            assert process.wait(BOUND_S) == 0
        finally:
            process.kill()
    settle(lambda: not of(clone), "nothing is left", lambda: str(of(clone)))


def test_a_gpud_that_does_not_start(clone: Path) -> None:
    """It says why itself, and its status is the script's; nobody is told to try what cannot answer."""
    (clone / ".venv").unlink()
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("lib", "pyvenv.cfg", "bin/python", "bin/gpudctl"):
        (clone / ".venv" / name).symlink_to(TOP / ".venv" / name)
    gpud = clone / ".venv" / "bin" / "gpud"
    gpud.write_text("#!/bin/sh\necho 'not today' >&2\nexit 78\n")
    gpud.chmod(0o755)
    done = subprocess.run(
        [clone / "tools" / "run"],
        env={"PATH": os.environ["PATH"], "HOME": str(clone), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (78, "", "not today\n")
    settle(lambda: not of(clone), "nothing is left", lambda: str(of(clone)))


def test_a_bus_that_does_not_start(clone: Path) -> None:
    """What dbus-daemon said is shown, and nothing is started."""
    programs = clone / "programs"
    programs.mkdir()
    (programs / "dbus-daemon").write_text("#!/bin/sh\necho 'Failed to bind socket: no room' >&2\nexit 1\n")
    (programs / "dbus-daemon").chmod(0o755)
    done = subprocess.run(
        [clone / "tools" / "run"],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(clone), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Failed to bind socket: no room\ncannot start a session bus for gpud: dbus-daemon says above why\n"
    )
    settle(lambda: not of(clone), "nothing is left", lambda: str(of(clone)))


def test_ports_that_are_taken(clone: Path) -> None:
    """The first run takes the next free ports and prints the one to ask; a later one, whose port somebody has taken
    meanwhile, says so and starts nothing."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(clone), "LANG": "C.UTF-8"}
    with socket.socket() as taken:
        # Whoever listens there already will do as well.
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with subprocess.Popen(
            [clone / "tools" / "run"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            try:
                printed = ""
                while not printed.endswith("READY\n"):
                    line = process.stdout.readline()
                    assert line, printed
                    printed += line
                ports = set(re.findall(r"http://127\.0\.0\.1:(\d+)", printed))
                assert len(ports) == 1
                port = int(ports.pop())
                assert 8080 < port < 8180
                socket.create_connection(("127.0.0.1", port), BOUND_S).close()
                process.send_signal(signal.SIGINT)
                assert process.wait(BOUND_S) == 0
            finally:
                process.kill()
    settle(lambda: not of(clone), "nothing is left", lambda: str(of(clone)))
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(
            [clone / "tools" / "run"], env=environment, capture_output=True, text=True, timeout=BOUND_S, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"another program listens on port {port} now: stop it, or change http.front.port in build/run/gpud.yaml\n"
    )
    settle(lambda: not of(clone), "nothing is left", lambda: str(of(clone)))


def test_after_somebody_else_has_run_it(clone: Path) -> None:
    """As after ``sudo make run``: what is theirs cannot be used, and the message says whose it is and what to do."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a file to another user")
    state = clone / "build" / "run" / "state"
    state.mkdir(parents=True)
    (state / "gpud.db").touch()
    os.chown(state / "gpud.db", 65534, 65534)
    done = subprocess.run(
        [clone / "tools" / "run"],
        env={"PATH": os.environ["PATH"], "HOME": str(clone), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cannot run here as root: nobody has run gpud in this folder before")
    assert "build/run, as nobody or as root" in done.stderr
