"""gpud-tray as a person meets it: the icon, its words and its menu, with a real daemon and a tray on a real bus."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon.harness import NAME, Place, engine, settle
from dbus.private_bus import PrivateBus
from jeepney import DBusAddress, HeaderFields, new_method_call
from jeepney.io.blocking import open_dbus_connection

from .desktop import BOUND_S, ITEM, MENU, Desktop, Program, Refused

Start = Callable[..., Program]

MONITORING = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Monitoring")

ONE_OF_MANY = '{engine: custom, command: [/bin/true, "${socket}"], health: /health, size: 10MiB}'
MANY_S = 300.0
"""For gpud to have read thousands of models, which takes a quick machine two seconds."""


def test_the_icon_says_what_is_loaded(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """The title and the tooltip follow the daemon: nothing, then a model with its size and what is in use."""
    place.configure({"small": engine()})
    daemon = place.start()
    start_tray()
    assert desktop.property("Title") == "No model is loaded"
    assert desktop.property("Category") == "Hardware"
    assert desktop.property("ItemIsMenu") is True
    assert daemon.load("small").result == "done"
    text = desktop.wait_tooltip("small is loaded")
    assert re.search(r"^small: \d+ MiB$", text, re.MULTILINE), text
    assert re.search(r"^Memory: [\d.]+ [GM]iB of [\d.]+ GiB in use \(\d+ %\)$", text, re.MULTILINE), text
    assert re.search(r"^Other programs: [\d.]+ (G|M)iB$", text, re.MULTILINE), text
    assert ("NewTitle", ()) in desktop.signals
    assert ("NewToolTip", ()) in desktop.signals


def test_a_click_unloads_a_model(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """The line of a model unloads that model and no other."""
    place.configure({"one": engine(), "two": engine()})
    daemon = place.start()
    daemon.loaded("one")
    daemon.loaded("two")
    start_tray()
    labels = [label for label in desktop.menu().labels() if label.startswith("Unload one")]
    desktop.click(labels[0])
    daemon.wait_state("one", "unloaded")
    assert daemon.state("two") == "ready"


def test_a_click_unloads_everything(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """With more than one model there is a line for all of them."""
    place.configure({"one": engine(), "two": engine()})
    daemon = place.start()
    daemon.loaded("one")
    daemon.loaded("two")
    start_tray()
    desktop.click("Unload all models")
    daemon.wait_state("one", "unloaded")
    daemon.wait_state("two", "unloaded")
    desktop.wait_tooltip("No model is loaded")
    assert "Unload all models" not in desktop.menu().labels()


def test_a_click_loads_a_model(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """The models that could be loaded are below "Load" with what they would need; the one that is loaded leaves it."""
    place.configure({"one": engine(), "two_underlined": engine()})
    daemon = place.start()
    start_tray()
    load = desktop.line("Load")
    # A single underline would mark a key.
    assert load.labels() == ["one (10 MiB)", "two__underlined (10 MiB)"]
    desktop.event(load.children[1].number)
    daemon.wait_state("two_underlined", "ready")
    desktop.wait(lambda: desktop.line("Load").labels() == ["one (10 MiB)"], "that only one is left")


def test_a_line_that_only_says_something_does_nothing(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """The headline and the memory are there to be read."""
    place.configure({"one": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray()
    headline = desktop.line("one is loaded")
    assert not headline.enabled
    desktop.event(headline.number)
    # Other events are told as well, and mean nothing.
    desktop.event(desktop.line("Load" if "Load" in desktop.menu().labels() else "Favourites").number, "opened")
    assert daemon.state("one") == "ready"


def test_the_gpus_are_given_away_and_taken_back(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """One check mark does both, and shows which it is."""
    place.configure({"one": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray()
    assert desktop.line("Give the GPU away").properties["toggle-state"] == 0
    desktop.click("Give the GPU away")
    daemon.wait_state("one", "unloaded")
    desktop.wait_tooltip("The GPU is given away")
    assert daemon.status()["Yielded"]["Why"] == ("s", "gpud-tray")
    assert desktop.line("Give the GPU away").properties["toggle-state"] == 1
    desktop.click("Give the GPU away")
    desktop.wait_tooltip("No model is loaded")
    assert daemon.status()["Yielded"] == {}


def test_what_cannot_be_loaded_is_told(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A refusal is a notification and a line of the menu, with the daemon's own words, until somebody has seen it."""
    place.configure({"huge": engine(size="900TiB"), "one": engine()})
    place.start()
    start_tray()
    desktop.event(next(line.number for line in desktop.line("Load").children if line.label.startswith("huge (")))
    title, text = desktop.wait(lambda: desktop.notifications and desktop.notifications[-1], "a notification")
    assert title == "huge could not be loaded"
    assert "huge" in text
    assert "GiB" in text or "TiB" in text
    problem = desktop.wait(
        lambda: next((line for line in desktop.menu().children if line.label.startswith(title)), None), "the line"
    )
    assert problem.labels() == ["Do not show this any longer"]
    desktop.event(problem.children[0].number)
    desktop.wait(lambda: not any(title in label for label in desktop.menu().labels()), "that it has gone")


