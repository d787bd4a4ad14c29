"""The widget in a real Plasma 6.3 desktop of Debian 13, headless, with a real gpud on what it takes for the system bus.

It is in the panel and in the system tray. Clicks are those of a pointer; what is seen is what a screen reader finds.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.harness import NAME, Daemon, Place
from dbus.private_bus import PrivateBus
from fake_nvml.gpu import GIB, MIB, FakeGpus
from jeepney import Message, new_error, new_method_return
from tray.desktop import Desktop

from .conftest import BROKEN, TOO_LARGE, until_unmeasured
from .plasma import PANEL, POPUP, WIDGET, WIDGETS, Part, Plasma
from .tree import TOP, Tree, desktop_tree, wait_until

AMBER = (246, 116, 0)
RED = (218, 68, 83)
"""The colors of Breeze for what is neither good nor bad, and for what is bad."""

MOST_OFFERED = 8
"""At once, without favourites."""


@pytest.fixture(scope="module")
def tree(system_bus: PrivateBus) -> Iterator[Tree]:
    with desktop_tree("desktop", system_bus.directory) as made:
        yield made


@pytest.fixture(scope="module")
def running(tree: Tree, system_bus: PrivateBus) -> Iterator[Plasma]:
    plasma = Plasma(tree, system_bus.address)
    plasma.start()
    yield plasma
    plasma.stop()


@pytest.fixture
def plasma(running: Plasma) -> Iterator[Plasma]:
    """The shell, with no popup open before and after."""
    running.close()
    yield running
    assert [line for line in running.complaints() if "Error" in line or "loop" in line] == []
    running.close()


def keep(picture: Path) -> None:
    """Put it among the pictures of the documentation, where somebody asks for that."""
    assert picture.stat().st_size <= 150 * 1024
    if os.environ.get("PICTURES"):
        shutil.copy(picture, TOP / "docs" / "images" / picture.name)


def test_the_panel_and_the_tray_show_what_is_loaded(plasma: Plasma, daemon: Daemon) -> None:
    """Both icons are called what matters most, and say how full the GPU is; the panel has the percentage beside it."""
    daemon.loaded("qwen3-8b")
    plasma.part("qwen3-8b is loaded", "button")
    plasma.wait(lambda _: len(plasma.icons()) == 2, "there are not two icons")
    plasma.part("66 %", "label")
    icon = plasma.icons()[0]
    assert icon.description.endswith("4.0 GiB of 6.0 GiB in use (66 %)\nOther programs: 0 MiB")


def test_other_programs_have_their_share(plasma: Plasma, daemon: Daemon, gpus: FakeGpus) -> None:
    """What others hold is told apart from what gpud's models hold."""
    daemon.loaded("gemma-3-1b")
    gpus.set_foreign(512 * MIB)
    plasma.open()
    plasma.part("1.5 GiB of 6.0 GiB in use. Other programs: 512 MiB", "label")
    plasma.part("NVIDIA GeForce RTX 3050 6GB Laptop GPU", "progress bar")


@pytest.mark.parametrize(("foreign_mib", "percent", "color"), [(1130, 85, AMBER), (1434, 90, RED)])
def test_a_full_gpu_is_amber_and_then_red(
    plasma: Plasma, daemon: Daemon, gpus: FakeGpus, foreign_mib: int, percent: int, color: tuple[int, int, int]
) -> None:
    """From 85 percent on the icon is amber, from 90 on red; before there is nothing of either color."""
    daemon.loaded("qwen3-8b")
    plasma.part("66 %", "label")
    before = plasma.colors(PANEL)
    assert (before.get(AMBER, 0), before.get(RED, 0)) == (0, 0)
    gpus.set_foreign(foreign_mib * MIB)
    plasma.part(f"{percent} %", "label")
    wait_until(lambda: plasma.colors(PANEL).get(color, 0) > 100, "the icons did not take the color")
    other = RED if color == AMBER else AMBER
    assert plasma.colors(PANEL).get(other, 0) == 0
    plasma.open()
    plasma.part(f"{percent} %", "label")
    keep(plasma.picture(f"plasma-{'amber' if color == AMBER else 'red'}", POPUP))


