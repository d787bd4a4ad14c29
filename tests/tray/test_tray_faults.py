"""What goes wrong around gpud-tray: trays and daemons that come, go, hang and are not there at all."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon.harness import Place, engine, place_at, settle
from dbus.private_bus import PrivateBus, session_bus
from jeepney import HeaderFields, Message, new_error, new_method_return

from .desktop import WATCHER, Desktop, Program

Start = Callable[..., Program]

NO_TRAY = 69
OWN_NAME = "org.kernelcore.GpuD.Tray"


@pytest.fixture
def mortal_bus() -> Iterator[PrivateBus]:
    """A bus that the test may kill."""
    with session_bus() as made:
        yield made


def test_a_tray_that_is_restarted_gets_the_icon_again(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """As when plasmashell crashes: the next tray is told of the icon, and clicks go on working."""
    place.configure({"one": engine()})
    daemon = place.start()
    start_tray()
    desktop.icon()
    desktop.leave()
    assert not desktop.icons
    desktop.own(WATCHER)
    desktop.icon()
    desktop.event(desktop.line("Load").children[0].number)
    daemon.wait_state("one", "ready")


def test_the_icon_goes_and_comes_with_the_daemon(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A daemon that is killed takes the icon away; the next one brings it back, and is the one that clicks reach."""
    place.configure({"one": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray()
    desktop.wait_tooltip("one is loaded")
    first = desktop.icon()
    daemon.kill9()
    desktop.no_icon()
    again = place.start()
    assert desktop.icon() != first
    desktop.wait_tooltip("No model is loaded")
    desktop.event(desktop.line("Load").children[0].number)
    again.wait_state("one", "ready")
    desktop.wait_tooltip("one is loaded")


def test_without_a_daemon_there_is_no_icon_and_none_is_started(
    place: Place, desktop: Desktop, start_tray: Start
) -> None:
    """It waits without an icon, starts nothing, and shows the icon once there is a daemon."""
    place.configure({"one": engine()})
    program = start_tray()
    desktop.wait(lambda: any(name == "NameAcquired" for name, _ in desktop.signals), "the bus")
    settle(lambda: sleeps(program.pid), "it waits")
    assert desktop.icons == []
    assert program.running
    assert place.client().owner() == ""
    place.start()
    desktop.wait_tooltip("No model is loaded")


def sleeps(pid: int) -> bool:
    """Whether it has come to rest in an unbounded wait."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return words[0] in ("232", "281", "22") and int(words[4], 16) & 0xFFFFFFFF == 0xFFFFFFFF


def test_without_a_tray_it_ends_with_a_line(place: Place, start_tray: Start) -> None:
    """It says what is missing and what to do, with the status that the unit takes for an end."""
    place.configure({})
    place.start()
    status, said = start_tray("--wait", "0").ends()
    assert status == NO_TRAY
    last = said.splitlines()[-1]
    assert last.startswith("gpud-tray: there is no tray: nobody owned org.kde.StatusNotifierWatcher on the session bus")
    assert "within 0 s; add a tray to the panel; GNOME has none of its own: use gpud's extension there" in last


def test_a_tray_that_comes_late_is_waited_for(place: Place, bus: PrivateBus, start_tray: Start) -> None:
    """A desktop that is still starting has its tray a little later."""
    place.configure({})
    place.start()
    program = start_tray()
    desktop = Desktop(bus.address)
    try:
        # Its name on the bus shows that it has begun.
        desktop.wait(lambda: desktop.owned(OWN_NAME), "that gpud-tray runs")
        desktop.own()
        desktop.icon()
    finally:
        desktop.close()
    assert program.running


def test_one_icon_is_enough(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A second one of the same session says who shows it already, and ends well."""
    place.configure({})
    place.start()
    first = start_tray()
    desktop.icon()
    status, said = start_tray().ends()
    assert status == 0
    assert said == f"gpud-tray: gpud-tray runs in this session already (pid {first.pid}); to end it: kill {first.pid}\n"
    assert len(desktop.icons) == 1


def test_a_tray_that_takes_no_icons_is_no_reason_to_end(place: Place, bus: PrivateBus, start_tray: Start) -> None:
    """A refusal is said; the next tray is asked again."""
    place.configure({})
    place.start()
    refusing = Desktop(bus.address, refuses=True)
    refusing.own()
    program = start_tray()
    try:
        refusing.wait(lambda: refusing.refused, "that an icon was offered")
    finally:
        refusing.close()
    desktop = Desktop(bus.address)
    try:
        desktop.own()
        desktop.wait_tooltip("No model is loaded")
    finally:
        desktop.close()
    status, said = program.stop()
    assert status == 0
    assert "the tray did not take the icon: no more icons" in said


def test_a_daemon_that_hangs_keeps_its_icon(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """While it is stopped the menu still opens; a wish goes through once it runs again."""
    place.configure({"one": engine()})
    daemon = place.start()
    start_tray()
    desktop.wait_tooltip("No model is loaded")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        desktop.event(desktop.line("Load").children[0].number)
        assert "Favourites" in desktop.menu().labels()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.wait_state("one", "ready")
    desktop.wait_tooltip("one is loaded")


def test_a_wish_that_comes_after_the_daemon_has_gone_is_told(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A click while the daemon dies ends with words, not in silence."""
    place.configure({"one": engine()})
    daemon = place.start()
    start_tray()
    number = desktop.line("Load").children[0].number
    os.kill(daemon.pid, signal.SIGSTOP)
    desktop.event(number)
    daemon.kill9()
    title, text = desktop.wait(lambda: desktop.notifications and desktop.notifications[-1], "a notification")
    assert title == "one could not be loaded"
    assert text.startswith("gpud ended before it answered; ")


def test_the_end_of_the_session_ends_it(mortal_bus: PrivateBus, start_tray: Start) -> None:
    """When the session bus goes, so does it, and that is no failure."""
    desktop = Desktop(mortal_bus.address)
    desktop.own()
    program = start_tray(address=mortal_bus.address)
    desktop.wait(lambda: desktop.owned(OWN_NAME), "that gpud-tray runs")
    mortal_bus.kill()
    status, said = program.ends()
    desktop.close()
    assert status == 0, said
    assert "Traceback" not in said


def test_the_gpud_of_the_machine_is_shown(bus: PrivateBus, mortal_bus: PrivateBus, start_tray: Start) -> None:
    """On the system bus as well, whose end and return it survives."""
    desktop = Desktop(bus.address)
    desktop.own()
    with place_at(mortal_bus.address) as place:
        place.configure({"one": engine()})
        daemon = place.start()
        program = start_tray(DBUS_SYSTEM_BUS_ADDRESS=mortal_bus.address)
        desktop.wait_tooltip("No model is loaded")
        desktop.event(desktop.line("Load").children[0].number)
        daemon.wait_state("one", "ready")
        mortal_bus.kill()
        desktop.no_icon()
        mortal_bus.start()
        daemon.new_client()
        desktop.wait_tooltip("one is loaded")
        assert program.running
        assert daemon.stop() == 0
    desktop.no_icon()
    desktop.close()


def test_the_gpud_of_the_machine_comes_first(
    place: Place, mortal_bus: PrivateBus, desktop: Desktop, start_tray: Start
) -> None:
    """Where the session has one as well, the machine's is shown; when it goes, the session's."""
    place.configure({"mine": engine()})
    place.start()
    with place_at(mortal_bus.address) as machine:
        machine.configure({"everybody": engine()})
        daemon = machine.start()
        start_tray(DBUS_SYSTEM_BUS_ADDRESS=mortal_bus.address)
        assert desktop.line("Load").labels() == ["everybody (10 MiB)"]
        assert daemon.stop() == 0
        desktop.no_icon()
    assert desktop.line("Load").labels() == ["mine (10 MiB)"]


def test_only_the_wanted_bus_is_looked_at(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """With --system the session's gpud is nobody's business, and without a system bus that is said."""
    place.configure({})
    place.start()
    status, said = start_tray("--system").ends()
    assert status == 1
    assert said.splitlines()[-1].startswith("gpud-tray: cannot look for gpud: the system bus cannot be reached (")


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        (
            {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"},
            1,
            "cannot show an icon: the session bus cannot be reached",
        ),
        ({"GPUD_BUS": "omni"}, 2, 'GPUD_BUS is "omni"; it can be user, system or auto'),
        ({"XDG_CONFIG_HOME": "CONFIG"}, 1, "cannot use "),
    ],
)
def test_what_it_cannot_start_with_is_said(
    desktop: Desktop, start_tray: Start, tmp_path: Path, environment: dict[str, str], status: int, words: str
) -> None:
    """One line, and a status that tells a mistake of the person's from one of the machine's."""
    if "XDG_CONFIG_HOME" in environment:
        (tmp_path / "gpud").mkdir()
        (tmp_path / "gpud/tray.conf").write_text("[tray]\nred = yes\n")
        environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    found, said = start_tray(**environment).ends()
    assert found == status
    assert said.splitlines()[-1].startswith(f"gpud-tray: {words}")
    assert "Traceback" not in said


class Refusing(Desktop):
    """A tray and a gpud in one, which refuses whatever is wanted of it, and remembers with which flags it was asked."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.flags: dict[str, int] = {}

    def _answer(self, message: Message, member: str) -> None:
        if message.header.fields.get(HeaderFields.interface) != "org.kernelcore.GpuD":
            super()._answer(message, member)
            return
        self.flags[member] = int(message.header.flags)
        if member == "Overview":
            status = {"State": ("s", "idle"), "Models": ("aa{sv}", [{"Id": ("s", "one"), "State": ("s", "unloaded")}])}
            self._connection.send(new_method_return(message, "a{sv}", (status,)))
        else:
            text = "giving the GPUs away is for administrators; ask one"
            self._connection.send(new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "s", (text,)))


NO_AUTO_START, MAY_ASK_THE_PERSON = 2, 4


def test_only_a_click_may_ask_for_a_password(bus: PrivateBus, start_tray: Start) -> None:
    """What a person wants may open polkit's dialog, what the tray looks at may not, and nothing starts gpud."""
    desktop = Refusing(bus.address)
    try:
        desktop.own()
        desktop.own("org.kernelcore.GpuD")
        start_tray()
        desktop.click("Give the GPU away")
        title, text = desktop.wait(lambda: desktop.notifications and desktop.notifications[-1], "a notification")
    finally:
        desktop.close()
    assert (title, text) == ("The GPU could not be given away", "giving the GPUs away is for administrators; ask one")
    assert desktop.flags == {"Overview": NO_AUTO_START, "Yield": NO_AUTO_START | MAY_ASK_THE_PERSON}


def test_an_answer_that_is_no_answer_does_no_harm(bus: PrivateBus, start_tray: Start) -> None:
    """A gpud of another time may leave out whatever it likes."""
    desktop = Refusing(bus.address)
    try:
        desktop.own()
        desktop.own("org.kernelcore.GpuD")
        start_tray()
        text = desktop.wait_tooltip("No model is loaded")
        assert "How full the GPU is, is not known" in text
        assert desktop.line("Load").labels() == ["one"]
    finally:
        desktop.close()
