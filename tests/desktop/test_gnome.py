"""The GNOME Shell extension in real shells: 43 in a Debian 12, 48 in a Debian 13, both without a GPU and a screen.

A real gpud is on what they take for the system bus. Clicks are those of a pointer.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest
from daemon.harness import NAME, Daemon, Place
from dbus.private_bus import PrivateBus
from fake_nvml.gpu import MIB, FakeGpus
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from .conftest import BROKEN, SLOW, TOO_LARGE, until_unmeasured
from .gnome_shell import GnomeShell
from .tree import TOP, Tree, desktop_tree, wait_until

SHELLS = {"43": ("desktop-12", "43"), "48": ("desktop", "45")}
FAVOURITES = ["qwen3-8b", "gemma-3-1b", "phi-4-mini"]

DOCUMENTED = {
    "43": ("loaded",),
    "48": ("loaded", "idle", "amber", "red", "several", "many", "given-away", "preferences", "search"),
}
"""The pictures of each shell that docs/desktop.md shows."""

MENU = "420x720+860+0"
BAR = "420x60+860+0"
WINDOW = "700x620+290+110"

UNMEASURED = "6.0 GiB, not measured while nothing is loaded"

FIELD = "Search for a model"


@pytest.fixture(scope="module", params=SHELLS)
def version(request: pytest.FixtureRequest) -> str:
    """Of the shell."""
    return str(request.param)


@pytest.fixture(scope="module")
def tree(version: str, system_bus: PrivateBus) -> Iterator[Tree]:
    """Where the shell runs. Whoever starts gpud by its name on the session bus leaves a file."""
    with desktop_tree(SHELLS[version][0], system_bus.directory) as made:
        service = made.root / f"usr/share/dbus-1/services/{NAME}.service"
        service.parent.mkdir(parents=True, exist_ok=True)
        service.write_text(f"[D-BUS Service]\nName={NAME}\nExec=/usr/bin/touch {made.shared}/started\n")
        yield made


@pytest.fixture(scope="module")
def running(tree: Tree, version: str, system_bus: PrivateBus) -> Iterator[GnomeShell]:
    shell = GnomeShell(tree, system_bus.address, SHELLS[version][1])
    try:
        yield shell
    finally:
        shell.close()


@pytest.fixture
def shell(running: GnomeShell) -> Iterator[GnomeShell]:
    """The shell with nothing open and the preferences of a user who has favourites."""
    running.run("desk.Main.overview.hide()")
    running.close_menu()
    running.set("favourites", "strv", FAVOURITES)
    running.set("show-indicator", "boolean", True)
    running.dismiss_notifications()
    yield running
    assert running.mistakes() == []


@pytest.fixture
def photo(shell: GnomeShell, version: str) -> Callable[[str, str], None]:
    """``photo("idle", MENU)``: with PICTURES in the environment, the screenshot becomes one of docs/images."""

    def take(name: str, crop: str) -> None:
        if not os.environ.get("PICTURES") or name not in DOCUMENTED[version]:
            assert shell.screenshot(name).stat().st_size > 0
            return
        taken = shell.picture(name, crop)
        target = TOP / "docs" / "images" / f"gnome-{version}-{name}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(taken, target)

    return take


def loaded(shell: GnomeShell, daemon: Daemon, *models: str) -> None:
    """Load them, and wait until the menu's words have them."""
    for model in models:
        assert daemon.load(model).result == "done", daemon.log()
    shell.until(f"desk.figures.models.length === {len(models)}", f"{models} do not show")


def test_it_is_hidden_while_the_daemon_is_away(
    shell: GnomeShell, tree: Tree, away: None, photo: Callable[[str, str], None]
) -> None:
    """No icon, no button, and looking for gpud did not start it."""
    shell.until("!desk.icon.visible && !desk.one('GpudToggle').visible", "the widget is not hidden")
    photo("away", BAR)
    assert not (tree.shared / "started").exists()