def test_a_click_unloads_a_model(plasma: Plasma, daemon: Daemon) -> None:
    """The button beside a model unloads that one, and then it is offered for loading."""
    daemon.loaded("qwen3-8b")
    daemon.loaded("gemma-3-1b")
    plasma.open()
    plasma.part("Unload gemma-3-1b", "button")
    plasma.part("Unload all models", "button")
    keep(plasma.picture("plasma-popup", POPUP))
    plasma.click("Unload qwen3-8b", "button")
    daemon.wait_state("qwen3-8b", "unloaded")
    assert daemon.state("gemma-3-1b") == "ready"
    plasma.part("gemma-3-1b is loaded", "heading")
    plasma.part("Load qwen3-8b", "list item")


def test_a_click_unloads_everything(plasma: Plasma, daemon: Daemon) -> None:
    """With more than one there is a button for all."""
    daemon.loaded("qwen3-8b")
    daemon.loaded("gemma-3-1b")
    plasma.open()
    plasma.click("Unload all models", "button")
    daemon.wait_state("qwen3-8b", "unloaded")
    daemon.wait_state("gemma-3-1b", "unloaded")
    plasma.part("No model is loaded", "heading")


def test_a_click_loads_a_model(plasma: Plasma, daemon: Daemon) -> None:
    """And the popup shows it among what is loaded."""
    plasma.open()
    plasma.click("Load phi-4-mini", "list item")
    daemon.wait_state("phi-4-mini", "ready")
    plasma.part("Unload phi-4-mini", "button")


def test_the_keyboard_is_enough(plasma: Plasma, daemon: Daemon) -> None:
    """Tab goes from part to part, Enter and the space bar press them, Escape closes the popup."""
    plasma.open()
    plasma.focus(plasma.part("No model is loaded", "heading"))
    tab_to(plasma, "Load gemma-3-1b")
    plasma.key("Return")
    daemon.wait_state("gemma-3-1b", "ready")
    plasma.part("Unload gemma-3-1b", "button")
    tab_to(plasma, "Unload gemma-3-1b")
    plasma.key("space")
    daemon.wait_state("gemma-3-1b", "unloaded")
    plasma.key("Escape")
    plasma.wait(lambda parts: not any(part.role == "heading" for part in parts), "the popup does not close")


def test_the_keyboard_stays_where_it_is(plasma: Plasma, daemon: Daemon) -> None:
    """What others load and unload changes the rows above and the numbers; whoever is at one of the rows still is."""
    plasma.open()
    plasma.focus(plasma.part("No model is loaded", "heading"))
    for stays, comes in (("Load gemma-3-1b", "phi-4-mini"), ("Load phi-4-mini", "gemma-3-1b")):
        tab_to(plasma, stays)
        daemon.loaded(comes)
        plasma.part(f"Unload {comes}", "button")
        assert plasma.part(stays, "list item").focused
        assert daemon.unload(comes).result == "done"
        plasma.part(f"Load {comes}", "list item")
        assert plasma.part(stays, "list item").focused


def tab_to(plasma: Plasma, name: str) -> None:
    """Press Tab until the part has the keyboard; there are fewer parts than this."""
    met = []
    for _ in range(20):
        plasma.key("Tab")
        met += [part.name for part in plasma.see() if part.focused]
        if name in met:
            return
    raise AssertionError(f"{name!r} is not among {met}")


def test_a_favourite_comes_first(plasma: Plasma, daemon: Daemon) -> None:
    """A star makes a model one of those that are offered; the others are one click further."""
    plasma.open()
    plasma.click("Make phi-4-mini a favourite", "check box")
    plasma.part("phi-4-mini is a favourite", "check box")
    plasma.gone("Load gemma-3-1b")
    plasma.click("Show all models", "button")
    plasma.part("Load gemma-3-1b", "list item")
    plasma.click("phi-4-mini is a favourite", "check box")
    plasma.gone("Show fewer")


def test_a_popup_that_is_opened_anew_begins_anew(plasma: Plasma, daemon: Daemon, thousands: None) -> None:
    """All models were shown, and the next time there are the first ones."""
    plasma.open()
    plasma.wait(lambda parts: len(offered(parts)) == MOST_OFFERED, "there are more than the last used")
    plasma.click("Show more models", "button")
    # Those below the edge are no part of the screen.
    plasma.wait(lambda parts: len(offered(parts)) > MOST_OFFERED, "there are no more of them")
    plasma.part("4,956 more: .*", "label")
    plasma.close()
    plasma.open()
    plasma.wait(lambda parts: len(offered(parts)) == MOST_OFFERED, "it is as it was left")


