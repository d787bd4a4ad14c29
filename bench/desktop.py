"""``.venv/bin/python -m bench.desktop [--shell 43|48] [--seconds 60]``: what a widget costs while nobody looks, in one
run.

As root, after ``tests/provision desktop`` and ``desktop-12``. A real GNOME Shell runs headless with a real gpud on its
system bus. Printed, for a widget that is switched off, for one that shows an idle gpud, and for one that shows a loaded
model: the processor time of the whole shell, the messages on the bus meanwhile, and what woke gpud in 20 seconds.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from bench.core import switches

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests" / "backends")]

from daemon.harness import Daemon, engine, place_at  # noqa: E402
from dbus.private_bus import PrivateBus  # noqa: E402
from desktop.gnome_shell import GnomeShell  # noqa: E402
from desktop.tree import desktop_tree  # noqa: E402
from fake_nvml.gpu import GIB, FakeGpus  # noqa: E402

SHELLS = {"43": ("desktop-12", "43"), "48": ("desktop", "45")}
WAKE_S = 20.0
SETTLE_S = 15.0
"""What the shell still does of its own after something was clicked: it collects garbage and drops caches."""


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.desktop", description=__doc__)
    parser.add_argument("--shell", choices=SHELLS, action="append", help="the GNOME Shell; by default both")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the shell is watched (default: 60)")
    options = parser.parse_args()
    for version in options.shell or SHELLS:
        measure(version, options.seconds)


def measure(version: str, seconds: float) -> None:
    name, release = SHELLS[version]
    bus = PrivateBus(relaxed=True)
    bus.start()
    try:
        with (
            place_at(bus.address) as place,
            FakeGpus(place.root / "gpus", 6 * GIB) as gpus,
            desktop_tree(name, bus.directory) as tree,
        ):
            place.environment |= gpus.environment()
            mark = f"--name={place.root.name}"
            gpus.rule(mark, GIB)
            place.configure({"model": engine(mark, size="1GiB")})
            daemon = place.start()
            shell = GnomeShell(tree, bus.address, release)
            shell.run("desk.Main.overview.hide()")
            shell.until("desk.icon.mapped", "the widget does not show")
            steps: tuple[tuple[str, Callable[[], object]], ...] = (
                ("widget off", shell.disable),
                ("widget on, nothing loaded", shell.enable),
                ("widget on, a model loaded", lambda: daemon.load("model")),
            )
            for what, prepare in steps:
                prepare()
                report(f"GNOME Shell {version}, {what}", shell, daemon, bus, seconds)
            shell.close()
    finally:
        bus.close()


def report(what: str, shell: GnomeShell, daemon: Daemon, bus: PrivateBus, seconds: float) -> None:
    time.sleep(SETTLE_S)
    process = next(found for found in shell.program.processes() if found.name() == "gnome-shell")
    with open_dbus_connection(bus.address) as monitor:
        watch(monitor)
        used = process.cpu_times()
        messages = count(monitor, seconds)
        later = process.cpu_times()
    cpu_ms = 1000 * (later.user + later.system - used.user - used.system)
    woken = switches(daemon.pid)
    time.sleep(WAKE_S)
    woken = switches(daemon.pid) - woken
    print(
        f"{what:<46} shell {cpu_ms:5.0f} ms of processor in {seconds:g} s; {messages} messages on the bus; "
        f"gpud woken {woken} times in {WAKE_S:g} s",
        flush=True,
    )


def watch(connection: DBusConnection) -> None:
    """From now on the connection gets whatever anybody says on the bus."""
    address = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Monitoring")
    connection.send_and_get_reply(new_method_call(address, "BecomeMonitor", "asu", ([], 0)), timeout=20)


def count(connection: DBusConnection, seconds: float) -> int:
    """The messages of so many seconds."""
    found = 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            message = connection.receive(timeout=left)
        except TimeoutError:
            break
        # The bus tells the monitor itself that it has lost its name.
        found += message.header.fields.get(6) != connection.unique_name
    return found


if __name__ == "__main__":
    main()
