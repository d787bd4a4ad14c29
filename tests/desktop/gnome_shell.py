"""GNOME Shell, headless, with the extension as ``make install`` lays it out, driven over its session bus.

Clicks and keys go through a virtual pointer and keyboard, the way those of a person come in; what is on the screen is
read from the shell's own tree of actors, and photographed.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from .tree import START_S, TOP, WAIT_S, Program, Tree, session_bus, wait_until

UUID = "gpud@kernelcore.org"
WIDTH, HEIGHT = 1280, 800

SETTINGS = """\
[org/gnome/shell]
enabled-extensions=['{uuid}']
disable-user-extensions=false
welcome-dialog-last-shown-version='99'

[org/gnome/desktop/interface]
enable-animations=false
cursor-blink=false

[org/gnome/desktop/peripherals/keyboard]
repeat=false
"""
"""Keys do not repeat: a program that hears of a release half a second late, as on a busy machine, would press again."""

ENABLED = f"Main.extensionManager.lookup('{UUID}')?.state === 1"

# What every script may use: the extension's parts by what they are on the screen, and the hands of a person.
HELP = """
globalThis.desk = {
    Main: typeof Main === 'undefined' ? imports.ui.main : Main,
    all(actor) { return [actor, ...actor.get_children().flatMap(child => this.all(child))]; },
    named(name, root = global.stage) {
        return this.all(root).find(actor => actor.mapped && actor.reactive && actor.accessible_name === name);
    },
    ours() { return this.all(global.stage).filter(actor => /Gpud/.test(actor.constructor.name)); },
    one(kind, root = global.stage) { return this.all(root).find(actor => actor.constructor.name === kind) ?? null; },
    texts(root) {
        const labels = this.all(root).filter(actor => actor.mapped && actor.clutter_text);
        return labels.map(label => label.text).filter(text => text);
    },
    get widget() { return this.Main.extensionManager.lookup('UUID').stateObj?._widget; },
    get figures() { return this.widget?._service.status ? this.widget._figures : null; },
    get icon() { return this.one('GpudIndicator')?.icon; },
    get figure() { return this.one('GpudIndicator').figure; },
    get bar() { return this.all(this.menu.actor).find(actor => actor.constructor.name === 'BarLevel'); },
    get switch_() { return this.all(this.menu.actor).find(actor => actor.constructor.name === 'PopupSwitchMenuItem'); },
    item(text) { return this.all(this.menu.actor).find(actor => actor.label_actor?.text === text && actor.can_focus); },
    get menu() { return this.one('GpudToggle').menu; },
    get settings() { return this.Main.panel.statusArea.quickSettings.menu; },
    middle(actor) {
        const [x, y] = actor.get_transformed_position();
        const [width, height] = actor.get_transformed_size();
        return [x + width / 2, y + height / 2];
    },
    // On the screen, and where it was a moment ago: a row that has just appeared still moves.
    steady(actor) {
        const place = actor?.mapped && actor.has_allocation() ? String(this.middle(actor)) : '';
        const was = this.place;
        this.place = place;
        return place !== '' && place === was;
    },
    device(kind) {
        return imports.gi.Clutter.get_default_backend().get_default_seat().create_virtual_device(kind);
    },
    click(actor) {
        const Clutter = imports.gi.Clutter;
        this.pointer ??= this.device(Clutter.InputDeviceType.POINTER_DEVICE);
        const now = () => global.get_current_time() * 1000;
        this.pointer.notify_absolute_motion(now(), ...this.middle(actor));
        this.pointer.notify_button(now(), Clutter.BUTTON_PRIMARY, Clutter.ButtonState.PRESSED);
        this.pointer.notify_button(now(), Clutter.BUTTON_PRIMARY, Clutter.ButtonState.RELEASED);
    },
    press(...keys) {
        const Clutter = imports.gi.Clutter;
        for (const key of keys) {
            const value = Clutter[`KEY_${key}`];
            this.keyboard.notify_keyval(global.get_current_time() * 1000, value, Clutter.KeyState.PRESSED);
            this.keyboard.notify_keyval(global.get_current_time() * 1000, value, Clutter.KeyState.RELEASED);
        }
    },
};
"""


# There before any program's window: one that learns only afterwards that there is a keyboard misses its first keys.
KEYBOARD = "desk.keyboard = desk.device(imports.gi.Clutter.InputDeviceType.KEYBOARD_DEVICE); undefined"

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
PREFERENCES = "org.gnome.Shell.Extensions"
"""The program that shows the preferences of extensions, on the session bus."""

MOST_TABS = 10
"""The field of the preferences is the sixth thing that Tab comes to."""

REST_S = 240.0
"""For two pictures of the whole screen that are the same: on a busy machine each takes seconds, drawn without a GPU."""


def build(release: str, folder: Path) -> Path:
    """The extension's folder for a release of the shell ("43" or "45")."""
    subprocess.run([sys.executable, TOP / "desktop/gnome/build.py", release, folder], check=True)
    return folder