def test_thousands_of_models_are_searched(plasma: Plasma, daemon: Daemon, thousands: None) -> None:
    """What is loaded, the last used, how many more there are, and a field that finds them."""
    daemon.loaded("gemma-3-1b")
    plasma.open()
    plasma.part("Unload gemma-3-1b", "button")
    plasma.wait(lambda parts: len(offered(parts)) == MOST_OFFERED, "it does not offer the last used")
    plasma.part("4,997 more: search for them here, or with gpudctl models list", "label")
    keep(plasma.picture("plasma-many", POPUP))
    plasma.focus(plasma.part("gemma-3-1b is loaded", "heading"))
    plasma.click("Search for a model")
    plasma.tree.run("xdotool type --delay 50 m432")
    plasma.wait(lambda parts: offered(parts) == {f"Load m432{digit}" for digit in range(10)}, "it is not found")
    keep(plasma.picture("plasma-search", POPUP))
    plasma.close()
    plasma.open()
    plasma.wait(lambda parts: len(offered(parts)) == MOST_OFFERED, "the search is not over with the popup")


def offered(parts: list[Part]) -> set[str]:
    """What a click would load."""
    return {part.name for part in parts if part.role == "list item" and part.name.startswith("Load ")}


def test_a_refusal_is_shown_with_its_numbers(plasma: Plasma, daemon: Daemon) -> None:
    """What cannot be loaded is said in the daemon's words, and the message can be closed."""
    until_unmeasured(daemon)
    plasma.open()
    plasma.click(f"Load {TOO_LARGE}", "list item")
    plasma.part(rf"{TOO_LARGE} could not be loaded: .*100\.0 GiB.* 5\.8 GiB.*")
    keep(plasma.picture("plasma-refused", POPUP))
    plasma.click("Close", "button")
    plasma.gone(f"{TOO_LARGE} could not be loaded: .*")


def test_an_engine_that_fails_later_is_shown(plasma: Plasma, daemon: Daemon) -> None:
    """A load that was begun and came to nothing is told as well."""
    plasma.open()
    plasma.click(f"Load {BROKEN}", "list item")
    plasma.part(rf"{BROKEN} could not be loaded: .+")


def test_the_gpus_are_given_away_and_taken_back(plasma: Plasma, daemon: Daemon) -> None:
    """One switch does both, and shows what gpud says, not what was clicked."""
    daemon.loaded("qwen3-8b")
    plasma.open()
    plasma.click("Give the GPU away")
    plasma.point_away()
    daemon.wait_state("qwen3-8b", "unloaded")
    plasma.part("The GPU is given away", "heading")
    # The figure of when the model was still there, which gpud still has, is not told of a time when it has gone.
    plasma.part("6.0 GiB, not measured while nothing is loaded", "label")
    assert plasma.part("Give the GPU away").checked
    assert daemon.status()["Yielded"]["Why"] == ("s", "Plasma")
    keep(plasma.picture("plasma-given-away", POPUP))
    plasma.click("Give the GPU away")
    plasma.part("No model is loaded", "heading")
    assert not plasma.part("Give the GPU away").checked
    daemon.call("Yield", "ts", 0, "somebody else")
    plasma.wait(
        lambda parts: any(part.name == "Give the GPU away" and part.checked for part in parts), "the switch is off"
    )


def test_the_icons_go_and_come_with_the_daemon(plasma: Plasma, place: Place, daemon: Daemon) -> None:
    """kill -9 of gpud takes both icons away; the next gpud brings them back, and is the one that clicks reach."""
    daemon.loaded("qwen3-8b")
    plasma.part("qwen3-8b is loaded", "button")
    daemon.kill9()
    plasma.wait(lambda _: plasma.icons() == [], "an icon is still there")
    again = place.start()
    plasma.wait(lambda _: len(plasma.icons()) == 2, "there are not two icons")
    plasma.open()
    plasma.click("Load gemma-3-1b", "list item")
    again.wait_state("gemma-3-1b", "ready")
    plasma.part("gemma-3-1b is loaded", "heading")


def test_looking_does_not_start_gpud(plasma: Plasma, away: None, system_bus: PrivateBus) -> None:
    """While none is there nothing is asked of one: no process waits for it, and no call could start it."""
    plasma.wait(lambda _: plasma.icons() == [], "an icon is still there")
    names = plasma.tree.run("busctl --system --no-legend list")
    assert "org.kernelcore.GpuD " not in names