def test_it_shows_that_nothing_is_loaded(shell: GnomeShell, daemon: Daemon, photo: Callable[[str, str], None]) -> None:
    """The icon appears with gpud, without a figure; the menu offers the favourites."""
    shell.until("desk.icon.mapped && !desk.figure.visible", "the icon does not show")
    shell.open_menu()
    texts = shell.texts()
    assert any(text.startswith("Nothing loaded") for text in texts)
    assert [text for text in texts if text in FAVOURITES] == FAVOURITES
    assert TOO_LARGE not in texts
    photo("idle", MENU)


def test_it_shows_a_loaded_model(
    shell: GnomeShell, daemon: Daemon, gpus: FakeGpus, photo: Callable[[str, str], None]
) -> None:
    """Its name, its memory, the GPU's, what other programs hold of it, and the figure in the top bar."""
    gpus.set_foreign(512 * MIB, name="game")
    loaded(shell, daemon, "qwen3-8b")
    shell.until("desk.figure.mapped && desk.figure.text === '75%'", "the figure is not 75%")
    shell.open_menu()
    texts = shell.texts()
    for text in (
        "qwen3-8b · 4.5/6.0 GiB",
        "qwen3-8b",
        "4.0 GiB",
        "4.5 of 6.0 GiB used",
        "512 MiB of it by other programs",
    ):
        assert text in texts
    assert shell.run("desk.icon.accessible_name") == "GPU, qwen3-8b, 75%"
    photo("loaded", MENU)


@pytest.mark.parametrize(
    ("foreign_mib", "level", "word"), [(1200, "amber", "filling up"), (1450, "red", "nearly full")]
)
def test_it_turns_amber_and_red(
    shell: GnomeShell,
    daemon: Daemon,
    gpus: FakeGpus,
    photo: Callable[[str, str], None],
    foreign_mib: int,
    level: str,
    word: str,
) -> None:
    """Other programs take more: icon, figure, bar and words say so."""
    loaded(shell, daemon, "qwen3-8b")
    shell.open_menu()
    gpus.set_foreign(foreign_mib * MIB, name="game")
    # Whoever asks has gpud look, sooner than in its ten seconds.
    wait_until(lambda: foreign_bytes(daemon) == foreign_mib * MIB, "gpud does not see the game")
    shell.until(f"desk.icon.has_style_class_name('gpud-{level}')", f"the icon is not {level}")
    assert shell.run(f"desk.figure.has_style_class_name('gpud-{level}')")
    assert shell.run(f"desk.bar.has_style_class_name('gpud-{level}-bar')")
    assert shell.run("desk.icon.accessible_name").endswith(word)
    photo(level, MENU)


def foreign_bytes(daemon: Daemon) -> int:
    """What gpud says that other programs hold of the GPU."""
    return next(gpu["VramForeign"][1] for gpu in daemon.status()["Gpus"] if gpu["Uuid"][1] == FakeGpus.uuid())


def test_thousands_of_models_make_a_short_menu(
    shell: GnomeShell, daemon: Daemon, thousands: None, photo: Callable[[str, str], None]
) -> None:
    """What is loaded, the favourites, and how many more there are."""
    shell.set("favourites", "strv", ["m4321", "qwen3-8b"])
    loaded(shell, daemon, "gemma-3-1b")
    shell.open_menu()
    shell.until(
        "desk.texts(desk.menu.actor).includes('5,003 more: “gpudctl models list”')", "it is not said how many more"
    )
    texts = shell.texts()
    assert [text for text in texts if text in ("gemma-3-1b", "m4321", "qwen3-8b")] == [
        "gemma-3-1b",
        "m4321",
        "qwen3-8b",
    ]
    assert len(texts) < 20
    photo("many", MENU)
    shell.click("desk.named('Unload gemma-3-1b')")
    daemon.wait_state("gemma-3-1b", "unloaded")
    shell.until("!desk.figures.models.length", "the row does not go")


