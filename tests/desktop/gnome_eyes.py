"""What is in the window of the extension's preferences, as a screen reader finds it: one JSON list of each part's role,
name and whether it has the keyboard. Run inside of the session; says nothing while the window is not there, or changes.
"""

import json
from typing import Any

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib  # noqa: E402

PROGRAM = "org.gnome.Shell.Extensions"


def walk(part: Any) -> list[tuple[str, str, bool]]:
    focused = part.get_state_set().contains(Atspi.StateType.FOCUSED)
    found = [(part.get_role_name(), part.get_name(), focused)]
    for number in range(part.get_child_count()):
        if child := part.get_child_at_index(number):
            found += walk(child)
    return found


Atspi.init()
desktop = Atspi.get_desktop(0)
found: list[tuple[str, str, bool]] = []
try:
    programs = [desktop.get_child_at_index(number) for number in range(desktop.get_child_count())]
    for program in programs:
        if program and program.get_name() == PROGRAM:
            found += walk(program)
except GLib.Error:
    found = []  # Something went while it was looked at.
print(json.dumps(found))
