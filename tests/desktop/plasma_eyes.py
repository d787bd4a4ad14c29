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

LOOKS = 5
"""What changes while it is looked at may hide what stands beside it: then it is looked at once more, so many times."""


def walk(part: Any, depth: int, found: list[str]) -> bool:
    """Whether everything below could be seen."""
    try:
        states = part.get_state_set()
        if depth > 1 and not states.contains(Atspi.StateType.SHOWING):
            return True
        box = part.get_extents(Atspi.CoordType.SCREEN)
        middle = box.x + box.width // 2, box.y + box.height // 2
        focused = states.contains(Atspi.StateType.FOCUSED)
        checked = states.contains(Atspi.StateType.CHECKED)
        if name := part.get_name():
            about = [part.get_role_name(), name, part.get_description() or "", *middle, focused, checked]
            found.append(json.dumps(about))
        children = [part.get_child_at_index(number) for number in range(part.get_child_count())]
    except GLib.Error:
        return False  # It has gone while it was looked at.
    seen = [walk(child, depth + 1, found) for child in children if child is not None]
    return all(seen)


def look() -> list[str]:
    found: list[str] = []
    for _ in range(LOOKS):
        # What it knows from before may have gone.
        GLib.MainContext.default().iteration(False)
        desktop = Atspi.get_desktop(0)
        desktop.clear_cache()
        found = []
        programs = [desktop.get_child_at_index(index) for index in range(desktop.get_child_count())]
        seen = [walk(program, 0, found) for program in programs if program is not None]
        if all(seen):
            break
    return found


Atspi.init()
for _ in sys.stdin:
    print("\n".join([*look(), ""]), flush=True)
