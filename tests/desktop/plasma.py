"""A Plasma desktop, headless: the real shell on an X server without a screen, with the widget as it is installed, in
the panel and in the system tray. Its parts are found by the names that a screen reader says, clicked with a pointer,
and photographed.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tree import COMMAND_S, START_S, TOP, Program, Tree, session_bus, wait_until

WIDGET = "org.kernelcore.gpud"
WIDGETS = f"/usr/share/plasma/plasmoids/{WIDGET}"
DISPLAY = ":77"
WIDTH, HEIGHT = 1000, 700

PANEL = f"{WIDTH}x48+0+{HEIGHT - 48}"
"""Where the icons are, as a part of the screen."""

CLICK_S = 20.0
"""For what a click brings about, before it is clicked again."""

POPUP = f"480x{HEIGHT - 124}+0+124"

# What Plasma would draw with a GPU that is not there, or hide from those who cannot see.
ENVIRONMENT = {
    "DISPLAY": DISPLAY,
    "QT_QPA_PLATFORM": "xcb",
    "QT_QUICK_BACKEND": "software",
    "QT_FORCE_STDERR_LOGGING": "1",
    "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1",
    "NO_AT_BRIDGE": "0",
    "XDG_CURRENT_DESKTOP": "KDE",
    "KDE_FULL_SESSION": "true",
    "KDE_SESSION_VERSION": "6",
}

# A panel with the widget and the system tray, and in that the widget again, which is always to be shown.
APPLETS = f"""\
[Containments][1]
formfactor=2
immutability=1
lastScreen=0
location=4
plugin=org.kde.panel

[Containments][1][Applets][2]
immutability=1
plugin={WIDGET}

[Containments][1][Applets][3]
immutability=1
plugin=org.kde.plasma.systemtray

[Containments][1][Applets][3][Configuration]
SystrayContainmentId=4

[Containments][1][General]
AppletOrder=2;3

[Containments][4]
formfactor=2
immutability=1
lastScreen=0
location=4
plugin=org.kde.plasma.private.systemtray

[Containments][4][Applets][5]
immutability=1
plugin={WIDGET}

[Containments][4][General]
extraItems={WIDGET}
knownItems={WIDGET}
shownItems={WIDGET}
"""


ONLY_A_TRAY = """\
[Containments][1]
formfactor=2
immutability=1
lastScreen=0
location=4
plugin=org.kde.panel

[Containments][1][Applets][3]
immutability=1
plugin=org.kde.plasma.systemtray