def test_a_click_unloads_one_model(shell: GnomeShell, daemon: Daemon, photo: Callable[[str, str], None]) -> None:
    """The one whose button it is; the other stays."""
    loaded(shell, daemon, "qwen3-8b", "gemma-3-1b")
    shell.open_menu()
    photo("several", MENU)
    shell.click("desk.named('Unload qwen3-8b')")
    daemon.wait_state("qwen3-8b", "unloaded")
    assert daemon.state("gemma-3-1b") == "ready"
    shell.until("desk.figures.models.length === 1", "the row does not go")


def test_a_key_unloads_too(shell: GnomeShell, daemon: Daemon) -> None:
    """Whoever uses the keyboard reaches the same button."""
    loaded(shell, daemon, "gemma-3-1b")
    shell.open_menu()
    shell.run("desk.named('Unload gemma-3-1b').grab_key_focus(); desk.press('Return')")
    daemon.wait_state("gemma-3-1b", "unloaded")


def test_a_click_stops_a_load(shell: GnomeShell, daemon: Daemon) -> None:
    """The same button, while the model still loads; nobody is told of what was stopped on purpose."""
    shell.set("favourites", "strv", [SLOW])
    shell.open_menu()
    shell.click(f"desk.named('Load {SLOW}')")
    shell.until("desk.figures.models[0]?.text.startsWith('loading')", "it does not show that it loads")
    shell.open_menu()
    shell.click(f"desk.named('Stop loading {SLOW}')")
    daemon.wait_state(SLOW, "unloaded")
    shell.until("!desk.figures.models.length", "the row does not go")
    assert shell.run(f"{shell.NOTIFICATIONS}.filter(it => it.title.startsWith('Cannot ')).length") == 0


def test_a_click_gives_up_a_wait(shell: GnomeShell, daemon: Daemon) -> None:
    """A model that waits for the memory of one that loads is shown, and its button ends that; the other goes on."""
    daemon.ask_load(SLOW)
    daemon.wait_state(SLOW, "loading")
    shell.open_menu()
    shell.click("desk.named('Load phi-4-mini')")
    shell.until("desk.figures.models.some(model => model.text === 'waits for memory')", "it does not wait")
    shell.open_menu()
    shell.click("desk.named('Stop waiting for phi-4-mini')")
    daemon.wait_state("phi-4-mini", "unloaded")
    assert daemon.state(SLOW) == "loading"


def test_what_somebody_holds_is_not_unloaded(shell: GnomeShell, daemon: Daemon) -> None:
    """The refusal says who holds it."""
    loaded(shell, daemon, "gemma-3-1b")
    cookie = daemon.call("Hold", "sss", "gemma-3-1b", "a long answer", "a test")
    shell.open_menu()
    shell.click("desk.named('Unload gemma-3-1b')")
    title, text = shell.notification()
    assert title == "Cannot unload gemma-3-1b"
    assert "a test" in text
    assert daemon.state("gemma-3-1b") == "ready"
    daemon.call("Release", "u", cookie)


def test_a_click_loads_a_favourite(shell: GnomeShell, daemon: Daemon) -> None:
    """It is loaded, and then no longer offered."""
    shell.open_menu()
    shell.click("desk.named('Load phi-4-mini')")
    daemon.wait_state("phi-4-mini", "ready")
    shell.until("!desk.figures.choices.some(choice => choice.id === 'phi-4-mini')", "it is still offered")


def test_the_button_itself_unloads_all_and_loads_the_first_favourite(shell: GnomeShell, daemon: Daemon) -> None:
    """One click off, one click on."""
    loaded(shell, daemon, "gemma-3-1b", "phi-4-mini")
    shell.open_quick_settings()
    shell.click(shell.BUTTON)
    daemon.wait_state("gemma-3-1b", "unloaded")
    daemon.wait_state("phi-4-mini", "unloaded")
    shell.until("!desk.one('GpudToggle').checked", "the button is still on")
    shell.click(shell.BUTTON)
    daemon.wait_state("qwen3-8b", "ready")
    shell.until("desk.one('GpudToggle').checked", "the button is still off")