def test_an_engine_that_does_not_start_is_told(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A load that was begun and failed later is told as well."""
    place.configure({"broken": {**engine(), "command": ["/bin/false", "${socket}"]}})
    place.start()
    start_tray()
    desktop.event(desktop.line("Load").children[0].number)
    title, text = desktop.wait(lambda: desktop.notifications and desktop.notifications[-1], "a notification")
    assert title == "broken could not be loaded"
    assert "broken" in text
    desktop.line("broken (failed before)")


def test_favourites_come_first_and_are_kept(place: Place, desktop: Desktop, start_tray: Start, tmp_path: Path) -> None:
    """A favourite is chosen with a click, stands in "Load" before the others, and is there after a restart."""
    place.configure({name: engine() for name in ("one", "three", "two")})
    place.start()
    program = start_tray()
    assert desktop.line("Load").labels() == ["one (10 MiB)", "three (10 MiB)", "two (10 MiB)"]
    favourites = desktop.line("Favourites")
    desktop.event(next(line.number for line in favourites.children if line.label == "two"))
    desktop.wait(lambda: desktop.line("Load").labels()[:1] == ["two (10 MiB)"], "that two comes first")
    assert desktop.line("Others").labels() == ["one (10 MiB)", "three (10 MiB)"]
    assert (tmp_path / ".config/gpud/tray.conf").read_text().startswith("[tray]\nfavourites = two\n")
    assert program.stop()[0] == 0
    desktop.no_icon()
    start_tray()
    assert desktop.line("Load").labels()[0] == "two (10 MiB)"
    marks = {line.label: line.properties["toggle-state"] for line in desktop.line("Favourites").children}
    assert marks == {"one": 0, "three": 0, "two": 1}


def test_thousands_of_models_make_a_short_menu(
    place: Place, desktop: Desktop, start_tray: Start, bus: PrivateBus, tmp_path: Path
) -> None:
    """What is loaded, the favourites, some others, and how many more there are; gpud is asked for no more of them."""
    place.configure({"one": engine()})
    others = "".join(f"  m{number:04}: {ONE_OF_MANY}\n" for number in range(5000))
    place.config.write_text(place.config.read_text().replace("models:\n", f"models:\n{others}"))
    settings = tmp_path / ".config/gpud/tray.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text("[tray]\nfavourites = m4321, one\n")
    daemon = place.start(wait=False)
    daemon.wait_ready(MANY_S)
    with open_dbus_connection(bus.address) as monitor:
        rules = [f"type='method_call',interface='{NAME}'"]
        monitor.send_and_get_reply(new_method_call(MONITORING, "BecomeMonitor", "asu", (rules, 0)), timeout=BOUND_S)
        program = start_tray()
        assert desktop.line("Load").labels()[:3] == ["m4321 (10 MiB)", "one (10 MiB)", ""]
        desktop.event(desktop.line("one (10 MiB)").number)
        desktop.wait_tooltip("one is loaded")
        lines = [line.label for line in desktop.menu().all()]
        assert lines.count("4969 more: gpudctl models list") == 2
        assert any(line.startswith("Unload one (") for line in lines)
        assert len(lines) < 100
        assert program.stop()[0] == 0
        # Whatever the tray has asked stands before this.
        daemon.call("ListQueue")
        asked = iter(lambda: monitor.receive(timeout=BOUND_S).header.fields.get(HeaderFields.member), "ListQueue")
        # The bus itself tells the monitor that it has lost its name.
        assert set(filter(None, asked)) - {"NameLost"} == {"Overview", "Load"}


def test_settings_that_cannot_be_written_are_told(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A favourite that cannot be kept is none, and the person hears why."""
    place.configure({"one": engine()})
    place.start()
    start_tray(XDG_CONFIG_HOME="/proc/no-such-folder")
    desktop.event(desktop.line("Favourites").children[0].number)
    title, text = desktop.wait(lambda: desktop.notifications and desktop.notifications[-1], "a notification")
    assert title == "The settings could not be written"
    assert "/proc/no-such-folder/gpud/tray.conf" in text
    assert desktop.line("Favourites").children[0].properties["toggle-state"] == 0


def test_the_icon_speaks_the_language_of_the_session(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """Words and decimal points are those of the session."""
    place.configure({"one": engine(), "two": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray(LANG="de_DE.UTF-8")
    text = desktop.wait_tooltip("one ist geladen")
    assert re.search(r"Andere Programme: (\d+,\d GiB|\d+ MiB)", text), text
    assert "Laden" in desktop.menu().labels()


def test_quit_ends_it(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """The last line ends the program and takes the icon away; the daemon stays."""
    place.configure({})
    daemon = place.start()
    program = start_tray()
    assert "No models are configured: see gpud.yaml(5)" in desktop.menu().labels()
    desktop.click("Quit")
    status, said = program.ends()
    assert status == 0, said
    assert "Traceback" not in said
    desktop.no_icon()
    assert daemon.running


def test_bad_numbers_of_lines_are_refused(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """What is no line of the menu is an error that says so, and disturbs nothing."""
    place.configure({"one": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray()
    for member, signature, values in (
        ("GetLayout", "iias", (4711, -1, [])),
        ("Event", "isvu", (4711, "clicked", ("i", 0), 0)),
        ("Event", "isvu", (-5, "clicked", ("i", 0), 0)),
        ("EventGroup", "a(isvu)", ([(4711, "clicked", ("i", 0), 0)],)),
        ("GetProperty", "is", (4711, "label")),
        ("AboutToShow", "i", (4711,)),
        ("GetProperty", "is", (0, "no-such-property")),
        ("GetLayout", "s", ("four",)),
    ):
        with pytest.raises(Refused) as refusal:
            desktop.call("/MenuBar", MENU, member, signature, *values)
        assert refusal.value.name == "InvalidArgs", member
        assert "4711" in refusal.value.text or "-5" in refusal.value.text or '"' in refusal.value.text
    number = desktop.line("one is loaded").number
    assert desktop.call("/MenuBar", MENU, "GetGroupProperties", "aias", [4711, number], ["label"]) == (
        [(number, {"label": ("s", "one is loaded")})],
    )
    (missing,) = desktop.call(
        "/MenuBar", MENU, "EventGroup", "a(isvu)", [(4711, "clicked", ("i", 0), 0), (number, "hovered", ("i", 0), 0)]
    )
    assert missing == [4711]
    assert desktop.call("/MenuBar", MENU, "AboutToShowGroup", "ai", [4711, 0]) == ([], [4711])
    assert daemon.state("one") == "ready"


def test_a_line_that_has_gone_reaches_no_other_line(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A click on the line of a model that was unloaded meanwhile is refused."""
    place.configure({"one": engine(), "two": engine()})
    daemon = place.start()
    daemon.loaded("one")
    start_tray()
    number = next(line.number for line in desktop.menu().all() if line.label.startswith("Unload one"))
    assert daemon.unload("one").result == "done"
    daemon.loaded("two")
    desktop.wait_tooltip("two is loaded")
    with pytest.raises(Refused, match=f"the menu has no line {number}: it may have gone"):
        desktop.event(number)
    assert daemon.state("two") == "ready"


def test_other_calls_are_answered(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """A tray may ask for what is not there, call what there is, and read the description of the objects."""
    place.configure({})
    place.start()
    start_tray()
    item = "/StatusNotifierItem"
    for path, interface, member, signature, values, error in (
        (item, ITEM, "NoSuchMethod", "", (), "UnknownMethod"),
        ("/nowhere", ITEM, "Activate", "ii", (1, 1), "UnknownObject"),
        (item, "org.freedesktop.DBus.Properties", "Get", "ss", (ITEM, "NoSuchProperty"), "UnknownProperty"),
        (item, "org.freedesktop.DBus.Properties", "Get", "ss", (MENU, "Status"), "UnknownInterface"),
        (item, "org.freedesktop.DBus.Properties", "Set", "ssv", (ITEM, "Title", ("s", "x")), "PropertyReadOnly"),
    ):
        with pytest.raises(Refused) as refusal:
            desktop.call(path, interface, member, signature, *values)
        assert refusal.value.name == error
    assert desktop.call(item, ITEM, "Activate", "ii", 1, 1) == ()
    assert desktop.call(item, ITEM, "Scroll", "is", 3, "vertical") == ()
    assert desktop.call("/MenuBar", "org.freedesktop.DBus.Peer", "Ping") == ()
    (xml,) = desktop.call("/MenuBar", "org.freedesktop.DBus.Introspectable", "Introspect")
    assert '<interface name="com.canonical.dbusmenu">' in xml
    (xml,) = desktop.call("/", "org.freedesktop.DBus.Introspectable", "Introspect")
    assert xml == '<node><node name="MenuBar"/><node name="StatusNotifierItem"/></node>'
    (values,) = desktop.call(item, "org.freedesktop.DBus.Properties", "GetAll", "s", ITEM)
    assert values["Menu"] == ("o", "/MenuBar")


def test_it_is_small_and_sleeps(place: Place, desktop: Desktop, start_tray: Start) -> None:
    """With nothing going on it runs no thread beside the one that waits, arms no timer, and stays small."""
    place.configure({"one": engine()})
    daemon = place.start()
    program = start_tray()
    daemon.loaded("one")
    desktop.wait_tooltip("one is loaded")
    status = Path(f"/proc/{program.pid}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident is not None
    assert int(resident[1]) <= 30 * 1024
    # It waits for descriptors alone: a timer of the loop would be the bound of the wait.
    settle(lambda: waits_for_ever(program.pid), "an unbounded wait", lambda: syscall(program.pid))


def syscall(pid: int) -> str:
    """The system call that a sleeping process is in, with its arguments."""
    return Path(f"/proc/{pid}/syscall").read_text().strip()


def waits_for_ever(pid: int) -> bool:
    """Whether it is in epoll_wait with a time-out of -1."""
    words = syscall(pid).split()
    return words[0] in ("232", "281", "22") and int(words[4], 16) & 0xFFFFFFFF == 0xFFFFFFFF
