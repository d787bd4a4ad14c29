"""What the shell hook costs, and how soon a session's end is known.

    .venv/bin/python -m bench.shell

Starts each shell with and without its hook, in turn, on terminals of their own, with gpud running and without; and
kills shells that hold a model, until ``Holds`` tells that it is free. Everything is real: dbus-daemon, gpud, busctl.
"""

import argparse
import os
import pty
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP), str(TOP / "tests")]

from tests.daemon.harness import NAME, PATH, Daemon, Place, engine, place_at, plain  # noqa: E402
from tests.dbus.private_bus import PrivateBus  # noqa: E402
from tests.dbus.terminals import Terminal, source, terminal  # noqa: E402

ROUNDS = 40
KILLS = 30
ASKED_EVERY_S = 0.005

HOOKED = {
    "bash": ("bash --noprofile --rcfile {rc} -i", "gpud.sh"),
    "dash": ("dash -i", "gpud.sh"),
    "zsh": ("zsh -d -i", "gpud.zsh"),
    "fish": ("fish --no-config -i -C {fish}", "gpud.fish"),
}
"""How each is started with a file that it reads first: its own way of naming that."""


def start_s(name: str, folder: Path, address: str, *, hook: bool) -> float:
    """From the fork to the prompt's first command having run."""
    command, file = HOOKED[name]
    text = f"{'source' if name in ('zsh', 'fish') else '.'} {TOP}/shell/hooks/{file}\n" if hook else "\n"
    rc = folder / f"rc-{hook}"
    rc.write_text(text)
    zsh = folder / f"zsh-{hook}"
    zsh.mkdir(exist_ok=True)
    (zsh / ".zshrc").write_text(text)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TERM": "dumb",
        "ENV": str(rc),
        "ZDOTDIR": str(zsh),
        "DBUS_SESSION_BUS_ADDRESS": address,
        "GPUD_BUS": "user",
    }
    words = command.format(rc=rc, fish="\0").split()
    argv = [text.strip() or "true" if word == "\0" else word for word in words]
    began = time.perf_counter()
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, environment)
    try:
        os.write(fd, b"echo rea''dy\n")
        said = b""
        while b"ready" not in said:
            said += os.read(fd, 4096)
        return time.perf_counter() - began
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)


def compare(name: str, address: str, rounds: int) -> tuple[float, float, float]:
    """Medians without and with the hook, and of the differences of neighbours, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for turn in range(rounds):
            order = (False, True) if turn % 2 else (True, False)
            took = {hook: start_s(name, Path(folder), address, hook=hook) for hook in order}
            pairs.append((took[False] * 1000, took[True] * 1000))
    without, with_it = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return without, with_it, statistics.median(b - a for a, b in pairs)


@contextmanager
def daemon_on(address: str) -> Iterator[tuple[Place, Daemon]]:
    with place_at(address) as place:
        place.sections = {**place.sections, "sessions": {"grace": 0}}
        place.configure({"held": engine()})
        yield place, place.start()


def until(condition: Callable[[], bool]) -> None:
    """Asks no more often than gpud lets one connection ask; what is measured is at most so much too long."""
    while not condition():
        time.sleep(ASKED_EVERY_S)


def release_s(place: Place, daemon: Daemon) -> float:
    """From kill -9 of a shell that holds a model until it is seen that nothing is held."""
    with terminal("bash", "unix:path=/nowhere", GPUD_BUS="user", DBUS_SESSION_BUS_ADDRESS=place.address) as shell:
        _hold(shell)
        until(lambda: bool(daemon.property("Holds")))
        began = time.perf_counter()
        os.kill(shell.pid, signal.SIGKILL)
        until(lambda: not daemon.property("Holds"))
        return time.perf_counter() - began


def _hold(shell: Terminal) -> None:
    shell.run(source("bash"))
    shell.run(f"busctl --user call {NAME} {PATH} {NAME} HoldSession ss held bench")


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.shell", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    bus = PrivateBus(relaxed=True)
    bus.start()
    try:
        with daemon_on(bus.address) as (place, daemon):
            print("start of a shell until its first command has run, medians in ms (bar: 10 ms added)")
            for kind, address in (("gpud runs", bus.address), ("no bus", "unix:path=/nowhere")):
                for name in HOOKED:
                    without, with_it, added = compare(name, address, rounds)
                    print(f"  {name:5} {kind:10} without {without:6.1f}  with {with_it:6.1f}  added {added:5.1f}")
            took = sorted(release_s(place, daemon) * 1000 for _ in range(KILLS))
            print(
                f"kill -9 of a shell until its hold is seen to be gone: median {statistics.median(took):.1f} ms, "
                f"longest of {KILLS} {took[-1]:.1f} ms (bar: 100 ms)"
            )
            assert not [plain(one) for one in daemon.call("ListSessions")]
            daemon.aftermath(spare="")
    finally:
        bus.close()


if __name__ == "__main__":
    main()