def drawn(png: bytes) -> bytes:
    """What a picture shows. The shell writes into each when it was taken, too."""
    shown, position = b"", 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] == b"IDAT":
            shown += png[position + 8 : position + 8 + length]
        position += 12 + length
    return shown


class Part(NamedTuple):
    """Of a window, as a screen reader says it."""

    role: str
    name: str
    focused: bool


class GnomeShell:
    """A running shell in a tree, with the extension enabled. It ends with the tree."""

    def __init__(self, tree: Tree, system_bus: str, release: str, **environment: str) -> None:
        self.tree = tree
        self._start_extension(release)
        tree.environment |= {
            "DBUS_SYSTEM_BUS_ADDRESS": system_bus,
            "GSETTINGS_BACKEND": "keyfile",
            "XDG_SESSION_TYPE": "wayland",
            "XDG_CURRENT_DESKTOP": "GNOME",
            **environment,
        }
        # The shell asks logind for its session and ends without an answer.
        tree.start("logind.log", "python3", "-m", "dbusmock", "--system", "--template", "logind")
        tree.run(f"gdbus wait --system --timeout {START_S:.0f} org.freedesktop.login1", timeout_s=2 * START_S)
        self.address = session_bus(tree)
        self.program: Program
        self._bus: DBusConnection
        self.start()

    def _start_extension(self, release: str) -> None:
        target = self.tree.root / "usr/share/gnome-shell/extensions" / UUID
        target.parent.mkdir(parents=True, exist_ok=True)
        build(release, target)
        keyfile = self.tree.root / "root/.config/glib-2.0/settings/keyfile"
        keyfile.parent.mkdir(parents=True, exist_ok=True)
        keyfile.write_text(SETTINGS.format(uuid=UUID))

    def start(self, **environment: str) -> None:
        screen = ["--headless", "--virtual-monitor", f"{WIDTH}x{HEIGHT}", "--no-x11"]
        self.program = self.tree.start("shell.log", "gnome-shell", *screen, "--unsafe-mode", **environment)
        self.tree.run(f"gdbus wait --session --timeout {START_S:.0f} org.gnome.Shell", timeout_s=2 * START_S)
        self._bus = open_dbus_connection(self.address)
        self.until("!Main.layoutManager._startingUp", "the shell did not start", within_s=START_S)
        self.run(HELP.replace("UUID", UUID) + KEYBOARD)
        self.until(ENABLED, "the extension was not enabled")

    def stop(self) -> None:
        self._bus.close()
        self.program.stop()

    def close(self) -> None:
        self._bus.close()

    def rest(self) -> None:
        """Until what is on the screen stays as it is: another program's window tells nobody when it is complete."""
        pictures: list[bytes] = [b""]

        def rests() -> bool:
            pictures.append(drawn(self.screenshot("rest").read_bytes()))
            return pictures[-1] == pictures[-2]

        wait_until(rests, "the screen does not come to rest", within_s=REST_S)

    def picture(self, name: str, crop: str) -> Path:
        """What is on the screen, cut to what matters ("640x480+10+0"), with the fewer colours of a small file."""
        # The shell warns of being driven by scripts; a person's does not.
        self.run("desk.Main.panel.statusArea.quickSettings._unsafeMode?.hide()")
        # It changes by itself: on a busy machine two pictures may be a minute apart.
        self.run("desk.Main.panel.statusArea.dateMenu.hide()")
        self.dismiss_notifications()
        self.rest()
        taken = self.screenshot(name)
        self.tree.run(f"convert {taken} -crop {crop} +repage -strip +dither -colors 256 {taken}")
        return taken

    # Over its bus ----------------------------------------------------------------------------------------------------

    def _call(self, interface: str, path: str, member: str, signature: str = "", *values: object) -> Any:
        address = DBusAddress(path, interface, interface)
        message = new_method_call(address, member, signature or None, values)
        reply = self._bus.send_and_get_reply(message, timeout=WAIT_S)
        if reply.header.message_type is MessageType.error:
            raise AssertionError(f"{member}: {reply.header.fields[HeaderFields.error_name]}: {reply.body}")
        return reply.body

    def run(self, script: str) -> Any:
        """What the script comes to, as JSON has it."""
        ok, text = self._call("org.gnome.Shell", "/org/gnome/Shell", "Eval", "s", script)
        assert ok, f"{script}\n{text}"
        return json.loads(text) if text else None

    def until(self, script: str, what: str, *, within_s: float = WAIT_S) -> None:
        """Until the script comes to something true."""
        last: list[str] = []

        def holds() -> bool:
            try:
                ok, text = self._call("org.gnome.Shell", "/org/gnome/Shell", "Eval", "s", f"!!({script})")
            except AssertionError as error:  # The shell has its name before it has the object.
                ok, text = False, str(error)
            last[:] = [text]
            return bool(ok) and text == "true"

        try:
            wait_until(holds, what, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {script}: {last}\n{self.complaints()}") from None

    def screenshot(self, name: str) -> Path:
        path = self.tree.shared / f"{name}.png"
        values = (False, False, str(path))
        done, _ = self._call("org.gnome.Shell.Screenshot", "/org/gnome/Shell/Screenshot", "Screenshot", "bbs", *values)
        assert done, f"no screenshot {name}"
        return path

    def complaints(self) -> str:
        """What the shell has said, without what it says of a machine without hardware."""
        return "\n".join(self.program.log().splitlines()[-40:])

    def mistakes(self) -> list[str]:
        """What the shell has complained about in the extension, or gjs in anything, since it started."""
        signs = ("JS ERROR", "gpud@", "Gjs-CRITICAL", "GLib-GObject-CRITICAL", "barlevel", "st_label", "disposed")
        return [line for line in self.program.log().splitlines() if any(sign in line for sign in signs)]

    # What is on the screen -------------------------------------------------------------------------------------------

    def shown(self) -> bool:
        """Whether the icon is in the top bar."""
        return bool(self.run("desk.one('GpudIndicator')?.icon.mapped ?? false"))

    BUTTON = "(desk.one('QuickToggle', desk.one('GpudToggle')) ?? desk.one('GpudToggle'))"
    """The button's larger part; since 45 it is a button in the button."""

    def open_quick_settings(self) -> None:
        if not self.run("desk.settings.isOpen"):
            self.click("desk.Main.panel.statusArea.quickSettings")
            self.until("desk.settings.isOpen && desk.one('GpudToggle').mapped", "the quick settings did not open")

    def open_menu(self) -> None:
        """By clicks, as a person does: the quick settings, then the button's arrow."""
        self.open_quick_settings()
        if not self.run("desk.menu.isOpen"):
            self.click("desk.one('GpudToggle')._menuButton")
            self.until("desk.menu.isOpen && desk.menu.actor.mapped", "the menu did not open")

    def click(self, actor: str) -> None:
        """On what the script comes to, once it is on the screen and rests."""
        self.run("desk.place = ''")
        self.until(f"desk.steady({actor})", f"there is nothing to click: {actor}")
        self.run(f"desk.click({actor})")

    def close_menu(self) -> None:
        self.run("desk.settings.close(false)")
        self.until("!desk.settings.isOpen", "the quick settings did not close")

    def texts(self) -> list[str]:
        """Everything that can be read in the menu."""
        return list(self.run("desk.texts(desk.menu.actor)"))

    @contextlib.contextmanager
    def preferences(self) -> Iterator[None]:
        """Their window, which the menu opens, and which has the keyboard. It is closed afterwards."""
        self.open_menu()
        self.click("desk.item('GPU settings')")
        self.until("global.get_window_actors().length === 1 && !desk.settings.isOpen", "the window does not open")
        self.until("global.display.focus_window !== null && !desk.Main.modalCount", "the window has no focus")
        try:
            yield
        finally:
            self.run("global.get_window_actors().forEach(actor => actor.meta_window.delete(0))")
            self.until("global.get_window_actors().length === 0", "the window does not close")
            # In 43 its program stays. In 48 it ends soon, or has done so: a window asked of it meanwhile never opens.
            with contextlib.suppress(AssertionError):
                [pid] = self._call(*BUS, "GetConnectionUnixProcessID", "s", PREFERENCES)
                self.tree.run(f"kill -9 {pid}")
            has_owner = (*BUS, "NameHasOwner", "s", PREFERENCES)
            wait_until(lambda: not self._call(*has_owner)[0], "the window's program does not end")

    def read_preferences(self) -> list[Part]:
        """What a screen reader finds in their window; nothing while it changes."""
        shutil.copy(Path(__file__).with_name("gnome_eyes.py"), self.tree.shared)
        # Above its last line may be what the library complains about.
        said = self.tree.run(f"python3 {self.tree.shared}/gnome_eyes.py").splitlines()
        return [Part(*part) for part in json.loads(said[-1])]

    def tab_to(self, role: str, name: str) -> None:
        """Press Tab until that part of the preferences has the keyboard. Each key is waited for: none goes too far."""
        passed: list[Part] = []

        def moved() -> bool:
            now = next((part for part in self.read_preferences() if part.focused), None)
            if now is None or passed[-1:] == [now]:
                return False
            passed.append(now)
            return True

        for _ in range(MOST_TABS):
            wait_until(moved, lambda: f"the keyboard stays at {passed[-1:]}")
            if passed[-1] == Part(role, name, focused=True):
                return
            self.run("desk.press('Tab')")
        raise AssertionError(f"Tab does not come to {name!r}, only to {passed}")

    def disable(self) -> None:
        self.run(f"desk.Main.extensionManager.disableExtension('{UUID}')")
        self.until(ENABLED.replace("=== 1", "=== 2"), "the extension was not disabled")

    def enable(self) -> None:
        self.run(f"desk.Main.extensionManager.enableExtension('{UUID}')")
        self.until(ENABLED, "the extension was not enabled")

    NOTIFICATIONS = "desk.Main.messageTray.getSources().flatMap(source => source.notifications)"

    def dismiss_notifications(self) -> None:
        self.run(f"{self.NOTIFICATIONS}.forEach(notification => notification.destroy())")

    def notification(self) -> tuple[str, str]:
        """The title and the text of the one about a failure that is there, or is about to come."""
        failures = f"{self.NOTIFICATIONS}.filter(it => it.title.startsWith('Cannot '))"
        self.until(f"{failures}.length === 1", "there is no notification, or more than one")
        title, text = self.run(f"{failures}.map(it => [it.title, it.body ?? it.bannerBodyText])[0]")
        return str(title), str(text)

    def set(self, key: str, kind: str, value: object) -> None:
        """A preference, changed while the shell runs."""
        self.run(f"desk.widget._settings.set_{kind}('{key}', {json.dumps(value)})")