[Containments][1][General]
AppletOrder=3
"""


@dataclass(frozen=True)
class Part:
    """Something on the screen."""

    role: str
    name: str
    description: str
    x: int
    y: int
    focused: bool
    checked: bool

    @property
    def in_panel(self) -> bool:
        return self.y > HEIGHT - 48


class Plasma:
    """The session of one person. ``system_bus`` is the address of what is the system bus inside; ``applets`` are the
    person's panels, by default with the widget in one, and in its tray."""

    def __init__(self, tree: Tree, system_bus: str, applets: str = APPLETS) -> None:
        self.tree = tree
        tree.environment |= ENVIRONMENT | {"DBUS_SYSTEM_BUS_ADDRESS": system_bus}
        built = tree.shared / "widget"
        subprocess.run([sys.executable, str(TOP / "desktop/plasma/build.py"), str(built)], check=True)
        tree.run(f"mkdir --parents {WIDGETS} /root/.config && cp -r {built}/. {WIDGETS}")
        shutil.copy(Path(__file__).with_name("plasma_eyes.py"), tree.shared)
        self.session_bus = session_bus(tree)
        # It would start anew whenever its last client leaves, and refuse whoever comes meanwhile.
        tree.start("xvfb.log", "Xvfb", DISPLAY, "-noreset", "-screen", "0", f"{WIDTH}x{HEIGHT}x24")
        wait_until(lambda: "1000" in tree.run("xdotool getdisplaygeometry || true"), "the X server did not start")
        (tree.shared / "applets").write_text(applets)
        (tree.shared / "kdeglobals").write_text("[KDE]\nAnimationDurationFactor=0\n")
        tree.run(f"cp {tree.shared}/kdeglobals /root/.config/")
        self.shell: Program | None = None
        self._eyes: subprocess.Popen[str] | None = None

    # The shell -------------------------------------------------------------------------------------------------------

    def start(self, *, fresh: bool = True, **environment: str) -> None:
        """Until its panel is there. ``fresh``: with the settings of somebody who has changed none."""
        if fresh:
            self.tree.run(f"cp {self.tree.shared}/applets /root/.config/plasma-org.kde.plasma.desktop-appletsrc")
        self.shell = self.tree.start("shell.log", "plasmashell", "--no-respawn", **environment)
        wait_until(lambda: any(part.in_panel for part in self.see()), self._log, within_s=START_S)

    def stop(self) -> None:
        """kill -9, and of what it has started."""
        self.close_eyes()
        if self.shell is not None:
            self.shell.stop()
            self.shell = None

    def _log(self) -> str:
        return self.shell.log() if self.shell is not None else "no shell"

    def complaints(self) -> list[str]:
        """What the shell has said about the widget."""
        return [line for line in self._log().splitlines() if WIDGET in line]

    # Eyes ------------------------------------------------------------------------------------------------------------

    def see(self) -> list[Part]:
        if self._eyes is None:
            self._eyes = subprocess.Popen(
                self.tree.command("python3", f"{self.tree.shared}/plasma_eyes.py"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._eyes.stdin is not None
        assert self._eyes.stdout is not None
        self._eyes.stdin.write("look\n")
        self._eyes.stdin.flush()
        return [Part(*json.loads(line)) for line in iter(self._eyes.stdout.readline, "\n")]

    def close_eyes(self) -> None:
        """A shell that has been killed leaves memories of it."""
        if self._eyes is not None:
            eyes, self._eyes = self._eyes, None
            eyes.communicate(timeout=COMMAND_S)

    def wait(self, condition: Callable[[list[Part]], Any], what: str) -> Any:
        """Until it is true of what is on the screen; what it returned."""
        answer: list[Any] = []
        seen: list[Part] = []

        def look() -> bool:
            seen[:] = self.see()
            answer[:] = [condition(seen)]
            return bool(answer[0])

        try:
            wait_until(look, what)
        except AssertionError as problem:
            names = "\n".join(f"{part.role} {part.name!r} {part.description!r}" for part in seen)
            raise AssertionError(f"{problem}; on the screen are\n{names}\n{self._log()[-2000:]}") from None
        return answer[0]

    def part(self, name: str, role: str = "") -> Part:
        """The part with that name, waiting for it if need be."""

        def find(parts: list[Part]) -> Part | None:
            return next((part for part in parts if re.fullmatch(name, part.name) and role in part.role), None)

        found = self.wait(find, f"nothing on the screen is called {name!r}")
        assert isinstance(found, Part)
        return found

    def gone(self, name: str) -> None:
        self.wait(
            lambda parts: not any(re.fullmatch(name, part.name) for part in parts), f"{name!r} is still on the screen"
        )

    def icons(self) -> list[Part]:
        """The widget's icons: in the panel, then in the tray."""
        found = [part for part in self.see() if part.in_panel and part.role == "button" and "GiB" in part.description]
        return sorted({part.x // 8: part for part in found}.values(), key=lambda part: part.x)

    def colors(self, part: str) -> dict[tuple[int, int, int], int]:
        """How often each color is in a part of the screen."""
        path = self.tree.shared / "colors.ppm"
        self.tree.run(f"import -window root -crop {part} -depth 8 {path}")
        data = path.read_bytes()
        head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
        assert head is not None
        counts: dict[tuple[int, int, int], int] = {}
        for at in range(head.end(), len(data), 3):
            color = (data[at], data[at + 1], data[at + 2])
            counts[color] = counts.get(color, 0) + 1
        return counts

    def picture(self, name: str, part: str) -> Path:
        """Of a part of the screen, small enough to be kept."""
        path = self.tree.shared / f"{name}.png"
        self.tree.run(f"import -window root -crop {part} +repage -colors 200 -depth 8 PNG8:{path}")
        return path

    # Hands -----------------------------------------------------------------------------------------------------------

    def click(self, name: str, role: str = "") -> None:
        part = self.part(name, role)
        self.tree.run(f"xdotool mousemove {part.x} {part.y} click 1")

    def point_away(self) -> None:
        """To where nothing is: what is pointed at is lit, and explains itself after a while."""
        self.tree.run("xdotool mousemove 900 100")

    def focus(self, part: Part) -> None:
        """Give the keyboard to the window of a part, as the window manager does that is not here."""
        where = f"xdotool mousemove {part.x} {part.y} getmouselocation --shell"
        self.tree.run(f'eval "$({where})" && xdotool windowfocus --sync $WINDOW')

    def windows(self) -> int:
        """How many the shell has; a menu is one more, and the only thing here that no screen reader is told of."""
        return len(self.tree.run("xdotool search --onlyvisible --class plasmashell || true").split())

    def key(self, *keys: str) -> None:
        self.tree.run(f"xdotool key {' '.join(keys)}")

    def open(self) -> None:
        """The popup of the icon in the panel, unless it is open."""
        if not self.is_open():
            self.wait(lambda _: self.icons(), "there is no icon")
            self._toggle(is_open=True)
        self.part("Give the GPU away|A program keeps the GPU empty|GPU abgeben")

    def is_open(self) -> bool:
        return any(part.role == "heading" for part in self.see())

    def close(self) -> None:
        self._toggle(is_open=False)
        self.point_away()

    def _toggle(self, *, is_open: bool) -> None:
        """Click on the icon until the popup is as wanted: a click while it comes or goes by itself is one too many."""

        def done() -> bool:
            if self.is_open() is is_open:
                return True
            # A shell that is busy may tell of nothing for a moment.
            icons = self.icons()
            if not icons:
                return False
            self.tree.run(f"xdotool mousemove {icons[0].x} {icons[0].y} click 1")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: self.is_open() is is_open, "", within_s=CLICK_S)
            return self.is_open() is is_open

        wait_until(done, f"the popup does not {'open' if is_open else 'close'}", within_s=6 * CLICK_S)