def test_the_gpu_is_given_away_and_taken_back(
    shell: GnomeShell, daemon: Daemon, photo: Callable[[str, str], None]
) -> None:
    """The switch unloads everything, says who it was, and while it is on nothing is offered to load."""
    loaded(shell, daemon, "gemma-3-1b")
    shell.open_menu()
    shell.click("desk.switch_")
    shell.until("desk.figures.yielded && !desk.figures.models.length", "the GPU is not given away")
    assert daemon.property("State") == "yielded"
    assert daemon.property("Yielded")["Why"] == ("s", "GNOME quick settings")
    until_unmeasured(daemon)
    shell.open_menu()
    shell.until(f"desk.texts(desk.menu.actor).includes('{UNMEASURED}')", "a figure is told that is none")
    assert not set(shell.texts()) & set(FAVOURITES)
    photo("given-away", MENU)
    shell.click("desk.switch_")
    shell.until("!desk.figures.yielded", "the GPU is not taken back")
    assert daemon.property("State") == "idle"


def test_what_others_do_is_shown_and_not_answered(shell: GnomeShell, daemon: Daemon) -> None:
    """Somebody else gives the GPU away and takes it back: the switch follows, and the widget asks for nothing."""
    shell.open_menu()
    for _ in range(3):
        daemon.call("Yield", "ts", 0, "a game")
        shell.until("desk.switch_.state", "the switch does not follow")
        assert daemon.property("Yielded")["Why"] == ("s", "a game")
        daemon.call("Resume")
        shell.until("!desk.switch_.state", "the switch does not follow")
        # Answered after whatever the widget may have asked for when its switch moved.
        shell.run("desk.widget._service.refresh()")
        shell.until("!desk.widget._service._line._questions.size", "gpud does not answer")
        assert daemon.property("Yielded") == {}


def test_a_refusal_is_a_notification(shell: GnomeShell, daemon: Daemon) -> None:
    """What cannot be loaded is told with gpud's own numbers."""
    shell.set("favourites", "strv", [TOO_LARGE])
    shell.open_menu()
    shell.click(f"desk.named('Load {TOO_LARGE}')")
    title, text = shell.notification()
    assert title == f"Cannot load {TOO_LARGE}"
    assert "100.0 GiB" in text


def test_a_load_that_fails_later_is_a_notification(shell: GnomeShell, daemon: Daemon) -> None:
    """With what happened and what to do; the row says it too, and its button puts it away."""
    shell.set("favourites", "strv", [BROKEN])
    shell.open_menu()
    shell.click(f"desk.named('Load {BROKEN}')")
    title, text = shell.notification()
    assert title == f"Cannot load {BROKEN}"
    assert text
    shell.open_menu()
    shell.until("desk.figures.models.some(model => model.text === 'could not be loaded')", "the row does not tell")
    shell.click(f"desk.named('Dismiss {BROKEN}')")
    shell.until("!desk.figures.models.length", "the row does not go")


def test_the_daemon_is_killed_and_comes_back(shell: GnomeShell, daemon: Daemon, place: Place) -> None:
    """kill -9: the widget is gone at once, menu and all, and back with the next gpud."""
    loaded(shell, daemon, "gemma-3-1b")
    shell.open_menu()
    daemon.kill9()
    shell.until("!desk.icon.visible && !desk.one('GpudToggle').visible && !desk.menu.isOpen", "it is not hidden")
    shell.close_menu()
    place.start()
    # Without systemd nobody keeps the engines of a gpud that was killed: the next one has none.
    shell.until("desk.icon.mapped && desk.figures.subtitle === 'Nothing loaded'", "it does not come back")