class Strict(Desktop):
    """Something on the bus that takes itself for gpud, and does nothing for those who allow no question of polkit's."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.asked: list[tuple[str, bool]] = []
        self.yielded = False
        self.own(NAME)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(AssertionError):
                self.wait(self._ending.is_set, "the end", bound_s=0.2)

    def _answer(self, message: Message, member: str) -> None:
        may_ask = bool(int(message.header.flags) & 4)
        if member == "Overview":
            gpus = [{"VramTotal": ("t", 6 * GIB)}]
            state = {"State": ("s", "yielded" if self.yielded else "idle"), "Gpus": ("aa{sv}", gpus)}
            since = {"SinceUSec": ("t", 1)} if self.yielded else {}
            self._connection.send(new_method_return(message, "a{sv}", (state | {"Yielded": ("a{sv}", since)},)))
            return
        self.asked.append((member, may_ask))
        if may_ask:
            self.yielded = member == "Yield"
            self._connection.send(new_method_return(message))
        else:
            name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
            self._connection.send(new_error(message, name, "s", ("polkit would ask",)))

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        super().close()


def test_a_password_can_be_asked_for(plasma: Plasma, away: None, system_bus: PrivateBus) -> None:
    """What Plasma's own call is refused for is asked once more in a way that lets polkit open its dialog."""
    strict = Strict(system_bus.address)
    try:
        plasma.open()
        plasma.click("Give the GPU away")
        plasma.part("The GPU is given away", "heading")
        assert strict.asked == [("Yield", False), ("Yield", True)]
        assert plasma.part("Give the GPU away").checked
        plasma.close()
    finally:
        strict.close()


def test_the_widget_outlives_its_shell(plasma: Plasma, daemon: Daemon) -> None:
    """kill -9 of plasmashell: the next one shows the same again."""
    daemon.loaded("gemma-3-1b")
    plasma.part("gemma-3-1b is loaded", "button")
    plasma.stop()
    plasma.start(fresh=False)
    plasma.wait(lambda _: len(plasma.icons()) == 2, "there are not two icons")
    plasma.part("gemma-3-1b is loaded", "button")


def test_nothing_runs_while_nothing_changes(plasma: Plasma, daemon: Daemon) -> None:
    """Each widget has one sleeping "busctl wait" and nothing else, and the daemon is not asked anything meanwhile."""
    plasma.wait(lambda _: len(plasma.icons()) == 2, "there are not two icons")
    assert plasma.shell is not None
    shell = plasma.shell

    def waiting() -> list[str]:
        return [" ".join(process.cmdline()) for process in shell.processes() if process.name() == "busctl"]

    wait_until(lambda: len(waiting()) == 2, f"two processes that wait: {waiting()}")
    assert all(line.endswith("org.freedesktop.DBus.Properties PropertiesChanged") for line in waiting())


def test_the_widget_speaks_german(plasma: Plasma, daemon: Daemon) -> None:
    """Its words and its numbers are those of the session's language."""
    daemon.loaded("qwen3-8b")
    plasma.stop()
    plasma.start(LANG="de_DE.UTF-8", LANGUAGE="de")
    try:
        plasma.part("qwen3-8b ist geladen", "button")
        plasma.open()
        plasma.part("4,0 GiB von 6,0 GiB belegt. Andere Programme: 0 MiB", "label")
        plasma.part("qwen3-8b entladen", "button")
    finally:
        plasma.stop()
        plasma.start()


def test_the_widget_is_in_the_list_of_widgets(plasma: Plasma) -> None:
    """Plasma's own tool finds the package and can read it."""
    listed = plasma.tree.run("kpackagetool6 --type Plasma/Applet --list --global")
    assert WIDGET in listed
    shown = plasma.tree.run(f"kpackagetool6 --type Plasma/Applet --show {WIDGET} --global 2>&1 || true")
    assert "GPU Models" in shown


def test_qmllint_knows_everything_it_can_know(plasma: Plasma) -> None:
    """With Plasma's own modules at hand. What Plasma does not describe (its own item, translations) is left out."""
    lint = "/usr/lib/qt6/bin/qmllint --unqualified disable --import disable --unresolved-type disable --max-warnings 0"
    quiet = (
        f"cd {WIDGETS}/contents && {lint} $(ls ui/*.qml config/*.qml | grep -v -e main.qml -e Daemon.qml -e config.qml)"
    )
    assert plasma.tree.run(quiet) == ""
    rest = f"cd {WIDGETS}/contents && {lint} --missing-property disable ui/main.qml ui/Daemon.qml"
    assert plasma.tree.run(rest) == ""
