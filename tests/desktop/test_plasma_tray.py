"""gpud-tray in a tray that is not ours: Plasma's, which draws its icon and its menu, without gpud's own widget."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.harness import Daemon, Place
from dbus.private_bus import PrivateBus
from fake_nvml.gpu import MIB, FakeGpus
from tray.desktop import Program

from .plasma import HEIGHT, ONLY_A_TRAY, PANEL, Plasma
from .test_plasma import keep
from .tree import desktop_tree, wait_until

RED = (230, 57, 53)
"""Of gpud-tray's own drawing."""


@pytest.fixture(scope="module")
def plasma(system_bus: PrivateBus) -> Iterator[Plasma]:
    """A session with KDE's own keeper of icons."""
    with desktop_tree("desktop", system_bus.directory) as tree:
        made = Plasma(tree, system_bus.address, ONLY_A_TRAY)
        tree.start("kded.log", "kded6")
        made.start()
        yield made
        made.stop()


@pytest.fixture
def tray(plasma: Plasma, system_bus: PrivateBus, tmp_path: Path) -> Iterator[Program]:
    """gpud-tray, outside of the container and on its session bus."""
    program = Program(address=plasma.session_bus, home=tmp_path, DBUS_SYSTEM_BUS_ADDRESS=system_bus.address)
    yield program
    program.close()


def test_plasma_draws_the_icon_and_the_menu(plasma: Plasma, tray: Program, daemon: Daemon, gpus: FakeGpus) -> None:
    """The icon has its title, a click opens the menu, and a click there unloads; amber and red are seen."""
    daemon.loaded("qwen3-8b")
    icon = plasma.part("qwen3-8b is loaded.*", "button")
    assert plasma.colors(PANEL).get(RED, 0) == 0
    gpus.set_foreign(1434 * MIB)
    wait_until(lambda: plasma.colors(PANEL).get(RED, 0) > 20, "the icon is not red")
    before = plasma.windows()
    plasma.tree.run(f"xdotool mousemove {icon.x} {icon.y} click 1")
    wait_until(lambda: plasma.windows() > before, "the menu did not open")
    # The first line that can be chosen: those above it only say something.
    plasma.key("Down")
    keep(plasma.picture("plasma-tray", f"480x{HEIGHT - 380}+0+380"))
    plasma.key("Return")
    daemon.wait_state("qwen3-8b", "unloaded")
    plasma.part("No model is loaded.*", "button")


def test_plasma_loses_the_icon_with_the_daemon(plasma: Plasma, tray: Program, place: Place, daemon: Daemon) -> None:
    """kill -9 of gpud takes the icon out of the tray; the next gpud brings it back."""
    plasma.part("No model is loaded.*", "button")
    daemon.kill9()
    plasma.gone("No model is loaded.*")
    place.start()
    plasma.part("No model is loaded.*", "button")


def test_the_next_plasma_has_the_icon_again(plasma: Plasma, tray: Program, daemon: Daemon) -> None:
    """kill -9 of plasmashell."""
    plasma.part("No model is loaded.*", "button")
    plasma.stop()
    plasma.start(fresh=False)
    plasma.part("No model is loaded.*", "button")
    assert tray.running