def test_the_icon_can_be_switched_off(shell: GnomeShell, daemon: Daemon) -> None:
    """The top bar is empty then; the button in the quick settings stays."""
    shell.until("desk.icon.mapped", "the icon does not show")
    shell.set("show-indicator", "boolean", False)
    shell.until("!desk.icon.visible && desk.one('GpudToggle').visible", "the icon still shows")


def test_the_lock_screen_has_no_widget(shell: GnomeShell, daemon: Daemon) -> None:
    """Locked, the extension is off; unlocked, it is back."""
    shell.until("desk.icon.mapped", "the icon does not show")
    shell.run("desk.Main.sessionMode.pushMode('unlock-dialog')")
    shell.until("!desk.ours().length", "there is something on the lock screen")
    shell.run("desk.Main.sessionMode.popMode('unlock-dialog')")
    shell.until("desk.icon?.mapped", "it does not come back")


def test_nothing_is_left_when_it_is_disabled(shell: GnomeShell, daemon: Daemon, system_bus: PrivateBus) -> None:
    """No actor and no match rule, however often it was enabled."""
    loaded(shell, daemon, "gemma-3-1b")
    shell.open_menu()
    shell.close_menu()
    assert rules_of_the_shell(system_bus.address)
    actors = []
    for _ in range(2):
        shell.disable()
        assert shell.run("desk.ours().length") == 0
        wait_until(lambda: not rules_of_the_shell(system_bus.address), "match rules are left")
        actors.append(shell.run("desk.all(global.stage).length"))
        shell.enable()
        shell.until("desk.figures?.models.length === 1", "it does not come back")
    assert actors[0] == actors[1]


def rules_of_the_shell(address: str) -> list[str]:
    """What the shell waits for at the bus and that is about gpud."""
    bus = ("/org/freedesktop/DBus", "org.freedesktop.DBus")
    with open_dbus_connection(address) as connection:
        rules = ask(connection, DBusAddress(*bus, "org.freedesktop.DBus.Debug.Stats"), "GetAllMatchRules")
        plain = DBusAddress(*bus, "org.freedesktop.DBus")
        owner = ask(connection, plain, "GetNameOwner", NAME)
        found = []
        for name, texts in rules.items():
            pid = ask(connection, plain, "GetConnectionUnixProcessID", name) if name.startswith(":") else 0
            if pid and psutil.Process(pid).name() == "gnome-shell":
                found += [text for text in texts if NAME in text or f"'{owner}'" in text]
        return found


def ask(connection: DBusConnection, address: DBusAddress, member: str, *values: str) -> object:
    message = new_method_call(address, member, "s" if values else None, values)
    return connection.send_and_get_reply(message, timeout=20).body[0]


def test_everything_has_a_name_to_be_read_aloud(shell: GnomeShell, daemon: Daemon) -> None:
    """All that the keyboard reaches, and the bar, which is a picture."""
    loaded(shell, daemon, "qwen3-8b", "gemma-3-1b")
    shell.open_menu()
    names = shell.run(
        "desk.all(desk.menu.actor).filter(actor => actor.mapped && (actor.can_focus || actor === desk.bar))"
        ".map(actor => actor.accessible_name || actor.label_actor?.text || `nameless ${actor}`)"
    )
    assert len(names) >= 7
    assert [name for name in names if name.startswith("nameless")] == []
    assert shell.run("desk.one('GpudToggle').accessible_name").startswith("GPU, ")


def test_the_preferences_change_the_widget(
    shell: GnomeShell, daemon: Daemon, photo: Callable[[str, str], None]
) -> None:
    """The menu opens the window; a key on its first switch takes the icon out of the top bar."""
    shell.until("desk.icon.mapped", "the icon does not show")
    with shell.preferences():
        shell.run("desk.press('Tab', 'space')")
        shell.until("!desk.icon.visible", "the switch does nothing")
        shell.run("desk.press('space')")
        shell.until("desk.icon.visible", "the switch does nothing when it is switched back")
        photo("preferences", WINDOW)


