"""What is on a Plasma desktop, as a screen reader finds it: one JSON list a line, of role, name, description, the place
of its middle, and whether it has the keyboard and is checked. Run inside of the desktop's session: it looks once for
each line that comes in, and ends each look with an empty line.
"""

import json
import sys
from typing import Any

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib  # noqa: E402


def walk(part: Any, depth: int) -> None:
    try:
        states = part.get_state_set()
        if depth > 1 and not states.contains(Atspi.StateType.SHOWING):
            return
        box = part.get_extents(Atspi.CoordType.SCREEN)
        middle = box.x + box.width // 2, box.y + box.height // 2
        focused = states.contains(Atspi.StateType.FOCUSED)
        checked = states.contains(Atspi.StateType.CHECKED)
        if name := part.get_name():
            print(json.dumps([part.get_role_name(), name, part.get_description() or "", *middle, focused, checked]))
        for number in range(part.get_child_count()):
            if (child := part.get_child_at_index(number)) is not None:
                walk(child, depth + 1)
    except GLib.Error:
        pass  # It has gone while it was looked at.


Atspi.init()
for _ in sys.stdin:
    # What it knows from before may have gone.
    GLib.MainContext.default().iteration(False)
    desktop = Atspi.get_desktop(0)
    desktop.clear_cache()
    for index in range(desktop.get_child_count()):
        walk(desktop.get_child_at_index(index), 0)
    print(flush=True)
