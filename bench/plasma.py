"""``.venv/bin/python -m bench.plasma [--seconds 60]``: what the Plasma widget and gpud-tray cost while nobody looks, in
one run.

As root, after ``tests/provision desktop``. A real plasmashell runs headless with a real gpud on its system bus.
Printed, for a panel without the widget, for one that shows an idle gpud (in the panel and in the tray) and for one that
shows a loaded model: the processor time of the shell and of what it has started, and what woke gpud in 20 seconds; then
the same of gpud-tray, with its memory.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.core import switches

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests" / "backends")]

from daemon.harness import Daemon, engine, place_at  # noqa: E402
from dbus.private_bus import PrivateBus  # noqa: E402
from desktop.tree import Program as Inside  # noqa: E402
from desktop.tree import desktop_tree  # noqa: E402
from fake_nvml.gpu import GIB, FakeGpus  # noqa: E402
from tray.desktop import Desktop, Program  # noqa: E402

from desktop.plasma import ONLY_A_TRAY, Plasma  # noqa: E402

WAKE_S = 20.0
SETTLE_S = 20.0
"""A shell that has just started goes on with its own for a while."""


def main() -> None:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m bench.plasma", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is watched (default: 60)")
    seconds = parser.parse_args().seconds
    bus = PrivateBus(relaxed=True)
    bus.start()
    try:
        with place_at(bus.address) as place, FakeGpus(place.root / "gpus", 6 * GIB) as gpus:
            place.environment |= gpus.environment()
            mark = f"--name={place.root.name}"
            gpus.rule(mark, GIB)
            place.configure({"model": engine(mark, size="1GiB")})
            daemon = place.start()
            with desktop_tree("desktop", bus.directory) as tree:
                plasma = Plasma(tree, bus.address)
                watch_shell(plasma, daemon, seconds)
            watch_tray(bus.address, daemon, seconds)
            daemon.stop()
    finally:
        bus.close()


def watch_shell(plasma: Plasma, daemon: Daemon, seconds: float) -> None:
    applets = plasma.tree.shared / "applets"
    with_widget = applets.read_text()
    applets.write_text(ONLY_A_TRAY)
    plasma.start()
    print_shell("panel without the widget", plasma, daemon, seconds)
    plasma.stop()
    applets.write_text(with_widget)
    plasma.start()
    print_shell("two widgets, nothing loaded", plasma, daemon, seconds)
    daemon.loaded("model")
    print_shell("two widgets, a model loaded", plasma, daemon, seconds)
    daemon.unload(force=True)
    plasma.stop()


def print_shell(label: str, plasma: Plasma, daemon: Daemon, seconds: float) -> None:
    plasma.close_eyes()
    time.sleep(SETTLE_S)
    assert plasma.shell is not None
    before_s = processor_s(plasma.shell)
    time.sleep(seconds)
    used_ms = 1000 * (processor_s(plasma.shell) - before_s)
    woken = switches(daemon.pid)
    time.sleep(WAKE_S)
    woken = switches(daemon.pid) - woken
    print(
        f"{label}: {used_ms:.0f} ms of processor in {seconds:g} s; gpud woken {woken} times in {WAKE_S:g} s", flush=True
    )


def processor_s(shell: Inside) -> float:
    times = [process.cpu_times() for process in shell.processes()]
    return sum(spent.user + spent.system + spent.children_user + spent.children_system for spent in times)


def watch_tray(address: str, daemon: Daemon, seconds: float) -> None:
    desktop = Desktop(address)
    desktop.own()
    with tempfile.TemporaryDirectory() as home:
        tray = Program(address=address, home=Path(home))
        desktop.wait_tooltip("No model is loaded")
        print_tray("gpud-tray, nothing loaded", tray, daemon, seconds)
        daemon.loaded("model")
        desktop.wait_tooltip("model is loaded")
        print_tray("gpud-tray, a model loaded", tray, daemon, seconds)
        daemon.unload(force=True)
        tray.close()
    desktop.close()


def print_tray(label: str, tray: Program, daemon: Daemon, seconds: float) -> None:
    process = psutil.Process(tray.pid)
    time.sleep(1.0)
    before, woken, gpud_woken = process.cpu_times(), switches(tray.pid), switches(daemon.pid)
    time.sleep(seconds)
    after = process.cpu_times()
    used_ms = 1000 * (after.user + after.system - before.user - before.system)
    resident_mib = process.memory_info().rss / (1 << 20)
    print(
        f"{label}: {used_ms:.0f} ms of processor, woken {switches(tray.pid) - woken} times in {seconds:g} s, "
        f"{resident_mib:.1f} MiB; gpud woken {switches(daemon.pid) - gpud_woken} times",
        flush=True,
    )


if __name__ == "__main__":
    main()