# The window is the same in both; in Debian 12's tree nothing tells what is in it.
@pytest.mark.parametrize("version", ["48"], indirect=True)
def test_the_preferences_say_what_they_know(shell: GnomeShell, daemon: Daemon) -> None:
    """Until gpud has answered that it is waited for, then its models, and that it has gone only when it has."""
    shell.set("favourites", "strv", [])
    shell.until("desk.icon.mapped", "the icon does not show")
    daemon.signal(signal.SIGSTOP)
    try:
        with shell.preferences():
            said = "Waiting for an answer from gpud"
            wait_until(lambda: said in rows(shell), lambda: f"listed are {rows(shell)}")
            assert "gpud is not running" not in rows(shell)
            daemon.signal(signal.SIGCONT)
            wait_until(lambda: set(FAVOURITES) <= set(rows(shell)), lambda: f"listed are {rows(shell)}")
            assert said not in rows(shell)
            daemon.kill9()
            wait_until(lambda: "gpud is not running" in rows(shell), lambda: f"listed are {rows(shell)}")
            assert not set(FAVOURITES) & set(rows(shell))
    finally:
        if daemon.running:
            daemon.signal(signal.SIGCONT)


def rows(shell: GnomeShell) -> list[str]:
    """The names of all rows of the preferences."""
    return [part.name for part in shell.read_preferences() if part.role == "list item"]


# The window is the same in both; in Debian 12's tree nothing tells what is in it.
@pytest.mark.parametrize("version", ["48"], indirect=True)
def test_the_preferences_search_among_thousands_of_models(
    shell: GnomeShell, daemon: Daemon, thousands: None, photo: Callable[[str, str], None]
) -> None:
    """What is typed into the field above the favourites leaves those that have it in their names, favourites first."""
    shell.set("favourites", "strv", ["m4321", "qwen3-8b"])
    shell.until("desk.icon.mapped", "the icon does not show")
    with shell.preferences():
        # The field comes with gpud's answer.
        wait_until(lambda: listed(shell)[-1:] == ["4,974 more"], lambda: f"listed are {listed(shell)}")
        shell.tab_to("text", FIELD)
        shell.run("desk.press('m', '4', '3', '2')")
        found = ["m4321", *(f"m432{digit}" for digit in "023456789")]
        wait_until(lambda: listed(shell) == found, lambda: f"listed are {listed(shell)}")
        photo("search", WINDOW)


def listed(shell: GnomeShell) -> list[str]:
    """The rows below the preferences' field."""
    names = rows(shell)
    below = [number for number, name in enumerate(names, 1) if name.startswith(FIELD)]
    return names[below[0] :] if below else []


def test_the_shell_is_killed_and_comes_back(shell: GnomeShell, running: GnomeShell, daemon: Daemon) -> None:
    """kill -9 of the shell: gpud and its models do not mind, and the next shell shows them."""
    loaded(shell, daemon, "gemma-3-1b")
    shell.stop()
    assert daemon.state("gemma-3-1b") == "ready"
    shell.start()
    shell.until("desk.figures?.models[0]?.id === 'gemma-3-1b'", "it does not come back")


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("de_DE.UTF-8", ["GPU abgeben", "GPU-Einstellungen", "1,0 von 6,0 GiB belegt", "1,0 GiB"]),
        ("pt_PT.UTF-8", ["Ceder a GPU", "Definições da GPU", "1,0 de 6,0 GiB em uso", "1,0 GiB"]),
    ],
)
def test_it_speaks_the_users_language(
    version: str, running: GnomeShell, daemon: Daemon, locale: str, words: list[str]
) -> None:
    """The shell in another language, with numbers as they are written there."""
    running.stop()
    running.start(LANG=locale)
    try:
        running.run("desk.Main.overview.hide()")
        loaded(running, daemon, "gemma-3-1b")
        running.open_menu()
        assert [word for word in words if word not in running.texts()] == []
    finally:
        running.stop()
        running.start()
