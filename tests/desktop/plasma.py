"""A Plasma desktop, headless: an X server without a screen, the widget as it is installed, and hands to click with."""

import subprocess
import sys
from pathlib import Path

from .tree import TOP, Program, Tree, session_bus, wait_until

WIDGET = "org.kernelcore.gpud"
DISPLAY = ":77"
SCREEN = "1000x700x24"

# What Plasma would otherwise fill its log with, or draw with a GPU that is not there.
ENVIRONMENT = {
    "DISPLAY": DISPLAY,
    "QT_QPA_PLATFORM": "xcb",
    "QT_QUICK_BACKEND": "software",
    "QT_FORCE_STDERR_LOGGING": "1",
    "QT_LOGGING_RULES": "*.debug=false;qml.debug=true;js.debug=true",
    "XDG_CURRENT_DESKTOP": "KDE",
    "KDE_FULL_SESSION": "true",
    "KDE_SESSION_VERSION": "6",
}


class Plasma:
    """The session of one person. ``system_bus`` is the address of what is the system bus inside."""

    def __init__(self, tree: Tree, system_bus: str) -> None:
        self.tree = tree
        tree.environment |= ENVIRONMENT | {"DBUS_SYSTEM_BUS_ADDRESS": system_bus}
        target = tree.root / "usr/share/plasma/plasmoids" / WIDGET
        # Into the container's own layer, as `make install` puts it there.
        self.install(target)
        session_bus(tree)
        tree.start("xvfb.log", "Xvfb", DISPLAY, "-screen", "0", SCREEN)
        wait_until(lambda: tree.run("xdotool getdisplaygeometry || true").startswith("1000"), "the X server")
        self.viewer: Program | None = None

    def install(self, target: Path) -> None:
        built = self.tree.shared / "widget"
        subprocess.run([sys.executable, str(TOP / "desktop/plasma/build.py"), str(built)], check=True)
        inside = str(target).removeprefix(str(self.tree.root))
        self.tree.run(f"mkdir -p {inside} && cp -r {built}/. {inside}")

    def view(self, *options: str, **environment: str) -> Program:
        """The widget in a window of its own: ``-f horizontal`` in a panel, ``-f planar`` on the desktop."""
        command = ["plasmoidviewer", "--applet", WIDGET, *options]
        self.viewer = self.tree.start("viewer.log", *command, **environment)
        return self.viewer

    def picture(self, name: str) -> Path:
        """What is on the screen."""
        path = self.tree.shared / f"{name}.png"
        self.tree.run(f"import -window root {path}")
        return path

    def click(self, x: int, y: int) -> None:
        self.tree.run(f"xdotool mousemove {x} {y} click 1")

    def key(self, *keys: str) -> None:
        self.tree.run(f"xdotool key {' '.join(keys)}")
